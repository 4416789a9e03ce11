"""Carriers: started once, told the secrets, asked about plans, buried, and left alone when the agent ends."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertha_socket.agent import carriers
from bertha_socket.agent.carriers import Carriers, Context
from bertha_socket.agent.messages import CarrierKind
from bertha_socket.agent.model import Refused
from bertha_socket.agent.omissions import Omission, Omissions
from bertha_socket.agent.sockets import Peer
from bertha_socket.dag import Need
from bertha_socket.negotiation.offer import Offer, OfferedChunnel
from bertha_socket.negotiation.plan import Omitted, Plan
from tests.harness import eventually

#: A carrier that tells its shims what it hears on its control socket, and asks what they tell it to ask.
_FAKE = """
import os, selectors, socket, sys
import msgpack
control = socket.socket(fileno=int(sys.argv[sys.argv.index("--control") + 1]))
selector = selectors.DefaultSelector()
selector.register(control, selectors.EVENT_READ)
heard, shims = [], []
print("carrier", os.getpid(), file=sys.stderr, flush=True)
while selector.get_map():
    for key, _ in selector.select():
        if key.fileobj is control:
            data, fds, _, _ = socket.recv_fds(control, 65536, 4)
            if not data:
                selector.unregister(control)
                continue
            if msgpack.unpackb(data)["op"] == "behind":
                os.close(fds[0])
                continue
            heard.append(data)
            for fd in fds:
                shims.append(socket.socket(fileno=fd))
                selector.register(shims[-1], selectors.EVENT_READ)
                for old in heard:
                    shims[-1].send(old)
            if not fds:
                for shim in shims:
                    shim.send(data)
        else:
            data = key.fileobj.recv(65536)
            if not data:
                selector.unregister(key.fileobj)
            elif data == b"fail":
                os._exit(3)
            else:
                control.send(data)
"""


class Loop:
    """As much of the agent's loop as it takes."""

    def __init__(self) -> None:
        self.now = time.monotonic()
        self._selector = selectors.DefaultSelector()

    def watch(self, what: Any, call: Callable[[], None], events: int = selectors.EVENT_READ) -> None:
        if what in self._selector.get_map():
            self._selector.modify(what, events, call)
        else:
            self._selector.register(what, events, call)

    def unwatch(self, what: Any) -> None:
        self._selector.unregister(what)

    def turn(self) -> bool:
        """What there is to do now; True, for `eventually`."""
        self.now = time.monotonic()
        for key, _ in self._selector.select(0):
            key.data()
        return True

    def close(self) -> None:
        self._selector.close()


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


class Rig:
    """Carriers, with a fake program."""

    def __init__(self, loop: Loop, log: Path) -> None:
        self.loop = loop
        self.log = log
        self.judged: list[tuple[int, bytes]] = []
        self.answer: str | None = None
        self.known = [Context(0, {"certificate": "c"}, b"k" * 32)]
        self.omissions = Omissions()
        self.program: list[str] | None = [sys.executable, "-c", _FAKE]
        self.carriers = Carriers(
            loop,
            self._judge,
            lambda: self.known,
            command=lambda kind: list(self.program) if self.program else None,
            log=str(log),
            omissions=self.omissions,
        )
        self.peer = Peer(os.getpid(), os.geteuid(), os.getegid())
        self.pids: set[int] = set()

    def _judge(self, listener: int, plan: bytes) -> str | None:
        self.judged.append((listener, plan))
        return self.answer

    def shim(
        self,
        kind: CarrierKind = CarrierKind.PYTHON,
        peer: Peer | None = None,
        sources: dict[str, str] | None = None,
        owner: Peer | None = None,
        groups: tuple[int, ...] = (),
    ) -> socket.socket:
        fd = self.carriers.shim_socket(kind, peer or self.peer, sources, owner, groups)
        sock = socket.socket(fileno=fd)
        sock.settimeout(10)
        self.pids |= {fact["pid"] for fact in self.facts()}
        return sock

    def facts(self) -> list[dict[str, Any]]:
        return self.carriers.facts()

    def turn_until(self, look: Callable[[], Any], what: str) -> None:
        eventually(lambda: self.loop.turn() and look(), what)

    def hear(self, sock: socket.socket) -> dict[str, Any]:
        """The next message that the carrier repeats to a shim."""
        sock.setblocking(False)
        found: list[bytes] = []

        def look() -> bool:
            with contextlib.suppress(BlockingIOError):
                found.append(sock.recv(65536))
            return bool(found)

        self.turn_until(look, "a message of the carrier")
        message: dict[str, Any] = msgpack.unpackb(found[0])
        return message


@pytest.fixture
def rig(loop: Loop, tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(loop, tmp_path / "carriers.log")
    yield rig
    rig.carriers.close()
    for pid in rig.pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).wait(10)  # without agent and shims they end by themselves
            continue
    assert not [p for p in rig.pids if psutil.pid_exists(p) and psutil.Process(p).status() != "zombie"]


def test_one_for_all_shims(rig: Rig) -> None:
    with rig.shim() as one, rig.shim() as two, rig.shim(CarrierKind.NATIVE) as native:
        assert sorted((f["kind"], f["shims"]) for f in rig.facts()) == [("native", 1), ("python", 2)]
        for sock in (one, two, native):
            assert rig.hear(sock)["op"] == "context"
            assert rig.hear(sock)["op"] == "shim"


def test_native_ones_are_as_many_as_processors(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is one thread: the two ends of a connection of one host shall not wait for each other in it."""
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2})
    shims = [rig.shim(CarrierKind.NATIVE) for _ in range(5)]
    assert sorted(f["shims"] for f in rig.facts()) == [1, 2, 2]
    for sock in shims:
        assert [rig.hear(sock)["op"] for _ in range(2)] == ["context", "shim"]
    rig.program = None  # no more can be started: those that there are serve
    os.kill(min(f["pid"] for f in rig.facts()), signal.SIGKILL)
    rig.turn_until(lambda: len(rig.facts()) == 2, "the end of one")
    shims += [rig.shim(CarrierKind.NATIVE) for _ in range(2)]
    assert len(rig.facts()) == 2
    for sock in shims:
        sock.close()


def test_more_secrets_than_there_is_room_for(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A carrier that begins reads nothing yet: what it has no room for waits, and the shims behind it."""
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    rig.known = [Context(n, {"certificate": "c" * 5000}, b"k" * 32) for n in range(100)]
    with rig.shim(CarrierKind.NATIVE) as one, rig.shim(CarrierKind.NATIVE) as two:
        assert len(rig.facts()) == 2
        for sock in (one, two):
            said = [rig.hear(sock) for _ in range(101)]
            assert [message.get("listener") for message in said] == [*range(100), None]
            assert said[-1]["op"] == "shim"


def test_secrets_come_first_and_again_when_they_change(rig: Rig) -> None:
    with rig.shim() as sock:
        assert rig.hear(sock) == rig.known[0]._asdict() | {"op": "context", "uids": []}
        assert rig.hear(sock) == {"op": "shim", "uid": rig.peer.uid, "gid": rig.peer.gid}
        rig.carriers.context_changed(rig.known[0])  # the same: nothing to tell
        rig.carriers.context_changed(Context(7, None, None))
        assert rig.hear(sock) == {"op": "context", "listener": 7, "material": None, "key": None, "uids": []}


def test_why_clients_come_plainly_is_told_beforehand_and_when_it_changes(rig: Rig) -> None:
    """For the connection log; of one that is no more, that there is nothing to say of it any more."""
    listener = type("Listener", (), {"id": 7, "uid": os.geteuid()})()
    omitted = Plan(omitted=(Omitted("compress", "no wire in common"),))
    rig.omissions.answered(listener, bytes(16), omitted)
    why = "left out: compress: no wire in common (as was last agreed with its host)"
    with rig.shim() as sock:
        told = {"op": "plain", "listener": 7, "host": bytes(16)}
        heard = [rig.hear(sock) for _ in range(3)]
        assert [m["op"] for m in heard] == ["context", "plain", "shim"]
        assert heard[1] == told | {"why": why}
        rig.omissions.answered(listener, bytes(16), omitted)  # the same: nothing to tell
        rig.omissions.answered(listener, bytes(16), Plan())
        assert rig.hear(sock) == told | {"why": ""}
        rig.omissions.answered(listener, b"x" * 16, omitted)
        rig.omissions.drop(7)
        assert [rig.hear(sock)["why"] for _ in range(2)] == [why, ""]


def test_who_asks_makes_nobody_forget_what_is_said_of_everybody(rig: Rig) -> None:
    listener = type("Listener", (), {"id": 7, "uid": os.geteuid()})()
    server = Offer((OfferedChunnel("compress", need=Need.PREFER),))
    rig.omissions.settled(listener, [server])
    for number in range(600):
        plan = Plan(omitted=(Omitted("compress", "x"),))
        rig.omissions.answered(listener, number.to_bytes(16, "big"), plan)
    known = [omission.host for omission in rig.omissions]
    assert len(known) == 512 and b"" in known and (599).to_bytes(16, "big") in known


@pytest.mark.parametrize(("uid", "told"), [(65534, 1), (65533, 0)])
def test_whose_clients_are_told_of(rig: Rig, monkeypatch: pytest.MonkeyPatch, uid: int, told: int) -> None:
    """Another user's carrier hears of that user's listeners alone."""
    sent: list[bytes] = []
    monkeypatch.setattr(rig.carriers, "_send", lambda carrier, data: sent.append(data))
    theirs = type("Carrier", (), {"uid": 65534})()
    rig.carriers._tell(theirs, Omission(7, b"", "left out: x: y", uid))
    assert len(sent) == told


def test_a_policys_own_chunnels_are_told_first(rig: Rig) -> None:
    sources = {"rot": "/x/rot.py:Rot"}
    kind = CarrierKind.AUTHORS
    with rig.shim(kind), rig.shim(kind, sources=sources), rig.shim(kind, sources=sources) as sock:
        heard = [rig.hear(sock) for _ in range(5)]
        assert [m["op"] for m in heard] == ["context", "shim", "chunnels", "shim", "shim"]
        assert heard[2]["sources"] == sources
        assert [f["shims"] for f in rig.facts()] == [3]


def test_whose_program_it_is(rig: Rig) -> None:
    """By the kernel's word, also where the carrier is the user's who owns its listener."""
    worker = Peer(os.getpid(), 65534, 65533)
    with rig.shim() as mine, rig.shim(peer=worker) as one:
        assert [rig.hear(mine) for _ in range(2)][1]["uid"] == os.geteuid()
        assert [rig.hear(one) for _ in range(3)][-1] == {"op": "shim", "uid": 65534, "gid": 65533}
    with rig.shim(CarrierKind.AUTHORS, worker, owner=rig.peer) as other:
        assert [rig.hear(other) for _ in range(2)][-1] == {"op": "shim", "uid": 65534, "gid": 65533}
        assert {f["uid"] for f in rig.facts()} == {os.geteuid()}


def test_verdicts(rig: Rig) -> None:
    with rig.shim() as sock:
        rig.hear(sock)
        rig.hear(sock)
        for number, why in enumerate((None, "not that plan")):
            rig.answer = why
            sock.send(msgpack.packb({"op": "check", "id": number, "listener": 5, "plan": b"p", "peer": "x"}))
            verdict = rig.hear(sock)
            assert verdict == {"op": "verdict", "id": number, "ok": why is None, "why": why or ""}
        assert rig.judged == [(5, b"p"), (5, b"p")]


def test_nonsense_ends_the_conversation(rig: Rig) -> None:
    with rig.shim() as sock:
        sock.send(b"nonsense")
        rig.turn_until(lambda: not rig.facts(), "the end")
    with rig.shim():
        assert len(rig.facts()) == 1


def test_one_that_died_is_replaced(rig: Rig) -> None:
    with rig.shim() as sock:
        (before,) = rig.facts()
        sock.send(b"fail")
        eventually(lambda: psutil.Process(before["pid"]).status() == "zombie", "its end")
    with rig.shim() as sock:  # the agent has not looked yet
        (after,) = rig.facts()
        assert after["pid"] != before["pid"]
        rig.turn_until(lambda: not psutil.pid_exists(before["pid"]), "its burial")


def test_one_that_always_dies_is_given_up(rig: Rig) -> None:
    rig.program = [sys.executable, "-c", "import sys; sys.exit(1)"]
    started = 0
    with contextlib.suppress(Refused):
        while started < 50:
            rig.shim().close()
            started += 1
            rig.turn_until(lambda: not rig.facts(), "its end")
    assert 0 < started < 50


def test_a_program_that_is_not_there(rig: Rig) -> None:
    for program in (None, ["/nonexistent/carrier"]):
        rig.program = program
        with pytest.raises(Refused):
            rig.shim()
    assert not rig.facts()


def test_it_survives_the_agent(rig: Rig) -> None:
    with rig.shim() as sock:
        (fact,) = rig.facts()
        process = psutil.Process(fact["pid"])
        assert os.getsid(process.pid) == process.pid
        rig.carriers.close()
        sock.setblocking(True)
        sock.settimeout(10)
        assert sock.recv(65536) and process.status() != "zombie"
    eventually(lambda: process.status() == "zombie", "its end after its last shim")
    os.waitpid(process.pid, 0)


def test_its_words_are_logged(rig: Rig) -> None:
    rig.log.write_bytes(b"x" * (2 << 20))
    with rig.shim():
        (fact,) = rig.facts()
        eventually(lambda: rig.log.read_text() == f"carrier {fact['pid']}\n", "the log")


def groups_of(pid: int) -> tuple[int, list[int]]:
    """A process's group, and those beside it."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines["Gid"].split()[0]), [int(word) for word in lines["Groups"].split()]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can serve another user")
def test_a_programs_groups_are_its_carriers(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not its user's: it may have given some up.  Programs with other groups have another carrier."""
    monkeypatch.setattr(os, "getgrouplist", lambda name, group: [group, 999])
    rig.program = ["/bin/sh", "-c", "exec sleep 100", "sh"]
    rights = [(65534, ()), (65534, (65534,)), (65534, (65534, 4321)), (65533, ())]
    try:
        for gid, groups in (*rights, *rights):
            peer = Peer(os.getpid(), 65534, gid)
            rig.shim(CarrierKind.AUTHORS, peer, groups=groups).close()
        assert [f["shims"] for f in rig.facts()] == [2] * 4
        found = [groups_of(f["pid"]) for f in rig.facts()]
        assert sorted(found) == sorted((gid, sorted(groups)) for gid, groups in rights)
    finally:
        for pid in rig.pids:
            os.kill(pid, signal.SIGTERM)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can serve another user")
def test_a_user_with_ever_other_groups(rig: Rig) -> None:
    """Has a few carriers that serve, and is refused more while others have yet to end."""
    rig.program = ["/bin/sh", "-c", "exec sleep 100", "sh"]
    peer = Peer(os.getpid(), 65534, 65534)
    try:
        for i in range(16):
            rig.shim(CarrierKind.AUTHORS, peer, groups=(5000 + i,)).close()
            assert len(rig.facts()) <= 4
        with pytest.raises(Refused):
            rig.shim(CarrierKind.AUTHORS, peer, groups=(6000,))
        rig.shim(CarrierKind.AUTHORS, peer, groups=(5015,)).close()
        rig.shim(CarrierKind.AUTHORS).close()  # another user's
    finally:
        for pid in rig.pids:
            os.kill(pid, signal.SIGTERM)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can serve another user")
def test_another_user_has_its_own_and_no_secrets(rig: Rig) -> None:
    # Another user may be unable to reach this interpreter.
    rig.program = ["/bin/sh", "-c", "exec sleep 100", "sh"]
    rig.shim().close()
    nobody = Peer(os.getpid(), 65534, 65534)
    rig.shim(peer=nobody).close()
    assert [f["shims"] for f in rig.facts()] == [2]  # our own code serves all
    rig.shim(CarrierKind.AUTHORS, nobody, {"rot": "/home/nobody/rot.py:Rot"}).close()
    mine, theirs = sorted(rig.carriers, key=lambda c: c.uid)
    try:
        for carrier, uid in ((mine, 0), (theirs, 65534)):
            process = psutil.Process(carrier.process.pid)
            assert process.uids() == (uid, uid, uid) and process.gids() == (uid, uid, uid)
        assert mine.contexts == {0: rig.known[0].encode()}
        assert theirs.contexts == {0: Context(0, None, None).encode()}
    finally:
        for carrier in (mine, theirs):
            carrier.process.terminate()
        rig.turn_until(lambda: not rig.facts(), "their end")


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    found = carriers.parse(data)
    assert found is None or isinstance(found["op"], str)


_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.binary(max_size=9), st.text()
)


@given(st.dictionaries(st.sampled_from(["op", "id", "listener", "plan", "more"]), _VALUES))
def test_any_map(message: dict[str, Any]) -> None:
    for op in ("check", "idle"):
        found = carriers.parse(msgpack.packb(message | {"op": op}))
        if op == "check":
            numbers = (message.get("id"), message.get("listener"))
            good = all(type(n) is int and n >= 0 for n in numbers) and type(message.get("plan")) is bytes
            assert (found is not None) is good
        else:
            assert found is not None


def test_nested_deeply() -> None:
    assert carriers.parse(b"\x91" * 5000 + b"\xc0") is None


def test_no_old_secrets_for_one_that_does_not_listen(rig: Rig) -> None:
    """Whoever cannot be told of a change gets no new connections: it would go by what was before."""
    rig.program = [sys.executable, "-c", "import time; time.sleep(60)"]
    rig.shim().close()
    (first,) = rig.carriers
    try:
        for number in range(100_000):
            if not rig.facts():
                break
            rig.carriers.context_changed(Context(1, {"certificate": "c" * 4000 + str(number)}, b"k" * 32))
        assert not rig.facts(), "it was told nothing, and is taken for one that knows"
        rig.known.append(Context(1, {"certificate": "the last"}, b"k" * 32))
        rig.shim().close()
        (second,) = rig.carriers
        assert second is not first and second.contexts[1] == rig.known[1].encode()
        second.process.terminate()
        for number in range(100_000):
            sources = {f"rot{number}": "/x/" + "y" * 4000}
            try:
                rig.shim(CarrierKind.AUTHORS, sources=sources).close()
            except Refused:  # too many wait for it
                rig.carriers.tick(rig.loop.now + 60)
            if len(rig.pids) > 3:
                break
        for carrier in rig.carriers:
            if carrier.kind == CarrierKind.AUTHORS:
                assert carrier.sources == sources
                carrier.process.terminate()
    finally:
        for pid in rig.pids:
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(pid).kill()


#: One that says nothing, keeps what it is given, and ends with its agent.
_QUIET = """
import socket, sys
control = socket.socket(fileno=int(sys.argv[sys.argv.index("--control") + 1]))
while socket.recv_fds(control, 1 << 17, 4)[0]:
    pass
"""


class Stopped:
    """Carriers of which some have stopped reading."""

    def __init__(self, rig: Rig) -> None:
        rig.program = [sys.executable, "-c", _QUIET]
        self.rig = rig
        self.pids: list[int] = []

    def stop(self, pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        self.pids.append(pid)

    def fill(self, pid: int) -> None:
        """Tells them all so much that for this one something waits."""
        (carrier,) = (c for c in self.rig.carriers if c.process.pid == pid)
        number = 0
        while not carrier.waiting:
            number += 1
            assert number < 1000
            self.rig.carriers.context_changed(Context(1, {"certificate": "c" * 4000 + str(number)}, None))
            while any(c.waiting for c in self.rig.carriers if c is not carrier):
                self.rig.loop.turn()


@pytest.fixture
def stopped(rig: Rig) -> Iterator[Stopped]:
    stopped = Stopped(rig)
    yield stopped
    for pid in stopped.pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def test_one_that_does_not_read_is_passed_over(
    rig: Rig, stopped: Stopped, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    with rig.shim(CarrierKind.NATIVE), rig.shim(CarrierKind.NATIVE):
        hung, good = (c.process.pid for c in sorted(rig.carriers, key=lambda c: c.since))
        stopped.stop(hung)
        stopped.fill(hung)
        shims = [rig.shim(CarrierKind.NATIVE) for _ in range(6)]
        assert {f["pid"]: f["shims"] for f in rig.facts()} == {hung: 1, good: 7}
        for sock in shims:
            sock.close()


def test_one_that_does_not_read_is_given_up(rig: Rig, stopped: Stopped) -> None:
    """With what waits for it; whoever comes next gets another one."""
    with rig.shim():
        (hung,) = (f["pid"] for f in rig.facts())
        assert rig.carriers.deadline() is None
        stopped.stop(hung)
        stopped.fill(hung)
        began = len(os.listdir("/proc/self/fd"))
        waiting = [rig.shim() for _ in range(64)]
        assert [f["shims"] for f in rig.facts()] == [65]
        with pytest.raises(Refused):  # each has a descriptor of the agent's
            rig.shim()
        due = rig.carriers.deadline()
        assert due is not None and rig.loop.now < due < rig.loop.now + 30
        rig.carriers.tick(due - 0.1)
        assert [f["pid"] for f in rig.facts()] == [hung]
        rig.carriers.tick(due)
        assert not rig.facts() and rig.carriers.deadline() is None
        for sock in waiting:
            sock.settimeout(10)
            assert sock.recv(1) == b""
            sock.close()
        assert len(os.listdir("/proc/self/fd")) < began
        with rig.shim():
            assert [f["pid"] for f in rig.facts()] != [hung]


def test_one_that_reads_slowly_is_kept(rig: Rig, stopped: Stopped) -> None:
    """The patience is with each message."""
    with rig.shim():
        (slow,) = (f["pid"] for f in rig.facts())
        stopped.stop(slow)
        stopped.fill(slow)
        due = rig.carriers.deadline()
        assert [carrier.behind[0] for carrier in rig.carriers] == [1]
        os.kill(slow, signal.SIGCONT)
        rig.turn_until(lambda: rig.carriers.deadline() is None, "its reading")
        assert due is not None
        rig.carriers.tick(due + 1)
        assert [carrier.behind[0] for carrier in rig.carriers] == [0]
        assert [f["pid"] for f in rig.facts()] == [slow]
