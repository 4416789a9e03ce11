"""COUNT: so many connections of a process to itself, opened and closed, twice.

It says how many records of its table were ever used, and how many links it has."""

from __future__ import annotations

import os
import resource
import socket
import struct
import sys
from pathlib import Path

count = int(sys.argv[1])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
listener = socket.create_server(("127.0.0.1", 0), backlog=64)


def ours(name: str) -> list[Path]:
    found = []
    for fd in Path("/proc/self/fd").iterdir():
        try:
            if name in os.readlink(fd):
                found.append(fd)
        except FileNotFoundError:  # the listing's own
            continue
    return found


for _ in range(2):
    pairs = []
    for _ in range(count):
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        client.sendall(b"ask")
        assert server.recv(9) == b"ask"
        server.sendall(b"so")
        assert client.recv(9) == b"so"
        pairs.append((client, server))
    for client, server in pairs:
        client.close()
        server.close()
    used = 0
    for table in ours("bertha-table"):
        used = struct.unpack("I", table.read_bytes()[24:28])[0]
    print("records", used, "links", len(ours("bertha-link")))
