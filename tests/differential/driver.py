"""A program that makes the socket calls it is told to, through the C library, and says what came of them.

    python -m tests.differential.driver CONTROL_FD SECOND_CONTROL_FD

It runs plain or under bertha-run.  Messages on the control descriptor are a length (4
bytes) and JSON.  A request names a call and handles (numbers of the controller's choice); the reply has
`ret`, `errno`, and whatever the call gave.  After a "fork" the child listens on the second control
descriptor, with all handles.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from typing import Any

from tests.differential.libc import EpollEvent, MMsgHdr, MsgHdr, PollFd, TimeVal, Vector, buffer, lib

Reply = dict[str, Any]
_OPTIONS = {
    "error": (socket.SOL_SOCKET, socket.SO_ERROR),
    "type": (socket.SOL_SOCKET, socket.SO_TYPE),
    "domain": (socket.SOL_SOCKET, 39),
    "protocol": (socket.SOL_SOCKET, 38),
    "acceptconn": (socket.SOL_SOCKET, socket.SO_ACCEPTCONN),
    "keepalive": (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    "oobinline": (socket.SOL_SOCKET, socket.SO_OOBINLINE),
    "rcvlowat": (socket.SOL_SOCKET, socket.SO_RCVLOWAT),
    "nodelay": (socket.IPPROTO_TCP, socket.TCP_NODELAY),
    "cork": (socket.IPPROTO_TCP, socket.TCP_CORK),
    "user_timeout": (socket.IPPROTO_TCP, 18),
}
_FLAGS = {
    "peek": socket.MSG_PEEK,
    "dontwait": socket.MSG_DONTWAIT,
    "waitall": socket.MSG_WAITALL,
    "nosignal": socket.MSG_NOSIGNAL,
    "trunc": socket.MSG_TRUNC,
    "more": socket.MSG_MORE,
}
_SIOCOUTQ, _FIONREAD, _FIONBIO = 0x5411, 0x541B, 0x5421


def pattern(stream: int, size: int) -> bytes:
    """What a send of the controller's choice consists of: any other bytes in its place would be noticed."""
    unit = hashlib.sha256(struct.pack("=q", stream)).digest()
    return (unit * (size // len(unit) + 1))[:size]


def show(data: bytes) -> str:
    """Bytes, as they are compared."""
    return data.hex() if len(data) <= 48 else f"{len(data)}:{hashlib.sha1(data).hexdigest()}"


class Driver:
    """The handles, and a method for each call."""

    def __init__(self, control: int, second: int) -> None:
        self.control = control
        self.second = second
        self.fds: dict[int, int] = {}
        self.sigpipes = 0
        signal.signal(signal.SIGPIPE, self._on_sigpipe)

    def _on_sigpipe(self, number: int, frame: object) -> None:
        self.sigpipes += 1

    # -- the control channel --------------------------------------------------------------------

    def _read(self, n: int) -> bytes:
        data = b""
        while len(data) < n:
            part = os.read(self.control, n - len(data))
            if not part:
                os._exit(0)
            data += part
        return data

    def serve(self) -> None:
        """Until the controller hangs up."""
        while True:
            size = struct.unpack("=I", self._read(4))[0]
            request = json.loads(self._read(size))
            op = request.pop("op")
            missing = [v for k, v in request.items() if k in ("h", "e") and v not in self.fds]
            if missing:
                reply: Reply = {"skipped": True}
            else:
                ctypes.set_errno(0)
                reply = getattr(self, "do_" + op)(**request)
            if self.sigpipes:
                reply["sigpipes"] = self.sigpipes
                self.sigpipes = 0
            text = json.dumps(reply).encode()
            os.write(self.control, struct.pack("=I", len(text)) + text)

    def _reply(self, ret: int, **more: Any) -> Reply:
        return {"ret": ret, "errno": ctypes.get_errno() if ret < 0 else 0, **more}

    def _new(self, ret: int, new: int, **more: Any) -> Reply:
        if ret >= 0:
            self._forget(new)
            self.fds[new] = ret
        return self._reply(min(ret, 0), **more)

    def _forget(self, handle: int) -> None:
        if handle in self.fds:
            lib.close(self.fds.pop(handle))

    # -- setting up and ending ------------------------------------------------------------------

    def do_socket(self, new: int, family: int, nonblock: bool) -> Reply:
        kind = socket.SOCK_STREAM | socket.SOCK_CLOEXEC | (socket.SOCK_NONBLOCK if nonblock else 0)
        return self._new(lib.socket(family, kind, 0), new)

    def do_bind(self, h: int, address: list[Any]) -> Reply:
        raw = _pack(address)
        return self._reply(lib.bind(self.fds[h], raw, len(raw)))

    def do_listen(self, h: int, backlog: int) -> Reply:
        return self._reply(lib.listen(self.fds[h], backlog))

    def do_connect(self, h: int, address: list[Any]) -> Reply:
        raw = _pack(address)
        return self._reply(lib.connect(self.fds[h], raw, len(raw)))

    def do_accept(self, h: int, new: int, four: bool, nonblock: bool) -> Reply:
        raw = buffer(128)
        size = ctypes.c_uint(128)
        if four:
            flags = socket.SOCK_CLOEXEC | (socket.SOCK_NONBLOCK if nonblock else 0)
            ret = lib.accept4(self.fds[h], raw, ctypes.byref(size), flags)
        else:
            ret = lib.accept(self.fds[h], raw, ctypes.byref(size))
        address = _unpack(raw.raw[: size.value]) if ret >= 0 else None
        return self._new(ret, new, address=address)

    def do_close(self, h: int) -> Reply:
        return self._reply(lib.close(self.fds.pop(h)))

    def do_shutdown(self, h: int, how: int) -> Reply:
        return self._reply(lib.shutdown(self.fds[h], how))

    def do_name(self, h: int, peer: bool) -> Reply:
        raw = buffer(128)
        size = ctypes.c_uint(128)
        call = lib.getpeername if peer else lib.getsockname
        ret = call(self.fds[h], raw, ctypes.byref(size))
        return self._reply(ret, address=_unpack(raw.raw[: size.value]) if ret == 0 else None)

    def do_fork(self) -> Reply:
        pid = os.fork()
        if pid == 0:
            self.control, self.second = self.second, -1
            self.serve()
        return {"pid": pid}

    def do_reap(self, pid: int) -> Reply:
        os.waitpid(pid, 0)
        return {}

    def do_reset(self) -> Reply:
        """Between sequences: nothing is left."""
        for handle in list(self.fds):
            self._forget(handle)
        return {}

    # -- sending ----------------------------------------------------------------------------------

    def do_send(self, h: int, call: str, size: int, stream: int, flags: list[str], parts: int) -> Reply:
        fd, data, bits = self.fds[h], pattern(stream, size), _bits(flags)
        if call == "write":
            return self._reply(lib.write(fd, data, size))
        if call == "send":
            return self._reply(lib.send(fd, data, size, bits))
        if call == "sendto":
            return self._reply(lib.sendto(fd, data, size, bits, None, 0))
        vector = Vector(_cut(size, parts), data)
        if call == "writev":
            return self._reply(lib.writev(fd, vector.iov, vector.count))
        if call == "sendmsg":
            header = MsgHdr(iov=vector.iov, iovlen=vector.count)
            return self._reply(lib.sendmsg(fd, ctypes.byref(header), bits))
        vectors = [vector, Vector([size], data)]
        headers = (MMsgHdr * 2)()
        for i, v in enumerate(vectors):
            headers[i].hdr.iov = v.iov
            headers[i].hdr.iovlen = v.count
        ret = lib.sendmmsg(fd, headers, 2, bits)
        return self._reply(ret, lengths=[headers[i].len for i in range(max(ret, 0))])

    def do_settle(self, h: int, ms: int) -> Reply:
        """Waits until the kernel has delivered what it was given: Nagle's algorithm may hold it back."""
        value = ctypes.c_int(0)
        deadline = time.monotonic() + ms / 1000
        while time.monotonic() < deadline:
            if lib.ioctl(self.fds[h], ctypes.c_ulong(_SIOCOUTQ), ctypes.byref(value)) != 0 or not value.value:
                break
            time.sleep(0.001)
        return {}

    # -- receiving --------------------------------------------------------------------------------

    def do_recv(self, h: int, call: str, size: int, flags: list[str], parts: int) -> Reply:
        fd, bits = self.fds[h], _bits(flags)
        vector = Vector(_cut(size, parts))
        more: Reply = {}
        if call == "read":
            ret = lib.read(fd, vector.buffer, size)
        elif call == "recv":
            ret = lib.recv(fd, vector.buffer, size, bits)
        elif call == "recvfrom":
            raw, length = buffer(128), ctypes.c_uint(128)
            ret = lib.recvfrom(fd, vector.buffer, size, bits, raw, ctypes.byref(length))
            more = {"namelen": length.value} if ret >= 0 else {}
        elif call == "readv":
            ret = lib.readv(fd, vector.iov, vector.count)
        elif call == "recvmsg":
            raw, control = buffer(128), buffer(64)
            header = MsgHdr(
                name=ctypes.addressof(raw),
                namelen=128,
                iov=vector.iov,
                iovlen=vector.count,
                control=ctypes.addressof(control),
                controllen=64,
            )
            ret = lib.recvmsg(fd, ctypes.byref(header), bits)
            if ret >= 0:
                more = {"namelen": header.namelen, "controllen": header.controllen, "flags": header.flags}
        else:
            second = Vector([size])
            headers = (MMsgHdr * 2)()
            for i, v in enumerate((vector, second)):
                headers[i].hdr.iov = v.iov
                headers[i].hdr.iovlen = v.count
            ret = lib.recvmmsg(fd, headers, 2, bits | socket.MSG_DONTWAIT, None)
            got = [headers[i].len for i in range(max(ret, 0))]
            data = [show(v.taken(n)) for v, n in zip((vector, second), got, strict=False)]
            return self._reply(ret, lengths=got, data=data)
        kept = 0 if "trunc" in flags else ret
        return self._reply(ret, data=show(vector.taken(kept)), **more)

    def do_drain(self, h: int, size: int) -> Reply:
        """Everything that is there, then how it ends."""
        whole, space = b"", buffer(size)
        while (n := lib.recv(self.fds[h], space, size, socket.MSG_DONTWAIT)) > 0:
            whole += space.raw[:n]
        return self._reply(n, data=show(whole), total=len(whole))

    def do_push(self, h: int, size: int, stream: int, done: int) -> Reply:
        """As much of a long message as goes without waiting."""
        data = pattern(stream, size)
        sent = done
        while sent < size:
            n = lib.send(self.fds[h], data[sent:], size - sent, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            if n <= 0:
                break
            sent += n
        return {"sent": sent, "errno": ctypes.get_errno() if sent < size else 0}

    def do_pull(self, h: int, size: int) -> Reply:
        """As much as is there, up to size."""
        whole = b""
        space = buffer(65536)
        n = 0
        while len(whole) < size:
            n = lib.recv(self.fds[h], space, min(65536, size - len(whole)), socket.MSG_DONTWAIT)
            if n <= 0:
                break
            whole += space.raw[:n]
        errno = ctypes.get_errno() if n < 0 else 0
        return {"got": len(whole), "hex": whole.hex(), "end": n == 0, "errno": errno}

    # -- options ------------------------------------------------------------------------------------

    def do_getsockopt(self, h: int, name: str) -> Reply:
        level, option = _OPTIONS[name]
        value, size = ctypes.c_int(0), ctypes.c_uint(4)
        ret = lib.getsockopt(self.fds[h], level, option, ctypes.byref(value), ctypes.byref(size))
        return self._reply(ret, value=value.value, size=size.value)

    def do_setsockopt(self, h: int, name: str, value: int) -> Reply:
        level, option = _OPTIONS[name]
        number = ctypes.c_int(value)
        return self._reply(lib.setsockopt(self.fds[h], level, option, ctypes.byref(number), 4))

    def do_linger(self, h: int, on: int, seconds: int) -> Reply:
        raw = struct.pack("=ii", on, seconds)
        return self._reply(lib.setsockopt(self.fds[h], socket.SOL_SOCKET, socket.SO_LINGER, raw, 8))

    def do_timeout(self, h: int, ms: int) -> Reply:
        value = TimeVal(ms // 1000, ms % 1000 * 1000)
        ret = 0
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            ret |= lib.setsockopt(self.fds[h], socket.SOL_SOCKET, option, ctypes.byref(value), 16)
        size = ctypes.c_uint(16)
        back = TimeVal()
        lib.getsockopt(
            self.fds[h], socket.SOL_SOCKET, socket.SO_RCVTIMEO, ctypes.byref(back), ctypes.byref(size)
        )
        return self._reply(ret, usec=back.sec * 1000000 + back.usec)

    def do_nonblock(self, h: int, on: bool, ioctl: bool) -> Reply:
        fd = self.fds[h]
        if ioctl:
            value = ctypes.c_int(on)
            return self._reply(lib.ioctl(fd, ctypes.c_ulong(_FIONBIO), ctypes.byref(value)))
        return self._reply(lib.fcntl(fd, 4, ctypes.c_int(os.O_RDWR | (os.O_NONBLOCK if on else 0))))

    def do_getfl(self, h: int) -> Reply:
        return self._reply(lib.fcntl(self.fds[h], 3, 0))

    def do_unread(self, h: int) -> Reply:
        value = ctypes.c_int(-1)
        ret = lib.ioctl(self.fds[h], ctypes.c_ulong(_FIONREAD), ctypes.byref(value))
        return self._reply(ret, value=value.value)

    def do_unsent(self, h: int) -> Reply:
        """What is on its way is a matter of time; that the call works is not."""
        value = ctypes.c_int(-1)
        ret = lib.ioctl(self.fds[h], ctypes.c_ulong(_SIOCOUTQ), ctypes.byref(value))
        return self._reply(ret, sane=ret < 0 or value.value >= 0)

    def do_dup(self, h: int, new: int, how: str) -> Reply:
        fd = self.fds[h]
        if how == "dup":
            return self._new(lib.dup(fd), new)
        if how == "dupfd":
            return self._new(lib.fcntl(fd, 0, ctypes.c_int(100)), new)
        if how == "dupfd_cloexec":
            return self._new(lib.fcntl(fd, 1030, ctypes.c_int(100)), new)
        target = self.fds.get(new)
        if target is None:
            return self._new(lib.dup(fd), new)
        return self._reply(min(lib.dup2(fd, target) if how == "dup2" else lib.dup3(fd, target, 0), 0))

    # -- readiness ------------------------------------------------------------------------------------

    def do_poll(self, hs: list[int], events: list[int], timeout: int) -> Reply:
        pairs = [(h, e) for h, e in zip(hs, events, strict=True) if h in self.fds]
        array = (PollFd * max(len(pairs), 1))(*(PollFd(self.fds[h], e, 0) for h, e in pairs))
        ret = lib.poll(array, len(pairs), timeout)
        return self._reply(ret, revents=[array[i].revents for i in range(len(pairs))])

    def do_select(self, hs: list[int], sets: int) -> Reply:
        fds = [self.fds[h] for h in hs if h in self.fds and self.fds[h] < 1024]
        raw = [ctypes.create_string_buffer(128) if sets >> i & 1 else None for i in range(3)]
        for bits in raw:
            for fd in fds if bits is not None else []:
                assert bits is not None
                bits[fd // 8] = bytes([bits.raw[fd // 8] | 1 << fd % 8])
        zero = TimeVal(0, 0)
        ret = lib.select(max(fds, default=-1) + 1, *raw, ctypes.byref(zero))
        out = [[b.raw[fd // 8] >> fd % 8 & 1 for fd in fds] if b is not None else None for b in raw]
        return self._reply(ret, ready=out)

    def do_epoll_create(self, new: int) -> Reply:
        return self._new(lib.epoll_create1(select.EPOLL_CLOEXEC), new)

    def do_epoll_ctl(self, e: int, h: int, what: int, events: int) -> Reply:
        event = EpollEvent(events, h)
        return self._reply(lib.epoll_ctl(self.fds[e], what, self.fds[h], ctypes.byref(event)))

    def do_epoll_wait(self, e: int, room: int, timeout: int) -> Reply:
        array = (EpollEvent * room)()
        ret = lib.epoll_wait(self.fds[e], array, room, timeout)
        return self._reply(ret, events=sorted([array[i].data, array[i].events] for i in range(max(ret, 0))))


def _bits(flags: list[str]) -> int:
    value = 0
    for flag in flags:
        value |= _FLAGS[flag]
    return value


def _cut(size: int, parts: int) -> list[int]:
    sizes = [size // parts] * parts
    sizes[-1] += size - sum(sizes)
    return sizes


def _pack(address: list[Any]) -> bytes:
    host, port = address
    if ":" in host:
        return struct.pack("=HHI16sI", socket.AF_INET6, socket.htons(port), 0, socket.inet_pton(10, host), 0)
    return struct.pack("=HH4s8x", socket.AF_INET, socket.htons(port), socket.inet_aton(host))


def _unpack(raw: bytes) -> list[Any]:
    if len(raw) < 2:
        return [len(raw)]
    family = struct.unpack_from("=H", raw)[0]
    if family == socket.AF_INET:
        port, host = struct.unpack_from("=H4s", raw, 2)
        return [socket.inet_ntoa(host), socket.ntohs(port), len(raw)]
    port, _, host = struct.unpack_from("=HI16s", raw, 2)
    return [socket.inet_ntop(10, host), socket.ntohs(port), len(raw)]


if __name__ == "__main__":
    Driver(int(sys.argv[1]), int(sys.argv[2])).serve()
