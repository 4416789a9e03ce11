"""Threads that run small programs over shared memory with a stated memory model.

Three memories:

* `SC`: every access is at once visible to everybody;
* `TSO`: x86-64: each thread's stores wait in a first-in-first-out buffer, which a fence or an atomic
  read-modify-write empties;
* `WEAK`: the part of C11 that compilers and aarch64 make use of: a location is a history of messages, a
  thread may read any message that is not older than what it has already seen, a release store carries what
  its writer had seen and an acquire load takes it over, sequentially consistent fences order what was seen
  before them.  (It leaves out load buffering: no protocol here depends on it.)

A program is a list of instructions.  Kernel objects (an eventfd's count, the bytes in a socket's queue) live
in a separate store: each system call is one indivisible step that may block, and orders memory as
release and acquire do, but is not counted as a fence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

Regs = dict[str, int]
Expr = int | str | Callable[[Regs], int]
KernelStep = Callable[[Regs, Regs], Iterable[tuple[Regs, Regs]]]


class Memory(Enum):
    """Which reorderings the processor (and the compiler) may make."""

    SC = "sc"
    TSO = "tso"
    WEAK = "weak"


@dataclass(frozen=True)
class Ins:
    """One instruction; `op` says which of the other members matter."""

    op: str
    var: str = ""
    reg: str = ""
    value: Expr = 0
    relaxed: bool = False
    cond: Callable[[Regs], bool] | None = None
    target: str = ""
    call: KernelStep | None = None


def label(name: str) -> Ins:
    """A place to jump to."""
    return Ins("label", target=name)


def load(reg: str, var: str, relaxed: bool = False) -> Ins:
    """reg = var (acquire)."""
    return Ins("load", var=var, reg=reg, relaxed=relaxed)


def store(var: str, value: Expr, relaxed: bool = False) -> Ins:
    """var = value (release)."""
    return Ins("store", var=var, value=value, relaxed=relaxed)


def exchange(reg: str, var: str, value: Expr) -> Ins:
    """reg = var and var = value, indivisibly (acquire, release)."""
    return Ins("xchg", var=var, reg=reg, value=value)


def fetch_or(var: str, value: Expr) -> Ins:
    """var |= value, indivisibly (acquire, release)."""
    return Ins("or", var=var, value=value)


def fence() -> Ins:
    """atomic_thread_fence(memory_order_seq_cst)."""
    return Ins("fence")


def compare_exchange(reg: str, var: str, value: Expr) -> Ins:
    """var = value if it was reg; reg = what it was: indivisibly (acquire, release)."""
    return Ins("cas", var=var, reg=reg, value=value)


def put(reg: str, value: Expr) -> Ins:
    """reg = value."""
    return Ins("set", reg=reg, value=value)


def when(cond: Callable[[Regs], bool], target: str) -> Ins:
    """Jump to `target` if `cond` holds."""
    return Ins("if", cond=cond, target=target)


def goto(target: str) -> Ins:
    """Jump."""
    return Ins("goto", target=target)


def maybe(target: str) -> Ins:
    """Jump, or not: both are explored."""
    return Ins("maybe", target=target)


def syscall(name: str, call: KernelStep) -> Ins:
    """One indivisible step on the kernel's objects; no result: it blocks."""
    return Ins("sys", target=name, call=call)


View = tuple[int, ...]
Message = tuple[int, View]


@dataclass(frozen=True)
class World:
    """A state: what every thread is at, the memory, the kernel."""

    pcs: tuple[int, ...]
    regs: tuple[tuple[tuple[str, int], ...], ...]
    mem: tuple[int, ...]  # SC and TSO
    buffers: tuple[tuple[tuple[int, int], ...], ...]  # TSO
    history: tuple[tuple[Message, ...], ...]  # WEAK: a location's messages, oldest first
    views: tuple[View, ...]  # WEAK: a thread's; the last two: the fences', the kernel's
    kernel: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        regs = " ".join(",".join(f"{k}={v}" for k, v in r) for r in self.regs)
        mem: object = self.mem or tuple(tuple(m[0] for m in h) for h in self.history)
        return f"pc={self.pcs} [{regs}] mem={mem} k={dict(self.kernel)}"


def _join(a: View, b: View) -> View:
    return tuple(x if x > y else y for x, y in zip(a, b, strict=True))


class Machine:
    """Runs programs; the judgement of states is the subclass's or the caller's functions."""

    def __init__(
        self,
        memory: Memory,
        variables: dict[str, int],
        kernel: dict[str, int],
        threads: Sequence[tuple[str, Sequence[Ins], Regs]],
        wrong: Callable[[Machine, World], str | None] | None = None,
        wrong_at_rest: Callable[[Machine, World], str | None] | None = None,
    ) -> None:
        self.memory = memory
        self.names = list(variables)
        self.index = {name: i for i, name in enumerate(self.names)}
        self.start = tuple(variables.values())
        self.kernel_start = tuple(sorted(kernel.items()))
        self.thread_names = [t[0] for t in threads]
        self.programs = [list(t[1]) for t in threads]
        self.start_regs = [tuple(sorted(t[2].items())) for t in threads]
        self.labels = [{ins.target: n for n, ins in enumerate(p) if ins.op == "label"} for p in self.programs]
        self._wrong = wrong
        self._wrong_at_rest = wrong_at_rest

    # -- what a judgement may ask ---------------------------------------------------------------

    def at(self, world: World, thread: str) -> str:
        """The last label that `thread` passed, or "end"."""
        t = self.thread_names.index(thread)
        pc = world.pcs[t]
        if pc >= len(self.programs[t]):
            return "end"
        while pc > 0 and self.programs[t][pc].op != "label":
            pc -= 1
        return self.programs[t][pc].target

    def done(self, world: World) -> bool:
        """Every thread has come to its end."""
        return all(pc >= len(p) for pc, p in zip(world.pcs, self.programs, strict=True))

    def reg(self, world: World, thread: str, name: str) -> int:
        """A register's value."""
        return dict(world.regs[self.thread_names.index(thread)])[name]

    def value(self, world: World, var: str) -> int:
        """The newest value of a location (in coherence order)."""
        i = self.index[var]
        return world.history[i][-1][0] if self.memory is Memory.WEAK else world.mem[i]

    # -- the explorer's side --------------------------------------------------------------------

    def initial(self) -> Iterable[World]:
        n = len(self.programs)
        weak = self.memory is Memory.WEAK
        zero = (0,) * len(self.names)
        world = World(
            pcs=(0,) * n,
            regs=tuple(self.start_regs),
            mem=() if weak else self.start,
            buffers=((),) * n if self.memory is Memory.TSO else (),
            history=tuple(((v, zero),) for v in self.start) if weak else (),
            views=(zero,) * (n + 2) if weak else (),
            kernel=self.kernel_start,
        )
        states = [world]
        for t in range(n):
            states = [after for s in states for after in self._advance(s, t)]
        return states

    def wrong(self, state: World) -> str | None:
        return self._wrong(self, state) if self._wrong else None

    def wrong_at_rest(self, state: World) -> str | None:
        if any(state.buffers):
            return "a store buffer is left over"
        return self._wrong_at_rest(self, state) if self._wrong_at_rest else None

    def steps(self, state: World) -> Iterable[tuple[str, World]]:
        for t, pc in enumerate(state.pcs):
            if self.memory is Memory.TSO and state.buffers[t]:
                (var, value), *rest = state.buffers[t]
                mem = state.mem[:var] + (value,) + state.mem[var + 1 :]
                buffers = state.buffers[:t] + (tuple(rest),) + state.buffers[t + 1 :]
                name = f"{self.thread_names[t]}: {self.names[var]}={value} leaves the store buffer"
                yield name, replace(state, mem=mem, buffers=buffers)
            if pc >= len(self.programs[t]):
                continue
            ins = self.programs[t][pc]
            for what, after in self._execute(state, t, ins):
                moved = replace(after, pcs=_set(after.pcs, t, pc + 1))
                for settled in self._advance(moved, t):
                    yield f"{self.thread_names[t]}: {what}", self._trim(settled)

    # -- instructions ---------------------------------------------------------------------------

    def _advance(self, state: World, t: int) -> list[World]:
        """Runs what only this thread can see (jumps, registers) along with the step before it."""
        out: list[World] = []
        todo = [state]
        while todo:
            s = todo.pop()
            pc = s.pcs[t]
            if pc >= len(self.programs[t]):
                out.append(s)
                continue
            ins = self.programs[t][pc]
            if ins.op == "label":
                todo.append(replace(s, pcs=_set(s.pcs, t, pc + 1)))
            elif ins.op == "goto":
                todo.append(replace(s, pcs=_set(s.pcs, t, self.labels[t][ins.target])))
            elif ins.op == "if":
                assert ins.cond is not None
                to = self.labels[t][ins.target] if ins.cond(dict(s.regs[t])) else pc + 1
                todo.append(replace(s, pcs=_set(s.pcs, t, to)))
            elif ins.op == "maybe":
                todo.append(replace(s, pcs=_set(s.pcs, t, pc + 1)))
                todo.append(replace(s, pcs=_set(s.pcs, t, self.labels[t][ins.target])))
            elif ins.op == "set":
                value = _eval(ins.value, dict(s.regs[t]))
                todo.append(replace(self._set_reg(s, t, ins.reg, value), pcs=_set(s.pcs, t, pc + 1)))
            else:
                out.append(s)
        return out

    @staticmethod
    def _set_reg(s: World, t: int, reg: str, value: int) -> World:
        regs = dict(s.regs[t])
        regs[reg] = value
        return replace(s, regs=_set(s.regs, t, tuple(sorted(regs.items()))))

    def _execute(self, s: World, t: int, ins: Ins) -> Iterable[tuple[str, World]]:
        regs = dict(s.regs[t])
        if ins.op == "sys":
            yield from self._system(s, t, ins, regs)
        elif self.memory is Memory.WEAK:
            yield from self._weak(s, t, ins, regs)
        else:
            yield from self._strong(s, t, ins, regs)

    def _system(self, s: World, t: int, ins: Ins, regs: Regs) -> Iterable[tuple[str, World]]:
        assert ins.call is not None
        if self.memory is Memory.TSO and s.buffers[t]:
            return  # the kernel's own locked instructions empty the buffer
        for kernel, after in ins.call(dict(s.kernel), dict(regs)):
            out = replace(
                s, kernel=tuple(sorted(kernel.items())), regs=_set(s.regs, t, tuple(sorted(after.items())))
            )
            if self.memory is Memory.WEAK:
                k = len(self.programs) + 1
                both = _join(s.views[t], s.views[k])
                out = replace(out, views=_set(_set(s.views, t, both), k, both))
            yield ins.target, out

    @staticmethod
    def _modified(ins: Ins, regs: Regs, old: int) -> int:
        new = _eval(ins.value, regs)
        if ins.op == "or":
            return new | old
        if ins.op == "cas":
            return new if old == regs[ins.reg] else old
        return new

    def _strong(self, s: World, t: int, ins: Ins, regs: Regs) -> Iterable[tuple[str, World]]:
        tso = self.memory is Memory.TSO
        if ins.op == "fence":
            if not (tso and s.buffers[t]):
                yield "fence", s
            return
        i = self.index[ins.var]
        if ins.op == "load":
            value = s.mem[i]
            if tso:
                value = next((v for var, v in reversed(s.buffers[t]) if var == i), value)
            yield f"{ins.reg} = {ins.var} ({value})", self._set_reg(s, t, ins.reg, value)
        elif ins.op == "store":
            value = _eval(ins.value, regs)
            if tso:
                yield (
                    f"{ins.var} = {value} (buffered)",
                    replace(s, buffers=_set(s.buffers, t, (*s.buffers[t], (i, value)))),
                )
            else:
                yield f"{ins.var} = {value}", replace(s, mem=_set(s.mem, i, value))
        else:
            if tso and s.buffers[t]:
                return
            old = s.mem[i]
            new = self._modified(ins, regs, old)
            out = replace(s, mem=_set(s.mem, i, new))
            yield f"{ins.op} {ins.var} {old}->{new}", self._set_reg(out, t, ins.reg, old) if ins.reg else out

    def _weak(self, s: World, t: int, ins: Ins, regs: Regs) -> Iterable[tuple[str, World]]:
        view = s.views[t]
        if ins.op == "fence":
            f = len(self.programs)
            both = _join(view, s.views[f])
            yield "fence", replace(s, views=_set(_set(s.views, t, both), f, both))
            return
        i = self.index[ins.var]
        if ins.op == "load":
            for stamp in range(view[i], len(s.history[i])):
                value, carried = s.history[i][stamp]
                seen = _set(view, i, stamp)
                if not ins.relaxed:
                    seen = _join(seen, carried)
                out = replace(s, views=_set(s.views, t, seen))
                yield f"{ins.reg} = {ins.var} ({value})", self._set_reg(out, t, ins.reg, value)
            return
        old, carried = s.history[i][-1]
        stamp = len(s.history[i])
        value = self._modified(ins, regs, old)
        seen = _set(view, i, stamp)
        if ins.op == "store":
            zero = (0,) * len(self.names)
            message = (value, _set(zero, i, stamp) if ins.relaxed else seen)
        else:
            seen = _join(seen, carried)
            message = (value, seen)
        out = replace(s, history=_set(s.history, i, (*s.history[i], message)), views=_set(s.views, t, seen))
        yield f"{ins.op} {ins.var} {old}->{value}", self._set_reg(out, t, ins.reg, old) if ins.reg else out

    def _trim(self, s: World) -> World:
        """Forgets messages that no thread can read any more, so that equal states are equal."""
        if self.memory is not Memory.WEAK:
            return s
        threads = s.views[: len(self.programs)]
        cut = tuple(min(v[i] for v in threads) for i in range(len(self.names)))
        if not any(cut):
            return s

        def rebase(v: View) -> View:
            return tuple(x - c if x > c else 0 for x, c in zip(v, cut, strict=True))

        history = tuple(
            tuple((m[0], rebase(m[1])) for m in h[c:]) for h, c in zip(s.history, cut, strict=True)
        )
        return replace(s, history=history, views=tuple(rebase(v) for v in s.views))


def _set(values: tuple, i: int, value: object) -> tuple:  # type: ignore[type-arg]
    return (*values[:i], value, *values[i + 1 :])


def _eval(value: Expr, regs: Regs) -> int:
    if isinstance(value, int):
        return value
    if isinstance(value, str):
        return regs[value]
    return int(value(regs))
