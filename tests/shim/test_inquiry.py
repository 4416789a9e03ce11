"""TCP_INQ: recvmsg() says how much is left, as over TCP."""

from __future__ import annotations

import pytest

from tests.harness import Host, assert_carried
from tests.shim.conftest import Build

_SAYS = {
    "left": "2 left 6\n2 left 4\n4 left 4\n3 left 1\n1 left 0\n-1 left -1\n1 left -1\n1 left 0\n",
    "end": "1 left 2\n1 left 1\n0 left 1\n",
    "edge": "2 left 1\n0 left 1\n",
    "room": "".join(f"{n}: 0 cut 0 0\n" for n in range(2, 16, 2))
    + "16: 16 cut 16 0\n18: 18 cut 18 6\n20: 20 whole 20 6\n22: 22 whole 20 6\n24: 24 whole 20 6\n",
    "many": "2 left 5\n2 left 3\n2 left 1\n",
    "edges": "all\n",
    "let in": "1 left 2\n",
}


@pytest.mark.parametrize("scene", _SAYS)
@pytest.mark.parametrize("carrier", ["tcp", "shm", "unix"])
def test_what_is_left(host: Host, build: Build, scene: str, carrier: str) -> None:
    if carrier == "unix":
        host.set_policy('[[rule]]\nprohibit = ["shm"]\n')
        if scene == "many":
            pytest.skip("not by recvmmsg() on a unix socket (docs/users/limits.md)")
    assert host.run([build("inquiry"), scene], shim=carrier != "tcp") == _SAYS[scene]
    if carrier != "tcp":
        assert_carried(host.finish(), "inquiry", carrier)
