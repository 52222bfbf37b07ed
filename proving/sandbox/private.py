"""The private WebSocket: who a connection is, and what its client is told.

A connection authenticates, then subscribes; nothing is sent of what was before. A topic is named with
or without the category (`order`, `order.linear`), and its messages come under the name asked for. A
connection from which nothing has come for its time of patience is ended.

Disconnect-cancel-all: for a client that has asked for it over REST and has connections that read
`dcp.future`, every open order is cancelled when the last of them has been gone for the window (wall
clock) and none has come back.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from typing import Any, Final

from aiohttp import web

from proving.sandbox.checks import Body, text
from proving.sandbox.connection import Connection, Stream
from proving.sandbox.exchange import Exchange
from proving.sandbox.notices import Notice
from proving.sandbox.refusal import RefusedError
from proving.sandbox.signing import client_of_socket
from proving.sandbox.trading import Client

#: Topics with a category behind them, the categories, and topics without; most say nothing here.
_KINDS: Final = ("order", "execution", "execution.fast", "position")
_CATEGORIES: Final = ("linear", "inverse", "spot", "option")
_PLAIN: Final = ("wallet", "greeks", "dcp.future")
_TOPIC: Final = re.compile(
    rf"(?:{'|'.join(re.escape(kind) for kind in _KINDS)})(?:\.(?:{'|'.join(_CATEGORIES)}))?"
    rf"|{'|'.join(re.escape(topic) for topic in _PLAIN)}"
)
PROTECTION: Final = "dcp.future"
#: The only text that was ever seen of an authentication that failed.
_FAILED: Final = "error:USVC1111"
#: Seconds without a word from a client before its connection is ended: what a client may ask for.
PATIENCE_S: Final = 600
_LEAST_PATIENCE_S: Final = 30
_PRODUCTS: Final = ("OPTIONS", "DERIVATIVES", "SPOT")
WINDOW_S: Final = (3, 300)


class PrivateStream(Stream):
    """`tell` is what the exchange calls for every notice; `follow` the exchange before serving."""

    name = "private"
    exchange: Exchange

    def __init__(self) -> None:
        super().__init__()
        self._current: Callable[[], None] = lambda: None
        self._wall_ns = time.time_ns
        self._clients: dict[str, Client] = {}
        self._own: dict[Client, dict[Connection, None]] = {}
        self._cancelling: dict[Client, asyncio.TimerHandle] = {}

    def follow(
        self, exchange: Exchange, current: Callable[[], None], wall_ns: Callable[[], int]
    ) -> None:
        """The exchange whose clients these are, what brings it to the present, and the venue's wall
        clock."""
        self.exchange, self._current, self._wall_ns = exchange, current, wall_ns
        self._clients = {client.key: client for client in exchange.clients}
        exchange.notices.heard = self._own.__contains__

    def tell(self, notice: Notice) -> None:
        """A notice to all connections of its client that read its topic."""
        for connection in self._own.get(notice.client, ()):
            for topic in (notice.topic, f"{notice.topic}.linear"):
                if topic in connection.topics:
                    self.deliver(connection, topic, notice.frame(topic))

    # -- requests ----------------------------------------------------------------------------------

    def patience_s(self, request: web.Request) -> float:
        return patience_s(request.query.get("max_active_time", ""))

    def pong(self, echo: dict[str, Any]) -> dict[str, Any]:
        stamp = [str(self._wall_ns() // 1_000_000)]
        return {**_sent(echo), "op": "pong", "args": stamp, "conn_id": echo["conn_id"]}

    def answer_other(
        self, connection: Connection, request: dict[str, Any], echo: dict[str, Any]
    ) -> None:
        if echo["op"] != "auth":
            super().answer_other(connection, request, echo)
            return
        rest = {"op": "auth", "conn_id": connection.identity, **_sent(echo)}
        try:
            now_ms = self._wall_ns() // 1_000_000
            client = client_of_socket(request.get("args"), now_ms, self._clients)
            if connection.client not in (None, client):
                raise RefusedError(10003, "The connection is another client's.")
        except RefusedError:
            sent = {"op": "auth", "args": request.get("args")}
            connection.say({"success": False, "ret_msg": _FAILED, **rest, "request": sent})
            return
        connection.client = client
        self._own.setdefault(client, {})[connection] = None
        connection.say({"success": True, "ret_msg": "", **rest})

    def refusal(self, connection: Connection, topics: list[Any], joining: bool) -> str:
        if connection.client is None:
            return "Request not authorized"
        names = {topic for topic in topics if isinstance(topic, str)}
        for kind in _KINDS if joining else ():
            categorised = {f"{kind}.{category}" for category in _CATEGORIES} & names
            if kind in names and categorised:
                return f"error:handler not found,topic:{min(categorised)}"
        return super().refusal(connection, topics, joining)

    def knows(self, connection: Connection, topic: str) -> bool:
        return _TOPIC.fullmatch(topic) is not None

    # -- disconnect-cancel-all ---------------------------------------------------------------------

    def join(self, connection: Connection, topic: str) -> None:
        super().join(connection, topic)
        if topic == PROTECTION and connection.client in self._cancelling:
            self._cancelling.pop(connection.client).cancel()

    def leave(self, connection: Connection) -> None:
        protected = PROTECTION in connection.topics
        super().leave(connection)
        client = connection.client
        if client is None:
            return
        own = self._own[client]
        own.pop(connection, None)
        window_s = client.windows.get("DERIVATIVES")
        if protected and window_s and not any(PROTECTION in other.topics for other in own):
            loop = asyncio.get_running_loop()
            self._cancelling[client] = loop.call_later(window_s, self._cancel_all, client)
        if not own:
            del self._own[client]

    def _cancel_all(self, client: Client) -> None:
        del self._cancelling[client]
        self._current()
        for order in list(client.open.values()):
            if order.is_open:
                self.exchange.cancel(order, "CancelByDCP")
        for order in list(client.waiting.values()):
            if order.trigger is not None and order.trigger.kind == "Stop":
                self.exchange.triggers.deactivate(order, "CancelByDCP", self.exchange.now_ns)

    async def close(self) -> None:
        await super().close()
        for timer in self._cancelling.values():
            timer.cancel()


def _sent(echo: dict[str, Any]) -> dict[str, Any]:
    """The request's id, when it had one."""
    return {"req_id": echo["req_id"]} if echo["req_id"] else {}


def patience_s(asked: str) -> float:
    """Seconds of `max_active_time`, as in "45s" or "2m"; the longest when it says nothing sensible."""
    match = re.fullmatch(r"([0-9]{1,4})([sm])", asked)
    if match is None:
        return PATIENCE_S
    seconds = int(match[1]) * (60 if match[2] == "m" else 1)
    return min(max(seconds, _LEAST_PATIENCE_S), PATIENCE_S)


def set_window(exchange: Exchange, client: Client, body: Body) -> dict[str, Any]:
    """After how many seconds without its connections a client's orders are cancelled."""
    product, window_s = text(body, "product", "OPTIONS"), body.get("timeWindow")
    if product not in _PRODUCTS:
        raise RefusedError(10001, "params error: product invalid")
    if not isinstance(window_s, int) or not WINDOW_S[0] <= window_s <= WINDOW_S[1]:
        raise RefusedError(10001, "params error: timeWindow invalid")
    client.windows[product] = window_s
    return {}


def windows(exchange: Exchange, client: Client, query: dict[str, str]) -> dict[str, Any]:
    """What is set of it."""
    rows = [
        {"product": product, "dcpStatus": "ON", "timeWindow": str(window_s)}
        for product, window_s in client.windows.items()
    ]
    return {"dcpInfos": rows}
