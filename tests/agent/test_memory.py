"""What the agent writes into shared memory, seen as a shim sees it."""

from __future__ import annotations

import fcntl
import itertools
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertha_socket._native import ffi, lib
from bertha_socket.agent import addresses, memory
from tests.agent.shim import entries, find, generation


@pytest.fixture
def place(tmp_path: Path) -> Iterator[tuple[str, int]]:
    path = str(tmp_path / "a")
    fd = os.open(path + ".dir", os.O_RDWR | os.O_CREAT)
    yield path, fd
    os.close(fd)


_addr = st.sampled_from([addresses.from_text(f"10.0.0.{i}") for i in range(4)])


@settings(max_examples=40)
@given(st.lists(st.one_of(st.tuples(_addr, st.integers(1, 3)), st.integers(0, 1000)), max_size=60))
def test_directory_finds_what_is_listed_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[bytes, int] | int]
) -> None:
    path = str(tmp_path_factory.mktemp("dir") / "a")
    fd = os.open(path + ".dir", os.O_RDWR | os.O_CREAT)
    try:
        directory = memory.Directory(fd, 7)
        listed: dict[int, tuple[bytes, int, int]] = {}
        number = 0
        for step in steps:
            if isinstance(step, int):
                if listed:
                    index = sorted(listed)[step % len(listed)]
                    assert directory.remove(index, listed.pop(index)[2])
            else:
                number += 1
                index_or_none = directory.insert(*step, 0, 5, number, 0, 1)
                assert index_or_none is not None and index_or_none not in listed
                listed[index_or_none] = (*step, number)
        assert directory.count() == len(listed)
        for addr in {a for a, _, _ in listed.values()} | {addresses.from_text("10.0.0.1")}:
            for port in range(1, 4):
                expected = sorted(n for a, p, n in listed.values() if (a, p) == (addr, port))
                assert sorted(e.listener for e in find(path, addresses.to_text(addr), port)) == expected
        for index in list(listed):
            assert directory.remove(index, listed[index][2])
        # Removed entries do not pile up: an empty directory is as if never used.
        assert not any(Path(path + ".dir").read_bytes()[64 + 4 + 4 + 2 :: 64][1:1])
        assert all(e[1] == 0 for e in struct.iter_unpack("=IH58x", Path(path + ".dir").read_bytes()[64:]))
    finally:
        os.close(fd)


def test_a_full_directory_says_so(place: tuple[str, int]) -> None:
    directory = memory.Directory(place[1], 1)
    addr = addresses.from_text("10.0.0.1")
    results = [directory.insert(addr, 1 + i % 60000, 0, 1, 1 + i, 0, 1) for i in range(8193)]
    assert results[-1] is None and None not in results[:-1]


def test_an_entry_is_removed_only_for_its_listener(place: tuple[str, int]) -> None:
    directory = memory.Directory(place[1], 1)
    index = directory.insert(addresses.from_text("::1"), 80, memory.LOOPBACK, 1, 5, 0, 1)
    assert index is not None
    assert not directory.remove(index, 6)
    assert not directory.remove(8192, 5) and not directory.remove(-1, 5)
    assert [e.listener for e in find(place[0], "::1", 80)] == [5]


def test_the_next_agent_empties_the_directory_that_a_killed_one_left(place: tuple[str, int]) -> None:
    path, fd = place
    directory = memory.Directory(fd, 10)
    index = directory.insert(addresses.from_text("10.0.0.1"), 80, 0, 1, 5, 0, 1)
    assert index is not None and memory.previous_generation(fd) == 10
    # Killed in the middle of a write: the sequence number is odd.
    at = 64 + 64 * index
    (seq,) = struct.unpack("=I", os.pread(fd, 4, at))
    os.pwrite(fd, struct.pack("=I", seq + 1), at)
    memory.Directory(fd, 11)
    assert entries(path) == [] and generation(path) == 11


def test_leaving_makes_the_generation_zero(place: tuple[str, int]) -> None:
    directory = memory.Directory(place[1], 10)
    assert generation(place[0]) == 10
    directory.leave()
    assert generation(place[0]) == 0


def test_a_larger_file_is_not_shrunk(place: tuple[str, int]) -> None:
    os.ftruncate(place[1], 1 << 20)
    memory.Directory(place[1], 1)
    assert os.fstat(place[1]).st_size == 1 << 20


@pytest.mark.parametrize("make", [lambda: memory.make_claims(9), lambda: memory.make_link(9, 1, 77)])
def test_memory_is_sealed(make: object) -> None:
    assert callable(make)
    fd = make()
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        assert seals & fcntl.F_SEAL_SHRINK and seals & fcntl.F_SEAL_GROW and seals & fcntl.F_SEAL_SEAL
        size = os.fstat(fd).st_size
        assert size % 4096 == 0
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
        with pytest.raises(PermissionError):
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


def test_a_links_parts_do_not_overlap() -> None:
    fd = memory.make_link(0x1122334455667788, 3, 77)
    try:
        raw = os.pread(fd, lib.SIZEOF_bertha_link_header, 0)
        names = "magic version listener index slots ring_max pid d0 d1 s0 s1 slot ring total dead"
        h = dict(zip(names.split(), struct.unpack("=IIQIIII7QI36x", raw), strict=True))
        assert h["magic"] == lib.BERTHA_MAGIC_LINK and h["listener"] == 0x1122334455667788
        assert (h["index"], h["pid"], h["slots"]) == (3, 77, lib.BERTHA_LINK_SLOTS)
        spans = [
            (0, len(raw)),
            (h["d0"], h["slots"] // 8),
            (h["d1"], h["slots"] // 8),
            (h["s0"], 64 * lib.BERTHA_SLEEPERS),
            (h["s1"], 64 * lib.BERTHA_SLEEPERS),
            (h["slot"], h["slots"] * lib.SIZEOF_bertha_slot),
            (h["ring"], 2 * h["slots"] * h["ring_max"]),
        ]
        for (start, length), (following, _) in itertools.pairwise(spans):
            assert start + length <= following and following % 64 == 0
        assert h["ring"] % 4096 == 0
        assert spans[-1][0] + spans[-1][1] == h["total"] == os.fstat(fd).st_size
        assert os.fstat(fd).st_blocks * 512 <= 8192  # sparse
        memory.mark_link_dead(fd)
        assert os.pread(fd, len(raw), 0)[88:92] == b"\1\0\0\0"
    finally:
        os.close(fd)


def test_text_is_read_only() -> None:
    fd = memory.make_file("t")
    try:
        os.write(fd, b"{}")
        memory.make_read_only(fd)
        assert os.pread(fd, 10, 0) == b"{}"
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
    finally:
        os.close(fd)


@given(st.binary(max_size=80), st.integers(0, 1 << 40))
def test_a_table_makes_sense_or_is_refused(header: bytes, size: int) -> None:
    table = ffi.new("struct agent_table *")
    if lib.agent_table_read(ffi.from_buffer(header), len(header), size, table) == 0:
        assert table.conn_offset + table.conn_count * table.conn_size <= size
        assert table.used <= table.conn_count
