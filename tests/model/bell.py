"""The bell byte: while the ring holds data that nobody is reading, the kernel's queue holds a byte.

The producer publishes, fences, and if it takes `bell_out` from 0 to 1 sends one byte on the kernel's
connection. The consumer that has drained the ring forgets the bell (bell_out = 0), fences, looks at the
ring again and takes the byte off, unless the ring has filled and nobody else has rung meanwhile.  A byte
that was announced and has not arrived is a debt: it is taken off when it comes.

`kernel["queue"]` counts bell bytes that have arrived.  `kernel["before"]` counts data bytes that the producer
gave to the kernel before it switched to the ring: they lie in front of the bells, and the queue holds no more
than `capacity` bytes in all.
"""

from __future__ import annotations

from collections.abc import Iterable

from tests.model.machine import (
    Ins,
    Machine,
    Memory,
    Regs,
    World,
    compare_exchange,
    exchange,
    fence,
    goto,
    label,
    load,
    maybe,
    put,
    store,
    syscall,
    when,
)

_Pairs = Iterable[tuple[Regs, Regs]]


def _send(capacity: int) -> Ins:
    """send(fd, "", 1, MSG_DONTWAIT): reg `sent` says whether there was room."""

    def call(kernel: Regs, regs: Regs) -> _Pairs:
        if kernel["closed"]:
            yield {**kernel, "reset": 1}, {**regs, "sent": 1}
        elif kernel["queue"] + kernel["before"] < capacity:
            yield {**kernel, "queue": kernel["queue"] + 1}, {**regs, "sent": 1}
        else:
            yield kernel, {**regs, "sent": 0}

    return syscall("send the bell byte", call)


def _take_byte() -> Ins:
    """recv(fd, 1 byte, MSG_DONTWAIT); what has not arrived is owed."""

    def call(kernel: Regs, regs: Regs) -> _Pairs:
        if kernel["queue"]:
            yield {**kernel, "queue": kernel["queue"] - 1}, regs
        else:
            yield kernel, {**regs, "debt": regs["debt"] + 1}

    return syscall("take the bell byte", call)


def _pay_debt() -> Ins:
    def call(kernel: Regs, regs: Regs) -> _Pairs:
        n = min(kernel["queue"], regs["debt"])
        yield {**kernel, "queue": kernel["queue"] - n}, {**regs, "debt": regs["debt"] - n}

    return syscall("take off what is owed", call)


def _wait_readable() -> Ins:
    def call(kernel: Regs, regs: Regs) -> _Pairs:
        if kernel["queue"] or kernel["before"]:
            yield kernel, regs

    return syscall("poll: readable", call)


def _wait_owed() -> Ins:
    """Blocks until everything that was announced has come, and takes it off."""

    def call(kernel: Regs, regs: Regs) -> _Pairs:
        if kernel["queue"] >= regs["debt"]:
            yield {**kernel, "queue": kernel["queue"] - regs["debt"]}, {**regs, "debt": 0}

    return syscall("recv what is owed", call)


def _read_before() -> Ins:
    def call(kernel: Regs, regs: Regs) -> _Pairs:
        yield {**kernel, "before": 0}, regs

    return syscall("recv up to switch_at", call)


def _close() -> Ins:
    def call(kernel: Regs, regs: Regs) -> _Pairs:
        yield {**kernel, "closed": 1, "reset": 1 if kernel["queue"] else kernel["reset"]}, regs

    return syscall("close", call)


def _producer(messages: int, capacity: int, without: frozenset[str], on_full: str) -> list[Ins]:
    fail: list[Ins]
    if on_full == "forget":  # plain store
        fail = [store("bell_out", 0)]
    elif on_full == "take-back":  # and whoever has noticed the announcement is given the byte later
        fail = [
            put("a", 1),
            compare_exchange("a", "bell_out", 0),
            put("owed", lambda r: r["owed"] + (r["a"] == 0)),
        ]
    else:
        fail = []
    return [
        label("publish"),
        when(lambda r: r["n"] >= messages, "end"),
        put("n", lambda r: r["n"] + 1),
        store("tail", "n"),
        label("ring"),
        *([] if "producer-fence" in without else [fence()]),
        exchange("a", "bell_out", 1),
        when(lambda r: r["a"] != 0, "publish"),
        _send(capacity),
        when(lambda r: r["sent"] == 1, "publish"),
        *fail,
        goto("publish"),
        label("end"),
    ]


def _settle(without: frozenset[str], after_keep: str, after: str) -> list[Ins]:
    """bell_settle(): the ring was seen drained; goes on at `after`, or at `after_keep` if it has filled."""
    return [
        load("b", "bell_out"),
        when(lambda r: r["b"] == 0, after),
        *([] if "forget" in without else [store("bell_out", 0)]),
        *([] if "consumer-fence" in without else [fence()]),
        *(
            []
            if "look-again" in without
            else [
                load("t", "tail"),
                when(lambda r: r["t"] == r["h"], f"{after}-take"),
                *(
                    [goto(f"{after}-keep")]
                    if "announce-again" in without
                    else [exchange("b", "bell_out", 1), when(lambda r: r["b"] == 0, f"{after}-keep")]
                ),
                _take_byte(),
                label(f"{after}-keep"),
                goto(after_keep),
            ]
        ),
        label(f"{after}-take"),
        *([] if "take" in without else [_take_byte()]),
    ]


def _final(machine: Machine, world: World) -> str | None:
    kernel = dict(world.kernel)
    if kernel["reset"]:
        return "an orderly close became a reset"
    if not machine.done(world):
        return "asleep for ever over data"
    return None


def watched(
    memory: Memory, messages: int = 2, partial: bool = True, without: frozenset[str] = frozenset()
) -> Machine:
    """A consumer that anybody may poll: it rests, at times, with the ring half read.

    Steps that can be left out: producer-fence, consumer-fence, forget, look-again, announce-again, take,
    debt.
    """
    consumer: list[Ins] = [
        label("rest"),
        _wait_readable(),
        label("awake"),
        *([] if "debt" in without else [_pay_debt()]),
        label("read"),
        load("t", "tail"),
        when(lambda r: r["t"] == r["h"], "drained"),
        put("h", lambda r: r["h"] + 1),
        *([maybe("rest")] if partial else []),
        goto("read"),
        label("drained"),
        *_settle(without, "read", "settled"),
        label("settled"),
        goto("rest"),
    ]

    def wrong(machine: Machine, world: World) -> str | None:
        kernel = dict(world.kernel)
        if kernel["queue"] > 2:
            return "more than two bell bytes"
        resting = machine.at(world, "consumer") == "rest"
        quiet = machine.at(world, "producer") in ("publish", "end") and not any(world.buffers)
        if resting and quiet and machine.value(world, "tail") > machine.reg(world, "consumer", "h"):
            if not kernel["queue"]:
                return "data in the ring, and the descriptor is not readable"
        return None

    def at_rest(machine: Machine, world: World) -> str | None:
        kernel = dict(world.kernel)
        if machine.reg(world, "consumer", "h") < messages:
            return "asleep for ever over data"
        if kernel["queue"] or machine.reg(world, "consumer", "debt"):
            return "the ring is empty and a byte is left (or owed) in the queue"
        return None

    return Machine(
        memory,
        {"tail": 0, "bell_out": 0},
        {"queue": 0, "before": 0, "closed": 0, "reset": 0},
        [
            ("consumer", consumer, {"h": 0, "t": 0, "b": 0, "debt": 0}),
            ("producer", _producer(messages, 3, without, "forget"), {"n": 0, "a": 0, "sent": 0, "owed": 0}),
        ],
        wrong=wrong,
        wrong_at_rest=at_rest,
    )


def behind_data(memory: Memory, on_full: str, room: bool = False, messages: int = 2) -> Machine:
    """The producer switches while the kernel's queue is full of earlier bytes: its bell finds no room.

    `on_full`: "forget" the announcement by a plain store, or take it back by compare-and-swap ("take-back");
    `room`: the producer switches only when the queue has room for the bells (no case to handle).
    """
    consumer: list[Ins] = [
        label("rest"),
        _wait_readable(),
        label("awake"),
        _pay_debt(),
        _read_before(),
        # a raw poller: after the bytes from before the switch, one look at the ring, a byte at most
        label("read"),
        load("t", "tail"),
        when(lambda r: r["t"] == r["h"], "drained"),
        put("h", "t"),
        goto("read"),
        label("drained"),
        *_settle(frozenset(), "read", "settled"),
        label("settled"),
        goto("rest"),
    ]

    def at_rest(machine: Machine, world: World) -> str | None:
        if machine.reg(world, "consumer", "h") < messages:
            return "asleep for ever over data"
        if machine.reg(world, "consumer", "debt") > machine.reg(world, "producer", "owed"):
            return "waits for a bell byte that was never sent, and will swallow a real one"
        return None

    return Machine(
        memory,
        {"tail": 0, "bell_out": 0},
        {"queue": 0, "before": 2, "closed": 0, "reset": 0},
        [
            ("consumer", consumer, {"h": 0, "t": 0, "b": 0, "debt": 0}),
            (
                "producer",
                _producer(messages, 4 if room else 2, frozenset(), on_full),
                {"n": 0, "a": 0, "sent": 0, "owed": 0},
            ),
        ],
        wrong_at_rest=at_rest,
    )


def orderly_close(memory: Memory, farewell: str) -> Machine:
    """A consumer that finds the message while awake, and closes: the bell of that message must not reset it.

    `farewell`: "settle": takes off what it can see; "announce": announces a bell itself, so that nobody rings
    any more, and waits for the one that is on its way.
    """
    consumer: list[Ins] = [
        label("read"),
        load("t", "tail"),
        when(lambda r: r["t"] == 0, "read"),
        put("h", "t"),
        label("farewell"),
    ]
    if farewell == "announce":
        consumer += [
            exchange("b", "bell_out", 1),
            put("debt", lambda r: r["debt"] + r["b"]),
            _wait_owed(),
        ]
    else:
        consumer += [*_settle(frozenset(), "bye", "bye"), label("bye")]
    consumer += [_close(), label("end")]
    return Machine(
        memory,
        {"tail": 0, "bell_out": 0},
        {"queue": 0, "before": 0, "closed": 0, "reset": 0},
        [
            ("consumer", consumer, {"h": 0, "t": 0, "b": 0, "debt": 0}),
            ("producer", _producer(1, 3, frozenset(), "forget"), {"n": 0, "a": 0, "sent": 0, "owed": 0}),
        ],
        wrong_at_rest=_final,
    )


def start_watching(memory: Memory, without: frozenset[str] = frozenset()) -> Machine:
    """The consumer goes to sleep in the kernel's keeping: `watch` first, then a last look at the ring.

    Steps that can be left out: producer-fence, consumer-fence, recheck.
    """
    consumer: list[Ins] = [
        label("read"),
        load("t", "tail"),
        when(lambda r: r["t"] != 0, "end"),
        store("watch", 1),
        *([] if "consumer-fence" in without else [fence()]),
        *([] if "recheck" in without else [load("t", "tail"), when(lambda r: r["t"] != 0, "end")]),
        label("rest"),
        _wait_readable(),
        goto("read"),
        label("end"),
    ]
    producer: list[Ins] = [
        label("publish"),
        store("tail", 1),
        *([] if "producer-fence" in without else [fence()]),
        load("w", "watch"),
        when(lambda r: r["w"] == 0, "end"),
        exchange("a", "bell_out", 1),
        when(lambda r: r["a"] != 0, "end"),
        _send(3),
        label("end"),
    ]
    return Machine(
        memory,
        {"tail": 0, "bell_out": 0, "watch": 0},
        {"queue": 0, "before": 0, "closed": 0, "reset": 0},
        [
            ("consumer", consumer, {"t": 0}),
            ("producer", producer, {"a": 0, "w": 0, "sent": 0}),
        ],
        wrong_at_rest=_final,
    )


def stop_watching(memory: Memory, clearing: str = "if the same") -> Machine:
    """One of two waiters has left, finds that nobody waits in the kernel, and says so; another comes then.

    `clearing`: "if the same": who comes writes another value each time, and only the value that was there
    before the look at the count is cleared; "always": cleared whatever it is; "look again": so, and set
    again if the count has changed meanwhile, too late for what the producer has done in between.
    """
    leaver: list[Ins] = [
        load("w", "watch"),
        fence(),
        load("n", "count"),
        when(lambda r: r["n"] != 0, "end"),
        *([compare_exchange("w", "watch", 0)] if clearing == "if the same" else [store("watch", 0)]),
    ]
    if clearing == "look again":
        leaver += [
            fence(),
            load("n", "count"),
            when(lambda r: r["n"] == 0, "end"),
            store("watch", 1),
        ]
    comer: list[Ins] = [
        exchange("x", "count", 1),
        fence(),
        label("mark"),
        *([load("w", "watch")] if clearing == "if the same" else []),
        *(
            [
                put("v", "w"),
                put("b", lambda r: r["w"] + 1),
                compare_exchange("w", "watch", "b"),
                when(lambda r: r["w"] != r["v"], "mark"),
            ]
            if clearing == "if the same"
            else [store("watch", 1)]
        ),
        fence(),
        load("t", "tail"),
        when(lambda r: r["t"] != 0, "end"),
        _wait_readable(),
        label("end"),
    ]
    producer: list[Ins] = [
        store("tail", 1),
        fence(),
        load("w", "watch"),
        when(lambda r: r["w"] == 0, "end"),
        exchange("a", "bell_out", 1),
        when(lambda r: r["a"] != 0, "end"),
        _send(3),
        label("end"),
    ]
    return Machine(
        memory,
        {"tail": 0, "bell_out": 0, "watch": 1, "count": 0},
        {"queue": 0, "before": 0, "closed": 0, "reset": 0},
        [
            ("leaver", [*leaver, label("end")], {"w": 0, "n": 0}),
            ("comer", comer, {"t": 0, "w": 0, "v": 0, "b": 0, "x": 0}),
            ("producer", producer, {"a": 0, "w": 0, "sent": 0}),
        ],
        wrong_at_rest=_final,
    )


def _send_edge() -> Ins:
    """send() of a bell byte to a descriptor that an edge-triggered set watches: each byte is an edge."""

    def call(kernel: Regs, regs: Regs) -> _Pairs:
        yield {**kernel, "queue": kernel["queue"] + 1, "edge": 1}, regs

    return syscall("send the bell byte", call)


def _wait_edge() -> Ins:
    def call(kernel: Regs, regs: Regs) -> _Pairs:
        if kernel["edge"]:
            yield {**kernel, "edge": 0}, regs

    return syscall("epoll_wait: an edge", call)


def edge_triggered(memory: Memory, signals: int = 3, without: frozenset[str] = frozenset()) -> Machine:
    """An epoll set of ours without an eventfd, whose program leaves data in the ring: it waits for space.

    So the ring is never seen drained, and nothing but the edge itself can take the byte off. Steps that can
    be left out: clear (the byte stays in the queue, as it did), look-again (between arming and sleeping).
    """
    consumer: list[Ins] = [
        label("look"),
        load("t", "news"),
        when(lambda r: r["t"] >= signals, "end"),
        put("s", lambda r: r["s"] + 1),
        store("armed", "s"),
        fence(),
        *([] if "look-again" in without else [load("u", "news"), when(lambda r: r["u"] != r["t"], "look")]),
        label("rest"),
        _wait_edge(),
        store("armed", 0),
        load("b", "bell_out"),
        *(
            []
            if "clear" in without
            else [
                when(lambda r: r["b"] == 0, "look"),
                _pay_debt(),
                store("bell_out", 0),
                fence(),
                _take_byte(),
            ]
        ),
        goto("look"),
        label("end"),
    ]
    producer: list[Ins] = [
        label("change"),
        when(lambda r: r["n"] >= signals, "end"),
        put("n", lambda r: r["n"] + 1),
        store("news", "n"),
        fence(),
        load("a", "armed"),
        when(lambda r: r["a"] == 0, "change"),
        exchange("o", "bell_out", 1),
        when(lambda r: r["o"] != 0, "disarm"),
        _send_edge(),
        label("disarm"),
        compare_exchange("a", "armed", 0),
        goto("change"),
        label("end"),
    ]
    return Machine(
        memory,
        {"news": 0, "bell_out": 0, "armed": 0},
        {"queue": 0, "edge": 0, "closed": 0, "reset": 0},
        [
            ("consumer", consumer, {"t": 0, "u": 0, "b": 0, "debt": 0, "s": 0}),
            ("producer", producer, {"n": 0, "a": 0, "o": 0}),
        ],
        wrong_at_rest=_final,
    )
