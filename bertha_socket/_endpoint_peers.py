"""A UDP socket of an endpoint (`bertha_socket.new`): its chunnels run here, in the application.

What the carrier of datagrams does for a program behind a pair of sockets (carrier/datagrams.py) this does for
connections that take and give messages or objects.  A thread of its own (`_endpoint_loop`) sends again what
was lost; everything here is under that thread's lock.
"""

from __future__ import annotations

import atexit
import errno
import logging
import os
import socket
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any, Final

from bertha_socket import _endpoint_log
from bertha_socket._endpoint_connection import EndpointError
from bertha_socket._endpoint_datagram_connection import DatagramConnection, endpoint_recipe
from bertha_socket._endpoint_loop import SharedLoop
from bertha_socket.carrier import envelope
from bertha_socket.carrier.control import Secrets
from bertha_socket.carrier.envelope import Envelope, Kind
from bertha_socket.carrier.exchange import Exchange, Step
from bertha_socket.carrier.loop import READ
from bertha_socket.carrier.peers import EXCHANGES_MAX, Peers, Place, text_of
from bertha_socket.carrier.plans import Recipe
from bertha_socket.carrier.session import Mode

__all__ = ["EndpointPeers", "Judge"]

#: About a plan that a client shows: None, or one line why it may not run.
Judge = Callable[[bytes], str | None]
#: Bytes that wait for the application.
_ALL_BYTES_MAX: Final = 64 << 20
#: Seconds for which a closed connection says what is still unsaid, and then waits for the other end's end.
_LINGER: Final = 10.0
_REST: Final = 1.0
#: Answers to clients without an agent may take this share of the time, whatever an offer is made for; and be
#: so many times as long as the question, so that a forged address is not flooded by us (RFC 9000, section
#: 8.1, has the same bound).
_ANSWERS_SHARE: Final = 0.2
_ANSWER_TIMES: Final = 3


class EndpointPeers(Peers):
    """The socket of a listening endpoint, or of one connection."""

    #: The application is told by exceptions; what strangers do is no reason to write to its standard error.
    log_level = logging.INFO

    def __init__(
        self,
        loop: SharedLoop,
        udp: socket.socket,
        side: str,
        mode: Mode,
        name: str,
        secrets: Callable[[], Secrets],
        *,
        judge: Judge | None = None,
        answer: Callable[[bytes], bytes] | None = None,
        backlog: int = 0,
        left_out: Callable[[], str] = str,
    ) -> None:
        """`judge`: of the plans that clients show.  `answer`: to clients without an agent, in the words of
        `negotiation.machine`.  `backlog`: connections that wait to be accepted.  `left_out`: for the log, of
        those without a plan."""
        super().__init__(loop, udp, side, mode)
        self.name = name
        self.changed = threading.Condition(loop.lock)
        #: Bytes that wait for the application.
        self.size = 0
        self.waiting: deque[DatagramConnection] = deque()
        self._shared = loop
        self._given = secrets
        self._known = secrets()
        self._judge = judge
        self._answer = answer
        self._backlog = backlog
        self._left_out = left_out
        self._listening = side == "server"
        self._by_exchange: dict[Exchange, DatagramConnection] = {}
        self._plain: OrderedDict[Place, DatagramConnection] = OrderedDict()
        self._bell = -1
        self._answers_from = 0.0
        self._too_long: OSError | None = None
        self._agent_ended = False
        self.local = text_of(udp.getsockname())
        _all.add(self)
        self._watch()

    def locked(self) -> AbstractContextManager[Any]:
        """The lock, for a `with`.  Raises OSError: this is a forked child, and the socket its parent's."""
        if self._shared.pid != os.getpid():
            raise EndpointError(f"{self.name}: this endpoint is the parent process's; make one after fork()")
        return self._shared.lock

    def name_of(self, place: Place) -> str:
        """ADDRESS:PORT."""
        return text_of(self._name(place))

    # -- a client's -----------------------------------------------------------------------------------

    def open(self, plan: bytes | None, timeout: float) -> DatagramConnection:
        """The connection to whom the socket is connected to, by a plan or (None) plainly.

        Raises OSError: the other end refuses, or does not answer within `timeout` seconds.
        """
        began = time.monotonic()
        with self.locked():
            place = self._place(self.udp.getpeername())
            if plan is None:
                self._plain[place] = made = DatagramConnection(self, place, None, began)
                return made
            secrets = self._secrets()
            context = self._context("client", secrets, place, self.local)
            exchange = Exchange(context, secrets.key, plan, recipe=endpoint_recipe)
            self._add(place, exchange)
            self._current[place] = exchange
            self._by_exchange[exchange] = made = DatagramConnection(self, place, exchange, began)
            try:
                exchange.start()
                self._settle(place, exchange)
                while exchange.step is Step.PENDING:
                    left = began + timeout - time.monotonic()
                    if left <= 0:
                        problem = f"{self.name}: {made.peer} has not answered in time"
                        raise TimeoutError(errno.ETIMEDOUT, problem)
                    self.changed.wait(left)
            except BaseException:  # a signal's handler may raise too
                exchange.fail("")
                self._settle(place, exchange)
                raise
            made._raise()
            made._setup_us = round((time.monotonic() - began) * 1e6)
            return made

    # -- a listener's ---------------------------------------------------------------------------------

    def accept(self, timeout: float | None) -> DatagramConnection | None:
        """The next connection; None: there is none within `timeout` seconds, or the agent has ended.

        Raises OSError: closed."""
        until = None if timeout is None else time.monotonic() + timeout
        with self.locked():
            while not self.waiting:
                if self._agent_ended:
                    self._agent_ended = False
                    return None
                if not self._listening:
                    raise OSError(errno.EBADF, os.strerror(errno.EBADF))
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    return None
                self.changed.wait(left)
            made = self.waiting.popleft()
            self._ring()
            return made

    def watch_agent(self, fd: int) -> None:
        """Lets `accept` return when the agent's connection ends: it says nothing unasked."""

        def ended(events: int) -> None:
            self._loop.watch(fd, None, ended)
            self._agent_ended = True
            self.changed.notify_all()

        with self.locked():
            self._loop.watch(fd, READ, ended)

    def unwatch(self, fd: int) -> None:
        """That connection is about to be closed."""
        with self.locked():
            self._loop.watch(fd, None, lambda events: None)

    def fileno(self) -> int:
        """Readable when there is somebody to accept."""
        with self.locked():
            if self._bell < 0:
                self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
                self._ring()
            return self._bell

    def _ring(self) -> None:
        if self._bell >= 0:
            with suppress(BlockingIOError):
                if self.waiting:
                    os.eventfd_write(self._bell, 1)
                else:
                    os.eventfd_read(self._bell)

    def stop(self) -> None:
        """Listens no more; connections stay."""
        with self.locked():
            self._listening = False
            for connection in list(self.waiting):
                connection.close()
            self.waiting.clear()
            if self._bell >= 0:
                os.close(self._bell)
                self._bell = -1
            self.changed.notify_all()
            self._end_if_done()

    # -- what peers ask -------------------------------------------------------------------------------

    def _plan_shown(self, plan: bytes, peer: str, verdict: Callable[[str | None], None]) -> None:
        verdict("no plan was asked for" if self._judge is None else self._judge(plan))

    def _secrets(self) -> Secrets:
        with suppress(OSError):  # a key file that cannot be read just now
            self._known = self._given()
        return self._known

    def _recipe(self, plan: bytes, side: str) -> Recipe:
        return endpoint_recipe(plan, side)

    def _closing(self) -> bool:
        return not self._listening or len(self.waiting) >= self._backlog

    def _full_up(self, exchange: Exchange | None) -> bool:
        connection = self._by_exchange.get(exchange) if exchange is not None else None
        return self.size >= _ALL_BYTES_MAX or (connection is not None and connection.full)

    def _connection(self, place: Place, exchange: Exchange) -> DatagramConnection:
        found = self._by_exchange.get(exchange)
        if found is None:
            found = DatagramConnection(self, place, exchange, time.monotonic())
            self._by_exchange[exchange] = found
            self._arrived(found)
        return found

    def _arrived(self, connection: DatagramConnection) -> None:
        self.waiting.append(connection)
        self._ring()

    def _risen(self, place: Place, exchange: Exchange, items: list[Any]) -> None:
        self._connection(place, exchange).came(items)

    def _is_ready(self, place: Place, exchange: Exchange) -> None:
        connection = self._connection(place, exchange)
        connection.chunnels = exchange.chunnels
        if exchange.up_done and not connection._ended:
            connection._ended = True
            connection._ring()

    def _plainly(self, place: Place, data: bytes) -> None:
        connection = self._plain.get(place)
        if connection is None:
            if self._closing():
                self._lost += 1
                return
            if len(self._plain) >= EXCHANGES_MAX:  # they have no end: who was silent longest makes room
                _, silent = self._plain.popitem(last=False)
                silent.over(None)
            connection = self._plain[place] = DatagramConnection(self, place, None, time.monotonic())
            self._arrived(connection)
        self._plain.move_to_end(place)
        if connection.full or self.size >= _ALL_BYTES_MAX:
            self._lost += 1
        else:
            connection.came([data])
        self.changed.notify_all()

    def _settle(self, place: Place, exchange: Exchange) -> None:
        failed = exchange.step is Step.FAILED and exchange.detail and not exchange.refused
        if failed and exchange in self._by_exchange:  # the other end need not wait for what will not come
            self._send(envelope.sealed(Kind.END, exchange.session), place)
        super()._settle(place, exchange)
        connection = self._by_exchange.get(exchange)
        if connection is not None and connection._closed and exchange.step is not Step.FAILED:
            self.linger(connection)
        self.changed.notify_all()

    def _drop(self, place: Place, exchange: Exchange) -> None:
        super()._drop(place, exchange)
        connection = self._by_exchange.pop(exchange, None)
        if connection is not None:
            self._loop.set(connection._timer, None)
            connection.over(EndpointError(f"{self.name}: {exchange.detail}") if exchange.detail else None)
        self.changed.notify_all()
        self._end_if_done()

    def _network_error(self, error: OSError) -> None:
        """An ICMP message for a connected socket: there is nobody (any more)."""
        for (place, _), exchange in list(self._exchanges.items()):
            connection = self._by_exchange.get(exchange)
            if connection is not None and connection._problem is None and not connection._closed:
                number = errno.ECONNRESET
                if exchange.step is Step.PENDING or error.errno != errno.ECONNREFUSED:
                    number = error.errno or errno.EIO
                connection._problem = OSError(number, f"{self.name}: {os.strerror(number)}")
            exchange.fail("")
            self._settle(place, exchange)
        for connection in self._plain.values():
            connection._problem = error
            connection._ring()
        self.changed.notify_all()

    def _unsendable(self, place: Place, error: OSError) -> None:
        if error.errno == errno.ECONNREFUSED:
            self._network_error(error)
        elif error.errno == errno.EMSGSIZE:
            self._too_long = error

    def _asked(self, came: Envelope, place: Place) -> None:
        now = time.monotonic()
        if self._answer is None or not self._listening or now < self._answers_from:
            return  # it asks again
        said = self._answer(envelope.said(came))
        took = time.monotonic() - now
        self._answers_from = now + took / _ANSWERS_SHARE
        data = envelope.answer(came.session, said) if said else b""
        if data and len(data) <= _ANSWER_TIMES * len(came.body):
            self._send(data, place)

    # -- what connections ask -------------------------------------------------------------------------

    def settle(self, place: Place, exchange: Exchange) -> None:
        """After something was given to an exchange.  Raises OSError: a datagram was too long."""
        self._settle(place, exchange)
        if self._open:
            self._watch()
        self._complain()

    def send_plain(self, place: Place, data: bytes) -> None:
        """A datagram without an exchange.  Raises OSError: it was too long."""
        self._send(bytes(data), place)
        if self._open:
            self._watch()
        self._complain()

    def _complain(self) -> None:
        error, self._too_long = self._too_long, None
        if error is not None:
            raise OSError(error.errno, f"{self.name}: the datagram is too long; use reliable()")

    def linger(self, connection: DatagramConnection) -> None:
        """A closed one goes once all is said."""
        exchange = connection._exchange
        if exchange is None:
            if self._plain.get(connection._place) is connection:
                del self._plain[connection._place]
                connection.over(None)
            self._end_if_done()
            return
        if exchange.done or exchange.step is Step.FAILED:
            self.let_go(connection)
            return
        now = time.monotonic()
        if connection._linger is None:
            connection._linger = now + _LINGER
        at = connection._linger if exchange.unsaid else min(connection._linger, now + _REST)
        self._loop.set(connection._timer, at)

    def let_go(self, connection: DatagramConnection) -> None:
        """It has lingered for long enough."""
        exchange = connection._exchange
        if exchange is not None:
            exchange.part()
            self._settle(connection._place, exchange)

    @property
    def unsaid(self) -> bool:
        """Whether a closed connection still has something to say."""
        return any(c._closed and x.unsaid for x, c in self._by_exchange.items())

    def log(self, connection: DatagramConnection, reason: str | None) -> None:
        """The connection log's line."""
        text = connection.chunnels
        if text or connection._rx or connection._tx:
            plain = None if text else "the other end knows of no chunnels"
            with suppress(OSError):
                plan = connection.plan
                left_out = self._left_out() if plan is None else plan.left_out
                line = _endpoint_log.Line(
                    self._side,
                    self.local,
                    connection.peer,
                    text,
                    "; ".join(filter(None, (reason or plain, left_out))) or None,
                    connection._tx,
                    connection._rx,
                    connection._setup_us,
                )
                _endpoint_log.write(line)

    def _end_if_done(self) -> None:
        if self._open and not (self._listening or self._by_exchange or self._plain or self._exchanges):
            self._end()
            _all.discard(self)
            self._shared.leave()


_all: weakref.WeakSet[EndpointPeers] = weakref.WeakSet()


@atexit.register
def _say_the_rest() -> None:
    """What was sent just before the program's end is acknowledged first, if the other end is there."""
    until = time.monotonic() + _LINGER
    for peers in list(_all):
        with suppress(OSError), peers.locked():
            while peers.unsaid and time.monotonic() < until:
                peers.changed.wait(0.1)
