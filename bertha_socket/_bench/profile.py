"""Whose code the processor time of a load goes to: `perf record` on both ends, counted by shared object."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from bertha_socket._bench import tools
from bertha_socket._bench.report import Sample
from bertha_socket._bench.speed_load import Load, family
from bertha_socket._bench.stage import Failed, Stage

INTERPRETER, OURS, LIBC, KERNEL, OTHER = "interpreter", "ours", "libc", "kernel", "other"
PARTS = (INTERPRETER, OURS, LIBC, KERNEL, OTHER)
_RECORD = ("record", "-q", "-F", "997")
#: Milliseconds in which a client starts; what Python imports is no message's cost.
_STARTING = 400
_KINDS = (
    (OURS, re.compile(r"libbertha_shim|_direct\.abi3")),
    (INTERPRETER, re.compile(r"^(lib)?python3|\.cpython-|\.abi3\.so")),
    (LIBC, re.compile(r"^(libc|libpthread|libm|ld-linux[^/]*)[.-]|^\[vdso\]")),
    (KERNEL, re.compile(r"^\[(?!unknown\])")),
)


def unavailable() -> str | None:
    """Why there are no profiles here; None when there are."""
    perf = shutil.which("perf")
    if perf is None:
        return "no profiles: perf is not installed (apt-get install linux-perf)"
    done = subprocess.run(
        [perf, *_RECORD, "-o", "/dev/null", "true"], capture_output=True, text=True, check=False, timeout=20
    )
    return None if done.returncode == 0 else f"no profiles: perf record does not work: {done.stderr.strip()}"


def kind_of(shared_object: str) -> str:
    """Which of the parts a shared object, as perf names it, belongs to."""
    return next((kind for kind, pattern in _KINDS if pattern.search(shared_object)), OTHER)


def read(data: Path) -> Counter[str]:
    """Samples of each part."""
    argv = [tools.find("perf"), "report", "-f", "-i", str(data), "--stdio", "-q", "--sort", "dso"]
    done = subprocess.run(
        [*argv, "-F", "sample,dso", "-t", ","], capture_output=True, text=True, check=False, timeout=60
    )
    found: Counter[str] = Counter()
    for line in done.stdout.splitlines():
        number, _, name = line.strip().partition(",")
        if number.strip().isdigit():
            found[kind_of(name.strip())] += int(number)
    return found


def split(stage: Stage, load: Load, use: Callable[[], Sample]) -> tuple[Counter[str], Counter[str]]:
    """The samples of one run: of those who serve, and of those who ask."""
    serving, asking = stage.path(".perf"), stage.path(".perf")
    perf = tools.find("perf")
    record = (perf, *_RECORD, "-D", str(_STARTING))
    pids = ",".join(map(str, family(load.pids)))
    recorder = subprocess.Popen(
        [*record, "-o", str(serving), "-p", pids],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    stage.before = (*record, "-o", str(asking), "--")
    try:
        use()
    finally:
        stage.before = ()
        recorder.send_signal(signal.SIGINT)
        recorder.wait(timeout=20)
    found = read(serving), read(asking)
    if not sum(map(sum, (f.values() for f in found))):
        raise Failed("perf record took no sample")
    return found


def profiled(stage: Stage, load: Load, use: Callable[[], Sample]) -> Sample:
    """A run of a load, and what it gave; its `cpu` is shared out among the parts (microseconds a request) as
    the samples of a second run are, for perf costs something."""
    sample = use()
    serving, asking = split(stage, load, use)
    found = serving + asking
    whole = sum(found.values())
    cpu = sample.values["cpu"]
    return Sample(sample.values | {part: cpu * found[part] / whole for part in PARTS}, sample.pooled)
