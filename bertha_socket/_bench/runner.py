"""Runs one bench from start to end and completes its report: host, versions, times."""

from __future__ import annotations

import datetime
import time

from bertha_socket._bench import host, interleave, registry
from bertha_socket._bench.report import Report


def run(name: str, options: interleave.Options) -> Report:
    """Run the bench called ``name``; raises Unavailable when this machine lacks what it needs."""
    described = host.describe(registry.programs(name))
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    begin = time.monotonic()
    report = registry.runner(name)(options)
    report.host = described
    report.started = started
    report.took_s = time.monotonic() - begin
    report.options |= {"quick": options.quick, "scale": options.scale}
    return report
