"""A server that leaves one connection to two programs without the shim: one reads, the other writes.

Its client sends all it has to say, and ends its half when it has heard all.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path


def serve(port: int, hear: Path, say: Path) -> None:
    listening = socket.create_server(("127.0.0.1", port))
    connection, _ = listening.accept()
    connection.sendall(b"*")
    connection.recv(1, socket.MSG_PEEK)
    time.sleep(0.3)  # what the client sends meanwhile is on the ring
    bare = {"PATH": "/usr/bin:/bin"}
    with hear.open("wb") as heard, say.open("rb") as said:
        reader = subprocess.Popen(["cat"], stdin=connection, stdout=heard, env=bare)
        writer = subprocess.Popen(["cat"], stdin=said, stdout=connection, env=bare)
        assert writer.wait() == 0
        assert reader.wait() == 0
    connection.close()
    listening.close()


def talk(port: int, text: Path, size: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=15) as server:
        heard = server.recv(1)
        said = text.read_bytes()
        server.sendall(said[:100])
        time.sleep(0.1)  # the server has tied its end by then
        server.sendall(said[100:])
        while len(heard) < size and (data := server.recv(1 << 16)):
            heard += data
        server.shutdown(socket.SHUT_WR)
        while data := server.recv(1 << 16):
            heard += data
    sys.stdout.buffer.write(heard)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
    else:
        talk(int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
