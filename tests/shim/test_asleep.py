"""A client asleep for its first answer has promised to send no more by TCP; a signal handler of its may."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.harness import Host, assert_carried, require_program
from tests.shim.conftest import Build

_BY_UNIX = '[[rule]]\nprohibit = ["shm"]\n'
_COUNT = 12


@pytest.mark.parametrize("when", ["early", "late"])
@pytest.mark.parametrize("way", ["send", "shutdown", "fork", "afterwards"])
def test_bytes_of_who_slept_come_in_order(host: Host, build: Build, way: str, when: str) -> None:
    host.set_policy(_BY_UNIX)
    assert host.run([build("asleep"), way, when, _COUNT], timeout=60) == ""
    log = host.finish()
    # In the child, before the server came, it is a connection of two processes, which stays plain.
    carrier = "tcp" if (way, when) == ("fork", "early") else "unix"
    assert_carried(log, "asleep", carrier, role="server", min_connections=_COUNT)
    assert_carried(log, "asleep", carrier, role="client", min_connections=_COUNT)


def test_a_second_request_looks_at_one_socket(host: Host, build: Build, tmp_path: Path) -> None:
    """The server is traced, and so the slower one: its client sleeps when it accepts."""
    strace, trace = require_program("strace"), tmp_path / "trace"
    host.set_policy(_BY_UNIX)
    count = 50
    words = [strace, "-o", trace, "-e", "trace=poll,ppoll,accept,accept4"]
    assert host.run([*words, build("asleep"), "rounds", "late", count], timeout=60) == ""
    log = host.finish()
    assert_carried(log, "asleep", "unix", role="server", min_connections=count)
    calls = trace.read_text()
    assert len(re.findall(r"^accept4?\(", calls, re.M)) == count
    if not host.rehearse:
        both = r"^p?poll\(\[\{fd=\d+, [^}]*\}, \{fd=\d"  # on one processor it polls the one socket
        assert len(re.findall(both, calls, re.M)) < count / 2, calls
