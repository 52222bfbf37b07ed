"""A sandbox that serves from a thread of its own, for clients that block."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from proving.sandbox.server import Sandbox


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


def ask(
    venue: Served,
    path: str,
    body: bytes | None = None,
    *,
    client: int = 0,
    key: str = "",
    secret: str = "",
    stamp: int = 0,
    payload: bytes | None = None,
) -> tuple[int, dict[str, Any], dict[str, str]]:
    """HTTP status, answer and headers of a signed request; a part may be given to be wrong."""
    keys = venue.told["keys"][client]
    key, secret = key or keys["key"], secret or keys["secret"]
    at = str(stamp or time.time_ns() // 1_000_000)
    query = path.partition("?")[2].encode()
    signed = payload if payload is not None else (query if body is None else body)
    sign = hmac.new(secret.encode(), f"{at}{key}5000".encode() + signed, hashlib.sha256).hexdigest()
    headers = {
        "X-BAPI-API-KEY": key,
        "X-BAPI-TIMESTAMP": at,
        "X-BAPI-SIGN": sign,
        "X-BAPI-RECV-WINDOW": "5000",
        "Content-Type": "application/json",
    }
    request = urllib.request.Request(venue.told["rest"] + path, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer), dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error), dict(error.headers)
