"""A server that leaves one connection to two programs without the shim: one reads, the other writes."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    port, hear, say = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    listening = socket.create_server(("127.0.0.1", port))
    connection, _ = listening.accept()
    connection.sendall(b"*")
    connection.recv(1, socket.MSG_PEEK)
    time.sleep(0.1)  # what the client sends meanwhile is on the ring
    bare = {"PATH": "/usr/bin:/bin"}
    with hear.open("wb") as heard, say.open("rb") as said:
        reader = subprocess.Popen(["cat"], stdin=connection, stdout=heard, env=bare)
        writer = subprocess.Popen(["cat"], stdin=said, stdout=connection, env=bare)
        assert writer.wait() == 0
        assert reader.wait() == 0
    connection.close()
    listening.close()


if __name__ == "__main__":
    main()
