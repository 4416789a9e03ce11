"""Chunnels in Python beneath programs that are not: nginx, whose workers are another user, and an installed
package's, which no policy file brings."""

from __future__ import annotations

import pwd
import shutil
from pathlib import Path

import psutil
import pytest

from bertha_socket.agent.client import agent_status
from tests.chunnels.conftest import Pair, StartRedis
from tests.chunnels.test_authors import ROT, known
from tests.chunnels.test_programs import content, start_nginx
from tests.chunnels.test_redis import assert_through
from tests.conftest import MakeHost
from tests.harness import (
    Capture,
    Connection,
    Host,
    NamespaceTrio,
    assert_only_tls,
    connections,
    eventually,
    require_program,
)

pytestmark = [pytest.mark.program, pytest.mark.net]

_CURL = ("-sS", "--fail", "--max-time", "60")


@pytest.fixture(params=["key", "no key"])
def either(
    request: pytest.FixtureRequest, netns: NamespaceTrio, make_host: MakeHost, cluster_key: Path
) -> Pair:
    """Two hosts with a cluster key, or without."""
    key = cluster_key if request.param == "key" else None
    server = make_host(netns=netns.server, cluster_key=key)
    client = make_host(netns=netns.client, cluster_key=key)
    return Pair(server, client, netns.server.address, netns)


def _ran(found: list[Connection], kind: str) -> None:
    """All of them had that chunnel in Python, and no other implementation, and reached it over rings."""
    for connection in found:
        said = {c["type"]: c["implementation"] for c in connection.raw["chunnels"]}
        assert said[kind] == "python", connection
        assert connection.raw["carrier"] == "ring", connection.raw


def _fetched(pair: Pair, port: int) -> None:
    url = f"http://{pair.address}:{port}"
    curl = [require_program("curl"), *_CURL]
    for _ in range(3):
        assert pair.client.run([*curl, f"{url}/answer"], timeout=90) == "answer\n"
    got = pair.client.dir / "got"
    pair.client.run([*curl, "-o", got, f"{url}/twenty"], timeout=90)
    assert got.read_bytes() == content(20_000_000)


def test_thirty_lines_beneath_nginx(either: Pair) -> None:
    """The workers have changed their user: what their listener's owner brings runs for them."""
    known(either, "rot(by=5)", rot=f"{ROT}:Rot")
    nginx, port, _ = start_nginx(either.server, either.address)
    workers = eventually(lambda: psutil.Process(nginx.pid).children(), "nginx's workers")
    eventually(lambda: {w.uids().real for w in workers} == {pwd.getpwnam("nobody").pw_uid}, "their user")
    _fetched(either, port)
    whole = ["rot", "local_or_remote"]
    _ran(assert_through(either.client.finish(), "curl", whole, 4), "rot")
    either.server.stop(nginx)
    served = assert_through(either.server.finish(), "nginx", whole, 4)
    _ran(served, "rot")
    assert {c.pid for c in served} <= {w.pid for w in workers}


def test_thirty_lines_above_encrypt_beneath_nginx(pair: Pair, capture: Capture) -> None:
    known(pair, "rot(by=5) |> encrypt()", rot=f"{ROT}:Rot")
    nginx, port, _ = start_nginx(pair.server, pair.address)
    _fetched(pair, port)
    turned = bytes((b + 5) % 256 for b in b"answer\n")
    assert_only_tls(capture, port, at_least=20_000_000, connections=4, without=(b"answer\n", turned))
    whole = ["rot", "encrypt", "local_or_remote"]
    _ran(assert_through(pair.client.finish(), "curl", whole, 4), "rot")
    pair.server.stop(nginx)
    _ran(assert_through(pair.server.finish(), "nginx", whole, 4), "rot")


def test_what_rot_sends_is_turned(pair: Pair, capture: Capture) -> None:
    """So that the tests above are not about a chunnel that does nothing."""
    known(pair, "rot(by=5)", rot=f"{ROT}:Rot")
    nginx, port, _ = start_nginx(pair.server, pair.address)
    command = [require_program("curl"), *_CURL, f"http://{pair.address}:{port}/answer"]
    assert pair.client.run(command, timeout=90) == "answer\n"
    packets = capture.stop()
    assert b"answer\n" not in packets
    assert bytes((b + 5) % 256 for b in b"answer\n") in packets
    pair.server.stop(nginx)
    assert_through(pair.server.finish(), "nginx", ["rot", "local_or_remote"])


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with a chunnel, where the agents that are started from now on find modules."""
    place = tmp_path / "site"
    place.mkdir()
    shutil.copy(ROT, place / "their_rot.py")
    info = place / "their_rot-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-rot\nVersion: 1\n")
    (info / "RECORD").write_text("their_rot.py,,\n")
    (info / "entry_points.txt").write_text("[bertha_socket.chunnels]\nrot = their_rot:Rot\n")
    monkeypatch.setenv("PYTHONPATH", str(place))
    return place


@pytest.mark.parametrize(
    ("dag", "types"),
    [("rot(by=7)", ["rot"]), ("compress() |> rot() |> encrypt()", ["compress", "rot", "encrypt"])],
)
def test_an_installed_packages_chunnel(
    installed: Path, pair: Pair, start_redis: StartRedis, dag: str, types: list[str]
) -> None:
    """Its entry point is enough: neither policy brings it, and redis is no Python program."""
    pair.dictate(dag)
    _, port = start_redis(pair.server, pair.address)
    cli = [require_program("redis-cli"), "-h", pair.address, "-p", str(port)]
    assert pair.client.run([*cli, "set", "key", "words"]).strip() == "OK"
    assert pair.client.run([*cli, "get", "key"]).strip() == "words"
    whole = [*types, "local_or_remote"]
    _ran(assert_through(pair.client.finish(), "redis-cli", whole, 2), "rot")
    _ran(assert_through(pair.server.finish(), "redis-server", whole, 2), "rot")
    for host in (pair.client, pair.server):
        assert _carriers(host) == {"authors"}, "it ran in a process of its own"


def _carriers(host: Host) -> set[str]:
    """The kinds of carriers that a host's agent has."""
    return {carrier["kind"] for carrier in agent_status(str(host.agent_path))["agent"]["carriers"]}


def test_without_the_package_it_is_refused(pair: Pair, start_redis: StartRedis) -> None:
    """The same rule on hosts that do not have it: no connection, and the type is named."""
    pair.dictate("rot()")
    _, port = start_redis(pair.server, pair.address)
    command = [require_program("redis-cli"), "-h", pair.address, "-p", str(port), "ping"]
    assert "PONG" not in pair.client.run(command, check=False)
    found = connections(pair.client.finish(), program="redis-cli")
    assert found and all("rot cannot be had" in (c.reason or "") and c.rx_bytes == 0 for c in found), found
