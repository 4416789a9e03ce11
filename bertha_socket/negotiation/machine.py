"""A conversation between two agents, without its I/O: bytes in, events and bytes out.

    initiator (the client's agent)                responder (the server's agent)
    HELLO, OFFER                    ------>
                                    <------       HELLO, PLAN | REFUSAL | NO_LISTENER | ERROR

The initiator does not wait for the other HELLO, so all of it takes one round trip.  Each message carries an
HMAC-SHA256 over its direction, everything said before (both nonces among it) and itself.  With a cluster key
that authenticates both ends and binds the answer to this question; without one it finds accidents only.  An
OFFER that is played back gets an answer that nobody asked for, and changes nothing here.
"""

from __future__ import annotations

import copy
import hashlib
import hmac
import secrets
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from bertha_socket.negotiation import messages
from bertha_socket.negotiation._codec import NegotiationError, printable
from bertha_socket.negotiation.messages import (
    ANSWER_MAX,
    ASK_MAX,
    HELLO_MAX,
    LENGTH_SIZE,
    MAC_SIZE,
    NO_LISTENER,
    NONCE_SIZE,
    Asked,
    Hello,
    Kind,
    Message,
    NoListener,
    Trouble,
)
from bertha_socket.negotiation.offer import Offer
from bertha_socket.negotiation.plan import Plan, Refusal, acceptable

__all__ = ["NO_LISTENER", "Answer", "Asked", "Event", "Failed", "Initiator", "Responder", "State"]

_LABEL: Final = b"bertha negotiation v1"


class State(Enum):
    """Where a conversation is."""

    # The initiator's.
    SILENT = "nothing said yet"
    GREETED = "own hello said; the offer follows"
    ASKED = "offer sent; waits for the other hello"
    MET = "the other end is authenticated; waits for its answer"
    # The responder's.
    LISTENING = "waits for a hello"
    HEARD = "the other end is authenticated; waits for its offer"
    DECIDING = "has the offer; waits for the answer from above"
    ANSWERING = "own hello said; the answer follows"
    # Both.
    DONE = "over, with an answer"
    FAILED = "over, without"


class _Way(Enum):
    SENT = "sent"
    RECEIVED = "received"


_S, _R = _Way.SENT, _Way.RECEIVED

#: The protocol.  What is not here is a mistake of whoever said it.
TRANSITIONS: Final[Mapping[tuple[State, _Way, Kind], State]] = {
    (State.SILENT, _S, Kind.HELLO): State.GREETED,
    (State.GREETED, _S, Kind.OFFER): State.ASKED,
    (State.ASKED, _R, Kind.HELLO): State.MET,
    (State.MET, _R, Kind.PLAN): State.DONE,
    (State.MET, _R, Kind.REFUSAL): State.DONE,
    (State.MET, _R, Kind.NO_LISTENER): State.DONE,
    (State.ASKED, _R, Kind.ERROR): State.FAILED,
    (State.MET, _R, Kind.ERROR): State.FAILED,
    (State.LISTENING, _R, Kind.HELLO): State.HEARD,
    (State.HEARD, _R, Kind.OFFER): State.DECIDING,
    (State.DECIDING, _S, Kind.HELLO): State.ANSWERING,
    (State.ANSWERING, _S, Kind.PLAN): State.DONE,
    (State.ANSWERING, _S, Kind.REFUSAL): State.DONE,
    (State.ANSWERING, _S, Kind.NO_LISTENER): State.DONE,
    (State.LISTENING, _S, Kind.ERROR): State.FAILED,
    (State.HEARD, _S, Kind.ERROR): State.FAILED,
    (State.DECIDING, _S, Kind.ERROR): State.FAILED,
}

#: Bytes that the next message may have; elsewhere nothing is read.
_LIMITS: Final[Mapping[State, int]] = {
    State.ASKED: HELLO_MAX,
    State.MET: ANSWER_MAX,
    State.LISTENING: HELLO_MAX,
    State.HEARD: ASK_MAX,
}
_OVER: Final = (State.DONE, State.FAILED)

Answer = Plan | Refusal | NoListener


@dataclass(frozen=True, slots=True)
class Failed:
    """There is no agreement, and why: one line.  `told`: the other agent says so, or somebody in its name."""

    why: str
    told: bool = False


Event = Asked | Plan | Refusal | NoListener | Failed


class _Machine:
    """What both roles share: frames, the transcript, and the table."""

    _initiates: bool

    def __init__(self, state: State, key: bytes | None, nonce: bytes | None) -> None:
        self._state = state
        self._keyed = key is not None
        self._key = hmac.digest(key or b"", _LABEL, "sha256")
        self._hello = Hello(secrets.token_bytes(NONCE_SIZE) if nonce is None else nonce, self._keyed)
        self._said = hashlib.sha256(_LABEL).digest()
        self._in = bytearray()
        self._out = bytearray()
        self._events: deque[Event] = deque()

    @property
    def state(self) -> State:
        """Where the conversation is."""
        return self._state

    @property
    def finished(self) -> bool:
        """Whether nothing more will be read.  There may still be something to send."""
        return self._state in _OVER

    @property
    def clean(self) -> bool:
        """Whether it is over with an answer and nothing else has come: the same connection will do for
        another conversation, which has its own nonces and MACs."""
        return self._state is State.DONE and not self._in

    def outgoing(self) -> bytes:
        """What is to be sent now; once."""
        data = bytes(self._out)
        self._out.clear()
        return data

    def event(self) -> Event | None:
        """What has come to light, in its order; None: nothing (more) yet."""
        return self._events.popleft() if self._events else None

    def receive(self, data: bytes) -> None:
        """Takes what has come, in pieces of any size; b"": the end.  Raises nothing: see Failed."""
        if self.finished:
            return
        if not data:
            self._fail("the other agent ended the conversation without an answer")
            return
        self._in += data
        try:
            while (found := self._next()) is not None:
                self._take(*found)
        except NegotiationError as error:
            self._fail(str(error.strerror), tell=True)

    # -- frames -------------------------------------------------------------------------------------------

    def _next(self) -> tuple[bytes, bytes] | None:
        """MAC and body of the next message, if all of it is there and it is time to read one."""
        limit = _LIMITS.get(self._state)
        if limit is None:
            if self._state is State.DECIDING and self._in:
                raise NegotiationError("the other agent speaks though it is not its turn")
            return None
        if len(self._in) < LENGTH_SIZE:
            return None
        size = int.from_bytes(self._in[:LENGTH_SIZE], "big")
        if not MAC_SIZE < size <= MAC_SIZE + limit:
            most = MAC_SIZE + limit
            problem = f"a message of {size} bytes where {most} may be"
            raise NegotiationError(f"{problem}: not an agent of ours, or altered on its way")
        if len(self._in) < LENGTH_SIZE + size:
            return None
        found = bytes(self._in[LENGTH_SIZE : LENGTH_SIZE + size])
        del self._in[: LENGTH_SIZE + size]
        return found[:MAC_SIZE], found[MAC_SIZE:]

    def _mac(self, initiator: bool, body: bytes) -> bytes:
        # All parts before the body have fixed sizes.
        return hmac.digest(self._key, (b"I" if initiator else b"R") + self._said + body, "sha256")

    def _note(self, mac: bytes, body: bytes) -> None:
        """Adds a message to what both ends have said; its MAC covers all that went before."""
        self._said = hashlib.sha256(mac + body).digest()

    def _take(self, mac: bytes, body: bytes) -> None:
        genuine = hmac.compare_digest(mac, self._mac(not self._initiates, body))
        if not genuine:
            self._take_doubtful(body)
            return
        message = messages.decode(body, len(body))
        self._step(_R, messages.kind_of(message))
        self._note(mac, body)
        self._heard(message)

    def _take_doubtful(self, body: bytes) -> None:
        """A message whose MAC is wrong: only good to find out what to tell people."""
        message = messages.decode(body, HELLO_MAX)
        if isinstance(message, Trouble) and self._initiates:
            self._step(_R, Kind.ERROR)
            self._heard(message)
            return
        theirs = message.keyed if isinstance(message, Hello) else self._keyed
        us, them = ("client", "server") if self._initiates else ("server", "client")
        if theirs != self._keyed:
            has, lacks = (them, us) if theirs else (us, them)
            problem = f"the {has}'s host has a cluster key and the {lacks}'s has none: copy the key there"
        elif self._keyed:
            problem = "a message was altered, or the keys differ: compare 'bertha key show-id' on both hosts"
        else:
            problem = "a message was altered on its way"
        raise NegotiationError(problem)

    def _say(self, message: Message) -> None:
        body = messages.encode(message)
        self._step(_S, messages.kind_of(message))
        mac = self._mac(self._initiates, body)
        self._note(mac, body)
        self._out += messages.frame(mac, body)

    def _step(self, way: _Way, kind: Kind) -> None:
        state = TRANSITIONS.get((self._state, way, kind))
        if state is None:
            problem = f"'{kind.value}' was {way.value} out of turn (state: {self._state.value})"
            raise NegotiationError(problem)
        self._state = state

    def _fail(self, why: str, *, tell: bool = False) -> None:
        """The end.  A responder tells the other agent, which would otherwise wait or guess."""
        if tell and (self._state, _S, Kind.ERROR) in TRANSITIONS:
            self._say(Trouble(why))
        self._state = State.FAILED
        self._in.clear()
        self._events.append(Failed(printable(why, 300)))

    def _heard(self, message: Message) -> None:
        raise NotImplementedError


class Initiator(_Machine):
    """The client's agent.  It has something to send from the start on; its event is the answer."""

    _initiates = True

    def __init__(
        self,
        addr: str,
        port: int,
        offer: Offer,
        key: bytes | None = None,
        nonce: bytes | None = None,
        proto: str = "tcp",
    ) -> None:
        """Asks about the listener at `addr` (an IP address) and `port`.  `nonce`: for tests only.

        Raises NegotiationError: the offer is too long to be sent.
        """
        super().__init__(State.SILENT, key, nonce)
        self._offer = offer
        self._say(self._hello)
        self._say(Asked(addr, port, offer, proto))
        self._words, self._asked_so = bytes(self._out), self._said

    def again(self) -> Initiator:
        """The same question, to the letter, before anything has been heard: for another way there."""
        twin = copy.copy(self)
        twin._state, twin._said = State.ASKED, self._asked_so
        twin._in, twin._out, twin._events = bytearray(), bytearray(self._words), deque()
        return twin

    def _heard(self, message: Message) -> None:
        match message:
            case Plan():
                # An agent that errs, or that somebody speaks for, decides nothing against this end's will.
                self._events.append(acceptable(message, self._offer, "client") or message)
            case Refusal() | NoListener():
                self._events.append(message)
            case Trouble():
                self._events.append(Failed(message.why, told=True))
            case Hello() | Asked():
                pass


class Responder(_Machine):
    """The server's agent.  Its event is the question, to be answered with `answer`, now or later."""

    _initiates = False

    def __init__(self, key: bytes | None = None, nonce: bytes | None = None) -> None:
        """`nonce`: for tests only."""
        super().__init__(State.LISTENING, key, nonce)

    @property
    def question(self) -> bytes:
        """What the other end has said, as a hash: another one is another question, or its answer has been
        given."""
        return self._said

    @property
    def alone(self) -> bool:
        """Whether nothing has come but the question."""
        return self._state is State.DECIDING and not self._in

    def answer(self, answer: Answer) -> None:
        """The answer to the question.  Ignored when the conversation has failed since.

        Raises NegotiationError: there is no question, or it has been answered.
        """
        if self._state is State.FAILED:
            return
        if isinstance(answer, Plan):
            try:
                answer.encode()
            except NegotiationError as error:
                answer = Refusal("the DAG", str(error.strerror))
        self._say(self._hello)
        self._say(answer)

    def _heard(self, message: Message) -> None:
        if isinstance(message, Asked):
            self._events.append(message)
