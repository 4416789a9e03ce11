"""`tcp()` in an endpoint's DAG: the kernel carries its bytes, with an agent that could do better."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.harness import Host, assert_carried, connections, eventually, free_port

_PROGRAM = Path(__file__).parent / "bottom.py"
_PYTHON = Path(sys.executable).name


@pytest.mark.parametrize(
    ("server", "client", "carrier"),
    [
        ("frame()", "frame() |> local_or_remote()", "shm"),
        ("frame() |> tcp()", "frame()", "tcp"),
        ("frame()", "frame() |> tcp()", "tcp"),
        ("frame() |> tcp()", "frame() |> prefer tcp()", "tcp"),
    ],
)
def test_what_carries_an_endpoints_bytes(host: Host, server: str, client: str, carrier: str) -> None:
    port = free_port()
    host.server([sys.executable, _PROGRAM, "serve", server, "127.0.0.1", port], port, shim=False)
    ask = [sys.executable, _PROGRAM, "ask", client, "127.0.0.1", port, "hello"]
    assert host.run(ask, shim=False).strip() == "hello"
    if carrier == "shm":
        eventually(lambda: len(host.connlog()) == 2, "both lines of the log")
        assert_carried(host.finish(), _PYTHON, "shm", 2, port=port)
        return
    # stdlib's sockets are not in the log; what is in it, because the other end's socket is ours, is plain.
    wrong = [c for c in connections(host.finish(), port=port) if c.implementation != "tcp"]
    assert not wrong, wrong
