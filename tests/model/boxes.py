"""Datagrams by a box to a receiver that is awake, and by the kernel: none is left behind, all come in order.

As native/core/box.c and local_io.c have it: one producer, one consumer that sleeps in the kernel's receiving
call.  Each protocol is built from `without`, a set of steps to leave out.
"""

from __future__ import annotations

from collections.abc import Iterable

from tests.model.eventfd import asleep_for_ever
from tests.model.machine import (
    Ins,
    Machine,
    Memory,
    Regs,
    World,
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
    syscall,
    when,
)

_TAKEN = 9  # an item that is being copied; else 0, or the number of the datagram in it
_HELD = 10  # and this much more, when its consumer's program has been told of it


def _full(state: int) -> bool:
    return 0 < state < _TAKEN


def _send(message: int) -> Ins:
    """What was taken back (`r`, the oldest is the last digit), and then this one."""

    def call(kernel: Regs, regs: Regs) -> Iterable[tuple[Regs, Regs]]:
        queue, back = kernel["queue"], regs["r"]
        while back:
            queue, back = queue * 10 + back % 10, back // 10
        yield {**kernel, "queue": queue * 10 + message}, {**regs, "r": 0}

    return syscall(f"send {message}", call)


def _receive(waits: bool) -> Ins:
    def call(kernel: Regs, regs: Regs) -> Iterable[tuple[Regs, Regs]]:
        digits = str(kernel["queue"])
        if kernel["queue"]:
            yield {**kernel, "queue": int(digits[1:] or "0")}, {**regs, "v": int(digits[0])}
        elif not waits:
            yield kernel, {**regs, "v": 0}

    return syscall("receive", call)


def _put(m: int, k: int, without: frozenset[str]) -> list[Ins]:
    mark = [
        load("d", "dirty"),
        when(lambda r: r["d"] != 0, f"marked-{m}-{k}"),
        fetch_or("dirty", 1),
        *([] if "mark-fence" in without else [fence()]),
        label(f"marked-{m}-{k}"),
    ]
    older = [load("p", f"i{k - 1}"), when(lambda r: _full(r["p"]), f"kept-{m}-{k}")] if k > 0 else []
    asleep = [
        load("a", "awake"),
        when(lambda r: r["a"] != 0, f"kept-{m}-{k}"),
        *older,
        put("c", m),
        compare_exchange("c", f"i{k}", 0),
        when(lambda r: r["c"] == m, f"kernel-{m}"),
    ]
    late = "mark-first" in without  # the mark is set when it is too late for who looks for it
    return [
        label(f"put-{m}-{k}"),
        store(f"i{k}", m),
        *([] if "put-fence" in without else [fence()]),
        *([] if late else mark),
        *([] if "take-back-own" in without else asleep),
        label(f"kept-{m}-{k}"),
        *(mark if late else []),
        put("t", k + 1),
        goto(f"sent-{m}"),
    ]


def _by_kernel(m: int, without: frozenset[str]) -> list[Ins]:
    back: list[Ins] = []
    for k in reversed(range(m)):
        back += [
            when(lambda r, k=k: r["t"] != k + 1, f"below-{m}-{k}"),  # type: ignore[misc]
            load("p", f"i{k}"),
            when(lambda r: not _full(r["p"]), f"back-{m}"),
            put("c", "p"),
            compare_exchange("c", f"i{k}", 0),
            when(lambda r: r["c"] != r["p"], f"back-{m}"),
            put("r", lambda r: r["r"] * 10 + r["p"]),
            put("b", lambda r: r["b"] + 1),
            put("t", k),
            label(f"below-{m}-{k}"),
        ]
    return [
        label(f"kernel-{m}"),
        *([] if "take-back-older" in without else back),
        label(f"back-{m}"),
        put("b", lambda r: r["b"] + 1),
        store("begun", "b"),
        _send(m),
        label(f"sent-{m}"),
    ]


def _producer(messages: int, without: frozenset[str]) -> list[Ins]:
    out: list[Ins] = []
    for m in range(1, messages + 1):
        counted = [load("k", "taken"), when(lambda r: r["k"] < r["b"], f"kernel-{m}")]
        out += [
            maybe(f"kernel-{m}"),  # one that is too large for the box
            load("a", "awake"),
            when(lambda r: r["a"] == 0, f"kernel-{m}"),
            *([] if "counts" in without else counted),
        ]
        for k in range(m):
            out.append(when(lambda r, k=k: r["t"] == k, f"put-{m}-{k}"))  # type: ignore[misc]
        for k in range(m):
            out += _put(m, k, without)
        out += _by_kernel(m, without)
    return [*out, label("end")]


def _told(k: int, without: frozenset[str]) -> list[Ins]:
    """As poll() tells a program, which then receives without waiting."""
    hold = [
        put("c", "v"),
        compare_exchange("c", f"i{k}", lambda r: r["v"] + _HELD),
        when(lambda r: r["c"] != r["v"], "awake"),
    ]
    return [
        label(f"told-{k}"),
        *([] if "hold" in without else hold),
        store("awake", 1),
        load("v", f"i{k}"),
        when(lambda r: not _full(r["v"] % _HELD), "lied"),
        put("c", "v"),
        compare_exchange("c", f"i{k}", _TAKEN),
        when(lambda r: r["c"] != r["v"], "lied"),
        when(lambda r: r["v"] % _HELD != r["g"] + 1, "wrong"),
        store(f"i{k}", 0),
        put("h", k + 1),
        put("g", lambda r: r["g"] + 1),
        goto("again"),
    ]


def _last_look(messages: int, tells: bool) -> list[Ins]:
    """A mark may be of what has been taken since: only what is there keeps it awake."""
    out = [load("d", "dirty"), when(lambda r: r["d"] == 0, "asleep")]
    for k in range(messages):
        out.append(when(lambda r, k=k: r["h"] == k, f"last-{k}"))  # type: ignore[misc]
    for k in range(messages):
        out += [
            label(f"last-{k}"),
            load("v", f"i{k}"),
            when(lambda r: _full(r["v"]), f"told-{k}" if tells else "awake"),
            goto("asleep"),
        ]
    return out


def _consumer(messages: int, without: frozenset[str], tries: bool, tells: bool) -> list[Ins]:
    a_try = [
        maybe("armed"),
        _receive(waits=False),  # by a call that does not wait
        when(lambda r: r["v"] != 0, "received"),
        goto("again"),
        label("armed"),
    ]
    out = [
        label("again"),
        when(lambda r: r["g"] >= messages, "end"),
        exchange("x", "dirty", 0),
        put("p", lambda r: r["p"] | r["x"]),
        when(lambda r: r["p"] == 0, "idle"),
        when(lambda r: r["x"] == 0, "look"),
        *([] if "scan-fence" in without else [fence()]),
        label("look"),
    ]
    for k in range(messages):
        out.append(when(lambda r, k=k: r["h"] == k, f"look-{k}"))  # type: ignore[misc]
    for k in range(messages):
        out += [
            label(f"look-{k}"),
            load("v", f"i{k}"),
            when(lambda r: not _full(r["v"]), "none"),
            put("c", "v"),
            compare_exchange("c", f"i{k}", _TAKEN),
            when(lambda r: r["c"] != r["v"], "again"),
            when(lambda r: r["v"] != r["g"] + 1, "wrong"),
            store(f"i{k}", 0),
            put("h", k + 1),
            put("g", lambda r: r["g"] + 1),
            goto("again"),
        ]
    return [
        *out,
        label("none"),
        put("p", 0),
        goto("again"),
        label("idle"),
        *(a_try if tries else []),
        store("awake", 0),
        *([] if "sleep-fence" in without else [fence()]),
        *([] if "last-look" in without else _last_look(messages, tells)),
        label("asleep"),
        _receive(waits=True),
        label("received"),
        load("k", "begun"),
        when(lambda r: r["n"] >= r["k"], "counted"),
        put("n", lambda r: r["n"] + 1),
        store("taken", "n"),
        label("counted"),
        when(lambda r: r["v"] != r["g"] + 1, "wrong"),
        put("g", lambda r: r["g"] + 1),
        label("awake"),
        store("awake", 1),
        goto("again"),
        *(ins for k in range(messages) if tells for ins in _told(k, without)),
        label("lied"),
        put("l", 1),
        label("wrong"),
        label("end"),
    ]


def _judge(machine: Machine, world: World) -> str | None:
    got = machine.reg(world, "consumer", "g")
    last = machine.reg(world, "consumer", "v")
    ended = machine.at(world, "consumer") == "end"
    messages = sum(1 for ins in machine.programs[0] if ins.op == "label" and ins.target.startswith("sent-"))
    if ended and machine.reg(world, "consumer", "l"):
        return f"told of the datagram after {got}, which was not there"
    return f"datagram {last} came after {got}" if ended and got < messages else None


def one_pair(
    memory: Memory,
    messages: int = 2,
    without: frozenset[str] = frozenset(),
    *,
    tries: bool = False,
    tells: bool = False,
) -> Machine:
    """`tries`: the consumer may also look into the kernel's queue without going to sleep.  `tells`: what it
    finds before it sleeps, its program is told of, and must then find.

    Steps that can be left out: put-fence, mark-first, mark-fence, scan-fence, take-back-own, take-back-older,
    counts, sleep-fence, last-look, hold."""
    variables = {"awake": 1, "dirty": 0, "taken": 0, "begun": 0} | {f"i{k}": 0 for k in range(messages)}
    return Machine(
        memory,
        variables,
        {"queue": 0},
        [
            (
                "producer",
                _producer(messages, without),
                dict.fromkeys(("a", "b", "c", "d", "k", "p", "r", "t"), 0),
            ),
            (
                "consumer",
                _consumer(messages, without, tries, tells),
                dict.fromkeys(("c", "d", "g", "h", "k", "l", "n", "p", "v", "x"), 0),
            ),
        ],
        wrong=_judge,
        wrong_at_rest=asleep_for_ever,
    )
