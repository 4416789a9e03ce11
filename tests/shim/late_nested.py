"""One epoll set within another, both from before the shim was loaded; "ok"."""

from __future__ import annotations

import select
import socket

from bertha_socket import monkey


def main() -> None:
    outer, inner = select.epoll(), select.epoll()
    outer.register(inner.fileno(), select.EPOLLIN)
    monkey.patch_all()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        one = socket.create_connection(listening.getsockname(), timeout=15)
        other, _ = listening.accept()
    for sender, receiver in [(one, other), (other, one)] * 3:
        sender.sendall(b"x")
        assert receiver.recv(1) == b"x"
    inner.register(other.fileno(), select.EPOLLIN)
    for _ in range(3):
        one.sendall(b"hello")
        assert outer.poll(15) == [(inner.fileno(), select.EPOLLIN)]
        assert inner.poll(0) == [(other.fileno(), select.EPOLLIN)]
        assert other.recv(100) == b"hello"
    one.close()
    other.close()
    print("ok")


if __name__ == "__main__":
    main()
