"""PORT COUNT PAUSE: COUNT times connects, says a word, hears it again and pauses for PAUSE seconds; "ok"."""

from __future__ import annotations

import socket
import sys
import time


def main() -> None:
    port, count, pause = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    for _ in range(count):
        with socket.create_connection(("127.0.0.1", port), timeout=15) as server:
            server.sendall(b"word\n")
            assert server.recv(16) == b"word\n"
        time.sleep(pause)
    print("ok")


if __name__ == "__main__":
    main()
