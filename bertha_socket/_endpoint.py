"""The paper's API: `new(name, wrap(...)).listen(addr)` and `.connect(addr)`.

What is sent is bytes, messages or objects, as the uppermost chunnel says.  The chunnels run here, in the
application.

With an agent, the endpoint is like any program under bertha-run: the agents agree on a plan, the client's
first bytes name it (carrier/preamble.py), and the other end may be such a program with its carrier.  Without
one, or where nobody answers for the other end, endpoints negotiate on the connection itself, in the agents'
own messages and with the same choice, before its first byte of data.  Who does not answer as an endpoint is
an ordinary server: connected to anew and plainly if nothing is required, else refused.  Beneath, the
connection is a `bertha_socket.socket`: on one host it is shared memory.  Where the DAG says `tcp()`, it is
stdlib's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket as _stdlib
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from bertha_socket import _drop_in, keys
from bertha_socket._bottom import check as check_bottom
from bertha_socket._bottom import need_of_tcp, proto_of
from bertha_socket._endpoint_agent import Agent
from bertha_socket._endpoint_connection import SECONDS, Connection, EndpointError
from bertha_socket._endpoint_datagram_connection import DatagramConnection
from bertha_socket._endpoint_datagrams import DatagramListener
from bertha_socket._endpoint_datagrams import connect as connect_datagrams
from bertha_socket._endpoint_log import note_refusal, refused
from bertha_socket._endpoint_offer import Terms, Wanted, required_of, wanted_for
from bertha_socket.agent.messages import Verdict
from bertha_socket.carrier import preamble
from bertha_socket.carrier.session import SILENCE_SECONDS, Mode
from bertha_socket.dag import Chunnel, Dag, wrap
from bertha_socket.negotiation.choose import choose
from bertha_socket.negotiation.machine import Failed, Initiator, Responder
from bertha_socket.negotiation.messages import Asked
from bertha_socket.negotiation.plan import Plan, Refusal

__all__ = [
    "Connection",
    "DatagramConnection",
    "DatagramListener",
    "Endpoint",
    "EndpointError",
    "Listener",
    "new",
]

#: What an endpoint says and answers first where there is no plan, so that it is told from one that knows of
#: no chunnels.  The line's end makes servers that speak in lines answer at once that they do not understand.
MAGIC: Final = b"\xbeBRN\r\n"
#: How long a server may say nothing until it is taken for an ordinary one, where nothing is required.
_STRANGER_SECONDS: Final = 3.0
#: How long it is remembered that one has answered as an ordinary one, and of how many.
_STRANGE_FOR_SECONDS: Final = 60.0
_STRANGERS_MAX: Final = 256
_CHUNK: Final = 65536
Address = tuple[str, int]


def new(name: str, dag: Chunnel | Dag | str | None = None) -> Endpoint:
    """An endpoint called `name` (in error messages), with a DAG: `wrap(...)`, its text, or none.

    An endpoint without a DAG takes the other end's.  Raises DagError (an OSError) for a text that is no DAG,
    and for one whose `tcp()`, `udp()` or `local_or_remote()` is not at the right end.  One with `reliable()`
    in it, or `udp()` at its right end, is about datagrams.
    """
    found = Dag(()) if dag is None else wrap(dag)
    check_bottom(found, proto_of(found) or "tcp")
    return Endpoint(name, found)


class Endpoint(NamedTuple):
    """What `new` makes."""

    name: str
    dag: Dag

    def listen(self, address: Address, backlog: int = 128) -> Listener | DatagramListener:
        """Listens at (host, port); port 0: any, see `Listener.address`.  Raises OSError."""
        if proto_of(self.dag) == "udp":
            return DatagramListener(self.name, self.dag, address, backlog)
        return Listener(self.name, self.dag, address, backlog)

    def connect(
        self, address: Address | Sequence[Address], timeout: float = SECONDS
    ) -> Connection | DatagramConnection:
        """Connects to (host, port), or to the first of several that answers, within `timeout` seconds each.

        An endpoint without a DAG takes the other end's: a listener of streams is looked for first, and where
        there is none one of datagrams.

        Raises OSError: nobody there; EndpointError: the ends do not agree, and why.
        """
        several = _addresses(address)
        if not several:
            raise OSError(errno.EDESTADDRREQ, f"{self.name}: no address given")
        problem: OSError | None = None
        for host, port in several:
            try:
                found = _stdlib.getaddrinfo(host, port, type=_stdlib.SOCK_STREAM)
            except OSError as error:
                problem = error
                continue
            for family, _, _, _, where in found:
                try:
                    return self._reach(family, (str(where[0]), int(where[1])), timeout)
                except EndpointError:
                    raise
                except OSError as error:
                    problem = error
        assert problem is not None
        raise problem

    def _reach(self, family: int, address: Address, timeout: float) -> Connection | DatagramConnection:
        proto = proto_of(self.dag)
        if proto == "udp":
            return connect_datagrams(self.name, self.dag, family, address, timeout, sure=True)
        try:
            return self._connect(family, address, timeout)
        except ConnectionRefusedError as refused:
            if proto is not None:
                raise
            try:
                return connect_datagrams(self.name, self.dag, family, address, timeout, sure=False)
            except EndpointError:
                raise
            except OSError:  # what it was about is not known, so what is said is what streams say
                raise refused from None

    def _connect(self, family: int, address: Address, timeout: float) -> Connection:
        wanted = wanted_for(self.name, self.dag, "client", address)
        agent = Agent.find(self.name, wanted.offer)
        if agent is None:
            return self._negotiate(wanted, address, timeout)
        with contextlib.closing(agent):
            for fresh in (False, True):
                advice = agent.advice(address[0], address[1], family, fresh=fresh)
                if advice.verdict == Verdict.NOBODY:
                    return self._negotiate(wanted, address, timeout)
                if advice.verdict == Verdict.REFUSED:
                    refused("tcp", address, advice.detail)
                    raise EndpointError(f"{self.name}: {advice.detail}")
                plan = Plan.decode(advice.plan) if advice.verdict == Verdict.PLAN else None
                try:
                    mode = Mode.PLAN if plan is not None else None
                    how = plan, mode, wanted.material
                    return self._opened(address, timeout, *how, advice.left_out)
                except EndpointError:
                    if fresh or plan is None:
                        raise  # else the server has another policy by now: what does it say today?
        raise AssertionError("not reached")

    def _opened(
        self,
        address: Address,
        timeout: float,
        plan: Plan | None,
        mode: Mode | None,
        material: Mapping[str, str] | None = None,
        left_out: Callable[[], str] = str,
    ) -> Connection:
        sock = self._dial(address, timeout)
        try:
            return Connection(
                *(self.name, sock, "client"),
                plan=plan,
                mode=mode,
                material=material,
                timeout=timeout,
                left_out=left_out,
            )
        except BaseException:
            sock.close()
            raise

    def _dial(self, address: Address, timeout: float) -> _stdlib.socket:
        if _kernels(self.dag):
            return _stdlib.create_connection(address, timeout=timeout)
        with _drop_in.own_chunnels():
            sock: _stdlib.socket = _drop_in.NAMES["create_connection"](address, timeout=timeout)
            return sock

    def _negotiate(self, wanted: Wanted, address: Address, timeout: float) -> Connection:
        """Without agents: on the connection itself, with an end that is such an endpoint too; plainly with
        one that is not, if nothing is required."""
        required = required_of(wanted.offer)
        if not required and _is_stranger(address):
            return self._opened(address, timeout, None, None, left_out=wanted.alone)
        try:
            return self._agreed(wanted, address, timeout, not required)
        except _Stranger as stranger:
            where = f"{self.name}: {address[0]} port {address[1]}"
            if required:
                problem = f"{where} {stranger}, and {required[0]} is required"
                if stranger.silent:  # there may be another address
                    raise TimeoutError(errno.ETIMEDOUT, problem) from None
                raise EndpointError(f"{problem}: run bertha_socket.new() or bertha-run there") from None
            if stranger.sure:
                _note_stranger(address)
        return self._opened(address, timeout, None, None, left_out=wanted.alone)

    def _agreed(self, wanted: Wanted, address: Address, timeout: float, impatient: bool) -> Connection:
        """Raises _Stranger: there is no endpoint."""
        sock = self._dial(address, timeout)
        try:
            host, port = sock.getpeername()[:2]
            machine = Initiator(host.partition("%")[0], port, wanted.offer, keys.find())
            sock.settimeout(min(timeout, _STRANGER_SECONDS) if impatient else timeout)
            _greet(sock, MAGIC + machine.outgoing())
            sock.settimeout(timeout)
            while not machine.finished:
                machine.receive(_exactly(sock))
            event = machine.event()
            if not isinstance(event, Plan):
                note_refusal(sock.fileno(), _why(event))
                raise EndpointError(f"{self.name}: {_why(event)}")
            return Connection(
                self.name,
                sock,
                "client",
                plan=event,
                mode=Mode.PLAN,
                material=wanted.material,
                timeout=timeout,
            )
        except BaseException:
            sock.close()
            raise


def _kernels(dag: Dag) -> bool:
    """Whether the kernel's TCP is to carry the bytes; it can always be had."""
    return need_of_tcp(dag) is not None


def _addresses(given: Address | Sequence[Address]) -> list[Address]:
    if isinstance(given, tuple) and len(given) > 1 and isinstance(given[0], str):
        return [(str(given[0]), int(given[1]))]
    return [(str(one[0]), int(one[1])) for one in given if not isinstance(one, (str, int))]


class _Stranger(Exception):
    """A server that does not answer as an endpoint.  `sure`: by what it said; `silent`: it said nothing."""

    def __init__(self, what: str, *, sure: bool = False, silent: bool = False) -> None:
        super().__init__(what)
        self.sure = sure
        self.silent = silent


_strangers: dict[Address, float] = {}


def _is_stranger(address: Address) -> bool:
    return _strangers.get(address, 0.0) > time.monotonic()


def _note_stranger(address: Address) -> None:
    if len(_strangers) >= _STRANGERS_MAX:
        _strangers.clear()
    _strangers[address] = time.monotonic() + _STRANGE_FOR_SECONDS


def _greet(sock: _stdlib.socket, greeting: bytes) -> None:
    """Raises _Stranger: the other end does not greet in return."""
    answer = b""
    try:
        sock.sendall(greeting)
        while answer != MAGIC:
            data = sock.recv(len(MAGIC) - len(answer))
            answer += data
            if not data or not MAGIC.startswith(answer):
                what = "answers as one that knows of no chunnels" if answer else "ended the connection"
                raise _Stranger(what, sure=bool(answer))
    except TimeoutError:
        raise _Stranger("did not answer in time", silent=True) from None
    except ConnectionError as error:
        raise _Stranger(f"ended the connection ({error.strerror})") from None


def _why(event: object) -> str:
    if isinstance(event, Failed):
        return event.why
    return str(event) if isinstance(event, Refusal) else "the other end knows of no such endpoint"


def _exactly(sock: _stdlib.socket) -> bytes:
    """A single byte: what follows the negotiation belongs to the session.  It is short, and made once."""
    return sock.recv(1)


class _Ended:
    """What wakes threads that sleep in poll: readable from `set` on.  Its descriptor lives as long as it."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._pid = os.getpid()
        weakref.finalize(self, os.close, self._fd)

    def fileno(self) -> int:
        if self._pid != os.getpid():  # the parent's: what it closes is open here
            weakref.finalize(self, os.close, fd := os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            self._fd, self._pid = fd, os.getpid()
        return self._fd

    def set(self) -> None:
        os.eventfd_write(self.fileno(), 1)


class Listener:
    """A listening endpoint; iterating over it gives its connections."""

    def __init__(self, name: str, dag: Dag, address: Address, backlog: int) -> None:
        """Raises OSError."""
        self._name, self._dag = name, dag
        self._agent: Agent | None = None
        kernels = _kernels(dag)
        with contextlib.nullcontext() if kernels else _drop_in.own_listening():
            plain = _stdlib.create_server(address, backlog=backlog)
        try:
            self._terms = Terms(name, dag, (address[0], plain.getsockname()[1]))
            # First as one whose chunnels run here; then the library in this process may tell of it as well,
            # so that connections from this host are shared memory.
            self._tell(plain)
        except BaseException:
            plain.close()
            raise
        self._sock: _stdlib.socket = plain
        if not kernels:
            self._sock = _drop_in.NAMES["socket"](fileno=plain.detach())
            self._sock.listen(backlog)
        self._sock.setblocking(False)
        self._closed = False
        self._ended = _Ended()
        self._telling = threading.Lock()

    def _tell(self, sock: _stdlib.socket) -> None:
        agent = Agent.find(self._name, self._terms.offer)
        try:
            if agent is not None and agent.register(sock):
                agent, self._agent = None, agent
        except OSError:
            pass  # it is served all the same, to endpoints that negotiate on the connection
        finally:
            if agent is not None:
                agent.close()

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
        sock = self._next()
        try:
            sock.settimeout(SECONDS)
            return self._accepted(sock)
        except EndpointError:
            sock.close()
            raise
        except OSError as error:
            sock.close()
            problem = f"{self._name}: the client left, or said nothing for {SECONDS:g} s ({error})"
            raise EndpointError(problem) from error
        except BaseException:
            sock.close()
            raise

    def _next(self) -> _stdlib.socket:
        while True:
            self._sleep()
            with contextlib.suppress(BlockingIOError):  # another thread has taken him
                return self._sock.accept()[0]

    def _sleep(self) -> None:
        """Until there is somebody.  An agent that came anew is told of us before he is taken, or the library
        in this process would tell it of a listener without chunnels.  Raises OSError: we are closed."""
        agent = self._agent
        # By number, which another file may have before we sleep: then `ended` is readable, too.
        numbers = [self._sock.fileno(), self._ended.fileno()]
        if agent is not None:
            numbers.append(agent.fileno())
        if min(numbers) >= 0 and not self._closed:
            poll = select.poll()
            for number in numbers:
                poll.register(number, select.POLLIN)
            poll.poll()
        with self._telling:  # which close() takes before it closes the agent and the socket
            if self._closed:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            if self._agent is not None and self._agent.gone():
                self._agent.close()
                self._agent = None
            if self._agent is None:
                self._tell(self._sock)

    def _accepted(self, sock: _stdlib.socket) -> Connection:
        here = sock.getsockname()[:2]
        required = self._terms.required(*here)
        first = self._opening(sock, quiet=not required)
        if first.startswith(MAGIC):
            return self._negotiated(sock, first[len(MAGIC) :])
        if required and first and not preamble.may_be_ours(first):
            raise EndpointError(
                f"{self._name}: the client knows of no chunnels, and {required[0]} is required"
            )
        mode = Mode.REQUIRED if required else Mode.MAYBE
        judge = self._terms.judge(*here)
        material = self._terms.material(*here)
        return Connection(
            *(self._name, sock, "server"),
            mode=mode,
            material=material,
            judge=judge,
            early=first,
            left_out=lambda: self._terms.alone(*here),
        )

    def _opening(self, sock: _stdlib.socket, *, quiet: bool) -> bytes:
        """What the client says first; who waits for our first word says nothing, where he may (`quiet`)."""
        if quiet:
            sock.settimeout(SILENCE_SECONDS)
        first = b""
        with contextlib.suppress(TimeoutError):
            while len(first) < len(MAGIC) and MAGIC.startswith(first[: len(MAGIC)]):
                data = sock.recv(_CHUNK)
                if not data:
                    break
                first += data
        sock.settimeout(SECONDS)
        return first

    def _negotiated(self, sock: _stdlib.socket, data: bytes) -> Connection:
        """`data`: what came behind the magic; the client waits for our answer before it says more."""
        machine = Responder(keys.find())
        plan: bytes | None = None
        greeting = MAGIC
        while not machine.finished:
            machine.receive(data or sock.recv(_CHUNK))
            data = b""
            event = machine.event()
            if isinstance(event, Asked):
                answer = choose(event.offer, self._terms.at(*sock.getsockname()[:2]))
                machine.answer(answer)
                plan = answer.encode() if isinstance(answer, Plan) else None
                event = None if plan is not None else answer
            if said := machine.outgoing():
                sock.sendall(greeting + said)
                greeting = b""
            if event is not None:
                note_refusal(sock.fileno(), _why(event))
                raise EndpointError(f"{self._name}: {_why(event)}")
        if plan is None:
            raise EndpointError(f"{self._name}: the client did not ask for a plan")
        agreed = plan

        def same(shown: bytes) -> str | None:
            return None if shown == agreed else "this is not the plan that was agreed"

        material = self._terms.material(*sock.getsockname()[:2])
        return Connection(self._name, sock, "server", mode=Mode.REQUIRED, material=material, judge=same)

    def __iter__(self) -> Iterator[Connection]:
        while True:
            with contextlib.suppress(EndpointError):
                yield self.accept()

    def serve(self) -> None:
        """For a DAG that begins with `shard`: moves messages between clients and its choices until this is
        closed (by another thread)."""
        from bertha_socket._endpoint_shard import serve

        serve(self, self._name, self._dag)

    def close(self) -> None:
        """Listens no more; connections stay.  Another thread that waits in `accept` has an OSError."""
        self._closed = True
        self._ended.set()
        with self._telling:
            if self._agent is not None:
                self._agent.close()
        self._sock.close()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
