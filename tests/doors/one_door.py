"""DOOR ROLE PORT: serves, or asks once, on loopback, by sockets that come into being behind that door.

A server answers all that it reads with PONG; a client prints what it gets, and who is refused why.
"""

from __future__ import annotations

import sys
from typing import Any

door, role, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
if door == "monkey":
    from bertha_socket import monkey

    monkey.patch_all(agent=False)
elif door == "monkey-agent":
    from bertha_socket import monkey

    monkey.patch_all()
if door == "drop-in":
    import bertha_socket as socket
else:
    import socket  # type: ignore[no-redef]
address = ("127.0.0.1", port)
_IPPROTO_MPTCP = 262


def answer(connection: Any) -> None:
    with connection:
        while connection.recv(100):
            connection.sendall(b"PONG")


def serve() -> None:
    multipath = role == "multipath-server"
    with socket.socket(proto=_IPPROTO_MPTCP) if multipath else socket.create_server(address) as server:
        if multipath:
            server.bind(address)
            server.listen()
        print("ready", flush=True)
        while True:
            connection, _ = server.accept()
            try:
                answer(connection)
            except OSError as error:
                print("refused:", error.strerror, flush=True)


def ask() -> None:
    with socket.create_connection(address, timeout=20) as client:
        client.sendall(b"PING")
        print(client.recv(100).decode())


def serve_datagrams() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as server:
        server.bind(address)
        print("ready", flush=True)
        while True:
            _, client = server.recvfrom(100)
            server.sendto(b"PONG", client)


def ask_datagrams() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(20)
        client.sendto(b"PING", address)
        print(client.recv(100).decode())


def serve_endpoint() -> None:
    import bertha_socket

    with bertha_socket.new("one-door").listen(address) as server:
        print("ready", flush=True)
        while True:
            try:
                answer_endpoint(server.accept())
            except OSError as error:
                print("refused:", error.strerror, flush=True)


def answer_endpoint(connection: Any) -> None:
    with connection:
        for _ in connection:
            connection.send(b"PONG")


def ask_endpoint() -> None:
    import bertha_socket

    with bertha_socket.new("one-door").connect(address) as client:
        client.send(b"PING")
        print(client.recv(timeout=20).decode())


roles = {
    "server": serve,
    "multipath-server": serve,
    "client": ask,
    "udp-server": serve_datagrams,
    "udp-client": ask_datagrams,
}
if door == "new":
    roles = {"server": serve_endpoint, "client": ask_endpoint}


try:
    roles[role]()
except OSError as error:
    print(f"{type(error).__name__}: {error.strerror or error}", flush=True)
