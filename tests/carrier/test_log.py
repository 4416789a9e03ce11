"""The carrier's own log: errors are in it by default, and it stays small."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_WRITE = """
import logging, os, sys
from bertha_socket.carrier import log
log.begin(sys.argv[1], int(sys.argv[2]))
for i in range(100):
    logging.getLogger("bertha_socket.carrier.apart").error("%d %s", i, "x" * 100)
    logging.getLogger("bertha_socket.carrier.apart").info("in passing")
"""


def _write(path: Path, level: str, most: int) -> str:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    subprocess.run([sys.executable, "-c", _WRITE, level, str(most)], stderr=fd, check=True)
    os.close(fd)
    return path.read_text()


@pytest.mark.parametrize(("level", "passing"), [("", False), ("error", False), ("info", True)])
def test_level(tmp_path: Path, level: str, passing: bool) -> None:
    text = _write(tmp_path / "log", level, 0)
    assert text.count("xxx ") + text.count("xxx\n") == 100
    assert ("in passing" in text) == passing


def test_it_stays_small(tmp_path: Path) -> None:
    """The last words are there; a file that is not ours is left alone."""
    text = _write(tmp_path / "log", "", 1000)
    assert len(text) < 1200
    assert ": 99 xxx" in text
