"""The agent waits for nobody, though others have its sockets, too, and can take O_NONBLOCK off them."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import cast

import pytest

from bertha_socket.agent import addresses
from bertha_socket.agent.handlers import Caller, Ways
from bertha_socket.agent.kept import KEPT_SECONDS, Kept, Via
from bertha_socket.agent.letters import Letter, Letterbox
from bertha_socket.agent.loop import READ
from bertha_socket.agent.memory import netns_cookie
from bertha_socket.agent.reach import Reach
from bertha_socket.agent.responder import Responder
from bertha_socket.agent.secrets import Secrets
from bertha_socket.agent.sockets import Peer
from bertha_socket.agent.talk import Talk
from bertha_socket.negotiation.machine import NO_LISTENER, Initiator
from bertha_socket.negotiation.offer import Offer
from tests.agent.shim import in_namespace, listen
from tests.harness import NamespaceTrio


class Loop:
    now = 1000.0

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def watch(self, what: socket.socket | int, call: Callable[[], None], events: int = READ) -> None:
        self.calls.append(call)

    def unwatch(self, what: socket.socket | int) -> None:
        pass


def at_once(call: Callable[[], object], rescue: Callable[[], object]) -> None:
    """Fails if it waits; `rescue` then ends that."""
    thread = threading.Thread(target=call)
    thread.start()
    thread.join(2)
    waits = thread.is_alive()
    if waits:
        rescue()
        thread.join(10)
    assert not waits


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def question() -> Initiator:
    return Initiator("10.0.0.1", 80, Offer())


def test_a_talk_that_is_woken_for_nothing(stack: contextlib.ExitStack) -> None:
    ours, theirs = (stack.enter_context(s) for s in socket.socketpair())
    talk = Talk(Loop(), ours.dup())
    stack.callback(talk.close)
    talk.begin(question(), KEPT_SECONDS, lambda: None, lambda error: None)
    talk.flush()
    ours.setblocking(True)
    at_once(talk._ready, lambda: theirs.send(b"x"))


def test_a_talk_whose_other_end_does_not_read(stack: contextlib.ExitStack) -> None:
    ours, theirs = (stack.enter_context(s) for s in socket.socketpair())
    talk = Talk(Loop(), ours.dup())
    stack.callback(talk.close)
    with contextlib.suppress(BlockingIOError):
        while True:
            ours.send(bytes(65536), socket.MSG_DONTWAIT)
    talk.begin(question(), KEPT_SECONDS, lambda: None, lambda error: None)
    ours.setblocking(True)
    at_once(talk.flush, lambda: theirs.recv(1 << 20))


def test_a_talk_that_connects(stack: contextlib.ExitStack) -> None:
    there = stack.enter_context(listen())
    ours = stack.enter_context(socket.socket())
    talk = Talk(Loop(), ours.dup())
    stack.callback(talk.close)
    ours.setblocking(True)
    talk.connect(there.getsockname())
    assert not os.get_blocking(ours.fileno()), "or it had waited for a host that is not there"


@pytest.mark.net
@pytest.mark.parametrize("uid", [0, 65534])
@pytest.mark.parametrize(("elsewhere", "device"), [(True, b""), (True, b"lo"), (False, b"lo")])
def test_a_way_is_no_duplicate(
    stack: contextlib.ExitStack, netns: NamespaceTrio, elsewhere: bool, device: bytes, uid: int
) -> None:
    """Whose socket it is like cannot make connect() wait by it."""

    def make() -> socket.socket:
        found = stack.enter_context(socket.socket())
        if device:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
        return found

    theirs = in_namespace(netns.client.name, make) if elsewhere else make()
    cookie = netns_cookie(theirs.fileno())
    caller = cast(Caller, SimpleNamespace(peer=Peer(1, uid, uid)))
    kept = Kept(Loop())
    ways = Ways(theirs, None)
    via = kept.via(caller, cookie, ways)
    assert via is not None
    _, own = kept.way(caller, cookie, addresses.from_text("10.1.2.3"), ways, via)
    sock = stack.enter_context(own.tcp)
    assert netns_cookie(sock.fileno()) == cookie
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0") == device
    sock.setblocking(False)
    theirs.setblocking(True)
    assert not os.get_blocking(sock.fileno())
    here = stack.enter_context(socket.socket(socket.AF_UNIX))
    assert (netns_cookie(here.fileno()) == cookie) != elsewhere, "it has come back"


def test_a_way_of_another_user_that_cannot_be_had(
    stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its duplicate the agent would wait for as long as that user likes."""

    def refuse(of: socket.socket) -> None:
        raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr("bertha_socket.agent.kept.within_netns", refuse)
    theirs = stack.enter_context(socket.socket())
    kept, ways, addr = Kept(Loop()), Ways(theirs, None), addresses.from_text("10.1.2.3")
    other = cast(Caller, SimpleNamespace(peer=Peer(1, os.geteuid() + 1, 0)))
    with pytest.raises(OSError, match="no"):
        kept.way(other, 7, addr, ways, Via(other.peer.uid, b"", 0))
    ours = cast(Caller, SimpleNamespace(peer=Peer(1, os.geteuid(), 0)))
    kept.way(ours, 7, addr, ways, Via(ours.peer.uid, b"", 0))[1].tcp.close()


def test_a_letter(stack: contextlib.ExitStack) -> None:
    there, ours = (stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(2))
    there.bind(("127.0.0.1", 0))
    letter = Letter(Loop(), ours.dup(), question(), lambda event: None)
    stack.callback(letter.close)
    letter.send(there.getsockname())
    ours.setblocking(True)
    at_once(letter.look, lambda: there.sendto(b"x", ours.getsockname()))


def test_a_letterbox(stack: contextlib.ExitStack) -> None:
    there, other = (stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(2))
    there.bind(("127.0.0.1", 0))
    loop = Loop()
    box = Letterbox(loop, Secrets(), Reach(()), lambda *_: NO_LISTENER, lambda *_: None)
    stack.callback(box.close_all)
    box.open(1, there.dup())
    there.setblocking(True)

    def rescue() -> None:
        for _ in range(20):
            other.sendto(b"x", there.getsockname())

    at_once(loop.calls[0], rescue)


def test_who_accepts(stack: contextlib.ExitStack) -> None:
    there = stack.enter_context(listen())
    loop = Loop()
    registry = type("Registry", (), {"listeners": type("L", (), {"spaces": type("S", (), {})()})()})()
    responder = Responder(loop, registry, None, Secrets(), Reach(()))  # type: ignore[arg-type]
    stack.callback(responder.close)
    responder.listen(there.dup(), own=True)
    there.setblocking(True)
    at_once(loop.calls[0], lambda: stack.enter_context(socket.create_connection(there.getsockname())))
