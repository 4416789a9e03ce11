"""`mirror(to, direction="both")`: a copy of what goes by, to another place.

Arguments: `to`, "HOST:PORT" or the path of a file; `direction`, "send", "receive" or "both".
Endpoints: either, at the end whose own DAG names it.  Wire: "none".  The copy is a pcap file (raw IP;
addresses and ports are the connection's, the TCP headers are made up), or over TCP the same bytes, so that
`nc -l -p 9999 | tcpdump -r -` shows it.  It never makes the connection wait: what the other place does not
take in time is left out, and counted as `mirror.lost`.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import stat
import struct
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Final

from bertha_socket.chunnels._types import (
    ChunnelArgumentError,
    ChunnelType,
    Context,
    Implementation,
    Parameter,
    Pipe,
    one_of,
    wires,
)

#: Magic, version 2.4, zone, accuracy, longest packet, LINKTYPE_RAW.
FILE_HEADER: Final = struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 101)
_RECORD: Final = struct.Struct("=IIII")
_PIECE: Final = 60_000
_QUEUE_MAX: Final = 1 << 20


class _Flow:
    """Packets of one direction."""

    def __init__(self, source: str, target: str) -> None:
        (self._from, self._from_port), (self._to, self._to_port) = _address(source), _address(target)
        if self._from.version != self._to.version:
            self._from = self._to = ipaddress.ip_address("0.0.0.0")
        self._sequence = 1

    def packet(self, data: bytes) -> bytes:
        """With headers of TCP and IP, and the record's."""
        tcp = struct.pack(
            ">HHIIBBHHH", self._from_port, self._to_port, self._sequence, 0, 5 << 4, 0x08, 65535, 0, 0
        )
        self._sequence = (self._sequence + len(data)) & 0xFFFFFFFF
        length = len(tcp) + len(data)
        if self._from.version == 4:
            ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + length, 0, 0x4000, 64, 6, 0)
        else:
            ip = struct.pack(">IHBB", 6 << 28, length, 6, 64)
        whole = ip + self._from.packed + self._to.packed + tcp + data
        now = time.time()
        return _RECORD.pack(int(now), int(now % 1 * 1e6), len(whole), len(whole)) + whole


def _address(text: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
    host, _, port = text.rpartition(":")
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0]), int(port)
    except ValueError:
        return ipaddress.ip_address("0.0.0.0"), 0


class _File:
    """Appends; whole records, so that connections may share a file."""

    def __init__(self, path: str) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            self._fd = os.open(path, flags, 0o600)
        except OSError as error:
            raise ChunnelArgumentError(f"mirror: {path} cannot be written ({error.strerror})") from None
        found = os.fstat(self._fd)
        if not stat.S_ISREG(found.st_mode) or os.pread(self._fd, 4, 0) not in (b"", FILE_HEADER[:4]):
            os.close(self._fd)
            raise ChunnelArgumentError(f"mirror: {path} is there already, and is no pcap file of ours")
        if found.st_size == 0:
            os.write(self._fd, FILE_HEADER)

    def write(self, record: bytes) -> bool:
        try:
            return os.write(self._fd, record) == len(record)
        except OSError:
            return False

    def close(self) -> None:
        os.close(self._fd)


class _Remote:
    """A TCP connection that is given what it takes."""

    def __init__(self, place: str) -> None:
        host, _, port = place.rpartition(":")
        try:
            number = int(port)
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._socket = socket.socket(family, socket.SOCK_STREAM)
        except (ValueError, OSError) as error:
            raise ChunnelArgumentError(f"mirror: {place} is no place for a copy ({error})") from None
        self._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            try:
                self._socket.connect((host.strip("[]"), number))
            except BlockingIOError:
                raise
            except OSError as error:
                self._socket.close()
                raise ChunnelArgumentError(f"mirror: {place} cannot be reached ({error})") from None
        self._queue: deque[bytes] = deque([FILE_HEADER])
        self._size = len(FILE_HEADER)

    def write(self, record: bytes) -> bool:
        taken = self._size + len(record) <= _QUEUE_MAX
        if taken:
            self._queue.append(record)
            self._size += len(record)
        self._flush()
        return taken

    def _flush(self) -> None:
        while self._queue:
            try:
                sent = self._socket.send(self._queue[0], socket.MSG_NOSIGNAL)
            except OSError:  # not connected yet, full, or gone: the queue's bound is the limit
                return
            self._size -= sent
            if sent == len(self._queue[0]):
                self._queue.popleft()
            else:
                self._queue[0] = self._queue[0][sent:]

    def close(self) -> None:
        self._flush()
        self._socket.close()


class MirrorPipe(Pipe):
    """Gives on what it gets, and a copy."""

    def __init__(self, args: Mapping[str, Any], wire: str, side: str, context: Context) -> None:
        super().__init__(args, wire, side, context)
        place = str(args["to"])
        direction = args.get("direction", "both")
        self._sends = direction in ("send", "both")
        self._receives = direction in ("receive", "both")
        self._out = _Flow(context.local, context.peer)
        self._in = _Flow(context.peer, context.local)
        self._place = _File(place) if _is_path(place) else _Remote(place)
        context.counts.setdefault("mirror.lost", 0)

    def _copy(self, flow: _Flow, item: Any) -> None:
        data = bytes(item) if isinstance(item, (bytes, bytearray, memoryview)) else repr(item).encode()
        for at in range(0, len(data), _PIECE):
            if not self._place.write(flow.packet(data[at : at + _PIECE])):
                self.context.counts["mirror.lost"] += 1

    def down(self, item: Any) -> Iterable[Any]:
        """Unchanged."""
        if self._sends:
            self._copy(self._out, item)
        return (item,)

    def up(self, item: Any) -> tuple[Iterable[Any], Iterable[Any]]:
        """Unchanged."""
        if self._receives:
            self._copy(self._in, item)
        return (item,), ()

    def close(self) -> None:
        """No more copies."""
        self._place.close()


def _is_path(place: str) -> bool:
    return "/" in place


def _place_problem(place: Any) -> str | None:
    if _is_path(str(place)):
        return None if os.path.isabs(place) else "an absolute path, or ADDRESS:PORT"
    host, _, port = str(place).rpartition(":")
    try:
        ipaddress.ip_address(host.strip("[]"))
        good = 0 < int(port) < 65536
    except ValueError:
        good = False
    return None if good else "ADDRESS:PORT (numbers), or the absolute path of a file"


TYPE = ChunnelType(
    name="mirror",
    summary="a copy of what goes by, to a pcap file or to another host",
    parameters=(
        Parameter("to", "str", "ADDRESS:PORT, or a file's path", check=_place_problem, agree="equal"),
        Parameter("direction", "str", "which way", "both", one_of("send", "receive", "both")),
    ),
    endpoints="either",
    transparent=True,
    dictated=False,
    implementations=(
        # It writes files: so it runs with the rights of the program's user, as an author's chunnel does.
        Implementation("python", "mirror", wires(), endpoints="either", make=MirrorPipe),
    ),
)
