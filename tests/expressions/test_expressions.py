"""Expressions on messages: their values, their text, and anything else that might be one."""

from __future__ import annotations

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from bertha_socket.dag import DagError
from bertha_socket.expressions import Expression, parse_expression

MESSAGE = bytes(range(20))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("payload[3]", 3),
        ("payload[3] % 2 + 5 * 2", 11),
        ("u16(payload[1:3])", 0x0102),
        ("u32(payload[1:])", 0x01020304),
        ("len(payload)", 20),
        ("len(payload[15:90])", 5),
        ("len(payload[9:3])", 0),
        ("0 - 1", 2**64 - 1),
        ("~0", 2**64 - 1),
        ("1 << 64", 0),
        ("1 << 63 << 1", 0),
        ("7 // 2", 3),
        ("payload[1] == 1 and payload[2] == 2", 1),
        ("not payload[1]", 0),
        ("3 if len(payload) > 100 else 4", 4),
        ('payload[:2] == "GE"', 0),
        ('payload[:2] == b"\\x00\\x01"', 1),
        ('hash("")', 0xCBF29CE484222325),
        ('hash("a")', 0xAF63DC4C8601EC8C),
        ('hash("foobar")', 0x85944171F73967E8),
        ("min(3, payload[1], 9)", 1),
        ("max(3, payload[1])", 3),
        ("true if 1 else 0", None),
        ("True", 1),
    ],
)
def test_values(text: str, value: int | None) -> None:
    if value is None:
        with pytest.raises(DagError):
            parse_expression(text)
    else:
        assert parse_expression(text).evaluate(MESSAGE) == value


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("payload[0] %", None),
        ("open('x')", 1),
        ("payload[0] + socket", 14),
        ("payload.hex()", 1),
        ("[1, 2]", 1),
        ("lambda: 1", 1),
        ("1.5", 1),
        ("-1", 1),
        ("1 < 2 < 3", 1),
        ("payload[::2]", 1),
        ("2 ** 9", 1),
        ("len(payload, 1)", 1),
        ("1 if", None),
        ("hash(payload[0:4] + '\\ud800')", 21),
        ("'\ud800'", None),
        ("", None),
        ("1 + " * 300 + "1", None),
        ("~" * 40 + "1", 34),
        ("(" * 300 + "1" + ")" * 300, None),
    ],
)
def test_what_is_none(text: str, column: int | None) -> None:
    with pytest.raises(DagError) as raised:
        parse_expression(text)
    assert raised.value.column == column


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("payload[20]", LookupError),
        ("payload[~0]", LookupError),
        ("u64(payload[15:])", LookupError),
        ("1 % payload[0]", ArithmeticError),
        ("payload", TypeError),
        ("payload + 1", TypeError),
        ("len(3)", TypeError),
        ("payload < payload", TypeError),
        ("payload == 1", TypeError),
    ],
)
def test_without_a_value_for_this_message(text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        parse_expression(text).evaluate(MESSAGE)


_NUMBERS = st.one_of(
    st.integers(0, 2**64 - 1).map(str), st.sampled_from(["payload[0]", "len(payload)", "hash(payload)"])
)


def _larger(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    arithmetic = ["+", "-", "*", "//", "%", "&", "|", "^", "<<", ">>"]
    operators = st.sampled_from([*arithmetic, "==", "!=", "<", "<=", ">", ">=", "and", "or"])
    return st.one_of(
        st.tuples(parts, operators, parts).map(lambda t: f"({t[0]}) {t[1]} ({t[2]})"),
        parts.map(lambda p: f"not ({p})"),
        parts.map(lambda p: f"~({p})"),
        st.tuples(parts, parts, parts).map(lambda t: f"({t[0]}) if ({t[1]}) else ({t[2]})"),
        parts.map(lambda p: f"u8(payload[{p}:])"),
    )


@settings(max_examples=150, deadline=None)
@given(st.recursive(_NUMBERS, _larger, max_leaves=8), st.binary(max_size=30))
def test_text_comes_back(text: str, message: bytes) -> None:
    try:
        expression = parse_expression(text)
    except DagError:
        reject()  # too long, or too deep
    assert parse_expression(str(expression)) == expression
    try:
        value = expression.evaluate(message)
    except (ArithmeticError, LookupError, TypeError, ValueError):
        return
    assert 0 <= value < 2**64
    assert Expression(text).evaluate(message) == value


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(st.text(max_size=60), st.text(alphabet="()[]payload0129:+-*/%<>=~\"'\\ andornot", max_size=60))
)
def test_any_text(text: str) -> None:
    try:
        expression = parse_expression(text)
    except DagError:
        return
    assert parse_expression(str(expression)) == expression
