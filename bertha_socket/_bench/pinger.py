"""Our request/response program in one configuration: a server that runs, a client that can be run again."""

from __future__ import annotations

import array
import json
from dataclasses import dataclass, field
from pathlib import Path

from bertha_socket._bench import host, netns
from bertha_socket._bench.stage import Stage
from bertha_socket._bench.variants import Variant


def placements() -> dict[str, tuple[list[int], list[int]]]:
    """Processors of (client, server): both on one, and, where there are two, one each."""
    usable = host.cpus()
    places = {"one": (usable[:1], usable[:1])}
    if len(usable) > 1:
        places["two"] = (usable[:1], usable[1:2])
    return places


@dataclass
class Times:
    """What one run of the client measured, in microseconds."""

    setups: list[float]
    requests: list[float]
    whole: list[float]  # of each connection: set-up and all its requests
    wall_us: float
    cpu_us: float


@dataclass
class Pinger:
    """``server_variant`` may differ from ``variant``, for mixed pairs."""

    stage: Stage
    programs: dict[str, Path]
    client: netns.Host
    server: netns.Host
    variant: Variant
    size: int
    cores: str  # of placements(), else any
    server_variant: Variant | None = None
    think_us: int = 0
    processes: int = 1
    server_first: bool = False
    target: str = field(init=False)

    def __post_init__(self) -> None:
        self.client_cpus, self.server_cpus = placements().get(self.cores, (host.cpus(), host.cpus()))
        port = self.stage.port(self.server)
        self.target = self.variant.target(self.server.address, port, self.stage.path(".sock"))
        serving = self.server_variant or self.variant
        argv = [str(self.programs["server"]), "echo", self.target, "--size", str(self.size), *serving.flags]
        argv += ["--processes", str(self.processes), *self._greeting]
        self.running = self.stage.start(
            argv, self.server, ready="ready", cpus=self.server_cpus, shim=serving.shim
        )

    @property
    def _greeting(self) -> list[str]:
        return ["--server-first", "1"] if self.server_first else []

    def argv(self, connections: int, requests: int, warmup: int) -> list[str]:
        argv = [str(self.programs["ping"]), self.target, "--size", str(self.size), *self.variant.flags]
        argv += ["--connections", str(connections), "--requests", str(requests)]
        argv += ["--think-us", str(self.think_us), "--processes", str(self.processes), *self._greeting]
        return [*argv, "--warmup", str(warmup)] if warmup else argv

    def ping(self, connections: int, requests: int, warmup: int = 0, variant: Variant | None = None) -> Times:
        """Run the client once; ``variant`` replaces ours (to have it logged)."""
        out = self.stage.path(".bin")
        argv = [*self.argv(connections, requests, warmup), "--out", str(out)]
        said = self.stage.run(argv, self.client, cpus=self.client_cpus, shim=(variant or self.variant).shim)
        times = array.array("Q")
        times.frombytes(out.read_bytes())
        out.unlink()
        step = 1 + requests
        totals = json.loads(said)
        return Times(
            setups=[t / 1000 for t in times[::step]],
            requests=[t / 1000 for at, t in enumerate(times) if at % step],
            whole=[sum(times[at : at + step]) / 1000 for at in range(0, len(times), step)],
            wall_us=totals["wall_ns"] / 1000,
            cpu_us=totals["cpu_ns"] / 1000,
        )

    def probe(self, variant: Variant) -> object:
        """A short run, for the proof."""
        return self.ping(20, 3, variant=variant)
