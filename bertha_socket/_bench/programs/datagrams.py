"""Datagrams there and back: ``datagrams.py ADDRESS PORT`` echoes, and prints "ready" when it can;
``datagrams.py ADDRESS PORT SIZE OUTSTANDING COUNT`` asks, with so many under way at a time, and prints the
seconds that COUNT of them took.

It knows nothing of chunnels, nor of loss: one that does not come back within ten seconds is an error.
"""

from __future__ import annotations

import socket
import sys
import time


def echo(sock: socket.socket) -> None:
    """For ever."""
    while True:
        data, origin = sock.recvfrom(65535)
        sock.sendto(data, origin)


def ask(sock: socket.socket, message: bytes, outstanding: int, count: int) -> float:
    """Seconds."""
    begin = time.perf_counter()
    for _ in range(outstanding):
        sock.send(message)
    for _ in range(count - outstanding):
        sock.recv(65535)
        sock.send(message)
    for _ in range(outstanding):
        sock.recv(65535)
    return time.perf_counter() - begin


def main(address: str, port: int, *numbers: int) -> None:
    """Either end."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        if not numbers:
            sock.bind((address, port))
            print("ready", flush=True)
            echo(sock)
        size, outstanding, count = numbers
        sock.settimeout(10)
        sock.connect((address, port))
        ask(sock, bytes(size), 1, 1)
        ask(sock, bytes(size), outstanding, max(outstanding, count // 10))
        print(ask(sock, bytes(size), outstanding, count))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *map(int, sys.argv[3:]))
