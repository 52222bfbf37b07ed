"""Clients of a sandbox: unmodified ccxt, ccxt.pro and pybit, and a WebSocket by hand."""

from __future__ import annotations

import json
import time
from typing import Any

import ccxt.pro
from pybit.unified_trading import HTTP
from websockets.sync.client import ClientConnection

from proving.sandbox.protocol import signature
from tests.proving.sandbox_server import Served

SYMBOL = "BTC/USDT:USDT"


def authentication(venue: Served, client: int = 0, *, expires: Any = None, **wrong: str) -> Any:
    """A request to authenticate, a part of which may be wrong."""
    keys = {**venue.description["keys"][client], **wrong}
    at = expires or time.time_ns() // 1_000_000 + 30_000
    sign = signature(keys["secret"], f"GET/realtime{at}".encode())
    return {"op": "auth", "args": [keys["key"], at, sign]}


class Wire:
    """A WebSocket by hand: requests with their answers, and the frames of topics."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.frames: list[dict[str, Any]] = []  #: of topics, received before they were asked for

    def ask(self, request: Any) -> dict[str, Any]:
        """The answer to a request (text is sent as it is); frames of topics before it are kept."""
        self.socket.send(request if isinstance(request, str) else json.dumps(request))
        while "topic" in (frame := self._receive(10)):
            self.frames.append(frame)
        return frame

    def next(self, topic: str = "") -> dict[str, Any]:
        """The next frame of a topic, or of any."""
        while True:
            frame = self.frames.pop(0) if self.frames else self._receive(10)
            if frame.get("topic") == topic or (not topic and "topic" in frame):
                return frame

    def topics(self, count: int) -> list[dict[str, Any]]:
        """So many frames of topics, oldest first."""
        return [self.next() for _ in range(count)]

    def is_silent(self, seconds: float = 0.3) -> bool:
        """Whether nothing comes for so long."""
        try:
            self.frames.append(self._receive(seconds))
        except TimeoutError:
            return not self.frames
        return False

    def _receive(self, seconds: float) -> dict[str, Any]:
        frame: dict[str, Any] = json.loads(self.socket.recv(timeout=seconds))
        return frame


def pybit_client(venue: Served, client: int = 0) -> HTTP:
    """pybit over REST."""
    keys = venue.description["keys"][client]
    session = HTTP(api_key=keys["key"], api_secret=keys["secret"])
    session.endpoint = venue.description["rest"]
    return session


def ccxt_client(venue: Served, client: int = 0, *, pro: bool = False, **more: Any) -> Any:
    """ccxt, or ccxt.pro with its streams."""
    keys = venue.description["keys"][client]
    exchange = (ccxt.pro if pro else ccxt).bybit(
        {
            "apiKey": keys["key"],
            "secret": keys["secret"],
            "enableRateLimit": False,
            "options": {"defaultType": "swap", "fetchMarkets": {"types": ["linear"]}},
            **more,
        }
    )
    for name in ("spot", "futures", "v2", "public", "private"):
        exchange.urls["api"][name] = venue.description["rest"]
    if pro:
        sockets = exchange.urls["api"]["ws"]
        sockets["public"]["linear"] = venue.description["ws_public"]
        sockets["private"]["contract"] = venue.description["ws_private"]
        sockets["private"]["spot"]["unified"] = venue.description["ws_private"]
        sockets["private"]["trade"] = venue.description["ws_trade"]
    return exchange
