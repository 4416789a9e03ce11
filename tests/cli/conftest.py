"""Fixtures for the commands' tests: a stand-in for the preload library, small programs, and a launcher.

The stand-in has the version mark, answers the probe and logs each process it is loaded into; so these tests
say what `bertha-run` does, whatever state the real library is in (test_real_library.py looks at that one).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from bertha_socket._version import __version__
from tests.cli.fake_agent import NOTHING, fake_agent

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60  # seconds; a machine under load is slow

_LAUNCHER = """#!{python}
import sys
sys.path.insert(0, {root!r})
from {module} import main
sys.exit(main())
"""

_STAND_IN = """
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
__attribute__((used)) static const char mark[] = "bertha_shim_version=" VERSION;
__attribute__((constructor)) static void at_load(void) {
  const char *probe = getenv("BERTHA_PROBE_FD");
  if (probe != NULL) {
    dprintf(atoi(probe), "ok %s\\n", ANSWER);
    close(atoi(probe));
    unsetenv("BERTHA_PROBE_FD");
  }
  const char *log = getenv("STAND_IN_LOG");
  if (log != NULL) {
    int fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    dprintf(fd, "%d %s\\n", (int)getpid(), program_invocation_short_name);
    close(fd);
  }
}
"""

HELLO_C = """
#include <stdio.h>
#include <stdlib.h>
int main(int argc, char **argv) {
  for (int i = 1; i < argc; i++) printf("<%s>", argv[i]);
  printf("LD_PRELOAD=%s\\n", getenv("LD_PRELOAD") ? getenv("LD_PRELOAD") : "(unset)");
  return 7;
}
"""


def compile_c(out: Path, source: str, *flags: str) -> Path:
    """Compiles a C text; skips the test where the compiler cannot do that."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    file = out.with_name(out.name + ".c")
    file.write_text(source)
    done = subprocess.run([compiler, *flags, "-o", out, file], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"cc {' '.join(flags)}: {done.stderr.strip().splitlines()[-1]}")
    return out


def make_stand_in(out: Path, version: str = __version__, answer: str | None = None) -> Path:
    """A library that bertha-run takes for the shim of `version`."""
    defines = (f'-DVERSION="{version}"', f'-DANSWER="{answer or version}"')
    return compile_c(out, _STAND_IN, "-shared", "-fPIC", *defines)


@dataclass(frozen=True)
class Launcher:
    """Runs a command of ours in a clean environment."""

    run_script: Path
    main_script: Path
    environ: dict[str, str]
    log: Path

    def popen_args(self, *args: str) -> list[str]:
        return [sys.executable, str(self.run_script), *args]

    def run(
        self, *args: str, env: Mapping[str, str | None] | None = None, cwd: Path | None = None, text: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """`bertha-run ARGS` to its end; an `env` value None removes the variable."""
        return self._finish(self.popen_args(*args), env, cwd, text)

    def bertha(
        self, *args: str, env: Mapping[str, str | None] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """`bertha ARGS` to its end."""
        return self._finish([sys.executable, str(self.main_script), *args], env, None, "")

    def environment(self, env: Mapping[str, str | None] | None = None) -> dict[str, str]:
        merged: dict[str, str | None] = {**self.environ, **(env or {})}
        return {key: value for key, value in merged.items() if value is not None}

    def _finish(
        self, command: Sequence[str], env: Mapping[str, str | None] | None, cwd: Path | None, text: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env=self.environment(env),
            cwd=cwd,
            input=text,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=PATIENCE,
        )

    def loaded(self) -> list[str]:
        """Names of the processes that the stand-in was loaded into, in order."""
        return (
            [line.split(" ", 1)[1] for line in self.log.read_text().splitlines()] if self.log.exists() else []
        )


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in for the preload library."""
    return make_stand_in(tmp_path_factory.mktemp("shim") / "libstandin.so")


@pytest.fixture(scope="session")
def hello(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dynamic program that prints its arguments and LD_PRELOAD, and exits with 7."""
    return compile_c(tmp_path_factory.mktemp("hello") / "hello", HELLO_C)


@pytest.fixture
def agent_socket(tmp_path: Path) -> Iterator[Path]:
    """The socket of an agent that knows of nothing."""
    path = tmp_path / "agent.sock"
    with fake_agent(path, NOTHING):
        yield path


@pytest.fixture
def launcher(tmp_path: Path, stand_in: Path, agent_socket: Path) -> Launcher:
    """bertha-run and bertha, with the stand-in and an agent's socket."""
    scripts = []
    for name, module in (("bertha-run", "bertha_socket.cli.run"), ("bertha", "bertha_socket.cli.main")):
        script = tmp_path / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(_LAUNCHER.format(python=sys.executable, root=str(ROOT), module=module))
        script.chmod(0o755)
        scripts.append(script)
    log = tmp_path / "loaded"
    environ = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(tmp_path),
        "LC_ALL": "C.UTF-8",
        "BERTHA_SHIM": str(stand_in),
        "BERTHA_AGENT": str(agent_socket),
        "STAND_IN_LOG": str(log),
    }
    return Launcher(scripts[0], scripts[1], environ, log)
