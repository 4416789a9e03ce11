"""The agent's loop: one thread, one epoll, no call that can wait for a client."""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import signal
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from bertha_socket.agent import limits, memory, messages, plans, sockets, status
from bertha_socket.agent.authors import NOTHING, Authors, Brought
from bertha_socket.agent.carriers import Carriers
from bertha_socket.agent.connection import Connection
from bertha_socket.agent.errands import Errands
from bertha_socket.agent.handlers import Answer, Caller, Ways
from bertha_socket.agent.loop import READ, Ticker
from bertha_socket.agent.memory import within_netns
from bertha_socket.agent.model import Listener, Process
from bertha_socket.agent.offers import REMEDY, Offers
from bertha_socket.agent.policies import Loaded, Policies, groups_of
from bertha_socket.agent.reach import NO_OTHERS, Others, open_letters, open_port
from bertha_socket.agent.registry import Registry
from bertha_socket.agent.remote import Remote
from bertha_socket.agent.responder import Responder
from bertha_socket.agent.secrets import Secrets
from bertha_socket.chunnels import all_types
from bertha_socket.reasons import Reason as Why

BACKLOG: Final = 1024
#: Signals that end an agent in order.
ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_STATUS_SECONDS: Final = 4.0  # our commands wait for five
#: epoll takes no more than 24 days: an agent that never leaves wakes once a day.
_LONGEST_WAIT_SECONDS: Final = 86400.0
_FULL: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Server:
    """Serves one listening socket until told to stop, or until nobody has needed it for a while."""

    def __init__(
        self, listening: socket.socket, registry: Registry, idle_seconds: float, others: Others = NO_OTHERS
    ) -> None:
        self.registry = registry
        self.now = time.monotonic()
        self.started = time.time()
        self._idle_seconds = idle_seconds
        self._idle_since = self.now
        self._stopping = False
        self._faults = 0
        self._last_fault: str | None = None
        self._listening = listening
        self._connections: dict[int, Connection] = {}
        self._ungreeted: set[Connection] = set()
        self._per_user: dict[int, int] = {}
        self._selector = selectors.DefaultSelector()
        self._errands = Errands(self._selector)
        self._errands.failed = self._fault
        self._policies = Policies(self._errands)
        self._authors = Authors(self._errands)
        self._reserve = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self._wake_in, self._wake_out = socket.socketpair()
        self._next_orphans: float | None = None
        registry.listeners.spaces.watcher = self
        self._others = others
        secrets = Secrets()
        self._offers = Offers(secrets, others.choice)
        omissions = self._offers.omissions
        judge = self._offers.judge_for(registry)
        self._carriers = Carriers(
            *(self, judge, secrets.contexts), log=others.carrier_log, omissions=omissions
        )
        secrets.changed = self._carriers.context_changed

        def forgotten(number: int) -> None:
            secrets.drop(number)
            omissions.drop(number)

        registry.listeners.forgotten = forgotten
        registry.listeners.moved = self.settle
        registry.listeners.shown = self._offers.settle
        self._remote = Remote(self, registry, self._offers, secrets, others, self._answer_late)
        self._responder = Responder(self, registry, self._offers, secrets, others.reach)
        self._responder.heard = self._remote.heard
        #: What is done as soon as there is nothing else to do; once.
        self._chores: Iterator[None] | None = self._offers.prepare()
        self._tickers: tuple[Ticker, ...] = (
            *(self._errands, self._remote, self._responder, self._carriers),
            registry.listeners.spaces,
        )

    # -- the loop -------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serves.  Returns when it is to end, with everything closed but the listening socket."""
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        old_wakeup = signal.set_wakeup_fd(self._wake_out.fileno(), warn_on_full_buffer=False)
        old_handlers = {number: signal.signal(number, lambda *_: self.stop()) for number in ENDING}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        self.watch(self._listening, self._accept)
        self.watch(self._wake_in, self._woken)
        if isinstance(self._others.listening, socket.socket):
            self._responder.listen(self._others.listening, own=True)
        if self._others.letters is not None:
            self._responder.take_letters(self._others.letters)
        try:
            while not self._stopping:
                self._turn()
        finally:
            signal.set_wakeup_fd(old_wakeup)
            for number, handler in old_handlers.items():
                signal.signal(number, handler)
            for connection in list(self._connections.values()):
                self._end(connection)
            for part in (self._errands, self._remote, self._responder, self._carriers):
                part.close()
            self._selector.close()
            self._wake_in.close()
            self._wake_out.close()
            os.close(self._reserve)

    def stop(self) -> None:
        """Ends the loop after the present turn."""
        self._stopping = True

    def watch(self, what: socket.socket | int, call: Callable[[], None], events: int = READ) -> None:
        """Calls `call` whenever `what` is ready for one of `events`; again: for other events, or another."""
        try:
            self._selector.register(what, events, call)
        except KeyError:
            self._selector.modify(what, events, call)

    def unwatch(self, what: socket.socket | int) -> None:
        """No more."""
        self._selector.unregister(what)

    def _turn(self) -> None:
        deadline = self._deadline()
        timeout = None
        if deadline is not None:
            timeout = min(max(0.0, deadline - time.monotonic()), _LONGEST_WAIT_SECONDS)
        ready = self._selector.select(timeout if self._chores is None else 0)
        if not ready and self._chores is not None:
            self._do_chore(self._chores)
        for key, _ in ready:
            self.now = time.monotonic()
            call: Callable[[], None] = key.data
            try:
                call()
            except Exception:  # ours, and no reason to leave everybody else alone
                self._fault()
        self.now = time.monotonic()
        if self._next_orphans is not None and self._next_orphans <= self.now:
            self._check_orphans()
        self._drop_silent()
        for part in self._tickers:
            part.tick(self.now)
        if self.registry.processes or self._errands.busy or self._remote.busy:
            self._idle_since = self.now
        elif self.now - self._idle_since >= self._idle_seconds:
            self._stopping = True

    def _do_chore(self, chores: Iterator[None]) -> None:
        try:
            next(chores)
        except StopIteration:
            self._chores = None
        except Exception:
            self._chores = None
            self._fault()

    def _fault(self, error: BaseException | None = None) -> None:
        """Remembers a mistake of our own for STATUS (without `error`: the one that is handled)."""
        self._faults += 1
        lines = traceback.format_exception(error, limit=-4) if error is not None else None
        self._last_fault = "".join(lines) if lines is not None else traceback.format_exc(limit=-4)

    def _deadline(self) -> float | None:
        parts = [part.deadline() for part in self._tickers]
        times = [t for t in (self._next_orphans, *parts) if t is not None]
        if not self.registry.processes:
            times.append(self._idle_since + self._idle_seconds)
        times += [c.since + limits.GREETING_SECONDS for c in self._ungreeted]
        return min(times, default=None)

    def _check_orphans(self) -> None:
        self._next_orphans = self.registry.listeners.check_orphans(self.now)

    def _drop_silent(self) -> None:
        for connection in list(self._ungreeted):
            if self.now - connection.since >= limits.GREETING_SECONDS:
                self._end(connection)

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_in.recv(512)

    # -- connections ----------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            sock, _ = self._listening.accept()
        except OSError as error:
            if error.errno in _FULL:
                self._turn_away()
            return
        try:
            peer = sockets.peer_of(sock)
        except OSError:
            sock.close()
            return
        mine = self._per_user.get(peer.uid, 0)
        if len(self._connections) >= limits.CONNECTIONS or (
            peer.uid != 0 and mine >= limits.CONNECTIONS_PER_USER
        ):
            sock.close()
            return
        sock.setblocking(False)
        connection = Connection(sock, peer, self.now)
        self._connections[sock.fileno()] = connection
        self._ungreeted.add(connection)
        self._per_user[peer.uid] = mine + 1
        self.watch(sock, lambda: self._readable(connection))
        if connection.pidfd is not None:
            # The connection's end may be held open by a child that got it without exec.
            self.watch(connection.pidfd, lambda: self._end(connection))

    def _turn_away(self) -> None:
        """No descriptor left: the client must hear of it, or it would wait for an answer."""
        os.close(self._reserve)
        with contextlib.suppress(OSError):
            self._listening.accept()[0].close()
        self._reserve = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    def _readable(self, connection: Connection) -> None:
        if connection.closed or connection.waits():
            return
        try:
            good = connection.readable(self)
        except Exception:
            self._end(connection)
            raise
        if not good:
            self._end(connection)
        elif connection.waits():  # until the answer is there
            connection.paused = True
            self._selector.unregister(connection.sock)
        self._next_orphans = self.registry.listeners.next_check()

    def _end(self, connection: Connection) -> None:
        if connection.closed:
            return
        self._connections.pop(connection.sock.fileno(), None)
        self._ungreeted.discard(connection)
        with contextlib.suppress(KeyError):
            self._selector.unregister(connection.sock)
        if connection.pidfd is not None:
            self._selector.unregister(connection.pidfd)
        uid = connection.peer.uid
        self._per_user[uid] -= 1
        if not self._per_user[uid]:
            del self._per_user[uid]
        connection.close()
        process, connection.process = connection.process, None
        self._remote.gone(connection)
        if process is not None:
            self.registry.end(process, self.now, self.now - connection.since)
            self._idle_since = self.now
            self._next_orphans = self.registry.listeners.next_check()

    # -- what handlers need (handlers.Service) --------------------------------------------------------

    def greet(self, caller: Caller, hello: messages.Hello, table_fd: int) -> Answer | None:
        """Takes a process in as soon as its policy has been read."""
        assert isinstance(caller, Connection)
        subject = plans.make_subject(hello.program, hello.exe, hello.argv, caller.peer.uid, hello.name)
        process = Process(caller.peer, hello, subject, table_fd=table_fd, since=time.time())
        loaded = self._policies.look(caller.peer, hello.policy)
        if loaded is not None:
            return self._enter(caller, process, loaded)
        self._policies.read_as(
            caller.sock,
            caller.peer,
            hello.policy,
            lambda found: self._enter_late(caller, process, found),
        )
        return None

    def _enter(self, connection: Connection, process: Process, loaded: Loaded) -> Answer | None:
        """Takes it in, unless its policy brings chunnels that must be looked at first: then later."""
        process.policy, process.policy_error = loaded
        sources = process.sources
        if sources:
            groups = groups_of(connection.sock, connection.peer)
            known = self._authors.look(
                connection.peer, groups, sources, lambda found: self._enter_last(connection, process, found)
            )
            if known is None:
                return None
            process.brought = known
        connection.process = process
        self._ungreeted.discard(connection)
        self.registry.greet(process)
        kinds = {
            messages.HELLO_CLIENT_DAGS: ("client", "tcp"),
            messages.HELLO_CLIENT_DATAGRAMS: ("client", "udp"),
            messages.HELLO_SERVER_DATAGRAMS: ("server", "udp"),
        }
        flags = sum(bit for bit, kind in kinds.items() if plans.has_dags(process.policy, *kind))
        if process.policy_error is not None:
            flags |= messages.HELLO_NO_POLICY
        return Answer(body=messages.HELLO_REPLY.pack(self.registry.directory.generation, os.getpid(), flags))

    def _enter_late(self, connection: Connection, process: Process, loaded: Loaded) -> None:
        """As `_enter`, for a connection that has been waiting (it may have ended meanwhile)."""
        if connection.closed:
            if process.table_fd >= 0:
                os.close(process.table_fd)
            return
        try:
            answer = self._enter(connection, process, loaded)
        except Exception:
            self._end(connection)  # and not left without an answer
            raise
        if answer is not None:
            self._answer_late(connection, answer)

    def _enter_last(self, connection: Connection, process: Process, brought: Brought) -> None:
        process.brought = brought
        loaded = Loaded(process.policy, process.policy_error)
        self._enter_late(connection, process, loaded)

    def bring(self, caller: Caller, process: Process, sources: Mapping[str, str]) -> Answer | None:
        """Has the classes looked at that a process has registered, as its user; the answer comes then.

        It could as well name them in a policy file of its own, so it gains no rights by that."""
        assert isinstance(caller, Connection)
        ours = {t.name for t in all_types()}
        process.registered = {name: source for name, source in sources.items() if name not in ours}
        groups = groups_of(caller.sock, caller.peer)

        def looked(found: Brought) -> None:
            if caller.closed:
                return
            try:
                self._bring(process, found)
            except Exception:
                self._end(caller)  # and not left without an answer
                raise
            self._answer_late(caller, Answer())

        known: Brought | None = NOTHING
        if process.sources:
            known = self._authors.look(caller.peer, groups, process.sources, looked)
        if known is None:
            return None
        self._bring(process, known)
        return Answer()

    def _bring(self, process: Process, found: Brought) -> None:
        own = process.registered.keys() - process.policy.sources.keys()
        # The remedy first: what is too long for a reply is cut off.
        errors = tuple((n, f"{REMEDY}: {why}" if n in own else why) for n, why in found.errors)
        process.brought = found._replace(errors=errors)
        for listener in process.listeners:
            if listener.uid == process.peer.uid and listener.offer is None:
                listener.brought, listener.sources = process.brought, process.sources
                self.settle(listener)

    def _answer_late(self, connection: Caller, answer: Answer) -> None:
        assert isinstance(connection, Connection)
        request = connection.pending
        if connection.closed or request is None:
            for fd in answer.given:
                os.close(fd)
        elif not connection.send(request, answer):
            self._end(connection)
        elif connection.paused:
            connection.paused = False
            self.watch(connection.sock, lambda: self._readable(connection))

    def negotiate(
        self, caller: Caller, process: Process, wish: messages.Negotiate, socks: Ways
    ) -> Answer | None:
        """Which chunnels connections to a destination get; None: the answer comes later."""
        return self._remote.negotiate(caller, process, wish, socks)

    def settle(self, listener: Listener) -> None:
        """Decides what a listener's connections may have, after it has registered."""
        self._offers.settle(listener)
        if listener.need != messages.DagNeed.NONE or listener.offer is not None:
            self.registry.directory.tell_news()  # who asked before it was there

    @property
    def agents_port(self) -> int:
        """On which agents ask one another; 0: this one does not."""
        return self._others.port

    def open_port(self, listener: Listener) -> bool:
        """Listens there in that listener's namespace as well, if that may be; whether it is done."""
        if not self.agents_port or self._responder.listens_in(listener.where.netns):
            return True
        try:
            with within_netns(listener.space.diag):
                listening = open_port(self.agents_port)
                letters = open_letters(listening)
        except OSError:
            return False  # then only a process that is there can have one for us
        if isinstance(listening, str):
            return False
        self._responder.listen(listening)
        if letters is not None:
            self._responder.take_letters(letters)
        return True

    def adopt_port(self, fd: int) -> None:
        """Takes over a socket that listens on the agents' port of a namespace."""
        self._responder.listen(socket.socket(fileno=fd))

    def adopt_letters(self, fd: int) -> None:
        """Takes over a UDP socket that is bound to it."""
        self._responder.take_letters(socket.socket(fileno=fd))

    def carrier_socket(self, caller: Caller, kind: messages.CarrierKind) -> int:
        """A new way to a carrier, which becomes the caller's."""
        process = caller.process
        assert process is not None
        peer = owner = caller.peer
        sources = process.sources
        if peer.uid != os.geteuid():
            # A worker that has changed its user serves with what its listener's owner has.
            owners = [x for x in process.listeners if x.uid == os.geteuid()]
            if owners:
                owner = peer._replace(uid=os.geteuid(), gid=os.getegid())
                sources = {n: s for x in owners for n, s in x.sources.items()}
        assert isinstance(caller, Connection)
        groups = groups_of(caller.sock, peer)
        return self._carriers.shim_socket(kind, peer, sources, owner, groups)

    def status(self, caller: Caller) -> Answer | None:
        """The JSON text of everything that the caller may see.  It takes a while: the answer comes later."""
        assert isinstance(caller, Connection)
        uid = caller.peer.uid
        agent = status.agent_facts(self.registry, self.started)
        agent |= {"faults": self._faults, "last_fault": self._last_fault, "prepared": self._chores is None}
        agent |= self._chunnel_facts(uid)

        def done(outcome: int | None) -> None:
            if outcome is None:
                self._answer_late(caller, Answer(Why.NO_MEMORY))
                return
            text = os.dup(outcome)
            memory.make_read_only(text)
            self._answer_late(caller, Answer(given=(text,)))

        self._errands.run(uid, _STATUS_SECONDS, lambda fd: status.write(self.registry, agent, uid, fd), done)
        return None

    def _chunnel_facts(self, uid: int) -> dict[str, object]:
        listening = self._others.listening
        sees_all = uid in (0, os.geteuid())  # where others connect to is nobody's business
        return {
            "port": None if isinstance(listening, str) else self._others.port,
            "port_error": listening if isinstance(listening, str) else None,
            "carriers": self._carriers.facts(),
            "destinations": self._remote.facts() if sees_all else [],
            "answered": self._responder.answered,
            # Connections with other agents that are kept for the next question.
            "kept": {"to": self._remote.kept, "from": self._responder.kept},
            "cluster_key": self._offers.key_fact(),
        }
