"""python calls.py ADDRESS PORT [--warm N] NAME...: what calls on a UDP socket do (udp(7)).

Prints NAME ok for each.  ADDRESS and PORT are echo_udp.py's.  --warm: a connected socket has N answers
behind it when the calls begin, so that it is what it will be.
"""

from __future__ import annotations

import array
import asyncio
import errno
import fcntl
import os
import select
import socket
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable

WHERE = (sys.argv[1], int(sys.argv[2]))
WARM = int(sys.argv[4]) if sys.argv[3:4] == ["--warm"] else 0
NAMES = sys.argv[5:] if sys.argv[3:4] == ["--warm"] else sys.argv[3:]
FAMILY = socket.AF_INET6 if ":" in WHERE[0] else socket.AF_INET


def make(connected: bool = False, timeout: float = 30.0, warm: int = WARM) -> socket.socket:
    sock = socket.socket(FAMILY, socket.SOCK_DGRAM)
    sock.settimeout(timeout)
    if connected:
        sock.connect(WHERE)
        for _ in range(warm):
            sock.send(b"warm")
            assert sock.recv(100).endswith(b"|warm")
    return sock


def fails(call: Callable[[], object], *numbers: int) -> None:
    """The call raises an OSError with one of these numbers."""
    try:
        found = call()
    except OSError as error:
        if error.errno not in numbers:
            raise
    else:
        raise AssertionError(f"it returned {found!r}")


def prefix(sock: socket.socket, own: str | None = None) -> bytes:
    """What the echo begins with."""
    host = own or sock.getsockname()[0]
    if own is None and host in ("0.0.0.0", "::"):
        with make(connected=True, warm=0) as probe:
            host = probe.getsockname()[0]
    return b"%s|%d|" % (host.encode(), sock.getsockname()[1])


def segments() -> None:
    """UDP_SEGMENT (udp(7)), as an option before the first datagram and after it, and with one call."""
    udp, segment = socket.IPPROTO_UDP, 103

    def arrive(*sizes: int) -> None:
        assert [len(sock.recv(2000).split(b"|", 2)[2]) for _ in sizes] == list(sizes)

    with make() as sock:
        for each, sizes in ((400, [400, 400, 200]), (300, [300, 300, 300, 100]), (0, [1000])):
            sock.setsockopt(udp, segment, each)
            assert sock.getsockopt(udp, segment) == each
            assert sock.sendto(bytes(1000), WHERE) == 1000
            arrive(*sizes)
        control = [(udp, segment, struct.pack("=H", 450))]
        assert sock.sendmsg([bytes(500), bytes(500)], control, 0, WHERE) == 1000
        arrive(450, 450, 100)
        assert sock.sendmsg([bytes(450)], control, 0, WHERE) == 450
        arrive(450)
        fails(lambda: sock.sendmsg([b"x"], [(udp, segment, bytes(3))], 0, WHERE), errno.EINVAL)
        fails(lambda: sock.sendmsg([b"x"], [(udp, 77, bytes(2))], 0, WHERE), errno.EINVAL)
        fails(lambda: sock.sendmsg([bytes(500)], [(udp, segment, b"\1\0")], 0, WHERE), errno.EINVAL)
        for value in (-1, 1 << 16):
            fails(lambda: sock.setsockopt(udp, segment, value), errno.EINVAL)  # noqa: B023


def merged() -> None:
    """UDP_GRO: who looks for no control message gets datagrams as they were sent, if not the kernel's."""
    with make() as sock:
        sock.setsockopt(socket.IPPROTO_UDP, 104, 1)
        for i in range(20):
            sock.sendto(b"%100d" % i, WHERE)
        got = b""
        while len(got) < 2000:
            data, control, _, _ = sock.recvmsg(65536, 100)
            each = struct.unpack("=i", control[0][2])[0] if control else len(data)
            parts = [data[at : at + each] for at in range(0, len(data), each)]
            got += b"".join(part.split(b"|", 2)[2] for part in parts)
        assert got == b"".join(b"%100d" % i for i in range(20))


def names() -> None:
    with make(connected=True) as sock:
        assert sock.getpeername()[:2] == WHERE
        assert sock.getsockname()[1] != 0
        assert sock.type == socket.SOCK_DGRAM
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_DGRAM
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) == socket.IPPROTO_UDP
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == FAMILY
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        sock.send(b"a")
        assert sock.recv(100) == prefix(sock) + b"a"
    with make() as sock:
        fails(lambda: sock.send(b"to nobody"), errno.EDESTADDRREQ)
        sock.sendto(b"b", WHERE)
        data, origin = sock.recvfrom(100)
        assert origin[:2] == WHERE
        assert data == prefix(sock) + b"b"
        fails(sock.getpeername, errno.ENOTCONN)
        sock.connect(WHERE)
        sock.send(b"c")
        assert sock.recv(100).endswith(b"|c")


def sizes() -> None:
    with make(connected=True) as sock:
        for size in (0, 1, 1199, 1200, 1201, 9000, 60000):
            data = os.urandom(size)
            assert sock.send(data) == size
            assert sock.recv(65535) == prefix(sock) + data
        fails(lambda: sock.send(bytes(65508)), errno.EMSGSIZE)
        assert os.write(sock.fileno(), b"by write") == 8
        sock.settimeout(None)
        assert os.read(sock.fileno(), 100) == prefix(sock) + b"by write"


def cut() -> None:
    """What does not fit is gone; MSG_TRUNC tells of it, MSG_PEEK leaves it."""
    with make(connected=True) as sock:
        for _ in range(3):
            sock.send(b"0123456789")
        whole = prefix(sock) + b"0123456789"
        assert sock.recv(100, socket.MSG_PEEK) == whole
        unread = array.array("i", [0])
        fcntl.ioctl(sock, termios.FIONREAD, unread)
        assert unread[0] == len(whole), unread
        assert sock.recv(4, socket.MSG_PEEK) == whole[:4]
        assert sock.recv(4) == whole[:4]
        buffer = bytearray(4)
        assert sock.recv_into(buffer, 4, socket.MSG_TRUNC) == len(whole)
        data, control, flags, origin = sock.recvmsg(5, 100)
        assert (data, control, flags & socket.MSG_TRUNC) == (whole[:5], [], socket.MSG_TRUNC)
        assert origin[:2] == WHERE
        assert sock.sendmsg([b"a", b"", b"bc"]) == 3
        one, two = bytearray(len(whole) - 9), bytearray(50)
        count, _, flags, _ = sock.recvmsg_into([one, two])
        assert count == len(whole) - 10 + 3
        assert flags == 0
        assert bytes(one + two)[:count] == prefix(sock) + b"abc"


def waiting() -> None:
    with make(connected=True) as sock:
        sock.settimeout(0.05)
        try:
            sock.recv(10)
        except TimeoutError:
            pass
        else:
            raise AssertionError("nothing was to come")
        sock.setblocking(False)
        fails(lambda: sock.recv(10), errno.EAGAIN)
        assert select.select([sock], [sock], [], 0) == ([], [sock], [])
        poll = select.epoll()
        with poll:
            poll.register(sock, select.EPOLLIN | select.EPOLLET)
            assert poll.poll(0.05) == []
            sock.send(b"x")
            assert poll.poll(30) == [(sock.fileno(), select.EPOLLIN)]
            assert sock.recv(100).endswith(b"|x")
            assert poll.poll(0.05) == []
        sock.setblocking(True)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, b"\0" * 8 + (50_000).to_bytes(8, "little"))
        fails(lambda: sock.recv(10), errno.EAGAIN)


def registered_before() -> None:
    """It is in an epoll set, twice, before its first datagram decides what it is."""
    with make() as sock, select.epoll() as poll, sock.dup() as twin:
        poll.register(sock, select.EPOLLIN)
        poll.register(twin, select.EPOLLIN)
        sock.sendto(b"y", WHERE)
        found = poll.poll(30)
        assert found, "no event"
        assert {fd for fd, _ in found} <= {sock.fileno(), twin.fileno()}
        assert twin.recv(100).endswith(b"|y")
        poll.modify(twin, 0)
        poll.unregister(sock)


def with_asyncio() -> None:
    class Protocol(asyncio.DatagramProtocol):
        def __init__(self) -> None:
            self.came: asyncio.Queue[tuple[bytes, tuple[str, int]]] = asyncio.Queue()

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            self.came.put_nowait((data, addr))

    async def run(connected: bool) -> None:
        loop = asyncio.get_running_loop()
        where = WHERE if connected else None
        transport, protocol = await loop.create_datagram_endpoint(Protocol, remote_addr=where, family=FAMILY)
        await asyncio.sleep(0)
        for i in range(50):
            transport.sendto(b"%d" % i, None if connected else WHERE)
        for i in range(50):
            data, origin = await asyncio.wait_for(protocol.came.get(), 30)
            assert data.endswith(b"|%d" % i), (data, i)
            assert origin[:2] == WHERE
        transport.close()

    asyncio.run(run(True))
    asyncio.run(run(False))


def threads() -> None:
    with make(connected=True) as sock:
        got: list[bytes] = []

        def receive() -> None:
            got.extend(sock.recv(100) for _ in range(100))

        thread = threading.Thread(target=receive)
        thread.start()
        for i in range(100):
            sock.send(b"%d" % i)
        thread.join(60)
        assert [int(d.rpartition(b"|")[2]) for d in got] == list(range(100))


def forked() -> None:
    with make(connected=True) as sock:
        sock.send(b"first")
        assert sock.recv(100).endswith(b"|first")
        child = os.fork()
        if child == 0:
            sock.send(b"the child's")
            good = sock.recv(100).endswith(b"|the child's")
            os._exit(0 if good else 1)
        assert os.waitpid(child, 0)[1] == 0
        sock.send(b"the parent's")
        assert sock.recv(100).endswith(b"|the parent's")


def ports() -> None:
    """A port is free again as soon as its socket is closed."""
    with make() as sock:
        sock.sendto(b"z", WHERE)
        assert sock.recv(100).endswith(b"|z")
        port = sock.getsockname()[1]
    end = time.monotonic() + 20
    while True:
        with make() as again:
            try:
                again.bind(("" if FAMILY == socket.AF_INET else "::", port))
                return
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.02)


def shut() -> None:
    with make(connected=True) as sock:
        sock.send(b"before")
        assert sock.recv(100).endswith(b"|before")
        sock.shutdown(socket.SHUT_RDWR)
        fails(lambda: sock.send(b"after"), errno.EPIPE)
        sock.settimeout(None)
        assert sock.recv(10) == b""
        sock.setblocking(False)
        fails(lambda: sock.recv(10), errno.EAGAIN)


def begin() -> None:
    """An agent that has no time to answer makes a socket plain, and a server may answer none of those."""
    end = time.monotonic() + 90
    while True:
        with make(connected=True, timeout=3.0, warm=0) as sock:
            sock.send(b"begin")
            try:
                sock.recv(100)
                return
            except TimeoutError:
                assert time.monotonic() < end


def main() -> None:
    begin()
    for name in NAMES:
        call: Callable[[], None] = globals()[name]
        call()
        print(name, "ok", flush=True)


if __name__ == "__main__":
    main()
