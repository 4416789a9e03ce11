"""What stands at the right end of a DAG: where it may stand, and what it asks for."""

from __future__ import annotations

import pytest

import bertha_socket
from bertha_socket import policy
from bertha_socket._bottom import BOTTOM, check, upper, wished
from bertha_socket.dag import DagError, c, parse
from bertha_socket.negotiation.pick import Plan, Refusal, Wishes, allowed, pick


@pytest.mark.parametrize(
    ("text", "proto"),
    [
        ("tcp()", "tcp"),
        ("compress() |> encrypt() |> tcp()", "tcp"),
        ("compress() |> prefer tcp()", "tcp"),
        ("reliable() |> udp()", "udp"),
        ("(compress() |> encrypt())@host |> local_or_remote()", "tcp"),
        ("local_or_remote()", "udp"),
        ("local_or_remote()", "any"),
        ("", "any"),
    ],
)
def test_what_may_be_said(text: str, proto: str) -> None:
    check(parse(text), proto)
    assert not {x.type for x in upper(parse(text))} & BOTTOM


@pytest.mark.parametrize(
    ("text", "proto", "column", "said"),
    [
        ("tcp() |> compress()", "tcp", 1, "write it last"),
        ("compress() |> local_or_remote() |> encrypt()", "tcp", 15, "write it last"),
        ("tcp() |> tcp()", "tcp", 1, "write it last"),
        ("encrypt() |> udp()", "tcp", 14, 'proto = "udp"'),
        ("reliable() |> tcp()", "udp", 15, 'proto = "tcp"'),
        ("compress() |> tcp()", "any", 15, 'proto = "tcp"'),
        ("udp()", "any", 1, 'proto = "udp"'),
        ("prohibit local_or_remote()", "tcp", 10, "leave it out"),
        ("avoid tcp()", "tcp", 7, "leave it out"),
        ("local_or_remote(1)", "tcp", 1, "takes no arguments"),
        ('compress() |> tcp(nodelay="yes")', "tcp", 15, "takes no arguments"),
        ("tcp()@host", "tcp", 1, "no scope"),
        ("branch(by=payload[0], choices=[count() |> tcp(), count()])", "tcp", 43, "last of all"),
        ("branch(by=1, choices=[branch(by=1, choices=[tcp()])]) |> tcp()", "tcp", 45, "last of all"),
    ],
)
def test_what_may_not(text: str, proto: str, column: int, said: str) -> None:
    with pytest.raises(DagError) as caught:
        check(parse(text), proto)
    assert caught.value.column == column
    assert said in str(caught.value) and f"column {column}: " in str(caught.value)
    with pytest.raises(policy.PolicyError, match=rf"rule 1, dag: column {column}: "):
        policy.parse(f"[[rule]]\nproto = '{proto}'\ndag = '''{text}'''\n")


def test_without_a_text_there_is_no_column() -> None:
    with pytest.raises(DagError, match="write it last") as caught:
        bertha_socket.new("x", c.tcp() | c.compress())
    assert caught.value.column is None
    with pytest.raises(DagError, match="column 12: udp"):
        bertha_socket.new("x", "frame() |> udp() |> count()")


def test_what_tcp_asks_for() -> None:
    """It is the rule's own wish, whatever else its lists say about chunnels."""
    assert wished(parse("tcp()"), Wishes(require=("shm", "encrypt/native"))).require == (
        "encrypt/native",
        "tcp",
    )
    assert wished(parse("prefer tcp()"), Wishes(prefer=("unix", "tcp"))).prefer == ("tcp", "unix")
    for text in ("local_or_remote()", "compress()", ""):
        assert wished(parse(text), Wishes(prefer=("unix",))) == Wishes(prefer=("unix",))
    wants, nothing = wished(parse("count() |> tcp()"), Wishes()), Wishes()
    assert allowed(wants) == ("tcp",)
    for client, server in ((wants, nothing), (nothing, wants)):
        assert isinstance(pick(client, server, same_user=True), Refusal)
    preferred = wished(parse("prefer tcp()"), Wishes())
    assert isinstance(pick(preferred, nothing, same_user=True), Refusal)
    client_first = pick(Wishes(prefer=("shm",)), preferred, same_user=True)
    assert isinstance(client_first, Plan) and client_first.implementation == "shm"


@pytest.mark.parametrize(
    ("lists", "key"),
    [
        ('require = ["shm"]', "require"),
        ('require = ["unix", "shm"]', "require"),
        ('prohibit = ["tcp"]', "prohibit"),
        ('avoid = ["tcp"]', "avoid"),
    ],
)
def test_lists_that_contradict_it(lists: str, key: str) -> None:
    with pytest.raises(policy.PolicyError, match=f"rule 1, {key}: it leaves no room for the tcp"):
        policy.parse(f'[[rule]]\ndag = "tcp()"\n{lists}\n')


def test_lists_that_do_not() -> None:
    lists = 'require = ["tcp", "shm", "encrypt/native"]\nprohibit = ["unix"]'
    text = f'[[rule]]\ndag = "encrypt() |> tcp()"\n{lists}\n'
    (rule,) = policy.parse(text).rules
    assert allowed(policy.carrying(rule)) == ("tcp",)
    assert rule.wishes.require == ("tcp", "shm", "encrypt/native")  # as in the file
