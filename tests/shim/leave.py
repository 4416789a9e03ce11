"""A client for bare_talk.c: sends a first line, then numbered lines; checks that it gets the latter back.

`ready`: it waits for the answer, in the connection's own calls, while it sends.  `ended`: the same, and
nothing more is to come from it.  `busy`: it sends all and then does not look at the connection until the
other program is there, so that nobody answers for this end in between.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time


def main() -> None:
    port, way = int(sys.argv[1]), sys.argv[2]
    count = int(sys.argv[3])
    text = b"".join(b"%07d\n" % i for i in range(count))
    got = bytearray()
    with socket.create_connection(("127.0.0.1", port), timeout=20) as server:
        assert server.recv(1) == b"*"
        server.sendall(b"first\n")
        if way == "busy":
            server.sendall(text)
            while not os.path.exists("there"):  # the other program's word
                time.sleep(0.005)
            server.shutdown(socket.SHUT_WR)
        else:

            def send() -> None:
                server.sendall(text)
                if way == "ended":
                    server.shutdown(socket.SHUT_WR)

            threading.Thread(target=send).start()
        while data := server.recv(1 << 16):
            got += data
            if way == "ready" and len(got) == len(text):
                server.shutdown(socket.SHUT_WR)
    body, last = bytes(got[: len(text)]), bytes(got[len(text) :])
    assert body == text, f"{len(got)} bytes came back, other ones"
    print(last.decode(), end="")


if __name__ == "__main__":
    main()
