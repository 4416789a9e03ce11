"""PORT: a server that has set SO_RCVLOWAT looks at a connection by every readiness call there is; "ok".

The client is water.py: it sends 4 bytes, and 6 more when it is told to.
"""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import sys
import termios
import threading
import time


def _readable(fd: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, struct.pack("i", 0)))[0])


def _looks(fd: int, epoll: select.epoll, seconds: float) -> list[bool]:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return [
        bool(poll.poll(seconds * 1000)),
        bool(select.select([fd], [], [], seconds)[0]),
        bool(epoll.poll(seconds)),
    ]


def main() -> None:
    with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listening, select.epoll() as epoll:
        connection, _ = listening.accept()
        assert connection.recv(1) == b"x"
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 10)
        epoll.register(connection, select.EPOLLIN)
        connection.send(b"4")
        while _readable(connection.fileno()) < 4:
            time.sleep(0.001)
        for seconds in (0, 0.05, 0):
            assert _looks(connection.fileno(), epoll, seconds) == [False] * 3
        assert connection.recv(20, socket.MSG_DONTWAIT | socket.MSG_PEEK) == b"abcd"
        later = threading.Timer(0.1, connection.send, [b"6"])
        later.start()
        assert connection.recv(20, socket.MSG_PEEK) == b"abcdefghij", "a look waits for as much as well"
        later.join()
        assert _looks(connection.fileno(), epoll, 10) == [True] * 3
        assert connection.recv(20) == b"abcdefghij"
        connection.send(b"0")
        assert _looks(connection.fileno(), epoll, 10) == [True] * 3, "the end counts"
        assert connection.recv(20) == b""
        connection.close()
    print("ok")


if __name__ == "__main__":
    main()
