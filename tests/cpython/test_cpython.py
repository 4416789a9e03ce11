"""A part of CPython's suite under bertha-run: whatever fails there must fail plain too, and shm carried
connections.

The whole suite is a command: `python -m tests.cpython.table`.
"""

from __future__ import annotations

import pytest

from tests.cpython import suite

# What takes long or is not about TCP streams: those run in the whole suite.
_LONG = (
    *("*UDP*", "*CAN*", "*RDS*", "*Bluetooth*", "*QIPC*", "*BTS*", "*SCTP*", "*ALG*", "*Unix*", "*Lite*"),
    *("*RecvmsgIntoSCM*", "*SendmsgSCM*", "*testCongestion*", "*test_poll_blocks_with_negative_ms"),
)
# Module: connections' ends that must have been carried by shared memory.
_MODULES = {
    "test_socket": 20,
    "test_select": 0,
    "test_poll": 0,
    "test_epoll": 4,
    "test_httplib": 8,
    "test_socketserver": 20,
}


@pytest.fixture(autouse=True)
def _available() -> None:
    if (why := suite.unavailable()) is not None:
        pytest.skip(why)


@pytest.mark.slow
@pytest.mark.program
@pytest.mark.timeout(300)
@pytest.mark.parametrize("module", _MODULES)
def test_module_passes_under_bertha_run(module: str) -> None:
    shim = suite.Suite(timeout=30, ignore=_LONG).run(module, shim=True)
    assert shim.complaint is None
    assert shim.count("ok") > 0
    bad = [name for name, outcome in shim.outcomes.items() if outcome not in ("ok", "skip")]
    if bad:
        plain = suite.Suite(timeout=30, only=bad).run(module, shim=False)
        worse = suite.differences(plain, shim)
        details = "\n".join(
            f"{how}: {name}\n{shim.details[name]}" for name, how in worse.items() if name in bad
        )
        assert not worse, details
    assert shim.shm >= _MODULES[module], f"{shim.shm} on shared memory; plain for: {shim.reasons}"


@pytest.mark.slow
@pytest.mark.program
def test_suite_notices_failures_hangs_and_crashes() -> None:
    """The harness itself: a module with a test of each sort."""
    found = suite.Suite(timeout=2, package="samples").run("sample", shim=False)
    outcomes = {name.rpartition(".")[2]: outcome for name, outcome in found.outcomes.items()}
    assert outcomes == {
        "test_a_ok": "ok",
        "test_b_fails": "fail",
        "test_c_hangs": "hang",
        "test_d_crashes": "crash",
        "test_e_skips": "skip",
        "test_f_ok_after_all": "ok",
    }
