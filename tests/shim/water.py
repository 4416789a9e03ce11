"""PORT: sends a first byte, then as many letters as each digit that comes says; 0 is the end."""

from __future__ import annotations

import socket
import string
import sys


def main() -> None:
    letters = string.ascii_lowercase.encode()
    with socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=20) as server:
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server.sendall(b"x")
        while (count := int(server.recv(1))) > 0:
            server.sendall(letters[:count])
            letters = letters[count:]


if __name__ == "__main__":
    main()
