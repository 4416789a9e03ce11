"""python echo_udp.py ADDRESS PORT: echoes datagrams behind their sender's address; ends at "quit"."""

from __future__ import annotations

import socket
import sys


def main() -> None:
    address, port = sys.argv[1:]
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind((address, int(port)))
        assert sock.getsockname()[:2] == (address, int(port))
        print("bound", flush=True)
        while True:
            data, origin = sock.recvfrom(65535)
            if data == b"quit":
                return
            sock.sendto(b"%s|%d|" % (origin[0].encode(), origin[1]) + data, origin)


if __name__ == "__main__":
    main()
