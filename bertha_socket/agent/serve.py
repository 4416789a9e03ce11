"""An agent's life: it takes the place beside the socket's path, serves, and leaves it in order."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import resource
import signal
import socket
import stat
import time

from bertha_socket import _settings
from bertha_socket.agent import limits, memory, operator, paths, reach
from bertha_socket.agent.registry import Registry
from bertha_socket.agent.server import BACKLOG, ENDING, Server

#: How long a new agent waits for one that is just leaving.
LOCK_SECONDS = 2.0
#: Below this an agent could not even keep its own files and a few programs.
DESCRIPTORS_LEAST = 32
#: A link is sparse and larger than a cautious limit on files; only what is written costs memory.
_WANTED = {
    resource.RLIMIT_NOFILE: 65536,
    resource.RLIMIT_FSIZE: resource.RLIM_INFINITY,
    resource.RLIMIT_AS: resource.RLIM_INFINITY,
    resource.RLIMIT_DATA: resource.RLIM_INFINITY,
    resource.RLIMIT_CPU: resource.RLIM_INFINITY,
}


def serve(path: str, idle_seconds: float | None = None, *, detached: bool) -> bool:
    """Serves at `path` until told to end or idle; False when another agent is serving there already.

    `idle_seconds`: 0: for ever; None: as the policy file's [agent] says, else limits.IDLE_SECONDS.
    Raises OSError when it cannot.
    """
    os.umask(0o022)
    paths.prepare(path)
    lock = paths.open_lock(path)
    if not take_lock(lock):
        os.close(lock)
        return False
    settings = _settings.in_force()
    # What both say is the environment's.
    os.environ.update({k: v for k, v in settings.environment().items() if not os.environ.get(k)})
    limits.apply(settings.limits)
    if idle_seconds is None:
        idle_seconds = limits.IDLE_SECONDS if settings.idle is None else settings.idle
    _limits()
    try:
        reach_of_us, port = reach.from_environment(), reach.port()
        choice = operator.from_environment()
    except ValueError as error:
        raise paths.PlaceError(errno.EINVAL, str(error)) from None
    # In the namespace that we were started in, which is our host's.
    log = path + ".carriers.log" if detached else None
    listening_there = reach.open_port(port)
    letters = reach.open_letters(listening_there)
    others = reach.Others(reach_of_us, port, listening_there, log, choice, letters)
    if detached:
        os.chdir("/")
        memory.leave_netns()
    directory_fd = paths.open_directory_file(path)
    generation = max(memory.previous_generation(directory_fd) + 1, time.time_ns())
    directory = memory.Directory(directory_fd, generation)
    # Held back until the loop hears them: an end in between would leave the place as a killed agent does.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    listening = _listen(path)
    if detached:
        _let_go()
    try:
        server = Server(listening, Registry(directory), idle_seconds or math.inf, others)
        server.run()
    finally:
        # In this order, all under the lock: nobody comes any more, nobody asks any more, the next may start.
        directory.leave()
        with contextlib.suppress(OSError):
            os.unlink(path)
        listening.close()
        os.close(directory_fd)
        os.close(lock)
    return True


def take_lock(lock: int) -> bool:
    """Waits a little for the lock file; False when another agent keeps it."""
    deadline = time.monotonic() + LOCK_SECONDS
    while not paths.try_lock(lock):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True


def _limits() -> None:
    """What a careful shell set for its programs (`ulimit`) is not meant for an agent that outlives it.

    Raises PlaceError when too few descriptors are left for anybody's connections.
    """
    for which, wanted in _WANTED.items():
        soft, hard = resource.getrlimit(which)
        if _larger(soft, wanted):
            continue
        most = hard if _larger(hard, wanted) else wanted
        with contextlib.suppress(OSError, ValueError):  # beyond the hard limit root may
            resource.setrlimit(which, (most, most))
            continue
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(which, (hard, hard))
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if descriptors < DESCRIPTORS_LEAST:
        raise paths.PlaceError(
            errno.EMFILE,
            f"an agent needs {DESCRIPTORS_LEAST} descriptors and may have {descriptors}; raise `ulimit -n`, "
            "or start `bertha agent` from elsewhere",
        )
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)


def _larger(limit: int, wanted: int) -> bool:
    if resource.RLIM_INFINITY in (limit, wanted):
        return limit == resource.RLIM_INFINITY
    return limit >= wanted


def _listen(path: str) -> socket.socket:
    """The listening socket.  We hold the lock, so a socket that lies there is a dead agent's."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise paths.PlaceError(
                errno.EEXIST, f"{path}: is there and is no socket; remove it or set BERTHA_AGENT"
            )
        os.unlink(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        sock.bind(path)
        os.chmod(path, 0o666 if os.geteuid() == 0 else 0o600)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise paths.PlaceError(
            error.errno or errno.EIO, f"{path}: cannot serve there ({error.strerror}); set BERTHA_AGENT"
        ) from error
    return sock


def _let_go() -> None:
    """Whoever started us waits for the end of our standard error: we are ready."""
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    if null > 2:
        os.close(null)
