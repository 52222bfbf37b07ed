"""The connections to the venue: private stream, trade socket and REST, in one network thread.

`Connections.send` takes requests from any thread; ``sink`` is called in the network thread with the receive
time and a `PrivateFrame`, `Answer`, `Expired`, `Link` or `Command` ``fact`` (the clock's skew). Each request gets
an `Answer` or an `Expired`; after an `Expired` an `Answer` may still come. A request that did not leave has an
answer that says so. A lost socket is replaced for ever, with growing patience.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final, TypeVar

import msgspec

from live.bybit.codec import BybitCodec, Call, not_sent
from live.bybit.rest import (
    MOST_SKEW_NS,
    Budget,
    BybitError,
    NoAnswerError,
    Reply,
    Rest,
    ServerClock,
)
from live.bybit.venues import Keys, VenueAddress
from live.feed import Backoff
from live.messages import (
    Answer,
    Command,
    Expired,
    Input,
    Link,
    PrivateFrame,
    Query,
    QueryKind,
    QueryResult,
    Refused,
    Report,
    Send,
)
from market.settings import Live

T = TypeVar("T")

TOPICS: Final = ("order", "execution", "position", "wallet")
#: Subscribed to where disconnect-cancel-all is in force: it is these connections that the venue watches.
_DISCONNECT: Final = "dcp.future"
#: A socket without a message between two heartbeats is replaced; an answer this late is given up.
PING_S: Final = 20.0
LATEST_S: Final = 60.0
#: Blocking calls at a time.
_CALLERS: Final = 4
#: What a start has to know is asked for again after these waits (s), each answer awaited for so long.
_START_WAITS_S: Final = (0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0, 1.0)
_START_ANSWER_S: Final = 4.0


class _Socket:
    """One authenticated WebSocket, replaced when it is lost: the private stream or the trade socket."""

    def __init__(self, name: str, url: str, owner: Connections) -> None:
        self.name, self.url, self._owner = name, url, owner
        self.socket: Any = None  #: while it is authenticated
        self.wire: Any = None  #: the last connection, authenticated or not
        self.pending: dict[str, asyncio.Future[bytes]] = {}
        self._backoff = Backoff()

    async def run(self) -> None:
        """Sessions, one after the other. BybitError when the first is refused or cannot be connected."""
        from websockets.asyncio.client import connect
        from websockets.exceptions import WebSocketException

        quiet = logging.getLogger("l2.bybit.socket")
        quiet.setLevel(logging.WARNING)  # debug lines hold the signature
        started = False
        while True:
            try:
                async with connect(
                    self.url, ping_interval=None, max_size=1 << 24, max_queue=None, logger=quiet
                ) as socket:
                    self.wire = socket
                    await self._open(socket)
                    started = True
                    self._backoff.reset()
                    await self._read(socket)
            except (OSError, TimeoutError, WebSocketException, BybitError) as error:
                refused = isinstance(error, BybitError)
                reason = str(error) if refused else f"{type(error).__name__}: {error}"
                if not started:
                    if refused:
                        raise
                    raise BybitError(f"{self.url}: cannot connect ({reason})") from error
                self._lost(reason)
            await asyncio.sleep(self._backoff.next_s())

    async def _open(self, socket: Any) -> None:
        """Authenticate; subscribe, on the private stream."""
        owner, keys = self._owner, self._owner.keys
        expires = owner.clock.now_ms() + 10_000
        text = f"GET/realtime{expires}".encode()
        signature = hmac.new(keys.secret.encode(), text, hashlib.sha256).hexdigest()
        await self._ask(socket, "auth", [keys.key, expires, signature])
        if self.name == "private":
            watched = (_DISCONNECT,) if owner.disconnect_cancels else ()
            await self._ask(socket, "subscribe", [*TOPICS, *watched])
        self.socket = socket
        owner.give(Link(stream=self.name, up=True))

    async def _ask(self, socket: Any, op: str, args: list[Any]) -> None:
        await socket.send(msgspec.json.encode({"op": op, "args": args}).decode())
        async with asyncio.timeout(10.0):
            while True:
                message = await socket.recv(decode=False)
                if self._topic(message):
                    continue
                reply = _object(message)
                if reply.get("op") == op or "success" in reply:
                    break
        if reply.get("success") is False or reply.get("retCode", 0) not in (0, 20001):
            code, why = reply.get("retCode", ""), reply.get("retMsg", reply.get("ret_msg", ""))
            raise BybitError(
                f"{self.url}: {op} refused ({code} {why}); check that L2_API_KEY and L2_API_SECRET are "
                f"keys of {self._owner.address.name} and that they have not expired".replace(
                    "( ", "("
                )
            )

    def _topic(self, message: bytes) -> bool:
        """Hand a data frame on; replies, which may repeat the key, are not."""
        if b'"topic"' not in message[:256]:
            return False
        self._owner.give(PrivateFrame(frame=self._owner.keys.hidden(message)))
        return True

    async def _read(self, socket: Any) -> None:
        heard = [True]
        beat = asyncio.create_task(_heartbeat(socket, heard))
        try:
            while True:
                message = await socket.recv(decode=False)
                heard[0] = True
                if self._topic(message):
                    continue
                reply = _object(message)
                request = self.pending.pop(str(reply.get("reqId", "")), None)
                if request is not None and not request.done():
                    request.set_result(self._owner.keys.hidden(message))
                    self._owner.heard(
                        str(reply.get("op", "")).replace(".", "/"), reply.get("header")
                    )
        finally:
            beat.cancel()
            await asyncio.gather(beat, return_exceptions=True)

    def _lost(self, reason: str) -> None:
        if self.socket is not None:
            self.socket = None
            self._owner.give(Link(stream=self.name, up=False, reason=reason))
        for request in self.pending.values():
            if not request.done():
                request.set_exception(NoAnswerError(f"{self.name} socket lost: {reason}"))
        self.pending.clear()

    async def request(self, number: int, call: Call) -> bytes:
        """The answer to an order's request; NoAnswerError when the socket is lost."""
        from websockets.exceptions import WebSocketException

        owner, name = self._owner, str(number)
        frame = {
            "reqId": name,
            "header": {
                "X-BAPI-TIMESTAMP": str(owner.clock.now_ms()),
                "X-BAPI-RECV-WINDOW": str(owner.settings.receive_window_ms),
            },
            "op": call.operation,
            "args": [call.params],
        }
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.pending[name] = answer
        try:
            await self.socket.send(msgspec.json.encode(frame).decode())
            async with asyncio.timeout(LATEST_S):
                return await answer
        except (OSError, TimeoutError, WebSocketException) as error:
            raise NoAnswerError(f"{self.name} socket: {type(error).__name__}") from error
        finally:
            self.pending.pop(name, None)


class Connections:
    """``clock_ns`` stamps what comes and is the time of deadlines; ``speed`` is its speed to the wall's.

    BybitError from `start` when the venue cannot be reached, refuses the keys, or keeps another time.
    ``account`` is then the venue's id of the account. While ``may_send`` says no, requests are answered as not sent.
    """

    def __init__(
        self,
        address: VenueAddress,
        keys: Keys,
        codec: BybitCodec,
        sink: Callable[[int, Input], None],
        settings: Live,
        *,
        clock_ns: Callable[[], int] = time.time_ns,
        speed: float = 1.0,
    ) -> None:
        self.address, self.keys, self.settings = address, keys, settings
        self.clock, self.account = ServerClock(), ""
        self.disconnect_cancels = False  #: the venue cancels what rests when we are away
        self._codec, self._sink, self._clock_ns, self._speed = codec, sink, clock_ns, speed
        codec.states_fees = address.states_fees
        self._rest = Rest(address, keys, self.clock, settings.receive_window_ms)
        self._budget = Budget()
        self._private = _Socket("private", address.private, self)
        self._trade = _Socket("trade", address.trade, self) if address.trade else None
        self._callers = ThreadPoolExecutor(_CALLERS, thread_name_prefix="bybit-rest")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="bybit", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self._under_way: set[int] = set()
        self.may_send: Callable[[], bool] = lambda: True

    # -- from other threads --------------------------------------------------------------------

    def start(self, timeout_s: float = 60.0) -> None:
        """Connect; returns once everything is authenticated and subscribed."""
        self._thread.start()
        try:
            self._await(self._start(), timeout_s)
        except (TimeoutError, NoAnswerError, BybitError) as error:
            self.stop(0.0)
            if isinstance(error, BybitError):
                raise
            raise BybitError(
                f"{self.address.rest}: no answer ({str(error) or 'time-out'}); check network and address"
            ) from error

    def send(self, send: Send) -> None:
        """Send a request; what it rests on is on disk."""
        self._loop.call_soon_threadsafe(self._dispatch, send)

    def stop(self, timeout_s: float) -> None:
        """Give requests under way so long to be answered, then close everything."""
        if not self._thread.is_alive():
            return
        deadline = time.monotonic() + timeout_s
        while self._under_way and time.monotonic() < deadline:
            time.sleep(0.01)
        with suppress(TimeoutError):
            self._await(self._close(), 10.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10.0)
        self._callers.shutdown(wait=False, cancel_futures=True)
        if not self._loop.is_running():
            self._loop.close()

    def _await(self, work: Coroutine[Any, Any, None], timeout_s: float) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    # -- in the network thread -----------------------------------------------------------------

    def give(self, given: Input) -> None:
        """Hand over what came, stamped now."""
        self._sink(self._clock_ns(), given)

    def heard(self, path: str, headers: Any) -> None:
        """The rate limit of an answer."""
        self._budget.heard(path, headers or {}, self._loop.time(), self.clock.now_ms())

    async def _start(self) -> None:
        await self._insist(self.clock.measure, self._rest)
        if abs(skew_ns := self.clock.skew_ns) > MOST_SKEW_NS:
            where = "ahead of" if skew_ns > 0 else "behind"
            raise BybitError(
                f"the clock of this machine is {abs(skew_ns) / 1e9:.1f} s {where} the venue's "
                f"({self.address.rest}); set it (NTP), or every request is refused"
            )
        for symbol in self._codec.reader.instruments:
            await self._asked(Query(kind=QueryKind.INSTRUMENT, symbol=symbol))
        self.disconnect_cancels = await self._granted()
        for socket in (self._private, self._trade):
            if socket is not None:
                running = self._task(socket.run())
                while socket.socket is None:
                    if running.done():
                        running.result()  # raises why it could not start
                    await asyncio.sleep(0.01)
        for report in await self._asked(Query(kind=QueryKind.ACCOUNT)):
            self.account = getattr(report, "account", self.account)
        self._task(self._keep_time())

    async def _granted(self) -> bool:
        """Ask for disconnect-cancel-all; whether the venue grants it to this account, as to few."""
        if not (window_s := self.settings.disconnect_cancel_s):
            return False
        wanted = {"product": "DERIVATIVES", "timeWindow": max(3, window_s)}
        call = Call("order/disconnected-cancel-all", True, wanted)
        reply = await self._insist(self._rest.call, call, _START_ANSWER_S)
        return _object(reply.body).get("retCode") == 0

    async def _asked(self, query: Query) -> tuple[Report, ...]:
        """The reports of an answer; BybitError when they are none, for a reason that does not pass."""
        for wait_s in (*_START_WAITS_S, None):
            result = await self._answer(query)
            reports = result.reports
            if reports and not isinstance(reports[0], Refused):
                return reports
            if wait_s is None or not any(isinstance(one, Refused) and one.retry for one in reports):
                break
            await asyncio.sleep(wait_s)
        why = f" ({reason})" if (reason := result.reason) else ""
        if query.kind is QueryKind.INSTRUMENT:
            raise BybitError(
                f"{query.symbol}: {self.address.rest} does not list it{why}; take it out of market.symbols"
            )
        raise BybitError(
            f"{self.address.rest}: does not state the {query.kind}{why}; check that L2_API_KEY and "
            f"L2_API_SECRET are keys of {self.address.name}"
        )

    async def _answer(self, query: Query) -> QueryResult:
        conversation = self._codec.converse(query)
        call = next(conversation)
        try:
            while True:
                reply = await self._insist(self._rest.call, call, _START_ANSWER_S)
                call = conversation.send(reply.body)
        except StopIteration as ended:
            (result,) = self._codec.answer(self._clock_ns(), query, ended.value)
        assert isinstance(result, QueryResult)
        return result

    async def _insist(self, ask: Callable[..., T], *about: Any) -> T:
        """The answer to what only asks; asked again when there is none."""
        for wait_s in _START_WAITS_S:
            with suppress(NoAnswerError):
                return await self._loop.run_in_executor(self._callers, ask, *about)
            await asyncio.sleep(wait_s)
        return await self._loop.run_in_executor(self._callers, ask, *about)

    async def _measure(self) -> None:
        await self._loop.run_in_executor(self._callers, self.clock.measure, self._rest)

    async def _keep_time(self) -> None:
        while True:
            self.give(
                Command(
                    command="fact",
                    who="connections",
                    reason="measured against the venue's clock",
                    limits={"clock_skew_s": abs(self.clock.skew_ns) / 1e9},
                )
            )
            await asyncio.sleep(self.settings.sync_every_s)
            await self._measure_again()

    async def _measure_again(self) -> None:
        with suppress(NoAnswerError, BybitError):  # the last measurement stands
            await self._measure()

    async def _close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for socket in (self._private, self._trade):
            if socket is not None and socket.wire is not None:
                socket.wire.transport.abort()  # its orderly end may have been cut short
        await asyncio.sleep(0)

    def _task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.give(Link(stream="bybit", up=False, reason=f"{type(error).__name__}: {error}"))

    def _dispatch(self, send: Send) -> None:
        self._under_way.add(send.number)
        self._task(self._converse(send))

    def _left_s(self, send: Send) -> float:
        return (send.deadline_ns - self._clock_ns()) / 1e9 / self._speed

    async def _converse(self, send: Send) -> None:
        """One request to its answer, or to the `Expired` of its deadline or a lost connection."""
        conversation = self._codec.converse(send.body, send.symbol)
        timer = self._loop.call_later(
            max(0.0, self._left_s(send)), self._expire, send.number, "no answer by the deadline"
        )
        try:
            call = next(conversation)
            while True:
                call = conversation.send(await self._call(send, call))
        except StopIteration as ended:
            self._under_way.discard(send.number)
            self.give(Answer(request=send.number, body=ended.value))
        except ValueError as error:  # it cannot be written
            self._under_way.discard(send.number)
            self.give(Answer(request=send.number, body=not_sent(str(error))))
        except NoAnswerError as error:
            self._expire(send.number, str(error))
        finally:
            timer.cancel()

    def _expire(self, number: int, reason: str) -> None:
        if number in self._under_way:
            self._under_way.discard(number)
            self.give(Expired(request=number, reason=reason))

    def _in_time(self, send: Send, call: Call) -> Reply | None:
        """In a caller: the answer; None for what waited for the caller until after its deadline."""
        return self._rest.call(call) if self._left_s(send) > 0 else None

    async def _call(self, send: Send, call: Call) -> bytes:
        """The answer to one call, once the rate limit lets it leave."""
        wait_s = self._budget.take(call.path, self._loop.time(), self._left_s(send))
        if wait_s is None:
            return not_sent(
                f"its turn in the rate limit of {call.path} is after its deadline", 10006
            )
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        if not self.may_send():
            return not_sent("another worker may trade the account")
        if call.operation and self._trade is not None and self._trade.socket is not None:
            body = await self._trade.request(send.number, call)
        else:
            reply = await self._loop.run_in_executor(self._callers, self._in_time, send, call)
            if reply is None:
                return not_sent("no caller was free by its deadline", 10006)
            self.heard(call.path, reply.headers)
            if reply.status == 403:
                self._budget.close(self._loop.time() + self.address.silence_s)
            body = reply.body
        if b'"retCode":10002' in body[:80]:  # a clock was set
            self._task(self._measure_again())
        return body


async def _heartbeat(socket: Any, heard: list[bool]) -> None:
    while heard[0]:
        heard[0] = False
        await socket.send('{"op":"ping"}')
        await asyncio.sleep(PING_S)
    await socket.close(code=1001, reason="silent")


def _object(message: bytes) -> dict[str, Any]:
    with suppress(msgspec.DecodeError):
        decoded = msgspec.json.decode(message)
        if isinstance(decoded, dict):
            return decoded
    return {}
