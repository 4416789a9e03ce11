"""What chunnels have counted, in a text that others read while it is changed."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from bertha_socket.agent import carried
from bertha_socket.carrier.counted import Counted
from bertha_socket.negotiation.plan import Plan
from tests.carrier.host import chunnel, plan_of

NUMBERS = st.integers(-3, 12) | st.integers(0, 2**64) | st.sampled_from([9, 10, 99, 100, 10**15, 10**16])


def counted(counts: dict[str, Any], *chunnels: Any, side: str = "client") -> Counted:
    return Counted(Plan.decode(plan_of(*chunnels)), side, counts)


def one_end(kind: str, **args: Any) -> Any:
    """A chunnel that the client alone runs."""
    return dataclasses.replace(chunnel(kind, "none", **args), server=None, server_where=None)


def shown(text: str) -> list[dict[str, int] | None]:
    return [entry.get("counts") for entry in json.loads(text)]


@settings(max_examples=300)
@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=8))
def test_it_is_json_at_every_moment(history: list[tuple[int, int]]) -> None:
    """After each single write; and in the middle of one, however far it has come, from either side."""
    counts: dict[str, Any] = {"n.sent": 0, "n.received": 0}
    target = counted(counts, one_end("count", name="n"))
    memory = bytearray(target.text.encode())
    for sent, received in history:
        counts |= {"n.sent": sent, "n.received": received}
        for at, data in target.changes():
            before = bytes(memory)
            memory[at : at + len(data)] = data
            for cut in range(at, at + len(data)):
                json.loads(memory[:cut] + before[cut:])
                json.loads(before[:cut] + memory[cut:])
        wanted = {n: max(0, min(v, 10**16 - 1)) for n, v in (("sent", sent), ("received", received))}
        assert shown(memory.decode()) == [wanted] and memory.decode() == target.text
        assert target.changes() == []


def test_each_with_its_own_chunnel() -> None:
    counts = {"count.sent": 1, "n.sent": 2, "mirror.lost": 3, "nobody.x": 4, "bare": 5}
    chunnels = (one_end("count"), one_end("count", name="n"), one_end("mirror", to="/x"))
    whole = counted(counts, *chunnels)
    assert shown(whole.text) == [{"sent": 1}, {"sent": 2}, {"lost": 3}]
    assert shown(counted(counts, *chunnels, side="server").text) == [None] * 3, "they run at the client"


def test_what_is_no_number_is_none() -> None:
    counts: dict[str, Any] = {"n.a": "x", "n.b": 1.5, "n.c": None, "n.d": True}
    assert shown(counted(counts, one_end("count", name="n")).text) == [{"a": 0, "b": 0, "c": 0, "d": 1}]


def test_there_is_room_for_the_chunnels_first() -> None:
    name = "x" * 200
    counts = {f"{name}.{n * 30}": 1 for n in ("a", "b", "c", "d")} | {f"{name}.{'e' * 400}": 1}
    target = counted(counts, one_end("count", name=name))
    assert shown(target.text) == [None] and target.changes() == []
    many = counted({f"n.{i}": i for i in range(100)}, one_end("count", name="n"))
    assert len(many.text) <= 615


def test_the_agent_takes_nothing_else() -> None:
    entry = {"type": "count", "implementation": "python", "where": "host"}

    def parsed(counts: Any) -> Any:
        text = json.dumps([{**entry, "counts": counts}]).encode()
        found = carried.parse(carried.RECORD.pack(carried.State.READY, 0, text, b""))
        assert found is not None
        return found.chunnels[0].get("counts")

    assert parsed({"sent": 5}) == {"sent": 5}
    many = {str(i): i for i in range(40)}
    for wrong in (None, 5, [], {}, {"sent": "5"}, {"sent": -1}, {"sent": True}, {"sent": 1.5}, many):
        assert parsed(wrong) is None, wrong
