"""How the sockets of boxes.py are tied when datagrams are alike: what goes by a box comes after all before.

The producer says which of its datagrams it sends next by their sum alone; the consumer has one in its hand.
The box itself is a queue here, as the kernel's.  Each protocol is built from `without`, a set of steps to
leave out.
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
    goto,
    label,
    load,
    put,
    store,
    syscall,
    when,
)

_MANY = 20
_SUM = 10  # announced: the number times this, and the sum


def _send(where: str, message: int) -> Ins:
    def call(kernel: Regs, regs: Regs) -> Iterable[tuple[Regs, Regs]]:
        yield {**kernel, where: kernel[where] * 10 + message}, regs

    return syscall(f"{where} {message}", call)


def _receive(where: str) -> Ins:
    def call(kernel: Regs, regs: Regs) -> Iterable[tuple[Regs, Regs]]:
        digits = str(kernel[where])
        rest = {**kernel, where: int(digits[1:] or "0")}
        yield (rest, {**regs, "v": int(digits[0])})

    return syscall(f"receive by {where}", call)


def _is_empty() -> Ins:
    def call(kernel: Regs, regs: Regs) -> Iterable[tuple[Regs, Regs]]:
        yield kernel, {**regs, "e": int(kernel["queue"] == 0)}

    return syscall("poll", call)


def _announce(m: int, sums: tuple[int, ...], claimed: int, without: frozenset[str]) -> list[Ins]:
    known = sums[claimed if "sums-before" in without else 0 : m - 1]
    alike = sums[m - 1] in known and "alike" not in without
    number: list[Ins] = [put("n", 0 if alike else "b")]
    if alike and "many" not in without:
        number += [
            when(lambda r: r["m"] != 0, f"many-{m}"),
            put("m", 1),
            put("b", lambda r: r["b"] + _MANY),
            label(f"many-{m}"),
        ]
    return [*number, store("announced", lambda r: r["n"] * _SUM + sums[m - 1])]


def _producer(sums: tuple[int, ...], claimed: int, without: frozenset[str]) -> list[Ins]:
    out: list[Ins] = []
    for m in range(1, len(sums) + 1):
        if m <= claimed:  # nobody counts these
            out.append(_send("queue", m))
            continue
        out += [
            load("t", "tied"),
            when(lambda r: r["t"] == 0, f"untied-{m}"),
            load("k", "taken"),
            when(lambda r: r["k"] < r["b"], f"kernel-{m}"),
            _send("box", m),
            goto(f"sent-{m}"),
            label(f"kernel-{m}"),
            put("b", lambda r: r["b"] + 1),
            goto(f"counted-{m}"),
            label(f"untied-{m}"),
            put("b", lambda r: r["b"] + 1),
            *_announce(m, sums, claimed, without),
            label(f"counted-{m}"),
            store("begun", "b"),
            _send("queue", m),
            store("sent", "b"),
            label(f"sent-{m}"),
        ]
    return [*out, label("end")]


def _consumer(sums: tuple[int, ...], cut: dict[int, int], without: frozenset[str]) -> list[Ins]:
    def looks_like(r: Regs) -> int:
        return cut.get(r["v"], sums[r["v"] - 1])

    def ties(r: Regs) -> bool:
        return r["a"] % _SUM == looks_like(r) and (r["v"] not in cut or "whole" in without)

    return [
        label("again"),
        when(lambda r: r["g"] >= len(sums), "end"),
        _receive("box"),
        when(lambda r: r["v"] != 0, "received"),
        _receive("queue"),
        when(lambda r: r["v"] == 0, "nothing"),
        when(lambda r: r["t"] != 0, "counts"),
        load("a", "announced"),
        when(lambda r: not ties(r), "received"),
        put("t", 1),
        put("n", lambda r: r["a"] // _SUM),
        store("taken", "n"),
        store("tied", 1),
        goto("received"),
        label("counts"),
        load("b", "begun"),
        when(lambda r: r["n"] >= r["b"], "received"),
        put("n", lambda r: r["n"] + 1),
        store("taken", "n"),
        label("received"),
        when(lambda r: r["v"] != r["g"] + 1, "wrong"),
        put("g", "v"),
        goto("again"),
        label("nothing"),
        when(lambda r: r["t"] == 0, "again"),
        load("b", "sent"),
        _is_empty(),
        when(lambda r: r["e"] == 0 or r["n"] >= r["b"], "again"),
        put("n", "b"),
        store("taken", "n"),
        goto("again"),
        label("wrong"),
        label("end"),
    ]


def _judge(machine: Machine, world: World) -> str | None:
    got, last = (machine.reg(world, "consumer", r) for r in "gv")
    ended = machine.at(world, "consumer") == "end"
    messages = machine.reg(world, "consumer", "messages")
    return f"datagram {last} came after {got}" if ended and got < messages else None


def tied(
    memory: Memory,
    sums: tuple[int, ...],
    claimed: int = 1,
    cut: dict[int, int] | None = None,
    without: frozenset[str] = frozenset(),
) -> Machine:
    """Datagrams with these sums, of which the first `claimed` ones were sent before the claim; those in `cut`
    are received in part, and have that sum then.

    Steps that can be left out: alike, sums-before, many, whole."""
    return Machine(
        memory,
        {"tied": 0, "taken": 0, "begun": 0, "sent": 0, "announced": 0},
        {"queue": 0, "box": 0},
        [
            (
                "producer",
                _producer(sums, claimed, without),
                dict.fromkeys(("b", "k", "m", "n", "t"), 0),
            ),
            (
                "consumer",
                _consumer(sums, cut or {}, without),
                dict.fromkeys(("a", "b", "e", "g", "n", "t", "v"), 0) | {"messages": len(sums)},
            ),
        ],
        wrong=_judge,
        wrong_at_rest=asleep_for_ever,
    )
