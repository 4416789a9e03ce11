"""The rows of ``bertha bench speed``: what runs, and what is wanted of it (issue 4's table)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from bertha_socket._bench import host, peers, tools, variants
from bertha_socket._bench.bulk import RING_SIZES, SPINS
from bertha_socket._bench.report import Report
from bertha_socket._bench.speed_load import (
    Asyncio,
    Beside,
    Connect,
    Crowded,
    Ground,
    Iperf,
    Load,
    Memcache,
    PingPong,
    Postgres,
    Redis,
    Web,
)
from bertha_socket._bench.stage import Shim
from bertha_socket._bench.variants import Variant

#: Metrics of which less is better.
LESS = frozenset({"p50", "p99", "cpu"})
UNITS = {
    "rate": "1/s",
    "p50": "us",
    "p99": "us",
    "cpu": "us/request",
    "requests": "",
    "by_kernel": "datagrams/request",
}
_FLOOR = 0.95


@dataclass(frozen=True)
class Want:
    """A bound on how many times better than TCP (or ``under``) a variant's metric is; ``absolute``: on the
    metric itself."""

    metric: str
    bound: float | None = None
    variant: str = variants.SHM
    absolute: bool = False
    #: What it is compared with.
    under: str = variants.TCP


Make = Callable[[Ground, Variant], Load]
Choose = Callable[[Ground, Report], list[Variant]]


def _standard(*names: str) -> Choose:
    return lambda ground, report: variants.standard(ground.stage, names, report)


PAIR = _standard(variants.TCP, variants.SHM)
TRIO = _standard(variants.TCP, variants.SHM, variants.SHM_NOSPIN)


def _with_peers(choose: Choose) -> Choose:
    """Also with what else the user has installed for this."""
    return lambda ground, report: [*choose(ground, report), *peers.installed(ground.stage, report)]


@dataclass(frozen=True)
class Row:
    """One line of the table; ``name`` is group/row."""

    name: str
    title: str
    make: Make
    wants: tuple[Want, ...]
    programs: tuple[str, ...] = ()
    choose: Choose = PAIR
    #: Connections are few and long: each round's log is checked.  Else one run before the rounds is.
    logged: bool = True
    two_processors: bool = False
    #: Its connections are over after one exchange, and the shim may leave them to TCP for that.
    brief: bool = False
    #: Raises Unavailable when something else is missing that it needs.
    needs: Callable[[], object] | None = None
    #: Its programs refuse to be root's.
    unprivileged: bool = False
    #: How much of the usual time a round of it takes.
    share: float = 1.0

    def unusable(self) -> str | None:
        """Why it cannot be measured here; None when it can."""
        try:
            for program in self.programs:
                tools.find(program)
            if self.needs is not None:
                self.needs()
        except tools.Unavailable as missing:
            return str(missing)
        if self.two_processors and len(host.cpus()) < 2:
            return "it needs two processors"
        return None


def _every_setting(ground: Ground, report: Report) -> list[Variant]:
    """TCP, and shm with every ring size and spin setting that a policy file may ask for."""
    found = variants.standard(ground.stage, (variants.TCP,), report)
    if not variants.standard(ground.stage, (variants.SHM,), report):
        return found
    for ring in RING_SIZES:
        for spin in SPINS:
            shim = Shim(policy=ground.stage.policy(ring_size=ring, spin_us=spin))
            name = f"{variants.SHM}-ring{ring >> 10}K-spin{spin}"
            found.append(Variant(name, name, nodelay=True, shim=shim, expects="shm"))
    return found


def floor(*metrics: str, names: tuple[str, ...] = (variants.SHM, variants.SHM_NOSPIN)) -> tuple[Want, ...]:
    return tuple(Want(metric, _FLOOR, name) for metric in metrics for name in names)


_SETTINGS = tuple(f"{variants.SHM}-ring{ring >> 10}K-spin{spin}" for ring in RING_SIZES for spin in SPINS)
_REDIS = ("redis-server", "redis-benchmark")
_NGINX = ("nginx", "wrk")


def _one_core_redis(ground: Ground, variant: Variant) -> Load:
    return Redis(ground, variant, cpus=host.cpus()[:1])


def _beside(inner: Make) -> Make:
    return lambda ground, variant: Beside(inner(ground, variant), ground)


_PEERS = (Want("rate", variant=peers.IP2UNIX), Want("rate", variant=peers.SOCKET_WRAPPER))


def _redis(
    name: str,
    options: str,
    wants: tuple[Want, ...],
    choose: Choose = PAIR,
    *,
    clients: int = 50,
    pipeline: int = 1,
) -> Row:
    """redis-benchmark, also by what else the user has installed for this."""
    make = partial(Redis, clients=clients, pipeline=pipeline)
    title = f"redis-benchmark {options}"
    return Row(f"redis/{name}", title, make, (*wants, *_PEERS), _REDIS, _with_peers(choose))


_ALONE = "-alone"


def _crowd(ground: Ground, variant: Variant) -> Load:
    return Crowded(ground, variant, idle=0 if variant.name.endswith(_ALONE) else 10000)


def _with_and_without_crowd(ground: Ground, report: Report) -> list[Variant]:
    found = PAIR(ground, report)
    return found + [replace(variant, name=variant.name + _ALONE) for variant in found]


ROWS: tuple[Row, ...] = (
    Row(
        "pingpong/two",
        "C ping-pong 64 B, two cores",
        partial(PingPong, cores="two"),
        (Want("p50", 0.3, absolute=True), Want("p99", 1.0, absolute=True), Want("p50"), Want("cpu")),
        choose=TRIO,
        two_processors=True,
    ),
    Row(
        "pingpong/one",
        "C ping-pong 64 B, one core",
        partial(PingPong, cores="one"),
        (Want("p50", 2.5), *floor("p50", "cpu")),
        choose=TRIO,
    ),
    _redis(
        "c50",
        "-c 50",
        (
            Want("rate", 12),
            Want("rate", 5, variants.SHM_NOSPIN),
            Want("cpu", 10),
            Want("p99"),
        ),
        TRIO,
    ),
    _redis("c1", "-c 1", (Want("rate", 40), Want("cpu")), clients=1),
    _redis("c500", "-c 500", (Want("rate", 8),), clients=500),
    _redis("P16", "-c 50 -P 16", (Want("rate", 2),), pipeline=16),
    Row(
        "memcached/c50",
        "memcached, 50 connections, gets",
        Memcache,
        (Want("rate", 10), Want("cpu")),
        ("memcached",),
        TRIO,
    ),
    Row(
        "nginx/file",
        "nginx, wrk -c 16, file of 1 KiB",
        partial(Web, path="file"),
        (Want("rate", 4), Want("p99", 1), Want("cpu")),
        _NGINX,
        TRIO,
    ),
    Row(
        "nginx/bare",
        "nginx, wrk -c 16, return 200",
        partial(Web, path="bare"),
        (Want("rate", 8), Want("p99", 1), Want("cpu")),
        _NGINX,
        TRIO,
    ),
    Row(
        "nginx/close",
        "nginx, wrk -c 16, Connection: close",
        partial(Web, path="bare", close=True),
        (Want("rate", 1.0), Want("cpu")),
        _NGINX,
        brief=True,
        logged=False,
    ),
    Row(
        "postgres/select",
        "pgbench -S -c 4",
        Postgres,
        (Want("rate", 1.5), Want("cpu")),
        ("postgres", "initdb", "pgbench"),
        unprivileged=True,
    ),
    Row(
        "iperf3/two",
        "iperf3, 128 KiB, two cores",
        partial(Iperf, cores="two"),
        (Want("rate", 10), Want("cpu")),
        ("iperf3",),
        TRIO,
        two_processors=True,
    ),
    Row(
        "iperf3/one",
        "iperf3, 128 KiB, one core",
        partial(Iperf, cores="one"),
        (Want("rate", 4), Want("cpu")),
        ("iperf3",),
        TRIO,
    ),
    Row(
        "connect/w1",
        "connect, 64 B, echo, close",
        Connect,
        (Want("rate", 1.0), Want("cpu")),
        brief=True,
        logged=False,
        two_processors=True,
    ),
    Row(
        "connect/w16",
        "connect, 64 B, echo, close, 16 at a time",
        partial(Connect, window=16),
        (Want("rate", 1.0), Want("cpu")),
        brief=True,
        logged=False,
        two_processors=True,
    ),
    Row(
        "crowd/0",
        "epoll echo 64 B, 10 connections",
        partial(Crowded, idle=0),
        (Want("rate"), Want("cpu")),
    ),
    Row(
        "crowd/10000",
        "the same beside 10,000 idle ones in the set",
        _crowd,
        (
            Want("rate"),
            Want("cpu"),
            # Cost follows the active ones.
            Want("rate", 0.9, under=f"{variants.SHM}{_ALONE}"),
            Want("cpu", 0.9, under=f"{variants.SHM}{_ALONE}"),
            Want("rate", variant=variants.TCP, under=f"{variants.TCP}{_ALONE}"),
        ),
        choose=_with_and_without_crowd,
    ),
    Row("asyncio/c1", "asyncio echo 64 B, 1 connection", Asyncio, (Want("rate", 1.5), Want("cpu"))),
    Row(
        "asyncio/c50",
        "asyncio echo 64 B, 50 connections",
        partial(Asyncio, connections=50),
        (Want("rate", 1.5), Want("cpu")),
    ),
    Row(
        "floor/redis-one-core",
        "redis-benchmark -c 50, both ends on one core",
        _one_core_redis,
        floor("rate", "cpu"),
        _REDIS,
        TRIO,
    ),
    Row(
        "floor/iperf-settings",
        "iperf3, each ring size and spin setting",
        Iperf,
        floor("rate", "cpu", names=_SETTINGS),
        ("iperf3",),
        _every_setting,
        share=0.5,
    ),
    Row(
        "floor/redis-settings",
        "redis-benchmark -c 50, each ring size and spin setting",
        Redis,
        floor("rate", "cpu", names=_SETTINGS),
        _REDIS,
        _every_setting,
        share=0.5,
    ),
    Row(
        "floor/hogs-pingpong",
        "C ping-pong 64 B, two CPU hogs beside",
        _beside(partial(PingPong, cores="any", times=5)),
        floor("p50", "p99", "rate", "cpu"),
        choose=TRIO,
    ),
    Row(
        "floor/hogs-redis",
        "redis-benchmark -c 50, two CPU hogs beside",
        _beside(Redis),
        floor("rate", "cpu"),
        _REDIS,
        TRIO,
    ),
    Row(
        "floor/processes",
        "C ping-pong 64 B, 25 clients and 25 servers",
        partial(PingPong, cores="any", processes=25),
        floor("rate", "cpu"),
        choose=TRIO,
    ),
    *(
        Row(
            f"floor/think-{name}",
            f"C ping-pong 64 B, a pause of {name} before each",
            partial(PingPong, cores="two", think_us=think),
            floor("p50", "p99", "cpu"),
            choose=TRIO,
            two_processors=True,
        )
        for name, think in (("20us", 20), ("100us", 100), ("1ms", 1000))
    ),
)
