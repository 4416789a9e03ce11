"""Bulk transfer: one iperf3 stream of 128 KiB writes, plain TCP against shm.

Besides the defaults, shm runs with every combination of a few ring sizes and spin settings that a policy file
may ask for: no choice of the user's may make it worse than TCP.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial

from bertha_socket._bench import interleave, netns, tools, variants
from bertha_socket._bench.report import Cell, Report, Sample, Target
from bertha_socket._bench.stage import Shim, Stage
from bertha_socket._bench.variants import Variant

RING_SIZES = (262144, 524288, 1048576)  # a policy file may ask for any power of two in between
SPINS = (0, 20, 100)
PROGRAMS = ("iperf3",)
UNITS = {"rate": "MB/s", "sender_cpu": "%", "receiver_cpu": "%"}


@dataclass
class Stream:
    """An iperf3 server that waits, and a client."""

    stage: Stage
    host: netns.Host
    client_shim: Shim | None
    server_shim: Shim | None
    #: Processors of (client, server); None: any.
    places: tuple[list[int], list[int]] | None = None
    port: int = field(init=False)

    def __post_init__(self) -> None:
        self.port = self.stage.port(self.host)
        argv = [tools.find("iperf3"), "-s", "-B", self.host.address, "-p", str(self.port), "--forceflush"]
        cpus = self.places[1] if self.places else None
        self.running = self.stage.start(
            argv, self.host, ready="Server listening", cpus=cpus, shim=self.server_shim
        )

    def argv(self, seconds: float) -> list[str]:
        argv = [tools.find("iperf3"), "-c", self.host.address, "-p", str(self.port), "-J", "-l", "128K"]
        if seconds >= 1:
            return [*argv, "-t", str(int(seconds))]
        return [*argv, "-n", f"{int(seconds * 1000)}M"]  # iperf3 counts whole seconds only

    def run(self, seconds: float, shim: Shim | None = None) -> Sample:
        cpus = self.places[0] if self.places else None
        said = self.stage.run(self.argv(seconds), self.host, cpus=cpus, shim=shim or self.client_shim)
        end = json.loads(said)["end"]
        return Sample(
            {
                "rate": end["sum_received"]["bits_per_second"] / 8e6,
                "bytes": end["sum_received"]["bytes"],
                "sender_cpu": end["cpu_utilization_percent"]["host_total"],
                "receiver_cpu": end["cpu_utilization_percent"]["remote_total"],
            }
        )


def _settings(stage: Stage, report: Report, quick: bool) -> list[tuple[Variant, dict[str, object]]]:
    found: list[tuple[Variant, dict[str, object]]] = []
    for variant in variants.standard(stage, (variants.TCP, variants.SHM), report):
        found.append((variant, {"ring": "default", "spin": "default"}))
        if variant.shim is None:
            continue
        for ring in RING_SIZES[::2] if quick else RING_SIZES:
            for spin in SPINS:
                shim = Shim(policy=stage.policy(ring_size=ring, spin_us=spin))
                chosen = Variant(variant.name, variant.label, shim=shim, expects="shm")
                found.append((chosen, {"ring": ring, "spin": spin}))
    return found


def run(options: interleave.Options) -> Report:
    rounds = options.rounds_or(3, 7)
    seconds = (1.0 if options.quick else 2.0) * options.scale
    report = Report(
        "bulk",
        "iperf3, one stream of 128 KiB writes on the loopback interface, plain TCP and shm",
        options={"rounds": rounds, "seconds": seconds},
    )
    with Stage() as stage:
        host = stage.one_host()
        for variant, params in _settings(stage, report, options.quick):
            stream = Stream(stage, host, variant.shim, variant.shim)
            report.commands.setdefault(variant.name, " ".join(stream.argv(seconds)))

            def probe(logged: Variant, stream: Stream = stream) -> None:
                stream.run(min(seconds, 0.05), logged.shim)

            if variants.prove(stage, report, variant, probe):
                measure = partial(variants.measured, stage, report, variant, partial(stream.run, seconds))
                report.cells.append(Cell(variant.name, params, measure, UNITS))
        interleave.run(report, rounds, options)
    for cell in report.cells:
        if cell.variant != variants.TCP:
            ring, spin = cell.params["ring"], cell.params["spin"]
            bound = 3.0 if ring == "default" else 0.9
            what = f"bulk, ring_size {ring}, spin_us {spin}: shm/tcp"
            report.ratio(
                what, "rate", (cell.variant, cell.params), (variants.TCP, {}), Target(bound, at_least=True)
            )
    return report
