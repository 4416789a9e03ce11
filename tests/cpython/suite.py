"""One module of CPython's tests, run plain or under bertha-run, whatever hangs or crashes; and the
comparison.

Each run has a network namespace of its own when that can be made (so that fixed ports are free and nothing
leaves the machine), and an agent and a connection log of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tests.harness.connlog import read_connlog
from tests.harness.poll import eventually

MODULES = (
    "test_socket",
    "test_socketserver",
    "test_select",
    "test_selectors",
    "test_poll",
    "test_epoll",
    "test_httplib",
    "test_httpservers",
    "test_asyncore",
    "test_asyncio",
    "test_ssl",
    "test_ftplib",
    "test_smtplib",
    "test_xmlrpc",
)
# VSOCK is not TCP, and what it would reach here is not ours.
IGNORE = ("*VSOCK*",)

_CHILD = Path(__file__).with_name("child.py")
_BIN = Path(sys.executable).parent
# More runs of one module than this, and something is wrong with the module, not with single tests.
_MAX_RESTARTS = 40


@dataclass
class ModuleRun:
    """The outcome of each test by id: ok, skip, fail, error, hang or crash; and what carried its
    connections."""

    outcomes: dict[str, str] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    shm: int = 0
    plain: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    complaint: str | None = None

    def count(self, *outcomes: str) -> int:
        """How many tests ended in one of these ways."""
        return sum(o in outcomes for o in self.outcomes.values())


def unavailable() -> str | None:
    """Why CPython's tests cannot run with this interpreter, or None."""
    probe = subprocess.run(
        [sys.executable, "-c", "import test.test_socket"], capture_output=True, check=False
    )
    return None if probe.returncode == 0 else "this Python has no test package (Debian: libpython3-testsuite)"


@cache
def _can_unshare() -> bool:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    return subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode == 0


def resources() -> list[str]:
    """What regrtest calls resources; "network" only where nothing but the loopback can be reached."""
    return ["cpu", "walltime", *(["network"] if _can_unshare() else [])]


def _alone(command: list[str]) -> list[str]:
    if not _can_unshare():
        return command
    return ["unshare", "-n", "--", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *command]


class Suite:
    """Runs modules; everything it starts is gone when `run` returns."""

    def __init__(
        self,
        timeout: float = 60.0,
        only: Sequence[str] = (),
        ignore: Sequence[str] = (),
        package: str = "test",
        door: str = "bertha-run",
        patient: bool = True,
    ) -> None:
        """`door`: how the shim comes into the tests: "bertha-run" (preloaded), or "monkey" (patch_all()).

        `patient`: under the shim, accept() and connect() sleep 1 and 4 ms (child.py says why)."""
        self.timeout = timeout
        self.only = list(only)
        self.ignore = [*IGNORE, *ignore]
        self.package = package
        self.door = door
        self.patient = patient

    def run(self, module: str, shim: bool) -> ModuleRun:
        """All tests of `module` ("test_socket")."""
        result = ModuleRun()
        with tempfile.TemporaryDirectory(prefix="cpy-") as name:
            room = Path(name)
            agent = self._start_agent(room) if shim else None
            try:
                self._run(module, shim, room, result)
            finally:
                if agent is not None:
                    agent.terminate()
                    agent.wait(20)
            for c in read_connlog(room / "connlog"):
                if c.plain:
                    result.plain += 1
                    result.reasons[c.reason or "?"] = result.reasons.get(c.reason or "?", 0) + 1
                else:
                    result.shm += c.implementation == "shm"
        return result

    def _environment(self, room: Path) -> dict[str, str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("BERTHA_", "PYTEST_", "PYTHON"))}
        env["BERTHA_AGENT"] = str(room / "agent.sock")
        env["BERTHA_CONNLOG"] = str(room / "connlog")
        env["TMPDIR"] = str(room)
        if self.package != "test":
            env["PYTHONPATH"] = str(Path(__file__).parent)
        return env

    def _start_agent(self, room: Path) -> subprocess.Popen[bytes]:
        command = [str(_BIN / "bertha"), "agent", "--foreground"]
        agent = subprocess.Popen(command, env=self._environment(room), cwd=room)
        eventually(lambda: _answers(room / "agent.sock"), "the agent's socket")
        return agent

    def _run(self, module: str, shim: bool, room: Path, result: ModuleRun) -> None:
        lines, skip, errors = room / "lines", room / "skip", room / "stderr"
        lines.touch()
        for _ in range(_MAX_RESTARTS):
            skip.write_text("\n".join(result.outcomes))
            command = [sys.executable, str(_CHILD), str(lines), str(self.timeout), f"{self.package}.{module}"]
            command += ["--skip", str(skip)]
            command += [word for name in resources() for word in ("--resource", name)]
            command += [word for glob in self.ignore for word in ("--ignore", glob)]
            command += [word for glob in self.only for word in ("--only", glob)]
            if shim:
                if self.patient:
                    command.append("--patient")
                if self.door == "monkey":
                    command[1:1] = ["-m", "bertha_socket.monkey", "--"]
                else:
                    command = [str(_BIN / "bertha-run"), "--require", "--", *command]
            began = len(lines.read_text().splitlines())
            with errors.open("wb") as stderr:
                child = subprocess.Popen(
                    _alone(command),
                    env=self._environment(room),
                    cwd=room,
                    stdin=subprocess.DEVNULL,
                    stdout=stderr,
                    stderr=stderr,
                    start_new_session=True,
                )
                try:
                    code: int | None = child.wait(self.timeout * 30)
                except subprocess.TimeoutExpired:
                    code = None
                _kill_group(child)
            current = self._read(lines.read_text().splitlines()[began:], result)
            text = errors.read_text(errors="replace")
            if current is None:  # complete
                return
            if not current:
                result.complaint = f"{module} ended by itself with {code}: {text[-1500:]}"
                return
            hung = code is None or (code == 1 and "Timeout (" in text)
            result.outcomes[current] = "hang" if hung else "crash"
            result.details[current] = f"exit code {code}\n{text[-4000:]}"
        result.complaint = f"{module}: given up after {_MAX_RESTARTS} restarts"

    def _read(self, lines: list[str], result: ModuleRun) -> str | None:
        """Takes over the lines; the test that was begun and did not end ("": none), None when complete."""
        current = ""
        for text in lines:
            line = json.loads(text)
            if line["event"] == "begin":
                current = line["id"]
            elif line["event"] == "end":
                current = ""
                # the same id twice: a module that loads one class under two names
                before = result.outcomes.get(line["id"], "ok")
                if before in ("ok", "skip"):
                    result.outcomes[line["id"]] = line["outcome"]
                    result.details[line["id"]] = line["detail"]
                    result.seconds[line["id"]] = line["seconds"]
            else:
                return None
        return current


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    """Ends the child and what it has started (its session is its own)."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.wait()


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        return probe.connect_ex(str(path)) == 0


def differences(plain: ModuleRun, shim: ModuleRun) -> dict[str, str]:
    """Tests that pass plain and do not pass under the shim: what became of them."""
    return {
        name: shim.outcomes.get(name, "missing")
        for name, outcome in plain.outcomes.items()
        if outcome == "ok" and shim.outcomes.get(name, "missing") != "ok"
    }
