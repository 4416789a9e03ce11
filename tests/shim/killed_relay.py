"""A server leaves its connection to a program without the shim; its client does not look at it meanwhile.

`reads`: that program reads, slowly; `writes`: it writes more than anybody reads.  Each says what it comes to.
`goes on`: as `writes`, and the server writes behind it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable


def _told(step: Callable[[], int]) -> str:
    try:
        while step():
            pass
    except ConnectionResetError:
        return "reset"
    return "end"


def _all_but(data: bytes, word: bytes) -> int:
    assert word not in data  # there would be a gap before it
    return len(data)


def left(case: str) -> None:
    """The program without the shim."""
    with socket.socket(fileno=0) as connection:
        connection.settimeout(20)
        print("there", flush=True)
        if case == "reads":
            print(_told(lambda: len(connection.recv(5000)) and not time.sleep(0.01)))
        else:
            print(_told(lambda: connection.send(b"w" * 50_000)))


def serve(case: str, port: int) -> None:
    with socket.create_server(("127.0.0.1", port)) as listening:
        connection, _ = listening.accept()
        connection.sendall(connection.recv(1))
    time.sleep(0.4)  # what the client sends meanwhile is on the ring
    words = [sys.executable, __file__, "left", case]
    program = subprocess.Popen(words, stdin=connection, env={"PATH": "/usr/bin:/bin"})
    if case != "goes on":
        connection.close()
    program.wait()
    if case == "goes on":
        print(_told(lambda: connection.send(b"later")))


def talk(case: str, port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
        connection.sendall(b"y" * (200_000 if case == "reads" else 10))
        while not os.path.exists("killed"):
            time.sleep(0.01)
        if case == "reads":
            print(_told(lambda: connection.send(b"y" * 1000) and not time.sleep(0.01)))
        else:
            print(_told(lambda: _all_but(connection.recv(10_000), b"later")))


if __name__ == "__main__":
    if sys.argv[1] == "left":
        left(sys.argv[2])
    else:
        {"serve": serve, "talk": talk}[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
