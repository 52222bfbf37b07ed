"""Feeds: market frames in the order of their receipt, from captures or from the wire.

A feed is an iterator of `Item`. Besides frames it hands over bare time on a fixed grid of the
receive clock, so that a second closes when it ends and not when the next frame happens to come.
Time and frames arrive in one order: after a tick at t no frame older than t follows. Both feeds
keep this, hence a worker cannot tell them apart:

    ReplayFeed   captures; first as fast as possible (warm-up), then at `speed` times real time
    WireFeed     a public V5 WebSocket; subscribes, pings, reconnects, stamps at the socket read

Control lines (``{"l2": …}``) stand among the frames, and go into the worker's own capture as they
do into every other: a reconnect must be visible to whoever reads that capture later.
"""

from __future__ import annotations

import asyncio
import math
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from market.errors import VenueError
from market.wire.capture import read_blocks

#: Spacing of bare time, on multiples of the receive clock.
TICK_NS: Final = 100_000_000

#: A replayed silence hands over this much bare time, then jumps to the next frame.
SILENCE_NS: Final = 60_000_000_000


#: Captures are read in small blocks: unpacking a large one would hold up the frames behind it.
BLOCK_BYTES: Final = 1 << 16


class FeedError(VenueError):
    """The feed cannot start or go on; the message is one line that says what to do."""


class Item(NamedTuple):
    """One step of a feed. ``frame`` is None when only time passed."""

    receive_ns: int  #: epoch ns at which the frame was received
    frame: bytes | None
    due_ns: int  #: monotonic ns at which it was due here or read; 0 when nothing paces it


class Feed(Protocol):
    """Where frames come from."""

    def __iter__(self) -> Iterator[Item]: ...

    def stop(self) -> None:
        """End the iteration soon; callable from a signal handler and from any thread."""
        ...


class ReplayFeed:
    """Captures, one after the other, paced by their receive times.

    The first ``warm_up_s`` of the captures' time come as fast as they are consumed, what follows at
    ``speed`` times real time; a speed of zero paces nothing. ``duration_s`` is in real seconds after
    the warm-up, that is ``duration_s * speed`` of the captures' time, so that the end does not
    depend on how fast the machine is.
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

    def __iter__(self) -> Iterator[Item]:
        now = paced_from = end = anchor = 0
        for receive_ns, frame in self._with_ticks():
            if not now:
                paced_from = receive_ns + self._warm_up_ns
                end = paced_from + self._duration_ns if self._duration_ns is not None else 0
            now = max(now, receive_ns)
            if self._stopped or (end and now > end):
                return
            due = 0
            if self._speed and now >= paced_from:
                anchor = anchor or self._monotonic_ns()
                due = anchor + round((now - paced_from) / self._speed)
                self._wait(due)
            yield Item(receive_ns, frame, due)

    def _wait(self, due_ns: int) -> None:
        # In slices, so that a stop is noticed at slow speeds too.
        while not self._stopped and (ahead := due_ns - self._monotonic_ns()) > 0:
            self._sleep(min(ahead / 1e9, 0.1))

    def _with_ticks(self) -> Iterator[tuple[int, bytes | None]]:
        """The captures' lines with bare time on the grid between them."""
        now = 0
        for receive_ns, frame in self._lines():
            if now:
                tick = (now // TICK_NS + 1) * TICK_NS
                last = min(receive_ns, now + SILENCE_NS)
                while tick <= last:
                    yield tick, None
                    tick += TICK_NS
            now = max(now, receive_ns)
            yield receive_ns, frame

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Lines with their times; one without a usable time is passed on whole, at the last time.

        The decoder rejects such a line, which is where rejects are counted and kept.
        """
        now = 0
        for path in self._captures:
            for block in read_blocks(path, BLOCK_BYTES):
                for line in block.data.split(b"\n")[:-1]:
                    stamp, _, frame = line.partition(b" ")
                    if frame and stamp.isdigit() and len(stamp) < 20:
                        now = int(stamp)
                        yield now, frame
                    elif now:
                        yield now, line
            if not now:
                raise FeedError(f"{path}: no line of it has a receive time; is it a capture?")


class Backoff:
    """Waiting times between attempts: doubling from ``first_s`` to ``limit_s``, with full jitter.

    The jitter keeps workers that lost the same venue from coming back in one instant.
    """

    def __init__(
        self, first_s: float = 0.5, limit_s: float = 30.0, seed: int | None = None
    ) -> None:
        self._first_s, self._limit_s = first_s, limit_s
        self._random = random.Random(seed)
        self._attempt = 0

    def reset(self) -> None:
        self._attempt = 0

    def next_s(self) -> float:
        ceiling = min(self._limit_s, self._first_s * 2**self._attempt)
        self._attempt = min(self._attempt + 1, 32)
        return self._random.uniform(ceiling / 2, ceiling)


class WireFeed:
    """A public V5 WebSocket endpoint.

    One thread reads the socket, stamps each frame at the read and makes the ticks, so that stamps
    and ticks have one order; the consumer iterates in its own thread. A lost connection is made
    again after a wait that grows (`Backoff`), for ever; only the first one must succeed at once,
    because a wrong address never will: FeedError. A refused subscription is a FeedError too, as the
    venue then sends nothing at all. A connection that gives no sign of life between two pings is
    closed and made again. ``clock_ns`` stamps, and counts ``duration_s``; ``speed`` says how much
    faster than the wall clock it runs.
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
        clock_ns: Callable[[], int] = time.time_ns,
        speed: float = 1.0,
        keep_replies: bool = False,
    ) -> None:
        if not url.startswith(("ws://", "wss://")):
            raise FeedError(f"{url}: expected a ws:// or wss:// address")
        self._url = url
        self._topics = list(topics)
        self._duration_s = duration_s
        self._ping_s = ping_s
        self._connect_s = connect_s
        self._backoff = backoff or Backoff()
        self._clock_ns, self._speed = clock_ns, speed
        self._keep_replies = keep_replies
        self._loop: asyncio.AbstractEventLoop | None = None
        self._renewals: asyncio.Queue[list[str]] = asyncio.Queue()
        self._renewing = False
        self._queue: queue.SimpleQueue[Item | FeedError | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._last_ns = 0
        self._heard = False
        self.reconnects = 0
        self.deepest_queue = 0  #: most items that ever waited for the consumer

    def stop(self) -> None:
        self._stopped.set()

    def renew(self, topics: Sequence[str]) -> None:
        """Unsubscribe and subscribe these topics, so that each begins anew with a snapshot.

        Callable from the consumer's thread. No topics at all: close the connection, which is then
        made again.
        """
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._renewals.put_nowait, list(topics))

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
        except Exception as error:  # the consumer raises it: nothing dies unseen in a thread
            self._queue.put(FeedError(f"{self._url}: reader failed: {error!r}"))
        finally:
            self._queue.put(None)

    def _put(self, frame: bytes | None) -> None:
        self._last_ns = max(self._last_ns, self._clock_ns())
        self._queue.put(Item(self._last_ns, frame, time.monotonic_ns()))

    def _control(self, kind: str, **fields: Any) -> None:
        self._put(msgspec.json.encode({"l2": kind, **fields}))

    async def _serve(self) -> None:
        """Ticks until the stop, sessions beside them; the first of the two that ends, ends both."""
        self._loop = asyncio.get_running_loop()
        sessions = asyncio.create_task(self._sessions())
        ticks = asyncio.create_task(self._ticks())
        done, pending = await asyncio.wait((sessions, ticks), return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for task in done:
            task.result()

    async def _ticks(self) -> None:
        end_ns = (
            self._clock_ns() + round(self._duration_s * 1e9)
            if self._duration_s is not None
            else None
        )
        while not self._stopped.is_set():
            now = self._clock_ns()
            if end_ns is not None and now >= end_ns:
                return
            await asyncio.sleep((TICK_NS - now % TICK_NS) / 1e9 / self._speed)
            boundary = self._clock_ns() // TICK_NS * TICK_NS
            if boundary > self._last_ns:
                self._last_ns = boundary
                self._queue.put(Item(boundary, None, time.monotonic_ns()))

    async def _sessions(self) -> None:
        from websockets.asyncio.client import connect
        from websockets.exceptions import WebSocketException

        connected_before = False
        while True:
            try:
                async with connect(
                    self._url,
                    open_timeout=self._connect_s,
                    ping_interval=None,  # the venue's own JSON ping is used
                    max_size=1 << 24,
                    max_queue=None,
                ) as socket:
                    self._control("connect", url=self._url)
                    self.reconnects += connected_before
                    connected_before = True
                    await self._session(socket)
            except (OSError, TimeoutError, WebSocketException) as error:
                if not connected_before:
                    raise FeedError(
                        f"{self._url}: cannot connect ({error}); check address and network"
                    ) from error
                self._control("disconnect", reason=f"{type(error).__name__}: {error}")
            await asyncio.sleep(self._backoff.next_s())

    async def _session(self, socket: Any) -> None:
        await socket.send(msgspec.json.encode({"op": "subscribe", "args": self._topics}).decode())
        self._control("subscribe", topics=self._topics)
        self._renewing = False
        helpers = [
            asyncio.create_task(self._ping(socket)),
            asyncio.create_task(self._renew(socket)),
        ]
        try:
            while True:
                message = await socket.recv(decode=False)
                self._heard = True
                if b'"topic"' in message[:256]:
                    self._backoff.reset()
                    self._put(message)
                else:
                    self._reply(message)
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)

    async def _renew(self, socket: Any) -> None:
        while not self._renewals.empty():
            self._renewals.get_nowait()  # asked for on a connection that is gone
        while topics := await self._renewals.get():
            self._renewing = True
            self._control("renew", topics=topics)
            for op in ("unsubscribe", "subscribe"):
                await socket.send(msgspec.json.encode({"op": op, "args": topics}).decode())
        await socket.close(code=1001, reason="begin anew")

    def _reply(self, message: bytes) -> None:
        """An answer to a request of ours: not market data, so the worker's capture has none.

        With ``keep_replies`` it is handed on like any frame. A refusal of what was renewed is no
        error, since the running subscription may have gone on.
        """
        if self._keep_replies:
            self._put(message)
        try:
            reply = msgspec.json.decode(message)
        except msgspec.DecodeError:
            reply = None
        if not isinstance(reply, dict) or "op" not in reply:
            if not self._keep_replies:
                self._put(message)  # unknown: the decoder rejects it where it is counted and kept
        elif self._renewing:
            return
        elif reply["op"] == "subscribe" and reply.get("success") is False:
            raise FeedError(
                f"{self._url}: subscription refused ({reply.get('ret_msg')}); "
                "check market.symbols and market.book_depth"
            )

    async def _ping(self, socket: Any) -> None:
        while True:
            self._heard = False
            await socket.send('{"op":"ping"}')
            await asyncio.sleep(self._ping_s)
            if not self._heard:
                await socket.close(code=1001, reason="silent")
                return
