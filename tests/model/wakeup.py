"""Sleeping on an eventfd: a consumer that must not sleep over data, a producer that must not sleep over
space.

The sleeper arms its entry, fences, looks at the ring a last time and sleeps.  Whoever changes the ring
fences, and takes `armed` from 1 to 0; who took it rings the eventfd.  Each protocol is built from
`without`, a set of steps to leave out: the tests leave out each one in turn and demand that the model then
fails.
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
    maybe,
    put,
    store,
    when,
)


def _keep(without: frozenset[str], step: str, *ins: Ins) -> list[Ins]:
    return [] if step in without else list(ins)


def one_reader(memory: Memory, messages: int = 2, without: frozenset[str] = frozenset()) -> Machine:
    """A blocking recv: `watch` says which entry of the sleepers, `armed` that its owner is about to sleep.

    Steps that can be left out: consumer-fence, producer-fence, recheck, take, watch-after-fence.
    """
    consumer: list[Ins] = [
        label("read"),
        load("t", "tail"),
        when(lambda r: r["t"] == r["h"], "empty"),
        put("h", "t"),
        when(lambda r: r["h"] >= messages, "end"),
        goto("read"),
        label("empty"),
        store("watch", 1),
        store("armed", 1),
        *_keep(without, "consumer-fence", fence()),
        *_keep(
            without,
            "recheck",
            load("t", "tail"),
            when(lambda r: r["t"] == r["h"], "sleep"),
            # awake after all: disarm, and if a producer has taken it already, its bell will only wake us
            # for nothing
            exchange("x", "armed", 0),
            goto("read"),
        ),
        label("sleep"),
        sleep("bell"),
        goto("read"),
        label("end"),
    ]
    look = [load("w", "watch"), when(lambda r: r["w"] == 0, "next")]
    early = "watch-after-fence" in without
    producer: list[Ins] = [
        label("next"),
        when(lambda r: r["n"] >= messages, "end"),
        put("n", lambda r: r["n"] + 1),
        *([load("w", "watch")] if early else []),
        store("tail", "n"),
        *_keep(without, "producer-fence", fence()),
        *([when(lambda r: r["w"] == 0, "next")] if early else look),
        load("a", "armed"),
        when(lambda r: r["a"] == 0, "next"),
        *_keep(without, "take", exchange("a", "armed", 0), when(lambda r: r["a"] == 0, "next")),
        ring_bell("bell"),
        goto("next"),
        label("end"),
    ]
    return Machine(
        memory,
        {"tail": 0, "watch": 0, "armed": 0},
        {"bell": 0},
        [("consumer", consumer, {"h": 0, "t": 0, "x": 0}), ("producer", producer, {"n": 0, "a": 0, "w": 0})],
        wrong_at_rest=asleep_for_ever,
    )


def event_loop(
    memory: Memory,
    without: frozenset[str] = frozenset(),
    skip_dirty: bool = False,
    messages: int = 1,
    slots: int = 2,
) -> Machine:
    """An epoll set over some slots with a producer each: dirty bits say which slots to look at.

    `skip_dirty`: producers look first, and leave out setting a bit that is set already (one atomic
    operation less under load); it needs its own fence between publishing and looking.
    Steps that can be left out: dirty-first (the bit is set after ringing), producer-fence, consumer-fence,
    scan-fence (between taking the bits and looking at the rings; needed with skip_dirty), skip-fence.
    """

    def scan(after: str) -> list[Ins]:
        out: list[Ins] = [exchange("d", "dirty", 0)]
        if skip_dirty:
            out += _keep(without, "scan-fence", fence())
        for bit in range(slots):
            skip = f"{after}-skip{bit}"
            out += [
                when(lambda r, b=bit: not r["d"] >> b & 1, skip),  # type: ignore[misc]
                load("t", f"tail{bit}"),
                put(f"h{bit}", "t"),
                label(skip),
            ]
        return out

    total = slots * messages
    consumer: list[Ins] = [
        label("look"),
        *scan("look"),
        when(lambda r: r["h0"] + r["h1"] >= total, "end"),
        when(lambda r: r["d"] != 0, "look"),
        store("armed", 1),
        *_keep(without, "consumer-fence", fence()),
        load("d", "dirty"),
        when(lambda r: r["d"] == 0, "sleep"),
        exchange("x", "armed", 0),
        goto("look"),
        label("sleep"),
        sleep("bell"),
        goto("look"),
        label("end"),
    ]

    def producer(slot: int) -> list[Ins]:
        bit = 1 << slot
        mark: list[Ins] = []
        if skip_dirty:
            mark += _keep(without, "skip-fence", fence())
            mark += [load("d", "dirty"), when(lambda r: bool(r["d"] & bit), "marked")]
        mark += [fetch_or("dirty", bit), label("marked")]
        late = "dirty-first" in without
        return [
            label("next"),
            when(lambda r: r["n"] >= messages, "end"),
            put("n", lambda r: r["n"] + 1),
            store(f"tail{slot}", "n"),
            *([] if late else mark),
            *_keep(without, "producer-fence", fence()),
            load("a", "armed"),
            when(lambda r: r["a"] == 0, "rung"),
            exchange("a", "armed", 0),
            when(lambda r: r["a"] == 0, "rung"),
            ring_bell("bell"),
            label("rung"),
            *(mark if late else []),
            goto("next"),
            label("end"),
        ]

    regs = {"n": 0, "a": 0, "d": 0}
    return Machine(
        memory,
        {**{f"tail{n}": 0 for n in range(slots)}, "dirty": 0, "armed": 0},
        {"bell": 0},
        [
            ("consumer", consumer, {"h0": 0, "h1": 0, "t": 0, "d": 0, "x": 0}),
            *((f"producer{n}", producer(n), dict(regs)) for n in range(slots)),
        ],
        wrong_at_rest=asleep_for_ever,
    )


def full_ring(
    memory: Memory, total: int = 3, size: int = 1, without: frozenset[str] = frozenset()
) -> Machine:
    """A producer that waits for space and a consumer that waits for data, both asleep at times.

    Steps that can be left out: producer-fence (before sleeping), consumer-fence (after moving head),
    publish-fence, read-fence, recheck, armed-first (space_wanted is stored before armed).
    """
    producer: list[Ins] = [
        label("write"),
        when(lambda r: r["n"] >= total, "end"),
        load("h", "head"),
        when(lambda r: r["n"] - r["h"] >= size, "full"),
        label("publish"),
        put("n", lambda r: r["n"] + 1),
        store("tail", "n"),
        *_keep(without, "publish-fence", fence()),
        load("a", "c_armed"),
        when(lambda r: r["a"] == 0, "write"),
        exchange("a", "c_armed", 0),
        when(lambda r: r["a"] == 0, "write"),
        ring_bell("c_bell"),
        goto("write"),
        label("full"),
        # armed first: a consumer that takes space_wanted must find the sleeper that it has to wake
        *(
            [store("space_wanted", 1), store("p_armed", 1)]
            if "armed-first" in without
            else [store("p_armed", 1), store("space_wanted", 1)]
        ),
        *_keep(without, "producer-fence", fence()),
        *_keep(
            without,
            "recheck",
            load("h", "head"),
            when(lambda r: r["n"] - r["h"] >= size, "sleep"),
            exchange("x", "p_armed", 0),
            goto("publish"),
        ),
        label("sleep"),
        sleep("p_bell"),
        goto("write"),
        label("end"),
    ]
    consumer: list[Ins] = [
        label("read"),
        load("t", "tail"),
        when(lambda r: r["t"] == r["h"], "empty"),
        put("h", lambda r: r["h"] + 1),
        store("head", "h"),
        *_keep(without, "consumer-fence", fence()),
        load("w", "space_wanted"),
        when(lambda r: r["w"] == 0, "more"),
        exchange("w", "space_wanted", 0),
        when(lambda r: r["w"] == 0, "more"),
        exchange("w", "p_armed", 0),
        when(lambda r: r["w"] == 0, "more"),
        ring_bell("p_bell"),
        label("more"),
        when(lambda r: r["h"] >= total, "end"),
        goto("read"),
        label("empty"),
        store("c_armed", 1),
        *_keep(without, "read-fence", fence()),
        load("t", "tail"),
        when(lambda r: r["t"] == r["h"], "sleep"),
        exchange("x", "c_armed", 0),
        goto("read"),
        label("sleep"),
        sleep("c_bell"),
        goto("read"),
        label("end"),
    ]
    return Machine(
        memory,
        {"tail": 0, "head": 0, "c_armed": 0, "p_armed": 0, "space_wanted": 0},
        {"c_bell": 0, "p_bell": 0},
        [
            ("producer", producer, {"n": 0, "h": 0, "a": 0, "x": 0}),
            ("consumer", consumer, {"t": 0, "h": 0, "w": 0, "x": 0}),
        ],
        wrong_at_rest=asleep_for_ever,
    )


def reused_entry(memory: Memory, bell_after_take: bool = True) -> Machine:
    """An entry of the sleepers changes its owner while a producer is between looking at it and ringing.

    The first owner goes away (it has found its data by itself), a second one takes the entry with an
    eventfd of its own and sleeps for data of its own.  The second datum comes from another producer.  A
    producer must read the entry's `bell` after it has taken `armed`: otherwise it takes the new owner's
    wake-up and rings the old bell.
    """
    first: list[Ins] = [
        label("first"),
        store("entry_bell", 1),
        store("armed", 1),
        fence(),
        load("t", "tail1"),
        when(lambda r: r["t"] != 0, "leave"),
        sleep("bell1"),
        label("leave"),
        exchange("x", "armed", 0),
        # the same thread of control takes the entry anew, as another sleeper
        store("entry_bell", 2),
        store("armed", 1),
        fence(),
        load("t", "tail2"),
        when(lambda r: r["t"] != 0, "end"),
        label("second"),
        sleep("bell2"),
        load("t", "tail2"),
        when(lambda r: r["t"] != 0, "end"),
        store("armed", 1),
        fence(),
        load("t", "tail2"),
        when(lambda r: r["t"] != 0, "end"),
        goto("second"),
        label("end"),
    ]

    def producer(which: int) -> list[Ins]:
        read_bell = [load("b", "entry_bell")]
        return [
            label("publish"),
            store(f"tail{which}", 1),
            fence(),
            load("a", "armed"),
            when(lambda r: r["a"] == 0, "end"),
            *([] if bell_after_take else read_bell),
            exchange("a", "armed", 0),
            when(lambda r: r["a"] == 0, "end"),
            *(read_bell if bell_after_take else []),
            when(lambda r: r["b"] == 2, "two"),
            ring_bell("bell1"),
            goto("end"),
            label("two"),
            ring_bell("bell2"),
            label("end"),
        ]

    return Machine(
        memory,
        {"tail1": 0, "tail2": 0, "armed": 0, "entry_bell": 0},
        {"bell1": 0, "bell2": 0},
        [
            ("owner", first, {"t": 0, "x": 0}),
            ("producer1", producer(1), {"a": 0, "b": 0}),
            ("producer2", producer(2), {"a": 0, "b": 0}),
        ],
        wrong_at_rest=asleep_for_ever,
    )


def dying_ringer(memory: Memory, ring_first: bool) -> Machine:
    """Two producers share one sleeper (an event loop); one is stopped (SIGSTOP, kill -9) at any step.

    With the order "take, then ring" a producer that stops between the two takes the wake-up with it, and
    the other producer's data lies there while the sleeper sleeps.  With "ring, then take what you rang for"
    (`armed` holds the sleep's number, so that a late taker cannot disarm the next sleep) the sleeper always
    wakes.
    """
    consumer: list[Ins] = [
        label("look"),
        load("t", "tail1"),
        when(lambda r: r["t"] != 0, "end"),
        put("s", lambda r: r["s"] + 1),
        store("armed", "s"),
        fence(),
        load("t", "tail1"),
        when(lambda r: r["t"] != 0, "end"),
        label("sleep"),
        sleep("bell"),
        goto("look"),
        label("end"),
    ]

    def producer(which: int, mortal: bool) -> list[Ins]:
        def stop() -> list[Ins]:
            return [maybe("end")] if mortal else []

        head: list[Ins] = [
            label("publish"),
            store(f"tail{which}", 1),
            fence(),
            *stop(),
            load("a", "armed"),
            when(lambda r: r["a"] == 0, "end"),
            *stop(),
        ]
        if ring_first:
            tail = [ring_bell("bell"), *stop(), compare_exchange("a", "armed", 0)]
        else:
            tail = [
                exchange("a", "armed", 0),
                when(lambda r: r["a"] == 0, "end"),
                *stop(),
                ring_bell("bell"),
            ]
        return [*head, *tail, label("end")]

    return Machine(
        memory,
        {"tail0": 0, "tail1": 0, "armed": 0},
        {"bell": 0},
        [
            ("consumer", consumer, {"t": 0, "s": 0}),
            ("mortal", producer(0, True), {"a": 0}),
            ("other", producer(1, False), {"a": 0}),
        ],
        wrong_at_rest=asleep_for_ever,
    )
