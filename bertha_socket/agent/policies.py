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
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from bertha_socket import policy
from bertha_socket.agent.sockets import Peer

_SECONDS: Final = 1.0
#: How long somebody waits for a child's turn and its answer: less than a shim waits for its agent.
_PATIENCE: Final = 1.5
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


class _Question(NamedTuple):
    """Whose rights, and which file.  Those who ask the same get the same answer."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    path: str


class _Asked(NamedTuple):
    until: float
    waiting: list[_Done]


@dataclass(eq=False, slots=True)
class _Child:
    pid: int
    pidfd: int
    pipe: int
    question: _Question
    deadline: float
    data: bytearray = field(default_factory=bytearray)


class Policies:
    """Reads and remembers policy files."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self._cache: dict[str, tuple[tuple[int, ...], Loaded]] = {}
        #: Who waits for the answer to which question, in the order of asking.
        self._asked: dict[_Question, _Asked] = {}
        self._children: dict[_Question, _Child] = {}
        #: Ended or killed, and not yet buried: a child that a file system holds up may take its time.
        self._dying: set[_Child] = set()

    @property
    def busy(self) -> bool:
        """Whether somebody waits for a policy."""
        return bool(self._asked)

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

    def read_as(self, sock: socket.socket, peer: Peer, path: str, now: float, done: _Done) -> None:
        """Has the file read as `peer`, and calls `done` with the outcome, never before this returns.

        Every question is answered: a file that cannot be read within a second counts as unreadable.
        """
        question = _Question(peer.uid, peer.gid, _groups_of(sock, peer), path)
        self._asked.setdefault(question, _Asked(now + _PATIENCE, [])).waiting.append(done)
        self._start(now)

    def _start(self, now: float) -> None:
        """Starts as many children as may run."""
        for question in list(self._asked):
            mine = sum(1 for q in self._children if q.uid == question.uid)
            mine += sum(1 for c in self._dying if c.question.uid == question.uid)
            if question in self._children or mine >= _CHILDREN_PER_USER:
                continue
            if len(self._children) + len(self._dying) >= _CHILDREN or not self._fork(question, now):
                return

    def _fork(self, question: _Question, now: float) -> bool:
        try:
            read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return False
        try:
            pid = os.fork()
            if pid == 0:
                _child(write_end, question)
            try:
                pidfd = os.pidfd_open(pid)
            except OSError:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise
        except OSError:
            os.close(read_end)
            return False
        finally:
            os.close(write_end)
        child = _Child(pid, pidfd, read_end, question, now + _SECONDS)
        self._children[question] = child
        self._selector.register(read_end, selectors.EVENT_READ, lambda: self._readable(child))
        self._selector.register(pidfd, selectors.EVENT_READ, lambda: self._bury(child))
        return True

    def _readable(self, child: _Child) -> None:
        try:
            data = os.read(child.pipe, 65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        child.data += data
        if not data or len(child.data) > policy.FILE_MAX + 2:
            self._answer(child, _loaded(bytes(child.data), child.question.path))

    def _answer(self, child: _Child, loaded: Loaded) -> None:
        self._selector.unregister(child.pipe)
        os.close(child.pipe)
        del self._children[child.question]
        self._dying.add(child)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)  # not buried yet, so the number is still its own
        self._tell(child.question, loaded)

    def _tell(self, question: _Question, loaded: Loaded) -> None:
        asked = self._asked.pop(question, None)
        if asked is not None:
            for done in asked.waiting:
                done(loaded)

    def _bury(self, child: _Child) -> None:
        if child not in self._dying:
            self._readable(child)  # its last words are in the pipe
            return
        self._selector.unregister(child.pidfd)
        os.close(child.pidfd)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child.pid, 0)
        self._dying.discard(child)
        if self._asked:
            self._start(time.monotonic())

    def deadline(self) -> float | None:
        """When `tick` has something to do without an event; None: never."""
        times = [c.deadline for c in self._children.values()] + [a.until for a in self._asked.values()]
        return min(times, default=None)

    def tick(self, now: float) -> None:
        """Gives up on children, and on turns, that have had their time."""
        for child in list(self._children.values()):
            if child.deadline <= now:
                self._answer(child, _loaded(b"", child.question.path))
        for question, asked in list(self._asked.items()):
            if asked.until <= now:
                self._tell(question, _loaded(b"", question.path))

    def close(self) -> None:
        """Ends all children."""
        for child in self._children.values():
            os.close(child.pipe)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
        self._children.clear()
        self._asked.clear()


def _loaded(data: bytes, path: str) -> Loaded:
    if data[:1] == b"+":
        try:
            return Loaded(policy.decode(data[1:], path))
        except policy.PolicyError as error:
            return Loaded(policy.EMPTY, str(error))
    why = data[1:].decode("utf-8", "replace") or "cannot be read in time"
    return Loaded(policy.EMPTY, f"{path}: {why}")


def _groups_of(sock: socket.socket, peer: Peer) -> tuple[int, ...]:
    """The groups that the client had when it connected (SO_PEERGROUPS)."""
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _GROUPS_MAX)
    except OSError:
        return (peer.gid,)
    return tuple(struct.unpack(f"={len(raw) // 4}I", raw))


def _child(pipe: int, question: _Question) -> None:
    """Never returns."""
    answer = b"-cannot be read"
    try:
        signal.set_wakeup_fd(-1)
        os.dup2(pipe, 0)
        os.closerange(1, 1 << 20)  # whatever becomes of us, nothing of the agent's stays open
        os.set_blocking(0, True)
        os.setgroups(question.groups)
        os.setresgid(question.gid, question.gid, question.gid)
        os.setresuid(question.uid, question.uid, question.uid)
        fd = os.open(question.path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
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
