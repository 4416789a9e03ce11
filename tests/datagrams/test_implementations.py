"""Chunnels in C at one end and in Python at the other: programs notice nothing, and the log names both."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bertha_socket.agent.client import agent_status
from tests.datagrams.conftest import Pair
from tests.datagrams.test_calls import start_echo
from tests.harness import Host, connections, free_port

pytestmark = [pytest.mark.program, pytest.mark.net]

_HERE = Path(__file__).parent


def carriers_of(host: Host) -> set[str]:
    """The kinds of the carriers that have been started there: of a server that is killed there is no line."""
    return {c["kind"] for c in agent_status(str(host.agent_path))["agent"]["carriers"]}


_STREAM = "frame() |> compress() |> encrypt() |> reliable()"


def _policy(side: str, implementation: str, dag: str) -> str:
    """What one end likes best; to prohibit the others would be about both ends."""
    rule = f'side = "{side}"\nproto = "udp"\ndag = "{dag}"\n'
    likes = ", ".join(f'"{c.partition("(")[0]}/{implementation}" = 500' for c in dag.split(" |> "))
    return f"[[rule]]\n{rule}priority = {{ {likes} }}\n"


@pytest.mark.parametrize("dag", ["reliable()", _STREAM])
@pytest.mark.parametrize("server", ["native", "python"])
@pytest.mark.parametrize("client", ["native", "python"])
def test_every_pairing(pair: Pair, client: str, server: str, dag: str) -> None:
    pair.server.set_policy(_policy("server", server, dag))
    pair.client.set_policy(_policy("client", client, dag))
    port = free_port()
    start_echo(pair.server, pair.address, port)
    command = [sys.executable, _HERE / "calls.py", pair.address, port, "names", "sizes", "threads"]
    assert pair.client.run(command, timeout=60).split()[1::2] == ["ok"] * 3
    found = [
        c for c in connections(pair.client.finish(), program=Path(sys.executable).name) if c.rx_bytes > 0
    ]
    assert found
    wanted = client if client == server else f"{client}/{server}"
    count = dag.count("(")
    names = {e["implementation"] for c in found for e in c.raw["chunnels"][:count]}
    assert names == {wanted}, found
    assert {c.raw["carried_by"] for c in found} == {client}
    assert carriers_of(pair.server) == {server}


def test_the_one_in_c_is_preferred(pair: Pair) -> None:
    pair.dictate("reliable()", proto="udp")
    port = free_port()
    start_echo(pair.server, pair.address, port)
    command = [sys.executable, _HERE / "calls.py", pair.address, port, "names"]
    assert pair.client.run(command, timeout=60).split() == ["names", "ok"]
    found = [
        c for c in connections(pair.client.finish(), program=Path(sys.executable).name) if c.rx_bytes > 0
    ]
    assert found[0].raw["chunnels"][0] == {"type": "reliable", "implementation": "native", "where": "host"}
    assert {c.raw["carried_by"] for c in found} == carriers_of(pair.server) == {"native"}
