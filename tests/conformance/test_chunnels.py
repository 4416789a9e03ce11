"""Every chunnel in Python here does what `bertha_socket.testing` asks of all."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bertha_socket import keys
from bertha_socket.chunnels import all_types
from bertha_socket.chunnels.serialize import register_codec
from bertha_socket.testing import CHECKS, check_chunnel, pair_of

register_codec("upper_case", lambda o: repr(o).encode(), lambda b: ast.literal_eval(b.decode()))
PAIRS: dict[str, Callable[[Path], Any]] = {
    "compress-zstd": lambda _: pair_of("compress", level=3),
    "compress-zstd-19": lambda _: pair_of("compress", level=15),
    "compress-lz4": lambda _: pair_of("compress", wire="lz4/1"),
    "compress-lz4-hc": lambda _: pair_of("compress", algorithm="lz4", level=9),
    "encrypt": lambda _: pair_of("encrypt", material=keys.material(bytes(32))),
    "frame": lambda _: pair_of("frame"),
    "serialize-msgpack": lambda _: pair_of("serialize"),
    "serialize-json": lambda _: pair_of("serialize", wire="json/1"),
    "serialize-own": lambda _: pair_of("serialize", codec="upper_case"),
    "http2": lambda _: pair_of("http2"),
    "count": lambda _: pair_of("count", name="n"),
    "limit": lambda _: pair_of("limit", rate=100_000),
    "limit-send": lambda _: pair_of("limit", rate=1_000_000, direction="send"),
    "mirror-file": lambda path: pair_of("mirror", to=str(path / "copy.pcap")),
    "reliable": lambda _: pair_of("reliable"),
    "reliable-small": lambda _: pair_of("reliable", mtu=100),
    "reliable-python": lambda _: replace(pair_of("reliable"), implementations=("python", "python")),
    "reliable-native-python": lambda _: replace(pair_of("reliable"), implementations=("native", "python")),
    "reliable-python-native": lambda _: replace(pair_of("reliable"), implementations=("python", "native")),
}


@pytest.mark.parametrize("check", [c.__name__ for c in CHECKS])
@pytest.mark.parametrize("name", PAIRS)
def test_conforms(name: str, check: str, tmp_path: Path) -> None:
    make_pair = PAIRS[name](tmp_path)
    if check == "large_messages" and name == "reliable-small":
        pytest.skip("ten thousand datagrams of 86 bytes each way take long")
    assert check_chunnel(make_pair, only=[check], seed=len(name)) == [check]


def test_every_type_with_an_implementation_in_python_is_checked() -> None:
    types = {t.name for t in all_types() if any(i.make is not None and i.builtin for i in t.implementations)}
    assert types <= {name.partition("-")[0] for name in PAIRS} | {
        "branch",
        "shard",
    }  # test_branch.py, test_shard.py
