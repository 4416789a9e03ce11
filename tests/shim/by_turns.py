"""A server and programs without the shim write by turns; the client looks at its connection later."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

_TURNS = 5


def serve(port: int) -> None:
    listening = socket.create_server(("127.0.0.1", port))
    connection, _ = listening.accept()
    connection.recv(1)
    for i in range(_TURNS):
        words = ["echo", f"program {i}"]
        subprocess.run(words, stdout=connection, env={"PATH": "/usr/bin:/bin"}, check=True)
        connection.sendall(f"server {i}\n".encode())
    subprocess.run(["echo", "last"], stdout=connection, env={"PATH": "/usr/bin:/bin"}, check=True)
    connection.shutdown(socket.SHUT_WR)
    connection.recv(1)
    connection.close()


def talk(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=15) as server:
        server.sendall(b"x")
        time.sleep(1.5)
        heard = b""
        while data := server.recv(1 << 16):
            heard += data
    turns = "".join(f"program {i}\nserver {i}\n" for i in range(_TURNS)) + "last\n"
    print("in order" if heard.decode() == turns else heard.decode())


if __name__ == "__main__":
    serve(int(sys.argv[2])) if sys.argv[1] == "serve" else talk(int(sys.argv[2]))
