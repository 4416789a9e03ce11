"""An operator's rules about implementations: require, prefer, avoid, prohibit (RFC 9622's words), priorities.

A rule is a pattern: `openssl` (an implementation of any type), `encrypt/openssl`, `encrypt/*`.  What an end
prohibits runs at neither end.  What it requires and the order that it prefers are about its own end's
implementation; where the other end alone runs a chunnel, about that one.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from typing import Final

from bertha_socket.negotiation._codec import Fields, fail, printable

RULES_MAX: Final = 64
_PATTERN_MAX: Final = 130
_PATTERN: Final = re.compile(r"[A-Za-z0-9_.+*?-]+(/[A-Za-z0-9_.+*?-]+)?")
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

    def prohibits(self, type_name: str, name: str) -> bool:
        """Whether that implementation may not run, at either end."""
        return any(matches(p, type_name, name) for p in self.prohibit)

    def lacks(self, type_name: str, name: str) -> bool:
        """Whether others are required instead of that implementation."""
        about = [p for p in self.require if matches_type(p, type_name)]
        return bool(about) and not any(matches(p, type_name, name) for p in about)

    def rank(self, type_name: str, name: str | None) -> int:
        """Less is better: in the order preferred, then what is not named, then in the order avoided."""
        middle = len(self.prefer)
        if name is None:
            return middle
        for i, pattern in enumerate(self.prefer):
            if matches(pattern, type_name, name):
                return i
        for i, pattern in enumerate(self.avoid):
            if matches(pattern, type_name, name):
                return middle + 1 + i
        return middle

    def priority(self, type_name: str, name: str, own: int) -> int:
        """The priority that an implementation is offered with."""
        return next((p for pattern, p in self.priorities if matches(pattern, type_name, name)), own)

    def fields(self) -> dict[str, object]:
        """For a message."""
        return {kind: list(getattr(self, kind)) for kind in _KINDS if getattr(self, kind)}


NO_RULES: Final = Rules()


def matches_type(pattern: str, type_name: str) -> bool:
    """Whether a pattern speaks of implementations of that type."""
    kind, slash, _ = pattern.partition("/")
    return not slash or fnmatch.fnmatchcase(type_name, kind)


def matches(pattern: str, type_name: str, name: str) -> bool:
    """Whether a pattern means that implementation."""
    kind, slash, rest = pattern.partition("/")
    if not slash:
        return fnmatch.fnmatchcase(name, kind)
    return fnmatch.fnmatchcase(type_name, kind) and fnmatch.fnmatchcase(name, rest)


def check_pattern(pattern: object, what: str) -> str:
    """The pattern, if it is one.  Raises NegotiationError."""
    if not isinstance(pattern, str) or len(pattern) > _PATTERN_MAX or not _PATTERN.fullmatch(pattern):
        fail(f"{what}: {printable(repr(pattern), 80)} is no rule; write NAME or TYPE/NAME")
    return pattern


def rules_from(fields: Fields) -> Rules:
    """The rules in a message.  Raises NegotiationError."""
    read = {k: fields.list(k, RULES_MAX, check_pattern) if fields.has(k) else () for k in _KINDS}
    return Rules(read["require"], read["prefer"], read["avoid"], read["prohibit"])
