"""Datagrams between two hosts through chains of chunnels, in C and in Python, against plain UDP.

Client and server are in two namespaces joined by veth, each with its own agent and its own carrier.  One
program in Python asks and one echoes; neither knows of chunnels.  A row is a chain: `reliable` alone, and
what stands on it.  After each measurement the client's connection log and what the server's agent says of the
server's socket (`bertha ps`) must name that chain, in that implementation, in that carrier and no other.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bertha_socket._bench import interleave, netns
from bertha_socket._bench.report import Cell, Report, Sample
from bertha_socket._bench.stage import Failed, Shim, Stage
from bertha_socket.agent.client import agent_status
from bertha_socket.dag import parse

PROGRAMS: tuple[str, ...] = ()
PLAIN = "udp"
IMPLEMENTATIONS = ("native", "python")
#: A program's datagrams are messages, and what is between `frame` and `reliable` works on a stream.  The
#: algorithm is named, for a Python without the one would take the other.
DAGS = {
    "reliable": "reliable()",
    "encrypt": "frame() |> encrypt() |> reliable()",
    "compress+encrypt": 'frame() |> compress(algorithm="zstd") |> encrypt() |> reliable()',
}
ROW_NAMES = tuple(DAGS)
CONFIGURATIONS: tuple[dict[str, int], ...] = (
    {"size": 64, "outstanding": 32},
    {"size": 64, "outstanding": 1},
    {"size": 1000, "outstanding": 32},
    {"size": 16384, "outstanding": 4},
)
_UNITS = {"rate": "1/s", "megabytes": "MB/s", "p50": "us", "p99": "us"}
_CALIBRATION = 200
_SCRIPT = str(Path(__file__).with_name("programs") / "datagrams.py")


@dataclass(frozen=True)
class Chain:
    """What carries the datagrams; without an implementation: plain UDP, and neither end has a shim."""

    row: str = PLAIN
    implementation: str | None = None

    @property
    def name(self) -> str:
        """Of the variant."""
        return self.row if self.implementation is None else f"{self.row}-{self.implementation}"

    @property
    def rule(self) -> dict[str, object]:
        """For both ends' policies."""
        others = [f"*/{name}" for name in IMPLEMENTATIONS if name != self.implementation]
        return {"proto": "udp", "dag": DAGS[self.row], "prohibit": others}

    @property
    def chunnels(self) -> list[tuple[str, str | None]]:
        """As the connection log has them."""
        types = [c.type for c in parse(DAGS[self.row]).chunnels]
        return [*((t, self.implementation) for t in types), ("local_or_remote", "udp")]

    def problem(self, line: Mapping[str, Any]) -> str | None:
        """Why a line of the log is not about this chain."""
        found = [(c["type"], c["implementation"]) for c in line["chunnels"]]
        if line["plain"] or found != self.chunnels:
            return f"expected {self.chunnels}, but the log says: {found}, {line['reason']}"
        by = line.get("carried_by"), line.get("beside")
        if by != (self.implementation, None):
            return f"expected the carrier {self.implementation} alone, but the log says: {by}"
        return None


@dataclass
class Echo:
    """A server, and clients for it."""

    stage: Stage
    report: Report
    client: netns.Host
    server: netns.Host
    chain: Chain
    shim: Shim | None = field(init=False, default=None)
    port: int = field(init=False)

    def __post_init__(self) -> None:
        serving = None
        if self.chain.implementation is not None:
            self.shim = Shim(policy=self.stage.policy(side="client", **self.chain.rule))
            serving = Shim(policy=self.stage.policy(side="server", **self.chain.rule))
        self.port = self.stage.port(self.server)
        argv = [sys.executable, _SCRIPT, self.server.address, str(self.port)]
        self.stage.start(argv, self.server, ready="ready", shim=serving)

    def argv(self, size: int, outstanding: int, count: int) -> list[str]:
        argv = [sys.executable, _SCRIPT, self.server.address, str(self.port)]
        return [*argv, *map(str, (size, outstanding, count))]

    def measure(self, size: int, outstanding: int, count: int) -> Sample:
        """Datagrams a second in each direction, and their bytes; of one at a time also how long it takes."""
        log = self.stage.path(".log")
        shim = self.shim and self.shim.logged(log)
        said = json.loads(self.stage.run(self.argv(size, outstanding, count), self.client, shim=shim))
        if shim is not None:
            self._check(log, size * count)
        rate = count / said.pop("seconds")
        times = {name: seconds * 1e6 for name, seconds in said.items()}
        return Sample({"rate": rate, "megabytes": rate * size / 1e6, **times})

    def _check(self, log: Path, least: int) -> None:
        """Raises Failed: something else carried it, at either end, or not all of it."""
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        if len(lines) != 1 or min(lines[0]["tx_bytes"], lines[0]["rx_bytes"]) < least:
            raise Failed(f"expected one line of {least} bytes each way, but the log says: {lines}")
        lines += self._serving()
        counts = self.report.carried.setdefault(self.chain.name, Counter())
        for line in lines:
            problem = self.chain.problem(line)
            if problem is not None:
                raise Failed(f"{line['role']}: {problem}")
            counts[self.chain.name] += 1

    def _serving(self) -> list[dict[str, Any]]:
        """The server's socket, as `bertha ps` has it."""
        where = f"{self.server.address}:{self.port}"
        live = agent_status(str(self.stage.agent_socket(self.server)))["connections"]
        found = [c for c in live if (c["role"], c["proto"], c["local"]) == ("server", "udp", where)]
        if len(found) != 1:
            raise Failed(f"the server's agent knows {len(found)} UDP sockets at {where}: {live}")
        return found


def _chosen(options: interleave.Options) -> list[str]:
    return [row for row in ROW_NAMES if not options.only or row in options.only]


def _give_key(stage: Stage) -> None:
    stage.cluster_key = stage.path(".cluster")
    stage.cluster_key.touch(mode=0o600)
    stage.cluster_key.write_bytes(os.urandom(32))


def run(options: interleave.Options) -> Report:
    rounds = options.rounds_or(3, 9)
    seconds = (0.3 if options.quick else 0.8) * options.scale
    rows = _chosen(options)
    report = Report(
        "datagrams",
        "datagrams there and back a second: plain UDP, and chains on reliable in C and in Python",
        options={"rounds": rounds, "seconds_per_cell": seconds},
    )
    with Stage(own_agents=True) as stage:
        client, server = stage.two_hosts()
        _give_key(stage)
        chains = [Chain(), *(Chain(row, name) for row in rows for name in IMPLEMENTATIONS)]
        echoes = [Echo(stage, report, client, server, chain) for chain in chains]
        for place in CONFIGURATIONS:
            for echo in echoes:
                try:
                    first = echo.measure(**place, count=_CALIBRATION).values["rate"]
                except Failed as failed:
                    report.fail(f"{echo.chain.name}: {failed}")
                    continue
                count = max(50, int(first * seconds))
                report.commands.setdefault(echo.chain.name, " ".join(echo.argv(**place, count=count)))
                measure = partial(echo.measure, **place, count=count)
                report.cells.append(Cell(echo.chain.name, dict(place), measure, _UNITS))
        interleave.run(report, rounds, options)
    for row in rows:
        for place in CONFIGURATIONS:
            _ratios(report, row, place)
    return report


def _ratios(report: Report, row: str, place: dict[str, int]) -> None:
    """Above 1 is better: of rates the chain's by the other's, of round trips the other's by the chain's."""
    native, python = ((Chain(row, name).name, place) for name in IMPLEMENTATIONS)
    plain, alone = (PLAIN, place), (Chain("reliable", "native").name, place)
    what = f"{place['size']} B, {place['outstanding']} under way: {row} in C"
    for other, of in ((python, "the same in Python"), (plain, "plain UDP"), (alone, "reliable alone in C")):
        if other == native:
            continue
        report.ratio(f"{what}, of {of}", "rate", native, other)
        if place["outstanding"] == 1:
            for mark in ("p50", "p99"):
                report.ratio(f"{what}, of {of}: {mark}", mark, other, native)
