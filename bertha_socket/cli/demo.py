"""`bertha demo`: a real server and its load, first plain and then under bertha-run, side by side.

redis-server and redis-benchmark when they are installed; otherwise two small programs of
examples/legacy_apps, built on the spot.  The two ways alternate, a round each, so that whatever else the
machine does meets both alike.  What carried the bytes is read from the connection log, never assumed.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bertha_socket._bench import connlog, tools
from bertha_socket._bench.stage import Failed, Running, Shim, Stage

__all__ = ["main"]

_EXIT_FAILED = 1
_PLAIN, _NEGOTIATED = "plain", "under bertha-run"
_SECONDS = 0.5  # about how long one measurement takes
_LEAST = 2000  # requests
_MOST = 200_000
_EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "legacy_apps"


@dataclass(frozen=True)
class Figures:
    """What one run of the load found for one kind of request."""

    per_second: float
    p50_us: float
    p99_us: float


class Pair(Protocol):
    """A server and the load for it; `start` and `run` take the shim to use, or None for a plain program."""

    about: str

    def start(self, shim: Shim | None) -> None:
        """Start the server for plain, or for negotiated, clients."""

    def run(self, requests: int, shim: Shim | None) -> dict[str, Figures]:
        """Put that many requests of each kind to the server that was started with this shim."""


class Redis:
    """redis-server and redis-benchmark, 50 clients, no pipelining."""

    about = "redis-server and redis-benchmark, 50 clients, one request at a time each"

    def __init__(self, stage: Stage) -> None:
        self.stage, self.host = stage, stage.one_host()
        self.server, self.benchmark = tools.find("redis-server"), tools.find("redis-benchmark")
        self.ports: dict[bool, int] = {}

    def start(self, shim: Shim | None) -> None:
        port = self.ports[shim is not None] = self.stage.port(self.host)
        argv = [self.server, "--port", str(port), "--bind", self.host.address, "--save", ""]
        self.stage.start([*argv, "--appendonly", "no"], self.host, ready="Ready to accept", shim=shim)

    def run(self, requests: int, shim: Shim | None) -> dict[str, Figures]:
        argv = [self.benchmark, "-h", self.host.address, "-p", str(self.ports[shim is not None])]
        argv += ["-t", "set,get", "-c", "50", "-n", str(requests), "--csv"]
        rows = list(csv.DictReader(self.stage.run(argv, self.host, shim=shim).splitlines()))
        return {
            row["test"]: Figures(
                float(row["rps"]), 1000 * float(row["p50_latency_ms"]), 1000 * float(row["p99_latency_ms"])
            )
            for row in rows
        }


class KeyValue:
    """examples/legacy_apps: kv_server.c and line_client.py --load."""

    about = "examples/legacy_apps: kv_server and line_client.py, 4 clients"
    _REPORT = re.compile(r"([\d.]+) requests/s, p50 ([\d.]+) us, p99 ([\d.]+) us")

    def __init__(self, stage: Stage) -> None:
        self.stage, self.host = stage, stage.one_host()
        if not _EXAMPLES.is_dir():
            raise Failed("install redis-server and redis-tools, or run the demo in a checkout")
        folder = stage.path("")
        folder.mkdir()
        self.server = str(folder / "kv_server")
        build = [tools.find("cc"), "-O2", "-pthread", "-o", self.server, str(_EXAMPLES / "kv_server.c")]
        stage.run(build, self.host)
        self.ports: dict[bool, int] = {}

    def start(self, shim: Shim | None) -> None:
        port = self.ports[shim is not None] = self.stage.port(self.host)
        argv = [self.server, self.host.address, str(port)]
        self.stage.start(argv, self.host, ready="ready", shim=shim)

    def run(self, requests: int, shim: Shim | None) -> dict[str, Figures]:
        argv = [sys.executable, str(_EXAMPLES / "line_client.py"), self.host.address]
        argv += [str(self.ports[shim is not None]), "--load", "4", str(requests)]
        found = self._REPORT.search(self.stage.run(argv, self.host, shim=shim))
        if found is None:
            raise Failed("line_client.py printed no figures")
        per_second, p50, p99 = map(float, found.groups())
        return {"GET": Figures(per_second, p50, p99)}


@dataclass(frozen=True)
class Carried:
    """Connections of one program and role that went the same way for the same reason."""

    program: str
    role: str
    implementation: str
    reason: str | None
    connections: int


def _carried(path: Path) -> list[Carried]:
    """What the connection log says, most connections first."""
    counted: Counter[tuple[str, str, str, str | None]] = Counter()
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        entry, program = connlog.Connection.parse(line), json.loads(line)["program"]
        counted[program, entry.role, entry.implementation, entry.reason] += 1
    return [Carried(*what, connections) for what, connections in counted.most_common()]


class _Progress:
    """One line on standard error, rewritten on a terminal; nothing with --json."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.terminal = sys.stderr.isatty()

    def say(self, text: str) -> None:
        if not self.quiet:
            head, tail = ("\r\x1b[K", "") if self.terminal else ("", "\n")
            print(f"{head}{text}", end=tail, file=sys.stderr, flush=True)

    def done(self) -> None:
        if not self.quiet and self.terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _choose(stage: Stage) -> Pair:
    try:
        return Redis(stage)
    except tools.Unavailable:
        return KeyValue(stage)


Rounds = dict[str, list[dict[str, Figures]]]


def _measure(pair: Pair, shim: Shim, rounds: int, progress: _Progress) -> Rounds:
    """`rounds` runs of each way, alternating."""
    ways: dict[str, Shim | None] = {_PLAIN: None, _NEGOTIATED: shim}
    requests: dict[str, int] = {}
    for name, way in ways.items():
        progress.say(f"{name}: starting the server, finding out how many requests fill {_SECONDS:g} s")
        pair.start(way)
        rate = min(figures.per_second for figures in pair.run(_LEAST * 2, way).values())
        requests[name] = max(_LEAST, min(_MOST, int(rate * _SECONDS)))
    results: Rounds = {name: [] for name in ways}
    for turn in range(rounds):
        # Each way goes first in every second round.
        for name in list(ways) if turn % 2 == 0 else list(reversed(ways)):
            progress.say(f"round {turn + 1} of {rounds}: {name}, {requests[name]:,} requests of each kind")
            results[name].append(pair.run(requests[name], ways[name]))
    progress.done()
    return results


def _rows(results: Rounds) -> list[dict[str, str | float]]:
    """A row for each kind of request and figure: the median of the rounds, and the median of their ratios."""
    rows: list[dict[str, str | float]] = []
    for kind in results[_PLAIN][0]:
        for what in ("per_second", "p50_us", "p99_us"):
            plain, negotiated = (
                [getattr(run[kind], what) for run in results[name]] for name in (_PLAIN, _NEGOTIATED)
            )
            rows.append(
                {
                    "request": kind,
                    "figure": what,
                    _PLAIN: statistics.median(plain),
                    _NEGOTIATED: statistics.median(negotiated),
                    "ratio": statistics.median(n / p for n, p in zip(negotiated, plain, strict=True)),
                }
            )
    return rows


_HEADINGS = {"per_second": "requests/s", "p50_us": "p50, us", "p99_us": "p99, us"}


def _print_table(about: str, rows: list[dict[str, str | float]], carried: list[Carried]) -> None:
    print(f"{about}\n")
    print(f"{'':<18}{_PLAIN:>14}{_NEGOTIATED:>20}{'ratio':>10}")
    for row in rows:
        heading = f"{row['request']} {_HEADINGS[str(row['figure'])]}"
        print(f"{heading:<18}{row[_PLAIN]:>14,.0f}{row[_NEGOTIATED]:>20,.0f}{row['ratio']:>9.2f}x")
    print("\nWhat carried the connections of the programs under bertha-run, and why (connection log):")
    if not carried:
        print("  the log is empty: nothing shows that the programs were under bertha-run")
    for one in carried:
        how = "kernel TCP" if one.implementation == connlog.PLAIN else one.implementation
        why = one.reason or "the first choice for two programs of one host"
        print(f"  {one.connections:>6,}  {one.program} ({one.role}): {how}; {why}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bertha demo", description="A real program, first plain and then under bertha-run, in a table."
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON, and no progress")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of each way (default 5)")
    parser.add_argument(
        "--no-redis", action="store_true", help="use examples/legacy_apps although redis is installed"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code: 1 when a program failed, or nothing was negotiated."""
    parser = _parser()
    args = parser.parse_args(list(argv))
    if not 1 <= args.rounds <= 20:
        parser.error("--rounds takes a number from 1 to 20")
    progress = _Progress(args.json)
    try:
        with Stage() as stage:
            pair: Pair = KeyValue(stage) if args.no_redis else _choose(stage)
            log = stage.path(".jsonl")
            results = _measure(pair, Shim(log=log), args.rounds, progress)
            _stop(stage.running)
            carried = _carried(log)
            about = pair.about
    except (Failed, tools.Unavailable) as error:
        progress.done()
        print(f"bertha demo: {error}", file=sys.stderr)
        return _EXIT_FAILED
    rows = _rows(results)
    if args.json:
        report = {"about": about, "rounds": args.rounds, "rows": rows, "carried": [vars(c) for c in carried]}
        print(json.dumps(report, indent=2))
    else:
        _print_table(about, rows, carried)
    return 0 if any(c.implementation != connlog.PLAIN for c in carried) else _EXIT_FAILED


def _stop(running: list[Running]) -> None:
    """End the servers now: they log a connection when it closes, at their end at the latest."""
    for program in reversed(running):
        program.stop()
