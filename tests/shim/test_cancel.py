"""pthread_cancel: a thread ends in every call that says so, busy or asleep; others keep the connection."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.harness import Host, assert_balanced, assert_carried, eventually, free_port
from tests.shim.conftest import Build

_CLIENT = Path(__file__).parent / "cancel_client.py"
_POLICIES = {"shm": None, "unix": '[[rule]]\nprohibit = ["shm"]\n'}
_CALLS = ["recv", "read", "recvmsg", "send", "write", "epoll_wait", "poll", "select", "accept", "connect"]


@pytest.mark.parametrize("carrier", _POLICIES)
@pytest.mark.parametrize("state", ["ready", "asleep"])
@pytest.mark.parametrize("call", _CALLS)
def test_cancelled(host: Host, build: Build, call: str, state: str, carrier: str) -> None:
    if call == "accept" and state == "ready":
        pytest.skip("accept is always the kernel's")
    if policy := _POLICIES[carrier]:
        host.set_policy(policy)
    port = free_port()
    server = host.server([build("cancel"), port, call, state], port)
    assert host.run([sys.executable, _CLIENT, port]) == "ok\n"
    assert server.wait() == "ok\n"
    eventually(
        lambda: host.rehearse or len([c for c in host.connlog() if c.port == port]) == 4, "4 lines in the log"
    )
    log = host.finish()
    assert_carried(log, "cancel", carrier, 2, role="server", port=port)
    if carrier == "shm":  # of the kernel's calls nobody knows how far one was when its thread ended
        assert_balanced(log, port=port, min_pairs=2)
