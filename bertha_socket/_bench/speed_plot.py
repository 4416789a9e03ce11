"""One page for ``bertha bench speed``: how many times better than TCP, processor time, system calls."""

from __future__ import annotations

from typing import Any

from bertha_socket._bench import stats, variants
from bertha_socket._bench.report import Figure, Report
from bertha_socket._bench.tools import Unavailable

_COLOURS = {
    variants.TCP: "#bf812d",
    variants.UDP: "#c51b7d",
    variants.SHM: "#2166ac",
    variants.SHM_NOSPIN: "#92c5de",
}
_HOLDS = {None: "#4393c3", True: "#4d9221", False: "#b2182b"}


def _ratios(axes: Any, figures: list[Figure]) -> None:
    for at, item in enumerate(figures):
        colour = _HOLDS[item.holds]
        axes.plot([item.spread.p25, item.spread.p75], [at, at], color=colour, linewidth=5, alpha=0.5)
        axes.plot([item.spread.median], [at], "o", color=colour, markersize=4)
        if item.target is not None:
            axes.plot([item.target.bound], [at], "|", color="black", markersize=9)
    axes.axvline(1.0, color="#999999", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(figures)), [item.what for item in figures], fontsize=5)
    axes.set_ylim(-1, len(figures))
    axes.set_title("times better than TCP (| is wanted, red falls short)", fontsize=8)


def _bars(axes: Any, report: Report, metric: str, title: str) -> None:
    """A mark for each variant of each row, on a logarithmic scale."""
    rows = list(dict.fromkeys(cell.params["row"] for cell in report.cells if cell.samples))[::-1]
    shown = []
    for at, row in enumerate(rows):
        for cell in report.cells:
            if cell.params["row"] != row or cell.variant not in _COLOURS:
                continue
            value = cell.counted.get(metric)
            if value is None and cell.samples and metric in cell.samples[0].values:
                value = stats.Spread.of(cell.values(metric)).median
            if value is not None and value > 0:
                axes.plot([value], [at], "o", color=_COLOURS[cell.variant], markersize=4)
                shown.append(row)
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), rows, fontsize=5)
    axes.set_title(title, fontsize=8)


def page(pyplot: Any, report: Report) -> Any:
    """The figure; Unavailable when nothing was compared."""
    figures = [item for item in report.figures if item.unit == "ratio"][::-1]
    if not figures:
        raise Unavailable("speed: nothing to plot, since nothing was compared")
    figure = pyplot.figure(figsize=(11.7, max(5.0, 0.13 * len(figures) + 1.5)))
    grid = figure.add_gridspec(3, 2, width_ratios=(1, 1))
    _ratios(figure.add_subplot(grid[:, 0]), figures)
    panels = (
        ("cpu", "CPU time of both ends (us a request)"),
        ("server_calls", "system calls of the server (a request)"),
        ("client_calls", "system calls of the client (a request)"),
    )
    for at, (metric, title) in enumerate(panels):
        axes = figure.add_subplot(grid[at, 1])
        _bars(axes, report, metric, title)
        if at == 0:
            for name, colour in _COLOURS.items():
                axes.plot([], [], "o", color=colour, label=name)
            axes.legend(fontsize=6)
    return figure
