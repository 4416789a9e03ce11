"""Listing 3: a service with one address in front of two groups of members.

The members are plain ones here (there is no ordered multicast yet): of each group the first that answers is
used.  Which group a request goes to is decided in the service, by the application's own fallback for `shard`.

    python request_routing.py member 127.0.0.1 7001 one
    python request_routing.py member 127.0.0.1 7002 two
    python request_routing.py route 127.0.0.1 7000 127.0.0.1:7001 127.0.0.1:7002
    python request_routing.py ask 127.0.0.1 7000 some-key
"""

from __future__ import annotations

import contextlib
import sys
import zlib

import bertha_socket as bertha
from bertha_socket.dag import chunnel

Address = tuple[str, int]
frame = chunnel("frame")


def member(address: Address, name: str) -> None:
    for connection in bertha.new(name, bertha.wrap(frame())).listen(address):
        with connection, contextlib.suppress(OSError):  # a client that goes without a word
            for message in connection:
                connection.send(name.encode() + b": " + message)


def shard_fn(message: bytes, choices: int) -> int:
    return zlib.crc32(message) % choices


def route(address: Address, groups: list[list[Address]]) -> None:
    rsms = [bertha.new(f"rsm{i + 1}").connect(nodes) for i, nodes in enumerate(groups)]
    srv = bertha.new("service", bertha.wrap(frame())).listen(address)
    for connection in srv:
        with connection, contextlib.suppress(OSError):
            for message in connection:
                chosen = rsms[shard_fn(message, len(rsms))]
                chosen.send(message)
                connection.send(chosen.recv(10))


def ask(address: Address, message: str) -> None:
    with bertha.new("client").connect(address) as connection:
        connection.send(message.encode())
        print(connection.recv(10).decode())


def address_of(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return host, int(port)


if __name__ == "__main__":
    verb, where = sys.argv[1], (sys.argv[2], int(sys.argv[3]))
    if verb == "member":
        member(where, sys.argv[4])
    elif verb == "route":
        route(where, [[address_of(one) for one in group.split(",")] for group in sys.argv[4:]])
    else:
        ask(where, sys.argv[4])
