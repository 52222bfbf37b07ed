"""The venue's daily archives, read into the stream that a recorder would have written.

An archive holds no receive times: a frame's is its publish time (``ts``; a trade's ``T``) plus a
latency, kept within the date. At equal times trades come first. What a line of a book archive says
is passed on as it stands, except that one of 500 levels is cut to the depth that bars are made of,
so that it says what the topic of that depth would have said.

    books    one member of a zip: WebSocket frames, one a line, CRLF or LF; later snapshots replace
    trades   gzip csv, seconds with four decimals, oldest or newest first
    funding  settled rates, asked of the venue beside the archives: what was settled last stands for
             the running estimate, which no archive holds, from its settlement to the next
"""

from __future__ import annotations

import gzip
import io
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from live.archives.cut import Cut
from live.archives.trades import Trades
from market.errors import DataError
from market.units import DAY_NS, day_start_ns
from market.wire.capture import CaptureWriter

#: Raised when these cannot be unpacked: damage, not a fault of ours.
_DAMAGE: Final = (zipfile.BadZipFile, zlib.error, EOFError, OSError)
_BATCH: Final = 4096
_TS: Final = re.compile(rb'"ts"\s*:\s*([0-9]{13})\b')
_UPDATE: Final = re.compile(rb'"u"\s*:\s*([0-9]{1,18})\b')
_TOPIC: Final = re.compile(rb'"topic"\s*:\s*"orderbook\.([0-9]{1,4})\.([A-Za-z0-9_-]+)"')

Timed = tuple[int, bytes]
#: (settlement in epoch ms, rate as the venue writes it)
Settled = tuple[int, str]

#: Between two settlements, until two of them say otherwise.
_FUNDING_MS: Final = 8 * 3_600_000


class ArchiveError(DataError):
    """An archive cannot be read; the message names the file, the line where known, and why."""


class ArchiveDay(msgspec.Struct, frozen=True, kw_only=True):
    """What a symbol's archives of a date hold.

    ``depth`` is that of the book archive, ``gaps`` how often its ``u`` did not step by one,
    ``starts_late_s`` how long after midnight its first snapshot was published, ``strays`` frames and
    trades whose own time lies outside the date.
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
    funding: Sequence[Settled] = (),
) -> ArchiveDay:
    """Write the capture of one symbol's date from its two archives; it appears whole or not at all.

    ``funding`` are the settled rates of the date and of the one before, oldest first. Reading is the
    check that the archives are whole: ArchiveError when one is damaged or is not what its name says.
    """
    start = day_start_ns(day)
    book_reader = BookReader(books, symbol, depth, start // 1_000_000)
    trade_reader = TradeReader(trades, symbol, start // 1_000_000)
    last = start + DAY_NS - 1
    part = out.with_name(f".{out.name}.part")
    part.unlink(missing_ok=True)
    with CaptureWriter(part) as writer:
        writer.control(
            start, {"l2": "archive", "books": books.name, "trades": trades.name, "ns": latency_ns}
        )
        lines: list[bytes] = []
        now = start
        settled = funding_frames(funding, symbol, start // 1_000_000)
        for sent_ms, frame in merged(merged(settled, iter(trade_reader)), iter(book_reader)):
            now = min(max(now, sent_ms * 1_000_000 + latency_ns), last)
            lines.append(b"%d %b\n" % (now, frame))
            if len(lines) == _BATCH:
                writer.append_block(b"".join(lines))
                lines = []
        writer.append_block(b"".join(lines))
    os.replace(part, out)
    return ArchiveDay(
        symbol=symbol,
        day=day,
        depth=book_reader.found_depth,
        book_lines=book_reader.lines,
        snapshots=book_reader.snapshots,
        gaps=book_reader.gaps,
        starts_late_s=(book_reader.first_ms * 1_000_000 - start) / 1e9,
        trades=trade_reader.trades,
        strays=book_reader.strays + trade_reader.strays,
    )


def merged(first: Iterator[Timed], second: Iterator[Timed]) -> Iterator[Timed]:
    """Two streams as one by time; at ties those of the first come first. Neither is reordered."""
    one, other = next(first, None), next(second, None)
    while one is not None and other is not None:
        if one[0] <= other[0]:
            yield one
            one = next(first, None)
        else:
            yield other
            other = next(second, None)
    if one is not None:
        yield one
        yield from first
    if other is not None:
        yield other
        yield from second


def funding_frames(funding: Sequence[Settled], symbol: str, start_ms: int) -> Iterator[Timed]:
    """(time in ms, tickers frame) of the rate that stands at ``start_ms``, and of each of its date.

    A frame tells nothing that was not known then: the next settlement is as far away as the last one
    was from its predecessor.
    """
    stop_ms = start_ms + DAY_NS // 1_000_000
    for n, (at, rate) in enumerate(funding):
        until = funding[n + 1][0] if n + 1 < len(funding) else stop_ms
        if until <= start_ms or at >= stop_ms:
            continue
        apart = at - funding[n - 1][0] if n else _FUNDING_MS
        data = {"symbol": symbol, "fundingRate": rate, "nextFundingTime": str(at + apart)}
        sent_ms = max(at, start_ms)
        frame = {"topic": f"tickers.{symbol}", "type": "delta", "ts": sent_ms, "data": data}
        yield sent_ms, msgspec.json.encode(frame)


class BookReader:
    """Iterates (publish time in ms, frame) of a book archive, cut to ``depth`` levels a side."""

    def __init__(self, path: Path, symbol: str, depth: int, start_ms: int) -> None:
        self.path, self.symbol, self.depth, self.start_ms = path, symbol, depth, start_ms
        self.found_depth = self.lines = self.snapshots = self.gaps = self.strays = 0
        self.first_ms = 0

    def __iter__(self) -> Iterator[Timed]:
        cut: Cut | None = None
        update = 0
        for number, line in enumerate(self._text(), 1):
            line = line.strip()
            if not line:
                continue
            sent, said, topic = _TS.search(line), _UPDATE.search(line), _TOPIC.search(line)
            if sent is None or said is None or topic is None or not line.endswith(b"}"):
                raise ArchiveError(f"{self.path} line {number}: not a book frame")
            if topic[2].decode() != self.symbol:
                raise ArchiveError(
                    f"{self.path} line {number}: a frame of {topic[2].decode()}, not {self.symbol}"
                )
            if not self.found_depth:
                self.found_depth = int(topic[1])
                if self.found_depth < self.depth:
                    raise ArchiveError(
                        f"{self.path}: {self.found_depth} levels, and market.book_depth is "
                        f"{self.depth}"
                    )
                deeper = self.found_depth > self.depth
                cut = Cut(self.symbol, self.found_depth, self.depth) if deeper else None
            self.lines += 1
            snapshot = b'"snapshot"' in line
            sent_ms, u = int(sent[1]), int(said[1])
            if snapshot:
                self.snapshots += 1
                self.first_ms = self.first_ms or sent_ms
            elif u != update + 1:
                self.gaps += 1
            update = u
            self.strays += not 0 <= sent_ms - self.start_ms < DAY_NS // 1_000_000
            yield sent_ms, line if cut is None else self._cut(cut, line, number)
        if not self.snapshots:
            raise ArchiveError(f"{self.path}: no snapshot among its {self.lines} lines")

    def _cut(self, cut: Cut, line: bytes, number: int) -> bytes:
        try:
            return cut.frame(line)
        except (msgspec.MsgspecError, ValueError) as error:
            raise ArchiveError(f"{self.path} line {number}: {error}") from error

    def _text(self) -> Iterator[bytes]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                members = [name for name in archive.namelist() if not name.endswith("/")]
                if len(members) != 1:
                    raise ArchiveError(f"{self.path}: {len(members)} members; expected one")
                with archive.open(members[0]) as member:
                    yield from io.BufferedReader(member, 1 << 20)  # type: ignore[type-var]
        except _DAMAGE as error:
            raise ArchiveError(f"{self.path}: damaged ({error})") from error


class TradeReader:
    """Iterates (T in ms, publicTrade frame), oldest first, one frame for each T of a trade archive."""

    def __init__(self, path: Path, symbol: str, start_ms: int) -> None:
        self.path, self.symbol, self.start_ms = path, symbol, start_ms
        self.trades = self.strays = 0

    def __iter__(self) -> Iterator[Timed]:
        try:
            with gzip.open(self.path) as file:
                text = file.read()
        except _DAMAGE as error:
            raise ArchiveError(f"{self.path}: damaged ({error})") from error
        try:
            trades = Trades(text, self.symbol)
        except ValueError as error:
            raise ArchiveError(f"{self.path} {error}") from error
        since = trades.times_ns // 1_000_000 - self.start_ms
        self.trades = len(trades)
        self.strays = int(((since < 0) | (since >= DAY_NS // 1_000_000)).sum())
        yield from trades.frames()
