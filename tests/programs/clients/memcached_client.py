"""A memcached client: PORT CONNECTIONS ROUNDS SIZE [ADDRESS]. "ok": every value came back."""

from __future__ import annotations

import hashlib
import socket
import sys


def _value(connection: int, turn: int, size: int) -> bytes:
    seed = hashlib.sha256(f"{connection}.{turn}".encode()).hexdigest().encode()
    return (seed * (size // len(seed) + 1))[:size]


def main() -> None:
    """Store on every connection first, then read on every connection, so that all are in use at once."""
    port, connections, rounds, size = map(int, sys.argv[1:5])
    host = sys.argv[5] if len(sys.argv) > 5 else "127.0.0.1"
    files = [socket.create_connection((host, port), 15).makefile("rwb") for _ in range(connections)]
    for turn in range(rounds):
        for number, stream in enumerate(files):
            stream.write(b"set k%d 0 0 %d\r\n%s\r\n" % (number, size, _value(number, turn, size)))
            stream.flush()
        for number, stream in enumerate(files):
            assert stream.readline() == b"STORED\r\n"
            stream.write(b"get k%d\r\n" % number)
            stream.flush()
        for number, stream in enumerate(files):
            assert stream.readline() == b"VALUE k%d 0 %d\r\n" % (number, size)
            assert stream.read(size + 2) == _value(number, turn, size) + b"\r\n"
            assert stream.readline() == b"END\r\n"
    for stream in files:
        stream.write(b"quit\r\n")
        stream.flush()
        assert stream.read() == b""
        stream.close()
    print("ok")


if __name__ == "__main__":
    main()
