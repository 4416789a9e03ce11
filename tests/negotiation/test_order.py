"""The order of a union of two DAGs (docs/decisions/0005)."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertha_socket.negotiation.offer import OfferedChunnel, layer_of
from bertha_socket.negotiation.order import union

LETTERS = "abcd"
#: Single chunnels by letter, the layer given by the letter's case.
dags = st.lists(st.sampled_from("abcdWXYZ"), max_size=6).map("".join)
sets = st.lists(st.sampled_from("abcdWXYZ"), max_size=6, unique=True).map("".join)


def chunnels(text: str) -> list[OfferedChunnel]:
    return [OfferedChunnel(c, layer=20 if c.isupper() else 60) for c in text]


def united(client: str, server: str) -> str:
    return "".join(pair.type for pair in union(chunnels(client), chunnels(server)))


def types(client: list[str], server: list[str]) -> list[str]:
    made = [[OfferedChunnel(t, layer=layer_of(t)) for t in side] for side in (client, server)]
    return [pair.type for pair in union(*made)]


@pytest.mark.parametrize(
    ("client", "server", "order"),
    [
        ("", "", ""),
        ("", "ab", "ab"),
        ("ab", "", "ab"),
        ("ab", "ab", "ab"),
        ("ba", "ab", "ab"),
        ("xa", "ab", "xab"),
        ("ax", "ab", "abx"),
        ("xby", "abc", "axbcy"),
        ("A", "b", "Ab"),
        ("a", "B", "Ba"),
        ("a", "b", "ba"),
        ("aa", "a", "aa"),
        # b before a is the server's; that x is before both is nobody's to contradict.
        ("xab", "ba", "xba"),
    ],
)
def test_orders(client: str, server: str, order: str) -> None:
    assert united(client, server) == order


@pytest.mark.parametrize(
    ("client", "server"),
    [
        (["encrypt"], ["compress"]),
        (["compress"], ["encrypt"]),
        (["encrypt", "compress"], ["compress", "encrypt"]),
    ],
)
def test_what_is_compressed_is_not_encrypted_yet(client: list[str], server: list[str]) -> None:
    assert types(client, server) == ["compress", "encrypt"]


def test_a_whole_stack_is_put_together() -> None:
    assert types(["encrypt", "tcp"], ["serialize", "frame", "compress"]) == [
        "serialize",
        "frame",
        "compress",
        "encrypt",
        "tcp",
    ]


@given(dags, dags)
def test_each_chunnel_is_there_once(client: str, server: str) -> None:
    assert Counter(united(client, server)) == Counter(client) | Counter(server)


@given(dags, dags)
def test_the_servers_order_holds(client: str, server: str) -> None:
    pairs = union(chunnels(client), chunnels(server))
    assert "".join(p.type for p in pairs if p.server is not None) == server


@given(sets, sets)
def test_the_clients_order_holds_where_the_server_does_not_contradict(client: str, server: str) -> None:
    shared = [c for c in client if c in server]
    if shared == sorted(shared, key=server.index):
        assert [c for c in united(client, server) if c in client] == list(client)


@given(sets)
def test_a_dag_of_one_end_stays_as_it_is(dag: str) -> None:
    assert united(dag, "") == united("", dag) == united(dag, dag) == dag


@given(st.sampled_from("abcd"), st.sampled_from("WXYZ"))
def test_what_nobody_orders_goes_by_layer(low: str, high: str) -> None:
    assert united(low, high) == united(high, low) == high + low
