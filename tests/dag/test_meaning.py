"""What expressions mean, found apart from expressions.py: by hand, and by a model of both text and meaning.

The shared vectors were written down from the evaluator itself; this is what they are checked against.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertha_socket.expressions import parse_expression

GET: Final = b"GET /index"  # 47 45 54 20 2f 69 6e 64 65 78

#: Text, message, value (None: there is none) and why.
BY_HAND: Final = [
    ("payload[0]", GET, 0x47, "'G'"),
    ("payload[9]", GET, 0x78, "'x', the last of ten"),
    ("payload[10]", GET, None, "an index beyond the message is an error"),
    ("len(payload[4:900])", GET, 6, "a slice reaches no further than there is"),
    ("len(payload[900:4])", GET, 0, "nothing is left"),
    ("u16(payload[0:2])", GET, 0x4745, "big-endian"),
    ("u32(payload)", GET, 0x47455420, "the first four of more"),
    ("u16(payload[9:])", GET, None, "one byte is no u16"),
    ("u8(payload[3:])", GET, 0x20, "a blank"),
    ("1 - 2 if payload[0] else 0", GET, 2**64 - 1, "modulo 2^64"),
    ("(payload[0] - 72) // 2", GET, 2**63 - 1, "71-72 is 2^64-1 before it is halved"),
    ("payload[0] * 18446744073709551615", GET, 2**64 - 71, "71 * -1"),
    ("~payload[0]", GET, 2**64 - 72, "all other bits"),
    ("payload[0] << 63", GET, 2**63, "71 is odd: one bit stays"),
    ("payload[0] << 64", GET, 0, "all bits are out"),
    ("payload[0] >> 64", GET, 0, "all bits are out"),
    ("payload[0] // (payload[0] - 71)", GET, None, "by zero"),
    ("payload[0] % 0", GET, None, "by zero"),
    ("payload[0] and payload[1]", GET, 1, "truth is 0 or 1, not the last operand"),
    ("payload[0] == 71 or payload[99] == 1", GET, 1, "what follows a true one is not looked at"),
    ("payload[0] == 0 and payload[99] == 1", GET, 0, "what follows a false one is not looked at"),
    ("not payload[0]", GET, 0, "71 is true"),
    ("payload[0:3] == 'GET'", GET, 1, "a text is its UTF-8"),
    ("payload[0:3] < 'GET'", GET, None, "bytes have no order"),
    ("payload == 71", GET, None, "bytes are no number"),
    ("payload[0:3] + payload[3:4] if 1 else 0", GET, None, "bytes are not added"),
    ("min(payload[0], payload[1], 70)", GET, 0x45, "'E' is 69"),
    ("max(payload[0], payload[1])", GET, 0x47, "'G' is 71"),
    ("hash('')", GET, 0xCBF29CE484222325, "FNV-1a's offset basis (Fowler, Noll, Vo: test suite)"),
    ("hash('a')", GET, 0xAF63DC4C8601EC8C, "the same test suite"),
    ("hash('foobar')", GET, 0x85944171F73967E8, "the same test suite"),
    ("payload", GET, None, "bytes, where a number is wanted"),
    ("payload[0] | 8 & 4", GET, 71, "& goes before |"),
    ("2 + 3 * 4 == 14", GET, 1, "Python's precedence"),
]
UNDEFINED: Final = (LookupError, ArithmeticError, TypeError, ValueError)


@pytest.mark.parametrize(("text", "message", "value", "why"), BY_HAND, ids=[t[0] for t in BY_HAND])
def test_by_hand(text: str, message: bytes, value: int | None, why: str) -> None:
    if value is None:
        with pytest.raises(UNDEFINED):
            parse_expression(text).evaluate(message)
    else:
        assert parse_expression(text).evaluate(message) == value, why


# -- the model ----------------------------------------------------------------------------------------------

Number = tuple[str, Callable[[bytes], int]]
Bytes = tuple[str, Callable[[bytes], bytes]]
TOP: Final = 2**64


class Undefined(Exception):
    """There is no value."""


def _divided(a: int, b: int, rest: bool) -> int:
    if b == 0:
        raise Undefined
    return a - a // b * b if rest else a // b


def _fnv(data: bytes) -> int:
    found = 14695981039346656037
    for byte in data:
        found = (found ^ byte) * 1099511628211 % TOP
    return found


def _item(data: bytes, at: int) -> int:
    if at >= len(data):
        raise Undefined
    return data[at]


def _read(data: bytes, size: int) -> int:
    if len(data) < size:
        raise Undefined
    return sum(byte << 8 * (size - 1 - i) for i, byte in enumerate(data[:size]))


_TWO: Final[dict[str, Callable[[int, int], int]]] = {
    "+": lambda a, b: (a + b) % TOP,
    "-": lambda a, b: (a + TOP - b) % TOP,
    "*": lambda a, b: a * b % TOP,
    "//": lambda a, b: _divided(a, b, False),
    "%": lambda a, b: _divided(a, b, True),
    "&": lambda a, b: a & b,
    "|": lambda a, b: a | b,
    "^": lambda a, b: a ^ b,
    "<<": lambda a, b: a * 2**b % TOP if b < 64 else 0,
    ">>": lambda a, b: a // 2**b if b < 64 else 0,
    "==": lambda a, b: 1 if a == b else 0,
    "!=": lambda a, b: 1 if a != b else 0,
    "<": lambda a, b: 1 if a < b else 0,
    "<=": lambda a, b: 1 if a <= b else 0,
    ">": lambda a, b: 1 if a > b else 0,
    ">=": lambda a, b: 1 if a >= b else 0,
}


def _two(op: str, a: Number, b: Number) -> Number:
    return f"({a[0]} {op} {b[0]})", lambda m: _TWO[op](a[1](m), b[1](m))


def _chosen(c: Number, a: Number, b: Number) -> Number:
    return f"({a[0]} if {c[0]} else {b[0]})", lambda m: a[1](m) if c[1](m) != 0 else b[1](m)


def _and(a: Number, b: Number) -> Number:
    return f"({a[0]} and {b[0]})", lambda m: 1 if a[1](m) != 0 and b[1](m) != 0 else 0


def _or(a: Number, b: Number) -> Number:
    return f"({a[0]} or {b[0]})", lambda m: 1 if a[1](m) != 0 or b[1](m) != 0 else 0


def _not(a: Number) -> Number:
    return f"(not {a[0]})", lambda m: 1 if a[1](m) == 0 else 0


def _invert(a: Number) -> Number:
    return f"(~{a[0]})", lambda m: TOP - 1 - a[1](m)


def _least(a: Number, b: Number) -> Number:
    return f"min({a[0]}, {b[0]})", lambda m: sorted((a[1](m), b[1](m)))[0]


def _most(a: Number, b: Number) -> Number:
    return f"max({a[0]}, {b[0]})", lambda m: sorted((a[1](m), b[1](m)))[1]


def _cut(low: int | None, high: int | None) -> Bytes:
    text = f"payload[{'' if low is None else low}:{'' if high is None else high}]"
    return text, lambda m: bytes(
        byte for i, byte in enumerate(m) if i >= (low or 0) and (high is None or i < high)
    )


def _of_bytes(which: str, b: Bytes) -> Number:
    size = {"u8": 1, "u16": 2, "u32": 4, "u64": 8}.get(which, 0)
    if size:
        return f"{which}({b[0]})", lambda m: _read(b[1](m), size)
    return f"{which}({b[0]})", lambda m: len(b[1](m)) if which == "len" else _fnv(b[1](m))


_ends = st.none() | st.integers(0, 12)
_bytes = st.just(("payload", lambda m: m)) | st.builds(_cut, _ends, _ends)
_plain: st.SearchStrategy[Number] = st.one_of(
    st.integers(0, 70).map(lambda n: (str(n), lambda m: n)),
    st.sampled_from([2**63, TOP - 1, TOP - 2]).map(lambda n: (str(n), lambda m: n)),
    st.integers(0, 12).map(lambda n: (f"payload[{n}]", lambda m: _item(m, n))),
    st.builds(_of_bytes, st.sampled_from(["len", "hash", "u8", "u16", "u32", "u64"]), _bytes),
)


def _larger(inner: st.SearchStrategy[Number]) -> st.SearchStrategy[Number]:
    return st.one_of(
        st.builds(_two, st.sampled_from(sorted(_TWO)), inner, inner),
        st.builds(_chosen, inner, inner, inner),
        *(st.builds(make, inner, inner) for make in (_and, _or, _least, _most)),
        *(st.builds(make, inner) for make in (_not, _invert)),
    )


@settings(max_examples=300, deadline=None)
@given(st.recursive(_plain, _larger, max_leaves=8), st.binary(max_size=12))
def test_the_evaluator_agrees_with_the_model(made: Number, message: bytes) -> None:
    text, meaning = made
    expression = parse_expression(text)
    assert parse_expression(str(expression)) == expression
    try:
        value = meaning(message)
    except Undefined:
        with pytest.raises(UNDEFINED):
            expression.evaluate(message)
    else:
        assert expression.evaluate(message) == value
