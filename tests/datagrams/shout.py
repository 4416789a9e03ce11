"""A chunnel as an author writes it for datagrams: what it is told to do in the data, it does to itself."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Any, ClassVar

from bertha_socket.chunnels import Interface, Pipe, octets, register_chunnel

_SWAP = bytes((b + 7) % 256 for b in range(256))
_BACK = bytes((b - 7) % 256 for b in range(256))


@register_chunnel("shout", endpoints="both", wire="shout/1")
class Shout(Pipe):
    """Bytes moved on by seven."""

    upper: ClassVar = Interface.MESSAGES
    lower: ClassVar = Interface.MESSAGES

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.context.counts.setdefault("shout.words", 0)

    def down(self, item: Any) -> Iterable[bytes]:
        """From the program to the network."""
        data = octets(item, "shout")
        word = data.rpartition(f"{self.side} ".encode())[2]
        if word == b"raise":
            raise ValueError("I cannot stand that word")
        if word == b"block":
            while True:
                time.sleep(1)
        if word == b"leak":
            kept = []
            while True:
                kept.append(bytearray(1 << 24))
        if word == b"crash":
            os.abort()
        self.context.counts["shout.words"] += 1
        return (data.translate(_SWAP),)

    def up(self, item: Any) -> tuple[Iterable[bytes], Iterable[bytes]]:
        """From the network to the program."""
        self.context.counts["shout.words"] += 1
        return (bytes(item).translate(_BACK),), ()
