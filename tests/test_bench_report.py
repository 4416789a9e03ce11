"""What `bertha bench` makes of what it has measured, and of what the connection log says of that."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertha_socket._bench import connlog, interleave, stats, tools, variants
from bertha_socket._bench.report import Cell, Report, Sample, Target
from bertha_socket._bench.stage import Failed, Stage
from bertha_socket.reasons import Reason, text_of


@given(st.lists(st.floats(0, 1e9), min_size=2, max_size=200))
def test_percentiles_are_those_of_the_standard_library(samples: list[float]) -> None:
    expected = statistics.quantiles(samples, n=100, method="inclusive")
    found = stats.percentiles(samples)
    for p in stats.PERCENTILES:
        assert found[f"p{p}"] == pytest.approx(expected[p - 1])


def test_no_samples() -> None:
    with pytest.raises(ValueError, match="no samples"):
        stats.percentiles([])


def _filled(variant: str, values: list[float]) -> Cell:
    cell = Cell(variant, {"size": 8}, lambda: Sample({}), {"p50": "us"})
    cell.samples = [Sample({"p50": value}) for value in values]
    return cell


def test_ratios_are_taken_round_by_round() -> None:
    report = Report("x", "y", cells=[_filled("a", [2, 40, 6]), _filled("b", [1, 10, 2])])
    figure = report.ratio("a/b", "p50", ("a", {"size": 8}), ("b", {"size": 8}), Target(2.5, at_least=False))
    assert figure is not None
    # 2, 4, 3: not the ratio of the medians, which is 6 / 2.
    assert (figure.spread.low, figure.spread.median, figure.spread.high) == (2, 3, 4)
    assert figure.holds is False
    assert report.ratio("a/c", "p50", ("a", {}), ("c", {})) is None


def test_cells_are_interleaved_and_the_budget_ends_whole_rounds() -> None:
    order: list[str] = []

    def cell(name: str) -> Cell:
        def measure() -> Sample:
            order.append(name)
            return Sample({"x": 1.0})

        return Cell(name, {}, measure, {})

    report = Report("x", "y", cells=[cell("a"), cell("b")])
    interleave.run(report, 3, interleave.Options())
    assert "".join(order) == "ababab"

    order.clear()
    interleave.run(report, 3, interleave.Options(budget_s=1e-9))
    assert "".join(order) == "ab"
    assert "after 1 of 3 rounds" in report.notes[0]


def test_a_program_that_fails_in_a_round_leaves_the_others_their_rounds() -> None:
    calls = []

    def fails() -> Sample:
        calls.append(1)
        if len(calls) > 1:
            raise Failed("a: ended with 1")
        return Sample({"x": 1.0})

    report = Report("x", "y", cells=[Cell("a", {}, fails, {}), Cell("b", {}, lambda: Sample({"x": 2.0}), {})])
    interleave.run(report, 3, interleave.Options())
    assert [len(cell.samples) for cell in report.cells] == [1, 3]
    assert report.failures == ["a: a: ended with 1"]
    assert len(calls) == 2


def _connection(implementation: str, reason: str | None = None, bytes_: int = 1) -> connlog.Connection:
    return connlog.Connection("client", implementation, reason, bytes_, bytes_, 1)


def test_objections() -> None:
    assert connlog.objection([_connection("shm")] * 3, "shm") is None
    assert "empty" in (connlog.objection([], "shm") or "")
    said = connlog.objection([_connection("shm"), _connection("plain", "no agent")], "shm")
    assert said is not None
    assert "1 of 2 plain (no agent)" in said


def test_a_connection_that_carried_nothing_is_neither_for_nor_against() -> None:
    unused = _connection("plain", text_of(Reason.NOT_ATTACHED), 0)
    assert connlog.carried([unused, _connection("shm")]) == {"unused": 1, "shm": 1}
    assert connlog.objection([unused, _connection("shm")], "shm") is None
    assert "empty" in (connlog.objection([unused], "shm") or "")
    assert connlog.objection([unused], "shm", unused=True) is None
    assert connlog.objection([], "shm", unused=True) is not None
    # But not when it was never negotiated at all.
    assert connlog.objection([_connection("plain", text_of(Reason.NO_AGENT), 0)], "shm", unused=True)


def test_log_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    chunnels = [{"type": "local_or_remote", "implementation": "tcp", "where": "host"}]
    common = {"chunnels": chunnels, "reason": None, "tx_bytes": 5, "rx_bytes": 6, "setup_us": 7}
    entries = [{"role": "client", "plain": False} | common, {"role": "server", "plain": True} | common]
    entries[0]["chunnels"] = [{"type": "local_or_remote", "implementation": "shm", "where": "host"}]
    log.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    assert connlog.carried(connlog.read(log)) == {"shm": 1, "plain": 1}
    assert [c.implementation for c in connlog.read(log, "server")] == ["plain"]
    assert connlog.read(tmp_path / "none") == []


def test_variants_without_a_shim_are_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Path:
        raise tools.Unavailable("the preload library is missing")

    monkeypatch.setattr(tools, "shim_library", missing)
    report = Report("x", "y")
    with Stage() as stage:
        names = [
            v.name for v in variants.standard(stage, (variants.TCP, variants.SHM, variants.UNIX), report)
        ]
    assert names == [variants.TCP]
    assert set(report.skipped) == {variants.SHM, variants.UNIX}
