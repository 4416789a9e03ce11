"""Where an agent's socket is, and who may have put it there.

Three files: the socket, `<socket>.dir` (the directory, which outlives agents because shims keep it mapped)
and `<socket>.lock` (held by the one agent that serves).  A user's agent keeps them in a directory that
nobody else can enter; root's agent serves every user.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from typing import Final

#: sun_path with its NUL.
PATH_MAX: Final = 107
#: The agent that root runs, which serves every user.
SYSTEM_PATH: Final = "/run/bertha/agent.sock"


class PlaceError(OSError):
    """The agent's place cannot be used; the message names it and the remedy."""


def default_path(environ: dict[str, str] | None = None) -> str:
    """The agent's socket: $BERTHA_AGENT, else the user's (or the system's) own place."""
    env = os.environ if environ is None else environ
    given = env.get("BERTHA_AGENT")
    if given:
        return given
    uid = os.geteuid()
    if uid == 0:
        return SYSTEM_PATH
    runtime = env.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isabs(runtime):
        return os.path.join(runtime, "bertha", "agent.sock")
    return f"/tmp/bertha-{uid}/agent.sock"  # its owner is checked before use


def _refuse(path: str, why: str, number: int = errno.EACCES) -> PlaceError:
    return PlaceError(number, f"{path}: {why}; set BERTHA_AGENT to a path in a directory of your own")


def prepare(path: str) -> None:
    """Makes the socket's directory if need be, and checks that it is safe to use.  Raises PlaceError."""
    if not os.path.isabs(path):
        raise _refuse(path, "the agent's socket must have an absolute path", errno.EINVAL)
    if len(os.fsencode(path)) > PATH_MAX:
        raise _refuse(
            path, f"longer than the {PATH_MAX} bytes a unix socket's path may have", errno.ENAMETOOLONG
        )
    folder = os.path.dirname(path)
    mode = 0o755 if os.geteuid() == 0 else 0o700
    try:
        os.mkdir(folder, mode)
        os.chmod(folder, mode)  # whatever the umask was
    except FileExistsError:
        pass
    except OSError as error:
        raise _refuse(folder, f"cannot be made ({error.strerror})", error.errno or errno.EACCES) from error
    check_folder(folder)


def check_folder(folder: str) -> None:
    """Raises PlaceError unless only this user and root decide what lies in `folder`."""
    try:
        found = os.stat(folder)
    except OSError as error:
        raise _refuse(folder, error.strerror or "cannot be looked at", error.errno or errno.EACCES) from error
    if not stat.S_ISDIR(found.st_mode):
        raise _refuse(folder, "is not a directory", errno.ENOTDIR)
    if found.st_uid not in (0, os.geteuid()):
        raise _refuse(folder, f"belongs to another user (uid {found.st_uid})")
    if found.st_mode & 0o002 and not found.st_mode & stat.S_ISVTX:
        raise _refuse(folder, "can be written by everybody")


def _open_own(path: str, flags: int, mode: int) -> int:
    """Opens or makes a regular file that is ours alone.  Raises PlaceError."""
    try:
        fd = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, mode)
    except OSError as error:
        raise _refuse(path, error.strerror or "cannot be opened", error.errno or errno.EACCES) from error
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        os.close(fd)
        raise _refuse(path, "belongs to somebody else, or is not a file")
    os.fchmod(fd, mode)
    return fd


def open_directory_file(path: str) -> int:
    """The descriptor of `<socket>.dir`, made if missing.  Raises PlaceError."""
    return _open_own(path + ".dir", os.O_RDWR, 0o644)


def open_lock(path: str) -> int:
    """The descriptor of the lock file, not yet locked.  Raises PlaceError."""
    return _open_own(path + ".lock", os.O_RDWR, 0o600)


def try_lock(fd: int) -> bool:
    """Takes the lock if no other agent has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def agent_pid(path: str) -> int | None:
    """The pid that the directory file names, when it says that an agent is serving."""
    try:
        with open(path + ".dir", "rb") as file:
            head = file.read(24)
    except OSError:
        return None
    if len(head) < 24:
        return None
    _, _, generation, pid, _ = struct.unpack("=IIQII", head)
    return pid if generation and pid else None
