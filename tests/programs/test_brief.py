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


_PROCESSES = 32  # bertha_socket/agent/brief.py


def _script(host: Host, script: str) -> list[Connection]:
    """The clients' lines, in order, of a shell script's processes; `$one` is one."""
    port = free_port()
    host.server([sys.executable, _CLIENTS / "servers.py", "selectors", str(port)], port)
    one = f"bash {_CLIENTS / 'brief_process.sh'} {port}"
    host.run(["bash", "-ec", f"one='{one}'; {script}"], timeout=60)
    return connections(host.finish(), role="client", port=port)


def _reasons(lines: list[Connection]) -> list[str | None]:
    return [None if c.implementation == "shm" else c.reason for c in lines]


def test_processes(host: Host) -> None:
    """A script's: after many that were brief the next ones stay plain, but for what they make besides; one
    that is called by other words is not meant, nor is one that comes a second later."""
    seen = "tail -n 4 $BERTHA_CONNLOG | grep -q 'processes called like'"  # later where one took its time
    many = f"for i in $(seq 300); do $one; {seen} && break; done; for i in $(seq 20); do $one; done"
    lines = _script(host, f"{many}; SECOND=1 $one; ${{one/bash/bash -e}}; sleep 1.2; $one")
    reasons = _reasons(lines)
    plain = text_of(Reason.BRIEF_PROCESS)
    assert plain not in reasons[:_PROCESSES]
    assert set(reasons) == {None, plain}
    assert reasons[-24:-4].count(plain) >= 15, reasons  # now and then one comes to the agent again
    assert reasons[-4:] == [plain, None, None, None], reasons


def test_processes_that_last_are_not_brief(host: Host) -> None:
    """One of them ends the count."""
    some = f"for i in $(seq {_PROCESSES - 4}); do $one; done"
    lines = _script(host, f"{some}; LASTS=1 $one; {some}")
    assert _reasons(lines) == [None] * (2 * _PROCESSES - 7)


def test_processes_with_a_policy(host: Host) -> None:
    """What it says cannot be known without the agent."""
    host.set_policy('[[rule]]\nprogram = "nobody"\nprohibit = ["shm"]\n')
    lines = _script(host, f"for i in $(seq {_PROCESSES + 10}); do $one; done")
    assert_carried(lines, "bash", "shm", _PROCESSES + 10)
