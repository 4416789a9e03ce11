"""Shared memory that the agent makes: the directory file, claims and links.

The layouts are C's (native/core/layout.h); this file gives them Python's types and lifetimes.  The agent
never maps what somebody else may shrink or punch holes into: it writes headers with pwrite and reads
tables with pread, so that no client can make it take a SIGBUS.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import socket
import sys
from collections.abc import Iterator
from typing import Any, Final

from bertha_socket._native import ffi, lib

_MFD_NOEXEC_SEAL: Final = 0x0008
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_SEALS_READ_ONLY: Final = _SEALS | fcntl.F_SEAL_WRITE

LOOPBACK: Final = int(lib.BERTHA_DIR_LOOPBACK)
DAG: Final = int(lib.BERTHA_DIR_DAG)
#: How many of the words by which a process was called say of what kind it is.
BRIEF_WORDS: Final = int(lib.BERTHA_BRIEF_WORDS)
DATAGRAMS: Final = int(lib.BERTHA_DIR_DATAGRAMS)
DIRECTORY_ENTRIES: Final = int(lib.BERTHA_DIR_ENTRIES)


def netns_cookie(fd: int) -> int:
    """The kernel's number of the network namespace of any socket; 0 when it does not say (before 5.14)."""
    return int(lib.agent_netns_cookie(fd))


def _netns_of(sock: socket.socket) -> int:
    fd = int(lib.agent_netns_of(sock.fileno()))
    if fd < 0:
        raise OSError(-fd, os.strerror(-fd))
    return fd


@contextlib.contextmanager
def within_netns(of: socket.socket) -> Iterator[None]:
    """The sockets that are made within are in that one's network namespace.

    Raises OSError where we may not go there, or not come back: that takes CAP_SYS_ADMIN in both.
    """
    with contextlib.ExitStack() as stack:
        with socket.socket(socket.AF_UNIX) as ours:
            own = _netns_of(ours)
        stack.callback(os.close, own)
        there = _netns_of(of)
        stack.callback(os.close, there)
        for netns in (own, there):  # the first goes nowhere, and tells whether there is a way back
            number = lib.agent_enter_netns(netns)
            if number:
                raise OSError(number, os.strerror(number))
        try:
            yield
        finally:
            if lib.agent_enter_netns(own):
                os.abort()  # an agent that is elsewhere must not go on


def leave_netns() -> None:
    """Goes to process 1's network namespace, or to an empty one, where that is allowed: a detached agent
    would otherwise keep alive the namespace that it was started in.  It needs no network of its own."""
    lib.agent_leave_netns()


class Directory:
    """The writable mapping of the directory file."""

    def __init__(self, fd: int, generation: int) -> None:
        """Takes over the file open at `fd` (not the descriptor): empties it and marks it as served.

        Raises OSError when there is no room for it.
        """
        size = int(lib.agent_dir_size())
        # Shims keep it mapped: it grows if it must, and never shrinks.  Its room is taken now, or writing
        # to it would be a SIGBUS when the file system is full.
        os.posix_fallocate(fd, 0, size)
        self._map = mmap.mmap(fd, size)
        self._view = ffi.from_buffer(self._map)
        self.generation = generation
        lib.agent_dir_format(self._view, generation, os.getpid())

    def insert(
        self, addr: bytes, port: int, flags: int, netns: int, listener: int, uid: int, pid: int
    ) -> int | None:
        """The entry's number; None when the directory is full."""
        if len(addr) != 16:
            raise ValueError("an address has 16 bytes")
        index = int(lib.agent_dir_insert(self._view, addr, port, flags, netns, listener, uid, pid))
        return None if index < 0 else index

    def remove(self, index: int, listener: int) -> bool:
        """Whether that entry was that listener's."""
        return int(lib.agent_dir_remove(self._view, index, listener)) == 0

    def tell_brief(self, index: int, listener: int, uid: int, args: bytes, until_ns: int) -> None:
        """Processes called like this are brief at that listener, until then (`time.monotonic_ns`)."""
        lib.agent_dir_brief(self._view, index, listener, uid, args, len(args), until_ns)

    def count(self) -> int:
        """How many entries are listed."""
        return int(lib.agent_dir_count(self._view))

    def tell_news(self) -> None:
        """Shims are to ask again about all destinations for which they have no plan."""
        lib.agent_dir_news(self._view)

    def leave(self) -> None:
        """An orderly end: shims stop asking.  The mapping stays until the process ends."""
        lib.agent_dir_leave(self._view)


def previous_generation(fd: int) -> int:
    """The generation that an earlier agent wrote (0: left in order, or a new file)."""
    header = os.pread(fd, 16, 0)
    return int(lib.agent_dir_generation(ffi.from_buffer(header))) if len(header) == 16 else 0


def _memfd(name: str) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create(name, flags | _MFD_NOEXEC_SEAL)
    except OSError:  # EINVAL before Linux 6.3; anything else comes again
        return os.memfd_create(name, flags)


def _sealed(name: str, size: int, head: bytes, seals: int) -> int:
    fd = _memfd(name)
    try:
        os.ftruncate(fd, size)
        done = 0
        while done < len(head):
            done += os.pwrite(fd, head[done:], done)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(fd)
        raise
    return fd


def make_claims(listener: int) -> int:
    """A new claims table; its descriptor.  Raises OSError."""
    head = ffi.new("struct bertha_claims_header *")
    lib.agent_claims_header(head, listener)
    return _sealed("bertha-claims", int(lib.agent_claims_size()), bytes(ffi.buffer(head)), _SEALS)


def mark_claims(fd: int, dag: int, carrier: int, spin_us: int) -> None:
    """Tells a listener's processes what its connections may have (enum bertha_dag_need), by which carrier,
    and how long at most they spin for it.  The need last: whoever sees it must see the others."""
    os.pwrite(fd, spin_us.to_bytes(4, sys.byteorder), int(lib.OFFSETOF_claims_dag_spin_us))
    os.pwrite(fd, carrier.to_bytes(4, sys.byteorder), int(lib.OFFSETOF_claims_dag_carrier))
    os.pwrite(fd, dag.to_bytes(4, sys.byteorder), int(lib.OFFSETOF_claims_dag))


def make_link(listener: int, index: int, client_pid: int, rings: bool = True) -> int:
    """A new link; its descriptor.  Sparse: it takes memory only where somebody writes.  Without `rings`, for
    what does not use them, it also takes a small part of the addresses.  Raises OSError."""
    head = ffi.new("struct bertha_link_header *")
    lib.agent_link_header(head, listener, index, client_pid, rings)
    return _sealed("bertha-link", int(head.total_size), bytes(ffi.buffer(head)), _SEALS)


def _any_link() -> Any:
    """A header that says where things are in a link: it is the same in all."""
    head = ffi.new("struct bertha_link_header *")
    lib.agent_link_header(head, 1, 1, 1, True)
    return head


def tell_left_out(fd: int, why: str) -> None:
    """For the log of the server's side: what the client's connections go without, and why."""
    size = int(lib.BERTHA_LEFT_OUT_SIZE)
    text = why.encode("utf-8", "replace")[: size - 1].ljust(size, b"\0")
    os.pwrite(fd, text, int(_any_link().left_out_offset))


def link_size() -> int:
    """Bytes of addresses that a link with rings takes."""
    return int(lib.agent_link_size())


def link_use(fd: int) -> tuple[int, int]:
    """How many connections were made on a link, and the bytes they moved; exact while there are few."""
    use = ffi.new("struct agent_use *")
    slots = os.pread(fd, 2 * int(lib.SIZEOF_bertha_slot), int(_any_link().slot_offset))
    lib.agent_slots_read(slots, len(slots), use)
    return int(use.connections), int(use.bytes)


def mark_link_dead(fd: int) -> None:
    """Tells the server's side that the client process is gone (one store of the word `dead`)."""
    os.pwrite(fd, b"\1\0\0\0", int(lib.OFFSETOF_link_dead))


def make_page(name: str) -> int:
    """A page of zeros.  Raises OSError."""
    return _sealed(name, mmap.PAGESIZE, b"", _SEALS)


def make_file(name: str) -> int:
    """An empty memfd, to be written.  Raises OSError."""
    return _memfd(name)


def make_read_only(fd: int) -> None:
    """Seals a memfd against every change.  Raises OSError."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS_READ_ONLY)


def die_with_parent() -> None:
    """The calling process is killed when its parent ends."""
    lib.agent_die_with_parent()


def is_memory(fd: int) -> bool:
    """Whether reading from `fd` can never wait for somebody: only memory files have seals."""
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return False
    return True
