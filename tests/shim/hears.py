"""PORT COUNT: COUNT times connects, hears a byte, says one, and prints a line with what it hears then."""

from __future__ import annotations

import socket
import sys


def main() -> None:
    port, count = int(sys.argv[1]), int(sys.argv[2])
    for _ in range(count):
        heard = bytearray()
        with socket.create_connection(("127.0.0.1", port), timeout=20) as server:
            assert server.recv(1) == b"*"
            server.sendall(b"x")
            while data := server.recv(1 << 16):
                heard += data
        print(heard.decode())


if __name__ == "__main__":
    main()
