"""One connection of an endpoint of datagrams, as the application has it; `_endpoint_peers` has the socket."""

from __future__ import annotations

import dataclasses
import errno
import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from bertha_socket.carrier.exchange import Exchange, Step
from bertha_socket.carrier.loop import Timer
from bertha_socket.carrier.peers import QUEUE_MAX, Place
from bertha_socket.carrier.plans import Recipe, recipe_of
from bertha_socket.chunnels import ChunnelError, Interface, get
from bertha_socket.chunnels._interfaces import interface_of, misfit
from bertha_socket.negotiation.plan import Plan

if TYPE_CHECKING:
    from bertha_socket._endpoint_peers import EndpointPeers

__all__ = ["DatagramConnection", "endpoint_recipe"]

#: Bytes that wait for the application.
_BYTES_MAX: Final = 4 << 20


def endpoint_recipe(plan: bytes, side: str) -> Recipe:
    """What is to be made of a plan in an application, where any code may run.  Raises OSError."""
    found = recipe_of(plan, side)
    types = [get(c.type) for c in found.plan.chunnels if c.implementation(side) is not None]
    top = interface_of(types, Interface.DATAGRAMS)
    why = misfit(types, top, Interface.DATAGRAMS)
    if why is not None:
        raise ChunnelError(why)
    return dataclasses.replace(found, top=top, bottom=Interface.DATAGRAMS)


class DatagramConnection:
    """What an endpoint has with one other end: `send` and `recv` take and give messages or objects, as the
    plan's uppermost chunnel says.  Threads may use it at once."""

    def __init__(self, peers: EndpointPeers, place: Place, exchange: Exchange | None, began: float) -> None:
        #: What was agreed; None with an end that knows of no chunnels.
        self.plan: Plan | None = None
        self.interface = Interface.DATAGRAMS
        #: For the connection log: a JSON array, once it is agreed on.
        self.chunnels = ""
        self._peers = peers
        self._place = place
        self._exchange = exchange
        self._plain = exchange is None
        self._items: deque[Any] = deque()
        self._size = 0
        self._ended = False  # the other end sends no more
        self._problem: OSError | None = None
        self._closed = False
        self._said_end = False
        self._bell = -1
        self._linger: float | None = None
        self._timer = Timer(lambda now: peers.let_go(self))
        self._rx = self._tx = 0
        self._setup_us = round((time.monotonic() - began) * 1e6)
        if exchange is not None:
            recipe = endpoint_recipe(exchange.plan, exchange.side)
            self.plan, self.interface = recipe.plan, recipe.top

    @property
    def peer(self) -> str:
        """ADDRESS:PORT of the other end."""
        return self._peers.name_of(self._place)

    # -- data -----------------------------------------------------------------------------------------

    def send(self, item: Any) -> None:
        """Sends a message, or an object.  Waits where too much is on its way already.  Raises OSError."""
        with self._peers.locked():
            while self._usable() and self._exchange is not None and self._exchange.full:
                self._peers.changed.wait()
            exchange = self._exchange
            if self._plain:
                self._peers.send_plain(self._place, item)
                self._tx += _size(item)
            elif exchange is None or exchange.step is Step.FAILED:
                raise OSError(errno.EPIPE, os.strerror(errno.EPIPE))  # never plainly instead
            else:
                self._tx += _size(item)
                exchange.program(item)
                self._peers.settle(self._place, exchange)
            self._raise()

    def recv(self, timeout: float | None = None) -> Any:
        """The next message, or object.  Raises EOFError when the other end sends no more (which only chunnels
        such as `reliable` tell), TimeoutError after `timeout` seconds, other OSErrors when something is
        wrong."""
        until = None if timeout is None else time.monotonic() + timeout
        with self._peers.locked():
            while not self._items:
                self._raise()
                if self._closed:
                    raise OSError(errno.EBADF, os.strerror(errno.EBADF))
                if self._ended:
                    raise EOFError(f"{self._peers.name}: the other end sends no more")
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
                self._peers.changed.wait(left)
            item = self._items.popleft()
            size = _size(item)
            self._rx += size
            self._size -= size
            self._peers.size -= size
            self._ring()
            return item

    def _usable(self) -> bool:
        self._raise()
        if self._closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if self._said_end:
            raise OSError(errno.EPIPE, os.strerror(errno.EPIPE))
        return True

    def _raise(self) -> None:
        if self._problem is not None and not self._items:
            problem = self._problem
            if self._plain:  # as of a socket: told once, and the next datagram may arrive
                self._problem = None
            raise problem.with_traceback(None)

    def end(self) -> None:
        """Sends no more; what comes can still be received."""
        with self._peers.locked():
            self._end()

    def _end(self) -> None:
        if not self._said_end:
            self._said_end = True
            exchange = self._exchange
            if exchange is not None and exchange.step is not Step.FAILED:
                exchange.end()
                self._peers.settle(self._place, exchange)

    def close(self) -> None:
        """Ends both directions; who waits in `recv` or `send` is told so (EBADF).  What is not acknowledged
        yet goes on being sent for some seconds."""
        with self._peers.locked():
            if self._closed:
                return
            self._closed = True
            self._peers.log(self, None)
            self._end()
            self._peers.size -= self._size
            self._items.clear()
            self._size = 0
            if self._bell >= 0:
                os.close(self._bell)
                self._bell = -1
            self._peers.linger(self)
            self._peers.changed.notify_all()

    def fileno(self) -> int:
        """For select and its kin: readable while there is something to receive."""
        with self._peers.locked():
            if self._bell < 0:
                self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
                self._ring()
            return self._bell

    def __iter__(self) -> Iterator[Any]:
        with suppress(EOFError):
            while True:
                yield self.recv()

    def __enter__(self) -> DatagramConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- for the peers --------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether no more is to come until some is taken."""
        return len(self._items) >= QUEUE_MAX or self._size >= _BYTES_MAX

    def came(self, items: list[Any]) -> None:
        """What rises to the application."""
        if self._closed:
            return
        self._items += items
        size = sum(map(_size, items))
        self._size += size
        self._peers.size += size
        self._ring()

    def over(self, problem: OSError | None) -> None:
        """There is nothing beneath it any more."""
        if problem is not None and self._problem is None and not self._ended:
            self._problem = problem
        self._ended = True
        self._exchange = None
        self._ring()
        if not self._closed:
            self._peers.log(self, self._problem.strerror if self._problem is not None else None)

    def _ring(self) -> None:
        if self._bell < 0:
            return
        with suppress(BlockingIOError):
            if self._items or self._ended or self._problem is not None:
                os.eventfd_write(self._bell, 1)
            else:
                os.eventfd_read(self._bell)


def _size(item: Any) -> int:
    return len(item) if isinstance(item, (bytes, bytearray, memoryview)) else 1
