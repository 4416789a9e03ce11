"""A UDP socket of a program's, carried: its datagrams go through chunnels, to and from many others.

The program's side is a pair of datagrams, each behind a header that names the other end (struct bertha_dgram
of native/carrier/carrier.h).  Who shows a plan gets an exchange of its own; who does not is passed through,
or where chunnels are required dropped and counted.  Everything is bounded, and what does not fit is dropped,
as UDP does; only a chunnel that sends again makes it whole.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import select
import socket
import struct
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final, NamedTuple

from bertha_socket.carrier import envelope
from bertha_socket.carrier.control import Control
from bertha_socket.carrier.envelope import Envelope, Kind
from bertha_socket.carrier.exchange import CLIENT_IDLE, Exchange, Step, datagram_recipe
from bertha_socket.carrier.loop import READ, WRITE, Loop, Timer
from bertha_socket.carrier.session import Mode, State
from bertha_socket.carrier.shim import Carry
from bertha_socket.chunnels import Context

log: Final = logging.getLogger(__name__)

_HEAD: Final = struct.Struct("=HHHHIIQ16s")
_MAGIC: Final = 0xBD47
_DATA, _PLAN, _ERROR, _REFUSED, _NO_AGENT = 1, 2, 3, 4, 5
_V4: Final = bytes(10) + b"\xff\xff"
_BIGGEST: Final = 65536
#: Exchanges of one socket; of them those whose plan is not judged yet; of one other address.
EXCHANGES_MAX: Final = 4096
_UNJUDGED_MAX: Final = 256
_EACH_MAX: Final = 4
_PLANS_MAX: Final = 4096
#: Datagrams and bytes that wait for the program, or for the network.
_QUEUE_MAX: Final = 1024
_QUEUE_BYTES: Final = 4 << 20
_ROUNDS: Final = 64
#: Answers to sessions that are not there, a second.
_UNKNOWN_RATE: Final = 100
#: Seconds for which what is still unsaid is said after the program has closed.
_LINGER: Final = {"client": 10.0, "server": 1.0}
_STATUS_SECONDS: Final = 0.1
_AGENT_SECONDS: Final = 1.0
#: What has been silent for so long makes room for newcomers.
_SILENT_SECONDS: Final = 30.0


class Place(NamedTuple):
    """An address in the form of the pair's headers."""

    addr: bytes
    port: int
    scope: int


class Datagrams:
    """One carried UDP socket.  `ended(self)` is called once, when it is closed."""

    def __init__(
        self, loop: Loop, control: Control, carry: Carry, ended: Callable[[Datagrams], None]
    ) -> None:
        self._loop = loop
        self._control = control
        self._carry = carry
        self._ended = ended
        self._mode = Mode(carry.mode)
        self._side = "server" if carry.server else "client"
        self.udp = carry.tcp
        self.pair = carry.pair
        self._names: OrderedDict[Place, tuple[object, ...]] = OrderedDict()
        self._places: dict[tuple[object, ...], Place] = {}
        #: Heads of the program's datagrams that have been looked at.
        self._heads: dict[bytes, Place] = {}
        self._plans: OrderedDict[Place, tuple[bytes, int]] = OrderedDict()
        self._exchanges: dict[tuple[Place, int], Exchange] = {}
        self._timers: dict[tuple[Place, int], Timer] = {}
        #: The exchange by which an address is answered.
        self._current: dict[Place, Exchange] = {}
        #: Those to which something has happened since they were settled.
        self._touched: dict[Exchange, Place] = {}
        self._unjudged = 0
        #: How many datagrams are read before others have their turn: as many as there seem to be.
        self._rounds = {"program": 1, "network": 1}
        self._to_program: deque[bytes] = deque()
        self._program_bytes = 0
        self._to_network: deque[tuple[bytes, Place]] = deque()
        self._open = True
        self._until: float | None = None  # the program has closed
        self._unknown_at = 0.0
        self._unknowns = 0
        # What the log will say.
        self._chunnels = ""
        self._passed = False  # something plain
        self._detail = ""
        self._strangers: set[bytes] = set()
        self._kept_out = 0
        self._lost = 0
        self._told_at = 0.0
        self._told = (-1, "", "")
        self._tell_timer = Timer(lambda now: self._tell())
        self._linger_timer = Timer(lambda now: self._close())
        self._agent_timer = Timer(lambda now: self.agent_gone())
        self.udp.setblocking(False)
        self.pair.setblocking(False)

    def start(self) -> None:
        """Begins."""
        self._watch()

    def agent_gone(self) -> None:
        """Who is bound here must tell the next agent: nobody else wakes up a program that only answers."""
        if self._open and self._side == "server":
            if not self._to_program:
                self._give(_head(_NO_AGENT, Place(bytes(16), 0, 0)))
            self._loop.set(self._agent_timer, time.monotonic() + _AGENT_SECONDS)
            self._watch()

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
        if len(self._names) > _PLANS_MAX:
            self._names.popitem(last=False)
        return made

    def _place(self, name: tuple[object, ...]) -> Place:
        known = self._places.get(name)
        if known is None:
            if len(self._places) >= _PLANS_MAX:
                self._places.clear()
            known = self._places[name] = self._place_of(name)
        return known

    def _place_of(self, name: tuple[object, ...]) -> Place:
        host, port = str(name[0]), int(str(name[1]))
        if self.udp.family == socket.AF_INET:
            return Place(_V4 + socket.inet_aton(host), port, 0)
        return Place(socket.inet_pton(socket.AF_INET6, host.partition("%")[0]), port, int(str(name[3])))

    # -- from the program -----------------------------------------------------------------------------

    def _on_program(self, events: int) -> None:
        if events & WRITE:
            self._flush_program()
        rounds = self._rounds["program"]
        self._rounds["program"] = min(2 * rounds, _ROUNDS)
        for done in range(rounds):
            if not self._takes_program():
                break
            try:
                data = self.pair.recv(_BIGGEST + _PLAN_ROOM)
            except (BlockingIOError, InterruptedError):
                self._rounds["program"] = max(done, 1)
                break
            except OSError:
                data = b""
            if not data:
                self._program_closed()
                break
            self._program_said(data)
        self._settle_touched()
        self._watch()

    def _takes_program(self) -> bool:
        if not self._open or self._until is not None or len(self._to_network) >= _QUEUE_MAX:
            return False
        # One who does not take its datagrams keeps nobody else waiting.
        return len(self._current) != 1 or not next(iter(self._current.values())).full

    def _program_said(self, data: bytes) -> None:
        known = self._heads.get(data[: _HEAD.size])
        if known is not None:
            self._program_sent(known, data[_HEAD.size :])
            return
        if len(data) < _HEAD.size:
            return
        magic, kind, port, _, scope, _, value, addr = _HEAD.unpack_from(data)
        if magic != _MAGIC or port == 0:
            return  # not through the shim: whoever wrote this meant no datagram of ours
        place, body = Place(addr, port, scope), data[_HEAD.size :]
        if kind == _PLAN:
            self._planned(place, body, value)
        elif kind == _DATA:
            if len(self._heads) >= _PLANS_MAX:
                self._heads.clear()
            self._heads[data[: _HEAD.size]] = place
            self._program_sent(place, body)

    def _planned(self, place: Place, plan: bytes, context: int) -> None:
        if self._plans.get(place) == (plan, context):
            return
        self._plans[place] = (plan, context)
        self._plans.move_to_end(place)
        current = self._current.get(place)
        if current is not None and current.side == "client":
            self._drop(place, current)
        if len(self._plans) > _PLANS_MAX:
            self._plans.popitem(last=False)

    def _program_sent(self, place: Place, body: bytes) -> None:
        exchange = self._current.get(place)
        if exchange is not None and exchange.side == "client":
            if exchange.idle(time.monotonic(), CLIENT_IDLE):  # the server may have forgotten it
                self._drop(place, exchange)
                exchange = None
        if exchange is None and place in self._plans:
            exchange = self._open_exchange(place)
        if exchange is not None:
            before = exchange.dropped
            exchange.program(body)
            self._lost += exchange.dropped - before
            self._pass_on(place, exchange)
        elif self._mode is Mode.REQUIRED:
            self._kept_out += 1
            self._strangers.add(place.addr)
            self._tell_soon()
        else:
            self._plain()
            self._send(body, place)

    def _open_exchange(self, place: Place) -> Exchange:
        plan, number = self._plans[place]
        secrets = self._control.secrets(number)
        context = Context("client", secrets.material, _text(self._name(place)))
        exchange = Exchange(context, secrets.key, plan)
        self._add(place, exchange)
        self._current[place] = exchange
        exchange.start()
        return exchange

    def _program_closed(self) -> None:
        if self._until is None:
            self._until = time.monotonic() + _LINGER[self._side]
            self._loop.set(self._linger_timer, self._until)
        self._loop.watch(self.pair.fileno(), None, self._on_program)
        if not self._busy():
            self._close()
        elif len({place for place, _ in self._exchanges}) == 1:
            with contextlib.suppress(OSError):  # so that the kernel says when nobody is there any more
                self.udp.connect(self._name(next(iter(self._exchanges))[0]))

    def _busy(self) -> bool:
        return bool(self._to_network) or any(x.unsaid for x in self._exchanges.values())

    # -- from the network -----------------------------------------------------------------------------

    def _on_network(self, events: int) -> None:
        if events & WRITE:
            self._flush_network()
        rounds = self._rounds["network"]
        self._rounds["network"] = min(2 * rounds, _ROUNDS)
        for done in range(rounds):
            if not self._open:
                return
            try:
                data, name = self.udp.recvfrom(_BIGGEST)
            except (BlockingIOError, InterruptedError):
                self._rounds["network"] = max(done, 1)
                break
            except OSError as error:
                self._give_error(error)
                if not events & (READ | select.EPOLLERR):
                    break
                continue
            self._network_said(data, self._place(name))
        self._settle_touched()
        self._watch()

    def _give_error(self, error: OSError) -> None:
        """An ICMP message: a connected socket's program hears of it."""
        if self._until is not None and error.errno == errno.ECONNREFUSED:
            self._close()
            return
        with contextlib.suppress(OSError):
            self.udp.getpeername()
            place = Place(bytes(16), 0, 0)
            self._give(_head(_ERROR, place, error.errno or errno.EIO))

    def _network_said(self, data: bytes, place: Place) -> None:
        if envelope.is_ours(data):
            came = envelope.opened(data)
            if came is not None:
                self._carrier_said(came, place)
            return
        if place in self._current or place in self._plans or self._mode is Mode.REQUIRED:
            self._kept_out += 1
            if len(self._strangers) < _QUEUE_MAX:
                self._strangers.add(place.addr)
            self._tell_soon()
            return
        self._plain()
        if not self._give(_head(_DATA, place) + data):
            self._lost += 1

    def _carrier_said(self, came: Envelope, place: Place) -> None:
        exchange = self._exchanges.get((place, came.session))
        if exchange is None:
            if self._side != "server":
                return
            if came.kind is Kind.HELLO:
                self._greeted(came, place)
            elif came.kind is Kind.DATA:
                self._answer_unknown(came, place)
            return
        if came.kind is Kind.DATA:
            if self._full_up():
                self._lost += 1  # a chunnel that sends again will
                return
            if exchange.step is Step.READY:
                self._current[place] = exchange
        exchange.network(came)
        self._pass_on(place, exchange)

    def _full_up(self) -> bool:
        return len(self._to_program) >= _QUEUE_MAX or self._program_bytes >= _QUEUE_BYTES

    def _greeted(self, came: Envelope, place: Place) -> None:
        """A client that is not known yet."""
        secrets = self._control.secrets(self._carry.listener)
        plan, why = envelope.read_hello(came, secrets.key)
        if why is not None:
            self._kept_out += 1
            self._refused(place, came.session, why)
        if plan is None or self._until is not None:
            return
        if self._unjudged >= _UNJUDGED_MAX or not self._room_for(place):
            self._lost += 1  # it says so again
            return
        try:
            datagram_recipe(plan, "server")
        except OSError as error:
            self._refused(place, came.session, error.strerror or str(error))
            return
        context = Context("server", secrets.material, _text(self._name(place)))
        exchange = Exchange(context, secrets.key, plan, came.session)
        self._add(place, exchange)
        self._unjudged += 1

        def verdict(why: str | None) -> None:
            self._unjudged -= 1
            if self._open and self._exchanges.get((place, came.session)) is exchange:
                exchange.judged(why)
                if exchange.step is Step.READY:
                    self._current[place] = exchange
                self._settle(place, exchange)
                self._watch()

        self._control.ask(self._carry.listener, plan, context.peer, verdict)

    def _refused(self, place: Place, session: int, why: str) -> None:
        log.warning("server %s: refused %s", _text(self._name(place)), why)
        self._detail = why
        self._send(envelope.refuse(session, why), place)
        self._tell_soon()

    def _room_for(self, place: Place) -> bool:
        """Makes room by what has been silent longest."""
        own = [k for k in self._exchanges if k[0] == place]
        if len(own) >= _EACH_MAX:
            for key in own[: len(own) - _EACH_MAX + 1]:
                if self._exchanges[key] is not self._current.get(place):
                    self._drop(place, self._exchanges[key])
        if len(self._exchanges) >= EXCHANGES_MAX:
            now = time.monotonic()
            silent = max(self._exchanges, key=lambda k: self._exchanges[k].silent(now))
            if self._exchanges[silent].silent(now) > _SILENT_SECONDS:
                self._drop(silent[0], self._exchanges[silent])
        return len(self._exchanges) < EXCHANGES_MAX

    def _answer_unknown(self, came: Envelope, place: Place) -> None:
        now = time.monotonic()
        if now - self._unknown_at >= 1.0:
            self._unknown_at, self._unknowns = now, 0
        self._unknowns += 1
        if self._unknowns <= _UNKNOWN_RATE:
            self._send(envelope.sealed(Kind.UNKNOWN, came.session), place)

    # -- exchanges ------------------------------------------------------------------------------------

    def _add(self, place: Place, exchange: Exchange) -> None:
        key = (place, exchange.session)
        exchange.label = _head(_DATA, place)
        self._exchanges[key] = exchange
        self._timers[key] = Timer(lambda now: self._due(place, exchange, now))
        self._loop.set(self._timers[key], exchange.deadline())

    def _due(self, place: Place, exchange: Exchange, now: float) -> None:
        exchange.tick(now)
        self._settle(place, exchange)
        self._watch()

    def _pass_on(self, place: Place, exchange: Exchange) -> None:
        """What it says goes on at once; what else follows can wait until all that has come has been read."""
        if exchange.to_network:
            out, exchange.to_network = exchange.to_network, []
            for data in out:
                self._send(data, place)
        if exchange.to_program:
            risen, exchange.to_program = exchange.to_program, []
            for data in risen:
                self._give(exchange.label + data, always=True)
        if exchange.step is Step.FAILED:
            self._settle(place, exchange)
        else:
            self._touched[exchange] = place

    def _settle_touched(self) -> None:
        touched, self._touched = self._touched, {}
        for exchange, place in touched.items():
            if self._open and self._exchanges.get((place, exchange.session)) is exchange:
                self._settle(place, exchange)

    def _settle(self, place: Place, exchange: Exchange) -> None:
        """What follows from anything that has happened to it."""
        if exchange.to_network or exchange.to_program:
            self._pass_on(place, exchange)
        self._touched.pop(exchange, None)
        if exchange.step is Step.READY and exchange.chunnels != self._chunnels:
            self._chunnels = exchange.chunnels
            self._tell()
        if exchange.step is Step.FAILED:
            if exchange.traceback:
                log.error("%s %s: %s", exchange.side, exchange.context.peer, exchange.traceback)
            if exchange.detail:
                log.warning("%s %s: %s", exchange.side, exchange.context.peer, exchange.detail)
                self._detail = exchange.detail
            self._drop(place, exchange)
            if exchange.refused:
                self._plans.pop(place, None)
                self._give(_head(_REFUSED, place))
                with contextlib.suppress(OSError):
                    self.udp.getpeername()
                    self._give(_head(_ERROR, place, errno.ECONNREFUSED))
            self._tell_soon()
        else:
            timer = self._timers.get((place, exchange.session))
            if timer is not None:
                self._loop.set(timer, exchange.deadline())
        if self._until is not None and not self._busy():
            self._close()

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
        if len(self._to_network) >= 2 * _QUEUE_MAX:
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
            if error.errno == errno.ECONNREFUSED:
                self._give_error(error)
        return True

    def _flush_network(self) -> None:
        while self._to_network and self._sent(*self._to_network[0]):
            self._to_network.popleft()

    def _give(self, data: bytes, always: bool = False) -> bool:
        """To the program, if there is room."""
        if not self._open or self._until is not None:
            return False
        if not always and self._full_up():
            return False
        if self._to_program or not self._given(data):
            self._to_program.append(data)
            self._program_bytes += len(data)
        return True

    def _given(self, data: bytes) -> bool:
        """False: the program has to take others first."""
        try:
            self.pair.send(data, socket.MSG_NOSIGNAL)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:  # closed: the next read says so
            pass
        return True

    def _flush_program(self) -> None:
        while self._to_program and self._given(self._to_program[0]):
            self._program_bytes -= len(self._to_program.popleft())

    def _watch(self) -> None:
        if not self._open:
            return
        network = READ | (WRITE if self._to_network else 0)
        self._loop.watch(self.udp.fileno(), network, self._on_network)
        if self._until is None:
            program = (READ if self._takes_program() else 0) | (WRITE if self._to_program else 0)
            self._loop.watch(self.pair.fileno(), program, self._on_program)

    # -- the log --------------------------------------------------------------------------------------

    def _plain(self) -> None:
        if not self._passed:
            self._passed = True
            self._tell()

    def _tell_soon(self) -> None:
        if time.monotonic() - self._told_at >= _STATUS_SECONDS:
            self._tell()
        elif self._tell_timer.at is None:
            self._loop.set(self._tell_timer, self._told_at + _STATUS_SECONDS)

    def _tell(self) -> None:
        words = [self._detail] if self._detail else []
        if self._kept_out:
            count = len(self._strangers)
            words.append(
                f"{self._kept_out} datagrams dropped that did not go by the chunnels ({count} addresses)"
            )
        if self._lost:
            words.append(f"{self._lost} datagrams dropped for want of room")
        state = State.PENDING
        if self._chunnels:
            state = State.READY
        elif self._passed:
            state = State.PLAIN
        elif words:
            state = State.REFUSED
        told = (state, self._chunnels, "; ".join(words))
        if told != self._told:
            self._told = told
            self._told_at = time.monotonic()
            self._carry.status.write(*told)

    # -- the end --------------------------------------------------------------------------------------

    def _close(self) -> None:
        if not self._open:
            return
        self._tell()
        self._open = False
        for timer in (self._tell_timer, self._linger_timer, self._agent_timer, *self._timers.values()):
            self._loop.set(timer, None)
        for exchange in self._exchanges.values():
            exchange.close()
        self._exchanges.clear()
        self._current.clear()
        self._touched.clear()
        self._loop.watch(self.udp.fileno(), None, self._on_network)
        self._loop.watch(self.pair.fileno(), None, self._on_program)
        self.udp.close()
        self.pair.close()
        self._ended(self)


#: A plan's message is longer than a datagram's.
_PLAN_ROOM: Final = 8192


def _head(kind: int, place: Place, value: int = 0) -> bytes:
    return _HEAD.pack(_MAGIC, kind, place.port, 0, place.scope, 0, value, place.addr)


def _text(name: tuple[object, ...]) -> str:
    host, port = name[0], name[1]
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
