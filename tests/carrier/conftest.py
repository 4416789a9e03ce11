"""Carriers that end with the test."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import bertha_socket
from bertha_socket import keys
from tests.carrier.host import PYTHON, CarrierHost

KEY = bytes(range(32))
NATIVE = Path(bertha_socket.__file__).parent / "lib" / "bertha-carrier"
_COMMANDS = {"python": PYTHON, "native": (str(NATIVE),)}
MakeCarrier = Callable[..., CarrierHost]


@pytest.fixture
def make_carrier() -> Iterator[MakeCarrier]:
    """`make_carrier(key=KEY, command=...)`: a running carrier that knows the cluster's secrets."""
    made: list[CarrierHost] = []

    def make(key: bytes | None = KEY, **options: Any) -> CarrierHost:
        host = CarrierHost(**options)
        made.append(host)
        host.context(material=keys.material(key) if key is not None else None, key=key)
        return host

    yield make
    for host in made:
        if host.process.poll() is None:
            with contextlib.suppress(AssertionError):
                host.close()
        if host.process.stderr is not None:
            host.process.stderr.close()


@pytest.fixture(params=["python", "native"])  # mixed ones: test_pairs.py
def hosts(
    request: pytest.FixtureRequest, make_carrier: MakeCarrier
) -> Iterator[tuple[CarrierHost, CarrierHost]]:
    """A client's carrier and a server's, which must end by themselves, and with nothing left open."""
    kinds = request.param.split("-")
    if "native" in kinds and not NATIVE.exists():
        pytest.skip("the native carrier is not built here")
    client, server = (make_carrier(command=_COMMANDS[kind]) for kind in (kinds[0], kinds[-1]))
    yield client, server
    client.close()
    server.close()


@pytest.fixture
def python_hosts(make_carrier: MakeCarrier) -> Iterator[tuple[CarrierHost, CarrierHost]]:
    """Two in Python."""
    client, server = make_carrier(), make_carrier()
    yield client, server
    client.close()
    server.close()


@pytest.fixture
def module_of(tmp_path: Path) -> Callable[[str], str]:
    """Writes an author's module; where it is."""

    def write(text: str) -> str:
        path = tmp_path / f"chunnel_{len(os.listdir(tmp_path))}.py"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write
