"""`shard`: which choice a message is for, what its arguments may be, and who may ask for it."""

from __future__ import annotations

import threading
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bertha_socket
from bertha_socket import keys
from bertha_socket._endpoint import EndpointError
from bertha_socket._endpoint_offer import offer_for
from bertha_socket.chunnels import ChunnelArgumentError, ChunnelError, Context, get
from bertha_socket.chunnels.shard import place_of, shard
from bertha_socket.dag import DagError, parse, wrap
from bertha_socket.expressions import parse_expression
from bertha_socket.negotiation.choose import choose
from bertha_socket.negotiation.plan import Plan, Refusal

_PLACES = ["127.0.0.1:7001", "[::1]:7002", "name:7003"]


def _pipe(by: object, places: list[Any] = _PLACES) -> Any:
    chunnel = shard(places, by)
    kind = get("shard")
    make = kind.implementations[0].make
    assert make is not None
    return make(kind.bind(chunnel), "none", "server", Context("server"))


@given(st.binary(max_size=40), st.integers(1, 9))
def test_the_expressions_value_modulo_the_choices(message: bytes, count: int) -> None:
    pipe = _pipe("hash(payload[1:5])", [f"10.0.0.{i}:7000" for i in range(count)])
    ups, downs = pipe.up(message)
    assert list(downs) == []
    assert list(ups) == [(parse_expression("hash(payload[1:5])").evaluate(message) % count, message)]
    assert list(pipe.down(next(iter(ups)))) == [message] == list(pipe.down(message))


@given(st.lists(st.binary(max_size=20), max_size=20))
def test_a_function_says_the_same(messages: list[bytes]) -> None:
    pipe, function = _pipe("len(payload)"), _pipe(len)
    assert [list(pipe.up(m)[0]) for m in messages] == [list(function.up(m)[0]) for m in messages]


def test_a_message_without_a_choice_is_an_error() -> None:
    for pipe in (_pipe("payload[9]"), _pipe(lambda m: m[9])):
        with pytest.raises(ChunnelError, match="shard: there is no choice"):
            pipe.up(b"short")


def test_places() -> None:
    made = shard([("127.0.0.1", 7001), ("::1", 7002), "name:7003"], "payload[0]")
    assert parse(str(made)) == wrap(made)
    assert [place_of(c) for c in dict(made.kwargs)["choices"]] == [
        ("127.0.0.1", 7001),
        ("::1", 7002),
        ("name", 7003),
    ]
    thing = object()
    named = dict(shard([thing, thing], "payload[0]").kwargs)["choices"]
    assert named[0] == named[1]
    assert place_of(named[0]) is thing
    with pytest.raises(ChunnelArgumentError, match="not of this process"):
        place_of("here:999999")


@pytest.mark.parametrize("choices", [[], ["nowhere"], ["a:0"], ["a:65536"], ["a:x"], [":1"], ["a:1"] * 257])
def test_what_is_no_place(choices: list[Any]) -> None:
    with pytest.raises(ChunnelArgumentError, match="shard: choices is"):
        shard(choices, "payload[0]")


def test_what_is_no_function() -> None:
    with pytest.raises(DagError):
        shard(_PLACES, "import os")
    with pytest.raises(ChunnelArgumentError, match="should be an expression"):
        get("shard").bind(parse('shard(choices=["a:1"], by="x")').chunnels[0])


def test_a_client_cannot_ask_a_server_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would decide where the server connects to."""
    monkeypatch.setattr(keys, "find", lambda: None)
    place = ("127.0.0.1", 1)
    ours = wrap(shard(_PLACES, "payload[0]") | parse("frame()"))
    client, server = offer_for("c", ours, "client", place), offer_for("s", parse("frame()"), "server", place)
    assert isinstance(choose(client, server), Refusal)
    own = offer_for("s", ours, "server", place)
    plan = choose(offer_for("c", parse(""), "client", place), own)
    assert isinstance(plan, Plan)
    first = plan.chunnels[0]
    assert (first.type, first.client, first.server) == ("shard", None, "python")
    others = wrap(shard(["10.0.0.1:22"], "payload[0]") | parse("frame()"))
    plan = choose(offer_for("c", others, "client", place), own)
    assert isinstance(plan, Refusal) or dict(plan.chunnels[0].args)["choices"] == tuple(_PLACES)


@pytest.mark.parametrize("dag", ["frame()", "reliable()"])
def test_serve(monkeypatch: pytest.MonkeyPatch, dag: str) -> None:
    """Over streams and over datagrams: the answers come back, a choice that is gone ends its client alone."""
    monkeypatch.setenv("BERTHA_DISABLE", "1")
    monkeypatch.setattr(keys, "find", lambda: None)

    def answer(listener: Any, name: bytes) -> None:
        with suppress(OSError):  # it is closed at the end
            for connection in listener:
                with connection:
                    for message in connection:
                        if message == b"\0go":
                            break
                        connection.send(name + message)

    def serve() -> None:
        with suppress(OSError):
            service.serve()

    threads: list[threading.Thread] = []
    with ExitStack() as stack:
        places = []
        for name in (b"zero:", b"one:"):
            listener = stack.enter_context(bertha_socket.new("shard", dag).listen(("127.0.0.1", 0)))
            places.append(listener.address)
            threads.append(threading.Thread(target=answer, args=(listener, name), daemon=True))
        whole = shard(places, "payload[0]") | parse(dag)
        service = stack.enter_context(bertha_socket.new("service", whole).listen(("127.0.0.1", 0)))
        threads.append(threading.Thread(target=serve, daemon=True))
        for thread in threads:
            thread.start()
        for _ in range(2):
            with bertha_socket.new("client", dag).connect(service.address) as client:
                for message in (b"\0a", b"\1b", b"\0c"):
                    client.send(message)
                    assert client.recv(10) == (b"zero:", b"one:")[message[0]] + message
                client.send(b"\0go")
                with pytest.raises((EOFError, EndpointError, ConnectionError)):
                    client.recv(10)
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_serve_is_for_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERTHA_DISABLE", "1")
    monkeypatch.setattr(keys, "find", lambda: None)
    service = bertha_socket.new("service", "reliable()").listen(("127.0.0.1", 0))
    with pytest.raises(ChunnelArgumentError, match="uppermost chunnel is shard"):
        service.serve()
    service.close()
