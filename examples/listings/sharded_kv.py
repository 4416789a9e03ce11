"""Listing 4: a sharded key-value store; its client is Listing 5 (sharded_kv_client.py).

The shards are endpoints of their own, here threads of one program.  `shard` runs in the server, which is the
paper's fallback where nobody has anything better: which shard a request goes to is an expression on bytes 10
to 14 of the message.  `reliable` is over UDP, and the client learns of it from the server.

    python sharded_kv.py 127.0.0.1 7000
"""

from __future__ import annotations

import contextlib
import struct
import sys
import threading

import bertha_socket as bertha
from bertha_socket.chunnels.shard import shard
from bertha_socket.dag import chunnel

#: A request: "get" or "put", the lengths of key and value, and those: the key begins at byte 10.
HEAD = struct.Struct(">3sxHI")
reliable = chunnel("reliable")


class Shard:
    """A part of the keys, at an address of its own."""

    def __init__(self, name: str, host: str) -> None:
        self.name = name
        self.values: dict[bytes, bytes] = {}
        self.listener = bertha.new(name, bertha.wrap(reliable())).listen((host, 0))
        threading.Thread(target=self.run, daemon=True).start()

    def run(self) -> None:
        for connection in self.listener:
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection) -> None:
        with connection, contextlib.suppress(OSError, struct.error):  # who is gone, or talks nonsense
            for request in connection:
                verb, size, _ = HEAD.unpack_from(request)
                key, value = request[HEAD.size :][:size], request[HEAD.size + size :]
                if verb == b"put":
                    self.values[key] = value
                connection.send(self.name.encode() + b": " + self.values.get(key, b""))


def main(addr: str, port: int) -> None:
    s1, s2, s3 = (Shard(name, addr) for name in ("s1", "s2", "s3"))
    shards = [s1.listener.address, s2.listener.address, s3.listener.address]
    shard_fn = "hash(payload[10:14]) % 3"
    srv = bertha.new("my-kv-srv", bertha.wrap(shard(choices=shards, by=shard_fn) | reliable())).listen(
        (addr, port)
    )
    print("listening", flush=True)
    srv.serve()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
