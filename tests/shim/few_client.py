"""Opens more connections than it has descriptors for: when none is left, the oldest one is ended."""

from __future__ import annotations

import errno
import resource
import socket
import sys
import time

port, count, limit = (int(word) for word in sys.argv[1:4])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
connections: list[tuple[socket.socket, bytes]] = []
most = 0


def end_oldest() -> None:
    connection, text = connections.pop(0)
    got = connection.recv(100)
    assert got == text, (got, text)
    connection.close()


for number in range(count):
    while True:
        try:
            connection = socket.create_connection(("127.0.0.1", port))
            break
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            most = max(most, len(connections))
            end_oldest()
    connection.sendall(b"%d" % number)
    connections.append((connection, b"%d" % number))
if count < limit:  # the server is to find out that it has too few
    time.sleep(1)
while connections:
    end_oldest()
print("most", most)
