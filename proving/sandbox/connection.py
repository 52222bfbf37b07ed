"""WebSocket connections: what waits for each, whose it is, and the requests that all streams answer.

An endpoint serves the connections of one address. A `Stream` is one with topics: a request that names
one bad topic is refused as a whole and the socket stays open. A connection that falls too far behind
is ended.
"""

from __future__ import annotations

import asyncio
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final

import msgspec
from aiohttp import WSMsgType, web

from proving.sandbox.trading import Client

#: Frames that may wait for a reader.
MOST_WAITING: Final = 20_000


class Connection:
    """One connection: its topics, and the frames that wait for it."""

    def __init__(
        self, socket: web.WebSocketResponse, name: str, transport: asyncio.Transport | None = None
    ) -> None:
        self.socket, self.name, self._transport = socket, name, transport
        self.identity = str(uuid.uuid4())
        self.client: Client | None = None  #: whose it is, once it has said so
        self.topics: set[str] = set()
        self.lost = False  #: too far behind
        self.speaking = asyncio.Event()  #: while it is not set nothing is sent
        self.speaking.set()
        self.waiting: asyncio.Queue[bytes] = asyncio.Queue()
        self._closing: asyncio.Task[Any] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What it is known by: its client's key, and its own name."""
        return (self.client.key, self.name) if self.client else (self.name,)

    def put(self, frame: bytes) -> None:
        """Send a frame after those that wait."""
        if self.waiting.qsize() >= MOST_WAITING:
            self.lost = True
        else:
            self.waiting.put_nowait(frame)

    def say(self, fields: dict[str, Any]) -> None:
        """Send a control frame."""
        self.put(msgspec.json.encode(fields))

    async def write(self) -> None:
        """Send what waits, until the connection ends."""
        while not self.lost and not self.socket.closed:
            frame = await self.waiting.get()
            await self.speaking.wait()
            await self.socket.send_str(frame.decode())
        await self.socket.close()

    def end(self, orderly: bool) -> None:
        """Close the connection, or cut it without a word."""
        if orderly:
            self._closing = asyncio.create_task(self.socket.close(code=1001))
        elif self._transport is not None:
            self._transport.abort()


class Endpoint(ABC):
    """The connections of one address, each served to its end and called by its number there."""

    name = ""

    def __init__(self) -> None:
        self.connections: dict[Connection, None] = {}  #: oldest first
        self._opened = 0

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        """One connection, from its handshake to its end."""
        patience_s = self.patience_s(request)
        socket = web.WebSocketResponse(compress=True, receive_timeout=patience_s)
        await socket.prepare(request)
        self._opened += 1
        connection = Connection(socket, f"{self.name}/{self._opened}", request.transport)
        self.connections[connection] = None
        writing = asyncio.create_task(connection.write())
        try:
            async for message in socket:
                if message.type == WSMsgType.TEXT:
                    self.answer(connection, message.data)
        except TimeoutError:
            connection.end(orderly=False)
        finally:
            self.connections.pop(connection, None)
            self.leave(connection)
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
        return socket

    def patience_s(self, request: web.Request) -> float | None:
        """Seconds without a word from a client after which its connection is cut; None for ever."""
        return None

    async def close(self) -> None:
        """End all connections."""
        for connection in list(self.connections):
            await connection.socket.close()

    @abstractmethod
    def answer(self, connection: Connection, text: str) -> None:
        """A frame from a client."""

    @abstractmethod
    def leave(self, connection: Connection) -> None:
        """A connection has ended."""


class Stream(Endpoint):
    """An endpoint of topics; a kind of stream says which there are, and who may read them.

    ``deliver`` is how a topic's frame comes to a reader.
    """

    def __init__(self) -> None:
        super().__init__()
        self.deliver: Callable[[Connection, str, bytes], None] = _put
        self.readers: dict[str, set[Connection]] = {}  #: by topic

    def answer(self, connection: Connection, text: str) -> None:
        request, refusal = decoded(text)
        op, args = request.get("op", ""), request.get("args", [])
        echo: dict[str, Any] = {
            "conn_id": connection.identity,
            "req_id": str(request.get("req_id", "")),
            "op": op if isinstance(op, str) else "",
        }
        if refusal:
            connection.say({"success": False, "ret_msg": refusal, **echo})
        elif op == "ping":
            connection.say(self.pong(echo))
        elif op in ("subscribe", "unsubscribe"):
            topics = args if isinstance(args, list) else [args]
            joining = op == "subscribe"
            refusal = self.refusal(connection, topics, joining)
            connection.say({"success": not refusal, "ret_msg": refusal, **echo})
            if not refusal:
                for topic in topics:
                    (self.join if joining else self.part)(connection, topic)
        else:
            self.answer_other(connection, request, echo)

    def answer_other(
        self, connection: Connection, request: dict[str, Any], echo: dict[str, Any]
    ) -> None:
        """A request of another kind than those of all streams; ``echo`` goes into its answer."""
        connection.say({"success": False, "ret_msg": "error:invalid op", **echo})

    def pong(self, echo: dict[str, Any]) -> dict[str, Any]:
        return {"success": True, "ret_msg": "pong", **echo}

    @abstractmethod
    def knows(self, connection: Connection, topic: str) -> bool:
        """Whether there is such a topic for this connection."""

    def join(self, connection: Connection, topic: str) -> None:
        """Let a connection read a topic from now on."""
        connection.topics.add(topic)
        self.readers.setdefault(topic, set()).add(connection)

    def part(self, connection: Connection, topic: str) -> None:
        """Let a connection read a topic no longer."""
        connection.topics.discard(topic)
        readers = self.readers.get(topic, set())
        readers.discard(connection)
        if not readers:
            self.readers.pop(topic, None)

    def leave(self, connection: Connection) -> None:
        for topic in list(connection.topics):
            self.part(connection, topic)

    def refusal(self, connection: Connection, topics: list[Any], joining: bool) -> str:
        """Why not all of the topics can be had; empty when they can."""
        named: set[str] = set()
        for topic in topics:
            if not isinstance(topic, str) or not self.knows(connection, topic):
                return f"error:handler not found,topic:{topic}"
            if joining and (topic in connection.topics or topic in named):
                return f"error:already subscribed,topic:{topic}"
            named.add(topic)
        return "" if topics else "error:handler not found,topic:"


def _put(connection: Connection, topic: str, frame: bytes) -> None:
    connection.put(frame)


def decoded(text: str) -> tuple[dict[str, Any], str]:
    """A request, or nothing and why it cannot be read."""
    try:
        request = msgspec.json.decode(text)
        if not isinstance(request, dict):
            raise msgspec.DecodeError("expected an object")
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        return {}, f"Failed to decode incoming data: {error}"
    return request, ""
