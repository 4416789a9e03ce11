"""Proving that what crosses a veth as datagrams with `encrypt` above `reliable` is TLS and nothing else.

Wireshark knows neither our envelope nor `reliable`.  So each direction of a session is put together from its
numbered datagrams, as its receiver does, and written as TCP, by the writer that `mirror` has.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgpack

from bertha_socket.carrier import envelope
from bertha_socket.carrier.envelope import Kind
from bertha_socket.chunnels import mirror, reliable

from .capture import Capture, assert_tls_in
from .programs import require_program

#: What a datagram that is not of `reliable`'s may say: nothing of a program's.
_SAID: dict[Kind, set[str]] = {
    Kind.HELLO: {"v", "plan", "mac"},
    Kind.ACCEPT: {"v", "mac"},
    Kind.UNKNOWN: set(),
    Kind.END: set(),
}
_RANGE = 8  # bytes, in an acknowledgement


class _Direction:
    """What one end of a session sends."""

    def __init__(self, flow: mirror._Flow) -> None:
        self._flow = flow
        self._wanted = 1
        self._came: dict[int, bytes] = {}

    def take(self, number: int, payload: bytes) -> Iterator[bytes]:
        """The records of a pcap file for what has now come in order; what is sent again must be the same."""
        assert self._came.setdefault(number, payload) == payload, f"number {number} has two contents"
        while self._wanted in self._came:
            data = self._came[self._wanted]
            self._wanted += 1
            if data:
                yield self._flow.packet(data)

    @property
    def missing(self) -> bool:
        return len(self._came) != self._wanted - 1


class _Sessions:
    """Those of one server, by client, session's number, and that of `reliable`'s connection."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.found: dict[tuple[str, int, int], dict[bool, _Direction]] = {}

    def take(self, client: str, ours: bool, datagram: bytes) -> Iterator[bytes]:
        """`ours`: the server has sent it."""
        opened = envelope.opened(datagram)
        assert opened is not None, f"a datagram that is not of our envelope: {datagram[:60]!r}"
        if opened.kind is not Kind.DATA:
            assert opened.kind in _SAID, opened
            said = msgpack.unpackb(opened.body) if opened.body else {}
            assert set(said) <= _SAID[opened.kind], opened
            return
        head, rest = opened.body[: reliable.HEADER.size], opened.body[reliable.HEADER.size :]
        assert len(head) == reliable.HEADER.size, opened
        kind, flags, connection, number, _ = reliable.HEADER.unpack(head)
        if kind == reliable.DATA:
            key = client, opened.session, connection
            if key not in self.found:
                self.found[key] = self._directions(client, len(self.found))
            yield from self.found[key][ours].take(number, rest)
        elif kind == reliable.ACK:
            assert len(rest) == flags * _RANGE <= reliable.RANGES_MAX * _RANGE, opened
        else:
            assert (kind, rest) == (reliable.HELLO, b""), opened

    def _directions(self, client: str, count: int) -> dict[bool, _Direction]:
        """A client's port may have several sessions: in the file each has one of its own."""
        there, here = f"{client.rpartition(':')[0]}:{40_000 + count}", f"192.0.2.1:{self._port}"
        return {False: _Direction(mirror._Flow(there, here)), True: _Direction(mirror._Flow(here, there))}


def assert_only_tls_by_datagrams(
    capture: Capture, port: int, *, at_least: int, sessions: int = 1, without: Iterable[bytes] = ()
) -> None:
    """All datagrams of UDP port `port` are of our envelope, and what `reliable` carries by them is in
    records of TLS 1.3, as Wireshark's dissector sees it.

    `at_least`: bytes of application data, `sessions`: that many of them, in which both ends sent some.
    `without`: what must be nowhere in the capture, in no protocol.
    """
    packets = capture.stop()
    for marker in without:
        assert marker not in packets, f"{marker!r} crosses the network"
    known = _Sessions(port)
    target = capture.path.with_suffix(".reliable.pcap")
    with target.open("wb") as file:
        file.write(mirror.FILE_HEADER)
        for client, ours, datagram in _datagrams(capture.path, port):
            for record in known.take(client, ours, datagram):
                file.write(record)
    short = [key for key, both in known.found.items() if any(d.missing for d in both.values())]
    assert not short, f"sessions with numbers missing: {short}"
    assert_tls_in(target, port, at_least=at_least, connections=sessions)


def _datagrams(path: Path, port: int) -> Iterator[tuple[str, bool, bytes]]:
    """Client, whether the server has sent it, and payload, in the order of the capture."""
    fields = ["ip.src", "ip.dst", "udp.srcport", "udp.dstport", "udp.payload"]
    command = [require_program("tshark"), "-r", str(path), "-T", "fields", "-E", "separator=/t"]
    command += ["-Y", f"udp.port=={port} && !icmp"]
    for name in fields:
        command += ["-e", name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    for line in done.stdout.splitlines():
        source, target, from_port, to_port, payload = line.split("\t")
        ours = int(from_port) == port
        yield f"{target}:{to_port}" if ours else f"{source}:{from_port}", ours, bytes.fromhex(payload)
