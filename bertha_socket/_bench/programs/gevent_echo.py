"""An ordinary gevent program: ``gevent_echo.py ADDRESS PORT`` sends back what it gets."""

from __future__ import annotations

import sys
from typing import Any

from gevent.server import StreamServer


def _echo(sock: Any, _address: Any) -> None:
    try:
        while data := sock.recv(65536):
            sock.sendall(data)
    except OSError:
        pass


if __name__ == "__main__":
    server = StreamServer((sys.argv[1], int(sys.argv[2])), _echo, backlog=1024)
    server.start()
    print("ready", flush=True)
    server.serve_forever()
