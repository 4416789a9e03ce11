"""Many connections at a time, twice: the second crowd finds the records and slots of the first."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import pytest

from tests.harness import Host, assert_carried


@pytest.mark.slow
def test_a_crowd_comes_twice(host: Host) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    count = 10_000 if hard == resource.RLIM_INFINITY else min(10_000, hard // 2 - 500)
    host.set_policy('[[rule]]\nprefer = ["shm"]\n')  # each is over after one exchange
    said = host.run([sys.executable, Path(__file__).parent / "crowd.py", count], timeout=120).splitlines()
    log = host.finish()
    if host.rehearse:
        return
    first, second = (dict(zip(line.split()[::2], map(int, line.split()[1::2]), strict=True)) for line in said)
    assert first == second
    assert 2 * count <= second["records"] <= 2 * count + 16
    name = Path(sys.executable).name
    for role in ("client", "server"):
        assert len(assert_carried(log, name, role=role)) == 2 * count
