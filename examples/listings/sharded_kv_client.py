"""Listing 5: the client of the sharded key-value store (Listing 4, sharded_kv.py).

Its endpoint names no chunnel: what the connection consists of is dictated by the server.  It registers a
`reliable` of its own, which is then what runs at its end, because a client's implementations come first.

    python sharded_kv_client.py 127.0.0.1 7000 put some-key value
    python sharded_kv_client.py 127.0.0.1 7000 get some-key
"""

from __future__ import annotations

import struct
import sys

import bertha_socket as bertha
from bertha_socket.chunnels.reliable import ReliablePipe

#: A request, as the server knows it.
HEAD = struct.Struct(">3sxHI")


class ReliableChunnel(ReliablePipe):
    """The fallback that this program brings along; here it is the package's, by another name."""


# Run during client initialization, registers a Chunnel.
bertha.register_chunnel(
    "reliable", ReliableChunnel, endpoints="both", scope="application", implementation="clients-own"
)


def connect(addr: str, port: int):
    return bertha.new("client_conn", bertha.wrap()).connect((addr, port))


def request(op: str, key: bytes, value: bytes = b"") -> bytes:
    return HEAD.pack(op.encode(), len(key), len(value)) + key + value


def get_key(addr: str, port: int, key: bytes) -> bytes:
    """Gets a key from the key-value store."""
    with connect(addr, port) as c:
        c.send(request("get", key))
        return c.recv(10)


def put_key(addr: str, port: int, key: bytes, value: bytes) -> bytes:
    with connect(addr, port) as c:
        c.send(request("put", key, value))
        return c.recv(10)


if __name__ == "__main__":
    where = sys.argv[1], int(sys.argv[2])
    words = [word.encode() for word in sys.argv[4:]]
    answer = put_key(*where, *words) if sys.argv[3] == "put" else get_key(*where, *words)
    print(answer.decode())
