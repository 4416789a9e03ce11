"""An ordinary client: standard input to the server on a loopback port, its answer to standard output.

After the end of the input it closes its half and reads until the server closes the other one.
With --absent it does not look at its connection for a while, neither before the end nor before it reads.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time


def main() -> None:
    with socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=15) as server:
        # A first byte by itself, so that what follows is sent after the server has accepted.
        greeting = server.recv(1) if "--server-first" in sys.argv else b""
        sys.stdout.buffer.write(greeting)

        def send() -> None:
            while data := os.read(0, 1 << 16):
                server.sendall(data)
            time.sleep(absent)
            server.shutdown(socket.SHUT_WR)

        absent = 0.5 if "--absent" in sys.argv else 0.0
        sender = threading.Thread(target=send)
        sender.start()
        time.sleep(absent)
        while data := server.recv(1 << 16):
            sys.stdout.buffer.write(data)
        sender.join()


if __name__ == "__main__":
    main()
