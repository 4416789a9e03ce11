"""The vectors that every implementation of expressions shares; the hashes are also computed here, apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bertha_socket.dag import DagError
from bertha_socket.expressions import parse_expression

VECTORS: dict[str, Any] = json.loads(
    Path(__file__).with_name("expression_vectors.json").read_text(encoding="utf-8")
)
MESSAGES = [bytes.fromhex(m) for m in VECTORS["messages"]]


@pytest.mark.parametrize("vector", VECTORS["expressions"], ids=lambda v: v["text"])
def test_values_and_canonical_text(vector: dict[str, Any]) -> None:
    expression = parse_expression(vector["text"])
    assert str(expression) == vector["canonical"]
    assert parse_expression(vector["canonical"]) == expression
    for message, value in zip(MESSAGES, vector["values"], strict=True):
        if value is None:
            with pytest.raises((LookupError, ArithmeticError, TypeError, ValueError)):
                expression.evaluate(message)
        else:
            assert expression.evaluate(message) == int(value)


def test_the_vectors_hash_is_fnv_1a() -> None:
    vector = next(v for v in VECTORS["expressions"] if v["text"] == "hash(payload)")
    for message, value in zip(MESSAGES, vector["values"], strict=True):
        found = 14695981039346656037
        for byte in message:
            found = (found ^ byte) * 1099511628211 % 2**64
        assert found == int(value)


@pytest.mark.parametrize("text", ["a" + ".b" * 500, "a" + "()" * 500, "-" * 1000 + "1", "~" * 1000 + "1"])
def test_what_is_too_deep_is_an_error_of_ours(text: str) -> None:
    with pytest.raises(DagError):
        parse_expression(text)
