"""bertha_socket.new() on datagrams: reliable(), or udp() at the right end; without agents."""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bertha_socket
from bertha_socket import _endpoint_datagrams, keys
from bertha_socket._endpoint import EndpointError
from bertha_socket._endpoint_datagram_connection import DatagramConnection
from bertha_socket._endpoint_datagrams import DatagramListener
from bertha_socket.carrier import envelope
from bertha_socket.carrier.envelope import Kind
from bertha_socket.carrier.peers import QUEUE_MAX
from bertha_socket.chunnels import Interface, Pipe, register_chunnel, unregister
from bertha_socket.dag import DagError
from bertha_socket.negotiation.machine import Responder
from tests.datagrams.lossy import lose


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is redirected, nobody's cluster key is found, and no thread is left."""
    monkeypatch.setenv("BERTHA_DISABLE", "1")
    monkeypatch.setattr(keys, "find", lambda: None)
    yield
    until = time.monotonic() + 15
    while any(t.name == "bertha-datagrams" for t in threading.enumerate()):
        assert time.monotonic() < until, "the thread of datagrams has no end"
        time.sleep(0.02)


def _echo(dag: str) -> AbstractContextManager[DatagramListener]:
    return _echo_at(dag, "127.0.0.1")


@contextmanager
def _echo_at(dag: str, host: str) -> Iterator[DatagramListener]:
    """A server that sends back what it gets, to each client."""
    threads: list[threading.Thread] = []

    def serve(connection: DatagramConnection) -> None:
        with connection, suppress(OSError):
            for item in connection:
                connection.send(item)

    def accept(listener: DatagramListener) -> None:
        for connection in listener:
            threads.append(threading.Thread(target=serve, args=(connection,)))
            threads[-1].start()

    listener = bertha_socket.new("server", dag).listen((host, 0))
    assert isinstance(listener, DatagramListener)
    threads.append(threading.Thread(target=accept, args=(listener,)))
    threads[0].start()
    try:
        yield listener
    finally:
        listener.close()
        for peer in list(listener._peers._plain.values()):
            peer.close()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()


@pytest.mark.parametrize(
    ("dag", "items", "types"),
    [
        ("reliable()", [b"one", b"", b"x" * 200_000], ["reliable"]),
        (
            "serialize() |> reliable()",
            [{"a": [1, None]}, "text", list(range(9000))],
            ["serialize", "reliable"],
        ),
        ("frame() |> compress() |> reliable() |> udp()", [b"m" * 5000], ["frame", "compress", "reliable"]),
        ("udp()", [b"datagram", b"y" * 9000], []),
    ],
)
def test_messages_and_objects(dag: str, items: list[Any], types: list[str]) -> None:
    """The client gives no DAG: it is the server's that counts, and that it is about datagrams."""
    with _echo(dag) as listener, bertha_socket.new("client").connect(listener.address) as connection:
        assert isinstance(connection, DatagramConnection)
        for item in items:
            connection.send(item)
            assert connection.recv(10) == item
        assert connection.plan is not None
        assert [c.type for c in connection.plan.chunnels] == types
        with pytest.raises(TimeoutError):
            connection.recv(0.01)


def test_many_at_one_listener() -> None:
    """Each gets what is his, whatever the order."""
    with _echo("serialize() |> reliable()") as listener:
        clients = [bertha_socket.new(f"c{i}", "reliable()").connect(listener.address) for i in range(12)]
        for round_ in range(3):
            for i, client in enumerate(clients):
                client.send([i, round_])
            for i, client in reversed(list(enumerate(clients))):
                assert client.recv(10) == [i, round_]
        for client in clients:
            client.close()


def test_the_end_is_told_by_reliable() -> None:
    """In both directions, after all that was sent."""
    listener = bertha_socket.new("server", "reliable()").listen(("127.0.0.1", 0))
    with listener, bertha_socket.new("client").connect(listener.address) as client:
        for i in range(300):
            client.send(b"%d" % i)
        client.end()
        with pytest.raises(BrokenPipeError):
            client.send(b"more")
        with listener.accept() as connection:
            assert list(connection) == [b"%d" % i for i in range(300)]
            connection.send(b"and back")
        assert client.recv(10) == b"and back"
        with pytest.raises(EOFError, match="client: the other end sends no more"):
            client.recv(10)


@pytest.mark.parametrize("dag", ["udp()", "reliable()"])
def test_after_the_other_end_has_closed_nothing_goes_plainly(dag: str) -> None:
    """The plan is over, and so is the connection."""
    listener = bertha_socket.new("server", dag).listen(("127.0.0.1", 0))
    with listener, bertha_socket.new("client").connect(listener.address) as client:
        client.send(b"x")
        connection = listener.accept()
        assert connection.recv(10) == b"x"
        connection.close()
        with pytest.raises(EOFError):
            client.recv(10)
        until = time.monotonic() + 30
        while time.monotonic() < until:  # `reliable` has half-closed, and gives up after 10 s
            try:
                client.send(b"y")
            except OSError:
                break
            time.sleep(0.05)
        with pytest.raises((BrokenPipeError, ConnectionError, EndpointError)):
            client.send(b"z")


@pytest.mark.parametrize("share", [0.05, 0.15])
def test_a_lossy_network(share: float) -> None:
    """Everything comes, once and in order, both ways at once."""
    items = [[i, "x" * (i * 61 % 3000)] for i in range(150)]
    listener = bertha_socket.new("server", "serialize() |> reliable()").listen(("127.0.0.1", 0))
    with listener, bertha_socket.new("client").connect(listener.address) as client:
        assert isinstance(client, DatagramConnection)
        with listener.accept() as server:
            for end in (client, server):
                lose(end._peers.udp, share)
            threads = [threading.Thread(target=_send_all, args=(end, items)) for end in (client, server)]
            for thread in threads:
                thread.start()
            for end in (server, client):
                assert [end.recv(60) for _ in items] == items
            for thread in threads:
                thread.join()


def _send_all(end: DatagramConnection, items: list[Any]) -> None:
    for item in items:
        end.send(item)


def test_one_that_does_not_receive_is_waited_for() -> None:
    """What waits for it is bounded, and nothing is lost."""
    listener = bertha_socket.new("server", "reliable()").listen(("127.0.0.1", 0))
    messages = [b"%d" % i for i in range(6000)]
    with listener, bertha_socket.new("client").connect(listener.address) as client:
        with listener.accept() as server:
            assert isinstance(client, DatagramConnection)
            thread = threading.Thread(target=_send_all, args=(client, messages))
            thread.start()
            time.sleep(0.5)
            assert thread.is_alive()
            assert len(server._items) <= 2 * QUEUE_MAX
            assert [server.recv(60) for _ in messages] == messages
            thread.join()


def test_threads_share_a_connection() -> None:
    with _echo("serialize() |> reliable()") as listener:
        with bertha_socket.new("client").connect(listener.address) as client:
            lists = [[[n, i] for i in range(40)] for n in range(5)]
            threads = [threading.Thread(target=_send_all, args=(client, part)) for part in lists]
            for thread in threads:
                thread.start()
            got = [client.recv(20) for _ in range(200)]
            assert [[x for x in got if x[0] == n] for n in range(5)] == lists


@pytest.mark.parametrize("host", ["::1", "localhost", ""])
def test_addresses(host: str) -> None:
    with _echo_at("reliable()", host) as listener:
        for name in {"::1": ["::1"], "localhost": ["localhost"], "": ["127.0.0.1"]}[host]:
            with bertha_socket.new("client").connect((name, listener.address[1])) as client:
                client.send(b"x")
                assert client.recv(10) == b"x"
                assert client.peer.endswith(f":{listener.address[1]}")


def test_encrypted_with_the_cluster_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = keys.make(str(tmp_path / "key"))
    monkeypatch.setattr(keys, "find", lambda: key)
    with _echo("frame() |> encrypt() |> reliable()") as listener:
        with bertha_socket.new("client").connect(listener.address) as connection:
            connection.send(b"secret")
            assert connection.recv(10) == b"secret"


def test_it_can_be_waited_for() -> None:
    """fileno() of a connection and of a listener."""
    listener = bertha_socket.new("server", "reliable()").listen(("127.0.0.1", 0))
    with listener:
        assert select.select([listener], [], [], 0)[0] == []
        with bertha_socket.new("client", "reliable()").connect(listener.address) as client:
            assert select.select([listener], [], [], 10)[0] == [listener]
            with listener.accept() as connection:
                assert select.select([listener, connection], [], [], 0)[0] == []
                client.send(b"x")
                assert select.select([connection], [], [], 10)[0] == [connection]
                assert connection.recv(0) == b"x"
                assert select.select([connection], [], [], 0)[0] == []
                client.end()
                assert select.select([connection], [], [], 10)[0] == [connection]
                with pytest.raises(EOFError):
                    connection.recv(0)


def test_what_cannot_be_had_is_refused() -> None:
    with _echo("reliable()") as listener:
        for dag, why in (
            ("encrypt() |> reliable()", "encrypt"),
            ("prohibit reliable() |> udp()", "reliable"),
        ):
            with pytest.raises(EndpointError, match=why):
                bertha_socket.new("client", dag).connect(listener.address)
        with bertha_socket.new("client").connect(listener.address) as connection:  # the listener goes on
            connection.send(b"x")
            assert connection.recv(10) == b"x"


def test_chunnels_that_do_not_fit_datagrams() -> None:
    """Both ends are told which, and that `reliable` helps."""
    with _echo("udp()") as listener:
        with pytest.raises(EndpointError, match=r"serialize gives a stream.*put reliable\(\) between"):
            bertha_socket.new("client", "serialize() |> udp()").connect(listener.address)


def test_streams_and_datagrams_are_told_apart() -> None:
    for dag in ("tcp() |> reliable()", "reliable() |> tcp()", "frame() |> udp() |> reliable()"):
        with pytest.raises(DagError):
            bertha_socket.new("x", dag)
    with _echo("reliable()") as listener:
        with pytest.raises(ConnectionRefusedError):  # it says that it is about streams
            bertha_socket.new("client", "frame()").connect(listener.address)


@pytest.mark.parametrize("dag", [None, "udp()", "reliable()"])
def test_nobody_is_there(dag: str | None) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        nobody = sock.getsockname()
    with pytest.raises(ConnectionRefusedError):
        bertha_socket.new("client", dag).connect(nobody)


def test_an_ordinary_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plainly where nothing is required, else refused."""
    monkeypatch.setattr(_endpoint_datagrams, "_STRANGER_SECONDS", 0.3)
    with socket.socket(type=socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        with bertha_socket.new("client", "udp()").connect(server.getsockname()) as client:
            while server.recv(2000, socket.MSG_PEEK).startswith(envelope.MAGIC):
                server.recv(2000)  # its questions
                if not select.select([server], [], [], 0)[0]:
                    break
            client.send(b"hello")
            data, origin = server.recvfrom(100)
            assert data == b"hello"
            server.sendto(b"world", origin)
            assert client.recv(10) == b"world"
            with pytest.raises(OSError, match="too long"):
                client.send(bytes(70_000))
        with pytest.raises(TimeoutError, match="reliable is required"):
            bertha_socket.new("client", "reliable()").connect(server.getsockname(), timeout=0.3)


def test_an_ordinary_client() -> None:
    with _echo("udp()") as listener, socket.socket(type=socket.SOCK_DGRAM) as client:
        client.connect(listener.address)
        client.settimeout(10)
        for data in (b"a", b"bb"):
            client.send(data)
            assert client.recv(100) == data
    with _echo("reliable()") as listener, socket.socket(type=socket.SOCK_DGRAM) as client:
        client.connect(listener.address)
        client.settimeout(0.3)
        client.send(b"not by the chunnel")
        with pytest.raises(TimeoutError):
            client.recv(100)


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("dag", ["udp()", "reliable()"])
def test_closed_by_another_thread(dag: str, ended: bool) -> None:
    """Who waits for a message is told, also where nothing is left to be said to the other end."""
    with bertha_socket.new("server", dag).listen(("127.0.0.1", 0)) as listener:
        assert isinstance(listener, DatagramListener)
        client = bertha_socket.new("client").connect(listener.address) if dag != "udp()" else None
        with socket.socket(type=socket.SOCK_DGRAM) as stranger:
            if client is None:
                stranger.sendto(b"a", listener.address)
            else:
                client.send(b"a")
            connection = listener.accept()
        assert connection.recv(10) == b"a"
        if ended:
            connection.end()
        found: list[OSError] = []

        def wait() -> None:
            try:
                connection.recv()
            except OSError as error:
                found.append(error)

        waiter = threading.Thread(target=wait)
        waiter.start()
        time.sleep(0.2)
        connection.close()
        waiter.join(10)
        assert [error.errno for error in found] == [errno.EBADF]
        if client is not None:
            client.close()


def test_noise_hurts_nobody() -> None:
    """Bytes of strangers, in our words or not, and the kinds of answers that only clients take."""
    with _echo("reliable()") as listener, socket.socket(type=socket.SOCK_DGRAM) as stranger:
        stranger.connect(listener.address)
        with bertha_socket.new("client").connect(listener.address) as connection:
            for kind in Kind:
                for body in (b"", b"\xff" * 40, envelope.ask(1, os.urandom(70_000))[envelope.HEAD.size :]):
                    stranger.send(envelope.sealed(kind, 7, body)[:60_000])
            stranger.send(b"\xbe")
            connection.send(b"x")
            assert connection.recv(10) == b"x"


def test_an_answer_is_not_much_longer_than_the_question() -> None:
    """So that somebody else's address in a question does not flood him."""
    with _echo("reliable()") as listener, socket.socket(type=socket.SOCK_DGRAM) as stranger:
        stranger.settimeout(0.3)
        question = envelope.ask(1, b"\0\0\0\1")
        stranger.sendto(question, listener.address)
        with suppress(TimeoutError):
            assert len(stranger.recv(2000)) <= 3 * len(question)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_any_question(data: bytes) -> None:
    """Is answered, or not; nothing is raised, and nothing becomes longer than agents may be."""
    for kind in (Kind.ASK, Kind.ANSWER):
        assert envelope.said(envelope.Envelope(kind, 1, data)) == b""
        came = envelope.opened(envelope.ask(5, data))
        assert came is not None
        assert envelope.said(came) == data
    bomb = envelope.opened(envelope.ask(5, bytes(envelope.SAID_MAX + 1)))
    assert bomb is not None
    assert envelope.said(bomb) == b""
    machine = Responder(None)
    machine.receive(data)
    assert len(machine.outgoing()) < 600


def test_a_chunnel_of_the_applications_own() -> None:
    """One whose unit is a message runs on datagrams, at both ends of an application."""

    @register_chunnel("upside", endpoints="both", scope="application")
    class Upside(Pipe):
        """Turns messages round."""

        upper = lower = Interface.MESSAGES

        def down(self, item: Any) -> list[bytes]:
            return [bytes(item)[::-1]]

    try:
        for dag in ("upside() |> reliable()", "upside() |> udp()"):
            with _echo(dag) as listener, bertha_socket.new("client").connect(listener.address) as client:
                assert client.plan is not None
                assert client.plan.chunnels[0].type == "upside"
                client.send(b"abc")
                assert client.recv(10) == b"abc"  # turned round twice
    finally:
        unregister("upside")


def test_a_child_says_that_it_is_its_parents() -> None:
    with _echo("reliable()") as listener, bertha_socket.new("client").connect(listener.address) as client:
        pid = os.fork()
        if pid == 0:
            code = 1
            with suppress(BaseException):
                try:
                    client.send(b"x")
                except EndpointError:
                    code = 0
            os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        client.send(b"y")
        assert client.recv(10) == b"y"


def test_the_connection_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERTHA_DISABLE", "0")
    monkeypatch.setenv("BERTHA_AGENT", str(tmp_path / "nobody"))
    monkeypatch.setenv("BERTHA_CONNLOG", str(tmp_path / "log"))
    with _echo("reliable()") as listener:
        with bertha_socket.new("client", "reliable()").connect(listener.address) as client:
            client.send(b"abc")
            client.recv(10)
    until = time.monotonic() + 15
    log = tmp_path / "log"
    while (not log.exists() or log.read_text().count("\n") < 2) and time.monotonic() < until:
        time.sleep(0.05)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted(line["role"] for line in lines) == ["client", "server"]
    for line in lines:
        assert [c["type"] for c in line["chunnels"]] == ["reliable", "local_or_remote"]
        assert (line["proto"], line["plain"], line["tx_bytes"], line["rx_bytes"]) == ("udp", False, 3, 3)


def test_a_policys_rule_for_udp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its chunnels go below the endpoint's own; one for TCP says nothing here."""
    policy = tmp_path / "bertha.toml"
    policy.write_text(
        '[[rule]]\nname = "server"\nproto = "tcp"\ndag = "compress()"\n'
        '[[rule]]\nname = "server"\nproto = "udp"\ndag = "frame() |> compress() |> reliable()"\n'
    )
    monkeypatch.setenv("BERTHA_POLICY", str(policy))
    with _echo("frame() |> udp()") as listener:
        with bertha_socket.new("client", "udp()").connect(listener.address) as connection:
            connection.send(b"x" * 10_000)
            assert connection.recv(10) == b"x" * 10_000
            assert connection.plan is not None
            assert [c.type for c in connection.plan.chunnels] == ["frame", "compress", "reliable"]
