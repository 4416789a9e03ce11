"""Two hosts: namespaces joined by a veth, an agent in each, one cluster key."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import MakeHost
from tests.harness import Capture, Host, NamespaceTrio, Program, free_port, require_program

StartRedis = Callable[..., tuple[Program, int]]


class Pair(NamedTuple):
    """`server` and `client` are hosts; `address` is the server's."""

    server: Host
    client: Host
    address: str
    netns: NamespaceTrio

    def dictate(self, dag: str, **rule: object) -> None:
        """The server's policy, and nothing for the client."""
        lines = ["[[rule]]", 'side = "server"', f'dag = "{dag}"']
        lines += [f"{key} = {value!r}".replace("'", '"') for key, value in rule.items()]
        self.server.set_policy("\n".join(lines) + "\n")


@pytest.fixture
def cluster_key(tmp_path: Path) -> Path:
    """A file with 32 random bytes that only its owner reads."""
    path = tmp_path / "cluster.key"
    path.touch(mode=0o600)
    path.write_bytes(os.urandom(32))
    return path


@pytest.fixture
def pair(netns: NamespaceTrio, make_host: MakeHost, cluster_key: Path) -> Pair:
    """Both hosts have the key."""
    server = make_host(netns=netns.server, cluster_key=cluster_key)
    client = make_host(netns=netns.client, cluster_key=cluster_key)
    return Pair(server, client, netns.server.address, netns)


@pytest.fixture
def start_redis() -> StartRedis:
    """`start_redis(host, address)`: the running server and its port."""

    def start(
        host: Host,
        address: str,
        *,
        shim: bool = True,
        options: tuple[str, ...] = ("--require",),
        listed: bool = True,
    ) -> tuple[Program, int]:
        port = free_port()
        command = [require_program("redis-server"), "--port", str(port), "--bind", address]
        command += ["--dir", str(host.dir), "--save", "", "--appendonly", "no", "--protected-mode", "no"]
        program = host.spawn(command, shim=shim, run_options=options)
        host.wait_port(program, port, listed=listed)
        return program, port

    return start


@pytest.fixture
def capture(pair: Pair, tmp_path: Path) -> Iterator[Capture]:
    """Runs from now on, at the client's end of the veth; skips where dumpcap is not installed."""
    found = Capture(pair.netns.client, pair.address, tmp_path / "veth.pcapng")
    yield found
    found.close()
