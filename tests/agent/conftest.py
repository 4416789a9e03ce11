"""An agent of the test's own, in the foreground, ended after the test."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bertha_socket.agent import client
from tests.agent.shim import Shim
from tests.harness.namespaces import Namespace
from tests.harness.poll import eventually

OTHER_UID = 65534


@dataclass
class Agent:
    """A running agent; `path` is its socket."""

    path: str
    process: subprocess.Popen[bytes]

    def status(self) -> dict[str, Any]:
        return client.agent_status(self.path)

    def shim(self, *, uid: int | None = None, **more: Any) -> Shim:
        """A greeted connection."""
        shim = Shim(self.path, os.geteuid() if uid is None else uid)
        shim.hello(**more)
        return shim

    def descriptors(self) -> int:
        """Once it has prepared itself: what it imports then has descriptors for a moment, or keeps some."""
        eventually(lambda: self.status()["agent"]["prepared"], "its preparations")
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


StartAgent = Callable[..., Agent]


@pytest.fixture
def room() -> Iterator[Path]:
    """A directory that other users can enter, with a short name (a socket's path has 107 bytes)."""
    path = Path(tempfile.mkdtemp(prefix=f"bertha-agent-{os.getpid()}-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def start_agent(room: Path) -> Iterator[StartAgent]:
    """`start_agent(path=None, **environment)`."""
    started: list[subprocess.Popen[bytes]] = []

    def start(
        path: Path | None = None,
        *options: str,
        limit: int | None = None,
        netns: Namespace | None = None,
        **environment: str,
    ) -> Agent:
        where = str(path or room / "run" / "agent.sock")
        command = [sys.executable, "-m", "bertha_socket.agent", "--socket", where, *options]
        if limit is not None:
            command = ["prlimit", f"--nofile={limit}", *command]
        if netns is not None:
            command = netns.wrap(command)
        env = {k: v for k, v in os.environ.items() if not k.startswith("BERTHA_")} | environment
        process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL)
        started.append(process)

        def answers() -> bool:
            assert process.poll() is None, "the agent has ended"
            return client.is_serving(where)

        eventually(answers, "the agent's socket")
        return Agent(where, process)

    yield start
    crashed = []
    for process in started:
        if process.poll() is None:
            process.terminate()
            if process.wait(10) != 0:
                crashed.append(process.returncode)
    assert not crashed


@pytest.fixture
def agent(start_agent: StartAgent) -> Agent:
    """An agent with nothing registered."""
    return start_agent()


@pytest.fixture
def other_uid() -> int:
    """Another user, for whom only root can speak."""
    if os.geteuid() != 0:
        pytest.skip("only root can connect as another user")
    return OTHER_UID
