"""Capturing what crosses a veth, and proving that it is TLS and nothing else.

A capture that has not begun, or that has lost something, passes every test of what must not be in it.  So a
capture is there only once it has caught a probe, what is looked at has all that came before a second probe,
and lost packets are an error.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from .namespaces import Namespace
from .poll import eventually
from .programs import require_program

_PROBE = (
    "import socket, sys\n"
    "with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:\n"
    "    s.sendto(sys.argv[2].encode(), (sys.argv[1], 9))\n"
)
_SECONDS = 60.0
#: MiB that the kernel keeps for dumpcap, which a busy machine may not let run for a while.
_BUFFER = 64
_TLS_13 = "0x0304"
_TLS_TYPES = {"20", "21", "22", "23"}


class Capture:
    """What crosses `v0` of a namespace, from now on.  `far` is the address at the other end of it."""

    def __init__(self, netns: Namespace, far: str, path: Path) -> None:
        self.path = path
        self._netns, self._far = netns, far
        self._numbers = itertools.count(1)
        command = [require_program("dumpcap"), "-q", "-B", str(_BUFFER), "-i", "v0", "-w", str(path)]
        self._process = subprocess.Popen(
            netns.wrap(command), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        self._packets: bytes | None = None
        self._said: str | None = None
        try:
            self._probed("the capture's beginning")
        except BaseException:
            self.close()
            raise

    def _probed(self, what: str) -> None:
        """Sends probes until one of them is in the file: what came before it is there too."""
        sent: list[bytes] = []

        def seen() -> bool:
            assert self._process.poll() is None, "dumpcap has ended"
            if self.path.exists():
                found = self.path.read_bytes()
                if any(probe in found for probe in sent):
                    return True
            sent.append(b"bertha capture probe %d;" % next(self._numbers))
            words = [sys.executable, "-S", "-c", _PROBE, self._far, sent[-1].decode()]
            subprocess.run(self._netns.wrap(words), check=True, timeout=_SECONDS)
            return False

        eventually(seen, what, _SECONDS, pause=0.1)

    def stop(self) -> bytes:
        """Ends it; the packets as they are in the file, all of them."""
        if self._packets is None:
            self._probed("the capture's end")
            said = self.close()
            lost = re.search(r"dropped on interface '[^']*': \d+/(\d+)", said)
            assert lost is not None and lost[1] == "0", f"the capture has lost packets: {said}"
            self._packets = self.path.read_bytes()
        return self._packets

    def close(self) -> str:
        """Ends it, however it is; what it said."""
        if self._said is None:
            if self._process.poll() is None:
                self._process.terminate()
            self._said = self._process.communicate(timeout=_SECONDS)[1].decode(errors="replace")
        return self._said


@dataclass
class _Direction:
    """One direction of a TCP connection."""

    #: First and last byte's sequence numbers of each segment, as often as it was sent.
    segments: list[tuple[int, int]] = field(default_factory=list)
    records: int = 0
    data: int = 0
    #: Of a server's hello.
    versions: set[str] = field(default_factory=set)

    @property
    def payload(self) -> int:
        """Bytes of the stream, those that were sent again counted once."""
        total = end = 0
        for first, last in sorted(self.segments):
            total += max(last - max(first, end), 0)
            end = max(end, last)
        return total


def assert_only_tls(
    capture: Capture, port: int, *, at_least: int, connections: int = 1, without: Iterable[bytes] = ()
) -> None:
    """All payload to and from TCP port `port` is in records of TLS 1.3, as Wireshark's dissector sees it.

    `at_least`: bytes of application data, `connections`: that many of them, in which both ends sent some.
    `without`: what must be nowhere in the capture, in no protocol.
    """
    packets = capture.stop()
    for marker in without:
        assert marker not in packets, f"{marker!r} crosses the network"
    assert_tls_in(capture.path, port, at_least=at_least, connections=connections)


def assert_tls_in(path: Path, port: int, *, at_least: int, connections: int) -> None:
    """`assert_only_tls` of a file that is whole."""
    found: dict[tuple[str, str], _Direction] = defaultdict(_Direction)
    for row in _rows(path, port):
        (stream, source, sequence, length, malformed, kinds, hidden, lengths, hello, version) = row
        assert not malformed, f"Wireshark finds something malformed: {row}"
        one = found[stream, source]
        one.segments.append((int(sequence), int(sequence) + int(length)))
        sizes = [int(size) for size in lengths.split(",") if size]
        one.records += sum(size + 5 for size in sizes)  # a record's header is 5 bytes
        types = [kind for kind in (kinds + "," + hidden).split(",") if kind]
        assert set(types) <= _TLS_TYPES, f"a record of no type of TLS: {row}"
        if set(types) == {"23"}:
            one.data += sum(sizes)
        if "2" in hello.split(","):
            one.versions |= set(version.split(","))
    assert_streams(found, at_least, connections)


def assert_streams(found: dict[tuple[str, str], _Direction], at_least: int, connections: int) -> None:
    """What `assert_only_tls` asks of the directions of all connections, by stream and sender's port."""
    outside = {key: (d.payload, d.records) for key, d in found.items() if d.payload != d.records}
    assert not outside, f"payload outside of TLS (stream, port: payload, in records): {outside}"
    spoken = defaultdict(list)
    for (stream, _), direction in found.items():
        if direction.data:
            spoken[stream].append(direction)
    whole = [stream for stream, directions in spoken.items() if len(directions) == 2]
    assert len(whole) >= connections, f"{len(whole)} connections of TLS, expected {connections}: {found}"
    for stream, directions in spoken.items():
        versions = set().union(*(d.versions for d in directions))
        assert versions == {_TLS_13}, f"stream {stream} is TLS {versions}"
    total = sum(d.data for d in found.values())
    assert total >= at_least, f"{total} bytes of application data, expected {at_least}"


def _rows(path: Path, port: int) -> list[list[str]]:
    """The segments with payload; where the two ends send at once, in the order of the capture.

    A busy veth delivers segments out of order now and then, and they are sent again: unless told to put them
    in order, Wireshark loses the records from there on.
    """
    fields = ["tcp.stream", "tcp.srcport", "tcp.seq", "tcp.len", "_ws.malformed", "tls.record.content_type"]
    fields += ["tls.record.opaque_type", "tls.record.length", "tls.handshake.type"]
    fields += ["tls.handshake.extensions.supported_version"]
    command = [require_program("tshark"), "-r", str(path), "-d", f"tcp.port=={port},tls", "-T", "fields"]
    command += ["-o", "tcp.reassemble_out_of_order:TRUE", "-Y", f"tcp.port=={port} && tcp.len>0"]
    command += ["-E", "separator=/t", "-E", "occurrence=a"]
    for name in fields:
        command += ["-e", name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return [line.split("\t") for line in done.stdout.splitlines()]
