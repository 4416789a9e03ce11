"""`bertha agent`: takes the place beside the socket's path, serves, and leaves it in order."""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import signal
import socket
import stat
import sys
import time
from collections.abc import Sequence

from bertha_socket.agent import memory, paths
from bertha_socket.agent.policies import Policies
from bertha_socket.agent.registry import Registry
from bertha_socket.agent.server import _BACKLOG, Server

IDLE_SECONDS = 60.0
#: How long a new agent waits for one that is just leaving.
_LOCK_SECONDS = 2.0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bertha agent",
        description="The per-host process that brings programs under bertha-run together.",
    )
    parser.add_argument("--socket", metavar="PATH", help="where to serve (default: $BERTHA_AGENT, else this user's place)")
    parser.add_argument("--idle", metavar="SECONDS", type=_seconds, default=IDLE_SECONDS,
                        help="leave when no program has been there for so long (default: %(default)g; 0: never)")  # fmt: skip
    parser.add_argument("--foreground", action="store_true", help="stay at the terminal")
    parser.add_argument("--stop", action="store_true", help="end the agent that is serving")
    parser.add_argument("--detached", action="store_true", help=argparse.SUPPRESS)
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status (0: served, stopped, or another agent is serving already)."""
    options = _parser().parse_args(argv)
    path = os.path.abspath(options.socket) if options.socket else paths.default_path()
    try:
        if options.stop:
            return _stop(path)
        if not options.foreground and not options.detached:
            from bertha_socket.agent.start import ensure_agent

            status = ensure_agent(path, idle_seconds=options.idle)
            if status.error is not None:
                print(f"bertha agent: {status.error}", file=sys.stderr)
                return 1
            state = "started" if status.started else "already serving"
            print(f"agent {status.pid} {state} at {path}")
            return 0
        return serve(path, options.idle or 1e9, detached=options.detached)
    except OSError as error:
        print(f"bertha agent: {error.strerror or error}", file=sys.stderr)
        return 1


def _stop(path: str) -> int:
    from bertha_socket.agent.client import stop_agent

    if stop_agent(path):
        print(f"agent at {path} stopped")
        return 0
    print(f"no agent at {path}")
    return 0


def serve(path: str, idle_seconds: float, *, detached: bool) -> int:
    """Serves at `path` until told to end or idle.  Raises OSError when it cannot."""
    os.umask(0o022)
    paths.prepare(path)
    lock = paths.open_lock(path)
    if not _take_lock(lock):
        return 0  # somebody else is serving: what was wanted
    _limits()
    if detached:
        os.chdir("/")
        memory.leave_netns()
    directory_fd = paths.open_directory_file(path)
    generation = max(memory.previous_generation(directory_fd) + 1, time.time_ns())
    directory = memory.Directory(directory_fd, generation)
    listening = _listen(path)
    if detached:
        _let_go()
    try:
        server = Server(listening, Registry(directory), Policies(), idle_seconds)
        server.run()
    finally:
        # In this order, all under the lock: nobody comes any more, nobody asks any more, the next may start.
        directory.leave()
        with contextlib.suppress(OSError):
            os.unlink(path)
        listening.close()
        os.close(directory_fd)
        os.close(lock)
    return 0


def _take_lock(lock: int) -> bool:
    deadline = time.monotonic() + _LOCK_SECONDS
    while not paths.try_lock(lock):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True


def _limits() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with contextlib.suppress(OSError, ValueError):
        # A link is sparse and larger than a cautious limit on files; only what is written costs memory.
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)


def _listen(path: str) -> socket.socket:
    """The listening socket.  We hold the lock, so a socket that lies there is a dead agent's."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise paths.PlaceError(17, f"{path}: is there and is no socket; remove it or set BERTHA_AGENT")
        os.unlink(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        sock.bind(path)
        os.chmod(path, 0o666 if os.geteuid() == 0 else 0o600)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise paths.PlaceError(
            error.errno or 1, f"{path}: cannot serve there ({error.strerror}); set BERTHA_AGENT"
        ) from error
    return sock


def _let_go() -> None:
    """Whoever started us waits for the end of our standard error: we are ready."""
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    if null > 2:
        os.close(null)
