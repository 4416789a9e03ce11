"""Authors' classes are looked at in children: what they say, and what becomes of those that misbehave."""

from __future__ import annotations

import mmap
import os
import selectors
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertha_socket.agent import authors
from bertha_socket.agent.authors import Authors, Brought
from bertha_socket.agent.errands import Errands
from bertha_socket.agent.sockets import Peer
from bertha_socket.chunnels import ChunnelArgumentError
from bertha_socket.dag import Chunnel

ME = Peer(os.getpid(), os.geteuid(), os.getegid())

_ROT = """
from bertha_socket.chunnels import Parameter, Pipe

class Rot(Pipe):
    "Turns letters."
    parameters = (Parameter("by", "int", "how far", 13), Parameter("file", "str", "", None, None, "own"))
    wire = "rot/1"
    layer = 33
"""


class Rig:
    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.errands = Errands(self.selector)
        self.authors = Authors(self.errands)
        self.children = 0

    def look(self, sources: Mapping[str, str], peer: Peer = ME) -> Brought:
        found: list[Brought] = []
        known = self.authors.look(peer, (peer.gid,), sources, found.append)
        while known is None and not found:
            self.children = 1
            for key, _ in self.selector.select(0.1):
                key.data()
            self.errands.tick(time.monotonic())
        return known or found[0]


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authors, "_SECONDS", 20.0)  # a busy machine starts no interpreter in 1.5 s


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    while rig.errands.busy or rig.selector.get_map():
        for key, _ in rig.selector.select(5):
            key.data()
    rig.selector.close()


def source(tmp_path: Path, text: str, name: str = "rot", cls: str = "Rot") -> dict[str, str]:
    path = tmp_path / f"{name}.py"
    path.write_text(text)
    return {name: f"{path}:{cls}"}


def test_what_a_class_says(rig: Rig, tmp_path: Path) -> None:
    found = rig.look(source(tmp_path, _ROT))
    assert not found.errors
    (kind,) = found.types
    assert (kind.name, kind.summary, kind.layer, kind.endpoints) == ("rot", "Turns letters.", 33, "both")
    assert kind.bind(Chunnel("rot")) == {"by": 13, "file": None}
    assert kind.parameters[1].agree == "own"
    with pytest.raises(ChunnelArgumentError):
        kind.bind(Chunnel("rot", ("far",)))
    (implementation,) = kind.implementations
    assert tuple(implementation.wires({})) == ("rot/1",)
    assert (implementation.carrier, implementation.probe()) == ("python", None)


def test_it_is_remembered(rig: Rig, tmp_path: Path) -> None:
    sources = source(tmp_path, _ROT)
    first = rig.look(sources)
    rig.children = 0
    assert rig.look(sources) == first and rig.children == 0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("raise RuntimeError('no\\nluck')", "no luck"),
        ("import sys; sys.exit('gone')", "gone"),
        ("import os; os._exit(0)", "could not be looked at"),
        ("while True: pass", "could not be looked at"),
        ("class Other: pass", "Rot"),
        ("import os; os.pwrite(0, b'\\xc1' * 100, 0); os._exit(0)", "could not be looked at"),
    ],
)
def test_one_that_misbehaves(
    rig: Rig, tmp_path: Path, text: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "while" in text:
        monkeypatch.setattr(authors, "_SECONDS", 1.0)
    found = rig.look(source(tmp_path, text))
    assert not found.types
    ((name, problem),) = found.errors
    assert name == "rot" and why in problem and "\n" not in problem


def test_others_are_not_hurt(rig: Rig, tmp_path: Path) -> None:
    sources = source(tmp_path, _ROT, "arot") | source(tmp_path, "raise OSError", "brot")
    sources |= source(tmp_path, "import os; os._exit(1)", "crot") | {"compress": "x:Y"}
    found = rig.look(sources)
    # The third took its process with it; what had been told before is lost with a child that fails.
    assert dict(found.errors).keys() == {"arot", "brot", "crot", "compress"}
    del sources["crot"]
    found = rig.look(sources)
    assert [t.name for t in found.types] == ["arot"]
    assert dict(found.errors).keys() == {"brot", "compress"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_users_code_runs_as_that_user(rig: Rig, room: Path) -> None:
    text = "import os; raise RuntimeError(f'{os.getresuid()} {os.getresgid()} {os.getgroups()}')"
    found = rig.look(source(room, text), Peer(os.getpid(), 65534, 65534))
    ids = "(65534, 65534, 65534)"
    assert found.errors[0][1].endswith(f"{ids} {ids} [65534]")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_users_code_sees_nothing_of_the_agent(
    rig: Rig, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/")
    # A fork would have the modules with all that they hold (keys), and every memory that is mapped.
    text = """
import os, sys
agents = [m for m in sys.modules if m.startswith("bertha_socket.agent.") and m.split(".")[2] in (
    "registry", "secrets")]
mapped = sum("memfd:" in line for line in open("/proc/self/maps"))
raise RuntimeError(f"{len(agents)}, {mapped}, {len(os.listdir('/proc/self/fd'))}, {'HOME' in os.environ}")
"""
    import bertha_socket.agent.registry
    import bertha_socket.agent.secrets  # as in an agent

    assert bertha_socket.agent.secrets
    with mmap.mmap(-1, 4096) as _, open(os.memfd_create("agents"), "r+b") as file:
        file.truncate(4096)
        with mmap.mmap(file.fileno(), 4096):
            mine = rig.look(source(room, text)).errors[0][1]
            theirs = rig.look(source(room, text), Peer(os.getpid(), 65534, 65534)).errors[0][1]
    assert mine.endswith("2, 1, 4, True")  # the test can see what it looks for
    assert theirs.endswith("0, 0, 4, False")  # 0, 1, 2 and the one that lists them


@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    found = authors.parse(data, {"rot": "x:Y"})
    assert not found.types and len(found.errors) == 1


_KEYS = st.sampled_from(
    ["summary", "endpoints", "layer", "upper", "lower", "dictated", "parameters", "implementations"]
    + ["name", "kind", "agree", "required", "default", "wires", "where", "priority", "why", "error"]
)
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.sampled_from(["both", "stream", "int", "server", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=9),
    max_leaves=20,
)


@given(st.dictionaries(_KEYS, _VALUES))
def test_any_map(said: dict[str, object]) -> None:
    found = authors.parse(msgpack.packb({"rot": said}), {"rot": "x:Y"})
    assert len(found.types) + len(found.errors) == 1
