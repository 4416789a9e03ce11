"""A chunnel of thirty lines of Python, from a policy file, beneath programs that are not Python."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chunnels.conftest import Pair, StartRedis
from tests.chunnels.test_redis import assert_through
from tests.conftest import MakeHost
from tests.harness import eventually, require_program

pytestmark = [pytest.mark.program, pytest.mark.net]

ROT = Path(__file__).resolve().parents[2] / "docs" / "authors" / "rot13.py"
BAD = """
from __future__ import annotations
from bertha_socket.chunnels import Pipe


class Bad(Pipe):
    def down(self, item):
        if b"poison" in item:
            raise ValueError("I cannot stand that word")
        return (item,)
"""


def known(pair: Pair, dag: str, proto: str = "tcp", **sources: str) -> None:
    """Both hosts know the chunnels; the server alone says that they are used."""
    tables = "".join(
        f'[[chunnel]]\nname = "{name}"\nsource = "{place}"\n\n' for name, place in sources.items()
    )
    rule = f'[[rule]]\nside = "server"\nproto = "{proto}"\ndag = \'{dag}\'\n'
    pair.server.set_policy(f"{tables}{rule}")
    pair.client.set_policy(tables)


@pytest.mark.parametrize(
    ("dag", "types"), [("rot(by=5)", ["rot"]), ("rot() |> encrypt()", ["rot", "encrypt"])]
)
def test_thirty_lines_beneath_redis(pair: Pair, start_redis: StartRedis, dag: str, types: list[str]) -> None:
    known(pair, dag, rot=f"{ROT}:Rot")
    _, port = start_redis(pair.server, pair.address)
    cli = [require_program("redis-cli"), "-h", pair.address, "-p", str(port)]
    assert pair.client.run([*cli, "set", "key", "words"]).strip() == "OK"
    assert pair.client.run([*cli, "get", "key"]).strip() == "words"
    whole = [*types, "local_or_remote"]
    assert_through(pair.client.finish(), "redis-cli", whole, 2)
    assert_through(pair.server.finish(), "redis-server", whole, 2)


def test_its_fault_is_one_connections_alone(pair: Pair, start_redis: StartRedis, tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text(BAD, encoding="utf-8")
    known(pair, "bad()", bad=f"{bad}:Bad")
    _, port = start_redis(pair.server, pair.address)
    cli = [require_program("redis-cli"), "-h", pair.address, "-p", str(port)]
    assert pair.client.run([*cli, "set", "key", "words"]).strip() == "OK"
    with pytest.raises(AssertionError):
        pair.client.run([*cli, "set", "key", "poison"])
    assert pair.client.run([*cli, "get", "key"]).strip() == "words"
    (failed,) = [c for c in pair.client.finish() if c.reason]
    assert failed.reason is not None
    assert failed.reason.startswith(
        "a chunnel's own code failed: chunnel Bad raised ValueError: I cannot stand"
    )
    assert failed.reason.endswith("(bad.py line 9)")
    assert pair.client.agent is not None  # in the foreground its carriers' words are its own
    assert "Traceback" in pair.client.agent.text()
    assert "I cannot stand that word" in pair.client.agent.text()


def test_the_traceback_is_in_the_carriers_log(
    make_host: MakeHost, start_redis: StartRedis, tmp_path: Path
) -> None:
    """As it is by default: the agent was started by bertha-run, and nobody has asked for a log."""
    bad = tmp_path / "bad.py"
    bad.write_text(BAD, encoding="utf-8")
    host = make_host(agent=False)
    tables = f'[[chunnel]]\nname = "bad"\nsource = "{bad}:Bad"\n[[rule]]\nside = "server"\ndag = "bad()"\n'
    host.set_policy(tables)
    _, port = start_redis(host, "127.0.0.1")
    cli = [require_program("redis-cli"), "-p", str(port)]
    assert host.run([*cli, "set", "key", "words"]).strip() == "OK"
    assert "OK" not in host.run([*cli, "set", "key", "poison"], check=False)
    log = Path(f"{host.agent_path}.carriers.log")
    eventually(lambda: "I cannot stand that word" in log.read_text(), "the traceback")
    assert "Traceback" in log.read_text()
    assert_through([c for c in host.finish() if c.rx_bytes > 0], "redis-cli", ["bad", "local_or_remote"])
    host.stop_agent_on_demand()
