"""The preload library as a file: where it is, whether it is this package's, and how LD_PRELOAD names it."""

from __future__ import annotations

import mmap
import os
from typing import NamedTuple

from bertha_socket._version import __version__
from bertha_socket.cli._elf import Elf, NotElf, read_elf

__all__ = ["LIBRARY", "Library", "compose", "find_library", "is_ours", "split"]

LIBRARY = "libbertha_shim.so"
_MARK = b"bertha_shim_version="
_MARK_MAX = 64
# What ld.so would split at, or expand: such a path cannot be written in LD_PRELOAD.
_UNWRITABLE = " :$"


class Library(NamedTuple):
    """The library, or why there is none to use."""

    path: str
    elf: Elf | None
    version: str | None
    problem: str | None  # one line with the remedy; None: usable


def _read_version(path: str) -> str | None:
    """The version that the library was built as (a string in it), without loading it."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = data.find(_MARK)
        if start < 0:
            return None
        start += len(_MARK)
        text = data[start : start + _MARK_MAX].partition(b"\0")[0]
        return text.decode("ascii", "replace")


def find_library() -> Library:
    """The package's own library.  BERTHA_SHIM names another file (a sanitized build); for our tests only."""
    folder = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib")
    path = os.path.abspath(os.environ.get("BERTHA_SHIM") or os.path.join(folder, LIBRARY))
    try:
        elf = read_elf(path)
        version = _read_version(path)
    except FileNotFoundError:
        return Library(path, None, None, f"{path} is missing: install bertha-socket again")
    except (OSError, NotElf, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return Library(path, None, None, f"{path} cannot be used ({what}): install bertha-socket again")
    if version != __version__:
        found = f"of version {version}" if version else "no preload library of ours"
        text = f"{path} is {found}, the package is {__version__}: install bertha-socket again"
        return Library(path, elf, version, text)
    return Library(path, elf, version, None)


def split(value: str) -> list[str]:
    """The entries of an LD_PRELOAD, which ld.so separates at colons and spaces."""
    return [entry for entry in value.replace(":", " ").split(" ") if entry]


def _same_file(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def is_ours(entry: str, library: str) -> bool:
    """Whether an entry of LD_PRELOAD is this library, or another installation's."""
    return os.path.basename(entry).startswith("libbertha_shim") or _same_file(entry, library)


def compose(existing: str, library: str, *, wanted: bool) -> str:
    """LD_PRELOAD with the library in front exactly once (`wanted`), or without it.

    What others put there stays, in order.  Another installation's library is replaced: two in one process
    would both serve the same connections.
    """
    entries = split(existing)
    ours = [entry for entry in entries if is_ours(entry, library)]
    if wanted and len(ours) == 1 and _same_file(ours[0], library):
        return existing  # nested: as it is, to the letter
    if not wanted and not ours:
        return existing
    others = [entry for entry in entries if entry not in ours]
    return ":".join([writable(library), *others] if wanted else others)


def writable(library: str) -> str:
    """A path of the library that can be written in LD_PRELOAD: itself, or a link to it beside the agent's
    socket.  Raises OSError when it needs a link and none can be made."""
    if not any(char in library for char in _UNWRITABLE):
        return library
    import hashlib

    from bertha_socket.agent import paths

    socket_path = paths.default_path()
    paths.prepare(socket_path)
    name = f"shim-{hashlib.sha256(os.fsencode(library)).hexdigest()[:16]}.so"
    link = os.path.join(os.path.dirname(socket_path), name)
    if any(char in link for char in _UNWRITABLE):
        raise OSError(f"{library}: LD_PRELOAD cannot hold a path with a space, a colon or a dollar sign")
    try:
        # Another user's link could be made to lead elsewhere later.
        if os.lstat(link).st_uid == os.geteuid() and os.readlink(link) == library:
            return link
    except OSError:
        pass
    fresh = f"{link}.{os.getpid()}"
    os.symlink(library, fresh)
    os.replace(fresh, link)
    return link
