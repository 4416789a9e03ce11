"""A pair of programs for test_in_program.py: `borrow_talk.py listen|connect echo|CASE PORT`.

One end echoes, by an epoll set; the other one speaks by an epoll set for a while, so that both do their
records themselves, and then does something else with the connection.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable

_WARM = 40
_BULK = 2_000_000


def _pattern(size: int, salt: int = 0) -> bytes:
    return (bytes((i * 7 + salt) % 251 for i in range(4096)) * (size // 4096 + 1))[:size]


def echo(end: socket.socket) -> None:
    """Until the other end ends."""
    end.setblocking(False)
    waiting = bytearray()
    ended = False
    with select.epoll() as looks:
        looks.register(end, select.EPOLLIN)
        while waiting or not ended:
            wanted = (0 if ended else select.EPOLLIN) | (select.EPOLLOUT if waiting else 0)
            looks.modify(end, wanted)
            for _, event in looks.poll(60):
                if event & select.EPOLLIN:
                    data = end.recv(1 << 16)
                    ended = not data
                    waiting += data
                if waiting:
                    try:
                        del waiting[: end.send(waiting)]
                    except BlockingIOError:
                        pass


class Speaker:
    """One end, with an epoll set of its own."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        self.looks = select.epoll()
        end.setblocking(False)
        self.looks.register(end, select.EPOLLIN)
        self.turn = 0

    def read(self, size: int) -> bytes:
        """By the set: exactly that much."""
        data = bytearray()
        while len(data) < size:
            assert self.looks.poll(60), "nothing came within a minute"
            try:
                part = self.end.recv(size - len(data))
            except BlockingIOError:
                continue
            assert part, "the end"
            data += part
        return bytes(data)

    def send(self, data: bytes) -> None:
        """All of it, and what comes back meanwhile has to wait in the network."""
        self.end.setblocking(True)
        self.end.sendall(data)
        self.end.setblocking(False)

    def ask(self, size: int = 100) -> None:
        """One question, and its answer."""
        self.turn += 1
        data = _pattern(size, self.turn)
        sender = threading.Thread(target=self.send, args=(data,))
        if size > 10_000:
            sender.start()
        else:
            self.end.send(data)
        assert self.read(size) == data
        if size > 10_000:
            sender.join()

    def warm(self, rounds: int = _WARM) -> None:
        """Until both ends do it themselves."""
        for _ in range(rounds):
            self.ask()


def bulk(s: Speaker) -> None:
    """More than fits anywhere, and small ones again."""
    data = _pattern(_BULK)
    sent = 0
    got = bytearray()
    s.looks.modify(s.end, select.EPOLLIN | select.EPOLLOUT)
    while len(got) < len(data):
        if sent == len(data):
            s.looks.modify(s.end, select.EPOLLIN)
        for _, event in s.looks.poll(60):
            if event & select.EPOLLIN:
                got += s.end.recv(100_000)
            if event & select.EPOLLOUT and sent < len(data):
                sent += s.end.send(data[sent : sent + 200_000])
    assert got == data
    s.warm(200)


def blocking(s: Speaker) -> None:
    """A call that waits."""
    for _ in range(5):
        s.end.setblocking(True)
        s.end.sendall(b"blocking")
        assert s.end.recv(8, socket.MSG_WAITALL) == b"blocking"
        s.end.setblocking(False)
        s.warm(10)


def polled(s: Speaker) -> None:
    """By poll and select."""
    p = select.poll()
    p.register(s.end, select.POLLIN)
    for _ in range(5):
        s.end.send(b"polled")
        assert p.poll(60_000)
        assert s.end.recv(100) == b"polled"
        s.end.send(b"selected")
        assert select.select([s.end], [], [], 60)[0]
        assert s.end.recv(100) == b"selected"
        s.warm(10)


def two_threads(s: Speaker) -> None:
    """One waits for it in a call, while the other one sends; and the other way around."""
    s.end.setblocking(True)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(s.end.recv(9, socket.MSG_WAITALL)))
    reader.start()
    s.end.sendall(b"from main")
    reader.join(60)
    assert got == [b"from main"]
    s.end.setblocking(False)
    sender = threading.Thread(target=s.end.send, args=(b"from another",))
    sender.start()
    assert s.read(12) == b"from another"
    sender.join()
    s.warm(10)


def two_sets(s: Speaker) -> None:
    """In another set as well: both are told."""
    with select.epoll() as other:
        other.register(s.end, select.EPOLLIN)
        s.end.send(b"both")
        assert other.poll(60) and s.looks.poll(60)
        assert s.read(4) == b"both"
        s.warm(10)
    s.warm(10)


def within_a_set(s: Speaker) -> None:
    """The set itself is looked at from outside."""
    with select.epoll() as outer:
        outer.register(s.looks, select.EPOLLIN)
        for _ in range(5):
            s.end.send(b"nested")
            assert outer.poll(60)
            assert s.read(6) == b"nested"
            assert outer.poll(0) == []
    s.warm(10)


def set_polled(s: Speaker) -> None:
    """By poll."""
    s.warm(20)
    p = select.poll()
    p.register(s.looks, select.POLLIN)
    for _ in range(5):
        s.end.send(b"a set")
        assert p.poll(60_000)
        assert s.read(5) == b"a set"
        assert s.looks.poll(0) == []
        assert p.poll(0) == []


def out_and_in(s: Speaker) -> None:
    """Not in the set while the answer comes."""
    for turn in range(20):
        s.looks.unregister(s.end)
        s.end.send(b"out")
        if turn % 2:
            s.end.setblocking(True)
            assert s.end.recv(1) == b"o"
            s.end.setblocking(False)
        s.looks.register(s.end, select.EPOLLIN)
        assert s.read(3 - turn % 2) == b"out"[turn % 2 :]
    s.looks.close()
    s.looks = select.epoll()
    s.looks.register(s.end, select.EPOLLIN)
    s.warm()


def edges(s: Speaker) -> None:
    """EPOLLET, read to the end each time, and one shot at a time."""
    s.looks.modify(s.end, select.EPOLLIN | select.EPOLLET)
    for _ in range(20):
        s.end.send(b"edges" * 10)
        left = 50
        while left > 0:
            assert s.looks.poll(60)
            try:
                while left > 0:
                    left -= len(s.end.recv(7))
            except BlockingIOError:
                pass
    assert s.looks.poll(0.01) == []
    for _ in range(20):
        s.looks.modify(s.end, select.EPOLLIN | select.EPOLLONESHOT)
        s.end.send(b"shot")
        assert s.looks.poll(60)
        assert s.end.recv(10) == b"shot"
    s.looks.modify(s.end, select.EPOLLIN)
    s.warm()


def looked_at(s: Speaker) -> None:
    """MSG_PEEK, FIONREAD, what is left unread, many small reads."""
    s.end.send(b"0123456789")
    assert s.looks.poll(60)
    size = array.array("i", [0])
    while size[0] < 10:
        fcntl.ioctl(s.end, termios.FIONREAD, size)
    assert s.end.recv(4, socket.MSG_PEEK) == b"0123"
    for byte in b"0123456789":
        assert s.looks.poll(60)
        assert s.end.recv(1) == bytes([byte])
    assert s.looks.poll(0.01) == []
    s.warm(10)


def slow(s: Speaker) -> None:
    """What is not read waits, and is all there."""
    data = _pattern(400_000)
    sender = threading.Thread(target=s.send, args=(data,))
    sender.start()
    got = b""
    while len(got) < len(data):
        assert s.looks.poll(60)
        try:
            got += s.end.recv(333)
        except BlockingIOError:
            continue
    assert got == data
    sender.join()
    s.warm()


def copied(s: Speaker) -> None:
    """dup, and the first one closed."""
    other = s.end.dup()
    s.warm(10)
    s.looks.unregister(s.end)
    s.end.close()
    s.end = other
    s.looks.register(s.end, select.EPOLLIN)
    s.warm()


def sent_file(s: Speaker) -> None:
    """sendfile."""
    fd = os.memfd_create("page")
    os.write(fd, _pattern(30_000))
    for _ in range(4):
        sent = 0
        got = b""
        while len(got) < 30_000:
            if sent < 30_000:
                sent += os.sendfile(s.end.fileno(), fd, sent, 30_000 - sent)
            assert s.looks.poll(60)
            try:
                got += s.end.recv(1 << 16)
            except BlockingIOError:
                continue
        assert got == _pattern(30_000)
    os.close(fd)
    s.warm(10)


def forked(s: Speaker) -> None:
    """The child has it for a while, and then its parent again; and a child that does nothing with it."""
    for _ in range(3):
        child = os.fork()
        if child == 0:
            kept = s.looks  # the parent's
            s.looks = select.epoll()
            s.looks.register(s.end, select.EPOLLIN)
            s.warm(5)
            os._exit(kept.closed)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        s.warm(10)
    child = os.fork()
    if child == 0:
        signal.pause()
    s.warm()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    subprocess.run(["true"], check=True)
    s.warm()


def passed_on(s: Speaker) -> None:
    """By SCM_RIGHTS, with an answer on its way."""
    s.end.send(b"passed")
    left, right = socket.socketpair()
    with left, right:
        socket.send_fds(left, [b"x"], [s.end.fileno()])
        _, fds, _, _ = socket.recv_fds(right, 1, 1)
    s.looks.close()
    s.end.close()
    s.end = socket.socket(fileno=fds[0])
    s.looks = select.epoll()
    s.looks.register(s.end, select.EPOLLIN)
    assert s.read(6) == b"passed"
    s.warm(5)


def half(s: Speaker) -> None:
    """Ends its half with much on its way, and gets it all."""
    data = _pattern(_BULK)

    def send() -> None:
        s.send(data)
        s.end.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    got = bytearray()
    while True:
        assert s.looks.poll(60)
        try:
            part = s.end.recv(1 << 16)
        except BlockingIOError:
            continue
        if not part:
            break
        got += part
    assert got == data
    sender.join()


def executes(s: Speaker) -> None:
    """Another program goes on with it."""
    s.end.send(b"e" * 1000)
    os.set_inheritable(s.end.fileno(), True)
    program = (
        "import socket; end = socket.socket(fileno=%d); end.setblocking(True);"
        "assert end.recv(1000, socket.MSG_WAITALL) == b'e' * 1000; end.sendall(b'next');"
        "assert end.recv(4, socket.MSG_WAITALL) == b'next'; print('went on')"
    )
    os.execv(sys.executable, [sys.executable, "-c", program % s.end.fileno()])


def resets(s: Speaker) -> None:
    """SO_LINGER without time."""
    s.end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def sleeps(s: Speaker) -> None:
    """Until it is killed, or its carrier is."""
    print("ready", flush=True)
    try:
        s.looks.poll(60)
        print("has", s.end.recv(10), flush=True)
    except ConnectionResetError:
        print("reset", flush=True)


def scribbles(s: Speaker) -> None:
    """What it and its carrier share makes no sense any more."""
    loan = _loan()
    variant = int(sys.argv[4])
    sizes = ((0, 5, 4), (0xFFFFFFFF, 0, 0), (0, 0, 0x7FFFFFFF), (0x8000, 0, 0x4400), (0, 0xFFFFFFFF, 0))
    packed = struct.pack("III", *sizes[variant % len(sizes)])
    ctypes.memmove(loan + _LOAN_SIZES, packed, len(packed))
    if variant >= 5:
        ctypes.memmove(loan + _LOAN_SUITE, os.urandom(120), 120)
    s.looks.close()
    s.end.setblocking(True)
    try:
        s.end.sendall(b"x")
        print("has", s.end.recv(10), flush=True)
    except (ConnectionResetError, BrokenPipeError):
        print("reset", flush=True)


#: native/core/layout.h: bertha_link_header.loan_offset; within a bertha_loan: records.suite, and in_size.
_LOAN_OFFSET, _LOAN_SUITE, _LOAN_SIZES = 96, 8, 148


def _loan() -> int:
    """Where the first connection's lies in this process."""
    with open("/proc/self/maps", encoding="ascii") as maps:
        found = next(line for line in maps if "memfd:bertha-hop" in line)
    start = int(found.split("-")[0], 16)
    return start + ctypes.c_uint64.from_address(start + _LOAN_OFFSET).value


def ends_at_once(s: Speaker) -> None:
    """With something just sent, and no close."""
    s.end.send(b"last words" * 1000)
    os._exit(0)


CASES: tuple[Callable[[Speaker], None], ...] = (
    bulk,
    blocking,
    polled,
    two_threads,
    two_sets,
    within_a_set,
    set_polled,
    out_and_in,
    edges,
    looked_at,
    slow,
    copied,
    sent_file,
    forked,
    passed_on,
    half,
)
ENDS = {f.__name__: f for f in (executes, resets, sleeps, scribbles, ends_at_once)}


def _connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def _until(end: socket.socket) -> None:
    """Echoes, and says how it ended."""
    try:
        echo(end)
        print("the end", flush=True)
    except ConnectionResetError:
        print("reset", flush=True)


def main(side: str, what: str, port: int) -> None:
    """All CASES by one connection each, or one of ENDS."""
    todo = [ENDS[what]] if what in ENDS else list(CASES)
    listening = socket.create_server(("127.0.0.1", port)) if side == "listen" else None
    for case in todo if what != "echo" else range(int(sys.argv[4])):
        end = listening.accept()[0] if listening is not None else _connect(port)
        with end:
            if what == "echo":
                _until(end)
                continue
            speaker = Speaker(end)
            speaker.warm()
            case(speaker)
            print(case.__name__, flush=True)
            speaker.end.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
