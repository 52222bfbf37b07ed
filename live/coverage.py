"""Coverage of a lake: which symbols and dates it has, from which source, with which gaps.

A capture is scanned once; its summary is cached beside it, so that a repeated scan costs only what is
new. Sequence gaps and holes are those of the book topic that bars are made of.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Collection, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import msgspec

from market.console import Result, names, say, table
from market.lake import Lake
from market.settings import Settings
from market.store import size_of
from market.units import DAY_NS, SECOND_NS, day_start_ns, days_between, utc_date
from market.wire.capture import Block, read_blocks
from market.wire.topics import book_topic

HEAD: Final = (
    "date",
    "symbol",
    "source",
    "files",
    "first",
    "last",
    "hours",
    "frames",
    "gaps",
    "holes",
    "longest s",
    "torn",
    "tables",
)
#: A longer silence of the book topic is a hole.
HOLE_NS: Final = 10 * SECOND_NS
#: Tables that are listed for a date.
_TABLES: Final = ("events", "bars", "features", "labels")
#: Of the cached summaries; raised when they change.
_VERSION: Final = 2

_LINE: Final = re.compile(
    rb'^([0-9]{1,19}) \{[^\n]*?"topic"\s*:\s*"([A-Za-z0-9._-]+)"([^\n]*)', re.MULTILINE
)
_REFUSED: Final = re.compile(rb'^([0-9]{1,19}) (\{"l2":"refused"[^\n]*)', re.MULTILINE)
_UPDATE_ID: Final = re.compile(rb'"u"\s*:\s*([0-9]{1,18})')


class CapturePart(msgspec.Struct):
    """What one capture has of one symbol on one date. Times are receive times (epoch ns).

    ``first_ns``, ``last_ns`` and ``holes`` (start, end) are those of the book topic, ``frames`` counts
    all topics, ``gaps`` the sequence gaps of the book.
    """

    symbol: str
    day: str
    first_ns: int = 0
    last_ns: int = 0
    frames: int = 0
    gaps: int = 0
    holes: list[tuple[int, int]] = []
    refused: str = ""  #: why the venue refused a topic of it


class CaptureSummary(msgspec.Struct):
    """Cached summary of one capture, valid while the file has ``size`` bytes."""

    version: int
    size: int
    depth: int
    torn: bool
    stretches: list[CapturePart]


class DayCoverage(msgspec.Struct, frozen=True, kw_only=True):
    """One symbol's date from one source.

    ``holes`` are (start, end) of silences of the book above 10 s, those between captures included;
    ``torn`` counts captures with a torn tail, ``tables`` names those that have the date.
    """

    day: str
    symbol: str
    source: str
    files: int
    first_ns: int
    last_ns: int
    frames: int
    gaps: int
    holes: tuple[tuple[int, int], ...]
    torn: int
    tables: tuple[str, ...]
    #: Why the venue refused a topic of the symbol; empty when it did not.
    refused: str = ""

    @property
    def covered_s(self) -> float:
        """Seconds from first to last frame, holes excluded."""
        silent_ns = sum(stop - start for start, stop in self.holes)
        return (self.last_ns - self.first_ns - silent_ns) / 1e9

    def row(self) -> tuple[object, ...]:
        """Cells under `HEAD`."""
        longest = max((stop - start for start, stop in self.holes), default=0) / 1e9
        return (
            self.day,
            self.symbol,
            self.source,
            self.files,
            _time_of_day(self.first_ns, self.day),
            _time_of_day(self.last_ns, self.day),
            f"{self.covered_s / 3600:.2f}",
            f"{self.frames:,}",
            self.gaps,
            len(self.holes),
            f"{longest:.0f}",
            self.torn,
            " ".join(self.tables) or "–",
        )

    def data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        fields: dict[str, Any] = msgspec.to_builtins(self)
        return fields | {"covered_s": self.covered_s}


def coverage(
    lake: Lake,
    book_depth: int,
    symbols: Collection[str] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[DayCoverage]:
    """Coverage of every (date, symbol, source) in captures, archives or tables, in this order.

    CaptureError when a capture is damaged before its tail.
    """
    parts: dict[tuple[str, str, str], list[tuple[CapturePart, bool]]] = {}
    for source, path in _captures(lake):
        summary = _summary(lake, path, book_depth, say)
        for part in summary.stretches:
            parts.setdefault((part.day, part.symbol, source), []).append((part, summary.torn))
    tables: dict[tuple[str, str], list[str]] = {}
    for name in _TABLES:
        for symbol, day in lake.partitions(name):
            tables.setdefault((day, symbol), []).append(name)
    days = [_merged(*key, of_day, tuple(tables.get(key[:2], ()))) for key, of_day in parts.items()]
    captured = {(day.day, day.symbol) for day in days}
    days += [
        DayCoverage(
            day=day,
            symbol=symbol,
            source="tables only",
            files=0,
            first_ns=0,
            last_ns=0,
            frames=0,
            gaps=0,
            holes=(),
            torn=0,
            tables=tuple(names),
        )
        for (day, symbol), names in tables.items()
        if (day, symbol) not in captured
    ]
    selected = [day for day in days if symbols is None or day.symbol in symbols]
    return sorted(selected, key=lambda day: (day.day, day.symbol, day.source))


def missing(days: Collection[DayCoverage]) -> list[tuple[str, str, str, int]]:
    """(symbol, first date, last date, number) of each range of dates missing between two others."""
    dates_of: dict[str, set[str]] = {}
    for day in days:
        dates_of.setdefault(day.symbol, set()).add(day.day)
    ranges = []
    for symbol, dates in sorted(dates_of.items()):
        for before, after in pairwise(sorted(dates)):
            between = days_between(before, after)[1:-1]
            if between:
                ranges.append((symbol, between[0], between[-1], len(between)))
    return ranges


def _captures(lake: Lake) -> Iterator[tuple[str, str]]:
    """(source, path) of every capture."""
    source = "synthetic" if lake.source == "synthetic" else "capture"
    for day in lake.capture_dates():
        for path in lake.captures(day):
            yield source, path
    for symbol, day in lake.archives():
        yield "archive", lake.archive(symbol, day)


def _summary(lake: Lake, path: str, book_depth: int, say: Callable[[str], None]) -> CaptureSummary:
    """The cached summary of a capture, or a new scan of it."""
    cache = (lake.home / path.removeprefix(f"{lake.base}/")).with_suffix(".coverage.json")
    size = size_of(path)
    if cache.exists():
        try:
            cached = msgspec.json.decode(cache.read_bytes(), type=CaptureSummary)
        except msgspec.MsgspecError:
            cached = None  # of another version, or torn
        if cached and (cached.version, cached.size, cached.depth) == (_VERSION, size, book_depth):
            return cached
    if not size:
        return CaptureSummary(_VERSION, 0, book_depth, True, [])
    say(f"reading {Path(path).name}")
    summary = _scan(path, size, book_depth)
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_bytes(msgspec.json.encode(summary))
    return summary


def _scan(path: str, size: int, book_depth: int) -> CaptureSummary:
    scanner = _Scanner(book_depth)
    torn = False
    for block in read_blocks(path):
        scanner.scan(block)
        torn |= block.torn
    parts = sorted(scanner.parts.values(), key=lambda part: (part.day, part.symbol))
    return CaptureSummary(_VERSION, size, book_depth, torn, parts)


class _Scanner:
    """Collects the parts of one capture, without decoding its frames."""

    def __init__(self, book_depth: int) -> None:
        self._book = book_topic(book_depth, "").encode()
        self.parts: dict[tuple[str, str], CapturePart] = {}
        self._now_ns = 0
        self._day, self._day_end_ns = "", 0
        self._update_ids: dict[bytes, int] = {}

    def scan(self, block: Block) -> None:
        for refusal in _REFUSED.finditer(block.data):
            told = msgspec.json.decode(refusal[2])
            for symbol in {topic.rpartition(".")[2] for topic in told["topics"]}:
                self._part(utc_date(int(refusal[1])), symbol).refused = told["reason"]
        for line in _LINE.finditer(block.data):
            receive_ns, topic, rest = int(line[1]), line[2], line[3]
            if line[0].find(b'{"l2"', 0, 32) > 0:  # a checkpoint: the state, not a frame
                if topic.startswith(self._book) and (match := _UPDATE_ID.search(rest)):
                    self._update_ids[topic] = int(match[1])
                continue
            self._now_ns = max(self._now_ns, receive_ns)
            if self._now_ns >= self._day_end_ns:
                self._day = utc_date(self._now_ns)
                self._day_end_ns = day_start_ns(self._day) + DAY_NS
            symbol = topic.rpartition(b".")[2].decode()
            part = self._part(self._day, symbol)
            part.frames += 1
            if topic.startswith(self._book):
                self._scan_book(part, topic, line[0], rest)

    def _part(self, day: str, symbol: str) -> CapturePart:
        return self.parts.setdefault((day, symbol), CapturePart(symbol, day))

    def _scan_book(self, part: CapturePart, topic: bytes, line: bytes, rest: bytes) -> None:
        now_ns = self._now_ns
        if part.last_ns and now_ns - part.last_ns > HOLE_NS:
            part.holes.append((part.last_ns, now_ns))
        part.first_ns = part.first_ns or now_ns
        part.last_ns = now_ns
        match = _UPDATE_ID.search(rest)
        if match is None:
            return
        update_id, last_id = int(match[1]), self._update_ids.get(topic)
        if b'"snapshot"' not in line and (last_id is None or update_id > last_id + 1):
            part.gaps += 1
        self._update_ids[topic] = update_id


def _merged(
    day: str,
    symbol: str,
    source: str,
    parts: list[tuple[CapturePart, bool]],
    tables: tuple[str, ...],
) -> DayCoverage:
    """A date's parts as one; a silence between two of them is a hole too."""
    ordered = sorted((part for part, _ in parts if part.first_ns), key=lambda part: part.first_ns)
    holes = [hole for part in ordered for hole in part.holes]
    last_ns = 0
    for part in ordered:
        if last_ns and part.first_ns - last_ns > HOLE_NS:
            holes.append((last_ns, part.first_ns))
        last_ns = max(last_ns, part.last_ns)
    return DayCoverage(
        day=day,
        symbol=symbol,
        source=source,
        files=len(parts),
        first_ns=ordered[0].first_ns if ordered else 0,
        last_ns=last_ns,
        frames=sum(part.frames for part, _ in parts),
        gaps=sum(part.gaps for part in ordered),
        holes=tuple(sorted(holes)),
        torn=sum(torn for _, torn in parts),
        tables=tables,
        refused=next((part.refused for part, _ in parts if part.refused), ""),
    )


def _time_of_day(ns: int, day: str) -> str:
    """HH:MM:SS of a receive time, a dash when there is none."""
    if not ns:
        return "–"
    seconds = (ns - day_start_ns(day)) // SECOND_NS
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


# -- the verb --------------------------------------------------------------------------------------


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 coverage`."""
    parser.add_argument("--symbols", metavar="A,B", help="default: every symbol")


def command(settings: Settings, options: argparse.Namespace) -> Result:
    """`l2 coverage`: one line per date and source, and the ranges of missing dates."""
    lake = Lake(settings.root)
    days = coverage(lake, settings.market.book_depth, names(options.symbols) or None, say)
    gaps = missing(days)
    if not options.json:
        print(table([day.row() for day in days], HEAD) if days else f"{lake.uri}: holds no day")
        for day in days:
            if day.refused:
                print(f"{day.day} {day.symbol}: the venue refused it ({day.refused})")
        for symbol, first, last, count in gaps:
            print(f"{symbol}: {count} dates are missing, {first} to {last}")
    return {
        "source": lake.source,
        "days": [day.data() for day in days],
        "missing": [list(each) for each in gaps],
    }
