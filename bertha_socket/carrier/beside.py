"""Beside the native carrier, which has a program's UDP socket: for the chunnels that are not in C.

What is not of an exchange in C comes by the pair whose other end that carrier has, from the network and from
the program, and what is for the program goes by it (decision 0022).  Datagrams are sent by the UDP socket
itself; nothing is read from it here.
"""

from __future__ import annotations

from typing import Any, Final

from bertha_socket.carrier.datagrams import HEAD, MAGIC, Datagrams, head
from bertha_socket.carrier.loop import READ, WRITE
from bertha_socket.carrier.peers import Place
from bertha_socket.carrier.session import State

#: As native/carrier/carrier.h numbers them.
_NETWORK, _CLOSED, _FULL, _STATUS = 7, 8, 9, 10
_NOWHERE: Final = Place(bytes(16), 0, 0)


class Beside(Datagrams):
    """A carried UDP socket that the native carrier has as well."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._said = (State.PENDING, "", "")
        self._said_full = False

    def agent_gone(self) -> None:
        """The native carrier sees to that."""

    # -- from the native carrier ----------------------------------------------------------------------

    def _program_said(self, data: bytes) -> None:
        if len(data) >= HEAD.size:
            magic, kind, port, _, scope, _, _, addr = HEAD.unpack_from(data)
            if magic == MAGIC and kind == _NETWORK:
                place = Place(addr, port, scope)
                try:
                    self._name(place)  # whoever wrote this need not be the native carrier
                except OSError:
                    self._lost += 1
                    return
                self._network_said(data[HEAD.size :], place)
                return
            if magic == MAGIC and kind == _CLOSED:
                self._linger()
                if not self._busy():
                    self._close()
                return
        super()._program_said(data)

    def _program_closed(self) -> None:
        """It has ended, and nothing would come from the network any more."""
        self._close()

    def _takes_program(self) -> bool:
        """What the network brings comes the same way, so it is always read."""
        return self._open

    # -- to it ----------------------------------------------------------------------------------------

    def _tell_native(self, kind: int, value: int, body: bytes = b"") -> None:
        data = head(kind, _NOWHERE, value) + body
        if self._open and (self._to_program or not self._given(data)):
            self._to_program.append(data)
            self._program_bytes += len(data)
            self._loop.watch(self.pair.fileno(), READ | WRITE, self._on_program)

    def _say(self, state: State, text: str, detail: str) -> None:
        self._said = (state, text, detail)
        body = text.encode("utf-8", "replace") + b"\0" + detail.encode("utf-8", "replace")
        self._tell_native(_STATUS, int(state), body)

    def _say_changes(self, changes: list[tuple[int, bytes]]) -> None:
        if changes:
            state, _, detail = self._said
            self._say(state, self._sums.text, detail)

    # -- the UDP socket -------------------------------------------------------------------------------

    def _on_network(self, events: int) -> None:
        if events & WRITE:
            self._flush_network()
        self._watch()

    def _watch(self) -> None:
        if not self._open:
            return
        self._loop.watch(self.udp.fileno(), WRITE if self._to_network else None, self._on_network)
        self._loop.watch(self.pair.fileno(), READ | (WRITE if self._to_program else 0), self._on_program)
        full = not super()._takes_program() and self._until is None
        if full != self._said_full:
            self._said_full = full
            self._tell_native(_FULL, int(full))
