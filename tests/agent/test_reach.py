"""Whom an agent asks, and on which port."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertha_socket.agent import addresses, reach


@pytest.mark.parametrize(
    ("address", "asked"),
    [
        ("10.1.2.3", True),
        ("172.16.0.1", True),
        ("172.32.0.1", False),
        ("192.168.255.255", True),
        ("169.254.1.1", True),
        ("fd00::1", True),
        ("fe80::1", True),
        ("::ffff:10.0.0.1", True),
        ("8.8.8.8", False),
        ("2001:db8::1", False),
        ("127.0.0.1", False),
        ("::1", False),
        ("0.0.0.0", False),
        ("::", False),
    ],
)
def test_the_internet_at_large_is_not_asked(address: str, asked: bool) -> None:
    assert (addresses.from_text(address) in reach.from_environment({})) is asked


def test_networks_may_be_given() -> None:
    given = reach.from_environment({"BERTHA_AGENT_PEERS": "198.51.100.0/24, 2001:db8::/32"})
    assert addresses.from_text("198.51.100.7") in given
    assert addresses.from_text("2001:db8::7") in given
    assert addresses.from_text("10.0.0.1") not in given
    assert addresses.from_text("127.0.0.1") not in reach.from_environment({"BERTHA_AGENT_PEERS": "0.0.0.0/0"})
    assert addresses.from_text("10.0.0.1") not in reach.from_environment({"BERTHA_AGENT_PEERS": "none"})


@given(st.text(max_size=40))
def test_anything_as_networks(text: str) -> None:
    try:
        reach.from_environment({"BERTHA_AGENT_PEERS": text})
    except ValueError as error:
        assert str(error).startswith("BERTHA_AGENT_PEERS: ")  # noqa: PT017


@pytest.mark.parametrize("text", ["-1", "65536", "x", "7277 ", "٣"])
def test_no_port(text: str) -> None:
    with pytest.raises(ValueError, match="BERTHA_AGENT_PORT"):
        reach.port({"BERTHA_AGENT_PORT": text})


def test_ports() -> None:
    assert reach.port({}) == 7277
    assert reach.port({"BERTHA_AGENT_PORT": "0"}) == 0
    assert isinstance(reach.open_port(0), str)


def test_a_port_that_is_taken() -> None:
    with socket.socket(socket.AF_INET6) as other:
        other.bind(("::", 0))
        other.listen()
        problem = reach.open_port(other.getsockname()[1])
        assert isinstance(problem, str) and "in use" in problem and "BERTHA_AGENT_PORT" in problem


def test_both_families_on_one_socket() -> None:
    sock = reach.open_port(_free_port())
    assert isinstance(sock, socket.socket)
    with sock:
        port = sock.getsockname()[1]
        for host in ("127.0.0.1", "::1"):
            with socket.create_connection((host, port), 10):
                pass


def _free_port() -> int:
    with socket.socket(socket.AF_INET6) as sock:
        sock.bind(("::", 0))
        return int(sock.getsockname()[1])
