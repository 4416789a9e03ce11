"""One real program started by a test: its output, its end, and proof that nothing of it is left.

Every program gets a session of its own, so that a whole family (nginx and its workers) can be ended by the
number of its process group, and writes its output into a file, so that no pipe can fill up and block it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import pytest

from .poll import eventually

# A program that dies of one of these has crashed, whatever the test was looking at.
_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}

_MORE_DIRECTORIES = ("/usr/sbin", "/sbin", "/usr/local/sbin")


def require_program(name: str, *directories: str) -> str:
    """The absolute path of an installed program; skips the test, saying so, when it is not installed."""
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), *_MORE_DIRECTORIES, *directories])
    found = shutil.which(name, path=search)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


class Program:
    """A running child. `argv` is what was really executed, wrapper included."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        label: str,
        output: Path,
        env: Mapping[str, str],
        cwd: Path,
        stdin: int | IO[bytes] | None = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = None,
        shim: bool = False,
    ) -> None:
        self.argv = list(argv)
        self.label = label
        self.shim = shim
        self.output_path = output
        self.stopped_by_test = False
        with output.open("wb") as sink:
            self.process = subprocess.Popen(
                self.argv,
                stdin=stdin,
                stdout=sink if stdout is None else stdout,
                stderr=subprocess.STDOUT if stdout is None else sink,
                env=dict(env),
                cwd=cwd,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def text(self) -> str:
        """Everything the program has printed so far."""
        return self.output_path.read_text(errors="replace")

    def describe(self) -> str:
        return f"{self.label} (pid {self.pid}, status {self.process.poll()}): {' '.join(self.argv)}"

    def wait_text(self, needle: str, timeout: float = 10.0) -> str:
        """Wait until the program's output contains `needle`; fails at once when the program ends first."""

        def look() -> bool:
            if needle in self.text():
                return True
            assert self.running, f"{self.describe()} ended before printing {needle!r}\n{self.text()[-2000:]}"
            return False

        eventually(look, f"{self.label} printing {needle!r}", timeout)
        return self.text()

    def wait(self, timeout: float = 20.0, check: bool = True) -> str:
        """Wait for the end; the output. AssertionError for a time-out or (with `check`) a status but 0."""
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"{self.describe()} still runs after {timeout:g} s\n{self.text()[-3000:]}"
            ) from None
        if check:
            assert status == 0, f"{self.describe()} failed\n{self.text()[-3000:]}"
        return self.text()

    def send(self, number: int) -> None:
        """Send a signal to this process (not its children)."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9, as a test's event; the end is not held against the program."""
        self.stopped_by_test = True
        self.process.kill()
        self.process.wait(10)

    def stop(self, number: int = signal.SIGTERM, timeout: float = 10.0) -> str | None:
        """End it: `number` to the process, then SIGKILL to what is left of its group.

        Returns what was wrong (it crashed, or had to be killed), or None.
        """
        wrong: str | None = None
        if self.running:
            self.stopped_by_test = True
            self.process.send_signal(number)
            try:
                self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                wrong = f"{self.describe()} did not end within {timeout:g} s of signal {number}"
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        status = self.process.wait(10)
        if status < 0 and -status in _CRASHES:
            wrong = f"{self.describe()} crashed with {signal.Signals(-status).name}"
        return wrong
