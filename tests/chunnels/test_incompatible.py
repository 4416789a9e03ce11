"""Two hosts whose DAGs do not fit each other: what the program is told, and what the connection log says."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest

from tests.chunnels.conftest import Pair
from tests.chunnels.test_left_out import says, serve, serve_datagrams
from tests.harness import connections, eventually, free_port

pytestmark = [pytest.mark.program, pytest.mark.net]

_PYTHON = Path(sys.executable).name

# ADDRESS PORT: says with which errno its connection was refused.
_CLIENT = """
import socket, sys
with socket.socket() as s:
    s.settimeout(10)
    print(s.connect_ex((sys.argv[1], int(sys.argv[2]))))
"""

_ENDPOINT = """
import sys, bertha_socket
try:
    bertha_socket.new("client", sys.argv[3] or None).connect((sys.argv[1], int(sys.argv[2])))
except OSError as error:
    print(error.errno, error.strerror)
"""

# ADDRESS PORT DAG: refuses whoever comes.
_ENDPOINT_SERVER = """
import sys, bertha_socket
with bertha_socket.new("server", sys.argv[3]).listen((sys.argv[1], int(sys.argv[2]))) as listener:
    print("listening", flush=True)
    for connection in listener:
        connection.close()
"""

_PROHIBITS = "the client prohibits it"
_RULES = "rules leave no implementation"


def _told(said: list[str], shim: bool, parts: tuple[str, ...]) -> None:
    """The program's errno; who asked by `new()` is told the reason, too."""
    if shim:
        assert said == [str(errno.ECONNREFUSED)]
    else:
        assert said[0] == str(errno.EPROTO)
        says(" ".join(said), *parts)


@pytest.mark.parametrize("door", ["bertha-run", "new"])
@pytest.mark.parametrize(
    ("server", "client", "why"),
    [
        ('dag = "encrypt()"', 'prohibit = ["encrypt/*"]', _RULES),
        ('dag = "encrypt()"', 'dag = "prohibit encrypt()"', _PROHIBITS),
        ('dag = "prohibit encrypt()"', 'dag = "encrypt()"', "the server prohibits it"),
    ],
    ids=["a rule of the client's", "the client's DAG", "the server's DAG"],
)
def test_a_required_chunnel_cannot_be_had(pair: Pair, door: str, server: str, client: str, why: str) -> None:
    """No connection is made, and the reason names the chunnel and what each end has."""
    pair.server.set_policy(f'[[rule]]\nside = "server"\n{server}\n')
    pair.client.set_policy(f'[[rule]]\nside = "client"\n{client}\n')
    port = serve(pair.server, pair.address)
    shim = door == "bertha-run"
    command = [sys.executable, "-c", _CLIENT if shim else _ENDPOINT, pair.address, port]
    said = pair.client.run(command if shim else [*command, ""], shim=shim).split()
    (logged,) = connections(pair.client.connlog(), program=_PYTHON, role="client")
    parts = (f"encrypt cannot be had: {why}; client has ", "server has ")
    says(logged.reason, "a required chunnel cannot be had", f"{pair.address}:{port}: ", *parts)
    assert not logged.plain and logged.raw["chunnels"] == [] and logged.tx_bytes == 0
    assert f"{pair.address}:{port}" == logged.peer
    _told(said, shim, parts)
    pair.server.finish()
    assert all(c.rx_bytes == 0 for c in pair.server.connlog()), "nothing has reached the server's program"


# ADDRESS PORT: the errno of each call, until one is refused.
_UDP_CLIENT = """
import errno, socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.settimeout(10)
    try:
        s.connect((sys.argv[1], int(sys.argv[2])))
        s.send(b"words")
        s.recv(100)
    except OSError as error:
        print(error.errno)
"""


@pytest.mark.parametrize("door", ["bertha-run", "new"])
def test_of_datagrams(pair: Pair, door: str) -> None:
    pair.dictate("reliable()", proto="udp")
    pair.client.set_policy('[[rule]]\nside = "client"\nproto = "udp"\nprohibit = ["reliable/*"]\n')
    port = serve_datagrams(pair.server, pair.address)
    shim = door == "bertha-run"
    command = [sys.executable, "-c", _UDP_CLIENT if shim else _ENDPOINT, pair.address, port]
    said = pair.client.run(command if shim else [*command, "udp()"], shim=shim).split()
    (logged,) = connections(pair.client.connlog(), program=_PYTHON, role="client")
    parts = (f"reliable cannot be had: {_RULES}; client has ", "server has ")
    says(logged.reason, "a required chunnel cannot be had", f"{pair.address}:{port}: ", *parts)
    assert not logged.plain and logged.raw["chunnels"] == [] and logged.raw["proto"] == "udp"
    _told(said, shim, parts)


@pytest.mark.parametrize(
    ("ours", "theirs", "lines"),
    [
        ("encrypt()", "prohibit encrypt()", 2),
        ("encrypt() |> tcp()", "prohibit encrypt() |> tcp()", 0),
        ("frame() |> compress() |> reliable()", "prohibit compress() |> reliable()", 1),
    ],
    ids=["streams", "the kernel's", "datagrams"],
)
def test_of_endpoints_without_agents(pair: Pair, ours: str, theirs: str, lines: int) -> None:
    """They ask each other themselves, and are told the same; what only the kernel has is in no log."""
    for host in (pair.client, pair.server):
        assert host.agent is not None
        host.stop(host.agent)
    port = free_port()
    command = [sys.executable, "-c", _ENDPOINT_SERVER, pair.address, port, theirs]
    server = pair.server.spawn(command, shim=False, label="server")
    server.wait_text("listening")
    said = pair.client.run([sys.executable, "-c", _ENDPOINT, pair.address, port, ours], shim=False)
    kind = "compress" if "compress" in ours else "encrypt"
    parts = (f"{kind} cannot be had: the server prohibits it; client has ", "server has ")
    says(said, str(errno.EPROTO), *parts)
    for host, role, wanted in ((pair.client, "client", lines > 0), (pair.server, "server", lines > 1)):
        if wanted:
            eventually(lambda host=host: host.connlog() != [], f"the {role}'s line")
        for logged in connections(host.connlog(), role=role):
            says(logged.reason, "a required chunnel cannot be had", *parts)
