"""Some classes of CPython's and gevent's own tests, with the shim loaded late by monkey.patch_all().

A sample, so that what breaks there is found by `make test`.  The whole of it are the commands behind
docs/users/late-suites.md.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cpython import suite
from tests.doors import gevent_table
from tests.harness import eventually

pytestmark = [pytest.mark.program, pytest.mark.timeout(120)]

# Module: what of it, and how many ends of connections shared memory must have carried.  About half of what it
# was on an idle machine: one whose client has closed before the server's thread gets to run is plain.
_CPYTHON = {
    "test_socket": (["*.BasicTCPTest.*", "*.FileObjectClassTestCase.*", "*.BufferIOTest.*"], 25),
    "test_ssl": (
        ["*.SimpleBackgroundTests.test_c*", "*.ThreadedTests.test_echo", "*.ThreadedTests.test_starttls"],
        8,
    ),
    "test_asyncio.test_streams": (["*.StreamTests.test_open_*", "*.StreamTests.test_*_client*"], 2),
    "test_asyncio.test_sock_lowlevel": (["*.EPollEventLoopTests.*"], 6),
}
_GEVENT = {"test__socket_close": 2, "test__socket": 12, "test__greenio": 2, "test__makefile_ref": 8}
#: Who patches first: what is put before, and what that is compared with.
_ORDERS = {
    "ours first": (gevent_table.FIRST, [sys.executable]),
    "gevent's first": (gevent_table.LAST, gevent_table.LAST_PLAIN),
}


@pytest.mark.parametrize("module", _CPYTHON)
def test_cpython(module: str) -> None:
    if (why := suite.unavailable()) is not None:
        pytest.skip(why)
    only, least = _CPYTHON[module]
    # A test may fail here without us: then it does so plain too.
    late = suite.Suite(timeout=20, only=only, ignore=["*huge*"], door="monkey").run(module, shim=True)
    assert late.complaint is None
    bad = [name for name, outcome in late.outcomes.items() if outcome not in ("ok", "skip")]
    if bad:
        plain = suite.Suite(timeout=20, only=bad).run(module, shim=False)
        worse = suite.differences(plain, late)
        assert not worse, "\n".join(
            f"{how}: {name}\n{late.details[name]}" for name, how in worse.items() if name in bad
        )
    assert late.count("ok") > 0
    assert late.shm >= least, f"{late.shm} on shared memory; plain for: {late.reasons}"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with an agent, as gevent_table wants it."""
    folder = tmp_path_factory.mktemp("g")
    environ = {k: v for k, v in os.environ.items() if not k.startswith("BERTHA_")}
    environ |= {"BERTHA_AGENT": str(folder / "agent.sock"), "BERTHA_AGENT_PORT": "0"}
    agent = subprocess.Popen([Path(sys.executable).parent / "bertha", "agent", "--foreground"], env=environ)
    try:
        eventually((folder / "agent.sock").exists, "the agent's socket")
        yield folder
    finally:
        agent.terminate()
        assert agent.wait(20) == 0


@pytest.mark.parametrize("order", _ORDERS)
@pytest.mark.parametrize("module", _GEVENT)
def test_gevent(module: str, order: str, served: Path) -> None:
    """With ours first gevent patches after it, where a test asks for that."""
    spec = importlib.util.find_spec("gevent.tests")
    if spec is None or spec.origin is None:
        pytest.skip("gevent's tests are not installed")
    file = Path(spec.origin).parent / f"{module}.py"
    both, without = _ORDERS[order]
    late = gevent_table.run(file, both, served)
    if late.bad:
        plain = gevent_table.run(file, without, served)
        assert late.bad <= plain.bad
    assert late.ok > 0
    assert late.shm >= _GEVENT[module], f"{late.shm} on shared memory, {late.plain} plain"
