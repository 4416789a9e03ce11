"""What a program under ``bertha-run`` pays when its peers are plain: throughput and set-up, with/without.

``client``: only the client is under the shim; ``server``: only the server is; ``none``: the yardstick.  The
small programs run on one processor, where nothing hides behind a wake-up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from bertha_socket._bench import connlog, interleave, tools, variants
from bertha_socket._bench.bulk import UNITS as BULK_UNITS
from bertha_socket._bench.bulk import Stream
from bertha_socket._bench.pinger import Pinger
from bertha_socket._bench.redispair import UNITS as REDIS_UNITS
from bertha_socket._bench.redispair import RedisLoad, RedisServer
from bertha_socket._bench.report import Cell, Report, Sample, Target
from bertha_socket._bench.setup import Rater
from bertha_socket._bench.stage import Running, Shim, Stage
from bertha_socket._bench.variants import Variant

PROGRAMS = ("redis-server", "redis-benchmark", "iperf3")
WHO = ("none", "client", "server")
_UNITS = BULK_UNITS | REDIS_UNITS | {"rate": "1/s", "connections": "1/s"}


@dataclass
class _Sides:
    """Which side has a shim, and where the server's connections are logged."""

    who: str
    client: Variant
    server: Variant


def _sides(stage: Stage, who: str) -> _Sides:
    plain = Variant("none", "without")
    shimmed = Variant(who, f"{who} under bertha-run", shim=Shim())
    client = shimmed if who == "client" else plain
    server = shimmed.logged(stage.path(".log")) if who == "server" else plain
    return _Sides(who, client, server)


def _ping(pinger: Pinger, requests: int) -> Sample:
    times = pinger.ping(1, requests)
    return Sample({"rate": requests / times.wall_us * 1e6})


def _connections(rater: Rater, count: int) -> Sample:
    return Sample({"connections": rater.measure(count, 4).values["rate"]})


def run(options: interleave.Options) -> Report:
    rounds = options.rounds_or(7, 31)
    requests = options.amount(10000, 20000, least=100)
    count = options.amount(1500, 3000, least=20)
    seconds = (0.2 if options.quick else 0.4) * options.scale
    least = options.amount(5000, 10000, least=200)
    report = Report(
        "plain-overhead",
        "programs of which one is under bertha-run and its peer is not, against the same without a shim",
        options={"rounds": rounds, "requests": requests, "connections": count, "redis_seconds": seconds},
    )
    programs = tools.build()
    with Stage() as stage:
        host = stage.one_host()
        servers: list[tuple[str, Running]] = []
        probes: dict[str, list[Callable[[Variant], object]]] = {}
        try:
            tools.shim_library()
            chosen: tuple[str, ...] = WHO
        except tools.Unavailable as missing:
            report.skipped |= {who: str(missing) for who in WHO[1:]}
            chosen = WHO[:1]
        for who in chosen:
            sides = _sides(stage, who)
            pinger = Pinger(stage, programs, host, host, sides.client, 64, "one", sides.server)
            rater = Rater(stage, programs, host, sides.client, 0, "one", sides.server)
            redis = RedisServer(stage, host, sides.server.shim)
            stream = Stream(stage, host, sides.client.shim, sides.server.shim)
            load = RedisLoad(redis, sides.client.shim)
            load.calibrate(seconds, least)
            piped = RedisLoad(redis, sides.client.shim, pipeline=16)
            piped.calibrate(seconds, least)
            servers += [(who, place.running) for place in (pinger, rater, redis, stream)]
            probes[who] = [
                pinger.probe,
                rater.probe,
                lambda v, load=load: load.run(1000, v.shim),  # type: ignore[misc]
                lambda v, stream=stream: stream.run(0.05, v.shim),  # type: ignore[misc]
            ]
            measures: dict[str, Callable[[], Sample]] = {
                "request/response 64 B": partial(_ping, pinger, requests),
                "set-up": partial(_connections, rater, count),
                "redis c50": load.run,
                "redis c50 P16": piped.run,
                "iperf3": partial(stream.run, 1.0 * options.scale),
            }
            for what, measure in measures.items():
                report.cells.append(Cell(who, {"what": what}, measure, _UNITS))
        report.cells.sort(key=lambda cell: str(cell.params["what"]))
        if "client" in probes:
            client = _sides(stage, "client").client
            for probe in probes["client"]:
                variants.prove(stage, report, client, probe)
        interleave.run(report, rounds, options)
        for who, running in servers:
            running.stop()
            if who == "server" and running.log is not None:
                _check_server(report, running)
    metrics = {
        "request/response 64 B": ("rate",),
        "redis c50": ("get_rps", "set_rps"),
        "redis c50 P16": ("get_rps", "set_rps"),
        "iperf3": ("rate",),
        "set-up": ("connections",),
    }
    for what, names in metrics.items():
        target = Target(0.95 if what == "set-up" else 0.97, at_least=True)
        for who in WHO[1:]:
            for metric in names:
                label = f"{what}{' ' + metric[:3].upper() if metric.endswith('_rps') else ''}"
                params = {"what": what}
                report.ratio(
                    f"{label}, {who} under bertha-run/without",
                    metric,
                    (who, params),
                    ("none", params),
                    target,
                )
    return report


def _check_server(report: Report, running: Running) -> None:
    """What a server under the shim logged while its clients were plain."""
    assert running.log is not None
    connections = connlog.read(running.log, "server")
    report.carried.setdefault("server", connlog.carried([])).update(connlog.carried(connections))
    wrong = connlog.objection(connections, connlog.PLAIN)
    if wrong is not None:
        report.fail(f"server: {wrong}")
