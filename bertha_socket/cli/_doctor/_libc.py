"""System calls that Python has no name for, by ctypes; for probes only."""

from __future__ import annotations

import ctypes
import os
import platform

__all__ = ["libc", "result", "syscall", "syscall_number"]

libc = ctypes.CDLL(None, use_errno=True)

# The generic table (aarch64, riscv64) and the one that differs.
_NUMBERS = {
    "bpf": {"x86_64": 321, "generic": 280},
    "io_uring_setup": {"x86_64": 425, "generic": 425},
}
_GENERIC = {"aarch64", "riscv64", "loongarch64"}


def syscall_number(name: str) -> int | None:
    """None: not known for this machine."""
    machine = platform.machine()
    return _NUMBERS[name].get("generic" if machine in _GENERIC else machine)


def result(value: int) -> int:
    """`value`, unless it is -1: then raises the OSError that errno stands for."""
    if value == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return value


def syscall(name: str, *args: object) -> int:
    """Raises OSError; NotImplementedError where the number is not known."""
    number = syscall_number(name)
    if number is None:
        raise NotImplementedError(f"no number for {name} on {platform.machine()}")
    # Passed through varargs, so every number must say that it is a long.
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    return result(int(libc.syscall(ctypes.c_long(number), *words)))
