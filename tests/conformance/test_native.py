"""Every chunnel in C does what `bertha_socket.testing` asks of all, with its like and with one in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import bertha_socket
from bertha_socket import keys
from bertha_socket.chunnels import Context, Interface, Pipe, all_types, get
from bertha_socket.testing import CHECKS, check_chunnel, pair_of
from tests.conformance import native

CARRIER = Path(bertha_socket.__file__).parent / "lib" / "bertha-carrier"
pytestmark = pytest.mark.skipif(
    not CARRIER.exists(), reason="the native carrier is not built: its libraries' headers were not there"
)
#: Type, wire, arguments.
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "compress-zstd": ("compress", "zstd/1", {"level": 3}),
    "compress-zstd-15": ("compress", "zstd/1", {"level": 15}),
    "compress-lz4": ("compress", "lz4/1", {}),
    "compress-lz4-hc": ("compress", "lz4/1", {"algorithm": "lz4", "level": 9}),
    "encrypt": ("encrypt", "tls1.3", {}),
    "encrypt-lent": ("encrypt", "tls1.3", {}),
    "frame": ("frame", "u32be/1", {}),
}
PAIRS = {"C-C": ("C", "C"), "C-Python": ("C", "Python"), "Python-C": ("Python", "C")}


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return native.build(tmp_path_factory.mktemp("kit"))


class Pair:
    """Both ends of a new connection; which of them are in C."""

    def __init__(self, library: Any, kind: str, ends: tuple[str, str]) -> None:
        self._library, self._ends = library, ends
        self._type, self._wire, self._args = KINDS[kind]
        self._lends = kind == "encrypt-lent"
        self._material = keys.material(bytes(32)) if self._type == "encrypt" else None
        self.native: list[native.NativePipe] = []
        # A program beneath which there is C has a stream: pieces of it are the messages of frame.
        self.upper = self.lower = Interface.STREAM

    def __call__(self) -> tuple[list[Pipe], list[Pipe]]:
        in_python = pair_of(self._type, self._wire, self._material, **self._args)()
        found: list[list[Pipe]] = []
        for side, end, other in zip(("client", "server"), self._ends, in_python, strict=True):
            if end == "C":
                context = Context(side, self._material, "127.0.0.1:1", "127.0.0.1:2")
                args = {n: v for n, v in get(self._type).bound(self._args).items() if v is not None}
                pipe = native.NativePipe(
                    self._library, self._type, args, self._wire, side, context, lends=self._lends
                )
                self.native.append(pipe)
                found.append([pipe])
            else:
                found.append(list(other))
        return found[0], found[1]


@pytest.mark.parametrize("check", [c.__name__ for c in CHECKS])
@pytest.mark.parametrize("ends", PAIRS)
@pytest.mark.parametrize("kind", KINDS)
def test_conforms(library: Any, kind: str, ends: str, check: str) -> None:
    pair = Pair(library, kind, PAIRS[ends])
    assert check_chunnel(pair, only=[check], seed=len(kind + ends)) == [check]
    if kind == "encrypt-lent" and check in ("order", "large"):
        assert all(pipe.lent > 0 for pipe in pair.native)


def test_every_type_in_c_is_checked() -> None:
    checked = {kind for kind, _, _ in KINDS.values()}
    assert native.types() == checked
    natives = {
        t.name for t in all_types() for i in t.implementations if i.carrier == "native" and i.make is None
    }
    assert checked <= natives, "what there is in C is what is offered"
    wires = {(t, w) for t, w, _ in KINDS.values()}
    for kind in checked:
        offered = [i for i in get(kind).implementations if i.make is None]
        for each in offered:
            for args in ({}, {"algorithm": "lz4"} if kind == "compress" else {}):
                assert {(kind, w) for w in each.wires(get(kind).bound(args))} <= wires
