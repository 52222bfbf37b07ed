"""A connection to a sandbox's private or trade socket, by hand, and the clients that judge it."""

from __future__ import annotations

import json
import time
from typing import Any

import ccxt.pro
from websockets.sync.client import ClientConnection

from proving.sandbox.signing import signature
from tests.proving.sandbox_server import Served

SYMBOL = "BTC/USDT:USDT"


def authentication(
    venue: Served, client: int = 0, *, key: str = "", secret: str = "", expires: Any = None
) -> dict[str, Any]:
    """A request to authenticate; a part may be given to be wrong."""
    keys = venue.told["keys"][client]
    at = expires or time.time_ns() // 1_000_000 + 30_000
    sign = signature(secret or keys["secret"], f"GET/realtime{at}".encode())
    return {"op": "auth", "args": [key or keys["key"], at, sign]}


class Wire:
    """A connection by hand."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.frames: list[dict[str, Any]] = []  #: of topics, as they came

    def ask(self, request: Any) -> dict[str, Any]:
        """The answer to a request; frames of topics that come before it are kept."""
        self.socket.send(request if isinstance(request, str) else json.dumps(request))
        while True:
            frame = self._next(10)
            if "topic" not in frame:
                return frame
            self.frames.append(frame)

    def topics(self, count: int) -> list[dict[str, Any]]:
        """That many frames of topics, oldest first, with those kept."""
        while len(self.frames) < count:
            self.frames.append(self._next(10))
        taken, self.frames = self.frames[:count], self.frames[count:]
        return taken

    def silent(self, seconds: float = 0.3) -> bool:
        """Whether nothing comes for so long."""
        try:
            self.frames.append(self._next(seconds))
        except TimeoutError:
            return not self.frames
        return False

    def _next(self, seconds: float) -> dict[str, Any]:
        frame: dict[str, Any] = json.loads(self.socket.recv(timeout=seconds))
        return frame


def professional(venue: Served, client: int = 0) -> Any:
    """ccxt.pro, unmodified, pointed at the sandbox."""
    keys = venue.told["keys"][client]
    exchange = ccxt.pro.bybit(
        {
            "apiKey": keys["key"],
            "secret": keys["secret"],
            "enableRateLimit": False,
            "options": {"defaultType": "swap", "fetchMarkets": {"types": ["linear"]}},
        }
    )
    for name in ("spot", "futures", "v2", "public", "private"):
        exchange.urls["api"][name] = venue.told["rest"]
    sockets = exchange.urls["api"]["ws"]
    sockets["public"]["linear"] = venue.told["ws_public"]
    sockets["private"]["contract"] = venue.told["ws_private"]
    sockets["private"]["spot"]["unified"] = venue.told["ws_private"]
    sockets["private"]["trade"] = venue.told["ws_trade"]
    return exchange
