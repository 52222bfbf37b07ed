"""Feeds: market frames in receive order, from captures or from a WebSocket.

A feed is an iterator of `Item`: frames, and ticks (bare time) on a fixed grid of the receive clock, so
that a second closes when it ends and not with the next frame. Both share one order: after a tick at t
no earlier frame follows. The two feeds are interchangeable for a worker:

    ReplayFeed   captures; first as fast as possible (warm-up), then at ``speed`` times real time
    WireFeed     public V5 WebSocket; subscribes, sends heartbeats, reconnects, stamps at the socket read

Control lines (``{"l2": …}``) are passed on among the frames: captures show reconnects too.
"""

from __future__ import annotations

import asyncio
import copy
import math
import queue
import random
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from market.console import utc_time
from market.errors import VenueError
from market.units import DAY_NS, MS_NS, SECOND_NS
from market.wire.capture import read_blocks

#: Ticks are at multiples of this receive time.
TICK_NS: Final = 100 * MS_NS

#: A longer silence in a replay gets ticks for this long, then jumps to the next frame.
SILENCE_NS: Final = 60 * SECOND_NS

#: So many first frames, all of another date than our clock, end a feed: one alone may be wrong.
MISDATED: Final = 20

#: Resubscriptions of a topic without a snapshot before the connection is replaced.
RENEWALS: Final = 4

_OPENS: Final = ("orderbook.", "tickers.")  #: topics that open with a snapshot
_TOPIC: Final = re.compile(rb'"topic"\s*:\s*"([^"]+)"')

#: Captures are read in small blocks: decompressing a large one would delay the frames in it.
BLOCK_BYTES: Final = 1 << 16


class FeedError(VenueError):
    """The feed cannot start or continue; the message says what to do."""


class Item(NamedTuple):
    """A frame, or a tick when ``frame`` is None."""

    receive_ns: int  #: receive time, epoch ns
    frame: bytes | None
    due_ns: int  #: monotonic ns at which it was due (replay) or read (wire); 0 when not paced


class Feed(Protocol):
    """A source of frames and ticks.

    ``first_ns`` is the receive time of the first item where it is known before, else 0.
    """

    @property
    def first_ns(self) -> int: ...

    def __iter__(self) -> Iterator[Item]: ...

    def stop(self) -> None:
        """End the iteration soon; may be called from anywhere."""


class RenewableFeed(Feed, Protocol):
    """A feed whose topics can be resubscribed (`WireFeed`)."""

    @property
    def deepest_queue(self) -> int: ...
    def renew(self, topics: Sequence[str]) -> None: ...


class ReplayFeed:
    """Captures one after the other, paced by their receive times.

    The first ``warm_up_s`` of capture time are not paced, the rest runs at ``speed`` times real time;
    with a speed of zero nothing is paced. ``duration_s`` is in real seconds after the warm-up, that is
    ``duration_s * speed`` of capture time, so that the end does not depend on the machine. FeedError
    without a capture, for a negative speed or warm-up, or a file without a receive time.
    """

    def __init__(
        self,
        captures: Sequence[str],
        *,
        speed: float = 1.0,
        warm_up_s: float = 0.0,
        duration_s: float | None = None,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not captures:
            raise FeedError("no capture to replay: name at least one *.frames.zst file")
        if not (math.isfinite(speed) and speed >= 0 and warm_up_s >= 0):
            raise FeedError(f"speed {speed:g} and warm-up {warm_up_s:g} s must not be negative")
        self._captures = tuple(captures)
        self._speed = speed
        self._warm_up_ns = round(warm_up_s * 1e9)
        self._duration_ns = None if duration_s is None else round(duration_s * (speed or 1.0) * 1e9)
        self._monotonic_ns = monotonic_ns
        self._sleep = sleep
        self._stopped = False

    def stop(self) -> None:
        self._stopped = True

    @property
    def first_ns(self) -> int:
        """Receive time of the first line that has one."""
        return next((receive_ns for receive_ns, _ in self._lines()), 0)

    def __iter__(self) -> Iterator[Item]:
        now_ns = paced_from_ns = end_ns = anchor_ns = 0
        for receive_ns, frame in self._with_ticks():
            if not now_ns:
                paced_from_ns = receive_ns + self._warm_up_ns
                end_ns = 0 if self._duration_ns is None else paced_from_ns + self._duration_ns
            now_ns = max(now_ns, receive_ns)
            if self._stopped or (end_ns and now_ns > end_ns):
                return
            due_ns = 0
            if self._speed and now_ns >= paced_from_ns:
                anchor_ns = anchor_ns or self._monotonic_ns()
                due_ns = anchor_ns + round((now_ns - paced_from_ns) / self._speed)
                self._wait(due_ns)
            yield Item(receive_ns, frame, due_ns)

    def _wait(self, due_ns: int) -> None:
        # In slices, so that a stop takes effect at slow speeds too.
        while not self._stopped and (wait_ns := due_ns - self._monotonic_ns()) > 0:
            self._sleep(min(wait_ns / 1e9, 0.1))

    def _with_ticks(self) -> Iterator[tuple[int, bytes | None]]:
        """The captures' lines with ticks between them."""
        now_ns = 0
        for receive_ns, frame in self._lines():
            if now_ns:
                tick_ns = (now_ns // TICK_NS + 1) * TICK_NS
                last_ns = min(receive_ns, now_ns + SILENCE_NS)
                while tick_ns <= last_ns:
                    yield tick_ns, None
                    tick_ns += TICK_NS
            now_ns = max(now_ns, receive_ns)
            yield receive_ns, frame

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """(receive time, frame) of every line; a line without a time is passed on whole.

        It gets the last time, and the decoder rejects it, which counts and quarantines it.
        """
        now_ns = 0
        for path in self._captures:
            for block in read_blocks(path, BLOCK_BYTES):
                for line in block.data.split(b"\n")[:-1]:
                    stamp, _, frame = line.partition(b" ")
                    if frame and stamp.isdigit() and len(stamp) < 20:
                        now_ns = int(stamp)
                        yield now_ns, frame
                    elif now_ns:
                        yield now_ns, line
            if not now_ns:
                raise FeedError(f"{path}: no line has a receive time; is it a capture?")


class Backoff:
    """Exponential backoff from ``first_s`` to ``limit_s``, drawn uniformly from the upper half.

    The jitter keeps clients that lost the same venue from reconnecting at the same instant.
    """

    def __init__(
        self, first_s: float = 0.5, limit_s: float = 30.0, seed: int | None = None
    ) -> None:
        self._first_s, self._limit_s = first_s, limit_s
        self._random = random.Random(seed)
        self.attempt = 0  #: waits given since the last success

    def reset(self) -> None:
        """Start again at ``first_s``, after a success."""
        self.attempt = 0

    def next_s(self) -> float:
        """Seconds to wait before the next attempt."""
        ceiling = min(self._limit_s, self._first_s * 2**self.attempt)
        self.attempt = min(self.attempt + 1, 32)
        return self._random.uniform(ceiling / 2, ceiling)


class WireFeed:
    """A public V5 WebSocket.

    One thread reads the socket, stamps each frame at the read and makes the ticks, which gives both
    one order; the consumer iterates in its own thread over an unbounded queue. A lost connection is
    replaced for ever, with `Backoff`. A connection without a message between two heartbeats is replaced.

    The venue refuses a whole request for one topic that it does not have, a delisted symbol's for one.
    The others are asked for again at once, and the refused ones later, after waits of ``ask_again``; a
    control line ``refused`` names them, one ``restored`` those that are back. A refusal that names no
    topic, as of a venue that is restarting, passes: all are asked for again after waits of ``quick``.

    FeedError when the first connection fails, as a wrong address always will, when every topic is
    refused before any was subscribed, and when the first frames are all over a day off our clock.
    ``clock_ns`` stamps frames and measures ``duration_s``, ``speed`` is its speed to the wall clock's.
    ``keep_replies`` passes on replies to our requests too. ``inbox`` is the queue that the iteration
    reads; others may put into it, and what they put is given out as it is.
    """

    def __init__(
        self,
        url: str,
        topics: Sequence[str],
        *,
        duration_s: float | None = None,
        ping_s: float = 20.0,
        connect_s: float = 10.0,
        backoff: Backoff | None = None,
        ask_again: Backoff | None = None,
        quick: Backoff | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
        speed: float = 1.0,
        keep_replies: bool = False,
        inbox: queue.SimpleQueue[Any] | None = None,
    ) -> None:
        if not url.startswith(("ws://", "wss://")):
            raise FeedError(f"{url}: expected a ws:// or wss:// address")
        self.first_ns = 0  #: only the venue knows
        self._url, self._topics, self._duration_s = url, list(topics), duration_s
        self._ping_s, self._connect_s = ping_s, connect_s
        self._backoff = backoff or Backoff()
        self._ask_again = ask_again or Backoff(60.0, 900.0)
        self._quick = quick or Backoff(2.0, 30.0)
        self._clock_ns, self._speed = clock_ns, speed
        self._keep_replies = keep_replies
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wanted = asyncio.Event()  #: `_again` or `_replace` changed
        self._replace = False  #: the connection shall be replaced
        #: Subscriptions without a reply yet: their topics, and those refused before, with the reason.
        self._asked: deque[tuple[list[str], dict[str, str]]] = deque()
        self._accepted = False  #: a subscription was, once
        self._refused: dict[str, str] = {}  #: topic -> reason, as of its last reply
        self._again: dict[str, tuple[float, Backoff]] = {}  #: topic -> when to subscribe it again
        self._misdated = 0  #: frames over a day off our clock, until one is not; -1 from then on
        self._queue: queue.SimpleQueue[Any] = inbox or queue.SimpleQueue()
        self._stopped = threading.Event()
        self._last_ns = 0
        self._received = False  #: a message since the last ping
        self.links: dict[str, tuple[bool, int, str]] = {}  #: as `live.shell.Links`
        self.reconnects = self.deepest_queue = 0  #: the largest queue: a measure of backpressure

    def stop(self) -> None:
        self._stopped.set()

    def renew(self, topics: Sequence[str]) -> None:
        """Resubscribe these topics, which gives each a new snapshot; without any, reconnect.

        A book or ticker without a snapshot is resubscribed again, with growing patience; after
        `RENEWALS` of them the connection is replaced. May be called from the consumer's thread.
        """
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._want, tuple(topics))

    def __iter__(self) -> Iterator[Item]:
        reader = threading.Thread(target=self._run, name="feed", daemon=True)
        reader.start()
        try:
            while (item := self._queue.get()) is not None:
                if isinstance(item, FeedError):
                    raise item
                self.deepest_queue = max(self.deepest_queue, self._queue.qsize())
                yield item
        finally:
            self._stopped.set()
            reader.join(timeout=5)

    # -- the reader's thread -------------------------------------------------------------------

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except FeedError as error:
            self._queue.put(error)
        except Exception as error:  # raised by the consumer: a thread's own would be lost
            self._queue.put(FeedError(f"{self._url}: reader failed: {error!r}"))
        finally:
            self._queue.put(None)

    def _put(self, frame: bytes | None) -> None:
        self._last_ns = max(self._last_ns, self._clock_ns())
        self._queue.put(Item(self._last_ns, frame, time.monotonic_ns()))

    def _control(self, kind: str, **fields: Any) -> None:
        up = kind == "connect"
        if kind.endswith("connect") and self.links.get("public", (not up,))[0] != up:
            self.links["public"] = (up, self._clock_ns(), str(fields.get("reason", "")))
        self._put(msgspec.json.encode({"l2": kind, **fields}))

    async def _serve(self) -> None:
        """Run ticks and connections until either ends."""
        self._loop = asyncio.get_running_loop()
        sessions, ticks = map(asyncio.create_task, (self._sessions(), self._ticks()))
        done, pending = await asyncio.wait((sessions, ticks), return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for task in done:
            task.result()

    async def _ticks(self) -> None:
        lasts_s = math.inf if self._duration_s is None else self._duration_s
        end_ns = self._clock_ns() + lasts_s * 1e9
        while not self._stopped.is_set():
            now = self._clock_ns()
            if now >= end_ns:
                return
            await asyncio.sleep((TICK_NS - now % TICK_NS) / 1e9 / self._speed)
            boundary = self._clock_ns() // TICK_NS * TICK_NS
            if boundary > self._last_ns:
                self._last_ns = boundary
                self._queue.put(Item(boundary, None, time.monotonic_ns()))

    async def _sessions(self) -> None:
        from websockets.asyncio.client import connect
        from websockets.exceptions import WebSocketException

        while True:
            try:
                async with connect(
                    self._url,
                    open_timeout=self._connect_s,
                    ping_interval=None,  # the venue has its own JSON ping
                    max_size=1 << 24,
                    max_queue=None,
                ) as socket:
                    self.reconnects += bool(self.links)
                    self._control("connect", url=self._url)
                    await self._session(socket)
            except (OSError, TimeoutError, WebSocketException) as error:
                if not self.links:
                    raise FeedError(
                        f"{self._url}: cannot connect ({error}); check address and network"
                    ) from error
                self._control("disconnect", reason=f"{type(error).__name__}: {error}")
            await asyncio.sleep(self._backoff.next_s())

    async def _session(self, socket: Any) -> None:
        self._asked.clear()
        self._again.clear()  # and what was wanted of a previous connection
        self._replace = False
        await self._subscribe(socket, self._topics, {})
        self._control("subscribe", topics=self._topics)
        helpers = [
            asyncio.create_task(self._ping(socket)),
            asyncio.create_task(self._renew(socket)),
        ]
        try:
            while True:
                message = await socket.recv(decode=False)
                self._received = True
                if b'"topic"' in message[:256]:
                    self._backoff.reset()
                    self._accepted = True
                    self._put(message)
                    if self._again and b'"snapshot"' in message[:256]:
                        topic = _TOPIC.search(message)
                        self._again.pop(topic[1].decode() if topic else "", None)
                    if self._misdated >= 0:
                        self._check_date(message)
                else:
                    await self._reply(socket, message)
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)

    async def _subscribe(self, socket: Any, topics: list[str], refused: dict[str, str]) -> None:
        self._asked.append((topics, refused))
        await self._ask(socket, "subscribe", topics)

    async def _ask(self, socket: Any, what: str, topics: list[str]) -> None:
        await socket.send(msgspec.json.encode({"op": what, "args": topics}).decode())

    def _want(self, topics: tuple[str, ...]) -> None:
        self._replace |= not topics
        fresh = [topic for topic in topics if topic not in self._again]
        self._again |= dict.fromkeys(fresh, (0.0, copy.copy(self._quick)))
        self._wanted.set()

    def _later(self, topics: Iterable[str], patience: Backoff) -> None:
        at_s = asyncio.get_running_loop().time() + patience.next_s()
        self._again |= dict.fromkeys(topics, (at_s, patience))
        self._wanted.set()

    async def _renew(self, socket: Any) -> None:
        """Subscribe topics again when they are due; replace the connection when that is in vain."""
        clock = asyncio.get_running_loop().time
        while not self._replace:
            due_s = min((at_s for at_s, _ in self._again.values()), default=clock() + 3600)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), max(0.0, due_s - clock()))
            self._wanted.clear()
            due: dict[Backoff, list[str]] = {}
            for topic, (at_s, patience) in self._again.items():
                if at_s <= clock():
                    due.setdefault(patience, []).append(topic)
            for patience, topics in due.items():
                for topic in topics:
                    del self._again[topic]
                if not self._refused.keys() >= set(topics):
                    if patience.attempt == RENEWALS:
                        self._replace = True
                        break
                    self._control("renew", topics=topics)
                    await self._ask(socket, "unsubscribe", topics)
                    # Due again unless the snapshot comes with which it opens.
                    self._later([name for name in topics if name.startswith(_OPENS)], patience)
                await self._subscribe(socket, topics, {})
        await socket.close(code=1001, reason="reconnect")

    async def _reply(self, socket: Any, message: bytes) -> None:
        """Check the reply to a request; dropped, unless ``keep_replies``, as it is no market data."""
        if self._keep_replies:
            self._put(message)
        reply = None
        with suppress(msgspec.DecodeError):
            reply = msgspec.json.decode(message)
        if not isinstance(reply, dict) or "op" not in reply:
            if not self._keep_replies:
                self._put(message)  # unknown: the decoder rejects, counts and quarantines it
        elif reply["op"] == "subscribe" and self._asked:
            topics, refused = self._asked.popleft()
            if reply.get("success") is False:
                reason = str(reply.get("ret_msg", ""))
                named = set(re.findall(r"[\w.]+", reason))
                bad = [topic for topic in topics if topic in named] or topics
                if "already subscribed" not in reason:  # then it goes on
                    refused |= dict.fromkeys(bad, reason)
                if rest := [topic for topic in topics if topic not in bad]:
                    await self._subscribe(socket, rest, refused)
                    return
            self._settle([topic for topic in topics if topic not in refused], refused)

    def _settle(self, accepted: list[str], refused: dict[str, str]) -> None:
        """A subscription is answered for every topic."""
        self._accepted |= bool(accepted)
        for reason in list(refused.values())[:1]:
            if not self._accepted:
                raise FeedError(
                    f"{self._url}: every subscription refused ({reason}); check market.symbols and "
                    "market.book_depth"
                )
            self._control("refused", topics=list(refused), reason=reason)
        if back := [topic for topic in accepted if self._refused.pop(topic, "")]:
            self._control("restored", topics=back)
        self._refused |= refused
        for patience, named in ((self._ask_again, True), (self._quick, False)):
            if topics := [name for name, why in refused.items() if (name in why) == named]:
                self._later(topics, patience)
        if not self._refused:
            self._ask_again.reset()
            self._quick.reset()

    def _check_date(self, message: bytes) -> None:
        """FeedError when the first frames are all over a day off our clock."""
        stamp = re.search(rb'"ts"\s*:\s*([0-9]{13})\b', message)
        if stamp is None:
            return
        sent_ns = int(stamp[1]) * MS_NS
        self._misdated = self._misdated + 1 if abs(self._last_ns - sent_ns) > DAY_NS else -1
        if self._misdated == MISDATED:
            raise FeedError(
                f"{self._url}: the venue stands at {utc_time(sent_ns)}, our clock at "
                f"{utc_time(self._last_ns)}: over a day apart, so that no frame can be used; correct "
                "this machine's clock, or set [clock] as the venue says it"
            )

    async def _ping(self, socket: Any) -> None:
        """The heartbeat: a venue that answers no ping is disconnected, and the feed reconnects."""
        while True:
            self._received = False
            await socket.send('{"op":"ping"}')
            await asyncio.sleep(self._ping_s)
            if not self._received:
                await socket.close(code=1001, reason="silent")
                return
