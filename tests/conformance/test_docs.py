"""What the documentation says about chunnels is so, and its example conforms."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bertha_socket.chunnels import all_types, get, load_chunnel, unregister
from bertha_socket.chunnels._registry import BUILTIN
from bertha_socket.chunnels._types import REQUIRED
from bertha_socket.dag import parse
from bertha_socket.testing import CHECKS, check_chunnel, pair_of

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture
def rot() -> Iterator[None]:
    load_chunnel(f"{DOCS}/authors/rot13.py:Rot", "rot")
    yield
    unregister("rot")


@pytest.mark.usefixtures("rot")
def test_the_example_conforms() -> None:
    assert len(check_chunnel(pair_of("rot", by=5))) == len(CHECKS)
    assert get("rot").bind(parse("rot(7)").chunnels[0]) == {"by": 7}
    lines = (DOCS / "authors" / "rot13.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 36


def test_the_checks_are_documented() -> None:
    page = (DOCS / "authors" / "chunnels.md").read_text(encoding="utf-8")
    assert [c.__name__ for c in CHECKS if f"`{c.__name__}`" not in page] == []


def test_every_type_is_in_the_table_with_its_arguments() -> None:
    page = (DOCS / "users" / "chunnel-types.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \|([^|]*\|[^|]*)\|", page, flags=re.M))
    types = {t.name: t for t in all_types() if t.name in BUILTIN}
    assert sorted(rows) == sorted(types)
    for name, row in rows.items():
        arguments, ends = row.split("|")
        found = re.findall(r"`(\w+)(=?)([^`]*)`", arguments)
        assert [(p.name, p.default is not REQUIRED) for p in types[name].parameters] == [
            (n, bool(equals)) for n, equals, _ in found
        ], name
        for argument, _, default in found:
            parameter = next(p for p in types[name].parameters if p.name == argument)
            if default:
                assert default.strip('"') == str(parameter.default), name
        assert ends.strip() == (types[name].endpoints if types[name].implementations else ""), name


def test_every_type_has_its_file_with_a_docstring_that_names_it() -> None:
    for name in BUILTIN:
        path = DOCS.parent / "bertha_socket" / "chunnels" / f"{name}.py"
        assert path.read_text(encoding="utf-8").startswith(f'"""`{name}')
        assert len(path.read_text(encoding="utf-8").splitlines()) < 500
