"""Somebody in the middle of a connection, who alters, drops, repeats or reorders what one end sends."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable
from typing import NamedTuple

from tests.carrier.host import PENDING, CarrierHost, Status, tcp_pair

#: Seconds without a byte after which the middle gives up on ends that wait for what it has dropped.  It only
#: makes them refuse sooner than their own time limit would.
_QUIET = 0.05
_PATIENCE = 30.0
_CHUNK = 65536


class Attack(NamedTuple):
    """What is done to the segments, `size` bytes each, of the first `reach` bytes of one direction."""

    kind: str
    at: int
    size: int = 16
    bit: int = 0

    def done(self, data: bytes) -> list[bytes]:
        """What goes on instead."""
        parts = [data[i : i + self.size] for i in range(0, len(data), self.size)]
        if not parts:
            return parts
        i = self.at % len(parts)
        if self.kind == "flip":
            changed = bytearray(data)
            changed[self.at % len(data)] ^= 1 << self.bit
            return [bytes(changed[k : k + self.size]) for k in range(0, len(data), self.size)]
        if self.kind == "drop":
            return parts[:i] + parts[i + 1 :]
        if self.kind == "repeat":
            return [*parts[: i + 1], *parts[i:]]
        if self.kind == "reorder":
            j = (i + 1) % len(parts)
            parts[i], parts[j] = parts[j], parts[i]
            return parts
        assert self.kind == "nothing"
        return parts


class Middle:
    """Two carriers' connection, with the test between them."""

    def __init__(self, client: CarrierHost, server: CarrierHost, plan: bytes) -> None:
        self.hosts = (client, server)
        theirs, self.to_client = tcp_pair()
        self.to_server, ours = tcp_pair()
        with theirs, ours:
            self.server, self.server_status = server.carry(ours)
            self.client, self.client_status = client.carry(theirs, plan=plan)
        self._open = {self.to_client: self.to_server, self.to_server: self.to_client}
        self._attacked = False

    def pump(self, attack: Attack, from_client: bool, until: Callable[[], bool]) -> None:
        """Moves bytes, the first that come from one end being attacked, until `until` or nothing moves."""
        source = self.to_client if from_client else self.to_server
        idle = 0.0
        quiet = _QUIET if attack.kind != "nothing" else _PATIENCE
        while not until() and idle < quiet:
            controls = [h.control for h in self.hosts]
            readable, _, _ = select.select([*self._open, *controls], [], [], 0.01)
            for host in self.hosts:
                host.serve()
            moved = [s for s in readable if s in self._open]
            idle = 0.0 if moved or any(c in readable for c in controls) else idle + 0.01
            for sock in moved:
                self._move(sock, attack if sock is source and not self._attacked else None)

    def _move(self, sock: socket.socket, attack: Attack | None) -> None:
        to, data = self._open[sock], b""
        with contextlib.suppress(ConnectionResetError):
            data = sock.recv(_CHUNK)
        if not data:
            del self._open[sock]
        if attack is not None:
            self._attacked = True
        with contextlib.suppress(OSError):  # the other end may have given up already
            for part in attack.done(data) if attack is not None else [data]:
                to.sendall(part)
            if not data:
                to.shutdown(socket.SHUT_WR)

    def settled(self) -> bool:
        """Whether neither end waits any more."""
        return PENDING not in (self.client_status.state, self.server_status.state)

    def end(self) -> None:
        """Ends the connection at both ends."""
        for sock in (self.to_client, self.to_server):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
        for host, status in zip(self.hosts, (self.client_status, self.server_status), strict=True):
            _until_settled(host, status)

    def close(self) -> None:
        for sock in (self.to_client, self.to_server, self.client, self.server):
            sock.close()


def _until_settled(host: CarrierHost, status: Status) -> None:
    for _ in range(2000):
        if status.state != PENDING:
            return
        host.serve(0.01)
    raise AssertionError(f"an end that has seen the end still waits: {status.detail}")
