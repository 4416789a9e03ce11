"""Accepts connections, each to be the standard input and output of a program: PORT COUNT COMMAND..."""

from __future__ import annotations

import socket
import subprocess
import sys


def main() -> None:
    port, count, *command = sys.argv[1:]
    with socket.create_server(("127.0.0.1", int(port))) as listening:
        for _ in range(int(count)):
            connection, _ = listening.accept()
            with connection:
                connection.send(b"*")
                connection.recv(1, socket.MSG_PEEK)
                subprocess.run(command, stdin=connection.fileno(), stdout=connection.fileno(), check=True)


if __name__ == "__main__":
    main()
