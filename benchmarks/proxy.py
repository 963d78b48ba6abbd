"""``python -m benchmarks.proxy PORT HOST:PORT SECONDS``: makes every round trip longer.

It stands on loopback before a server and hands on what it gets, in order and whole, half of
*SECONDS* later in either direction. What is on its way does not hold up what follows, as on a
longer cable; opening a connection takes no longer.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
import sys


async def serve(port: int, upstream: str, seconds: float) -> None:
    """Accept for ever."""
    host, _, upstream_port = upstream.rpartition(":")

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(host, int(upstream_port))
        except OSError:
            writer.close()
            return
        _no_delay(writer)
        _no_delay(back)
        await asyncio.gather(
            _hand_on(reader, back, seconds / 2), _hand_on(there, writer, seconds / 2)
        )

    server = await asyncio.start_server(accept, "127.0.0.1", port)
    await server.serve_forever()


async def _hand_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float
) -> None:
    loop = asyncio.get_running_loop()
    try:
        while chunk := await reader.read(1 << 18):
            loop.call_later(seconds, writer.write, chunk)
    except OSError:
        pass
    loop.call_later(seconds, writer.close)


def _no_delay(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def main() -> None:
    port, upstream, seconds = sys.argv[1:]
    # epoll counts in milliseconds, which is twice the time of a whole round trip to a cache.
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    loop.run_until_complete(serve(int(port), upstream, float(seconds)))


if __name__ == "__main__":
    main()
