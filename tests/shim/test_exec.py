"""Connections that outlive an exec: what inetd, shells and subprocess do with them."""

from __future__ import annotations

import sys

import pytest

from tests.harness import Host, assert_balanced, eventually
from tests.shim.conftest import Build, Talk

_TEXT = b"".join(b"line %d of some text\n" % i for i in range(20_000))
_UPPER = "import sys; sys.stdout.write(sys.stdin.read().upper())"
_WAYS = ["fork", "vfork", "spawn", "self"]


def _carried(host: Host) -> None:
    """Both ends were on shared memory; whoever closed the server's end last has logged it."""
    eventually(lambda: host.rehearse or len(host.connlog()) == 2, "both ends in the log")
    log = host.finish()
    assert_balanced(log)
    assert {c.implementation for c in log} <= {"shm"}


@pytest.mark.parametrize("way", _WAYS)
def test_cat(host: Host, build: Build, talk: Talk, way: str) -> None:
    assert talk([build("inetd"), "PORT", way, "cat"], _TEXT) == "*" + _TEXT.decode()
    _carried(host)


@pytest.mark.parametrize("way", _WAYS)
def test_python(host: Host, build: Build, talk: Talk, way: str) -> None:
    command = [build("inetd"), "PORT", way, sys.executable, "-c", _UPPER]
    assert talk(command, _TEXT) == "*" + _TEXT.decode().upper()
    _carried(host)


@pytest.mark.parametrize("way", _WAYS)
def test_program_that_uses_stdio(host: Host, build: Build, talk: Talk, way: str) -> None:
    """sed reads and writes by stdio alone."""
    assert talk([build("inetd"), "PORT", way, "sed", "-u", "s/b/XX/"], b"abc\nbdef\n") == "*aXXc\nXXdef\n"
    _carried(host)
