"""PORT CONNECTIONS LINES SIZE [CERTIFICATE]: line_client in one thread, on asyncio's streams."""

from __future__ import annotations

import asyncio
import ssl
import sys


async def _talk(number: int, port: int, lines: int, size: int, context: ssl.SSLContext | None) -> None:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname="localhost" if context else None, limit=2**24
    )
    for turn in range(lines):
        line = f"{number} {turn} {'x' * size}\n".encode()
        writer.write(line)
        await writer.drain()
        assert await reader.readline() == line.upper(), f"connection {number}, line {turn}"
    writer.write(b"BYE\n")
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


async def _main() -> None:
    port, connections, lines, size = map(int, sys.argv[1:5])
    context = ssl.create_default_context(cafile=sys.argv[5]) if len(sys.argv) > 5 else None
    async with asyncio.TaskGroup() as group:
        for number in range(connections):
            group.create_task(_talk(number, port, lines, size, context))
    print("ok")


if __name__ == "__main__":
    asyncio.run(_main())
