"""`compress(level=3, algorithm=None)`: fewer bytes on the network, by zstd or lz4.

Arguments: `level`, 1 (fastest) to 19 (smallest); lz4 has fewer levels and takes the nearest.  `algorithm`,
"zstd" or "lz4"; not given: zstd where both ends have it.
Endpoints: both.  Wires: "zstd/1" and "lz4/1", each a sequence of records: u32 big-endian length (top bit set:
stored as it is), then so many bytes, an independent zstd frame with content size or lz4 frame, of at most
64 KiB of plain bytes.  One record for each piece that the program sent: nothing is held back.  The end of the
stream is the network's; in the midst of a record it is an error.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import lz4.frame
import zstandard

from bertha_socket.chunnels._native import native_probe
from bertha_socket.chunnels._types import (
    NATIVE_PRIORITY,
    ChunnelError,
    ChunnelType,
    Context,
    Implementation,
    Parameter,
    Pipe,
    between,
    one_of,
)

#: Plain bytes in one record, and bytes of a record, at most.
PLAIN_MAX: Final = 64 * 1024
RECORD_MAX: Final = 128 * 1024
_STORED: Final = 1 << 31
_HEADER: Final = struct.Struct(">I")


def _wires(args: Mapping[str, Any]) -> tuple[str, ...]:
    algorithm = args.get("algorithm")
    return ("zstd/1", "lz4/1") if algorithm is None else (f"{algorithm}/1",)


class _Compress(Pipe):
    """Records in both directions; what packs and unpacks one is the subclass's."""

    def __init__(self, args: Mapping[str, Any], wire: str, side: str, context: Context) -> None:
        super().__init__(args, wire, side, context)
        self._level = int(args.get("level", 3))
        self._got = bytearray()

    def pack(self, plain: bytes) -> bytes:
        """One frame."""
        raise NotImplementedError

    def unpack(self, frame: bytes) -> bytes:
        """What a frame holds.  Raises ChunnelError."""
        raise NotImplementedError

    def down(self, item: Any) -> Iterator[bytes]:
        """One record for each 64 KiB."""
        view = memoryview(item)
        for at in range(0, len(view), PLAIN_MAX):
            plain = bytes(view[at : at + PLAIN_MAX])
            frame = self.pack(plain)
            if len(frame) >= len(plain):
                yield _HEADER.pack(len(plain) | _STORED) + plain
            else:
                yield _HEADER.pack(len(frame)) + frame

    def up(self, item: Any) -> tuple[Iterable[bytes], Iterable[bytes]]:
        """The records that are whole."""
        self._got += item
        plain = []
        at = 0
        while len(self._got) - at >= _HEADER.size:
            (word,) = _HEADER.unpack_from(self._got, at)
            length = word & ~_STORED
            limit = PLAIN_MAX if word & _STORED else RECORD_MAX
            if length > limit:
                raise ChunnelError(f"compress: a record of {length} bytes came, more than {limit}")
            if len(self._got) - at - _HEADER.size < length:
                break
            at += _HEADER.size
            record = bytes(self._got[at : at + length])
            at += length
            found = record if word & _STORED else self.unpack(record)
            if found:
                plain.append(found)
        del self._got[:at]
        return plain, ()

    def up_end(self) -> Iterable[bytes]:
        """Whole records only."""
        if self._got:
            raise ChunnelError("compress: the connection ended in the midst of a record")
        return ()


class _Zstd(_Compress):
    def __init__(self, args: Mapping[str, Any], wire: str, side: str, context: Context) -> None:
        super().__init__(args, wire, side, context)
        self._packer = zstandard.ZstdCompressor(level=self._level, write_content_size=True)
        self._unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 23)

    def pack(self, plain: bytes) -> bytes:
        return self._packer.compress(plain)

    def unpack(self, frame: bytes) -> bytes:
        try:
            size = zstandard.frame_content_size(frame)
            if not 0 <= size <= PLAIN_MAX:
                raise ChunnelError("compress: a record came that does not say its size, or says too much")
            return self._unpacker.decompress(frame, max_output_size=PLAIN_MAX, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise ChunnelError(f"compress: what came is no zstd frame ({error})") from None


class _Lz4(_Compress):
    def __init__(self, args: Mapping[str, Any], wire: str, side: str, context: Context) -> None:
        super().__init__(args, wire, side, context)
        # zstd's default is lz4's fastest; from 4 on lz4's high-compression levels (3 to 12) are meant.
        self._lz4_level = 0 if self._level <= 3 else min(self._level, 12)

    def pack(self, plain: bytes) -> bytes:
        packed: bytes = lz4.frame.compress(
            plain, compression_level=self._lz4_level, block_size=lz4.frame.BLOCKSIZE_MAX64KB
        )
        return packed

    def unpack(self, frame: bytes) -> bytes:
        unpacker = lz4.frame.LZ4FrameDecompressor()
        try:
            plain: bytes = unpacker.decompress(frame, max_length=PLAIN_MAX + 1)
        except (RuntimeError, ValueError, EOFError) as error:
            raise ChunnelError(f"compress: what came is no lz4 frame ({error})") from None
        if len(plain) > PLAIN_MAX or not unpacker.eof or unpacker.unused_data:
            raise ChunnelError("compress: a record came that is not one lz4 frame of at most 64 KiB")
        return plain


def _make(args: Mapping[str, Any], wire: str, side: str, context: Context) -> Pipe:
    return (_Lz4 if wire == "lz4/1" else _Zstd)(args, wire, side, context)


TYPE = ChunnelType(
    name="compress",
    summary="fewer bytes on the network, by zstd or lz4",
    parameters=(
        Parameter("level", "int", "1, the fastest, to 19, the smallest", 3, between(1, 19)),
        Parameter("algorithm", "str", "zstd or lz4", None, one_of("zstd", "lz4")),
    ),
    layer=60,
    wire="zstd/1, lz4/1: records of u32be length and one frame each",
    implementations=(
        Implementation(
            "native",
            "compress",
            _wires,
            priority=NATIVE_PRIORITY,
            carrier="native",
            native_datagrams=True,
            probe=native_probe("compress"),
            builtin=True,
        ),
        Implementation("python", "compress", _wires, make=_make, builtin=True),
    ),
)
