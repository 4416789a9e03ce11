"""Latency of one request after the other on one connection: 64 B, over TCP, a unix socket and shm.

p50 and p99 of the round trip, and the processor time of the client per request, both programs on one
processor and on two.
"""

from __future__ import annotations

from functools import partial

from bertha_socket._bench import interleave, stats, tools, variants
from bertha_socket._bench.pinger import Pinger, placements
from bertha_socket._bench.report import Cell, Report, Sample
from bertha_socket._bench.stage import Stage

SIZE = 64
NAMES = (variants.TCP, variants.UNIX_SOCKET, variants.SHM, variants.SHM_NOSPIN, variants.UNIX)
PROGRAMS: tuple[str, ...] = ()
_UNITS = dict.fromkeys(("p50", "p99", "client_cpu"), "us")


def _measure(pinger: Pinger, requests: int) -> Sample:
    times = pinger.ping(1, requests, warmup=requests // 10)
    ordered = sorted(times.requests)
    return Sample(
        values={
            "p50": stats.percentile(ordered, 50),
            "p99": stats.percentile(ordered, 99),
            "client_cpu": times.cpu_us / (requests + requests // 10),
        },
        pooled={"request": times.requests},
    )


def run(options: interleave.Options) -> Report:
    rounds = options.rounds_or(5, 11)
    requests = options.amount(3000, 10000, least=20)
    report = Report(
        "pingpong",
        f"round trip of {SIZE} B on one connection over {', '.join(NAMES)}; {requests} in a round",
        options={"rounds": rounds, "requests_per_round": requests},
    )
    programs = tools.build()
    with Stage() as stage:
        host = stage.one_host()
        chosen = variants.standard(stage, NAMES, report)
        for cores in placements():
            for variant in chosen:
                if variant.name in report.skipped:
                    continue
                pinger = Pinger(stage, programs, host, host, variant, SIZE, cores)
                if not variants.prove(stage, report, variant, pinger.probe):
                    pinger.running.stop()
                    continue
                report.commands[variant.name] = " ".join(pinger.argv(1, requests, requests // 10))
                report.cells.append(
                    Cell(variant.name, {"cores": cores}, partial(_measure, pinger, requests), _UNITS)
                )
        interleave.run(report, rounds, options)
    for cores in placements():
        for name in NAMES[2:]:
            for under in (variants.TCP, variants.UNIX_SOCKET):
                for metric in ("p50", "p99"):
                    params = {"cores": cores}
                    report.ratio(
                        f"round trip {metric}, cores: {cores}: {name}/{under}",
                        metric,
                        (name, params),
                        (under, params),
                    )
    return report
