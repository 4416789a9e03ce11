"""One carried connection without its sockets: TLS first, then the preambles, then the chunnels.

    program <-> inner pipes <-> (preambles) <-> outer pipes <-> network

The outer pipes are `encrypt`, if it is the plan's last chunnel on the wire, and what counts or copies below
it.  Whoever owns the sockets gives what they bring (`network`, `program`, their ends, `tick`) and takes what
is in `to_network` and `to_program`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final

from bertha_socket.carrier import preamble
from bertha_socket.carrier.counted import Counted
from bertha_socket.carrier.faults import text_of, traceback_of
from bertha_socket.carrier.plans import Recipe, recipe_of
from bertha_socket.chunnels import ChunnelArgumentError, ChunnelError, Context, Pipe, UnknownChunnel
from bertha_socket.chunnels.encrypt import EncryptPipe
from bertha_socket.chunnels.pipeline import Moved, Pipeline

#: Seconds in which both ends must have agreed.
HANDSHAKE_SECONDS: Final = 10.0
#: Seconds after which a client that has said nothing is taken for one that waits for the server's first word,
#: where plain clients are served.  A carrier speaks as soon as it is connected.
SILENCE_SECONDS: Final = 1.0
_DETAIL_MAX: Final = 395


class State(IntEnum):
    """As the shim is told (native/carrier/carrier.h)."""

    PENDING = 0
    READY = 1
    REFUSED = 2
    RESET = 3
    PLAIN = 4
    RAISED = 5


class Mode(IntEnum):
    """What is carried (native/carrier/carrier.h)."""

    PLAN = 0
    REQUIRED = 1
    MAYBE = 2


class Session:
    """One end of a carried connection.  After any call: look at `state`, `question`, `to_*`, `*_ended`."""

    def __init__(
        self,
        mode: Mode,
        context: Context,
        key: bytes | None,
        plan: bytes = b"",
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.mode = mode
        self.context = context
        self.side = context.side
        self.state = State.PENDING
        self.detail = ""
        #: For the log: what a pipe raised.
        self.traceback = ""
        #: What runs, and what it has counted, once READY.
        self.counted: Counted | None = None
        self.to_network: deque[bytes] = deque()
        self.to_program: deque[Any] = deque()
        #: Bytes in each.
        self.network_size = 0
        self.program_size = 0
        #: The direction is to be shut down once its queue is empty.
        self.network_ended = False
        self.program_ended = False
        #: A plan about which the agent is to be asked (`answer`).
        self.question: bytes | None = None
        #: What is to be made of the plan, once it is known.
        self.recipe: Recipe | None = None
        #: The plan has code that is not ours: its owner calls `go_on` in a process that may die of it.
        self.apart = False
        self._plan = plan
        self._key = key
        self._changed = changed
        self._until = time.monotonic() + HANDSHAKE_SECONDS
        self._outer: Pipeline | None = None
        self._inner: Pipeline | None = None
        self._reader: preamble.Reader | None = preamble.Reader()
        self._hello: preamble.Hello | None = None
        self._nonce = b""
        self._early: list[bytes] = []
        self._network_over = False
        self._program_over = False
        self._sniffed = self.side == "client"
        self._opening = bytearray()
        #: When a server that may serve plain clients no longer waits for the client to speak first.
        self._silence = time.monotonic() + SILENCE_SECONDS if mode == Mode.MAYBE else None

    @property
    def chunnels(self) -> str:
        """JSON for the log, once READY."""
        return "" if self.counted is None else self.counted.text

    @property
    def told(self) -> str:
        """For the log: `detail`, and behind what has ended the connection what was left out of its plan."""
        if self.state not in (State.RESET, State.RAISED) or self.counted is None or self.recipe is None:
            return self.detail
        return "; ".join(filter(None, (self.detail, self.recipe.plan.left_out)))

    # -- what its owner asks --------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        """It has failed: nothing more is to be given."""
        return self.state in (State.REFUSED, State.RESET, State.RAISED)

    @property
    def wants_program(self) -> bool:
        """Whether what the program sends can be taken now."""
        if self._program_over or self.over:
            return False
        if self.state == State.PLAIN:
            return True
        if self._inner is None or self._inner.full_down:
            return False
        return self._outer is None or not self._outer.full_down

    @property
    def wants_network(self) -> bool:
        """Whether what the network brings can be taken now."""
        if self._network_over or self.over or self.question is not None or self._hello_waits:
            return False
        pipelines = (self._outer, self._inner)
        return not any(p is not None and p.full_up for p in pipelines)

    @property
    def _hello_waits(self) -> bool:
        return self._hello is not None and self._inner is None and self.state == State.PENDING

    @property
    def sniffed(self) -> bool:
        """Whether it is known what the client speaks: a plain one may also have been silent for long."""
        return self._sniffed

    def deadline(self) -> float | None:
        """When `tick` is to be called."""
        times = [p.deadline() for p in (self._outer, self._inner) if p is not None]
        if self.state == State.PENDING:
            times.append(self._until)
            if not self._sniffed and len(self._opening) < preamble.OPENING_SURE:
                times.append(self._silence)
        return min((t for t in times if t is not None), default=None)

    # -- what its owner gives -------------------------------------------------------------------------

    def start(self) -> None:
        """The client's first bytes."""
        self._guard(self._start)

    def network(self, data: bytes) -> None:
        """Bytes from the network."""
        self._guard(self._network, data)

    def network_end(self) -> None:
        """The other end sends no more."""
        self._network_over = True
        self._guard(self._network_end)

    def program(self, item: Any) -> None:
        """Bytes (or what the uppermost chunnel takes) from the program."""
        self._guard(self._program, item)

    def program_end(self) -> None:
        """The program sends no more."""
        self._program_over = True
        self._guard(self._program_end)

    def answer(self, why: str | None) -> None:
        """The agent's judgement about `question`: None is yes."""
        self._guard(self._answer, why)

    def go_on(self) -> None:
        """The pipes of the recipe may be made (where it is set: in the process that is to run them)."""
        self._guard(self._go_on)

    def tick(self, now: float) -> None:
        """A deadline is there."""
        self._guard(self._tick, now)

    def fail(self, detail: str) -> None:
        """The connection cannot go on: to be reset."""
        self._set(State.RESET if self.state in (State.READY, State.PLAIN) else State.REFUSED, detail)

    def close(self) -> None:
        """The connection has ended."""
        for pipeline in (self._inner, self._outer):
            if pipeline is not None:
                pipeline.close()

    # -- inside ---------------------------------------------------------------------------------------

    def _set(self, state: State, detail: str = "") -> None:
        if self.over:
            return
        line = " ".join(detail.split())
        self.detail = line.encode("utf-8", "replace")[:_DETAIL_MAX].decode("utf-8", "ignore")
        self.state = state
        self._changed()

    def _guard(self, call: Callable[..., None], *args: Any) -> None:
        if self.over:
            return
        try:
            call(*args)
        except ChunnelError as error:
            if self.state == State.PENDING and error.parting:
                self._send_down([error.parting])
            self.fail(error.strerror or str(error))
        except (ChunnelArgumentError, UnknownChunnel) as error:  # before it is made
            self.fail(error.strerror or str(error))
        except Exception as error:  # a chunnel's own fault ends its connection alone
            self.traceback = traceback_of()
            self._set(State.RAISED, text_of(error, self._inner, self._outer))

    def _send_down(self, items: list[Any]) -> None:
        for item in items:
            if len(item):
                self.to_network.append(item)
                self.network_size += len(item)

    def _send_up(self, items: list[Any]) -> None:
        for item in items:
            self.to_program.append(item)
            self.program_size += len(item) if isinstance(item, (bytes, bytearray, memoryview)) else 1

    def _through_outer(self, items: list[Any]) -> None:
        """From the preamble's place to the network."""
        if self._outer is None:
            self._send_down(items)
            return
        for item in items:
            self._from_outer(self._outer.down(item))

    def _from_outer(self, moved: Moved) -> None:
        self._send_down(moved.down)
        for item in moved.up:
            self._rises(item)
        self._ends()

    def _from_inner(self, moved: Moved) -> None:
        self._through_outer(moved.down)
        self._send_up(moved.up)
        self._ends()

    def _rises(self, item: Any) -> None:
        """Something at the preamble's place, from the network."""
        if self._reader is not None:
            if self._hello_waits:
                self._early.append(item)
                return
            fields = self._reader.feed(item)
            if fields is not None:
                self._said(fields)
        elif self._inner is None:
            self._early.append(item)
        else:
            self._from_inner(self._inner.up(item))

    def _ends(self) -> None:
        """Ends that have come through one half go into the other, and out."""
        if self._inner is not None and self._inner.down_done and not self.network_ended:
            if self._outer is None:
                self.network_ended = True
            else:
                moved = self._outer.down_end()
                self._send_down(moved.down)
                self.network_ended = self._outer.down_done
        inner = self._inner
        if inner is None or self.state != State.READY or self.program_ended:
            return
        if self._network_over and not inner.up_done and (self._outer is None or self._outer.up_done):
            moved = inner.up_end()
            self._through_outer(moved.down)
            self._send_up(moved.up)
        self.program_ended = inner.up_done

    # -- the client's beginning -----------------------------------------------------------------------

    def _start(self) -> None:
        if self.side != "client":
            return
        self.recipe = recipe_of(self._plan, "client")
        if self.recipe.foreign:
            self.apart = True
        else:
            self._go_on()

    def _client_go_on(self, recipe: Recipe) -> None:
        self._nonce = preamble.new_nonce()
        outer, inner = recipe.pipes(self.context)
        if outer:
            self._outer = Pipeline(outer)
            self._send_down(self._outer.start().down)
        self._through_outer([preamble.client_preamble(self._plan, self._nonce, self._key)])
        self._inner = Pipeline(inner)
        self._from_inner(self._inner.start())

    # -- the server's beginning -----------------------------------------------------------------------

    def _sniff(self, data: bytes) -> bytes:
        """What to go on with, once it is known what this client speaks."""
        if self.state == State.PLAIN:  # nothing had come for long; now it does
            self._sniffed = True
            if data.startswith(preamble.MAGIC):
                raise ChunnelError("the client's preamble came when the connection was plain already")
            return data
        self._opening += data
        tls = preamble.is_our_tls(self._opening) if self.context.material else False
        ours = self._opening.startswith(preamble.MAGIC[: len(self._opening)])
        whole = len(self._opening) >= len(preamble.MAGIC)
        if tls is None or (ours and not whole and self.mode == Mode.MAYBE):
            return b""  # some other protocol may begin so, too
        self._sniffed = True
        data, self._opening = bytes(self._opening), bytearray()
        if tls:
            pipe: Pipe = EncryptPipe({}, side="server", context=self.context)
            self._outer = Pipeline([pipe])
            self._send_down(self._outer.start().down)
        elif not ours:
            if self.mode != Mode.MAYBE:
                raise ChunnelError(
                    "the client knows of no chunnels, and this server requires them; "
                    "run it under bertha-run, with an agent on its host"
                )
            self._reader = None
            self._set(State.PLAIN)
        return data

    def _said(self, fields: dict[str, Any]) -> None:
        assert self._reader is not None
        if self.side == "client":
            why = preamble.wrong_answer(fields, self._key, self._nonce, self._plan)
            if why is not None:
                raise ChunnelError(why)
            rest, self._reader = self._reader.rest, None
            self._ready()
            if rest:
                self._rises(rest)
            return
        self._hello = preamble.read_hello(fields)
        self._early = [self._reader.rest] if self._reader.rest else []
        why = preamble.wrong_hello(self._hello, self._key)
        if why is None:
            self.recipe = recipe_of(self._hello.plan, "server")
            encrypted = self._outer is not None
            if encrypted != self.recipe.tls_first:
                why = "the plan and the connection differ about whether TLS comes first"
        if why is not None:
            self._refuse(why)
        else:
            self.question = self._hello.plan

    def _refuse(self, why: str) -> None:
        """Told to the client, and then the connection ends."""
        assert self._hello is not None
        self._through_outer([preamble.server_preamble(self._hello, self._key, why)])
        if self._outer is not None:
            self._send_down(self._outer.down_end().down)
        self.network_ended = True
        self._set(State.REFUSED, why)

    def _answer(self, why: str | None) -> None:
        self.question = None
        if why is not None:
            self._refuse(why)
        elif self.recipe is not None and self.recipe.foreign:
            self.apart = True
        else:
            self._go_on()

    def _go_on(self) -> None:
        assert self.recipe is not None
        self.apart = False
        if self.side == "client":
            self._client_go_on(self.recipe)
            return
        assert self._hello is not None
        outer, inner = self.recipe.pipes(self.context, self._outer.pipes[0] if self._outer else None)
        if self._outer is not None:
            for pipe in outer[1:]:
                self._outer.append(pipe)
        self._through_outer([preamble.server_preamble(self._hello, self._key, None)])
        self._inner = Pipeline(inner)
        self._reader = None
        early, self._early = self._early, []
        over, self._network_over = self._network_over, False  # its end comes after what came before it
        self._ready()
        self._from_inner(self._inner.start())
        for item in early:
            self._rises(item)
        self._network_over = over
        if over:
            self._network_end()

    def _ready(self) -> None:
        assert self.recipe is not None
        self.counted = Counted(self.recipe.plan, self.side, self.context.counts)
        self._set(State.READY, self.recipe.plan.left_out)

    # -- data -----------------------------------------------------------------------------------------

    def _network(self, data: bytes) -> None:
        if not self._sniffed:
            data = self._sniff(data)
        if not data:
            return
        if self.state == State.PLAIN:
            self._send_up([data])
        elif self._outer is not None:
            self._from_outer(self._outer.up(data))
        else:
            self._rises(data)

    def _network_end(self) -> None:
        if self.state == State.PLAIN or not self._sniffed:
            # Nothing came at all: who connects and closes, as a probe does.
            self.program_ended = True
            if not self._sniffed and self.state != State.PLAIN:
                self._sniffed = True
                if self.mode == Mode.MAYBE:
                    self._reader = None
                    self._set(State.PLAIN)
                    self._send_up([bytes(self._opening)] if self._opening else [])
                else:
                    self.fail("the client closed the connection before it said anything")
            return
        if self._hello_waits:
            return
        if self._outer is not None:
            self._from_outer(self._outer.up_end())
        if self.state == State.PENDING:
            raise ChunnelError("the other end closed the connection before both had agreed on the plan")
        self._ends()

    def _program(self, item: Any) -> None:
        if self.state == State.PLAIN:
            self._send_down([item])
            return
        assert self._inner is not None
        self._from_inner(self._inner.down(item))

    def _program_end(self) -> None:
        if self.state == State.PLAIN:
            self.network_ended = True
            return
        assert self._inner is not None
        self._from_inner(self._inner.down_end())

    def _tick(self, now: float) -> None:
        if self._silence is not None and now >= self._silence and self.state == State.PENDING:
            # What a carrier begins with is longer, and comes at once.
            short = len(self._opening) < preamble.OPENING_SURE or now >= self._until
            if not self._sniffed and short:
                self._reader = None
                self._set(State.PLAIN)
                if self._opening:
                    self._sniffed = True
                    self._send_up([bytes(self._opening)])
                return
        if self.state == State.PENDING and now >= self._until:
            raise ChunnelError(
                f"no agreement with the other end within {HANDSHAKE_SECONDS:.0f} s; is it a carrier?"
            )
        for pipeline, take in ((self._outer, self._from_outer), (self._inner, self._from_inner)):
            due = pipeline.deadline() if pipeline is not None else None
            if pipeline is not None and due is not None and due <= now:
                take(pipeline.tick(now))
