"""WebSocket connections, and the public and private streams.

An `Endpoint` serves the connections of one path. A `Stream` is an endpoint with topics: a subscribe
request that names one bad topic is refused as a whole and the socket stays open. A connection whose send
queue overflows is closed (there is no backpressure on the exchange).
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

import msgspec
from aiohttp import WSMsgType, web

from market.units import MS_NS, SECOND_NS
from market.wire import topics
from proving.sandbox.accounts import Client
from proving.sandbox.candles import INTERVALS
from proving.sandbox.exchange import SandboxExchange
from proving.sandbox.private_messages import PrivateMessage
from proving.sandbox.protocol import RefusedError, authenticate_socket
from proving.sandbox.tape import DEPTHS

Json = dict[str, Any]
ConnectionT = TypeVar("ConnectionT", bound="Connection")


class Timer(Protocol):
    """Something that will happen, unless it is cancelled before."""

    def cancel(self) -> None:
        """It will not happen."""


#: Runs an action after so many seconds of the venue's wall clock.
Later = Callable[[float, Callable[[], None]], Timer]


def in_event_loop(delay_s: float, action: Callable[[], None]) -> Timer:
    """Run an action later in the running event loop."""
    return asyncio.get_running_loop().call_later(delay_s, action)


#: Frames that a connection's send queue may hold.
MAX_QUEUED: Final = 20_000
#: Idle timeout of a private connection: the default, which is also the longest, and the shortest.
IDLE_TIMEOUT_S: Final = 600
_MIN_IDLE_TIMEOUT_S: Final = 30
#: The topic whose subscribers are under disconnect-cancel-all.
DCP_TOPIC: Final = "dcp.future"
#: The only text observed of an authentication that the venue refused.
_AUTH_FAILED: Final = "error:USVC1111"

#: Public topics: the arguments that each stem takes.
_PUBLIC_ARGUMENTS: Final[dict[str, tuple[str, ...]]] = {
    topics.BOOK_STEM: tuple(map(str, DEPTHS)),
    "kline": INTERVALS,
    **dict.fromkeys((topics.TRADE_STEM, topics.TICKER_STEM, topics.LIQUIDATION_STEM), ("",)),
    "priceLimit": ("",),
}
#: Private topics that take a category, the categories, and topics that take none.
_CATEGORISED: Final = ("order", "execution", "execution.fast", "position")
_CATEGORIES: Final = ("linear", "inverse", "spot", "option")
_UNCATEGORISED: Final = ("wallet", "greeks", DCP_TOPIC)
_PRIVATE_TOPIC: Final = re.compile(
    rf"(?:{'|'.join(re.escape(topic) for topic in _CATEGORISED)})(?:\.(?:{'|'.join(_CATEGORIES)}))?"
    rf"|{'|'.join(re.escape(topic) for topic in _UNCATEGORISED)}"
)


# -- connections -----------------------------------------------------------------------------------


class Connection(ABC):
    """One connection of a client to an endpoint, and its subscriptions."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.conn_id = str(uuid.uuid5(uuid.NAMESPACE_URL, name))
        self.client: Client | None = None  #: once authenticated
        self.topics: set[str] = set()

    @property
    def names(self) -> tuple[str, ...]:
        """The names that a fault may address it by: its client's key, and its own name."""
        return (self.client.key, self.name) if self.client else (self.name,)

    def put_json(self, fields: Json) -> None:
        """Queue a control frame."""
        self.put(msgspec.json.encode(fields))

    @abstractmethod
    def put(self, frame: bytes) -> None:
        """Queue a frame."""

    @abstractmethod
    def pause(self) -> None:
        """Send nothing until `resume`."""

    @abstractmethod
    def resume(self) -> None:
        """Send what was queued meanwhile, and everything after it."""

    @abstractmethod
    def end(self, orderly: bool) -> None:
        """Close the connection with a closing frame, or abort it."""


class SocketConnection(Connection):
    """A connection over a WebSocket; frames wait in a queue."""

    def __init__(
        self, socket: web.WebSocketResponse, name: str, transport: asyncio.Transport | None = None
    ) -> None:
        super().__init__(name)
        self.socket, self._transport = socket, transport
        self.has_overflowed = False
        self.unpaused = asyncio.Event()  #: nothing is sent while it is not set
        self.unpaused.set()
        self.queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._closing: asyncio.Task[Any] | None = None

    def put(self, frame: bytes) -> None:
        if self.queue.qsize() >= MAX_QUEUED:
            self.has_overflowed = True
        else:
            self.queue.put_nowait(frame)

    def pause(self) -> None:
        self.unpaused.clear()

    def resume(self) -> None:
        self.unpaused.set()

    async def write(self) -> None:
        """Send queued frames until the connection ends."""
        while not self.has_overflowed and not self.socket.closed:
            frame = await self.queue.get()
            await self.unpaused.wait()
            await self.socket.send_str(frame.decode())
        await self.socket.close()

    def end(self, orderly: bool) -> None:
        if orderly:
            self._closing = asyncio.create_task(self.socket.close(code=1001))
        elif self._transport is not None:
            self._transport.abort()


class Endpoint(ABC):
    """The connections of one path, named by the endpoint and their number there ("public/1")."""

    name = ""

    def __init__(self) -> None:
        self.connections: dict[Connection, None] = {}  #: oldest first
        self._opened = 0

    def open(self, connect: Callable[[str], ConnectionT]) -> ConnectionT:
        """A new connection, made by its name."""
        self._opened += 1
        connection = connect(f"{self.name}/{self._opened}")
        self.connections[connection] = None
        return connection

    def lose(self, connection: Connection) -> None:
        """Forget a connection that has ended."""
        if self.connections.pop(connection, self) is None:
            self.on_disconnect(connection)

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        """Serve one connection from its handshake to its end."""
        idle_timeout_s = self.idle_timeout_s(request)
        socket = web.WebSocketResponse(compress=True, receive_timeout=idle_timeout_s)
        await socket.prepare(request)
        connection = self.open(lambda name: SocketConnection(socket, name, request.transport))
        writing = asyncio.create_task(connection.write())
        try:
            async for message in socket:
                if message.type == WSMsgType.TEXT:
                    self.answer(connection, message.data)
        except TimeoutError:
            connection.end(orderly=False)
        finally:
            self.lose(connection)
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
        return socket

    def idle_timeout_s(self, request: web.Request) -> float | None:
        """Seconds without a frame from the client until its connection is cut; None for ever."""
        return None

    async def close(self) -> None:
        """Close all connections."""
        for connection in list(self.connections):
            if isinstance(connection, SocketConnection):
                await connection.socket.close()

    @abstractmethod
    def answer(self, connection: Connection, text: str) -> None:
        """Handle a frame from a client."""

    @abstractmethod
    def on_disconnect(self, connection: Connection) -> None:
        """What follows from the end of a connection, which is no longer one of `connections`."""


def decode_request(text: str) -> tuple[Json, str]:
    """(request, "") of a JSON object, or ({}, error)."""
    try:
        request = msgspec.json.decode(text)
        if not isinstance(request, dict):
            raise msgspec.DecodeError("expected an object")
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        return {}, f"Failed to decode incoming data: {error}"
    return request, ""


# -- streams ---------------------------------------------------------------------------------------


class Stream(Endpoint):
    """An endpoint with topics; ``deliver`` queues a topic's frame for one subscriber.

    Call `attach` before serving.
    """

    exchange: SandboxExchange

    def __init__(self) -> None:
        super().__init__()
        self.deliver: Callable[[Connection, str, bytes], None] = _put
        self.subscribers: dict[str, dict[Connection, None]] = {}  #: by topic, oldest first

    def answer(self, connection: Connection, text: str) -> None:
        request, error = decode_request(text)
        op, args = request.get("op", ""), request.get("args", [])
        echo: Json = {
            "conn_id": connection.conn_id,
            "req_id": str(request.get("req_id", "")),
            "op": op if isinstance(op, str) else "",
        }
        if error:
            connection.put_json({"success": False, "ret_msg": error, **echo})
        elif op == "ping":
            connection.put_json(self.pong(echo))
        elif op in ("subscribe", "unsubscribe"):
            names = args if isinstance(args, list) else [args]
            subscribing = op == "subscribe"
            error = self.refusal(connection, names, subscribing)
            connection.put_json({"success": not error, "ret_msg": error, **echo})
            if not error:
                for topic in names:
                    (self.subscribe if subscribing else self.unsubscribe)(connection, topic)
        else:
            self.answer_other(connection, request, echo)

    def answer_other(self, connection: Connection, request: Json, echo: Json) -> None:
        """Answer an operation that not every stream has; ``echo`` is part of the answer."""
        connection.put_json({"success": False, "ret_msg": "error:invalid op", **echo})

    def pong(self, echo: Json) -> Json:
        """The answer to a ping (heartbeat)."""
        return {"success": True, "ret_msg": "pong", **echo}

    @abstractmethod
    def has_topic(self, topic: str) -> bool:
        """Whether a topic exists here."""

    def subscribe(self, connection: Connection, topic: str) -> None:
        connection.topics.add(topic)
        self.subscribers.setdefault(topic, {})[connection] = None

    def unsubscribe(self, connection: Connection, topic: str) -> None:
        connection.topics.discard(topic)
        subscribers = self.subscribers.get(topic, {})
        subscribers.pop(connection, None)
        if not subscribers:
            self.subscribers.pop(topic, None)

    def on_disconnect(self, connection: Connection) -> None:
        for topic in list(connection.topics):
            self.unsubscribe(connection, topic)

    def refusal(self, connection: Connection, names: list[Any], subscribing: bool) -> str:
        """Why a list of topics is refused; empty when it is not."""
        seen: set[str] = set()
        for topic in names:
            if not isinstance(topic, str) or not self.has_topic(topic):
                return f"error:handler not found,topic:{topic}"
            if subscribing and (topic in connection.topics or topic in seen):
                return f"error:already subscribed,topic:{topic}"
            seen.add(topic)
        return "" if names else "error:handler not found,topic:"


def _put(connection: Connection, topic: str, frame: bytes) -> None:
    connection.put(frame)


class PublicStream(Stream):
    """Market data. A new subscriber of a book or ticker gets a snapshot that the next delta continues.

    `publish` is the exchange's ``on_frame``.
    """

    name = "public"

    def __init__(self) -> None:
        super().__init__()
        self._candle_second = 0
        self.delisted: Callable[[str], bool] = lambda symbol: False

    def attach(self, exchange: SandboxExchange) -> None:
        """The exchange whose frames these are."""
        self.exchange = exchange

    def publish(self, topic: str, frame: bytes) -> None:
        """Deliver a frame to all subscribers of its topic; a delisted symbol loses them."""
        if self.delisted(topics.symbol_of(topic)):
            for subscriber in list(self.subscribers.get(topic, ())):
                self.unsubscribe(subscriber, topic)
        for subscriber in self.subscribers.get(topic, ()):
            self.deliver(subscriber, topic, frame)

    def publish_candles(self) -> None:
        """Publish the candles that have subscribers, once per simulated second."""
        exchange = self.exchange
        second = exchange.now_ns // SECOND_NS
        if second == self._candle_second:
            return
        self._candle_second = second
        for topic in self.subscribers:
            name = topics.parse(topic)
            if name is not None and name.stem == "kline":
                frame = exchange.tapes[name.symbol].candle_frame(name.argument, exchange.now_ns)
                if frame is not None:
                    self.publish(topic, frame)

    def has_topic(self, topic: str) -> bool:
        name = topics.parse(topic)
        return (
            name is not None
            and name.symbol in self.exchange.tapes
            and not self.delisted(name.symbol)
            and name.argument in _PUBLIC_ARGUMENTS.get(name.stem, ())
        )

    def subscribe(self, connection: Connection, topic: str) -> None:
        tape = self.exchange.tapes[topics.symbol_of(topic)]
        snapshot = tape.snapshot(topic, self.exchange.now_ns)
        if snapshot is not None:
            connection.put(snapshot)
        super().subscribe(connection, topic)


class PrivateStream(Stream):
    """Orders, executions, positions and wallets of an authenticated client.

    Past messages are not sent again. A topic is named with or without the category (`order`,
    `order.linear`), and its messages come under the name subscribed to.

    Disconnect-cancel-all: when the last connection of a client that subscribes to `dcp.future` has been
    gone for the window that the client set over REST (wall clock), its open orders are cancelled.

    `send` is the exchange's ``on_message``.
    """

    name = "private"

    def __init__(self, later: Later = in_event_loop) -> None:
        super().__init__()
        self._later = later
        self._catch_up: Callable[[], None] = lambda: None
        self._wall_ns = time.time_ns
        self._clients: dict[str, Client] = {}  #: by API key
        self._connections_of: dict[Client, dict[Connection, None]] = {}
        self._cancel_timers: dict[Client, Timer] = {}

    def attach(
        self, exchange: SandboxExchange, catch_up: Callable[[], None], wall_ns: Callable[[], int]
    ) -> None:
        """The exchange whose clients these are, what brings it up to now, and the venue's wall clock."""
        self.exchange, self._catch_up, self._wall_ns = exchange, catch_up, wall_ns
        self._clients = {client.key: client for client in exchange.clients}
        exchange.private_messages.has_reader = self._connections_of.__contains__

    def send(self, message: PrivateMessage) -> None:
        """Deliver a message to the connections of its client that subscribe to its topic."""
        for connection in self._connections_of.get(message.client, ()):
            for topic in (message.topic, f"{message.topic}.linear"):
                if topic in connection.topics:
                    self.deliver(connection, topic, message.frame(topic))

    # -- requests ----------------------------------------------------------------------------------

    def idle_timeout_s(self, request: web.Request) -> float:
        return idle_timeout_s(request.query.get("max_active_time", ""))

    def pong(self, echo: Json) -> Json:
        now_ms = self._wall_ns() // MS_NS
        return {**_req_id(echo), "op": "pong", "args": [str(now_ms)], "conn_id": echo["conn_id"]}

    def answer_other(self, connection: Connection, request: Json, echo: Json) -> None:
        if echo["op"] != "auth":
            super().answer_other(connection, request, echo)
            return
        rest = {"op": "auth", "conn_id": connection.conn_id, **_req_id(echo)}
        try:
            now_ms = self._wall_ns() // MS_NS
            client = authenticate_socket(request.get("args"), now_ms, self._clients)
            if connection.client not in (None, client):
                raise RefusedError(10003, "The connection is another client's.")
        except RefusedError:
            sent = {"op": "auth", "args": request.get("args")}
            failure = {"success": False, "ret_msg": _AUTH_FAILED, **rest, "request": sent}
            connection.put_json(failure)
            return
        connection.client = client
        self._connections_of.setdefault(client, {})[connection] = None
        connection.put_json({"success": True, "ret_msg": "", **rest})

    def refusal(self, connection: Connection, names: list[Any], subscribing: bool) -> str:
        if connection.client is None:
            return "Request not authorized"
        texts = {name for name in names if isinstance(name, str)}
        for topic in _CATEGORISED if subscribing else ():
            with_category = {f"{topic}.{category}" for category in _CATEGORIES} & texts
            if topic in texts and with_category:
                return f"error:handler not found,topic:{min(with_category)}"
        return super().refusal(connection, names, subscribing)

    def has_topic(self, topic: str) -> bool:
        return _PRIVATE_TOPIC.fullmatch(topic) is not None

    # -- disconnect-cancel-all ---------------------------------------------------------------------

    def subscribe(self, connection: Connection, topic: str) -> None:
        super().subscribe(connection, topic)
        if topic == DCP_TOPIC and connection.client in self._cancel_timers:
            self._cancel_timers.pop(connection.client).cancel()

    def on_disconnect(self, connection: Connection) -> None:
        was_protected = DCP_TOPIC in connection.topics
        super().on_disconnect(connection)
        client = connection.client
        if client is None:
            return
        others = self._connections_of[client]
        others.pop(connection, None)
        window_s = client.dcp_windows_s.get("DERIVATIVES")
        if was_protected and window_s and not any(DCP_TOPIC in other.topics for other in others):
            self._cancel_timers[client] = self._later(window_s, lambda: self._cancel_all(client))
        if not others:
            del self._connections_of[client]

    def _cancel_all(self, client: Client) -> None:
        del self._cancel_timers[client]
        self._catch_up()
        for order in list(client.open.values()):
            if order.is_open:
                self.exchange.cancel(order, "CancelByDCP")
        for order in list(client.untriggered.values()):
            if order.trigger is not None and order.trigger.kind == "Stop":
                self.exchange.conditional.deactivate(order, "CancelByDCP", self.exchange.now_ns)

    async def close(self) -> None:
        await super().close()
        for timer in self._cancel_timers.values():
            timer.cancel()


def _req_id(echo: Json) -> Json:
    """The request's id, if it had one."""
    return {"req_id": echo["req_id"]} if echo["req_id"] else {}


def idle_timeout_s(requested: str) -> float:
    """Seconds of `max_active_time` ("45s", "2m"), within bounds; the default for anything else."""
    match = re.fullmatch(r"([0-9]{1,4})([sm])", requested)
    if match is None:
        return IDLE_TIMEOUT_S
    seconds = int(match[1]) * (60 if match[2] == "m" else 1)
    return min(max(seconds, _MIN_IDLE_TIMEOUT_S), IDLE_TIMEOUT_S)
