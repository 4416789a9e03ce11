"""Random sequences of calls give the same over plain TCP and over shared memory, but for the kinds of
differences that known.py names.

BERTHA_DIFFERENTIAL_SEQUENCES says how many (default 120); BERTHA_DIFFERENTIAL_SEED where to begin.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeHost
from tests.differential.generate import Generator, Step
from tests.differential.known import KINDS, Kind, kind_of
from tests.differential.lockstep import Comparison, Difference, prefer_unix
from tests.harness import Host, free_port

_SEQUENCES = int(os.environ.get("BERTHA_DIFFERENTIAL_SEQUENCES", "120"))
_SEED = int(os.environ.get("BERTHA_DIFFERENTIAL_SEED", "0"))
_CHUNKS = 4
#: Seeds by which faults were found that are mended.
_ONCE = (
    # shut down in both directions before it is accepted
    *(50040, 50157),
    # EPOLLOUT with EPOLLET, and data comes
    *(7057, 60206),
    # what was told of on a ring goes to the kernel
    *(50022, 50107),
    # a byte for data that was told of
    *(50102, 50103),
    # an end, or bytes that the kernel holds, that was told of
    *(60464, 70080, 70153, 70207, 70213, 70338, 70500, 90248),
    # a reset of one whose one shot has gone off
    *(7178, 100447),
    # its own shutdown
    60428,
    # after its own FIN
    *(60116, 60218),
    # a send of nothing after a reset
    100229,
)
#: MSG_TRUNC by recvmmsg; TCP_NODELAY where a bell needs it.
_ONCE_BY_UNIX = (60001, 61090)


def _report(comparison: Comparison, steps: list[Step], seed: int) -> str:
    """The shortest sequence that still differs, for a message of a failing test."""
    least = comparison.smallest(steps)
    return f"seed {seed}: {comparison.lasting(least)}\n" + "\n".join(json.dumps(step) for step in least)


def _check(comparison: Comparison, steps: list[Step], seed: int, implementation: str) -> None:
    """There is no difference, or one of a kind that is known; never another byte."""
    difference = comparison.lasting(steps)
    if difference is None:
        return
    assert not difference.grave, _report(comparison, steps, seed)
    assert kind_of(difference, implementation) is not None, _report(comparison, steps, seed)


@pytest.fixture
def comparison(host: Host) -> Iterator[Comparison]:
    comparison = Comparison(host.environment(), free_port)
    yield comparison
    comparison.close()


@pytest.mark.slow
def test_bytes_sent_long_before_the_tie(host: Host, comparison: Comparison) -> None:
    """Clients send 40 kB before anybody accepts: what the kernel holds then is taken for nothing else."""
    for seed in range(1000 + _SEED, 1000 + _SEED + _SEQUENCES // 5):
        steps = Generator(seed, flood=True).sequence()
        difference = comparison.lasting(steps)
        assert difference is None or not difference.grave, _report(comparison, steps, seed)
    comparison.close()
    assert host.rehearse or any(c.implementation == "shm" for c in host.connlog())


@pytest.mark.slow
def test_same_over_unix_sockets(host: Host) -> None:
    comparison = Comparison(host.environment(prefer_unix(host.dir)), free_port)
    try:
        for seed in range(_SEED, _SEED + _SEQUENCES // 5):
            steps = Generator(seed, gentle=True).sequence()
            _check(comparison, steps, seed, "unix")
    finally:
        comparison.close()
    assert host.rehearse or any(c.implementation == "unix" for c in host.connlog())


@pytest.mark.slow
@pytest.mark.timeout(60 + _SEQUENCES)
@pytest.mark.parametrize("chunk", range(_CHUNKS))
def test_same_over_shared_memory(chunk: int, host: Host, comparison: Comparison) -> None:
    seeds = range(_SEED + chunk, _SEED + _SEQUENCES, _CHUNKS)
    for seed in seeds:
        _check(comparison, Generator(seed).sequence(), seed, "shm")
    comparison.close()
    if host.rehearse:
        return
    log = host.connlog()
    carried = sum(c.implementation == "shm" for c in log)
    assert carried >= len(seeds), f"{carried} ends on shared memory of {len(log)}, in {len(seeds)} sequences"
    # what is plain was never accepted, or had ended by then
    assert carried >= 0.7 * len(log), sorted({str(c.reason) for c in log if c.plain})


def test_sequences_that_once_differed_over_unix_sockets(host: Host) -> None:
    comparison = Comparison(host.environment(prefer_unix(host.dir)), free_port)
    try:
        for seed in _ONCE_BY_UNIX:
            steps = Generator(seed, gentle=True).sequence()
            assert comparison.lasting(steps) is None, _report(comparison, steps, seed)
    finally:
        comparison.close()
    assert host.rehearse or any(c.implementation == "unix" for c in host.connlog())


def test_sequences_that_once_differed(host: Host, comparison: Comparison) -> None:
    for seed in (*_ONCE, 0):  # one more, on rings
        steps = Generator(seed).sequence()
        assert comparison.lasting(steps) is None, _report(comparison, steps, seed)
    comparison.close()
    assert host.rehearse or any(c.implementation == "shm" for c in host.connlog())


def test_a_difference_is_noticed_and_made_small(make_host: MakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness itself: two programs that differ in one option."""
    host = make_host(agent=False)
    comparison = Comparison(host.environment(), free_port)
    monkeypatch.setattr(comparison, "shim_command", [])
    monkeypatch.setattr(comparison, "spoil", {"op": "setsockopt", "name": "keepalive"})
    steps = Generator(3).sequence()
    steps.insert(5, {"who": 0, "op": "setsockopt", "h": 1, "name": "keepalive", "value": 1})
    steps.append({"who": 0, "op": "getsockopt", "h": 1, "name": "keepalive"})
    try:
        assert comparison.lasting(steps) is not None
        least = [s for s in comparison.smallest(steps) if s["op"] != "timeout"]
    finally:
        comparison.close()
    assert [s["op"] for s in least] == ["socket", "setsockopt", "getsockopt"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.name))
def test_known_kinds_are_told_to_users(kind: Kind) -> None:
    page = " ".join((Path(__file__).parents[2] / "docs" / "users" / "limits.md").read_text().split())
    assert kind.told in page


def test_a_known_kind_is_not_more_than_it_says() -> None:
    """Other answers of the same calls are faults."""
    wait, recv = {"op": "epoll_wait"}, {"op": "recv", "flags": ["peek"], "size": 9}
    here = {"ret": 1, "errno": 0, "events": [[3, 1]]}
    assert kind_of(Difference(0, wait, here, {"ret": 0, "errno": 0, "events": []}), "shm") is None
    reset = {"ret": 1, "errno": 0, "events": [[3, 25]]}
    assert kind_of(Difference(0, wait, reset, here), "shm") == KINDS[0].name
    longer, other = {"ret": 4, "data": "00112233"}, {"ret": 2, "data": "0012"}
    assert kind_of(Difference(0, recv, longer, {"ret": 2, "data": "0011"}), "shm") == KINDS[1].name
    assert kind_of(Difference(0, recv, longer, other), "shm") is None
    ended = Difference(0, {"op": "shutdown"}, {"ret": -1, "errno": 107}, {"ret": 0, "errno": 0})
    assert (kind_of(ended, "shm"), kind_of(ended, "unix")) == (None, KINDS[2].name)
