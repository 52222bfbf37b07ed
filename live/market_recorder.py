"""The market recorder: every message of the venue, byte for byte, in hourly captures.

Messages are stored as received, duplicates, replies to our own requests and garbage included:
validation is the decoder's task. Each file opens with the instruments and with checkpoints of every
book and ticker, so it can be read alone.

    fault                           reaction
    sequence gap or crossed book    resubscribe for a new snapshot; retry with a wait that doubles,
                                    and after four retries reconnect
    book topic silent for 60 s      the same
    topic refused by the venue      the others are recorded; it is asked for again after minutes
    lost connection                 `WireFeed` reconnects; a ``disconnect`` line marks it
    step of the system clock        receive times stay monotonic (`SteadyClock`); a ``clock`` line
                                    gives the size of the step
    failed write (disk full, ...)   lines are buffered in memory and the write is retried every second;
                                    when the buffer is full new lines are dropped and counted, and a
                                    ``disconnect`` line marks the loss
    killed process                  the next start truncates the torn tail of the last file
    SIGTERM                         flushes and closes
"""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from live.archives.rest import RequestError, RetryPolicy, instruments
from live.clock import SteadyClock, VenueClock, clock_of
from live.feed import RenewableFeed, WireFeed
from live.replica import BookTopic, Replica
from market.console import Result, names, say, table
from market.errors import DataError
from market.instruments import BUILT_IN, Instrument
from market.lake import Lake
from market.settings import Settings, with_symbols
from market.units import DAY_NS, HOUR_NS, SECOND_NS, utc_date
from market.wire.capture import CaptureError, CaptureWriter
from market.wire.topics import public_topics, symbol_of

SUFFIX: Final = "-recorder.frames.zst"

#: This much text is flushed before the second is over.
_BATCH_BYTES: Final = 4 << 20
#: How control lines of our own start.
_CONTROL: Final = b'{"l2":'
#: A book topic without a frame for longer is resubscribed.
_SILENT_NS: Final = 60 * SECOND_NS
#: Wait before the first retry of a resubscription; it doubles with each.
_RESUBSCRIBE_NS: Final = 2 * SECOND_NS
#: Resubscriptions of a topic before the connection is replaced.
_RENEWALS: Final = 4
_STATUS_NS: Final = 60 * SECOND_NS


class RecorderError(DataError):
    """The recorder cannot start or finish; the message says what to do."""


class CaptureBuffer:
    """Write buffer in front of the hourly files.

    Flushes with fsync about once a second. A failed write is rolled back, so that a file never has a
    hole, and retried later with the same lines. ``head`` gives the control lines that open a file,
    ``hold_bytes`` limits the buffer while writes fail, ``span_ns`` is the receive time per file.
    ``stored``, ``text_bytes``, ``lost`` (lines) and ``failures`` (writes) count.
    """

    def __init__(
        self,
        lake: Lake,
        head: Callable[[], list[bytes]],
        hold_bytes: int,
        say: Callable[[str], None],
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        span_ns: int = HOUR_NS,
    ) -> None:
        self._lake, self._head, self._hold_bytes, self._say = lake, head, hold_bytes, say
        self._monotonic_ns = monotonic_ns
        self._span_ns = span_ns
        self._writer: CaptureWriter | None = None
        self._synced = 0  #: bytes of the current file that are whole and on disk
        self._lines: list[bytes] = []
        self._bytes = 0
        self._flushed_ns = monotonic_ns()  #: of the last attempt
        self._period = -1
        self._dropping = 0  #: lines dropped since the buffer is full
        self._failing = False
        self.paths: list[str] = []
        self.stored = self.text_bytes = self.lost = self.failures = 0

    def add(self, receive_ns: int, frame: bytes) -> None:
        """Buffer a line; it is on disk within about a second, unless writes fail."""
        if receive_ns // self._span_ns != self._period:
            self._start_file(receive_ns)
        if self._dropping or self._bytes > self._hold_bytes:
            self._dropping += 1
            self.lost += 1
            return
        if b"\n" in frame:
            frame = frame.replace(b"\n", b" ")
        self._append(receive_ns, frame)
        if self._bytes >= _BATCH_BYTES and not self._failing:
            self.flush()

    def tick(self, now_ns: int) -> None:
        """Time passed: flush once a second, and resume after dropped lines."""
        if self._monotonic_ns() - self._flushed_ns >= SECOND_NS:
            self.flush()
            if self._dropping and not self._lines:
                self._resume(now_ns)

    def flush(self) -> bool:
        """Write and fsync the buffer; False when that fails, and the buffer is kept."""
        self._flushed_ns = self._monotonic_ns()
        if not self._lines:
            return True
        try:
            if self._writer is None:
                self._writer = CaptureWriter(self.paths[-1])
            self._writer.append_block(b"".join(self._lines))
            self._writer.sync()
            self._synced = os.path.getsize(self.paths[-1])
        except (CaptureError, OSError) as error:
            self._roll_back()
            self.failures += 1
            if not self._failing:
                self._say(f"write failed, retried every second: {error}")
            self._failing = True
            return False
        if self._failing:
            self._say(f"{self.paths[-1]}: writes succeed again")
        self._failing = False
        self.stored += len(self._lines)
        self.text_bytes += self._bytes
        self._lines, self._bytes = [], 0
        return True

    def close(self) -> None:
        """Flush and close. RecorderError when the last flush fails."""
        flushed = self.flush()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if not flushed:
            raise RecorderError(
                f"{self.paths[-1]}: the last {len(self._lines)} lines could not be written; "
                "free space on the disk"
            )

    def _append(self, receive_ns: int, frame: bytes) -> None:
        line = b"%d %b\n" % (receive_ns, frame)
        self._lines.append(line)
        self._bytes += len(line)

    def _start_file(self, now_ns: int, *first: bytes) -> bool:
        """Start the file of an hour; False while the old one's lines cannot be written.

        The old file ends with a ``turn`` line at the new one's time, which tells its reader that the
        stream went on; not so when ``first`` lines of the new file mark a loss between the two.
        """
        if self.paths:
            if self._failing:
                return False
            if not first:
                self._append(now_ns, _control("turn"))
            if not self.flush():
                return False
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._period = now_ns // self._span_ns
        day = utc_date(now_ns)
        path = f"{self._lake.frames_dir(day)}/{now_ns:019d}{SUFFIX}"
        self.paths.append(path)
        self._synced = 0
        for line in (*first, *self._head()):
            self._append(now_ns, line)
        return True

    def _resume(self, now_ns: int) -> None:
        """Accept lines again, in a new file that opens with the loss."""
        lost, self._dropping = self._dropping, 0
        reason = f"{lost} lines lost: writes failed for longer than the buffer lasts"
        self._start_file(now_ns, _control("disconnect", reason=reason, lost=lost))
        self._say(reason)

    def _roll_back(self) -> None:
        """Close the writer and truncate the file to what was synced."""
        if self._writer is not None:
            with suppress(CaptureError):  # the failure that is being rolled back
                self._writer.close()
            self._writer = None
        if self.paths and os.path.exists(self.paths[-1]):
            os.truncate(self.paths[-1], self._synced)


class Recorder:
    """One run of the recorder over a feed; ``names`` are its topics, ``listed`` the instruments."""

    def __init__(
        self,
        settings: Settings,
        feed: RenewableFeed,
        names: list[str],
        listed: Mapping[str, Instrument],
        clock: SteadyClock,
        say: Callable[[str], None],
        *,
        span_ns: int = HOUR_NS,
    ) -> None:
        self._feed, self._clock, self._say = feed, clock, say
        self._listed = listed
        self.replica = Replica(names)
        self.buffer = CaptureBuffer(
            Lake(settings.home, settings.source),
            self._head,
            settings.record.hold_mb << 20,
            say,
            span_ns=span_ns,
        )
        self._books = [
            topic for topic in self.replica.topics.values() if isinstance(topic, BookTopic)
        ]
        #: Book topic without a snapshot yet -> (resubscriptions, time of the last one).
        self._renewed: dict[str, tuple[int, int]] = {}
        self._connected = False
        self.refused: dict[str, str] = {}  #: topic -> the venue's reason, as of now
        self.connections = self.disconnects = self.resyncs = self.frames = 0
        self.clock_steps = 0

    def run(self) -> dict[str, Any]:
        """Record until the feed ends; returns `summary`."""
        checked_ns = status_ns = now_ns = 0
        try:
            for item in self._feed:
                now_ns = item.receive_ns
                if item.frame is not None:
                    self._store(now_ns, item.frame)
                    continue
                self.buffer.tick(now_ns)
                self._note_clock_steps(now_ns)
                if now_ns - checked_ns >= SECOND_NS:
                    checked_ns = now_ns
                    self._resubscribe(now_ns)
                if now_ns - status_ns >= _STATUS_NS:
                    if status_ns:
                        self._say(self._status())
                    status_ns = now_ns
            if self.frames or self.connections:
                self.buffer.add(now_ns, _control("disconnect", reason="recorder stopped"))
        finally:
            self.buffer.close()
        return self.summary()

    def summary(self) -> dict[str, Any]:
        """Counts of the run, plain data."""
        books = self._books
        return {
            "frames": {topic.name: topic.frames for topic in self.replica.topics.values()},
            "other_frames": self.replica.others,
            "received": self.frames,
            "stored_lines": self.buffer.stored,
            "lost": self.buffer.lost,
            "text_bytes": self.buffer.text_bytes,
            "files": self.buffer.paths,
            "connections": self.connections,
            "disconnects": self.disconnects,
            "gaps": sum(book.gaps for book in books),
            "duplicates": sum(book.duplicates for book in books),
            "repeated_snapshots": sum(book.repeats for book in books),
            "broken_books": sum(book.broken for book in books),
            "unreadable": sum(topic.unreadable for topic in self.replica.topics.values()),
            "refused": self.refused,
            "resyncs": self.resyncs,
            "clock_steps": self.clock_steps,
            "disk_failures": self.buffer.failures,
            "deepest_queue": self._feed.deepest_queue,
        }

    def _head(self) -> list[bytes]:
        lines = [
            _control("instrument", **msgspec.to_builtins(instrument))
            for instrument in self._listed.values()
        ]
        return [*lines, *self.replica.checkpoints()]

    def _store(self, receive_ns: int, frame: bytes) -> None:
        # Stored before it is applied: a file that this frame opens starts with the state before it.
        self.buffer.add(receive_ns, frame)
        if frame.startswith(_CONTROL):
            self._follow_connection(receive_ns, frame)
        else:
            self.frames += 1
            self.replica.follow(receive_ns, frame)

    def _follow_connection(self, now_ns: int, line: bytes) -> None:
        connected = line.startswith(_CONTROL + b'"connect"')
        if connected or line.startswith(_CONTROL + b'"disconnect"'):
            self._connected = connected
            self.connections += connected
            self.disconnects += not connected
            self.replica.forget()
            # A snapshot follows every subscription: count its wait from here.
            self._renewed = {book.name: (0, now_ns) for book in self._books}
        elif line.startswith((_CONTROL + b'"refused"', _CONTROL + b'"restored"')):
            self._follow_refusals(now_ns, msgspec.json.decode(line))

    def _follow_refusals(self, now_ns: int, told: Mapping[str, Any]) -> None:
        topics = told["topics"]
        symbols = ", ".join(dict.fromkeys(symbol_of(topic) for topic in topics))
        if told["l2"] == "restored":
            for topic in topics:
                self.refused.pop(topic, None)
                self._renewed[topic] = (0, now_ns)
            self._say(f"{symbols}: the venue has {', '.join(topics)} again")
            return
        self.refused |= dict.fromkeys(topics, told["reason"])
        for topic in topics:
            self.replica.topics[topic].forget()  # what it was is no checkpoint of the next file
        self._say(
            f"WARN {symbols}: the venue refuses {', '.join(topics)} ({told['reason']}); the rest is "
            "recorded, and these are asked for again later"
        )

    def _note_clock_steps(self, now_ns: int) -> None:
        while self._clock.steps:
            step = self._clock.steps.popleft()
            self.clock_steps += 1
            self.buffer.add(now_ns, _control("clock", step_ns=step))
            self._say(f"the system clock stepped by {step / 1e9:+.3f} s")

    def _resubscribe(self, now_ns: int) -> None:
        """Resubscribe stale or silent book topics with a growing wait, in the end reconnect."""
        if not self._connected:
            return
        due = []
        for book in self._books:
            book.check()
            fresh = not (book.stale or now_ns - book.last_ns > _SILENT_NS)
            if fresh or book.name in self.refused:
                self._renewed.pop(book.name, None)
                continue
            count, last_ns = self._renewed.get(book.name, (0, 0))
            if now_ns - last_ns >= _RESUBSCRIBE_NS << count:
                due.append(book.name)
                self._renewed[book.name] = (count + 1, now_ns)
        if any(self._renewed[name][0] > _RENEWALS for name in due):
            self._say(f"{', '.join(due)}: no snapshot after {_RENEWALS} retries; reconnecting")
            self._feed.renew([])
        elif due:
            self.resyncs += len(due)
            self._feed.renew(due)

    def _status(self) -> str:
        stale = [topic.name for topic in self.replica.topics.values() if topic.stale]
        waiting = f"; stale: {', '.join(stale)}" if stale else ""
        return (
            f"{self.frames:,} frames, {self.buffer.text_bytes / 1e6:,.0f} MB of text, "
            f"{self.buffer.lost} lost, {self.disconnects} disconnects, {self.resyncs} resyncs{waiting}"
        )


def record(
    settings: Settings,
    *,
    url: str | None = None,
    duration_s: float | None = None,
    listed: Mapping[str, Instrument],
    say: Callable[[str], None],
    started: Callable[[WireFeed], None] = lambda feed: None,
) -> dict[str, Any]:
    """Record into the lake's captures until ``duration_s`` is over or the feed is stopped.

    ``started`` gets the feed, whose `stop` ends the run. Returns `Recorder.summary`. RecorderError for
    unusable settings or when another recorder writes into this lake, FeedError when the venue cannot
    be reached or refuses a topic.
    """
    depth = settings.market.book_depth
    if depth not in settings.record.depths:
        raise RecorderError(
            f"record.depths lacks market.book_depth {depth}, which bars are made of; add it"
        )
    if settings.source != "recorded":
        raise RecorderError("a recorder needs a root whose source is recorded")
    names = public_topics(settings.market.recorded, settings.record.depths)
    url = url or settings.record.url
    clock = VenueClock(clock_of(url, settings.clock, say))
    feed = WireFeed(
        url,
        names,
        duration_s=duration_s,
        clock_ns=clock,
        speed=clock.speed,
        keep_replies=True,
    )
    lake = Lake(settings.home, settings.source)
    with _exclusive_lock(lake):
        repair_torn_tail(lake, clock(), say)
        recorder = Recorder(settings, feed, names, listed, clock, say)
        started(feed)
        return recorder.run()


def instruments_listed(settings: Settings, say: Callable[[str], None]) -> dict[str, Instrument]:
    """The settings' instruments as the venue lists them, else as built in.

    A symbol that neither knows is recorded without its instrument; ingest then infers tick and lot
    from the prices and sizes of the capture.
    """
    retry = RetryPolicy(attempts=2, wait_s=0.5, timeout_s=10.0)
    listed = {}
    for symbol in settings.market.recorded:
        try:
            (listed[symbol],) = instruments(settings.record.rest_url, [symbol], retry)
        except RequestError as error:
            say(f"{error}; using {'the built-in' if symbol in BUILT_IN else 'no'} instrument")
            if symbol in BUILT_IN:
                listed[symbol] = BUILT_IN[symbol]
    return listed


def repair_torn_tail(lake: Lake, now_ns: int, say: Callable[[str], None]) -> None:
    """Truncate an unfinished line or block that a killed recorder left at the end of its last file."""
    yesterday, today = utc_date(now_ns - DAY_NS), utc_date(now_ns)
    recorded = [
        path for day in (yesterday, today) for path in lake.captures(day) if path.endswith(SUFFIX)
    ]
    if not recorded:
        return
    path = Path(recorded[-1])
    before = path.stat().st_size
    with CaptureWriter(path) as writer:
        dropped = writer.dropped_bytes
    after = path.stat().st_size
    if after == 0:
        path.unlink()
    if after != before or dropped:
        say(f"{path}: torn tail repaired, {dropped} bytes of an unfinished line dropped")


@contextmanager
def _exclusive_lock(lake: Lake) -> Iterator[None]:
    """Hold the lake's recorder lock; RecorderError when another process holds it."""
    folder = Path(lake.base) / "frames"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "recorder.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RecorderError(
                f"{folder}: another recorder writes here; stop it, or use another --root"
            ) from error
        yield


def _control(kind: str, **fields: Any) -> bytes:
    return msgspec.json.encode({"l2": kind, **fields})


# -- the verb --------------------------------------------------------------------------------------


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 record`."""
    parser.add_argument("--symbols", metavar="A,B", help="default: market.symbols, with watch")
    parser.add_argument("--url", metavar="WS", help="public WebSocket (default: record.url)")
    parser.add_argument(
        "--for", dest="duration", type=float, metavar="S", help="stop after this long"
    )


def command(settings: Settings, options: argparse.Namespace) -> Result:
    """`l2 record`: until SIGTERM or SIGINT, or for the given time."""
    settings = with_symbols(settings, names(options.symbols))

    def started(feed: WireFeed) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: feed.stop())

    result = record(
        settings,
        url=options.url,
        duration_s=options.duration,
        listed=instruments_listed(settings, say),
        say=say,
        started=started,
    )
    if not options.json:
        print(table([(name, value) for name, value in result.items() if name != "frames"]))
        print(table(sorted(result["frames"].items())))
    return result
