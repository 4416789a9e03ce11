"""The programs of ``bertha bench speed``: each is a server that runs, and a client that can be run again.

What a run gives is the same for all: ``rate`` (requests a second), where the client tells them ``p50`` and
``p99`` (microseconds), ``cpu`` (processor time of both ends for a request, microseconds) and ``requests``.
"""

from __future__ import annotations

import csv
import json
import os
import pwd
import re
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Protocol

import psutil

from bertha_socket._bench import netns, stats, tools
from bertha_socket._bench.bulk import Stream
from bertha_socket._bench.pinger import Pinger, placements
from bertha_socket._bench.redispair import RedisServer, processor_ns
from bertha_socket._bench.report import Sample
from bertha_socket._bench.servers import Memcached, Nginx
from bertha_socket._bench.setup import Rater
from bertha_socket._bench.stage import Failed, Running, Shim, Stage
from bertha_socket._bench.variants import Variant

_PIECE = 128 * 1024  # what iperf3 writes at once


class Load(Protocol):
    """One variant of one row."""

    @property
    def client_counts(self) -> bool:
        """Whether perf may count the client's system calls."""

    @property
    def pids(self) -> list[int]:
        """The processes that serve: what is counted while the client runs."""

    def run(self, shim: Shim | None = None) -> Sample:
        """The client once; ``shim`` replaces the variant's own (to have it logged)."""


@dataclass
class Ground:
    """What the loads of a row share; closed after the row."""

    stage: Stage
    programs: dict[str, Path]
    host: netns.Host
    seconds: float
    #: What the caller makes of all amounts; 1 in a measurement that counts.
    scale: float = 1.0
    opened: ExitStack = field(default_factory=ExitStack)
    _starting: dict[Shim | None, float] = field(default_factory=dict)

    def begin(self, running: Running) -> Running:
        """Have it stopped after the row."""
        self.opened.callback(running.stop)
        return running

    def starting_us(self, shim: Shim | None) -> float:
        """Processor time that bertha-run takes before it becomes the program."""
        key = shim and replace(shim, log=None)
        if key not in self._starting:
            taken = []
            for _ in range(3):
                self.stage.run([tools.find("true")], self.host, shim=key)
                taken.append(self.stage.client_cpu_us)
            self._starting[key] = sorted(taken)[1]
        return self._starting[key]


def family(pids: list[int]) -> list[int]:
    """The processes and all their descendants, as they are now."""
    found = list(pids)
    for pid in pids:
        found += [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return found


def spent_ns(pids: list[int]) -> int:
    """Processor time of processes, their descendants, and the children they have waited for."""
    total = 0
    for pid in family(pids):
        try:
            times = psutil.Process(pid).cpu_times()
            total += processor_ns(pid) + int((times.children_user + times.children_system) * 1e9)
        except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            continue
    return total


def _sample(load: Load, requests: float, client_us: float, begin_ns: int, **values: float) -> Sample:
    spent = (spent_ns(load.pids) - begin_ns) / 1000 + max(0.0, client_us)
    return Sample({**values, "cpu": spent / max(1.0, requests), "requests": requests})


def made_sample(load: Load, ask: Callable[[], str]) -> Sample:
    """Of a client that prints a JSON object: requests, wall_ns, cpu_ns."""
    before = spent_ns(load.pids)
    said = json.loads(ask())
    rate = said["requests"] / said["wall_ns"] * 1e9
    return _sample(load, said["requests"], said["cpu_ns"] / 1000, before, rate=rate)


@dataclass
class PingPong:
    """Blocking request and answer of 64 B; ``processes`` pairs; a pause before each if asked for."""

    ground: Ground
    variant: Variant
    client_counts: ClassVar[bool] = True
    cores: str = "two"
    think_us: int = 0
    processes: int = 1
    #: As many times more requests as elsewhere: where the scheduler takes its time to settle.
    times: int = 1
    requests: int = field(init=False)

    def __post_init__(self) -> None:
        ground = self.ground
        self.pinger = Pinger(
            ground.stage,
            ground.programs,
            ground.host,
            ground.host,
            self.variant,
            64,
            self.cores,
            think_us=self.think_us,
            processes=self.processes,
        )
        ground.begin(self.pinger.running)
        self.requests = max(20, int(20000 * self.times * ground.seconds / self.processes))
        if self.think_us > 0:
            self.requests = max(20, int(ground.seconds * 1e6 / (self.think_us + 60)))

    @property
    def pids(self) -> list[int]:
        return [self.pinger.running.pid]

    def run(self, shim: Shim | None = None) -> Sample:
        before = spent_ns(self.pids)
        warmup = self.requests // 10
        times = self.pinger.ping(1, self.requests, warmup, self.variant.under(shim))
        ordered = sorted(times.requests)
        made = (self.requests + warmup) * self.processes
        return _sample(
            self,
            made,
            times.cpu_us,
            before,
            rate=made / times.wall_us * 1e6,
            p50=stats.percentile(ordered, 50),
            p99=stats.percentile(ordered, 99),
        )


@dataclass
class Redis:
    """redis-benchmark asks redis-server for a key."""

    ground: Ground
    variant: Variant
    client_counts: ClassVar[bool] = True
    clients: int = 50
    pipeline: int = 1
    cpus: list[int] | None = None
    requests: int = 0

    def __post_init__(self) -> None:
        self.server = RedisServer(self.ground.stage, self.ground.host, self.variant.shim, cpus=self.cpus)
        self.ground.begin(self.server.running)

    @property
    def pids(self) -> list[int]:
        return [self.server.running.pid]

    def argv(self, requests: int) -> list[str]:
        argv = [tools.find("redis-benchmark"), "-h", self.server.host.address, "-p", str(self.server.port)]
        argv += ["-t", "get", "-n", str(requests), "-c", str(self.clients), "--csv"]
        return [*argv, "-P", str(self.pipeline)] if self.pipeline > 1 else argv

    def _ask(self, requests: int, shim: Shim | None) -> dict[str, str]:
        said = self.ground.stage.run(
            self.argv(requests), self.ground.host, cpus=self.cpus, shim=shim or self.variant.shim
        )
        rows = [row for row in csv.DictReader(said.splitlines()) if row["test"] == "GET"]
        if not rows:
            raise Failed(f"redis-benchmark did not report GET: {said.strip()}")
        return rows[0]

    def run(self, shim: Shim | None = None) -> Sample:
        if self.requests == 0:
            few = max(500, int(20000 * min(1.0, self.ground.seconds)))
            rate = float(self._ask(few, shim)["rps"])
            self.requests = max(few, int(rate * self.ground.seconds))
        starting = self.ground.starting_us(self.variant.shim)
        before = spent_ns(self.pids)
        row = self._ask(self.requests, shim)
        client = self.ground.stage.client_cpu_us - starting
        return _sample(
            self,
            self.requests,
            client,
            before,
            rate=float(row["rps"]),
            p50=float(row["p50_latency_ms"]) * 1000,
            p99=float(row["p99_latency_ms"]) * 1000,
        )


@dataclass
class Memcache:
    """Our closed-loop client gets one key from memcached over 50 connections."""

    ground: Ground
    variant: Variant
    client_counts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.server = Memcached(self.ground.stage, self.ground.programs, self.ground.host, self.variant)
        self.ground.begin(self.server.running)

    @property
    def pids(self) -> list[int]:
        return [self.server.running.pid]

    def run(self, shim: Shim | None = None) -> Sample:
        before = spent_ns(self.pids)
        argv = self.server.argv(self.ground.seconds)
        said = json.loads(self.ground.stage.run(argv, self.ground.host, shim=shim or self.variant.shim))
        return _sample(
            self,
            said["requests"],
            said["cpu_ns"] / 1000,
            before,
            rate=said["requests"] / said["wall_ns"] * 1e9,
        )


@dataclass
class Crowded:
    """An epoll echo server: 10 connections that talk, beside ``idle`` that do not, in the same set."""

    ground: Ground
    variant: Variant
    client_counts: ClassVar[bool] = True
    idle: int = 10000

    def __post_init__(self) -> None:
        stage, place, shim = self.ground.stage, self.ground.host, self.variant.shim
        stage.raise_descriptor_limit()
        self.target = f"{place.address}:{stage.port(place)}"
        serve = [str(self.ground.programs["server"]), "hold", self.target]
        self.running = self.ground.begin(stage.start(serve, place, ready="ready", shim=shim))
        idle = max(10, int(self.idle * min(1.0, self.ground.scale))) if self.idle > 0 else 0
        hold = [str(self.ground.programs["hold"]), self.target, "--count", str(idle), "--touch", "64"]
        argv = [*hold, "--chunk", "64"]
        if idle > 0:
            self.ground.begin(stage.start(argv, place, ready="holding", shim=shim, stdin=True, timeout_s=120))

    @property
    def pids(self) -> list[int]:
        return [self.running.pid]

    def run(self, shim: Shim | None = None) -> Sample:
        argv = [str(self.ground.programs["load"]), self.target, "--clients", "10", "--request", "x" * 64]
        argv += ["--reply", "64", "--milliseconds", str(int(self.ground.seconds * 1000))]
        before = spent_ns(self.pids)
        said = json.loads(self.ground.stage.run(argv, self.ground.host, shim=shim or self.variant.shim))
        rate = said["requests"] / said["wall_ns"] * 1e9
        return _sample(self, said["requests"], said["cpu_ns"] / 1000, before, rate=rate)


_WRK_UNITS = {"us": 1.0, "ms": 1000.0, "s": 1e6}


@dataclass
class Web:
    """wrk, 16 connections, asks nginx for a path; ``close``: a connection for each request."""

    ground: Ground
    variant: Variant
    client_counts: ClassVar[bool] = True
    path: str
    close: bool = False

    def __post_init__(self) -> None:
        self.server = Nginx(self.ground.stage, self.ground.host, self.variant)
        self.ground.begin(self.server.running)

    @property
    def pids(self) -> list[int]:
        return [self.server.running.pid]

    def run(self, shim: Shim | None = None) -> Sample:
        argv = self.server.argv(self.path, self.ground.seconds)
        argv[1:1] = ["--latency", *(["-H", "Connection: close"] if self.close else [])]
        starting = self.ground.starting_us(self.variant.shim)
        before = spent_ns(self.pids)
        said = self.ground.stage.run(argv, self.ground.host, shim=shim or self.variant.shim)
        client = self.ground.stage.client_cpu_us - starting
        rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
        made = re.search(r"(\d+) requests in", said)
        marks = dict(re.findall(r"^\s+(50|99)%\s+([\d.]+(?:us|ms|s))", said, re.MULTILINE))
        if rate is None or made is None or len(marks) != 2 or "Non-2xx" in said or "Socket errors" in said:
            raise Failed(f"wrk did not get its answers from nginx: {said.strip()}")

        def us(text: str) -> float:
            unit = text.lstrip("0123456789.")
            return float(text.removesuffix(unit)) * _WRK_UNITS[unit]

        return _sample(
            self,
            int(made.group(1)),
            client,
            before,
            rate=float(rate.group(1)),
            p50=us(marks["50"]),
            p99=us(marks["99"]),
        )


@dataclass
class Postgres:
    """pgbench -S, 4 clients in one thread, against a database of its own."""

    ground: Ground
    variant: Variant
    client_counts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        stage, place = self.ground.stage, self.ground.host
        data = stage.path(".data")
        self.port = stage.port(place)
        initdb = [tools.find("initdb"), "-D", str(data), "-U", "bench", "-A", "trust", "-N", "--no-locale"]
        stage.run(initdb, place)
        settings = f"listen_addresses = '{place.address}'\nunix_socket_directories = ''\n"
        settings += "shared_buffers = 32MB\nmax_connections = 20\nautovacuum = off\nfsync = off\n"
        with (data / "postgresql.conf").open("a", encoding="ascii") as file:
            file.write(settings)
        argv = [tools.find("postgres"), "-D", str(data), "-p", str(self.port)]
        ready = "ready to accept connections"
        running = stage.start(argv, place, ready=ready, shim=self.variant.shim, timeout_s=60)
        self.running = self.ground.begin(running)
        stage.run([*self._argv(), "-i", "-q", "-s", "2", "postgres"], place)

    def _argv(self) -> list[str]:
        argv = [tools.find("pgbench"), "-h", self.ground.host.address, "-p", str(self.port)]
        return [*argv, "-U", "bench"]

    @property
    def pids(self) -> list[int]:
        return [self.running.pid]

    def run(self, shim: Shim | None = None) -> Sample:
        count = max(10, int(4000 * self.ground.seconds))
        argv = [*self._argv(), "-n", "-S", "-c", "4", "-j", "1", "-t", str(count), "postgres"]
        starting = self.ground.starting_us(self.variant.shim)
        before = spent_ns(self.pids)
        said = self.ground.stage.run(argv, self.ground.host, shim=shim or self.variant.shim)
        rate = re.search(r"tps = ([\d.]+) \(without", said)
        if rate is None:
            raise Failed(f"pgbench said no rate: {said.strip()}")
        client = self.ground.stage.client_cpu_us - starting
        return _sample(self, 4 * count, client, before, rate=float(rate.group(1)))


def unprivileged() -> str | None:
    """The user who runs what refuses to be root's; None: the caller."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    raise tools.Unavailable(
        "PostgreSQL does not run as root, and there is no user postgres: adduser postgres"
    )


@dataclass
class Iperf:
    """One iperf3 stream of 128 KiB writes; a request is one of those."""

    ground: Ground
    variant: Variant
    client_counts: ClassVar[bool] = True
    cores: str | None = None

    def __post_init__(self) -> None:
        places = placements()[self.cores] if self.cores else None
        shim = self.variant.shim
        self.stream = Stream(self.ground.stage, self.ground.host, shim, shim, places)
        self.ground.begin(self.stream.running)

    @property
    def pids(self) -> list[int]:
        return [self.stream.running.pid]

    def run(self, shim: Shim | None = None) -> Sample:
        starting = self.ground.starting_us(self.variant.shim)
        before = spent_ns(self.pids)
        values = self.stream.run(self.ground.seconds, shim).values
        client = self.ground.stage.client_cpu_us - starting
        return _sample(self, values["bytes"] / _PIECE, client, before, rate=values["rate"] * 1e6 / _PIECE)


@dataclass
class Connect:
    """connect, 64 B, their echo, close: ``window`` at a time."""

    ground: Ground
    variant: Variant
    client_counts: ClassVar[bool] = True
    cores: str = "two"
    window: int = 1

    def __post_init__(self) -> None:
        ground = self.ground
        self.rater = Rater(ground.stage, ground.programs, ground.host, self.variant, 64, self.cores)
        ground.begin(self.rater.running)

    @property
    def pids(self) -> list[int]:
        return [self.rater.running.pid]

    def run(self, shim: Shim | None = None) -> Sample:
        count = max(50, int(6000 * self.ground.seconds))
        before = spent_ns(self.pids)
        values = self.rater.measure(count, self.window, self.variant.under(shim)).values
        return _sample(self, count, values["client_cpu"] * count, before, rate=values["rate"])


@dataclass
class Asyncio:
    """asyncio streams at both ends."""

    ground: Ground
    variant: Variant
    client_counts: ClassVar[bool] = True
    connections: int = 1

    def __post_init__(self) -> None:
        ground = self.ground
        self.port = ground.stage.port(ground.host)
        argv = [*self._argv("server"), ground.host.address, str(self.port)]
        running = ground.stage.start(argv, ground.host, ready="ready", shim=self.variant.shim)
        self.running = ground.begin(running)

    def _argv(self, role: str) -> list[str]:
        return [sys.executable, str(Path(__file__).with_name("asyncio_echo.py")), role]

    @property
    def pids(self) -> list[int]:
        return [self.running.pid]

    def run(self, shim: Shim | None = None) -> Sample:
        ground = self.ground
        argv = [*self._argv("client"), ground.host.address, str(self.port), str(self.connections)]
        argv.append(str(max(0.1, ground.seconds)))
        before = spent_ns(self.pids)
        said = json.loads(ground.stage.run(argv, ground.host, shim=shim or self.variant.shim))
        rate = said["requests"] / said["wall_ns"] * 1e9
        return _sample(self, said["requests"], said["cpu_ns"] / 1000, before, rate=rate)


@dataclass
class Beside:
    """Another load, with a busy process for every processor beside it."""

    inner: Load
    ground: Ground
    client_counts: ClassVar[bool] = True

    @property
    def pids(self) -> list[int]:
        return self.inner.pids

    def run(self, shim: Shim | None = None) -> Sample:
        hog = [str(self.ground.programs["hog"]), "--seconds", "60"]
        hogs = [
            self.ground.stage.start(hog, self.ground.host, ready="ready") for _ in os.sched_getaffinity(0)
        ]
        try:
            return self.inner.run(shim)
        finally:
            for running in hogs:
                running.stop()
