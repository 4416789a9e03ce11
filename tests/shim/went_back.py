"""A server that has left its ring by itself, and a client that leaves the rest to a program without the shim.

`ring`: something the server sent lies unread in the ring, and what it sends later comes by the kernel.
`kernel`: a thread of it was still sending by the kernel, so that nothing of it ever was on the ring.
"""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import threading
import time

_FIRST = b"first\n" * 10_000
_MUCH = b"much more\n" * 1_000_000
_LINE = b"a line\n"
_LINES = 30


def serve(port: int, way: str) -> None:
    listening = socket.create_server(("127.0.0.1", port))
    connection, _ = listening.accept()
    sender = threading.Thread(target=connection.sendall, args=(_MUCH,))
    if way == "kernel":
        sender.start()
    connection.recv(1)
    if way == "ring":
        connection.sendall(_FIRST)
    flags = fcntl.fcntl(connection, fcntl.F_GETFL)
    fcntl.fcntl(connection, fcntl.F_SETFL, flags | os.O_ASYNC)  # which only the kernel serves
    if way == "kernel":
        sender.join()
    for _ in range(_LINES):
        connection.sendall(_LINE)
        time.sleep(0.02)
    connection.close()


def talk(port: int, way: str) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=15) as server:
        server.sendall(b"x")
        time.sleep(0.2)
        expected = _FIRST if way == "ring" else b""
        left = len(_MUCH) if way == "kernel" else 0
        while left > 0:
            left -= len(server.recv(min(left, 1 << 16)))
        server.settimeout(None)
        bare = subprocess.run(["cat"], stdin=server, env={"PATH": "/usr/bin:/bin"}, stdout=subprocess.PIPE)
    expected += _LINE * _LINES
    print("all" if bare.stdout == expected else f"{len(bare.stdout)} other bytes")


if __name__ == "__main__":
    (serve if sys.argv[1] == "serve" else talk)(int(sys.argv[2]), sys.argv[3])
