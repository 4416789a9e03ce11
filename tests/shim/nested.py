"""PORT: a server that watches an epoll set by poll: a fired one-shot member is not ready; "ok"."""

from __future__ import annotations

import select
import socket
import sys
import time


def main() -> None:
    with (
        socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listening,
        select.epoll() as inner,
    ):
        connection, _ = listening.accept()
        assert connection.recv(1) == b"x"
        inner.register(connection, select.EPOLLIN | select.EPOLLONESHOT)
        connection.send(b"4")
        assert inner.poll(10) == [(connection.fileno(), select.EPOLLIN)]
        outer = select.poll()
        outer.register(inner, select.POLLIN)
        assert outer.poll(0) == []
        assert connection.recv(4) == b"abcd"
        connection.send(b"3")
        while len(connection.recv(3, socket.MSG_PEEK)) < 3:
            time.sleep(0.001)
        assert outer.poll(20) == []
        inner.modify(connection, select.EPOLLIN | select.EPOLLONESHOT)
        assert outer.poll(10_000) == [(inner.fileno(), select.POLLIN)]
        assert inner.poll(10) == [(connection.fileno(), select.EPOLLIN)]
        assert connection.recv(10) == b"efg"
        connection.send(b"0")
        assert connection.recv(10) == b"", "the end"
        assert outer.poll(20) == []
        connection.close()
    print("ok")


if __name__ == "__main__":
    main()
