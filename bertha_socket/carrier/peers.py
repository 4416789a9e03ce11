"""The exchanges of one UDP socket: who shows a plan gets one of his own.

What is above them is its owner's (a subclass): in a carrier a program behind a pair of sockets
(`datagrams.Datagrams`), in an application an endpoint of `bertha_socket.new`.  Everything is bounded, and
what does not fit is dropped, as UDP does; only a chunnel that sends again makes it whole.
"""

from __future__ import annotations

import errno
import logging
import math
import select
import socket
import struct
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from bertha_socket.carrier import envelope
from bertha_socket.carrier.control import NOT_ITS, Secrets
from bertha_socket.carrier.envelope import Envelope, Kind
from bertha_socket.carrier.exchange import Exchange, Step
from bertha_socket.carrier.loop import READ, WRITE, Loop, Timer
from bertha_socket.carrier.plans import Recipe
from bertha_socket.carrier.session import Mode
from bertha_socket.chunnels import Context
from bertha_socket.chunnels._reliable_native import held_by_all
from bertha_socket.chunnels._types import pieces

if TYPE_CHECKING:
    from bertha_socket.carrier.aside import Aside

log: Final = logging.getLogger(__name__)

_V4: Final = bytes(10) + b"\xff\xff"
#: Bytes of a datagram, at most.
BIGGEST: Final = 65536
#: udp(7).  Whatever else the program has asked for comes as well, some of it before UDP_GRO's.
_UDP_GRO: Final = 104
_CONTROL_ROOM: Final = 512
_INT: Final = struct.Struct("=i")
#: Exchanges of one socket; of them those whose plan is not judged yet; of one other address.
EXCHANGES_MAX: Final = 4096
_UNJUDGED_MAX: Final = 256
_EACH_MAX: Final = 4
#: Addresses that are remembered.
PLACES_MAX: Final = 4096
#: Datagrams that wait for the program; twice as many wait for the network.
QUEUE_MAX: Final = 1024
#: How many are read before others have their turn, at most.
ROUNDS_MAX: Final = 64
#: Answers to strangers, a second: that a session is not there, or why theirs is none.  What they are told may
#: be longer than what they have said, and nobody knows whether the address is theirs.
_STRANGERS_RATE: Final = 100
#: What has been silent for so many seconds makes room for newcomers.
_SILENT_SECONDS: Final = 30.0
_UNPROVEN_SECONDS: Final = 3.0
#: Bytes that all exchanges of one socket keep of what came before its turn.
_HELD_EARLY: Final = 64 << 20


class Place(NamedTuple):
    """An address as struct bertha_dgram has it (native/carrier/carrier.h)."""

    addr: bytes
    port: int
    scope: int


class Peers:
    """The network's side.  The owner overrides what `_plan_shown` and those below it say."""

    #: Bytes of a message that its owner can be given; of all that are not whole.
    _message_max: int | None = None
    _begun_max = 256 << 20
    #: Of what is said when somebody is refused, or an exchange fails.
    log_level = logging.WARNING

    def __init__(self, loop: Loop, udp: socket.socket, side: str, mode: Mode) -> None:
        self._loop = loop
        self._side = side
        self._mode = mode
        self.udp = udp
        self._names: OrderedDict[Place, tuple[object, ...]] = OrderedDict()
        self._places: dict[tuple[object, ...], Place] = {}
        self._exchanges: dict[tuple[Place, int], Exchange] = {}
        self._timers: dict[tuple[Place, int], Timer] = {}
        #: The exchange by which an address is answered.
        self._current: dict[Place, Exchange] = {}
        #: Those to which something has happened since they were settled.
        self._touched: dict[Exchange, Place] = {}
        self._unjudged = 0
        self._held = held_by_all(_HELD_EARLY)
        #: How many datagrams are read before others have their turn: as many as there seem to be.
        self._rounds = 1
        self._to_network: deque[tuple[bytes, Place]] = deque()
        self._open = True
        self._strangers_at = 0.0
        self._strangers_answered = 0
        # For the log.
        self._detail = ""
        self._strangers: set[bytes] = set()
        self._kept_out = 0
        self._lost = 0
        udp.setblocking(False)

    # -- what the owner says --------------------------------------------------------------------------

    def _plan_shown(self, plan: bytes, peer: str, verdict: Callable[[str | None], None]) -> None:
        """At the server: calls `verdict` with None if the plan may run, else with one line why not."""
        raise NotImplementedError

    def _secrets(self) -> Secrets | None:
        """At the server: what its exchanges authenticate themselves with; None: it may not serve there."""
        raise NotImplementedError

    def _recipe(self, plan: bytes, side: str) -> Recipe:
        """What is to be made of a plan here.  Raises OSError."""
        raise NotImplementedError

    #: Makes the pipelines that have chunnels which are not ours; None: they run in this process.
    _aside: Callable[[Recipe, Exchange], Aside] | None = None

    def _risen(self, place: Place, exchange: Exchange, items: list[Any]) -> None:
        """What has come out above an exchange."""
        raise NotImplementedError

    def _plainly(self, place: Place, data: bytes) -> None:
        """A datagram of one who shows no plan, where none is required."""
        raise NotImplementedError

    def _expected(self, place: Place) -> bool:
        """Whether a plan is known for that address, so that nothing else is taken from it."""
        return place in self._current

    def _is_ready(self, place: Place, exchange: Exchange) -> None:
        """Both ends have agreed; said again after whatever has happened since."""

    def _has_failed(self, place: Place, exchange: Exchange) -> None:
        """The exchange is over, and no longer ours."""

    def _happened(self) -> None:
        """Something has happened to an exchange."""

    def _asked(self, came: Envelope, place: Place) -> None:
        """A client that has no agent asks for a plan."""

    def _network_error(self, error: OSError) -> None:
        """The kernel told of an error on the socket (an ICMP message)."""

    def _unsendable(self, place: Place, error: OSError) -> None:
        """A datagram could not go."""

    def _watch(self) -> None:
        """Says to the loop what is waited for."""
        if self._open:
            network = READ | (WRITE if self._to_network else 0)
            self._loop.watch(self.udp.fileno(), network, self._on_network)

    def _full_up(self, exchange: Exchange | None) -> bool:
        """Whether no more is to come up (of this exchange) now."""
        return False

    def _closing(self) -> bool:
        """Whether no new exchanges are wanted."""
        return False

    def _tell_soon(self) -> None:
        """There is news for the log."""

    # -- addresses ------------------------------------------------------------------------------------

    def _name(self, place: Place) -> tuple[object, ...]:
        """As the socket module wants it.  Raises OSError: not of this socket's family."""
        known = self._names.get(place)
        if known is not None:
            return known
        if self.udp.family == socket.AF_INET:
            if not place.addr.startswith(_V4):
                raise OSError(errno.EAFNOSUPPORT, "an IPv6 address for an IPv4 socket")
            made: tuple[object, ...] = (socket.inet_ntop(socket.AF_INET, place.addr[12:]), place.port)
        else:
            made = (socket.inet_ntop(socket.AF_INET6, place.addr), place.port, 0, place.scope)
        self._names[place] = made
        if len(self._names) > PLACES_MAX:
            self._names.popitem(last=False)
        return made

    def _place(self, name: tuple[object, ...]) -> Place:
        known = self._places.get(name)
        if known is None:
            if len(self._places) >= PLACES_MAX:
                self._places.clear()
            known = self._places[name] = self._place_of(name)
        return known

    def _place_of(self, name: tuple[object, ...]) -> Place:
        host, port = str(name[0]), int(str(name[1]))
        if self.udp.family == socket.AF_INET:
            return Place(_V4 + socket.inet_aton(host), port, 0)
        return Place(socket.inet_pton(socket.AF_INET6, host.partition("%")[0]), port, int(str(name[3])))

    # -- from the network -----------------------------------------------------------------------------

    def _on_network(self, events: int) -> None:
        if events & WRITE:
            self._flush_network()
        rounds = self._rounds
        self._rounds = min(2 * rounds, ROUNDS_MAX)
        for done in range(rounds):
            if not self._open:
                return
            try:
                data, control, _, name = self.udp.recvmsg(BIGGEST, _CONTROL_ROOM)
            except (BlockingIOError, InterruptedError):
                self._rounds = max(done, 1)
                break
            except OSError as error:
                self._network_error(error)
                if not events & (READ | select.EPOLLERR):
                    break
                continue
            place = self._place(name)
            each = _merged(control) if control else 0
            for datagram in pieces(data, each):
                if self._open:
                    self._network_said(datagram, place)
        self._settle_touched()
        self._watch()

    def _network_said(self, data: bytes, place: Place) -> None:
        if envelope.is_ours(data):
            came = envelope.opened(data)
            if came is not None:
                self._carrier_said(came, place)
            return
        if self._expected(place) or self._mode is Mode.REQUIRED:
            self._kept_out += 1
            if len(self._strangers) < QUEUE_MAX:
                self._strangers.add(place.addr)
            self._tell_soon()
            return
        self._plainly(place, data)

    def _carrier_said(self, came: Envelope, place: Place) -> None:
        exchange = self._exchanges.get((place, came.session))
        if exchange is None:
            if self._side != "server":
                return
            if came.kind is Kind.HELLO:
                self._greeted(came, place)
            elif came.kind is Kind.DATA:
                self._answer_unknown(came, place)
            elif came.kind is Kind.ASK:
                self._asked(came, place)
            return
        if came.kind is Kind.DATA:
            if self._full_up(exchange):
                self._lost += 1  # a chunnel that sends again will
                return
            if exchange.step is Step.READY:
                self._current[place] = exchange
        before = exchange.step
        exchange.network(came)
        self._pass_on(place, exchange, before)
        if self._held.begun > self._begun_max:
            self._make_less()

    def _context(self, side: str, secrets: Secrets, place: Place, local: str) -> Context:
        peer = text_of(self._name(place))
        return Context(side, secrets.material, peer, local, message_max=self._message_max, held=self._held)

    def _make_less(self) -> None:
        """More has begun than is kept of all: the message that takes longest goes, with its exchange.
        A sender has all of it when it begins."""
        while self._held.begun > self._begun_max:
            found = min(self._exchanges.values(), key=lambda x: x.begun_at, default=None)
            if found is None or found.begun_at == math.inf:
                return
            found.fail("reliable: too many messages are not whole")
            self._settle(found.place, found)

    def _greeted(self, came: Envelope, place: Place) -> None:
        """A client that is not known yet."""
        secrets = self._secrets()
        if secrets is None:
            self._kept_out += 1
            self._refused(place, came.session, NOT_ITS)
            return
        plan, why = envelope.read_hello(came, secrets.key)
        if why is not None:
            self._kept_out += 1
            self._refused(place, came.session, why)
        if plan is None or self._closing():
            return
        if self._unjudged >= _UNJUDGED_MAX or not self._room_for(place):
            self._lost += 1  # it says so again
            return
        try:
            self._recipe(plan, "server")
        except OSError as error:
            self._refused(place, came.session, error.strerror or str(error))
            return
        local = text_of(self.udp.getsockname())
        context = self._context("server", secrets, place, local)
        exchange = Exchange(context, secrets.key, plan, came.session, recipe=self._recipe, aside=self._aside)
        self._add(place, exchange)
        self._unjudged += 1

        def verdict(why: str | None) -> None:
            self._unjudged -= 1
            if self._open and self._exchanges.get((place, came.session)) is exchange:
                if why is None or self._may_answer():
                    exchange.judged(why)
                else:
                    exchange.fail(why)
                self._is_made(place, exchange)
                self._settle(place, exchange)
                self._watch()

        self._plan_shown(plan, context.peer, verdict)

    def _refused(self, place: Place, session: int, why: str) -> None:
        self._detail = why
        if self._may_answer():
            log.log(self.log_level, "server %s: refused %s", text_of(self._name(place)), why)
            self._send(envelope.refuse(session, why), place)
        self._tell_soon()

    def _room_for(self, place: Place) -> bool:
        """Makes room by what has been silent longest."""
        own = [k for k in self._exchanges if k[0] == place]
        if len(own) >= _EACH_MAX:
            for key in own[: len(own) - _EACH_MAX + 1]:
                if self._exchanges[key] is not self._current.get(place):
                    self._drop(place, self._exchanges[key])
        return self._room_among(self._exchanges.values(), EXCHANGES_MAX)

    def _room_among(self, these: Iterable[Exchange], most: int) -> bool:
        """Whether they are fewer than `most`, once the one that has been silent longest has made room."""
        found = list(these)
        if len(found) < most:
            return True
        now = time.monotonic()
        # First one that may have said HELLO from a forged address: who has seen it can say it again.
        unproven = max(found, key=lambda x: x.unproven(now))
        if unproven.unproven(now) > _UNPROVEN_SECONDS:
            self._drop(unproven.place, unproven)
            return True
        silent = max(found, key=lambda x: x.silent(now))
        if silent.silent(now) <= _SILENT_SECONDS:
            return False
        self._drop(silent.place, silent)
        return True

    def _answer_unknown(self, came: Envelope, place: Place) -> None:
        if self._may_answer():
            self._send(envelope.sealed(Kind.UNKNOWN, came.session), place)

    def _may_answer(self) -> bool:
        """Whether one more stranger is answered in this second."""
        now = time.monotonic()
        if now - self._strangers_at >= 1.0:
            self._strangers_at, self._strangers_answered = now, 0
        self._strangers_answered += 1
        return self._strangers_answered <= _STRANGERS_RATE

    # -- exchanges ------------------------------------------------------------------------------------

    def _add(self, place: Place, exchange: Exchange) -> None:
        key = (place, exchange.session)
        exchange.place = place
        self._exchanges[key] = exchange
        self._timers[key] = Timer(lambda now: self._due(place, exchange, now))
        self._loop.set(self._timers[key], exchange.deadline())

    def _due(self, place: Place, exchange: Exchange, now: float) -> None:
        exchange.tick(now)
        self._settle(place, exchange)
        self._watch()

    def _is_made(self, place: Place, exchange: Exchange) -> None:
        """A server's chunnels may be there now."""
        if exchange.step is Step.READY:
            self._current[place] = exchange

    def _pass_on(self, place: Place, exchange: Exchange, before: Step) -> None:
        """What it says goes on at once; what else follows can wait until all that has come has been read,
        if it is still at the step it was at `before`."""
        if exchange.step is not before or exchange.step is Step.FAILED:
            self._settle(place, exchange)
        else:
            self._hand_over(place, exchange)
            self._touched[exchange] = place

    def _settle_touched(self) -> None:
        touched, self._touched = self._touched, {}
        for exchange, place in touched.items():
            if self._open and self._exchanges.get((place, exchange.session)) is exchange:
                self._settle(place, exchange)

    def _hand_over(self, place: Place, exchange: Exchange) -> None:
        if exchange.to_network:
            out, exchange.to_network = exchange.to_network, []
            for data in out:
                self._send(data, place)
        if exchange.to_program:
            risen, exchange.to_program = exchange.to_program, []
            self._risen(place, exchange, risen)

    def _settle(self, place: Place, exchange: Exchange) -> None:
        """What follows from anything that has happened to it."""
        self._hand_over(place, exchange)
        self._touched.pop(exchange, None)
        if exchange.step is Step.READY:
            self._is_ready(place, exchange)
        if exchange.step is Step.FAILED:
            if exchange.traceback:
                log.error("%s %s: %s", exchange.side, exchange.context.peer, exchange.traceback)
            if exchange.detail:
                log.log(self.log_level, "%s %s: %s", exchange.side, exchange.context.peer, exchange.detail)
                self._detail = exchange.detail
            self._drop(place, exchange)
            self._has_failed(place, exchange)
            self._tell_soon()
        else:
            timer = self._timers.get((place, exchange.session))
            if timer is not None:
                self._loop.set(timer, exchange.deadline())
        self._happened()

    def _drop(self, place: Place, exchange: Exchange) -> None:
        key = (place, exchange.session)
        if self._exchanges.pop(key, None) is None:
            return
        self._loop.set(self._timers.pop(key), None)
        if self._current.get(place) is exchange:
            del self._current[place]
        exchange.close()

    # -- out ------------------------------------------------------------------------------------------

    def _send(self, data: bytes, place: Place) -> None:
        if not self._open:
            return
        if len(self._to_network) >= 2 * QUEUE_MAX:
            self._lost += 1
        elif self._to_network or not self._sent(data, place):
            self._to_network.append((data, place))

    def _sent(self, data: bytes, place: Place) -> bool:
        """False: there is no room for it now."""
        try:
            self.udp.sendto(data, socket.MSG_NOSIGNAL, self._name(place))
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:  # this one cannot go: an ICMP message, no route, too long
            self._lost += 1
            self._unsendable(place, error)
        return True

    def _flush_network(self) -> None:
        while self._to_network and self._sent(*self._to_network[0]):
            self._to_network.popleft()

    def _end(self) -> None:
        """Lets go of everything."""
        self._open = False
        for timer in self._timers.values():
            self._loop.set(timer, None)
        for exchange in self._exchanges.values():
            exchange.close()
        self._exchanges.clear()
        self._current.clear()
        self._touched.clear()
        self._loop.watch(self.udp.fileno(), None, self._on_network)
        self.udp.close()


def _merged(control: list[tuple[int, int, bytes]]) -> int:
    """Bytes of each of the datagrams that came as one, as the program has set UDP_GRO on its socket; or 0."""
    for level, kind, value in control:
        if (level, kind) == (socket.IPPROTO_UDP, _UDP_GRO) and len(value) >= _INT.size:
            found: int = _INT.unpack_from(value)[0]
            return found
    return 0


def text_of(name: tuple[object, ...]) -> str:
    """ADDRESS:PORT."""
    host, port = name[0], name[1]
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
