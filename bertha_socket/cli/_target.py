"""Will the preload library reach this program?  Judged from the files, before anything is executed."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bertha_socket.cli._command import NO_COMMAND, Chain, CommandError, find_command, follow
from bertha_socket.cli._elf import Elf, NotElf, read_elf

__all__ = ["Target", "inspect"]

# Programs that give their command a clean environment whatever their options.
_CLEANERS = {"sudo", "doas", "pkexec"}


class Target(NamedTuple):
    """The command, what it leads to, and whether that can be hooked."""

    path: str  # to execute
    chain: Chain
    interpreter: str | None  # the dynamic loader of the last program
    verdict: str  # ok, unknown, static, setuid, go, class, libc, environment
    why: str  # empty for ok
    preload: bool  # whether LD_PRELOAD may be set: a foreign loader would complain, or fail

    @property
    def hookable(self) -> bool | None:
        """None: could not be found out."""
        return {"ok": True, "unknown": None}.get(self.verdict, False)


def _is_glibc_loader(path: str) -> bool:
    """ld-linux-x86-64.so.2, ld-linux-aarch64.so.1, ld64.so.2, ld.so.1, ld-2.31.so."""
    name = os.path.basename(path)
    return (name.startswith(("ld-linux", "ld64.so", "ld.so", "ld-2."))) and ".so" in name


def _no_new_privileges() -> bool:
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            return any(line.split() == ["NoNewPrivs:", "1"] for line in file)
    except OSError:
        return False


def _secure(path: str) -> str | None:
    """Why the kernel would set AT_SECURE for this file (the loader then ignores LD_PRELOAD), or None.

    security/commoncap.c: changed effective ids; for a user who is not root, also capabilities gained from
    the file.
    """
    if os.geteuid() != os.getuid() or os.getegid() != os.getgid():
        return "bertha-run itself runs with changed ids"
    try:
        found = os.stat(path)
    except OSError:
        return None
    reason = None
    if found.st_mode & stat.S_ISUID and found.st_uid != os.geteuid():
        reason = "is setuid"
    elif found.st_mode & stat.S_ISGID and found.st_mode & stat.S_IXGRP and found.st_gid != os.getegid():
        reason = "is setgid"
    elif os.getuid() != 0:
        try:
            if os.getxattr(path, "security.capability"):
                reason = "has file capabilities"
        except OSError:
            pass
    if reason is None:
        return None
    try:
        if os.statvfs(path).f_flag & os.ST_NOSUID:
            return None
    except OSError:
        pass
    return None if _no_new_privileges() else reason


def _judge(chain: Chain, elf: Elf | None, shim: Elf | None) -> tuple[str, str, bool]:
    """verdict, why, preload."""
    name = chain.last
    if elf is None:
        return "unknown", f"{name} cannot be read, so nothing is known about it", True
    if shim is not None and not elf.same_kind(shim):
        return "class", f"{name} is a {elf.kind} program and the preload library is {shim.kind}", False
    secure = _secure(name)
    if secure:
        return "setuid", f"{name} {secure}, so the loader ignores LD_PRELOAD", True
    if elf.go:
        return "go", f"{name} is a Go program, which makes its system calls without the C library", True
    if elf.interpreter is None:
        if _is_glibc_loader(name):
            return "ok", "", True  # the loader called by hand
        return "static", f"{name} is statically linked, so there is no loader to load the library", True
    if not _is_glibc_loader(elf.interpreter):
        libc = "musl" if "ld-musl" in elf.interpreter else f"the loader {elf.interpreter}"
        return "libc", f"{name} uses {libc}, and the preload library is made for glibc", False
    if chain.environment:
        return "environment", f"{chain.environment}, so it does not reach {name}", True
    base = os.path.basename(name)
    if base in _CLEANERS:
        return "environment", f"{base} clears the environment (write '{base} bertha-run ...')", True
    return "ok", "", True


def inspect(argv: Sequence[str], environ: Mapping[str, str], shim: Elf | None) -> Target:
    """Finds and judges the command `argv`.  Raises CommandError (126 or 127) when it cannot be executed."""
    path = find_command(argv[0], environ)
    chain = follow(path, argv, environ)
    elf: Elf | None = None
    try:
        elf = read_elf(chain.last)
    except (OSError, NotElf):
        pass
    interpreter = elf.interpreter if elf else None
    if interpreter is not None and not os.path.exists(interpreter):
        raise CommandError(NO_COMMAND, f"{chain.last}: its loader {interpreter} does not exist on this host")
    return Target(path, chain, interpreter, *_judge(chain, elf, shim))
