"""The venue's daily archives, read into the stream that a recorder would have written.

An archive holds no receive times: a frame's is its publish time (``ts``; a trade's ``T``) plus a
latency, kept within the date. At equal times trades come first. What a line of a book archive says
is passed on as it stands, except that one of 500 levels is cut to the depth that bars are made of,
so that it says what the topic of that depth would have said.

    books    one member of a zip: WebSocket frames, one a line, CRLF or LF; later snapshots replace
    trades   gzip csv, seconds with four decimals, oldest or newest first
"""

from __future__ import annotations

import gzip
import io
import math
import os
import re
import zipfile
import zlib
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import msgspec

from market.capture import CaptureWriter
from market.lake import DAY_NS, day_start_ns

#: Raised when these cannot be unpacked: damage, not a fault of ours.
_DAMAGE: Final = (zipfile.BadZipFile, zlib.error, EOFError, OSError)
_BATCH: Final = 4096
_TS: Final = re.compile(rb'"ts"\s*:\s*([0-9]{13})\b')
_UPDATE: Final = re.compile(rb'"u"\s*:\s*([0-9]{1,18})\b')
_TOPIC: Final = re.compile(rb'"topic"\s*:\s*"orderbook\.([0-9]{1,4})\.([A-Za-z0-9_-]+)"')
_SIDES: Final = frozenset({b"Buy", b"Sell"})
_COLUMNS: Final = (b"timestamp", b"symbol", b"side", b"size", b"price", b"tickDirection")

Timed = tuple[int, bytes]


class ArchiveError(RuntimeError):
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
    books: Path, trades: Path, out: Path, *, symbol: str, day: str, depth: int, latency_ns: int
) -> ArchiveDay:
    """Write the capture of one symbol's date from its two archives; it appears whole or not at all.

    Reading is the check that the archives are whole: ArchiveError when one is damaged or is not what
    its name says.
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
        for sent_ms, frame in merged(iter(trade_reader), iter(book_reader)):
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
                cut = Cut(self.depth) if self.found_depth > self.depth else None
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
        rows = self._rows()
        # Newest first: turned around, so that trades of one time keep the order they happened in.
        if len(rows) > 1 and rows[0][0] > rows[-1][0]:
            rows.reverse()
        rows.sort(key=itemgetter(0))
        self.trades = len(rows)
        topic = f"publicTrade.{self.symbol}"
        for sent_ms, group in groupby(rows, key=lambda row: row[0] // 1_000_000):
            trades = [self._trade(sent_ms, row[1]) for row in group]
            if not 0 <= sent_ms - self.start_ms < DAY_NS // 1_000_000:
                self.strays += len(trades)
            frame = {"topic": topic, "type": "snapshot", "ts": sent_ms, "data": trades}
            yield sent_ms, msgspec.json.encode(frame)

    def _rows(self) -> list[tuple[int, list[bytes]]]:
        """(time in ns, fields) of every row; checks each."""
        rows: list[tuple[int, list[bytes]]] = []
        symbol = self.symbol.encode()
        try:
            with gzip.open(self.path) as file:
                head = file.readline().strip().split(b",")
                if tuple(head[: len(_COLUMNS)]) != _COLUMNS or b"trdMatchID" not in head:
                    raise ArchiveError(f"{self.path} line 1: not the header of a trade archive")
                self._id = head.index(b"trdMatchID")
                self._rpi = head.index(b"RPI") if b"RPI" in head else 0
                for number, line in enumerate(file, 2):
                    fields = line.strip().split(b",")
                    if fields == [b""]:
                        continue
                    time_ns = _ns(fields[0])
                    if len(fields) != len(head) or not time_ns or fields[2] not in _SIDES:
                        raise ArchiveError(f"{self.path} line {number}: not a trade")
                    if fields[1] != symbol:
                        raise ArchiveError(
                            f"{self.path} line {number}: a trade of {fields[1].decode()}, "
                            f"not {self.symbol}"
                        )
                    rows.append((time_ns, fields))
        except _DAMAGE as error:
            raise ArchiveError(f"{self.path}: damaged ({error})") from error
        return rows

    def _trade(self, sent_ms: int, fields: list[bytes]) -> dict[str, Any]:
        return {
            "T": sent_ms,
            "s": self.symbol,
            "S": fields[2].decode(),
            "v": fields[3].decode(),
            "p": fields[4].decode(),
            "L": fields[5].decode(),
            "i": fields[self._id].decode(),
            "BT": False,
            "RPI": bool(self._rpi) and fields[self._rpi] == b"1",
        }


def _ns(seconds: bytes) -> int:
    """Epoch ns of decimal seconds, exactly; zero when the text is none."""
    whole, _, fraction = seconds.partition(b".")
    if not (whole.isdigit() and (not fraction or fraction.isdigit())):
        return 0
    return int(whole) * 1_000_000_000 + int(fraction[:9].ljust(9, b"0") or b"0")


class _Data(msgspec.Struct, omit_defaults=True):
    s: str
    b: list[tuple[str, str]]
    a: list[tuple[str, str]]
    u: int
    seq: int | msgspec.UnsetType = msgspec.UNSET


class _Frame(msgspec.Struct, omit_defaults=True):
    topic: str
    type: str
    ts: int
    data: _Data
    cts: int | msgspec.UnsetType = msgspec.UNSET


_read_frame = msgspec.json.Decoder(_Frame).decode


class Cut:
    """Turns the frames of a deep book topic into those of one of ``depth`` levels a side.

    As the venue does it: a level that leaves the window is deleted, and one that comes into it is
    set, in the frame in which it happens.
    """

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self._sides = (_Window(-1, depth), _Window(+1, depth))
        self._held = False

    def frame(self, text: bytes) -> bytes:
        """The cut frame; before the first snapshot only its name is changed."""
        frame = _read_frame(text)
        frame.topic = f"orderbook.{self.depth}.{frame.topic.rpartition('.')[2]}"
        bids, asks = self._sides
        if frame.type == "snapshot":
            self._held = True
            frame.data.b = bids.replace(frame.data.b)
            frame.data.a = asks.replace(frame.data.a)
        elif self._held:
            frame.data.b = bids.apply(frame.data.b)
            frame.data.a = asks.apply(frame.data.a)
        return msgspec.json.encode(frame)


class _Window:
    """One side of the whole book and what of it is visible: its ``depth`` best levels.

    Levels are keyed by sign times price, so that the best has the smallest key on either side.
    """

    def __init__(self, sign: int, depth: int) -> None:
        self._sign, self._depth = sign, depth
        self._keys: list[float] = []
        self._levels: dict[float, tuple[str, str]] = {}

    def replace(self, levels: list[tuple[str, str]]) -> list[tuple[str, str]]:
        self._levels = {
            self._sign * float(price): (price, size) for price, size in levels if float(size)
        }
        self._keys = sorted(self._levels)
        return [self._levels[key] for key in self._keys[: self._depth]]

    def apply(self, changes: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Take changes of the whole book; returns those of the window, the best level first."""
        before = self._edge()
        changed: dict[float, str] = {}
        seen: set[float] = set()
        for price, size in changes:
            key = self._sign * float(price)
            if key not in changed and key in self._levels and key <= before:
                seen.add(key)
            changed[key] = price
            if float(size):
                if key not in self._levels:
                    insort(self._keys, key)
                self._levels[key] = (price, size)
            elif self._levels.pop(key, None) is not None:
                del self._keys[bisect_left(self._keys, key)]
        after = self._edge()
        found: dict[float, tuple[str, str]] = {}
        for key, price in changed.items():
            if key <= after and key in self._levels:
                found[key] = self._levels[key]
            elif key in seen:
                found[key] = (price, "0")
        low, high = min(before, after), max(before, after)
        moved = self._keys[bisect_right(self._keys, low) : bisect_right(self._keys, high)]
        for key in moved:
            if key not in changed:
                price, size = self._levels[key]
                found[key] = (price, size if after > before else "0")
        return [found[key] for key in sorted(found)]

    def _edge(self) -> float:
        """The key of the last visible level; infinite while all are visible."""
        keys = self._keys
        return keys[self._depth - 1] if len(keys) >= self._depth else math.inf
