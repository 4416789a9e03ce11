"""Listings 4 and 5: a sharded key-value store, and its client, which names no chunnel.

`shard` is this program's own chunnel, the paper's fallback that an application brings for hosts with
nothing better: it runs at the server alone, and says for each request which shard it is for, by an expression
on bytes 10 to 14 of the message.  `frame` stands for the paper's `reliable`, because these connections are
streams.  The DAG is the server's: what the client's connection consists of is dictated by it.

    python sharded_kv.py serve 127.0.0.1 7000
    python sharded_kv.py put 127.0.0.1 7000 some-key value
    python sharded_kv.py get 127.0.0.1 7000 some-key
"""

from __future__ import annotations

import contextlib
import queue
import struct
import sys
import threading
from collections.abc import Iterable
from typing import Any, ClassVar

import bertha_socket as bertha
from bertha_socket.chunnels import Interface, Parameter, Pipe
from bertha_socket.dag import chunnel
from bertha_socket.expressions import parse_expression

#: A request: "get" or "put", the lengths of key and value, and those: the key begins at byte 10.
HEAD = struct.Struct(">3sxHI")


class ShardFallback(Pipe):
    """Requests with the number of the shard that they are for."""

    parameters: ClassVar = (
        Parameter("choices", "list", "the shards' names"),
        Parameter("by", "expression", "which of them, by the message"),
    )
    upper = Interface.OBJECTS
    lower = Interface.MESSAGES

    def start(self) -> Iterable[Any]:
        self.by = parse_expression(str(self.args["by"]))
        return ()

    def up(self, item: Any) -> tuple[Iterable[Any], Iterable[Any]]:
        number = self.by.evaluate(bytes(item)) % len(self.args["choices"])
        return [(self.args["choices"][number], bytes(item))], ()


bertha.register_chunnel("shard", ShardFallback, endpoints="server", scope="application")
shard, frame = chunnel("shard"), chunnel("frame")


class Shard:
    """A part of the keys, with a thread of its own."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.requests: queue.SimpleQueue[tuple[bytes, queue.SimpleQueue[bytes]]] = queue.SimpleQueue()
        threading.Thread(target=self.run, daemon=True).start()

    def run(self) -> None:
        while True:
            request, answer = self.requests.get()
            verb, size, _ = HEAD.unpack_from(request)
            key, value = request[HEAD.size :][:size], request[HEAD.size + size :]
            if verb == b"put":
                self.values[key] = value
            answer.put(self.values.get(key, b""))


def serve(address: tuple[str, int]) -> None:
    shards = {"s1": Shard(), "s2": Shard(), "s3": Shard()}
    dag = bertha.wrap(shard(choices=list(shards), by=parse_expression("hash(payload[10:14])")) | frame())
    for connection in bertha.new("my-kv-srv", dag).listen(address):
        threading.Thread(target=serve_one, args=(connection, shards), daemon=True).start()


def serve_one(connection: Any, shards: dict[str, Shard]) -> None:
    answer: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    with connection, contextlib.suppress(OSError):  # a client that is gone, or talks nonsense
        for name, request in connection:
            shards[name].requests.put((request, answer))
            connection.send(name.encode() + b": " + answer.get())


def ask(address: tuple[str, int], verb: str, key: bytes, value: bytes = b"") -> str:
    with bertha.new("client_conn", bertha.wrap()).connect(address) as connection:
        connection.send(HEAD.pack(verb.encode(), len(key), len(value)) + key + value)
        answer: bytes = connection.recv(10)
        return answer.decode()


if __name__ == "__main__":
    where = (sys.argv[2], int(sys.argv[3]))
    if sys.argv[1] == "serve":
        serve(where)
    else:
        print(ask(where, sys.argv[1], *(word.encode() for word in sys.argv[4:])))
