"""python memcached_udp.py ADDRESS PORT MODE COUNT PATIENCE LOSS: gets and sets over UDP.

MODE: connected, unconnected.  Each datagram has a frame header (doc/protocol.txt): u16 request, u16 number,
u16 count, u16 0.  A request is sent once and never again; prints `ok`, or what did not come.
"""

from __future__ import annotations

import socket
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from lossy import lose

FRAME = struct.Struct(">HHHH")


def main() -> int:
    address, port, mode, count, patience, loss = sys.argv[1:]
    where = (address, int(port))
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(float(patience))
        if float(loss):
            lose(sock, float(loss))
        if mode == "connected":
            sock.connect(where)
            assert sock.getpeername()[:2] == where, sock.getpeername()

        def ask(number: int, line: bytes) -> bytes:
            datagram = FRAME.pack(number, 0, 1, 0) + line
            if mode == "connected":
                sock.send(datagram)
            else:
                sock.sendto(datagram, where)
            parts: dict[int, bytes] = {}
            total = 1
            while len(parts) < total:
                data, origin = sock.recvfrom(2000)
                assert origin[:2] == where, origin
                got, at, total, _ = FRAME.unpack_from(data)
                assert got == number, (got, number)
                assert at not in parts, "a part came twice"
                parts[at] = data[FRAME.size :]
            return b"".join(parts[i] for i in range(total))

        try:
            for i in range(int(count)):
                value = bytes([65 + i % 26]) * (1 + 37 * i % 5000)
                small = value[:1000]  # requests have to be one datagram
                said = ask(2 * i, b"set key%d 0 0 %d\r\n%s\r\n" % (i, len(small), small))
                assert said == b"STORED\r\n", said
                found = ask(2 * i + 1, b"get key%d\r\n" % i)
                assert found == b"VALUE key%d 0 %d\r\n%s\r\nEND\r\n" % (i, len(small), small), found
        except OSError as error:
            print(f"{type(error).__name__}: {error}")
            return 0
        assert sock.getsockname()[1] != 0
    print("ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
