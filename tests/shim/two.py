"""The client of c/threads.c: PORT WAY."""

from __future__ import annotations

import socket
import sys


def _open(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=15)
    connection.send(b"x")
    return connection


def main() -> None:
    port, way = int(sys.argv[1]), sys.argv[2]
    with _open(port) as first:
        assert first.recv(100) == b"ready\n"
        if way == "shutdown":
            assert first.recv(100) == b""
            return
        with _open(port) as second:
            assert second.recv(100) == b"ready\n"
            second.send(b"for the second")
            first.send(b"for the first")
            assert second.recv(100) == b"done\n"
            second.shutdown(socket.SHUT_WR)
            assert second.recv(100) == b""
    print("ok")


if __name__ == "__main__":
    main()
