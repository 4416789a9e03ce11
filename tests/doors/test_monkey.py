"""monkey.patch_all(): the same library, loaded late.  Each test asserts what carried the connections."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from tests.harness import (
    Host,
    Program,
    assert_balanced,
    assert_carried,
    eventually,
    free_port,
)

_CLIENTS = Path(__file__).parents[1] / "programs" / "clients"
_PYTHON = Path(sys.executable).name
_LATE = [sys.executable, "-m", "bertha_socket.monkey"]

# A redis-like server and client in one file: lines over a stream.
_PAIR = """
import socket, threading
server = socket.create_server(("127.0.0.1", 0))
def serve():
    connection, _ = server.accept()
    with connection, connection.makefile("rwb") as file:
        store = {}
        for line in file:
            verb, key, *value = line.split()
            if verb == b"SET":
                store[key] = value[0]
            file.write(store.get(key, b"-") + b"\\n")
            file.flush()
thread = threading.Thread(target=serve)
thread.start()
with socket.create_connection(server.getsockname(), timeout=10) as client, client.makefile("rwb") as file:
    for i in range(100):
        file.write(b"SET k%d v%d\\nGET k%d\\n" % (i, i, i))
        file.flush()
        assert [file.readline(), file.readline()] == [b"v%d\\n" % i] * 2
thread.join()
server.close()
"""

_DATAGRAM = """
import socket, sys
server, client = socket.socket(type=socket.SOCK_DGRAM), socket.socket(type=socket.SOCK_DGRAM)
server.bind(("127.0.0.1", int(sys.argv[1])))
client.sendto(b"x", server.getsockname())
assert server.recv(10) == b"x"
client.close()
server.close()
"""


def _serve(host: Host, kind: str, *more: str | Path) -> tuple[Program, int]:
    port = free_port()
    command = [*_LATE, _CLIENTS / "servers.py", kind, str(port), *more]
    return host.server(command, port, label=kind, shim=False), port


def _check(host: Host, port: int, count: int) -> None:
    eventually(lambda: len(host.connlog()) >= 2 * count, f"{2 * count} lines in the connection log")
    log = host.finish()
    assert_carried(log, _PYTHON, min_connections=count, role="client", port=port)
    assert_carried(log, _PYTHON, min_connections=count, role="server", port=port)
    assert_balanced(log, port=port, min_pairs=count)


def _both_carried(host: Host, code: str, count: int = 1) -> None:
    host.run([sys.executable, "-c", code], shim=False)
    log = host.finish()
    assert_carried(log, _PYTHON, min_connections=count, role="client")
    assert_carried(log, _PYTHON, min_connections=count, role="server")


@pytest.mark.parametrize("kind", ["threading", "selectors", "blocking", "asyncio"])
def test_lines(host: Host, kind: str) -> None:
    _, port = _serve(host, kind)
    assert (
        host.run([*_LATE, _CLIENTS / "line_client.py", str(port), "4", "50", "900"], shim=False).strip()
        == "ok"
    )
    _check(host, port, 4)


def test_asyncio_client(host: Host) -> None:
    _, port = _serve(host, "asyncio")
    command = [*_LATE, _CLIENTS / "asyncio_client.py", str(port), "20", "10", "2000"]
    assert host.run(command, shim=False).strip() == "ok"
    _check(host, port, 20)


@pytest.mark.parametrize("client", ["line_client.py", "asyncio_client.py"])
@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_tls(host: Host, certificate: tuple[Path, Path], kind: str, client: str) -> None:
    """OpenSSL reads and writes the descriptor by its own calls."""
    _, port = _serve(host, kind, *certificate)
    command = [*_LATE, _CLIENTS / client, str(port), "3", "20", "5000", certificate[0]]
    assert host.run(command, shim=False).strip() == "ok"
    _check(host, port, 3)


def test_http(host: Host) -> None:
    _, port = _serve(host, "http")
    assert host.run([*_LATE, _CLIENTS / "http_client.py", str(port)], shim=False).strip() == "ok"
    _check(host, port, 11)


def test_patched_late_meets_preloaded(host: Host) -> None:
    """One door at each end: the data path is one."""
    _, port = _serve(host, "threading")
    assert (
        host.run([sys.executable, _CLIENTS / "line_client.py", str(port), "2", "20", "100"]).strip() == "ok"
    )
    _check(host, port, 2)


def test_in_a_program(host: Host) -> None:
    code = "from bertha_socket import monkey\nassert monkey.patch_all()\nassert not monkey.patch_all()\n"
    code += "assert monkey.is_patched('socket') and monkey.is_patched()\n"
    code += "assert any(p.call == 'connect' and p.entries > 0 for p in monkey.ledger())\n"
    _both_carried(host, code + _PAIR)


def test_what_is_loaded_later_is_redirected(host: Host) -> None:
    """Here _socket and ssl come only after patch_all()."""
    code = "import sys\nfrom bertha_socket import monkey\nmonkey.patch_all(warn=False)\nimport ssl, sqlite3\n"
    code += "assert any('sqlite3' in p.object for p in monkey.ledger()), monkey.ledger()\n"
    _both_carried(host, code + _PAIR)


def test_socket_alone_and_nothing(host: Host) -> None:
    code = "from bertha_socket import monkey\nmonkey.patch_all(socket=False, subprocess=False)\n"
    code += "assert monkey.is_patched('libraries') and not monkey.is_patched('socket')\n"
    host.run([sys.executable, "-c", code + _PAIR], shim=False)
    assert not host.finish()  # libraries alone call through us, and none of them has a socket here


def test_datagrams_of_a_part_that_was_left_out(host: Host) -> None:
    host.set_policy('[[rule]]\nproto = "udp"\ndag = "prefer reliable()"\n')
    for choice, lines in (("socket=False", 0), ("libraries=False", 2)):
        code = f"from bertha_socket import monkey\nmonkey.patch_all({choice})\n"
        host.run([sys.executable, "-c", code + _DATAGRAM, free_port()], shim=False)
        log = host.connlog()
        assert len(log) == lines, choice
        # Over before anything was agreed, but attached.
        assert [c.raw.get("carried_by") for c in log] == ["native"] * lines, log


def test_more_parts_later(host: Host) -> None:
    code = "from bertha_socket import monkey\nmonkey.patch_libraries()\nassert monkey.patch_socket()\n"
    _both_carried(host, code + _PAIR)


def test_under_bertha_run_it_does_nothing(host: Host) -> None:
    code = "from bertha_socket import monkey\nassert not monkey.patch_all() and monkey.is_patched('socket')\n"
    code += "assert monkey.ledger() == ()\n"
    host.run([sys.executable, "-c", code + _PAIR])
    log = host.finish()
    assert_carried(log, _PYTHON, min_connections=1, role="client")
    assert len([c for c in log if c.role == "client"]) == 1


def test_disabled(host: Host) -> None:
    code = "from bertha_socket import monkey\nassert not monkey.patch_all() and not monkey.is_patched()\n"
    host.run([sys.executable, "-c", code + _PAIR], shim=False, env={"BERTHA_DISABLE": "1"})
    assert host.finish() == []


@pytest.mark.parametrize(("choice", "carried"), [("", True), ("subprocess=False", False)])
def test_children(host: Host, choice: str, carried: bool) -> None:
    code = f"from bertha_socket import monkey\nmonkey.patch_all({choice})\nimport subprocess, sys\n"
    code += "assert monkey.is_patched('socket')\n"
    code += f"subprocess.run([sys.executable, '-c', {_PAIR!r}], check=True)\n"
    host.run([sys.executable, "-c", code], shim=False)
    log = host.finish()
    assert bool(log) is carried
    for role in ("client", "server") if carried else ():
        assert_carried(log, _PYTHON, role=role)


def test_forked_children(host: Host) -> None:
    code = "from bertha_socket import monkey\nmonkey.patch_all()\nimport os\npid = os.fork()\n"
    code += "if pid:\n    assert os.waitpid(pid, 0)[1] == 0\n    raise SystemExit\n"
    _both_carried(host, code + _PAIR)


def test_what_came_too_late_is_told(host: Host) -> None:
    code = "import socket, warnings\nserver = socket.create_server(('127.0.0.1', 0))\n"
    code += "from bertha_socket import monkey\n"
    code += "with warnings.catch_warnings(record=True) as told:\n"
    code += "    warnings.simplefilter('always')\n    monkey.patch_all()\n"
    code += "print([(w.category.__name__, str(w.message)) for w in told])\n"
    text = host.run([sys.executable, "-c", code], shim=False)
    assert "MonkeyPatchWarning" in text and "listening socket" in text


def test_get_original(host: Host) -> None:
    code = "import ctypes\nfrom bertha_socket import monkey\nmonkey.patch_all()\n"
    code += "close, dup = monkey.get_original(['close', 'dup'])\n"
    code += "assert dup(-1) == -1 and ctypes.get_errno() == 9\n"
    code += "try:\n    monkey.get_original('qsort')\nexcept LookupError:\n    print('ok')\n"
    assert host.run([sys.executable, "-c", code], shim=False).strip() == "ok"


def test_command_runs_modules_code_and_scripts(host: Host) -> None:
    script = host.dir / "script.py"
    script.write_text("import sys\nprint(__name__, sys.argv[1:])\n")
    assert host.run([*_LATE, script, "-x", "y"], shim=False).strip() == "__main__ ['-x', 'y']"
    assert host.run([*_LATE, "-c", "import sys; print(sys.argv)", "z"], shim=False).strip() == "['-c', 'z']"
    assert "usage" in host.run([*_LATE, "-m", "json.tool", "--help"], shim=False)
    assert "--no-nonsense" in host.run([*_LATE, "--no-nonsense", script], shim=False, check=False)


@pytest.mark.parametrize("order", ["before", "after"])
def test_gevent(host: Host, order: str) -> None:
    if importlib.util.find_spec("gevent") is None:
        pytest.skip("gevent is not installed")
    patches = ["import gevent.monkey\ngevent.monkey.patch_all()\n"]
    patches.insert(
        0 if order == "before" else 1, "import bertha_socket.monkey\nbertha_socket.monkey.patch_all()\n"
    )
    _both_carried(host, "".join(patches) + _PAIR)
