"""Which policy file is in force for a program under `bertha-run`: the named one, the user's, the system's.

/etc is the test's own, in a mount namespace for each program: /etc/bertha, and links to all that is there
otherwise.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from bertha_socket.reasons import Reason, text_of
from tests.harness import Connection, Host, free_port, require_program

_ETC = """set -eu
mkdir -p "$0/etc"
mount --rbind /etc "$0/etc"
mount -t tmpfs -o mode=0755 tmpfs /etc
ln -s "$0"/etc/* /etc
rm -f /etc/bertha
mkdir /etc/bertha
[ -z "$1" ] || printf '%s' "$1" >/etc/bertha/bertha.toml
shift
exec "$@"
"""
#: Each is seen in the connection log as something else.
_SYSTEMS = '[[rule]]\nprohibit = ["shm"]\n'
_USERS = '[[rule]]\nrequire = ["tcp"]\n'
_NAMED = "[[rule]]\nspin_us = 3\n"

_SERVER = """
import socket, sys
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as server:
    connection, _ = server.accept()
    while data := connection.recv(100):
        connection.sendall(data)
"""
_CLIENT = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as sock:
    for i in range(100):
        sock.sendall(b"%d" % i)
        assert sock.recv(100) == b"%d" % i
"""
Under = Callable[[str], list[object]]


@pytest.fixture
def under(make_host: Callable[..., Host]) -> tuple[Host, Under]:
    """A host without an agent, and what becomes a program that sees such a system's file ("": none)."""
    unshare = require_program("unshare")
    probe = [unshare, "-m", "mount", "-t", "tmpfs", "tmpfs", "/etc"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False, timeout=20)
    if done.returncode != 0:
        pytest.skip(f"cannot mount anything in a namespace of one's own: {done.stderr.strip()}")
    host = make_host(agent=False)

    def see(text: str) -> list[object]:
        return [unshare, "-m", "sh", "-c", _ETC, host.dir, text]

    return host, see


def _talk(host: Host, see: list[object], *, listed: bool, user: str | None = None) -> list[Connection]:
    """Both ends' lines of one connection; `user`: the text of a file of the user's own."""
    home = host.dir / "home"
    (home / ".config" / "bertha").mkdir(parents=True)
    if user is not None:
        (home / ".config" / "bertha" / "bertha.toml").write_text(user)
    env = {"HOME": str(home), "XDG_CONFIG_HOME": ""}
    port = free_port()
    server = host.spawn([sys.executable, "-c", _SERVER, port], under=see, env=env)
    host.wait_port(server, port, listed=listed)
    host.spawn([sys.executable, "-c", _CLIENT, port], under=see, env=env).wait(20)
    server.wait(20)
    log = host.finish()
    assert host.rehearse or sorted(c.role for c in log) == ["client", "server"], log
    return log


def test_the_systems_file(under: tuple[Host, Under]) -> None:
    host, see = under
    host.start_agent(see(_SYSTEMS))
    log = _talk(host, see(_SYSTEMS), listed=True)
    assert {c.implementation for c in log} == {"unix"}, log
    assert {c.reason for c in log} == {text_of(Reason.SHM_PROHIBITED)}, log


def test_the_users_file_goes_first(under: tuple[Host, Under]) -> None:
    host, see = under
    host.start_agent(see(_SYSTEMS))
    log = _talk(host, see(_SYSTEMS), user=_USERS, listed=False)
    assert {c.implementation for c in log} == {"tcp"}, log
    (server,) = [c for c in log if c.role == "server"]  # which the client then does not find
    assert server.reason == text_of(Reason.POLICY), log


def test_the_named_file_goes_before_both(under: tuple[Host, Under]) -> None:
    host, see = under
    host.start_agent(see(_SYSTEMS))
    host.set_policy(_NAMED)
    log = _talk(host, see(_SYSTEMS), user=_USERS, listed=True)
    assert {c.implementation for c in log} == {"shm"}, log


def test_the_systems_file_where_its_agent_is(under: tuple[Host, Under]) -> None:
    """A program that sees none (in a container) has what the agent sees."""
    host, see = under
    host.start_agent(see(_SYSTEMS))
    log = _talk(host, see(""), listed=True)
    assert {c.implementation for c in log} == {"unix"}, log
