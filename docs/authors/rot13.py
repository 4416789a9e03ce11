"""A complete chunnel: every byte is moved on by a number, and moved back at the other end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from bertha_socket.chunnels import Parameter, Pipe, between, octets, register_chunnel


@register_chunnel("rot", endpoints="both", wire="rot/1")
class Rot(Pipe):
    """Bytes moved on by a number."""

    parameters: ClassVar = (Parameter("by", "int", "how far", 13, between(1, 255)),)

    def _table(self, by: int) -> bytes:
        return bytes((b + by) % 256 for b in range(256))

    def start(self) -> Iterable[bytes]:
        """Nothing is sent first; a place for what a connection needs once."""
        self.on, self.back = self._table(self.args["by"]), self._table(-self.args["by"])
        return ()

    def down(self, item: Any) -> Iterable[bytes]:
        """From the program to the network."""
        return (octets(item, "rot").translate(self.on),)

    def up(self, item: Any) -> tuple[Iterable[bytes], Iterable[bytes]]:
        """From the network to the program; nothing is answered."""
        return (bytes(item).translate(self.back),), ()
