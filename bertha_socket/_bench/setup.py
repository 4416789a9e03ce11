"""Rate of connection set-up, after the first one between two processes: plain TCP against negotiated.

``accept``: connect, accept, close.  ``echo``: the same with a request of 64 B and its answer in between.  The
server closes first, so that the client knows that it was accepted; with a window of one connection this
measures the wait, with a window of 16 how many a server can take.

``shm`` has a policy that prefers it: by itself the shim leaves connections like these to TCP after some
hundred of them (``chosen``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bertha_socket._bench import interleave, netns, tools, variants
from bertha_socket._bench.pinger import placements
from bertha_socket._bench.report import Cell, Report, Sample, Target
from bertha_socket._bench.stage import Shim, Stage
from bertha_socket._bench.variants import Variant

NAMES = (variants.TCP, variants.SHM, variants.CHOSEN, variants.UNIX)
MODES = {"accept": 0, "echo": 64}
WINDOWS = (1, 16)
PROGRAMS: tuple[str, ...] = ()
_UNITS = {"rate": "connections/s", "client_cpu": "us/connection"}


@dataclass
class Rater:
    """A server that closes each connection, and the client that makes them."""

    stage: Stage
    programs: dict[str, Path]
    host: netns.Host
    variant: Variant
    size: int
    cores: str
    server_variant: Variant | None = None
    target: str = field(init=False)

    def __post_init__(self) -> None:
        self.client_cpus, server_cpus = placements()[self.cores]
        port = self.stage.port(self.host)
        self.target = self.variant.target(self.host.address, port, self.stage.path(".sock"))
        argv = [str(self.programs["server"]), "once", self.target, "--size", str(self.size)]
        shim = (self.server_variant or self.variant).shim
        self.running = self.stage.start(argv, self.host, ready="ready", cpus=server_cpus, shim=shim)

    def argv(self, count: int, window: int) -> list[str]:
        argv = [str(self.programs["rate"]), self.target, "--size", str(self.size)]
        return [*argv, "--count", str(count), "--window", str(window)]

    def measure(self, count: int, window: int, variant: Variant | None = None) -> Sample:
        """One run; the first connection of the client is not counted."""
        shim = (variant or self.variant).shim
        said = json.loads(
            self.stage.run(self.argv(count, window), self.host, cpus=self.client_cpus, shim=shim)
        )
        return Sample(
            values={"rate": count / said["wall_ns"] * 1e9, "client_cpu": said["cpu_ns"] / 1000 / count},
        )

    def probe(self, variant: Variant) -> object:
        """A short run, for the proof."""
        return self.measure(50, 4, variant)


def run(options: interleave.Options) -> Report:
    rounds = options.rounds_or(5, 15)
    count = options.amount(1000, 4000, least=20)
    report = Report(
        "setup",
        f"connections made and closed per second over {', '.join(NAMES)}; {count} in a round",
        options={"rounds": rounds, "connections_per_round": count},
    )
    programs = tools.build()
    with Stage() as stage:
        host = stage.one_host()
        raters: list[Rater] = []
        chosen = variants.standard(stage, NAMES, report)
        for cores in placements():
            for mode, size in MODES.items():
                made: dict[str, Rater] = {}
                for given in chosen:
                    if given.name in report.skipped:
                        continue
                    variant = given
                    if given.name == variants.SHM:
                        variant = given.under(Shim(policy=stage.policy(prefer=["shm"])))
                    rater = Rater(stage, programs, host, variant, size, cores)
                    if variants.prove(stage, report, variant, rater.probe, unused=size == 0):
                        made[variant.name] = rater
                        report.commands[variant.name] = " ".join(rater.argv(count, WINDOWS[-1]))
                for window in WINDOWS:
                    for name, rater in made.items():
                        params = {"mode": mode, "window": window, "cores": cores}
                        report.cells.append(Cell(name, params, partial(rater.measure, count, window), _UNITS))
                raters += made.values()
        interleave.run(report, rounds, options)
        for rater in raters:  # the measured rounds are not logged: a line at each close would cost
            variants.prove(stage, report, rater.variant, rater.probe, unused=rater.size == 0)
    for mode in MODES:
        for name in NAMES[1:]:
            for cores in placements():
                for window in WINDOWS:
                    params = {"mode": mode, "window": window, "cores": cores}
                    report.ratio(
                        f"set-up rate, {mode}, window {window}, cores: {cores}: {name}/{variants.TCP}",
                        "rate",
                        (name, params),
                        (variants.TCP, params),
                        Target(0.8, at_least=True) if name == variants.SHM and mode == "accept" else None,
                    )
    return report
