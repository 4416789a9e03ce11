"""Small programs for one interposed call each, built once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import Host, free_port, require_program

_HERE = Path(__file__).parent
Build = Callable[..., Path]
Talk = Callable[..., str]


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """`build(name, *libraries)`: the program made of tests/shim/c/NAME.c; made only once."""
    where = tmp_path_factory.mktemp("shim-programs")
    compiler = require_program("cc")

    def make(name: str, *libraries: str) -> Path:
        program = where / name
        if not program.exists():
            # Fortified, as a distribution builds its programs: then calls come by their _chk names.
            flags = ["-std=gnu11", "-O2", "-D_GNU_SOURCE", "-D_FORTIFY_SOURCE=2", "-Wall", "-Werror"]
            command = [compiler, *flags, str(_HERE / "c" / f"{name}.c"), "-o", str(program), "-pthread"]
            command += [f"-l{library}" for library in libraries]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 0, done.stderr
        return program

    return make


@pytest.fixture
def talk(host: Host) -> Talk:
    """`talk(server_command, text)`: start the server (its port goes where "PORT" stands), speak to it as
    client, wait for the client's end; what the client received."""

    def run(command: list[object], text: bytes, *, server_first: bool = True, timeout: float = 20.0) -> str:
        port = free_port()
        host.server([str(port) if word == "PORT" else word for word in command], port)
        client: list[object] = [sys.executable, _HERE / "talk.py", port]
        if server_first:
            client.append("--server-first")
        return host.run(client, feed=text, timeout=timeout)

    return run
