"""The chunnels of one exchange of datagrams, where not all are ours: a pipeline in a process of its own.

Between the carrier and that process is a pair of sockets, by which items go there and come back.  Nobody
waits for the process: what it has no room for stays behind, or is dropped, as UDP does.
"""

from __future__ import annotations

import select
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgpack

from bertha_socket._native import lib
from bertha_socket.carrier.faults import text_of, traceback_of
from bertha_socket.carrier.loop import READ, WRITE, Loop
from bertha_socket.carrier.plans import Recipe
from bertha_socket.carrier.process import Processes, Progress, User
from bertha_socket.chunnels import ChunnelArgumentError, ChunnelError, Context, UnknownChunnel, octets
from bertha_socket.chunnels.pipeline import Moved, Pipeline

#: To the process: an item from above, from below; the ends.
_DOWN, _UP, _DOWN_END, _UP_END = b"d", b"u", b"D", b"U"
#: From it: the pipes are there; what came out; counters; how things stand; that it has failed.
_MADE, _FELL, _ROSE, _COUNTS, _STATE, _FAILED = b"m", b"f", b"r", b"c", b"s", b"x"
#: How many messages have been dealt with; how many items were lost; bits.
_STATE_BODY: Final = struct.Struct("=QQB")
_FULL, _DUE, _DOWN_DONE, _UP_DONE = 1, 2, 4, 8
#: Bytes of an item: no UDP datagram is longer.
ITEM_MAX: Final = 65507
_MESSAGE_MAX: Final = ITEM_MAX + 1
#: Items from above that wait in the process: more than the sockets hold beyond what it has asked not to get.
_WAITING_MAX: Final = 4096
_ROUNDS: Final = 64
#: More than the sockets hold, in such rounds.
_LAST_ROUNDS: Final = 64
_COUNTERS_MAX: Final = 64
_COUNT_MAX: Final = 10**16
_NOTHING: Final = Moved([], [])


class Owner(Protocol):
    """Who has the pipeline (an exchange)."""

    context: Context

    def made(self) -> None:
        """The pipes are there: it may be started."""

    def moved(self, moved: Moved) -> None:
        """Something has come out, or things stand differently."""

    def broken(self, detail: str, traceback: str) -> None:
        """It has failed.  `traceback`: if that is a chunnel's fault."""


class Aside:
    """The carrier's end: as a Pipeline, but what comes out is told to `owner`, later; then `changed` is
    called."""

    def __init__(
        self,
        loop: Loop,
        processes: Processes,
        user: User,
        recipe: Recipe,
        owner: Owner,
        changed: Callable[[], None],
    ) -> None:
        """`user`: as whom it is to run.  Raises ChunnelError: there can be no process."""
        self.up_done = False
        self.down_done = False
        self._lost = [0, 0]  # here, there
        self._loop = loop
        self._owner = owner
        self._changed = changed
        self._full = False
        self._due = False
        self._said = 0
        self._done = 0
        self._stuck: deque[bytes] = deque()
        self._open = True
        context = owner.context
        self._pair, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pair.setblocking(False)
        with theirs:
            try:
                processes.start(
                    lambda progress: _Worker(theirs, recipe, context, progress).run(),
                    {theirs.fileno()},
                    user,
                    self._gone,
                )
            except OSError as error:
                self._pair.close()
                raise ChunnelError(f"no process for its chunnels: {error.strerror}") from None
        self._watch()

    # -- as a pipeline --------------------------------------------------------------------------------

    @property
    def full_down(self) -> bool:
        """Whether nothing should be given to `down` now."""
        return self._full or bool(self._stuck)

    @property
    def pending(self) -> bool:
        """Whether more may come out of what was given."""
        return self._open and self._said != self._done

    @property
    def unsaid(self) -> bool:
        """Whether something is still to be said."""
        return self._open and (self._due or self.pending)

    def deadline(self) -> float | None:
        """Never: the process has its own."""
        return None

    def start(self) -> Moved:
        """It has started, as soon as it was made."""
        return _NOTHING

    def tick(self, now: float) -> Moved:
        """See `deadline`."""
        return _NOTHING

    def down(self, item: Any) -> Moved:
        """An item from the program."""
        return self._say(_DOWN, item)

    def up(self, item: Any) -> Moved:
        """An item from the network."""
        return self._say(_UP, item)

    def down_end(self) -> Moved:
        """The program sends no more."""
        return self._say(_DOWN_END)

    def up_end(self) -> Moved:
        """The network brings no more."""
        return self._say(_UP_END)

    @property
    def lost(self) -> int:
        """Items for which there was no room, and those too long for UDP."""
        return sum(self._lost)

    def close(self) -> None:
        """The process sees that nobody is there any more, and ends."""
        if self._open:
            self._open = False
            self._loop.watch(self._pair.fileno(), None, self._on_pair)
            self._pair.close()

    # -- the pair -------------------------------------------------------------------------------------

    def _say(self, kind: bytes, item: Any = b"") -> Moved:
        if not self._open:
            return _NOTHING
        if self._stuck and kind in (_DOWN, _UP):
            self._lost[0] += 1
            return _NOTHING
        self._said += 1
        self._stuck.append(kind + item)
        self._flush()
        if self._stuck:
            self._watch()
        return _NOTHING

    def _flush(self) -> None:
        while self._stuck:
            try:
                self._pair.send(self._stuck[0], socket.MSG_NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:  # it is gone: its end is told
                pass
            self._stuck.popleft()

    def _watch(self) -> None:
        if self._open:
            self._loop.watch(self._pair.fileno(), READ | (WRITE if self._stuck else 0), self._on_pair)

    def _on_pair(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if self._read():
            self._watch()
        else:  # why, is told when it has ended
            self._loop.watch(self._pair.fileno(), None, self._on_pair)
        self._changed()

    def _read(self) -> bool:
        """Some of what has come; False: no more will."""
        for _ in range(_ROUNDS):
            try:
                data = self._pair.recv(_MESSAGE_MAX)
            except (BlockingIOError, InterruptedError):
                return True
            except ConnectionResetError:
                continue  # it ended with something unread: told once, and before what it had said
            except OSError:
                data = b""
            if not data:
                return False
            self._heard(data[:1], data[1:])
        return True

    def _heard(self, kind: bytes, body: bytes) -> None:
        if kind == _FELL:
            self._owner.moved(Moved([], [body]))
        elif kind == _ROSE:
            self._owner.moved(Moved([body], []))
        elif kind == _STATE and len(body) == _STATE_BODY.size:
            self._done, self._lost[1], bits = _STATE_BODY.unpack(body)
            self._full, self._due = bool(bits & _FULL), bool(bits & _DUE)
            self.down_done, self.up_done = bool(bits & _DOWN_DONE), bool(bits & _UP_DONE)
            self._owner.moved(_NOTHING)
        elif kind == _MADE:
            self._owner.made()
        elif kind == _COUNTS:
            self._owner.context.counts.update(_counters(_unpacked(body)))
        elif kind == _FAILED:
            told = _unpacked(body)
            self._owner.broken(str(told.get("detail")), str(told.get("traceback") or ""))

    def _gone(self, why: str, _note: int) -> None:
        if not self._open:
            return
        # Its last words, though somebody else may have its end of the pair: what it has forked.
        for _ in range(_LAST_ROUNDS):
            if not self._read():
                break
        why = why or "the process of its chunnels ended"
        self._owner.broken(f"a chunnel's own code failed: {why}", why)
        self._changed()


def _unpacked(body: bytes) -> dict[str, Any]:
    """A map, whatever an author's process has sent."""
    try:
        found = msgpack.unpackb(body, max_ext_len=0)
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException):
        return {}
    return {k: v for k, v in found.items() if isinstance(k, str)} if isinstance(found, dict) else {}


def _counters(told: dict[str, Any]) -> dict[str, int]:
    numbers = [(k, v) for k, v in told.items() if isinstance(v, int) and 0 <= v < _COUNT_MAX]
    return dict(numbers[:_COUNTERS_MAX])


class _Worker:
    """The process's end."""

    def __init__(self, pair: socket.socket, recipe: Recipe, context: Context, progress: Progress) -> None:
        self._pair = pair
        self._recipe = recipe
        self._context = context
        self._progress = progress
        self._pipeline: Pipeline | None = None
        self._waiting: deque[bytes] = deque()
        self._ends = False
        self._done = 0
        self._lost = 0
        self._counted: dict[str, int] = {}
        self._out: list[bytes] = []

    def run(self) -> None:
        """Until the carrier lets go, or a chunnel fails."""
        lib.agent_die_with_parent()  # what blocks does not see that nobody is there any more
        pair = self._pair
        pair.setblocking(True)
        poll = select.poll()
        poll.register(pair, select.POLLIN)
        try:
            self._work(self._make)
            while True:
                if poll.poll(self._patience()):
                    data = pair.recv(_MESSAGE_MAX)
                    if not data:
                        break
                    self._work(self._take, data[:1], data[1:])
                else:
                    self._work(self._tick)
        except (BrokenPipeError, ConnectionResetError):
            pass
        except (ChunnelError, ChunnelArgumentError, UnknownChunnel) as error:
            self._fail(error.strerror or str(error), "")
        except Exception as error:
            self._fail(f"a chunnel's own code failed: {text_of(error, self._pipeline)}", traceback_of())
        if self._pipeline is not None:
            self._progress.say(True)
            self._pipeline.close()

    def _fail(self, detail: str, trace: str) -> None:
        self._progress.say(False)
        try:
            self._pair.send(
                _FAILED + msgpack.packb({"detail": detail, "traceback": trace}, unicode_errors="replace"),
                socket.MSG_NOSIGNAL,
            )
        except OSError:
            pass

    def _patience(self) -> float | None:
        """Milliseconds."""
        self._progress.say(True)
        due = self._pipeline.deadline() if self._pipeline is not None else None
        self._progress.say(False)
        return None if due is None else max(0.0, (due - self._context.clock()) * 1000 + 0.5)

    def _work(self, call: Callable[..., None], *args: Any) -> None:
        """Does something, and says what came of it: nobody is to have what was counted before the number."""
        self._progress.say(True)
        call(*args)
        pipeline = self._pipeline
        assert pipeline is not None
        bits = _DUE if pipeline.deadline() is not None or self._waiting else 0
        bits |= _FULL if pipeline.full_down or self._waiting else 0
        bits |= (_DOWN_DONE if pipeline.down_done else 0) | (_UP_DONE if pipeline.up_done else 0)
        written: dict[Any, Any] = dict(self._context.counts)
        counts = {str(k): v for k, v in written.items() if isinstance(v, int)}
        self._progress.say(False)
        if counts != self._counted:
            self._counted = counts
            self._send(
                _COUNTS + msgpack.packb({k: min(max(int(v), 0), _COUNT_MAX - 1) for k, v in counts.items()})
            )
        out, self._out = self._out, []
        for data in out:
            self._send(data)
        self._send(_STATE + _STATE_BODY.pack(self._done, self._lost, bits))

    def _send(self, data: bytes) -> None:
        if len(data) <= _MESSAGE_MAX:
            self._pair.send(data, socket.MSG_NOSIGNAL)
        else:  # it would not go over UDP either
            self._lost += 1

    def _make(self) -> None:
        outer, inner = self._recipe.pipes(self._context)
        self._pipeline = Pipeline([*inner, *outer])
        self._out.append(_MADE)
        self._moved(self._pipeline.start())

    def _take(self, kind: bytes, body: bytes) -> None:
        self._done += 1
        pipeline = self._pipeline
        assert pipeline is not None
        if kind == _DOWN and len(self._waiting) >= _WAITING_MAX:
            self._lost += 1
        elif kind == _DOWN:
            self._waiting.append(body)
        elif kind == _UP:
            self._moved(pipeline.up(body))
        elif kind == _DOWN_END:
            self._ends = True
        elif kind == _UP_END:
            self._moved(pipeline.up_end())
        self._push()

    def _tick(self) -> None:
        pipeline, now = self._pipeline, self._context.clock()
        assert pipeline is not None
        due = pipeline.deadline()
        if due is not None and due <= now:
            self._moved(pipeline.tick(now))
        self._push()

    def _push(self) -> None:
        pipeline = self._pipeline
        assert pipeline is not None
        while self._waiting and not pipeline.full_down:
            self._moved(pipeline.down(self._waiting.popleft()))
        if self._ends and not self._waiting:
            self._ends = False
            self._moved(pipeline.down_end())

    def _moved(self, moved: Moved) -> None:
        self._out += [_FELL + octets(item, "the network") for item in moved.down]
        self._out += [_ROSE + octets(item, "the program") for item in moved.up]
