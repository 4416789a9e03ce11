"""Connections that are over after one exchange: left to TCP, with that reason, until one is longer."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bertha_socket.reasons import Reason, text_of
from tests.harness import Connection, Host, assert_carried, connections, eventually, free_port

pytestmark = pytest.mark.program

_CLIENTS = Path(__file__).parent / "clients"
_RUN = 256  # native/core/brief.c


def _talk(host: Host, *words: str) -> list[Connection]:
    """The client's lines, in order."""
    port = free_port()
    host.server([sys.executable, _CLIENTS / "servers.py", "selectors", str(port)], port)
    assert host.run([sys.executable, _CLIENTS / "brief_client.py", str(port), *words]).strip() == "ok"
    count = sum(int(word.partition(":")[2]) for word in words)
    eventually(lambda: len(host.connlog()) >= 2 * count, "both ends' lines")
    return connections(host.finish(), role="client", port=port)


def test_plain_after_many_and_until_one_is_longer(host: Host) -> None:
    lines = _talk(host, f"brief:{_RUN + 40}", "long:3", "brief:4")
    kinds = [c.implementation for c in lines]
    assert kinds[:_RUN] == ["shm"] * _RUN
    assert kinds[_RUN : _RUN + 41] == ["tcp"] * 41  # the first long one among them: nobody knew
    assert {c.reason for c in lines[_RUN : _RUN + 41]} == {text_of(Reason.BRIEF)}
    assert kinds[_RUN + 41 :] == ["shm"] * 6


def test_not_where_a_rule_names_shm(host: Host) -> None:
    host.set_policy('[[rule]]\nprefer = ["shm"]\n')
    lines = _talk(host, f"brief:{_RUN + 40}")
    assert_carried(lines, Path(sys.executable).name, "shm", _RUN + 40)
    assert {c.reason for c in lines} == {text_of(Reason.POLICY)}
