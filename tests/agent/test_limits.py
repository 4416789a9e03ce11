"""An agent is started on demand from somebody's shell, and must not live with that shell's limits."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

from bertha_socket.agent import paths
from tests.conftest import MakeHost
from tests.harness import eventually
from tests.harness.hosts import as_user

_BIN = Path(sys.executable).parent


def _agent(tmp_path: Path, limits: str) -> subprocess.Popen[str]:
    command = f"{limits}; exec {_BIN / 'bertha'} agent --foreground"
    env = os.environ | {"BERTHA_AGENT": str(tmp_path / "agent.sock")}
    return subprocess.Popen(["sh", "-c", command], env=env, text=True, stderr=subprocess.PIPE)


def _limit(pid: int, which: int) -> int:
    return resource.prlimit(pid, which)[0]


def test_soft_limits_are_raised(tmp_path: Path) -> None:
    path = str(tmp_path / "agent.sock")
    with _agent(tmp_path, "ulimit -S -n 40; ulimit -S -f 8; ulimit -S -t 5") as agent:
        try:
            eventually(lambda: paths.agent_pid(path) is not None or agent.poll() is not None, "the agent")
            for which in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CPU):
                assert _limit(agent.pid, which) in (
                    resource.getrlimit(which)[1],
                    resource.RLIM_INFINITY,
                    65536,
                )
        finally:
            agent.terminate()


def test_too_few_descriptors_are_said(make_host: MakeHost) -> None:
    user = "nobody" if os.geteuid() == 0 else None  # root may raise every limit
    host = make_host(user=user, agent=False)
    words = as_user(user) if user else []
    command = [*words, "sh", "-c", f"ulimit -n 24; exec {_BIN / 'bertha'} agent --foreground"]
    done = subprocess.run(
        command, env=host.environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert "an agent needs 32 descriptors and may have 24; raise `ulimit -n`" in done.stderr
