"""Where memory cannot be had: the next best implementation, or plain TCP, with a reason; never a failure."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import MakeHost
from tests.harness import (
    Connection,
    Host,
    assert_balanced,
    assert_carried,
    assert_plain,
    free_port,
)
from tests.shim.conftest import Build

_CONNECTS = Path(__file__).parent / "connects.py"
_PYTHON = Path(sys.executable).name
_COUNT = 5
_NO_MEMORY = "shared memory could not be made or mapped: a memory limit is reached"
_NO_DESCRIPTOR = "no file descriptor was left: raise the limit with 'ulimit -n'"
#: Less than the two GiB of addresses that a link with rings takes, and enough for everything else.
_LIMITED = ["sh", "-c", 'ulimit -v 1000000; exec "$@"', "sh"]
_GIB = 1 << 30
_FULL = [errno.ENOSPC, errno.ENOMEM, errno.EMFILE]


def _talk(
    host: Host,
    build: Build,
    *,
    server: Sequence[object] = (),
    client: Sequence[object] = (),
    listed: bool = True,
) -> list[Connection]:
    """Five connections, one after the other; `server`, `client`: what becomes bertha-run there.  The log."""
    port = free_port()
    serving = host.spawn([build("again"), "serve", port, _COUNT], under=server, label="again")
    host.wait_port(serving, port, listed=listed)
    asking = host.spawn([sys.executable, _CONNECTS, port, _COUNT, 0], under=client)
    assert asking.wait(60) == "ok\n"
    serving.wait()
    log = host.finish()
    assert_balanced(log, port=port, min_pairs=0 if host.rehearse else _COUNT)
    return log


def _assert_by_unix(host: Host, log: list[Connection]) -> None:
    for program, role in ((_PYTHON, "client"), ("again", "server")):
        assert_carried(log, program, "unix", _COUNT, role=role)
    assert host.rehearse or {c.reason for c in log} == {_NO_MEMORY}


@pytest.mark.parametrize("limited", ["client", "server", "both"])
def test_programs_with_little_address_space(host: Host, build: Build, limited: str) -> None:
    server = _LIMITED if limited != "client" else []
    client = _LIMITED if limited != "server" else []
    _assert_by_unix(host, _talk(host, build, server=server, client=client))


def test_agent_cannot_make_rings(make_host: MakeHost, build: Build) -> None:
    """What it cannot make is the whole of a link with rings; the small one for `unix` it can."""
    host = make_host(agent=False)
    if not host.rehearse:
        host.start_agent([build("deny"), "ftruncate", errno.ENOMEM, _GIB])
    _assert_by_unix(host, _talk(host, build))


@pytest.mark.parametrize("number", _FULL, ids=lambda number: errno.errorcode[number])
def test_agent_has_no_memory_at_all(make_host: MakeHost, build: Build, number: int) -> None:
    host = make_host(agent=False)
    if not host.rehearse:
        host.start_agent([build("deny"), "memfd_create", number, 0])
    log = _talk(host, build, listed=False)
    assert_plain(log, _PYTHON, _COUNT, role="client")
    servers = assert_plain(log, "again", _COUNT, role="server")
    assert {c.reason for c in servers} <= {_NO_DESCRIPTOR if number == errno.EMFILE else _NO_MEMORY}


@pytest.mark.parametrize("number", _FULL, ids=lambda number: errno.errorcode[number])
@pytest.mark.parametrize("who", ["client", "server", "both"])
def test_programs_cannot_make_memory(host: Host, build: Build, number: int, who: str) -> None:
    """Links are the agent's, so such a program has shared memory all the same; its own table is private."""
    deny = [build("deny"), "memfd_create", number, 0]
    log = _talk(host, build, server=deny if who != "client" else (), client=deny if who != "server" else ())
    assert_carried(log, _PYTHON, min_connections=_COUNT, role="client")
    assert_carried(log, "again", min_connections=_COUNT, role="server")


@pytest.mark.parametrize("who", ["client", "server"])
def test_programs_cannot_map_a_link(host: Host, build: Build, who: str) -> None:
    """For a reason that no limit shows."""
    deny = [build("deny"), "mmap", errno.ENOMEM, _GIB]
    log = _talk(host, build, server=deny if who == "server" else (), client=deny if who == "client" else ())
    plain = assert_plain(log, _PYTHON, _COUNT, role="client")
    assert_plain(log, "again", _COUNT, role="server")
    if who == "client":
        assert {c.reason for c in plain} <= {_NO_MEMORY}
