"""bertha doctor: its report's form, and that it finds what a test has broken."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import PATIENCE, Launcher
from tests.cli.fake_agent import NOTHING, fake_agent

_KEYS = {"area", "name", "essential", "status", "reason", "remedy"}


def doctor(launcher: Launcher, **env: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit code, and the checks by name."""
    done = launcher.bertha("doctor", "--json", env=env)
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert report["ok"] is (done.returncode == 0)
    return done.returncode, {check["name"]: check for check in report["checks"]}


def test_form(launcher: Launcher, tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with fake_agent(path, NOTHING):
        done = launcher.bertha("doctor", "--json", env={"BERTHA_AGENT": str(path)})
        text = launcher.bertha("doctor", env={"BERTHA_AGENT": str(path)})
    report = json.loads(done.stdout)
    assert set(report) == {"version", "host", "user", "ok", "checks"}
    names = [check["name"] for check in report["checks"]]
    assert len(names) == len(set(names))
    for check in report["checks"]:
        assert set(check) == _KEYS
        assert check["status"] in ("ok", "limited", "no")
        assert isinstance(check["essential"], bool)
        assert check["reason"]
        assert "probe itself failed" not in check["reason"], check
        assert check["status"] != "no" or check["remedy"], check
        assert check["name"] in text.stdout
    assert text.returncode == done.returncode


def test_all_is_well_here(launcher: Launcher, tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with fake_agent(path, NOTHING):
        code, checks = doctor(launcher, BERTHA_AGENT=str(path))
    assert code == 0
    for name in ("library", "loads", "agent", "sealed memfd", "shared mapping", "eventfd"):
        assert checks[name]["status"] == "ok", checks[name]
    assert "its copy answered" in checks["loads"]["reason"]


def test_a_missing_library_is_essential(launcher: Launcher, tmp_path: Path) -> None:
    code, checks = doctor(launcher, BERTHA_SHIM=str(tmp_path / "none.so"))
    assert code == 1
    assert checks["library"]["status"] == checks["loads"]["status"] == "no"


def test_a_library_that_does_not_load(launcher: Launcher, tmp_path: Path, stand_in: Path) -> None:
    data = bytearray(stand_in.read_bytes())
    data[16:18] = b"\x02\x00"  # e_type
    (tmp_path / "broken.so").write_bytes(data)
    code, checks = doctor(launcher, BERTHA_SHIM=str(tmp_path / "broken.so"))
    assert (code, checks["library"]["status"], checks["loads"]["status"]) == (1, "ok", "no")


def test_an_agent_that_does_not_answer(launcher: Launcher, tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with fake_agent(path, None, b""):
        code, checks = doctor(launcher, BERTHA_AGENT=str(path))
    assert (code, checks["agent"]["status"]) == (1, "no")
    assert "ended the connection" in checks["agent"]["reason"]


def test_an_agent_of_another_version(launcher: Launcher, tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with fake_agent(path, {"version": "0.0.0-other", "connections": []}):
        code, checks = doctor(launcher, BERTHA_AGENT=str(path))
    assert (code, checks["agent"]["status"]) == (0, "limited")


def test_a_process_whose_policy_is_wrong(launcher: Launcher, tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    process = {"pid": 17, "program": "redis-server", "policy_error": "p.toml: rule 1, sied: unknown key"}
    with fake_agent(path, {**NOTHING, "processes": [process]}):
        code, checks = doctor(launcher, BERTHA_AGENT=str(path))
    assert (code, checks["agent"]["status"]) == (0, "limited")
    assert "redis-server (process 17)" in checks["agent"]["reason"]


def test_without_an_agent_one_is_started_and_ended(launcher: Launcher, tmp_path: Path) -> None:
    code, checks = doctor(launcher, BERTHA_AGENT=str(tmp_path / "none.sock"))
    assert (code, checks["agent"]["status"]) == (0, "ok")
    assert "one can be started" in checks["agent"]["reason"]
    assert not (tmp_path / "none.sock").exists()


@pytest.mark.parametrize("path", ["relative/agent.sock", "/" + "x" * 200, "/proc/none/agent.sock"])
def test_a_place_where_no_agent_can_be(launcher: Launcher, path: str) -> None:
    code, checks = doctor(launcher, BERTHA_AGENT=path)
    assert (code, checks["place of the socket"]["status"]) == (1, "no")


def test_a_place_that_everybody_can_write(launcher: Launcher, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    code, checks = doctor(launcher, BERTHA_AGENT=str(tmp_path / "open" / "agent.sock"))
    assert (code, checks["place of the socket"]["status"]) == (1, "no")


@pytest.mark.parametrize(
    ("variable", "value", "check"),
    [
        ("BERTHA_DISABLE", "1", "settings"),
        ("BERTHA_SPIN_US", "many", "settings"),
        ("BERTHA_SPIN_US", "-1", "settings"),
        ("BERTHA_CONNLOG", "/none/such/file", "settings"),
        ("BERTHA_CONNLOG", "/", "settings"),
        ("BERTHA_POLICY", "/none/such", "policy"),
    ],
)
def test_wrong_settings(launcher: Launcher, variable: str, value: str, check: str) -> None:
    _code, checks = doctor(launcher, **{variable: value})
    assert checks[check]["status"] != "ok"
    assert value in checks[check]["reason"] or variable in checks[check]["reason"]


def _limited(launcher: Launcher, *limits: tuple[int, int]) -> dict[str, dict[str, Any]]:
    def lower() -> None:
        for which, value in limits:
            resource.setrlimit(which, (value, value))

    done = subprocess.run(
        [sys.executable, str(launcher.main_script), "doctor", "--json"],
        env=launcher.environment(),
        preexec_fn=lower,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.stderr == ""
    return {check["name"]: check for check in json.loads(done.stdout)["checks"]}


def test_resource_limits_are_found(launcher: Launcher) -> None:
    assert _limited(launcher, (resource.RLIMIT_NOFILE, 100))["descriptors"]["status"] == "limited"
    space = _limited(launcher, (resource.RLIMIT_AS, 1 << 30))["shared mapping"]
    assert (space["status"], space["remedy"]) == ("no", "ulimit -v unlimited")
    size = _limited(launcher, (resource.RLIMIT_FSIZE, 1 << 20))["shared mapping"]
    assert (size["status"], size["remedy"]) == ("no", "ulimit -f unlimited")


def test_one_processor_is_found(launcher: Launcher) -> None:
    def pin() -> None:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    done = subprocess.run(
        [sys.executable, str(launcher.main_script), "doctor", "--json"],
        env=launcher.environment(),
        preexec_fn=pin,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["processors"]["status"] == "limited"


def test_a_probe_that_fails_does_not_end_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    from bertha_socket.cli import _doctor

    def broken() -> _doctor.Finding:
        raise RuntimeError("what now")

    run: Callable[[], list[_doctor.Check]] = _doctor.run_all
    monkeypatch.setattr(_doctor, "_MODULES", ())
    monkeypatch.setattr(_doctor, "_probes", [("area", "name", True, broken)])
    (check,) = run()
    assert check.finding.status == "no"
    assert "RuntimeError: what now" in check.finding.reason
