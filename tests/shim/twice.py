"""A server passes one connection on under two numbers in one message; its client looks at it later.

The receiver, which has no shim, reads by one of the two and writes by the other one.
"""

from __future__ import annotations

import array
import os
import socket
import subprocess
import sys
import time

_TEXT = b"".join(b"%07d\n" % i for i in range(5_000))


def take(number: int) -> None:
    with socket.socket(fileno=number) as pair:
        _, ancillary, _, _ = pair.recvmsg(1, socket.CMSG_SPACE(8))
    numbers = array.array("i", ancillary[0][2])
    say, hear = numbers
    while data := os.read(hear, 1 << 16):
        while data:
            data = data[os.write(say, data) :]
    os.write(say, b"end\n")


def serve(port: int) -> None:
    listening = socket.create_server(("127.0.0.1", port))
    ours, theirs = socket.socketpair()
    words = [sys.executable, __file__, "take", str(theirs.fileno())]
    receiver = subprocess.Popen(words, pass_fds=[theirs.fileno()], env={"PATH": "/usr/bin:/bin"})
    connection, _ = listening.accept()
    connection.recv(1)
    time.sleep(0.1)  # what the client sends meanwhile is on the ring
    twice = array.array("i", [connection.fileno(), os.dup(connection.fileno())])
    ours.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, twice)])
    os.close(twice[1])
    connection.close()
    assert receiver.wait() == 0


def talk(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=15) as server:
        server.sendall(b"x")
        time.sleep(0.05)
        server.sendall(_TEXT)
        time.sleep(0.5)
        server.shutdown(socket.SHUT_WR)
        heard = b""
        while data := server.recv(1 << 16):
            heard += data
    print("all" if heard == _TEXT + b"end\n" else f"{len(heard)} other bytes")


if __name__ == "__main__":
    {"take": take, "serve": serve, "talk": talk}[sys.argv[1]](int(sys.argv[2]))
