"""What a measurement was taken on: a ratio means little without kernel, processors and versions."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

from bertha_socket._bench import tools

_VERSION_OPTIONS = {
    "redis-server": "--version",
    "iperf3": "--version",
    "nginx": "-v",
    "memcached": "--version",
}


def cpus() -> list[int]:
    """The processors this process may use."""
    return sorted(os.sched_getaffinity(0))


def _cpu_model() -> str:
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    found = re.search(r"^(?:model name|CPU part)\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def _congestion_control() -> str:
    """It decides how fast plain TCP is on the loopback interface; new namespaces begin with the same."""
    path = Path("/proc/sys/net/ipv4/tcp_congestion_control")
    return path.read_text(encoding="ascii").strip() if path.exists() else "unknown"


def _memory_mib() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (1 << 20)


def package_version() -> str:
    """Version of the installed package, or "unknown" in a bare checkout."""
    try:
        return metadata.version("bertha-socket")
    except metadata.PackageNotFoundError:
        return "unknown"


def program_version(program: str) -> str:
    """First version-like word of what a program says about itself."""
    option = _VERSION_OPTIONS.get(program, "--version")
    done = subprocess.run(
        [tools.find(program), option], capture_output=True, text=True, check=False, timeout=10
    )
    found = re.search(r"\d+\.\d+(\.\d+)?", done.stdout + done.stderr)
    return found.group(0) if found else "unknown"


def describe(programs: tuple[str, ...] = ()) -> dict[str, object]:
    """The host as a JSON object: kernel, processors, memory, load before the run, versions."""
    versions = {program: program_version(program) for program in programs}
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu_model": _cpu_model(),
        "cpus": cpus(),
        "memory_mib": _memory_mib(),
        "load_before": os.getloadavg()[0],
        "tcp_congestion_control": _congestion_control(),
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        "bertha_socket": package_version(),
        "root": os.geteuid() == 0,
        "programs": versions,
    }
