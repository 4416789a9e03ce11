"""An agent that says what a test wants: answers every request with the same bytes and text."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bertha_socket._version import __version__
from bertha_socket.agent import messages

#: The status of an agent that knows of nothing.
NOTHING: dict[str, Any] = {
    "version": __version__,
    "processes": [],
    "listeners": [],
    "links": [],
    "connections": [],
}


def reply(op: int, status: int = 0, version: int = messages.VERSION) -> bytes:
    return messages.HEADER.pack(messages.MAGIC, version, op, 1, status)


@contextmanager
def fake_agent(
    path: Path, text: bytes | dict[str, Any] | None, answer: bytes | None = None
) -> Iterator[list[int]]:
    """Serves at `path` until the end of the block; yields the ops that were asked for.

    `text` goes into the memfd of the answer (None: no descriptor); `answer` replaces the answer's bytes
    (b"": the connection is closed).
    """
    asked: list[int] = []
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    listener.listen(16)
    data = json.dumps(text).encode() if isinstance(text, dict) else text

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                request = connection.recv(messages.MESSAGE_MAX)
                if not request:
                    continue
                op = messages.HEADER.unpack_from(request)[2]
                asked.append(op)
                if answer == b"":
                    continue
                fds = []
                if data is not None:
                    fds.append(os.memfd_create("fake"))
                    os.write(fds[0], data)
                socket.send_fds(connection, [reply(op) if answer is None else answer], fds)
                for fd in fds:
                    os.close(fd)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield asked
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)
        assert not thread.is_alive()
        path.unlink()
