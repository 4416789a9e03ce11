"""The wheel has everything, and works where there is nothing else.

Source archive, wheel made from it, installed into an empty environment, commands run there: the way that a
user gets it.  Uses pip's configured index for the runtime requirements, as `make venv` did.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest

import bertha_socket
from tests.harness import assert_balanced, assert_carried, eventually, free_port, read_connlog
from tests.harness.directory import agent_pid
from tests.harness.workers import outside

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parent.parent
_NOT_SOURCE = shutil.ignore_patterns(
    ".git",
    ".venv",
    "build",
    "dist",
    "*.egg-info",
    "*.so",
    "*.o",
    "_native.c",
    "_rings.c",
    "__pycache__",
    ".*_cache",
    ".hypothesis",
)


def _environment() -> dict[str, str]:
    """Without what points back into the checkout, its environment, or the make that runs us."""
    mine = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "MAKEFLAGS", "MFLAGS", "MAKELEVEL", "LD_PRELOAD")
    return {k: v for k, v in os.environ.items() if k not in mine and not k.startswith("BERTHA_")}


def _run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=_environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive and the wheel that was made from it."""
    place = tmp_path_factory.mktemp("packaging")
    shutil.copytree(ROOT, place / "checkout", ignore=_NOT_SOURCE)
    _run(
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--outdir",
        place / "dist",
        place / "checkout",
        cwd=place,
    )
    return place / "dist"


@pytest.fixture(scope="module")
def wheel(archives: Path) -> Path:
    (wheel,) = archives.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that has the wheel and its requirements, nothing else."""
    place = tmp_path_factory.mktemp("clean")
    _run(sys.executable, "-m", "venv", place / "venv", cwd=place)
    _run(*outside(), place / "venv/bin/python", "-m", "pip", "install", "-q", wheel, cwd=place)
    return place / "venv/bin"


def test_source_archive_has_what_a_packager_needs(archives: Path) -> None:
    (archive,) = archives.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    wanted = {"LICENSE", "README.md", "CHANGELOG.md", "Makefile", "native/Makefile", "native/core/layout.h"}
    assert wanted <= names
    assert any(name.startswith("tests/test_") for name in names)
    assert sorted(name for name in names if re.search(r"\.(so|o|a|pyc)$", name)) == []


def test_wheel_is_for_every_python_and_one_platform(wheel: Path) -> None:
    pattern = rf"bertha_socket-{re.escape(bertha_socket.__version__)}-cp311-abi3-linux_\w+\.whl"
    assert re.fullmatch(pattern, wheel.name)


def test_wheel_carries_everything(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "bertha_socket").rglob("*.py")}
    sources = {name for name in sources if "/build/" not in name}
    assert sorted(sources - names) == []
    assert "bertha_socket/py.typed" in names
    assert {n for n in names if n.endswith(".so")} == {
        "bertha_socket/_direct.abi3.so",
        "bertha_socket/_native.abi3.so",
        "bertha_socket/_rings.abi3.so",
        "bertha_socket/lib/libbertha_shim.so",
    }
    assert "bertha_socket/lib/bertha-relay" in names
    assert "bertha_socket/lib/bertha-carrier" in names
    assert any(n.endswith(".dist-info/licenses/LICENSE") for n in names)
    strangers = {n for n in names if not n.startswith(("bertha_socket/", "bertha_socket-"))}
    assert sorted(strangers) == []


def test_imports_from_the_wheel_alone(installed: Path, tmp_path: Path) -> None:
    script = (
        "import importlib.metadata as m, bertha_socket as b, bertha_socket._native as n\n"
        "import bertha_socket._rings as r; assert r.lib.hop_init()\n"
        "print(b.__file__, n.__file__, b.__version__, m.version('bertha-socket'), sep='\\n')"
    )
    package, extension, version, distribution = _run(
        installed / "python", "-c", script, cwd=tmp_path
    ).splitlines()
    assert Path(package).is_relative_to(installed.parent)
    assert Path(extension).is_relative_to(installed.parent)
    assert version == distribution == bertha_socket.__version__


@pytest.mark.parametrize("command", ["bertha", "bertha-run"])
def test_commands_start(installed: Path, tmp_path: Path, command: str) -> None:
    assert "usage" in _run(installed / command, "--help", cwd=tmp_path).lower()


def test_bertha_run_preloads_the_wheels_library(installed: Path, tmp_path: Path) -> None:
    preloaded = _run(
        installed / "bertha-run", "--", "/bin/sh", "-c", 'echo "$LD_PRELOAD"; cat /proc/$$/maps', cwd=tmp_path
    )
    library, _, maps = preloaded.partition("\n")
    paths = [Path(p) for p in library.split(":")]
    assert paths[0].name == "libbertha_shim.so"
    assert paths[0].resolve().is_relative_to(installed.parent.resolve())
    assert str(paths[0].resolve()) in maps


@pytest.mark.parametrize("program", ["bertha-relay", "bertha-carrier"])
def test_programs_of_the_wheel_can_be_executed(installed: Path, tmp_path: Path, program: str) -> None:
    """An archive that loses the mode would leave them there and of no use."""
    (found,) = installed.parent.glob(f"lib/python*/site-packages/bertha_socket/lib/{program}")
    assert found.stat().st_mode & stat.S_IXUSR
    # Without what the shim gives it, it has nothing to do, and ends.
    done = subprocess.run(
        [found], stdin=subprocess.DEVNULL, capture_output=True, env=_environment(), timeout=20, check=False
    )
    assert done.returncode not in (126, 127), done.stderr


_SERVER = """
import socket, sys
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listener:
    print("ready", flush=True)
    connection, _ = listener.accept()
    with connection:
        while data := connection.recv(65536):
            connection.sendall(data.upper())
"""
_CLIENT = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
    for turn in range(100):
        connection.sendall(b"abc" * 1000)
        assert connection.recv(3000, socket.MSG_WAITALL) == b"ABC" * 1000
print("ok")
"""


def test_a_pair_talks_over_shared_memory(installed: Path) -> None:
    """What it is for: both ends by the wheel's bertha-run, with the agent that it starts by itself."""
    with tempfile.TemporaryDirectory(prefix="bertha-wheel-") as name:
        place, port = Path(name), free_port()
        env = _environment() | {
            "BERTHA_AGENT": str(place / "agent.sock"),
            "BERTHA_AGENT_PORT": "0",
            "BERTHA_CONNLOG": str(place / "log"),
        }
        command = [str(installed / "bertha-run"), "--require", "--", str(installed / "python"), "-c"]
        with subprocess.Popen(
            [*command, _SERVER, str(port)], cwd=place, env=env, stdout=subprocess.PIPE, text=True
        ) as server:
            try:
                assert server.stdout is not None
                assert server.stdout.readline() == "ready\n"
                client = subprocess.run(
                    [*command, _CLIENT, str(port)],
                    cwd=place,
                    env=env,
                    capture_output=True,
                    text=True,
                    timeout=60,
                    check=False,
                )
                assert client.stdout == "ok\n", client.stderr
                assert server.wait(20) == 0
                eventually(lambda: len(read_connlog(place / "log")) == 2, "both ends in the log")
            finally:
                server.kill()
                _end_agent(place / "agent.sock")
        log = read_connlog(place / "log")
        assert_carried(log, "python", min_connections=2, port=port)
        assert_balanced(log, port=port)


def _end_agent(path: Path) -> None:
    """End the agent that a bertha-run started there: its number is in the directory."""
    pid = agent_pid(Path(f"{path}.dir"))
    if pid is not None:
        os.kill(pid, signal.SIGTERM)
        eventually(lambda: not path.exists() or not Path(f"/proc/{pid}").exists(), "the agent's end")
