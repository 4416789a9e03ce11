"""The probes of `bertha doctor`: each tries the thing itself on this host, as this user.

A probe is a function registered with @probe; it returns ok(), limited() or no().  Versions are compared
nowhere: what a kernel or a library can do is found by doing it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Final, Literal

__all__ = ["Check", "Finding", "Status", "limited", "no", "ok", "probe", "run_all"]

Status = Literal["ok", "limited", "no"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one probe found."""

    status: Status
    reason: str
    remedy: str | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """A probe's place in the report, and its finding."""

    area: str
    name: str
    essential: bool  # nothing is negotiated on this host while it is "no"
    finding: Finding


def ok(reason: str) -> Finding:
    """All is there."""
    return Finding("ok", reason)


def limited(reason: str, remedy: str | None = None) -> Finding:
    """Works, with something left out."""
    return Finding("limited", reason, remedy)


def no(reason: str, remedy: str | None = None) -> Finding:
    """Does not work."""
    return Finding("no", reason, remedy)


_Probe = Callable[[], Finding]
_probes: list[tuple[str, str, bool, _Probe]] = []

#: In the order of the report.
_MODULES: Final = ("shim", "agent", "memory", "kernel", "programs", "offload")


def probe(area: str, name: str, *, essential: bool = False) -> Callable[[_Probe], _Probe]:
    """Registers a probe."""

    def register(function: _Probe) -> _Probe:
        _probes.append((area, name, essential, function))
        return function

    return register


def _run(function: _Probe) -> Finding:
    try:
        return function()
    except Exception as error:
        # A probe must never end the report: what it stumbled over is its finding.
        return no(f"the probe itself failed: {type(error).__name__}: {error}", "report this as a defect")


def run_all() -> list[Check]:
    """Runs every probe, one after the other."""
    for module in _MODULES:
        import_module(f"{__name__}.{module}")
    return [Check(area, name, essential, _run(function)) for area, name, essential, function in _probes]
