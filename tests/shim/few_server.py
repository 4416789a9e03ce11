"""An echo server with few descriptors: while there is none left, the listener waits."""

from __future__ import annotations

import errno
import resource
import select
import socket
import sys

port, limit, total = (int(word) for word in sys.argv[1:4])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
epoll = select.epoll()
listener = socket.create_server(("127.0.0.1", port), backlog=200)
listener.setblocking(False)
epoll.register(listener, select.EPOLLIN)
connections: dict[int, socket.socket] = {}
most = served = 0
while served < total:
    for fd, _ in epoll.poll():
        if fd != listener.fileno():
            data = connections[fd].recv(100)
            if data:
                connections[fd].sendall(data)
                continue
            epoll.unregister(fd)
            connections.pop(fd).close()
            served += 1
            epoll.modify(listener, select.EPOLLIN)
            continue
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            continue
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            most = max(most, len(connections))
            epoll.modify(listener, 0)
            continue
        connections[connection.fileno()] = connection
        epoll.register(connection, select.EPOLLIN)
print("most", most)
