"""What the documentation says about chunnels is so, and its example conforms."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bertha_socket.chunnels import all_types, get, load_chunnel, serialize, unregister
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


def _first_docstring(name: str) -> str:
    path = DOCS.parent / "bertha_socket" / "chunnels" / f"{name}.py"
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 500, name
    return ast.get_docstring(ast.parse(text)) or ""


@pytest.mark.parametrize("name", BUILTIN)
def test_every_types_file_says_what_it_is(name: str) -> None:
    """Its call, its arguments by name, which ends take part, and what crosses the network."""
    said, kind = _first_docstring(name), get(name)
    assert re.match(rf"`{name}\(([^)]*)\)`: ", said), said
    found = re.search(r"^Arguments: (.*?)^Endpoints: (\w+)(.*?)\bWires?: (.+)", said, flags=re.M | re.S)
    assert found is not None, said
    arguments, endpoints, _, wire = found.groups()
    assert [p.name for p in kind.parameters if p.name not in arguments] == []
    assert kind.parameters or arguments == "none.\n"
    assert endpoints == kind.endpoints
    if not kind.sub_dags:  # there they depend on the sub-DAGs
        given = {p.name: p.default for p in kind.parameters}
        registered = {f"{codec}/1" for codec in serialize._codecs}  # by another test of this run
        wires = {w for i in kind.implementations for w in i.wires(given)} - registered or {"none"}
        assert [w for w in wires if f'"{w}"' not in wire] == [], said
