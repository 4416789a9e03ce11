"""The paper's API: `new(name, wrap(...)).listen(addr)` and `.connect(addr)`.

What is sent is bytes, messages or objects, as the uppermost chunnel says.

Both ends are such endpoints.  They negotiate on the connection itself, in the agents' own messages and with
the same choice of implementations, before its first byte of data; the chunnels then run here, in the
application.  Beneath, the connection is a `bertha_socket.socket`: on one host it is shared memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import select
import socket as _stdlib
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from bertha_socket import _drop_in, keys
from bertha_socket.agent.plans import BOTTOM
from bertha_socket.carrier.plans import Recipe, recipe_of
from bertha_socket.carrier.session import Mode, Session, State
from bertha_socket.chunnels import ChunnelType, Context, Implementation, Interface, all_types, get
from bertha_socket.dag import Chunnel, Dag, Need, wrap
from bertha_socket.negotiation.choose import choose
from bertha_socket.negotiation.machine import Failed, Initiator, Responder
from bertha_socket.negotiation.messages import Asked
from bertha_socket.negotiation.offer import Offer, offer_of
from bertha_socket.negotiation.plan import Plan, Refusal
from bertha_socket.negotiation.rules import Rules

__all__ = ["Connection", "Endpoint", "EndpointError", "Listener", "new"]

#: What an endpoint says first, so that it is told from a program that knows of no chunnels.
MAGIC: Final = b"\xbeBRN"
_SECONDS: Final = 10.0
_CHUNK: Final = 65536
Address = tuple[str, int]


class EndpointError(OSError):
    """There is no connection, because the ends do not agree on one."""

    def __init__(self, problem: str) -> None:
        super().__init__(errno.EPROTO, problem)


def new(name: str, dag: Chunnel | Dag | str | None = None) -> Endpoint:
    """An endpoint called `name` (in error messages), with a DAG: `wrap(...)`, its text, or none.

    An endpoint without a DAG takes the other end's.  Raises DagError (an OSError) for a text that is no DAG.
    """
    return Endpoint(name, Dag(()) if dag is None else wrap(dag))


class _Session(Session):
    """In an application the uppermost chunnel may take messages or objects too, and any code may run."""

    def _go_on(self) -> None:
        if self.recipe is not None:
            self.recipe = dataclasses.replace(self.recipe, top=_top(self.recipe))
        super()._go_on()


def _top(recipe: Recipe) -> Interface:
    for chunnel in recipe.plan.chunnels:
        if chunnel.implementation(recipe.side) is not None:
            kind = get(chunnel.type)
            if not kind.transparent:
                return kind.upper
    return Interface.STREAM


class Endpoint(NamedTuple):
    """What `new` makes."""

    name: str
    dag: Dag

    def listen(self, address: Address, backlog: int = 128) -> Listener:
        """Listens at (host, port); port 0: any, see `Listener.address`.  Raises OSError."""
        offer = self._offer()
        return Listener(self, offer, _drop_in.NAMES["create_server"](address, backlog=backlog))

    def connect(self, address: Address | Sequence[Address], timeout: float = _SECONDS) -> Connection:
        """Connects to (host, port), or to the first of several that answers, within `timeout` seconds each.

        Raises OSError: nobody there; EndpointError: the ends do not agree, and why.
        """
        several = [address] if isinstance(address, tuple) and isinstance(address[0], str) else list(address)
        if not several:
            raise OSError(errno.EDESTADDRREQ, f"{self.name}: no address given")
        problem: OSError | None = None
        for one in several:
            try:
                return self._connect(one, timeout)
            except EndpointError:
                raise
            except OSError as error:
                problem = error
        assert problem is not None
        raise problem

    def _connect(self, address: Any, timeout: float) -> Connection:
        offer = self._offer()
        sock: _stdlib.socket = _drop_in.NAMES["create_connection"](address, timeout=timeout)
        try:
            host, port = sock.getpeername()[:2]
            machine = Initiator(host.partition("%")[0], port, offer, keys.find())
            sock.sendall(MAGIC + machine.outgoing())
            while not machine.finished:
                machine.receive(_exactly(sock))
            event = machine.event()
            if not isinstance(event, Plan):
                raise EndpointError(f"{self.name}: {_why(event)}")
            return Connection(self.name, sock, "client", event, timeout)
        except BaseException:
            sock.close()
            raise

    def _offer(self) -> Offer:
        chunnels = Dag(tuple(c for c in self.dag.chunnels if c.type not in BOTTOM))
        has_key = keys.find() is not None

        def usable(kind: ChunnelType, implementation: Implementation) -> bool:
            if implementation.make is None or (kind.name == "encrypt" and not has_key):
                return False
            return implementation.probe() is None

        return offer_of(chunnels, all_types(), Rules(), usable)


def _why(event: object) -> str:
    if isinstance(event, Failed):
        return event.why
    return str(event) if isinstance(event, Refusal) else "the other end knows of no such endpoint"


def _exactly(sock: _stdlib.socket) -> bytes:
    """A single byte: what follows the negotiation belongs to the session.  It is short, and made once."""
    return sock.recv(1)


class Listener:
    """A listening endpoint; iterating over it gives its connections."""

    def __init__(self, endpoint: Endpoint, offer: Offer, sock: _stdlib.socket) -> None:
        self._endpoint = endpoint
        self._offer = offer
        self._sock = sock

    @property
    def address(self) -> Address:
        """Host and port."""
        host, port = self._sock.getsockname()[:2]
        return host, port

    def fileno(self) -> int:
        """For select and its kin: readable when there is somebody to accept."""
        return self._sock.fileno()

    def accept(self) -> Connection:
        """The next connection.  Blocks until its ends agree: at most 10 s after it was made.

        Raises EndpointError when they do not; the listener goes on.
        """
        sock, _ = self._sock.accept()
        try:
            sock.settimeout(_SECONDS)
            return self._accepted(sock)
        except EndpointError:
            sock.close()
            raise
        except OSError as error:
            sock.close()
            problem = f"{self._endpoint.name}: the client left, or said nothing for {_SECONDS:g} s ({error})"
            raise EndpointError(problem) from error
        except BaseException:
            sock.close()
            raise

    def _accepted(self, sock: _stdlib.socket) -> Connection:
        name = self._endpoint.name
        first = b""
        while len(first) < len(MAGIC) and MAGIC.startswith(first):
            data = sock.recv(1)
            if not data:
                break
            first += data
        if not first.startswith(MAGIC):
            required = [c.type for c in self._offer.chunnels if c.need is Need.REQUIRE]
            if required:
                raise EndpointError(f"{name}: the client knows of no chunnels, and {required[0]} is required")
            return Connection(name, sock, "server", None, _SECONDS, first)
        machine = Responder(keys.find())
        plan = None
        while not machine.finished:
            machine.receive(_exactly(sock))
            event = machine.event()
            if isinstance(event, Asked):
                answer = choose(event.offer, self._offer)
                machine.answer(answer)
                plan = answer if isinstance(answer, Plan) else None
                event = None if plan is not None else answer
            sock.sendall(machine.outgoing())
            if event is not None:
                raise EndpointError(f"{name}: {_why(event)}")
        if plan is None:
            raise EndpointError(f"{name}: the client did not ask for a plan")
        return Connection(name, sock, "server", plan, _SECONDS)

    def __iter__(self) -> Iterator[Connection]:
        while True:
            with contextlib.suppress(EndpointError):
                yield self.accept()

    def close(self) -> None:
        """Listens no more; connections stay."""
        self._sock.close()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Connection:
    """One connection: `send` and `recv` take and give bytes, messages or objects, as the plan's uppermost
    chunnel says.  Not for two threads at once."""

    def __init__(
        self,
        name: str,
        sock: _stdlib.socket,
        side: str,
        plan: Plan | None,
        timeout: float,
        early: bytes = b"",
    ) -> None:
        #: What was agreed; None with an end that knows of no chunnels.
        self.plan = plan
        self.interface = Interface.STREAM
        self._name = name
        self._sock = sock
        self._early = early
        self._session: _Session | None = None
        sock.setsockopt(_stdlib.IPPROTO_TCP, _stdlib.TCP_NODELAY, 1)
        if plan is not None:
            key = keys.find()
            data = plan.encode()
            self.interface = _top(recipe_of(data, side))
            material = keys.material(key) if key is not None else None
            context = Context(side=side, material=material, peer=_text(sock.getpeername()))
            mode = Mode.PLAN if side == "client" else Mode.REQUIRED
            self._session = _Session(mode, context, key, data)
            self._agree(self._session, data, timeout)
        sock.settimeout(None)

    def _agree(self, session: _Session, data: bytes, timeout: float) -> None:
        until = time.monotonic() + timeout
        session.start()
        while True:
            if session.question is not None:
                session.answer(None if session.question == data else "this is not the plan that was agreed")
            if session.apart:
                session.go_on()
            self._flush()
            if session.state is State.READY:
                return
            if session.over:
                raise EndpointError(f"{self._name}: {session.detail}")
            if not self._read(session, until):
                raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    # -- data ---------------------------------------------------------------------------------------------

    def send(self, item: Any) -> None:
        """Sends all of `item`: bytes (or a message, or an object).  Raises OSError."""
        if self._session is None:
            self._sock.sendall(item)
            return
        while not self._session.wants_program and not self._session.over:
            self._read(self._session, None)
        self._session.program(item)
        self._flush()
        self._check(self._session)

    def recv(self, timeout: float | None = None) -> Any:
        """What comes next: bytes as they come, a message, or an object.  Raises EOFError at the end,
        TimeoutError after `timeout` seconds, other OSErrors when the connection is cut off or wrong."""
        until = None if timeout is None else time.monotonic() + timeout
        session = self._session
        if session is None:
            self._sock.settimeout(timeout)
            data, self._early = self._early or self._sock.recv(_CHUNK), b""
            self._sock.settimeout(None)
            if not data:
                raise EOFError(f"{self._name}: the other end sends no more")
            return data
        while not session.to_program:
            self._check(session)
            if session.program_ended:
                raise EOFError(f"{self._name}: the other end sends no more")
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
        session = self._session
        with contextlib.suppress(OSError):
            if session is not None and not session.over and not session.network_ended:
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
