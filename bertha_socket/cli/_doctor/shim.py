"""Probes of the preload library: is it there, does it load, and for whom."""

from __future__ import annotations

import os
import stat

from bertha_socket._version import __version__
from bertha_socket.cli import _loadcheck, _preload
from bertha_socket.cli._doctor import Finding, limited, no, ok, probe
from bertha_socket.cli._judgement import disabled

_AREA = "library"
_REINSTALL = "install bertha-socket again"


@probe(_AREA, "library", essential=True)
def library() -> Finding:
    """The file, its class and its version."""
    found = _preload.find_library()
    if found.problem:
        what, _, remedy = found.problem.rpartition(": ")
        return no(what or found.problem, remedy or _REINSTALL)
    kind = found.elf.kind if found.elf else "unknown"
    return ok(f"{found.path}, version {found.version}, {kind}")


@probe(_AREA, "loads", essential=True)
def loads() -> Finding:
    """A child that really loads it, and whose copy answers."""
    found = _preload.find_library()
    if found.elf is None:
        return no("there is no library to load", _REINSTALL)
    env = dict(os.environ)
    env.pop("BERTHA_DISABLE", None)
    version, problem = _loadcheck.probe(_preload.writable(found.path), env)
    if version is None:
        return no(f"a program started with it does not have it: {problem}", _REINSTALL)
    if version != __version__:
        return no(f"it answers as version {version}, the package is {__version__}", _REINSTALL)
    return ok("a child program loaded it and its copy answered")


@probe(_AREA, "readable by other users")
def readable() -> Finding:
    """A program that changes its user and then execs needs to read the library as that user."""
    path = _preload.find_library().path
    if not os.path.exists(path):
        return no("there is no library", _REINSTALL)
    part = os.path.realpath(path)
    needed = stat.S_IROTH
    while True:
        if not os.stat(part).st_mode & needed:
            return limited(
                f"other users cannot get at {part}: programs that change their user and exec run plain",
                f"chmod o+{'r' if needed == stat.S_IROTH else 'x'} {part}, or install where all can read",
            )
        if part == "/":
            return ok("programs that change their user still load it")
        part = os.path.dirname(part)
        needed = stat.S_IXOTH


@probe(_AREA, "settings")
def settings() -> Finding:
    """The BERTHA_ variables of this environment."""
    if disabled(os.environ):
        return limited("BERTHA_DISABLE is set: every program runs plain", "unset BERTHA_DISABLE")
    spin = os.environ.get("BERTHA_SPIN_US", "")
    if spin and not (spin.isascii() and spin.isdigit() and int(spin) <= 1_000_000):
        return limited(
            f"BERTHA_SPIN_US={spin!r} is not understood, and ignored",
            "set it to a number of microseconds from 0 to 1000000",
        )
    log = os.environ.get("BERTHA_CONNLOG", "")
    if log:
        problem = _unwritable(log)
        if problem:
            return limited(
                f"BERTHA_CONNLOG={log}: {problem}; connections are not logged", "choose another file"
            )
    given = [f"{name}={os.environ[name]}" for name in sorted(os.environ) if name.startswith("BERTHA_")]
    return ok(", ".join(given) or "none set")


def _unwritable(path: str) -> str | None:
    if os.path.isdir(path):
        return "is a directory"
    if os.path.exists(path):
        return None if os.access(path, os.W_OK) else "cannot be written"
    folder = os.path.dirname(os.path.abspath(path))
    return None if os.access(folder, os.W_OK | os.X_OK) else f"cannot be made in {folder}"


@probe(_AREA, "policy")
def policy() -> Finding:
    """The policy file in force."""
    from bertha_socket import policy as policies

    path = policies.find_file()
    if path is None:
        return ok("no policy file: the default rules hold")
    try:
        rules = policies.load(path).rules
    except policies.PolicyError as error:
        return no(str(error), "correct the file; until then bertha-run refuses it")
    return ok(f"{path}: {len(rules)} rule{'' if len(rules) == 1 else 's'}")
