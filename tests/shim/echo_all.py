"""PORT: echoes on any number of connections, each in a thread; an error ends its connection alone.

With "ask" after PORT: for each line of standard input, asks the server there to echo it; prints the answers.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading


def serve(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        while data := connection.recv(1 << 16):
            connection.sendall(data)


def main() -> None:
    address = ("127.0.0.1", int(sys.argv[1]))
    if len(sys.argv) > 2:
        while word := sys.stdin.readline():
            with socket.create_connection(address, timeout=20) as server:
                server.sendall(word.encode())
                got = b""
                while len(got) < len(word):
                    got += server.recv(1 << 16)
            print(got.decode(), end="", flush=True)
        return
    with socket.create_server(address) as listening:
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main()
