"""An ordinary asyncio program: ``server ADDRESS PORT`` or ``client ADDRESS PORT C SECONDS``.

Run by its path, so that it imports nothing of ours.  The client has C connections, each of which sends 64 B
and waits for them to come back; it prints a JSON object: requests, wall_ns, cpu_ns.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

SIZE = 64


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            writer.write(await reader.readexactly(SIZE))
    except asyncio.IncompleteReadError:
        pass
    finally:
        writer.close()


async def _serve(address: str, port: int) -> None:
    server = await asyncio.start_server(_echo, address, port, backlog=1024)
    print("ready", flush=True)
    async with server:
        await server.serve_forever()


async def _ask(address: str, port: int, ready: asyncio.Barrier, seconds: float) -> int:
    reader, writer = await asyncio.open_connection(address, port)
    done = 0
    message = b"x" * SIZE
    await ready.wait()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        writer.write(message)
        await reader.readexactly(SIZE)
        done += 1
    writer.close()
    await writer.wait_closed()
    return done


async def _client(address: str, port: int, connections: int, seconds: float) -> None:
    ready = asyncio.Barrier(connections + 1)
    asking = [asyncio.create_task(_ask(address, port, ready, seconds)) for _ in range(connections)]
    await ready.wait()
    begin, begin_cpu = time.monotonic_ns(), time.process_time_ns()
    done = sum(await asyncio.gather(*asking))
    wall, cpu = time.monotonic_ns() - begin, time.process_time_ns() - begin_cpu
    print(json.dumps({"requests": done, "wall_ns": wall, "cpu_ns": cpu}))


if __name__ == "__main__":
    role, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
    try:
        if role == "server":
            asyncio.run(_serve(address, port))
        else:
            asyncio.run(_client(address, port, int(sys.argv[4]), float(sys.argv[5])))
    except KeyboardInterrupt:
        pass
