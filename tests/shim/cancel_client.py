"""PORT: the other end of cancel.c: does on its second connection what the first one tells.

`f`: sends until `e`, which ends what it sends.  `d`: reads to the end.
"""

from __future__ import annotations

import socket
import sys
import threading


def main() -> None:
    port = int(sys.argv[1])

    def connect() -> socket.socket:
        s = socket.create_connection(("127.0.0.1", port), timeout=60)
        assert s.recv(1) == b"*"
        s.sendall(b"x")
        return s

    control, data = connect(), connect()
    stop = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            data.sendall(bytes(1 << 14))

    def drain() -> None:
        while data.recv(1 << 16):
            pass

    works = {b"f": threading.Thread(target=flood), b"d": threading.Thread(target=drain)}
    while command := control.recv(1):
        if command == b"e":
            stop.set()
            if works[b"f"].ident is not None:
                works[b"f"].join()
            data.shutdown(socket.SHUT_WR)
        else:
            works[command].start()
    works[b"d"].join()
    print("ok")


if __name__ == "__main__":
    main()
