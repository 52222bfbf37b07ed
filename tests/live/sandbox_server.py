"""A sandbox that serves from a thread of its own, for clients that block."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from live.sandbox.server import Sandbox


class Served(NamedTuple):
    """A running sandbox, and what it told its clients."""

    sandbox: Sandbox
    told: dict[str, Any]
    loop: asyncio.AbstractEventLoop

    def now(self, ask: Any) -> Any:
        """The answer of a function of the exchange, asked in the server's own thread."""

        async def asked() -> Any:
            return ask(self.sandbox.exchange)

        return asyncio.run_coroutine_threadsafe(asked(), self.loop).result(10)


@contextmanager
def served(sandbox: Sandbox) -> Iterator[Served]:
    """Serve while the block runs."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        told = asyncio.run_coroutine_threadsafe(sandbox.start(), loop).result(10)
        yield Served(sandbox, told, loop)
    finally:
        asyncio.run_coroutine_threadsafe(sandbox.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
