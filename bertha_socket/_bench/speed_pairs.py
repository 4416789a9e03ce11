"""The programs of ``bertha bench speed`` that are told apart by nothing but their commands.

A server that says when it is ready, and a client that runs for some time and prints a JSON object:
``requests``, ``wall_ns``, ``cpu_ns``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from bertha_socket._bench import tools
from bertha_socket._bench.report import Sample
from bertha_socket._bench.speed_load import Ground, made_sample
from bertha_socket._bench.stage import Shim
from bertha_socket._bench.variants import Variant

#: From the ground, the address and the port: a command.
Command = Callable[[Ground, str, int], list[str]]


@dataclass
class Pair:
    """Both ends by their commands."""

    ground: Ground
    variant: Variant
    client_counts: ClassVar[bool] = True
    serve: Command
    ask: Command
    ready: str = "ready"

    def __post_init__(self) -> None:
        ground = self.ground
        self.port = ground.stage.port(ground.host)
        self.address = self.variant.at(ground.host.address)
        argv = self.serve(ground, self.address, self.port)
        running = ground.stage.start(
            argv, ground.host, ready=self.ready, shim=self.variant.shim, timeout_s=60
        )
        self.running = ground.begin(running)

    @property
    def pids(self) -> list[int]:
        return [self.running.pid]

    def run(self, shim: Shim | None = None) -> Sample:
        ground = self.ground
        argv = self.ask(ground, self.address, self.port)
        return made_sample(self, lambda: ground.stage.run(argv, ground.host, shim=shim or self.variant.shim))


def _milliseconds(ground: Ground) -> str:
    return str(max(50, int(ground.seconds * 1000)))


def load(clients: int) -> Command:
    """Our own closed-loop client: 64 B there and back on so many connections."""

    def command(ground: Ground, address: str, port: int) -> list[str]:
        argv = [str(ground.programs["load"]), f"{address}:{port}", "--clients", str(clients)]
        return [*argv, "--request", "x" * 64, "--reply", "64", "--milliseconds", _milliseconds(ground)]

    return command


def echoes(mode: str, processes: int = 1) -> Command:
    """One of our own echo servers."""

    def command(ground: Ground, address: str, port: int) -> list[str]:
        argv = [str(ground.programs["echoes"]), mode, f"{address}:{port}"]
        return [*argv, "--processes", str(processes)]

    return command


def server(mode: str) -> Command:
    """Our server of most measurements."""
    return lambda ground, address, port: [str(ground.programs["server"]), mode, f"{address}:{port}"]


def burst(count: int) -> Command:
    """So many datagrams of 64 B, and one answer."""

    def command(ground: Ground, address: str, port: int) -> list[str]:
        argv = [str(ground.programs["burst"]), f"{address}:{port}", "--count", str(count)]
        return [*argv, "--milliseconds", _milliseconds(ground)]

    return command


def askers(threads: int) -> Command:
    """One process with many threads that ask."""

    def command(ground: Ground, address: str, port: int) -> list[str]:
        argv = [str(ground.programs["askers"]), f"{address}:{port}", "--threads", str(threads)]
        return [*argv, "--milliseconds", _milliseconds(ground)]

    return command


def oneshot(ground: Ground, address: str, port: int) -> list[str]:
    """A process for each request."""
    argv = [str(ground.programs["oneshot"]), f"{address}:{port}"]
    return [*argv, "--milliseconds", _milliseconds(ground)]


def node(_ground: Ground, address: str, port: int) -> list[str]:
    """node, that is libuv."""
    return [tools.find("node"), str(tools.program("echo.js")), address, str(port)]


def java(_ground: Ground, address: str, port: int) -> list[str]:
    """A JVM, as it comes, with a Selector."""
    return [tools.find("java"), "-cp", str(tools.java_classes()), "Echo", address, str(port)]


def script(name: str, *role: str) -> Command:
    """A Python program of ours that serves."""

    def command(_ground: Ground, address: str, port: int) -> list[str]:
        return [sys.executable, str(tools.program(name)), *role, address, str(port)]

    return command


def asking_script(name: str, *role: str) -> Command:
    """A Python program of ours that asks for so many seconds."""
    begin = script(name, *role)

    def command(ground: Ground, address: str, port: int) -> list[str]:
        return [*begin(ground, address, port), str(max(0.05, ground.seconds))]

    return command


def redis_server(_ground: Ground, address: str, port: int) -> list[str]:
    """A redis-server that keeps nothing on disk."""
    argv = [tools.find("redis-server"), "--bind", address, "--port", str(port)]
    return [*argv, "--save", "", "--appendonly", "no"]
