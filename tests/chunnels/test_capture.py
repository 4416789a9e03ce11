"""The captures that other tests look at: they catch what crosses, and what is not TLS is seen."""

from __future__ import annotations

import random
import ssl
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chunnels.conftest import Pair, StartRedis
from tests.chunnels.test_programs import start_nginx
from tests.chunnels.test_redis import assert_through
from tests.harness import Capture, assert_only_tls, eventually, free_port, require_program

pytestmark = [pytest.mark.program, pytest.mark.net]

_PLAIN = "words-that-cross-the-wire"

# TLS of an older version, or with something plain behind it: ADDRESS PORT VERSION PLAIN CERTIFICATE.
_SERVER = """
import socket, ssl, sys
address, port, version, plain, certificate = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate)
context.maximum_version = ssl.TLSVersion[version]
with socket.create_server((address, int(port))) as listener:
    sock, _ = listener.accept()
    with context.wrap_socket(sock, server_side=True) as tls:
        tls.sendall(tls.recv(1000))
        sock = socket.socket(fileno=tls.unwrap().detach())
    with sock:
        sock.sendall(plain.encode())
"""
_CLIENT = """
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
with context.wrap_socket(socket.create_connection((sys.argv[1], int(sys.argv[2])), 30)) as tls:
    tls.sendall(b"x" * 500)
    assert tls.recv(1000)
    sock = socket.socket(fileno=tls.unwrap().detach())
with sock:
    sock.setblocking(True)
    print(sock.recv(100).decode() or "nothing")
"""


def test_what_crosses_plain_is_seen(pair: Pair, start_redis: StartRedis, capture: Capture) -> None:
    """Without a policy redis is plain between hosts."""
    _, port = start_redis(pair.server, pair.address)
    command = [require_program("redis-cli"), "-h", pair.address, "-p", str(port), "set", "key", _PLAIN]
    assert pair.client.run(command).strip() == "OK"
    assert _PLAIN.encode() in capture.stop()
    with pytest.raises(AssertionError, match="crosses the network"):
        assert_only_tls(capture, port, at_least=1, without=[_PLAIN.encode()])
    with pytest.raises(AssertionError, match=r"outside of TLS|no type of TLS"):
        assert_only_tls(capture, port, at_least=0)


def test_nothing_is_not_enough(pair: Pair, start_redis: StartRedis, capture: Capture) -> None:
    pair.dictate("encrypt()")
    _, port = start_redis(pair.server, pair.address)
    other = free_port()
    command = [require_program("redis-cli"), "-h", pair.address, "-p", str(port), "set", "key", _PLAIN]
    assert pair.client.run(command).strip() == "OK"
    assert_only_tls(capture, port, at_least=20, without=[_PLAIN.encode()])
    with pytest.raises(AssertionError, match="expected 2"):
        assert_only_tls(capture, port, at_least=20, connections=2)
    with pytest.raises(AssertionError, match="expected 100000"):
        assert_only_tls(capture, port, at_least=100_000)
    with pytest.raises(AssertionError, match="0 connections"):
        assert_only_tls(capture, other, at_least=0)
    assert_through(pair.client.finish(), "redis-cli", ["encrypt", "local_or_remote"])


@pytest.mark.parametrize(
    ("version", "plain", "said"),
    [("TLSv1_2", "", "is TLS"), ("TLSv1_3", _PLAIN, "outside of TLS"), ("TLSv1_3", "", None)],
)
def test_almost_tls(
    pair: Pair, capture: Capture, tmp_path: Path, version: str, plain: str, said: str | None
) -> None:
    certificate, port = tmp_path / "certificate.pem", free_port()
    words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    words += ["-subj", "/CN=x", "-days", "2", "-keyout", str(tmp_path / "key"), "-out", str(certificate)]
    subprocess.run([require_program("openssl"), *words], check=True, capture_output=True, timeout=30)
    certificate.write_text(certificate.read_text() + (tmp_path / "key").read_text())
    assert version in ssl.TLSVersion.__members__
    command = [sys.executable, "-c", _SERVER, pair.address, str(port), version, plain, certificate]
    server = pair.server.spawn(command, shim=False)
    pair.server.wait_port(server, port, listed=False)
    client = [sys.executable, "-c", _CLIENT, pair.address, str(port)]
    assert pair.client.run(client, shim=False, timeout=60).strip() == (plain or "nothing")
    eventually(lambda: not server.running, "the server's end")
    if said is None:
        assert_only_tls(capture, port, at_least=1000)
    else:
        with pytest.raises(AssertionError, match=said):
            assert_only_tls(capture, port, at_least=1000)


def _blocks(data: bytes) -> list[tuple[int, bytes]]:
    """Type and whole of each block of a pcapng file."""
    found, at = [], 0
    while at < len(data):
        kind, size = struct.unpack_from("<II", data, at)
        found.append((kind, data[at : at + size]))
        at += size
    return found


@pytest.mark.parametrize("how", ["late", "again"])
def test_order_does_not_matter(pair: Pair, capture: Capture, how: str) -> None:
    """Segments that come after later ones, and segments sent again, are no payload outside of TLS."""
    pair.dictate("encrypt()")
    _, port, _ = start_nginx(pair.server, pair.address)
    command = [require_program("curl"), "-sS", "--fail", "-o", pair.client.dir / "got"]
    pair.client.run([*command, f"http://{pair.address}:{port}/twenty"], timeout=90)
    capture.stop()
    blocks = _blocks(capture.path.read_bytes())
    packets = [whole for kind, whole in blocks if kind == 6]
    rest = [whole for kind, whole in blocks if kind in (1, 0x0A0D0D0A)]
    numbers = random.Random(1)
    for _ in range(30):
        at = numbers.randrange(60, len(packets) - 60)
        packets.insert(at + numbers.randrange(1, 20), packets.pop(at) if how == "late" else packets[at])
    capture.path.write_bytes(b"".join(rest + packets))
    assert_only_tls(capture, port, at_least=20_000_000)
    assert_through(pair.client.finish(), "curl", ["encrypt", "local_or_remote"])
