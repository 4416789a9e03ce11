"""memcached over UDP between two hosts, through chunnels that the server's policy alone dictates."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path

import pytest

from tests.datagrams.conftest import Capture, Pair
from tests.harness import (
    Connection,
    Host,
    Program,
    assert_only_tls_by_datagrams,
    connections,
    eventually,
    free_port,
    require_program,
)

pytestmark = [pytest.mark.program, pytest.mark.net]

_CLIENT = Path(__file__).parent / "memcached_udp.py"
_PYTHON = Path(sys.executable).name
_CHAINS = {
    "reliable": "reliable()",
    "encrypt": "frame() |> encrypt() |> reliable()",
}
chains = pytest.mark.parametrize("dag", _CHAINS.values(), ids=_CHAINS)

# A client by new(), which names no chunnel; a fifth of what comes to it is lost: FOLDER ADDRESS PORT COUNT.
_BY_NEW = """
import struct, sys
import bertha_socket
sys.path.insert(0, sys.argv[1])
from lossy import lose
frame = struct.Struct(">HHHH")
with bertha_socket.new("client").connect((sys.argv[2], int(sys.argv[3]))) as connection:
    lose(connection._peers.udp, 0.2)
    def ask(number, line):
        connection.send(frame.pack(number, 0, 1, 0) + line)
        said = connection.recv(30)
        assert frame.unpack_from(said) == (number, 0, 1, 0), said
        return said[frame.size:]
    for i in range(int(sys.argv[4])):
        value = b"%d" % i * 300
        assert ask(2 * i, b"set key 0 0 %d\\r\\n%s\\r\\n" % (len(value), value)) == b"STORED\\r\\n"
        found = ask(2 * i + 1, b"get key\\r\\n")
        assert found == b"VALUE key 0 %d\\r\\n%s\\r\\nEND\\r\\n" % (len(value), value), found
print("ok")
"""


def _types(connection: Connection) -> list[str]:
    return [c["type"] for c in connection.raw["chunnels"]]


def _has_udp(program: Program, port: int) -> bool:
    tables = "".join(Path(f"/proc/{program.pid}/net/{name}").read_text() for name in ("udp", "udp6"))
    return f":{port:04X} " in tables


def _start(host: Host, address: str) -> tuple[Program, int]:
    port = free_port()
    command = [require_program("memcached"), "-l", address, "-p", "0", "-U", str(port), "-t", "4"]
    program = host.spawn([*command, "-u", getpass.getuser()])

    def bound() -> bool:
        assert program.running, program.text()
        return _has_udp(program, port)

    eventually(bound, f"memcached on UDP port {port}")
    return program, port


def _ask(
    host: Host,
    address: str,
    port: int,
    mode: str,
    count: int,
    *,
    patience: float = 20.0,
    loss: float = 0.0,
    shim: bool = True,
    door: tuple[str, ...] = (),
) -> str:
    """What the client says.  A socket is plain if an agent had no time to answer: then it is run again."""
    command = [sys.executable, *door, _CLIENT, address, port, mode, count, patience, loss]
    for _ in range(3):
        said = host.run(command, shim=shim, timeout=60.0).strip()
        if said == "ok" or patience < 5:
            break
    return said


def _through(log: list[Connection], program: str, types: list[str]) -> list[Connection]:
    found = [c for c in connections(log, program=program) if c.raw["proto"] == "udp"]
    assert found, log
    for connection in found:
        assert _types(connection) == types, connection
        assert not connection.plain, connection
        assert connection.tx_bytes > 0, connection
        assert connection.rx_bytes > 0, connection
    return found


def _whole(dag: str) -> list[str]:
    """The types of a chain, as the log has them."""
    return [*(word.strip(" ()") for word in dag.split("|>")), "local_or_remote"]


@chains
def test_whole_on_a_lossy_network(pair: Pair, dag: str) -> None:
    """A fifth of what comes to the client is lost; each request is sent once, and answered once."""
    pair.dictate(dag, proto="udp")
    _, port = _start(pair.server, pair.address)
    for mode in ("connected", "unconnected"):
        assert _ask(pair.client, pair.address, port, mode, 8, loss=0.2) == "ok"
    found = _through(pair.client.finish(), _PYTHON, _whole(dag))
    assert f"{pair.address}:{port}" in [c.peer for c in found]
    _through(pair.server.finish(), "memcached", _whole(dag))


@chains
def test_client_by_monkey(pair: Pair, dag: str) -> None:
    """The same program, whose calls are redirected late."""
    pair.dictate(dag, proto="udp")
    _, port = _start(pair.server, pair.address)
    for mode in ("connected", "unconnected"):
        door = ("-m", "bertha_socket.monkey")
        assert _ask(pair.client, pair.address, port, mode, 8, loss=0.2, shim=False, door=door) == "ok"
    _through(pair.client.finish(), _PYTHON, _whole(dag))
    _through(pair.server.finish(), "memcached", _whole(dag))


@chains
def test_client_by_new(pair: Pair, dag: str) -> None:
    """Its chunnels run in itself; that they are there is the server's policy's word alone."""
    pair.dictate(dag, proto="udp")
    _, port = _start(pair.server, pair.address)
    command = [sys.executable, "-c", _BY_NEW, _CLIENT.parent, pair.address, port, 8]
    assert pair.client.run(command, shim=False, timeout=60).strip() == "ok"
    for connection in _through(pair.client.finish(), _PYTHON, _whole(dag)):
        assert {c["where"] for c in connection.raw["chunnels"][:-1]} == {"application"}, connection
    for connection in _through(pair.server.finish(), "memcached", _whole(dag)):
        assert {c["where"] for c in connection.raw["chunnels"][:-1]} == {"host"}, connection
        assert connection.raw["carried_by"] == "native", connection


def test_plain_clients_of_a_preferred_chunnel_are_served(pair: Pair) -> None:
    pair.dictate("prefer reliable()", proto="udp")
    _, port = _start(pair.server, pair.address)
    assert _ask(pair.client, pair.address, port, "unconnected", 5, shim=False) == "ok"
    assert _ask(pair.client, pair.address, port, "unconnected", 5) == "ok"
    assert _ask(pair.client, pair.address, port, "connected", 5, shim=False) == "ok"
    _through(pair.client.finish(), _PYTHON, ["reliable", "local_or_remote"])
    _through(pair.server.finish(), "memcached", ["reliable", "local_or_remote"])


def test_plain_clients_of_a_required_chunnel_get_nothing(pair: Pair) -> None:
    """Neither an answer nor a datagram that they could take for one; and they are counted."""
    pair.dictate("reliable()", proto="udp")
    _, port = _start(pair.server, pair.address)
    found = _ask(pair.client, pair.address, port, "unconnected", 1, shim=False, patience=1.0)
    assert found.startswith("TimeoutError"), found
    log = connections(pair.server.finish(), program="memcached")
    dropped = [c for c in log if "1 datagrams dropped" in (c.reason or "")]
    assert dropped, log
    assert all(c.rx_bytes == 0 and not c.plain for c in log), log


def test_other_ports_stay_the_kernels(pair: Pair) -> None:
    """A rule is about its own port: neither the server's other sockets nor who sends there is touched."""
    pair.dictate("reliable()", proto="udp", port=9)
    _, port = _start(pair.server, pair.address)
    assert _ask(pair.client, pair.address, port, "unconnected", 3) == "ok"
    assert _ask(pair.client, pair.address, port, "connected", 3, shim=False) == "ok"
    assert not connections(pair.client.finish(), program=_PYTHON)
    assert all(c.plain for c in connections(pair.server.finish(), program="memcached"))


def test_another_cluster_key(pair: Pair) -> None:
    """The two agents do not believe each other: the client is as plain as any, and gets nothing."""
    pair.dictate("reliable()", proto="udp")
    _, port = _start(pair.server, pair.address)
    assert pair.client.agent is not None
    pair.client.cluster_key = None
    pair.client.stop(pair.client.agent)
    pair.client.start_agent()
    found = _ask(pair.client, pair.address, port, "connected", 1, patience=1.0)
    assert found.startswith("TimeoutError"), found
    assert all(c.rx_bytes == 0 for c in connections(pair.server.finish(), program="memcached"))


@pytest.mark.parametrize(
    "dag",
    ["frame() |> compress() |> encrypt() |> reliable() |> udp()", "frame() |> encrypt() |> reliable()"],
    ids=["compress+encrypt", "encrypt"],
)
def test_nothing_readable_crosses_the_wire(pair: Pair, capture: Capture, dag: str) -> None:
    """TLS over a stream of datagrams, carried as the DAG says, and each comes out as it went in."""
    pair.dictate(dag, proto="udp")
    _, port = _start(pair.server, pair.address)
    for mode in ("connected", "unconnected"):
        assert _ask(pair.client, pair.address, port, mode, 300) == "ok"
    command = [sys.executable, "-c", _BY_NEW, _CLIENT.parent, pair.address, port, 20]
    assert pair.client.run(command, shim=False, timeout=60).strip() == "ok"
    without = (b"STORED\r\n", b"VALUE key", b"get key", b"set key", b"CCCCCCCCCCCC")
    assert_only_tls_by_datagrams(capture, port, at_least=50_000, sessions=3, without=without)
    types = _whole(dag.removesuffix(" |> udp()"))
    _through(pair.client.finish(), _PYTHON, types)
    _through(pair.server.finish(), "memcached", types)


def test_what_crosses_plain_is_seen(pair: Pair, capture: Capture) -> None:
    """By `reliable` alone, and beside our envelope: neither is TLS, whatever words are not in it."""
    pair.dictate("prefer reliable()", proto="udp")
    _, port = _start(pair.server, pair.address)
    assert _ask(pair.client, pair.address, port, "connected", 5) == "ok"
    with pytest.raises(AssertionError, match="crosses the network"):
        assert_only_tls_by_datagrams(capture, port, at_least=1, without=[b"STORED\r\n"])
    with pytest.raises(AssertionError, match=r"outside of TLS|no type of TLS"):
        assert_only_tls_by_datagrams(capture, port, at_least=0)
    _through(pair.client.finish(), _PYTHON, ["reliable", "local_or_remote"])


def test_what_crosses_beside_is_seen(pair: Pair, capture: Capture) -> None:
    pair.dictate("prefer reliable()", proto="udp")
    _, port = _start(pair.server, pair.address)
    assert _ask(pair.client, pair.address, port, "unconnected", 1, shim=False) == "ok"
    with pytest.raises(AssertionError, match="not of our envelope"):
        assert_only_tls_by_datagrams(capture, port, at_least=0, sessions=0)


def test_many_clients(pair: Pair) -> None:
    """One socket of the server's, and a session for each client: each gets its own answers."""
    pair.dictate("reliable()", proto="udp")
    _, port = _start(pair.server, pair.address)
    command = [sys.executable, _CLIENT, pair.address, port, "unconnected", 10, 60.0, 0.0]
    assert _ask(pair.client, pair.address, port, "unconnected", 1) == "ok"
    clients = [pair.client.spawn(command) for _ in range(8)]
    assert [c.wait(60).strip() for c in clients] == ["ok"] * 8
    assert len(_through(pair.client.finish(), _PYTHON, ["reliable", "local_or_remote"])) == 9
