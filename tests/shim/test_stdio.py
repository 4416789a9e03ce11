"""C's stdio on a connection: glibc's own calls must not go past the ring."""

from __future__ import annotations

import pytest

from tests.harness import Host, assert_balanced, assert_carried, eventually
from tests.shim.conftest import Build, Talk

_LINES = b"one\ntwo words\n" + b"x" * 200 + b"\n"
_COUNTED = "".join(f"{len(line) + 1} {line}\n" for line in _LINES.decode().splitlines())


@pytest.mark.parametrize(
    ("way", "answer"),
    [
        ("two", _COUNTED),
        ("both", _COUNTED),
        ("printed", "".join(f"<{c}>" for c in _LINES.decode())),
        ("wrong", "ok"),
        ("unflushed", "".join(f"late {c}\n" for c in _LINES.decode())),
        ("standard", f"hello\n{_COUNTED}said: No such file or directory\n"),
        ("borrowed", "to the connection, too\nto the connection\n"),
    ],
)
def test_stdio(host: Host, build: Build, talk: Talk, way: str, answer: str) -> None:
    assert talk([build("stdio_server"), "PORT", way], _LINES) == "*" + answer
    eventually(lambda: host.rehearse or len(host.connlog()) == 2, "both ends in the log")
    log = host.finish()
    assert_carried(log, "stdio_server", role="server")
    assert_balanced(log)
    if way == "borrowed":
        assert [p.text() for p in host.programs if p.label == "stdio_server"] == ["to the terminal\n"]
