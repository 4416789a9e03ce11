"""The protocols hold in every interleaving; and without any one of their steps, they do not."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TypeVar

import pytest

from tests.model import alike, bell, boxes, sets, tuple_reuse, wakeup
from tests.model.connection_state import Rules
from tests.model.explorer import Model, TooLargeError, explore
from tests.model.loan import Loan
from tests.model.machine import Machine, Memory, World
from tests.model.promise import Promise
from tests.model.setup_protocol import SetUp
from tests.model.tuple_reuse import TupleReuse

S = TypeVar("S", bound=Hashable)
EVERY = list(Memory)
REORDERING = [Memory.TSO, Memory.WEAK]


def holds(model: Model[S], check_livelock: bool = True) -> None:
    outcome = explore(model, check_livelock=check_livelock)
    assert outcome.problem is None, outcome.report()
    assert outcome.states > 10, "the model does nothing"


def fails(model: Model[S]) -> str:
    outcome = explore(model)
    assert outcome.problem is not None, f"nothing noticed: {outcome.report()}"
    assert outcome.problem in outcome.report()
    return outcome.problem


def _reached(machine: Machine) -> set[World]:
    seen: set[World] = set()
    todo = list(machine.initial())
    while todo:
        world = todo.pop()
        if world not in seen:
            seen.add(world)
            todo += [after for _, after in machine.steps(world)]
    return seen


def without(*steps: str) -> frozenset[str]:
    return frozenset(steps)


# ---- wake-ups by eventfd -------------------------------------------------------------------------


@pytest.mark.parametrize("memory", EVERY)
def test_reader_never_sleeps_over_data(memory: Memory) -> None:
    holds(wakeup.one_reader(memory))


@pytest.mark.parametrize("memory", REORDERING)
@pytest.mark.parametrize("step", ["consumer-fence", "producer-fence", "recheck", "watch-after-fence"])
def test_reader_needs(memory: Memory, step: str) -> None:
    assert "asleep for ever" in fails(wakeup.one_reader(memory, without=without(step)))


@pytest.mark.parametrize("memory", EVERY)
def test_event_loop_over_two_slots(memory: Memory) -> None:
    holds(wakeup.event_loop(memory))


@pytest.mark.parametrize("step", ["dirty-first", "producer-fence", "consumer-fence"])
def test_event_loop_needs(step: str) -> None:
    fails(wakeup.event_loop(Memory.WEAK, without=without(step)))


@pytest.mark.parametrize("memory", EVERY)
def test_dirty_bit_may_be_left_alone_when_set(memory: Memory) -> None:
    holds(wakeup.event_loop(memory, skip_dirty=True, slots=1, messages=2))


@pytest.mark.parametrize(
    "step", ["skip-fence", "scan-fence", "producer-fence", "consumer-fence", "dirty-first"]
)
def test_dirty_bit_left_alone_needs(step: str) -> None:
    fails(wakeup.event_loop(Memory.WEAK, skip_dirty=True, slots=1, messages=2, without=without(step)))


# Three threads and a lock: more is too large for more than this.
@pytest.mark.parametrize("joining", [False, True])
def test_two_sets_are_told_both(joining: bool) -> None:
    holds(sets.two_sets(Memory.TSO, joining=joining), check_livelock=False)


def test_two_sets_are_told_of_two_messages() -> None:
    holds(sets.two_sets(Memory.SC, messages=2), check_livelock=False)


@pytest.mark.parametrize(
    ("step", "messages"), [("tell", 1), ("tell-first", 1), ("map-first", 1), ("lock", 2)]
)
def test_two_sets_need(step: str, messages: int) -> None:
    fails(sets.two_sets(Memory.SC, messages=messages, without=without(step)))


@pytest.mark.parametrize(("step", "messages"), [("late", 2), ("join-fence", 1)])
def test_a_second_set_that_comes_needs(step: str, messages: int) -> None:
    fails(sets.two_sets(Memory.TSO, messages=messages, joining=True, without=without(step)))


@pytest.mark.parametrize("memory", EVERY)
def test_datagrams_by_a_box_come_in_order(memory: Memory) -> None:
    holds(boxes.one_pair(memory), check_livelock=False)


@pytest.mark.parametrize("memory", [Memory.SC, Memory.TSO])
def test_datagrams_that_are_looked_for(memory: Memory) -> None:
    holds(boxes.one_pair(memory, tries=True), check_livelock=False)
    fails(boxes.one_pair(memory, tries=True, without=without("take-back-older")))


@pytest.mark.parametrize("memory", EVERY)
def test_a_datagram_that_a_program_is_told_of_is_there(memory: Memory) -> None:
    holds(boxes.one_pair(memory, tells=True), check_livelock=False)
    fails(boxes.one_pair(memory, tells=True, without=without("hold")))


def test_three_datagrams_by_a_box() -> None:
    holds(boxes.one_pair(Memory.TSO, 3), check_livelock=False)


_BOX_STEPS = (
    "put-fence",
    "mark-first",
    "mark-fence",
    "scan-fence",
    "take-back-own",
    "counts",
    "sleep-fence",
    "last-look",
)


@pytest.mark.parametrize("step", _BOX_STEPS)
def test_a_box_needs(step: str) -> None:
    fails(boxes.one_pair(Memory.WEAK, without=without(step)))


@pytest.mark.parametrize("memory", EVERY)
@pytest.mark.parametrize(
    ("sums", "claimed", "cut", "step"),
    [
        ((1, 2, 2, 3), 1, {}, "alike"),
        ((1, 1, 2), 1, {}, "sums-before"),
        ((1, 1, 1, 2), 2, {}, "many"),
        ((1, 2, 3, 4), 1, {2: 3}, "whole"),
    ],
)
def test_datagrams_that_are_alike_and_a_box(
    memory: Memory, sums: tuple[int, ...], claimed: int, cut: dict[int, int], step: str
) -> None:
    """What is in the consumer's hand may be any of them."""
    holds(alike.tied(memory, sums, claimed, cut), check_livelock=False)
    assert "came after" in fails(alike.tied(memory, sums, claimed, cut, without(step)))


def test_datagrams_that_are_alike_go_by_a_box() -> None:
    """After a while: the consumer settles what it has counted when nothing is left in the kernel."""
    machine = alike.tied(Memory.SC, (1, 1, 1, 1))
    assert any(dict(w.kernel)["box"] for w in _reached(machine))


@pytest.mark.parametrize("memory", EVERY)
def test_writer_never_sleeps_over_space(memory: Memory) -> None:
    holds(wakeup.full_ring(memory))


@pytest.mark.parametrize(
    "step", ["producer-fence", "consumer-fence", "publish-fence", "read-fence", "recheck", "armed-first"]
)
def test_writer_needs(step: str) -> None:
    fails(wakeup.full_ring(Memory.TSO, without=without(step)))


@pytest.mark.parametrize("memory", EVERY)
def test_sleeper_entry_changes_owner(memory: Memory) -> None:
    holds(wakeup.reused_entry(memory))
    fails(wakeup.reused_entry(memory, bell_after_take=False))


@pytest.mark.parametrize("memory", EVERY)
def test_process_stopped_while_ringing(memory: Memory) -> None:
    holds(wakeup.dying_ringer(memory, ring_first=True))
    fails(wakeup.dying_ringer(memory, ring_first=False))


# ---- the bell byte --------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", EVERY)
@pytest.mark.parametrize("messages", [1, 2, 3])
def test_descriptor_is_readable_while_the_ring_is(memory: Memory, messages: int) -> None:
    holds(bell.watched(memory, messages))


@pytest.mark.parametrize("step", ["forget", "look-again", "announce-again", "take", "debt"])
@pytest.mark.parametrize("memory", EVERY)
def test_bell_needs(memory: Memory, step: str) -> None:
    fails(bell.watched(memory, without=without(step)))


@pytest.mark.parametrize("step", ["producer-fence", "consumer-fence"])
def test_bell_needs_fences(step: str) -> None:
    fails(bell.watched(Memory.WEAK, without=without(step)))


@pytest.mark.parametrize("memory", EVERY)
@pytest.mark.parametrize("step", ["clear", "look-again"])
def test_edge_triggered_set_takes_the_byte_off(memory: Memory, step: str) -> None:
    """Found with a real program: echo over both directions full slept over space that had become free."""
    holds(bell.edge_triggered(memory))
    assert "asleep" in fails(bell.edge_triggered(memory, without=without(step)))


@pytest.mark.parametrize("memory", EVERY)
def test_bell_behind_earlier_bytes(memory: Memory) -> None:
    holds(bell.behind_data(memory, "forget", room=True))
    fails(bell.behind_data(memory, "forget"))
    fails(bell.behind_data(memory, "take-back"))


@pytest.mark.parametrize("memory", EVERY)
def test_bell_never_resets_an_orderly_close(memory: Memory) -> None:
    holds(bell.orderly_close(memory, "announce"))
    assert "reset" in fails(bell.orderly_close(memory, "settle"))


@pytest.mark.parametrize("memory", EVERY)
def test_start_to_watch(memory: Memory) -> None:
    holds(bell.start_watching(memory))
    fails(bell.start_watching(memory, without("recheck")))


@pytest.mark.parametrize("memory", REORDERING)
@pytest.mark.parametrize("step", ["producer-fence", "consumer-fence"])
def test_start_to_watch_needs_fences(memory: Memory, step: str) -> None:
    fails(bell.start_watching(memory, without(step)))


@pytest.mark.parametrize("memory", EVERY)
def test_one_stops_to_watch_while_another_starts(memory: Memory) -> None:
    holds(bell.stop_watching(memory))
    assert "asleep" in fails(bell.stop_watching(memory, "always"))
    assert "asleep" in fails(bell.stop_watching(memory, "look again"))


# ---- set-up, hand-over, end -----------------------------------------------------------------------

SCENES = {
    "one byte each": Rules(),
    "two bytes each": Rules(client_bytes=2, server_bytes=2),
    "client without a shim": Rules(client_aware=False, client_bytes=2, server_bytes=2),
    "server without a shim": Rules(server_aware=False, client_bytes=2, server_bytes=2),
    "the agent dies": Rules(agent_dies=True, client_bytes=2),
    "back to the kernel": Rules(fall_back=True, client_bytes=2, server_bytes=2),
    "the server knows the length": Rules(counted=True, client_bytes=2),
    "the client closes early": Rules(early_close=True, client_bytes=2),
    "one dies": Rules(deaths=1, client_bytes=2, server_bytes=1),
    "both die, and the agent": Rules(deaths=2, agent_dies=True),
    "one dies, back to the kernel": Rules(deaths=1, fall_back=True, client_bytes=1, server_bytes=2),
    "eventfd": Rules(eventfd=True, fall_back=True, client_bytes=2, server_bytes=2),
    "eventfd, one dies": Rules(eventfd=True, deaths=1, client_bytes=2, server_bytes=2),
}


@pytest.mark.parametrize("scene", SCENES)
def test_connection(scene: str) -> None:
    holds(SetUp(SCENES[scene]))


@pytest.mark.parametrize(
    "step", ["switch-first", "bell", "first-bell", "skip-after", "ring-before-fin", "peek", "look-late"]
)
def test_connection_needs(step: str) -> None:
    fails(SetUp(Rules(fall_back=True, client_bytes=1, server_bytes=2, without=without(step))))


@pytest.mark.parametrize("step", ["farewell", "announce"])
def test_close_needs(step: str) -> None:
    assert "reset" in fails(SetUp(Rules(counted=True, without=without(step))))


def test_half_closed_peer_that_dies_is_noticed_by_a_probe() -> None:
    rules = Rules(eventfd=True, deaths=1, client_bytes=2, server_bytes=2, without=without("probe"))
    assert "waits for ever" in fails(SetUp(rules))


# ---- the same addresses again -----------------------------------------------------------------------


def test_claims_and_reused_addresses() -> None:
    # without the check for livelocks: a server may look for a claim that never comes
    holds(TupleReuse(tuple_reuse.Rules()), check_livelock=False)
    holds(TupleReuse(tuple_reuse.Rules(slow_reset=True)), check_livelock=False)


@pytest.mark.parametrize(
    "rules",
    [
        tuple_reuse.Rules(generation=False),
        tuple_reuse.Rules(generation=False, check_after=True),
        tuple_reuse.Rules(alive=False),
        tuple_reuse.Rules(alive=False, alive_first=True),
        tuple_reuse.Rules(claim_early=True, slow_reset=True),
        tuple_reuse.Rules(claim_pending=True),
    ],
    ids=[
        "no generation",
        "look again after",
        "not asked whether alive",
        "asked too early",
        "claimed too early",
        "claimed while connect() may fail",
    ],
)
def test_claims_need(rules: tuple_reuse.Rules) -> None:
    assert "socket of A" in fails(TupleReuse(rules))


# ---- the explorer itself ------------------------------------------------------------------------------


def test_machine_knows_its_memories() -> None:
    """Store buffering is seen under TSO and C11, message passing only with relaxed accesses under C11."""
    from tests.model.machine import load, store

    def both_zero(machine: Machine, world: World) -> str | None:
        seen = machine.reg(world, "one", "a") == 0 and machine.reg(world, "two", "b") == 0
        return "both zero" if seen else None

    def buffering(memory: Memory) -> Machine:
        one = [store("x", 1), load("a", "y")]
        two = [store("y", 1), load("b", "x")]
        threads = [("one", one, {"a": 9}), ("two", two, {"b": 9})]
        return Machine(memory, {"x": 0, "y": 0}, {}, threads, wrong_at_rest=both_zero)

    assert explore(buffering(Memory.SC)).problem is None
    assert explore(buffering(Memory.TSO)).problem == "both zero"
    assert explore(buffering(Memory.WEAK)).problem == "both zero"

    def stale(machine: Machine, world: World) -> str | None:
        flag, data = machine.reg(world, "two", "f"), machine.reg(world, "two", "d")
        return "stale" if flag == 1 and data == 0 else None

    def passing(memory: Memory, relaxed: bool) -> Machine:
        one = [store("data", 1), store("flag", 1, relaxed=relaxed)]
        two = [load("f", "flag"), load("d", "data")]
        threads = [("one", one, {}), ("two", two, {"f": 9, "d": 9})]
        return Machine(memory, {"data": 0, "flag": 0}, {}, threads, wrong_at_rest=stale)

    assert explore(passing(Memory.TSO, True)).problem is None
    assert explore(passing(Memory.WEAK, False)).problem is None
    assert explore(passing(Memory.WEAK, True)).problem == "stale"


def test_explorer_refuses_half_a_check() -> None:
    with pytest.raises(TooLargeError):
        explore(SetUp(Rules()), limit=100)


# ---- the promise of a client by `unix` ---------------------------------------------------------------


def test_a_promise_is_kept() -> None:
    holds(Promise())


@pytest.mark.parametrize("rule", ["taken back", "same end", "attached first"])
def test_a_promise_needs(rule: str) -> None:
    fails(Promise(without(rule)))


# ---- a carrier's turn, lent to the program -----------------------------------------------------------


def test_a_loan_loses_nothing() -> None:
    holds(Loan())


@pytest.mark.parametrize(
    "rule",
    ["marks again", "sends what is there", "says so first", "looks for who ends", "takes its offer back"],
)
def test_a_loan_needs(rule: str) -> None:
    fails(Loan(without(rule)))
