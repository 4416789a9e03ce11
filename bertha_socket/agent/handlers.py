"""One function for each request: from a checked message to an answer."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from bertha_socket.agent import limits, memory, messages, sockets
from bertha_socket.agent.carriers import has_rings
from bertha_socket.agent.messages import BadMessage, Op, Request
from bertha_socket.agent.model import Listener, Process, Refused
from bertha_socket.agent.plans import need_of_offer
from bertha_socket.agent.registry import Registry, why_of
from bertha_socket.negotiation._codec import NegotiationError
from bertha_socket.negotiation.offer import Offer
from bertha_socket.reasons import Reason as Why


class Descriptors:
    """Descriptors that came with a message.  Whatever nobody takes is closed at the end."""

    def __init__(self, fds: list[int]) -> None:
        self._fds: list[int | None] = list(fds)

    def __len__(self) -> int:
        return len(self._fds)

    def __enter__(self) -> Descriptors:
        return self

    def __exit__(self, *_: object) -> None:
        for i in range(len(self._fds)):
            self.close(i)

    def look(self, i: int) -> int:
        """The number, which stays ours."""
        fd = self._fds[i]
        assert fd is not None
        return fd

    def taken(self, i: int) -> None:
        """Somebody has taken number `i` over."""
        self._fds[i] = None

    def close(self, i: int) -> None:
        """Closes it now, if it has not been taken."""
        fd = self._fds[i]
        self._fds[i] = None
        if fd is not None:
            os.close(fd)


class Answer(NamedTuple):
    """What goes back.  `fds` stay whose they are; then `given` go along, closed here after sending."""

    status: Why = Why.NONE
    body: bytes = b""
    fds: tuple[int, ...] = ()
    given: tuple[int, ...] = ()


class Ways(NamedTuple):
    """Sockets of a client's namespace, by which the agent may reach another host's."""

    tcp: socket.socket
    udp: socket.socket | None


class Caller(Protocol):
    """The connection that a request came by, as handlers see it."""

    peer: sockets.Peer
    process: Process | None


class Service(Protocol):
    """What handlers need of the server."""

    registry: Registry
    now: float

    def greet(self, caller: Caller, hello: messages.Hello, table_fd: int) -> Answer | None:
        """Takes a process in, now or (None) later."""

    def bring(self, caller: Caller, process: Process, sources: Mapping[str, str]) -> Answer | None:
        """Has the classes looked at that a process has registered, now or (None) later."""

    def negotiate(
        self, caller: Caller, process: Process, wish: messages.Negotiate, socks: Ways
    ) -> Answer | None:
        """Which chunnels connections to a destination get; None: the answer comes later."""

    def settle(self, listener: Listener) -> None:
        """Decides what a listener's connections may have, after it has registered."""

    @property
    def agents_port(self) -> int:
        """On which agents ask one another; 0: this one does not."""

    def open_port(self, listener: Listener) -> bool:
        """Listens there in that listener's namespace as well, if that may be; whether it is done."""

    def adopt_port(self, fd: int) -> None:
        """Takes over a socket that listens on the agents' port of a namespace."""

    def adopt_letters(self, fd: int) -> None:
        """Takes over a UDP socket that is bound to it."""

    def carrier_socket(self, caller: Caller, kind: messages.CarrierKind) -> int:
        """A new way to a carrier, which becomes the caller's."""

    def status(self, caller: Caller) -> Answer | None:
        """The JSON text of everything that the caller may see; None: it comes later."""

    def stop(self) -> None:
        """Ends the agent after this answer."""


def _need(fds: Descriptors, count: int) -> None:
    if len(fds) != count:
        raise BadMessage(f"{len(fds)} descriptors where {count} belong")


def _greeted(caller: Caller) -> Process:
    if caller.process is None:
        raise BadMessage("HELLO must come first")
    return caller.process


def _hello(service: Service, caller: Caller, request: Request, fds: Descriptors) -> Answer | None:
    if caller.process is not None or len(fds) > 1:
        raise BadMessage("one HELLO, with one descriptor at the most")
    hello = messages.parse_hello(request.body)
    if hello.layout_version != messages.LAYOUT_VERSION:
        return Answer(Why.VERSION)
    table_fd = -1
    if len(fds) == 1:
        if not memory.is_memory(fds.look(0)):
            raise BadMessage("the table is no memory file")
        table_fd = fds.look(0)
        fds.taken(0)
    return service.greet(caller, hello, table_fd)


def _offer(service: Service, caller: Caller, request: Request, fds: Descriptors) -> Answer:
    process = _greeted(caller)
    _need(fds, 0)
    if process.offer is not None or process.listeners:
        raise BadMessage("one OFFER, before anything is registered")
    try:
        process.offer = Offer.decode(request.body)
    except NegotiationError as error:
        raise BadMessage(str(error)) from None
    return Answer()


def _bring(service: Service, caller: Caller, request: Request, fds: Descriptors) -> Answer | None:
    process = _greeted(caller)
    _need(fds, 0)
    return service.bring(caller, process, messages.parse_bring(request.body))


def _listen(service: Service, caller: Caller, request: Request, fds: Descriptors) -> Answer:
    process = _greeted(caller)
    messages.parse_listen(request.body)
    if len(fds) not in (4, 5):
        _need(fds, 3)
    try:
        where = sockets.inspect_listening(fds.look(0))
        fds.close(0)  # before the answer: a listening socket must end when its owner closes it
        route = sockets.adopt_netlink(fds.look(1), sockets.ROUTE, where.netns)
        fds.taken(1)
        try:
            diag = sockets.adopt_netlink(fds.look(2), sockets.DIAG, where.netns)
        except sockets.NotUsable:
            route.close()
            raise
        fds.taken(2)
    except sockets.NotUsable:
        return Answer(Why.REFUSED_BY_AGENT)
    listener, bits = service.registry.listen(process, where, route, diag, service.now)
    service.settle(listener)
    # Who runs the chunnels himself is told what he offers; shims then have nothing to do.
    need = listener.need if process.offer is None else need_of_offer(process.offer)
    if need != messages.DagNeed.NONE and not service.open_port(listener):
        _adopt_doors(service, caller, where.netns, fds)
    return Answer(
        body=messages.LISTEN_REPLY.pack(listener.id, bits, need),
        fds=(listener.claims_fd,),
    )


def _adopt_doors(service: Service, caller: Caller, netns: int, fds: Descriptors) -> None:
    """Sockets on the agents' port that come along, where the agent cannot have its own.

    Who has them, too, can make the agent wait at them.  So they are taken from its own user only.
    """
    port = service.agents_port
    if len(fds) < 4 or not port or caller.peer.uid not in (0, os.geteuid()):
        return
    if sockets.is_for_agents(fds.look(3), netns, "tcp", port):
        service.adopt_port(fds.look(3))
        fds.taken(3)
        if len(fds) > 4 and sockets.is_for_agents(fds.look(4), netns, "udp", port):
            service.adopt_letters(fds.look(4))
            fds.taken(4)


def _unlisten(service: Service, caller: Caller, request: Request, fds: Descriptors) -> None:
    process = _greeted(caller)
    _need(fds, 0)
    service.registry.unlisten(process, messages.parse_unlisten(request.body), service.now)


def _connect(service: Service, caller: Caller, request: Request, fds: Descriptors) -> Answer:
    process = _greeted(caller)
    _need(fds, 0)
    link = service.registry.connect(process, messages.parse_connect(request.body))
    return Answer(
        body=messages.pack_link_reply(link.listener.id, link.index, link.plan, link.claimant),
        fds=(link.fd, link.listener.claims_fd),
        given=link.take_client_mailbox(),
    )


def _link(service: Service, caller: Caller, request: Request, fds: Descriptors) -> Answer:
    process = _greeted(caller)
    _need(fds, 0)
    link = service.registry.link(process, *messages.parse_link(request.body))
    return Answer(
        body=messages.pack_link_reply(link.listener.id, link.index, link.plan, link.claimant),
        fds=(link.fd,) if link.mailbox is None else (link.fd, link.mailbox.fileno()),
    )


def _unlink(service: Service, caller: Caller, request: Request, fds: Descriptors) -> Answer:
    process = _greeted(caller)
    _need(fds, 0)
    service.registry.unlink(process, *messages.parse_link(request.body))
    return Answer()


def _bell_new(service: Service, caller: Caller, request: Request, fds: Descriptors) -> Answer:
    process = _greeted(caller)
    messages.parse_bell(request.body)
    _need(fds, 1)
    if not sockets.is_eventfd(fds.look(0)):
        return Answer(Why.REFUSED_BY_AGENT)
    number = service.registry.bell_new(process, fds.look(0))
    fds.taken(0)
    return Answer(body=messages.BELL.pack(number, 0))


def _bell_get(service: Service, caller: Caller, request: Request, fds: Descriptors) -> Answer:
    process = _greeted(caller)
    _need(fds, 0)
    number = messages.parse_bell(request.body)
    return Answer(body=messages.BELL.pack(number, 0), fds=(service.registry.bell_get(process, number),))


def _resolve(service: Service, caller: Caller, request: Request, fds: Descriptors) -> Answer:
    process = _greeted(caller)
    _need(fds, 0)
    found = service.registry.resolve(process, messages.parse_resolve(request.body))
    return Answer(body=messages.RESOLVE_REPLY.pack(found))


def _negotiate(service: Service, caller: Caller, request: Request, fds: Descriptors) -> Answer | None:
    process = _greeted(caller)
    wish = messages.parse_negotiate(request.body)
    if len(fds) != 2:
        _need(fds, 1)
    with contextlib.ExitStack() as stack:
        socks: list[socket.socket] = []
        for i in range(len(fds)):
            try:
                sock = sockets.adopt_client(fds.look(i), wish.netns, "tcp" if i == 0 else "udp")
            except sockets.NotUsable:
                return Answer(Why.REFUSED_BY_AGENT)
            fds.taken(i)
            socks.append(stack.enter_context(sock))
        ways = Ways(socks[0], socks[1] if len(socks) > 1 else None)
        return service.negotiate(caller, process, wish, ways)


def _carrier(service: Service, caller: Caller, request: Request, fds: Descriptors) -> Answer:
    process = _greeted(caller)
    kind = messages.parse_carrier(request.body)
    if len(fds) != 1:
        _need(fds, 0)
    elif not memory.is_memory(fds.look(0)):
        raise BadMessage("what carriers are to write to is no memory file")
    elif process.carried_fd < 0:
        process.carried_fd = fds.look(0)
        fds.taken(0)
    if process.carriers >= limits.CARRIERS_PER_PROCESS:
        return Answer(Why.TABLE_FULL)
    process.carriers += 1
    end = service.carrier_socket(caller, kind)
    return Answer(body=messages.CARRIER.pack(kind, has_rings(kind)), given=(end,))


def _status(service: Service, caller: Caller, request: Request, fds: Descriptors) -> Answer | None:
    _need(fds, 0)
    if request.body:
        raise BadMessage("STATUS has no body")
    return service.status(caller)


def _stop(service: Service, caller: Caller, request: Request, fds: Descriptors) -> Answer:
    _need(fds, 0)
    if request.body:
        raise BadMessage("STOP has no body")
    if caller.peer.uid not in (0, os.geteuid()):
        return Answer(Why.OTHER_USER)
    service.stop()
    return Answer()


_Handler = Callable[[Service, Caller, Request, Descriptors], "Answer | None"]
_HANDLERS: dict[Op, _Handler] = {
    Op.HELLO: _hello,
    Op.LISTEN: _listen,
    Op.UNLISTEN: _unlisten,
    Op.CONNECT: _connect,
    Op.LINK: _link,
    Op.UNLINK: _unlink,
    Op.BELL_NEW: _bell_new,
    Op.BELL_GET: _bell_get,
    Op.RESOLVE: _resolve,
    Op.NEGOTIATE: _negotiate,
    Op.CARRIER: _carrier,
    Op.BRING: _bring,
    Op.OFFER: _offer,
    Op.STATUS: _status,
    Op.STOP: _stop,
}


def handle(service: Service, caller: Caller, request: Request, fds: Descriptors) -> Answer | None:
    """The answer to a request; None: there is none, or it comes later.  Raises BadMessage."""
    try:
        return _HANDLERS[request.op](service, caller, request, fds)
    except Refused as refused:
        return Answer(refused.why)
    except OSError as error:
        return Answer(why_of(error))
