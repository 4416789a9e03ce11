"""PORT: client and server in one process, and a forked one that serves as well; "ok"."""

from __future__ import annotations

import os
import socket
import sys
import threading


def _serve(listening: socket.socket) -> None:
    connection, _ = listening.accept()
    with connection:
        while data := connection.recv(100):
            connection.sendall(data)


def _talk(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=15) as server:
        for word in (b"one", b"two", b"three"):
            server.sendall(word)
            assert server.recv(100) == word


def main() -> None:
    port = int(sys.argv[1])
    turn, my_turn = os.pipe()
    with socket.create_server(("127.0.0.1", port)) as listening:
        child = os.fork()
        if child == 0:
            os.read(turn, 1)
            _serve(listening)
            os._exit(0)
        for _ in range(2):
            thread = threading.Thread(target=_serve, args=[listening])
            thread.start()
            _talk(port)
            thread.join()
        os.write(my_turn, b"x")
        _talk(port)
        assert os.waitpid(child, 0)[1] == 0
    print("ok")


if __name__ == "__main__":
    main()
