"""A sandbox that serves from its own thread, for clients that block, and signed requests to it."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import threading
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import pybit.unified_trading

from proving.sandbox.server import Sandbox


class Served(NamedTuple):
    """A running sandbox, and the description that it gave its clients."""

    sandbox: Sandbox
    description: dict[str, Any]
    loop: asyncio.AbstractEventLoop

    def run(self, function: Any) -> Any:
        """The result of a function of the exchange, called in the server's thread."""

        async def call() -> Any:
            return function(self.sandbox.exchange)

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(10)


@contextmanager
def served(sandbox: Sandbox) -> Iterator[Served]:
    """Serve while the block runs."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        description = asyncio.run_coroutine_threadsafe(sandbox.start(), loop).result(120)
        yield Served(sandbox, description, loop)
    finally:
        asyncio.run_coroutine_threadsafe(sandbox.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def signed_headers(keys: Mapping[str, str], payload: bytes, stamp: int = 0) -> dict[str, str]:
    """Headers of a request with key and secret; the signature is computed apart from the sandbox's."""
    at, key = str(stamp or time.time_ns() // 1_000_000), keys["key"]
    text = f"{at}{key}5000".encode() + payload
    return {
        "X-BAPI-API-KEY": key,
        "X-BAPI-TIMESTAMP": at,
        "X-BAPI-SIGN": hmac.new(keys["secret"].encode(), text, hashlib.sha256).hexdigest(),
        "X-BAPI-RECV-WINDOW": "5000",
        "Content-Type": "application/json",
    }


def ask(
    venue: Served,
    path: str,
    body: bytes | None = None,
    *,
    client: int = 0,
    stamp: int = 0,
    payload: bytes | None = None,
    **wrong_keys: str,
) -> tuple[int, dict[str, Any], dict[str, str]]:
    """HTTP status, answer and headers of a signed request, a part of which may be wrong."""
    query = path.partition("?")[2].encode()
    signed = payload if payload is not None else (query if body is None else body)
    headers = signed_headers({**venue.description["keys"][client], **wrong_keys}, signed, stamp)
    request = urllib.request.Request(venue.description["rest"] + path, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer), dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error), dict(error.headers)


def eventually(condition: Callable[[], Any]) -> Any:
    """The first true result within a minute: other tests may have the machine."""
    deadline = time.monotonic() + 60
    while not (result := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert result
    return result


def pybit_stream(**settings: Any) -> pybit.unified_trading.WebSocket:
    """pybit's client of a stream.

    It notes a subscription after it is sent, and an answer that is faster ends its connection.
    """
    stream = pybit.unified_trading.WebSocket(testnet=False, **settings)
    stream.subscriptions = defaultdict(str)
    return stream
