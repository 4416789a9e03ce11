"""The promise of a client by `unix` that is asleep for its first answer (native/core/unixfirst.c).

One connection: the client sends a byte by TCP and sleeps in recv(), where a signal handler may send
another; after the answer it sends a last one.  The server ties itself before it reads, with the end that the
client has or with another, which may not arrive, or not at all, and answers the first byte.  Each step is one
access to shared memory or one call.  What was sent has to arrive in order, and nobody may wait for ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

TAKEN = 100  # the flag in the word


@dataclass(frozen=True)
class State:
    client: str = "first"
    server: str = "new"
    attached: bool = False
    same_end: bool = False  # the server took the end that the client has
    lost: bool = False  # or another one, which the client never gets
    tied: bool = False  # the client knows
    gone: bool = False  # the client sends by the unix socket
    promise: int = 0  # bytes + 1
    switch_at: int | None = None
    tcp: str = ""
    unix: str = ""
    answer: str = ""  # by which socket it is on its way: the client hears both
    ktx: int = 0
    krx: int = 0
    signals: int = 1
    sent: str = ""
    got: str = ""


@dataclass(frozen=True)
class Promise:
    """`without`: the rules that are left out."""

    without: frozenset[str] = frozenset()

    def initial(self) -> Iterable[State]:
        return [State()]

    def steps(self, state: State) -> Iterable[tuple[str, State]]:
        yield from getattr(self, f"_client_{state.client}")(state)
        yield from getattr(self, f"_server_{state.server}")(state)

    def wrong(self, state: State) -> str | None:
        return None if state.sent.startswith(state.got) else f"got {state.got}, sent {state.sent}"

    def wrong_at_rest(self, state: State) -> str | None:
        done = state.client == state.server == "end"
        return None if done else f"for ever: client {state.client}, server {state.server}"

    # ---- the client ----

    def _ripe(self, s: State) -> State:
        """What comes before each call: ties, or takes the promise back."""
        if s.tied:
            return s
        if s.promise < TAKEN and "taken back" not in self.without:
            s = replace(s, promise=0)
        if not s.attached or s.lost:
            return s
        return replace(s, tied=True, gone=s.promise >= TAKEN and s.same_end)

    def _send(self, s: State, byte: str) -> State:
        s = replace(self._ripe(s), sent=s.sent + byte)
        if s.tied and not s.gone:
            s = replace(s, gone=True, switch_at=s.ktx)
        if s.gone:
            return replace(s, unix=s.unix + byte)
        return replace(s, tcp=s.tcp + byte, ktx=s.ktx + 1)

    def _client_first(self, s: State) -> Iterator[tuple[str, State]]:
        yield "send a", replace(self._send(s, "a"), client="recv")

    def _client_recv(self, s: State) -> Iterator[tuple[str, State]]:
        ripe = self._ripe(s)
        yield "recv", replace(ripe, client="asleep" if ripe.tied else "promises")

    def _client_promises(self, s: State) -> Iterator[tuple[str, State]]:
        yield "promise", replace(s, promise=s.ktx + 1, client="asleep")

    def _client_asleep(self, s: State) -> Iterator[tuple[str, State]]:
        if s.signals:
            yield "a handler sends b", replace(self._send(s, "b"), signals=0)
        if s.answer:
            yield "wakes up", replace(self._ripe(s), answer="", client="last")

    def _client_last(self, s: State) -> Iterator[tuple[str, State]]:
        yield "send c", replace(self._send(s, "c"), client="end", signals=0)

    def _client_end(self, s: State) -> Iterator[tuple[str, State]]:
        yield from ()

    # ---- the server ----

    def _server_new(self, s: State) -> Iterator[tuple[str, State]]:
        yield "stays plain", replace(s, server="plain")
        for end in ("the client's", "another", "another, lost"):
            new = replace(s, same_end=end == "the client's", lost=end == "another, lost")
            if "attached first" in self.without:
                yield f"hold to the promise with {end}", replace(self._held(new), server="late")
            else:
                yield f"attach with {end}", replace(new, attached=True, server="holds")

    def _held(self, s: State) -> State:
        if (s.same_end or "same end" in self.without) and 0 < s.promise < TAKEN:
            return replace(s, promise=s.promise + TAKEN, switch_at=s.promise - 1)
        return s

    def _server_late(self, s: State) -> Iterator[tuple[str, State]]:
        yield "attach", replace(s, attached=True, server="reads")

    def _server_holds(self, s: State) -> Iterator[tuple[str, State]]:
        yield "hold to the promise", replace(self._held(s), server="reads")

    def _got(self, s: State, byte: str) -> State:
        answer = ("unix" if s.attached and not s.lost else "tcp") if byte == "a" else s.answer
        return replace(s, got=s.got + byte, answer=answer, server="end" if byte == "c" else s.server)

    def _server_plain(self, s: State) -> Iterator[tuple[str, State]]:
        if s.tcp:
            yield "read TCP", self._got(replace(s, tcp=s.tcp[1:]), s.tcp[0])

    def _server_reads(self, s: State) -> Iterator[tuple[str, State]]:
        if s.krx == s.switch_at:
            if s.unix:
                yield "read the unix socket", self._got(replace(s, unix=s.unix[1:]), s.unix[0])
        elif s.tcp:
            yield "read TCP", self._got(replace(s, tcp=s.tcp[1:], krx=s.krx + 1), s.tcp[0])

    def _server_end(self, s: State) -> Iterator[tuple[str, State]]:
        yield from ()
