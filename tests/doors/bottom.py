"""An endpoint whose DAG is an argument: `serve DAG HOST PORT`, or `ask DAG HOST PORT TEXT`."""

from __future__ import annotations

import sys

import bertha_socket

what, dag, host, port = sys.argv[1:5]
if what == "serve":
    with bertha_socket.new("server", dag).listen((host, int(port))) as listener:
        for connection in listener:
            with connection:
                for item in connection:
                    connection.send(item)
else:
    with bertha_socket.new("client", dag).connect((host, int(port))) as connection:
        connection.send(sys.argv[5].encode())
        print(connection.recv(10).decode())
