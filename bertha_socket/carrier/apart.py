"""Connections with chunnels that are not ours run in a process of their own, forked from the carrier.

A chunnel that raises, blocks, leaks or crashes so takes down its own connection, and nothing else.  The
carrier keeps the sockets open meanwhile, so that it can reset a connection whose process has died.  A carrier
that is killed leaves its processes, and their connections go on: then each sees for itself whether it blocks.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Final

from bertha_socket._native import ffi, lib
from bertha_socket.carrier.connection import Connection
from bertha_socket.carrier.loop import Loop
from bertha_socket.carrier.plans import log_text
from bertha_socket.carrier.process import BLOCKED_SECONDS, Processes, Progress, User, blocked_text
from bertha_socket.carrier.reset import reset
from bertha_socket.carrier.session import Session, State
from bertha_socket.carrier.shim import Status
from bertha_socket.chunnels import Context

log: Final = logging.getLogger(__name__)


def log_counts(context: Context) -> None:
    """What chunnels have counted in the end."""
    counts = context.counts
    if counts:
        line = " ".join(f"{name}={number}" for name, number in sorted(counts.items()))
        log.info("%s %s: ended, %s", context.side, context.peer, line)


def start(processes: Processes, connection: Connection, status: Status, user: User) -> None:
    """Gives the connection to a new process, which is `user`'s."""
    connection.detach()

    def gone(why: str, note: int) -> None:
        if why:
            _fail(connection, status, note == State.READY, why, State.RAISED)
        else:
            connection.tcp.close()
            connection.program.close(True)

    carrier = os.getpid()
    keep = {status.fd, connection.tcp.fileno()} | connection.program.descriptors()
    try:
        processes.start(
            lambda progress: _run(connection, status, progress, carrier),
            keep,
            user,
            gone,
            prepare=connection.program.unpack,
        )
    except OSError as error:
        why = f"no process for its chunnels: {error.strerror}"
        _fail(connection, status, False, why, State.REFUSED)
    else:
        connection.program.given()


def _fail(connection: Connection, status: Status, was_ready: bool, why: str, state: State) -> None:
    session = connection.session
    log.error("%s %s: %s", session.side, session.context.peer, why)
    ran = ""
    if session.recipe is not None and was_ready:
        ran = log_text(session.recipe.plan, session.side)
        why = "; ".join(filter(None, (why, session.recipe.plan.left_out)))
    status.write(state, ran, why)
    reset(connection.tcp.fileno())
    connection.tcp.close()
    connection.program.abandon()


class _Loop(Loop):
    """Says when it is at work: what is called then may be a chunnel's, whatever it is."""

    def __init__(self, progress: Progress, session: Session) -> None:
        super().__init__()
        self._progress = progress
        self._session = session

    def say(self, at_work: bool) -> None:
        """A piece of work begins, or all is done."""
        self._progress.say(at_work, self._session.state)

    def _call(self, ready: list[tuple[int, int]]) -> None:
        self.say(True)
        super()._call(ready)
        self.say(False)


def _run(old: Connection, status: Status, progress: Progress, carrier: int) -> None:
    """One connection to its end, in the new process."""
    session: Session = old.session
    loop = _Loop(progress, session)
    over: list[Connection] = []
    _watch(carrier, old, status, progress)

    def busy(_: bool) -> None:
        loop.say(True)  # also behind a piece: what follows is another one

    def settled() -> None:
        if session.counted is not None:
            status.change(session.counted.changes())

    connection = Connection(
        loop, old.tcp, old.program, session, over.append, busy, settled=settled, ending=status.end
    )
    connection.take_over(old)
    connection.run(session.go_on)
    loop.say(False)
    while not over:
        loop.turn()
    log_counts(session.context)


def _watch(carrier: int, connection: Connection, status: Status, progress: Progress) -> None:
    """Sees to it that this process ends if it blocks when there is no carrier any more."""
    try:
        pidfd = os.pidfd_open(carrier)
    except OSError:
        pidfd = -1
    if os.getppid() != carrier:  # it has ended already
        pidfd = -1
    place = ffi.new("struct orphan *")
    place.carrier, place.tcp = pidfd, connection.tcp.fileno()
    place.since, place.patience = progress.since, BLOCKED_SECONDS
    place.status, place.at, life = status.place
    place.life, place.state = int.from_bytes(life, sys.byteorder), State.RAISED
    place.detail = blocked_text().encode()
    error = lib.orphan_watch(place)
    if error:
        log.error("%s: its process cannot be watched: %s", connection.session.side, os.strerror(error))
