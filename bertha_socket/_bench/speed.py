"""All that issue 4 wants to be fast, in one table: how many times better than plain TCP, and what it costs.

Each row has its variants interleaved, round by round, and is finished before the next begins.  After its
rounds the system calls of one more, short run are counted for both ends.  Rows whose programs are not
installed are skipped and say so.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from bertha_socket._bench import (
    interleave,
    peers,
    speed_datagrams,
    speed_rows,
    speed_waits,
    system_calls,
    tools,
    variants,
)
from bertha_socket._bench.idle import UNITS as IDLE_UNITS
from bertha_socket._bench.idle import Crowd
from bertha_socket._bench.report import Cell, Report, Sample, Target
from bertha_socket._bench.speed_load import Ground, Load, unprivileged
from bertha_socket._bench.speed_rows import LESS, UNITS, Row, Want
from bertha_socket._bench.stage import Failed, Stage
from bertha_socket._bench.variants import Variant

PROGRAMS: tuple[str, ...] = ()
IDLE = "idle/1000"
ROWS: tuple[Row, ...] = (*speed_rows.ROWS, *speed_waits.ROWS, *speed_datagrams.ROWS)
ROW_NAMES = (*(row.name for row in ROWS), IDLE)
_SOURCE = "issue 4"
_LABELS = {"rate": "rate", "p50": "p50", "p99": "p99", "cpu": "CPU time"}
#: How long system calls are counted, of a round's time.
_COUNTING = 0.3
#: The time for a row's rounds, where the caller chose no budget for all of them.
_ROW_SECONDS = 60.0


def _add(ground: Ground, report: Report, row: Row, variant: Variant) -> Load | None:
    """A cell for this variant, proved to be what it is called; its load."""
    try:
        load = row.make(ground, variant)
    except Failed as failed:
        report.fail(f"{row.name} {variant.name}: {failed}")
        return None
    measure: Callable[[], Sample] = load.run
    if variant.shim is not None and variant.shim.instead:
        measure = partial(peers.measured, report, variant, ground.host, load.run)
    elif row.logged:
        measure = partial(variants.measured, ground.stage, report, variant, load.run)
    elif not variants.prove(ground.stage, report, variant, lambda logged: load.run(logged.shim)):
        return None
    report.cells.append(Cell(variant.name, {"row": row.name}, measure, UNITS))
    return load


def _count(ground: Ground, report: Report, row: Row, loads: dict[str, Load]) -> None:
    counter = system_calls.SystemCalls(ground)
    whole, ground.seconds = ground.seconds, ground.seconds * _COUNTING
    for name, load in loads.items():
        try:
            serving, asking = counter.count(load, load.run)
        except Failed as failed:
            report.notes.append(f"{row.name} {name}: system calls not counted: {failed}")
            continue
        cell = report.cell(name, row=row.name)
        if cell is not None:
            cell.counted["server_calls"] = serving
            if asking is not None:
                cell.counted["client_calls"] = asking
    ground.seconds = whole


def _judge(report: Report, row: Row, want: Want) -> None:
    over, under = (want.variant, {"row": row.name}), (want.under, {"row": row.name})
    label = _LABELS[want.metric]
    if want.absolute:
        cell = report.cell(*over[:1], **over[1])
        if cell is not None and want.bound is not None:
            report.spread(
                f"{row.title}: {want.variant} {label}",
                cell.values(want.metric),
                UNITS[want.metric],
                Target(want.bound, at_least=False, source=_SOURCE),
            )
        return
    if want.metric in LESS:
        over, under = under, over
    target = None if want.bound is None else Target(want.bound, at_least=True, source=_SOURCE)
    than = "" if want.under == variants.TCP else f" than {want.under}"
    report.ratio(f"{row.title}: {want.variant} {label}, times better{than}", want.metric, over, under, target)


def _row(stage: Stage, report: Report, row: Row, options: interleave.Options, counting: bool) -> None:
    seconds = (0.4 if options.quick else 1.0) * options.scale * row.share
    with ExitStack() as opened:
        if row.unprivileged:
            stage = opened.enter_context(Stage(user=unprivileged()))
        ground = Ground(stage, tools.build(), stage.one_host(), seconds, options.scale, opened)
        part = Report(report.bench, "")
        loads: dict[str, Load] = {}
        for given in row.choose(ground, part):
            variant = variants.brief(given) if row.brief else given
            load = _add(ground, part, row, variant)
            if load is not None:
                loads[variant.name] = load
        interleave.run(part, options.rounds_or(3, 7), options)
        if counting and "setting" not in row.name:
            _count(ground, part, row, loads)
    variants.take(report, part, row.name)
    for want in row.wants:
        _judge(report, row, want)


def _idle(stage: Stage, report: Report, options: interleave.Options) -> None:
    """1000 connections that do nothing: processor time of both programs."""
    count = options.amount(1000, 1000, least=20)
    seconds = max(0.2, (1.0 if options.quick else 3.0) * options.scale)
    stage.raise_descriptor_limit()
    place = stage.one_host()
    part = Report(report.bench, "")
    for variant in variants.standard(stage, (variants.TCP, variants.SHM), part):
        crowd = Crowd(stage, tools.build(), place, variant, count, 64, 64, seconds)

        def measure(crowd: Crowd = crowd) -> Sample:
            return Sample({"idle_cpu": crowd.measure(part).values["cpu"]})

        part.cells.append(Cell(variant.name, {"row": IDLE}, measure, {"idle_cpu": IDLE_UNITS["cpu"]}))
    interleave.run(part, options.rounds_or(1, 3), options)
    variants.take(report, part, IDLE)
    ours, plain = part.cell(variants.SHM), part.cell(variants.TCP)
    if ours is not None and plain is not None:
        beyond = [a - b for a, b in zip(ours.values("idle_cpu"), plain.values("idle_cpu"), strict=False)]
        report.spread(
            f"{count} idle connections: CPU time beyond TCP's",
            beyond,
            IDLE_UNITS["cpu"],
            Target(0.5, at_least=False, source=_SOURCE),
        )


def run(options: interleave.Options) -> Report:
    chosen = [row for row in ROWS if options.chooses(row.name)]
    idle = options.chooses(IDLE)
    report = Report(
        "speed",
        "many programs, plain TCP (or UDP) against shm: ratios in favour of shm, above 1 is better",
        options={"rounds": options.rounds_or(3, 7), "rows": [row.name for row in chosen]},
    )
    refusal = system_calls.unavailable()
    if refusal is not None:
        report.notes.append(refusal)
    rows = max(1, len(chosen) + idle)
    share = replace(options, budget_s=options.budget(_ROW_SECONDS * rows) / rows)
    with Stage() as stage:
        for row in chosen:
            why = row.unusable()
            if why is not None:
                report.skipped[row.name] = why
                continue
            share.progress(row.name)
            try:
                _row(stage, report, row, share, refusal is None)
            except tools.Unavailable as missing:
                report.skipped[row.name] = str(missing)
        if idle:
            _idle(stage, report, share)
    return report
