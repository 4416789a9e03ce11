"""Descriptors that are closed or replaced where the shim cannot see it: no bytes go to a lost connection."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.harness import (
    Host,
    assert_balanced,
    assert_carried,
    assert_plain,
    connections,
    eventually,
    free_port,
)
from tests.shim.conftest import Build

_HEARS = Path(__file__).parent / "hears.py"
_POLICIES = {"shm": None, "unix": '[[rule]]\nprohibit = ["shm"]\n', "plain": None}
_WAYS = {
    "daemon": ["kept"],
    "terminal": ["kept"],
    "stream": [f"line {i}" for i in range(20)],
    "reopened": ["kept", "kept", "kept", ""],
    "unseen": [""] * 24,
}


@pytest.mark.parametrize("carrier", _POLICIES)
@pytest.mark.parametrize("way", _WAYS)
def test_closed_past_us(host: Host, build: Build, way: str, carrier: str) -> None:
    heard = _WAYS[way]
    if policy := _POLICIES[carrier]:
        host.set_policy(policy)
    port = free_port()
    host.server([build("past_us"), port, way], port)
    aware = carrier != "plain"
    answer = host.run([sys.executable, _HEARS, port, len(heard)], shim=aware)
    assert answer == "".join(f"{line}\n" for line in heard)
    # A reference that is counted wrongly would keep a line from the log.
    lines = (2 if aware else 1) * len(heard)
    eventually(lambda: host.rehearse or len(host.connlog()) == lines, f"{lines} lines in the log")
    log = host.finish()
    if aware:
        assert_carried(log, "past_us", carrier, len(heard), role="server")
        assert_balanced(log)
    else:
        assert_plain(log, "past_us", len(heard))
        sent = [c.tx_bytes for c in connections(log, program="past_us")]
        if way == "reopened" and sent:  # the C library's own stdout on a plain connection is not counted
            sent[1] += len(heard[1])
        assert sent == ([1 + len(line) for line in heard] if not host.rehearse else [])
