"""ADDRESS PORT FILE: exchange_server's client that prints "half", waits for FILE to appear, and goes on."""

from __future__ import annotations

import os
import socket
import sys
import time

from pattern import pattern, read_exactly


def main() -> None:
    """200 exchanges, the signal, 200 more on the same connection."""
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), 15) as sock:
        for turn in range(400):
            if turn == 200:
                print("half", flush=True)
                while not os.path.exists(sys.argv[3]):
                    time.sleep(0.01)
            sock.sendall(b"%d 1000 2000\n" % turn + pattern(turn, 1000))
            assert read_exactly(sock, 2000) == pattern(turn + 1, 2000)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
    print("ok")


if __name__ == "__main__":
    main()
