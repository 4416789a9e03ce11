"""SO_RCVLOWAT holds for poll, select and epoll; select() beyond FD_SETSIZE sees connections on rings."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.harness import Host, assert_carried, assert_plain, free_port
from tests.shim.conftest import Build

_HERE = Path(__file__).parent
_PYTHON = Path(sys.executable).name


@pytest.mark.parametrize("carrier", ["tcp", "shm"])
def test_low_water_mark(host: Host, carrier: str) -> None:
    port = free_port()
    server = host.server([sys.executable, _HERE / "low_water.py", port], port)
    host.run([sys.executable, _HERE / "water.py", port], shim=carrier == "shm")
    assert server.wait() == "ok\n"
    log = host.finish()
    if carrier == "shm":
        assert_carried(log, _PYTHON, role="server")
    else:
        assert_plain(log, _PYTHON, 1)


def test_select_with_high_numbers(host: Host, build: Build) -> None:
    port = free_port()
    server = host.server([build("high_select"), port], port)
    host.run([sys.executable, _HERE / "water.py", port])
    assert server.wait() == "ok\n"
    assert_carried(host.finish(), "high_select", role="server")
