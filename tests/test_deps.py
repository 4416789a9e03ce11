"""tools/deps.sh tells what is missing, never fails a set-up that could go on, and asks for nothing twice.

It runs with a PATH on which there is only what a test puts there; as root it would install, so here it
never believes to be root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "tools" / "deps.sh"
_TOOLS = ("sh", "sed", "sort", "head", "tail", "mkdir", "rm", "chmod", "cat")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A folder of commands: those that the script itself is written with, and an `id` that is not root."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in _TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (folder / tool).symlink_to(found)
    _command(folder, "id", "echo 1000")
    return folder


def _command(folder: Path, name: str, body: str = "exit 0") -> None:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    file.chmod(0o755)


def _deps(path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": str(path), "HOME": os.environ.get("HOME", "/")}
    command = ["/bin/sh", str(SCRIPT), *words]
    return subprocess.run(command, cwd=path.parent, env=env, capture_output=True, text=True, timeout=60)


def test_nothing_missing_says_nothing(path: Path) -> None:
    for name in ("redis-server", "redis-benchmark"):
        _command(path, name)
    done = _deps(path, "demo")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_missing_without_root_is_told_and_goes_on(path: Path) -> None:
    _command(path, "apt-get", "echo apt-get was run; exit 1")
    done = _deps(path, "demo")
    assert done.returncode == 0
    assert "apt-get install redis-server redis-tools'" in done.stdout
    assert "apt-get was run" not in done.stdout


def test_missing_without_apt_is_told_and_goes_on(path: Path) -> None:
    done = _deps(path, "demo")
    assert done.returncode == 0
    assert "missing redis-server" in done.stdout
    assert "no apt-get here" in done.stdout


def test_check_only_tells(path: Path) -> None:
    done = _deps(path, "--check", "demo")
    assert done.returncode == 1
    assert "missing redis-server" in done.stdout


def test_each_package_once(path: Path) -> None:
    _command(path, "apt-get")
    done = _deps(path, "demo", "test", "bench")
    offered = done.stdout.rpartition("apt-get install ")[2].partition("'")[0].split()
    assert "redis-server" in offered
    assert len(offered) == len(set(offered))


def test_python_must_be_new_enough(path: Path) -> None:
    _command(path, "python3", "exit 1")
    assert "Python 3.11 or later" in _deps(path, "--check", "build").stdout


def test_unknown_group_is_refused(path: Path) -> None:
    done = _deps(path, "everything")
    assert done.returncode == 2
    assert "everything" in done.stderr
