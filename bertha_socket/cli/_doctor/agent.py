"""Probes of the agent: may its socket be where it is, does it serve, could one be started."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress

from bertha_socket._version import __version__
from bertha_socket.agent import client, paths
from bertha_socket.cli._doctor import Finding, limited, no, ok, probe

_AREA = "agent"


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
            version = client.agent_status(path).get("version")
        except client.AgentError as error:
            return no(f"{error}", "stop that agent; the next bertha-run starts another")
        if version not in (None, __version__):
            return limited(
                f"serving at {path}, but as version {version}; this is {__version__}",
                "stop that agent; the next bertha-run starts another",
            )
        return ok(f"serving at {path}")
    if os.path.exists(path):
        try:
            client.agent_status(path)
        except client.AgentError as error:
            owner = os.lstat(path).st_uid
            if owner not in (0, os.geteuid()):
                return no(
                    f"{path} belongs to another user (uid {owner})", "set BERTHA_AGENT to your own path"
                )
            found = f"{error}"
        else:
            return no(f"{path}: that agent belongs to another user", "set BERTHA_AGENT to your own path")
    else:
        found = f"none at {path}"
    problem = _cannot_start()
    if problem:
        return no(f"{found}; none can be started: {problem}", "bertha agent --help")
    return ok(f"none at {path} now; one can be started, and bertha-run does it")


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
