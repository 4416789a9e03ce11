"""What chunnels have counted of a UDP socket's datagrams: sums over all that it speaks with."""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from bertha_socket.carrier.sums import Sums
from tests.carrier.host import chunnel, plan_of
from tests.chunnels.test_authors import known
from tests.chunnels.test_counted import counts_of, live
from tests.datagrams.conftest import Pair
from tests.datagrams.test_accidents import MakeAsker
from tests.datagrams.test_accidents import make_asker as make_asker
from tests.datagrams.test_calls import start_echo
from tests.harness import connections, eventually, free_port

_HERE = Path(__file__).parent
_PYTHON = Path(sys.executable).name
_COUNT = plan_of(chunnel("count", "none", name="n"))
#: python -c TALKER ADDRESS: a line "PORT TEXT" is sent there, by one socket, and the answer printed.
_TALKER = """
import socket, sys
sock = None
for line in sys.stdin:
    port, text = line.split()
    while True:
        if sock is None:  # an agent that has no time to answer makes a socket plain
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.settimeout(3.0)
            first = True
        sock.sendto(text.encode(), (sys.argv[1], int(port)))
        try:
            print(sock.recv(1000).decode(), flush=True)
        except TimeoutError:
            if not first:
                raise
            sock.close()
            sock = None
            continue
        first = False
        break
sock.close()
"""


def shown(sums: Sums) -> list[dict[str, int] | None]:
    return [entry.get("counts") for entry in json.loads(sums.text)]


def test_sums_of_exchanges_that_come_and_go() -> None:
    """Each counts for itself from 0; what those have counted that are over stays."""
    rng = random.Random(3)
    sums = Sums("client")
    assert sums.text == "" and sums.changes() == []
    memory = bytearray()
    total = {"sent": 0, "received": 0}
    living: list[tuple[dict[str, object], Any]] = []
    for round_ in range(300):
        if rng.random() < 0.2 or not living:
            counts: dict[str, object] = {"n.sent": 0, "n.received": 0}
            living.append((counts, sums.adder(counts)))
            living[-1][1]()
            if round_ == 0:
                sums.show(_COUNT)
                memory = bytearray(sums.text.encode())
        counts, add = rng.choice(living)
        name = rng.choice(("sent", "received"))
        more = rng.randrange(200)
        counts[f"n.{name}"] = counts[f"n.{name}"] + more  # type: ignore[operator]
        total[name] += more
        assert add() == (more > 0)
        assert not add(), "nothing is added twice"
        for at, data in sums.changes():
            memory[at : at + len(data)] = data
            json.loads(memory)
        assert memory.decode() == sums.text
        assert shown(sums) == [total]
        if rng.random() < 0.1:
            living.remove((counts, add))


def test_another_plan_is_shown_with_the_sums_of_all() -> None:
    sums = Sums("client")
    first: dict[str, object] = {"n.sent": 3}
    sums.adder(first)()
    sums.show(_COUNT)
    version = sums.version
    sums.show(_COUNT)
    assert sums.version == version, "nothing is to be written anew"
    sums.adder({"n.sent": 4, "m.sent": 5})()
    sums.show(plan_of(chunnel("count", "none", name="m"), chunnel("count", "none", name="n")))
    assert sums.version == version + 1
    assert shown(sums) == [{"sent": 5}, {"sent": 7}]


def test_counters_are_bounded() -> None:
    sums = Sums("client")
    sums.adder({f"n.{i}": 1 for i in range(100_000)})()
    sums.adder({"n.text": "text", "n.half": 0.5})()
    assert len(sums._sums) <= 256


@pytest.mark.program
@pytest.mark.net
def test_a_client_of_two_servers(pair: Pair) -> None:
    """While it lasts, and at its end."""
    pair.dictate("count() |> reliable()", proto="udp")
    ports = [free_port() for _ in range(2)]
    for port in ports:
        start_echo(pair.server, pair.address, port)
    source, typed = os.pipe()
    client = pair.client.spawn([sys.executable, "-c", _TALKER, pair.address], stdin=source)
    os.close(source)
    try:
        for n, port in enumerate((ports[0], ports[1], ports[1])):
            os.write(typed, f"{port} {'x' * 100}\n".encode())
            eventually(lambda n=n: len(client.text().splitlines()) > n, "an answer", 90)  # type: ignore[misc]
        (row,) = [r for r in live(pair.client, _PYTHON) if r["rx_bytes"]]
        counts = counts_of(row["chunnels"])
        assert counts is not None
        assert (counts["sent"], counts["sent_bytes"]) == (3, 300)
        assert (counts["received"], counts["received_bytes"]) == (3, row["rx_bytes"])
    finally:
        os.close(typed)
    client.wait(20)
    (line,) = [c for c in connections(pair.client.finish(), program=_PYTHON) if c.rx_bytes]
    assert counts_of(line.raw["chunnels"]) == counts
    assert (line.tx_bytes, line.rx_bytes) == (300, counts["received_bytes"])


@pytest.mark.program
@pytest.mark.net
def test_a_server_of_two_clients(pair: Pair, make_asker: MakeAsker) -> None:
    """By an author's chunnel, which counts in a process for each of them."""
    known(pair, "shout() |> reliable()", "udp", shout=f"{_HERE / 'shout.py'}:Shout")
    port = free_port()
    echo = start_echo(pair.server, pair.address, port)
    askers = [make_asker(port) for _ in range(2)]
    for asker in askers:
        for word in ("one", "two"):
            assert asker.ask(word) == word
    assert askers[0].ask("quit") == "TimeoutError"
    for asker in askers:
        asker.end()
    echo.wait(20)
    log = [connections(host.finish(), program=_PYTHON) for host in (pair.client, pair.server)]
    (served,) = [c.raw["chunnels"][0]["counts"]["words"] for c in log[1]]
    asked = [c.raw["chunnels"][0].get("counts") for c in log[0] if c.rx_bytes]
    # Each time it is asked, and it answers; and is told to end, which it does not answer.
    assert asked == [{"words": 7}, {"words": 6}]
    assert served == 13 or (served > 13 and len(log[0]) > 2), "a socket that got no answer in time asked, too"


@pytest.mark.program
@pytest.mark.net
def test_a_copy_of_what_one_end_sends(pair: Pair, make_asker: MakeAsker, tmp_path: Path) -> None:
    """`mirror` touches files, so that it runs as an author's chunnel does; here for the client's own DAG."""
    pair.dictate("reliable()", proto="udp")
    copy = tmp_path / "copy.pcap"
    rule = f"[[rule]]\nside = 'client'\nproto = 'udp'\ndag = 'mirror(to=\"{copy}\")'\n"
    pair.client.set_policy(rule)
    port = free_port()
    start_echo(pair.server, pair.address, port)
    asker = make_asker(port)
    assert asker.ask("a-word-of-its-own") == "a-word-of-its-own"
    asker.end()
    (line,) = [c for c in connections(pair.client.finish(), program=_PYTHON) if c.rx_bytes]
    found = {c["type"]: c.get("counts") for c in line.raw["chunnels"]}
    assert list(found) == ["mirror", "reliable", "local_or_remote"] and found["mirror"] == {"lost": 0}
    assert copy.read_bytes().count(b"a-word-of-its-own") == 2
