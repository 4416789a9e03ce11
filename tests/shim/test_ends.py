"""What a program is told when a connection ends, or a wait is cut short: the same as by TCP."""

from __future__ import annotations

import pytest

from tests.harness import Host, assert_carried, connections
from tests.shim.conftest import Build

_SAYS = {
    "waitall_reset": ["a part: 2", "its reason: ECONNRESET", "told once: 0"],
    "low_water_reset": ["a part: 2", "its reason: ECONNRESET", "told once: 0"],
    "send_reset": ["a part: 1", "its reason: ECONNRESET", "told once: EPIPE"],
    "waitall_timeout": ["a part: 2", "one wait: 1"],
    "waitall_signal": ["a part: 2"],
    "no_wait": ["a negative timeout: EAGAIN"],
    "inherited_linger": ["what was sent: 2", "then: ECONNRESET"],
    "killed": ["recv: ECONNRESET", "recv: 0", "send: EPIPE"],
    "half_closed": ["recv: 0", "send: 1", "there: 15"],
    "own_shutdown": ["recv: 0", "error: 0 end: 1"],
    "reader_shut": ["send: 1", "writable: 1 readable: 0", "the other way: 2", "its end: 0"],
    "thrown_away": ["thrown away: 3", "to nowhere: 2", "counted: 3", "....", "left: 3", "fgh"],
    "thrown_away_by_message": [
        *("looked at: 4", "thrown away: 4", "messages: 2", "4 and 2: ....", "none: EAGAIN"),
    ],
    "error_queue": ["errors: EAGAIN", "errors: EAGAIN", "data: 4"],
    "dissolved": ["dissolved: 0", "the other end: ECONNRESET", "again"],
    "nothing_sent_to_the_reset": ["nothing: ECONNRESET", "told once: EPIPE"],
    "forked_by_number": ["still there"],
    "refused": ["a bad timeout: EINVAL"] * 3 + ["unknown flags: EOPNOTSUPP"] * 2 + ["there: 1"],
}
#: By a unix socket: not what the kernel's unix sockets cannot tell (docs/users/limits.md).
_UNIX = sorted(_SAYS.keys() - {"send_reset", "nothing_sent_to_the_reset"})
#: With a carrier: not what depends on when it, or the other end's, has got so far.
_CARRIED = [
    "waitall_reset",
    "low_water_reset",
    "waitall_timeout",
    "waitall_signal",
    "no_wait",
    "own_shutdown",
    "thrown_away",
    "error_queue",
    "dissolved",
    "refused",
]


@pytest.mark.parametrize("way", ["tcp", "shm", "unix", "carrier"])
def test_dissolved_while_a_child_has_it(host: Host, build: Build, way: str) -> None:
    policy = {"unix": 'prohibit = ["shm"]', "carrier": 'dag = "prefer compress()"'}
    if way in policy:
        host.set_policy(f"[[rule]]\n{policy[way]}\n")
    told = host.run([build("ends"), "dissolved_for_a_child"], shim=way != "tcp").splitlines()
    assert told == ["dissolved: 0", "the other end: ECONNRESET", "again"]
    lines = connections(host.finish(), program="ends")
    # The record is the second connection's when it is told of, which stays the kernel's, but for a carrier's.
    by = [c for c in lines if ("carrier" in c.raw if way == "carrier" else c.reason)]
    assert host.rehearse or bool(by) == (way != "tcp"), lines


@pytest.mark.parametrize("way", ["tcp", "shm", "unix"])
@pytest.mark.parametrize("name", ["shut_at_once", "shut_half_by_half"])
def test_shut_before_it_is_accepted(host: Host, build: Build, name: str, way: str) -> None:
    if way == "unix":
        host.set_policy('[[rule]]\nprohibit = ["shm"]\n')
    told = host.run([build("ends"), name], shim=way != "tcp").splitlines()
    assert told == ["asked: 3", "answered: 6", "the answer: ECONNRESET", "the other end: 0"]
    if way == "tcp" or host.rehearse:
        return
    lines = connections(host.finish(), program="ends")
    # The other connection of the program, and this one, which has nothing to carry any more.
    assert sorted(str(c.implementation) for c in lines) == sorted(["tcp", "tcp", way, way]), lines


@pytest.mark.parametrize("name", _SAYS)
def test_by_tcp(host: Host, build: Build, name: str) -> None:
    """What is expected below is the kernel's word."""
    assert host.run([build("ends"), name], shim=False).splitlines() == _SAYS[name]


@pytest.mark.parametrize("name", _SAYS)
def test_on_a_ring(host: Host, build: Build, name: str) -> None:
    assert host.run([build("ends"), name]).splitlines() == _SAYS[name]
    assert_carried(host.finish(), "ends")


@pytest.mark.parametrize("name", _UNIX)
def test_by_a_unix_socket(host: Host, build: Build, name: str) -> None:
    host.set_policy('[[rule]]\nprohibit = ["shm"]\n')
    assert host.run([build("ends"), name]).splitlines() == _SAYS[name]
    assert_carried(host.finish(), "ends", "unix")


@pytest.mark.parametrize("name", _CARRIED)
def test_by_a_carrier(host: Host, build: Build, name: str) -> None:
    host.set_policy('[[rule]]\ndag = "compress(level=1)"\n')
    assert host.run([build("ends"), name]).splitlines() == _SAYS[name]
    log = host.finish()
    assert host.rehearse or any("compress" in str(c.raw["chunnels"]) for c in log)
