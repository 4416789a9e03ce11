"""One connection of an endpoint (`bertha_socket.new`): the chunnels run here, in the application."""

from __future__ import annotations

import _socket
import contextlib
import dataclasses
import errno
import logging
import os
import select
import socket as _stdlib
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from bertha_socket import _door, keys
from bertha_socket._direct import Pipe
from bertha_socket._endpoint_log import note_refusal
from bertha_socket.carrier.plans import Recipe, log_text
from bertha_socket.carrier.session import Mode, Session, State
from bertha_socket.chunnels import Context, Interface, get
from bertha_socket.negotiation.plan import Plan

__all__ = ["SECONDS", "Connection", "EndpointError", "Judge"]

log: Final = logging.getLogger(__name__)

#: In which both ends must have agreed.
SECONDS: Final = 10.0
_CHUNK: Final = 65536
#: struct linger, by which closing a connection resets it.
_RESETS: Final = struct.pack("ii", 1, 0)
#: About a plan that a client shows: None, or one line why it may not run.
Judge = Callable[[bytes], str | None]


class EndpointError(OSError):
    """There is no connection, because the ends do not agree on one."""

    def __init__(self, problem: str) -> None:
        super().__init__(errno.EPROTO, problem)


class _Session(Session):
    """In an application the uppermost chunnel may take messages or objects too, and any code may run."""

    def _go_on(self) -> None:
        if self.recipe is not None:
            self.recipe = dataclasses.replace(self.recipe, top=_top(self.recipe))
        super()._go_on()

    @property
    def bare(self) -> bool:
        """It does nothing to the bytes, and has nothing to say any more."""
        if self.over or self.program_ended or self.network_ended:
            return False
        if self.state == State.PLAIN:
            return self.sniffed
        recipe = self.recipe
        return (
            self.state == State.READY
            and recipe is not None
            and not (recipe.outer or recipe.inner)
            and recipe.top == Interface.STREAM
        )


def _top(recipe: Recipe) -> Interface:
    for chunnel in recipe.plan.chunnels:
        if chunnel.implementation(recipe.side) is not None:
            kind = get(chunnel.type)
            if not kind.transparent:
                return kind.upper
    return Interface.STREAM


class Connection:
    """One connection: `send` and `recv` take and give bytes, messages or objects, as the plan's uppermost
    chunnel says.  Not for two threads at once."""

    def __init__(
        self,
        name: str,
        sock: _stdlib.socket,
        side: str,
        *,
        plan: Plan | None = None,
        mode: Mode | None = None,
        material: Mapping[str, str] | None = None,
        judge: Judge | None = None,
        early: bytes = b"",
        timeout: float = SECONDS,
        left_out: Callable[[], str] = str,
    ) -> None:
        """`mode`: how the plan is agreed on; None: there is none.  `material`: for `encrypt`.  `judge`: of
        the plan that a client shows.  `early`: what came already.  `left_out`: for the log, where there is no
        plan."""
        #: What was agreed; None with an end that knows of no chunnels.
        self.plan = plan
        self.interface = Interface.STREAM
        self._name = name
        self._sock = sock
        self._early = early
        self._session: _Session | None = None
        self._pipe: Pipe | None = None
        sock.setsockopt(_stdlib.IPPROTO_TCP, _stdlib.TCP_NODELAY, 1)
        if mode is not None:
            key = keys.find()
            context = Context(side, material, _text(sock.getpeername()), _text(sock.getsockname()))
            data = plan.encode() if plan is not None else b""
            self._session = _Session(mode, context, key, data, self._changed)
            self._agree(self._session, judge, timeout)
        said = self.plan.left_out if self.plan is not None else left_out()
        if said or (self.plan is not None and self.plan.chunnels):
            chunnels = log_text(self.plan, side) if self.plan is not None else "[]"
            _door.name_chunnels(sock.fileno(), chunnels, said)
        sock.settimeout(None)
        self._go_direct()

    def _agree(self, session: _Session, judge: Judge | None, timeout: float) -> None:
        until = time.monotonic() + timeout
        session.start()
        if self._early:
            early, self._early = self._early, b""
            session.network(early)
        while True:
            if session.question is not None:
                session.answer("no plan was asked for" if judge is None else judge(session.question))
            if session.apart:
                session.go_on()
            self._flush()
            if session.state in (State.READY, State.PLAIN):
                break
            if session.over:
                note_refusal(self._sock.fileno(), session.detail)
                raise EndpointError(f"{self._name}: {session.detail}")
            if not self._read(session, until):
                raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        if session.recipe is not None:
            self.plan = session.recipe.plan
            self.interface = session.recipe.top

    # -- data ---------------------------------------------------------------------------------------------

    def send(self, item: Any) -> None:
        """Sends all of `item`: bytes (or a message, or an object).  Raises OSError."""
        session = self._session
        if session is None:
            self._sock.sendall(item)
            return
        while not session.wants_program and not session.over:
            self._read(session, None)
        session.program(item)
        self._flush()
        self._check(session)

    def recv(self, timeout: float | None = None) -> Any:
        """What comes next: bytes as they come, a message, or an object.  Raises EOFError at the end,
        TimeoutError after `timeout` seconds, other OSErrors when the connection is cut off or wrong."""
        session = self._session
        if session is None:
            return self._plain_recv(timeout)
        until = None if timeout is None else time.monotonic() + timeout
        while not session.to_program:
            self._check(session)
            if session.program_ended:
                raise EOFError(self._ended)
            if not self._read(session, until):
                raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
            self._flush()
        item = session.to_program.popleft()
        if isinstance(item, (bytes, bytearray, memoryview)):
            session.program_size -= len(item)
            return bytes(item)
        session.program_size -= 1
        return item

    def end(self) -> None:
        """Sends no more; what comes can still be received."""
        if self._session is None:
            self._sock.shutdown(_stdlib.SHUT_WR)
            return
        self._session.program_end()
        self._flush()

    def close(self) -> None:
        """Ends both directions, telling the other end."""
        if self._pipe is not None:
            self._pipe.close()  # its methods are this connection's, and may have been kept by somebody
        session = self._session
        with contextlib.suppress(OSError):
            if session is not None and session.state in (State.RESET, State.RAISED):  # it is no whole one
                self._sock.setsockopt(_stdlib.SOL_SOCKET, _stdlib.SO_LINGER, _RESETS)
            elif session is not None and not session.over and not session.network_ended:
                self.end()
        if session is not None:
            session.close()
        self._sock.close()

    def fileno(self) -> int:
        """For select and its kin; what has been received already may hold more than the descriptor shows."""
        return self._sock.fileno()

    def __iter__(self) -> Iterator[Any]:
        with contextlib.suppress(EOFError):
            while True:
                yield self.recv()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- inside -------------------------------------------------------------------------------------------

    def _changed(self) -> None:
        """What a chunnel raises that it should not ends its own connection; the program may be told of it as
        of any other end, and its author wants to know where it was."""
        session = self._session
        if session is not None and session.state is State.RAISED:
            peer = session.context.peer
            log.error("%s: %s %s: %s", self._name, session.side, peer, session.traceback)

    def _go_direct(self) -> None:
        """Where nothing is done to the bytes, the session goes, and `send` and `recv` become calls in C; not
        where somebody has put a class of his own beneath the socket, as gevent does."""
        session = self._session
        if session is not None:
            if not session.bare:
                return
            self._flush()
            self._early += b"".join(session.to_program)
            self._session = None
            session.close()
        if type(self._sock).recv is _socket.socket.recv:
            self._pipe = Pipe(self._sock.fileno(), self._ended)
            vars(self)["send"] = self._pipe.send
            if not self._early:
                vars(self)["recv"] = self._pipe.recv

    @property
    def _ended(self) -> str:
        return f"{self._name}: the other end sends no more"

    def _plain_recv(self, timeout: float | None) -> bytes:
        if self._early:
            early, self._early = self._early, b""
            if self._pipe is not None:
                vars(self)["recv"] = self._pipe.recv
            return early
        if self._pipe is not None:
            return self._pipe.recv(timeout)
        if timeout is None:  # setting one is a system call
            data = self._sock.recv(_CHUNK)
        else:
            self._sock.settimeout(timeout)
            try:
                data = self._sock.recv(_CHUNK)
            finally:
                self._sock.settimeout(None)
        if not data:
            raise EOFError(self._ended)
        return data

    def _check(self, session: _Session) -> None:
        if session.over and not session.to_program:
            raise EndpointError(f"{self._name}: {session.detail}")

    def _flush(self) -> None:
        session = self._session
        assert session is not None
        while session.to_network:
            data = session.to_network.popleft()
            session.network_size -= len(data)
            self._sock.sendall(data)
        if session.network_ended and not self._shut:
            self._shut = True
            self._sock.shutdown(_stdlib.SHUT_WR)

    _shut = False

    def _read(self, session: _Session, until: float | None) -> bool:
        """Takes what the network brings, or lets a deadline pass; False: `until` has passed."""
        while True:
            now = time.monotonic()
            times = [t for t in (until, session.deadline()) if t is not None]
            wait = max(0.0, min(times) - now) if times else None
            readable, _, _ = select.select([self._sock], [], [], wait)
            if readable:
                data = self._sock.recv(_CHUNK)
                if data:
                    session.network(data)
                else:
                    session.network_end()
                return True
            now = time.monotonic()
            deadline = session.deadline()
            if deadline is not None and deadline <= now:
                session.tick(now)
                return True
            if until is not None and until <= now:
                return False


def _text(address: Any) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
