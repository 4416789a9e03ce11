"""PORT WAY: a connect() that has to wait, because the queue of the server, in the same process, is full.

`fails`: it is given up, and so is its port, while its socket stays; then a program without the shim connects
from that port.  `late`: the server accepts, the kernel tries again, and the connection talks.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys

_ROUNDS = 5
_TRIES = 20
_STRANGER = """
import socket, sys
with socket.socket() as s:
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("127.0.0.1", int(sys.argv[2])))
    s.settimeout(5)
    s.connect(("127.0.0.1", int(sys.argv[1])))
    for _ in range(5):
        s.sendall(b"word")
        assert s.recv(4, socket.MSG_WAITALL) == b"word"
"""


def _begin(client: socket.socket, at: tuple[str, int]) -> None:
    client.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        client.connect(at)
    assert not select.select([], [client], [], 0.2)[1], "there was room in the queue"


def _echo(server: socket.socket) -> None:
    server.sendall(server.recv(4, socket.MSG_WAITALL))


def _talk(client: socket.socket, listening: socket.socket) -> None:
    assert select.select([], [client], [], 20)[1]
    client.setblocking(True)
    client.sendall(b"word")
    with listening.accept()[0] as server:
        for turn in range(_ROUNDS):
            _echo(server)
            assert client.recv(4, socket.MSG_WAITALL) == b"word"
            if turn + 1 < _ROUNDS:
                client.sendall(b"word")
        client.close()
        assert server.recv(1) == b""


def _stranger(listening: socket.socket, port: int, from_port: int) -> None:
    bare = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    words = [sys.executable, "-c", _STRANGER, str(port), str(from_port)]
    with subprocess.Popen(words, env=bare) as stranger:
        with listening.accept()[0] as server:
            for _ in range(_ROUNDS):
                _echo(server)
            assert server.recv(1) == b""
        assert stranger.wait() == 0


def _given_up(at: tuple[str, int], stays: contextlib.ExitStack) -> int:
    """The port of a client that has given up.

    The kernel gives one to several clients, of different servers: others may have it, in the stranger's way.
    """
    for _ in range(_TRIES):
        client = stays.enter_context(socket.socket())
        _begin(client, at)
        port: int = client.getsockname()[1]
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("others have each port")


def main() -> None:
    port, way = int(sys.argv[1]), sys.argv[2]
    at = ("127.0.0.1", port)
    with socket.socket() as listening, socket.socket() as first, socket.socket() as client:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(at)
        listening.listen(0)
        listening.settimeout(20)
        first.connect(at)  # is all that the queue holds
        if way == "fails":
            with contextlib.ExitStack() as given_up:
                from_port = _given_up(at, given_up)
                listening.accept()[0].close()
                _stranger(listening, port, from_port)
        else:
            _begin(client, at)
            listening.accept()[0].close()
            _talk(client, listening)
    print("well")


if __name__ == "__main__":
    main()
