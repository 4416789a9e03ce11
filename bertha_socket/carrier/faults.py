"""What is said of a chunnel that raises what it should not."""

from __future__ import annotations

import traceback
from typing import Final

from bertha_socket.chunnels.pipeline import Pipeline

_TRACEBACK_MAX: Final = 16384


def text_of(error: Exception, *pipelines: Pipeline | None) -> str:
    """One line: which chunnel of these, what, and where."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{where.filename.rpartition('/')[2]} line {where.lineno}"
    name = next((_name(p) for p in pipelines if p is not None and p.at is not None), "the carrier")
    # The place is what its author needs: a long message must not cut it off.
    return f"{name} raised {type(error).__name__}: {str(error)[:200]} ({place})"


def _name(pipeline: Pipeline) -> str:
    return f"chunnel {type(pipeline.at).__name__}"


def traceback_of() -> str:
    """Of the exception that is being handled, within bounds."""
    return traceback.format_exc()[-_TRACEBACK_MAX:]
