"""How a chunnel becomes known (registered, of an installed package, from a file), or why it does not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import ClassVar

import pytest

from bertha_socket.chunnels import (
    ChunnelArgumentError,
    Parameter,
    Pipe,
    UnknownChunnel,
    all_types,
    get,
    load_chunnel,
    register_chunnel,
    unregister,
)
from bertha_socket.chunnels._interfaces import misfit
from bertha_socket.dag import parse


class Endpoints(Enum):
    BOTH = "both"


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    before = {t.name for t in all_types()}
    yield
    for chunnel_type in all_types():
        if chunnel_type.name not in before:
            unregister(chunnel_type.name)


def test_the_papers_call() -> None:
    class Dedup(Pipe):
        """Nothing twice."""

    assert register_chunnel("dedup", Dedup, Endpoints.BOTH, "application") is Dedup
    found = get("dedup")
    assert (found.summary, found.endpoints, found.wire) == ("Nothing twice.", "both", "dedup/1")
    assert found.implementations[0].where == "application"
    assert not found.implementations[0].builtin


def test_as_a_decorator_in_three_ways() -> None:
    @register_chunnel
    class Plain(Pipe):
        pass

    @register_chunnel("renamed", wire=("a/2", "a/1"), priority=50)
    class Other(Pipe):
        parameters: ClassVar = (Parameter("n", "int"),)

    @register_chunnel(endpoints="client")
    class Lone(Pipe):
        pass

    assert get("plain").name == "plain"
    assert get("lone").implementations[0].wires({}) == ("none",)
    found = get("renamed").implementations[0]
    assert (found.wires({}), found.priority, found.make) == (("a/2", "a/1"), 50, Other)
    assert get("renamed").bind(parse("renamed(3)").chunnels[0]) == {"n": 3}


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"name": "no name"}, "no name for a chunnel"),
        ({"name": "x", "endpoints": "everybody"}, "endpoints is 'everybody'"),
        ({"name": "x", "scope": "galaxy"}, "scope application or host"),
    ],
)
def test_what_cannot_be_registered(said: dict[str, str], problem: str) -> None:
    words = dict(said)
    with pytest.raises(ChunnelArgumentError, match=problem):
        register_chunnel(words.pop("name"), **words)(Pipe)


@pytest.mark.parametrize("source", ["nonsense", ":X", "os:", "no.such.module:X", "os:nothing", "os:getpid"])
def test_sources_that_are_none(source: str) -> None:
    with pytest.raises(ChunnelArgumentError):
        load_chunnel(source, "x")


def test_an_unknown_type_is_a_key_error_and_an_os_error_with_a_remedy() -> None:
    with pytest.raises(UnknownChunnel, match=r"\[\[chunnel\]\]") as raised:
        get("never_heard_of")
    assert isinstance(raised.value, KeyError) and isinstance(raised.value, OSError)


def test_entry_points_of_installed_packages(tmp_path: Path) -> None:
    """One that works, and one that raises when it is imported, which hurts nobody."""
    (tmp_path / "theirs.py").write_text(
        "from bertha_socket.chunnels import Pipe\nclass Theirs(Pipe):\n    '''Of a package.'''\n"
    )
    (tmp_path / "broken.py").write_text("raise RuntimeError('not today')\n")
    info = tmp_path / "theirs-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[bertha_socket.chunnels]\nbroken = broken:X\ntheirs = theirs:Theirs\n"
    )
    code = (
        "from bertha_socket.chunnels import all_types, get\n"
        "print(get('theirs').summary, 'broken' in [t.name for t in all_types()], get('count').name)"
    )
    root = Path(__file__).resolve().parents[2]
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{root}:{tmp_path}"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert found.stdout.split() == ["Of", "a", "package.", "False", "count"]
    assert "not today" in found.stderr


@pytest.mark.parametrize(
    ("dag", "problem"),
    [
        ("compress() |> encrypt()", None),
        ("frame() |> compress()", None),
        ("count() |> frame() |> limit(rate=1) |> encrypt()", None),
        ("serialize()", "put serialize|bertha_socket.new"),
        ("reliable()", 'proto = "udp"'),
        ("compress() |> serialize()", "sends objects"),
    ],
)
def test_what_fits_beneath_a_stream(dag: str, problem: str | None) -> None:
    why = misfit([get(c.type) for c in parse(dag).chunnels])
    if problem is None:
        assert why is None
    else:
        assert why is not None and any(p in why for p in problem.split("|")), why
