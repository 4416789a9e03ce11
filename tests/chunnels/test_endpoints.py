"""One end is a Python program by `bertha_socket.new`, the other any program under bertha-run on another host.

The Python programs run without bertha-run: their chunnels run in themselves."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.chunnels.conftest import Capture, Pair, StartRedis
from tests.chunnels.test_redis import assert_through
from tests.harness import (
    Connection,
    Host,
    Program,
    assert_only_tls,
    connections,
    eventually,
    free_port,
    require_program,
)

pytestmark = [pytest.mark.program, pytest.mark.net]

_PYTHON = Path(sys.executable).name
_SECRET = "a-secret-that-must-not-cross-the-wire"
_ENCRYPT = ["encrypt", "local_or_remote"]
_WHOLE = ["compress", "encrypt", "local_or_remote"]

# A redis of two commands: NAME ADDRESS PORT DAG.
_SERVER = """
import sys, threading
import bertha_socket
name, address, port, dag = sys.argv[1:]
store = {}
def serve(connection):
    with connection:
        data = b""
        for more in connection:
            data += more
            words = data.split(b"\\r\\n")
            if not data.startswith(b"*") or len(words) != 2 + 2 * int(words[0][1:]):
                continue
            verb, *words, data = words[2::2][0].upper(), *words[4::2], b""
            if verb == b"SET":
                store[words[0]] = words[1]
                connection.send(b"+OK\\r\\n")
            elif verb == b"GET":
                value = store.get(words[0], b"")
                connection.send(b"$%d\\r\\n%s\\r\\n" % (len(value), value))
            else:
                connection.send(b"-ERR unknown\\r\\n")
with bertha_socket.new(name, dag or None).listen((address, int(port))) as listener:
    for connection in listener:
        threading.Thread(target=serve, args=(connection,), daemon=True).start()
"""

# Sets and gets: NAME ADDRESS PORT DAG TIMES VALUE.
_CLIENT = """
import sys
import bertha_socket
name, address, port, dag, times, value = sys.argv[1:]
for i in range(int(times)):
    with bertha_socket.new(name, dag or None).connect([(address, int(port))]) as connection:
        words = (len(value), value.encode())
        connection.send(b"*3\\r\\n$3\\r\\nSET\\r\\n$3\\r\\nkey\\r\\n$%d\\r\\n%s\\r\\n" % words)
        assert connection.recv(30) == b"+OK\\r\\n"
        connection.send(b"*2\\r\\n$3\\r\\nGET\\r\\n$3\\r\\nkey\\r\\n")
        answer, wanted = b"", b"$%d\\r\\n%s\\r\\n" % words
        while len(answer) < len(wanted):
            answer += connection.recv(30)
        assert answer == wanted
print("ok")
"""


def _listen(host: Host, address: str, dag: str) -> tuple[Program, int]:
    port = free_port()
    command = [sys.executable, "-c", _SERVER, "my-redis", address, port, dag]
    program = host.spawn(command, shim=False, label="endpoint")
    program.shim = True  # to be waited for until the agent knows it
    host.wait_port(program, port)
    return program, port


def _ask(pair: Pair, port: int, dag: str = "", times: int = 1, value: str = _SECRET) -> str:
    command = [sys.executable, "-c", _CLIENT, "asker", pair.address, port, dag, times, value]
    return pair.client.run(command, shim=False, check=False).strip()


def _cli(pair: Pair, port: int, *words: str, shim: bool = True) -> str:
    command = [require_program("redis-cli"), "-h", pair.address, "-p", str(port), *words]
    return pair.client.run(command, shim=shim, check=False).strip()


def _named(host: Host, program: str, types: list[str], least: int) -> None:
    eventually(lambda: len(connections(host.connlog(), program=program)) >= least, "the log's lines")
    assert_through(host.finish(), program, types, least)


def _ran_at(log: list[Connection], program: str, where: str) -> None:
    """The program's lines say where its own end ran the chunnels, not where the other one did."""
    found = [c for c in connections(log, program=program) if c.rx_bytes]
    assert found
    for connection in found:
        assert {c["where"] for c in connection.raw["chunnels"][:-1]} == {where}, connection


@pytest.mark.parametrize(
    ("dag", "types"), [("encrypt()", _ENCRYPT), ("compress(level=3) |> encrypt()", _WHOLE)]
)
def test_server(pair: Pair, capture: Capture, dag: str, types: list[str]) -> None:
    """redis-cli's shim and carrier, and the DAG of a Python server that nobody runs under anything."""
    _, port = _listen(pair.server, pair.address, dag)
    for _ in range(3):
        assert _cli(pair, port, "set", "key", _SECRET) == "OK"
    assert _cli(pair, port, "get", "key") == _SECRET
    without = (_SECRET.encode(), b"SET\r\n")
    assert_only_tls(capture, port, at_least=1000, connections=4, without=without)
    assert_through(pair.client.finish(), "redis-cli", types, 4)
    _named(pair.server, _PYTHON, types, 4)
    _ran_at(pair.client.connlog(), "redis-cli", "host")
    _ran_at(pair.server.connlog(), _PYTHON, "application")


def test_server_refuses_who_knows_of_no_chunnels(pair: Pair) -> None:
    _, port = _listen(pair.server, pair.address, "encrypt()")
    assert "OK" not in _cli(pair, port, "set", "key", "value", shim=False)
    assert _cli(pair, port, "set", "key", "value") == "OK"
    assert_through(pair.client.finish(), "redis-cli", _ENCRYPT, 1)


def test_server_serves_who_knows_of_no_chunnels(pair: Pair) -> None:
    """... where none is required; and others with what they have."""
    _, port = _listen(pair.server, pair.address, "prefer compress()")
    assert _cli(pair, port, "set", "key", "value", shim=False) == "OK"
    assert _cli(pair, port, "get", "key") == "value"
    assert_through(pair.client.finish(), "redis-cli", ["compress", "local_or_remote"], 1)


def test_server_with_a_policy_and_no_dag(pair: Pair) -> None:
    """A rule by the endpoint's name; the policy of an operator is in force in the application too."""
    pair.server.set_policy('[[rule]]\nname = "my-redis"\nside = "server"\ndag = "encrypt()"\n')
    _, port = _listen(pair.server, pair.address, "prefer compress()")
    assert "OK" not in _cli(pair, port, "set", "key", "value", shim=False)
    assert _cli(pair, port, "set", "key", "value") == "OK"
    assert_through(pair.client.finish(), "redis-cli", _WHOLE, 1)


def test_server_on_the_clients_host(pair: Pair) -> None:
    """The same agent for both ends, and a carrier for redis-cli alone."""
    _, port = _listen(pair.server, pair.address, "encrypt()")
    command = [require_program("redis-cli"), "-h", pair.address, "-p", str(port), "set", "key", "value"]
    assert pair.server.run(command).strip() == "OK"
    assert_through(pair.server.finish(), "redis-cli", _ENCRYPT, 1)


@pytest.mark.parametrize("dag", ["compress(level=3) |> encrypt()", "prefer compress() |> prefer encrypt()"])
def test_client(pair: Pair, start_redis: StartRedis, capture: Capture, dag: str) -> None:
    """redis-server's shim and carrier, dictated by its policy; the client names no chunnel."""
    pair.dictate(dag)
    _, port = start_redis(pair.server, pair.address)
    assert _ask(pair, port, times=3) == "ok"
    without = (_SECRET.encode(), b"SET\r\n")
    assert_only_tls(capture, port, at_least=600, connections=3, without=without)
    assert_through(pair.server.finish(), "redis-server", _WHOLE, 3)
    assert_through(pair.client.finish(), _PYTHON, _WHOLE, 3)
    _ran_at(pair.server.connlog(), "redis-server", "host")
    _ran_at(pair.client.connlog(), _PYTHON, "application")


def test_client_with_a_dag(pair: Pair, start_redis: StartRedis) -> None:
    """redis-server has no policy and takes part; a DAG that it cannot have is refused with its name."""
    _, port = start_redis(pair.server, pair.address)
    assert _ask(pair, port, "encrypt()", times=2) == "ok"
    assert "no-such" in _ask(pair, port, "no_such_chunnel()").replace("_", "-")
    assert_through(pair.client.finish(), _PYTHON, _ENCRYPT, 2)
    assert_through(pair.server.finish(), "redis-server", _ENCRYPT, 2)


def test_client_of_a_program_without_chunnels(pair: Pair, start_redis: StartRedis) -> None:
    """Both agents say that nothing is wanted: the connection is as plain as anybody's."""
    _, port = start_redis(pair.server, pair.address)
    assert _ask(pair, port) == "ok"
    lines = connections(pair.server.finish(), program="redis-server")
    assert lines and all(c.plain for c in lines)


@pytest.mark.parametrize("agents", ["the client's", "none"])
def test_client_of_an_ordinary_program(pair: Pair, start_redis: StartRedis, agents: str) -> None:
    """Nobody answers for it: it is reached plainly, unless something is required."""
    _, port = start_redis(pair.server, pair.address, shim=False)
    for host in (pair.client, pair.server):
        if host is pair.server or agents == "none":
            assert host.agent is not None
            host.stop(host.agent)
    assert _ask(pair, port, times=2) == "ok"
    assert _ask(pair, port, "prefer compress() |> prefer encrypt()", times=2) == "ok"
    assert "encrypt" in _ask(pair, port, "prefer compress() |> encrypt()")
    log = pair.client.finish()
    assert all(c.plain for c in log)
    assert sum(c.rx_bytes > len(_SECRET) for c in log) == 4, log


@pytest.mark.parametrize("dag", ["compress() |> encrypt()", "frame() |> compress() |> encrypt()"])
def test_both(pair: Pair, dag: str) -> None:
    """Two such programs on two hosts, through their agents."""
    _, port = _listen(pair.server, pair.address, dag)
    assert _ask(pair, port, times=2) == "ok"
    types = [*(word.strip(" ()") for word in dag.split("|>")), "local_or_remote"]
    assert_through(pair.client.finish(), _PYTHON, types, 2)
    _named(pair.server, _PYTHON, types, 2)


def test_both_without_agents(pair: Pair) -> None:
    """They agree on the connection itself; and again by agents, once those are there."""
    for host in (pair.client, pair.server):
        assert host.agent is not None
        host.stop(host.agent)
    port = free_port()
    command = [sys.executable, "-c", _SERVER, "my-redis", pair.address, port, "encrypt()"]
    server = pair.server.spawn(command, shim=False, label="endpoint")
    pair.server.wait_port(server, port, listed=False)
    assert _ask(pair, port) == "ok"
    pair.client.start_agent()
    pair.server.start_agent()
    assert _ask(pair, port) == "ok"
    assert_through(pair.client.finish(), _PYTHON, _ENCRYPT, 2)


def test_agent_restarted(pair: Pair) -> None:
    """A listener tells the next agent of itself when somebody connects."""
    _, port = _listen(pair.server, pair.address, "encrypt()")
    agent = pair.server.agent
    assert agent is not None
    pair.server.stop(agent)
    pair.server.start_agent()
    _cli(pair, port, "ping", shim=False)
    eventually(lambda: _cli(pair, port, "set", "key", "value") == "OK", "an encrypted connection", 30)
    assert_through([c for c in pair.client.finish() if c.rx_bytes > 0], "redis-cli", _ENCRYPT)


@pytest.mark.parametrize("under", ["server", "client", "both"])
def test_under_bertha_run(pair: Pair, under: str) -> None:
    """The shim was there first, with a policy that requires chunnels: nothing runs twice."""
    rule = '[[rule]]\nprogram = "{}"\nside = "{}"\ndag = "encrypt()"\n'
    for side, host in (("server", pair.server), ("client", pair.client)):
        if under in (side, "both"):
            host.set_policy(rule.format(_PYTHON, side))
    port = free_port()
    server = [sys.executable, "-c", _SERVER, "my-redis", pair.address, str(port), "compress()"]
    pair.server.server(server, port, shim=under != "client")
    client = [sys.executable, "-c", _CLIENT, "asker", pair.address, str(port), "", "2", _SECRET]
    assert pair.client.run(client, shim=under != "server").strip() == "ok"
    assert_through(pair.client.finish(), _PYTHON, _WHOLE, 2)
    _named(pair.server, _PYTHON, _WHOLE, 2)
