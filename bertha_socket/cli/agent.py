"""`bertha agent`: serves in the foreground, or in the background, or ends the one that serves."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence

from bertha_socket.agent import client, paths
from bertha_socket.agent.limits import IDLE_SECONDS

__all__ = ["main"]


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bertha agent",
        description="The per-host process that brings programs under bertha-run together.",
    )
    where = "where to serve (default: $BERTHA_AGENT, else this user's own place)"
    parser.add_argument("--socket", metavar="PATH", help=where)
    parser.add_argument(
        "--idle",
        metavar="SECONDS",
        type=_seconds,
        help="leave when no program has been there for so long (default: the policy file's [agent] idle, "
        f"else {IDLE_SECONDS:g}; 0: never)",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--foreground", action="store_true", help="serve in the foreground (the default)")
    how.add_argument("--detach", action="store_true", help="serve in the background, if none serves yet")
    how.add_argument("--stop", action="store_true", help="end the agent that serves")
    how.add_argument("--detached", action="store_true", help=argparse.SUPPRESS)  # as start.py calls it
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 (served, stopped, or another agent serves already), 1 when it cannot serve, 2: usage."""
    options = _parser().parse_args(argv)
    path = os.path.abspath(options.socket) if options.socket else paths.default_path()
    try:
        if options.stop:
            return _stop(path)
        if options.detach:
            return _detach(path, options.idle)
        from bertha_socket.agent import serve

        if not serve.serve(path, options.idle, detached=options.detached) and not options.detached:
            print(f"bertha agent: an agent serves at {path} already", file=sys.stderr)
        return 0
    except ImportError as error:
        print(f"bertha agent: {error}; this installation is incomplete, install it again", file=sys.stderr)
    except OSError as error:
        print(f"bertha agent: {error.strerror or error}", file=sys.stderr)
    return 1


def _detach(path: str, idle: float | None) -> int:
    from bertha_socket.agent.start import ensure_agent

    status = ensure_agent(path, idle_seconds=idle)
    if status.error is not None:
        print(f"bertha agent: {status.error}", file=sys.stderr)
        return 1
    print(f"agent {status.pid} {'serves now' if status.started else 'serves already'} at {path}")
    return 0


def _stop(path: str) -> int:
    if not client.stop_agent(path):
        print(f"no agent at {path}")
        return 0
    from bertha_socket.agent import serve

    lock = paths.open_lock(path)  # the last thing that an agent lets go of
    gone = serve.take_lock(lock)
    os.close(lock)
    if not gone:
        raise paths.PlaceError(errno.ETIMEDOUT, f"{path}: the agent does not end; its pid is in {path}.dir")
    print(f"agent at {path} stopped")
    return 0
