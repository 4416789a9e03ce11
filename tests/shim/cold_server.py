"""An echo server by one epoll set; a connection that began with "stay" is always ready and never read.

Arguments: a port, how many events it takes at a time, how many others come and go before it ends.
"""

from __future__ import annotations

import select
import socket
import sys

port, most, others = (int(word) for word in sys.argv[1:4])
epoll = select.epoll()
listener = socket.create_server(("127.0.0.1", port), backlog=50)
epoll.register(listener, select.EPOLLIN)
connections: dict[int, socket.socket] = {}
staying: set[int] = set()
gone = 0
while gone < others:
    for fd, _ in epoll.poll(maxevents=most):
        if fd == listener.fileno():
            connection, _ = listener.accept()
            connection.setblocking(False)  # what is told of twice fails
            connections[connection.fileno()] = connection
            epoll.register(connection, select.EPOLLIN)
        elif fd not in staying:
            data = connections[fd].recv(100, socket.MSG_PEEK)
            if data == b"stay":
                staying.add(fd)
                connections[fd].sendall(data)
                continue
            connections[fd].recv(100)
            if data:
                connections[fd].sendall(data)
                continue
            connections.pop(fd).close()
            gone += 1
