"""What a program under ``bertha-run`` pays when its peers are plain: throughput and set-up, with/without.

``client``: only the client is under the shim; ``server``: only the server is; ``none``: the yardstick;
``control``: the yardstick once more, so that its ratio shows what this machine's noise alone does.  The
small programs run on one processor, where nothing hides behind a wake-up.  Besides rates there is the
processor time of both ends together, which other work on the machine disturbs less.

``first exchange``: from ``socket()`` until the first 64 bytes from the other end are there, on connection
after connection, whoever speaks first.  An end that waited for a partner who never comes would show there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bertha_socket._bench import connlog, interleave, netns, stats, tools
from bertha_socket._bench.bulk import UNITS as BULK_UNITS
from bertha_socket._bench.bulk import Stream
from bertha_socket._bench.pinger import Pinger, placements
from bertha_socket._bench.redispair import TESTS, RedisLoad, RedisServer, processor_ns
from bertha_socket._bench.redispair import UNITS as REDIS_UNITS
from bertha_socket._bench.report import Cell, Report, Sample, Target
from bertha_socket._bench.setup import Rater
from bertha_socket._bench.stage import Shim, Stage
from bertha_socket._bench.variants import Variant

PROGRAMS = ("redis-server", "redis-benchmark", "iperf3")
WHO = ("none", "control", "client", "server")
_SHIMMED = ("client", "server")
_SPEAKS = {"client": False, "server": True}
_FIRST = {who: f"first exchange, {who} first" for who in _SPEAKS}
_FIRST_METRICS = ("p50", "p95")
#: Microseconds: "no added wait beyond a few hundred".
_ADDED = 300.0
_UNITS = (
    BULK_UNITS
    | REDIS_UNITS
    | {"rate": "1/s", "connections": "1/s", "cpu": "us"}
    | dict.fromkeys(_FIRST_METRICS, "us")
)
_METRICS: Mapping[str, tuple[str, ...]] = {
    "request/response 64 B": ("rate", "cpu"),
    "redis c50": ("get_rps", "set_rps", "cpu"),
    "redis c50 P16": ("get_rps", "set_rps", "cpu"),
    "iperf3": ("rate",),
    "set-up": ("connections", "cpu"),
}


@dataclass
class _Set:
    """One of WHO: its servers run, its clients can."""

    who: str
    client: Variant
    pinger: Pinger
    rater: Rater
    stream: Stream
    load: RedisLoad
    piped: RedisLoad
    first: dict[str, Pinger]

    @classmethod
    def make(
        cls, stage: Stage, programs: dict[str, Path], host: netns.Host, who: str, log: Path | None = None
    ) -> _Set:
        """``log``: where the server's side writes its connections, if it has a shim."""
        plain = Variant("none", "without")
        client = Variant(who, "client under bertha-run", shim=Shim()) if who == "client" else plain
        server = Variant(who, "server under bertha-run", shim=Shim(log=log)) if who == "server" else plain
        redis = RedisServer(stage, host, server.shim)
        cores = list(placements())[-1]
        return cls(
            who,
            client,
            Pinger(stage, programs, host, host, client, 64, "one", server),
            Rater(stage, programs, host, client, 0, "one", server),
            Stream(stage, host, client.shim, server.shim),
            RedisLoad(redis, client.shim),
            RedisLoad(redis, client.shim, pipeline=16),
            {
                speaker: Pinger(
                    stage, programs, host, host, client, 64, cores, server, server_first=server_first
                )
                for speaker, server_first in _SPEAKS.items()
            },
        )

    def short(self, variant: Variant) -> None:
        """A little of everything, for the proof."""
        for pinger in (self.pinger, *self.first.values()):
            pinger.probe(variant)
        self.rater.probe(variant)
        self.load.run(1000, variant.shim)
        self.stream.run(0.05, variant.shim)

    def stop(self) -> None:
        pingers = (self.pinger, *self.first.values())
        for running in (*(p.running for p in pingers), self.rater.running, self.stream.running):
            running.stop()
        self.load.server.running.stop()

    def ping(self, requests: int) -> Sample:
        before = processor_ns(self.pinger.running.pid)
        times = self.pinger.ping(1, requests)
        spent = (processor_ns(self.pinger.running.pid) - before) / 1000 + times.cpu_us
        return Sample({"rate": requests / times.wall_us * 1e6, "cpu": spent / requests})

    def first_exchange(self, speaker: str, count: int) -> Sample:
        whole = self.first[speaker].ping(count, 1).whole
        spread = stats.percentiles(whole)
        return Sample({metric: spread[metric] for metric in _FIRST_METRICS}, {"whole": whole})

    def redis(self, load: RedisLoad) -> Sample:
        """One run; what bertha-run takes before it becomes the program is left out of the processor time."""
        server = load.server
        server.stage.run([tools.find("true")], server.host, shim=load.shim)
        starting = server.stage.client_cpu_us
        sample = load.run()
        requests = load.requests * len(TESTS)
        spent = (server.stage.client_cpu_us - starting) / requests + sample.values["server_cpu"]
        return Sample(sample.values | {"cpu": spent})

    def connect(self, count: int) -> Sample:
        before = processor_ns(self.rater.running.pid)
        values = self.rater.measure(count, 4).values
        spent = (processor_ns(self.rater.running.pid) - before) / 1000
        return Sample({"connections": values["rate"], "cpu": values["client_cpu"] + spent / count})


def _prove(stage: Stage, report: Report, programs: dict[str, Path], host: netns.Host, who: str) -> None:
    """That all connections are plain, from the log of the side that has the shim."""
    log = stage.path(".log")
    made = _Set.make(stage, programs, host, who, log)
    made.short(made.client.logged(log))
    made.stop()
    connections = connlog.read(log, who)
    report.carried[who] = connlog.carried(connections)
    wrong = connlog.objection(connections, connlog.PLAIN)
    if wrong is not None:
        report.fail(f"{who}: {wrong}")


def run(options: interleave.Options) -> Report:
    rounds = options.rounds_or(7, 31)
    requests = options.amount(10000, 20000, least=100)
    count = options.amount(1500, 3000, least=20)
    first = options.amount(200, 500, least=20)
    seconds = (0.2 if options.quick else 0.4) * options.scale
    least = options.amount(5000, 10000, least=200)
    report = Report(
        "plain-overhead",
        "programs of which one is under bertha-run and its peer is not, against the same without a shim",
        options={"rounds": rounds, "requests": requests, "connections": count, "redis_seconds": seconds}
        | {"first_exchanges": first},
    )
    programs = tools.build()
    chosen: tuple[str, ...] = WHO
    try:
        tools.shim_library()
    except tools.Unavailable as missing:
        report.skipped |= {who: str(missing) for who in _SHIMMED}
        chosen = tuple(who for who in WHO if who not in _SHIMMED)
    with Stage() as stage:
        host = stage.one_host()
        for who in chosen:
            if who in _SHIMMED:
                _prove(stage, report, programs, host, who)
        sets = [_Set.make(stage, programs, host, who) for who in chosen]
        plain, piped = sets[0].load.calibrate(seconds, least), sets[0].piped.calibrate(seconds, least)
        for made in sets:
            made.load.requests, made.piped.requests = plain, piped
        for speaker, what in _FIRST.items():
            for made in sets:
                once = partial(made.first_exchange, speaker, first)
                report.cells.append(Cell(made.who, {"what": what}, once, _UNITS))
        for what in _METRICS:
            for made in sets:
                measures: dict[str, Callable[[], Sample]] = {
                    "request/response 64 B": partial(made.ping, requests),
                    "set-up": partial(made.connect, count),
                    "redis c50": partial(made.redis, made.load),
                    "redis c50 P16": partial(made.redis, made.piped),
                    "iperf3": partial(made.stream.run, 1.0 * options.scale),
                }
                report.cells.append(Cell(made.who, {"what": what}, measures[what], _UNITS))
        interleave.run(report, rounds, options)
    _figures(report)
    _added(report)
    return report


def _added(report: Report) -> None:
    """What an exchange on a new connection waits longer than without a shim, round by round."""
    for what in _FIRST.values():
        for metric in _FIRST_METRICS:
            for who in WHO[1:]:
                ours, plain = report.cell(who, what=what), report.cell("none", what=what)
                if ours is None or plain is None:
                    continue
                pairs = zip(ours.values(metric), plain.values(metric), strict=False)
                name = f"{who} under bertha-run" if who in _SHIMMED else "control"
                judged = who in _SHIMMED and metric == "p50"  # the tail is the machine's: see the control's
                target = Target(_ADDED, at_least=False) if judged else None
                values = [a - b for a, b in pairs]
                report.spread(f"{what}, {metric} added, {name}", values, "us", target)


def _figures(report: Report) -> None:
    labels = {"get_rps": " GET", "set_rps": " SET", "cpu": " processor time"}
    for what, metrics in _METRICS.items():
        for metric in metrics:
            bound = 0.95 if what == "set-up" else 0.97
            for who in WHO[1:]:
                judged = metric != "cpu" and who in _SHIMMED
                target = Target(bound, at_least=True) if judged else None
                name = f"{who} under bertha-run/without" if who in _SHIMMED else "control: without/without"
                label = f"{what}{labels.get(metric, '')}, {name}"
                report.ratio(label, metric, (who, {"what": what}), ("none", {"what": what}), target)
