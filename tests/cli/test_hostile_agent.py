"""`bertha ps` and `bertha top`, asked by root of an agent that is somebody else's and says anything."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bertha_socket.agent import client
from bertha_socket.cli import _live, ps, top

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("\x1b]0;title\x07"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
_CHUNNELS = st.lists(
    VALUES | st.dictionaries(st.sampled_from(["type", "implementation", "where", "counts"]), VALUES),
    max_size=3,
)
_KEYS = [
    "time",
    "pid",
    "program",
    "role",
    "proto",
    "local",
    "peer",
    "plain",
    "reason",
    "tx_bytes",
    "rx_bytes",
]
CONNECTIONS = st.lists(
    VALUES
    | st.dictionaries(st.sampled_from([*_KEYS, "chunnels", "more"]), VALUES, max_size=6)
    | st.builds(lambda chunnels: {"plain": False, "chunnels": chunnels}, _CHUNNELS),
    max_size=4,
)
_DESTINATIONS = st.lists(
    VALUES
    | st.dictionaries(st.sampled_from(["destination", "verdict", "chunnels", "seconds", "detail"]), VALUES),
    max_size=3,
)
AGENTS = st.fixed_dictionaries(
    {},
    optional={
        "destinations": VALUES | _DESTINATIONS,
        "carriers": VALUES
        | st.lists(st.dictionaries(st.sampled_from(["pid", "kind", "shims"]), VALUES), max_size=3),
        "port": VALUES,
        "port_error": VALUES,
        "cluster_key": VALUES,
    },
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.fixed_dictionaries({}, optional={"connections": VALUES | CONNECTIONS, "agent": VALUES | AGENTS}))
def test_any_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: dict[str, Any]
) -> None:
    monkeypatch.setattr(client, "agent_status", lambda path: status)
    monkeypatch.setattr(ps, "agent_status", lambda path: status)
    for arguments in ([], ["--plain"], ["--destinations"]):
        assert ps.main(["--agent", "x", *arguments]) == 0
        assert "\x1b" not in capsys.readouterr().out, "it drives no terminal"
    assert ps.main(["--agent", "x", "--json"]) == 0
    json.loads(capsys.readouterr().out)
    rates = top.Rates()
    for now in (1.0, 2.0):
        rated = rates.update(_live.connections("x"), now)
        assert all("\x1b" not in line for line in top._screen(rated, 80, 24))
