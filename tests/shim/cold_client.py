"""Connections of cold_server.py's: `stay`, until the server ends, or one that says something now and then."""

from __future__ import annotations

import socket
import sys
import time

with socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=15) as connection:
    if sys.argv[2] == "stay":
        connection.sendall(b"stay")
        assert connection.recv(100) == b"stay"
        print("stays", flush=True)
        connection.settimeout(60)
        try:
            connection.recv(1)
        except ConnectionResetError:  # closed with bytes unread
            pass
    for word in (b"one", b"two", b"three", b"four") if sys.argv[2] != "stay" else ():
        connection.sendall(word)
        assert connection.recv(100) == word
        time.sleep(0.2)
print("done")
