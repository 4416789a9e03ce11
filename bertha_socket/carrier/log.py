"""Where a carrier's words go: its standard error, for an agent in the background a file beside its socket."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import sys
from typing import Final

__all__ = ["begin"]

_LEVELS: Final = {
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
}


class _Bounded(logging.StreamHandler):  # type: ignore[type-arg]
    """A file that has grown past `most` bytes begins anew, so that the last words are there."""

    def __init__(self, most: int) -> None:
        super().__init__(sys.stderr)
        self._most = most

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError):
            fd = self.stream.fileno()
            found = os.fstat(fd)
            if self._most and stat.S_ISREG(found.st_mode) and found.st_size > self._most:
                os.ftruncate(fd, 0)  # opened to append, by all who write there
        super().emit(record)


def begin(level: str, most: int) -> None:
    """`level`: as BERTHA_LOG has it; "": errors, so that a chunnel's traceback is to be found.

    `most`: bytes of a file that is ours to cut; 0: it is not.
    """
    handler = _Bounded(most)
    handler.setFormatter(logging.Formatter("bertha-carrier[%(process)d]: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(_LEVELS.get(level.lower(), logging.INFO) if level else logging.ERROR)
