"""Other people's ways to keep the kernel's TCP out of it, where the user has installed them: never shipped,
never installed by us, found on PATH or where distributions put libraries.

Each is a command in the place of `bertha-run`.  Their word for what carried the bytes is not asked for: over
the whole run the namespace's IP layer must have received next to nothing.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from bertha_socket._bench import netns, tools
from bertha_socket._bench.report import Report, Sample
from bertha_socket._bench.stage import Shim, Stage
from bertha_socket._bench.variants import Variant

IP2UNIX, SOCKET_WRAPPER = "ip2unix", "socket_wrapper"
_LIBRARY = "libsocket_wrapper.so"
_PLACES = ("/usr/lib/*", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/local/lib64")
#: Bytes by IP for each request: a request and its answer over TCP are more than two bare headers.
_OCTETS = 20


def _ip2unix(place: Path) -> tuple[str, ...]:
    """TCP at every address becomes a unix socket in `place`."""
    return (_found(IP2UNIX), "-r", f"tcp,path={place}/%a-%p.sock")


def _socket_wrapper(place: Path) -> tuple[str, ...]:
    """127.0.0.1 becomes unix sockets in `place`."""
    settings = (f"SOCKET_WRAPPER_DIR={place}", "SOCKET_WRAPPER_DEFAULT_IFACE=1")
    return (tools.find("env"), f"LD_PRELOAD={_library()}", *settings)


def _found(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise tools.Unavailable(f"{program} is not on PATH")
    return path


def _library() -> Path:
    directories: list[Path] = []
    config = shutil.which("pkg-config")
    if config is not None:
        asked = [config, "--variable=libdir", SOCKET_WRAPPER]
        done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=10)
        directories += [Path(done.stdout.strip())] if done.stdout.strip() else []
    directories += [found for place in _PLACES for found in sorted(Path("/").glob(place.lstrip("/")))]
    for directory in directories:
        if (directory / _LIBRARY).exists():
            return directory / _LIBRARY
    raise tools.Unavailable(f"{_LIBRARY} is neither where pkg-config says nor in the usual directories")


_COMMANDS: dict[str, Callable[[Path], tuple[str, ...]]] = {
    IP2UNIX: _ip2unix,
    SOCKET_WRAPPER: _socket_wrapper,
}


def installed(stage: Stage, report: Report) -> list[Variant]:
    """A variant for each that is there; of the others the report says why not."""
    variants = []
    for name, command in _COMMANDS.items():
        place = stage.path(f".{name}")
        try:
            instead = command(place)
        except tools.Unavailable as missing:
            report.skipped[name] = str(missing)
            continue
        place.mkdir()
        variants.append(Variant(name, name, nodelay=True, shim=Shim(instead=instead), expects=name))
    return variants


def measured(
    report: Report, variant: Variant, host: netns.Host, use: Callable[[Shim | None], Sample]
) -> Sample:
    """One round; it is a failure when the bytes went by IP after all."""
    before = host.kernel_octets()
    sample = use(None)
    after = host.kernel_octets()
    if before is None or after is None:
        report.notes.append(f"{variant.name}: on a shared interface nothing shows what carried its bytes")
    elif after - before > _OCTETS * sample.values["requests"]:
        report.fail(f"{variant.name}: {after - before} bytes went by IP: it was plain TCP")
    return sample
