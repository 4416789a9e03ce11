"""The time to the first answer of a connection with chunnels, between two hosts, against plain TCP.

Client and server are in two namespaces joined by veth, each with its own agent and its own carrier.  The
server alone has a policy; the client is a plain program under `bertha-run`.  Timed by our own client from
before `socket()` until the first answer of 64 B is there:

- ``first``: the first connection to a server that the client's agent has not heard of;
- ``process``: the first connection of a new process to a server that the agent knows;
- ``repeated``: the connections after that one.

Round trips are counted, not timed: packets on the veth that say something, in runs of one direction.  There
``strangers`` is the first of all, when the two agents have never spoken.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from bertha_socket._bench import interleave, netns, tools, variants
from bertha_socket._bench.pinger import Pinger
from bertha_socket._bench.report import Cell, Report, Sample
from bertha_socket._bench.stage import Failed, Running, Shim, Stage
from bertha_socket._bench.variants import Variant

PROGRAMS: tuple[str, ...] = ()
TCP = "tcp"
DAGS = {
    "compress": "compress(level=3)",
    "encrypt": "encrypt()",
    "compress+encrypt": "compress(level=3) |> encrypt()",
}
MOMENTS = ("first", "process", "repeated")
_UNITS = dict.fromkeys(MOMENTS, "us")
_REPEATED = 20
_COUNTED = 4
#: The agents' own port: what goes to it is theirs, not the connection's.
_AGENTS = 7277


@dataclass
class Setup:
    """One variant: new servers, and clients for them."""

    stage: Stage
    report: Report
    programs: dict[str, Path]
    client: netns.Host
    server: netns.Host
    variant: Variant
    serving: Variant
    #: Counted before the rounds, a line for each moment.
    counted: dict[str, dict[str, float]] = field(default_factory=dict)

    def _pinger(self) -> Pinger:
        return Pinger(
            *(self.stage, self.programs, self.client, self.server, self.variant, 64, "any"),
            server_variant=self.serving,
        )

    def measure(self) -> Sample:
        """A new server; two client processes, one after the other."""
        pinger = self._pinger()
        log = self.stage.path(".log")
        try:
            first = pinger.ping(1, 1, variant=self.variant.logged(log)).whole
            whole = pinger.ping(1 + _REPEATED, 1, variant=self.variant.logged(log)).whole
        finally:
            pinger.running.stop()
        if self.variant.shim is not None:
            variants.check(self.report, self.variant, log)
        return Sample(
            {"first": first[0], "process": whole[0], "repeated": statistics.median(whole[1:])},
            pooled={"repeated": whole[1:]},
        )

    def count(self) -> None:
        """Round trips of each moment, and the agents' own of them: the least of some connections, for two
        packets that do not wait for each other may cross or not."""
        strangers = True
        for _ in range(_COUNTED):
            pinger = self._pinger()
            try:
                for moment in ("strangers" if strangers else "first", "process"):
                    found = self._flights(pinger)
                    known = self.counted.setdefault(moment, found)
                    self.counted[moment] = min(known, found, key=lambda one: one["round_trips"])
            finally:
                pinger.running.stop()
            strangers = False

    def _flights(self, pinger: Pinger) -> dict[str, float]:
        """Of one connection that is opened, carries a request and its answer, and stays open."""
        script = str(Path(__file__).with_name("flights.py"))
        watch = [sys.executable, script, self.client.address]
        watching = self.stage.start(watch, self.client, ready="ready", stdin=True)
        hold = [str(self.programs["hold"]), pinger.target, "--count", "1", "--touch", "64"]
        try:
            holding = self.stage.start(hold, self.client, ready="holding", shim=self.variant.shim, stdin=True)
            time.sleep(0.05)  # what is still under way has nothing to do with the answer, but let it be seen
            said = _ended(watching)
            holding.stop()
        finally:
            watching.stop()
        flights = waited_for(json.loads(said.splitlines()[-1])["flights"])
        return {"round_trips": round_trips(flights), "agents": round_trips(flights, _AGENTS)}


def _ended(running: Running) -> str:
    """What a program has said that ends with its standard input."""
    assert running.process.stdin is not None
    running.process.stdin.close()
    if running.process.wait(timeout=10) != 0:
        raise Failed(f"flights.py: {running.text().strip()}")
    return running.text()


Flight = tuple[int, str, int, str]


def waited_for(flights: list[Flight]) -> list[Flight]:
    """Without what agents say by a connection when a datagram has had its answer: nobody waits for that."""
    if (_AGENTS, "in", "udp") not in {(far, way, proto) for far, way, _, proto in flights}:
        return flights
    return [f for f in flights if f[0] != _AGENTS or f[3] == "udp"]


def round_trips(flights: list[Flight], port: int | None = None) -> int:
    """How often something went out and something came back after it; of all ports, or of one."""
    ways = [flight[1] for flight in flights if port is None or flight[0] == port]
    return sum(1 for before, after in pairwise(ways) if (before, after) == ("out", "in"))


def run(options: interleave.Options) -> Report:
    rounds = options.rounds_or(3, 15)
    report = Report(
        "chunnel-setup",
        "first answer of a connection, between two hosts: plain TCP, and chunnels that the server wants",
        options={"rounds": rounds, "repeated_connections": _REPEATED},
    )
    programs = tools.build()
    with Stage(own_agents=True) as stage:
        client, server = stage.two_hosts()
        stage.cluster_key = stage.path(".cluster")
        stage.cluster_key.touch(mode=0o600)
        stage.cluster_key.write_bytes(os.urandom(32))
        plain = Variant(TCP, "plain TCP", nodelay=True)
        chosen = [(plain, plain)]
        chosen += [
            (
                Variant(name, f"bertha-run: {dag}", nodelay=True, shim=Shim(), expects=name),
                Variant(name, dag, nodelay=True, shim=Shim(policy=stage.policy(side="server", dag=dag))),
            )
            for name, dag in DAGS.items()
        ]
        for variant, serving in chosen:
            setup = Setup(stage, report, programs, client, server, variant, serving)
            try:
                setup.count()
            except Failed as failed:
                report.fail(f"{variant.name}: {failed}")
                continue
            cell = Cell(variant.name, {}, setup.measure, _UNITS)
            for moment, counts in setup.counted.items():
                cell.counted |= {f"{moment}_{what}": value for what, value in counts.items()}
            report.cells.append(cell)
        interleave.run(report, rounds, options)
    for name in DAGS:
        for moment in MOMENTS:
            report.ratio(f"{moment}: {name}/{TCP}", moment, (name, {}), (TCP, {}))
        over, under = report.cell(name), report.cell(TCP)
        if over is None or under is None:
            continue
        for moment in ("strangers", "first", "process"):
            beyond = over.counted[f"{moment}_round_trips"] - under.counted[f"{moment}_round_trips"]
            report.number(f"{moment}: {name}, round trips beyond TCP's", beyond, "round trips")
    return report
