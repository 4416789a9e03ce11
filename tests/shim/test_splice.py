"""splice between a pipe and a connection."""

from __future__ import annotations

import pytest

from tests.harness import Host, assert_balanced, assert_carried, eventually
from tests.shim.conftest import Build, Talk

_TEXT = b"".join(b"%d\n" % i for i in range(400_000))


@pytest.mark.parametrize(("way", "answer"), [("relay", _TEXT), ("proxy", _TEXT), ("wrong", b"end")])
def test_splice(host: Host, build: Build, talk: Talk, way: str, answer: bytes) -> None:
    text = _TEXT[:100] if way == "wrong" else _TEXT
    assert talk([build("splicer"), "PORT", way], text) == "*" + answer.decode()
    eventually(lambda: host.rehearse or len(host.connlog()) == 2, "both ends in the log")
    log = host.finish()
    assert_carried(log, "splicer", role="server")
    assert_balanced(log)
