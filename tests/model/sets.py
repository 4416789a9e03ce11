"""A connection in two epoll sets: who takes its bit from the link's map of changed slots tells the other set.

Each set has its own `told`, is armed and has a bell by itself; one lock is held while a bit is told of and
taken, and while a set takes what it was told.  Who takes a bit may never look again (its program is busy):
the other one must not need it.  Each protocol is built from `without`, a set of steps to leave out.
"""

from __future__ import annotations

from tests.model.eventfd import asleep_for_ever, ring_bell, sleep
from tests.model.machine import (
    Ins,
    Machine,
    Memory,
    compare_exchange,
    exchange,
    fence,
    fetch_or,
    goto,
    label,
    load,
    put,
    store,
    when,
)


def _lock(place: str) -> list[Ins]:
    return [
        label(f"{place}-lock"),
        put("l", 0),
        compare_exchange("l", "lock", 1),
        when(lambda r: r["l"] != 0, f"{place}-lock"),
    ]


def _seen(me: str, without: frozenset[str]) -> list[Ins]:
    """Without the lock: the map, and then what another set has told."""
    out = [load("d", "dirty"), load("o", f"told_{me}")]
    return out[::-1] if "map-first" in without else out


def _take_shared(me: str, other: str, without: frozenset[str]) -> list[Ins]:
    tell = [] if "tell" in without else [fetch_or(f"told_{other}", 1)]
    take = [exchange("x", "dirty", 0)]
    lock = [] if "lock" in without else _lock("shared")
    return [
        *lock,
        exchange("x", f"told_{me}", 0),
        when(lambda r: r["d"] == 0, "taken"),
        load("d", "dirty"),
        when(lambda r: r["d"] == 0, "taken"),
        *(take + tell if "tell-first" in without else tell + take),
        label("taken"),
        *([] if "lock" in without else [store("lock", 0)]),
    ]


def _take_alone(other: str, without: frozenset[str]) -> list[Ins]:
    """The other set may be about to come."""
    late = [
        load("s", "shared", relaxed=True),
        when(lambda r: r["s"] == 0, "look"),
        *_lock("late"),
        fetch_or(f"told_{other}", 1),
        load("s", f"asleep_{other}"),
        when(lambda r: r["s"] == 0, "late-told"),
        ring_bell(f"bell_{other}"),
        label("late-told"),
        store("lock", 0),
    ]
    return [exchange("x", "dirty", 0), fence(), *([] if "late" in without else late)]


def _consumer(me: str, other: str, messages: int, without: frozenset[str], joins: str) -> list[Ins]:
    fences = [] if "scan-fence" in without else [fence()]
    first = joins == "me" and [
        *_lock("join"),
        store("shared", 1),
        store("lock", 0),
        *([] if "join-fence" in without else [fence()]),
        goto("look"),
    ]
    alone = joins == "other" and [
        when(lambda r: r["d"] == 0, "shared"),
        load("s", "shared", relaxed=True),
        when(lambda r: r["s"] != 0, "shared"),
        *_take_alone(other, without),
        goto("look"),
        label("shared"),
    ]
    return [
        *(first or []),
        label("again"),
        *_seen(me, without),
        when(lambda r: r["d"] == 0 and r["o"] == 0, "nothing"),
        *(alone or []),
        *_take_shared(me, other, without),
        *fences,
        label("look"),
        load("t", "tail"),
        when(lambda r: r["t"] >= messages, "end"),
        goto("again"),
        label("nothing"),
        store(f"asleep_{me}", 1),
        store(f"armed_{me}", 1),
        fence(),
        *_seen(me, without),
        when(lambda r: r["d"] == 0 and r["o"] == 0, "sleep"),
        store(f"armed_{me}", 0),
        store(f"asleep_{me}", 0),
        goto("again"),
        label("sleep"),
        sleep(f"bell_{me}"),
        store(f"asleep_{me}", 0),
        goto("again"),
        label("end"),
    ]


def _producer(messages: int) -> list[Ins]:
    wake: list[Ins] = []
    for who in "ab":
        wake += [
            load("a", f"armed_{who}"),
            when(lambda r: r["a"] == 0, f"rung-{who}"),
            exchange("a", f"armed_{who}", 0),
            when(lambda r: r["a"] == 0, f"rung-{who}"),
            ring_bell(f"bell_{who}"),
            label(f"rung-{who}"),
        ]
    return [
        label("next"),
        when(lambda r: r["n"] >= messages, "end"),
        put("n", lambda r: r["n"] + 1),
        store("tail", "n"),
        fence(),
        load("d", "dirty"),
        when(lambda r: r["d"] != 0, "marked"),
        fetch_or("dirty", 1),
        label("marked"),
        fence(),  # in the code, these accesses are sequentially consistent
        *wake,
        goto("next"),
        label("end"),
    ]


def two_sets(
    memory: Memory, without: frozenset[str] = frozenset(), *, messages: int = 1, joining: bool = False
) -> Machine:
    """`joining`: the connection is added to the second set while the first one is in use.

    Steps that can be left out: tell; tell-first (before the bit is taken); lock; map-first (a set that looks
    whether there is anything looks at the map before what it was told); joining: late, join-fence.
    """
    regs = {"d": 0, "o": 0, "x": 0, "l": 0, "t": 0, "s": 0}
    variables = {"tail": 0, "dirty": 0, "lock": 0, "shared": 0}
    for who in "ab":
        variables |= {f"told_{who}": 0, f"armed_{who}": 0, f"asleep_{who}": 0}
    return Machine(
        memory,
        variables,
        {"bell_a": 0, "bell_b": 0},
        [
            ("a", _consumer("a", "b", messages, without, "other" if joining else ""), dict(regs)),
            ("b", _consumer("b", "a", messages, without, "me" if joining else ""), dict(regs)),
            ("producer", _producer(messages), {"n": 0, "a": 0, "d": 0}),
        ],
        wrong_at_rest=asleep_for_ever,
    )
