"""Arguments that are computed from a message: data, not closures, so that C and eBPF can compute them too."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Expression:
    """An expression on a message, in its canonical text."""

    text: str

    def __str__(self) -> str:
        return self.text


def parse_expression(text: str) -> Expression:
    """The expression that a text describes."""
    return Expression(text)
