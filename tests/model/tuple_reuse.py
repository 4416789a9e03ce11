"""Whose claim is it?  Two connections with the same four addresses, and slots that are used again.

Connection A waits in the server's accept queue (or is accepted, and its claim not found yet).  The client
aborts it, connects again from the same port (B), with or without a claim for A, and claims the same slot or
another one for B.  The server holds A's socket and looks for a claim with A's addresses, which are B's.

The claim may also be withdrawn and the slot claimed for a connection with other addresses (C).
Right: a slot gets attached to the socket of the connection that claimed it, or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

FREE, CLAIMED, ATTACHED, REFUSED = range(4)
_ADDRESSES = {"A": "same", "B": "same", "C": "other", "P": "same"}


class Rules(NamedTuple):
    """Which of the precautions are taken.

    generation: the state word counts its uses, and the server exchanges the very word that it has judged;
    alive: the server asks the kernel whether its socket is alive, after it has found the claim;
    alive_first: it asks before it looks for the claim (wrong); claim_early: the client claims before the
    kernel's connection is established; slow_reset: the network delivers A's RST some time after the client
    has gone on; claim_pending: a client claims for a connect() under way (P), which fails, and A is a
    stranger that gets its port; check_after: no generation, but the addresses are compared again after the
    exchange (REFUSED if they differ).
    """

    generation: bool = True
    alive: bool = True
    alive_first: bool = False
    claim_early: bool = False
    claim_pending: bool = False
    slow_reset: bool = False
    check_after: bool = False


class State(NamedTuple):
    """Client, slot, kernel, server (which holds A's socket)."""

    client: str = "start"
    state: int = FREE
    use: int = 0
    owner: str = ""  # the connection whose addresses the slot holds
    a_dead: bool = False  # the server's half of A
    server: str = "look"
    seen: int = -1  # the use count that the server has judged
    attached: str = ""  # connections whose client has seen ATTACHED while A's socket was tied to the slot


class TupleReuse:
    """The model, for `explorer.explore`."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules

    def initial(self) -> Iterable[State]:
        return [State()]

    def wrong(self, s: State) -> str | None:
        if s.server == "tied" and s.owner != "A" and s.state == ATTACHED:
            return f"the slot of connection {s.owner} is tied to the socket of A"
        if s.attached not in ("", "A"):
            return f"the client of {s.attached} has seen a tie to the socket of A"
        return None

    def wrong_at_rest(self, s: State) -> str | None:
        return None

    def steps(self, s: State) -> Iterator[tuple[str, State]]:
        yield from self._client(s)
        if s.client not in ("start", "A claimed", "A") and not s.a_dead:
            yield "the RST of A arrives", s._replace(a_dead=True)
        yield from self._server(s)
        if s.state == ATTACHED and s.server in ("check", "tied") and s.owner and s.attached != s.owner:
            yield f"client: {s.owner} sees ATTACHED", s._replace(attached=s.owner)

    def _claim(self, s: State, who: str) -> State:
        return s._replace(state=CLAIMED, use=s.use + 1, owner=who)

    def _client(self, s: State) -> Iterator[tuple[str, State]]:
        if s.client == "start":
            yield "client: A claims", self._claim(s, "A")._replace(client="A claimed")
            yield "client: A is plain", s._replace(client="A")
            if self.rules.claim_pending:
                yield "client: P claims and fails; A is plain", self._claim(s, "P")._replace(client="A")
        elif s.client in ("A claimed", "A"):
            free = s._replace(client="gone", a_dead=not self.rules.slow_reset)
            if s.state == CLAIMED:
                free = free._replace(state=FREE)
            if s.state != ATTACHED:
                yield "client: A aborts and withdraws", free
        elif s.client == "gone":
            yield "client: C claims the slot", self._claim(s, "C")._replace(client="end")
            # the kernel lets B be established only when the server's half of A is gone
            if s.a_dead or self.rules.claim_early:
                yield "client: B claims the slot", self._claim(s, "B")._replace(client="end")

    def _server(self, s: State) -> Iterator[tuple[str, State]]:
        r = self.rules
        if s.server == "look":
            if r.alive_first:
                if not s.a_dead:
                    yield "server: A is alive", s._replace(server="find")
            else:
                yield "server: looks", s._replace(server="find")
        elif s.server == "find":
            if s.state == CLAIMED and _ADDRESSES[s.owner] == "same":
                after = "alive" if r.alive else "attach"
                yield "server: finds a claim with its addresses", s._replace(server=after, seen=s.use)
        elif s.server == "alive":
            yield "server: getpeername", s._replace(server="look" if s.a_dead else "attach")
        elif s.server == "attach":
            if s.state == CLAIMED and (not r.generation or s.seen == s.use):
                after = "check" if r.check_after else "tied"
                yield "server: CAS to ATTACHED", s._replace(state=ATTACHED, server=after)
            else:
                yield "server: CAS fails", s._replace(server="look")
        elif s.server == "check":
            if _ADDRESSES[s.owner] == "same":
                yield "server: the addresses are still right", s._replace(server="tied")
            else:
                yield "server: REFUSED", s._replace(state=REFUSED, server="look")
