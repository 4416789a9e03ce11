"""Probes of the agent: may its socket be where it is, does it serve, could one be started."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from typing import Any

from bertha_socket._version import __version__
from bertha_socket.agent import client, paths
from bertha_socket.cli._doctor import Finding, limited, no, ok, probe

_AREA = "agent"
_RESTART = "stop that agent (bertha agent --stop); the next bertha-run starts another"


@probe(_AREA, "place of the socket", essential=True)
def place() -> Finding:
    """The directory: ours, and nobody else's to write in."""
    path = paths.default_path()
    folder = os.path.dirname(path)
    existed = os.path.exists(folder)
    try:
        paths.prepare(path)
    except paths.PlaceError as error:
        reason, _, remedy = (error.strerror or str(error)).rpartition("; ")
        return no(reason, remedy)
    if not existed:
        with suppress(OSError):  # an agent may have come meanwhile
            os.rmdir(folder)
        return ok(f"{folder} can be made; the first agent does it")
    return ok(f"{folder}, owned by uid {os.stat(folder).st_uid}")


@probe(_AREA, "agent", essential=True)
def serving() -> Finding:
    """The agent that programs would use; where there is none, whether one can start (tried elsewhere)."""
    path = paths.default_path()
    if client.is_serving(path):
        try:
            return _judge(path, client.agent_status(path))
        except client.AgentError as error:
            return no(str(error.strerror), _RESTART)
    found = f"none at {path}"
    try:
        client.connect(path, 1.0).close()
    except client.AgentError as error:
        reason, _, remedy = str(error.strerror).rpartition("; ")
        return no(reason, remedy)
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            found = f"nobody answers at {path} ({error.strerror})"
    problem = _cannot_start()
    if problem:
        return no(f"{found}; none can be started: {problem}", "bertha agent --help")
    return ok(f"{found} now; one can be started, and bertha-run does it")


def _judge(path: str, status: dict[str, Any]) -> Finding:
    """An agent that serves: is it ours, and does it have anything to complain of?"""
    if status.get("version") != __version__:
        return limited(
            f"serving at {path}, but as version {status.get('version')}; this is {__version__}", _RESTART
        )
    processes = status.get("processes")
    for process in processes if isinstance(processes, list) else []:
        if process.get("policy_error"):
            who = f"{process.get('program')} (process {process.get('pid')})"
            return limited(
                f"{who} is plain: {process['policy_error']}", "correct its policy file and restart it"
            )
    connections = status.get("connections")
    count = len(connections) if isinstance(connections, list) else 0
    return ok(f"serving at {path}, {count} connections")


def _cannot_start() -> str | None:
    """Starts one where nobody looks for it, and ends it."""
    from bertha_socket.agent.start import ensure_agent

    with tempfile.TemporaryDirectory(prefix="bertha-doctor-") as folder:
        path = os.path.join(folder, "agent.sock")
        status = ensure_agent(path, idle_seconds=5)
        if status.error is not None:
            return status.error.removeprefix("no agent could be started: ")
        try:
            client.stop_agent(path)
        except OSError as error:
            return str(error.strerror or error)
    return None


@probe(_AREA, "other users' programs")
def other_users() -> Finding:
    """Users meet at the system's agent only."""
    path, system = paths.default_path(), paths.SYSTEM_PATH
    if os.path.realpath(path) == os.path.realpath(system):
        return ok("this is the system's agent: other users' programs can be reached, as policies allow")
    remedy = f"set BERTHA_AGENT={system} for the programs of both"
    if client.is_serving(system):
        return limited(f"they are at the system's agent, {system}; this user's programs are not", remedy)
    return limited(
        "no system agent runs: they are plain to this user's", f"bertha agent as root, and {remedy}"
    )
