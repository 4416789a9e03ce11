"""PORT CONNECTIONS LINES SIZE [CERTIFICATE]: servers.py's line protocol, a thread for each connection.

Prints "ok" when each line came back in capital letters.
"""

from __future__ import annotations

import random
import socket
import ssl
import string
import sys
from concurrent.futures import ThreadPoolExecutor


def _talk(number: int, port: int, lines: int, size: int, context: ssl.SSLContext | None) -> None:
    letters = random.Random(number).choices(string.ascii_lowercase, k=size)
    with socket.create_connection(("127.0.0.1", port), 15) as raw:
        sock: socket.socket = context.wrap_socket(raw, server_hostname="localhost") if context else raw
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1) if not context else None
        with sock.makefile("rb") as stream:
            for turn in range(lines):
                line = f"{number} {turn} {''.join(letters)}\n".encode()
                sock.sendall(line)
                assert stream.readline() == line.upper(), f"connection {number}, line {turn}"
            sock.sendall(b"BYE\n")
            assert stream.read() == b""
        sock.close()


def main() -> None:
    """All connections at once."""
    port, connections, lines, size = map(int, sys.argv[1:5])
    context = ssl.create_default_context(cafile=sys.argv[5]) if len(sys.argv) > 5 else None
    with ThreadPoolExecutor(connections) as pool:
        list(pool.map(lambda number: _talk(number, port, lines, size, context), range(connections)))
    print("ok")


if __name__ == "__main__":
    main()
