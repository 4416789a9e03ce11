"""The paper's API: bertha_socket.new(name, wrap(...)).listen() and .connect()."""

from __future__ import annotations

import errno
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import bertha_socket
from bertha_socket import _endpoint, keys
from bertha_socket._endpoint import EndpointError, Listener
from bertha_socket._endpoint_offer import Terms, offer_for, required_of
from bertha_socket.chunnels import serialize
from bertha_socket.dag import parse


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process nothing is to be redirected, and nobody's cluster key is to be found."""
    monkeypatch.setenv("BERTHA_DISABLE", "1")
    monkeypatch.setattr(keys, "find", lambda: None)


@contextmanager
def _echo(dag: str | None, refusal: str | None = None, host: str = "127.0.0.1") -> Iterator[Listener]:
    """A server that sends back what it gets, to one client, or refuses it, saying so."""
    wrong: list[BaseException] = []

    def serve(listener: Listener) -> None:
        try:
            with listener.accept() as connection:
                for item in connection:
                    connection.send(item)
        except EndpointError as error:
            wrong.append(error)

    with bertha_socket.new("server", dag).listen((host, 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            yield listener
        finally:
            thread.join(20)
            assert not thread.is_alive()
    assert [str(w) for w in wrong if refusal is None or refusal not in str(w)] == []
    assert bool(wrong) is (refusal is not None)


def _rest(client: socket.socket) -> bytes:
    """What comes until the end; a reset is one too."""
    got = b""
    with suppress(ConnectionResetError):
        while data := client.recv(4096):
            got += data
    return got


def test_without_chunnels_it_is_a_call_in_c() -> None:
    """Also for bytes that are many, for what is no bytes object, and at the end."""
    with _echo(None) as listener, bertha_socket.new("client").connect(listener.address) as connection:
        assert type(connection.send).__name__ == "builtin_function_or_method"
        assert type(connection.recv).__name__ == "builtin_function_or_method"
        for item in (b"x", bytearray(b"y" * 64), memoryview(b"z" * 300_000)):
            connection.send(item)
            got = b""
            while len(got) < len(item):
                got += connection.recv(timeout=10)
            assert got == bytes(item)
        with pytest.raises(TimeoutError):
            connection.recv(0.01)
        with pytest.raises(TypeError):
            connection.recv(1, 2)  # type: ignore[call-arg]
        with pytest.raises(TypeError):
            connection.send("text")
        connection.end()
        with pytest.raises(EOFError, match="client: the other end sends no more"):
            connection.recv(None)
        send, recv = connection.send, connection.recv
    for use in (lambda: send(b"x"), recv, lambda: recv(1)):  # the number may be somebody else's by now
        with pytest.raises(OSError, match=r"Bad file descriptor"):
            use()


def test_a_signal_interrupts_a_recv() -> None:
    """Its handler runs, and may raise."""

    class Enough(Exception):
        pass

    def enough(*_: object) -> None:
        raise Enough

    before = signal.signal(signal.SIGALRM, enough)
    try:
        with _echo(None) as listener, bertha_socket.new("client").connect(listener.address) as connection:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(Enough):
                connection.recv()
            connection.send(b"still there")
            assert connection.recv(10) == b"still there"
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    ("dag", "items"),
    [
        ("frame()", [b"one", b"", b"x" * 200_000]),
        ("serialize()", [{"a": [1, 2.5, None]}, "text", b"bytes"]),
        ("serialize() |> compress()", [list(range(2000))]),
        ("frame() |> compress()", [b"message"]),
        ("http2()", [b"one", b"", b"x" * 200_000]),
        ("http2() |> compress()", [b"message"]),
        (
            "branch(by=len(payload) % 2, choices=[count(), frame() |> compress()]) |> frame()",
            [b"odd", b"even", b"", b"x" * 100_001],
        ),
        (
            "serialize() |> branch(by=len(payload) % 3, choices=[count(), compress(), frame()])",
            [{"a": [1, 2.5, None]}, "text", "te", "t", list(range(3000))],
        ),
    ],
)
def test_messages_and_objects(dag: str, items: list[Any]) -> None:
    """The client gives no DAG: it is the server's that counts."""
    with _echo(dag) as listener, bertha_socket.new("client").connect(listener.address) as connection:
        for item in items:
            connection.send(item)
            assert connection.recv(10) == item
        connection.end()
        with pytest.raises(EOFError):
            connection.recv(10)


@pytest.mark.parametrize(
    ("own", "others", "wire"),
    [
        ('serialize(codec="json")', None, "json/1"),
        ('serialize(codec="reversed")', None, "reversed/1"),
        ('serialize(codec="reversed") |> compress()', "serialize()", "reversed/1"),
        ("serialize()", 'serialize(codec="reversed")', "reversed/1"),
        ("serialize()", None, "msgpack/1"),
    ],
)
def test_codecs(monkeypatch: pytest.MonkeyPatch, own: str, others: str | None, wire: str) -> None:
    """An end that names none takes the other's: JSON, or one that both have registered."""
    monkeypatch.setattr(serialize, "_codecs", {})
    bertha_socket.register_codec(
        "reversed", lambda o: json.dumps(o).encode()[::-1], lambda b: json.loads(b[::-1])
    )
    with _echo(own) as listener, bertha_socket.new("client", others).connect(listener.address) as connection:
        for item in ({"a": [1, 2.5, None]}, "text", [], list(range(5000))):
            connection.send(item)
            assert connection.recv(10) == item
        assert connection.plan is not None
        assert connection.plan.chunnels[0].wire == wire


def test_a_codec_that_only_one_end_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason says what each has.  (Both ends are this process: the server has settled its own.)"""
    monkeypatch.setattr(serialize, "_codecs", {})
    bertha_socket.register_codec("mine", json.dumps, json.loads)  # type: ignore[arg-type]
    with _echo('serialize(codec="mine")', "no wire in common") as listener:
        monkeypatch.setattr(serialize, "_codecs", {})
        with pytest.raises(EndpointError, match=r"serialize.*msgpack/1,json/1\).*mine/1\)"):
            bertha_socket.new("client").connect(listener.address)


def test_a_codec_that_is_not_registered_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither end gets as far as a connection with it."""
    monkeypatch.setattr(serialize, "_codecs", {})
    with pytest.raises(OSError, match=r"no codec 'mine' here; bertha_socket\.register_codec\(\) it first"):
        bertha_socket.new("server", 'serialize(codec="mine")').listen(("127.0.0.1", 0))
    with socket.create_server(("127.0.0.1", 0)) as server:
        with pytest.raises(OSError, match="no codec 'mine' here"):
            bertha_socket.new("client", 'prefer serialize(codec="mine")').connect(server.getsockname())


def test_registering_codecs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of which a wire can be made, and so many as an offer has room for."""
    monkeypatch.setattr(serialize, "_codecs", {})
    for name in ("json", "msgpack", "", "a b", "n\xe4he", "x" * 61, "1st"):
        with pytest.raises(OSError, match="no name for a codec"):
            bertha_socket.register_codec(name, bytes, bytes)
    for name in (*"abcde", "f" * 60, "a"):
        bertha_socket.register_codec(name, bytes, bytes)
    with pytest.raises(OSError, match="6 codecs are registered"):
        bertha_socket.register_codec("g", bytes, bytes)
    (able,) = [t for t in offer_for("x", parse(""), "client", ("127.0.0.1", 1)).able if t.type == "serialize"]
    assert able.implementations[0].wires[:3] == ("msgpack/1", "json/1", "a/1")
    assert f"{'f' * 60}/1" in able.implementations[0].wires


@pytest.mark.parametrize("dag", [None, "local_or_remote()", "compress()"])
def test_bytes(dag: str | None) -> None:
    data = bytes(range(256)) * 500
    with _echo(dag) as listener, bertha_socket.new("client").connect(listener.address) as connection:
        connection.send(data)
        got = b""
        while len(got) < len(data):
            got += connection.recv(10)
        assert got == data


def test_encrypted_with_the_cluster_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = keys.make(str(tmp_path / "key"))
    monkeypatch.setattr(keys, "find", lambda: key)
    with _echo("frame() |> encrypt()") as listener:
        with bertha_socket.new("client").connect(listener.address) as connection:
            connection.send(b"secret")
            assert connection.recv(10) == b"secret"
            assert connection.plan is not None
            assert [c.type for c in connection.plan.chunnels] == ["frame", "encrypt"]


def test_several_addresses_the_first_that_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        nobody = gone.getsockname()
    with _echo("frame()") as listener:
        with bertha_socket.new("client").connect([nobody, listener.address]) as connection:
            connection.send(b"x")
            assert connection.recv(10) == b"x"


def test_what_cannot_be_had_is_refused_at_both_ends() -> None:
    """Without a cluster key there is no `encrypt`; the reason names it."""
    with _echo("encrypt()", "encrypt") as listener:
        with pytest.raises(EndpointError, match="encrypt"):
            bertha_socket.new("client").connect(listener.address)


def test_an_unaware_client_is_refused_where_a_chunnel_is_required() -> None:
    with _echo("compress()", "compress is required") as listener:
        with socket.create_connection(listener.address) as client:
            client.sendall(b"GET")
            assert _rest(client) == b""


def test_an_unaware_client_is_served_plain_otherwise() -> None:
    with _echo("prefer compress()") as listener, socket.create_connection(listener.address) as client:
        client.sendall(b"hello")
        client.shutdown(socket.SHUT_WR)
        assert _rest(client) == b"hello"


@pytest.mark.parametrize(
    "noise", [b"\xbeBRN\r\n\x00\x00\x00\x01x", b"\xbeBRN\r\n\xff\xff\xff\xff", b"\xbeBRN"]
)
def test_strangers_at_the_port_are_refused(noise: bytes) -> None:
    with _echo("frame()", "server: ") as listener, socket.create_connection(listener.address) as client:
        client.sendall(noise)
        with suppress(OSError):  # refused and reset already
            client.shutdown(socket.SHUT_WR)
        _rest(client)


def test_a_policy_is_in_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule's chunnels go below the program's own, in their order; of one type the stronger need counts."""
    policy = tmp_path / "bertha.toml"
    policy.write_text(
        '[[rule]]\nname = "other"\ndag = "frame()"\n'
        '[[rule]]\nname = "mine"\nport = 7000\ndag = "compress(level=9) |> encrypt()"\n'
        'prohibit = ["count/*"]\n'
    )
    monkeypatch.setenv("BERTHA_POLICY", str(policy))

    def chunnels(name: str, dag: str, port: int) -> list[str]:
        offer = offer_for(name, parse(dag), "server", ("127.0.0.1", port))
        return [f"{c.need.value} {c.type}{dict(c.args)}" for c in offer.chunnels]

    assert chunnels("mine", "frame()", 7000) == [
        "require frame{}",
        "require compress{'level': 9}",
        "require encrypt{}",
    ]
    assert chunnels("mine", "prefer encrypt()", 7000) == ["require compress{'level': 9}", "require encrypt{}"]
    assert chunnels("mine", "prefer compress(level=3)", 7000)[0] == "require compress{'level': 3}"
    assert chunnels("mine", "frame()", 7001) == ["require frame{}"]
    offer = offer_for("mine", parse("frame()"), "server", ("127.0.0.1", 7000))
    assert offer.rules.prohibit == ("count/*",)
    policy.write_text("[[rule]]\nnonsense = 1\n")
    with pytest.raises(OSError, match="nonsense"):
        bertha_socket.new("mine").listen(("127.0.0.1", 0))


def test_a_client_that_waits_for_the_servers_first_word() -> None:
    """It may be one that knows of no chunnels: after a while it is served, where none is required."""
    with bertha_socket.new("greeter", "prefer compress()").listen(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.address, timeout=30) as client:
            with listener.accept() as connection:
                assert connection.plan is None
                connection.send(b"hello")
                assert client.recv(100) == b"hello"
                client.sendall(b"thanks")
                assert connection.recv(30) == b"thanks"
                client.shutdown(socket.SHUT_WR)
                with pytest.raises(EOFError):
                    connection.recv(30)


def test_a_wildcard_listener_under_rules_by_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule about one of this host's addresses is in force there, and nowhere is less required."""
    policy = tmp_path / "bertha.toml"
    policy.write_text('[[rule]]\nside = "server"\naddress = "127.0.0.0/8"\ndag = "compress()"\n')
    monkeypatch.setenv("BERTHA_POLICY", str(policy))
    terms = Terms("mine", parse("prefer frame()"), ("0.0.0.0", 7000))
    assert required_of(terms.offer) == ["compress"]
    assert terms.required("10.1.2.3", 7000) == ["compress"]
    assert required_of(terms.at("10.1.2.3", 7000)) == []
    with _echo("prefer frame()", "compress is required", host="0.0.0.0") as listener:
        with socket.create_connection(("127.0.0.1", listener.address[1])) as client:
            client.sendall(b"GET")
            assert _rest(client) == b""
    with _echo("prefer frame()", host="0.0.0.0") as listener:
        with bertha_socket.new("client").connect(("127.0.0.1", listener.address[1])) as connection:
            connection.send(b"hello")
            assert connection.recv(10) == b"hello"
            assert connection.plan is not None
            assert [c.type for c in connection.plan.chunnels] == ["frame", "compress"]


class _Ordinary:
    """A server that knows nothing of us: answers lines, greets first, or closes at what it does not like."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.came: list[bytes] = []
        self.server = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self.server.getsockname()
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            client, _ = self.server.accept()
            with client, suppress(ConnectionError):  # who is greeted otherwise leaves at once
                if self.kind == "greets":
                    client.sendall(b"220 ready\r\n")
                data = client.recv(100)
                self.came.append(data)
                if data == b"stop\n":
                    return
                if self.kind != "closes" or data.startswith(b"hello"):
                    client.sendall(b"you said " + data[:5])

    def __enter__(self) -> _Ordinary:
        return self

    def __exit__(self, *_: object) -> None:
        with socket.create_connection(self.address, timeout=20) as client:
            client.sendall(b"stop\n")
        self.thread.join(20)
        self.server.close()
        assert not self.thread.is_alive()


@pytest.mark.parametrize("kind", ["answers", "greets", "closes"])
@pytest.mark.parametrize("dag", [None, "prefer compress() |> prefer encrypt()"])
def test_an_ordinary_server_is_reached_plainly(kind: str, dag: str | None) -> None:
    """Nothing is required and nobody tells what is there."""
    with _Ordinary(kind) as server:
        for _ in range(2):
            with bertha_socket.new("client", dag).connect(server.address) as connection:
                assert connection.plan is None
                connection.send(b"hello")
                got = b""
                for more in connection:
                    got += more
                assert got.endswith(b"you said hello")
        # What it answered is remembered, so that it hears of us once.
        assert sum(data.startswith(b"\xbe") for data in server.came) == (2 if kind == "closes" else 1)


@pytest.mark.parametrize("kind", ["answers", "greets", "closes"])
def test_an_ordinary_server_is_refused_where_a_chunnel_is_required(kind: str) -> None:
    with _Ordinary(kind) as server:
        with pytest.raises(EndpointError, match=r"^.*127\.0\.0\.1 port .*compress is required: run "):
            bertha_socket.new("client", "prefer frame() |> compress()").connect(server.address)


def test_a_silent_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is taken for an ordinary one after a while; where something is required it has not answered."""
    monkeypatch.setattr(_endpoint, "_STRANGER_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as server:
        with bertha_socket.new("client").connect(server.getsockname()) as connection:
            assert connection.plan is None
        with pytest.raises(TimeoutError, match="compress is required"):
            bertha_socket.new("client", "compress()").connect(server.getsockname(), timeout=0.05)


def test_closing_a_listener_ends_what_waits_there() -> None:
    listener = bertha_socket.new("server").listen(("127.0.0.1", 0))
    said: list[OSError] = []

    def wait() -> None:
        try:
            listener.accept()
        except OSError as error:
            said.append(error)

    threads = [threading.Thread(target=wait, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    listener.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert [error.errno for error in said] == [errno.EBADF] * 3
    listener.close()
