"""Namespaces: who can wake the agent at will takes a small part of its time."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from bertha_socket.agent.spaces import Namespace, Spaces


class Loop:
    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def watch(self, what: socket.socket, call: Callable[[], None]) -> None:
        self.calls.append(call)

    def unwatch(self, what: socket.socket) -> None:
        self.calls.clear()


def test_looks_take_a_small_part_of_the_time() -> None:
    looked: list[float] = []

    def look(space: Namespace) -> None:
        looked.append(time.monotonic())
        time.sleep(0.02)

    loop, spaces = Loop(), Spaces(look)
    spaces.watcher = loop
    route, waker = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    diag, other = socket.socketpair()
    with route, waker, diag, other:
        spaces.adopt(Namespace(1000, 1, route, diag, listeners=1))
        for _ in range(10):
            waker.send(b"news")
            loop.calls[0]()
            spaces.tick(time.monotonic())
        assert len(looked) == 1  # at once, and then not
        due = spaces.deadline()
        assert due is not None and 0.2 < due - looked[0] < 2
        spaces.tick(due)  # what has changed meanwhile is not forgotten
        assert len(looked) == 2
        assert spaces.deadline() is None
