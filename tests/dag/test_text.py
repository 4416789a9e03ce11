"""The text form: round trips, and errors that name the column."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bertha_socket import dag
from bertha_socket.chunnels import ChunnelArgumentError, UnknownChunnel, type_of
from bertha_socket.dag import (
    Chunnel,
    Dag,
    DagError,
    Need,
    Scope,
    avoid,
    c,
    chunnel,
    parse,
    prefer,
    prohibit,
    wrap,
)
from bertha_socket.expressions import Expression, parse_expression

_NAMES = st.from_regex(r"\A[A-Za-z_][A-Za-z0-9_]{0,8}\Z").filter(
    lambda n: n not in ("expr", "hash", "len", "u8", "u16", "u32", "u64", "min", "max", "payload", "not")
)
_EXPRESSIONS = st.sampled_from(
    ["payload[0]", "hash(payload[10:14]) % 3", "1 + payload[0]", "not payload[1]", "3",
     "'a)' == payload[:2]",
     "len(payload) > 3 and payload[:1] == b'\\x00'", "payload[0] if len(payload) else 1",
     "min(1, payload[0])"]
).map(parse_expression)  # fmt: skip
_PLAIN = st.one_of(
    st.none(), st.booleans(),
    st.integers(-(10**30), 10**30), st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12), _EXPRESSIONS,
)  # fmt: skip


def _chunnels(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Chunnel]:
    return st.builds(
        Chunnel,
        type=_NAMES,
        args=st.lists(values, max_size=3).map(tuple),
        kwargs=st.dictionaries(_NAMES, values, max_size=3).map(lambda d: tuple(d.items())),
        scope=st.none() | st.sampled_from(Scope),
        need=st.sampled_from(Need),
    )


def _dags(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Dag]:
    return st.lists(_chunnels(values), min_size=1, max_size=3).map(lambda found: Dag(tuple(found)))


_DAGS = _dags(st.recursive(_PLAIN, lambda v: st.lists(v, max_size=3).map(tuple) | _dags(v), max_leaves=6))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_DAGS)
def test_a_dag_survives_its_text(made: Dag) -> None:
    assert parse(str(made)) == made
    assert str(parse(str(made))) == str(made)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(alphabet='ab(),[]|>@="\\u{}1.e- payload:%hostprefer', max_size=40) | st.text(max_size=30))
def test_any_text_is_a_dag_or_an_error_with_its_place(text: str) -> None:
    found: Dag | DagError
    try:
        found = parse(text)
    except DagError as error:
        found = error
    if isinstance(found, Dag):
        assert parse(str(found)) == found
    else:
        assert found.column is not None and 1 <= found.column <= len(text) + 1
        assert found.strerror is not None and "\n" not in found.strerror


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("encrypt", 8),
        ("encrypt() compress()", 11),
        ("encrypt() |>", 13),
        ("|> encrypt()", 1),
        ("encrypt()@moon", 11),
        ("a(b=1, b=2)", 8),
        ("a(b=1, 2)", 8),
        ("a(nan)", 6),
        ("a(1e999)", 3),
        ("a(" + "1" * 5000 + ")", 3),
        ('a("open)', 3),
        ('a("x\\q")', 5),
        ('a("\\u{d800}")', 3),
        ("a(payload[)", 3),
        ("a(1, by=hash(socket) % 3)", 14),
        ("a(expr(payload.x))", 8),
        ("a[1]", 2),
        ("(a() |> b()", 12),
        ("a(;)", 3),
        ("a(" * 20 + ")" * 20, 19),
        (" |> ".join(["a()"] * (dag.CHUNNELS_MAX + 1)), 7 * dag.CHUNNELS_MAX + 1),
    ],
)
def test_errors_name_the_column(text: str, column: int) -> None:
    with pytest.raises(DagError) as caught:
        parse(text)
    assert caught.value.column == column
    assert f"column {column}: " in str(caught.value)
    assert caught.value.pointed().splitlines()[-1].index("^") == column + 1


def test_too_long() -> None:
    with pytest.raises(DagError, match="more than 8192"):
        parse("a()" + " " * dag.TEXT_MAX)


def test_figure_2_of_the_paper() -> None:
    a, b, cc, d = (chunnel(n) for n in "ABCD")
    made = wrap(a(1) | b([cc(), d()]))
    assert str(made) == "A(1) |> B([C(), D()])"
    assert parse("A(1)|>\nB([C(),D()])") == made


def test_listings_of_the_paper() -> None:
    assert str(wrap(c.local_or_remote())) == "local_or_remote()"
    assert str(wrap(c.serialize() | c.ordered_mcast())) == "serialize() |> ordered_mcast()"
    shards = ["10.0.0.1:80", "10.0.0.2:80"]
    sharded = wrap(c.shard(choices=shards, fn=parse_expression("hash(payload[10:14]) % 3")) | c.reliable())
    text = 'shard(choices=["10.0.0.1:80", "10.0.0.2:80"], fn=hash(payload[10:14]) % 3) |> reliable()'
    assert str(sharded) == text and parse(text) == sharded
    assert wrap("") == Dag()


def test_scopes_and_needs() -> None:
    made = wrap((c.a() | c.b().at("host")).at("application") | prefer(c.d()) | avoid(c.e()) | prohibit(c.f()))
    assert str(made) == "a()@application |> b()@host |> prefer d() |> avoid e() |> prohibit f()"
    assert parse("(a() |> b()@host)@application |> prefer d() |> avoid e() |> prohibit f()") == made


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), object(), "\ud800", b"bytes", Expression("a.b")]
)
def test_python_values_that_cannot_be_written(value: object) -> None:
    with pytest.raises(DagError):
        c.a(value)
    with pytest.raises(DagError):
        c.a([value])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a() | b()", "column 5: '|' does not belong here: '|>' joins chunnels"),
        ("a('x')", 'column 3: "\'" does not belong here: a text is in double quotes'),
        ("a(1, True)", "column 6: True is written true here"),
        ("a(null)", "column 3: null is written none here"),
    ],
)
def test_what_is_often_written_has_a_remedy(text: str, said: str) -> None:
    with pytest.raises(DagError) as caught:
        parse(text)
    assert str(caught.value.strerror).startswith(said)
    assert caught.value.column == int(said.partition(":")[0].split()[1])


def test_a_scope_that_is_none() -> None:
    with pytest.raises(DagError, match="'moon' is no scope: one of application"):
        c.a().at("moon")
    with pytest.raises(DagError, match="'moon' is no scope"):
        (c.a() | c.b()).at("moon")


def _cycle() -> list[object]:
    found: list[object] = []
    found.append(found)
    return found


def _deep(levels: int) -> list[object]:
    found: list[object] = []
    for _ in range(levels):
        found = [found]
    return found


@pytest.mark.parametrize("value", [_cycle(), _deep(3000), _deep(dag.DEPTH_MAX), {"a": 1}])
def test_lists_without_end(value: object) -> None:
    with pytest.raises(DagError):
        c.a(value)
    with pytest.raises(DagError):
        c.a(by=[c.b(), value])
    with pytest.raises(DagError):
        str(Chunnel("a", (_cycle(),)))  # made by hand


def test_as_deep_as_may_be() -> None:
    made = c.a(_deep(dag.DEPTH_MAX - 1))
    assert parse(str(made)) == wrap(made)


def test_needs_of_a_subgraph() -> None:
    made = wrap(prefer(c.a() | c.b().at("host")) | avoid(wrap("d() |> e()")) | prohibit(wrap(c.f())))
    assert made == parse("prefer (a() |> b()@host) |> avoid (d() |> e()) |> prohibit f()")
    for wrong in (None, "a()", 3, [c.a()]):
        with pytest.raises(DagError, match="takes a chunnel or a DAG"):
            prefer(wrong)  # type: ignore[type-var]


def test_a_chunnel_knows_its_column_and_is_the_same_without() -> None:
    found = parse('a() |> prefer b([c("x"), d()])')
    inner = found.chunnels[1].args[0]
    assert [x.column for x in found.chunnels] == [1, 15]
    assert [x.chunnels[0].column for x in inner] == [18, 26]
    moved = parse('   a()   |>   prefer b([ c("x"),d() ])')
    assert moved == found and hash(moved) == hash(found) and str(moved) == str(found)
    assert "column" not in repr(found)


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("count() |> compress(level=99)", 12),
        ("count() |> compress(speed=1)", 12),
        ("count() |> nosuch()", 12),
        ("count() |> branch(by=payload[0], choices=[count(), nosuch()])", 52),
        (
            "count() |> branch(by=payload[0], choices=[count(), branch(by=len(payload), choices=[limit()])])",
            85,
        ),
        ("count() |> branch(by=payload[0], choices=[])", 12),
    ],
)
def test_what_types_do_not_take_is_pointed_at(text: str, column: int) -> None:
    *good, wrong = parse(text).chunnels
    for each in good:
        type_of(each).bind(each)
    with pytest.raises((ChunnelArgumentError, UnknownChunnel)) as caught:
        type_of(wrong).bind(wrong)
    assert caught.value.column == column
    assert caught.value.strerror is not None
    assert (
        caught.value.strerror.startswith(f"column {column}: ") and caught.value.strerror.count("column") == 1
    )


def test_the_words_of_needs_name_no_type() -> None:
    for made in (lambda: c.prefer(c.a()), lambda: c.avoid(), lambda: chunnel("prohibit")(1)):
        with pytest.raises(DagError):
            made()
    assert parse("prefer(a() |> b())") == parse("prefer a() |> prefer b()")
    assert parse("a(prefer=1)").chunnels[0].kwargs == (("prefer", 1),)
