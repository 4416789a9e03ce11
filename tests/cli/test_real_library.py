"""The library of this package, loaded by bertha-run into programs of all kinds (no stand-in here)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bertha_socket._version import __version__
from bertha_socket.cli import _loadcheck, _preload
from tests.cli.conftest import Launcher
from tests.cli.test_run import script


@pytest.fixture
def real(launcher: Launcher, monkeypatch: pytest.MonkeyPatch) -> str:
    """The real library's path; the launcher uses it."""
    monkeypatch.delenv("BERTHA_SHIM", raising=False)
    launcher.environ.pop("BERTHA_SHIM")
    found = _preload.find_library()
    assert found.problem is None, found.problem
    return found.path


def test_its_constructor_answers_with_the_packages_version(real: str) -> None:
    assert _loadcheck.probe(real) == (__version__, "")


@pytest.mark.parametrize("require", [[], ["--require"]])
def test_it_is_mapped_into_the_program(launcher: Launcher, real: str, require: list[str]) -> None:
    done = launcher.run(*require, "cat", "/proc/self/maps")
    assert (done.returncode, done.stderr) == (0, "")
    assert f" {real}\n" in done.stdout


@pytest.mark.parametrize("options", [[], ["-I", "-S", "-E"]])
def test_in_python(launcher: Launcher, real: str, options: list[str]) -> None:
    code = "import sys; sys.stdout.write(open('/proc/self/maps').read())"
    done = launcher.run("--require", sys.executable, *options, "-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    assert f" {real}\n" in done.stdout


def test_in_what_a_script_starts(launcher: Launcher, real: str, tmp_path: Path) -> None:
    program = script(tmp_path / "s", "#!/usr/bin/env bash\n(grep -c libbertha_shim /proc/self/maps) | cat\n")
    done = launcher.run("--require", str(program))
    assert int(done.stdout) > 0


def test_nested(launcher: Launcher, real: str) -> None:
    run = [sys.executable, str(launcher.run_script), "--require"]
    done = launcher.run("--require", *run, *run, "sh", "-c", "echo $LD_PRELOAD; cat /proc/self/maps")
    assert done.stderr == ""
    first, _, maps = done.stdout.partition("\n")
    assert first == real
    assert sum(line.endswith(real) and " r-xp " in line for line in maps.splitlines()) == 1


def test_the_probe_leaves_no_variable_behind(real: str, launcher: Launcher) -> None:
    done = launcher.run("--require", "env")
    assert "BERTHA_PROBE_FD" not in done.stdout


def test_disabled_it_is_not_even_loaded(launcher: Launcher, real: str) -> None:
    done = launcher.run("cat", "/proc/self/maps", env={"BERTHA_DISABLE": "1"})
    assert "libbertha_shim" not in done.stdout


def test_doctor_loads_it(launcher: Launcher, real: str) -> None:
    done = launcher.bertha("doctor", "--json")
    assert '"a child program loaded it and its copy answered"' in done.stdout


def test_it_exports_no_name_but_interposed_ones(real: str) -> None:
    done = subprocess.run(["nm", "-D", "--defined-only", real], capture_output=True, text=True, check=True)
    names = [line.split()[-1] for line in done.stdout.splitlines()]
    assert "connect" in names
    # And what our own programs ask it (native/calls.list).
    ours = {name for name in names if "bertha" in name}
    asked = ("bertha_door_", "bertha_connection_holders", "bertha_relay_has")
    assert all(name.startswith(asked) for name in ours), ours
