"""The wire format: Python's structs are C's, and nothing but BadMessage comes out of garbage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertha_socket._native import lib
from bertha_socket.agent import limits, messages
from bertha_socket.agent.messages import BadMessage, CarrierKind, DagNeed, Op, Verdict
from bertha_socket.reasons import Reason
from tests.agent.shim import hello_body

_PARSERS = (
    messages.parse_hello,
    messages.parse_listen,
    messages.parse_unlisten,
    messages.parse_connect,
    messages.parse_link,
    messages.parse_bell,
    messages.parse_resolve,
    messages.parse_negotiate,
    messages.parse_carrier,
    messages.parse_bring,
)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("msg", messages.HEADER),
        ("hello", messages.HELLO),
        ("hello_reply", messages.HELLO_REPLY),
        ("listen", messages.LISTEN),
        ("listen_reply", messages.LISTEN_REPLY),
        ("unlisten", messages.UNLISTEN),
        ("connect", messages.CONNECT),
        ("link", messages.LINK),
        ("link_reply", messages.LINK_REPLY),
        ("bell", messages.BELL),
        ("resolve", messages.RESOLVE),
        ("resolve_reply", messages.RESOLVE_REPLY),
        ("negotiate", messages.NEGOTIATE),
        ("negotiate_reply", messages.NEGOTIATE_REPLY),
        ("carrier_request", messages.CARRIER),
    ],
)
def test_sizes_are_those_of_the_header(name: str, form: object) -> None:
    assert getattr(form, "size") == getattr(lib, f"SIZEOF_bertha_{name}")  # noqa: B009


def test_numbers_are_those_of_the_header() -> None:
    assert messages.MAGIC == lib.BERTHA_MSG_MAGIC
    assert messages.VERSION == lib.BERTHA_PROTOCOL_VERSION
    assert messages.LAYOUT_VERSION == lib.BERTHA_LAYOUT_VERSION
    assert messages.MESSAGE_MAX == lib.BERTHA_MSG_MAX
    assert messages.RESOLVE_MAX == lib.BERTHA_RESOLVE_MAX
    assert messages.BRING_MAX == lib.BERTHA_BRING_MAX
    for op in Op:
        assert op == getattr(lib, f"BERTHA_OP_{op.name}")
    for name in ("SHM", "UNIX", "TCP"):
        assert getattr(messages, f"IMPL_{name}") == getattr(lib, f"BERTHA_IMPL_{name}")
    for kind, enum in (("DAG", DagNeed), ("VERDICT", Verdict), ("CARRIER", CarrierKind)):
        for member in enum:
            assert member == getattr(lib, f"BERTHA_{kind}_{member.name}")
    assert messages.HELLO_CLIENT_DAGS == lib.BERTHA_HELLO_CLIENT_DAGS
    for reason in Reason:
        assert reason == getattr(lib, f"BERTHA_WHY_{reason.name}")
    assert max(Reason) + 1 == lib.BERTHA_WHY_COUNT
    assert limits.ENTRIES_PER_USER < lib.BERTHA_DIR_ENTRIES


@given(st.binary(max_size=200))
def test_garbage_is_a_bad_message(data: bytes) -> None:
    with pytest.raises(BadMessage):
        messages.parse(data)


@given(st.binary(max_size=4000), st.sampled_from(_PARSERS))
def test_a_body_parses_or_is_bad(body: bytes, parse: object) -> None:
    assert callable(parse)
    try:
        parse(body)
    except BadMessage:
        pass


@given(st.integers(0, len(hello_body()) - 1), st.binary(min_size=1, max_size=64))
def test_a_damaged_hello_parses_or_is_bad(at: int, damage: bytes) -> None:
    body = hello_body(argv=("redis-server", "--port", "1"))
    damaged = (body[:at] + damage + body[at + len(damage) :])[: len(body)]
    try:
        hello = messages.parse_hello(damaged)
    except BadMessage:
        return
    assert len(hello.program) < 64 and "\0" not in hello.program
    assert not hello.policy or hello.policy.startswith("/")


def test_hello_says_what_was_packed() -> None:
    hello = messages.parse_hello(
        hello_body(program="p", exe="/bin/p", argv=("p", "", "-x"), name="n", policy="/etc/f")
    )
    assert (hello.program, hello.exe, hello.argv) == ("p", "/bin/p", ("p", "", "-x"))
    assert (hello.name, hello.policy) == ("n", "/etc/f")


@pytest.mark.parametrize(
    "head",
    [
        (messages.MAGIC + 1, messages.VERSION, 1, 1, 0),
        (messages.MAGIC, messages.VERSION + 1, 1, 1, 0),
        (messages.MAGIC, messages.VERSION, 99, 1, 0),
        (messages.MAGIC, messages.VERSION, 1, 1, 5),
    ],
)
def test_a_header_must_be_a_request_of_ours(head: tuple[int, ...]) -> None:
    with pytest.raises(BadMessage):
        messages.parse(messages.HEADER.pack(*head))


def test_a_resolve_of_too_many_is_bad() -> None:
    body = messages.RESOLVE.pack(b"", b"", 1, 2, 9, *range(8))
    with pytest.raises(BadMessage):
        messages.parse_resolve(body)


def test_a_refusal_has_no_body() -> None:
    assert len(messages.reply(4, 1, Reason.POLICY, b"body")) == messages.HEADER.size


@given(st.text(max_size=900))
def test_a_detail_is_one_line_that_fits(text: str) -> None:
    line = messages.one_line(text)
    assert len(line) < 400 and b"\n" not in line
    line.decode("utf-8")
    packed = messages.pack_negotiate_reply(Verdict.PLAIN, CarrierKind.NATIVE, 5, b"plan", text, 7)
    assert len(packed) == messages.NEGOTIATE_REPLY.size + 4
    assert messages.NEGOTIATE_REPLY.unpack_from(packed)[-1][-1:] == b"\0"


def test_where_registered_classes_are() -> None:
    body = b"rot\0/usr/lib/a b.py:Rot\0other\0their.module:Outer.Inner\0"
    assert messages.parse_bring(body) == {"rot": "/usr/lib/a b.py:Rot", "other": "their.module:Outer.Inner"}
    assert messages.parse_bring(b"") == {}


@pytest.mark.parametrize(
    "body",
    [
        b"rot\0/a.py:Rot",
        b"rot\0",
        b"rot\0/a.py:Rot\0rot\0/b.py:Rot\0",
        b"rot\0a.py/b:Rot\0",
        b"rot\0../a.py:Rot\0",
        b"rot\0/a.so:Rot\0",
        b"rot\0/a.py:Rot()\0",
        b"rot\0a..b:Rot\0",
        b"rot\0:Rot\0",
        b"a/b\0/a.py:Rot\0",
        b"\xff\0/a.py:Rot\0",
        b"r" * 65 + b"\0/a.py:Rot\0",
        b"rot\0/" + b"a" * 8192 + b".py:Rot\0",
    ],
)
def test_what_is_no_class(body: bytes) -> None:
    with pytest.raises(BadMessage):
        messages.parse_bring(body)
