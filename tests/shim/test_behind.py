"""What uses a connection behind the shim's back, or forbids its calls, has the kernel's connection."""

from __future__ import annotations

import pytest

from tests.harness import Host, assert_carried, connections, eventually
from tests.shim.conftest import Build

_SAYS = {
    "aio": ["read 3: abc", "written: wxyz!", "read 2: de"],
    "list": ["written: 01ab"],
    "submit": ["read 3: abc"],
    "signals": ["signal: 1", "signal: 1"],
    "times": ["time: 1"],
}


@pytest.mark.parametrize("name", _SAYS)
@pytest.mark.parametrize("carrier", ["tcp", "shm", "unix"])
def test_behind(host: Host, build: Build, name: str, carrier: str) -> None:
    if carrier == "unix":
        host.set_policy('[[rule]]\nprohibit = ["shm"]\n')
        if name == "times":
            pytest.skip("a unix socket has none (docs/users/limits.md)")
    assert host.run([build("behind"), name], shim=carrier != "tcp").splitlines() == _SAYS[name]
    if carrier != "tcp":
        log = assert_carried(host.finish(), "behind", carrier)
        assert carrier == "unix" or any("only the kernel can serve" in (c.reason or "") for c in log)


@pytest.mark.parametrize("way", ["waiting", "busy", "epoll"])
@pytest.mark.parametrize("shim", [False, True])
def test_seccomp(host: Host, build: Build, way: str, shim: bool) -> None:
    """The filter kills at any call that the program does not make itself."""
    assert host.run([build("sandbox"), way], shim=shim) == "ok\n"
    if shim:
        eventually(lambda: host.rehearse or len(host.connlog()) == 2, "both ends in the log")
        log = host.finish()
        lines = connections(log, role="server")
        assert host.rehearse or lines
        for c in lines:
            assert c.implementation == "shm" and "seccomp" in (c.reason or "")
