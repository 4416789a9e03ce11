"""iperf3: bulk transfer, both directions, several streams; its own count of bytes against the log's."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.harness import Host, assert_balanced, assert_carried, connections, free_port, require_program

pytestmark = pytest.mark.program

# iperf3's control connection carries a few JSON texts; the data connections a cookie of 37 bytes each.
_CONTROL_BYTES = 40_000


def _transfer(host: Host, port: int, *words: str) -> dict[str, Any]:
    iperf = require_program("iperf3")
    server = host.server([iperf, "-s", "-1", "-p", str(port), "-B", "127.0.0.1", "--forceflush"], port)
    report = host.run([iperf, "-c", "127.0.0.1", "-p", str(port), "-J", *words])
    server.wait()
    parsed: dict[str, Any] = json.loads(report)
    assert "error" not in parsed, parsed["error"]
    return parsed


@pytest.mark.parametrize(
    "words",
    [
        ("-t", "2"),
        ("-t", "2", "-R"),
        ("-t", "2", "-P", "4"),
        ("-t", "2", "-P", "4", "-R"),
        ("-t", "2", "--bidir"),
    ],
    ids=" ".join,
)
def test_bulk(host: Host, words: tuple[str, ...]) -> None:
    """For a time: whatever is still on the way at the end is the only difference between the ends."""
    port = free_port()
    end = _transfer(host, port, *words)["end"]
    log = host.finish()
    streams = 4 if "-P" in words else 1
    assert_carried(log, "iperf3", min_connections=2 * (streams + 1), port=port)
    total = end["sum_sent"]["bytes"] + (end["sum_sent_bidir_reverse"]["bytes"] if "--bidir" in words else 0)
    assert total > 1_000_000
    if log:
        sent = sum(c.tx_bytes for c in connections(log, port=port))
        assert total <= sent <= total + _CONTROL_BYTES


@pytest.mark.parametrize(
    "words",
    [(), ("-R",), ("-P", "4"), ("-l", "1000"), ("-l", "1M"), ("-Z",), ("-N",), ("-A", "0,0"), ("-w", "8K")],
    ids=" ".join,
)
def test_a_number_of_bytes(host: Host, words: tuple[str, ...]) -> None:
    """30 MB in writes of several sizes, with sendfile (-Z), TCP_NODELAY, one processor, small buffers."""
    port = free_port()
    size = 30_000_000 if "1000" not in words else 3_000_000
    end = _transfer(host, port, "-n", str(size), *words)["end"]
    sent = end["sum_sent"]["bytes"]
    assert sent >= size
    log = host.finish()
    assert_carried(log, "iperf3", min_connections=4, port=port)
    if not log:
        return
    data = [c for c in connections(log, port=port) if max(c.tx_bytes, c.rx_bytes) >= 1_000_000 // 4]
    carried = sum(c.tx_bytes for c in data)
    assert sent <= carried <= sent + _CONTROL_BYTES
    if "-R" not in words:
        # The receiver reads all that was sent before iperf3's sender said that it was done, or drops the
        # last block: never more than was sent.
        assert sum(c.rx_bytes for c in data) <= carried


def test_control_connection_is_balanced(host: Host) -> None:
    """No time limit reached and nothing dropped: a transfer in small steps has equal counts on both ends."""
    port = free_port()
    _transfer(host, port, "-n", "100K", "-l", "1K", "-b", "5M")
    log = host.finish()
    assert_carried(log, "iperf3", min_connections=4, port=port)
    control = [c for c in log if max(c.tx_bytes, c.rx_bytes) < 50_000]
    assert_balanced(control if log else log, port=port)
