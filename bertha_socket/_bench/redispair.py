"""redis-server, and redis-benchmark against it, each with or without a shim."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bertha_socket._bench import netns, tools, variants
from bertha_socket._bench.report import Cell, Report, Sample
from bertha_socket._bench.stage import Failed, Running, Shim, Stage
from bertha_socket._bench.variants import Variant

TESTS = ("set", "get")
UNITS = {f"{test}_rps": "1/s" for test in TESTS} | {
    f"{test}_{p}": "ms" for test in TESTS for p in ("p50", "p99")
}
UNITS |= {"server_cpu": "us/request"}
_CALIBRATION = 20000


def processor_ns(pid: int) -> int:
    """Processor time that the threads of a process have had, by the scheduler's own count."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text(encoding="ascii").split()[0])
    return total


@dataclass
class RedisServer:
    """A redis-server that keeps nothing on disk, at a TCP port and at a unix socket."""

    stage: Stage
    host: netns.Host
    shim: Shim | None = None
    #: A certificate and its key (PEM files): the port speaks redis's own TLS.
    tls: tuple[Path, Path] | None = None
    cpus: list[int] | None = None
    port: int = field(init=False)
    socket: Path = field(init=False)
    running: Running = field(init=False)

    def __post_init__(self) -> None:
        self.port = self.stage.port(self.host)
        self.socket = self.stage.path(".sock")
        argv = [tools.find("redis-server"), "--bind", self.host.address]
        if self.tls is None:
            argv += ["--port", str(self.port)]
        else:
            certificate, key = map(str, self.tls)
            argv += ["--port", "0", "--tls-port", str(self.port), "--tls-cert-file", certificate]
            argv += ["--tls-key-file", key, "--tls-ca-cert-file", certificate]
        argv += ["--unixsocket", str(self.socket), "--save", "", "--appendonly", "no"]
        argv += ["--protected-mode", "no"]  # the client may be on another host
        ready = "Ready to accept connections"
        self.running = self.stage.start(argv, self.host, ready=ready, cpus=self.cpus, shim=self.shim)


@dataclass
class RedisLoad:
    """redis-benchmark, SET and GET, against one server."""

    server: RedisServer
    shim: Shim | None = None
    unix: bool = False
    clients: int = 50
    pipeline: int = 1
    requests: int = _CALIBRATION
    #: Where it runs; None: where the server does.
    client: netns.Host | None = None

    def argv(self, requests: int) -> list[str]:
        where = ["-s", str(self.server.socket)]
        if not self.unix:
            where = ["-h", self.server.host.address, "-p", str(self.server.port)]
        if self.server.tls is not None:
            certificate, key = map(str, self.server.tls)
            where += ["--tls", "--cert", certificate, "--key", key, "--cacert", certificate]
        argv = [tools.find("redis-benchmark"), *where, "-t", ",".join(TESTS), "-n", str(requests)]
        argv += ["-c", str(self.clients), "--csv"]
        return [*argv, "-P", str(self.pipeline)] if self.pipeline > 1 else argv

    def run(self, requests: int = 0, shim: Shim | None = None) -> Sample:
        """One run of redis-benchmark; ``shim`` replaces ours (to have it logged)."""
        count = requests or self.requests
        before = processor_ns(self.server.running.pid)
        place = self.client or self.server.host
        said = self.server.stage.run(self.argv(count), place, shim=shim or self.shim)
        spent = processor_ns(self.server.running.pid) - before
        rows = {row["test"].lower(): row for row in csv.DictReader(said.splitlines())}
        values: dict[str, float] = {}
        for test in TESTS:
            if test not in rows:
                raise Failed(f"redis-benchmark did not report {test.upper()}: {said.strip()}")
            values[f"{test}_rps"] = float(rows[test]["rps"])
            values[f"{test}_p50"] = float(rows[test]["p50_latency_ms"])
            values[f"{test}_p99"] = float(rows[test]["p99_latency_ms"])
        values["server_cpu"] = spent / 1000 / (count * len(TESTS))
        return Sample(values)

    def calibrate(self, seconds: float, least: int, shim: Shim | None = None) -> int:
        """Choose the number of requests so that each of the two tests takes about ``seconds``."""
        first = self.run(max(least, min(_CALIBRATION, least * 10)), shim)
        rate = min(first.values[f"{test}_rps"] for test in TESTS)
        self.requests = max(least, int(rate * seconds))
        return self.requests


def add_cells(
    stage: Stage,
    report: Report,
    variant: Variant,
    server: RedisServer,
    configurations: Sequence[dict[str, int]],
    seconds: float,
    least: int,
    client: netns.Host | None = None,
    place: dict[str, str] | None = None,
) -> None:
    """A cell for each configuration in which the variant was proved to be what it is called.

    ``client``: where redis-benchmark runs, when not beside the server; ``place``: what the cells say of that.
    """
    for configuration in configurations:
        if variant.name in report.skipped:
            return
        clients, pipeline = configuration["clients"], configuration["pipeline"]
        load = RedisLoad(
            server, variant.shim, variant.unix, clients=clients, pipeline=pipeline, client=client
        )

        def probe(logged: Variant, load: RedisLoad = load) -> None:
            load.calibrate(seconds, least, logged.shim)

        if not variants.prove(stage, report, variant, probe):
            continue
        report.commands.setdefault(variant.name, " ".join(load.argv(load.requests)))
        measure = partial(variants.measured, stage, report, variant, partial(load.run, load.requests))
        report.cells.append(Cell(variant.name, configuration | (place or {}), measure, UNITS))
