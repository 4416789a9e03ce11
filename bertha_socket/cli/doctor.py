"""`bertha doctor [--json]`: what this host and this user can and cannot do, the reason, and the remedy.

Exit code 0 unless something is missing without which no connection is negotiated (1).
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import shutil
import socket
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from bertha_socket._version import __version__
from bertha_socket.cli._doctor import Check, run_all

__all__ = ["main"]


def _broken(checks: Sequence[Check]) -> list[Check]:
    return [check for check in checks if check.essential and check.finding.status == "no"]


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _as_json(checks: Sequence[Check]) -> dict[str, Any]:
    return {
        "version": __version__,
        "host": socket.gethostname(),
        "user": _user(),
        "ok": not _broken(checks),
        "checks": [
            {
                "area": check.area,
                "name": check.name,
                "essential": check.essential,
                "status": check.finding.status,
                "reason": check.finding.reason,
                "remedy": check.finding.remedy,
            }
            for check in checks
        ],
    }


def _report(checks: Sequence[Check]) -> str:
    width = max(40, shutil.get_terminal_size((100, 24)).columns)
    names = max(len(check.name) for check in checks)
    indent = " " * (2 + 9 + names + 2)
    lines: list[str] = []
    area = None
    for check in checks:
        if check.area != area:
            area = check.area
            lines += ["", area] if lines else [area]
        finding = check.finding
        first = f"  {finding.status:<9}{check.name:<{names}}  "
        lines += textwrap.wrap(
            finding.reason, width, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False
        ) or [first]
        if finding.remedy and finding.status != "ok":
            lines += textwrap.wrap(
                f"remedy: {finding.remedy}",
                width,
                initial_indent=indent,
                subsequent_indent=indent,
                break_on_hyphens=False,
            )
    broken = _broken(checks)
    lines.append("")
    if broken:
        lines.append(
            f"Missing and essential: {', '.join(check.name for check in broken)}.  All programs run plain."
        )
    else:
        lines.append("Programs under bertha-run find each other on this host.")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Returns 0, or 1 when something essential is missing."""
    parser = argparse.ArgumentParser(
        prog="bertha doctor", description="What this host and user can and cannot do, and the remedy."
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    options = parser.parse_args(argv)
    checks = run_all()
    if options.json:
        print(json.dumps(_as_json(checks), indent=2))
    else:
        if sys.stdout is not None and hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")  # a path may be no valid text
        print(_report(checks))
    return 1 if _broken(checks) else 0
