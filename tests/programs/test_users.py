"""Programs of different users: joined by a system agent, unless a policy leaves the other user out; and by no
other agent, whatever a policy says."""

from __future__ import annotations

import os

import pytest

from bertha_socket.reasons import Reason, text_of
from tests.conftest import MakeHost
from tests.harness import (
    Connection,
    Host,
    assert_balanced,
    assert_carried,
    assert_plain,
    connections,
    require_program,
)
from tests.programs.conftest import StartRedis

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can start programs as another user"),
]


def _ask(host: Host, port: int) -> None:
    for words in (["SET", "key", "value"], ["GET", "key"]):
        command = [require_program("redis-cli"), "-p", str(port), *words]
        assert host.spawn(command, user="nobody").wait().strip() in ("OK", "value")


_BY_NAME = """
[[rule]]
side = "server"
allow_users = ["nobody"]
[[rule]]
side = "client"
allow_users = ["root"]
"""
_EVERYBODY = """
[[rule]]
allow_users = ["*"]
"""


@pytest.mark.parametrize("policy", ["", _BY_NAME, _EVERYBODY], ids=["default", "by name", "everybody"])
def test_joined(host: Host, start_redis: StartRedis, policy: str) -> None:
    """The test's agent is root's."""
    host.open_to_other_users()
    host.set_policy(policy)
    _, port = start_redis(host)
    _ask(host, port)
    log = host.finish()
    assert_carried(log, "redis-cli", min_connections=2, role="client", port=port)
    assert_balanced(log, port=port, min_pairs=2)


@pytest.mark.parametrize("side", ["client", "server"])
def test_left_out(host: Host, start_redis: StartRedis, side: str) -> None:
    """One end's policy is enough; the other end allows everybody."""
    other = "server" if side == "client" else "client"
    host.open_to_other_users()
    host.set_policy(
        f'[[rule]]\nside = "{side}"\nallow_users = ["daemon"]\n'
        f'[[rule]]\nside = "{other}"\nallow_users = ["*"]\n'
    )
    _, port = start_redis(host)
    _ask(host, port)
    log = host.finish()
    assert_plain(log, "redis-cli", 2, role="client", port=port)
    assert_plain(log, "redis-server", 2, role="server", port=port)


def _two_hosts(make_host: MakeHost, policy: str) -> tuple[Host, Host]:
    """A server's user and a client's, each with an agent of its own, neither of them root's."""
    hosts = make_host(user="daemon"), make_host(user="nobody")
    for host in hosts:
        host.open_to_other_users()
        host.set_policy(policy)
    return hosts


def _ask_as_its_user(host: Host, port: int, more: dict[str, str] | None = None) -> list[Connection]:
    """SET and GET by the host's user; the log's lines."""
    for words in (["SET", "key", "value"], ["GET", "key"]):
        command = [require_program("redis-cli"), "-p", str(port), *words]
        assert host.spawn(command, env=more, run_options=()).wait().split()[-1] in ("OK", "value")
    return host.finish()


@pytest.mark.parametrize("policy", ["", _EVERYBODY], ids=["default", "everybody"])
def test_each_with_an_agent_of_its_own(make_host: MakeHost, start_redis: StartRedis, policy: str) -> None:
    server, client = _two_hosts(make_host, policy)
    _, port = start_redis(server)
    clients, servers = _ask_as_its_user(client, port), server.finish()
    assert_plain(clients, "redis-cli", 2, role="client", port=port)
    assert_plain(servers, "redis-server", 2, role="server", port=port)
    reasons = {c.reason for c in connections(clients, port=port)}
    assert client.rehearse or reasons == {text_of(Reason.NOT_LISTED)}


@pytest.mark.parametrize("policy", ["", _EVERYBODY], ids=["default", "everybody"])
def test_agent_of_the_other_user(make_host: MakeHost, start_redis: StartRedis, policy: str) -> None:
    """The client is pointed at the agent of a user who is neither root nor its own: it asks it nothing."""
    server, client = _two_hosts(make_host, policy)
    _, port = start_redis(server)
    clients = _ask_as_its_user(client, port, {"BERTHA_AGENT": str(server.agent_path)})
    servers = server.finish()
    assert_plain(clients, "redis-cli", 2, role="client", port=port)
    assert_plain(servers, "redis-server", 2, role="server", port=port)
    said = {c.reason for c in connections(clients, port=port)}
    assert client.rehearse or said == {text_of(Reason.NO_AGENT)}
    warning = next(p for p in client.programs if p.label == "redis-cli").text()
    assert client.rehearse or "belongs to another user" in warning, warning
