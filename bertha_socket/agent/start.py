"""`ensure_agent`: an agent is serving when this returns, or it is said why not.

The agent must not be a child of the program that wanted it (which may wait for its children), nor keep
its terminal, pipes, working directory or network namespace.  So a first child forks the agent and ends;
the agent's standard error is a pipe to us until it is ready, and its end is the sign.
"""

from __future__ import annotations

import importlib.util
import os
import selectors
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Final

from bertha_socket.agent import paths
from bertha_socket.agent.client import is_serving

#: For an agent that is still starting: on a busy machine that takes seconds, and who gives it up is plain.
_SECONDS: Final = 10.0
#: For another's, once ours has ended without a word.
_OTHERS_SECONDS: Final = 3.0
#: What an agent that is started on demand takes from the environment of whoever needs it first.
_KEPT: Final = (
    *("PATH", "HOME", "USER", "LANG", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR"),
    *("BERTHA_AGENT_PORT", "BERTHA_AGENT_PEERS", "BERTHA_CLUSTER_KEY", "BERTHA_CHOICE", "BERTHA_POLICY"),
)
_PROGRAM: Final = (
    "import os, sys\n"
    "if os.fork(): os._exit(0)\n"
    "sys.path[:0] = [sys.argv[1]]; sys.path += sys.argv[2:3]\n"
    "from bertha_socket.cli.agent import main\n"
    "sys.exit(main(sys.argv[3:]))\n"
)


@dataclass(frozen=True, slots=True)
class Status:
    """What became of it.  `error` is None when an agent is serving; else one line with the remedy."""

    path: str
    started: bool
    pid: int | None
    error: str | None


def _command(path: str, idle_seconds: float | None) -> list[str]:
    spec = importlib.util.find_spec("_cffi_backend")
    package_root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    cffi_root = os.path.dirname(spec.origin) if spec is not None and spec.origin else package_root
    # -I -S: nothing of the caller's environment, and no site hooks, run in the agent.
    command = [sys.executable, "-I", "-S", "-c", _PROGRAM, package_root, cffi_root]
    command += ["--detached", "--socket", path]
    return command if idle_seconds is None else [*command, "--idle", f"{idle_seconds:g}"]


def _environment(policy: str | None) -> dict[str, str]:
    kept = {k: os.environ[k] for k in _KEPT if k in os.environ}
    if policy is None:
        policy = kept.get("BERTHA_POLICY")
    # It runs in another folder.
    return kept | {"BERTHA_POLICY": os.path.abspath(policy)} if policy else kept


def _read_all(pipe: int, deadline: float) -> tuple[bytes, bool]:
    """What came until the end of the pipe, and whether the end came in time."""
    text = b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                return text, False
            if selector.select(left):
                data = os.read(pipe, 4096)
                if not data:
                    return text, True
                text += data


def ensure_agent(
    path: str | None = None, *, idle_seconds: float | None = None, policy: str | None = None
) -> Status:
    """Sees to it that an agent serves at `path` (default: this user's place).

    Takes as long as an agent needs to start when it must start one, ten seconds at the most.  Safe for any
    number of callers at once: one agent comes out of it.
    `policy`: the file whose [agent] it goes by, if not the one in force.
    Never raises OSError: a program can do without an agent.
    """
    where = path or paths.default_path()
    if is_serving(where):
        return Status(where, False, paths.agent_pid(where), None)
    try:
        paths.prepare(where)
        if not sys.executable:
            return Status(where, False, None, "no Python interpreter is known; run `bertha agent` by hand")
        deadline = time.monotonic() + _SECONDS
        with subprocess.Popen(
            _command(where, idle_seconds),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd="/",
            env=_environment(policy),
            start_new_session=True,
        ) as first:
            assert first.stderr is not None
            said, ended = _read_all(first.stderr.fileno(), deadline)
            first.wait()
        if ended:
            deadline = min(deadline, time.monotonic() + _OTHERS_SECONDS)
        while not is_serving(where):
            if time.monotonic() >= deadline:
                said_text = said.decode("utf-8", "replace").strip().splitlines()
                why = said_text[-1] if said_text else "it did not answer in time" if not ended else "it ended"
                why = why.removeprefix("bertha agent: ")
                return Status(where, False, None, f"no agent could be started: {why}")
            if ended and said:
                deadline = 0.0  # it has said why it gave up: one more look, for another's agent
            time.sleep(0.01)
    except OSError as error:
        return Status(where, False, None, f"no agent could be started: {error.strerror or error}")
    return Status(where, True, paths.agent_pid(where), None)
