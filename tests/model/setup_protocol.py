"""The life of one connection: kernel connection, claim, attach, switch to the ring, fall-back, end, deaths.

Each step is one access to shared memory, or one system call.  Memory is sequentially consistent here: what
reordering does to the two handshakes that depend on it is the business of `wakeup` and `bell`.

A side is one thread of a program that sends its bytes, shuts down its writing half, reads to the end of the
stream and closes: sending and receiving in any order.  Both sides sleep in the kernel's keeping (the bell
byte), which is the harder of the two ways.  The kernel delivers what it was given before it delivers FIN or
RST; it resets when a socket with unread bytes goes away, and when bytes come for a socket that is gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tests.model.connection_state import (
    AFTER,
    ATTACHED,
    BEFORE,
    BELL,
    CLAIMED,
    CLIENT,
    FREE,
    NEVER,
    RING,
    SERVER,
    Half,
    Rules,
    State,
    World,
    thaw,
)
from tests.model.tie import Tie


class SetUp(Tie):
    """The model, for `explorer.explore`."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.bytes = (rules.client_bytes, rules.server_bytes)

    # -- judgement ------------------------------------------------------------------------------

    def initial(self) -> Iterable[State]:
        return [World().freeze()]

    def wrong(self, state: State) -> str | None:
        w = thaw(state)
        for me, x in enumerate(w.side):
            if x.op == "wrong-byte":
                return f"{_name(me)} took a bell byte for data, or a byte out of order"
            if x.bell_out not in (0, 1) or x.queue.count(BELL) > 2 + (x.bells > 2):
                return "too many bell bytes"
        orderly = w.deaths == 0 and not self.rules.early_close
        if orderly:
            for me, x in enumerate(w.side):
                if x.end == "reset" or x.broken:
                    return f"{_name(me)} saw an orderly connection reset"
                if x.end == "eof" and x.got != self.bytes[1 - me]:
                    return f"{_name(me)} saw the end of the stream too early"
        return None

    def wrong_at_rest(self, state: State) -> str | None:
        w = thaw(state)
        if w.side[SERVER].life == "new" and w.side[CLIENT].life != "closed":
            return None if w.deaths else "the server never accepted"
        for me, x in enumerate(w.side):
            if x.life not in ("closed", "dead", "new"):
                return f"{_name(me)} waits for ever ({x.op})"
        if w.deaths == 0 and not self.rules.early_close:
            kinds = {x.kind for x in w.side}
            if "shm" in kinds and "plain" in kinds:
                return "one side on the ring, the other never looks at it"
        return None

    # -- steps ----------------------------------------------------------------------------------

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        w = thaw(state)
        if self.rules.agent_dies and w.agent:
            w.agent = False
            yield "agent dies", w.freeze()
        for me in (CLIENT, SERVER):
            for label, after in self._side(state, me):
                yield f"{_name(me)}: {label}", after.freeze()
            w = thaw(state)
            if w.deaths < self.rules.deaths and w.side[me].life == "up":
                w.deaths += 1
                self._kernel_close(w, me)
                w.side[me].life = "dead"
                w.side[me].op = "idle"
                yield f"{_name(me)} is killed", w.freeze()

    def _side(self, state: State, me: int) -> Iterator[tuple[str, World]]:
        life = thaw(state).side[me].life
        if life == "new":
            yield from self._begin(state, me)
        elif life == "up":
            op, _, then = thaw(state).side[me].op.partition(":")
            # "look:send": what to do, and what to go on with
            yield from getattr(self, "_op_" + op)(state, me, *([then] if then else []))

    def _op_idle(self, state: State, me: int) -> Iterator[tuple[str, World]]:
        w = thaw(state)
        x = w.side[me]
        more = x.sent < self.bytes[me] and not x.broken
        if more:
            x.op = self._enter(w, me, "send")
            yield "send()", w
        elif not x.shut:
            x.shut = x.fin = True
            if w.side[1 - me].life in ("closed", "dead"):
                x.fin = True
            yield "shutdown(WR)", w
        w = thaw(state)
        x = w.side[me]
        if not x.end:
            x.op = self._enter(w, me, "recv")
            yield "recv()", w
        w = thaw(state)
        x = w.side[me]
        if self.rules.fall_back and x.kind == "shm" and x.tx == RING and more:
            x.ring_end = x.tail
            x.tx = AFTER
            yield "ring_end: back to the kernel", w
            w = thaw(state)
            x = w.side[me]
        finished = (x.end and (x.shut or x.broken)) or (
            self.rules.counted and me == SERVER and x.got == self.bytes[CLIENT] and not more
        )
        if finished or (self.rules.early_close and me == CLIENT):
            x.op = "close"
            yield "close()", w

    @staticmethod
    def _enter(w: World, me: int, call: str) -> str:
        """What a call looks at first: the client at the slot's state, the server for a claim."""
        x = w.side[me]
        if x.kind == "maybe":
            return f"look:{call}"
        if x.kind == "claimed" and w.slot == ATTACHED:
            x.kind = "shm"
        return call

    # -- sending --------------------------------------------------------------------------------

    def _op_send(self, state: State, me: int) -> Iterator[tuple[str, World]]:
        w = thaw(state)
        x, peer = w.side[me], w.side[1 - me]
        if "look-late" in self.rules.without and x.rx == BEFORE and peer.bell_out and peer.queue:
            self._take_bell(x, peer)
            yield "a sender takes the bell byte off", w
            w = thaw(state)
            x, peer = w.side[me], w.side[1 - me]
        if peer.rst:
            x.broken = True
            x.op = "idle"
            yield "send: EPIPE", w
        elif x.kind != "shm" or x.tx == AFTER:
            self._kernel_send(w, me, x.sent)
            x.ktx += 1
            x.sent += 1
            x.op = "idle"
            yield "send by the kernel", w
        elif x.tx == BEFORE:
            x.tx = RING
            if "switch-first" in self.rules.without:
                self._publish(x)
                x.op = "ring"
                yield "publish", w
            else:
                x.switch_at = x.ktx
                yield f"switch_at = {x.ktx}", w
        elif peer.done:
            x.ring_end = x.tail
            x.tx = AFTER
            yield "the peer is done: back to the kernel", w
        elif len(x.ring) < self.rules.ring_size:
            self._publish(x)
            x.op = "ring"
            yield "publish", w
        elif peer.fin and not x.queue and "probe" not in self.rules.without:
            # TCP's persist timer: after its FIN a peer dies without another word.  (No byte while one is
            # unread stands for the time between two of them.)
            x.bell_out = 1
            x.bells += 1
            x.op = "ringing:send"
            yield "ring full, and the peer has sent FIN: is it alive?", w
        elif not x.end:
            x.op = "idle"
            yield "send: EAGAIN", w
        # else: asleep until there is space, or the kernel reports something

    @staticmethod
    def _publish(x: Half) -> None:
        x.ring += (x.sent,)
        x.tail += 1
        x.sent += 1

    def _op_ring(self, state: State, me: int) -> Iterator[tuple[str, World]]:
        w = thaw(state)
        x = w.side[me]
        tied = w.side[1 - me].kind != "claimed"
        quiet = (
            "bell" in self.rules.without
            or ("first-bell" in self.rules.without and not tied)
            or (self.rules.eventfd and tied)
        )
        if x.bell_out or quiet:
            x.op = "idle"
            yield "a bell is out already", w
        else:
            x.bell_out = 1
            x.bells += 1
            x.op = "ringing"
            yield "bell_out 0 -> 1", w

    def _op_ringing(self, state: State, me: int, then: str = "idle") -> Iterator[tuple[str, World]]:
        w = thaw(state)
        x = w.side[me]
        self._kernel_send(w, me, BELL)
        x.op = then if x.switch_at != NEVER else "late_switch"
        yield "send the bell byte", w

    def _op_late_switch(self, state: State, me: int) -> Iterator[tuple[str, World]]:
        w = thaw(state)  # only without switch-first
        w.side[me].switch_at = w.side[me].ktx
        w.side[me].op = "idle"
        yield "switch_at, too late", w

    @staticmethod
    def _kernel_send(w: World, me: int, token: int) -> None:
        if w.side[1 - me].life in ("closed", "dead"):
            w.side[1 - me].rst = True
        else:
            w.side[me].queue += (token,)

    # -- receiving ------------------------------------------------------------------------------

    def _op_recv(self, state: State, me: int) -> Iterator[tuple[str, World]]:
        w = thaw(state)
        x, peer = w.side[me], w.side[1 - me]
        if x.kind != "shm":
            yield from self._kernel_recv(state, me, len(peer.queue))
        elif x.rx == BEFORE:
            if peer.switch_at != NEVER and x.krx >= peer.switch_at:
                x.rx = RING
                yield "switches to the ring", w
            elif peer.switch_at != NEVER:
                yield from self._kernel_recv(state, me, peer.switch_at - x.krx)
            else:
                yield from self._kernel_recv(state, me, len(peer.queue))
        elif x.rx == RING:
            yield from self._ring_recv(state, me)
        else:
            skip = 0 if "skip-after" in self.rules.without else peer.bells - x.seen
            if skip and peer.queue:
                n = min(skip, len(peer.queue))
                bad = any(t != BELL for t in peer.queue[:n])
                x.seen += n
                peer.queue = peer.queue[n:]
                if bad:
                    x.op = "wrong-byte"
                yield f"skip {n} bell bytes", w
            else:
                yield from self._kernel_recv(state, me, 1)

    def _kernel_recv(self, state: State, me: int, cap: int) -> Iterator[tuple[str, World]]:
        w = thaw(state)
        peer = w.side[1 - me]
        if peer.queue:
            for n in sorted({1, min(max(cap, 1), len(peer.queue))}):
                w = thaw(state)
                x, peer = w.side[me], w.side[1 - me]
                unsure = x.kind == "claimed" or (
                    x.kind == "shm" and x.rx == BEFORE and peer.switch_at == NEVER
                )
                if unsure and "peek" not in self.rules.without:
                    x.hand = peer.queue[:n]
                    x.op = "peeked"
                    yield f"recv(MSG_PEEK): {n} bytes", w
                else:
                    x.hand, peer.queue = peer.queue[:n], peer.queue[n:]
                    x.op = "look:judge" if x.kind == "maybe" else "judge"
                    yield f"recv: {n} bytes of the kernel", w
        elif peer.rst or peer.fin:
            x = w.side[me]
            x.op = "idle"
            if x.kind == "shm" and x.rx == BEFORE and peer.switch_at != NEVER and x.krx >= peer.switch_at:
                x.op = "recv"  # the producer had switched by then: its ring comes before the end
                x.rx = RING
                yield "recv: FIN; but there is a ring", w
            else:
                x.end = "reset" if peer.rst else "eof"
                yield f"recv: {x.end}", w
        elif not w.side[me].shut:
            w.side[me].op = "idle"
            yield "recv: EAGAIN", w

    def _op_peeked(self, state: State, me: int) -> Iterator[tuple[str, World]]:
        """If the producer has not switched by now, all that was peeked at is data."""
        w = thaw(state)
        x, peer = w.side[me], w.side[1 - me]
        n = len(x.hand)
        if peer.switch_at != NEVER:
            n = min(n, peer.switch_at - x.krx)
            x.kind = "shm"
        x.hand, peer.queue = peer.queue[:n], peer.queue[n:]
        x.op = "judge" if n else "recv"
        yield f"recv: {n} of them", w

    def _op_judge(self, state: State, me: int) -> Iterator[tuple[str, World]]:
        """Which of the bytes in hand are data?  The tie and the switch happened before a bell was sent."""
        w = thaw(state)
        x, peer = w.side[me], w.side[1 - me]
        if x.kind == "claimed" and w.slot == ATTACHED:
            x.kind = "shm"
        data = x.hand
        if x.kind == "shm" and x.rx == BEFORE and peer.switch_at != NEVER:
            left = peer.switch_at - x.krx
            data = x.hand[:left]
            if len(data) < len(x.hand):
                x.seen += len(x.hand) - len(data)
                peer.bell_out = 0
        x.hand = ()
        x.op = "idle"
        for token in data:
            if token != x.got:
                x.op = "wrong-byte"
            x.got += 1
        if x.rx == BEFORE:
            x.krx += len(data)
        yield f"{len(data)} bytes of data", w

    def _ring_recv(self, state: State, me: int) -> Iterator[tuple[str, World]]:
        w = thaw(state)
        x, peer = w.side[me], w.side[1 - me]
        ended = peer.fin or peer.rst
        if peer.ring and not (ended and "ring-before-fin" in self.rules.without):
            if peer.ring[0] != x.got:
                x.op = "wrong-byte"
            else:
                x.op = "idle"
            x.got += 1
            peer.ring = peer.ring[1:]
            peer.head += 1
            yield "takes a byte off the ring", w
        elif peer.ring_end == peer.head:
            x.rx = AFTER
            yield "ring_end: the kernel again", w
        elif (x.debt or (x.seen < peer.bells and not peer.bell_out)) and peer.queue:
            x.debt = max(x.debt - 1, 0)
            self._take_bell(x, peer)
            yield "takes the bell byte that was owed", w
        elif peer.bell_out and not x.debt:
            peer.bell_out = 0
            x.op = "settle"
            yield "bell_out = 0", w
        elif peer.fin or peer.rst:
            # FIN was seen; what the ring holds was written earlier, and it is empty
            x.end = "reset" if peer.rst and not peer.fin else "eof"
            x.op = "idle"
            yield f"recv: {x.end}", w
        elif not x.shut:
            x.op = "idle"
            yield "recv: EAGAIN", w
        # else: asleep until the kernel's descriptor is readable

    def _op_settle(self, state: State, me: int) -> Iterator[tuple[str, World]]:
        w = thaw(state)
        x, peer = w.side[me], w.side[1 - me]
        x.op = "recv"
        if peer.ring and peer.bell_out == 0:
            peer.bell_out = 1
            yield "the ring has filled: the byte stays", w
        else:
            x.op = "take"
            yield "the byte goes", w

    def _op_take(self, state: State, me: int, then: str = "recv") -> Iterator[tuple[str, World]]:
        w = thaw(state)
        x, peer = w.side[me], w.side[1 - me]
        x.op = then
        if peer.queue:
            self._take_bell(x, peer)
            yield "takes the bell byte", w
        else:
            x.debt += 1
            yield "the bell byte is still on its way", w

    @staticmethod
    def _take_bell(x: Half, peer: Half) -> None:
        if peer.queue[0] != BELL:
            x.op = "wrong-byte"
        peer.queue = peer.queue[1:]
        x.seen += 1

    # -- the end --------------------------------------------------------------------------------

    def _op_close(self, state: State, me: int) -> Iterator[tuple[str, World]]:
        """The bell must be settled first: announce one ourselves, so that none is sent any more."""
        w = thaw(state)
        x, peer = w.side[me], w.side[1 - me]
        ours = x.kind == "shm" and x.rx == RING and not peer.ring and "farewell" not in self.rules.without
        if ours and "announce" in self.rules.without:
            x.op = "kernel_close"
            if peer.bell_out:
                peer.bell_out = 0
                x.op = "take:kernel_close"
            yield "settles the bell", w
        elif ours:
            x.debt += peer.bell_out
            peer.bell_out = 1
            x.op = "bye"
            yield "bell_out = 1 for good", w
        else:
            x.op = "kernel_close"
            yield "about to close", w

    def _op_bye(self, state: State, me: int) -> Iterator[tuple[str, World]]:
        w = thaw(state)
        x, peer = w.side[me], w.side[1 - me]
        n = min(x.debt, len(peer.queue))
        if n == x.debt or peer.life in ("closed", "dead") or peer.fin:
            peer.queue = peer.queue[n:]
            x.debt -= n
            x.op = "kernel_close"
            yield f"takes {n} bell bytes", w
        # else: waits for the byte that is on its way

    def _op_kernel_close(self, state: State, me: int) -> Iterator[tuple[str, World]]:
        w = thaw(state)
        self._kernel_close(w, me)
        x = w.side[me]
        if x.kind == "claimed":
            x.op = "withdraw"
        elif x.kind == "shm":
            x.op = "done"
        else:
            x.life = "closed"
        yield "close in the kernel", w

    def _op_withdraw(self, state: State, me: int) -> Iterator[tuple[str, World]]:
        w = thaw(state)
        if w.slot == CLAIMED:
            w.slot = FREE
            w.hint = False
            label = "CLAIMED -> FREE"
        else:
            w.side[me].done = True
            label = "done (the server was quicker)"
        w.side[me].life = "closed"
        yield label, w

    def _op_done(self, state: State, me: int) -> Iterator[tuple[str, World]]:
        w = thaw(state)
        w.side[me].done = True
        w.side[me].life = "closed"
        yield "done", w

    @staticmethod
    def _kernel_close(w: World, me: int) -> None:
        x, peer = w.side[me], w.side[1 - me]
        if peer.queue:  # unread bytes: the kernel resets
            x.rst = True
        x.fin = True
        peer.queue = ()


def _name(side: int) -> str:
    return "client" if side == CLIENT else "server"
