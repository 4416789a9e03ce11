"""What was preferred and could not be had: the connection log and `bertha ps` say it at both ends, with the
reason and what each end could have run, whatever carries the connection then."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bertha_socket.agent.client import agent_status
from tests.chunnels.conftest import Pair
from tests.chunnels.test_authors import ROT
from tests.harness import Connection, Host, Program, connections, eventually, free_port

pytestmark = [pytest.mark.program, pytest.mark.net]

_BIN = Path(sys.executable).parent

# ADDRESS PORT: answers each connection's words, and takes the next one.
_SERVER = """
import socket, sys
with socket.create_server((sys.argv[1], int(sys.argv[2]))) as listener:
    while True:
        connection, _ = listener.accept()
        with connection:
            while data := connection.recv(100):
                connection.sendall(data)
"""

# ADDRESS PORT: has an answer, and stays until its standard input ends.
_CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 10) as s:
    s.sendall(b"words")
    assert s.recv(100) == b"words"
    print("answered", flush=True)
    sys.stdin.read()
"""

_ENDPOINT_SERVER = """
import sys, bertha_socket
with bertha_socket.new("server", sys.argv[3] or None).listen((sys.argv[1], int(sys.argv[2]))) as listener:
    for connection in listener:
        with connection:
            for data in connection:
                connection.send(data)
"""

_ENDPOINT_CLIENT = """
import sys, bertha_socket
with bertha_socket.new("client", sys.argv[3] or None).connect((sys.argv[1], int(sys.argv[2]))) as c:
    c.send(b"words")
    assert c.recv(10) == b"words"
    print("answered", flush=True)
    sys.stdin.read()
"""


def serve(host: Host, address: str, script: str = _SERVER, *more: str) -> int:
    port = free_port()
    shim = script == _SERVER
    command = [sys.executable, "-c", script, address, port, *more]
    program = host.spawn(command, shim=shim, label="server")
    program.shim = True
    host.wait_port(program, port)
    return port


def _connected(host: Host, address: str, port: int, script: str = _CLIENT, *more: str) -> Program:
    """A client that has had its answer."""
    command = [sys.executable, "-c", script, address, port, *more]
    shim = script == _CLIENT
    program = host.spawn(command, shim=shim, label="client", stdin=subprocess.PIPE)
    program.wait_text("answered")
    return program


def _leave(program: Program) -> None:
    assert program.process.stdin is not None
    program.process.stdin.close()
    program.wait(10)


def _live(host: Host, role: str, port: int) -> dict[str, Any]:
    asked = [_BIN / "bertha", "ps", "--json"]
    found = json.loads(host.run(asked, shim=False))
    (one,) = [
        c for c in found if c["role"] == role and str(port) in c["local" if role == "server" else "peer"]
    ]
    return dict(one)


def _logged(host: Host, role: str, port: int) -> Connection:
    def lines() -> list[Connection]:
        return connections(host.connlog(), role=role, port=port)

    eventually(lambda: lines() != [], f"the {role}'s line")
    (one,) = lines()
    return one


def _agree(live: dict[str, Any], logged: Connection) -> None:
    """`bertha ps` says what the log says then."""
    assert (live["reason"], live["plain"]) == (logged.reason, logged.plain), (live, logged)
    assert live["chunnels"] == logged.raw["chunnels"]


def says(reason: str | None, *parts: str) -> None:
    assert reason is not None and all(part in reason for part in parts), reason


def _types(connection: Connection) -> list[str]:
    return [c["type"] for c in connection.raw["chunnels"]][:-1]


def _both_ends(pair: Pair) -> list[tuple[dict[str, Any], Connection]]:
    """Of one connection, the client's end first: what `ps` says while it lives, and its line in the log."""
    port = serve(pair.server, pair.address)
    client = _connected(pair.client, pair.address, port)
    hosts = ((pair.client, "client"), (pair.server, "server"))
    live = [_live(host, role, port) for host, role in hosts]
    _leave(client)
    return list(zip(live, [_logged(host, role, port) for host, role in hosts], strict=True))


@pytest.mark.parametrize(
    ("carrier", "dag"),
    [("native", "encrypt()"), ("python", "count()"), ("authors", "rot()")],
)
def test_of_one_that_has_others(pair: Pair, carrier: str, dag: str) -> None:
    """The other chunnels are there, and this one is named, at both ends."""
    table = f'[[chunnel]]\nname = "rot"\nsource = "{ROT}:Rot"\n\n'
    pair.server.set_policy(f'{table}[[rule]]\nside = "server"\ndag = "prefer compress() |> {dag}"\n')
    pair.client.set_policy(f'{table}[[rule]]\nside = "client"\nprohibit = ["compress/*"]\n')
    for seen, logged in _both_ends(pair):
        assert not logged.plain and _types(logged) == [dag.removesuffix("()")], logged
        assert logged.raw["carried_by"] == carrier
        says(logged.reason, "left out: compress: rules leave no implementation", "client has", "server has")
        if carrier != "python":  # whose counters go on
            _agree(seen, logged)
        else:
            assert seen["reason"] == logged.reason


def test_of_a_plain_one(pair: Pair) -> None:
    """Nothing else was wanted, so it is plain.  A client that knows of nothing has no reason of its own."""
    pair.dictate("prefer compress()")
    pair.client.set_policy('[[rule]]\nside = "client"\ndag = "prohibit compress()"\n')
    for seen, logged in _both_ends(pair):
        assert logged.plain and _types(logged) == []
        says(
            logged.reason, "left out: compress: the client prohibits it; client has", "server has native@host"
        )
        _agree(seen, logged)


def test_of_a_client_that_knows_of_no_chunnels(pair: Pair) -> None:
    pair.dictate("prefer compress()")
    port = serve(pair.server, pair.address)
    command = [sys.executable, "-c", _CLIENT, pair.address, port]
    assert pair.client.run(command, shim=False).strip() == "answered"
    logged = _logged(pair.server, "server", port)
    assert logged.plain
    why = "left out: compress: the client came without a plan; client has nothing, server has native@host"
    says(logged.reason, why)


@pytest.mark.parametrize("implementation", ["shm", "unix"])
def test_of_one_in_shared_memory(host: Host, implementation: str) -> None:
    """It is as good as it can be otherwise, and says this of the chunnel."""
    prohibit = '"compress/*"' + (', "shm"' if implementation == "unix" else "")
    host.set_policy(
        f'[[rule]]\nside = "server"\nprohibit = [{prohibit}]\n\n'
        '[[rule]]\nside = "client"\ndag = "prefer compress()"\n'
    )
    port = serve(host, "127.0.0.1")
    client = _connected(host, "127.0.0.1", port)
    live = {role: _live(host, role, port) for role in ("client", "server")}
    _leave(client)
    for role, seen in live.items():
        logged = _logged(host, role, port)
        assert logged.implementation == implementation, logged
        says(
            logged.reason,
            "left out: compress: rules leave no implementation",
            "client has native",
            "server has native",
        )
        _agree(seen, logged)


@pytest.mark.parametrize("dag", ["prefer compress() |> encrypt()", "prefer compress()"])
@pytest.mark.parametrize("endpoint", ["client", "server", "both"])
def test_of_programs_that_run_their_chunnels(pair: Pair, dag: str, endpoint: str) -> None:
    """By bertha_socket.new() at either end, with a program under bertha-run at the other."""
    pair.client.set_policy('[[rule]]\nside = "client"\ndag = "prohibit compress()"\n')
    pair.dictate(dag)
    server = (_ENDPOINT_SERVER, dag) if endpoint != "client" else (_SERVER,)
    client = (_ENDPOINT_CLIENT, "") if endpoint != "server" else (_CLIENT,)
    port = serve(pair.server, pair.address, *server)
    _leave(_connected(pair.client, pair.address, port, *client))
    for host, role in ((pair.client, "client"), (pair.server, "server")):
        logged = _logged(host, role, port)
        assert _types(logged) == (["encrypt"] if "encrypt" in dag else []), logged
        has = "native@host" if endpoint == "client" else "python@application"
        says(logged.reason, "left out: compress:", "client has", f"server has {has}")
        if role == "client" or "encrypt" in dag:
            says(logged.reason, "the client prohibits it")


def test_of_endpoints_of_datagrams(pair: Pair) -> None:
    pair.client.set_policy('[[rule]]\nside = "client"\nproto = "udp"\ndag = "prohibit compress()"\n')
    port = free_port()
    dag = "frame() |> prefer compress() |> reliable()"
    command = [sys.executable, "-c", _ENDPOINT_SERVER, pair.address, port, dag]
    pair.server.spawn(command, shim=False, label="server")
    eventually(lambda: _bound(pair.server, port), "the agent's knowing of the server")
    _leave(_connected(pair.client, pair.address, port, _ENDPOINT_CLIENT, "udp()"))
    for host, role in ((pair.client, "client"), (pair.server, "server")):
        logged = _logged(host, role, port)
        assert not logged.plain and _types(logged) == ["frame", "reliable"], logged
        says(logged.reason, "left out: compress: the client prohibits it; client has", "server has python@")


_UDP_SERVER = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.bind((sys.argv[1], int(sys.argv[2])))
    data = b""
    while data != b"end":
        data, peer = s.recvfrom(2000)
        s.sendto(data, peer)
"""

_UDP_CLIENT = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.settimeout(10)
    s.connect((sys.argv[1], int(sys.argv[2])))
    s.send(b"words")
    assert s.recv(100) == b"words"
    print("answered", flush=True)
    sys.stdin.read()
    s.send(b"end")
    assert s.recv(100) == b"end"
"""


@pytest.mark.parametrize(
    ("carrier", "dag"),
    [("native", "frame() |> prefer compress() |> reliable()"), ("python", "prefer compress() |> count()")],
)
def test_of_datagrams(pair: Pair, carrier: str, dag: str) -> None:
    pair.dictate(dag, proto="udp")
    pair.client.set_policy('[[rule]]\nside = "client"\nproto = "udp"\nprohibit = ["compress/*"]\n')
    port = serve_datagrams(pair.server, pair.address)
    client = pair.client.spawn(
        [sys.executable, "-c", _UDP_CLIENT, pair.address, port], label="client", stdin=subprocess.PIPE
    )
    client.wait_text("answered")
    live = _live(pair.client, "client", port), _live(pair.server, "server", port)
    _leave(client)
    pair.server.programs[1].wait(10)
    for host, role, seen in ((pair.client, "client", live[0]), (pair.server, "server", live[1])):
        (logged,) = connections(host.connlog(), role=role)
        assert not logged.plain and logged.raw["carried_by"] == carrier, logged
        says(logged.reason, "left out: compress: rules leave no implementation", "client has", "server has")
        assert seen["reason"] == logged.reason


@pytest.mark.parametrize("dag", ["prefer reliable()", "prefer count()"])
def test_of_plain_datagrams(pair: Pair, dag: str) -> None:
    """The server's end alone has a line: a client's socket without chunnels is in no log."""
    pair.dictate(dag, proto="udp")
    pair.client.set_policy('[[rule]]\nside = "client"\nproto = "udp"\nprohibit = ["*/*"]\n')
    port = serve_datagrams(pair.server, pair.address)
    pair.client.run([sys.executable, "-c", _UDP_CLIENT, pair.address, port])
    pair.server.programs[1].wait(10)
    (logged,) = connections(pair.server.connlog(), role="server")
    assert logged.plain, logged
    kind = dag.removeprefix("prefer ").removesuffix("()")
    says(logged.reason, f"left out: {kind}: the client came without a plan", "server has")


def serve_datagrams(host: Host, address: str) -> int:
    """An echo of datagrams, until one says "end"; its port."""
    port = free_port()
    host.spawn([sys.executable, "-c", _UDP_SERVER, address, port], label="server")
    eventually(lambda: _bound(host, port), "the agent's knowing of the server")
    return port


def _bound(host: Host, port: int) -> bool:
    listeners = agent_status(str(host.agent_path))["listeners"]
    return any(each["address"].endswith(f":{port}") for each in listeners)
