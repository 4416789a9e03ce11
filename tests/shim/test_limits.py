"""Programs without descriptors get EMFILE, lose nothing, and have nearly as many as without the shim."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.harness import Host, assert_carried, connections, free_port, read_connlog

_HERE = Path(__file__).parent
_PYTHON = Path(sys.executable).name
_COUNT = 60
_UNIX = '[[rule]]\nprohibit = ["shm"]\n'
#: What a process needs for itself: the waiting thread's set, a bell, and one that is open while a call works.
_OWN = 5


@pytest.mark.parametrize(("at_server", "at_client"), [(24, 1024), (1024, 24), (24, 24)])
def test_no_descriptor_left(host: Host, at_server: int, at_client: int) -> None:
    port = free_port()
    server = host.server([sys.executable, _HERE / "few_server.py", port, at_server, _COUNT], port)
    client = host.run([sys.executable, _HERE / "few_client.py", port, _COUNT, at_client], timeout=60)
    said = server.wait()
    if at_server < _COUNT < at_client:
        assert (
            int(said.split()[1]) >= at_server - 5 - _OWN
        )  # 0, 1, 2, the listener and the set are the program's
    if at_client < _COUNT < at_server:
        assert int(client.split()[1]) >= at_client - 3 - _OWN
    log = host.finish()
    for role in ("client", "server"):
        assert len(assert_carried(log, _PYTHON, role=role)) == _COUNT


@pytest.mark.parametrize(("at_server", "at_client"), [(24, 1024), (1024, 24), (24, 24)])
def test_no_descriptor_left_by_unix(host: Host, at_server: int, at_client: int) -> None:
    """The exchange needs two more at each end: who has them not stays plain, and loses nothing."""
    host.set_policy(_UNIX)
    port = free_port()
    server = host.server([sys.executable, _HERE / "few_server.py", port, at_server, _COUNT], port)
    host.run([sys.executable, _HERE / "few_client.py", port, _COUNT, at_client], timeout=60)
    server.wait()
    log = host.finish()
    of_role = [
        [c for c in connections(log, program=_PYTHON, role=role) if c.tx_bytes]
        for role in ("client", "server")
    ]
    carried = [{c.local if c.role == "client" else c.peer for c in of if not c.plain} for of in of_role]
    assert host.rehearse or carried[0] == carried[1]
    assert host.rehearse or 4 <= len(carried[0]) < _COUNT, len(carried[0])
    for of in of_role:
        assert host.rehearse or len(of) == _COUNT
        assert {c.implementation for c in of} <= {"unix", "tcp"}


@pytest.mark.parametrize("full", [False, True])
def test_a_limit_on_files_ends_nobody(host: Host, full: bool) -> None:
    """What the shim itself writes (the log, what `bertha ps` reads) is larger than the program may write."""
    port = free_port()
    if full:
        host.connlog_path.write_text("\n" * 5000)
    words = ["sh", "-c", 'ulimit -f 8; exec "$@"', "sh", sys.executable]  # 4096 bytes
    server = host.server([*words, _HERE / "few_server.py", port, 100, 3], port)
    assert host.run([*words, _HERE / "few_client.py", port, 3, 100]) == "most 0\n"
    assert server.wait() == "most 0\n"
    if full:
        assert host.connlog_path.read_text() == "\n" * 5000
        other = host.dir / "other.jsonl"  # by which it is seen that it was on
        server = host.server([*words, _HERE / "few_server.py", port, 100, 3], port)
        client = [*words, _HERE / "few_client.py", port, 3, 100]
        assert host.run(client, env={"BERTHA_CONNLOG": str(other)}) == "most 0\n"
        assert server.wait() == "most 0\n"
        assert host.rehearse or len(assert_carried(read_connlog(other), _PYTHON, role="client")) == 3
        return
    log = host.finish()
    for role in ("client", "server"):
        assert len(assert_carried(log, _PYTHON, role=role)) == 3
