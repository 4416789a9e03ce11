"""Where the processor time of a message goes in programs written in Python: the interpreter, us, the kernel.

The same programs over TCP and over shm, both ends under `perf record`; samples are counted by shared object.
`interpreter` is python and its extension modules, `ours` the preload library.  Without perf there is only
the processor time of a message.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from bertha_socket._bench import interleave, profile, tools, variants
from bertha_socket._bench import speed_pairs as pairs
from bertha_socket._bench.report import Cell, Report, Sample
from bertha_socket._bench.speed_load import Asyncio, Ground, Load
from bertha_socket._bench.speed_pairs import Pair
from bertha_socket._bench.speed_rows import Make
from bertha_socket._bench.stage import Failed, Shim, Stage
from bertha_socket._bench.variants import Variant

PROGRAMS: tuple[str, ...] = ()
NAMES = (variants.TCP, variants.SHM)
_UNITS = {"rate": "1/s", "cpu": "us", "requests": ""} | dict.fromkeys(profile.PARTS, "us")


def _redis_py(ground: Ground, variant: Variant) -> Load:
    tools.find("redis-server")
    tools.module("redis")
    ask = pairs.asking_script("redis_asks.py")
    return Pair(ground, variant, pairs.redis_server, ask, ready="Ready to accept connections")


def _gevent(ground: Ground, variant: Variant) -> Load:
    tools.module("gevent")
    return Pair(ground, variant, pairs.script("gevent_echo.py"), pairs.load(10))


def _http(ground: Ground, variant: Variant) -> Load:
    serve, ask = pairs.script("http_pair.py", "server"), pairs.asking_script("http_pair.py", "client")
    return Pair(ground, variant, serve, ask)


_HTTP = "http.server/urllib"
#: What runs.
LOADS: dict[str, Make] = {
    "asyncio/c1": Asyncio,
    "asyncio/c50": partial(Asyncio, connections=50),
    "gevent/c10": _gevent,
    "redis-py/c1": _redis_py,
    _HTTP: _http,
}

ROW_NAMES = tuple(LOADS)


def run(options: interleave.Options) -> Report:
    rounds = options.rounds_or(2, 5)
    seconds = max(0.5, (1.0 if options.quick else 3.0) * options.scale)
    report = Report(
        "python",
        "processor time of a message in Python programs, by whose code it is: TCP and shm",
        options={"rounds": rounds, "seconds": seconds},
    )
    chosen = {name: make for name, make in LOADS.items() if options.chooses(name)}
    refusal = profile.unavailable()
    if refusal is not None:
        report.notes.append(refusal)
    with Stage() as stage, ExitStack() as opened:
        ground = Ground(stage, tools.build(), stage.one_host(), seconds, options.scale, opened)
        for program, make in chosen.items():
            for variant in variants.standard(stage, NAMES, report):
                try:
                    load = make(ground, variant)
                except tools.Unavailable as missing:
                    report.skipped[program] = str(missing)
                    break
                except Failed as failed:
                    report.fail(f"{program} {variant.name}: {failed}")
                    continue
                use = partial(_one, stage, load, refusal is None)
                said = variants.brief(variant) if program == _HTTP else variant
                measure = partial(variants.measured, stage, report, said, use)
                report.cells.append(Cell(variant.name, {"program": program}, measure, _UNITS))
        interleave.run(report, rounds, options)
    for program in LOADS:
        _figures(report, program)
    return report


def _one(stage: Stage, load: Load, profiling: bool, shim: Shim | None) -> Sample:
    return profile.profiled(stage, load, partial(load.run, shim)) if profiling else load.run(shim)


def _figures(report: Report, program: str) -> None:
    params = {"program": program}
    report.ratio(f"{program}: CPU time, shm/tcp", "cpu", (variants.SHM, params), (variants.TCP, params))
    cell = report.cell(variants.SHM, **params)
    if cell is None or profile.OURS not in cell.samples[0].values:
        return
    for part in (profile.INTERPRETER, profile.OURS, profile.KERNEL):
        shares = [a / b for a, b in zip(cell.values(part), cell.values("cpu"), strict=True) if b > 0]
        if shares:
            report.spread(f"{program}: share of {part} over shm", shares, "ratio")
