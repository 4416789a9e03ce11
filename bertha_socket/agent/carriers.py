"""The carriers: processes beside the agent through which connections with chunnels run.

Started when the first connection needs one, each in a session of its own: they outlive the agent, which has
nothing to do with the bytes.  The agent gives them a socket for each shim, the secrets that `encrypt` needs,
and its judgement of plans that clients show; native/carrier/carrier.h has the rest.
"""

from __future__ import annotations

import importlib.util
import mmap
import os
import resource
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgpack

from bertha_socket.agent import memory
from bertha_socket.agent.interpreter import ROOT, import_path
from bertha_socket.agent.loop import READ, WRITE, Loop
from bertha_socket.agent.messages import CarrierKind
from bertha_socket.agent.model import Refused
from bertha_socket.agent.omissions import Omission, Omissions
from bertha_socket.agent.sockets import Peer
from bertha_socket.reasons import Reason as Why

#: Bytes of one message, either way (carrier/control.py, native/carrier/control.c).
MESSAGE_MAX: Final = 1 << 17
#: A carrier that ends so often (times, in seconds) is not started for a while: its fault would come again.
_FAILURES: Final = 5
_FAILURE_SECONDS: Final = 10.0
#: Bytes of the log that are kept, by carriers in Python and when another carrier starts.
_LOG_MAX: Final = 1 << 20
_NATIVE: Final = os.path.join(ROOT, "bertha_socket", "lib", "bertha-carrier")
#: As the agent itself is started (start.py): nothing of the environment decides what code runs.  Site
#: packages do come in, for chunnels that other packages bring.
_PYTHON: Final = (
    "import sys; paths = sys.argv[1].split(':'); sys.path += [p for p in paths if p not in sys.path]\n"
    "sys.path.insert(0, paths[0]); sys.argv[1:2] = []\n"
    "import runpy; runpy.run_module('bertha_socket.carrier', run_name='__main__', alter_sys=True)\n"
)

#: Addresses that a slot takes, rounded up (native/core/hop.c).
_SLOT_BYTES: Final = 520 * 1024
#: Native carriers of one agent.  Each is one thread, and may serve both ends of a connection of one host.
_NATIVE_MOST: Final = 4
#: Rights with which carriers of one user run at a time, and all that have yet to end.
_PLACES_MOST: Final = 4
_THEIRS_MOST: Final = 16
#: Messages that wait for a carrier: every context, and some shims, each of which is a descriptor of ours.
_WAITING_MAX: Final = 4096
_SHIMS_WAITING_MAX: Final = 64
#: Seconds for which one may wait: a carrier that has begun, on however busy a machine, has read it by then.
_PATIENCE: Final = 10.0
_RINGS: Final = importlib.util.find_spec("bertha_socket._rings") is not None

#: Whether a plan that a client shows may run at that listener: None, or one line why not.
Judge = Callable[[int, bytes], str | None]


class Context(NamedTuple):
    """The secrets of one listener, or (0) of everybody who has none of his own."""

    listener: int
    #: PEM texts; None: it has no certificate of its own, empty: it should, and has none that can be used.
    material: Mapping[str, str] | None
    key: bytes | None
    #: The users whose programs may have them, besides root's; of everybody's it says nothing.
    uids: tuple[int, ...] = ()

    def encode(self) -> bytes:
        return _pack(
            {
                "op": "context",
                "listener": self.listener,
                "material": None if self.material is None else dict(self.material),
                "key": self.key,
                "uids": list(self.uids),
            }
        )


def _pack(message: dict[str, object]) -> bytes:
    data: bytes = msgpack.packb(message)
    return data


def native_path() -> str | None:
    """The native carrier's program; None where it was not built."""
    return _NATIVE if os.access(_NATIVE, os.X_OK) else None


class _Place(NamedTuple):
    """Which carriers are alike: of AUTHORS, those with the same rights.  A program that has given up groups
    gets its own code run without them."""

    kind: CarrierKind
    uid: int
    gid: int
    groups: tuple[int, ...]


class _Waiting(NamedTuple):
    since: float
    data: bytes
    #: Our own.
    fds: tuple[int, ...]


@dataclass(eq=False, slots=True)
class Carrier:
    """One running carrier."""

    place: _Place
    process: subprocess.Popen[bytes]
    control: socket.socket
    pidfd: int
    since: float
    #: Its first byte: whether something waits.  The carrier sees it, and takes no connection meanwhile: what
    #: waits may be secrets that are meant for that one.
    behind: mmap.mmap
    shims: int = 0
    contexts: dict[int, bytes] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    alive: bool = True
    #: What it has had no room for yet.
    waiting: deque[_Waiting] = field(default_factory=deque)

    @property
    def kind(self) -> CarrierKind:
        """What it is for."""
        return self.place.kind

    @property
    def uid(self) -> int:
        """As whom it runs."""
        return self.place.uid

    @property
    def full(self) -> bool:
        """Whether no more shims may wait for it."""
        return sum(1 for message in self.waiting if message.fds) >= _SHIMS_WAITING_MAX

    def send(self, now: float, data: bytes, fds: tuple[int, ...] = ()) -> bool:
        """False when it does not take the message: it is gone, or hangs.  One that only begins has room for a
        few dozen; the others wait, and whoever has the loop calls `flush`."""
        if not self.waiting:
            try:
                self._put(data, fds)
                return True
            except BlockingIOError:
                pass
            except OSError:
                return False
        if len(self.waiting) >= _WAITING_MAX:
            return False
        self.behind[0] = 1
        self.waiting.append(_Waiting(now, data, tuple(os.dup(fd) for fd in fds)))
        return True

    def _put(self, data: bytes, fds: tuple[int, ...]) -> None:
        socket.send_fds(self.control, [data], fds, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def flush(self) -> bool:
        """What waits, as far as there is room.  False: it is gone."""
        try:
            while self.waiting:
                message = self.waiting[0]
                self._put(message.data, message.fds)
                for fd in self.waiting.popleft().fds:
                    os.close(fd)
            self.behind[0] = 0
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True

    def forget(self) -> None:
        """Of one that gets no more; where something waited, it sees that this will not come."""
        self.behind.close()
        while self.waiting:
            for fd in self.waiting.pop().fds:
                os.close(fd)


class Carriers:
    """The carriers of one agent."""

    def __init__(
        self,
        loop: Loop,
        judge: Judge,
        contexts: Callable[[], list[Context]],
        *,
        command: Callable[[CarrierKind], list[str] | None] | None = None,
        log: str | None = None,
        omissions: Omissions | None = None,
    ) -> None:
        """`log`: a file for what carriers write to their standard error; None: it goes where ours goes.
        `omissions`: what they are told for the connection log."""
        self._loop = loop
        self._command = command or command_of
        self._log = log
        self._judge = judge
        self._contexts = contexts
        self._omissions = omissions or Omissions()
        self._omissions.changed = self._tell_omission
        self._running: dict[_Place, list[Carrier]] = {}
        #: All children not yet buried.
        self._children: set[Carrier] = set()
        self._failures: dict[_Place, list[float]] = {}

    def __iter__(self) -> Any:
        return iter([c for c in self._children if c.alive])

    # -- what shims want ------------------------------------------------------------------------------

    def shim_socket(
        self,
        kind: CarrierKind,
        peer: Peer,
        sources: Mapping[str, str] | None = None,
        owner: Peer | None = None,
        groups: tuple[int, ...] = (),
    ) -> int:
        """A shim's end of a new connection to a carrier, which is started if need be; the caller's to close.

        `peer`: whose program it is of, as the kernel says.  For AUTHORS: `owner`, as whom the carrier is to
        run (not given: `peer`), with `groups` beside its own; `sources`: where such chunnels are, by name.
        Raises Refused, or OSError when there are no descriptors left.
        """
        sources = (sources or {}) if kind == CarrierKind.AUTHORS else {}
        brought = _pack({"op": "chunnels", "sources": dict(sources)})
        if len(brought) > MESSAGE_MAX:
            raise Refused(Why.NO_CARRIER)
        said = _pack({"op": "shim", "uid": peer.uid, "gid": peer.gid})
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                for _ in range(1 + most_of(kind)):  # those that have just died may not be known as dead yet
                    carrier = self._get(kind, owner or peer, groups)
                    if carrier.full:
                        raise Refused(Why.NO_CARRIER)
                    if sources and not carrier.sources.items() >= sources.items():
                        if not self._send(carrier, brought):
                            continue
                        carrier.sources.update(sources)
                    if self._send(carrier, said, (theirs.fileno(),)):
                        carrier.shims += 1
                        self._had_its_turn(carrier)
                        return ours.detach()
            except BaseException:
                ours.close()
                raise
        ours.close()
        raise Refused(Why.NO_CARRIER)

    def context_changed(self, context: Context) -> None:
        """Secrets have come, or have changed."""
        for carriers in list(self._running.values()):
            for carrier in list(carriers):
                self._give(carrier, context)

    def _tell_omission(self, omission: Omission) -> None:
        for carriers in list(self._running.values()):
            for carrier in list(carriers):
                self._tell(carrier, omission)

    def _tell(self, carrier: Carrier, omission: Omission) -> None:
        """Who comes to one user's listener is no affair of another user's process."""
        if carrier.uid in (os.geteuid(), omission.uid):
            self._send(carrier, omission.encode())

    def _get(self, kind: CarrierKind, peer: Peer, groups: tuple[int, ...]) -> Carrier:
        place = _Place(kind, os.geteuid(), os.getegid(), ())
        # The others run our own code alone, and serve everybody.
        if kind == CarrierKind.AUTHORS and peer.uid != os.geteuid():
            place = _Place(kind, peer.uid, peer.gid, tuple(sorted(set(groups))))
            self._make_room(place)
        carriers = self._running.setdefault(place, [])
        first = carriers[0] if carriers else None
        turn = next((c for c in carriers if not c.waiting), first)
        if turn is not None and (turn.shims == 0 or len(carriers) >= most_of(kind)):
            return turn
        try:
            carrier = self._start(place)
        except Refused:
            if turn is None:
                raise
            return turn
        if carrier.alive:
            carriers.insert(0, carrier)
        for context in self._contexts():
            self._give(carrier, context)
        for omission in self._omissions:
            self._tell(carrier, omission)
        return carrier if carrier.alive or turn is None else turn

    def _make_room(self, place: _Place) -> None:
        """A user whose programs have ever other groups does not get ever more carriers.  Raises Refused."""
        for other in [p for p, carriers in self._running.items() if not carriers]:
            del self._running[other]
        for other in [p for p, times in self._failures.items() if self._is_long_ago(times)]:
            del self._failures[other]
        if place in self._running:
            return
        theirs = [c for c in self._children if c.uid == place.uid]
        if len(theirs) >= _THEIRS_MOST:
            raise Refused(Why.NO_CARRIER)
        serving = sorted((c for c in theirs if c.alive), key=lambda c: c.since)
        for carrier in serving[: max(0, len(serving) - _PLACES_MOST + 1)]:
            self._drop(carrier)

    def _is_long_ago(self, failures: list[float]) -> bool:
        return all(self._loop.now - t >= _FAILURE_SECONDS for t in failures)

    def _had_its_turn(self, carrier: Carrier) -> None:
        """By turns, and not by counts: one that was started anew does not get all that come."""
        carriers = self._running[carrier.place]
        carriers.remove(carrier)
        carriers.append(carrier)

    def _send(self, carrier: Carrier, data: bytes, fds: tuple[int, ...] = ()) -> bool:
        """False: it was dropped."""
        if not carrier.alive:
            return False
        waited = bool(carrier.waiting)
        if not carrier.send(self._loop.now, data, fds):
            self._drop(carrier)
            return False
        if carrier.waiting and not waited:
            self._watch(carrier, READ | WRITE)
        return True

    def _watch(self, carrier: Carrier, events: int) -> None:
        self._loop.watch(carrier.control, lambda: self._event(carrier), events)

    def _event(self, carrier: Carrier) -> None:
        if carrier.waiting:
            if not carrier.flush():
                self._drop(carrier)
            elif not carrier.waiting:
                self._watch(carrier, READ)
        self._readable(carrier)

    def _give(self, carrier: Carrier, context: Context) -> None:
        """One that cannot be told gets no new connections: it would go by what was before."""
        if carrier.uid != os.geteuid():  # another user's process could be made to tell the cluster's secret
            context = Context(context.listener, None, None)
        data = context.encode()
        if carrier.contexts.get(context.listener) != data:
            carrier.contexts[context.listener] = data
            self._send(carrier, data)

    def deadline(self) -> float | None:
        """When one of them has let something wait for too long; None: nothing waits."""
        return min((c.waiting[0].since + _PATIENCE for c in self._children if c.waiting), default=None)

    def tick(self, now: float) -> None:
        """Gives those up that do not read: the programs that wait for them ask for another one."""
        for carrier in list(self._children):
            if carrier.waiting and now - carrier.waiting[0].since >= _PATIENCE:
                self._drop(carrier)

    # -- starting and ending --------------------------------------------------------------------------

    def _start(self, place: _Place) -> Carrier:
        kind = place.kind
        failures = [t for t in self._failures.get(place, []) if self._loop.now - t < _FAILURE_SECONDS]
        self._failures[place] = failures
        command = self._command(kind)
        if command is None or len(failures) >= _FAILURES:
            raise Refused(Why.NO_CARRIER)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                command += ["--control", str(theirs.fileno())]
                log = self._open_log(place.uid)
                if log is not None and kind != CarrierKind.NATIVE:  # which writes none
                    command += ["--log-max", str(_LOG_MAX)]
                try:
                    process = _spawn(command, theirs.fileno(), place, log)
                finally:
                    if log is not None:
                        os.close(log)
            pidfd = os.pidfd_open(process.pid)
            page = memory.make_page("bertha-behind")
        except OSError as error:
            ours.close()
            failures.append(self._loop.now)
            raise Refused(Why.NO_CARRIER) from error
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MESSAGE_MAX)
        carrier = Carrier(place, process, ours, pidfd, self._loop.now, mmap.mmap(page, mmap.PAGESIZE))
        self._children.add(carrier)
        self._watch(carrier, READ)
        self._loop.watch(pidfd, lambda: self._ended(carrier))
        self._send(carrier, _pack({"op": "behind"}), (page,))
        os.close(page)
        return carrier

    def _open_log(self, uid: int) -> int | None:
        if uid != os.geteuid():
            return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)  # others do not fill our folder
        if self._log is None:
            return None
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(self._log, flags, 0o600)
        if os.fstat(fd).st_size > _LOG_MAX:
            os.ftruncate(fd, 0)
        return fd

    def _drop(self, carrier: Carrier) -> None:
        """No new work for it: it ends by itself when its connections have ended."""
        if not carrier.alive:
            return
        carrier.alive = False
        carriers = self._running.get(carrier.place, [])
        if carrier in carriers:
            carriers.remove(carrier)
        self._loop.unwatch(carrier.control)
        carrier.control.close()
        carrier.forget()

    def _ended(self, carrier: Carrier) -> None:
        self._drop(carrier)
        self._loop.unwatch(carrier.pidfd)
        os.close(carrier.pidfd)
        self._children.discard(carrier)
        if carrier.process.wait() != 0:
            self._failures.setdefault(carrier.place, []).append(self._loop.now)

    def close(self) -> None:
        """The agent ends; carriers go on with the connections that they have."""
        for carrier in list(self._children):
            self._drop(carrier)
            self._loop.unwatch(carrier.pidfd)
            os.close(carrier.pidfd)
            carrier.process.returncode = 0  # init's child from now on, and not to be waited for
        self._children.clear()

    # -- what carriers ask ----------------------------------------------------------------------------

    def _readable(self, carrier: Carrier) -> None:
        if not carrier.alive:
            return
        try:
            data = carrier.control.recv(MESSAGE_MAX, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        message = parse(data)
        if message is None:
            self._drop(carrier)
        elif message["op"] == "check":
            why: str | None = "the server's agent failed at this plan, by a fault of its own"
            try:
                why = self._judge(message["listener"], message["plan"])
            finally:  # whoever waits for it would wait for ever
                answer = {"op": "verdict", "id": message["id"], "ok": why is None, "why": why or ""}
                self._send(carrier, _pack(answer))

    def facts(self) -> list[dict[str, object]]:
        """For STATUS."""
        return [
            {"pid": c.process.pid, "kind": c.kind.name.lower(), "uid": c.uid, "shims": c.shims}
            for c in sorted(self._children, key=lambda c: c.process.pid)
            if c.alive
        ]


def parse(data: bytes) -> dict[str, Any] | None:
    """A carrier's message, checked; None when it makes no sense.  Operations that are not known pass."""
    try:
        message = msgpack.unpackb(data, max_map_len=64, max_array_len=64, max_ext_len=0)
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException):
        return None
    if not isinstance(message, dict) or not isinstance(message.get("op"), str):
        return None
    if message["op"] == "check":
        numbers = [message.get("id"), message.get("listener")]
        if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 64 for n in numbers):
            return None
        if not isinstance(message.get("plan"), bytes):
            return None
    return message


def has_rings(kind: CarrierKind) -> bool:
    """Whether such a carrier can be reached over rings.

    It has our limits, and maps no link that is more than a small part of them (native/core/room.c); one in
    Python has them in an extension.
    """
    slots = 1024 if kind == CarrierKind.NATIVE else 255
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    room = limit == resource.RLIM_INFINITY or limit // 16 > slots * _SLOT_BYTES
    return room and (kind == CarrierKind.NATIVE or _RINGS)


def most_of(kind: CarrierKind) -> int:
    """How many carriers of this kind programs are spread over: one for each processor, within a bound.

    Of those in Python one: an interpreter is 30 MB, and its chunnels may count on one process.
    """
    return min(len(os.sched_getaffinity(0)), _NATIVE_MOST) if kind == CarrierKind.NATIVE else 1


def command_of(kind: CarrierKind) -> list[str] | None:
    """How a carrier is started; None: it is not there."""
    if kind == CarrierKind.NATIVE:
        program = native_path()
        return None if program is None else [program]
    if not sys.executable:
        return None
    return [sys.executable, "-I", "-c", _PYTHON, import_path()]


def _spawn(command: list[str], control: int, place: _Place, log: int | None) -> subprocess.Popen[bytes]:
    """Raises OSError."""
    user: dict[str, Any] = {}
    if place.uid != os.geteuid():
        user = {"user": place.uid, "group": place.gid, "extra_groups": place.groups}
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            pass_fds=(control,),
            cwd="/",
            start_new_session=True,  # what ends the agent's terminal or its group does not end connections
            restore_signals=True,
            **user,
        )
    except subprocess.SubprocessError as error:  # it could not become the user
        raise OSError(0, str(error)) from error
