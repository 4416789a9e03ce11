"""Datagram endpoints: `new(name, wrap(... | reliable()))`, or with `udp()` at the right end.

As for streams (`_endpoint`), the agents agree where there are any, and the two ends on the socket itself
else: the client asks for a plan (ASK), the server answers (ANSWER) and remembers nothing.  From then on both
speak what carriers of datagrams speak (carrier/envelope.py), so the other end may be a program under
bertha-run whose rule has `proto = "udp"`.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from typing import Final

from bertha_socket import keys
from bertha_socket._endpoint_agent import Agent
from bertha_socket._endpoint_connection import EndpointError
from bertha_socket._endpoint_datagram_connection import DatagramConnection, endpoint_recipe
from bertha_socket._endpoint_log import refused
from bertha_socket._endpoint_loop import SharedLoop
from bertha_socket._endpoint_offer import Terms, Wanted, has_foreign, required_of, wanted_for
from bertha_socket._endpoint_peers import EndpointPeers
from bertha_socket.agent.messages import Verdict
from bertha_socket.carrier import envelope
from bertha_socket.carrier.control import Secrets
from bertha_socket.carrier.envelope import Kind
from bertha_socket.carrier.peers import BIGGEST
from bertha_socket.carrier.session import Mode
from bertha_socket.dag import Dag
from bertha_socket.negotiation.choose import choose
from bertha_socket.negotiation.machine import NO_LISTENER, Failed, Initiator, Responder
from bertha_socket.negotiation.messages import Asked
from bertha_socket.negotiation.plan import Plan, Refusal

__all__ = ["DatagramListener", "connect"]

#: How long a server may say nothing until it is taken for an ordinary one, where nothing is required.
_STRANGER_SECONDS: Final = 3.0
#: The same where not even that is known that it is about datagrams: a refused stream was tried before.
_UNSURE_SECONDS: Final = 1.0
#: Seconds after which a question is asked again (doubled each time).
_AGAIN: Final = 0.25
#: Seconds after which a listener whose agent has ended looks for another one.
_AGENT_SECONDS: Final = 1.0
#: ... and for how long, without being asked to accept anew.
_LOOKS_SECONDS: Final = 30.0
Address = tuple[str, int]


def _socket(family: int) -> socket.socket:
    """A UDP socket that the preload library, where it is in this process, leaves alone: it looks after those
    that `socket()` gave, so the duplicate of one is the kernel's."""
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as first:
        return first.dup()


def connect(
    name: str, dag: Dag, family: int, address: Address, timeout: float, *, sure: bool
) -> DatagramConnection:
    """To a numeric address.  `sure`: the DAG says that it is about datagrams; else only who says so too is
    taken.  Raises OSError: nobody there, or the ends do not agree (EndpointError)."""
    wanted = wanted_for(name, dag, "client", address, "udp")
    agent = Agent.find(name, wanted.offer)
    if agent is None:
        return _negotiate(name, wanted, family, address, timeout, sure)
    with contextlib.closing(agent):
        for fresh in (False, True):
            advice = agent.advice(address[0], address[1], family, fresh=fresh, datagrams=True)
            if advice.verdict == Verdict.NOBODY:
                return _negotiate(name, wanted, family, address, timeout, sure)
            if advice.verdict == Verdict.REFUSED:
                refused("udp", address, advice.detail)
                raise EndpointError(f"{name}: {advice.detail}")
            plan = advice.plan if advice.verdict == Verdict.PLAN else None
            try:
                return _opened(name, wanted, _dial(family, address), plan, timeout, advice.left_out)
            except EndpointError:
                if fresh or plan is None:
                    raise  # else the server has another policy by now: what does it say today?
    raise AssertionError("not reached")


def _dial(family: int, address: Address) -> socket.socket:
    sock = _socket(family)
    try:
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _opened(
    name: str,
    wanted: Wanted,
    sock: socket.socket,
    plan: bytes | None,
    timeout: float,
    left_out: Callable[[], str],
) -> DatagramConnection:
    """Takes the socket over.  Raises OSError."""
    try:
        foreign = plan is not None and endpoint_recipe(plan, "client").foreign
    except OSError as error:
        sock.close()
        raise EndpointError(f"{name}: {error.strerror or error}") from None
    found = Secrets(wanted.material, keys.find())
    mode = Mode.MAYBE if plan is None else Mode.REQUIRED
    loop = SharedLoop.join(alone=foreign)
    try:
        with loop.lock:
            peers = EndpointPeers(*(loop, sock, "client", mode, name, lambda: found), left_out=left_out)
    except BaseException:
        loop.leave()
        sock.close()
        raise
    return peers.open(plan, timeout)


def _negotiate(
    name: str, wanted: Wanted, family: int, address: Address, timeout: float, sure: bool
) -> DatagramConnection:
    """Without agents: with an end that is such an endpoint too; plainly with one that is not, if nothing is
    required."""
    required = required_of(wanted.offer)
    sock = _dial(family, address)
    try:
        patience = timeout if required else min(timeout, _STRANGER_SECONDS if sure else _UNSURE_SECONDS)
        plan = _agreed(name, wanted, sock, address, patience)
    except BaseException:
        sock.close()
        raise
    if plan is None:
        where = f"{name}: {address[0]} port {address[1]}"
        if required or not sure:
            sock.close()
            what = f"and {required[0]} is required" if required else "and no chunnel says that it is one"
            raise TimeoutError(
                errno.ETIMEDOUT,
                f"{where} does not answer as an endpoint of datagrams, {what}: run bertha_socket.new() "
                "there, or bertha-run with an agent here too",
            )
    data = plan.encode() if plan is not None else None
    return _opened(name, wanted, sock, data, timeout, wanted.alone)


def _agreed(name: str, wanted: Wanted, sock: socket.socket, address: Address, patience: float) -> Plan | None:
    """None: nobody answers as an endpoint.  Raises OSError: nobody is there, or there is no agreement."""
    machine = Initiator(address[0].partition("%")[0], address[1], wanted.offer, keys.find(), proto="udp")
    session = secrets.randbits(64)
    question = envelope.ask(session, machine.outgoing())
    until = time.monotonic() + patience
    again = _AGAIN
    while not machine.finished and time.monotonic() < until:
        sock.send(question)
        said = _answered(sock, session, min(until, time.monotonic() + again))
        again *= 2
        if said:
            machine.receive(said)
    event = machine.event()
    if event is None or isinstance(event, Plan):
        return event
    why = event.why if isinstance(event, Failed) else "the other end knows of no such endpoint"
    why = str(event) if isinstance(event, Refusal) else why
    refused("udp", address, why)
    raise EndpointError(f"{name}: {why}")


def _answered(sock: socket.socket, session: int, until: float) -> bytes:
    """What the other end has answered; nothing: not in time.  Raises OSError: nobody is there."""
    while (left := until - time.monotonic()) > 0:
        sock.settimeout(left)
        try:
            came = envelope.opened(sock.recv(BIGGEST))
        except TimeoutError:
            break
        if came is not None and came.kind is Kind.ANSWER and came.session == session:
            return envelope.said(came)
    return b""


class DatagramListener:
    """A listening endpoint of datagrams; iterating over it gives its connections, one for each other end."""

    def __init__(self, name: str, dag: Dag, address: Address, backlog: int) -> None:
        """Raises OSError."""
        self._name, self._dag = name, dag
        self._agent: Agent | None = None
        self._looks_until = 0.0
        found = socket.getaddrinfo(
            address[0] or None, address[1], type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE
        )
        family, _, _, _, where = found[0]
        self._sock = sock = _socket(family)
        loop: SharedLoop | None = None
        try:
            sock.bind(where)
            self.address: Address = sock.getsockname()[:2]
            host, port = address[0], self.address[1]
            self._terms = terms = Terms(name, dag, (host, port), "udp")
            loop = SharedLoop.join(alone=has_foreign(terms.offer))
            required = [*required_of(terms.offer)]
            material = terms.material(*self.address)
            with contextlib.suppress(OSError):  # before anybody can have come
                self._agent = self._find_agent(sock)
            judge = terms.judge(*self.address)
        except BaseException:
            sock.close()
            if loop is not None:
                loop.leave()
            raise
        with loop.lock:
            self._peers = EndpointPeers(
                loop,
                sock,
                "server",
                Mode.REQUIRED if required else Mode.MAYBE,
                name,
                lambda: Secrets(material, keys.find()),
                judge=judge,
                answer=self._answer,
                backlog=max(1, backlog),
                left_out=lambda: self._terms.alone(*sock.getsockname()[:2]),
            )
        if self._agent is not None:
            self._peers.watch_agent(self._agent.fileno())

    def _find_agent(self, sock: socket.socket) -> Agent | None:
        """The agent, with this listener listed; None: there is none, or it refuses.  Raises OSError."""
        agent = Agent.find(self._name, self._terms.offer)
        if agent is None:
            return None
        try:
            if agent.register(sock):
                found, agent = agent, None
                return found
        finally:
            if agent is not None:
                agent.close()
        return None

    def _answer(self, question: bytes) -> bytes:
        """To a client without an agent; nothing of it is remembered."""
        try:
            machine = Responder(keys.find())
            machine.receive(question)
            event = machine.event()
            if isinstance(event, Asked):
                ours = event.proto == "udp"
                machine.answer(choose(event.offer, self._terms.at(*self.address)) if ours else NO_LISTENER)
            return machine.outgoing()
        except OSError:  # a key file, say, that cannot be used is no reason to answer without one
            return b""

    def fileno(self) -> int:
        """For select and its kin: readable when there is somebody to accept."""
        return self._peers.fileno()

    def accept(self) -> DatagramConnection:
        """The connection with the next one who comes.  Blocks until there is one.  Raises OSError: closed."""
        while True:
            if self._agent is None:
                with contextlib.suppress(OSError):
                    self._agent = self._find_agent(self._sock)
                if self._agent is not None:
                    self._peers.watch_agent(self._agent.fileno())
            looking = time.monotonic() < self._looks_until
            found = self._peers.accept(_AGENT_SECONDS if looking else None)
            if found is not None:
                return found
            if self._agent is not None and self._agent.gone():
                self._forget_agent()
                self._looks_until = time.monotonic() + _LOOKS_SECONDS

    def _forget_agent(self) -> None:
        if self._agent is not None:
            self._peers.unwatch(self._agent.fileno())
            self._agent.close()
            self._agent = None

    def __iter__(self) -> Iterator[DatagramConnection]:
        while True:
            try:
                connection = self.accept()
            except OSError as error:
                if error.errno == errno.EBADF:  # closed
                    return
                raise
            yield connection

    def serve(self) -> None:
        """For a DAG that begins with `shard`: moves messages between clients and its choices until this is
        closed (by another thread)."""
        from bertha_socket._endpoint_shard import serve

        serve(self, self._name, self._dag)

    def close(self) -> None:
        """Listens no more; connections stay."""
        self._forget_agent()
        self._peers.stop()

    def __enter__(self) -> DatagramListener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
