"""Rows of ``bertha bench speed`` about UDP: two programs of one host, against plain UDP (decision 0021).

The connection log says of a socket that memory carried some of its datagrams.  How many of each request the
kernel carried all the same (``by_kernel``) is the kernel's own count, where the programs have a namespace to
themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from bertha_socket._bench import speed_pairs as pairs
from bertha_socket._bench import variants
from bertha_socket._bench.report import Report, Sample
from bertha_socket._bench.speed_load import Ground, Load, PingPong
from bertha_socket._bench.speed_pairs import Pair
from bertha_socket._bench.speed_rows import Make, Row, Want
from bertha_socket._bench.stage import Shim
from bertha_socket._bench.variants import Variant


@dataclass
class Counted:
    """Another load, and how many datagrams of each request the kernel carried."""

    inner: Load
    ground: Ground
    client_counts: ClassVar[bool] = True

    @property
    def pids(self) -> list[int]:
        return self.inner.pids

    def run(self, shim: Shim | None = None) -> Sample:
        before = self.ground.host.kernel_datagrams()
        sample = self.inner.run(shim)
        after = self.ground.host.kernel_datagrams()
        if before is not None and after is not None:
            sample.values["by_kernel"] = (after - before) / max(1.0, sample.values["requests"])
        return sample


def _choose(ground: Ground, report: Report) -> list[Variant]:
    found = variants.standard(ground.stage, (variants.UDP, variants.SHM), report)
    return [replace(variant, datagrams=True) for variant in found]


def _row(name: str, title: str, make: Make, wants: Sequence[Want], *, two: bool = False) -> Row:
    return Row(
        f"udp/{name}",
        f"UDP {title}",
        lambda ground, variant: Counted(make(ground, variant), ground),
        tuple(replace(want, under=variants.UDP) for want in wants),
        choose=_choose,
        two_processors=two,
    )


def _epoll(clients: int) -> Row:
    make = partial(Pair, serve=pairs.server("hold"), ask=pairs.load(clients))
    title = f"epoll echo 64 B, {clients} clients with one datagram each under way"
    return _row(f"epoll{clients}", title, make, (Want("rate"), Want("cpu")))


def _burst(count: int) -> Row:
    make = partial(Pair, serve=pairs.server("sink"), ask=pairs.burst(count))
    title = f"64 B in one direction, {count} at once"
    return _row(f"burst{count}", title, make, (Want("rate"), Want("cpu")))


_LATENCY = (Want("p50"), Want("p99"), Want("cpu"))

ROWS: tuple[Row, ...] = (
    _row("two", "ping-pong 64 B, two cores", partial(PingPong, cores="two"), _LATENCY, two=True),
    _row("one", "ping-pong 64 B, one core", partial(PingPong, cores="one"), _LATENCY),
    _epoll(10),
    _epoll(50),
    _burst(32),
    _burst(128),
)
