"""haproxy between a client and a server: by request, and by splice(2) of whole connections."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.harness import Host, assert_carried, free_port, require_program

pytestmark = pytest.mark.program
_SERVERS = Path(__file__).parent / "clients" / "servers.py"
_CONFIGURATION = """
global
  maxconn 200
defaults
  mode {mode}
  option splice-request
  option splice-response
  timeout connect 20s
  timeout client 60s
  timeout server 60s
frontend front
  bind 127.0.0.1:{front}
  default_backend back
backend back
  server one 127.0.0.1:{back}
"""


@pytest.mark.parametrize("mode", ["http", "tcp"])
def test_proxy(host: Host, mode: str) -> None:
    haproxy, ab, curl = (require_program(name) for name in ("haproxy", "ab", "curl"))
    front, back = free_port(), free_port()
    host.server([sys.executable, _SERVERS, "http", back], back)
    configuration = host.dir / "haproxy.cfg"
    configuration.write_text(_CONFIGURATION.format(mode=mode, front=front, back=back))
    host.server([haproxy, "-db", "-f", configuration], front)
    url = f"http://127.0.0.1:{front}"
    # Kept connections only where haproxy speaks HTTP: HTTP/1.0 (ab) and 1.1 (the server) differ about them.
    for words in ((), ("-k",)) if mode == "http" else ((),):
        said = host.run([ab, "-q", *words, "-n", "200", "-c", "8", f"{url}/1000"], timeout=60)
        assert "Complete requests:      200\n" in said
        assert "Failed requests:        0\n" in said
    large = host.run([curl, "-s", f"{url}/20000000"], timeout=60)
    assert large == "g" * 20_000_000
    # ab may connect once more than it has requests for, and is told so (408, 400) as it leaves.
    log = host.finish()
    log = log if host.rehearse else [c for c in log if c.role == "client" or c.rx_bytes]
    assert_carried(log, "ab", role="client", port=front, min_connections=200)
    assert_carried(log, "curl", role="client", port=front)
    assert_carried(log, "haproxy", role="server", port=front, min_connections=200)
    assert_carried(log, "haproxy", role="client", port=back)
