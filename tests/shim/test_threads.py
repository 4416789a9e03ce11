"""A descriptor that one thread closes, or shuts down, while another is blocked on it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.harness import Host, assert_carried, free_port
from tests.shim.conftest import Build

_TWO = Path(__file__).parent / "two.py"


@pytest.mark.parametrize("way", ["close", "shutdown"])
def test_blocked_reader(host: Host, build: Build, way: str) -> None:
    port = free_port()
    server = host.server([build("threads"), port, way], port)
    host.run([sys.executable, _TWO, port, way])
    server.wait()
    assert_carried(host.finish(), Path(sys.executable).name, role="client", min_connections=1)
