"""Listing 1: a server whose clients on the same host get faster means than TCP, without asking for them.

python local_or_remote.py serve 127.0.0.1 7000
python local_or_remote.py ask 127.0.0.1 7000 hello
"""

from __future__ import annotations

import contextlib
import sys

import bertha_socket as bertha
from bertha_socket.dag import chunnel

local_or_remote = chunnel("local_or_remote")


def serve(address: tuple[str, int]) -> None:
    srv = bertha.new("container-app", bertha.wrap(local_or_remote())).listen(address)
    for connection in srv:
        with (
            connection,
            contextlib.suppress(OSError),
        ):  # a client that goes without a word is no reason to end
            for data in connection:
                connection.send(data)


def ask(address: tuple[str, int], text: str) -> None:
    with bertha.new("client", bertha.wrap(local_or_remote())).connect(address) as connection:
        connection.send(text.encode())
        print(connection.recv(10).decode())


if __name__ == "__main__":
    where = (sys.argv[2], int(sys.argv[3]))
    if sys.argv[1] == "serve":
        serve(where)
    else:
        ask(where, sys.argv[4])
