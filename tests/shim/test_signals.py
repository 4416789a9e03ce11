"""A signal interrupts a waiting call, or the call goes on, as the call that installed the handler has it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.harness import Host, assert_carried, free_port
from tests.shim.conftest import Build

_ANSWERS = Path(__file__).parent / "answers.py"
_POLICIES = {"shm": None, "unix": '[[rule]]\nprohibit = ["shm"]\n'}
_PLACES = {"anywhere": (), "one processor": ("taskset", "-c", str(min(os.sched_getaffinity(0))))}
_INTERRUPTING = ["sigaction", "siginterrupt", "siginterrupt first", "sigset", "sysv_signal"]
_RESTARTING = ["signal", "bsd_signal", "ssignal", "siginterrupt 0"]


@pytest.mark.parametrize(
    ("carrier", "place"), [("shm", "anywhere"), ("unix", "anywhere"), ("unix", "one processor")]
)
@pytest.mark.parametrize("way", [*_INTERRUPTING, *_RESTARTING])
def test_signals(host: Host, build: Build, way: str, carrier: str, place: str) -> None:
    if policy := _POLICIES[carrier]:
        host.set_policy(policy)
    port = free_port()
    server = host.server([*_PLACES[place], build("signals"), port, way], port)
    host.run([*_PLACES[place], sys.executable, _ANSWERS, port])
    server.wait()
    assert_carried(host.finish(), "signals", carrier, role="server")
