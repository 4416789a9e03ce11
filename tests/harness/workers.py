"""Tests that run side by side, in the workers of pytest-xdist.

Each worker has a network namespace of its own: its loopback, its ports and its agents' well-known port are
nobody else's, as if it were alone on a machine.  The processors remain shared: a test that waits for
silence, or counts what the loss of one would change, is marked `alone`: no other test runs beside it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_outside: list[int] = []


def enter_own_network() -> None:
    """Move this thread, and so everything it starts, into a new namespace whose loopback is up.

    Raises OSError where that is not allowed; the Makefile asks for workers only where it is.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    _outside.append(os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
    if libc.unshare(_CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"a network namespace for a worker of pytest-xdist: {os.strerror(number)}")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=60)


def outside() -> list[str]:
    """Words before a command that needs the network outside, such as one that installs from an index."""
    return ["nsenter", f"--net=/proc/{os.getpid()}/fd/{_outside[0]}", "--"] if _outside else []


class Room:
    """In which many tests run, or one that is alone.

    Two locks of files, because flock(2) is not fair: who waits to be alone would wait for as long as others
    come and go.  So everybody passes the door, one after another, and who wants to be alone keeps it.
    """

    def __init__(self, run: str) -> None:
        self._door = Path(tempfile.gettempdir()) / f"bertha-tests-{run}.door"
        self._room = self._door.with_suffix(".room")

    @contextlib.contextmanager
    def entered(self, *, alone: bool) -> Iterator[None]:
        with self._door.open("w") as door, self._room.open("w") as room:
            fcntl.flock(door, fcntl.LOCK_EX)
            fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            if not alone:
                fcntl.flock(door, fcntl.LOCK_UN)
            try:
                yield
            finally:  # not by closing alone: a child that a test forked has the same open file
                fcntl.flock(room, fcntl.LOCK_UN)
                fcntl.flock(door, fcntl.LOCK_UN)

    def remove(self) -> None:
        """After the last test of all workers."""
        self._door.unlink(missing_ok=True)
        self._room.unlink(missing_ok=True)
