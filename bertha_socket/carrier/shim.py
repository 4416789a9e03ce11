"""What shims send (native/carrier/carrier.h), and the memory in which they are answered."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from bertha_socket.carrier.ends import Link, Rings
from bertha_socket.carrier.process import User
from bertha_socket.carrier.reset import reset

MAGIC: Final = 0x52414342
VERSION: Final = 1
PLAN_MAX: Final = 8192
_HELLO: Final = struct.Struct("=IHHII")
_CARRY: Final = struct.Struct("=IHHIIQII")
_LINK: Final = struct.Struct("=IHHIII")
#: Behind a _CARRY: link, slot.
_PLACE: Final = struct.Struct("=II")
_LINKS_MAX: Final = 8
_HEAD: Final = struct.Struct("=IHH")
_KIND_HELLO: Final = 1
_KIND_CARRY: Final = 2
_KIND_DATAGRAMS: Final = 3
_KIND_LINK: Final = 4
_KIND_CARRY_RING: Final = 5
_KIND_BESIDE: Final = 6
#: u32 state, u32 life, char[616], char[396], u32 ended
STATUS_SIZE: Final = 1024
_CHUNNELS_AT: Final = 8
_CHUNNELS_SIZE: Final = 616
_DETAIL_AT: Final = _CHUNNELS_AT + _CHUNNELS_SIZE
_DETAIL_SIZE: Final = 396
_ENDED_AT: Final = _DETAIL_AT + _DETAIL_SIZE
_WORD: Final = struct.Struct("=I")
_REFUSED: Final = 2  # session.State
_NO_DESCRIPTORS: Final = "the carrier has no descriptors left; raise RLIMIT_NOFILE, or have fewer connections"


class BadMessage(Exception):
    """A shim said what makes no sense; it is left."""


class StatusFile:
    """A shim's array of records; closed when neither the shim nor a connection of its needs it."""

    def __init__(self, fd: int, count: int) -> None:
        self.fd = fd
        self.count = count

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.fd)


class Status:
    """The record of one connection.  Written by calls, not in memory: a shim cannot make that a fault."""

    def __init__(self, file: StatusFile, index: int) -> None:
        self._file = file
        self._at = index * STATUS_SIZE
        self._life = self._read_life()

    @property
    def fd(self) -> int:
        """The file's descriptor."""
        return self._file.fd

    @property
    def place(self) -> tuple[int, int, bytes]:
        """For who writes it by other means: the file, where in it, and the life that it must have."""
        return self.fd, self._at, self._life

    def _read_life(self) -> bytes:
        try:
            return os.pread(self.fd, 4, self._at + 4)
        except OSError:
            return b""

    def write(self, state: int, chunnels: str, detail: str) -> None:
        """Tells the shim; nothing once the record is another connection's."""
        if len(self._life) != 4 or self._read_life() != self._life:
            return
        texts = _text(chunnels, _CHUNNELS_SIZE) + _text(detail, _DETAIL_SIZE)
        with contextlib.suppress(OSError):
            os.pwrite(self.fd, texts, self._at + _CHUNNELS_AT)
            os.pwrite(self.fd, _WORD.pack(state), self._at)

    def end(self) -> None:
        """The program is about to be told of the stream's end."""
        if len(self._life) == 4 and self._read_life() == self._life:
            with contextlib.suppress(OSError):
                os.pwrite(self.fd, _WORD.pack(1), self._at + _ENDED_AT)

    def change(self, changes: Iterable[tuple[int, bytes]]) -> None:
        """Writes parts of the chunnels' text, one after the other; none once it is another connection's."""
        for at, data in changes:
            if len(self._life) != 4 or self._read_life() != self._life:
                return
            with contextlib.suppress(OSError):
                os.pwrite(self.fd, data, self._at + _CHUNNELS_AT + at)


def _seal(fd: int) -> None:
    """It is memory, and does not shrink from now on.  Raises OSError: it is none, or may."""
    if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)


def _text(text: str, size: int) -> bytes:
    return text.encode("utf-8", "replace")[: size - 1].ljust(size, b"\0")


@dataclass(slots=True)
class Carry:
    """A connection that is to be carried."""

    server: bool
    mode: int
    listener: int
    plan: bytes
    tcp: socket.socket
    pair: socket.socket
    status: Status
    #: As whom its chunnels run.
    user: User
    #: Whose program it is for its secrets, by the agent's word.
    uid: int
    #: `tcp` is a UDP socket, and `pair` one of datagrams.
    datagrams: bool = False
    #: And the other end of `pair` is the native carrier's, beside which we are: it reads from `tcp`.
    beside: bool = False
    #: The program is reached by these, which have `pair` beneath; None: by `pair` alone.
    rings: Rings | None = None


class Shim:
    """One shim's socket, and whose program it is of: `carry` is called for each connection."""

    def __init__(self, sock: socket.socket, user: User, carry: Callable[[Carry], None]) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._user = user
        self._uid = user.uid
        self._carry = carry
        self._statuses: StatusFile | None = None
        self._links: list[Link] = []

    def receive(self) -> bool:
        """Reads one message; False: the shim is gone, or makes no sense."""
        try:
            data, fds, flags, _ = socket.recv_fds(
                self.sock, _CARRY.size + _PLACE.size + PLAN_MAX, 8, socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        kept: list[int] = []
        try:
            if not data or flags & socket.MSG_TRUNC:
                return False
            if flags & socket.MSG_CTRUNC:
                self._no_room(data, fds)
                return True
            kept = self._take(data, fds)
            return True
        except BadMessage:
            return False
        finally:
            for fd in fds:
                if fd not in kept:
                    os.close(fd)

    def _no_room(self, data: bytes, fds: list[int]) -> None:
        """A connection came without its descriptors: it alone ends, at both ends where its socket came."""
        if len(data) < _CARRY.size or self._statuses is None:
            raise BadMessage
        _, _, kind, _, _, _, index, _ = _CARRY.unpack_from(data)
        if kind not in (_KIND_CARRY, _KIND_CARRY_RING, _KIND_DATAGRAMS, _KIND_BESIDE):
            raise BadMessage
        if index < self._statuses.count:
            Status(self._statuses, index).write(_REFUSED, "", _NO_DESCRIPTORS)
        if fds and kind in (_KIND_CARRY, _KIND_CARRY_RING):
            reset(fds[0])

    def _take(self, data: bytes, fds: list[int]) -> list[int]:
        """The descriptors that are in use now."""
        if len(data) < _HEAD.size:
            raise BadMessage
        magic, version, kind = _HEAD.unpack_from(data)
        if magic != MAGIC or version != VERSION:
            raise BadMessage
        if kind == _KIND_HELLO:
            self._take_hello(data, fds)
            return fds[:1]
        if kind == _KIND_LINK:
            self._take_link(data, fds)
            return fds[:1]
        if kind in (_KIND_CARRY, _KIND_DATAGRAMS, _KIND_CARRY_RING, _KIND_BESIDE):
            return self._take_carry(data, fds, kind)
        return []

    def _take_hello(self, data: bytes, fds: list[int]) -> None:
        if len(data) < _HELLO.size or len(fds) < 1 or self._statuses is not None:
            raise BadMessage
        *_, count = _HELLO.unpack_from(data)
        try:
            _seal(fds[0])
            found = os.fstat(fds[0])
        except OSError:
            raise BadMessage from None
        if found.st_size < count * STATUS_SIZE:
            raise BadMessage
        if self._user.uid == 0:  # it may have changed its user since, and root loses nothing by it
            self._user = User(found.st_uid, found.st_gid)
        self._statuses = StatusFile(fds[0], count)

    def _take_link(self, data: bytes, fds: list[int]) -> None:
        if len(data) != _LINK.size or len(fds) != 1:
            raise BadMessage
        _, _, _, number, index, _ = _LINK.unpack(data)
        if number != len(self._links) or number >= _LINKS_MAX:
            raise BadMessage
        fd = fds.pop()
        try:
            self._links.append(Link(fd, index))
        except OSError:
            raise BadMessage from None

    def _take_carry(self, data: bytes, fds: list[int], kind: int) -> list[int]:
        statuses = self._statuses
        beside, by_rings = kind == _KIND_BESIDE, kind == _KIND_CARRY_RING
        datagrams = beside or kind == _KIND_DATAGRAMS
        at = _CARRY.size + (_PLACE.size if by_rings else 0)
        if len(data) < at or len(fds) < (3 if by_rings else 2) or statuses is None:
            raise BadMessage
        _, _, _, side, mode, listener, index, size = _CARRY.unpack_from(data)
        plan = data[at : at + size]
        if side > 1 or mode > 2 or index >= statuses.count or len(plan) != size or (side == 0) != (mode == 0):
            raise BadMessage
        try:
            tcp = socket.socket(fileno=fds[0])
        except OSError:
            raise BadMessage from None
        try:
            pair = socket.socket(fileno=fds[1])
        except OSError:
            tcp.detach()
            raise BadMessage from None
        kinds = (socket.SOCK_STREAM, socket.SOCK_STREAM)
        if datagrams:
            kinds = (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET)
        inet = tcp.family in (socket.AF_INET, socket.AF_INET6)
        if (tcp.type, pair.type) != kinds or pair.family != socket.AF_UNIX or (datagrams and not inet):
            tcp.detach()
            pair.detach()
            raise BadMessage
        rings = None
        if by_rings:
            link, slot = _PLACE.unpack_from(data, _CARRY.size)
            try:
                rings = Rings(self._links[link], slot, pair, fds[2])
            except (OSError, IndexError):
                tcp.detach()
                pair.detach()
                raise BadMessage from None
        status = Status(statuses, index)
        self._carry(
            Carry(
                server=side == 1,
                mode=mode,
                listener=listener,
                plan=plan,
                tcp=tcp,
                pair=pair,
                status=status,
                user=self._user,
                uid=self._uid,
                datagrams=datagrams,
                beside=beside,
                rings=rings,
            )
        )
        return fds[: 3 if by_rings else 2]

    def close(self) -> None:
        """The shim is gone; its connections keep what they have of it."""
        self._links.clear()
        self.sock.close()
