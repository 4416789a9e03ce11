"""How often the word changes sides: ``flights.py ADDRESS`` in the client's namespace, ADDRESS the client's.

Says "ready", then reads the TCP and UDP packets of all interfaces until its standard input ends, and prints
a JSON object: ``flights``, a list of [port of the server's end, "out" or "in", packets, "tcp" or "udp"], one
for each unbroken run of packets in one direction that say something (SYN or data; a bare acknowledgement or
an end does not).
"""

from __future__ import annotations

import json
import select
import socket
import struct
import sys

_ETH_P_ALL = 0x0003  # who asks for IP alone is not shown what goes out
_SYN = 0x02
_PROTOS = {socket.IPPROTO_TCP: "tcp", socket.IPPROTO_UDP: "udp"}


def _read(packet: bytes, address: bytes) -> tuple[int, str, str] | None:
    """The far port, the direction and the protocol of a packet that says something."""
    if len(packet) < 28 or packet[0] >> 4 != 4 or packet[9] not in _PROTOS:
        return None
    proto = _PROTOS[packet[9]]
    header = (packet[0] & 15) * 4
    whole = struct.unpack_from("!H", packet, 2)[0]
    source, target = struct.unpack_from("!HH", packet, header)
    if proto == "tcp":
        data = whole - header - (packet[header + 12] >> 4) * 4
        if data <= 0 and not packet[header + 13] & _SYN:
            return None
    return (target, "out", proto) if packet[12:16] == address else (source, "in", proto)


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
            port, way, proto = seen
            if found and [*found[-1][:2], found[-1][3]] == [port, way, proto]:
                found[-1][2] = int(str(found[-1][2])) + 1
            else:
                found.append([port, way, 1, proto])
    print(json.dumps({"flights": found}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
