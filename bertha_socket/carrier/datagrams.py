"""A UDP socket of a program's, carried: its datagrams go through chunnels, to and from many others.

The program's side is a pair of datagrams, each behind a header that names the other end (struct bertha_dgram
of native/carrier/carrier.h).  Who shows a plan gets an exchange of its own (`peers`); who does not is passed
through, or where chunnels are required dropped and counted.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import struct
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, Final

from bertha_socket.carrier.apart import log_counts
from bertha_socket.carrier.aside import ITEM_MAX, Aside
from bertha_socket.carrier.control import Control, Secrets
from bertha_socket.carrier.exchange import CLIENT_IDLE, Exchange, Step, datagram_recipe
from bertha_socket.carrier.loop import READ, WRITE, Loop, Timer
from bertha_socket.carrier.peers import BIGGEST, PLACES_MAX, QUEUE_MAX, ROUNDS_MAX, Peers, Place, text_of
from bertha_socket.carrier.plans import Recipe
from bertha_socket.carrier.process import Processes
from bertha_socket.carrier.session import Mode, State
from bertha_socket.carrier.shim import Carry
from bertha_socket.carrier.sums import Sums
from bertha_socket.chunnels import ChunnelError
from bertha_socket.chunnels._types import pieces

log: Final = logging.getLogger(__name__)

HEAD: Final = struct.Struct("=HHHHIIQ16s")
MAGIC: Final = 0xBD47
_DATA, _PLAN, _ERROR, _REFUSED, _NO_AGENT = 1, 2, 3, 4, 5
#: Bytes that wait for the program.
_QUEUE_BYTES: Final = 4 << 20
#: Seconds for which what is still unsaid is said after the program has closed.
_LINGER: Final = {"client": 10.0, "server": 1.0}
_STATUS_SECONDS: Final = 0.1
_AGENT_SECONDS: Final = 1.0
#: Exchanges of one socket whose chunnels have a process of their own.
_ASIDE_MAX: Final = 256


class Datagrams(Peers):
    """One carried UDP socket.  `ended(self)` is called once, when it is closed."""

    #: No program can send or be given a longer one.
    _message_max = ITEM_MAX
    _begun_max = 32 << 20

    def __init__(
        self,
        loop: Loop,
        control: Control,
        carry: Carry,
        processes: Processes,
        ended: Callable[[Datagrams], None],
    ) -> None:
        super().__init__(loop, carry.tcp, "server" if carry.server else "client", Mode(carry.mode))
        self._control = control
        self._carry = carry
        self._processes = processes
        self._ended = ended
        self._aside = self._made_aside
        #: Those whose chunnels have a process of their own.
        self._asides: set[Exchange] = set()
        self.pair = carry.pair
        #: Heads of the program's datagrams that have been looked at.
        self._heads: dict[bytes, tuple[Place, int]] = {}
        self._plans: OrderedDict[Place, tuple[bytes, int]] = OrderedDict()
        self._to_program: deque[bytes] = deque()
        self._program_bytes = 0
        self._program_rounds = 1
        self._until: float | None = None  # the program has closed
        # What the log will say.
        self._sums = Sums(self._side)
        self._shown: set[Exchange] = set()
        self._adders: dict[Exchange, Callable[[], bool]] = {}
        self._passed = False  # something plain
        self._told_at = 0.0
        self._told = (-1, 0, "")
        self._tell_timer = Timer(lambda now: self._tell())
        self._linger_timer = Timer(lambda now: self._close())
        self._agent_timer = Timer(lambda now: self.agent_gone())
        self.pair.setblocking(False)

    def start(self) -> None:
        """Begins."""
        self._watch()

    def agent_gone(self) -> None:
        """Who is bound here must tell the next agent: nobody else wakes up a program that only answers."""
        if self._open and self._side == "server":
            if not self._to_program:
                self._give(head(_NO_AGENT, Place(bytes(16), 0, 0)))
            self._loop.set(self._agent_timer, time.monotonic() + _AGENT_SECONDS)
            self._watch()

    # -- from the program -----------------------------------------------------------------------------

    def _on_program(self, events: int) -> None:
        if events & WRITE:
            self._flush_program()
        rounds = self._program_rounds
        self._program_rounds = min(2 * rounds, ROUNDS_MAX)
        for done in range(rounds):
            if not self._takes_program():
                break
            try:
                data = self.pair.recv(BIGGEST + _PLAN_ROOM)
            except (BlockingIOError, InterruptedError):
                self._program_rounds = max(done, 1)
                break
            except ConnectionResetError:
                continue  # it closed with something unread: told once, and before what it had sent
            except OSError:
                data = b""
            if not data:
                self._program_closed()
                break
            self._program_said(data)
        self._settle_touched()
        self._watch()

    def _takes_program(self) -> bool:
        if not self._open or self._until is not None or len(self._to_network) >= QUEUE_MAX:
            return False
        # One who does not take its datagrams keeps nobody else waiting.
        return len(self._current) != 1 or not next(iter(self._current.values())).full

    def _program_said(self, data: bytes) -> None:
        known = self._heads.get(data[: HEAD.size])
        if known is not None:
            self._program_sent_all(*known, data[HEAD.size :])
            return
        if len(data) < HEAD.size:
            return
        magic, kind, port, _, scope, _, value, addr = HEAD.unpack_from(data)
        if magic != MAGIC or port == 0:
            return  # not through the shim: whoever wrote this meant no datagram of ours
        place, body = Place(addr, port, scope), data[HEAD.size :]
        if kind == _PLAN:
            self._planned(place, body, value)
        elif kind == _DATA:
            if len(self._heads) >= PLACES_MAX:
                self._heads.clear()
            self._heads[data[: HEAD.size]] = place, value
            self._program_sent_all(place, value, body)

    def _planned(self, place: Place, plan: bytes, context: int) -> None:
        if self._plans.get(place) == (plan, context):
            return
        self._plans[place] = (plan, context)
        self._plans.move_to_end(place)
        current = self._current.get(place)
        if current is not None and current.side == "client":
            self._drop(place, current)
        if len(self._plans) > PLACES_MAX:
            self._plans.popitem(last=False)

    def _program_sent_all(self, place: Place, each: int, body: bytes) -> None:
        """As one datagram, or several of so many bytes (UDP_SEGMENT)."""
        for datagram in pieces(body, each):
            self._program_sent(place, datagram)

    def _program_sent(self, place: Place, body: bytes) -> None:
        try:
            self._name(place)
        except OSError:  # an address of the other family: the kernel would have said so to the program
            self._lost += 1
            return
        exchange = self._current.get(place)
        if exchange is not None and exchange.side == "client":
            if exchange.idle(time.monotonic(), CLIENT_IDLE):  # the server may have forgotten it
                self._drop(place, exchange)
                exchange = None
        if exchange is None and place in self._plans:
            exchange = self._open_exchange(place)
        if exchange is not None:
            dropped, before = exchange.dropped, exchange.step
            exchange.program(body)
            self._lost += exchange.dropped - dropped
            self._pass_on(place, exchange, before)
        elif self._mode is Mode.REQUIRED:
            self._kept_out += 1
            self._strangers.add(place.addr)
            self._tell_soon()
        else:
            self._plain()
            self._send(body, place)

    def _open_exchange(self, place: Place) -> Exchange:
        plan, number = self._plans[place]
        secrets = self._control.client_secrets(number, self._carry.uid)
        local = text_of(self.udp.getsockname())
        context = self._context("client", secrets, place, local)
        exchange = Exchange(context, secrets.key, plan, recipe=self._recipe, aside=self._aside)
        self._add(place, exchange)
        self._current[place] = exchange
        exchange.start()
        return exchange

    def _add(self, place: Place, exchange: Exchange) -> None:
        exchange.label = head(_DATA, place)
        self._adders[exchange] = self._sums.adder(exchange.context.counts)
        super()._add(place, exchange)

    def _drop(self, place: Place, exchange: Exchange) -> None:
        super()._drop(place, exchange)
        self._asides.discard(exchange)
        self._shown.discard(exchange)
        adder = self._adders.pop(exchange, None)
        if adder is not None:
            adder()
            self._tell_counts()
            log_counts(exchange.context)

    def _made_aside(self, recipe: Recipe, exchange: Exchange) -> Aside:
        """Raises ChunnelError: there is no room for another process."""
        if not self._room_among(self._asides, _ASIDE_MAX):
            raise ChunnelError(f"{_ASIDE_MAX} others have processes for their chunnels already")
        before, lost = exchange.step, 0

        def changed() -> None:
            nonlocal before, lost
            if not self._open or exchange not in self._asides:
                return
            if made.lost != lost:
                self._lost += made.lost - lost
                lost = made.lost
                self._tell_soon()
            if before is Step.PENDING and exchange.side == "server":
                self._is_made(exchange.place, exchange)
            before = exchange.step
            self._settle(exchange.place, exchange)
            self._watch()

        made = Aside(self._loop, self._processes, self._carry.user, recipe, exchange, changed)
        self._asides.add(exchange)
        return made

    def _linger(self) -> None:
        """The program has closed: what is unsaid is still said, for a while."""
        if self._until is None:
            self._until = time.monotonic() + _LINGER[self._side]
            self._loop.set(self._linger_timer, self._until)

    def _program_closed(self) -> None:
        self._linger()
        self._loop.watch(self.pair.fileno(), None, self._on_program)
        if not self._busy():
            self._close()
        elif self._side == "client" and len({place for place, _ in self._exchanges}) == 1:
            # A server's socket may have gone to another carrier, to which all speak.
            with contextlib.suppress(OSError):  # so that the kernel says when nobody is there any more
                self.udp.connect(self._name(next(iter(self._exchanges))[0]))

    def _busy(self) -> bool:
        return bool(self._to_network) or any(x.unsaid for x in self._exchanges.values())

    # -- from the network -----------------------------------------------------------------------------

    def _plan_shown(self, plan: bytes, peer: str, verdict: Callable[[str | None], None]) -> None:
        self._control.ask(self._carry.listener, plan, peer, verdict)

    def _secrets(self) -> Secrets | None:
        return self._control.secrets(self._carry.listener, self._carry.uid)

    def _recipe(self, plan: bytes, side: str) -> Recipe:
        return datagram_recipe(plan, side)

    def _expected(self, place: Place) -> bool:
        return place in self._plans or super()._expected(place)

    def _closing(self) -> bool:
        return self._until is not None

    def _risen(self, place: Place, exchange: Exchange, items: list[Any]) -> None:
        self._count(exchange)  # before the program has what was counted
        for data in items:
            if len(self._to_program) > 4 * QUEUE_MAX or self._program_bytes > 4 * _QUEUE_BYTES:
                self._lost += 1  # what comes up unasked, of chunnels that are not ours
                self._tell_soon()
            else:
                self._give(exchange.label + data, always=True)

    def _plainly(self, place: Place, data: bytes) -> None:
        self._plain()
        if not self._give(head(_DATA, place) + data):
            self._lost += 1

    def _is_ready(self, place: Place, exchange: Exchange) -> None:
        self._count(exchange)
        if exchange not in self._shown:
            self._shown.add(exchange)
            self._sums.show(exchange.plan)
            self._tell()

    def _has_failed(self, place: Place, exchange: Exchange) -> None:
        if exchange.refused:
            self._plans.pop(place, None)
            self._give(head(_REFUSED, place))
            with contextlib.suppress(OSError):
                self.udp.getpeername()
                self._give(head(_ERROR, place, errno.ECONNREFUSED))

    def _happened(self) -> None:
        if self._until is not None and not self._busy():
            self._close()

    def _unsendable(self, place: Place, error: OSError) -> None:
        if error.errno == errno.ECONNREFUSED:
            self._network_error(error)

    def _network_error(self, error: OSError) -> None:
        """An ICMP message: a connected socket's program hears of it."""
        if self._until is not None and error.errno == errno.ECONNREFUSED:
            self._close()
            return
        with contextlib.suppress(OSError):
            self.udp.getpeername()
            place = Place(bytes(16), 0, 0)
            self._give(head(_ERROR, place, error.errno or errno.EIO))

    def _full_up(self, exchange: Exchange | None = None) -> bool:
        return len(self._to_program) >= QUEUE_MAX or self._program_bytes >= _QUEUE_BYTES

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
        super()._watch()
        if self._open and self._until is None:
            program = (READ if self._takes_program() else 0) | (WRITE if self._to_program else 0)
            self._loop.watch(self.pair.fileno(), program, self._on_program)

    # -- the log --------------------------------------------------------------------------------------

    def _count(self, exchange: Exchange) -> None:
        adder = self._adders.get(exchange)
        if adder is not None and adder():
            self._tell_counts()

    def _tell_counts(self) -> None:
        self._say_changes(self._sums.changes())

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
        left_out = self._sums.left_out
        if self._side == "server" and self._passed and not self._sums.text:
            left_out = self._control.why_plain(self._carry.listener, "")
        words = [text for text in (self._detail, left_out) if text]
        if self._kept_out:
            count = len(self._strangers)
            words.append(
                f"{self._kept_out} datagrams dropped that did not go by the chunnels ({count} addresses)"
            )
        if self._lost:
            words.append(f"{self._lost} datagrams dropped for want of room")
        state = State.PENDING
        if self._sums.text:
            state = State.READY
        elif self._passed:
            state = State.PLAIN
        elif words:
            state = State.REFUSED
        told = (state, self._sums.version, "; ".join(words))
        if told != self._told:
            self._told = told
            self._told_at = time.monotonic()
            self._say(state, self._sums.text, told[2])

    def _say(self, state: State, text: str, detail: str) -> None:
        """For the log: the chunnels' text, and what else there is to know."""
        self._carry.status.write(state, text, detail)

    def _say_changes(self, changes: list[tuple[int, bytes]]) -> None:
        """Of the text (`sums.Sums.changes`)."""
        self._carry.status.change(changes)

    # -- the end --------------------------------------------------------------------------------------

    def _close(self) -> None:
        if not self._open:
            return
        for exchange in self._exchanges.values():
            self._count(exchange)
            log_counts(exchange.context)
        self._tell()
        for timer in (self._tell_timer, self._linger_timer, self._agent_timer):
            self._loop.set(timer, None)
        self._loop.watch(self.pair.fileno(), None, self._on_program)
        self.pair.close()
        self._end()
        self._ended(self)


#: A plan's message is longer than a datagram's.
_PLAN_ROOM: Final = 8192


def head(kind: int, place: Place, value: int = 0) -> bytes:
    """What stands before a datagram between the program and its carrier."""
    return HEAD.pack(MAGIC, kind, place.port, 0, place.scope, 0, value, place.addr)
