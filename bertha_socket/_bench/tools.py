"""Finding the programs that a measurement needs, and compiling our own at first use.

The C sources are data of the package, so that an installed wheel can measure; the programs are built by the
user's compiler into a cache directory whose name holds a digest of the sources.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path

PROGRAMS = ("server", "ping", "rate", "hold", "load", "hog")
_FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra")
_PACKAGES = {
    "cc": "gcc",
    "redis-server": "redis-server",
    "redis-benchmark": "redis-tools",
    "iperf3": "iperf3",
    "ip": "iproute2",
    "nginx": "nginx-light",
    "wrk": "wrk",
    "memcached": "memcached",
    "pgbench": "postgresql-contrib",
    "initdb": "postgresql",
    "postgres": "postgresql",
    "perf": "linux-perf",
}


class Unavailable(OSError):
    """Something that a bench needs is not on this machine; the message says what and how to get it."""


def _own_directories(program: str) -> list[str]:
    """Where Debian keeps PostgreSQL's programs, newest first; what is in PATH wraps them, or is not there."""
    if program not in ("postgres", "initdb", "pgbench"):
        return []
    return [str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]


def find(program: str) -> str:
    """Absolute path of an installed program; raises Unavailable with the package to install."""
    directories = [*_own_directories(program), os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"]
    path = shutil.which(program, path=os.pathsep.join(directories))
    if path is None:
        raise Unavailable(f"{program} is not installed: apt-get install {_PACKAGES.get(program, program)}")
    return path


def _cache_root() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "bertha-socket"


def build(cache: Path | None = None) -> dict[str, Path]:
    """Compile the measuring programs unless that was done before; returns name -> executable."""
    sources = sorted(
        (entry.name, entry.read_bytes())
        for entry in (resources.files(__package__) / "native").iterdir()
        if entry.name.endswith((".c", ".h"))
    )
    compiler = find(os.environ.get("CC", "cc"))
    digest = hashlib.sha256(repr((sources, _FLAGS, compiler)).encode()).hexdigest()[:16]
    place = (cache or _cache_root()) / f"bench-{digest}"
    programs = {name: place / name for name in PROGRAMS}
    if all(path.exists() for path in programs.values()):
        return programs
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as refused:
        raise Unavailable(
            f"{place.parent} cannot be made ({refused.strerror}): the measuring programs are built there; "
            "set XDG_CACHE_HOME to a writable directory"
        ) from None
    with tempfile.TemporaryDirectory(dir=place.parent, prefix="building-") as text:
        work = Path(text)
        for name, data in sources:
            (work / name).write_bytes(data)
        for name in PROGRAMS:
            command = [compiler, *_FLAGS, "-o", str(work / name), str(work / f"{name}.c")]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise Unavailable(
                    f"{compiler} could not build {name}.c: {done.stderr.strip().splitlines()[-1]}"
                )
        place.mkdir(exist_ok=True)
        for name in PROGRAMS:  # renaming is atomic: another bench may do the same now
            os.replace(work / name, place / name)
    return programs


def bertha_run() -> list[str]:
    """What starts a program under the shim: the command installed beside this Python, else the module."""
    beside = Path(sys.executable).with_name("bertha-run")
    if beside.exists():
        return [str(beside)]
    return [sys.executable, "-m", "bertha_socket.cli.run"]


def shim_library() -> Path:
    """The preload library of this package; raises Unavailable when it was not built."""
    path = Path(str(resources.files("bertha_socket"))) / "lib" / "libbertha_shim.so"
    if not path.exists():
        raise Unavailable(f"the preload library is missing ({path}): build it with make -C native")
    return path
