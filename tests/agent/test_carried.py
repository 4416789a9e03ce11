"""What carriers say of connections is shown as far as it makes sense."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertha_socket.agent import carried
from bertha_socket.agent.carried import BOTTOMS, RECORD, State

_GOOD = [{"type": "compress", "implementation": "zstd", "where": "host"}]


def record(state: int, chunnels: object = (), detail: str = "") -> bytes:
    text = chunnels if isinstance(chunnels, bytes) else json.dumps(chunnels).encode()
    return RECORD.pack(state, 1, text, detail.encode())


def test_size() -> None:
    assert RECORD.size == 1024


def test_states() -> None:
    assert carried.parse(record(State.PENDING, _GOOD)) is None
    ready = carried.parse(record(State.READY, _GOOD, "left out: y: no"))
    assert ready == ([*_GOOD, BOTTOMS["tcp"]], False, None, "left out: y: no")
    refused = carried.parse(record(State.REFUSED, _GOOD, "no key"))
    assert refused is not None and refused.chunnels == [BOTTOMS["tcp"]]
    assert refused.reason is not None and refused.reason.endswith(": no key")
    raised = carried.parse(record(State.RAISED, _GOOD, "ValueError"))
    assert raised == ([*_GOOD, BOTTOMS["tcp"]], False, "a chunnel's own code failed: ValueError", None)
    plain = carried.parse(record(State.PLAIN, detail="left out: y: no"))
    assert plain is not None and plain.plain and plain.reason and plain.remark == "left out: y: no"
    assert carried.parse(record(6)) is None
    assert carried.parse(b"") is None


@pytest.mark.parametrize(
    "chunnels", [b"[", b"[" * 616, b"{}", [1], [{"type": 1}], [{}], [_GOOD[0]] * 100, b"\xff" * 616]
)
def test_what_makes_no_sense_is_left_out(chunnels: object) -> None:
    found = carried.parse(record(State.READY, chunnels))
    assert found is not None and found.chunnels == [BOTTOMS["tcp"]]


@given(st.binary(min_size=1024, max_size=1024))
def test_any_bytes(data: bytes) -> None:
    for state in State:
        found = carried.parse(state.to_bytes(4, "little") + data[4:])
        assert (found is None) is (state == State.PENDING)
        json.dumps(found)


def test_looking_beyond_the_end() -> None:
    fd = os.memfd_create("carried")
    try:
        os.write(fd, record(State.READY) * 2)
        assert carried.look(fd, 1) is not None
        assert carried.look(fd, 2) is None
    finally:
        os.close(fd)
    assert carried.look(fd, 0) is None
