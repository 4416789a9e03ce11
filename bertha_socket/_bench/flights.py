"""How often the word changes sides: ``flights.py ADDRESS`` in the client's namespace, ADDRESS the client's.

Says "ready", then reads the TCP packets of all interfaces until its standard input ends, and prints a JSON
object: ``flights``, a list of [port of the server's end, "out" or "in", packets], one for each unbroken run
of packets in one direction that say something (SYN or data; a bare acknowledgement or an end does not).
"""

from __future__ import annotations

import json
import select
import socket
import struct
import sys

_ETH_P_ALL = 0x0003  # who asks for IP alone is not shown what goes out
_SYN = 0x02


def _read(packet: bytes, address: bytes) -> tuple[int, str] | None:
    """The far port and the direction of a TCP packet that says something."""
    if len(packet) < 40 or packet[0] >> 4 != 4 or packet[9] != socket.IPPROTO_TCP:
        return None
    header = (packet[0] & 15) * 4
    whole = struct.unpack_from("!H", packet, 2)[0]
    source, target = struct.unpack_from("!HH", packet, header)
    data = whole - header - (packet[header + 12] >> 4) * 4
    if data <= 0 and not packet[header + 13] & _SYN:
        return None
    return (target, "out") if packet[12:16] == address else (source, "in")


def main(address: str) -> None:
    """Until the standard input ends."""
    ours = socket.inet_aton(address)
    found: list[list[object]] = []
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL)) as sniffer:
        sniffer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        print("ready", flush=True)
        while True:
            readable, _, _ = select.select([sniffer, sys.stdin], [], [])
            if sniffer not in readable:
                break  # everything that had come has been read
            seen = _read(sniffer.recv(128), ours)
            if seen is None:
                continue
            port, way = seen
            if found and found[-1][:2] == [port, way]:
                found[-1][2] = int(str(found[-1][2])) + 1
            else:
                found.append([port, way, 1])
    print(json.dumps({"flights": found}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
