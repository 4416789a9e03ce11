"""The datagrams between this carrier and another one, without sockets: HELLO, ACCEPT, then the chunnels."""

from __future__ import annotations

import dataclasses
import math
import secrets
import traceback
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from bertha_socket.carrier import envelope
from bertha_socket.carrier.envelope import Envelope, Kind
from bertha_socket.carrier.plans import Recipe, log_text, recipe_of
from bertha_socket.chunnels import ChunnelError, Context, Interface, Pipe
from bertha_socket.chunnels.pipeline import Moved, Pipeline

if TYPE_CHECKING:
    from bertha_socket.carrier.aside import Aside

#: Seconds after which a HELLO is said again (doubled each time), and after which it is no use.
_HELLO_AGAIN: Final = 0.25
_HELLO_AGAIN_MAX: Final = 2.0
HELLO_SECONDS: Final = 10.0
#: The same, once the server's data has come before its ACCEPT.
_HELLO_AT_ONCE: Final = 0.005
#: Seconds without a datagram in either direction after which what a client sends begins with a new HELLO, and
#: after which (later, so that nothing is sent in vain) the server forgets it.
CLIENT_IDLE: Final = 240.0
SERVER_IDLE: Final = 600.0
#: Datagrams that are kept until the agent has judged the plan; that wait for the chunnels to take them.
_EARLY_MAX: Final = 32
_WAITING_MAX: Final = 1024


class Step(Enum):
    """How far the two carriers have come."""

    PENDING = "pending"
    READY = "ready"
    FAILED = "failed"


def datagram_recipe(plan: bytes, side: str) -> Recipe:
    """What is to be made of a plan here.  Raises OSError."""
    return dataclasses.replace(recipe_of(plan, side), top=Interface.DATAGRAMS, bottom=Interface.DATAGRAMS)


class Exchange:
    """One end.  After any call: look at `step`, `to_network`, `to_program` and `deadline()`."""

    def __init__(
        self,
        context: Context,
        key: bytes | None,
        plan: bytes,
        session: int | None = None,
        recipe: Callable[[bytes, str], Recipe] = datagram_recipe,
        aside: Callable[[Recipe, Exchange], Aside] | None = None,
    ) -> None:
        """`session`: the client's number, at the server.  `recipe`: what is to be made of the plan.
        `aside`: runs chunnels that are not all ours in a process of their own; without it they run here."""
        self.context = context
        self.side = context.side
        self.plan = plan
        self.session = secrets.randbits(64) if session is None else session
        self.step = Step.PENDING
        #: Why it has failed, one line; with a traceback if it is some chunnel's fault.
        self.detail = ""
        self.traceback = ""
        #: The server's carrier has refused the plan itself: another one has to be asked for.
        self.refused = False
        #: JSON for the log.
        self.chunnels = ""
        self.to_network: list[bytes] = []
        self.to_program: list[Any] = []
        self.dropped = 0
        #: What its owner puts before the program's datagrams, and knows it by.
        self.label = b""
        self.place: Any = None
        self._seal = envelope.sealed(Kind.DATA, self.session)
        self._recipe = recipe
        self._key = key
        self._make_aside = aside
        self._aside: Aside | None = None
        self._pipeline: Pipeline | Aside | None = None
        self._parts = False  # it is over when all that was given has come out
        self._waiting: deque[Any] = deque()
        self._ends = False  # the program sends no more
        self._early: list[bytes] = []
        now = context.clock()
        self._last = now
        self._born = now
        self._spoke = now  # data of the other end came
        self._hello_at: float | None = None
        self._hello_wait = _HELLO_AGAIN
        self._reminded = 0.0

    # -- what its owner asks --------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether the program's next datagrams had better wait."""
        return len(self._waiting) >= _WAITING_MAX // 2

    @property
    def unsaid(self) -> bool:
        """Whether something is still to be said, or said again."""
        if self.step is Step.FAILED:
            return False
        coming = self._aside is not None and self._pipeline is None
        return coming or self._hello_at is not None or (self._pipeline is not None and self._pipeline.unsaid)

    @property
    def begun_at(self) -> float:
        """When a message began of which the rest is still to come; inf: there is none."""
        return min((p.begun_at for p in self._pipes()), default=math.inf)

    def unproven(self, now: float) -> float:
        """At the server, seconds without data of one that may not be where it says that it is: nothing that
        was sent there was acknowledged."""
        known = [p.answered for p in self._pipes() if p.answered is not None]
        return now - self._spoke if self.side == "server" and known and not any(known) else 0.0

    def _pipes(self) -> tuple[Pipe, ...]:
        return self._pipeline.pipes if isinstance(self._pipeline, Pipeline) else ()

    @property
    def up_done(self) -> bool:
        """Whether the other end has said that it sends no more."""
        return self._pipeline is not None and self._pipeline.up_done

    @property
    def done(self) -> bool:
        """Whether this end's end has been said, and the other end knows of it, as far as chunnels tell."""
        return self._pipeline is not None and self._pipeline.down_done and not self.unsaid

    def deadline(self) -> float | None:
        """When `tick` is to be called (the context's clock)."""
        if self.step is Step.FAILED:
            return None
        times = [self._hello_at]
        if self.side == "server":
            times.append(self._last + SERVER_IDLE)
        if self.step is Step.PENDING:
            times.append(self._born + HELLO_SECONDS)
        if self._pipeline is not None:
            times.append(self._pipeline.deadline())
        return min((t for t in times if t is not None), default=None)

    def silent(self, now: float) -> float:
        """Seconds without a datagram; 0 while something is still to be said."""
        return 0.0 if self.unsaid or self.step is Step.PENDING else now - self._last

    def idle(self, now: float, seconds: float) -> bool:
        """Whether it has been silent for longer than that."""
        return now - self._last > seconds and self.silent(now) > seconds

    # -- what its owner gives -------------------------------------------------------------------------

    def start(self) -> None:
        """The client's HELLO; the chunnels may speak at once."""
        self._guard(self._start)

    def judged(self, why: str | None) -> None:
        """At the server: the agent's answer about the plan; None is yes."""
        self._guard(self._judged, why)

    def network(self, came: Envelope) -> None:
        """A datagram of this session from the other carrier."""
        self._guard(self._network, came)

    def program(self, datagram: Any) -> None:
        """A datagram (or what the uppermost chunnel takes) from the program."""
        self._guard(self._program, datagram)

    def end(self) -> None:
        """The program sends no more."""
        self._guard(self._end)

    def tick(self, now: float) -> None:
        """A deadline is there."""
        self._guard(self._tick, now)

    def part(self) -> None:
        """Tells the other end that nothing more will come: it may forget this session."""
        if self.step is Step.READY:
            self.to_network.append(envelope.sealed(Kind.END, self.session))
            self.fail("")

    def close(self) -> None:
        """It has ended."""
        self._take_early()
        for pipeline in {self._pipeline, self._aside}:
            if pipeline is not None:
                pipeline.close()

    # -- what chunnels in a process of their own say --------------------------------------------------

    def made(self) -> None:
        """They are there."""
        if self._pipeline is None and self._aside is not None:
            self._pipeline = self._aside
            self._guard(self._begin)

    def moved(self, moved: Moved) -> None:
        """Something has come out, or they may take more."""
        self._guard(self._moved, moved)

    def broken(self, detail: str, traceback: str) -> None:
        """They have failed."""
        if self.step is Step.FAILED:
            return
        if self.step is Step.PENDING and self.side == "server":
            self.to_network.append(envelope.refuse(self.session, detail))
        elif self.step is Step.READY:  # the other end need not wait for what will not come
            self.to_network.append(envelope.sealed(Kind.END, self.session))
        self.traceback = traceback
        self.fail(detail)

    # -- inside ---------------------------------------------------------------------------------------

    def fail(self, detail: str) -> None:
        """It does not go on."""
        if self.step is not Step.FAILED:
            self.step = Step.FAILED
            self.detail = " ".join(detail.split())

    def _guard(self, call: Callable[..., None], *args: Any) -> None:
        if self.step is Step.FAILED:
            return
        try:
            call(*args)
        except OSError as error:
            self.fail(error.strerror or str(error))
        except Exception as error:  # a chunnel's fault ends its own datagrams, and nobody else's
            self.traceback = traceback.format_exc(limit=-6)
            self.fail(f"{type(error).__name__}: {error}")

    def _make(self) -> None:
        """The pipes; then `_begin`, perhaps later."""
        recipe = self._recipe(self.plan, self.side)
        self.chunnels = log_text(recipe.plan, self.side)
        if recipe.foreign and self._make_aside is not None:
            self._aside = self._make_aside(recipe, self)
            return
        outer, inner = recipe.pipes(self.context)
        self._pipeline = Pipeline([*inner, *outer])
        self._begin()

    def _begin(self) -> None:
        if self.side == "client":
            self._hello(self.context.clock())
        else:
            self._ready()
            self._accept()
        assert self._pipeline is not None
        self._moved(self._pipeline.start())
        for data in self._take_early():
            self._moved(self._pipeline.up(data))

    def _start(self) -> None:
        said = envelope.hello(self.session, self.plan, self._key)
        if len(said) > envelope.HELLO_MAX:
            raise ChunnelError(
                f"the plan does not fit into a datagram ({len(said)} bytes, more than {envelope.HELLO_MAX});"
                " use fewer chunnels or shorter arguments"
            )
        self._make()

    def _hello(self, now: float) -> None:
        self.to_network.append(envelope.hello(self.session, self.plan, self._key))
        self._hello_at = now + self._hello_wait
        self._hello_wait = min(2 * self._hello_wait, _HELLO_AGAIN_MAX)

    def _remind(self) -> None:
        """The server speaks, so it has accepted: that was lost, or is late.  Asked, it says so again."""
        if self._last - self._reminded >= _HELLO_AT_ONCE:
            self._reminded = self._last
            self.to_network.append(envelope.hello(self.session, self.plan, self._key))

    def _judged(self, why: str | None) -> None:
        if why is not None:
            self.to_network.append(envelope.refuse(self.session, why))
            self.fail(why)
            return
        self._make()

    def _accept(self) -> None:
        self.to_network.append(envelope.accept(self.session, self.plan, self._key))

    def _ready(self) -> None:
        self.step = Step.READY
        self._hello_at = None

    def _network(self, came: Envelope) -> None:
        self._last = self.context.clock()
        if came.kind is Kind.DATA:
            self._spoke = self._last
            if self.side == "client" and self.step is Step.PENDING:
                self._remind()
            if self._pipeline is not None:
                self._moved(self._pipeline.up(came.body))
            elif self._early_room(len(came.body)):
                self._early.append(came.body)
            else:
                self.dropped += 1
        elif came.kind is Kind.HELLO and self.side == "server" and self.step is Step.READY:
            self._accept()  # the first one was lost
        elif self.side == "client" and self.step is Step.PENDING:
            if came.kind is Kind.ACCEPT and envelope.is_accepted(came, self.plan, self._key):
                self._ready()
            elif came.kind is Kind.REFUSE:
                self.refused = True
                self.fail(f"the server refused: {envelope.why_refused(came)}")
        elif came.kind is Kind.END:
            self._parted()
        elif came.kind is Kind.UNKNOWN and self.side == "client":
            self.fail("the server has forgotten this session")

    def _early_room(self, size: int) -> bool:
        held = self.context.held
        if len(self._early) >= _EARLY_MAX or (held is not None and held.early + size > held.early_max):
            return False
        if held is not None:
            held.early += size
        return True

    def _take_early(self) -> list[bytes]:
        early, self._early = self._early, []
        if self.context.held is not None:
            self.context.held.early -= sum(map(len, early))
        return early

    def _parted(self) -> None:
        """The other end is gone.  Raises ChunnelError: by its chunnels, it had more to say."""
        if self._pipeline is not None and not self._pipeline.up_done:
            self.to_program += self._pipeline.up_end().up
        self._parts = True
        self._part_if_done()

    def _part_if_done(self) -> None:
        if self._parts and (self._aside is None or not self._aside.pending):
            self.fail("")

    def _program(self, datagram: Any) -> None:
        self._last = self.context.clock()
        if len(self._waiting) >= _WAITING_MAX:
            self.dropped += 1
            return
        self._waiting.append(datagram)
        self._push()

    def _push(self) -> None:
        pipeline = self._pipeline
        while pipeline is not None and self._waiting and not pipeline.full_down:
            self._take(pipeline.down(self._waiting.popleft()))
        if self._ends and pipeline is not None and not self._waiting:
            self._ends = False
            self._take(pipeline.down_end())

    def _end(self) -> None:
        self._ends = True
        self._push()

    def _moved(self, moved: Moved) -> None:
        self._take(moved)
        self._push()
        self._part_if_done()

    def _take(self, moved: Moved) -> None:
        if moved.down:
            self.to_network += [self._seal + item for item in moved.down]
        if moved.up:
            self.to_program += [bytes(i) if isinstance(i, (bytearray, memoryview)) else i for i in moved.up]

    def _tick(self, now: float) -> None:
        if self.step is Step.PENDING and now >= self._born + HELLO_SECONDS:
            if self._aside is not None and self._pipeline is None:
                raise ChunnelError(f"its chunnels were not there within {HELLO_SECONDS:.0f} s")
            raise ChunnelError(f"the other end has not answered within {HELLO_SECONDS:.0f} s")
        if self._hello_at is not None and now >= self._hello_at:
            self._hello(now)
        pipeline = self._pipeline
        due = pipeline.deadline() if pipeline is not None else None
        if pipeline is not None and due is not None and due <= now:
            self._moved(pipeline.tick(now))
        if self.side == "server" and now >= self._last + SERVER_IDLE:
            if self.silent(now) > 0:
                self.fail("")  # nothing was said for long
            self._last = now
