"""MODE ADDRESS PORT: an asyncio server for the mixed tests.

Each connection begins with a line "SEED UP DOWN"; MODE "client-first": the client sends it, then UP bytes of
pattern(SEED), and gets pattern(SEED + 1) of DOWN bytes; MODE "server-first": the server greets with a line of
its own before that. A wrong byte ends the server with an error.
"""

from __future__ import annotations

import asyncio
import os
import sys

from pattern import pattern

GREETING = b"220 ready\r\n"


async def _serve(mode: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    if mode == "server-first":
        writer.write(GREETING)
    while line := await reader.readline():
        seed, up, down = map(int, line.split())
        if await reader.readexactly(up) != pattern(seed, up):
            print(f"wrong bytes from the client, seed {seed}", flush=True)
            os._exit(3)
        writer.write(pattern(seed + 1, down))
        await writer.drain()
    writer.close()
    await writer.wait_closed()


async def _main() -> None:
    mode, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
    server = await asyncio.start_server(
        lambda reader, writer: _serve(mode, reader, writer), address, port, limit=2**24, backlog=1024
    )
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main())
