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
from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

PROGRAMS = (
    "server",
    "bare",
    "calls",
    "ping",
    "rate",
    "hold",
    "load",
    "hog",
    "echoes",
    "askers",
    "oneshot",
    "burst",
)
CHUNNEL_COST = "chunnel_cost"
_FLAGS = ("-std=gnu11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra")
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
    "node": "nodejs",
    "java": "default-jre-headless",
    "javac": "default-jdk-headless",
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


@dataclass(frozen=True)
class _Program:
    """One executable: its sources, as paths below where it is compiled, and what the linker is told."""

    name: str
    sources: tuple[str, ...]
    libraries: tuple[str, ...] = ()


def _compile(
    sources: dict[str, bytes], programs: tuple[_Program, ...], cache: Path | None
) -> dict[str, Path]:
    """Compile programs unless that was done before from the same sources; returns name -> executable."""
    compiler = find(os.environ.get("CC", "cc"))
    digest = hashlib.sha256(repr((sorted(sources.items()), _FLAGS, compiler, programs)).encode()).hexdigest()[
        :16
    ]
    place = (cache or _cache_root()) / f"bench-{digest}"
    built = {program.name: place / program.name for program in programs}
    if all(path.exists() for path in built.values()):
        return built
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as refused:
        raise Unavailable(
            f"{place.parent} cannot be made ({refused.strerror}): the measuring programs are built there; "
            "set XDG_CACHE_HOME to a writable directory"
        ) from None
    with tempfile.TemporaryDirectory(dir=place.parent, prefix="building-") as text:
        work = Path(text)
        for name, data in sources.items():
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            (work / name).write_bytes(data)
        for program in programs:
            command = [compiler, *_FLAGS, f"-I{work}", "-o", str(work / program.name)]
            command += [*(str(work / source) for source in program.sources), *program.libraries]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise Unavailable(
                    f"{compiler} could not build {program.name}: {done.stderr.strip().splitlines()[-1]}"
                )
        place.mkdir(exist_ok=True)
        for program in programs:  # renaming is atomic: another bench may do the same now
            os.replace(work / program.name, place / program.name)
    return built


def _own_sources() -> dict[str, bytes]:
    directory = resources.files(__package__) / "native"
    return {e.name: e.read_bytes() for e in directory.iterdir() if e.name.endswith((".c", ".h"))}


def build(cache: Path | None = None) -> dict[str, Path]:
    """Compile the measuring programs unless that was done before; returns name -> executable."""
    programs = tuple(_Program(name, (f"{name}.c",), ("-lpthread",)) for name in PROGRAMS)
    return _compile(_own_sources(), programs, cache)


def build_chunnel_cost(cache: Path | None = None) -> Path:
    """The program that has the carrier's chunnels in it; their sources are in a checkout, not in a wheel."""
    native = Path(str(resources.files("bertha_socket"))).parent / "native"
    if not (native / "chunnels").is_dir():
        raise Unavailable(f"the chunnels' sources are not installed ({native}): run this in a checkout")
    parts = [*(native / "chunnels").glob("*.[ch]"), native / "carrier/buffer.h"]
    others = ("carrier/pack.h", "carrier/pack.c", "core/layout.h", "core/libcrypto.h", "core/libcrypto.c")
    parts += [native / name for name in (*others, "core/records.h", "core/records.c")]
    sources = {str(path.relative_to(native)): path.read_bytes() for path in sorted(parts)}
    compiled = (CHUNNEL_COST + ".c", *(name for name in sources if name.endswith(".c")))
    program = _Program(CHUNNEL_COST, compiled, ("-lssl", "-lcrypto", "-lzstd", "-llz4"))
    return _compile(_own_sources() | sources, (program,), cache)[CHUNNEL_COST]


def program(name: str) -> Path:
    """A program of ours that is no C: a script, or a source."""
    return Path(str(resources.files(__package__))) / "programs" / name


def java_classes(cache: Path | None = None) -> Path:
    """Where Echo.class is, compiled unless that was done before; raises Unavailable without a JDK."""
    compiler, source = find("javac"), program("Echo.java")
    find("java")
    digest = hashlib.sha256(repr((source.read_bytes(), compiler)).encode()).hexdigest()[:16]
    place = (cache or _cache_root()) / f"bench-java-{digest}"
    if (place / "Echo.class").exists():
        return place
    with tempfile.TemporaryDirectory(prefix="bertha-java-") as work:
        done = subprocess.run(
            [compiler, "-d", work, str(source)], capture_output=True, text=True, check=False, timeout=120
        )
        if done.returncode != 0:
            raise Unavailable(f"{compiler} could not build Echo.java: {done.stderr.strip()}")
        place.mkdir(parents=True, exist_ok=True)
        for made in Path(work).glob("*.class"):
            shutil.copy(made, place / made.name)
    return place


def module(name: str) -> None:
    """Raises Unavailable when this Python has no such module."""
    if find_spec(name) is None:
        raise Unavailable(f"the Python module {name} is not installed: pip install {name}")


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
