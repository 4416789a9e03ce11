"""Plots of a report, with matplotlib (the package's ``bench`` extra)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from bertha_socket._bench import speed_plot, stats
from bertha_socket._bench.report import Cell, Report
from bertha_socket._bench.tools import Unavailable

_COLOURS = {
    "tcp-nagle": "#d8b365",
    "tcp": "#bf812d",
    "unix-socket": "#80cdc1",
    "shm": "#2166ac",
    "shm-nospin": "#92c5de",
    "unix": "#5aae61",
}


def check() -> None:
    """Raise Unavailable unless plots can be drawn: better before the run than after it."""
    try:
        matplotlib = import_module("matplotlib")
    except ImportError:
        raise Unavailable("plots need matplotlib: pip install 'bertha-socket[bench]'") from None
    matplotlib.use("Agg")


def _boxes(axes: Any, cells: Sequence[Cell], series: str) -> None:
    """Boxes from p25 to p75, whiskers from p5 to p95, as in the paper."""
    boxes = []
    for cell in cells:
        found = stats.percentiles(cell.pooled()[series])
        boxes.append(
            {
                "label": cell.variant,
                "whislo": found["p5"],
                "q1": found["p25"],
                "med": found["p50"],
                "q3": found["p75"],
                "whishi": found["p95"],
                "fliers": [],
            }
        )
    drawn = axes.bxp(boxes, showfliers=False, patch_artist=True, medianprops={"color": "black"})
    for patch, cell in zip(drawn["boxes"], cells, strict=True):
        patch.set_facecolor(_COLOURS.get(cell.variant, "#cccccc"))
    axes.set_yscale("log")  # from half a microsecond to milliseconds
    axes.tick_params(axis="x", rotation=60)


def _latencies(pyplot: Any, report: Report, series: Sequence[str]) -> Any:
    cells = [cell for cell in report.cells if cell.samples]
    cores = list(dict.fromkeys(cell.params["cores"] for cell in cells))
    sizes = list(dict.fromkeys(cell.params.get("size", 64) for cell in cells))
    rows = [(name, count) for name in series for count in cores]
    figure, grid = pyplot.subplots(
        len(rows), len(sizes), figsize=(3.4 * len(sizes), 3.1 * len(rows)), squeeze=False
    )
    for line, (name, count) in zip(grid, rows, strict=True):
        for axes, size in zip(line, sizes, strict=True):
            chosen = [c for c in cells if c.params["cores"] == count and c.params.get("size", 64) == size]
            _boxes(axes, chosen, name)
            axes.set_title(f"{size} B, cores: {count}", fontsize=9)
        line[0].set_ylabel(f"{name.replace('_', ' ')} (us)")
    return figure


def _figures(pyplot: Any, report: Report) -> Any:
    """Ratios as they are; other numbers as a share of what they may be."""
    shown = [figure for figure in report.figures if figure.unit == "ratio" or figure.target][::-1]
    if not shown:
        raise Unavailable(f"{report.bench}: nothing to plot, since nothing was compared")
    figure, axes = pyplot.subplots(figsize=(9, 0.32 * len(shown) + 1.5))
    for at, item in enumerate(shown):
        unit = item.target.bound if item.target is not None and item.unit != "ratio" else 1.0
        low, middle, high = (value / unit for value in (item.spread.p25, item.spread.median, item.spread.p75))
        colour = {None: "#4393c3", True: "#4d9221", False: "#b2182b"}[item.holds]
        axes.plot([low, high], [at, at], color=colour, linewidth=5, alpha=0.5, solid_capstyle="butt")
        axes.plot([middle], [at], "o", color=colour)
        if item.target is not None:
            axes.plot([item.target.bound / unit], [at], "|", color="black", markersize=12)
    labels = [item.what + ("" if item.unit == "ratio" else ", of what it may be") for item in shown]
    axes.set_yticks(range(len(shown)), labels, fontsize=7)
    axes.axvline(1.0, color="#999999", linewidth=0.8)
    if max(item.spread.high for item in shown if item.unit == "ratio" or item.target) > 4:
        axes.set_xscale("symlog", linthresh=1)
    axes.set_xlabel("median and quartiles of the rounds; | is what is wanted")
    return figure


def draw(report: Report, path: Path) -> None:
    """Write the report's plot; the file's suffix chooses the format (.png, .svg, .pdf)."""
    check()
    pyplot = import_module("matplotlib.pyplot")
    if report.bench == "fig3":
        figure = _latencies(pyplot, report, ("request", "with_setup"))
    elif report.bench == "pingpong":
        figure = _latencies(pyplot, report, ("request",))
    elif report.bench == "speed":
        figure = speed_plot.page(pyplot, report)
    else:
        figure = _figures(pyplot, report)
    figure.suptitle(
        f"{report.bench} on Linux {report.host['kernel']}, {report.host['cpu_model']}", fontsize=9
    )
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
