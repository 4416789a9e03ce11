"""SO_RCVLOWAT holds for poll, select and epoll; select() beyond FD_SETSIZE sees connections on rings."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.harness import Host, assert_carried, free_port
from tests.shim.conftest import Build

_HERE = Path(__file__).parent
_PYTHON = Path(sys.executable).name


def test_low_water_mark(host: Host) -> None:
    port = free_port()
    server = host.server([sys.executable, _HERE / "low_water.py", port], port)
    host.run([sys.executable, _HERE / "water.py", port])
    assert server.wait() == "ok\n"
    assert_carried(host.finish(), _PYTHON, role="server")


def test_select_with_high_numbers(host: Host, build: Build) -> None:
    port = free_port()
    server = host.server([build("high_select"), port], port)
    host.run([sys.executable, _HERE / "water.py", port])
    assert server.wait() == "ok\n"
    assert_carried(host.finish(), "high_select", role="server")
