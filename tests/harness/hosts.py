"""A "host" of a test: an agent of its own, a connection log, and the programs that run there.

Programs of different agents are on different hosts, whatever the kernel shares (the design's words), so a
test that needs two hosts makes two of these. Nothing a host starts outlives it: everything is ended by its
process number, and descendants that lost their parent are adopted by the test process and ended as well.
"""

from __future__ import annotations

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil
import pytest

from .connlog import REHEARSED, Connection, read_connlog
from .directory import agent_pid, listed_ports, listening_ports
from .namespaces import Namespace
from .poll import eventually
from .programs import Program

# Below the range from which Linux takes client ports, so that no connection sits on a port before its server.
_PORTS = range(11000, 32000)
_BIN = Path(sys.executable).parent
# When the test process is killed, no fixture ends anything: the kernel does.
_END_WITH_US = ["setpriv", "--pdeathsig", "TERM", "--"] if shutil.which("setpriv") else []
DIRECTORY_PREFIX = f"bertha-test-{os.getpid()}-"


def free_port() -> int:
    """A TCP port that nobody on loopback uses now."""
    for _ in range(200):
        port = random.choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port found")


def as_user(user: str) -> list[str]:
    """What to put before a command so that root runs it as `user`, in the same process.

    The one capability that is left lets it read the checkout and its environment, which may lie below a
    directory that is closed to other users (a home); files of the test are made by their owners anyway.
    """
    capability = "-all,+dac_read_search"
    words = ["setpriv", f"--reuid={user}", f"--regid={pwd.getpwnam(user).pw_gid}", "--clear-groups"]
    return [*words, f"--inh-caps={capability}", f"--ambient-caps={capability}", "--"]


class Host:
    """Use through the fixtures `host` and `make_host`."""

    def __init__(
        self,
        *,
        user: str | None = None,
        agent: bool = True,
        rehearse: bool = False,
        netns: Namespace | None = None,
        cluster_key: Path | None = None,
    ) -> None:
        # Not pytest's tmp_path: its parents are closed to other users, and a unix socket's path has only
        # 107 characters.
        self.dir = Path(tempfile.mkdtemp(prefix=DIRECTORY_PREFIX))
        self.user = user
        self.rehearse = rehearse
        #: Where its agent runs, and its programs unless told otherwise.
        self.netns = netns
        self.cluster_key = cluster_key
        self._as_user: list[str] = []
        if user is not None:
            shutil.chown(self.dir, user)
            self._as_user = as_user(user)
        self.policy: Path | None = None
        self.connlog_path = self.dir / "connections.jsonl"
        self.agent_path = self.dir / "run" / "agent.sock"
        self.programs: list[Program] = []
        self.agent: Program | None = None
        self._count = 0
        if agent and not rehearse:
            self.start_agent()

    # ---- starting -------------------------------------------------------------------------------

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of the host's programs: ours without any BERTHA_ name, plus this host's."""
        env = {k: v for k, v in os.environ.items() if not k.startswith(("BERTHA_", "PYTEST_"))}
        env["BERTHA_AGENT"] = str(self.agent_path)
        env["BERTHA_CONNLOG"] = str(self.connlog_path)
        env["LC_ALL"] = "C"
        if self.policy is not None:
            env["BERTHA_POLICY"] = str(self.policy)
        if self.cluster_key is not None:
            env["BERTHA_CLUSTER_KEY"] = str(self.cluster_key)
        if self.user is not None:
            env["HOME"] = str(self.dir)
        env.update(more or {})
        return env

    def set_policy(self, text: str) -> None:
        """The policy file of the programs started from now on."""
        self.policy = self.dir / "bertha.toml"
        self.policy.write_text(text)

    def open_to_other_users(self) -> None:
        """Let programs of other users reach this host's files and write into its connection log."""
        self.dir.chmod(0o755)
        self.connlog_path.touch()
        self.connlog_path.chmod(0o666)

    def start_agent(self, under: Sequence[object] = ()) -> Program:
        """Start this host's agent and wait until it answers; `under`: what becomes it (a launcher)."""
        self.agent_path.parent.mkdir(mode=0o755, exist_ok=True)
        if self.user is not None:
            shutil.chown(self.agent_path.parent, self.user)
        argv = [*map(str, under), str(_BIN / "bertha"), "agent", "--foreground"]
        if self.netns is not None:
            argv = self.netns.wrap(argv)
        self.agent = agent = self._start(argv, label="agent")

        def answers() -> bool:
            assert agent.running, f"{agent.describe()} ended\n{agent.text()}"
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
                return probe.connect_ex(str(self.agent_path)) == 0

        eventually(answers, "the agent's socket")
        return agent

    def spawn(
        self,
        command: Sequence[object],
        *,
        shim: bool = True,
        netns: Namespace | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: int | IO[bytes] | None = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = None,
        label: str | None = None,
        run_options: Sequence[str] = ("--require",),
        user: str | None = None,
        under: Sequence[object] = (),
    ) -> Program:
        """Start `command`, under bertha-run when `shim`; its output goes to a file (see Program.text).

        `under`: what becomes bertha-run (a launcher)."""
        words = [str(word) for word in command]
        argv = list(words)
        if shim and not self.rehearse:
            argv = [str(_BIN / "bertha-run"), *run_options, "--", *argv]
        argv = [*map(str, under), *argv]
        if user is not None:
            argv = [*as_user(user), *argv]
        where = netns or self.netns
        if where is not None:
            argv = where.wrap(argv)
        name = label or Path(words[0]).name
        return self._start(argv, label=name, env=env, cwd=cwd, stdin=stdin, stdout=stdout, shim=shim)

    def _start(
        self,
        argv: Sequence[str],
        *,
        label: str,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: int | IO[bytes] | None = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = None,
        shim: bool = False,
    ) -> Program:
        self._count += 1
        program = Program(
            [*self._as_user, *_END_WITH_US, *argv],
            label=label,
            output=self.dir / f"{self._count:03d}-{label}.out",
            env=self.environment(env),
            cwd=cwd or self.dir,
            stdin=stdin,
            stdout=stdout,
            shim=shim,
        )
        self.programs.append(program)
        return program

    def run(
        self,
        command: Sequence[object],
        *,
        shim: bool = True,
        netns: Namespace | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        feed: bytes | None = None,
        timeout: float = 20.0,
        check: bool = True,
        require: bool = True,
    ) -> str:
        """Run `command` to its end, `feed` on its standard input; what it printed."""
        options = ["--require"] if require else []
        with tempfile.TemporaryFile() as source:
            source.write(feed or b"")
            source.seek(0)
            program = self.spawn(
                command, shim=shim, netns=netns, env=env, cwd=cwd, stdin=source, run_options=options
            )
            return program.wait(timeout, check)

    def server(
        self,
        command: Sequence[object],
        port: int,
        *,
        shim: bool = True,
        netns: Namespace | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        label: str | None = None,
        listed: bool = True,
    ) -> Program:
        """Start a server and wait until `port` listens and, with the shim, is in the agent's directory.

        `listed=False`: not the latter, because a policy keeps it out of there.
        """
        program = self.spawn(command, shim=shim, netns=netns, env=env, cwd=cwd, label=label)
        self.wait_port(program, port, listed=listed)
        return program

    def wait_port(self, program: Program, port: int, timeout: float = 15.0, *, listed: bool = True) -> None:
        """Wait until `program`'s namespace has `port` in LISTEN (and, with the shim, the agent knows it)."""

        def listening() -> bool:
            assert program.running, f"{program.describe()} ended\n{program.text()[-3000:]}"
            return port in listening_ports(program.pid)

        eventually(listening, f"{program.label} listening on {port}", timeout)
        if listed and program.shim and self.agent is not None and self.agent.running:
            directory = Path(f"{self.agent_path}.dir")
            eventually(lambda: port in listed_ports(directory), f"{program.label} in the directory", timeout)

    def stop_agent_on_demand(self) -> None:
        """End the agent that a bertha-run has started: it is in the directory file, and was adopted by us."""
        if self.rehearse:
            return
        pid = agent_pid(Path(f"{self.agent_path}.dir"))
        assert pid is not None, "no agent has written a directory file"
        agent = psutil.Process(pid)
        agent.terminate()
        agent.wait(10)

    # ---- looking and ending ---------------------------------------------------------------------

    def connlog(self) -> list[Connection]:
        """The lines written so far."""
        return REHEARSED if self.rehearse else read_connlog(self.connlog_path)

    def stop(self, *programs: Program, number: int = signal.SIGTERM) -> None:
        """End these programs with a signal; AssertionError when one crashed or had to be killed."""
        wrong = [w for w in [p.stop(number) for p in programs] if w]
        assert not wrong, "; ".join(wrong)

    def finish(self) -> list[Connection]:
        """End all programs (last started first; not the agent) and return the complete log."""
        self.stop(*(p for p in reversed(self.programs) if p is not self.agent))
        return self.connlog()

    def close(self) -> list[str]:
        """End everything, the agent last, and remove the directory; what went wrong, one line each."""
        wrong = [p.stop() for p in reversed(self.programs) if p is not self.agent]
        if self.agent is not None:
            wrong.append(self.agent.stop())
        return [w for w in wrong if w]

    def remove(self) -> None:
        """Remove the host's directory."""
        shutil.rmtree(self.dir)

    def report(self) -> str:
        """For a failure: every program's last output, and the end of the connection log."""
        parts = [f"--- {p.describe()}\n{p.text()[-3000:]}" for p in self.programs]
        if self.connlog_path.exists():
            parts.append("--- connection log\n" + self.connlog_path.read_text()[-6000:])
        return "\n".join(parts)


class Adoption:
    """While active, orphans among our descendants come to us, so that none can hide from `leftovers`."""

    _PR_SET_CHILD_SUBREAPER = 36

    def __init__(self) -> None:
        self._before: set[int] = set()

    def start(self) -> None:
        self._prctl(1)
        self._before = {child.pid for child in psutil.Process().children(recursive=True)}

    def end(self) -> list[str]:
        """End what is left by pid and reap it; a line for each that was still running."""
        ours = [c for c in psutil.Process().children(recursive=True) if c.pid not in self._before]
        # Those that a signal is on its way to have a moment to end.
        _, left = psutil.wait_procs(ours, timeout=3)
        wrong = [f"left behind: pid {child.pid} {' '.join(child.cmdline())}" for child in left]
        for child in left:
            child.kill()
        psutil.wait_procs(left, timeout=5)
        self._prctl(0)
        return wrong

    def _prctl(self, on: int) -> None:
        if sys.platform != "linux":
            pytest.skip("only Linux has child subreapers")
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(self._PR_SET_CHILD_SUBREAPER, on, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")
