"""Datagrams a second through the carriers of two hosts, in C and in Python, against plain UDP: `reliable`.

Client and server are in two namespaces joined by veth, each with its own agent and its own carrier.  One
program in Python asks and one echoes; neither knows of chunnels.  The connection log must name the
implementation of both ends.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bertha_socket._bench import interleave, netns
from bertha_socket._bench.report import Cell, Report, Sample
from bertha_socket._bench.stage import Failed, Shim, Stage

PROGRAMS: tuple[str, ...] = ()
PLAIN = "udp"
IMPLEMENTATIONS = ("native", "python")
CONFIGURATIONS: tuple[dict[str, int], ...] = (
    {"size": 64, "outstanding": 32},
    {"size": 64, "outstanding": 1},
    {"size": 1000, "outstanding": 32},
)
_UNITS = {"rate": "1/s"}
_CALIBRATION = 1000
_SCRIPT = str(Path(__file__).with_name("programs") / "datagrams.py")


@dataclass
class Echo:
    """A server, and clients for it; ``implementation`` None: neither end has a shim."""

    stage: Stage
    report: Report
    client: netns.Host
    server: netns.Host
    implementation: str | None
    shim: Shim | None = field(init=False, default=None)
    port: int = field(init=False)

    def __post_init__(self) -> None:
        serving = None
        if self.implementation is not None:
            others = [f"reliable/{name}" for name in IMPLEMENTATIONS if name != self.implementation]
            rule: dict[str, object] = {"proto": "udp", "prohibit": others}
            self.shim = Shim(policy=self.stage.policy(side="client", dag="reliable()", **rule))
            serving = Shim(policy=self.stage.policy(side="server", dag="reliable()", **rule))
        self.port = self.stage.port(self.server)
        argv = [sys.executable, _SCRIPT, self.server.address, str(self.port)]
        self.stage.start(argv, self.server, ready="ready", shim=serving)

    def argv(self, size: int, outstanding: int, count: int) -> list[str]:
        argv = [sys.executable, _SCRIPT, self.server.address, str(self.port)]
        return [*argv, *map(str, (size, outstanding, count))]

    def measure(self, size: int, outstanding: int, count: int) -> Sample:
        """Datagrams a second in each direction."""
        log = self.stage.path(".log")
        shim = self.shim and self.shim.logged(log)
        said = self.stage.run(self.argv(size, outstanding, count), self.client, shim=shim)
        if self.implementation is not None:
            self._check(log)
        return Sample({"rate": count / float(said)})

    def _check(self, log: Path) -> None:
        """Raises Failed: something else carried it."""
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        found = [c["implementation"] for line in lines for c in line["chunnels"] if c["type"] == "reliable"]
        self.report.carried.setdefault(str(self.implementation), Counter()).update(found)
        if found != [self.implementation]:
            raise Failed(f"expected reliable/{self.implementation}, but the log says: {found or lines}")
        by = [line.get("carried_by") for line in lines]
        if by != [self.implementation]:
            raise Failed(f"expected the carrier {self.implementation}, but the log says: {by}")


def run(options: interleave.Options) -> Report:
    rounds = options.rounds_or(3, 9)
    seconds = (0.5 if options.quick else 1.5) * options.scale
    report = Report(
        "datagrams",
        "datagrams there and back a second: plain UDP, and reliable in C and in Python",
        options={"rounds": rounds, "seconds_per_cell": seconds},
    )
    with Stage(own_agents=True) as stage:
        client, server = stage.two_hosts()
        for name in (PLAIN, *IMPLEMENTATIONS):
            echo = Echo(stage, report, client, server, None if name == PLAIN else name)
            for place in CONFIGURATIONS:
                try:
                    first = echo.measure(**place, count=_CALIBRATION).values["rate"]
                except Failed as failed:
                    report.fail(f"{name}: {failed}")
                    continue
                count = max(100, int(first * seconds))
                report.commands.setdefault(name, " ".join(echo.argv(**place, count=count)))
                measure = partial(echo.measure, **place, count=count)
                report.cells.append(Cell(name, dict(place), measure, _UNITS))
        interleave.run(report, rounds, options)
    for place in CONFIGURATIONS:
        what = f"{place['size']} B, {place['outstanding']} under way"
        native, python = (("native", dict(place)), ("python", dict(place)))
        report.ratio(f"{what}: reliable in C, of the one in Python", "rate", native, python)
        report.ratio(f"{what}: reliable in C, of plain UDP", "rate", native, (PLAIN, dict(place)))
    return report
