"""A program whose policy requires chunnels, and an agent that cannot read its file: nothing goes in clear."""

from __future__ import annotations

import sys

import pytest

from bertha_socket.reasons import Reason, text_of
from tests.chunnels.conftest import StartRedis
from tests.harness import Host, connections, free_port, require_program

pytestmark = pytest.mark.program

_POLICY = '[[rule]]\nprogram = "redis-*"\nproto = "{}"\ndag = "{}"\n'
_SEND = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
try:
    sock.sendto(b"clear", ("127.0.0.1", int(sys.argv[1])))
    print("sent")
except OSError as error:
    print(error.strerror)
"""
_BIND = """
import socket, sys
try:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).bind(("127.0.0.1", int(sys.argv[1])))
    print("bound")
except OSError as error:
    print(error.strerror)
"""


def _unread(host: Host, dag: str, command: list[object], proto: str = "any") -> list[object]:
    """The command, with a policy file that bertha-run reads and that is gone when the agent would."""
    host.set_policy(_POLICY.format(proto, dag))
    return [require_program("sh"), "-c", 'rm "$0"; exec "$@"', str(host.policy), *command]


def _ping(host: Host, port: int) -> str:
    command = [require_program("redis-cli"), "-p", str(port), "ping"]
    return host.run(command, shim=False, check=False, require=False)


@pytest.mark.parametrize(("dag", "served"), [("encrypt()", False), ("prefer encrypt()", True)])
def test_server(host: Host, dag: str, served: bool) -> None:
    port = free_port()
    redis = [require_program("redis-server"), "--port", port, "--bind", "127.0.0.1", "--save", ""]
    command = [str(word) for word in _unread(host, dag, [*redis, "--dir", host.dir])]
    server = host.spawn(command)
    host.wait_port(server, port, listed=False)
    assert ("PONG" in _ping(host, port)) == served
    host.stop(server)
    found = connections(host.connlog(), program="redis-server", role="server")
    assert found
    assert all(c.plain == served and (c.tx_bytes > 0) == served for c in found), found
    assert {c.reason for c in found} == {text_of(Reason.POLICY_UNREAD)}


@pytest.mark.parametrize(("dag", "served"), [("encrypt()", False), ("prefer encrypt()", True)])
def test_client(host: Host, start_redis: StartRedis, dag: str, served: bool) -> None:
    _, port = start_redis(host, "127.0.0.1", shim=False)
    said = host.spawn(_unread(host, dag, [require_program("redis-cli"), "-p", str(port), "ping"]))
    assert ("PONG" in said.wait(20, check=False)) == served
    found = connections(host.connlog(), program="redis-cli")
    assert found
    assert all(c.plain == served for c in found), found
    if not served:
        assert all("bertha.toml: No such file" in (c.reason or "") for c in found), found


@pytest.mark.parametrize(("dag", "served"), [("reliable()", False), ("prefer reliable()", True)])
@pytest.mark.parametrize(("code", "done"), [(_SEND, "sent"), (_BIND, "bound")])
def test_datagrams(host: Host, code: str, done: str, dag: str, served: bool) -> None:
    command = _unread(host, dag, [sys.executable, "-c", code, str(free_port())], "udp")
    said = host.spawn(command).wait(20, check=False)
    assert (done in said) == served, said
    found = [c for c in host.connlog() if c.raw["proto"] == "udp"]
    assert served or (found and all(not c.plain and c.reason for c in found)), found
