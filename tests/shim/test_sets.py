"""One connection in several epoll sets, and sets within sets: each is told as if it were the only one.

The programs have both ends, check every answer, and run without the shim first (see test_readiness.py).
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.harness import Host, assert_carried, eventually, free_port
from tests.shim.conftest import Build

_HERE = Path(__file__).parent
_TOLD = ["levels", "edges", "one-shot", "many", "duplicate", "end", "reset"]
_WAITING = ["both-asleep", "takers", "takers-by-edges", "takers-exclusive", "changing", "space"]


_LOOKED_AT = ["levels", "edges", "edges-both", "one-shot", "deep", "two-outers", "duplicates", "comes-late"]
_ASLEEP = ["asleep", "asleep-by-edges", "inside-and-outside", "takers", "takers-inside"]


def _both_ways(host: Host, program: Path, scene: str, connections: int, spin: str = "50") -> None:
    words = scene.split()
    assert host.run([program, *words], shim=False, timeout=60) == "ok\n"
    assert host.run([program, *words], timeout=60, env={"BERTHA_SPIN_US": spin}) == "ok\n"
    log = host.finish()
    for role in ("client", "server"):
        assert_carried(log, program.name, role=role, min_connections=connections)


@pytest.mark.parametrize("scene", [*_TOLD, *_WAITING, "child", "second-life"])
def test_in_several_sets(host: Host, build: Build, scene: str) -> None:
    _both_ways(host, build("sets"), scene, 1)


_KIN = [
    *(f"{scene} {how}" for scene in ("gone", "stays") for how in ("level", "edge", "one-shot", "within")),
    *(f"stopped-asleep {how}" for how in ("level", "edge", "within")),
    *(f"parent-asleep {how}" for how in ("level", "edge", "within")),
    *(f"in-turn {how}" for how in ("level", "edge", "within")),
    *(f"takers {how}" for how in ("level", "edge", "one-shot")),
    *("space level", "space edge", "threads-asleep", "both"),
]
_OWN = [
    *(f"{scene} {how}" for scene in ("gone", "stays") for how in ("level", "edge", "one-shot")),
    *(f"{scene} {how}" for scene in ("stopped-asleep", "parent-asleep") for how in ("level", "edge")),
    *(f"{scene} {how}" for scene in ("in-turn", "comes-second") for how in ("level", "edge")),
    *(f"{scene} level" for scene in ("takers", "space", "threads-asleep", "both")),
]


@pytest.mark.parametrize(
    ("scene", "spin"),
    [*((scene, "50") for scene in _KIN), *((scene, "0") for scene in ("gone level", "in-turn edge", "both"))],
)
def test_a_set_of_a_parent_and_its_child(host: Host, build: Build, scene: str, spin: str) -> None:
    _both_ways(host, build("kin"), scene, 1, spin)


@pytest.mark.parametrize(
    ("scene", "spin"),
    [*((scene, "50") for scene in _OWN), *((scene, "0") for scene in ("gone level", "in-turn edge"))],
)
def test_a_set_of_the_childs_own(host: Host, build: Build, scene: str, spin: str) -> None:
    """The child has closed the one of its parent, who waits there still."""
    _both_ways(host, build("kin"), f"{scene} own", 1, spin)


def test_a_child_that_is_killed_in_its_parents_set(host: Host, build: Build) -> None:
    """It gives nothing back, so the log has no line of it: what carries such scenes, the others' prove."""
    assert host.run([build("kin"), "killed-asleep"]) == "ok\n"


@pytest.mark.parametrize("scene", [*_LOOKED_AT, *_ASLEEP, "second-life"])
def test_a_set_within_a_set(host: Host, build: Build, scene: str) -> None:
    _both_ways(host, build("within"), scene, 3)


@pytest.mark.parametrize(
    ("scene", "connections"),
    [
        *((scene, 1) for scene in ("end-meanwhile", "reset-meanwhile", "one-shot-has-fired")),
        *((scene, 1) for scene in ("number-comes-again", "no-bell", "poll-for-normal-space")),
        *((scene, 1) for scene in ("told-before-the-duplicate", "told-of-the-first")),
        *((scene, 1) for scene in ("told-of-what-was-there", "own-shutdown")),
        *((scene, 1) for scene in ("told-before-it-is-watched", "room-of-the-kernel")),
        ("told-before-the-ring", 1),
        *((scene, 1) for scene in ("data-is-no-room", "room-is-no-data", "both-at-once")),
        ("many-sets", 300),
    ],
)
def test_what_is_to_be_remembered(host: Host, build: Build, scene: str, connections: int) -> None:
    _both_ways(host, build("set_edges"), scene, connections)


@pytest.mark.parametrize("spin", ["50", "0"])
def test_sets_that_come_and_go(host: Host, build: Build, spin: str) -> None:
    _both_ways(host, build("churn"), "5000", 8, spin)


@pytest.mark.parametrize("most", [1, 8])
def test_who_talks_seldom_beside_one_that_is_always_ready(host: Host, most: int) -> None:
    """Each client process has its own link; a set looks at the quiet ones only now and then."""
    port, others = free_port(), 6
    server = host.server([sys.executable, _HERE / "cold_server.py", port, most, others], port)
    command = [sys.executable, _HERE / "cold_client.py", port]
    staying = host.spawn([*command, "stay"])
    eventually(lambda: "stays" in staying.text(), "the one that stays is there")
    clients = [host.spawn([*command, "talk"]) for _ in range(others)]
    assert [client.wait().split() for client in clients] == [["done"]] * others
    server.wait()
    assert staying.wait().split() == ["stays", "done"]
    log = host.finish()
    for role in ("client", "server"):
        assert len(assert_carried(log, "python", role=role)) == others + 1
