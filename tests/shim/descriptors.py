"""With a connection open, starts programs that print their descriptors, and whether they know of us: PORT."""

from __future__ import annotations

import socket
import subprocess
import sys

# The last one is the listing's own.
_SEEN = """
import os
print(sorted(map(int, os.listdir("/proc/self/fd")))[:-1], "BERTHA_INHERIT" in os.environ, flush=True)
"""


def main() -> None:
    with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
        connection.send(b"x")
        connection.recv(1)
        for close in (True, False):
            subprocess.run([sys.executable, "-c", _SEEN], close_fds=close, check=True)


if __name__ == "__main__":
    main()
