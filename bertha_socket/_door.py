"""The shim in this very process: found if LD_PRELOAD has brought it, else loaded late.

All other doors of Python (`bertha_socket.monkey`, `bertha_socket.socket`) go through here, so none applies
what another has applied already.  The work is done in native/door/got.c.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import sys
import threading
from enum import IntEnum, IntFlag
from functools import cache
from typing import Final, NamedTuple

from bertha_socket._required import required
from bertha_socket.cli._preload import find_library

__all__ = [
    "DoorError",
    "Origin",
    "Patched",
    "State",
    "connecting",
    "name_chunnels",
    "ledger",
    "open_door",
    "original",
    "state",
    "tell_registered",
]


class DoorError(OSError):
    """The shim cannot be brought into this process."""


class State(IntEnum):
    """How the calls of this process reach the shim."""

    CLOSED = 0
    PRELOADED = 1
    LATE = 2


class Origin(IntFlag):
    """Whose connections begin in the shim (native/door/door.h)."""

    NONE = 0
    SOCKET = 1
    LIBRARIES = 2


class Patched(NamedTuple):
    """One line of the ledger: `entries` table entries of `object` that led to the C library's `call`."""

    object: str
    call: str
    entries: int


log: Final = logging.getLogger(__name__)

_lock = threading.Lock()
_telling = threading.Lock()
#: Whether connections here may have chunnels that run beside the agent; what it was told of those of ours.
_tells = False
_told = ""


def _forget_lock() -> None:
    global _telling
    _telling = threading.Lock()


os.register_at_fork(after_in_child=_forget_lock)


@cache
def _library() -> ctypes.CDLL:
    found = find_library()
    if found.problem is not None:
        raise DoorError(errno.ELIBACC, f"the preload library cannot be loaded: {found.problem}")
    try:
        library = ctypes.CDLL(found.path, mode=os.RTLD_GLOBAL | os.RTLD_NOW)
        library.bertha_door_original.restype = ctypes.c_void_p
        library.bertha_door_original.argtypes = [ctypes.c_char_p]
        library.bertha_door_ledger.restype = ctypes.c_size_t
        library.bertha_door_ledger.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
        library.bertha_door_bring.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    except (OSError, AttributeError) as error:
        raise DoorError(errno.ELIBACC, f"{found.path} does not load: {error}") from None
    return library


def _loaded() -> bool:
    return _library.cache_info().currsize > 0


def state() -> State:
    """How the calls of this process reach the shim; loads nothing."""
    if not _loaded() and "libbertha_shim" not in _maps():
        return State.CLOSED
    return State(_library().bertha_door_state())


def _maps() -> str:
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def disabled() -> bool:
    """BERTHA_DISABLE says that everything stays plain."""
    return os.environ.get("BERTHA_DISABLE", "0") not in ("", "0")


def open_door(origins: Origin, *, own: bool = False) -> State:
    """Makes the shim serve this process's calls; connections of `origins` begin in it.  May be called again.
    `own`: for somebody who runs his chunnels himself.

    Raises DoorError (an OSError) when the library is missing or this C library is not one that it knows;
    PolicyError (also one) when the policy file makes no sense.
    """
    with _lock:
        now = state()
        if now is State.PRELOADED or disabled():
            return now
        musts = required().here
        _library().bertha_door_musts(musts.encode())
        result = int(_library().bertha_door_redirect(int(origins)))
        if result < 0:
            why = os.strerror(-result)
            raise DoorError(-result, f"calls cannot be redirected ({why}): run the program under bertha-run")
    global _tells
    if not own:
        _tells = True
        tell_registered()
    return State.LATE


def tell_registered() -> None:
    """The agent learns which chunnels this program has registered, if the shim is here and there are any; it
    is waited for while it looks at them (two seconds at the most)."""
    registered = sys.modules.get("bertha_socket.chunnels._registered")  # where it is not, nothing is
    if registered is None:
        return
    global _told
    with _telling:
        pairs = "".join(f"{name}\0{source}\0" for name, source in registered.sources().items())
        if pairs == _told or disabled() or not (_tells or state() is State.PRELOADED):
            return
        _told = pairs
        try:
            data = pairs.encode()
        except UnicodeEncodeError:
            log.warning("a chunnel's file has a name that is not UTF-8; the agent is not told of any")
            return
        if _library().bertha_door_bring(data, len(data)) != 0:
            log.warning("too many chunnels are registered for the agent to be told")


def ledger() -> tuple[Patched, ...]:
    """What has been redirected until now, in the order in which it was."""
    if not _loaded():
        return ()
    library = _library()
    size = library.bertha_door_ledger(None, 0)
    while True:
        room = ctypes.create_string_buffer(size + 4096)
        size = library.bertha_door_ledger(room, len(room))
        if size < len(room):
            break
    lines = (line.split("\t") for line in os.fsdecode(room.value).splitlines())
    return tuple(Patched(where, call, int(entries)) for where, call, entries in lines)


def original(call: str) -> int | None:
    """The address of the C library's own `call`, or None if the shim has no such call."""
    address: int | None = _library().bertha_door_original(call.encode())
    return address


def name_chunnels(fd: int, chunnels: str, left_out: str = "") -> None:
    """For the connection log: what the caller runs on this connection, a JSON array, and in one line what was
    left out, and why."""
    if _loaded():
        _library().bertha_door_name(fd, chunnels.encode(), left_out.encode("utf-8", "replace"))


class connecting:
    """Within this block the thread's own Python sockets connect and listen through the shim.  `own`: without
    chunnels there, for the caller runs his own."""

    def __init__(self, *, own: bool = False) -> None:
        self._how = 3 if own else 1  # native/door/door.h
        self._before = 0

    def __enter__(self) -> None:
        self._before = _library().bertha_door_opt(self._how) if _loaded() else 0

    def __exit__(self, *_: object) -> None:
        if _loaded():
            _library().bertha_door_opt(self._before)
