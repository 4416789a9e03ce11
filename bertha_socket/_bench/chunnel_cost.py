"""What a chunnel's C implementation costs, against the library that it calls, in a loop.

`chunnel` is the functions that the carrier calls (`native/chunnels/`), `library` the library by itself: zstd
and lz4 with contexts that are used again, OpenSSL with a memory BIO in each direction.  Messages of text go
down at one end and up at another; one program does both ways, group by group in turn.

`frame` and `reliable` call no library.  Beside them stands memcpy, to say what they cost, not as a bound:
`frame` also writes and reads a length, and `reliable`, between two ends whose datagrams all arrive, cuts
messages into datagrams, numbers and keeps them, and reads the acknowledgements.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bertha_socket import keys
from bertha_socket._bench import interleave, netns, tools
from bertha_socket._bench.report import Cell, Report, Sample, Target
from bertha_socket._bench.stage import Stage

PROGRAMS: tuple[str, ...] = ()
CHUNNEL, LIBRARY = "chunnel", "library"
KINDS = {
    "zstd": "compress(zstd)",
    "lz4": "compress(lz4)",
    "encrypt": "encrypt",
    "records": "encrypt, by the program itself",
    "frame": "frame",
    "reliable": "reliable",
}
#: Those that have a library to be measured against.
_BOUND = ("zstd", "lz4", "encrypt", "records")
#: The last is the most that compress makes one record of: sixteen of them are a megabyte.
SIZES = (64, 1024, 16384, 65536)
_MEBIBYTE = 1 << 20
_UNITS = {"down": "ns", "up": "ns", "both": "ns", "megabyte": "us"}


@dataclass(frozen=True)
class Case:
    """One type with messages of one size."""

    stage: Stage
    host: netns.Host
    program: Path
    kind: str
    size: int
    milliseconds: int
    material: tuple[str, str]

    def argv(self) -> list[str]:
        return [str(self.program), self.kind, str(self.size), str(self.milliseconds), *self.material]

    def measure(self) -> dict[str, Sample]:
        said = json.loads(self.stage.run(self.argv(), self.host))
        samples = {}
        for way, found in said.items():
            both = found["down"] + found["up"]
            megabyte = both / 1000 * _MEBIBYTE / self.size
            samples[way] = Sample({**found, "both": both, "megabyte": megabyte})
        return samples


def _material(stage: Stage) -> tuple[str, str]:
    """A certificate and its key, as a cluster's key makes them."""
    try:
        made = keys.material(bytes(32))
    except ImportError as missing:
        raise tools.Unavailable(f"encrypt needs the Python package cryptography: {missing}") from None
    paths = []
    for name in ("certificate", "key"):
        path = stage.path(".pem")
        path.touch(mode=0o600)
        path.write_text(made[name], encoding="ascii")
        paths.append(str(path))
    return paths[0], paths[1]


def run(options: interleave.Options) -> Report:
    rounds = options.rounds_or(3, 9)
    milliseconds = max(5, int((60 if options.quick else 200) * options.scale))
    report = Report(
        "chunnel-cost",
        "messages of text through each chunnel's C implementation, and through its library alone",
        options={"rounds": rounds, "milliseconds": milliseconds},
    )
    program = tools.build_chunnel_cost()
    with Stage() as stage:
        host = stage.one_host()
        material = _material(stage)
        for kind in KINDS:
            for size in SIZES:
                case = Case(stage, host, program, kind, size, milliseconds, material)
                together = interleave.Together(case.measure)
                report.commands.setdefault(kind, " ".join(case.argv()))
                for way in (CHUNNEL, LIBRARY):
                    params = {"kind": kind, "size": size}
                    report.cells.append(Cell(way, params, partial(together.take, way), _UNITS))
        interleave.run(report, rounds, options)
    for kind, title in KINDS.items():
        for size in SIZES:
            for metric in ("down", "up", "both"):
                params = {"kind": kind, "size": size}
                wanted = metric == "both" and kind in _BOUND
                report.ratio(
                    f"{title}, {size} B, {metric}: speed of the library's",
                    metric,
                    (LIBRARY, params),
                    (CHUNNEL, params),
                    Target(0.85, at_least=True, source="issue 3") if wanted else None,
                )
    return report
