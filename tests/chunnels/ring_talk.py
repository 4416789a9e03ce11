"""An ordinary pair of programs for test_rings.py: `ring_talk.py ROLE CASE PORT`."""

from __future__ import annotations

import os
import select
import socket
import struct
import sys
import threading
import time

_BULK = 3_000_000
PINGS = 200


def _pattern(size: int) -> bytes:
    return bytes(i * 7 % 251 for i in range(4096)) * (size // 4096 + 1)


def _read_all(end: socket.socket) -> bytes:
    parts = []
    while data := end.recv(1 << 16):
        parts.append(data)
    return b"".join(parts)


def _linger(end: socket.socket) -> tuple[int, ...]:
    return struct.unpack("ii", end.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))


def _duplex(end: socket.socket) -> None:
    """Both send much at once, and end their halves."""
    data = _pattern(_BULK)[:_BULK]

    def send() -> None:
        end.sendall(data)
        end.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    assert _read_all(end) == data
    sender.join()


def serve(case: str, port: int) -> None:
    """Accepts one connection; its plan is looked up while we still listen."""
    listening = socket.create_server(("127.0.0.1", port))
    end, _ = listening.accept()
    with listening, end:
        if case == "duplex":
            _duplex(end)
        elif case == "half":  # the client has ended, and reads slowly
            assert _read_all(end) == b"question"
            end.sendall(_pattern(_BULK)[:_BULK])
        elif case == "late":  # both have ended, and it reads on
            assert end.recv(1) == b"q"
            both = select.poll()
            both.register(end, select.POLLRDHUP)
            both.poll()
            end.sendall(_pattern(_BULK)[:_BULK])
            end.shutdown(socket.SHUT_WR)
            while not os.path.exists("has all"):
                time.sleep(0.01)
            assert _read_all(end) == b"q" * 999
        elif case == "unread":  # closed with bytes unread: a reset
            assert end.recv(1) == b"a"
        elif case == "reset":
            end.sendall(b"+")
            try:
                end.recv(1)
                raise AssertionError("no reset")
            except ConnectionResetError:
                print("reset")
        elif case == "exec":
            end.sendall(b"*")
            os.dup2(end.fileno(), 0)
            os.dup2(end.fileno(), 1)
            os.execv("/bin/cat", ["cat"])
        elif case == "passed":
            assert end.recv(2) == b"ab"
            ours, theirs = socket.socketpair()
            with ours, theirs:
                socket.send_fds(ours, [b"x"], [end.fileno()])
                _, fds, _, _ = socket.recv_fds(theirs, 1, 1)
            end.close()
            with socket.socket(fileno=fds[0]) as again:
                again.sendall(b"got " + again.recv(2))
        elif case == "killed":
            end.sendall(b"+")
            try:
                print("end", end.recv(1))
            except ConnectionResetError:
                print("reset")
        elif case == "pings":
            while data := end.recv(64, socket.MSG_WAITALL):
                end.sendall(data)
        elif case == "blocks":
            print("has", end.recv(9, socket.MSG_WAITALL), flush=True)
            end.sendall(b"+")
            try:
                end.recv(1)
            except ConnectionResetError:
                print("reset")


def connect(case: str, port: int) -> None:
    """Connects once."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as end:
        if case == "duplex":
            _duplex(end)
        elif case == "half":
            end.sendall(b"question")
            end.shutdown(socket.SHUT_WR)
            assert _read_all(end) == _pattern(_BULK)[:_BULK]
        elif case == "late":
            end.sendall(b"q" * 1000)
            end.shutdown(socket.SHUT_WR)
            assert _read_all(end) == _pattern(_BULK)[:_BULK]
            open("has all", "x").close()
        elif case == "unread":
            end.sendall(b"abc")
            try:
                end.recv(1)
                raise AssertionError("no reset")
            except ConnectionResetError:
                print("reset")
        elif case == "reset":
            assert end.recv(1) == b"+"
            assert _linger(end) == (0, 0)  # which it has beneath is not the program's
            for setting in ((1, 30), (1, 0)):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", *setting))
                assert _linger(end) == setting
        elif case == "exec":
            data = _pattern(400_000)[:400_000]
            assert end.recv(1) == b"*"

            def send() -> None:
                end.sendall(data)
                end.shutdown(socket.SHUT_WR)

            sender = threading.Thread(target=send)
            sender.start()
            assert _read_all(end) == data
            sender.join()
        elif case == "passed":
            end.sendall(b"ab")
            end.sendall(b"cd")
            assert _read_all(end) == b"got cd"
        elif case == "pings":
            for turn in range(PINGS + 1):
                end.sendall(b"p" * 64)
                assert end.recv(64, socket.MSG_WAITALL) == b"p" * 64
                if turn == 0:
                    print("ready", flush=True)
                    input()
        elif case == "blocks":
            end.sendall(b"before it")
            assert end.recv(1) == b"+"
            end.sendall(b"for ever")
            try:
                end.recv(1)
                raise AssertionError("no reset")
            except ConnectionResetError:
                print("reset")
        elif case == "killed":
            assert end.recv(1) == b"+"
            print("ready", flush=True)
            try:
                print("end", end.recv(1))
            except ConnectionResetError:
                print("reset")


if __name__ == "__main__":
    {"serve": serve, "connect": connect}[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
