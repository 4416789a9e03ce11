"""An eventfd, and the threads that nobody wakes: for the protocols whose sleepers have one."""

from __future__ import annotations

from collections.abc import Iterable

from tests.model.machine import Ins, Machine, Regs, World, syscall


def ring_bell(name: str) -> Ins:
    """``kernel[name]`` is the eventfd's count, or rather whether there is one."""

    def call(kernel: Regs, regs: Regs) -> Iterable[tuple[Regs, Regs]]:
        yield {**kernel, name: 1}, regs

    return syscall(f"write({name})", call)


def sleep(name: str) -> Ins:
    """Until it was rung; that is taken."""

    def call(kernel: Regs, regs: Regs) -> Iterable[tuple[Regs, Regs]]:
        if kernel[name]:
            yield {**kernel, name: 0}, regs

    return syscall(f"sleep until {name}", call)


def asleep_for_ever(machine: Machine, world: World) -> str | None:
    """What is wrong where nothing more can happen: who has not come to its end."""
    if machine.done(world):
        return None
    asleep = [n for n in machine.thread_names if machine.at(world, n) != "end"]
    return f"asleep for ever: {', '.join(asleep)}"
