"""Programs of different users: joined by a system agent, unless a policy leaves the other user out."""

from __future__ import annotations

import os

import pytest

from tests.harness import Host, assert_balanced, assert_carried, assert_plain, require_program
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
