"""Many connections of every sort at once, peers that are killed, and the same under the sanitizers.

The program (c/stress.c) checks each byte that comes back; here it is seen to that shared memory carried it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.harness import Host, assert_carried, free_port, require_program
from tests.harness.connlog import REHEARSED, connections
from tests.harness.directory import listed_ports
from tests.harness.poll import eventually
from tests.shim.conftest import Build

_NATIVE = Path(__file__).resolve().parents[2] / "native"
_POLICIES = {"shm": None, "unix": '[[rule]]\nprohibit = ["shm"]\n'}


def _client(port: int, seed: int, threads: int, count: int) -> list[object]:
    return ["client", port, seed, threads, count]


def _assert_most_carried(host: Host, implementation: str, count: int) -> None:
    """Nine of ten at the least: one that is not tied yet when the server forks for another stays plain."""
    log = host.finish()
    if log is REHEARSED:
        return
    ended = [c for c in connections(log, program="stress", role="client") if c.tx_bytes]
    carried = [c for c in ended if c.implementation == implementation]
    assert len(ended) >= count, f"{len(ended)} connections in the log"
    assert len(carried) >= 0.9 * len(ended), f"{len(carried)} of {len(ended)} carried by {implementation}"
    assert {c.implementation for c in ended} <= {implementation, "tcp"}


@pytest.mark.parametrize("implementation", ["shm", "unix"])
def test_all_sorts(host: Host, build: Build, implementation: str) -> None:
    stress = build("stress")
    policy = _POLICIES[implementation]
    if policy is not None:
        host.set_policy(policy)
    port = free_port()
    server = host.server([stress, "server", port], port)
    for seed in (1, 2):
        assert "ok" in host.run([stress, *_client(port, seed, 6, 40)], timeout=60)
    assert server.running
    _assert_most_carried(host, implementation, 482)


def test_peers_are_killed(host: Host, build: Build) -> None:
    """kill -9 of clients in the middle of it all: the server serves the others as before."""
    stress = build("stress")
    port = free_port()
    server = host.server([stress, "server", port], port)
    for seed in range(4):
        victim = host.spawn([stress, *_client(port, 100 + seed, 8, 100000)])
        victim.wait_text("begun")
        victim.kill()
    assert "ok" in host.run([stress, *_client(port, 7, 4, 20)], timeout=60)
    assert server.running, server.text()
    _assert_most_carried(host, "shm", 81)


def test_server_is_killed(host: Host, build: Build) -> None:
    """Its clients see the end or an error, at once, and do not hang."""
    stress = build("stress")
    port = free_port()
    server = host.server([stress, "server", port], port)
    client = host.spawn([stress, *_client(port, 9, 4, 100000)])
    client.wait_text("begun")
    server.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)  # what it has forked
    assert "wrong" in client.wait(20, check=False)
    lines = connections(host.finish(), program="stress", role="client")
    assert host.rehearse or any(c.implementation == "shm" for c in lines), lines


@pytest.mark.slow
@pytest.mark.timeout(400)  # most of it is a compiler
def test_under_the_sanitizers(host: Host, build: Build, tmp_path: Path) -> None:
    compiler = require_program("cc")
    question = [compiler, "-print-file-name=libasan.so"]
    found = subprocess.run(question, capture_output=True, text=True, check=True)
    runtime = Path(found.stdout.strip())
    if not runtime.is_absolute():
        pytest.skip("the compiler has no address sanitizer")
    done = subprocess.run(
        ["make", "-s", "-C", str(_NATIVE), "VARIANT=asan", f"LIBDIR={tmp_path}", "lib"],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
        env={k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    stress = build("stress")
    env = {
        "LD_PRELOAD": f"{runtime} {tmp_path / 'libbertha_shim_asan.so'}",
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    port = free_port()
    server = host.server([stress, "server", port, "nofork"], port, shim=False, env=env)
    if not host.rehearse:
        eventually(
            lambda: port in listed_ports(Path(f"{host.agent_path}.dir")), "the server in the directory"
        )
    assert "ok" in host.run([stress, *_client(port, 3, 5, 40)], shim=False, env=env, timeout=90)
    assert server.running
    log = host.finish()
    for program in host.programs:
        assert "runtime error" not in program.text(), program.text()
        assert "AddressSanitizer" not in program.text(), program.text()
    assert_carried(log, "stress", role="client", min_connections=201)
