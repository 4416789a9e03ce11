"""Brings the shim into a running Python: `patch_all()`, and `python -m bertha_socket.monkey script.py args`.

The preload library that `bertha-run` puts in front is loaded late, and every call of what is already loaded
(_socket, OpenSSL, uvloop, libpq, gevent's loop) is redirected to it, as is what is loaded from then on.  No
Python object is replaced, so it does not matter whether gevent patches before or after.  Manner and names
are those of gevent's `monkey`.

What exists already when `patch_all` is called stays plain: connections, and sockets that listen.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket as _stdlib
import stat
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from bertha_socket import _door
from bertha_socket._door import DoorError, Patched
from bertha_socket._policy_reader import PolicyError
from bertha_socket._required import required

__all__ = [
    "DoorError",
    "MonkeyPatchWarning",
    "Patched",
    "PolicyError",
    "get_original",
    "is_patched",
    "ledger",
    "patch_all",
    "patch_libraries",
    "patch_socket",
    "patch_subprocess",
]


class MonkeyPatchWarning(RuntimeWarning):
    """Something was there before the shim, and stays plain."""


_done: set[str] = set()


def patch_all(
    *,
    socket: bool = True,
    libraries: bool = True,
    subprocess: bool = True,
    agent: bool = True,
    warn: bool = True,
) -> bool:
    """Negotiates the transport of this process's connections from now on.  True: this call changed something.

    `socket`: connections made through Python's own sockets (asyncio, ssl, http, ...).  `libraries`: those
    that other loaded code makes itself (libpq, uvloop, ...).  `subprocess`: children run as under bertha-run
    (LD_PRELOAD in os.environ).  `agent`: starts one if none answers.  `warn`: MonkeyPatchWarning about what
    came too late.  Bytes, descriptors and waiting are redirected in all of the process whatever is chosen:
    a call that went past the shim would read past the data.

    What the policy file in force requires is required as under bertha-run: without an agent those connections
    are refused.  Under bertha-run, with BERTHA_DISABLE=1, or when called again, does nothing.

    Raises DoorError (an OSError) when the preload library is missing or cannot be used here, PolicyError
    (also one) when the policy file makes no sense.
    """
    before = set(_done)
    if _door.disabled() or _door.state() is _door.State.PRELOADED:
        return False
    origins = _door.Origin.NONE
    if socket:
        origins |= _door.Origin.SOCKET
        _done.add("socket")
    if libraries:
        origins |= _door.Origin.LIBRARIES
        _done.add("libraries")
    if _done == before and not (subprocess and "subprocess" not in before):
        return False
    try:
        required()
    except PolicyError:
        _undo(before)
        raise
    if warn and before == set():
        _warn_of_what_is_there()
    try:
        _door.open_door(origins)
    except DoorError:
        _undo(before)
        raise
    if agent:
        _start_agent(warn)
    if subprocess:
        patch_subprocess()
    return True


def _undo(before: set[str]) -> None:
    _done.clear()
    _done.update(before)


def patch_socket(**more: bool) -> bool:
    """`patch_all` for connections through Python's own sockets alone."""
    return patch_all(**{"libraries": False, "subprocess": False, **more})


def patch_libraries(**more: bool) -> bool:
    """`patch_all` for connections that other loaded code makes itself alone."""
    return patch_all(**{"socket": False, "subprocess": False, **more})


def patch_subprocess() -> bool:
    """Children run as under bertha-run: LD_PRELOAD in os.environ, and what the policy requires of them.

    True: it was not there.  Raises DoorError, PolicyError."""
    from bertha_socket.cli import _preload

    if _door.state() is not _door.State.PRELOADED and not _door.disabled():
        if musts := required().children:
            os.environ["BERTHA_MUST"] = musts
        else:
            os.environ.pop("BERTHA_MUST", None)
    library = _preload.find_library()
    if library.problem is not None:
        raise DoorError(errno.ELIBACC, f"the preload library cannot be used: {library.problem}")
    before = os.environ.get("LD_PRELOAD", "")
    wanted = _preload.compose(before, library.path, wanted=True)
    _done.add("subprocess")
    if wanted == before:
        return False
    os.environ["LD_PRELOAD"] = wanted
    return True


def is_patched(part: str | None = None) -> bool:
    """Whether connections of `part` ("socket", "libraries", "subprocess"; None: any) are negotiated, by
    whichever door."""
    if _door.state() is _door.State.PRELOADED:
        return True
    return bool(_done) if part is None else part in _done


def ledger() -> tuple[Patched, ...]:
    """What has been redirected: object, call, and how many of its table entries.  Empty under bertha-run,
    where the loader has bound everything to the shim itself."""
    return _door.ledger()


def get_original(call: str | Sequence[str]) -> Any:
    """The C library's own function behind a call ("connect"), as ctypes calls it; for several names a list.

    Its result is a C int; set `restype` and `argtypes` for others.  ctypes.get_errno() has errno.  What is
    done with it goes past the shim: not for reading or writing connections that are carried by it.
    """
    if not isinstance(call, str):
        return [get_original(name) for name in call]
    address = _door.original(call)
    if not address:
        raise LookupError(
            f"{call!r} is none of the calls that are redirected: see bertha_socket.monkey.ledger()"
        )
    return ctypes.CFUNCTYPE(ctypes.c_int, use_errno=True)(address)


def _start_agent(warn: bool) -> None:
    from bertha_socket.agent import client, paths

    path = paths.default_path(dict(os.environ))
    if client.is_serving(path):
        return
    from bertha_socket.agent.start import ensure_agent

    problem = ensure_agent(path).error
    if problem is not None and warn:
        plain = "connections stay plain"
        if required().here:
            plain = "connections that the policy requires chunnels for are refused, others stay plain,"
        text = f"{problem}; {plain} until there is one"
        warnings.warn(text, MonkeyPatchWarning, stacklevel=3)


def _warn_of_what_is_there() -> None:
    for fd, listening in _inet_sockets():
        what = "a listening socket" if listening else "a connection"
        text = f"descriptor {fd} is {what} from before patch_all() and stays plain: patch earlier"
        warnings.warn(text, MonkeyPatchWarning, stacklevel=4)


def _inet_sockets() -> list[tuple[int, bool]]:
    """Descriptors of TCP sockets that listen (True) or are connected."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                continue
            copy = _stdlib.socket(fileno=os.dup(fd))
        except OSError:
            continue
        with copy:
            if copy.family not in (_stdlib.AF_INET, _stdlib.AF_INET6) or copy.type != _stdlib.SOCK_STREAM:
                continue
            if copy.getsockopt(_stdlib.SOL_SOCKET, _stdlib.SO_ACCEPTCONN):
                found.append((fd, True))
                continue
            try:
                copy.getpeername()
            except OSError:
                continue
            found.append((fd, False))
    return found


_HELP = """usage: python -m bertha_socket.monkey [--no-PART]... [--] (SCRIPT | -m MODULE | -c CODE) [ARGS]

Runs a Python program after patch_all().  PART: socket, libraries, subprocess, agent, warn.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    import runpy

    words = list(sys.argv[1:] if argv is None else argv)
    parts: dict[str, bool] = {}
    while words and words[0].startswith("--"):
        word = words.pop(0)
        if word == "--":
            break
        if word == "--help":
            sys.stdout.write(_HELP)
            return
        part = word.removeprefix("--no-")
        if part == word or part not in ("socket", "libraries", "subprocess", "agent", "warn"):
            sys.exit(f"bertha_socket.monkey: {word} is no option (--help lists them)")
        parts[part] = False
    if not words or (words[0] in ("-m", "-c") and len(words) < 2):
        sys.exit(_HELP)
    try:
        patch_all(**parts)
    except OSError as error:
        sys.stderr.write(f"bertha_socket.monkey: {error.strerror or error}\n")
        sys.exit(2)
    if words[0] == "-m":
        sys.argv = words[1:]
        if sys.path and not sys.flags.safe_path:
            sys.path[0] = os.getcwd()
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        code = compile(words[1], "<string>", "exec")
        exec(code, {"__name__": "__main__", "__builtins__": __builtins__})
    else:
        sys.argv = words
        if not sys.flags.safe_path:
            sys.path[0] = os.path.dirname(os.path.abspath(words[0]))
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    # As the module that programs import, so that its ledger is theirs.
    from bertha_socket.monkey import main as _main

    _main()
