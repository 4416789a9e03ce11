"""Servers that several of the program tests use."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.harness import Host, Namespace, Program, free_port, require_program

StartRedis = Callable[..., tuple[Program, int]]


@pytest.fixture
def start_redis() -> StartRedis:
    """`start_redis(host, shim=, netns=, address=, listed=)`: the running server and its port."""

    def start(
        host: Host,
        *,
        shim: bool = True,
        netns: Namespace | None = None,
        address: str = "127.0.0.1",
        listed: bool = True,
    ) -> tuple[Program, int]:
        server = require_program("redis-server")
        port = free_port()
        command = [server, "--port", str(port), "--bind", address, "--dir", str(host.dir)]
        command += ["--save", "", "--appendonly", "no", "--protected-mode", "no"]
        return host.server(command, port, shim=shim, netns=netns, listed=listed), port

    return start
