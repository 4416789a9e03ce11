"""`bertha-run --info`: what would be done, and why."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from bertha_socket._version import __version__
from bertha_socket.cli._judgement import Judgement
from bertha_socket.cli._preload import Library, compose
from bertha_socket.cli._target import Target

__all__ = ["show"]

_SETTINGS = ("BERTHA_CONNLOG", "BERTHA_LOG", "BERTHA_SPIN_US", "BERTHA_DISABLE", "BERTHA_REQUIRE")


def _policy(given: str | None, environ: Mapping[str, str]) -> dict[str, Any]:
    from bertha_socket import policy

    path = os.path.abspath(given) if given is not None else policy.find_file(environ)
    if path is None:
        return {"file": None, "rules": 0, "problem": None}
    try:
        return {"file": path, "rules": len(policy.load(path).rules), "problem": None}
    except policy.PolicyError as error:
        return {"file": path, "rules": 0, "problem": str(error)}


def _preload(environ: Mapping[str, str], library: Library, found: Judgement) -> str:
    try:
        return compose(environ.get("LD_PRELOAD", ""), library.path, wanted=found.preload)
    except OSError as error:
        return f"({error})"


def _describe(
    policy: str | None,
    name: str | None,
    environ: Mapping[str, str],
    library: Library,
    target: Target | None,
    found: Judgement,
) -> dict[str, Any]:
    from bertha_socket.agent import client, paths

    agent_path = paths.default_path(dict(environ))
    described: dict[str, Any] = {
        "version": __version__,
        "library": {"path": library.path, "version": library.version, "problem": library.problem},
        "command": None,
        "hooked": found.obstacle is None,
        "obstacle": found.obstacle,
        "ld_preload": _preload(environ, library, found),
        "agent": {"socket": agent_path, "serving": client.is_serving(agent_path)},
        "policy": _policy(policy, environ),
        "name": name or environ.get("BERTHA_NAME") or None,
        "settings": {key: environ[key] for key in _SETTINGS if key in environ},
    }
    if target is not None:
        described["command"] = {
            "path": target.path,
            "chain": [step._asdict() for step in target.chain.steps],
            "argv": list(target.chain.argv),
            "loader": target.interpreter,
            "verdict": target.verdict,
        }
    return described


def _lines(described: dict[str, Any]) -> list[str]:
    def row(key: str, text: object) -> str:
        return f"{key:<11}{text}"

    lines: list[str] = []
    command = described["command"]
    if command is not None:
        lines.append(row("command", command["path"]))
        lines += [row("", f"-> {step['path']} ({step['how']})") for step in command["chain"][1:]]
        lines.append(row("loader", command["loader"] or "none"))
    lines.append(row("hooked", "yes" if described["hooked"] else f"no: {described['obstacle']}"))
    library = described["library"]
    lines.append(row("library", library["problem"] or f"{library['path']} ({library['version']})"))
    lines.append(row("LD_PRELOAD", described["ld_preload"] or "(not set)"))
    agent = described["agent"]
    state = "serving" if agent["serving"] else "not there; would be started"
    lines.append(row("agent", f"{agent['socket']} ({state})"))
    policy = described["policy"]
    rules = f"{policy['file']} ({policy['rules']} rules)" if policy["file"] else "none"
    lines.append(row("policy", policy["problem"] or rules))
    if described["name"]:
        lines.append(row("name", described["name"]))
    lines += [row("setting", f"{key}={value}") for key, value in described["settings"].items()]
    return lines


def show(
    policy: str | None,
    name: str | None,
    environ: Mapping[str, str],
    library: Library,
    target: Target | None,
    found: Judgement,
    *,
    as_json: bool,
) -> int:
    """Prints what `bertha-run` would do; always 0, the answer is in the text."""
    described = _describe(policy, name, environ, library, target, found)
    if as_json:
        print(json.dumps(described, indent=2))
    else:
        # A path need not be valid text.
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        print("\n".join(_lines(described)))
    return 0
