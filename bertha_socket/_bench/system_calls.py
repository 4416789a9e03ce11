"""Counts the system calls of a load's two ends, with the kernel's tracepoint and perf; a run by itself."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bertha_socket._bench import tools
from bertha_socket._bench.report import Sample
from bertha_socket._bench.speed_load import Ground, Load, family
from bertha_socket._bench.stage import Failed

_EVENT = ("--no-big-num", "-x", ",", "-e", "raw_syscalls:sys_enter")
#: In which perf must have opened its events; far more than it needs on a busy machine.
_SECONDS = 20.0
_ATTEMPTS = 5


def unavailable() -> str | None:
    """Why they cannot be counted here; None when they can."""
    perf = shutil.which("perf")
    if perf is None:
        return "system calls are not counted: perf is not installed (apt-get install linux-perf)"
    done = subprocess.run(
        [perf, "stat", "-x", ",", "-e", "raw_syscalls:sys_enter", "true"],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    if done.returncode != 0 or not re.match(r"\d", done.stderr):
        return "system calls are not counted: perf may not count raw_syscalls here"
    return None


class _Counter:
    """One perf; raises Failed when it does not say that it counts."""

    def __init__(self, pids: Sequence[int], out: Path) -> None:
        reads_order, self._order = os.pipe()
        self._answer, writes_answer = os.pipe()
        # It begins disabled, and says on the second descriptor that an order was carried out (perf-stat(1)).
        control = ["-D", "-1", "--control", f"fd:{reads_order},{writes_answer}"]
        argv = [tools.find("perf"), "stat", *_EVENT, *control, "-o", str(out), "-p", ",".join(map(str, pids))]
        inherited = (reads_order, writes_answer)
        try:
            self._perf = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=inherited
            )
        finally:
            os.close(reads_order)
            os.close(writes_answer)
        try:
            os.write(self._order, b"enable\n")
            ready, _, _ = select.select([self._answer], [], [], _SECONDS)
            if not ready or not os.read(self._answer, 16).startswith(b"ack"):
                raise Failed("perf does not say that it counts")
        except (Failed, BrokenPipeError) as failed:
            self.stop()
            raise Failed("perf does not say that it counts") from failed

    def stop(self) -> None:
        """It writes what it counted."""
        self._perf.send_signal(signal.SIGINT)
        self._perf.wait(timeout=_SECONDS)
        os.close(self._order)
        os.close(self._answer)


@contextmanager
def counting(pids: Sequence[int], out: Path) -> Iterator[None]:
    """Counts those of processes, and of what they start: the block begins when perf has said that it counts.

    Raises Failed when it does not say so.
    """
    for attempt in range(_ATTEMPTS):
        try:
            counter = _Counter(pids, out)
            break
        except Failed:  # a thread that ended while perf looked at it makes it give up
            if attempt == _ATTEMPTS - 1:
                raise
            time.sleep(0.1)
    try:
        yield
    finally:
        counter.stop()


def counted(path: Path) -> float:
    """What perf has written; raises Failed when it counted nothing."""
    try:
        said = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        said = ""
    found = re.search(r"^(\d+),,raw_syscalls", said, re.MULTILINE)
    if found is None:
        raise Failed("perf stat counted nothing")
    return float(found.group(1))


@dataclass
class SystemCalls:
    """For the loads of a row."""

    ground: Ground

    def count(self, load: Load, use: Callable[[], Sample]) -> tuple[float, float | None]:
        """System calls for each request: the server's, and the client's where that can be had."""
        stage = self.ground.stage
        serving, asking = stage.path(".perf"), stage.path(".perf")
        with counting(family(load.pids), serving):
            if load.client_counts:
                stage.before = (tools.find("perf"), "stat", *_EVENT, "-o", str(asking), "--")
            try:
                requests = use().values["requests"]
            finally:
                stage.before = ()
        if requests == 0:
            raise Failed("no request was answered in that time")
        asked = counted(asking) / requests if load.client_counts else None
        return counted(serving) / requests, asked
