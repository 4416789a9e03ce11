"""Processes that make one connection for one exchange, and end: a shell script's, say, or PHP's.

Two answers of the agent and a link's memory cost such a process more than it takes to do its work over TCP.
So the agent counts them, by what they were called by, and lets the shims of the next ones know by its
directory (native/core/brief.c): they stay plain, and need not ask.  That is said for a second at a time, so
that now and then one comes again; one that takes longer, or makes more connections, ends it.

Only where nobody has a policy file: a process that is not seen could not be told what that says.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from typing import Final, NamedTuple

from bertha_socket.agent import memory, messages
from bertha_socket.agent.messages import DagNeed
from bertha_socket.agent.model import Link, Process
from bertha_socket.policy import EMPTY
from bertha_socket.reasons import Reason as Why

__all__ = ["Brief"]

#: So many in a row, and for how long that is said (seconds).
_RUN: Final = 32
_SAID: Final = 1.0
#: Of each: from its greeting to its end (seconds), and bytes by the rings.
_SECONDS: Final = 0.05
_BYTES: Final = 64 << 10
_KINDS_MAX: Final = 256


class _Kind(NamedTuple):
    listener: int
    uid: int
    words: tuple[str, ...]


class Brief:
    """Counts them."""

    def __init__(self, directory: memory.Directory) -> None:
        self._directory = directory
        #: How many in a row; those seen last come last.
        self._runs: OrderedDict[_Kind, int] = OrderedDict()

    def ended(self, process: Process, seconds: float) -> None:
        """The process is gone, `seconds` after it came, and its links are still there."""
        if not process.links or not _is_seen(process):
            return
        words = process.hello.argv[: memory.BRIEF_WORDS]
        alone = len(process.links) == 1
        for link in process.links.values():
            kind = _Kind(link.listener.id, process.peer.uid, words)
            run = self._runs.pop(kind, 0)
            if alone and seconds < _SECONDS and _is_brief(link):
                self._runs[kind] = run = min(run + 1, _RUN)
                if run == _RUN:
                    self._tell(link, kind)
        while len(self._runs) > _KINDS_MAX:
            self._runs.popitem(last=False)

    def _tell(self, link: Link, kind: _Kind) -> None:
        args = b"".join(os.fsencode(word) + b"\0" for word in kind.words)
        until = time.monotonic_ns() + int(_SAID * 1e9)
        for index in link.listener.entries.values():
            self._directory.tell_brief(index, kind.listener, kind.uid, args, until)


def _is_seen(process: Process) -> bool:
    """Whether it would get what any other process of its user gets."""
    return (
        process.policy is EMPTY
        and not process.hello.policy
        and not process.registered
        and process.offer is None
        and not process.listeners
    )


def _is_brief(link: Link) -> bool:
    plan, listener = link.plan, link.listener
    if listener.policy is not EMPTY or listener.need != DagNeed.NONE or listener.where.proto != "tcp":
        return False
    if plan.implementation != messages.IMPL_SHM or plan.reason != Why.NONE:
        return False
    try:
        connections, moved = memory.link_use(link.fd)
    except OSError:
        return False
    return connections == 1 and moved <= _BYTES
