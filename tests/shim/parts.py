"""PORT WAY: the other end of looks.c: a message in parts, the last of which come when the other one waits."""

from __future__ import annotations

import socket
import sys
import time


def main() -> None:
    port, way = int(sys.argv[1]), sys.argv[2]
    with socket.create_connection(("127.0.0.1", port), timeout=20) as server:
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if way == "first":
            server.sendall(b"head")
        assert server.recv(1) == b"*"
        if way == "much":
            server.sendall(bytes(4 << 20))
            return
        for part in [b"er", b"body!"] if way == "first" else [b"head", b"er", b"body!"]:
            server.sendall(part)
            time.sleep(0.02)
        assert server.recv(1) == b"e"
        server.sendall(b"end")
        server.shutdown(socket.SHUT_WR)
        assert server.recv(1) == b""


if __name__ == "__main__":
    main()
