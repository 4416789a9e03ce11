"""`encrypt(cert=..., key=..., ca=...)`: certificates of one's own, between two hosts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from bertha_socket import keys
from tests.chunnels.conftest import Pair, StartRedis
from tests.chunnels.test_redis import assert_through
from tests.conftest import MakeHost
from tests.harness import (
    Capture,
    Connection,
    Host,
    NamespaceTrio,
    assert_only_tls,
    connections,
    free_port,
    require_program,
)

pytestmark = [pytest.mark.program, pytest.mark.net]

_SECRET = "a-secret-that-must-not-cross-the-wire"
_WHOLE = ["encrypt", "local_or_remote"]


class Certificate(NamedTuple):
    """Files of PEM texts."""

    cert: Path
    key: Path
    ca: Path

    def dag(self, *without: str) -> str:
        """`encrypt` with them."""
        given = [f'{name}="{path}"' for name, path in self._asdict().items() if name not in without]
        return f"encrypt({', '.join(given)})"


def _openssl(*words: str | Path) -> None:
    command = [require_program("openssl"), *map(str, words)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def _new_key(path: Path) -> Path:
    _openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-out", path)
    return path


class Authority:
    """A CA and what it has signed."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._dir = directory
        self.cert, self._key = directory / "ca.pem", _new_key(directory / "ca.key")
        subject = ("-subj", f"/CN=authority {directory.name}", "-days", "2")
        _openssl("req", "-x509", "-new", "-key", self._key, *subject, "-out", self.cert)

    def certificate(self, name: str) -> Certificate:
        """One for a host of that name."""
        cert, request = self._dir / f"{name}.pem", self._dir / f"{name}.csr"
        key = _new_key(self._dir / f"{name}.key")
        _openssl("req", "-new", "-key", key, "-subj", f"/CN={name}", "-out", request)
        by = ("-CA", self.cert, "-CAkey", self._key, "-CAcreateserial", "-days", "2")
        _openssl("x509", "-req", "-in", request, *by, "-out", cert)
        return Certificate(cert, key, self.cert)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "one")


@pytest.fixture
def keyless(netns: NamespaceTrio, make_host: MakeHost) -> Pair:
    """Two hosts without a cluster key."""
    server, client = make_host(netns=netns.server), make_host(netns=netns.client)
    return Pair(server, client, netns.server.address, netns)


def _rule(host: Host, side: str, dag: str) -> None:
    host.set_policy(f"[[rule]]\nside = '{side}'\ndag = '{dag}'\n")


def _ask(pair: Pair, port: int, *words: str, check: bool = True) -> str:
    command = [require_program("redis-cli"), "-h", pair.address, "-p", str(port), *words]
    return pair.client.run(command, check=check, timeout=60).strip()


_UNKNOWN, _ALERT = "encrypt: certificate verify failed", "encrypt: tlsv1 alert unknown ca"


def _assert_refused(pair: Pair, port: int, at_client: str, at_server: str | None) -> None:
    """The client was answered nothing; both logs say that no byte was passed on, and why.  `at_server`: None
    where nothing gets that far."""
    assert "OK" not in _ask(pair, port, "set", "key", _SECRET, check=False)
    for host, program, why in (
        (pair.client, "redis-cli", at_client),
        (pair.server, "redis-server", at_server),
    ):
        found = connections(host.finish(), program=program)
        assert found or why is None, f"{program}'s log has no line"
        for connection in found:
            _nothing_passed(connection)
            assert why is None or why in (connection.reason or ""), connection


def _nothing_passed(connection: Connection) -> None:
    assert not connection.plain, connection
    assert connection.rx_bytes == 0, connection


def test_certificates_of_ones_own(
    keyless: Pair, start_redis: StartRedis, authority: Authority, tmp_path: Path
) -> None:
    """Each end has one of the same authority; there is no cluster key."""
    _rule(keyless.server, "server", authority.certificate("server").dag())
    _rule(keyless.client, "client", authority.certificate("client").dag())
    capture = Capture(keyless.netns.client, keyless.address, tmp_path / "veth.pcapng")
    _, port = start_redis(keyless.server, keyless.address)
    assert _ask(keyless, port, "set", "key", _SECRET * 30) == "OK"
    assert _ask(keyless, port, "get", "key") == _SECRET * 30
    assert_only_tls(capture, port, at_least=2000, connections=2, without=[_SECRET.encode()])
    assert_through(keyless.client.finish(), "redis-cli", _WHOLE, 2)
    assert_through(keyless.server.finish(), "redis-server", _WHOLE, 2)


def test_beside_a_cluster_key(pair: Pair, start_redis: StartRedis, authority: Authority) -> None:
    """The key is for what the agents say; what rules name is for the connection."""
    _rule(pair.server, "server", authority.certificate("server").dag())
    _rule(pair.client, "client", authority.certificate("client").dag())
    _, port = start_redis(pair.server, pair.address)
    assert _ask(pair, port, "set", "key", _SECRET) == "OK"
    assert_through(pair.client.finish(), "redis-cli", _WHOLE)
    assert_through(pair.server.finish(), "redis-server", _WHOLE)


def test_without_an_authority_it_is_this_very_certificate(
    keyless: Pair, start_redis: StartRedis, authority: Authority
) -> None:
    both = authority.certificate("both")
    same = both._replace(cert=_self_signed(both))
    _rule(keyless.server, "server", same.dag("ca"))
    _rule(keyless.client, "client", same.dag("ca"))
    _, port = start_redis(keyless.server, keyless.address)
    assert _ask(keyless, port, "set", "key", _SECRET) == "OK"
    assert_through(keyless.client.finish(), "redis-cli", _WHOLE)


_BY_NEW = """
import sys
import bertha_socket
with bertha_socket.new("client", sys.argv[3]).connect((sys.argv[1], int(sys.argv[2]))) as connection:
    connection.send(b"PING\\r\\n")
    print(connection.recv(20).decode())
"""


def test_a_client_by_new(keyless: Pair, start_redis: StartRedis, authority: Authority) -> None:
    """It reads what its own DAG names; the server is redis under bertha-run, with its carrier."""
    _rule(keyless.server, "server", authority.certificate("server").dag())
    _, port = start_redis(keyless.server, keyless.address)
    command = [sys.executable, "-c", _BY_NEW, keyless.address, port, authority.certificate("client").dag()]
    assert keyless.client.run(command, shim=False).strip() == "+PONG"
    assert_through(keyless.client.finish(), Path(sys.executable).name, _WHOLE)
    assert_through(keyless.server.finish(), "redis-server", _WHOLE)


_WORKER = """
import os, socket, sys
doors = [socket.create_server((sys.argv[1], int(port))) for port in sys.argv[2:]]
if os.fork() > 0:
    print("ready", flush=True)
    os.wait()
else:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    accepted = [door.accept()[0] for door in doors]
    for connection in accepted:
        connection.sendall(connection.recv(100).upper())
        connection.close()
"""
_CLIENT = """
import socket, sys
made = [socket.create_connection((sys.argv[1], int(port))) for port in sys.argv[2:]]
for connection in made:
    connection.sendall(b"hello")
print(*(connection.recv(100).decode() for connection in made))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its user")
def test_a_worker_that_has_changed_its_user(keyless: Pair, authority: Authority) -> None:
    """It has shown the agent both sockets before it takes a connection of each, however soon one comes after
    the other."""
    _rule(keyless.server, "server", authority.certificate("server").dag())
    _rule(keyless.client, "client", authority.certificate("client").dag())
    keyless.server.open_to_other_users()
    ports = [str(free_port()), str(free_port())]
    server = keyless.server.spawn([sys.executable, "-c", _WORKER, keyless.address, *ports])
    server.wait_text("ready")
    said = keyless.client.run([sys.executable, "-c", _CLIENT, keyless.address, *ports], timeout=60)
    assert said.strip() == "HELLO HELLO"
    server.wait()
    assert_through(keyless.client.finish(), Path(sys.executable).name, _WHOLE, 2)
    assert_through(keyless.server.finish(), Path(sys.executable).name, _WHOLE, 2)


def _self_signed(of: Certificate) -> Path:
    """A certificate that its own key has signed."""
    cert = of.cert.with_suffix(".self.pem")
    _openssl("req", "-x509", "-new", "-key", of.key, "-subj", "/CN=both", "-days", "2", "-out", cert)
    return cert


@pytest.mark.parametrize("wrong", ["client", "server"])
def test_another_authority_is_refused(
    keyless: Pair, start_redis: StartRedis, authority: Authority, tmp_path: Path, wrong: str
) -> None:
    """Whichever end has the certificate of an authority that the other does not know."""
    other = Authority(tmp_path / "other")
    for side, host in (("server", keyless.server), ("client", keyless.client)):
        own = authority.certificate(side)
        if side == wrong:
            own = other.certificate(side)._replace(ca=authority.cert)
        _rule(host, side, own.dag())
    _, port = start_redis(keyless.server, keyless.address)
    reasons = (_UNKNOWN, _ALERT) if wrong == "server" else (_ALERT, _UNKNOWN)
    _assert_refused(keyless, port, *reasons)


def test_the_clusters_certificate_is_no_certificate_of_that_authority(
    pair: Pair, start_redis: StartRedis, authority: Authority
) -> None:
    """The server's rule names certificates; the client has the cluster key, and no rule."""
    _rule(pair.server, "server", authority.certificate("server").dag())
    _, port = start_redis(pair.server, pair.address)
    _assert_refused(pair, port, _UNKNOWN, _ALERT)


def test_a_client_that_has_neither(keyless: Pair, start_redis: StartRedis, authority: Authority) -> None:
    """No certificate and no key: nothing to run encrypt with, and the reason says what is missing."""
    _rule(keyless.server, "server", authority.certificate("server").dag())
    _, port = start_redis(keyless.server, keyless.address)
    _assert_refused(keyless, port, keys.NO_KEY, None)
