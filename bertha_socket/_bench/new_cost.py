"""Both ends of a connection of `bertha_socket.new`, one thread: ``new_cost.py ADDRESS PORT BATCHES COUNT``.

A message is sent at one end and received at the other, so nothing is ever waited for: what is left is what
the two calls cost.  Each of three ways does it with the same descriptors and the same 64 B, a batch of each
in turn.
Prints a JSON object: way -> {"send": [...], "pair": [...]}, nanoseconds a message, one number a batch.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Callable

import bertha_socket
from bertha_socket._native import ffi, lib

SIZE = 64
#: Sends before what they sent is taken away, uncounted: 32 KiB, which any ring holds.
_AHEAD = 512
Step = Callable[[int], None]


def _ends(address: str, port: int) -> tuple[bertha_socket.Connection, bertha_socket.Connection]:
    """Connected and used once each way."""
    accepted: list[bertha_socket.Connection] = []
    with bertha_socket.new("server").listen((address, port)) as listener:
        thread = threading.Thread(target=lambda: accepted.append(listener.accept()))
        thread.start()
        client = bertha_socket.new("client").connect(listener.address)
        client.send(b"x")
        thread.join(20)
    server = accepted[0]
    server.recv(10)
    server.send(b"x")
    client.recv(10)
    return client, server


def _ways(
    client: bertha_socket.Connection, server: bertha_socket.Connection, sockets: list[socket.socket]
) -> dict[str, tuple[Step, Step]]:
    """Way: so many sends, so many sends each with its receive."""
    message, room = b"x" * SIZE, ffi.new("char[65536]")
    own = ffi.new("char[]", message)
    near, far = client.fileno(), server.fileno()

    def new_send(count: int) -> None:
        for _ in range(count):
            client.send(message)

    def new_pair(count: int) -> None:
        for _ in range(count):
            client.send(message)
            server.recv()

    def bare_send(count: int) -> None:
        for _ in range(count):
            lib.send(near, own, SIZE, 0)

    def bare_pair(count: int) -> None:
        for _ in range(count):
            lib.send(near, own, SIZE, 0)
            lib.recv(far, room, 65536, 0)

    def socket_send(count: int) -> None:
        for _ in range(count):
            sockets[0].sendall(message)

    def socket_pair(count: int) -> None:
        for _ in range(count):
            sockets[0].sendall(message)
            sockets[1].recv(65536)

    return {
        "new": (new_send, new_pair),
        "bare-cffi": (bare_send, bare_pair),
        "socket": (socket_send, socket_pair),
    }


def _drain(server: bertha_socket.Connection, size: int) -> None:
    while size > 0:
        size -= len(server.recv(10))


def main(address: str, port: int, batches: int, count: int) -> dict[str, dict[str, list[float]]]:
    """All batches of all ways."""
    client, server = _ends(address, port)
    sockets = [socket.socket(fileno=end.fileno()) for end in (client, server)]
    ways = _ways(client, server, sockets)
    found: dict[str, dict[str, list[float]]] = {name: {"send": [], "pair": []} for name in ways}
    for _, pair in ways.values():
        pair(1000)
    for _ in range(batches):
        for name, (send, pair) in ways.items():
            spent = 0
            for _ in range(max(1, count // _AHEAD)):
                begin = time.perf_counter_ns()
                send(_AHEAD)
                spent += time.perf_counter_ns() - begin
                _drain(server, _AHEAD * SIZE)
            found[name]["send"].append(spent / (max(1, count // _AHEAD) * _AHEAD))
            begin = time.perf_counter_ns()
            pair(count)
            found[name]["pair"].append((time.perf_counter_ns() - begin) / count)
    for end in sockets:  # the descriptors are not theirs
        end.detach()
    client.close()
    server.close()
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
