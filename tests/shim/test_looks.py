"""MSG_PEEK with MSG_WAITALL waits for the whole message, wherever its parts are."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest

from tests.harness import Host, assert_balanced, assert_carried, eventually, free_port
from tests.shim.conftest import Build

_PARTS = Path(__file__).parent / "parts.py"
_POLICIES = {"tcp": None, "shm": None, "unix": '[[rule]]\nprohibit = ["shm"]\n'}


@pytest.mark.parametrize(
    ("way", "carrier"), [*itertools.product(["first", "then"], _POLICIES), ("much", "shm")]
)
def test_look_at_all(host: Host, build: Build, way: str, carrier: str) -> None:
    if policy := _POLICIES[carrier]:
        host.set_policy(policy)
    port = free_port()
    server = host.server([build("looks"), port, way], port)
    host.run([sys.executable, _PARTS, port, way], shim=carrier != "tcp")
    server.wait()
    lines = 1 if carrier == "tcp" else 2
    eventually(lambda: host.rehearse or len(host.connlog()) == lines, "both ends in the log")
    log = host.finish()
    assert_carried(log, "looks", carrier, role="server")
    if carrier != "tcp":
        assert_balanced(log)
