"""The C library's calls by ctypes, for `driver`: dlsym finds the preload library's first, if there is one."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_char, c_int, c_long, c_short, c_size_t, c_uint, c_uint64, c_void_p

lib = ctypes.CDLL(None, use_errno=True)
for _name in ("recv", "send", "read", "write", "readv", "writev", "recvfrom", "sendto", "recvmsg", "sendmsg"):
    getattr(lib, _name).restype = c_long


class IoVec(Structure):
    """struct iovec"""

    _fields_ = [("base", c_void_p), ("len", c_size_t)]


class MsgHdr(Structure):
    """struct msghdr"""

    _fields_ = [
        ("name", c_void_p),
        ("namelen", c_uint),
        ("iov", POINTER(IoVec)),
        ("iovlen", c_size_t),
        ("control", c_void_p),
        ("controllen", c_size_t),
        ("flags", c_int),
    ]


class MMsgHdr(Structure):
    """struct mmsghdr"""

    _fields_ = [("hdr", MsgHdr), ("len", c_uint)]


class PollFd(Structure):
    """struct pollfd"""

    _fields_ = [("fd", c_int), ("events", c_short), ("revents", c_short)]


class EpollEvent(Structure):
    """struct epoll_event (packed on x86-64 alone)"""

    _fields_ = [("events", c_uint), ("data", c_uint64)]
    if ctypes.sizeof(c_void_p) == 8 and __import__("platform").machine() == "x86_64":
        _pack_ = 1


class TimeVal(Structure):
    """struct timeval"""

    _fields_ = [("sec", c_long), ("usec", c_long)]


class Vector:
    """An iovec array over one buffer, cut into parts of the given sizes."""

    def __init__(self, sizes: list[int], content: bytes = b"") -> None:
        total = sum(sizes)
        self.buffer = ctypes.create_string_buffer(content.ljust(total, b"\0"), max(total, 1))
        self.iov = (IoVec * max(len(sizes), 1))()
        at = ctypes.addressof(self.buffer)
        for i, size in enumerate(sizes):
            self.iov[i].base = at
            self.iov[i].len = size
            at += size
        self.count = len(sizes)

    def taken(self, n: int) -> bytes:
        """The first n bytes."""
        return self.buffer.raw[: max(n, 0)]


def buffer(size: int) -> ctypes.Array[c_char]:
    """A writable buffer."""
    return ctypes.create_string_buffer(max(size, 1))
