"""`bertha demo`, whole: its own agent, its own programs, and what it says of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.harness import Host, require_program

pytestmark = pytest.mark.program

_BERTHA = Path(sys.executable).with_name("bertha")


@pytest.mark.parametrize(
    ("options", "programs", "kinds"),
    [
        ((), {"redis-server", "redis-benchmark"}, {"SET", "GET"}),
        (("--no-redis",), {"kv_server", Path(sys.executable).name}, {"GET"}),
    ],
    ids=["redis", "legacy_apps"],
)
def test_demo(host: Host, options: tuple[str, ...], programs: set[str], kinds: set[str]) -> None:
    for name in ["cc"] if options else sorted(programs):
        require_program(name)
    report = json.loads(
        host.run([_BERTHA, "demo", "--rounds", "1", "--json", *options], shim=False, timeout=40)
    )
    assert {row["request"] for row in report["rows"]} == kinds
    assert all(row[column] > 0 for row in report["rows"] for column in ("plain", "under bertha-run", "ratio"))
    assert {one["program"] for one in report["carried"]} == programs
    assert {one["implementation"] for one in report["carried"]} == {"shm"}


def test_table(host: Host) -> None:
    """What a person sees: progress on standard error, the table, and what carried the connections."""
    text = host.run([_BERTHA, "demo", "--rounds", "1", "--no-redis"], shim=False, timeout=40)
    assert "round 1 of 1" in text
    assert "requests/s" in text
    assert "kv_server (server): shm" in text
    bad = host.run([_BERTHA, "demo", "--rounds", "0"], shim=False, check=False)
    assert "--rounds takes a number from 1 to 20" in bad
