"""vsftpd: a process for each session, by a raw clone(), which limits its addresses beside the parent's."""

from __future__ import annotations

import os
import random
import signal
import time

import psutil
import pytest

from tests.harness import Host, assert_carried, eventually, free_port, require_program

pytestmark = pytest.mark.program
_CONFIGURATION = """
listen=YES
listen_address=127.0.0.1
listen_port={port}
background=NO
anonymous_enable=YES
anon_root={root}
seccomp_sandbox=NO
"""


def _connected(pid: int, port: int) -> bool:
    ends = psutil.Process(pid).net_connections("tcp")
    return any(end.status == psutil.CONN_ESTABLISHED and end.raddr and end.raddr.port == port for end in ends)


def test_sessions(host: Host) -> None:
    if os.geteuid() != 0:
        pytest.skip("vsftpd becomes another user for each session, and is root's")
    vsftpd, curl, cmp = (require_program(name) for name in ("vsftpd", "curl", "cmp"))
    port, root = free_port(), host.dir / "ftp"
    root.mkdir(mode=0o755)
    (root / "file").write_bytes(random.Random(8).randbytes(3_000_000))
    configuration = host.dir / "vsftpd.conf"
    configuration.write_text(_CONFIGURATION.format(port=port, root=root))
    server = host.server([vsftpd, configuration], port)
    got = host.dir / "got"
    for shim in (True, True, False, True):  # the first one's link is there when the others limit themselves
        # It looks for the client's claim as it accepts; its child, made by no fork(), does not.
        server.send(signal.SIGSTOP)
        client = host.spawn([curl, "-sS", "-o", got, f"ftp://127.0.0.1:{port}/file"], shim=shim)
        eventually(lambda client=client: _connected(client.pid, port), "curl's connection")
        time.sleep(0.3)  # it claims as it returns from connect()
        server.send(signal.SIGCONT)
        client.wait()
        host.run([cmp, got, root / "file"], shim=False)
        got.unlink()
    log = host.finish()
    assert_carried(log, "curl", role="client", port=port, min_connections=3)
