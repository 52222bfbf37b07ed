"""The market recorder: everything the venue sends, exactly as it came, in hourly captures.

What arrived is what is stored: duplicates, replies to our own requests and garbage too, for it is
decoding that judges. Each file opens with the instruments and with checkpoints of every book and
ticker, so it reads alone.

    what happens                    what the recorder does
    a book topic cannot be followed asks for the topic anew; again after a wait that doubles, and
                                    after four times in vain makes the connection anew
    a book topic is silent 60 s     the same
    the connection is lost          `WireFeed` makes it again; a ``disconnect`` line says so
    the clock steps                 receive times go on (`SteadyClock`); a ``clock`` line says by how much
    the disk refuses                keeps lines in memory and tries every second; when that is full,
                                    new lines are lost and counted, and a ``disconnect`` line says so
    the process is killed           at the next start the torn tail of the last file is cut off
    SIGTERM                         writes what was received and closes
"""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from live.archives.rest import Patience, RequestError, instruments
from live.clock import SteadyClock, VenueClock
from live.feed import Feed, WireFeed
from live.replica import BookTopic, Replica
from market.console import Result, names, say, table
from market.errors import DataError
from market.instruments import BUILT_IN, Instrument
from market.lake import Lake
from market.settings import Settings, with_symbols
from market.units import HOUR_NS, SECOND_NS, utc_date
from market.wire.capture import CaptureError, CaptureWriter
from market.wire.topics import public_topics

SUFFIX: Final = "-recorder.frames.zst"

#: Text that is written without waiting for the second to end.
_BATCH_BYTES: Final = 4 << 20
_OURS: Final = b'{"l2":'
_SILENT_NS: Final = 60 * SECOND_NS
_RENEW_FIRST_NS: Final = 2 * SECOND_NS
_RENEWALS: Final = 4
_STATUS_NS: Final = 60 * SECOND_NS


class RecordingError(DataError):
    """The recorder cannot start; the message is one line that says what to do."""


class Spool:
    """Lines on their way to the hourly files.

    Lines are written and synced about once a second. A write that fails is undone, so that a file
    never has a hole before its end, and is made again later with the same lines.
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
        self._span_ns = span_ns  #: of receive time in a file
        self._writer: CaptureWriter | None = None
        self._synced = 0  #: bytes of the file that are whole and on disk
        self._lines: list[bytes] = []
        self._bytes = 0
        self._tried = monotonic_ns()
        self._period = -1
        self._losing = 0
        self._refused = False
        self.paths: list[str] = []
        self.stored = self.text_bytes = self.lost = self.failures = 0

    def add(self, receive_ns: int, frame: bytes) -> None:
        """Take a line; it is on disk within about a second."""
        if receive_ns // self._span_ns != self._period:
            self._turn(receive_ns)
        if self._losing or self._bytes > self._hold_bytes:
            self._losing += 1
            self.lost += 1
            return
        if b"\n" in frame:
            frame = frame.replace(b"\n", b" ")
        self._append(receive_ns, frame)
        if self._bytes >= _BATCH_BYTES and not self._refused:
            self.flush()

    def tick(self, now_ns: int) -> None:
        """Time passed: write what a second has brought, and come back from a loss."""
        if self._monotonic_ns() - self._tried >= SECOND_NS:
            self.flush()
            if self._losing and not self._lines:
                self._resume(now_ns)

    def flush(self) -> bool:
        """Write and sync everything held; False when the disk refuses, and it is held on."""
        self._tried = self._monotonic_ns()
        if not self._lines:
            return True
        try:
            if self._writer is None:
                self._writer = CaptureWriter(self.paths[-1])
            self._writer.append_block(b"".join(self._lines))
            self._writer.sync()
            self._synced = os.path.getsize(self.paths[-1])
        except (CaptureError, OSError) as error:
            self._undo()
            self.failures += 1
            if not self._refused:
                self._say(f"not written, will be tried again every second: {error}")
            self._refused = True
            return False
        if self._refused:
            self._say(f"{self.paths[-1]}: written again")
        self._refused = False
        self.stored += len(self._lines)
        self.text_bytes += self._bytes
        self._lines, self._bytes = [], 0
        return True

    def close(self) -> None:
        """Write what is held and close. RecordingError when the disk refuses to the end."""
        written = self.flush()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if not written:
            raise RecordingError(
                f"{self.paths[-1]}: the last {len(self._lines)} lines could not be written; "
                "free space on the disk"
            )

    def _append(self, receive_ns: int, frame: bytes) -> None:
        line = b"%d %b\n" % (receive_ns, frame)
        self._lines.append(line)
        self._bytes += len(line)

    def _turn(self, now_ns: int, *first: bytes) -> bool:
        """Begin the file of an hour; False when the old one's lines cannot be written yet.

        The old file ends with a ``turn`` line of the new one's time, unless lines are missing
        between the two: read alone, it says that the stream went on.
        """
        if self.paths:
            if self._refused:
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
        """Lines are taken again: in a new file, which says what is missing before it."""
        lost, self._losing = self._losing, 0
        reason = f"{lost} lines lost: the disk refused longer than memory could hold"
        self._turn(now_ns, _control("disconnect", reason=reason, lost=lost))
        self._say(reason)

    def _undo(self) -> None:
        """Close the writer and cut the file back to what was synced."""
        if self._writer is not None:
            with suppress(CaptureError):  # the very failure that is being undone
                self._writer.close()
            self._writer = None
        if self.paths and os.path.exists(self.paths[-1]):
            os.truncate(self.paths[-1], self._synced)


class Source(Feed, Protocol):
    """A feed whose topics can be asked for anew."""

    @property
    def deepest_queue(self) -> int: ...

    def renew(self, topics: Sequence[str]) -> None: ...


class Recording:
    """One run of the recorder over a feed."""

    def __init__(
        self,
        settings: Settings,
        feed: Source,
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
        self.spool = Spool(
            Lake(settings.root, settings.source),
            self._head,
            settings.record.hold_mb << 20,
            say,
            span_ns=span_ns,
        )
        self._books = [
            topic for topic in self.replica.topics.values() if isinstance(topic, BookTopic)
        ]
        #: Book topic -> (how often it was asked for anew, when last), while it has no answer.
        self._renewed: dict[str, tuple[int, int]] = {}
        self._connected = False
        self.connections = self.disconnects = self.resyncs = self.frames = 0
        self.clock_steps = 0

    def run(self) -> dict[str, Any]:
        """Record until the feed ends; what was done."""
        second = status = now = 0
        try:
            for item in self._feed:
                now = item.receive_ns
                if item.frame is not None:
                    self._take(item.receive_ns, item.frame)
                    continue
                self.spool.tick(item.receive_ns)
                self._note_steps(item.receive_ns)
                if item.receive_ns - second >= SECOND_NS:
                    second = item.receive_ns
                    self._watch(second)
                if item.receive_ns - status >= _STATUS_NS:
                    if status:
                        self._say(self._status())
                    status = item.receive_ns
            if self.frames or self.connections:
                self.spool.add(now, _control("disconnect", reason="recorder stopped"))
        finally:
            self.spool.close()
        return self.summary()

    def summary(self) -> dict[str, Any]:
        books = self._books
        return {
            "frames": {topic.name: topic.frames for topic in self.replica.topics.values()},
            "other_frames": self.replica.others,
            "received": self.frames,
            "stored_lines": self.spool.stored,
            "lost": self.spool.lost,
            "text_bytes": self.spool.text_bytes,
            "files": self.spool.paths,
            "connections": self.connections,
            "disconnects": self.disconnects,
            "gaps": sum(book.gaps for book in books),
            "duplicates": sum(book.duplicates for book in books),
            "repeated_snapshots": sum(book.repeats for book in books),
            "broken_books": sum(book.broken for book in books),
            "unreadable": sum(topic.unreadable for topic in self.replica.topics.values()),
            "resyncs": self.resyncs,
            "clock_steps": self.clock_steps,
            "disk_failures": self.spool.failures,
            "deepest_queue": self._feed.deepest_queue,
        }

    def _head(self) -> list[bytes]:
        lines = [
            _control("instrument", **msgspec.to_builtins(instrument))
            for instrument in self._listed.values()
        ]
        return [*lines, *self.replica.checkpoints()]

    def _take(self, receive_ns: int, frame: bytes) -> None:
        # Stored first: a file that this frame opens begins with the state before it.
        self.spool.add(receive_ns, frame)
        if frame.startswith(_OURS):
            self._controlled(receive_ns, frame)
        else:
            self.frames += 1
            self.replica.follow(receive_ns, frame)

    def _controlled(self, now_ns: int, line: bytes) -> None:
        connected = line.startswith(_OURS + b'"connect"')
        if connected or line.startswith(_OURS + b'"disconnect"'):
            self._connected = connected
            self.connections += connected
            self.disconnects += not connected
            self.replica.forget()
            # Every subscription is answered by a snapshot: give it a moment.
            self._renewed = {book.name: (0, now_ns) for book in self._books}

    def _note_steps(self, now_ns: int) -> None:
        while self._clock.steps:
            step = self._clock.steps.popleft()
            self.clock_steps += 1
            self.spool.add(now_ns, _control("clock", step_ns=step))
            self._say(f"the system clock stepped by {step / 1e9:+.3f} s")

    def _watch(self, now_ns: int) -> None:
        """Ask anew for the book topics that cannot be followed, and not too often."""
        if not self._connected:
            return
        wanted = []
        for book in self._books:
            book.check()
            if not (book.stale or now_ns - book.last_ns > _SILENT_NS):
                self._renewed.pop(book.name, None)
                continue
            count, last = self._renewed.get(book.name, (0, 0))
            if now_ns - last >= _RENEW_FIRST_NS << count:
                wanted.append(book.name)
                self._renewed[book.name] = (count + 1, now_ns)
        if any(self._renewed[name][0] > _RENEWALS for name in wanted):
            self._say(f"{', '.join(wanted)}: no snapshot comes; connecting anew")
            self._feed.renew([])
        elif wanted:
            self.resyncs += len(wanted)
            self._feed.renew(wanted)

    def _status(self) -> str:
        stale = [topic.name for topic in self.replica.topics.values() if topic.stale]
        waiting = f"; stale: {', '.join(stale)}" if stale else ""
        return (
            f"{self.frames:,} frames, {self.spool.text_bytes / 1e6:,.0f} MB of text, "
            f"{self.spool.lost} lost, {self.disconnects} disconnects, {self.resyncs} resyncs{waiting}"
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
    """Record into the lake's frames until ``duration_s`` is over or the feed is stopped.

    ``started`` is handed the feed, whose `stop` ends the run. Raises RecordingError when another
    recorder writes into this lake, FeedError when the venue cannot be reached or refuses a topic.
    """
    depth = settings.market.book_depth
    if depth not in settings.record.depths:
        raise RecordingError(
            f"record.depths lacks market.book_depth {depth}, which bars are made of; add it"
        )
    if settings.source != "recorded" or "://" in settings.root:
        raise RecordingError("a recorder needs a local root whose source is recorded")
    names = public_topics(settings.market.symbols, settings.record.depths)
    clock = VenueClock(settings.clock)
    feed = WireFeed(
        url or settings.record.url,
        names,
        duration_s=duration_s,
        clock_ns=clock,
        speed=clock.speed,
        keep_replies=True,
    )
    lake = Lake(settings.root, settings.source)
    with _alone(lake):
        mend(lake, clock(), say)
        recording = Recording(settings, feed, names, listed, clock, say)
        started(feed)
        return recording.run()


def instruments_listed(settings: Settings, say: Callable[[str], None]) -> dict[str, Instrument]:
    """The instruments as the venue lists them, else as built in.

    A symbol that neither knows is recorded without its instrument: whoever reads the capture finds
    the grid in its figures.
    """
    patience = Patience(attempts=2, wait_s=0.5, timeout_s=10.0)
    found = {}
    for symbol in settings.market.symbols:
        try:
            (found[symbol],) = instruments(settings.record.rest_url, [symbol], patience)
        except RequestError as error:
            say(
                f"{error}; going on with {'the built-in' if symbol in BUILT_IN else 'no'} instrument"
            )
            if symbol in BUILT_IN:
                found[symbol] = BUILT_IN[symbol]
    return found


def mend(lake: Lake, now_ns: int, say: Callable[[str], None]) -> None:
    """Cut off what a killed recorder left torn at the end of its last file."""
    yesterday, today = utc_date(now_ns - 24 * HOUR_NS), utc_date(now_ns)
    ours = [
        path for day in (yesterday, today) for path in lake.captures(day) if path.endswith(SUFFIX)
    ]
    if not ours:
        return
    path = Path(ours[-1])
    before = path.stat().st_size
    with CaptureWriter(path) as writer:
        dropped = writer.dropped_bytes
    after = path.stat().st_size
    if after == 0:
        path.unlink()
    if after != before or dropped:
        say(f"{path}: torn tail mended, {dropped} bytes of an unfinished line dropped")


@contextmanager
def _alone(lake: Lake) -> Iterator[None]:
    folder = Path(lake.base) / "frames"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "recorder.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RecordingError(
                f"{folder}: another recorder writes here; stop it, or take another --root"
            ) from error
        yield


def _control(kind: str, **fields: Any) -> bytes:
    return msgspec.json.encode({"l2": kind, **fields})


# -- the verb --------------------------------------------------------------------------------------


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 record`."""
    parser.add_argument("--symbols", metavar="A,B", help="default: market.symbols")
    parser.add_argument("--url", metavar="WS", help="public WebSocket (default: record.url)")
    parser.add_argument(
        "--for", dest="duration", type=float, metavar="S", help="stop after this long"
    )


def command(settings: Settings, options: argparse.Namespace) -> Result:
    """`l2 record`: until SIGTERM or SIGINT, or for as long as asked."""
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
