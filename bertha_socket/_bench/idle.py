"""10,000 idle connections between two processes: what do they cost while nothing happens?

Each connection has carried one 64 B request and its answer.  Then, over some seconds: processor time of
both processes (and of the agent), descriptors beyond those of the same programs over plain TCP, and memory
for each connection (Pss of both processes, less that of the plain run; ``shmem`` is how much more shared
memory the whole machine has).  A second, smaller set of connections has carried 1 MiB in 64 KiB pieces each
way before it fell idle: rings that were used must not keep their pages without bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from bertha_socket._bench import interleave, netns, tools, variants
from bertha_socket._bench.redispair import processor_ns
from bertha_socket._bench.report import Cell, Report, Sample, Target
from bertha_socket._bench.stage import Stage
from bertha_socket._bench.variants import Variant

NAMES = (variants.TCP, variants.SHM, variants.UNIX)
PROGRAMS: tuple[str, ...] = ()
UNITS = {
    "cpu": "ms/s",
    "agent_cpu": "ms/s",
    "switches": "1/s",
    "descriptors": "",
    "memory": "KiB/connection",
    "shmem": "KiB/connection",
}

#: Before those that were used are taken for idle.
_SETTLING_S = 1.5


@dataclass
class Crowd:
    """One variant's idle connections; they are made anew for each round."""

    stage: Stage
    programs: dict[str, Path]
    host: netns.Host
    variant: Variant
    count: int
    touch: int
    chunk: int
    seconds: float

    def measure(self, report: Report) -> Sample:
        """Make the connections, watch them, end them; the log's word goes into the report."""
        port = self.stage.port(self.host)
        target = self.variant.target(self.host.address, port, self.stage.path(".sock"))
        log = self.stage.path(".log")
        server = self.stage.start(
            [str(self.programs["server"]), "hold", target], self.host, ready="ready", shim=self.variant.shim
        )
        before = _memory(server.pid)
        shmem = psutil.virtual_memory().shared
        argv = [str(self.programs["hold"]), target, "--count", str(self.count)]
        argv += ["--touch", str(self.touch), "--chunk", str(self.chunk)]
        client = self.stage.start(
            argv, self.host, ready="holding", shim=self.variant.logged(log).shim, stdin=True, timeout_s=120
        )
        pids = [server.pid, client.pid]
        agent = self.stage.agent_pid() if self.variant.shim is not None else None
        if self.touch > self.chunk:  # what bulk needed is given back in a second: work, once
            time.sleep(_SETTLING_S)
        cpu, switches = sum(map(processor_ns, pids)), sum(map(_switches, pids))
        agent_cpu = processor_ns(agent) if agent else 0
        begin = time.monotonic()
        time.sleep(self.seconds)
        elapsed = time.monotonic() - begin
        values = {
            "cpu": (sum(map(processor_ns, pids)) - cpu) / 1e6 / elapsed,
            "agent_cpu": ((processor_ns(agent) - agent_cpu) if agent else 0) / 1e6 / elapsed,
            "switches": (sum(map(_switches, pids)) - switches) / elapsed,
            "descriptors": float(sum(psutil.Process(pid).num_fds() for pid in pids) - 2 * self.count),
            "memory": (sum(map(_memory, pids)) - before) / 1024 / self.count,
            "shmem": (psutil.virtual_memory().shared - shmem) / 1024 / self.count,
        }
        assert client.process.stdin is not None
        client.process.stdin.close()
        client.process.wait(timeout=60)
        server.stop()
        if self.variant.shim is not None:
            variants.check(report, self.variant, log)
        return Sample(values)


def _memory(pid: int) -> int:
    """Bytes of memory a process is charged with: shared pages divided among those who share them."""
    return int(psutil.Process(pid).memory_full_info().pss)


def _switches(pid: int) -> int:
    return int(psutil.Process(pid).num_ctx_switches().voluntary)


def run(options: interleave.Options) -> Report:
    rounds = options.rounds_or(1, 3)
    count = options.amount(2000, 10000, least=20)
    used = options.amount(100, 500, least=10)
    seconds = max(0.2, (1.0 if options.quick else 3.0) * options.scale)
    report = Report(
        "idle",
        f"{count} idle connections between two processes over {', '.join(NAMES)}, for {seconds:g} s; "
        f"and {used} that had carried 1 MiB each way",
        options={"rounds": rounds, "connections": count, "used": used, "seconds": seconds},
    )
    programs = tools.build()
    sets: dict[str, tuple[int, int, int]] = {"idle": (count, 64, 64), "used": (used, 1 << 20, 65536)}
    with Stage() as stage:
        stage.raise_descriptor_limit()
        host = stage.one_host()
        for variant in variants.standard(stage, NAMES, report):
            for kind, (wanted, touch, chunk) in sets.items():
                number = wanted
                if variant.name == variants.UNIX:  # it keeps the TCP socket beside the unix socket
                    number = min(wanted, stage.raise_descriptor_limit() * 2 // 5)
                crowd = Crowd(stage, programs, host, variant, number, touch, chunk, seconds)
                measure: Callable[[], Sample] = partial(crowd.measure, report)
                report.cells.append(Cell(variant.name, {"set": kind, "connections": number}, measure, UNITS))
        interleave.run(report, rounds, options)
    for name in NAMES[1:]:
        _figures(report, name)
    return report


def _figures(report: Report, name: str) -> None:
    for kind in ("idle", "used"):
        ours, plain = report.cell(name, set=kind), report.cell(variants.TCP, set=kind)
        if ours is None or plain is None:
            continue
        if name in report.skipped:
            ours.samples.clear()
            continue
        count = int(ours.params["connections"])

        def beyond(metric: str, ours: Cell = ours, plain: Cell = plain) -> float:
            pairs = zip(ours.values(metric), plain.values(metric), strict=False)
            return max(a - b for a, b in pairs)

        what = f"{count} {kind} connections, {name}"
        report.number(
            f"{what}: processor time beyond plain", beyond("cpu"), "ms/s", Target(1.0, at_least=False)
        )
        report.number(f"{what}: agent's processor time", max(ours.values("agent_cpu")), "ms/s")
        descriptors = beyond("descriptors")
        # A few descriptors are needed in any case: the bound is meant for thousands of connections.
        # `unix` keeps the TCP socket beside the other one, which docs/users/limits.md says.
        bounded = count >= 1000 and name == variants.SHM
        bound = Target(1.0, at_least=False) if bounded else None
        report.number(f"{what}: descriptors beyond plain, per 100", descriptors / count * 100, "", bound)
        report.number(
            f"{what}: memory beyond plain", beyond("memory"), "KiB/connection", Target(300.0, at_least=False)
        )
