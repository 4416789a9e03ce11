"""The paper's Figure 3: latency of requests between two containers on one host.

Two network namespaces joined by veth, 3 requests on each of 10,000 connections, 8 B, 256 B and 10 KiB, both
programs on one processor and on two.  Set-up is reported apart: ``request`` is a request alone, ``setup`` is
socket() and connect(), ``with_setup`` is a third of the time from socket() to the third answer.
"""

from __future__ import annotations

from functools import partial

from bertha_socket._bench import interleave, stats, tools, variants
from bertha_socket._bench.pinger import Pinger, placements
from bertha_socket._bench.report import Cell, Report, Sample, Target
from bertha_socket._bench.stage import Stage

SIZES = (8, 256, 10240)
REQUESTS = 3
NAMES = (variants.TCP_NAGLE, variants.TCP, variants.UNIX_SOCKET, variants.SHM, variants.UNIX)
PROGRAMS: tuple[str, ...] = ()
_POSITIONS = tuple(f"request_{at + 1}_p50" for at in range(REQUESTS))
_UNITS = dict.fromkeys(("request_p50", *_POSITIONS, "with_setup_p50", "setup_p50", "first_setup"), "us")


def _measure(pinger: Pinger, connections: int) -> Sample:
    times = pinger.ping(connections, REQUESTS)
    whole = [t / REQUESTS for t in times.whole]
    by_position = {
        f"request_{at + 1}_p50": stats.percentile(sorted(times.requests[at::REQUESTS]), 50)
        for at in range(REQUESTS)
    }
    return Sample(
        values={
            "request_p50": stats.percentile(sorted(times.requests), 50),
            **by_position,
            "with_setup_p50": stats.percentile(sorted(whole), 50),
            "setup_p50": stats.percentile(sorted(times.setups), 50),
            "first_setup": times.setups[0],
        },
        pooled={"request": times.requests, "with_setup": whole, "setup": times.setups},
    )


def run(options: interleave.Options) -> Report:
    rounds = options.rounds_or(5, 10)
    connections = options.amount(200, 10000 // rounds, least=5)
    report = Report(
        "fig3",
        f"latency of a request over {', '.join(NAMES)} between two network namespaces joined by veth; "
        f"{REQUESTS} requests on each of {rounds * connections} connections",
        options={"rounds": rounds, "connections_per_round": connections, "requests": REQUESTS},
    )
    programs = tools.build()
    with Stage() as stage:
        try:
            client, server = stage.two_hosts()
        except tools.Unavailable as missing:
            client = server = stage.one_host()
            report.notes.append(f"{missing}: measured on the loopback interface instead")
        pingers = []
        chosen = variants.standard(stage, NAMES, report)
        for cores in placements():
            for size in SIZES:
                for variant in chosen:
                    if variant.name in report.skipped:
                        continue
                    pinger = Pinger(stage, programs, client, server, variant, size, cores)
                    if not variants.prove(stage, report, variant, pinger.probe):
                        pinger.running.stop()
                        continue
                    pingers.append(pinger)
                    report.cells.append(
                        Cell(
                            variant.name,
                            {"size": size, "cores": cores},
                            partial(_measure, pinger, connections),
                            _UNITS,
                        )
                    )
                    report.commands[variant.name] = " ".join(pinger.argv(connections, REQUESTS, 0))
        interleave.run(report, rounds, options)
        # The measured rounds are not logged, since a line at each close would cost: one of each kind again.
        for pinger in {(p.variant.name, p.cores): p for p in pingers}.values():
            variants.prove(stage, report, pinger.variant, pinger.probe)
    _figures(report)
    return report


def _figures(report: Report) -> None:
    bounds = {(variants.SHM, "two"): 0.25, (variants.SHM, "one"): 1.0}
    bounds |= {(variants.UNIX, "two"): 1.1, (variants.UNIX, "one"): 1.1}
    for metric, label in (("request_p50", "request"), ("with_setup_p50", "request with set-up")):
        for name in (variants.SHM, variants.UNIX):
            for under in (variants.UNIX_SOCKET, variants.TCP_NAGLE):
                for cores in ("two", "one"):
                    for size in SIZES:
                        target = None
                        if metric == "request_p50" and under == variants.UNIX_SOCKET and size < 1024:
                            target = Target(bounds[name, cores], at_least=False)
                        params = {"size": size, "cores": cores}
                        report.ratio(
                            f"{label} p50, {size} B, cores: {cores}: {name}/{under}",
                            metric,
                            (name, params),
                            (under, params),
                            target,
                        )
