"""Listings 4 and 5: a sharded key-value store, and its client, which names no chunnel.

`shard` proper is not there yet: the server's fallback is this program's own, by an expression on the message
(bytes 10 to 14, as in the paper), over connections instead of datagrams.  The DAG is the server's alone:
what the client's connection consists of is dictated by it.

    python sharded_kv.py serve 127.0.0.1 7000
    python sharded_kv.py put 127.0.0.1 7000 a-key-that-is-long-enough value
    python sharded_kv.py get 127.0.0.1 7000 a-key-that-is-long-enough
"""

from __future__ import annotations

import sys
import zlib
from typing import Any

import bertha_socket as bertha
from bertha_socket.dag import chunnel

serialize, compress = chunnel("serialize"), chunnel("compress")


def shard_fn(key: str, shards: int) -> int:
    return zlib.crc32(key.encode()[10:14]) % shards


def serve(address: tuple[str, int]) -> None:
    shards: list[dict[str, Any]] = [{}, {}, {}]
    srv = bertha.new("my-kv-srv", bertha.wrap(serialize() | compress())).listen(address)
    for connection in srv:
        with connection:
            for request in connection:
                shard = shards[shard_fn(request["key"], len(shards))]
                if request["op"] == "put":
                    shard[request["key"]] = request["value"]
                connection.send({"value": shard.get(request["key"])})


def ask(address: tuple[str, int], request: dict[str, Any]) -> Any:
    with bertha.new("client_conn").connect(address) as connection:
        connection.send(request)
        return connection.recv(10)["value"]


if __name__ == "__main__":
    where = (sys.argv[2], int(sys.argv[3]))
    if sys.argv[1] == "serve":
        serve(where)
    elif sys.argv[1] == "put":
        ask(where, {"op": "put", "key": sys.argv[4], "value": sys.argv[5]})
    else:
        print(ask(where, {"op": "get", "key": sys.argv[4]}))
