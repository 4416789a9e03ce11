"""The reasons: layout.h's enum, reason.c and reasons.py say the same."""

from __future__ import annotations

import json
import re

from bertha_socket import reasons
from tests.cli.conftest import ROOT

_CORE = ROOT / "native" / "core"


def enumerators() -> dict[str, int]:
    body = re.search(r"enum bertha_reason \{(.*?)\}", (_CORE / "layout.h").read_text(), re.S)
    assert body is not None
    found = re.findall(r"BERTHA_WHY_(\w+) = (\d+)", body[1])
    assert len(found) == body[1].count("BERTHA_WHY_") - 1  # all but BERTHA_WHY_COUNT have a number
    return {name: int(number) for name, number in found}


def c_texts() -> dict[str, str]:
    source = (_CORE / "reason.c").read_text()
    return dict(re.findall(r'\[BERTHA_WHY_(\w+)\] =\s*"([^"]*)"', source))


def test_the_numbers_are_the_headers() -> None:
    assert {reason.name: reason.value for reason in reasons.Reason} == enumerators()


def test_the_texts_are_the_shims() -> None:
    assert c_texts() == {reason.name: reasons.text_of(reason) for reason in reasons.Reason}


def test_texts_go_into_json_as_they_are() -> None:
    for reason in reasons.Reason:
        text = reasons.text_of(reason)
        assert json.dumps(text) == f'"{text}"'
        assert text
        assert "\n" not in text


def test_an_unknown_number_has_a_text() -> None:
    assert "4711" in reasons.text_of(4711)
