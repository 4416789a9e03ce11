"""Listing 3: a service with one address in front of two groups of members.

The members are plain ones here (there is no ordered multicast yet): of each group the first that answers is
used.  `shard` runs in the service: its function picks the connection by which a request goes on.

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
from bertha_socket.chunnels.shard import shard
from bertha_socket.dag import chunnel

Address = tuple[str, int]
reliable = chunnel("reliable")


def member(address: Address, name: str) -> None:
    listener = bertha.new(name, bertha.wrap(reliable())).listen(address)
    print("listening", flush=True)
    for connection in listener:
        with connection, contextlib.suppress(OSError):  # a client that goes without a word
            for message in connection:
                connection.send(name.encode() + b": " + message)


def shard_fn(message: bytes) -> int:
    return zlib.crc32(message) % 2


def route(address: Address, nodes1: list[Address], nodes2: list[Address]) -> None:
    rsm1 = bertha.new("rsm1", bertha.wrap(reliable())).connect(nodes1)
    rsm2 = bertha.new("rsm2", bertha.wrap(reliable())).connect(nodes2)
    srv = bertha.new("service", bertha.wrap(shard([rsm1, rsm2], shard_fn) | reliable())).listen(address)
    print("listening", flush=True)
    srv.serve()


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
        route(where, *([address_of(one) for one in group.split(",")] for group in sys.argv[4:6]))
    else:
        ask(where, sys.argv[4])
