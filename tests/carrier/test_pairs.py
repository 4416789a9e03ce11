"""The native carrier and the one in Python speak one wire: every pairing, every chunnel that both have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import bertha_socket
from bertha_socket import keys
from bertha_socket.chunnels import get
from tests.carrier.conftest import KEY, MakeCarrier
from tests.carrier.host import (
    MAYBE,
    PLAIN,
    PYTHON,
    READY,
    REFUSED,
    Carried,
    CarrierHost,
    exchange,
    plan_of,
    tcp_pair,
)
from tests.carrier.host import chunnel as in_python
from tests.carrier.test_carried import chunks, some_bytes

NATIVE = Path(bertha_socket.__file__).parent / "lib" / "bertha-carrier"
FRAMES = get("frame").implementations[0].probe() is None
pytestmark = pytest.mark.skipif(not NATIVE.exists(), reason="the native carrier is not built")
COMMANDS = {"native": (str(NATIVE),), "python": PYTHON}
ZSTD = in_python("compress", "zstd/1", "native", level=3)
LZ4 = in_python("compress", "lz4/1", "native")
TLS = in_python("encrypt", "tls1.3", "native")
FRAME = in_python("frame", "u32be/1", "native")
PLANS = {
    "zstd": plan_of(ZSTD),
    "lz4": plan_of(LZ4),
    "tls": plan_of(TLS),
    "zstd-tls": plan_of(ZSTD, TLS),
    "lz4-tls": plan_of(LZ4, TLS),
    **({"frame-lz4-tls": plan_of(FRAME, LZ4, TLS)} if FRAMES else {}),
    "tls-zstd": plan_of(TLS, ZSTD),
}
PAIRS = [("native", "python"), ("python", "native"), ("native", "native")]


@pytest.fixture(params=PAIRS, ids="-".join)
def mixed(
    request: pytest.FixtureRequest, make_carrier: MakeCarrier
) -> Iterator[tuple[CarrierHost, CarrierHost]]:
    """A client's carrier and a server's."""
    client, server = (make_carrier(KEY, command=COMMANDS[kind]) for kind in request.param)
    yield client, server
    client.close()
    server.close()


@pytest.mark.parametrize("name", PLANS)
def test_bytes_both_ways(mixed: tuple[CarrierHost, CarrierHost], name: str) -> None:
    carried = Carried(*mixed, PLANS[name])
    up, down = some_bytes(3_000_000, 1), some_bytes(3_000_000, 2)
    at_client, at_server = exchange(carried, up, down, chunks(11))
    assert at_server == up and at_client == down
    assert carried.client_status.state == carried.server_status.state == READY
    assert carried.client_status.chunnels == carried.server_status.chunnels
    carried.close()


@pytest.mark.parametrize("name", ["zstd", "tls"])
def test_a_refusal_is_told(mixed: tuple[CarrierHost, CarrierHost], name: str) -> None:
    mixed[1].judge = lambda listener, plan: "not with this listener"
    carried = Carried(*mixed, PLANS[name])
    carried.wait(REFUSED, REFUSED)
    assert "not with this listener" in carried.client_status.detail
    assert carried.server.recv(10) == b""
    carried.close()


@pytest.mark.parametrize("kinds", PAIRS, ids="-".join)
@pytest.mark.parametrize("name", ["zstd", "tls"])
@pytest.mark.parametrize(("at_client", "at_server"), [(None, 1), (1, None), (2, 1)])
def test_another_key_is_refused(
    make_carrier: MakeCarrier, kinds: tuple[str, str], name: str, at_client: int | None, at_server: int | None
) -> None:
    client, server = (
        make_carrier(bytes([k]) * 32 if k is not None else None, command=COMMANDS[kind])
        for k, kind in zip((at_client, at_server), kinds, strict=True)
    )
    carried = Carried(client, server, PLANS[name])
    carried.wait(REFUSED, REFUSED)
    assert carried.server.recv(10) == b""
    carried.close()
    client.close()
    server.close()


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_listener_without_secrets_any_more_has_everybodys(make_carrier: MakeCarrier, kind: str) -> None:
    """It had some of its own, and then has not: who has the cluster key is served, and nobody else."""
    server = make_carrier(KEY, command=COMMANDS[kind])
    server.context(7, keys.material(bytes(32)), bytes(32))
    server.context(7)
    for key, states in ((KEY, (READY, READY)), (None, (REFUSED, REFUSED))):
        client = make_carrier(key)
        carried = Carried(client, server, PLANS["zstd"])
        carried.wait(*states)
        carried.close()
        client.close()
    server.close()


@pytest.mark.parametrize("first", [b"GET / HTTP/1.0\r\n", b"\x16\x03\x01\x00\x03abc"])
def test_an_unaware_client_of_the_native_one(make_carrier: MakeCarrier, first: bytes) -> None:
    host = make_carrier(KEY, command=COMMANDS["native"])
    for mode, state in ((MAYBE, PLAIN), (1, REFUSED)):
        client, tcp = tcp_pair()
        with tcp, client:
            program, status = host.carry(tcp, mode=mode)
            with program:
                client.sendall(first)
                program.settimeout(20)
                assert program.recv(100) == (first if state == PLAIN else b"")
                assert status.state == state
    host.close()


@pytest.mark.parametrize("first", [b"", b"\x16\x03\x01"])
def test_a_client_that_only_looks(make_carrier: MakeCarrier, first: bytes) -> None:
    host = make_carrier(KEY, command=COMMANDS["native"])
    for mode, state in ((MAYBE, PLAIN), (1, REFUSED)):
        client, tcp = tcp_pair()
        with tcp, client:
            program, status = host.carry(tcp, mode=mode)
            with program:
                client.sendall(first)
                client.close()
                program.settimeout(5)  # less than the time that an agreement may take
                got = b""
                while data := program.recv(100):
                    got += data
                assert got == (first if state == PLAIN else b"")
                assert status.state == state
    host.close()


def test_a_server_that_speaks_first_through_the_native_one(make_carrier: MakeCarrier) -> None:
    host = make_carrier(KEY, command=COMMANDS["native"])
    client, tcp = tcp_pair()
    with tcp, client:
        program, status = host.carry(tcp, mode=MAYBE)
        with program:
            program.sendall(b"220 ready\r\n")
            client.settimeout(20)
            assert client.recv(100) == b"220 ready\r\n"
            assert status.state == PLAIN
    host.close()
