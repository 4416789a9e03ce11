"""A report as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from bertha_socket._bench import stats
from bertha_socket._bench.report import Cell, Report


def number(value: float) -> str:
    """Three or four significant digits, with thousands separated."""
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if size < 10 else f"{value:.1f}"


def _columns(rows: list[list[str]]) -> Iterator[str]:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for row in rows:
        first, *rest = (
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join([first, *rest]).rstrip()


def _pooled(cells: list[Cell]) -> Iterator[str]:
    names = sorted({name for cell in cells for name in cell.pooled()})
    for name in names:
        marks = [f"p{p}" for p in stats.PERCENTILES]
        rows = [[f"{name} (us)", *marks]]
        for cell in cells:
            values = cell.pooled().get(name)
            if values:
                found = stats.percentiles(values)
                rows.append([cell.name, *(number(found[mark]) for mark in marks)])
        yield ""
        yield from _columns(rows)


def _metrics(cells: list[Cell]) -> Iterator[str]:
    names = list(dict.fromkeys(name for cell in cells for name in cell.samples[0].values))
    units = {name: unit for cell in cells for name, unit in cell.units.items()}
    counted = list(dict.fromkeys(name for cell in cells for name in cell.counted))
    heads = [f"{name} ({units[name]})" if units.get(name) else name for name in names]
    rows = [["median of rounds", *heads, *counted]]
    for cell in cells:
        row = [cell.name]
        for name in names:
            row.append(
                number(stats.Spread.of(cell.values(name)).median) if name in cell.samples[0].values else "-"
            )
        rows.append(row + [number(cell.counted[name]) if name in cell.counted else "-" for name in counted])
    yield ""
    yield from _columns(rows)


def lines(report: Report) -> Iterator[str]:
    """The report, line by line."""
    host = report.host
    yield f"{report.bench}: {report.compared}"
    cpus = host.get("cpus")
    count = len(cpus) if isinstance(cpus, list) else 0
    yield (
        f"on Linux {host['kernel']}, {count} x {host['cpu_model']}, "
        f"TCP with {host['tcp_congestion_control']}, bertha-socket {host['bertha_socket']}"
    )
    cells = [cell for cell in report.cells if cell.samples]
    if cells:
        yield from _pooled(cells)
        yield from _metrics(cells)
    if report.figures:
        rows = [["figure", "median", "p25..p75", "wanted", ""]]
        for figure in report.figures:
            s = figure.spread
            rows.append(
                [
                    figure.what + ("" if figure.unit == "ratio" else f" ({figure.unit})"),
                    number(s.median),
                    f"{number(s.p25)}..{number(s.p75)}" if s.rounds > 1 else "",
                    str(figure.target or ""),
                    {None: "", True: "holds", False: "SHORT"}[figure.holds],
                ]
            )
        yield ""
        yield from _columns(rows)
    yield ""
    for name, counts in report.carried.items():
        said = ", ".join(f"{n} {what}" for what, n in counts.items())
        yield f"connection log of {name}: {said or 'no connection'}"
    for name, reason in report.skipped.items():
        yield f"skipped {name}: {reason}"
    for note in report.notes:
        yield f"note: {note}"
    for failure in report.failures:
        yield f"FAILED {failure}"
    yield f"took {report.took_s:.0f} s"
