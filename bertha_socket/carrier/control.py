"""The agent's end of a carrier: shims and secrets come from it, and it judges the plans that clients show."""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from bertha_socket.agent.addresses import from_text
from bertha_socket.carrier.process import User

#: The most that an agent says at once (agent/carriers.py).
_MESSAGE_MAX: Final = 1 << 17
_REMEMBERED_MAX: Final = 1024
#: As many as an agent tells (agent/omissions.py).
_PLAIN_MAX: Final = 512
#: Seconds for which a judgement is believed while there is an agent to ask again.
_BELIEVED: Final = 30.0
#: Seconds for which others wait while the agent has not said all.
_MOMENT: Final = 0.001
NOT_ITS: Final = (
    "the listener is another user's, and its agent has not been shown the listening socket by this one"
)
NO_AGENT: Final = "the server's agent is gone, and this plan is not known yet; connect again when it is back"

Verdict = Callable[[str | None], None]


@dataclass(frozen=True)
class Secrets:
    """What the connections of one listener, or of everybody, authenticate themselves with."""

    material: Mapping[str, str] | None = None
    key: bytes | None = None
    #: Whose programs may have them; None: everybody's.  What a program names proves nothing: numbers of
    #: listeners stand where everybody reads them.
    uids: frozenset[int] | None = None

    def are_of(self, uid: int) -> bool:
        """Whether a program of that user's may have them."""
        return self.uids is None or uid == 0 or uid in self.uids


def _user(message: Mapping[str, Any]) -> User | None:
    """None: it is not said, and nobody else's word is taken."""
    uid, gid = message.get("uid"), message.get("gid")
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 32 for n in (uid, gid)):
        return None
    return User(int(uid or 0), int(gid or 0))


def _uids(said: object) -> frozenset[int]:
    return frozenset(n for n in said if isinstance(n, int)) if isinstance(said, list) else frozenset()


class Control:
    """The control socket.  `shim` is called with each new shim's socket, and whose program it is of."""

    def __init__(self, sock: socket.socket, shim: Callable[[socket.socket, User], None]) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.alive = True
        self._shim = shim
        self._secrets: dict[int, Secrets] = {}
        self._asked: dict[int, tuple[tuple[int, bytes], Verdict]] = {}
        self._waiting: dict[tuple[int, bytes], list[Verdict]] = {}
        self._known: OrderedDict[tuple[int, bytes], float] = OrderedDict()
        #: Why clients come without a plan, by listener and host.
        self._plain: dict[tuple[int, bytes], str] = {}
        self._next = 0
        self._behind: mmap.mmap | None = None

    @property
    def behind(self) -> bool:
        """Whether the agent has more to say than it had room for.  No connection is taken meanwhile: it may
        be meant to have the secrets that are to come."""
        return self._behind is not None and self._behind[0] != 0

    def make_room(self) -> None:
        """Reads what there is, and waits a little for more."""
        self.catch_up()
        if self.alive and self.behind:
            select.select([self.sock], [], [], _MOMENT)

    def secrets(self, listener: int, uid: int) -> Secrets | None:
        """Of that listener, else everybody's, for a program of that user's; None: it may not serve there."""
        found = self._secrets.get(listener)
        if found is None:
            return self._secrets.get(0, Secrets())
        return found if found.are_of(uid) else None

    def client_secrets(self, number: int, uid: int) -> Secrets:
        """Of a client's rule (0: everybody's).  A number that is not known here, or not that user's, means
        certificates that are not: with those of others it is not served."""
        found = self._secrets.get(number)
        if found is not None and found.are_of(uid):
            return found
        return Secrets(None, self._secrets.get(0, Secrets()).key)

    def why_plain(self, listener: int, peer: str) -> str:
        """Why a client at that address (`host:port`) has brought no plan to that listener; "": nothing is
        known."""
        host = b""
        with contextlib.suppress(OSError):
            host = from_text(peer.rpartition(":")[0].strip("[]"))
        return self._plain.get((listener, host)) or self._plain.get((listener, b""), "")

    def ask(self, listener: int, plan: bytes, peer: str, verdict: Verdict) -> None:
        """Calls `verdict(None)` if the plan may run, else with one line why not; perhaps at once."""
        place = (listener, plan)
        since = self._known.get(place)
        if since is not None and (not self.alive or time.monotonic() - since < _BELIEVED):
            verdict(None)
            return
        if not self.alive:
            verdict(NO_AGENT)
            return
        if place in self._waiting:
            self._waiting[place].append(verdict)
            return
        self._next += 1
        message = {"op": "check", "id": self._next, "listener": listener, "plan": plan, "peer": peer}
        if not self._send(message):
            verdict("the server's agent does not answer; connect again later")
            return
        self._waiting[place] = [verdict]
        self._asked[self._next] = (place, verdict)

    def idle(self) -> None:
        """Tells the agent that nothing is left to do."""
        self._send({"op": "idle"})

    def catch_up(self) -> None:
        """Reads all that has come: what the agent has said before a shim was answered comes before what that
        shim says."""
        while self.alive and self.receive():
            pass

    def receive(self) -> bool:
        """Reads one message; False: there is none."""
        if not self.alive:
            return False
        try:
            data, fds, flags, _ = socket.recv_fds(self.sock, _MESSAGE_MAX, 4, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return False
        except ConnectionResetError:
            return True  # it ended with a question unread: told once, and before what it had said
        except OSError:
            data, fds, flags = b"", [], 0
        if not data or flags & socket.MSG_TRUNC:  # half of a message is another one
            for fd in fds:
                os.close(fd)
            self._gone()
            return False
        try:
            message = msgpack.unpackb(data, max_ext_len=0)
        except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException):
            message = {}
        op = message.get("op") if isinstance(message, dict) else None
        user = _user(message) if op == "shim" else None
        if user is not None and fds:
            try:
                sock = socket.socket(fileno=fds[0])
            except OSError:  # no socket
                sock = None
            if sock is not None:
                del fds[0]
                self._shim(sock, user)
        elif op == "context":
            self._context(message)
        elif op == "verdict":
            self._verdict(message)
        elif op == "chunnels":
            self._chunnels(message)
        elif op == "plain":
            self._omission(message)
        elif op == "behind" and fds and self._behind is None:
            with contextlib.suppress(OSError, ValueError):  # no memory of a page
                self._behind = mmap.mmap(fds[0], mmap.PAGESIZE, prot=mmap.PROT_READ)
        for fd in fds:
            os.close(fd)
        return True

    def _send(self, message: dict[str, object]) -> bool:
        if not self.alive:
            return False
        data: bytes = msgpack.packb(message)
        try:
            self.sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except OSError:
            self._gone()
            return False
        return True

    def _context(self, message: Mapping[str, Any]) -> None:
        listener, material, key = message.get("listener") or 0, message.get("material"), message.get("key")
        if isinstance(listener, int) and listener and material is None and key is None:
            self._secrets.pop(listener, None)  # it has none of its own any more: everybody's are its, too
        elif isinstance(listener, int):
            self._secrets[listener] = Secrets(
                {str(k): str(v) for k, v in material.items()} if isinstance(material, dict) else None,
                key if isinstance(key, bytes) else None,
                None if listener == 0 else _uids(message.get("uids")),
            )

    def _omission(self, message: Mapping[str, Any]) -> None:
        listener, host, why = message.get("listener"), message.get("host"), message.get("why")
        if isinstance(listener, int) and isinstance(host, bytes) and isinstance(why, str):
            self._plain.pop((listener, host), None)
            if why and len(self._plain) < _PLAIN_MAX:
                self._plain[listener, host] = why

    def _chunnels(self, message: Mapping[str, Any]) -> None:
        """Where the chunnels of policy files are; loaded when one is needed, in the process that needs it."""
        from bertha_socket.carrier import plans

        sources = message.get("sources")
        if isinstance(sources, dict):
            plans.SOURCES.update({str(k): str(v) for k, v in sources.items()})

    def _verdict(self, message: Mapping[str, Any]) -> None:
        number = message.get("id")
        asked = self._asked.pop(number, None) if isinstance(number, int) else None
        if asked is None:
            return
        place, _ = asked
        why = (
            None
            if message.get("ok") is True
            else str(message.get("why") or "the plan is not acceptable here")
        )
        if why is None:
            self._known[place] = time.monotonic()
            self._known.move_to_end(place)
            if len(self._known) > _REMEMBERED_MAX:
                self._known.popitem(last=False)
        else:
            self._known.pop(place, None)
        for verdict in self._waiting.pop(place, ()):
            verdict(why)

    def _gone(self) -> None:
        self.alive = False
        with contextlib.suppress(OSError):  # if it is there after all, it looks for another carrier
            self.sock.shutdown(socket.SHUT_RDWR)
        waiting, self._waiting = self._waiting, {}
        self._asked.clear()
        for verdicts in waiting.values():
            for verdict in verdicts:
                verdict(NO_AGENT)
