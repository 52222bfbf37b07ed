"""A loopback WebSocket server that says what a test wants."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import msgspec
from websockets.asyncio.server import ServerConnection, serve

Handler = Callable[[ServerConnection], Awaitable[None]]


@contextmanager
def exchange(handler: Handler) -> Iterator[str]:
    """A loopback WebSocket server in a thread; gives its address."""
    ready, stop = threading.Event(), threading.Event()
    address: list[str] = []

    async def main() -> None:
        async with serve(handler, "127.0.0.1", 0) as server:
            address.append(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            ready.set()
            while not stop.is_set():
                await asyncio.sleep(0.01)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert ready.wait(10)
    try:
        yield address[0]
    finally:
        stop.set()
        thread.join(10)


async def acknowledge(socket: ServerConnection) -> list[str]:
    request = msgspec.json.decode(await socket.recv())
    assert request["op"] == "subscribe"
    await socket.send('{"success":true,"ret_msg":"","conn_id":"1","req_id":"","op":"subscribe"}')
    return list(request["args"])
