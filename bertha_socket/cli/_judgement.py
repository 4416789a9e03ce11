"""The library and the target put together: will the program be hooked, and may LD_PRELOAD be set?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from bertha_socket.cli._preload import Library
from bertha_socket.cli._target import Target

__all__ = ["Judgement", "disabled", "judge"]


class Judgement(NamedTuple):
    """Whether the library will be in the program."""

    obstacle: str | None  # what keeps it out, in one line
    preload: bool  # whether LD_PRELOAD may name it; children of a static program can have it all the same
    certain: bool  # False: the obstacle is that nothing could be found out


def disabled(environ: Mapping[str, str]) -> bool:
    """Whether BERTHA_DISABLE is set (the shim reads it in the same way)."""
    return environ.get("BERTHA_DISABLE", "") not in ("", "0")


def judge(library: Library, target: Target | None, environ: Mapping[str, str]) -> Judgement:
    """Judges a target, or with None whatever program the library could be loaded into."""
    if disabled(environ):
        return Judgement("BERTHA_DISABLE is set", False, True)
    if library.problem:
        return Judgement(library.problem, False, True)
    if target is not None and target.verdict != "ok":
        return Judgement(target.why, target.preload, target.hookable is not None)
    return Judgement(None, True, True)
