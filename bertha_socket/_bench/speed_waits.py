"""More rows of ``bertha bench speed``: other ways to wait, other runtimes, processes that are over soon."""

from __future__ import annotations

from functools import partial

from bertha_socket._bench import speed_pairs as pairs
from bertha_socket._bench import tools, variants
from bertha_socket._bench.speed_pairs import Pair
from bertha_socket._bench.speed_rows import PAIR, TRIO, Row, Want, floor

_SHM = (variants.SHM,)


def _echo(name: str, title: str, mode: str, ask: pairs.Command, processes: int = 1) -> Row:
    """One of our own servers."""
    make = partial(Pair, serve=pairs.echoes(mode, processes), ask=ask)
    return Row(name, title, make, floor("rate", "cpu"), choose=TRIO)


_RUNTIME = (*floor("rate", "cpu", names=_SHM),)
_TEN, _FIFTY = pairs.load(10), pairs.load(50)

ROWS: tuple[Row, ...] = (
    _echo("waits/poll", "poll echo 64 B, 10 connections", "poll", _TEN),
    _echo("waits/select", "select echo 64 B, 10 connections", "select", _TEN),
    _echo("waits/threads", "echo 64 B, a thread for each of 10 connections", "threads", _TEN),
    _echo("waits/threads50", "echo 64 B, 50 threads at each end", "threads", pairs.askers(50)),
    _echo(
        "floor/exclusive",
        "EPOLLEXCLUSIVE echo 64 B, 4 processes, 50 connections",
        "exclusive",
        pairs.load(50),
        4,
    ),
    _echo("floor/two-sets", "echo 64 B, each of 10 connections in two epoll sets", "two-sets", _TEN),
    _echo("floor/nested", "echo 64 B, epoll sets within a set, 10 connections", "nested", _TEN),
    Row(
        "runtimes/node",
        "node (libuv) echo 64 B, 10 connections",
        partial(Pair, serve=pairs.node, ask=_TEN),
        _RUNTIME,
        ("node",),
        PAIR,
    ),
    Row(
        "runtimes/gevent",
        "gevent echo 64 B, 10 connections",
        partial(Pair, serve=pairs.script("gevent_echo.py"), ask=_TEN),
        _RUNTIME,
        needs=lambda: tools.module("gevent"),
    ),
    Row(
        "runtimes/java",
        "JVM (NIO) echo 64 B, 10 connections",
        partial(Pair, serve=pairs.java, ask=_TEN),
        _RUNTIME,
        needs=tools.java_classes,
    ),
    Row(
        "runtimes/redis-py",
        "redis-py with redis-server, one connection",
        partial(
            Pair,
            serve=pairs.redis_server,
            ask=pairs.asking_script("redis_asks.py"),
            ready="Ready to accept connections",
        ),
        _RUNTIME,
        ("redis-server",),
        needs=lambda: tools.module("redis"),
    ),
    Row(
        "runtimes/http",
        "Python http.server with urllib, a connection for each request",
        partial(
            Pair,
            serve=pairs.script("http_pair.py", "server"),
            ask=pairs.asking_script("http_pair.py", "client"),
        ),
        _RUNTIME,
        brief=True,
        logged=False,
    ),
    Row(
        "connect/process",
        "a process for each request: exec, connect, 64 B, echo, exit",
        partial(Pair, serve=pairs.echoes("threads"), ask=pairs.oneshot),
        (Want("rate", 1.0), Want("cpu")),
        brief=True,
        logged=False,
    ),
)
