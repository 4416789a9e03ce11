"""The rows of ``bertha bench speed``: what runs, and what is wanted of it (issue 4's table)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from bertha_socket._bench import host, variants
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
UNITS = {"rate": "1/s", "p50": "us", "p99": "us", "cpu": "us/request", "requests": ""}
_FLOOR = 0.95


@dataclass(frozen=True)
class Want:
    """A bound on how many times better than TCP a variant's metric is; ``absolute``: on the metric itself."""

    metric: str
    bound: float | None = None
    variant: str = variants.SHM
    absolute: bool = False


Make = Callable[[Ground, Variant], Load]
Choose = Callable[[Ground, Report], list[Variant]]


def _standard(*names: str) -> Choose:
    return lambda ground, report: variants.standard(ground.stage, names, report)


_PAIR = _standard(variants.TCP, variants.SHM)
_TRIO = _standard(variants.TCP, variants.SHM, variants.SHM_NOSPIN)


@dataclass(frozen=True)
class Row:
    """One line of the table; ``name`` is group/row."""

    name: str
    title: str
    make: Make
    wants: tuple[Want, ...]
    programs: tuple[str, ...] = ()
    choose: Choose = _PAIR
    #: Connections are few and long: each round's log is checked.  Else one run before the rounds is.
    logged: bool = True
    two_processors: bool = False
    #: Its connections are over after one exchange, and the shim may leave them to TCP for that.
    brief: bool = False
    #: Its programs refuse to be root's.
    unprivileged: bool = False
    #: How much of the usual time a round of it takes.
    share: float = 1.0

    def chosen(self, only: tuple[str, ...]) -> bool:
        return not only or any(self.name == want or self.name.startswith(f"{want}/") for want in only)


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


def _floor(*metrics: str, names: tuple[str, ...] = (variants.SHM, variants.SHM_NOSPIN)) -> tuple[Want, ...]:
    return tuple(Want(metric, _FLOOR, name) for metric in metrics for name in names)


_SETTINGS = tuple(f"{variants.SHM}-ring{ring >> 10}K-spin{spin}" for ring in RING_SIZES for spin in SPINS)
_REDIS = ("redis-server", "redis-benchmark")
_NGINX = ("nginx", "wrk")


def _one_core_redis(ground: Ground, variant: Variant) -> Load:
    return Redis(ground, variant, cpus=host.cpus()[:1])


def _beside(inner: Make) -> Make:
    return lambda ground, variant: Beside(inner(ground, variant), ground)


ROWS: tuple[Row, ...] = (
    Row(
        "pingpong/two",
        "C ping-pong 64 B, two cores",
        partial(PingPong, cores="two"),
        (Want("p50", 0.3, absolute=True), Want("p99", 1.0, absolute=True), Want("p50"), Want("cpu")),
        choose=_TRIO,
        two_processors=True,
    ),
    Row(
        "pingpong/one",
        "C ping-pong 64 B, one core",
        partial(PingPong, cores="one"),
        (Want("p50", 2.5), *_floor("p50", "cpu")),
        choose=_TRIO,
    ),
    Row(
        "redis/c50",
        "redis-benchmark -c 50",
        Redis,
        (Want("rate", 12), Want("rate", 5, variants.SHM_NOSPIN), Want("cpu", 10), Want("p99")),
        _REDIS,
        _TRIO,
    ),
    Row(
        "redis/c1", "redis-benchmark -c 1", partial(Redis, clients=1), (Want("rate", 40), Want("cpu")), _REDIS
    ),
    Row("redis/c500", "redis-benchmark -c 500", partial(Redis, clients=500), (Want("rate", 8),), _REDIS),
    Row("redis/P16", "redis-benchmark -c 50 -P 16", partial(Redis, pipeline=16), (Want("rate", 2),), _REDIS),
    Row(
        "memcached/c50",
        "memcached, 50 connections, gets",
        Memcache,
        (Want("rate", 10), Want("cpu")),
        ("memcached",),
        _TRIO,
    ),
    Row(
        "nginx/file",
        "nginx, wrk -c 16, file of 1 KiB",
        partial(Web, path="file"),
        (Want("rate", 4), Want("p99", 1), Want("cpu")),
        _NGINX,
        _TRIO,
    ),
    Row(
        "nginx/bare",
        "nginx, wrk -c 16, return 200",
        partial(Web, path="bare"),
        (Want("rate", 8), Want("p99", 1), Want("cpu")),
        _NGINX,
        _TRIO,
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
        _TRIO,
        two_processors=True,
    ),
    Row(
        "iperf3/one",
        "iperf3, 128 KiB, one core",
        partial(Iperf, cores="one"),
        (Want("rate", 4), Want("cpu")),
        ("iperf3",),
        _TRIO,
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
        Crowded,
        (Want("rate"), Want("cpu")),
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
        _floor("rate", "cpu"),
        _REDIS,
        _TRIO,
    ),
    Row(
        "floor/iperf-settings",
        "iperf3, each ring size and spin setting",
        Iperf,
        _floor("rate", names=_SETTINGS),
        ("iperf3",),
        _every_setting,
        share=0.5,
    ),
    Row(
        "floor/redis-settings",
        "redis-benchmark -c 50, each ring size and spin setting",
        Redis,
        _floor("rate", "cpu", names=_SETTINGS),
        _REDIS,
        _every_setting,
        share=0.5,
    ),
    Row(
        "floor/hogs-pingpong",
        "C ping-pong 64 B, two CPU hogs beside",
        _beside(partial(PingPong, cores="any")),
        _floor("p50", "p99", "rate", "cpu"),
        choose=_TRIO,
    ),
    Row(
        "floor/hogs-redis",
        "redis-benchmark -c 50, two CPU hogs beside",
        _beside(Redis),
        _floor("rate", "cpu"),
        _REDIS,
        _TRIO,
    ),
    Row(
        "floor/processes",
        "C ping-pong 64 B, 25 clients and 25 servers",
        partial(PingPong, cores="any", processes=25),
        _floor("rate", "cpu"),
        choose=_TRIO,
    ),
    *(
        Row(
            f"floor/think-{name}",
            f"C ping-pong 64 B, a pause of {name} before each",
            partial(PingPong, cores="two", think_us=think),
            _floor("p50", "cpu"),
            choose=_TRIO,
            two_processors=True,
        )
        for name, think in (("20us", 20), ("100us", 100), ("1ms", 1000))
    ),
)
