"""PORT COUNT: makes COUNT connections, says "ready", and has some lines answered on each; "ok"."""

from __future__ import annotations

import socket
import sys

connections = [socket.create_connection(("127.0.0.1", int(sys.argv[1]))) for _ in range(int(sys.argv[2]))]
print("ready", flush=True)
for _ in range(3):
    for connection in connections:
        connection.sendall(b"hello\n")
    for connection in connections:
        got = b""
        while not got.endswith(b"\n"):
            part = connection.recv(100)
            assert part, "an answer"
            got += part
        assert got == b"hello\n"
for connection in connections:
    connection.close()
print("ok", flush=True)
