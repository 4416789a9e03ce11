"""Where a bench plays: its hosts, its agent, its processes; everything it started ends with it, by pid.

The agent is a private one (its own ``BERTHA_AGENT``), started on demand by the first program under
``bertha-run`` as it would be for a user; nothing of the caller's environment that begins with ``BERTHA_``
leaks in.  Children die with this process (``setpriv --pdeathsig``), also when it is killed.
"""

from __future__ import annotations

import json
import os
import pwd
import resource
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bertha_socket._bench import netns, tools

_DIRECTORY_AGENT_PID = 16  # offset of agent_pid in struct bertha_dir_header (native/core/layout.h)


@dataclass(frozen=True)
class Shim:
    """How a program is put under ``bertha-run``: nothing but what its user could say."""

    policy: Path | None = None
    spin_us: int | None = None
    log: Path | None = None
    #: Somebody else's command in the place of bertha-run.
    instead: tuple[str, ...] = ()

    def logged(self, path: Path) -> Shim:
        return replace(self, log=path)


@dataclass
class Running:
    """A program that was started and is used by others."""

    process: subprocess.Popen[bytes]
    output: Path
    log: Path | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    def text(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    def stop(self) -> None:
        """SIGTERM, then SIGKILL after 5 s."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(timeout=5)
        if self.process.stdin is not None:
            self.process.stdin.close()


class Failed(OSError):
    """A program of a measurement failed; the message has its command and what it said."""


@dataclass
class Stage:
    """Use as a context manager."""

    tmp: Path = field(init=False)
    hosts: list[netns.Host] = field(default_factory=list)
    running: list[Running] = field(default_factory=list)
    client_cpu_us: float = 0.0
    #: Put before the programs that ``run`` runs, behind ``bertha-run``: something that counts.
    before: tuple[str, ...] = ()
    #: Whose processes these are, when not the caller's (some servers refuse to be root's).
    user: str | None = None
    cluster_key: Path | None = None
    #: Each host has an agent of its own, as two machines have.
    own_agents: bool = False
    _port: int = 20000
    _serial: int = 0

    def __enter__(self) -> Stage:
        self.tmp = Path(tempfile.mkdtemp(prefix="bertha-bench-"))
        if self.user is not None:
            shutil.chown(self.tmp, self.user)
        return self

    def __exit__(self, *_exc: object) -> None:
        for running in reversed(self.running):
            running.stop()
        self._stop_agents()
        for host in self.hosts:
            host.close()
        shutil.rmtree(self.tmp, ignore_errors=True)

    def one_host(self) -> netns.Host:
        host = netns.single()
        self.hosts.append(host)
        return host

    def two_hosts(self) -> tuple[netns.Host, netns.Host]:
        """Client's and server's namespace, joined by veth; raises Unavailable without root."""
        client, server = netns.pair()
        self.hosts += [client, server]
        return client, server

    def port(self, host: netns.Host) -> int:
        """A TCP port that nothing uses on this host."""
        if host.holder is None:
            with socket.socket() as probe:
                probe.bind((host.address, 0))
                return int(probe.getsockname()[1])
        self._port += 1
        return self._port

    def path(self, suffix: str) -> Path:
        """A new path in the bench's own directory."""
        self._serial += 1
        return self.tmp / f"{self._serial:05d}{suffix}"

    def policy(self, **rule: object) -> Path:
        """A policy file with one rule for everything; values are strings, integers or lists of strings."""
        path = self.path(".toml")
        lines = [f"{key} = {_toml(value)}" for key, value in rule.items()]
        path.write_text("[[rule]]\n" + "\n".join(lines) + "\n", encoding="utf-8")
        return path

    def raise_descriptor_limit(self) -> int:
        """Let the children have as many descriptors as the hard limit allows; returns that limit."""
        _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return hard

    # -- processes ------------------------------------------------------------------------------

    def agent_socket(self, host: netns.Host | None = None) -> Path:
        """Of the agent of programs on this host."""
        if self.own_agents and host is not None:
            return self.tmp / f"agent-{host.address}.sock"
        return self.tmp / "agent.sock"

    def environment(self, shim: Shim | None, host: netns.Host | None = None) -> dict[str, str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith("BERTHA_") and k != "LD_PRELOAD"}
        if self.user is not None:
            env = {k: v for k, v in env.items() if not k.startswith("XDG_")} | {"HOME": str(self.tmp)}
        if shim is not None and not shim.instead:
            env["BERTHA_AGENT"] = str(self.agent_socket(host))
            if self.cluster_key is not None:
                env["BERTHA_CLUSTER_KEY"] = str(self.cluster_key)
            if shim.spin_us is not None:
                env["BERTHA_SPIN_US"] = str(shim.spin_us)
            if shim.log is not None:
                env["BERTHA_CONNLOG"] = str(shim.log)
        return env

    def command(
        self, argv: Sequence[str], host: netns.Host, cpus: Sequence[int] | None, shim: Shim | None
    ) -> list[str]:
        command = [tools.find("setpriv"), "--pdeathsig", "KILL", *host.enter]
        if self.user is not None:
            # Changing the user takes the first one's effect away; the capability lets it read an environment
            # that lies below a closed directory (root's home).
            account = pwd.getpwnam(self.user)
            command += [tools.find("setpriv"), f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}"]
            command += ["--init-groups", "--inh-caps=-all,+dac_read_search"]
            command += ["--ambient-caps=-all,+dac_read_search", "--pdeathsig", "KILL"]
        if cpus is not None:
            command += [tools.find("taskset"), "-c", ",".join(map(str, cpus))]
        if shim is not None and shim.instead:
            command += shim.instead
        elif shim is not None:
            command += tools.bertha_run()
            if shim.policy is not None:
                command += ["--policy", str(shim.policy)]
            command.append("--")
        return [*command, *argv]

    def start(
        self,
        argv: Sequence[str],
        host: netns.Host,
        *,
        ready: str,
        cpus: Sequence[int] | None = None,
        shim: Shim | None = None,
        stdin: bool = False,
        timeout_s: float = 20.0,
    ) -> Running:
        """Start a program and wait until its output contains ``ready``."""
        output = self.path(".out")
        command = self.command(argv, host, cpus, shim)
        with output.open("wb") as sink:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=self.environment(shim, host),
                cwd=self.tmp,
            )
        running = Running(process, output, shim.log if shim else None)
        self.running.append(running)
        deadline = time.monotonic() + timeout_s
        while ready not in running.text():
            if process.poll() is not None:
                raise Failed(f"{shlex.join(argv)}: ended with {process.returncode}: {running.text().strip()}")
            if time.monotonic() > deadline:
                raise Failed(
                    f"{shlex.join(argv)}: not ready within {timeout_s:g} s: {running.text().strip()}"
                )
            time.sleep(0.01)
        return running

    def until(self, holds: Callable[[], bool], timeout_s: float = 20.0) -> None:
        """Wait for something that no program says; raises Failed after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while not holds():
            if time.monotonic() > deadline:
                raise Failed(f"a server was not ready within {timeout_s:g} s")
            time.sleep(0.01)

    def run(
        self,
        argv: Sequence[str],
        host: netns.Host,
        *,
        cpus: Sequence[int] | None = None,
        shim: Shim | None = None,
        timeout_s: float = 60.0,
    ) -> str:
        """Run a program to its end and return its standard output; raises Failed otherwise.

        ``client_cpu_us`` is the processor time that it took then, that of ``bertha-run`` before it included.
        """
        command = self.command([*self.before, *argv], host, cpus, shim)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env=self.environment(shim, host),
                cwd=self.tmp,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"{shlex.join(argv)}: did not end within {timeout_s:g} s") from None
        if done.returncode != 0:
            said = (done.stderr or done.stdout).decode(errors="replace").strip()
            raise Failed(f"{shlex.join(argv)}: ended with {done.returncode}: {said}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        self.client_cpu_us = spent * 1e6
        return done.stdout.decode(errors="replace")

    def agent_pid(self) -> int | None:
        """Pid of the private agent, as it says itself in its directory file; None when there is none."""
        return _agent_pid(Path(f"{self.agent_socket()}.dir"))

    def _stop_agents(self) -> None:
        for directory in self.tmp.glob("agent*.sock.dir"):
            pid = _agent_pid(directory)
            if pid is not None:
                _stop_agent(pid)


def _agent_pid(directory: Path) -> int | None:
    try:
        header = directory.read_bytes()[: _DIRECTORY_AGENT_PID + 4]
        return int(struct.unpack_from("=I", header, _DIRECTORY_AGENT_PID)[0]) or None
    except (OSError, struct.error):
        return None


def _stop_agent(pid: int) -> None:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return
    if b"bertha" not in command:  # the number may belong to somebody else by now
        return
    for sig in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(pid, sig)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline and Path(f"/proc/{pid}").exists():
            time.sleep(0.01)


def _toml(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return json.dumps(value) if isinstance(value, str) else str(value)
