"""A carrier in a process of its own, with a test in the places of its agent and of its shims."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgpack

from bertha_socket.negotiation.plan import Plan, PlannedChunnel

STATUS = struct.Struct("=II616s396s4x")
PYTHON = (sys.executable, "-m", "bertha_socket.carrier")
PENDING, READY, REFUSED, RESET, PLAIN, RAISED = range(6)
PLAN, REQUIRED, MAYBE = range(3)


def chunnel(kind: str, wire: str, name: str | None = "python", /, **args: Any) -> PlannedChunnel:
    """One chunnel of a plan, run by `name` at both ends."""
    where = "host" if name is not None else None
    return PlannedChunnel(kind, tuple(sorted(args.items())), wire, name, name, where, where)


def plan_of(*chunnels: PlannedChunnel) -> bytes:
    return Plan(chunnels).encode()


def _text(raw: bytes) -> str:
    return raw.split(b"\0")[0].decode()


class Status:
    """What a carrier has told about one connection."""

    def __init__(self, fd: int, index: int) -> None:
        self._fd, self._index = fd, index

    def _fields(self) -> tuple[int, str, str]:
        state, _, chunnels, detail = STATUS.unpack(os.pread(self._fd, STATUS.size, self._index * STATUS.size))
        return state, _text(chunnels), _text(detail)

    @property
    def state(self) -> int:
        return self._fields()[0]

    @property
    def chunnels(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self._fields()[1])
        return found

    @property
    def detail(self) -> str:
        return self._fields()[2]

    def wait(self, *states: int, seconds: float = 20.0) -> None:
        """Until the state is one of these."""
        end = time.monotonic() + seconds
        while self.state not in states:
            assert time.monotonic() < end, (self.state, self.detail)
            time.sleep(0.005)


class CarrierHost:
    """One carrier, with one shim."""

    def __init__(
        self, command: tuple[str, ...] = PYTHON, *, env: Mapping[str, str] | None = None, count: int = 64
    ) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [*command, "--control", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stderr=subprocess.PIPE,
                env={**os.environ, **(env or {})},
            )
        assert self.process.stderr is not None
        with contextlib.suppress(OSError):  # read at the end alone: who logs much would wait
            fcntl.fcntl(self.process.stderr, fcntl.F_SETPIPE_SZ, 1 << 20)
        self.judge: Callable[[int, bytes], str | None] = lambda listener, plan: None
        self.checks: list[dict[str, Any]] = []
        self.idle = 0
        self.memfd = os.memfd_create("statuses", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.memfd, count * STATUS.size)
        self._next = 0
        self.shim = self.new_shim()

    def send(self, message: dict[str, Any], *fds: int) -> None:
        socket.send_fds(self.control, [msgpack.packb(message)], fds)

    def context(
        self,
        listener: int = 0,
        material: Any = None,
        key: bytes | None = None,
        uids: tuple[int, ...] = (os.getuid(),),
    ) -> None:
        told = {"op": "context", "listener": listener, "material": material, "key": key}
        self.send(told | {"uids": list(uids)})

    def new_shim(self, uid: int | None = None, fd: int | None = None) -> socket.socket:
        """Of a program of that user's, by the agent's word; `fd`: what it gives as its memory."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.send(
                {"op": "shim", "uid": os.getuid() if uid is None else uid, "gid": os.getgid()},
                theirs.fileno(),
            )
        hello = struct.pack(
            "=IHHII", 0x52414342, 1, 1, os.getpid(), os.fstat(self.memfd).st_size // STATUS.size
        )
        socket.send_fds(ours, [hello], [self.memfd if fd is None else fd])
        return ours

    def carry(
        self,
        tcp: socket.socket,
        *,
        plan: bytes = b"",
        mode: int | None = None,
        listener: int = 7,
        context: int = 0,
    ) -> tuple[socket.socket, Status]:
        """The program's end of a connection that the carrier has now, and its status."""
        if mode is None:
            mode = PLAN if plan else REQUIRED
        index, self._next = self._next, self._next + 1
        ours, theirs = socket.socketpair()
        head = struct.pack(
            "=IHHIIQII",
            0x52414342,
            1,
            2,
            int(mode != PLAN),
            mode,
            listener if mode else context,
            index,
            len(plan),
        )
        with theirs:
            socket.send_fds(self.shim, [head + plan], [tcp.fileno(), theirs.fileno()])
        return ours, Status(self.memfd, index)

    def carry_datagrams(
        self, udp: socket.socket, listener: int = 7, mode: int = REQUIRED
    ) -> tuple[socket.socket, Status]:
        """The same for a UDP socket: a server's, or with PLAN a client's."""
        index, self._next = self._next, self._next + 1
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        number = listener if mode != PLAN else 0
        head = struct.pack("=IHHIIQII", 0x52414342, 1, 3, int(mode != PLAN), mode, number, index, 0)
        with theirs:
            socket.send_fds(self.shim, [head], [udp.fileno(), theirs.fileno()])
        return ours, Status(self.memfd, index)

    def serve(self, seconds: float = 0.0) -> None:
        """Answers what the carrier asks."""
        while select.select([self.control], [], [], seconds)[0]:
            data = self.control.recv(65536)
            if not data:
                return
            message = msgpack.unpackb(data)
            if message["op"] == "idle":
                self.idle += 1
            elif message["op"] == "check":
                self.checks.append(message)
                why = self.judge(message["listener"], message["plan"])
                self.send({"op": "verdict", "id": message["id"], "ok": why is None, "why": why or ""})
            seconds = 0.0

    def close(self) -> str:
        """Ends it as the agent's death does; what it wrote to stderr.  Fails if it does not end."""
        self.control.close()
        self.shim.close()
        try:
            _, err = self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            _, err = self.process.communicate()
            raise AssertionError(f"the carrier does not end: {err.decode()}") from None
        finally:
            with contextlib.suppress(OSError):
                os.close(self.memfd)
        assert self.process.returncode == 0, err.decode()
        return err.decode()


def unread(sock: socket.socket, what: int = termios.TIOCOUTQ) -> int:
    """Bytes that a unix socket's other end, or (FIONREAD) whoever has this one, has not read yet."""
    return int.from_bytes(fcntl.ioctl(sock, what, bytes(4)), sys.byteorder)


def wait_until_read(sock: socket.socket, what: int = termios.TIOCOUTQ) -> None:
    """A carrier may have yet to begin."""
    end = time.monotonic() + 20
    while unread(sock, what):
        assert time.monotonic() < end, "a carrier that reads"
        time.sleep(0.002)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Client and server end of a TCP connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        return client, server


class Carried:
    """Both ends of one carried connection."""

    def __init__(
        self,
        client: CarrierHost,
        server: CarrierHost,
        plan: bytes,
        *,
        mode: int = REQUIRED,
        context: int = 0,
    ) -> None:
        self.hosts = (client, server)
        a, b = tcp_pair()
        with a, b:  # as the shim's hidden duplicates, they would keep a reset away; so they are closed
            self.server, self.server_status = server.carry(b, mode=mode)
            self.client, self.client_status = client.carry(a, plan=plan, context=context)

    def serve(self) -> None:
        for host in self.hosts:
            host.serve()

    def wait(self, client: int, server: int, seconds: float = 20.0) -> None:
        """Until both have these states."""
        end = time.monotonic() + seconds
        while (self.client_status.state, self.server_status.state) != (client, server):
            self.serve()
            assert time.monotonic() < end, (
                self.client_status.state,
                self.client_status.detail,
                self.server_status.state,
                self.server_status.detail,
            )
            time.sleep(0.002)

    def close(self) -> None:
        self.client.close()
        self.server.close()


def exchange(carried: Carried, up: bytes, down: bytes, chunks: Iterator[int]) -> tuple[bytes, bytes]:
    """Sends `up` from the client and `down` from the server at once, in such pieces; what each end got."""
    ends = {carried.client: bytearray(), carried.server: bytearray()}
    left = {carried.client: memoryview(up), carried.server: memoryview(down)}
    reading = set(ends)
    for sock in ends:
        sock.setblocking(False)
    end = time.monotonic() + 60
    while reading:
        assert time.monotonic() < end, {
            "got": [len(g) for g in ends.values()],
            "left": [len(v) for v in left.values()],
            "client": (carried.client_status.state, carried.client_status.detail),
            "server": (carried.server_status.state, carried.server_status.detail),
        }
        writing = [s for s in ends if s in left]
        controls = [h.control for h in carried.hosts]
        readable, writable, _ = select.select([*reading, *controls], writing, [], 1.0)
        carried.serve()
        for sock in writable:
            if sock not in left:
                continue
            if not left[sock]:
                del left[sock]
                sock.shutdown(socket.SHUT_WR)
                continue
            with contextlib.suppress(BlockingIOError):
                sent = sock.send(left[sock][: next(chunks)])
                left[sock] = left[sock][sent:]
        for sock in readable:
            if sock in reading:
                data = sock.recv(next(chunks))
                if data:
                    ends[sock] += data
                else:
                    reading.discard(sock)
    return bytes(ends[carried.client]), bytes(ends[carried.server])
