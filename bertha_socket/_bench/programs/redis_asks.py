"""redis-py: ``redis_asks.py ADDRESS PORT SECONDS`` gets one key again and again over one connection.

Prints a JSON object: requests, wall_ns, cpu_ns.
"""

from __future__ import annotations

import json
import sys
import time

import redis


def main(address: str, port: int, seconds: float) -> None:
    """For so many seconds."""
    with redis.Redis(host=address, port=port) as client:
        client.set("k", b"v" * 64)
        done, begin, begin_cpu = 0, time.monotonic_ns(), time.process_time_ns()
        while time.monotonic_ns() - begin < seconds * 1e9:
            if client.get("k") is None:
                raise SystemExit("the key is gone")
            done += 1
        wall, cpu = time.monotonic_ns() - begin, time.process_time_ns() - begin_cpu
    print(json.dumps({"requests": done, "wall_ns": wall, "cpu_ns": cpu}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
