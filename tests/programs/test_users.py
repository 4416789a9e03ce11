"""Programs of different users: memory is shared only where both ends' policies say so."""

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


def test_not_without_permission(host: Host, start_redis: StartRedis) -> None:
    host.open_to_other_users()
    _, port = start_redis(host)
    _ask(host, port)
    log = host.finish()
    assert_plain(log, "redis-cli", 2, role="client", port=port)
    assert_plain(log, "redis-server", 2, role="server", port=port)


def test_with_permission_of_both(host: Host, start_redis: StartRedis) -> None:
    host.open_to_other_users()
    host.set_policy(
        '[[rule]]\nside = "server"\nallow_users = ["nobody"]\n\n[[rule]]\nallow_users = ["root"]\n'
    )
    _, port = start_redis(host)
    _ask(host, port)
    log = host.finish()
    assert_carried(log, "redis-cli", min_connections=2, role="client", port=port)
    assert_balanced(log, port=port, min_pairs=2)
