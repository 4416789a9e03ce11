"""iperf3 -u: its server connects the socket to which the first datagram came, and binds another one."""

from __future__ import annotations

import json

import pytest

from tests.datagrams.conftest import Pair
from tests.harness import connections, free_port, require_program

pytestmark = [pytest.mark.program, pytest.mark.net]


def test_nothing_is_lost(pair: Pair) -> None:
    pair.dictate("reliable()", proto="udp")
    port = free_port()
    iperf3 = require_program("iperf3")
    words = ["-u", "-c", pair.address, "-p", port, "-b", "4M", "-n", "200K", "-J"]
    for _ in range(3):  # a socket is plain if an agent had no time to answer, and gets no answer
        server = pair.server.spawn([iperf3, "-s", "-1", "-p", port])
        pair.server.wait_port(server, port)
        said = json.loads(pair.client.run([iperf3, *words], timeout=60, check=False))
        if "sum" in said["end"]:
            break
        pair.server.stop(server)
    assert said["end"]["sum"]["lost_packets"] == 0, said
    server.wait(20)
    for host, field in ((pair.client, "tx_bytes"), (pair.server, "rx_bytes")):
        log = connections(host.finish(), program="iperf3")
        (found,) = [c for c in log if c.raw["proto"] == "udp" and c.raw[field] > 100_000]
        assert [c["type"] for c in found.raw["chunnels"]] == ["reliable", "local_or_remote"], found
