"""PORT: a client that hears a byte, and answers it, until the end."""

from __future__ import annotations

import contextlib
import socket
import sys


def main() -> None:
    with (
        socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=20) as server,
        contextlib.suppress(ConnectionResetError),  # it was not interested in the last answer
    ):
        while server.recv(1):
            server.sendall(b"x")


if __name__ == "__main__":
    main()
