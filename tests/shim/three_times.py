"""PORT FILE: says one byte to sender.c and hears the file three times; "ok"."""

from __future__ import annotations

import socket
import sys
from pathlib import Path


def main() -> None:
    want = Path(sys.argv[2]).read_bytes() * 3
    got = bytearray()
    with socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=20) as server:
        server.sendall(b"x")
        while data := server.recv(100_000):
            got += data
    assert bytes(got) == want, f"{len(got)} bytes, expected {len(want)}, or other ones"
    print("ok")


if __name__ == "__main__":
    main()
