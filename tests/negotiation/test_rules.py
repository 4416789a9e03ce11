"""Patterns of rules: what they mean, and that they cost little."""

from __future__ import annotations

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertha_socket.negotiation.rules import Rules, glob, matches

_texts = st.text("ab", max_size=8)
_patterns = st.text("ab*", max_size=8)


@given(_patterns, _texts)
def test_a_star_is_anything(pattern: str, text: str) -> None:
    assert glob(pattern, text) == fnmatch.fnmatchcase(text, pattern)


def test_a_pattern_made_to_be_slow_is_not() -> None:
    """Tried out letter by letter this would end after the universe has."""
    assert not glob("a*" * 60 + "b", "a" * 64)
    assert glob("a*" * 60 + "a", "a" * 64)


@pytest.mark.parametrize(
    ("pattern", "means"),
    [
        ("openssl", True),
        ("encrypt/openssl", True),
        ("*/openssl", True),
        ("encrypt/*", True),
        ("enc*/open*", True),
        ("*", True),
        ("compress/openssl", False),
        ("encrypt", False),
        ("encrypt/open", False),
    ],
)
def test_what_a_pattern_means(pattern: str, means: bool) -> None:
    assert matches(pattern, "encrypt", "openssl") == means
    assert Rules(prohibit=(pattern,)).prohibits("encrypt", "openssl") == means


def test_what_is_required_leaves_other_types_alone() -> None:
    rules = Rules(require=("encrypt/openssl",))
    assert rules.lacks("encrypt", "python")
    assert not rules.lacks("encrypt", "openssl")
    assert not rules.lacks("compress", "python")


def test_ranks() -> None:
    about = Rules(prefer=("a", "b"), avoid=("c", "d")).about("x")
    names = ["d", "c", "other", "b", "a"]
    assert sorted(names, key=about.rank) == ["a", "b", "other", "c", "d"]
    assert about.rank(None) == about.rank("other")
