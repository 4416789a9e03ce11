"""A chunnel that is not ours takes down its own connection only, and says why."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

from bertha_socket.negotiation.plan import PlannedChunnel
from tests.carrier.conftest import KEY, MakeCarrier
from tests.carrier.host import RAISED, READY, REFUSED, RESET, Carried, CarrierHost, chunnel, plan_of

ModuleOf = Callable[[str], str]

AUTHOR = """
from __future__ import annotations
import os, time
from bertha_socket.chunnels import Parameter, Pipe, register_chunnel


@register_chunnel("rot", wire="rot/1")
class Rot(Pipe):
    "Every byte moved on by a number."

    parameters = (Parameter("by", "int", "how far", 13),)

    def down(self, item):
        if item == b"raise":
            raise ValueError("no such word")
        if item == b"block":
            while True:
                time.sleep(1)
        if item == b"leak":
            self.kept = []
            while True:
                self.kept.append(bytearray(1 << 24))
        if item == b"crash":
            os.abort()
        return (bytes((b + self.args["by"]) % 256 for b in item),)

    def up(self, item):
        return (bytes((b - self.args["by"]) % 256 for b in item),), ()
"""
FAULTS = """
from __future__ import annotations
from bertha_socket.chunnels import Pipe, register_chunnel


@register_chunnel("born_dead")
class BornDead(Pipe):
    def __init__(self, *args):
        raise RuntimeError("not today")
"""


def rot(**args: int) -> PlannedChunnel:
    return chunnel("rot", "rot/1", **args)


TLS = chunnel("encrypt", "tls1.3")


@pytest.fixture
def author_hosts(make_carrier: MakeCarrier, module_of: ModuleOf) -> tuple[CarrierHost, CarrierHost]:
    pair = tuple(make_carrier(KEY) for _ in range(2))
    source = module_of(AUTHOR)
    for host in pair:
        host.send({"op": "chunnels", "sources": {"rot": f"{source}:Rot"}})
    return pair[0], pair[1]


def _wait_for_processes(pid: int, count: int) -> None:
    end = time.monotonic() + 20
    while len(_children(pid)) != count:
        assert time.monotonic() < end, _children(pid)
        time.sleep(0.01)


def _children(pid: int) -> list[str]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return file.read().split()


@pytest.mark.parametrize("plan", [plan_of(rot()), plan_of(rot(by=1), TLS)])
def test_a_chunnel_of_thirty_lines(author_hosts: tuple[CarrierHost, CarrierHost], plan: bytes) -> None:
    carried = Carried(*author_hosts, plan)
    carried.client.sendall(b"hello")
    carried.wait(READY, READY)
    assert carried.server.recv(100) == b"hello"
    carried.server.sendall(b"hello yourself")
    assert carried.client.recv(100) == b"hello yourself"
    assert [len(_children(h.process.pid)) for h in author_hosts] == [1, 1]
    data = os.urandom(1 << 20)
    carried.client.settimeout(20)
    carried.server.settimeout(20)
    sent = 0
    got = b""
    while len(got) < len(data):
        sent += carried.client.send(data[sent : sent + 10_000])
        got += carried.server.recv(1 << 20)
    assert got == data
    carried.close()
    for host in author_hosts:
        _wait_for_processes(host.process.pid, 0)
        host.close()


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("raise", "ValueError: no such word (chunnel_0.py line 15)"),
        ("leak", "MemoryError"),
        ("crash", "signal 6"),
        ("block", "no progress for 10 s"),
    ],
)
def test_its_fault_is_its_connections_alone(
    author_hosts: tuple[CarrierHost, CarrierHost], word: str, why: str
) -> None:
    others = [Carried(*author_hosts, plan) for plan in (plan_of(rot(), TLS), plan_of(TLS))]
    faulty = Carried(*author_hosts, plan_of(rot(), TLS))
    for carried in (*others, faulty):
        carried.wait(READY, READY)
    faulty.client.sendall(word.encode())
    faulty.client_status.wait(RAISED, seconds=30)
    assert why in faulty.client_status.detail
    faulty.server_status.wait(RESET)
    for carried in others:
        carried.client.sendall(b"unhurt")
        assert carried.server.recv(100) == b"unhurt"
        carried.close()
    faulty.close()
    log = author_hosts[0].close()
    assert why in log.replace("\n", " ") or word == "raise"
    if word == "raise":
        assert "Traceback" in log and "no such word" in log


@pytest.mark.parametrize(
    ("source", "state"),
    [
        ("{}:BornDead", RAISED),
        ("{}:Missing", REFUSED),
        ("/nowhere/at/all.py:Rot", REFUSED),
        ("not.a.module:X", REFUSED),
    ],
)
def test_what_cannot_even_start_is_refused(
    make_carrier: MakeCarrier, module_of: ModuleOf, source: str, state: int
) -> None:
    client, server = make_carrier(), make_carrier()
    place = source.format(module_of(FAULTS))
    client.send({"op": "chunnels", "sources": {"born_dead": place}})
    carried = Carried(client, server, plan_of(chunnel("born_dead", "born_dead/1")))
    carried.client_status.wait(state)
    assert carried.client_status.detail
    carried.close()
    assert ("RuntimeError: not today" in client.close()) == (state == RAISED)
    server.close()


def test_a_type_that_is_not_here_is_refused(make_carrier: MakeCarrier) -> None:
    client, server = make_carrier(), make_carrier()
    carried = Carried(client, server, plan_of(chunnel("unheard_of", "x/1")))
    carried.client_status.wait(REFUSED)
    assert "unheard_of" in carried.client_status.detail
    carried.close()
    client.close()
    server.close()


COUNTS = """
from __future__ import annotations
from bertha_socket.chunnels import Pipe, register_chunnel


@register_chunnel("words", wire="words/1")
class Words(Pipe):
    def __init__(self, *args):
        super().__init__(*args)
        self.context.counts["words.down"] = 0

    def down(self, item):
        self.context.counts["words.down"] += len(item.split())
        return (item,)
"""


def test_what_it_counts_is_told(make_carrier: MakeCarrier, module_of: ModuleOf) -> None:
    """Before the other end's program has what was counted, and by its own process."""
    source = module_of(COUNTS)
    hosts = make_carrier(KEY), make_carrier(KEY)
    for host in hosts:
        host.send({"op": "chunnels", "sources": {"words": f"{source}:Words"}})
    carried = Carried(*hosts, plan_of(chunnel("words", "words/1")))
    carried.server.settimeout(20)
    carried.wait(READY, READY)
    carried.client.sendall(b"one two three")
    assert carried.server.recv(100) == b"one two three"
    told = [status.chunnels[0] for status in (carried.client_status, carried.server_status)]
    assert [t.get("counts") for t in told] == [{"down": 3}, {"down": 0}]
    carried.close()
    for host in hosts:
        host.close()
