"""The Python standard library's servers and clients: each of its ways to use a socket, both ends shimmed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bertha_socket.reasons import Reason, text_of
from tests.harness import (
    Host,
    Program,
    assert_balanced,
    assert_carried,
    eventually,
    free_port,
    require_program,
)

pytestmark = pytest.mark.program

_CLIENTS = Path(__file__).parent / "clients"
_PYTHON = Path(sys.executable).name


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for localhost, and its key."""
    directory = tmp_path_factory.mktemp("certificate")
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    openssl = require_program("openssl")
    words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    words += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    words += ["-days", "2", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([openssl, *words], check=True, capture_output=True, timeout=30)
    return certificate, key


def _serve(host: Host, kind: str, *more: str | Path) -> tuple[Program, int]:
    port = free_port()
    command = [sys.executable, _CLIENTS / "servers.py", kind, str(port), *more]
    return host.server(command, port, label=kind), port


def _check(host: Host, port: int, count: int, *, all_read: bool = True) -> None:
    """Both ends of `count` connections are in the log, on shared memory, with equal counts if `all_read`."""
    if not host.rehearse:
        eventually(lambda: len(host.connlog()) >= 2 * count, f"{2 * count} lines in the connection log")
    log = host.finish()
    assert_carried(log, _PYTHON, min_connections=count, role="client", port=port)
    assert_carried(log, _PYTHON, min_connections=count, role="server", port=port)
    if all_read:
        assert_balanced(log, port=port, min_pairs=count)


def _check_handed_on(host: Host, port: int, count: int, least: int) -> None:
    """For a server that hands each connection to another process at once: one that has not been tied by then
    stays plain, with its reason, all but `least`; the client has checked the bytes (docs/users/limits.md)."""
    if not host.rehearse:
        eventually(lambda: len(host.connlog()) >= 2 * count, f"{2 * count} lines in the connection log")
    log = host.finish()
    late = {text_of(Reason.INHERITED), text_of(Reason.NOT_ATTACHED)}
    assert {c.reason for c in log if c.plain} <= late, log
    assert_balanced([c for c in log if not c.plain], port=port, min_pairs=least)


@pytest.mark.parametrize(
    "kind", ["threading", "forking", "selectors", "blocking", "asyncio", "inheriting", "accepting-children"]
)
@pytest.mark.parametrize(("connections", "lines", "size"), [(1, 200, 40), (12, 20, 3000), (2, 2, 2_000_000)])
def test_lines(host: Host, kind: str, connections: int, lines: int, size: int) -> None:
    """A blocking client in threads against every kind of server."""
    _, port = _serve(host, kind)
    numbers = [str(connections), str(lines), str(size)]
    assert host.run([sys.executable, _CLIENTS / "line_client.py", str(port), *numbers]).strip() == "ok"
    if kind == "forking":
        _check_handed_on(host, port, connections, max(1, connections * 9 // 10))
    elif kind == "inheriting":  # a client process asks its agent first, and comes too late with that one
        _check_handed_on(host, port, connections, (connections - 1) // 2)
    else:
        _check(host, port, connections)


@pytest.mark.parametrize("kind", ["asyncio", "threading"])
def test_asyncio_client(host: Host, kind: str) -> None:
    _, port = _serve(host, kind)
    command = [sys.executable, _CLIENTS / "asyncio_client.py", str(port), "60", "10", "2000"]
    assert host.run(command).strip() == "ok"
    _check(host, port, 60)


@pytest.mark.parametrize("client", ["line_client.py", "asyncio_client.py"])
@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
@pytest.mark.parametrize(("connections", "lines", "size"), [(5, 40, 500), (2, 2, 1_500_000)])
def test_tls(
    host: Host,
    certificate: tuple[Path, Path],
    kind: str,
    client: str,
    connections: int,
    lines: int,
    size: int,
) -> None:
    """OpenSSL reads and writes the descriptor itself (blocking), or Python hands it bytes (asyncio)."""
    _, port = _serve(host, kind, *certificate)
    numbers = [str(connections), str(lines), str(size)]
    command = [sys.executable, _CLIENTS / client, str(port), *numbers, certificate[0]]
    assert host.run(command).strip() == "ok"
    _check(host, port, connections)


@pytest.mark.parametrize("kind", ["http", "http-forking"])
def test_http(host: Host, kind: str) -> None:
    _, port = _serve(host, kind)
    assert host.run([sys.executable, _CLIENTS / "http_client.py", str(port)]).strip() == "ok"
    _check(host, port, 11)


def test_https(host: Host, certificate: tuple[Path, Path]) -> None:
    _, port = _serve(host, "http", *certificate)
    command = [sys.executable, _CLIENTS / "http_client.py", str(port), certificate[0]]
    assert host.run(command).strip() == "ok"
    # http.client closes without waiting for the server's last TLS record.
    _check(host, port, 11, all_read=False)


def test_xmlrpc(host: Host) -> None:
    _, port = _serve(host, "xmlrpc")
    assert host.run([sys.executable, _CLIENTS / "xmlrpc_client.py", str(port)]).strip() == "ok"
    _check(host, port, 1)


def test_directory_listing_server(host: Host) -> None:
    """`python -m http.server`, as people start it, with a file of 5 MB."""
    port = free_port()
    (host.dir / "files").mkdir()
    (host.dir / "files" / "big").write_bytes(b"0123456789" * 500_000)
    words = ["-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(host.dir / "files")]
    host.server([sys.executable, *words], port)
    code = "import sys, urllib.request; data = urllib.request.urlopen(sys.argv[1], timeout=10).read();"
    code += "print(data == b'0123456789' * 500_000)"
    command = [sys.executable, "-I", "-S", "-c", code, f"http://127.0.0.1:{port}/big"]
    assert host.run(command).strip() == "True"
    _check(host, port, 1)
