"""Proof that the preload library loads, by really loading it (into other processes than the target)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping

__all__ = ["loader_takes", "probe"]

_PATIENCE = 10  # seconds; a loader needs milliseconds


def _first_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[0].strip() if lines else ""


def probe(preload: str, environ: Mapping[str, str] | None = None) -> tuple[str | None, str]:
    """Runs a program that does nothing with the library and lets the library's constructor answer.

    Returns the version it answers with and an empty text, or None and what went wrong.  Protocol: with
    BERTHA_PROBE_FD in the environment, the constructor writes "ok VERSION" to that descriptor.
    """
    true = shutil.which("true") or "/bin/true"
    command = [true] if os.path.exists(true) else [sys.executable, "-I", "-S", "-c", "pass"]
    reader, writer = os.pipe()
    env = dict(os.environ if environ is None else environ)
    env["LD_PRELOAD"] = preload
    env["BERTHA_PROBE_FD"] = str(writer)
    env.pop("BERTHA_CONNLOG", None)
    try:
        done = subprocess.run(
            command,
            env=env,
            pass_fds=(writer,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
        )
        os.close(writer)
        writer = -1
        answer = os.read(reader, 256).decode("ascii", "replace").strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, str(error)
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
    if answer.startswith("ok "):
        return answer[3:], ""
    return None, _first_line(
        done.stderr
    ) or f"{command[0]} ran with exit code {done.returncode}, without the library"


def loader_takes(loader: str, program: str, preload: str, environ: Mapping[str, str]) -> str | None:
    """Lets `program`'s own loader map it with LD_PRELOAD=`preload`, without running it.

    Returns None when `preload`'s first entry is mapped, else what the loader said.
    """
    library = preload.replace(":", " ").split(" ")[0]
    # By the name that the kernel gives the loader: what lies beside a program ($ORIGIN) is not beside a link.
    program = os.path.realpath(program)
    env = dict(environ)
    env["LD_PRELOAD"] = preload
    env.pop("LD_TRACE_LOADED_OBJECTS", None)
    try:
        done = subprocess.run(
            [loader, "--list", program],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    for line in done.stdout.splitlines():
        if line.strip().partition(" (0x")[0] == library:
            return None
    return _first_line(done.stderr) or f"{loader} did not map {library}"
