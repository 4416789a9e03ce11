"""Datagrams there and back: ``datagrams.py ADDRESS PORT`` echoes, and prints "ready" when it can;
``datagrams.py ADDRESS PORT SIZE OUTSTANDING COUNT`` asks, with so many under way at a time, and prints, as
JSON, the ``seconds`` that COUNT of them took and, of one at a time, ``p50`` and ``p99`` of a round trip.

It knows nothing of chunnels, nor of loss: one that does not come back within ten seconds is an error, and so
is one that comes back with other bytes.
"""

from __future__ import annotations

import json
import random
import socket
import sys
import time
from array import array

#: Of which messages are made, so that there is something to compress, as in a log.
_WORDS = [bytes(random.Random(n).choices(b"etaoinshrdlucmfwyp", k=2 + n % 9)) for n in range(400)]
#: They differ, or the second would be found in the first.
_MESSAGES = 61


def messages(size: int) -> list[bytes]:
    """The same in every process."""
    chooser = random.Random(size)
    text = b""
    while len(text) < size * _MESSAGES:
        text += b" ".join(chooser.choices(_WORDS, k=1000)) + b"\n"
    return [text[i * size : (i + 1) * size] for i in range(_MESSAGES)]


def echo(sock: socket.socket) -> None:
    """For ever."""
    while True:
        data, origin = sock.recvfrom(65535)
        sock.sendto(data, origin)


def ask(sock: socket.socket, what: list[bytes], outstanding: int, count: int) -> float:
    """Seconds."""
    begin = time.perf_counter()
    for i in range(outstanding):
        sock.send(what[i % _MESSAGES])
    last = b""
    for i in range(outstanding, count):
        last = sock.recv(65535)
        sock.send(what[i % _MESSAGES])
    for _ in range(outstanding):
        last = sock.recv(65535)
    took = time.perf_counter() - begin
    if last not in what:
        raise OSError(f"what came back is not what was sent: {len(last)} bytes, {last[:40]!r}")
    return took


def ask_each(sock: socket.socket, what: list[bytes], count: int) -> array[float]:
    """The seconds that each of them took, one after the other."""
    times = array("d", bytes(8 * count))
    for i in range(count):
        begin = time.perf_counter()
        sock.send(what[i % _MESSAGES])
        data = sock.recv(65535)
        times[i] = time.perf_counter() - begin
        if data != what[i % _MESSAGES]:
            raise OSError(f"what came back is not what was sent: {len(data)} bytes, {data[:40]!r}")
    return times


def main(address: str, port: int, *numbers: int) -> None:
    """Either end."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        if not numbers:
            sock.bind((address, port))
            print("ready", flush=True)
            echo(sock)
        size, outstanding, count = numbers
        sock.settimeout(10)
        sock.connect((address, port))
        what = messages(size)
        ask(sock, what, 1, 1)
        ask(sock, what, outstanding, max(outstanding, count // 10))
        if outstanding > 1:
            said = {"seconds": ask(sock, what, outstanding, count)}
        else:
            times = sorted(ask_each(sock, what, count))
            marks = {f"p{p}": times[(count - 1) * p // 100] for p in (50, 99)}
            said = {"seconds": sum(times), **marks}
        print(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *map(int, sys.argv[3:]))
