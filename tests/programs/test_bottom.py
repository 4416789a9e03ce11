"""`tcp()` in a rule's DAG: the kernel carries the bytes of programs that could share memory."""

from __future__ import annotations

import pytest

from bertha_socket.reasons import Reason, text_of
from tests.harness import Host, assert_balanced, assert_carried, assert_plain, require_program
from tests.programs.conftest import StartRedis

pytestmark = pytest.mark.program

_POLICY = text_of(Reason.POLICY)


def _cli(port: int, *words: str) -> list[str]:
    return [require_program("redis-cli"), "-p", str(port), *words]


@pytest.mark.parametrize("side", ["any", "client", "server"])
@pytest.mark.parametrize("dag", ["tcp()", "prefer tcp()"])
def test_the_kernel_carries(host: Host, start_redis: StartRedis, side: str, dag: str) -> None:
    """Whichever end says it; the log names the rule at the end that it keeps from anything better."""
    _, before = start_redis(host)
    assert host.run(_cli(before, "SET", "key", "value")).strip() == "OK"
    host.set_policy(f'[[rule]]\nside = "{side}"\ndag = "{dag}"\n')
    listed = dag != "tcp()" or side == "client"  # a server that takes nothing else has nothing to offer
    _, port = start_redis(host, listed=listed)
    assert host.run(_cli(port, "SET", "key", "value")).strip() == "OK"
    assert host.run(_cli(port, "GET", "key")).strip() == "value"
    log = host.finish()
    assert_carried(log, "redis-cli", "shm", role="client", port=before)  # without the rule
    clients = assert_plain(log, "redis-cli", 2, role="client", port=port)
    servers = assert_plain(log, "redis-server", 2, role="server", port=port)
    assert {c.reason for c in (clients if listed else servers)} <= {_POLICY}
    assert_balanced(log, port=port, min_pairs=2)


def test_local_or_remote_is_what_there_is_without(host: Host, start_redis: StartRedis) -> None:
    host.set_policy('[[rule]]\ndag = "local_or_remote()"\n')
    _, port = start_redis(host)
    assert host.run(_cli(port, "PING")).strip() == "PONG"
    assert_carried(host.finish(), "redis-cli", "shm", role="client", port=port)
