"""Clients' policy files, read with no more rights than the client has, and without waiting for it.

A path comes from the client.  A file of the agent's own user is simply read.  For anybody else (root's
agent serves everybody) a short-lived child takes on the client's user and groups and reads: the path then
opens nothing that the client could not open, and a file system that hangs only hangs the child.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from bertha_socket import policy
from bertha_socket.agent.sockets import Peer

_SECONDS: Final = 1.0
_CHILDREN: Final = 16
_CHILDREN_PER_USER: Final = 2
_SO_PEERGROUPS: Final = 59
_GROUPS_MAX: Final = 1024
SYSTEM_FILE: Final = "/etc/bertha/bertha.toml"


class Loaded(NamedTuple):
    """A policy, or why there is none."""

    policy: policy.Policy
    error: str | None = None


_Done = Callable[[Loaded], None]


@dataclass(eq=False, slots=True)
class _Child:
    pid: int
    uid: int
    pipe: int
    path: str
    deadline: float
    done: _Done
    data: bytearray


class Policies:
    """Reads and remembers policy files."""

    def __init__(self) -> None:
        self._cache: dict[str, tuple[tuple[int, ...], Loaded]] = {}
        self._children: dict[int, _Child] = {}
        self._zombies: set[int] = set()

    @property
    def busy(self) -> bool:
        """Whether a child is reading."""
        return bool(self._children)

    def look(self, peer: Peer, path: str) -> Loaded | None:
        """The policy, if the agent may read it itself; None: `read_as` must."""
        if path and peer.uid != os.geteuid() and os.geteuid() == 0:
            return None
        if not path:
            path = self._default(peer) or ""
            if not path:
                return Loaded(policy.EMPTY)
        return self._load(path)

    @staticmethod
    def _default(peer: Peer) -> str | None:
        if peer.uid == os.geteuid():
            env = {k: v for k, v in os.environ.items() if k != "BERTHA_POLICY"}
            return policy.find_file(env)
        return SYSTEM_FILE if os.path.isfile(SYSTEM_FILE) else None

    def _load(self, path: str) -> Loaded:
        try:
            found = os.stat(path)
        except OSError as error:
            return Loaded(policy.EMPTY, f"{path}: {error.strerror}")
        if not stat.S_ISREG(found.st_mode):
            return Loaded(policy.EMPTY, f"{path}: not a regular file")
        mark = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
        known = self._cache.get(path)
        if known is not None and known[0] == mark:
            return known[1]
        try:
            loaded = Loaded(policy.load(path))
        except policy.PolicyError as error:
            loaded = Loaded(policy.EMPTY, str(error))
        if len(self._cache) >= 64:
            self._cache.clear()
        self._cache[path] = (mark, loaded)
        return loaded

    def read_as(
        self,
        selector: selectors.BaseSelector,
        sock: socket.socket,
        peer: Peer,
        path: str,
        now: float,
        done: _Done,
    ) -> None:
        """Has the file read as `peer`; calls `done` later, or at once when that cannot be."""
        mine = sum(1 for c in self._children.values() if c.uid == peer.uid)
        if len(self._children) + len(self._zombies) >= _CHILDREN or mine >= _CHILDREN_PER_USER:
            done(Loaded(policy.EMPTY, f"{path}: too many policy files are being read"))
            return
        try:
            groups = _groups_of(sock, peer)
            read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            done(Loaded(policy.EMPTY, f"{path}: {error.strerror}"))
            return
        try:
            pid = os.fork()
        except OSError as error:
            os.close(read_end)
            os.close(write_end)
            done(Loaded(policy.EMPTY, f"{path}: {error.strerror}"))
            return
        if pid == 0:
            _child(write_end, peer, groups, path)
        os.close(write_end)
        child = _Child(pid, peer.uid, read_end, path, now + _SECONDS, done, bytearray())
        self._children[read_end] = child
        selector.register(read_end, selectors.EVENT_READ, lambda: self._readable(selector, child))

    def _readable(self, selector: selectors.BaseSelector, child: _Child) -> None:
        try:
            data = os.read(child.pipe, 65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        child.data += data
        if not data or len(child.data) > policy.FILE_MAX + 2:
            self._finish(selector, child)

    def _finish(self, selector: selectors.BaseSelector, child: _Child) -> None:
        selector.unregister(child.pipe)
        del self._children[child.pipe]
        os.close(child.pipe)
        self._zombies.add(child.pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)  # not reaped yet, so the number is still its own
        self._reap()
        child.done(_loaded(bytes(child.data), child.path))

    def _reap(self) -> None:
        for pid in list(self._zombies):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0] == 0:
                    continue
            self._zombies.discard(pid)

    def deadline(self) -> float | None:
        """When the next child has had its time."""
        return min((c.deadline for c in self._children.values()), default=None)

    def expire(self, selector: selectors.BaseSelector, now: float) -> None:
        """Gives up on children that have had their time, and buries the dead."""
        for child in list(self._children.values()):
            if child.deadline <= now:
                child.data.clear()
                self._finish(selector, child)
        if self._zombies:
            self._reap()

    def close(self) -> None:
        """Ends all children."""
        for child in self._children.values():
            os.close(child.pipe)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
        self._children.clear()


def _loaded(data: bytes, path: str) -> Loaded:
    if data[:1] == b"+":
        try:
            return Loaded(policy.decode(data[1:], path))
        except policy.PolicyError as error:
            return Loaded(policy.EMPTY, str(error))
    why = data[1:].decode("utf-8", "replace") or "cannot be read in time"
    return Loaded(policy.EMPTY, f"{path}: {why}")


def _groups_of(sock: socket.socket, peer: Peer) -> list[int]:
    """The groups that the client had when it connected (SO_PEERGROUPS)."""
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _GROUPS_MAX)
    except OSError:
        return [peer.gid]
    return list(struct.unpack(f"={len(raw) // 4}I", raw))


def _child(pipe: int, peer: Peer, groups: list[int], path: str) -> None:
    """Never returns."""
    answer = b"-cannot be read"
    try:
        signal.set_wakeup_fd(-1)
        os.dup2(pipe, 0)
        os.closerange(1, 1 << 20)  # whatever becomes of us, nothing of the agent's stays open
        os.set_blocking(0, True)
        os.setgroups(groups)
        os.setresgid(peer.gid, peer.gid, peer.gid)
        os.setresuid(peer.uid, peer.uid, peer.uid)
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        if stat.S_ISREG(os.fstat(fd).st_mode):
            data = b"+"
            while len(data) <= policy.FILE_MAX + 1:
                more = os.read(fd, policy.FILE_MAX + 2 - len(data))
                if not more:
                    break
                data += more
            answer = data
        else:
            answer = b"-not a regular file"
    except OSError as error:
        answer = b"-" + (error.strerror or "cannot be read").encode()
    finally:
        try:
            while answer:
                answer = answer[os.write(0, answer) :]
        finally:
            os._exit(0)
