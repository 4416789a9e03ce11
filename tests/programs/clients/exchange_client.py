"""MODE ADDRESS PORT CONNECTIONS ROUNDS UP DOWN: exchange_server's client, blocking, in threads.

All connections are open at once. Prints "ok" when every byte was right.
"""

from __future__ import annotations

import socket
import sys
from concurrent.futures import ThreadPoolExecutor

from exchange_server import GREETING
from pattern import pattern, read_exactly


def _talk(sock: socket.socket, number: int, rounds: int, up: int, down: int) -> None:
    for turn in range(rounds):
        seed = number * 1000 + turn * 2
        # The line and the bytes in separate calls: an answer cannot begin before the second has arrived.
        sock.sendall(b"%d %d %d\n" % (seed, up, down))
        sock.sendall(pattern(seed, up))
        assert read_exactly(sock, down) == pattern(seed + 1, down), f"connection {number} turn {turn}"


def main() -> None:
    """Connect all, talk on all, close all."""
    mode, address = sys.argv[1], sys.argv[2]
    port, connections, rounds, up, down = map(int, sys.argv[3:8])
    socks = [socket.create_connection((address, port), 30) for _ in range(connections)]
    for sock in socks:
        # Else Nagle's algorithm and the delayed acknowledgement cost 40 ms for each exchange.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if mode == "server-first":
        for sock in socks:
            assert read_exactly(sock, len(GREETING)) == GREETING
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda pair: _talk(pair[1], pair[0], rounds, up, down), enumerate(socks)))
    for sock in socks:
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
        sock.close()
    print("ok")


if __name__ == "__main__":
    main()
