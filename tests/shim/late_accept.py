"""PORT COUNT FILE: listens, accepts COUNT connections once FILE is there, and gives each its lines back."""

from __future__ import annotations

import socket
import sys
import threading
import time
from pathlib import Path


def _serve(connection: socket.socket) -> None:
    with connection, connection.makefile("rwb") as stream:
        for line in stream:
            stream.write(line)
            stream.flush()


listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=64)
while not Path(sys.argv[3]).exists():
    time.sleep(0.01)
threads = [threading.Thread(target=_serve, args=(listener.accept()[0],)) for _ in range(int(sys.argv[2]))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
