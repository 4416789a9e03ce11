"""A client that sends each line only after the answer to the one before: PORT LINE... [-- LINE...].

Each "--" begins another connection; an answer that is not the line itself fails.
"""

from __future__ import annotations

import socket
import sys


def _say(port: int, lines: list[str]) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as server, server.makefile("r") as answers:
        for line in lines:
            server.sendall(f"{line}\n".encode())
            answer = answers.readline()
            assert answer == f"{line}\n", f"sent {line!r}, received {answer!r}"
        server.shutdown(socket.SHUT_WR)
        rest = answers.read()
        assert rest == "", f"received {rest!r} after the end"


def main() -> None:
    port, *words = sys.argv[1:]
    while words:
        end = words.index("--") if "--" in words else len(words)
        _say(int(port), words[:end])
        words = words[end + 1 :]
    print("ok")


if __name__ == "__main__":
    main()
