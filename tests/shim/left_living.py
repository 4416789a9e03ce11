"""A child uses a connection, and then executes a program without the shim; its parent goes on with it.

Enough connections follow that the parent looks for records whose processes are dead. The connection stays
close-on-exec: the program that the child executes does not have it.
"""

from __future__ import annotations

import os
import socket
import sys

#: More than come between two such looks.
_COUNT = 300


def _echo(connection: socket.socket, text: bytes) -> None:
    connection.sendall(text)
    assert connection.recv(len(text), socket.MSG_WAITALL) == text


def main() -> None:
    at = ("127.0.0.1", int(sys.argv[1]))
    first = socket.create_connection(at, timeout=20)
    for i in range(2):
        _echo(first, b"parent %d" % i)
    child = os.fork()
    if child == 0:
        _echo(first, b"child")
        bare = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        os.execve("/bin/true", ["true"], bare)
    assert os.waitpid(child, 0)[1] == 0
    others = []
    for i in range(_COUNT):
        others.append(socket.create_connection(at, timeout=20))
        _echo(others[-1], b"other %d" % i)
    _echo(first, b"parent again")
    for i, connection in enumerate(others):
        _echo(connection, b"once more %d" % i)
    print("well")


if __name__ == "__main__":
    main()
