"""DAGs of chunnels: the text form, the same in Python, one parser.

    compress(level=3) |> prefer encrypt()@host

reads from the application (left) to the network (right).  Branching is done by chunnel types that take DAGs
as arguments: ``b([c(), d() |> e()])``.  ``prefer``, ``avoid`` and ``prohibit`` before a chunnel say how much
it is wanted (RFC 9622's words; without one it is required); ``@host`` after a chunnel, or after a subgraph in
parentheses, where it may run (the paper's scopes, section 3.1).  An argument that is computed from a message
stands there as it is: ``shard(by=hash(payload[10:14]) % 3)``; one that does not begin with ``payload``,
``not`` or a function is written ``expr(1 + payload[0])``.
"""

from __future__ import annotations

import errno
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Final, NoReturn, TypeVar

from bertha_socket.expressions import Expression, parse_expression

#: Characters of a text, chunnels in all, DAGs within DAGs, arguments of one chunnel.
TEXT_MAX: Final = 8192
CHUNNELS_MAX: Final = 128
DEPTH_MAX: Final = 8
ARGS_MAX: Final = 32


class Need(Enum):
    """How much a chunnel is wanted."""

    REQUIRE = "require"
    PREFER = "prefer"
    AVOID = "avoid"
    PROHIBIT = "prohibit"


class Scope(Enum):
    """Where a chunnel may run."""

    APPLICATION = "application"
    HOST = "host"
    NETWORK = "network"
    GLOBAL = "global"


def _scope(name: Scope | str) -> Scope:
    try:
        return Scope(name)
    except ValueError:
        raise DagError(f"{name!r} is no scope: one of {', '.join(s.value for s in Scope)}") from None


class DagError(OSError):
    """A DAG that makes no sense; `column` (from 1) is where, None where there is no text."""

    def __init__(self, problem: str, column: int | None = None, text: str = "") -> None:
        place = f"column {column}: " if column is not None else ""
        super().__init__(errno.EINVAL, place + problem)
        self.column = column
        self.text = text

    def pointed(self) -> str:
        """The text with a mark under the place, for people."""
        if self.column is None:
            return str(self.strerror)
        return f"{self.strerror}\n  {self.text}\n  {' ' * (self.column - 1)}^"


@dataclass(frozen=True, slots=True)
class Chunnel:
    """A chunnel type with its arguments."""

    type: str
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()
    scope: Scope | None = None
    need: Need = Need.REQUIRE
    #: Where it stands in the text that it comes from (from 1), for errors; it is no part of what is meant.
    column: int | None = field(default=None, compare=False, repr=False)

    def at(self, scope: Scope | str) -> Chunnel:
        """The same, to run there only.  Raises DagError: there is no such scope."""
        return replace(self, scope=_scope(scope))

    def __or__(self, other: Chunnel | Dag) -> Dag:
        return wrap(self) | other

    def error(self, problem: str) -> DagError:
        """One about this chunnel, with its place if it comes from a text."""
        return DagError(problem, self.column)

    def __str__(self) -> str:
        words = [_value_text(a) for a in self.args] + [f"{k}={_value_text(v)}" for k, v in self.kwargs]
        before = "" if self.need is Need.REQUIRE else f"{self.need.value} "
        after = "" if self.scope is None else f"@{self.scope.value}"
        return f"{before}{self.type}({', '.join(words)}){after}"


@dataclass(frozen=True, slots=True)
class Dag:
    """Chunnels in order, the application's first."""

    chunnels: tuple[Chunnel, ...] = ()

    def at(self, scope: Scope | str) -> Dag:
        """The same, each chunnel that says nothing else to run there only."""
        where = _scope(scope)
        return Dag(tuple(c if c.scope is not None else replace(c, scope=where) for c in self.chunnels))

    def __or__(self, other: Chunnel | Dag) -> Dag:
        if not isinstance(other, (Chunnel, Dag)):
            return NotImplemented
        return Dag(self.chunnels + wrap(other).chunnels)

    def __str__(self) -> str:
        return " |> ".join(map(str, self.chunnels))


Value = None | bool | int | float | str | list[Any] | tuple[Any, ...] | Dag | Expression


def wrap(what: Chunnel | Dag | str = "") -> Dag:
    """The paper's ``wrap!``: a DAG of a chunnel, a DAG or a text; of nothing, one without chunnels.
    Raises DagError."""
    if what == "":
        return Dag(())
    if isinstance(what, Dag):
        return what
    if isinstance(what, Chunnel):
        return Dag((what,))
    if isinstance(what, str):
        return parse(what)
    raise DagError(f"a DAG is made of chunnels, not of {type(what).__name__}")


def chunnel(name: str) -> Callable[..., Chunnel]:
    """The maker of chunnels of a type: ``encrypt = chunnel("encrypt")``."""

    def make(*args: Any, **kwargs: Any) -> Chunnel:
        found = Chunnel(name, tuple(map(_checked, args)), tuple((k, _checked(v)) for k, v in kwargs.items()))
        if parse(str(found)) != Dag((found,)):  # whatever cannot be written cannot be negotiated
            raise DagError(f"{found} means something else when it is written: {name!r} is no name for a type")
        return found

    return make


class _Makers:
    """Chunnel types as attributes: ``c.encrypt()``."""

    def __getattr__(self, name: str) -> Callable[..., Chunnel]:
        if name.startswith("__"):
            raise AttributeError(name)
        return chunnel(name)


#: ``from bertha_socket.dag import c``, then ``c.compress(level=3) | c.encrypt()``.
c: Final = _Makers()


_Wanted = TypeVar("_Wanted", Chunnel, Dag)


def _needed(what: _Wanted, need: Need) -> _Wanted:
    """A chunnel, or each of a subgraph, as in the text ``prefer (a() |> b())``."""
    if isinstance(what, Dag):
        return Dag(tuple(replace(each, need=need) for each in what.chunnels))
    if isinstance(what, Chunnel):
        return replace(what, need=need)
    raise DagError(f"{need.value}() takes a chunnel or a DAG, not {type(what).__name__}")


def prefer(what: _Wanted) -> _Wanted:
    """Left out where it cannot be had; of a DAG, each of its chunnels.  Raises DagError."""
    return _needed(what, Need.PREFER)


def avoid(what: _Wanted) -> _Wanted:
    """Only if the other end requires it.  Raises DagError."""
    return _needed(what, Need.AVOID)


def prohibit(what: _Wanted) -> _Wanted:
    """Never.  Raises DagError."""
    return _needed(what, Need.PROHIBIT)


def _checked(value: Any, depth: int = 0) -> Any:
    if isinstance(value, Chunnel):
        return wrap(value)
    if isinstance(value, (list, tuple)):
        if depth >= DEPTH_MAX:  # a list may also be its own item
            raise DagError(f"more than {DEPTH_MAX} lists within each other")
        return tuple(_checked(item, depth + 1) for item in value)
    if isinstance(value, float) and not math.isfinite(value):
        raise DagError(f"{value} is no argument: it must be a finite number")
    if isinstance(value, str) and any("\ud800" <= letter < "\ue000" for letter in value):
        raise DagError(f"{value!r} is no argument: half of a character is no text")
    if isinstance(value, Expression):
        return parse_expression(value.text)  # it may have been made by hand
    if value is None or isinstance(value, (bool, int, float, str, Dag)):
        return value
    raise DagError(f"an argument may be a number, a text, a list or chunnels, not {type(value).__name__}")


_ESCAPES: Final = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _value_text(value: Any, depth: int = 0) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        body = "".join(_ESCAPES.get(c) or (c if c.isprintable() else f"\\u{{{ord(c):x}}}") for c in value)
        return f'"{body}"'
    if isinstance(value, (list, tuple)):
        if depth >= TEXT_MAX // 64:  # in a chunnel that was made by hand; no parser would read it
            raise DagError(f"more than {DEPTH_MAX} lists within each other")
        return f"[{', '.join(_value_text(item, depth + 1) for item in value)}]"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, Expression):
        return value.text if _EXPRESSION.match(value.text) else f"expr({value.text})"
    return str(value)


#: How an expression begins that needs no expr() around it.
_EXPRESSION: Final = re.compile(r"(?:payload|not)(?![A-Za-z0-9_(=])|(?:hash|len|u8|u16|u32|u64|min|max)\s*\(")
#: What matters when the end of an expression is looked for.
_STEP: Final = re.compile(r"""(?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|[()\[\],]""")

_TOKEN: Final = re.compile(
    r"""\s*(?:
      (?P<pipe>\|>)
    | (?P<number>[+-]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(?:[eE][+-]?[0-9]+)?)
    | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<text>"(?:[^"\\\n]|\\.)*")
    | (?P<mark>[()\[\],=@])
    | (?P<end>\Z)
    )""",
    re.VERBOSE,
)
_WORDS: Final = {"true": True, "false": False, "none": None}
#: What other languages write, and what is meant.
_NEARLY: Final = {"True": "true", "False": "false", "None": "none", "null": "none"}
_NEEDS: Final = {n.value: n for n in Need}


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.count = 0
        self.kind = self.word = ""
        self.start = 0
        self.next()

    def fail(self, problem: str, at: int | None = None) -> NoReturn:
        raise DagError(problem, (self.start if at is None else at) + 1, self.text)

    def next(self) -> None:
        match = _TOKEN.match(self.text, self.at)
        if match is None:
            at = self.at + len(self.text[self.at :]) - len(self.text[self.at :].lstrip())
            what = (
                "this text has no end" if self.text[at] == '"' else f"{self.text[at]!r} does not belong here"
            )
            if self.text[at] == "|":
                what += ": '|>' joins chunnels"
            elif self.text[at] == "'":
                what += ': a text is in double quotes, as in "x"'
            self.fail(what, at)
        assert match.lastgroup is not None
        self.kind, self.word = match.lastgroup, match[match.lastgroup]
        self.start, self.at = match.start(match.lastgroup), match.end()

    def ahead(self) -> str:
        """The character that follows."""
        return self.text[self.at :].lstrip()[:1]

    def take(self, mark: str, why: str) -> None:
        if self.word != mark or self.kind not in ("mark", "pipe"):
            self.fail(f"{mark!r} is missing {why}")
        self.next()

    def dag(self, depth: int) -> Dag:
        if depth > DEPTH_MAX:
            self.fail(f"more than {DEPTH_MAX} DAGs within each other")
        found = self.part(depth)
        while self.kind == "pipe":
            self.next()
            found |= self.part(depth)
        return found

    def part(self, depth: int) -> Dag:
        need = Need.REQUIRE
        if self.kind == "name" and self.word in _NEEDS and self.ahead() != "=":
            need = _NEEDS[self.word]
            self.next()
        if self.word == "(" and self.kind == "mark":
            self.next()
            found = self.dag(depth + 1)
            self.take(")", "at the end of the subgraph")
            if need is not Need.REQUIRE:
                found = _needed(found, need)
            scope = self.scope()
            return found if scope is None else found.at(scope)
        if self.kind != "name":
            self.fail("a chunnel is missing here, such as encrypt()")
        return Dag((self.chunnel(need, depth),))

    def scope(self) -> Scope | None:
        if self.word != "@":
            return None
        self.next()
        names = [s.value for s in Scope]
        if self.kind != "name" or self.word not in names:
            self.fail(f"a scope is missing here: one of {', '.join(names)}")
        scope = Scope(self.word)
        self.next()
        return scope

    def chunnel(self, need: Need, depth: int) -> Chunnel:
        name, column = self.word, self.start + 1
        self.count += 1
        if self.count > CHUNNELS_MAX:
            self.fail(f"more than {CHUNNELS_MAX} chunnels")
        self.next()
        self.take("(", f"after {name}: a chunnel has its arguments in parentheses, as in {name}()")
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        while self.word != ")" or self.kind != "mark":
            begin = self.start
            key = self.key()
            if key is None and kwargs:
                self.fail("an argument without a name after one with a name", begin)
            if key in kwargs:
                self.fail(f"{key} is given twice", begin)
            value = self.value(depth)
            if key is None:
                args.append(value)
            else:
                kwargs[key] = value
            if len(args) + len(kwargs) > ARGS_MAX:
                self.fail(f"more than {ARGS_MAX} arguments", begin)
            if self.word != ",":
                break
            self.next()
        self.take(")", f"at the end of the arguments of {name}")
        return Chunnel(name, tuple(args), tuple(kwargs.items()), self.scope(), need, column)

    def key(self) -> str | None:
        if self.kind != "name" or self.ahead() != "=":
            return None
        name = self.word
        self.next()
        self.next()
        return name

    def value(self, depth: int) -> Any:
        kind, word = self.kind, self.word
        if kind == "name" and (_EXPRESSION.match(self.text, self.start) or self.is_expr()):
            return self.expression()
        if kind == "number":
            if len(word) > 40:
                self.fail("the number is too long")
            number = float(word) if any(mark in word for mark in ".eE") else int(word)
            if isinstance(number, float) and not math.isfinite(number):
                self.fail("the number is too large")
            self.next()
            return number
        if kind == "text":
            text = self.unescaped(word[1:-1])
            self.next()
            return text
        if kind == "mark" and word == "[":
            return self.list(depth)
        if kind == "name" and word in _WORDS and self.ahead() != "(":
            self.next()
            return _WORDS[word]
        if kind == "name" and word in _NEARLY and self.ahead() != "(":
            self.fail(f"{word} is written {_NEARLY[word]} here")
        if kind == "name" or word == "(":
            return self.dag(depth + 1)
        self.fail("an argument is missing here: a number, a text, a list or a chunnel")

    def is_expr(self) -> bool:
        return self.word == "expr" and self.ahead() == "("

    def expression(self) -> Expression:
        """What reaches to the comma or bracket that is not part of it."""
        begin, at, deep = self.start, self.start, 0
        while (step := _STEP.search(self.text, at)) is not None:
            if step["quoted"] is None:
                if step[0] in "([":
                    deep += 1
                elif deep == 0:
                    break
                elif step[0] in ")]":
                    deep -= 1
            at = step.end()
        end = step.start() if step is not None else len(self.text)
        if self.is_expr():
            inner = self.text[begin:end].rstrip()
            if not inner.endswith(")"):
                self.fail("')' is missing at the end of expr(")
            begin = self.text.index("(", begin) + 1
            end = begin + len(inner) - (begin - self.start) - 1
        try:
            found = parse_expression(self.text[begin:end])
        except DagError as error:
            blanks = len(self.text[begin:end]) - len(self.text[begin:end].lstrip())
            problem = str(error.strerror).partition("expression: ")[2]
            self.fail(f"expression: {problem}", begin + blanks + (error.column or 1) - 1)
        self.at = step.start() if step is not None else len(self.text)
        self.next()
        return found

    def list(self, depth: int) -> tuple[Any, ...]:
        if depth >= DEPTH_MAX:
            self.fail(f"more than {DEPTH_MAX} lists within each other")
        self.next()
        items: list[Any] = []
        while self.word != "]" or self.kind != "mark":
            items.append(self.value(depth + 1))
            if self.word != ",":
                break
            self.next()
        self.take("]", "at the end of the list")
        return tuple(items)

    def unescaped(self, body: str) -> str:
        def one(match: re.Match[str]) -> str:
            if match[1] is not None:
                number = int(match[1], 16)
                if number > 0x10FFFF or 0xD800 <= number < 0xE000:
                    self.fail("there is no such character")
                return chr(number)
            plain = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"'}
            if match[2] not in plain:
                self.fail(f"\\{match[2]} means nothing in a text", self.start + 1 + match.start())
            return plain[match[2]]

        return re.sub(r"\\(?:u\{([0-9a-f]{1,6})\}|(.))", one, body)


def parse(text: str) -> Dag:
    """The DAG that a text describes; the empty text is the empty DAG.  Raises DagError."""
    if len(text) > TEXT_MAX:
        raise DagError(f"a DAG's text of {len(text)} characters, more than {TEXT_MAX}")
    if not text.strip():
        return Dag()
    parser = _Parser(text)
    found = parser.dag(0)
    if parser.kind != "end":
        parser.fail(f"{parser.word!r} does not belong here: '|>' joins chunnels")
    return found
