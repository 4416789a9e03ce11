"""One carried connection with its sockets: moves bytes between the program, the session and the network.

Each queue is bounded: who does not read makes the other side wait, in both directions, as TCP does.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from bertha_socket.carrier.ends import CHUNK, End, some
from bertha_socket.carrier.loop import READ, WRITE, Loop, Timer
from bertha_socket.carrier.reset import end, reset
from bertha_socket.carrier.session import Session, State

#: Bytes in a queue above which nothing more is read for it.
QUEUE_MAX: Final = 256 * 1024
#: Reads in a row, so that one connection does not keep the others waiting.
_ROUNDS: Final = 4
#: How long the network's end is waited for when the chunnels have ended before it.
_LINGER_SECONDS: Final = 10.0


class Connection:
    """The sockets of one session.  `ended(connection)` is called once, when both are closed."""

    def __init__(
        self,
        loop: Loop,
        tcp: socket.socket,
        program: End,
        session: Session,
        ended: Callable[[Connection], None],
        busy: Callable[[bool], None] = lambda _: None,
        apart: Callable[[Connection], None] | None = None,
        settled: Callable[[], None] = lambda: None,
        ending: Callable[[], None] = lambda: None,
    ) -> None:
        self._loop = loop
        self.tcp = tcp
        self.program = program
        self.session = session
        self._ended = ended
        #: Told before and after a chunnel works.
        self._busy = busy
        #: Called when the chunnels are to run in a process of their own.
        self._apart = apart
        #: Called after everything that may have changed the session.
        self._settled = settled
        #: Called before the program is told of the end: a carrier that has not said so has died.
        self._ending = ending
        self._timer = Timer(self._tick)
        self._open = True
        self._fin_sent = False  # the network was told of the end
        self._eof_sent = False  # the program was told of the end
        self._program_over = False  # the program sends no more
        self._network_over = False
        self._program_gone = False  # the program has closed
        self._aborted = False  # and had not read all
        self._late = False  # something came for it after that
        self._tcp_quiet = False  # the network has nothing more to tell
        self._lingers_until: float | None = None
        tcp.setblocking(False)
        with contextlib.suppress(OSError):
            tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def start(self) -> None:
        """Begins, or (in another process) goes on."""
        self.run(self.session.start)

    def run(self, call: Callable[..., None], *args: Any) -> None:
        """Does something with the session, and then whatever follows from it."""
        if not self._open:
            return
        self._busy(True)
        try:
            call(*args)
        finally:
            self._busy(False)
        self.settle()

    def take_over(self, old: Connection) -> None:
        """Goes on where another connection object with the same sockets stopped."""
        self._program_over, self._network_over = old._program_over, old._network_over
        self._program_gone, self._aborted, self._late = old._program_gone, old._aborted, old._late

    def closed(self) -> bool:
        """Whether it has let go of its sockets."""
        return not self._open

    def detach(self) -> None:
        """Lets go of the sockets without closing them: another process is to have them."""
        self._release()
        self.program.pack()

    def _release(self) -> None:
        self._open = False
        self._loop.set(self._timer, None)
        self._loop.watch(self.tcp.fileno(), None, self._on_network)

    # -- events ---------------------------------------------------------------------------------------

    def _tick(self, now: float) -> None:
        if self._lingers_until is not None:
            self._close()
            return
        self.run(self.session.tick, now)

    def _on_network(self, events: int) -> None:
        if self._network_over and events & (select.EPOLLERR | select.EPOLLHUP):
            error = self.tcp.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self._tcp_quiet = True
            if error:
                self.session.fail(f"the network's connection ended: {os.strerror(error)}")
        elif events & (READ | select.EPOLLERR | select.EPOLLHUP):
            self._read_network()
        self.settle()

    def _on_program(self, events: int) -> None:
        if events & select.EPOLLHUP and self._program_over:
            self._program_gone = True
        elif events & (READ | select.EPOLLERR | select.EPOLLHUP):
            self._read_program()
        self.settle()

    def _takes_network(self) -> bool:
        return (
            self._open
            and not self._network_over
            and self.session.wants_network
            and self.session.program_size < QUEUE_MAX
            and self.session.network_size < 2 * QUEUE_MAX
        )

    def _takes_program(self) -> bool:
        return (
            self._open
            and not self._program_over
            and self.session.wants_program
            and self.session.network_size < QUEUE_MAX
        )

    def _read_network(self) -> None:
        for _ in range(_ROUNDS):
            if not self._takes_network():
                return
            try:
                data = self.tcp.recv(CHUNK)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._network_over = True
                self.session.fail(f"the network's connection ended: {error.strerror}")
                return
            if not data:
                self._network_over = True
                self.run(self.session.network_end)
                return
            self.run(self.session.network, data)
            if len(data) < CHUNK:
                return  # as a rule there is no more

    def _read_program(self) -> None:
        for _ in range(_ROUNDS):
            if not self._takes_program():
                return
            try:
                data = self.program.recv()
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                # It closed with bytes unread: the kernel would have sent a reset, and no end.
                self._aborted = self._program_gone = self._program_over = True
                return
            if not data:
                self._program_over = True
                self.run(self.session.program_end)
                return
            self.run(self.session.program, data)
            if len(data) < CHUNK:
                return

    # -- what follows ---------------------------------------------------------------------------------

    def settle(self) -> None:
        """Sends what is to be sent, and watches for what can go on."""
        if not self._open:
            return
        session = self.session
        if session.apart and self._apart is not None:
            apart, self._apart = self._apart, None
            apart(self)
            return
        self._settled()
        if self.closed() or session.apart:
            return  # it was answered at once, and what followed is done
        if not self._flush_network():
            session.to_network.clear()
            session.network_size = 0
            session.fail("the network's connection ended while something was being sent")
        self._flush_program()
        if session.over and (not session.to_network or session.state in (State.RESET, State.RAISED)):
            self._end_badly()
            return
        if (self._aborted and not session.to_network) or (self._late and self._fin_sent):
            reset(self.tcp.fileno())
            self._close()
            return
        if not session.to_network and session.network_ended and not self._fin_sent:
            self._fin_sent = True
            end(self.tcp)
        if not session.to_program and session.program_ended and not self._eof_sent:
            self._eof_sent = True
            self._ending()
            self.program.end()
        if self._fin_sent and (self._eof_sent or self._program_gone):
            if self._program_gone or self._network_over:
                self._close()
            else:
                self._linger()
            return
        self._watch()

    def _linger(self) -> None:
        """Waits for the network's end, where a chunnel (http2) has said its own before it.

        Its last words (a window's update) would meet a closed socket, and the reset in answer would take
        from the other end what it has not read yet.
        """
        if self._lingers_until is None:
            self._lingers_until = time.monotonic() + _LINGER_SECONDS
            self.program.watch(self._loop, None, self._on_program)
            self._loop.watch(self.tcp.fileno(), READ, self._on_last)
            self._loop.set(self._timer, self._lingers_until)

    def _on_last(self, _events: int) -> None:
        try:
            over = not self.tcp.recv(CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            over = True
        if over:
            self._close()

    def _end_badly(self) -> None:
        """A connection that failed: both ends see a reset, as far as that can be."""
        if self.session.network_ended:  # a refusal that the other end was told of
            end(self.tcp)
        else:
            reset(self.tcp.fileno())
        self._close()

    def _watch(self) -> None:
        session = self.session
        network = READ if self._takes_network() else 0
        if session.to_network:
            network |= WRITE
        # After the other end's end a reset may still come; before, one is found when something is read.
        quiet = not self._network_over or self._tcp_quiet
        self._loop.watch(self.tcp.fileno(), network or (None if quiet else 0), self._on_network)
        program: int | None = READ if self._takes_program() else 0
        if session.to_program:
            program = (program or 0) | WRITE
        if not program and not (self._program_over and not self._program_gone):
            program = None  # a hang-up would be told again and again
        self.program.watch(self._loop, program, self._on_program)
        self._loop.set(self._timer, session.deadline())

    def _flush_network(self) -> bool:
        session = self.session
        while session.to_network:
            try:
                sent = self.tcp.sendmsg(some(session.to_network), (), socket.MSG_NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                return False
            session.network_size -= sent
            _drop(session.to_network, sent)
        return True

    def _flush_program(self) -> None:
        session = self.session
        while session.to_program and not self._program_gone:
            try:
                sent = self.program.send(session.to_program)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._program_gone = True
                break
            session.program_size -= sent
            _drop(session.to_program, sent)
        if self._program_gone:
            if session.to_program:
                self._late = True  # the kernel answers what comes for a closed socket with a reset
            session.to_program.clear()
            session.program_size = 0

    def _close(self) -> None:
        if not self._open:
            return
        self._release()
        self.tcp.close()
        self.program.close(self._eof_sent)
        self.session.close()
        self._ended(self)


def _drop(queue: deque[Any], sent: int) -> None:
    while queue and (sent or not len(queue[0])):  # also messages without bytes
        first = queue[0]
        if len(first) > sent:
            queue[0] = memoryview(first)[sent:]
            return
        sent -= len(first)
        queue.popleft()
