"""Whether there is room for the rings of a link: those of `shm` take two GiB of addresses, which a program
with a bound on its address space (`ulimit -v`) does not have.  `unix` needs a small part of that.

Only what a process may map is asked for here.  Whether the memory itself can be made shows when it is made.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable
from typing import Final

from bertha_socket.agent import memory
from bertha_socket.negotiation.pick import IMPLEMENTATIONS

#: Without rings there is `unix`.
WITHOUT_RINGS: Final = tuple(i for i in IMPLEMENTATIONS if i != "shm")


def available(pids: Iterable[int]) -> tuple[str, ...]:
    """The implementations for which all of these processes have room."""
    return IMPLEMENTATIONS if all(_has_room(pid) for pid in pids) else WITHOUT_RINGS


def _has_room(pid: int) -> bool:
    """Where the kernel does not say, the answer is yes: whoever cannot map a link is plain, and says why."""
    try:
        limit, _ = resource.prlimit(pid, resource.RLIMIT_AS)
        if limit == resource.RLIM_INFINITY:
            return True
        with open(f"/proc/{pid}/statm", "rb") as file:
            used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return True
    return limit - used >= memory.link_size()
