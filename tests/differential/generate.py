"""Random sequences of socket calls for two programs, from a seed.

A sequence is a list of steps, each a JSON object: who makes the call ("who": 0 the server's program, 1 the
client's, 2 and 3 children that they have forked), the call, handles and arguments.  The generator follows,
roughly, what is connected to what, so that most calls mean something; it need not be right, because both
runs make the same calls. No call may wait for ever: blocking sockets get a short timeout, unless the same
step says what ends the wait.
"""

from __future__ import annotations

import random
import select
from dataclasses import dataclass, field
from typing import Any

Step = dict[str, Any]

_SEND_CALLS = ("write", "send", "sendto", "writev", "sendmsg", "sendmmsg")
_RECV_CALLS = ("read", "recv", "recvfrom", "readv", "recvmsg", "recvmmsg")
_SIZES = (0, 1, 2, 7, 100, 1000, 4096, 9000)
_POLL = (select.POLLIN, select.POLLOUT, select.POLLIN | select.POLLOUT, 0x2000 | select.POLLIN, 0, 0x2047)
_EPOLL_FLAGS = (0, select.EPOLLET, select.EPOLLONESHOT, select.EPOLLET | select.EPOLLONESHOT)
_GET = (
    *("error", "type", "domain", "protocol", "acceptconn", "keepalive", "oobinline", "rcvlowat", "nodelay"),
    *("cork", "user_timeout"),
)
_SHORT_MS = 20
_LONG_MS = 1500


@dataclass
class _World:
    """What the generator believes."""

    tcp: list[list[int]] = field(default_factory=lambda: [[], [], [], []])
    epolls: list[list[int]] = field(default_factory=lambda: [[], [], [], []])
    listeners: list[int] = field(default_factory=list)
    queue: dict[int, list[int]] = field(default_factory=dict)  # listener -> client handles
    peer: dict[int, int] = field(default_factory=dict)
    blocking: set[int] = field(default_factory=set)
    deaf: set[int] = field(default_factory=set)  # connections that were shut for reading
    forked: list[bool] = field(default_factory=lambda: [False, False])


class Generator:
    """One sequence; the port is a placeholder that the controller fills in.

    `gentle`: nobody closes or shuts down reading while the other may still send.  What TCP answers then (one
    send that goes through, a RST, then EPIPE) is TCP's own: a unix socket in its place says EPIPE at once.
    `flood`: clients send much before anybody accepts, so that the kernel holds bytes when the ring is begun.
    """

    def __init__(self, seed: int, length: int = 40, gentle: bool = False, flood: bool = False) -> None:
        self.gentle = gentle
        self.flood = flood
        self.random = random.Random(seed)
        self.length = length
        self.world = _World()
        self.steps: list[Step] = []
        # Nagle's algorithm makes the plain run slow; half of the sequences go without
        self.nodelay = self.random.random() < 0.5
        self.handle = 0
        self.stream = seed * 1000

    def sequence(self) -> list[Step]:
        """The steps, the same for the same seed."""
        self._server()
        if self.random.random() < 0.9:
            self._connection()
        choices = (
            (self._connection, 5),
            (self._send, 22),
            (self._recv, 22),
            (self._exchange, 8),
            (self._blocked, 5),
            (self._readiness, 16),
            (self._epoll, 12),
            (self._options, 10),
            (self._duplicate, 4),
            (self._shutdown, 4),
            (self._close, 0 if self.gentle else 5),
            (self._pump, 3),
            (self._fork, 1),
        )
        while len(self.steps) < self.length:
            self.random.choices([c[0] for c in choices], [c[1] for c in choices])[0]()
        return self.steps

    # -- small things -----------------------------------------------------------------------------

    def _new(self) -> int:
        self.handle += 1
        return self.handle

    def _add(self, who: int, op: str, **arguments: Any) -> Step:
        step = {"who": who, "op": op, **arguments}
        self.steps.append(step)
        return step

    def _actor(self, handle: int) -> int:
        """Somebody who has the handle: its maker mostly, a forked child sometimes."""
        have = [who for who in range(4) if handle in self.world.tcp[who]]
        return self.random.choice(have) if have else 0

    def _someone(self) -> tuple[int, int] | None:
        """A connection's handle (mostly), and who is to use it."""
        connected = [h for h in self.world.peer if any(h in t for t in self.world.tcp)]
        every = sorted({h for t in self.world.tcp for h in t})
        pool = connected if connected and self.random.random() < 0.93 else every
        if not pool:
            return None
        handle = self.random.choice(pool)
        return self._actor(handle), handle

    # -- making and ending connections --------------------------------------------------------------

    def _server(self) -> None:
        h = self._new()
        six = self.random.random() < 0.25
        self.world.tcp[0].append(h)
        self._add(0, "socket", new=h, family=10 if six else 2, nonblock=self.random.random() < 0.5)
        host = self.random.choice(("::", "::1") if six else ("0.0.0.0", "127.0.0.1"))
        self._add(0, "bind", h=h, address=[host, "PORT"])
        self._add(0, "timeout", h=h, ms=_SHORT_MS)
        self._add(0, "listen", h=h, backlog=16)
        self.world.listeners.append(h)
        self.world.queue[h] = []
        # v4-mapped where a wildcard allows it
        self.target = {"0.0.0.0": "127.0.0.1", "127.0.0.1": "127.0.0.1", "::1": "::1"}.get(
            host, self.random.choice(("127.0.0.1", "::1"))
        )

    def _connection(self) -> None:
        h = self._new()
        nonblock = self.random.random() < 0.4
        self.world.tcp[1].append(h)
        six = ":" in self.target
        self._add(1, "socket", new=h, family=10 if six else 2, nonblock=nonblock)
        if not nonblock:
            self._add(1, "timeout", h=h, ms=_SHORT_MS)
            self.world.blocking.add(h)
        if self.nodelay:
            self._add(1, "setsockopt", h=h, name="nodelay", value=1)
        self._add(1, "connect", h=h, address=[self.target, "PORT"])
        if nonblock and self.random.random() < 0.7:
            self._add(1, "poll", hs=[h], events=[select.POLLOUT], timeout=1000)
            self._add(1, "getsockopt", h=h, name="error")
        if self.random.random() < 0.3:
            self._add(1, "connect", h=h, address=[self.target, "PORT"])
        self.world.queue[self.world.listeners[0]].append(h)
        if self.random.random() < 0.3:
            self._send(h)
        if self.flood:
            self.steps.append({**self._sending(1, h), "call": "send", "size": 40000})
        if self.random.random() < 0.85:
            self._accept()

    def _accept(self) -> None:
        listener = self.world.listeners[0]
        new = self._new()
        four, nonblock = self.random.random() < 0.6, self.random.random() < 0.5
        self._add(0, "accept", h=listener, new=new, four=four, nonblock=nonblock)
        if self.world.queue[listener]:
            client = self.world.queue[listener].pop(0)
            self.world.peer[new], self.world.peer[client] = client, new
            self.world.tcp[0].append(new)
            if self.nodelay:
                self._add(0, "setsockopt", h=new, name="nodelay", value=1)
            if not (four and nonblock):
                self._add(0, "timeout", h=new, ms=_SHORT_MS)
                self.world.blocking.add(new)

    def _shutdown(self) -> None:
        if (one := self._someone()) is not None:
            how = 1 if self.gentle else self.random.choice((0, 1, 1, 1, 2))
            self._add(one[0], "shutdown", h=one[1], how=how)
            if how != 1:
                self.world.deaf.add(self.world.peer.get(one[1], 0))

    def _close(self) -> None:
        if (one := self._someone()) is None or one[1] in self.world.listeners:
            return
        who, h = one
        if self.random.random() < 0.2:
            self._add(who, "linger", h=h, on=1, seconds=0)
        self._add(who, "close", h=h)
        self.world.tcp[who].remove(h)

    def _fork(self) -> None:
        who = self.random.randrange(2)
        if self.world.forked[who]:
            return
        self.world.forked[who] = True
        self._add(who, "fork")
        self.world.tcp[who + 2] = list(self.world.tcp[who])
        self.world.epolls[who + 2] = list(self.world.epolls[who])

    def _duplicate(self) -> None:
        if (one := self._someone()) is None or one[1] in self.world.listeners:
            return
        who, h = one
        how = self.random.choice(("dup", "dupfd", "dupfd_cloexec", "dup2", "dup3"))
        new = self._new()
        if how in ("dup2", "dup3"):
            others = [x for x in self.world.tcp[who] if x not in self.world.listeners]
            if others and self.random.random() < 0.4:
                new = self.random.choice(others)
        self._add(who, "dup", h=h, new=new, how=how)
        if new not in self.world.tcp[who]:
            self.world.tcp[who].append(new)
        if h in self.world.peer:
            self.world.peer[new] = self.world.peer[h]
        if h in self.world.blocking:
            self.world.blocking.add(new)

    # -- bytes ----------------------------------------------------------------------------------------

    def _flags(self, choices: tuple[str, ...], chance: float) -> list[str]:
        return [f for f in choices if self.random.random() < chance]

    def _send(self, handle: int | None = None) -> None:
        one = (self._actor(handle), handle) if handle is not None else self._someone()
        if one is None:
            return
        self.steps.append(self._sending(*one))

    def _sending(self, who: int, h: int) -> Step:
        self.stream += 1
        return {
            "who": who,
            "op": "send",
            "h": h,
            "call": self.random.choice(_SEND_CALLS),
            "size": self.random.choice(_SIZES),
            "stream": self.stream,
            "flags": self._flags(("dontwait", "nosignal"), 0.3),
            "parts": self.random.choice((1, 2, 5)),
        }

    def _recv(self) -> None:
        if (one := self._someone()) is not None:
            self.steps.append(self._receiving(*one))

    def _receiving(self, who: int, h: int) -> Step:
        flags = self._flags(("peek", "dontwait", "waitall", "nosignal"), 0.15)
        if self.random.random() < 0.04:
            flags.append("trunc")
        return {
            "who": who,
            "op": "recv",
            "h": h,
            "call": self.random.choice(_RECV_CALLS),
            "size": self.random.choice(_SIZES),
            "flags": flags,
            "parts": self.random.choice((1, 2, 5)),
        }

    def _exchange(self) -> None:
        """A request and what becomes of it, as most programs do: gets connections onto the ring."""
        if (one := self._someone()) is None or (there := self.world.peer.get(one[1])) is None:
            return
        for here, other in ((one[1], there), (there, one[1])):
            self._send(here)
            who = self._actor(other)
            self._add(who, "recv", h=other, call="recv", size=9000, flags=["dontwait"], parts=1)

    def _blocked(self) -> None:
        """One waits, the other does what ends the wait."""
        blocking = [h for h in self.world.peer if h in self.world.blocking and self._held(h)]
        if not blocking:
            return
        h = self.random.choice(sorted(blocking))
        there = self.world.peer[h]
        if not self._held(there):
            return
        who, other = self._actor(h), self._actor(there)
        if who % 2 == other % 2 or who == other:
            return
        self._add(who, "drain", h=h, size=65536)
        self._add(who, "timeout", h=h, ms=_LONG_MS)
        if self.random.random() < 0.6:
            wait = self._receiving(who, h)
            wait["flags"] = [f for f in wait["flags"] if f in ("peek", "nosignal")]
            wait["call"] = self.random.choice(("read", "recv", "recvfrom", "readv", "recvmsg"))
            wait["size"] = self.random.choice((1, 100, 9000))
        else:
            wait = {"who": who, "op": "poll", "hs": [h], "events": [select.POLLIN], "timeout": _LONG_MS}
        end = self._sending(other, there)
        end["size"] = self.random.choice((1, 100))
        end["call"] = self.random.choice(("write", "send", "sendmsg"))
        if self.random.random() < 0.2:
            end = {"who": other, "op": "shutdown", "h": there, "how": 1}
        self.steps.append({"pair": [wait, end]})
        self._add(who, "timeout", h=h, ms=_SHORT_MS)

    def _held(self, handle: int) -> bool:
        return any(handle in t for t in self.world.tcp)

    def _pump(self) -> None:
        if (one := self._someone()) is None or (there := self.world.peer.get(one[1])) is None:
            return
        # how much gets through to one that has shut its reading half is a matter of time
        if not self._held(there) or one[1] in self.world.deaf:
            return
        self.stream += 1
        self.steps.append(
            {
                "pump": [self._actor(one[1]), one[1], self._actor(there), there],
                "size": self.random.choice((30000, 200000, 1500000)),
                "stream": self.stream,
            }
        )

    # -- readiness and options --------------------------------------------------------------------

    def _readiness(self) -> None:
        if (one := self._someone()) is None:
            return
        who = one[0]
        hs = self.random.sample(self.world.tcp[who], min(len(self.world.tcp[who]), 3))
        if self.random.random() < 0.7:
            self._add(who, "poll", hs=hs, events=[self.random.choice(_POLL) for _ in hs], timeout=0)
        else:
            self._add(who, "select", hs=hs, sets=self.random.choice((1, 2, 3, 7)))

    def _epoll(self) -> None:
        if (one := self._someone()) is None:
            return
        who, h = one
        if not self.world.epolls[who]:
            e = self._new()
            self.world.epolls[who].append(e)
            self._add(who, "epoll_create", new=e)
            self.world.tcp[who].append(e) if self.random.random() < 0.1 else None
        e = self.random.choice(self.world.epolls[who])
        what = self.random.choice((1, 1, 1, 2, 3))
        events = self.random.choice((1, 4, 5, 0x2001, 0x2005)) | self.random.choice(_EPOLL_FLAGS)
        if self.random.random() < 0.6:
            self._add(who, "epoll_ctl", e=e, h=h, what=what, events=events)
        self._add(who, "epoll_wait", e=e, room=self.random.choice((1, 8, 8)), timeout=0)

    def _options(self) -> None:
        if (one := self._someone()) is None:
            return
        who, h = one
        kind = self.random.randrange(8)
        if kind == 0:
            name, value = self.random.choice((("nodelay", 1), ("nodelay", 0), ("keepalive", 1), ("cork", 0)))
            self._add(who, "setsockopt", h=h, name=name, value=value)
        elif kind == 1:
            self._add(who, "name", h=h, peer=self.random.random() < 0.5)
        elif kind == 2:
            self._add(who, "getfl", h=h)
        elif kind == 3 and h not in self.world.blocking and h not in self.world.listeners:
            # only from blocking back to non-blocking: what blocks has a timeout
            self._add(who, "nonblock", h=h, on=True, ioctl=self.random.random() < 0.5)
        elif kind == 4:
            self._add(who, "unsent", h=h)
        elif kind in (5, 6):
            self._add(who, "unread", h=h)
        else:
            self._add(who, "getsockopt", h=h, name=self.random.choice(_GET))
