"""server PORT COUNT: gives back what comes, a megabyte on each connection.

client PORT COUNT: has so many at a time, then says "moved" and waits; for a line, then it closes them
and says "closed", and waits for another line."""

from __future__ import annotations

import select
import socket
import sys

_SIZE = 1 << 20
role, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])


def wait_on(connection: socket.socket, until: socket.socket | int) -> None:
    """As programs do: in one wait for everything."""
    while until not in (ready := select.select([connection, until], [], [])[0]):
        assert ready


if role == "server":
    epoll = select.epoll()
    listener = socket.create_server(("127.0.0.1", port), backlog=count)
    epoll.register(listener, select.EPOLLIN)
    connections: dict[int, tuple[socket.socket, bytearray]] = {}
    ended = 0
    while ended < count:
        for fd, _ in epoll.poll():
            if fd == listener.fileno():
                connection, _ = listener.accept()
                connections[connection.fileno()] = (connection, bytearray())
                epoll.register(connection, select.EPOLLIN)
                continue
            connection, have = connections[fd]
            data = connection.recv(_SIZE)
            have += data
            if len(have) == _SIZE:
                connection.sendall(have)
                have.clear()
            if not data:
                epoll.unregister(fd)
                connections.pop(fd)[0].close()
                ended += 1
else:
    payload = bytes(_SIZE)
    open_now = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
    for connection in open_now:
        connection.sendall(b"")
        sent = connection.send(payload)
        while sent < _SIZE:
            sent += connection.send(payload[sent:])
        got = 0
        while got < _SIZE:
            got += len(connection.recv(_SIZE))
    print("moved", flush=True)
    wait_on(open_now[0], 0)
    sys.stdin.readline()
    for connection in open_now:
        connection.close()
    print("closed", flush=True)
    sys.stdin.readline()
