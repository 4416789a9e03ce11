"""What `send` and `recv` of `bertha_socket.new` cost for a small message, against bare cffi calls.

`bare-cffi` is `lib.send(fd, buffer, 64, 0)` and `lib.recv(fd, buffer, 65536, 0)` of cffi in API mode,
with buffers that exist already: the same functions of the preload library, on the same two descriptors of the
same connection, and it makes no bytes object.  `socket` is Python's `sendall` and `recv` on them.  One thread
has both ends, so that nothing is waited for (see `new_cost.py`).
"""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bertha_socket._bench import interleave, netns, variants
from bertha_socket._bench.report import Cell, Report, Sample, Target
from bertha_socket._bench.stage import Stage
from bertha_socket._bench.variants import Variant

PROGRAMS: tuple[str, ...] = ()
NEW, BARE, SOCKET = "new", "bare-cffi", "socket"
WAYS = (NEW, BARE, SOCKET)
_UNITS = {"send": "ns", "recv": "ns", "pair": "ns"}
_SCRIPT = Path(__file__).with_name("new_cost.py")


@dataclass
class Program:
    """The program that measures all ways in turn."""

    stage: Stage
    report: Report
    host: netns.Host
    variant: Variant
    batches: int
    count: int

    def argv(self) -> list[str]:
        port = self.stage.port(self.host)
        numbers = [str(port), str(self.batches), str(self.count)]
        return [sys.executable, str(_SCRIPT), self.host.address, *numbers]

    def measure(self) -> dict[str, Sample]:
        log = self.stage.path(".log")
        shim = self.variant.shim and self.variant.shim.logged(log)
        said = json.loads(self.stage.run(self.argv(), self.host, shim=shim))
        variants.check(self.report, self.variant, log)
        samples = {}
        for way, found in said.items():
            send, pair = statistics.median(found["send"]), statistics.median(found["pair"])
            samples[way] = Sample({"send": send, "recv": pair - send, "pair": pair})
        return samples


def run(options: interleave.Options) -> Report:
    rounds = options.rounds_or(3, 9)
    batches, count = options.amount(10, 30, least=2), options.amount(4000, 10000, least=1000)
    report = Report(
        "new",
        "64 B sent and received by bertha_socket.new, by bare cffi calls, by Python's socket; one thread",
        options={"rounds": rounds, "batches": batches, "messages_per_batch": count},
    )
    with Stage() as stage:
        host = stage.one_host()
        for variant in variants.standard(stage, (variants.SHM,), report):
            program = Program(stage, report, host, variant, batches, count)
            report.commands[variant.name] = " ".join(program.argv())
            together = interleave.Together(program.measure)
            for way in WAYS:
                report.cells.append(Cell(way, {"by": variant.name}, partial(together.take, way), _UNITS))
        interleave.run(report, rounds, options)
    for metric in _UNITS:
        for way in (NEW, SOCKET):
            report.ratio(
                f"{metric} of 64 B: {way}/{BARE}",
                metric,
                (way, {}),
                (BARE, {}),
                Target(1.3, at_least=False, source="issue 4") if way == NEW else None,
            )
    return report
