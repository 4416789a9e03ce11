"""The ways of talking that the benches compare, and the proof that each was what its name says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from bertha_socket._bench import connlog, tools
from bertha_socket._bench.report import Report, Sample
from bertha_socket._bench.stage import Failed, Shim, Stage


@dataclass(frozen=True)
class Variant:
    """``shim`` None: without bertha.  ``expects``: what the connection log must say when there is a shim."""

    name: str
    label: str
    unix: bool = False
    datagrams: bool = False
    nodelay: bool = False
    shim: Shim | None = None
    expects: str = connlog.PLAIN

    def target(self, address: str, port: int, path: Path) -> str:
        """What our programs connect to or listen at."""
        return f"unix:{path}" if self.unix else f"{self.at(address)}:{port}"

    def at(self, address: str) -> str:
        """The address, as the programs that also speak UDP want it."""
        return f"udp:{address}" if self.datagrams else address

    @property
    def flags(self) -> list[str]:
        return ["--nodelay", "1"] if self.nodelay else []

    def logged(self, path: Path) -> Variant:
        return self.under(self.shim and self.shim.logged(path))

    def under(self, shim: Shim | None) -> Variant:
        """The same with another shim, if one is given."""
        return self if shim is None else replace(self, shim=shim)


def brief(variant: Variant) -> Variant:
    """The same where connections are over after one exchange: the shim may leave them to TCP for that."""
    return variant if variant.shim is None else replace(variant, expects=f"{variant.expects}|{connlog.BRIEF}")


TCP_NAGLE = "tcp-nagle"
TCP = "tcp"
UDP = "udp"
UNIX_SOCKET = "unix-socket"
SHM = "shm"
SHM_NOSPIN = "shm-nospin"
UNIX = "unix"
#: What the shim chooses for connections that are over after one exchange.
CHOSEN = "chosen"


def standard(stage: Stage, names: tuple[str, ...], report: Report) -> list[Variant]:
    """The named variants, in this order; those that need a shim that is not built are reported as skipped."""
    known = {
        TCP_NAGLE: Variant(TCP_NAGLE, "TCP (Nagle, as in the paper)"),
        TCP: Variant(TCP, "TCP_NODELAY", nodelay=True),
        UDP: Variant(UDP, "UDP", datagrams=True),
        UNIX_SOCKET: Variant(UNIX_SOCKET, "hard-coded unix socket", unix=True),
        SHM: Variant(SHM, "bertha-run: shm", shim=Shim(), expects="shm"),
        CHOSEN: Variant(CHOSEN, "bertha-run", shim=Shim(), expects=f"shm|{connlog.BRIEF}"),
        SHM_NOSPIN: Variant(SHM_NOSPIN, "bertha-run: shm, no spin", shim=Shim(spin_us=0), expects="shm"),
        UNIX: Variant(
            UNIX,
            "bertha-run: unix",
            shim=Shim(policy=stage.policy(prohibit=["shm"])),
            expects="unix",
        ),
    }
    wanted = [known[name] for name in names]
    try:
        tools.shim_library()
    except tools.Unavailable as missing:
        for variant in wanted:
            if variant.shim is not None:
                report.skipped[variant.name] = str(missing)
        return [v for v in wanted if v.shim is None]
    return wanted


def prove(
    stage: Stage,
    report: Report,
    variant: Variant,
    use: Callable[[Variant], object],
    unused: bool = False,
) -> bool:
    """Let ``use`` run the variant's client once, logged; is it what it is called?  Else a failure.

    What the log said is added to ``report.carried``.  A variant without a shim needs no proof, but is run all
    the same: everyone warms up alike.  ``unused``: its connections are meant to carry nothing.
    """
    log = stage.path(".log")
    try:
        use(variant.logged(log))
    except Failed as failed:
        report.fail(f"{variant.name}: {failed}")
        return False
    if variant.shim is None:
        return True
    return check(report, variant, log, unused)


def measured(stage: Stage, report: Report, variant: Variant, use: Callable[[Shim | None], Sample]) -> Sample:
    """One round that is logged and checked as well: for programs whose connections are few and long."""
    if variant.shim is None:
        return use(None)
    log = stage.path(".log")
    sample = use(variant.shim.logged(log))
    check(report, variant, log)
    log.unlink(missing_ok=True)
    return sample


def nothing() -> Counter[str]:
    """What a log says of no connection."""
    return connlog.carried([])


def take(report: Report, part: Report, row: str) -> None:
    """What a row's own report has goes into the whole one."""
    report.cells += part.cells
    report.notes += [f"{row}: {note}" for note in part.notes]
    report.skipped |= part.skipped
    for name, counts in part.carried.items():
        report.carried.setdefault(name, nothing()).update(counts)
    for failure in part.failures:
        report.fail(f"{row}: {failure}")


def check(report: Report, variant: Variant, log: Path, unused: bool = False) -> bool:
    """Count what a client's connection log says; everything must be what the variant expects."""
    connections = connlog.read(log, "client")
    report.carried.setdefault(variant.name, connlog.carried([])).update(connlog.carried(connections))
    wrong = connlog.objection(connections, variant.expects, unused)
    if wrong is None:
        return True
    report.fail(f"{variant.name}: {wrong}")
    return False
