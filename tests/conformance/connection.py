"""python -m tests.conformance.connection PORT: the kit's checks of what a stream is, over real connections.

Each pair is a connection of this process to one that it starts: what carries it is for whoever runs this to
say, by a policy, and to look up in the connection log.  Prints the checks that were made, and how many of
the connections that were cut off in their midst ended with a reset.
"""

from __future__ import annotations

import pickle
import random
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import IO, Any, Final

from bertha_socket.chunnels import ChunnelError, Context, Interface, Pipe
from bertha_socket.testing import CHECKS, Duplex, check_chunnel

#: Those that need a wire of their own, on which a test can put what it likes, or time of a test's own.
_OF_A_WIRE: Final = {"rubbish", "flipped_bits", "received_after_the_end", "idle_costs_nothing"}
CHECKED: Final = [c.__name__ for c in CHECKS if c.__name__ not in _OF_A_WIRE]
_SECONDS: Final = 20.0
_RESET: Final = struct.pack("ii", 1, 0)  # struct linger
_ANY: Final = 1 << 20


class End:
    """One end of a connection, without waiting; what it cannot do now is None."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._poll = select.poll()

    def send(self, item: Any) -> int | None:
        try:
            return self._sock.send(item)
        except BlockingIOError:
            return None

    def receive(self, most: int, seconds: float) -> bytes | None:
        """Nothing is read that poll() has not announced.  b"": the end."""
        self._poll.register(self._sock, select.POLLIN)
        if not self._poll.poll(1000 * seconds):
            return None
        return self._sock.recv(most)

    def over(self) -> None:
        self._sock.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """As a program that is killed with bytes unread."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._sock.close()

    def close(self) -> None:
        self._sock.close()


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """The other process: (method, arguments) there, (answer, exception) back."""
    with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listener:
        pickle.dump(None, answers)
        answers.flush()
        end = None
        while True:
            try:
                name, args = pickle.load(requests)
            except EOFError:
                return
            said, raised = None, None
            try:
                if name == "accept":
                    end = End(listener.accept()[0])
                else:
                    said = getattr(end, name)(*args)
            except Exception as error:
                raised = error
            pickle.dump((said, raised), answers)
            answers.flush()


class Far:
    """An End in the other process: the last that it has accepted."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._ask("accept")

    def _ask(self, name: str, *args: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(pickle.dumps((name, args)))
        self._process.stdin.flush()
        said, raised = pickle.load(self._process.stdout)
        if raised is not None:
            raise raised
        return said

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args: self._ask(name, *args)


class Connected(Pipe):
    """One end as a pipe: nothing comes out below, and what comes up is what the socket gives."""

    other: Connected
    resets: Final[list[bool]] = []

    def __init__(self, end: Any, side: str, seed: int) -> None:
        super().__init__(side=side, context=Context(side))
        self._end, self._random = end, random.Random(seed)
        self._left = b""  # what the socket did not take
        self.sent = self._got = 0
        self.over = self._gone = self._closed = False
        self._moved = time.monotonic()

    def down(self, item: Any) -> Iterable[Any]:
        if self._left:
            self._left += bytes(memoryview(item))
        else:
            taken = self._end.send(item) or 0
            self.sent += taken
            self._left = bytes(memoryview(item)[taken:])
        self.full_down = bool(self._left)
        self._progress()
        return ()

    def down_end(self) -> Iterable[Any]:
        self.lingers_down = bool(self._left)
        if not self._left:
            self._end.over()
            self.over = True
            self._progress()
        return ()

    def up_end(self) -> Iterable[Any]:
        """In order, or the test has cut the connection: then what is still there comes, or an error."""
        if self.other.over:
            self.lingers_up = not self.ended_up
            return ()
        self.other._end.cut()
        self.other._closed = True
        risen = []
        try:
            while data := self._end.receive(_ANY, _SECONDS):
                risen.append(data)
            assert data is not None, "who was cut off is not told"
        except ConnectionError as error:
            self.resets.append(True)
            raise ChunnelError(str(error)) from None
        self.resets.append(False)
        return risen

    def deadline(self) -> float | None:
        """At once, while anything is under way."""
        waits = self._left or self.other.sent > self._got or (self.other.over and not self.ended_up)
        if not waits or self._closed or time.monotonic() > self._moved + _SECONDS:
            return None
        return self.context.clock()

    def tick(self, now: float) -> tuple[Iterable[Any], Iterable[Any]]:
        if self._left:
            taken = self._end.send(self._left)
            if taken:
                self._progress()
                self.sent += taken
                self._left = self._left[taken:]
                self.full_down = bool(self._left)
                if not self._left and self.lingers_down:
                    self.lingers_down = False
                    self._end.over()
                    self.over = True
        if self.other.sent == self._got and not self.other.over:
            return (), ()
        quiet = time.monotonic() - self._moved > 0.001
        data = self._end.receive(self._random.choice((1, 100, 5000, _ANY)), 0.002 if quiet else 0.0)
        if data is None:
            return (), ()
        self._progress()
        if not data:
            self.ended_up, self.lingers_up = True, False
            return (), ()
        self._got += len(data)
        return (data,), ()

    def _progress(self) -> None:
        self._moved = self.other._moved = time.monotonic()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._end.close()


def full(make_pair: Callable[[], tuple[Pipe, Pipe]]) -> None:
    """Both ends send until nothing more is taken, and nobody reads; then everything arrives."""
    duplex = Duplex(make_pair)
    sent = {side: bytearray() for side in duplex.ends}
    for side in duplex.ends:
        while not duplex.full(side):
            item = random.randbytes(100_000)
            duplex.send(side, item)
            sent[side] += item
        assert len(sent[side]) > 200_000, "it is full of next to nothing"
        duplex.end(side)
    duplex.run(lambda: all(duplex.ended.values()), "the end does not come through")
    assert b"".join(duplex.got["server"]) == sent["client"]
    assert b"".join(duplex.got["client"]) == sent["server"]
    duplex.close()


def main() -> int:
    port = int(sys.argv[1])
    if sys.argv[2:] == ["serve"]:
        serve(sys.stdin.buffer, sys.stdout.buffer)
        return 0
    command = [sys.executable, "-m", "tests.conformance.connection", str(port), "serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        assert pickle.load(process.stdout) is None

        def make_pair() -> tuple[Pipe, Pipe]:
            near = End(socket.create_connection(("127.0.0.1", port), timeout=_SECONDS))
            client, server = Connected(near, "client", 1), Connected(Far(process), "server", 2)
            client.other, server.other = server, client
            return client, server

        done = check_chunnel(make_pair, upper=Interface.STREAM, lower=Interface.STREAM, only=CHECKED)
        full(make_pair)
        process.stdin.close()
        assert process.wait(_SECONDS) == 0
    print(*done)
    print(f"{sum(Connected.resets)} of {len(Connected.resets)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
