"""How fast the rows of ``speed`` that have a figure to reach could be here, if what is ours took no time.

A row's programs run over TCP and over shm, and over shm once more under `perf record`.  The processor time of
a request is that of both ends, shared out by whose code the samples were taken in.  Without the part of the
preload library, and then without the kernel's too, a request takes what is left; no way of carrying bytes
can be faster than programs that do nothing but their own work.

Ping-pong and iperf3 do no work of their own.  There the machine is what is left: `bare` is a round trip of
two processes that share a cache line for each direction, or bytes copied into shared memory and out of it.

`calls` is what this library's own calls take where nothing has to come from another processor: with the time
of a line (half of the bare round trip), what a request costs at the least with this library as it is.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import ExitStack
from functools import partial

from bertha_socket._bench import host, interleave, profile, tools, variants
from bertha_socket._bench.pinger import placements
from bertha_socket._bench.report import Cell, Report, Sample
from bertha_socket._bench.speed_load import Ground, Load, unprivileged
from bertha_socket._bench.speed_rows import ROWS as ALL
from bertha_socket._bench.speed_rows import UNITS, Row
from bertha_socket._bench.stage import Failed, Shim, Stage
from bertha_socket._bench.variants import Variant

PROGRAMS: tuple[str, ...] = ()
BARE = "bare"
CALLS = "calls"
#: Rows in which one of the two ends works at a time, or both have one processor.
_IN_TURN = frozenset({"redis/c1", "connect/w1", "asyncio/c1"})
#: Rows of which an end is more than one process: the processors are all that bounds them.
_MANY = frozenset({"postgres/select"})
_ENDS = ("server", "client")
_OWN = "own"
_PARTS = (_OWN, profile.OURS, profile.KERNEL)
_UNITS = UNITS | {f"{end}_{part}": "us" for end in _ENDS for part in _PARTS}
_UNITS |= {"without_ours": "1/s", "without_kernel": "1/s", "cpu_without_ours": "us/request"}


def _has_figure(row: Row) -> bool:
    return any(w.variant == variants.SHM and w.bound is not None and not w.absolute for w in row.wants)


#: Their programs do nothing of their own: the machine is what bounds them.
_MACHINE = ("pingpong/", "iperf3/")
ROWS = tuple(
    row
    for row in ALL
    if row.name.startswith(_MACHINE) or (_has_figure(row) and not row.name.startswith(("floor/", "crowd/")))
)
ROW_NAMES = (CALLS, *(row.name for row in ROWS))


def most(name: str, ends: list[float], processors: int) -> float:
    """Requests a second at the most, when each end of a row takes so many microseconds for one."""
    if name in _IN_TURN or processors == 1:
        longest = sum(ends)
    elif name in _MANY:
        longest = sum(ends) / processors
    else:
        longest = max(ends)
    return 1e6 / longest if longest > 0 else float("inf")


def shared_out(
    name: str, sample: Sample, found: tuple[Counter[str], Counter[str]], processors: int
) -> Sample:
    """What a run gave, and what the samples of another one say of its processor time."""
    whole = sum(found[0].values()) + sum(found[1].values())
    values = dict(sample.values)
    for end, counts in zip(_ENDS, found, strict=True):
        us = {part: values["cpu"] * counts[part] / whole for part in profile.PARTS}
        values[f"{end}_{profile.OURS}"] = us[profile.OURS]
        values[f"{end}_{profile.KERNEL}"] = us[profile.KERNEL]
        values[f"{end}_{_OWN}"] = sum(us.values()) - us[profile.OURS] - us[profile.KERNEL]
    own = [values[f"{end}_{_OWN}"] for end in _ENDS]
    kernel = [values[f"{end}_{profile.KERNEL}"] for end in _ENDS]
    values["cpu_without_ours"] = sum(own) + sum(kernel)
    values["without_ours"] = most(name, [a + b for a, b in zip(own, kernel, strict=True)], processors)
    values["without_kernel"] = most(name, own, processors)
    return Sample(values, sample.pooled)


def _profiled(ground: Ground, name: str, load: Load, shim: Shim | None) -> Sample:
    sample = load.run(shim)
    found = profile.split(ground.stage, load, partial(load.run, shim))
    return shared_out(name, sample, found, len(host.cpus()))


def _plain(load: Load) -> Sample:
    sample = load.run()
    rate = sample.values["rate"]
    same = {"without_ours": rate, "without_kernel": rate, "cpu_without_ours": sample.values["cpu"]}
    return Sample(sample.values | same, sample.pooled)


def _add(ground: Ground, report: Report, row: Row, variant: Variant) -> None:
    load = row.make(ground, variant)
    if variant.shim is None:
        measure = partial(_plain, load)
    elif row.logged:
        use = partial(_profiled, ground, row.name, load)
        measure = partial(variants.measured, ground.stage, report, variant, use)
    else:
        measure = partial(_profiled, ground, row.name, load, None)
    report.cells.append(Cell(variant.name, {"row": row.name}, measure, _UNITS))


def _row(stage: Stage, report: Report, row: Row, options: interleave.Options) -> None:
    with ExitStack() as opened:
        if row.unprivileged:
            stage = opened.enter_context(Stage(user=unprivileged()))
        seconds = max(1.0, (1.5 if options.quick else 3.0) * options.scale)  # perf leaves the start out
        ground = Ground(stage, tools.build(), stage.one_host(), seconds, options.scale, opened)
        part = Report(report.bench, "")
        for given in variants.standard(stage, (variants.TCP, variants.SHM), part):
            variant = variants.brief(given) if row.brief else given
            try:
                _add(ground, part, row, variant)
            except Failed as failed:
                part.fail(f"{row.name} {variant.name}: {failed}")
        interleave.run(part, options.rounds_or(2, 3), options)
    variants.take(report, part, row.name)
    _figures(report, row)


def _figures(report: Report, row: Row) -> None:
    over, under = (variants.SHM, {"row": row.name}), (variants.TCP, {"row": row.name})
    wanted = next(w.bound for w in row.wants if w.variant == variants.SHM and w.bound is not None)
    report.ratio(f"{row.title}: times TCP ({wanted:g} is wanted)", "rate", over, under)
    if row.brief:  # most of its connections are TCP's, which is not bound by the processors
        report.ratio(f"{row.title}: CPU time, times better", "cpu", under, over)
        report.ratio(f"{row.title}: were this library free", "cpu_without_ours", under, over)
        return
    report.ratio(f"{row.title}: at the most, were this library free", "without_ours", over, under)
    report.ratio(f"{row.title}: were the kernel free too", "without_kernel", over, under)


def _bare(ground: Ground, place: str, amount: list[str]) -> Sample:
    client, server = placements()[place]
    argv = [str(ground.programs[BARE]), str(client[0]), str(server[0]), *amount]
    said: dict[str, float] = json.loads(ground.stage.run(argv, ground.host))
    return Sample(said)


def _beside_bare(stage: Stage, report: Report, row: Row, options: interleave.Options) -> None:
    """What the machine itself does, beside TCP and shm."""
    kind, _, place = row.name.partition("/")
    bulk = kind == "iperf3"
    with ExitStack() as opened:
        ground = Ground(stage, tools.build(), stage.one_host(), options.scale, options.scale, opened)
        amount = options.amount(20000, 50000, least=100)
        part = Report(report.bench, "")
        measure = partial(_bare, ground, place, ["--pieces" if bulk else "--requests", str(amount)])
        part.cells.append(Cell(BARE, {"row": row.name}, measure, UNITS))
        for variant in variants.standard(stage, (variants.TCP, variants.SHM), part):
            use = partial(variants.measured, stage, part, variant, row.make(ground, variant).run)
            part.cells.append(Cell(variant.name, {"row": row.name}, use, UNITS))
        interleave.run(part, options.rounds_or(3, 5), options)
    variants.take(report, part, row.name)
    params = {"row": row.name}
    for metric in ("rate",) if bulk else ("p50", "p99"):
        cells = (variants.SHM, params), (variants.TCP, params)
        best = (BARE, params), (variants.TCP, params)
        if not bulk:
            cells, best = cells[::-1], best[::-1]
        report.ratio(f"{row.title}: {metric}, times TCP", metric, *cells)
        report.ratio(f"{row.title}: {metric}, the bare machine's, times TCP", metric, *best)


def _by_themselves(ground: Ground, count: int, shim: Shim | None) -> Sample:
    argv = [str(ground.programs[CALLS]), "--requests", str(count)]
    said: dict[str, float] = json.loads(ground.stage.run(argv, ground.host, shim=shim))
    return Sample(said)


def _calls(stage: Stage, report: Report, options: interleave.Options) -> None:
    """What a send with its recv, and an epoll_wait, take of one thread that has both ends."""
    with ExitStack() as opened:
        ground = Ground(stage, tools.build(), stage.one_host(), options.scale, options.scale, opened)
        part = Report(report.bench, "")
        count = options.amount(50_000, 500_000, least=100)
        for variant in variants.standard(stage, (variants.TCP, variants.SHM), part):
            use = partial(_by_themselves, ground, count)
            measure = partial(variants.measured, stage, part, variant, use)
            part.cells.append(Cell(variant.name, {"row": CALLS}, measure, {"pair": "ns", "wait": "ns"}))
        interleave.run(part, options.rounds_or(3, 5), options)
    variants.take(report, part, CALLS)
    title = "a send and its recv, in one thread: times TCP"
    report.ratio(title, "pair", (variants.TCP, {"row": CALLS}), (variants.SHM, {"row": CALLS}))


def run(options: interleave.Options) -> Report:
    chosen = [name for name in ROW_NAMES if options.chooses(name)]
    report = Report(
        "ceiling",
        "rows of speed: times plain TCP, and at the most if this library, and then the kernel, took no time",
        options={"rows": chosen},
    )
    refusal = profile.unavailable()
    with Stage() as stage:
        if CALLS in chosen:
            options.progress(CALLS)
            _calls(stage, report, options)
        for row in (row for row in ROWS if row.name in chosen):
            options.progress(row.name)
            machine = row.name.startswith(_MACHINE)
            why = row.unusable() or (None if machine else refusal)
            if why is not None:
                report.skipped[row.name] = why
            else:
                (_beside_bare if machine else _row)(stage, report, row, options)
    return report
