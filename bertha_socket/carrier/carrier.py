"""The carrier: takes connections from shims, and runs their chunnels until the last has ended."""

from __future__ import annotations

import contextlib
import logging
import resource
import socket
from typing import Final

from bertha_socket.carrier import apart
from bertha_socket.carrier.apart import log_counts
from bertha_socket.carrier.beside import Beside
from bertha_socket.carrier.connection import Connection
from bertha_socket.carrier.control import NOT_ITS, Control, Secrets
from bertha_socket.carrier.datagrams import Datagrams
from bertha_socket.carrier.ends import Pair
from bertha_socket.carrier.loop import READ, Loop
from bertha_socket.carrier.process import Processes, User
from bertha_socket.carrier.session import Mode, Session, State
from bertha_socket.carrier.shim import Carry, Shim
from bertha_socket.chunnels import Context

log: Final = logging.getLogger(__name__)


def _name(address: object) -> str:
    if isinstance(address, tuple) and len(address) >= 2:
        host, port = address[0], address[1]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    return ""


def _names(tcp: socket.socket) -> tuple[str, str]:
    """Peer and own address."""
    found = []
    for call in (tcp.getpeername, tcp.getsockname):
        try:
            found.append(_name(call()))
        except OSError:
            found.append("")
    return found[0], found[1]


class Carrier:
    """All that one carrier has.  `run` returns when the agent is gone and nothing is left to do."""

    def __init__(self, control: socket.socket) -> None:
        self.loop = Loop()
        self.control = Control(control, self._new_shim)
        self._shims: set[Shim] = set()
        self._connections: set[Connection] = set()
        self._datagrams: set[Datagrams] = set()
        self._processes = Processes(self.loop, self._settled)
        self._idle_told = True
        self.loop.watch(control.fileno(), READ, self._on_control)

    def run(self) -> None:
        """Until the end."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        while self.control.alive or self._shims or self._connected:
            self.loop.turn()

    @property
    def _connected(self) -> bool:
        return bool(self._connections or self._datagrams or self._processes.busy)

    def _on_control(self, events: int) -> None:
        self.control.receive()
        if not self.control.alive:
            self.loop.watch(self.control.sock.fileno(), None, self._on_control)
            for datagrams in list(self._datagrams):
                datagrams.agent_gone()

    def _new_shim(self, sock: socket.socket, user: User) -> None:
        shim = Shim(sock, user, self._carry)
        self._shims.add(shim)
        self._idle_told = False

        def readable(events: int) -> None:
            if self.control.behind:
                self.control.make_room()
                if self.control.alive:
                    return  # and it is readable still
            # What an agent did not come to say will not come: the program is to ask for another carrier.
            lost = not self.control.alive and self.control.behind
            if lost or not shim.receive():
                self.loop.watch(sock.fileno(), None, readable)
                shim.close()
                self._shims.discard(shim)
                self._settled()

        self.loop.watch(sock.fileno(), READ, readable)

    def _carry_datagrams(self, carry: Carry) -> None:
        made = Beside if carry.beside else Datagrams
        datagrams = made(self.loop, self.control, carry, self._processes, self._datagrams_ended)
        self._datagrams.add(datagrams)
        datagrams.start()

    def _datagrams_ended(self, datagrams: Datagrams) -> None:
        self._datagrams.discard(datagrams)
        self._settled()

    def _carry(self, carry: Carry) -> None:
        self.control.catch_up()
        if carry.datagrams:
            self._carry_datagrams(carry)
            return
        of = self.control.secrets if carry.server else self.control.client_secrets
        found = of(carry.listener, carry.uid)
        secrets = found or Secrets()
        peer, local = _names(carry.tcp)
        side = "server" if carry.server else "client"
        context = Context(side, secrets.material, peer, local)
        asked = False

        def changed() -> None:
            if session.state == State.READY or session.detail:
                level = logging.INFO if session.state == State.READY else logging.WARNING
                log.log(level, "%s %s: %s %s", side, peer, session.state.name.lower(), session.detail)
            if session.traceback:
                log.error("%s %s: %s", side, peer, session.traceback)
            told = session.told
            if session.state == State.PLAIN:
                told = self.control.why_plain(carry.listener, peer)
            carry.status.write(session.state, session.chunnels, told)

        session = Session(Mode(carry.mode), context, secrets.key, carry.plan, changed)

        def verdict(why: str | None) -> None:
            connection.run(session.answer, why)

        def settled() -> None:
            nonlocal asked
            if session.counted is not None:  # before the program has what was counted
                carry.status.change(session.counted.changes())
            if session.question is not None and not asked:
                asked = True
                self.control.ask(carry.listener, session.question, peer, verdict)

        connection = Connection(
            self.loop,
            carry.tcp,
            carry.rings or Pair(carry.pair),
            session,
            self._ended,
            apart=lambda c: self._move_apart(c, carry),
            settled=settled,
            ending=carry.status.end,
        )
        self._connections.add(connection)
        if found is None:
            connection.run(session.fail, NOT_ITS)
        else:
            connection.start()

    def _move_apart(self, connection: Connection, carry: Carry) -> None:
        self._connections.discard(connection)
        apart.start(self._processes, connection, carry.status, carry.user)

    def _ended(self, connection: Connection) -> None:
        log_counts(connection.session.context)
        self._connections.discard(connection)
        self._settled()

    def _settled(self) -> None:
        if not (self._shims or self._connected or self._idle_told):
            self._idle_told = True
            self.control.idle()

    def close(self) -> None:
        """For tests: lets go of everything."""
        for shim in self._shims:
            shim.close()
        with contextlib.suppress(OSError):
            self.control.sock.close()
        self.loop.close()
