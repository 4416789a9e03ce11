"""Arguments that are computed from a message: data, not closures, so that C and eBPF can compute them too.

    payload[0] % 3        hash(payload[10:14]) % 4        u16(payload[2:4]) > 100 and len(payload) < 1500

Values are whole numbers of 64 bits without sign (arithmetic is modulo 2^64), truth (0 or 1), and bytes:
`payload` is the message; a slice reaches no further than there is, an index beyond it is an error.  Operators
are Python's + - * // % & | ^ << >> ~, comparisons, and/or/not, and `a if c else b`.  Functions: `len(bytes)`,
`hash(bytes)` (FNV-1a, 64 bits), `u8`, `u16`, `u32`, `u64` (big-endian, of that many bytes or more), `min`,
`max`.  Bytes are compared for equality with "text" or b"bytes".
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NoReturn

#: Characters of an expression, and levels in it.
TEXT_MAX: Final = 1024
DEPTH_MAX: Final = 32
_MASK: Final = (1 << 64) - 1

Value = int | bytes
_Compiled = Callable[[bytes], Value]


@dataclass(frozen=True, slots=True)
class Expression:
    """An expression on a message, in its canonical text (`parse_expression` makes it)."""

    text: str

    def __str__(self) -> str:
        return self.text

    def evaluate(self, message: bytes) -> int:
        """Its value for a message.  Raises DagError (it is no expression) and LookupError, ArithmeticError,
        TypeError or ValueError (it has no value for this message)."""
        value = _compiled(self.text)(message)
        if isinstance(value, bytes):
            raise TypeError("its value is bytes, not a number")
        return value


def parse_expression(text: str) -> Expression:
    """The expression that a text describes, in canonical form.  Raises DagError."""
    tree = _parse(text)
    _compile(tree, text, 0)
    return Expression(ast.unparse(tree))


def _fail(problem: str, node: ast.AST | None, text: str) -> NoReturn:
    from bertha_socket.dag import DagError  # which needs Expression

    column = getattr(node, "col_offset", None)
    raise DagError(f"expression: {problem}", column + 1 if column is not None else None, text)


def _parse(text: str) -> ast.expr:
    if len(text) > TEXT_MAX:
        _fail(f"of {len(text)} characters, more than {TEXT_MAX}", None, "")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in texts that are not ours
            return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        _fail(f"not understood ({getattr(error, 'msg', None) or error})", None, text)


@lru_cache(maxsize=256)
def _compiled(text: str) -> _Compiled:
    return _compile(_parse(text), text, 0)


def _number(value: Value) -> int:
    if isinstance(value, bytes):
        raise TypeError("bytes stand where a number should")
    return value


def _bytes(value: Value) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("a number stands where bytes should")
    return value


def _shift(shift: Callable[[int, int], int]) -> Callable[[int, int], int]:
    return lambda a, b: shift(a, b) if b < 64 else 0


_BINARY: Final[dict[type[ast.operator], Callable[[int, int], int]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.LShift: _shift(operator.lshift),
    ast.RShift: _shift(operator.rshift),
}
_COMPARE: Final[dict[type[ast.cmpop], Callable[[Any, Any], bool]]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


def _fnv(data: bytes) -> int:
    found = 0xCBF29CE484222325
    for byte in data:
        found = ((found ^ byte) * 0x100000001B3) & _MASK
    return found


def _unsigned(size: int) -> Callable[[Value], int]:
    def read(value: Value) -> int:
        data = _bytes(value)
        if len(data) < size:
            raise LookupError(f"u{size * 8} of {len(data)} bytes")
        return int.from_bytes(data[:size], "big")

    return read


_FUNCTIONS: Final[dict[str, Callable[[Value], int]]] = {
    "len": lambda v: len(_bytes(v)),
    "hash": lambda v: _fnv(_bytes(v)),
    "u8": _unsigned(1),
    "u16": _unsigned(2),
    "u32": _unsigned(4),
    "u64": _unsigned(8),
}


def _compile(node: ast.expr, text: str, depth: int) -> _Compiled:
    """A function from the message to the value.  Raises DagError."""
    if depth > DEPTH_MAX:
        _fail(f"nested more than {DEPTH_MAX} deep", node, text)

    def sub(part: ast.expr) -> _Compiled:
        return _compile(part, text, depth + 1)

    match node:
        case ast.Constant(value=bool() as truth):
            return lambda m: int(truth)
        case ast.Constant(value=int() as number) if 0 <= number <= _MASK:
            return lambda m: number
        case ast.Constant(value=bytes() as data):
            return lambda m: data
        case ast.Constant(value=str() as words):
            try:
                encoded = words.encode("utf-8")
            except UnicodeEncodeError:
                _fail("half a character (a surrogate) is no text", node, text)
            return lambda m: encoded
        case ast.Name(id="payload"):
            return lambda m: m
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            a, b, binary = sub(left), sub(right), _BINARY[type(op)]
            return lambda m: binary(_number(a(m)), _number(b(m))) & _MASK
        case ast.UnaryOp(op=ast.Invert(), operand=operand):
            a = sub(operand)
            return lambda m: ~_number(a(m)) & _MASK
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            a = sub(operand)
            return lambda m: int(not _number(a(m)))
        case ast.BoolOp(op=op, values=values):
            return _logic(isinstance(op, ast.And), [sub(v) for v in values])
        case ast.IfExp(test=test, body=body, orelse=orelse):
            c, a, b = sub(test), sub(body), sub(orelse)
            return lambda m: a(m) if _number(c(m)) else b(m)
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARE:
            return _comparison(type(op), sub(left), sub(right))
        case ast.Subscript(value=value, slice=index) if getattr(index, "step", None) is None:
            return _subscript(sub(value), index, sub)
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in _FUNCTIONS:
            a, function = sub(argument), _FUNCTIONS[name]
            return lambda m: function(a(m))
        case ast.Call(func=ast.Name(id="min" | "max" as name), args=[_, _, *_] as arguments, keywords=[]):
            parts, choose = [sub(p) for p in arguments], min if name == "min" else max
            return lambda m: choose(_number(p(m)) for p in parts)
    # Not ast.unparse: it has no bound on its recursion, and this may be deep.
    _fail(
        f"{(ast.get_source_segment(text.strip(), node) or '')[:40]!r} is not for expressions on messages",
        node,
        text,
    )


def _logic(every: bool, parts: list[_Compiled]) -> _Compiled:
    if every:
        return lambda m: int(all(_number(p(m)) for p in parts))
    return lambda m: int(any(_number(p(m)) for p in parts))


def _comparison(kind: type[ast.cmpop], left: _Compiled, right: _Compiled) -> _Compiled:
    compare = _COMPARE[kind]
    equality = kind in (ast.Eq, ast.NotEq)

    def value(message: bytes) -> int:
        a, b = left(message), right(message)
        if isinstance(a, bytes) != isinstance(b, bytes) or (isinstance(a, bytes) and not equality):
            raise TypeError("bytes are compared with bytes, for equality")
        return int(compare(a, b))

    return value


def _subscript(base: _Compiled, index: ast.expr, sub: Callable[[ast.expr], _Compiled]) -> _Compiled:
    if not isinstance(index, ast.Slice):
        at = sub(index)
        return lambda m: _bytes(base(m))[_number(at(m))]
    low = sub(index.lower) if index.lower is not None else None
    high = sub(index.upper) if index.upper is not None else None

    def cut(message: bytes) -> bytes:
        data = _bytes(base(message))
        first = min(_number(low(message)), len(data)) if low is not None else 0
        past = min(_number(high(message)), len(data)) if high is not None else len(data)
        return data[first:past]

    return cut
