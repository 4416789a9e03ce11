"""Clients' policy files, read with no more rights than the client has, and without waiting for it.

A path comes from the client.  A file of the agent's own user is simply read.  For anybody else (root's
agent serves everybody) a short-lived child takes on the client's user and groups and reads: the path then
opens nothing that the client could not open, and a file system that hangs only hangs the child.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from bertha_socket import policy
from bertha_socket._policy_file import SYSTEM_FILE
from bertha_socket.agent.errands import Errands, tell_all
from bertha_socket.agent.sockets import Peer

#: Less than a shim waits for its agent.
_SECONDS: Final = 1.5
_SO_PEERGROUPS: Final = 59
_GROUPS_MAX: Final = 1024


class Loaded(NamedTuple):
    """A policy, or why there is none."""

    policy: policy.Policy
    error: str | None = None


_Done = Callable[[Loaded], None]


class _Question(NamedTuple):
    """Whose rights, and which file.  Those who ask the same get the same answer."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    path: str


class Policies:
    """Reads and remembers policy files."""

    def __init__(self, errands: Errands) -> None:
        self._errands = errands
        self._cache: dict[str, tuple[tuple[int, ...], Loaded]] = {}
        self._asked: dict[_Question, list[_Done]] = {}
        #: Our own variables: copied once, for a copy is a tenth of what a new process's greeting takes.
        self._env = {k: v for k, v in os.environ.items() if k != "BERTHA_POLICY"}

    def look(self, peer: Peer, path: str) -> Loaded | None:
        """The policy, if the agent may read it itself; None: `read_as` must."""
        if path and peer.uid != os.geteuid() and os.geteuid() == 0:
            return None
        if not path:
            path = self._default(peer) or ""
            if not path:
                return Loaded(policy.EMPTY)
        return self._load(path)

    def _default(self, peer: Peer) -> str | None:
        if peer.uid == os.geteuid():
            return policy.find_file(self._env)
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
        loaded = _tried(lambda: policy.load(path), path)
        if len(self._cache) >= 64:
            self._cache.clear()
        self._cache[path] = (mark, loaded)
        return loaded

    def read_as(self, sock: socket.socket, peer: Peer, path: str, done: _Done) -> None:
        """Has the file read as `peer`, and calls `done` with the outcome, never before this returns.

        Every question is answered: a file that cannot be read in time counts as unreadable.
        """
        question = _Question(peer.uid, peer.gid, groups_of(sock, peer), path)
        waiting = self._asked.setdefault(question, [])
        waiting.append(done)
        if len(waiting) == 1:
            self._errands.run(
                question.uid, _SECONDS, lambda fd: _read(fd, question), lambda fd: self._tell(question, fd)
            )

    def _tell(self, question: _Question, fd: int | None) -> None:
        asked = self._asked.pop(question)
        data = b"" if fd is None else os.pread(fd, policy.FILE_MAX + 2, 0)
        tell_all(asked, _loaded(data, question.path))


def _tried(read: Callable[[], policy.Policy], path: str) -> Loaded:
    """A mistake of ours is no reason to leave those who ask without an answer."""
    try:
        return Loaded(read())
    except policy.PolicyError as error:
        return Loaded(policy.EMPTY, str(error))
    except Exception as error:
        return Loaded(policy.EMPTY, f"{path}: makes no sense: {error!r}")


def _loaded(data: bytes, path: str) -> Loaded:
    if data[:1] == b"+":
        return _tried(lambda: policy.decode(data[1:], path), path)
    why = data[1:].decode("utf-8", "replace") or "cannot be read in time"
    return Loaded(policy.EMPTY, f"{path}: {why}")


def groups_of(sock: socket.socket, peer: Peer) -> tuple[int, ...]:
    """The groups that the client had when it connected (SO_PEERGROUPS)."""
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _GROUPS_MAX)
    except OSError:
        return (peer.gid,)
    return tuple(struct.unpack(f"={len(raw) // 4}I", raw))


def _read(outcome: int, question: _Question) -> None:
    """In a child: becomes the user, and writes what it could read, or why it could not."""
    os.dup2(outcome, 0)
    os.closerange(1, 1 << 20)  # whatever becomes of us, nothing of the agent's stays open
    try:
        os.setgroups(question.groups)
        os.setresgid(question.gid, question.gid, question.gid)
        os.setresuid(question.uid, question.uid, question.uid)
        fd = os.open(question.path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        os.write(0, b"+")
        left = policy.FILE_MAX + 1
        while left > 0 and (data := os.read(fd, left)):
            left -= os.write(0, data)
    except OSError as error:
        os.ftruncate(0, 0)
        os.pwrite(0, b"-" + (error.strerror or "cannot be read").encode(), 0)
