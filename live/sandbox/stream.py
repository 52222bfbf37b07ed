"""The public WebSocket: subscriptions, control frames, and each topic's frames to its readers.

A request that names one bad topic is refused as a whole, and the socket stays open. A reader of a
book or ticker is first sent a snapshot of where the stream stands; what it is sent next follows on
from there. A reader that falls too far behind is disconnected.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from typing import Any, Final

import msgspec
from aiohttp import WSMsgType, web

from live.sandbox.candles import INTERVALS
from live.sandbox.exchange import Exchange
from live.sandbox.tape import DEPTHS

#: Frames that may wait for a reader.
MOST_WAITING: Final = 20_000
_SECOND: Final = 1_000_000_000
_TOPIC: Final = re.compile(
    rf"(orderbook\.(?:{'|'.join(map(str, DEPTHS))})|kline\.(?:{'|'.join(INTERVALS)})"
    r"|publicTrade|tickers|allLiquidation)\.([A-Z0-9]+)"
)


class Reader:
    """One connection: its topics, and the frames that wait for it."""

    def __init__(self, socket: web.WebSocketResponse) -> None:
        self.socket = socket
        self.identity = str(uuid.uuid4())
        self.topics: set[str] = set()
        self.lost = False  #: too far behind
        self._waiting: asyncio.Queue[bytes] = asyncio.Queue()

    def put(self, frame: bytes) -> None:
        """Send a frame after those that wait."""
        if self._waiting.qsize() >= MOST_WAITING:
            self.lost = True
        else:
            self._waiting.put_nowait(frame)

    def say(self, **fields: Any) -> None:
        """Send a control frame."""
        self.put(msgspec.json.encode(fields))

    async def write(self) -> None:
        """Send what waits, until the connection ends."""
        while not self.lost and not self.socket.closed:
            frame = await self._waiting.get()
            await self.socket.send_str(frame.decode())
        await self.socket.close()


class PublicStream:
    """Readers by topic. `publish` is what the exchange calls for every frame."""

    def __init__(self) -> None:
        self._readers: dict[str, set[Reader]] = {}
        self._connections: set[Reader] = set()
        self._second = 0

    def publish(self, topic: str, frame: bytes) -> None:
        """A frame to all readers of its topic."""
        for reader in self._readers.get(topic, ()):
            reader.put(frame)

    def candles(self, exchange: Exchange) -> None:
        """The candles that somebody reads, once a simulated second."""
        second = exchange.now_ns // _SECOND
        if second == self._second:
            return
        self._second = second
        for topic in self._readers:
            if topic.startswith("kline."):
                _, interval, symbol = topic.split(".")
                frame = exchange.tapes[symbol].candle_frame(interval, exchange.now_ns)
                if frame is not None:
                    self.publish(topic, frame)

    async def connect(self, request: web.Request, exchange: Exchange) -> web.WebSocketResponse:
        """Serve one connection to its end."""
        socket = web.WebSocketResponse(compress=True)
        await socket.prepare(request)
        reader = Reader(socket)
        self._connections.add(reader)
        writing = asyncio.create_task(reader.write())
        try:
            async for message in socket:
                if message.type == WSMsgType.TEXT:
                    self._answer(reader, exchange, message.data)
        finally:
            self._connections.discard(reader)
            self._leave(reader, reader.topics)
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
        return socket

    async def close(self) -> None:
        """End all connections."""
        for reader in list(self._connections):
            await reader.socket.close()

    def _answer(self, reader: Reader, exchange: Exchange, text: str) -> None:
        try:
            request = msgspec.json.decode(text)
            if not isinstance(request, dict):
                raise msgspec.DecodeError("expected an object")
        except (msgspec.DecodeError, RecursionError) as error:
            request, refusal = {}, f"Failed to decode incoming data: {error}"
        else:
            refusal = ""
        op, args = request.get("op", ""), request.get("args", [])
        echo: dict[str, Any] = {
            "conn_id": reader.identity,
            "req_id": str(request.get("req_id", "")),
            "op": op if isinstance(op, str) else "",
        }
        if refusal:
            reader.say(success=False, ret_msg=refusal, **echo)
        elif op == "ping":
            reader.say(success=True, ret_msg="pong", **echo)
        elif op in ("subscribe", "unsubscribe"):
            topics = args if isinstance(args, list) else [args]
            refusal = self._refusal(reader, exchange, topics, op == "subscribe")
            reader.say(success=not refusal, ret_msg=refusal, **echo)
            if not refusal and op == "subscribe":
                self._join(reader, exchange, topics)
            elif not refusal:
                self._leave(reader, set(topics))
        else:
            reader.say(success=False, ret_msg="error:invalid op", **echo)

    def _refusal(self, reader: Reader, exchange: Exchange, topics: list[Any], joining: bool) -> str:
        """Why not all of the topics can be had; empty when they can."""
        named: set[str] = set()
        for topic in topics:
            match = _TOPIC.fullmatch(topic) if isinstance(topic, str) else None
            if match is None or match[2] not in exchange.tapes:
                return f"error:handler not found,topic:{topic}"
            if joining and (topic in reader.topics or topic in named):
                return f"error:already subscribed,topic:{topic}"
            named.add(topic)
        return "" if topics else "error:handler not found,topic:"

    def _join(self, reader: Reader, exchange: Exchange, topics: list[str]) -> None:
        for topic in topics:
            tape = exchange.tapes[topic.rpartition(".")[2]]
            snapshot = tape.snapshot(topic, exchange.now_ns)
            if snapshot is not None:
                reader.put(snapshot)
            reader.topics.add(topic)
            self._readers.setdefault(topic, set()).add(reader)

    def _leave(self, reader: Reader, topics: set[str]) -> None:
        for topic in list(topics):
            readers = self._readers.get(topic, set())
            readers.discard(reader)
            if not readers:
                self._readers.pop(topic, None)
            reader.topics.discard(topic)
