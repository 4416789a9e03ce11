"""Connections of the native carrier that keep their buffers: those that spoke last, not for ever."""

from __future__ import annotations

import random
import time

import pytest

from tests.carrier.conftest import NATIVE, MakeCarrier
from tests.carrier.host import READY, Carried
from tests.carrier.test_pairs import PLANS

pytestmark = pytest.mark.skipif(not NATIVE.exists(), reason="the native carrier is not built")
_WARM = 64  # native/carrier/warm.c
_QUIET = 1.0  # seconds until nobody keeps any


def _talk(carried: Carried, text: bytes) -> None:
    carried.client.sendall(text)
    assert carried.server.recv(100) == text
    carried.server.sendall(text.upper())
    assert carried.client.recv(100) == text.upper()


@pytest.mark.parametrize("name", ["zstd", "zstd-tls"])
def test_more_than_are_kept_warm_come_and_go(make_carrier: MakeCarrier, name: str) -> None:
    hosts = [make_carrier(command=(str(NATIVE),), count=1024) for _ in range(2)]
    chance = random.Random(7)
    many: list[Carried] = []
    for turn in range(6):
        while len(many) < 2 * _WARM:
            many.append(Carried(hosts[0], hosts[1], PLANS[name]))
            many[-1].wait(READY, READY)
        chance.shuffle(many)
        for at, carried in enumerate(many):
            _talk(carried, b"turn %d, %d" % (turn, at))
        for carried in many[_WARM // 2 :]:
            carried.close()
        del many[_WARM // 2 :]
        if turn == 3:
            time.sleep(_QUIET + 0.3)
    for carried in many:
        carried.close()
    for host in hosts:
        host.close()
