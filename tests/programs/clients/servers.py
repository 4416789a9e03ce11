"""KIND PORT [CERTIFICATE KEY]: one of the standard library's ways to write a server, as a process.

Line protocol of all but the HTTP and XML-RPC ones: each line comes back in capital letters; "BYE" ends the
connection.
"""

from __future__ import annotations

import asyncio
import http.server
import os
import selectors
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import xmlrpc.server

_ADDRESS = "127.0.0.1"


class _Lines(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            if line == b"BYE\n":
                break
            self.wfile.write(line.upper())


class _Threading(socketserver.ThreadingTCPServer):
    request_queue_size = 256
    allow_reuse_address = True


class _Forking(socketserver.ForkingTCPServer):
    request_queue_size = 256
    allow_reuse_address = True


class _ForkingMixedIn(socketserver.ForkingMixIn, http.server.HTTPServer):
    request_queue_size = 256


class _ThreadingHttp(http.server.ThreadingHTTPServer):
    request_queue_size = 256  # with the 5 of the library, ten clients at once wait for seconds, plain as well


class _Http(http.server.BaseHTTPRequestHandler):
    """GET /N answers N bytes; POST answers the body. HTTP/1.1: connections are kept."""

    protocol_version = "HTTP/1.1"

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self._answer(b"g" * int(self.path[1:]))

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    def log_message(self, format: str, *args: object) -> None:
        pass


def _selectors(port: int, context: None) -> None:
    """One thread, non-blocking sockets, one selector."""
    selector = selectors.DefaultSelector()
    listener = socket.create_server((_ADDRESS, port), backlog=256)
    listener.setblocking(False)
    selector.register(listener, selectors.EVENT_READ)
    pending: dict[socket.socket, tuple[bytearray, bytearray]] = {}
    while True:
        for key, events in selector.select():
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            if sock is listener:
                client, _ = listener.accept()
                client.setblocking(False)
                pending[client] = (bytearray(), bytearray())
                selector.register(client, selectors.EVENT_READ)
                continue
            unread, unsent = pending[sock]
            done = False
            if events & selectors.EVENT_READ:
                data = sock.recv(65536)
                unread += data
                done = not data
                while (end := unread.find(b"\n")) >= 0:
                    line = bytes(unread[: end + 1])
                    del unread[: end + 1]
                    done = done or line == b"BYE\n"
                    if not done:
                        unsent += line.upper()
            if unsent:
                try:
                    del unsent[: sock.send(unsent)]
                except BlockingIOError:
                    pass
            if done and not unsent:
                selector.unregister(sock)
                del pending[sock]
                sock.close()
            else:
                wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if unsent else 0)
                selector.modify(sock, wanted)


def _blocking(port: int, context: ssl.SSLContext | None) -> None:
    """A thread for each connection, makefile() and sendall(); with TLS when there is a certificate."""
    listener = socket.create_server((_ADDRESS, port), backlog=256)

    def serve(raw: socket.socket) -> None:
        with raw, context.wrap_socket(raw, server_side=True) if context else raw as sock:
            with sock.makefile("rb") as lines:
                for line in lines:
                    if line == b"BYE\n":
                        break
                    sock.sendall(line.upper())
            if isinstance(sock, ssl.SSLSocket):
                sock.unwrap()

    while True:
        client, _ = listener.accept()
        threading.Thread(target=serve, args=(client,), daemon=True).start()


def _inheriting(port: int, context: None) -> None:
    """A fresh program for each connection, which is its standard input and output (as with inetd)."""
    listener = socket.create_server((_ADDRESS, port), backlog=256)
    code = "import os, sys\nfor line in sys.stdin.buffer:\n  if line == b'BYE\\n': break\n"
    code += "  sys.stdout.buffer.write(line.upper()); sys.stdout.buffer.flush()"
    children: list[subprocess.Popen[bytes]] = []
    while True:
        client, _ = listener.accept()
        with client:
            fd = client.fileno()
            children.append(subprocess.Popen([sys.executable, "-c", code], stdin=fd, stdout=fd))
        children = [child for child in children if child.poll() is None]


def _accepting_children(port: int, context: None) -> None:
    """Three processes that all accept from one listener."""
    listener = socket.create_server((_ADDRESS, port), backlog=256)
    parent = os.getpid()
    for _ in range(2):
        if os.fork() == 0:
            threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
            break
    while True:
        client, _ = listener.accept()
        with client, client.makefile("rwb") as stream:
            for line in stream:
                if line == b"BYE\n":
                    break
                stream.write(line.upper())
                stream.flush()


def _end_with(parent: int) -> None:
    import time

    while os.getppid() == parent:
        time.sleep(0.05)
    os._exit(0)


def _asyncio(port: int, context: ssl.SSLContext | None) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (line := await reader.readline()) not in (b"", b"BYE\n"):
            writer.write(line.upper())
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def run() -> None:
        server = await asyncio.start_server(serve, _ADDRESS, port, ssl=context, limit=2**24, backlog=256)
        await server.serve_forever()

    asyncio.run(run())


def _http(port: int, context: ssl.SSLContext | None, forking: bool = False) -> None:
    kind = _ForkingMixedIn if forking else _ThreadingHttp
    server = kind((_ADDRESS, port), _Http)
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()


def _xmlrpc(port: int, context: None) -> None:
    server = xmlrpc.server.SimpleXMLRPCServer((_ADDRESS, port), logRequests=False)
    server.register_function(lambda base, exponent: base**exponent, "pow")
    server.register_function(lambda text: text[::-1], "reverse")
    server.serve_forever()


def main() -> None:
    """Serve until killed."""
    kind, port = sys.argv[1], int(sys.argv[2])
    context = None
    if len(sys.argv) > 3:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(sys.argv[3], sys.argv[4])
    if kind == "threading":
        _Threading((_ADDRESS, port), _Lines).serve_forever()
    elif kind == "forking":
        _Forking((_ADDRESS, port), _Lines).serve_forever()
    elif kind == "http":
        _http(port, context)
    elif kind == "http-forking":
        _http(port, context, forking=True)
    elif kind == "asyncio":
        _asyncio(port, context)
    elif kind == "blocking":
        _blocking(port, context)
    else:
        others = {
            "selectors": _selectors,
            "inheriting": _inheriting,
            "accepting-children": _accepting_children,
            "xmlrpc": _xmlrpc,
        }
        others[kind](port, None)


if __name__ == "__main__":
    main()
