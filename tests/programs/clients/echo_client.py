"""PORT CONNECTIONS SIZE: writes to and reads from an echo server at once, then half-closes; "ok"."""

from __future__ import annotations

import socket
import sys
from concurrent.futures import ThreadPoolExecutor

from pattern import pattern


def _send(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def main() -> None:
    """All connections at once."""
    port, connections, size = map(int, sys.argv[1:4])
    socks = [socket.create_connection(("127.0.0.1", port), 15) for _ in range(connections)]
    with ThreadPoolExecutor(2 * connections) as pool:
        sends = [pool.submit(_send, sock, pattern(n, size)) for n, sock in enumerate(socks)]
        reads = [pool.submit(lambda s: b"".join(iter(lambda: s.recv(65536), b"")), sock) for sock in socks]
        for send in sends:
            send.result()
        for number, read in enumerate(reads):
            assert read.result() == pattern(number, size), f"connection {number}"
    for sock in socks:
        sock.close()
    print("ok")


if __name__ == "__main__":
    main()
