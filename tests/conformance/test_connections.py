"""The kit over real connections of two processes, by what `local_or_remote` picks, and by carriers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bertha_socket.reasons import Reason, text_of
from tests.chunnels.conftest import cluster_key as cluster_key
from tests.conformance.connection import CHECKED
from tests.conftest import MakeHost
from tests.harness import Host, assert_carried, connections, free_port

pytestmark = pytest.mark.program

_ROOT = Path(__file__).parents[2]
_PYTHON = Path(sys.executable).name
_RULES = {
    "shm": None,
    "unix": 'prohibit = ["shm"]',
    "tcp": 'dag = "tcp()"',
}
_DAGS = {
    "compress()": ("compress", "local_or_remote"),
    "compress() |> encrypt()": ("compress", "encrypt", "local_or_remote"),
}
#: At the least: the kit makes a connection for each moment at which it cuts one.
_CONNECTIONS = 60


def _checked(host: Host, rule: str | None) -> str:
    """How many of the connections that were cut off were so with a reset."""
    if rule is not None:
        host.set_policy(f"[[rule]]\n{rule}\n")
    command = [sys.executable, "-m", "tests.conformance.connection", free_port()]
    checks, resets = host.run(command, cwd=_ROOT, timeout=90).splitlines()
    assert checks.split() == CHECKED
    return resets


@pytest.mark.parametrize("way", _RULES)
def test_local_or_remote(host: Host, way: str) -> None:
    assert _checked(host, _RULES[way]) == "30 of 30"
    log = host.finish()
    ends = [assert_carried(log, _PYTHON, way, _CONNECTIONS, role=role) for role in ("client", "server")]
    assert len(ends[0]) == len(ends[1])


@pytest.mark.parametrize("dag", _DAGS)
def test_carriers(make_host: MakeHost, cluster_key: Path, dag: str) -> None:
    """One that ends before its carriers have agreed has sent nothing, and nothing plainly."""
    host = make_host(cluster_key=cluster_key)
    _checked(host, f'side = "server"\ndag = "{dag}"')
    log = connections(host.finish(), program=_PYTHON)
    assert len(log) >= 2 * _CONNECTIONS
    assert not any(c.plain for c in log), log
    early = [c for c in log if len(c.raw["chunnels"]) == 1]
    never = (text_of(Reason.NEVER_CONNECTED), text_of(Reason.CHUNNEL_REFUSED))
    assert all(c.rx_bytes == 0 and (c.reason or "").startswith(never) for c in early), early
    through = [c for c in log if c not in early]
    assert len(through) >= 20, log
    assert {tuple(x["type"] for x in c.raw["chunnels"]) for c in through} == {_DAGS[dag]}, through
