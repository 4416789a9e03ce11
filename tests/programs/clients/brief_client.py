"""PORT WORD...: connections one after the other; `brief:N` N of one exchange, `long:N` N of several.

Prints "ok" when each answer was the question in capital letters.
"""

from __future__ import annotations

import socket
import sys


def _talk(port: int, turns: int) -> None:
    with socket.create_connection(("127.0.0.1", port), 15) as sock, sock.makefile("rb") as stream:
        for turn in range(turns):
            sock.sendall(b"question %d\n" % turn)
            assert stream.readline() == b"QUESTION %d\n" % turn


def main() -> None:
    """As told by the words."""
    for word in sys.argv[2:]:
        kind, _, count = word.partition(":")
        for _ in range(int(count)):
            _talk(int(sys.argv[1]), 1 if kind == "brief" else 8)
    print("ok")


if __name__ == "__main__":
    main()
