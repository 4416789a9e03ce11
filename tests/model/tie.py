"""How two ends find each other, for `setup_protocol`: connect, claim, accept, look for the claim, attach."""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.connection_state import ATTACHED, CLAIMED, CLIENT, Rules, State, World, thaw


class Tie:
    """The steps up to the tie; `SetUp` has the rest."""

    rules: Rules

    def _begin(self, state: State, me: int) -> Iterator[tuple[str, World]]:
        w = thaw(state)
        x = w.side[me]
        if me == CLIENT:
            x.life = "up"
            x.op = "connected"
            yield "connect", w
        elif w.side[CLIENT].life != "new":
            x.life = "up"
            x.kind = "maybe" if self.rules.server_aware else "plain"
            x.op = "look" if self.rules.server_aware else "idle"
            yield "accept", w

    # The client's claim: before it sends or receives anything.
    def _op_connected(self, state: State, me: int) -> Iterator[tuple[str, World]]:
        w = thaw(state)
        if self.rules.client_aware and w.agent:
            w.slot = CLAIMED
            w.side[me].kind = "claimed"
            w.side[me].op = "hint"
            yield "state = CLAIMED", w
            w = thaw(state)
        w.side[me].kind = "plain"
        w.side[me].op = "idle"
        yield "no claim: plain", w

    def _op_hint(self, state: State, me: int) -> Iterator[tuple[str, World]]:
        w = thaw(state)
        w.hint = True
        w.side[me].op = "idle"
        yield "publish the hint", w

    # The server looks for the claim; `then_` says what it was about to do.
    def _op_look(self, state: State, me: int, then: str = "idle") -> Iterator[tuple[str, World]]:
        w = thaw(state)
        x = w.side[me]
        if w.hint and w.agent and w.slot == CLAIMED:
            x.op = f"attach:{then}"
            yield "finds the claim", w
        else:
            x.op = then
            if then == "judge":
                x.kind = "plain"
            yield "no claim", w

    def _op_attach(self, state: State, me: int, then: str = "idle") -> Iterator[tuple[str, World]]:
        w = thaw(state)
        x = w.side[me]
        x.op = then
        if w.slot == CLAIMED or "cas" in self.rules.without:
            w.slot = ATTACHED
            x.kind = "shm"
            w.hint = False
            yield "CLAIMED -> ATTACHED", w
        else:
            if then == "judge":
                x.kind = "plain"
            yield "the claim was withdrawn", w
