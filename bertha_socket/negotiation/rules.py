"""An operator's rules about implementations: require, prefer, avoid, prohibit (RFC 9622's words), priorities.

A rule is a pattern: `openssl` (an implementation of any type), `encrypt/openssl`, `encrypt/*`.  What an end
prohibits runs at neither end.  What it requires and the order that it prefers are about its own end's
implementation; where the other end alone runs a chunnel, about that one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from bertha_socket.negotiation._codec import Fields, fail, printable

RULES_MAX: Final = 32
_PATTERN_MAX: Final = 130
_PATTERN: Final = re.compile(r"[A-Za-z0-9_.+*-]+(/[A-Za-z0-9_.+*-]+)?")
_KINDS: Final = ("require", "prefer", "avoid", "prohibit")


@dataclass(frozen=True, slots=True)
class Rules:
    """One end's rules.  `priorities` change what that end offers, and are not sent."""

    require: tuple[str, ...] = ()
    prefer: tuple[str, ...] = ()
    avoid: tuple[str, ...] = ()
    prohibit: tuple[str, ...] = ()
    #: (pattern, priority); the first that matches counts.
    priorities: tuple[tuple[str, int], ...] = ()

    def about(self, type_name: str) -> About:
        """What they say about the implementations of one type."""
        return About(self, type_name)

    def prohibits(self, type_name: str, name: str) -> bool:
        """Whether that implementation may not run, at either end."""
        return self.about(type_name).prohibits(name)

    def lacks(self, type_name: str, name: str) -> bool:
        """Whether others are required instead of that implementation."""
        return self.about(type_name).lacks(name)

    def priority(self, type_name: str, name: str, own: int) -> int:
        """The priority that an implementation is offered with."""
        return next((p for pattern, p in self.priorities if matches(pattern, type_name, name)), own)

    def fields(self) -> dict[str, object]:
        """For a message."""
        return {kind: list(getattr(self, kind)) for kind in _KINDS if getattr(self, kind)}


NO_RULES: Final = Rules()


class About:
    """What rules say about the implementations of one type; each is looked up once."""

    __slots__ = ("_avoid", "_lacking", "_prefer", "_prohibit", "_prohibited", "_ranks", "_require")

    def __init__(self, rules: Rules, type_name: str) -> None:
        self._require = _names(rules.require, type_name)
        self._prefer = _names(rules.prefer, type_name)
        self._avoid = _names(rules.avoid, type_name)
        self._prohibit = _names(rules.prohibit, type_name)
        self._prohibited: dict[str, bool] = {}
        self._lacking: dict[str, bool] = {}
        self._ranks: dict[str, int] = {}

    def prohibits(self, name: str) -> bool:
        """Whether that implementation may not run, at either end."""
        if name not in self._prohibited:
            self._prohibited[name] = any(glob(p, name) for p in self._prohibit)
        return self._prohibited[name]

    def lacks(self, name: str) -> bool:
        """Whether others are required instead of that implementation."""
        if name not in self._lacking:
            self._lacking[name] = bool(self._require) and not any(glob(p, name) for p in self._require)
        return self._lacking[name]

    def rank(self, name: str | None) -> int:
        """Less is better: in the order preferred, then what is not named (and None), then as avoided."""
        if name is None:
            return 0
        if name not in self._ranks:
            self._ranks[name] = self._rank(name)
        return self._ranks[name]

    def _rank(self, name: str) -> int:
        for i, pattern in enumerate(self._prefer):
            if glob(pattern, name):
                return i - len(self._prefer)
        for i, pattern in enumerate(self._avoid):
            if glob(pattern, name):
                return i + 1
        return 0


def _names(patterns: tuple[str, ...], type_name: str) -> tuple[str, ...]:
    """The part about names of those patterns that speak of a type."""
    found = []
    for pattern in patterns:
        kind, slash, rest = pattern.partition("/")
        if not slash:
            found.append(kind)
        elif glob(kind, type_name):
            found.append(rest)
    return tuple(found)


def matches(pattern: str, type_name: str, name: str) -> bool:
    """Whether a pattern means that implementation."""
    return any(glob(p, name) for p in _names((pattern,), type_name))


def glob(pattern: str, text: str) -> bool:
    """Whether a text is as the pattern says, in which `*` stands for anything.

    Patterns come from strangers too, so this takes time in proportion to both lengths, whatever they are.
    """
    first, *rest = pattern.split("*")
    if not rest:
        return text == pattern
    *middle, last = rest
    if not text.startswith(first):
        return False
    at = len(first)
    for part in middle:
        found = text.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return len(text) - at >= len(last) and text.endswith(last)


def check_pattern(pattern: object, what: str) -> str:
    """The pattern, if it is one.  Raises NegotiationError."""
    if not isinstance(pattern, str) or len(pattern) > _PATTERN_MAX or not _PATTERN.fullmatch(pattern):
        fail(f"{what}: {printable(repr(pattern), 80)} is no rule; write NAME or TYPE/NAME")
    return pattern


def rules_from(fields: Fields) -> Rules:
    """The rules in a message.  Raises NegotiationError."""
    read = {k: fields.list(k, RULES_MAX, check_pattern) if fields.has(k) else () for k in _KINDS}
    return Rules(read["require"], read["prefer"], read["avoid"], read["prohibit"])
