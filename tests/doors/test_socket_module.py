"""`import bertha_socket as socket`: stdlib's public interface, in every Python that is supported."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import bertha_socket
from tests.harness import Host, assert_carried, free_port

_NAMES = json.loads(Path(__file__).with_name("socket_names.json").read_text())
_VERSION = "{}.{}".format(*sys.version_info)

_ECHO = """
import sys, threading
import bertha_socket as socket
server = socket.create_server(("127.0.0.1", 0))
def serve():
    connection, _ = server.accept()
    assert type(connection) is socket.socket
    with connection:
        while data := connection.recv(4096):
            connection.sendall(data)
thread = threading.Thread(target=serve)
thread.start()
with socket.create_connection(server.getsockname(), timeout=10) as client:
    assert type(client) is socket.socket
    for i in range(300):
        client.sendall(b"%d" % i)
        assert client.recv(100) == b"%d" % i
thread.join()
server.close()
"""


def test_list_is_stdlibs() -> None:
    assert list(bertha_socket.__all__) == list(socket.__all__)
    assert set(socket.__all__) <= set(dir(bertha_socket))
    for name in socket.__all__:
        assert hasattr(bertha_socket, name)


def test_star_import_is_stdlibs() -> None:
    ours: dict[str, object] = {}
    exec("from bertha_socket import *", ours)
    theirs: dict[str, object] = {}
    exec("from socket import *", theirs)
    assert ours.keys() == theirs.keys()


@pytest.mark.parametrize("version", sorted(_NAMES))
def test_functions_and_classes_of_each_version(version: str) -> None:
    """Constants depend on the headers that a Python was built with, functions and classes do not."""
    expected = {name for name in _NAMES[version] if not name.isupper()}
    if version == _VERSION:
        assert {name for name in bertha_socket.__all__ if not name.isupper()} == expected
    # What another version has and this one has not would be found there: nothing is listed by hand.
    for name in expected & set(dir(socket)):
        assert getattr(bertha_socket, name) is not None


@pytest.mark.skipif(_VERSION not in _NAMES, reason="no list of this Python's names yet")
def test_this_version_is_listed() -> None:
    assert {n for n in socket.__all__ if not n.isupper()} == {n for n in _NAMES[_VERSION] if not n.isupper()}


@pytest.mark.parametrize("version", sorted(_NAMES))
def test_list_in_other_pythons(version: str) -> None:
    """Asked of an interpreter of that version, where one is installed; the import needs no other package."""
    code = "import json, socket, sys, bertha_socket\n"
    code += "assert list(bertha_socket.__all__) == list(socket.__all__)\n"
    code += "assert all(hasattr(bertha_socket, name) for name in socket.__all__)\n"
    code += "print(json.dumps([list(sys.version_info[:2]), list(socket.__all__)]))\n"
    package = Path(bertha_socket.__file__).parents[1]
    environ = {**os.environ, "PYTHONPATH": str(package), "PYTHONDONTWRITEBYTECODE": "1"}
    for python in _pythons(version):
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False, env=environ)
        if done.returncode == 0 or "Traceback" in done.stderr:  # a launcher may know of no such version
            assert done.stderr == ""
            found, names = json.loads(done.stdout)
            assert "{}.{}".format(*found) == version
            assert {n for n in names if not n.isupper()} == {n for n in _NAMES[version] if not n.isupper()}
            return
    pytest.skip(f"no Python {version} is installed")


def _pythons(version: str) -> list[str]:
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found = sorted(str(p) for p in (root / "versions").glob(f"{version}.*/bin/python3"))
    on_path = shutil.which(f"python{version}")
    return [*([on_path] if on_path else []), *found]


def test_constants_errors_and_unlisted_names() -> None:
    assert bertha_socket.AF_INET is socket.AF_INET
    assert bertha_socket.timeout is TimeoutError
    assert bertha_socket.EAGAIN == socket.EAGAIN  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        _ = bertha_socket.nothing_of_the_sort  # type: ignore[attr-defined]


def test_import_is_light() -> None:
    """Commands and the agent start with this import."""
    code = "import sys, bertha_socket; print([m for m in ('socket', 'ctypes', 'ssl') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_its_sockets_are_negotiated(host: Host) -> None:
    host.run([sys.executable, "-c", _ECHO], shim=False)
    log = host.finish()
    assert_carried(log, Path(sys.executable).name, min_connections=1, role="client")
    assert_carried(log, Path(sys.executable).name, min_connections=1, role="server")


def test_other_sockets_of_the_process_are_not(host: Host) -> None:
    code = _ECHO.replace(
        "import bertha_socket as socket", "import socket, bertha_socket\nbertha_socket.socket"
    )
    host.run([sys.executable, "-c", code], shim=False)
    assert host.finish() == []


def test_without_an_agent_they_are_stdlibs(host: Host) -> None:
    host.run([sys.executable, "-c", _ECHO], shim=False, env={"BERTHA_AGENT": str(host.dir / "none.sock")})
    log = host.finish()
    assert log and all(c.plain for c in log)


_STDLIB_ACCEPT = """
import socket as stdlib
def stdlib_accept(server):
    return stdlib.socket(fileno=server._accept()[0])
"""

# A UDP echo and who asks it: MODULE of the server, of the client, PORT.
_DATAGRAMS = """
import sys, socket, threading
import bertha_socket
modules = {"socket": socket, "bertha_socket": bertha_socket}
theirs, ours = (modules[name] for name in sys.argv[1:3])
bertha_socket.create_server(("127.0.0.1", 0)).close()  # the door is open
server = theirs.socket(type=socket.SOCK_DGRAM)
server.bind(("127.0.0.1", int(sys.argv[3])))
def serve():
    for _ in range(5):
        data, client = server.recvfrom(100)
        server.sendmsg([data], [], 0, client)
thread = threading.Thread(target=serve)
thread.start()
for way in range(3):
    client = ours.socket(type=socket.SOCK_DGRAM)
    client.settimeout(20)
    for i in range(1 if way else 3):
        if way == 0:
            client.sendto(b"%d" % i, server.getsockname())
        elif way == 1:
            client.sendmsg([b"%d" % i], [], 0, server.getsockname())
        else:
            client.connect(server.getsockname())
            client.send(b"%d" % i)
        assert client.recvfrom(100)[0] == b"%d" % i
    client.close()
thread.join()
server.close()
"""


@pytest.mark.parametrize("server", ["socket", "bertha_socket"])
@pytest.mark.parametrize("client", ["socket", "bertha_socket"])
def test_datagrams_of_its_sockets_alone(host: Host, server: str, client: str) -> None:
    """By whichever call a UDP socket begins: where the class is not used, the kernel's own."""
    host.set_policy('[[rule]]\nproto = "udp"\ndag = "prefer reliable()"\n')
    host.run([sys.executable, "-c", _DATAGRAMS, server, client, free_port()], shim=False)
    log = host.finish()
    both = server == client == "bertha_socket"
    roles = [c.role for c in log]
    assert roles.count("server") == (server == "bertha_socket")
    assert roles.count("client") == (3 if both else 0)  # with nobody at the other end it stays the kernel's
    for line in log:
        assert (line.raw["chunnels"][0]["type"] == "reliable") == both, line.raw


def test_other_streams_of_the_process_are_not(host: Host) -> None:
    """The door is open, and what stdlib's sockets begin goes past it, at both ends."""
    code = _ECHO.replace(
        "import bertha_socket as socket",
        "import socket, bertha_socket\nbertha_socket.create_server(('127.0.0.1', 0)).close()",
    )
    host.run([sys.executable, "-c", code], shim=False)
    assert host.finish() == []


def test_its_listener_and_other_peoples_accept(host: Host) -> None:
    """Whose listen() was ours, all its connections are: asyncio takes them by a call of its own."""
    code = _ECHO.replace("connection, _ = server.accept()", "connection = stdlib_accept(server)")
    code = code.replace("assert type(connection) is socket.socket", "pass")
    code = code.replace("server = socket", _STDLIB_ACCEPT + "server = socket")
    host.run([sys.executable, "-c", code], shim=False)
    log = host.finish()
    assert_carried(log, Path(sys.executable).name, min_connections=1, role="client")
    assert_carried(log, Path(sys.executable).name, min_connections=1, role="server")
