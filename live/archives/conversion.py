"""Converts the venue's daily archives into the capture that a recorder would have written.

Archives have no receive times: a frame's is its publish time (``ts``; ``T`` of a trade) plus a constant
latency, kept non-decreasing and within the date. At equal times funding comes first, then trades, then
the book. Book frames are passed on as they are, except that an archive of 500 levels is truncated to
the depth that bars are made of (`live.archives.truncation`).

    books    zip with one member: WebSocket frames, one per line, CRLF or LF; snapshots may repeat
    trades   gzip CSV, timestamps in seconds with four decimals, oldest or newest first
    funding  settlements from the REST API: no archive has the predicted rate, so each settled rate
             stands in for it from its settlement to the next; beside it stands what was paid
"""

from __future__ import annotations

import gzip
import heapq
import io
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Final

import msgspec

from live.archives.rest import Settlement
from live.archives.trades import TradeArchive
from live.archives.truncation import BookTruncator
from market.errors import DataError
from market.units import DAY_MS, DAY_NS, HOUR_NS, MS_NS, day_start_ns
from market.wire.capture import CaptureWriter

#: What reading a damaged zip or gzip file raises.
_DAMAGE: Final = (zipfile.BadZipFile, zlib.error, EOFError, OSError)
#: Lines written at once.
_BATCH: Final = 4096
_TS: Final = re.compile(rb'"ts"\s*:\s*([0-9]{13})\b')
_UPDATE_ID: Final = re.compile(rb'"u"\s*:\s*([0-9]{1,18})\b')
_TOPIC: Final = re.compile(rb'"topic"\s*:\s*"orderbook\.([0-9]{1,4})\.([A-Za-z0-9_-]+)"')

#: (publish time in epoch ms, frame)
TimedFrame = tuple[int, bytes]
#: Interval between settlements until two of them show another; the venue's longest.
_FUNDING_INTERVAL_MS: Final = 8 * HOUR_NS // MS_NS


class ArchiveError(DataError):
    """An archive cannot be read; the message names the file, the line where known, and the reason."""


class ArchiveDay(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of one symbol's archives of one date.

    ``depth`` is that of the book archive; ``gaps`` counts sequence gaps (``u`` not the last one + 1);
    ``starts_late_s`` is the time from midnight to the first snapshot; ``strays`` counts frames and
    trades whose own time is outside the date.
    """

    symbol: str
    day: str
    depth: int
    book_lines: int
    snapshots: int
    gaps: int
    starts_late_s: float
    trades: int
    strays: int


def convert(
    books: Path,
    trades: Path,
    out: Path,
    *,
    symbol: str,
    day: str,
    depth: int,
    latency_ns: int,
    funding: Sequence[Settlement] = (),
) -> ArchiveDay:
    """Write the capture ``out`` of one symbol's date from its two archives, atomically.

    ``funding`` are the settlements of the date and of the one before, oldest first. ``latency_ns``
    is honest when it is no smaller than what a recorder at the same place measures: a smaller one lets
    a backtest react earlier than it could have. ArchiveError when an archive is damaged, or of another
    symbol or a smaller depth; reading it to the end is the check.
    """
    start_ns = day_start_ns(day)
    start_ms = start_ns // MS_NS
    end_ns = start_ns + DAY_NS - 1
    book_reader = BookReader(books, symbol, depth, start_ms)
    trade_reader = TradeReader(trades, symbol, start_ms)
    # heapq.merge keeps the order of its arguments at equal times.
    frames = heapq.merge(
        funding_frames(funding, symbol, start_ms), trade_reader, book_reader, key=itemgetter(0)
    )
    part = out.with_name(f".{out.name}.part")
    part.unlink(missing_ok=True)
    with CaptureWriter(part) as writer:
        writer.control(
            start_ns,
            {"l2": "archive", "books": books.name, "trades": trades.name, "ns": latency_ns},
        )
        lines: list[bytes] = []
        receive_ns = start_ns
        for publish_ms, frame in frames:
            receive_ns = min(max(receive_ns, publish_ms * MS_NS + latency_ns), end_ns)
            lines.append(b"%d %b\n" % (receive_ns, frame))
            if len(lines) == _BATCH:
                writer.append_block(b"".join(lines))
                lines = []
        writer.append_block(b"".join(lines))
    os.replace(part, out)
    return ArchiveDay(
        symbol=symbol,
        day=day,
        depth=book_reader.archive_depth,
        book_lines=book_reader.lines,
        snapshots=book_reader.snapshots,
        gaps=book_reader.gaps,
        starts_late_s=(book_reader.first_snapshot_ms - start_ms) / 1e3,
        trades=trade_reader.trades,
        strays=book_reader.strays + trade_reader.strays,
    )


def funding_frames(
    funding: Sequence[Settlement], symbol: str, start_ms: int
) -> Iterator[TimedFrame]:
    """Ticker frames of the rate in force at ``start_ms`` and of each one settled within that date.

    No look-ahead: when the next one is expected comes of the last interval and is not read ahead.
    """
    stop_ms = start_ms + DAY_MS
    for n, (settled_ms, rate, mark) in enumerate(funding):
        until_ms = funding[n + 1].ms if n + 1 < len(funding) else stop_ms
        if until_ms <= start_ms or settled_ms >= stop_ms:
            continue
        interval_ms = settled_ms - funding[n - 1].ms if n else _FUNDING_INTERVAL_MS
        data = {
            "symbol": symbol,
            "fundingRate": rate,
            "expectedFunding": str(settled_ms + interval_ms),
            "settledTime": str(settled_ms),
            "settledRate": rate,
            "settledMark": mark,
        }
        publish_ms = max(settled_ms, start_ms)
        frame = {"topic": f"tickers.{symbol}", "type": "delta", "ts": publish_ms, "data": data}
        yield publish_ms, msgspec.json.encode(frame)


def doubtful(funding: Sequence[Settlement]) -> list[tuple[int, int]]:
    """Spans (epoch ms) in which a settlement may be missing from the venue's history.

    Such a span is longer than any interval of the venue, or than those on both sides of it.
    """
    times = [each.ms for each in funding]
    gaps = [after - before for before, after in pairwise(times)]
    return [
        (times[n], times[n + 1])
        for n, gap in enumerate(gaps)
        if gap > _FUNDING_INTERVAL_MS
        or (0 < n < len(gaps) - 1 and gap > max(gaps[n - 1], gaps[n + 1]))
    ]


class BookReader:
    """Iterates the frames of a book archive, truncated to ``depth`` levels a side; counts as it goes.

    ArchiveError for a damaged file, a line that is no book frame of the symbol, an archive of fewer
    than ``depth`` levels or without a snapshot.
    """

    def __init__(self, path: Path, symbol: str, depth: int, start_ms: int) -> None:
        self._path, self._symbol, self._depth, self._start_ms = path, symbol, depth, start_ms
        self._truncator: BookTruncator | None = None
        self.archive_depth = self.lines = self.snapshots = self.gaps = self.strays = 0
        self.first_snapshot_ms = 0

    def __iter__(self) -> Iterator[TimedFrame]:
        last_update_id = 0
        for number, line in enumerate(self._lines(), 1):
            line = line.strip()
            if not line:
                continue
            ts, update, topic = _TS.search(line), _UPDATE_ID.search(line), _TOPIC.search(line)
            if ts is None or update is None or topic is None or not line.endswith(b"}"):
                raise ArchiveError(f"{self._path} line {number}: not a book frame")
            self._check_topic(topic[2].decode(), int(topic[1]), number)
            self.lines += 1
            publish_ms, update_id = int(ts[1]), int(update[1])
            if b'"snapshot"' in line:
                self.snapshots += 1
                self.first_snapshot_ms = self.first_snapshot_ms or publish_ms
            elif update_id != last_update_id + 1:
                self.gaps += 1
            last_update_id = update_id
            self.strays += not 0 <= publish_ms - self._start_ms < DAY_MS
            yield publish_ms, line if self._truncator is None else self._truncated(line, number)
        if not self.snapshots:
            raise ArchiveError(f"{self._path}: no snapshot among its {self.lines} lines")

    def _check_topic(self, symbol: str, depth: int, number: int) -> None:
        """Refuse another symbol's frame; the first frame decides whether levels are cut off."""
        if symbol != self._symbol:
            raise ArchiveError(
                f"{self._path} line {number}: a frame of {symbol}, not {self._symbol}"
            )
        if not self.archive_depth:
            self.archive_depth = depth
            if depth < self._depth:
                raise ArchiveError(
                    f"{self._path}: {depth} levels, and market.book_depth is {self._depth}"
                )
            if depth > self._depth:
                self._truncator = BookTruncator(symbol, depth, self._depth)

    def _truncated(self, line: bytes, number: int) -> bytes:
        assert self._truncator is not None
        try:
            return self._truncator.frame(line)
        except (msgspec.MsgspecError, ValueError) as error:
            raise ArchiveError(f"{self._path} line {number}: {error}") from error

    def _lines(self) -> Iterator[bytes]:
        try:
            with zipfile.ZipFile(self._path) as archive:
                members = [name for name in archive.namelist() if not name.endswith("/")]
                if len(members) != 1:
                    raise ArchiveError(f"{self._path}: {len(members)} members; expected one")
                with archive.open(members[0]) as member:
                    yield from io.BufferedReader(member, 1 << 20)  # type: ignore[type-var]
        except _DAMAGE as error:
            raise ArchiveError(f"{self._path}: damaged ({error})") from error


class TradeReader:
    """Iterates the trades of a trade archive as publicTrade frames, oldest first, one per ``T``.

    ArchiveError for a damaged file or a line that is no trade of the symbol.
    """

    def __init__(self, path: Path, symbol: str, start_ms: int) -> None:
        self._path, self._symbol, self._start_ms = path, symbol, start_ms
        self.trades = self.strays = 0

    def __iter__(self) -> Iterator[TimedFrame]:
        try:
            with gzip.open(self._path) as file:
                text = file.read()
        except _DAMAGE as error:
            raise ArchiveError(f"{self._path}: damaged ({error})") from error
        try:
            archive = TradeArchive(text, self._symbol)
        except ValueError as error:
            raise ArchiveError(f"{self._path} {error}") from error
        since_midnight_ms = archive.times_ns // MS_NS - self._start_ms
        self.trades = len(archive)
        self.strays = int(((since_midnight_ms < 0) | (since_midnight_ms >= DAY_MS)).sum())
        yield from archive.frames()
