"""The agent's own life: started on demand, one at a place, leaving by itself, killed and replaced."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bertha_socket.agent import client, memory, paths, serve, start
from bertha_socket.agent.start import ensure_agent
from tests.agent.conftest import StartAgent
from tests.agent.shim import entries, find, generation, listen
from tests.harness import NamespaceTrio
from tests.harness.poll import eventually


@pytest.fixture
def place(room: Path) -> Iterator[str]:
    """A path whose agent, started on demand, is ended after the test."""
    path = str(room / "run" / "agent.sock")
    yield path
    pid = paths.agent_pid(path)
    if pid is not None and client.is_serving(path):
        process = psutil.Process(pid)
        process.terminate()
        eventually(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, "its end")


def run_command(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bertha_socket.agent", *words],
        capture_output=True,
        text=True,
        timeout=30,
        env=os.environ | environment,
    )


# -- ends ---------------------------------------------------------------------------------------------


def test_it_leaves_when_nobody_needs_it(start_agent: StartAgent) -> None:
    agent = start_agent(None, "--idle", "0.2")
    assert agent.process.wait(10) == 0
    assert generation(agent.path) == 0
    assert not os.path.exists(agent.path)


@pytest.mark.parametrize("seconds", ["0", "9e8"])
def test_it_never_leaves(start_agent: StartAgent, seconds: str) -> None:
    """Also while it has nothing to wait for: 9e8 s are more than epoll can be told to wait."""
    agent = start_agent(None, "--idle", seconds)
    with pytest.raises(subprocess.TimeoutExpired):
        agent.process.wait(0.7)
    with agent.shim() as shim:
        shim.resolve_nothing()
    with pytest.raises(subprocess.TimeoutExpired):
        agent.process.wait(0.3)


def test_it_stays_while_a_program_is_there(start_agent: StartAgent) -> None:
    agent = start_agent(None, "--idle", "0.3")
    with agent.shim() as shim:
        with pytest.raises(subprocess.TimeoutExpired):
            agent.process.wait(1)
        shim.resolve_nothing()
    assert agent.process.wait(10) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_in_order(start_agent: StartAgent, number: int) -> None:
    agent = start_agent()
    with agent.shim() as shim, listen() as sock:
        os.close(shim.listen(sock)[2])
        agent.process.send_signal(number)
        assert agent.process.wait(10) == 0
        assert generation(agent.path) == 0
        assert shim.sock.recv(10) == b""


def test_stop_ends_it(start_agent: StartAgent) -> None:
    agent = start_agent()
    done = run_command("--stop", "--socket", agent.path)
    assert (done.returncode, done.stderr) == (0, "")
    assert agent.process.wait(10) == 0
    again = run_command("--stop", "--socket", agent.path)
    assert again.returncode == 0 and "no agent" in again.stdout


def test_another_user_cannot_stop_it(start_agent: StartAgent, other_uid: int) -> None:
    from bertha_socket.agent.messages import Op
    from bertha_socket.reasons import Reason

    agent = start_agent()
    with agent.shim(uid=other_uid) as shim:
        assert shim.ask(Op.STOP).status == Reason.OTHER_USER
        shim.resolve_nothing()


def test_killed_and_replaced(start_agent: StartAgent) -> None:
    agent = start_agent()
    old = generation(agent.path)
    inode = os.stat(agent.path + ".dir").st_ino
    with listen() as sock:
        shim = agent.shim()
        os.close(shim.listen(sock)[2])
        agent.process.kill()
        agent.process.wait(10)
        assert shim.sock.recv(10) == b""
        shim.close()
        # What a killed agent leaves: its directory says what it said, and nobody answers.
        assert generation(agent.path) == old and entries(agent.path)
        assert os.path.exists(agent.path) and not client.is_serving(agent.path)
        new = start_agent()
        assert new.path == agent.path
        assert os.stat(agent.path + ".dir").st_ino == inode
        assert generation(agent.path) > old
        assert entries(agent.path) == []
        with new.shim() as shim:
            os.close(shim.listen(sock)[2])
            assert find(agent.path, *sock.getsockname())


def test_generations_differ_after_an_orderly_end(start_agent: StartAgent) -> None:
    seen = set()
    for _ in range(3):
        agent = start_agent()
        seen.add(generation(agent.path))
        agent.process.terminate()
        assert agent.process.wait(10) == 0
    assert len(seen) == 3 and 0 not in seen


# -- one at a place -----------------------------------------------------------------------------------


def test_a_second_agent_gives_way(start_agent: StartAgent) -> None:
    agent = start_agent()
    before = generation(agent.path)
    done = run_command("--socket", agent.path)
    assert done.returncode == 0 and "already" in done.stderr
    assert generation(agent.path) == before and client.is_serving(agent.path)


def test_many_who_want_one_get_one(place: str) -> None:
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: ensure_agent(place), range(6)))
    assert [status.error for status in found] == [None] * 6
    pids = {status.pid for status in found}
    assert len(pids) == 1
    serving = [
        p.pid for p in psutil.process_iter() if place in _words(p) and p.status() != psutil.STATUS_ZOMBIE
    ]
    eventually(lambda: len(serving) >= 1, "an agent")
    assert client.agent_status(place)["agent"]["pid"] in pids
    assert ensure_agent(place).started is False


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_an_agent_on_demand_keeps_nothing_of_its_starter(place: str, tmp_path: Path) -> None:
    """Not its pipes (or a shell's $(...) would hang), terminal, directory, session or environment."""
    code = (
        "import sys; from bertha_socket.agent.start import ensure_agent; print(ensure_agent(sys.argv[1]).pid)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, place],
        cwd=tmp_path,
        env=os.environ | {"SECRET": "x", "PYTHONPATH": os.getcwd(), "LD_LIBRARY_PATH": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    agent = psutil.Process(int(done.stdout))
    environ = agent.environ()
    assert "SECRET" not in environ and "LD_LIBRARY_PATH" not in environ
    assert agent.cwd() == "/"
    assert agent.ppid() != os.getpid() or psutil.Process().pid == os.getpid()
    assert os.getsid(agent.pid) not in (os.getsid(0), agent.pid)
    assert agent.terminal() is None
    for fd in (0, 1, 2):
        assert os.readlink(f"/proc/{agent.pid}/fd/{fd}") == "/dev/null"


@pytest.mark.net
def test_an_agent_on_demand_does_not_keep_a_namespace(place: str, netns: NamespaceTrio) -> None:
    code = (
        "import sys; from bertha_socket.agent.start import ensure_agent; print(ensure_agent(sys.argv[1]).pid)"
    )
    done = subprocess.run(
        netns.server.wrap([sys.executable, "-c", code, place]), capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    its_own = os.stat(f"/proc/{int(done.stdout)}/ns/net").st_ino
    assert its_own != os.stat(f"/run/netns/{netns.server.name}").st_ino


# -- the place ----------------------------------------------------------------------------------------


def test_the_place_is_made_for_whom_it_serves(start_agent: StartAgent, room: Path) -> None:
    agent = start_agent()
    folder = os.stat(room / "run")
    assert stat.S_IMODE(folder.st_mode) == (0o755 if os.geteuid() == 0 else 0o700)
    assert stat.S_IMODE(os.stat(agent.path).st_mode) == (0o666 if os.geteuid() == 0 else 0o600)
    assert stat.S_IMODE(os.stat(agent.path + ".dir").st_mode) == 0o644
    assert stat.S_IMODE(os.stat(agent.path + ".lock").st_mode) == 0o600


def test_a_users_agent_is_that_users_alone(room: Path, other_uid: int) -> None:
    home = room / "home"
    home.mkdir()
    os.chown(home, other_uid, other_uid)
    path = home / "run" / "agent.sock"
    child = os.fork()
    if child == 0:  # not by exec: the interpreter may be where that user cannot go
        try:
            os.setgroups([])
            os.setresgid(other_uid, other_uid, other_uid)
            os.setresuid(other_uid, other_uid, other_uid)
            os._exit(0 if serve.serve(str(path), 60, detached=False) else 3)
        finally:
            os._exit(1)
    try:
        eventually(path.exists, "the agent's socket")
        assert stat.S_IMODE(os.stat(path.parent).st_mode) == 0o700
        eventually(lambda: stat.S_IMODE(os.stat(path).st_mode) == 0o600, "the socket's mode")
        assert client.agent_status(str(path))["agent"]["uid"] == other_uid  # root may look
        assert not client.is_serving(str(path))  # and its programs do not use it
    finally:
        os.kill(child, signal.SIGTERM)
        assert os.waitpid(child, 0)[1] == 0


def test_a_stale_socket_is_replaced(start_agent: StartAgent, room: Path) -> None:
    (room / "run").mkdir(mode=0o755)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(room / "run" / "agent.sock"))
    start_agent()


@pytest.mark.parametrize("what", ["file", "owner", "writable", "link", "relative", "long", "missing"])
def test_a_bad_place_is_one_clear_line(room: Path, what: str) -> None:
    run = room / "run"
    run.mkdir(mode=0o755)
    path = str(run / "agent.sock")
    if what == "file":
        Path(path).write_text("precious")
        said = "remove it"
    elif what == "owner":
        if os.geteuid() != 0:
            pytest.skip("only root can give a directory away")
        os.chown(run, 65534, 65534)
        said = "another user"
    elif what == "writable":
        run.chmod(0o777)
        said = "everybody"
    elif what == "link":
        os.symlink("/etc/passwd", path + ".lock")
        said = ".lock"
    elif what == "relative":
        done = run_command(BERTHA_AGENT="relative/agent.sock")
        assert done.returncode == 1 and "absolute" in done.stderr
        assert done.stderr.count("\n") == 1
        return
    elif what == "long":
        path = str(run / ("x" * 120))
        said = "longer"
    else:
        path = str(room / "none" / "none" / "agent.sock")
        said = "cannot be made"
    done = run_command("--socket", path)
    assert done.returncode == 1 and said in done.stderr, done
    assert done.stderr.count("\n") == 1
    status = ensure_agent(path)
    assert status.error is not None and said in status.error and "\n" not in status.error
    if what == "file":
        assert Path(path).read_text() == "precious"


@pytest.mark.parametrize("words", [["--idle", "x"], ["--idle", "-1"], ["--nonsense"], ["--stop", "--detach"]])
def test_wrong_usage(words: list[str]) -> None:
    done = run_command(*words)
    assert done.returncode == 2 and "usage" in done.stderr


def test_default_places(monkeypatch: pytest.MonkeyPatch) -> None:
    assert paths.default_path({"BERTHA_AGENT": "/x/y"}) == "/x/y"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert paths.default_path({"XDG_RUNTIME_DIR": "/run/user/0"}) == "/run/bertha/agent.sock"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert paths.default_path({"XDG_RUNTIME_DIR": "/run/user/1000"}) == "/run/user/1000/bertha/agent.sock"
    assert paths.default_path({"XDG_RUNTIME_DIR": "relative"}) == "/tmp/bertha-1000/agent.sock"
    assert paths.default_path({}) == "/tmp/bertha-1000/agent.sock"


def test_serving_idle_takes_no_processor_time(start_agent: StartAgent) -> None:
    """No timer runs while nothing is due: the kernel counts how often the agent was on a processor."""
    agent = start_agent()
    with agent.shim() as shim, listen() as sock:
        os.close(shim.listen(sock)[2])

        def switches() -> int:
            return psutil.Process(agent.process.pid).num_ctx_switches().voluntary

        def passing(seconds: float) -> int:
            before = switches()
            with pytest.raises(subprocess.TimeoutExpired):
                agent.process.wait(seconds)
            return switches() - before

        shim.resolve_nothing()
        eventually(lambda: passing(0.3) == 0, "an agent that has done what there was to do")
        assert passing(1) <= 2


def test_a_slow_machine(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that is still starting is waited for: who gave it up would be plain for good."""
    monkeypatch.setattr(start, "_PROGRAM", "import time; time.sleep(3.5)\n" + start._PROGRAM)
    status = ensure_agent(place, idle_seconds=1)
    assert status.started and status.error is None


_SERVED = """
import socket, sys
from bertha_socket.agent import memory, paths, serve
from bertha_socket.agent.registry import Registry
from bertha_socket.agent.server import Server
directory = memory.Directory(memory.make_file("directory"), 1)
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
    listening.bind(sys.argv[1])
    listening.listen()
    server = Server(listening, Registry(directory), 1.0)
    server.run()
before = set(sys.modules)
for name in ("compress", "encrypt", "http2", "reliable"):
    server._offers._probe(name, __import__("bertha_socket.chunnels").chunnels.get(name).implementations[0])
print([name for name in sorted(set(sys.modules) - before)])
"""


def test_the_first_offer_is_made_ready_in_idle_time(room: Path) -> None:
    """Who waits for it on a busy machine would give up."""
    command = [sys.executable, "-c", _SERVED, str(room / "agent.sock")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n", done


def test_netns_cookie_of_no_socket_is_zero() -> None:
    assert memory.netns_cookie(-1) == 0
