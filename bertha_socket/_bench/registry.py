"""The benches by name; their modules are imported when one is asked for."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from bertha_socket._bench import interleave
from bertha_socket._bench.report import Report

# Name: module, and what it measures.
BENCHES: dict[str, tuple[str, str]] = {
    "fig3": ("fig3", "the paper's Figure 3: request latency between two namespaces, 8 B, 256 B, 10 KiB"),
    "redis": ("redis", "redis-benchmark, 50 clients, GET and SET: TCP, unix socket, shm"),
    "bulk": ("bulk", "iperf3, one stream, 128 KiB writes: ring sizes and spin settings against TCP"),
    "setup": ("setup", "connections made and closed per second, plain against negotiated"),
    "plain-overhead": (
        "overhead",
        "a program under bertha-run whose peers are plain, against the same without",
    ),
    "idle": ("idle", "10,000 idle connections: processor time, descriptors, memory"),
    "pingpong": ("pingpong", "round trip of 64 B on one connection, one processor and two"),
    "memcached": ("memcached", "memcached, 50 connections: TCP, unix socket, shm"),
    "chunnels": ("chunnels", "redis through encrypt and compress, against its own TLS and plain TCP"),
    "chunnel-cost": ("chunnel_cost", "each chunnel's C implementation, against its library in a loop"),
    "chunnel-setup": ("chunnel_setup", "first answer of a connection with chunnels, between two hosts"),
    "datagrams": ("datagrams", "datagrams between two hosts: plain UDP, chains on reliable in C and Python"),
    "nginx": ("nginx", "nginx and wrk, 16 connections, a file of 1 KiB and a bare answer: TCP, shm"),
    "new": ("new", "a small message by bertha_socket.new, against bare cffi calls"),
    "python": (
        "python_cost",
        "processor time of a message in Python programs: interpreter, us, kernel",
    ),
    "ceiling": ("ceiling", "what the rows of speed could reach at the most, by a profile, and what they do"),
    "speed": ("speed", "everything that is to be fast, against TCP: rates, latency, CPU time, system calls"),
}


def _module(name: str) -> Any:
    return import_module(f"bertha_socket._bench.{BENCHES[name][0]}")


def runner(name: str) -> Callable[[interleave.Options], Report]:
    """The function that runs a bench; KeyError for a name that is not there."""
    run: Callable[[interleave.Options], Report] = _module(name).run
    return run


def rows(name: str) -> tuple[str, ...]:
    """The rows that can be asked for by name; empty for a bench that has none."""
    names: tuple[str, ...] = getattr(_module(name), "ROW_NAMES", ())
    return names


def programs(name: str) -> tuple[str, ...]:
    """Other people's programs that the bench needs."""
    wanted: tuple[str, ...] = _module(name).PROGRAMS
    return wanted
