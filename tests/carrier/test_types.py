"""Chunnel types through carriers, beyond compress and encrypt: at both ends, at one, or misfit."""

from __future__ import annotations

import dataclasses
import random
import socket
import subprocess
import time
from pathlib import Path

import pytest

from bertha_socket.dag import Value, parse
from bertha_socket.expressions import parse_expression
from bertha_socket.negotiation.plan import PlannedChunnel
from tests.carrier.conftest import MakeCarrier
from tests.carrier.host import READY, REFUSED, Carried, CarrierHost, chunnel, exchange, plan_of
from tests.carrier.test_carried import chunks, some_bytes
from tests.harness import require_program

TLS = chunnel("encrypt", "tls1.3")


def lone(kind: str, side: str = "client", **args: Value) -> PlannedChunnel:
    """One that a single end runs."""
    at_client = side == "client"
    return PlannedChunnel(
        kind,
        tuple(sorted(args.items())),
        "none",
        "python" if at_client else None,
        None if at_client else "python",
        "host" if at_client else None,
        None if at_client else "host",
    )


PLANS = {
    "frame": plan_of(chunnel("frame", "u32be/1")),
    "frame-tls": plan_of(chunnel("frame", "u32be/1"), TLS),
    "http2": plan_of(chunnel("http2", "h2")),
    "http2-tls": plan_of(chunnel("http2", "h2"), TLS),
    "count-tls": plan_of(lone("count", name="n"), TLS),
    "tls-count": plan_of(TLS, lone("count", "server")),
    "limit-zstd": plan_of(lone("limit", rate=20_000_000), chunnel("compress", "zstd/1")),
    "tls-limit": plan_of(TLS, lone("limit", "server", rate=20_000_000, direction="receive")),
}


@pytest.mark.parametrize("name", PLANS)
def test_bytes_both_ways(python_hosts: tuple[CarrierHost, CarrierHost], name: str) -> None:
    carried = Carried(*python_hosts, PLANS[name])
    up, down = some_bytes(1_000_000, 1), some_bytes(1_000_000, 2)
    at_client, at_server = exchange(carried, up, down, chunks(7))
    assert at_server == up and at_client == down
    carried.close()


@pytest.mark.parametrize(
    ("plan", "word"),
    [
        (plan_of(chunnel("serialize", "msgpack/1")), "serialize"),
        (plan_of(chunnel("reliable", "brel/1")), "reliable"),
        (plan_of(chunnel("compress", "zstd/2")), "zstd/2"),
        (plan_of(chunnel("compress", "zstd/1", level=99)), "level"),
        (plan_of(chunnel("limit", "none")), "rate"),
    ],
)
def test_what_does_not_fit_is_refused(
    python_hosts: tuple[CarrierHost, CarrierHost], plan: bytes, word: str
) -> None:
    carried = Carried(*python_hosts, plan)
    carried.client_status.wait(REFUSED)
    assert word in carried.client_status.detail
    assert carried.client.recv(10) == b""
    carried.close()


def test_counts_are_logged(make_carrier: MakeCarrier) -> None:
    client, server = make_carrier(env={"BERTHA_LOG": "info"}), make_carrier()
    carried = Carried(client, server, plan_of(lone("count", name="app"), TLS))
    carried.wait(READY, READY)
    carried.client.sendall(b"12345")
    assert carried.server.recv(10) == b"12345"
    carried.close()
    log = client.close()
    assert "app.sent=1 app.sent_bytes=5" in log
    server.close()


@pytest.mark.program
def test_a_mirror_is_what_tshark_reads(python_hosts: tuple[CarrierHost, CarrierHost], tmp_path: Path) -> None:
    tshark = require_program("tshark")
    copy = tmp_path / "copy.pcap"
    for _ in range(2):  # the second one is appended
        carried = Carried(*python_hosts, plan_of(lone("mirror", to=str(copy)), TLS))
        carried.wait(READY, READY)
        carried.client.sendall(b"question")
        assert carried.server.recv(10) == b"question"
        carried.server.sendall(b"answer")
        assert carried.client.recv(10) == b"answer"
        carried.close()
    fields = ["-T", "fields", "-e", "tcp.payload"]
    found = subprocess.run(
        [tshark, "-r", str(copy), "-Y", "tcp", *fields],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert [bytes.fromhex(x) for x in found.stdout.split()] == [b"question", b"answer"] * 2


def test_a_mirror_to_another_place(python_hosts: tuple[CarrierHost, CarrierHost]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as place:
        to = f"127.0.0.1:{place.getsockname()[1]}"
        carried = Carried(*python_hosts, plan_of(lone("mirror", to=to, direction="send")))
        carried.wait(READY, READY)
        place.settimeout(20)
        copy, _ = place.accept()
        carried.client.sendall(b"first words")
        assert carried.server.recv(20) == b"first words"
        carried.client.sendall(b"second words")
        assert carried.server.recv(20) == b"second words"
        carried.close()
        got = b""
        copy.settimeout(20)
        with copy:
            while part := copy.recv(65536):
                got += part
    assert got.startswith(b"\xd4\xc3\xb2\xa1")
    assert b"first words" in got and b"second words" in got


def test_the_rate_is_kept(python_hosts: tuple[CarrierHost, CarrierHost]) -> None:
    """Not how long it takes, but that it cannot have been faster."""
    carried = Carried(*python_hosts, plan_of(lone("limit", rate=1_000_000, burst=10_000, direction="send")))
    carried.wait(READY, READY)
    data = random.Random(1).randbytes(300_000)
    start = time.monotonic()
    _, at_server = exchange(carried, data, b"", chunks(3))
    assert at_server == data
    # One read of 64 KiB may overdraw the bucket.
    assert time.monotonic() - start > (300_000 - 10_000 - 65_536) / 1_000_000
    carried.close()


def _branch(*inner: PlannedChunnel | None) -> bytes:
    args: tuple[tuple[str, Value], ...] = (
        ("by", parse_expression("payload[0] % 2")),
        (
            "choices",
            tuple(parse(t) for t in ("compress(level=1) |> frame()", "prefer compress() |> frame()")),
        ),
    )
    return plan_of(
        chunnel("frame", "u32be/1"),
        dataclasses.replace(chunnel("branch", "branch/1"), args=args, inner=inner),
    )


def test_branches_run_as_planned(python_hosts: tuple[CarrierHost, CarrierHost]) -> None:
    """One choice with a wire that is not its type's first, the other without what could not be had."""
    frame = chunnel("frame", "u32be/1")
    plan = _branch(chunnel("compress", "lz4/1", algorithm="lz4"), frame, None, frame)
    carried = Carried(*python_hosts, plan)
    up, down = some_bytes(300_000, 1), some_bytes(300_000, 2)
    at_client, at_server = exchange(carried, up, down, chunks(7))
    assert at_server == up and at_client == down
    carried.close()


def test_a_branch_whose_choices_are_not_planned_is_refused(
    python_hosts: tuple[CarrierHost, CarrierHost],
) -> None:
    carried = Carried(*python_hosts, _branch())
    carried.client_status.wait(REFUSED)
    assert "not what is planned" in carried.client_status.detail
    carried.close()
