"""What count() has counted beneath a program is in `bertha ps` and in the connection log."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.chunnels.conftest import Pair, StartRedis
from tests.chunnels.test_redis import assert_through
from tests.harness import Host, eventually, require_program

pytestmark = [pytest.mark.program, pytest.mark.net]

_BERTHA = Path(sys.executable).with_name("bertha")


def counts_of(chunnels: list[dict[str, Any]]) -> dict[str, int] | None:
    (found,) = [c.get("counts") for c in chunnels if c["type"] == "count"]
    return found


def live(host: Host, program: str) -> list[dict[str, Any]]:
    rows = json.loads(host.run([_BERTHA, "ps", "--json"], shim=False))
    return [row for row in rows if row["program"] == program]


@pytest.mark.parametrize("above", [True, False], ids=["above", "below"])
def test_redis(pair: Pair, start_redis: StartRedis, above: bool) -> None:
    """While it lasts, and at its end; at the end (the client's) where it runs."""
    dag = 'count(name="c") |> compress()' if above else "compress() |> count()"
    pair.server.set_policy(f"[[rule]]\nside = 'server'\ndag = '{dag}'\n")
    _, port = start_redis(pair.server, pair.address)
    source, typed = os.pipe()
    words = [require_program("redis-cli"), "-h", pair.address, "-p", str(port)]
    client = pair.client.spawn(words, stdin=source, label="redis-cli")
    os.close(source)
    try:
        os.write(typed, b"set key " + b"v" * 3000 + b"\n")
        eventually(lambda: "OK" in client.text(), "the answer")

        def counted() -> dict[str, int] | None:
            (row,) = live(pair.client, "redis-cli")
            return counts_of(row["chunnels"])

        first = eventually(counted, "what was counted")
        assert first is not None and first["sent"] > 0 and first["received"] > 0, first
        assert (first["sent_bytes"] > 3000) is above
        os.write(typed, b"get key\n")
        eventually(lambda: "v" * 3000 in client.text(), "the other answer")
        second = counted()
        assert second is not None and second["received"] > first["received"]
        text = pair.client.run([_BERTHA, "ps"], shim=False)
        assert f"count: sent={second['sent']} " in text, text
    finally:
        os.close(typed)
    client.wait(20)
    (line,) = assert_through(
        pair.client.finish(),
        "redis-cli",
        [*(("count", "compress") if above else ("compress", "count")), "local_or_remote"],
    )
    counts = counts_of(line.raw["chunnels"])
    assert counts is not None
    if above:
        assert (counts["sent_bytes"], counts["received_bytes"]) == (line.tx_bytes, line.rx_bytes)
    else:
        assert 0 < counts["sent_bytes"] < line.tx_bytes and 0 < counts["received_bytes"] < line.rx_bytes
    (line,) = [c for c in pair.server.finish() if c.program == "redis-server" and c.tx_bytes]
    assert counts_of(line.raw["chunnels"]) is None
