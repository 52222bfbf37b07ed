"""What a lake holds of the market: by symbol and date, from where, and with which gaps.

A capture is read once; what it says is kept beside the frames, so that the next look costs only what
is new. Gaps are told of the one book topic that bars are made of.
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
from market.units import DAY_NS, day_start_ns, days_between, utc_date
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
#: A book topic silent for longer has a hole.
HOLE_NS: Final = 10_000_000_000
#: Tables that say how far a date has come.
_TABLES: Final = ("events", "bars", "features", "labels")
_VERSION: Final = 1

_LINE: Final = re.compile(
    rb'^([0-9]{1,19}) \{[^\n]*?"topic"\s*:\s*"([A-Za-z0-9._-]+)"([^\n]*)', re.MULTILINE
)
_UPDATE: Final = re.compile(rb'"u"\s*:\s*([0-9]{1,18})')


class Stretch(msgspec.Struct):
    """What one capture holds of one symbol on one date. Times are receive times (epoch ns).

    ``first_ns``, ``last_ns`` and the holes are those of the book topic, ``frames`` of all topics.
    """

    symbol: str
    day: str
    first_ns: int = 0
    last_ns: int = 0
    frames: int = 0
    gaps: int = 0
    holes: list[tuple[int, int]] = []


class Contents(msgspec.Struct):
    """What one capture holds. ``size`` tells whether it has grown since it was read."""

    version: int
    size: int
    depth: int
    torn: bool
    stretches: list[Stretch]


class Day(msgspec.Struct, frozen=True, kw_only=True):
    """One symbol's date. ``holes`` are silences of the book longer than 10 s, between captures too."""

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

    @property
    def covered_s(self) -> float:
        """Seconds from first to last frame, less the holes."""
        silent = sum(stop - start for start, stop in self.holes)
        return (self.last_ns - self.first_ns - silent) / 1e9

    def row(self) -> tuple[object, ...]:
        longest = max((stop - start for start, stop in self.holes), default=0) / 1e9
        return (
            self.day,
            self.symbol,
            self.source,
            self.files,
            _clock(self.first_ns, self.day),
            _clock(self.last_ns, self.day),
            f"{self.covered_s / 3600:.2f}",
            f"{self.frames:,}",
            self.gaps,
            len(self.holes),
            f"{longest:.0f}",
            self.torn,
            " ".join(self.tables) or "–",
        )

    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found | {"covered_s": self.covered_s}


def coverage(
    lake: Lake,
    book_depth: int,
    symbols: Collection[str] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Day]:
    """Every (symbol, date) that captures, archives or tables hold, by date and symbol.

    CaptureError when a capture is damaged before its tail.
    """
    found: dict[tuple[str, str, str], list[tuple[Stretch, bool]]] = {}
    for source, path in _captures(lake):
        contents = _contents(path, book_depth, say)
        for stretch in contents.stretches:
            found.setdefault((stretch.day, stretch.symbol, source), []).append(
                (stretch, contents.torn)
            )
    built: dict[tuple[str, str], list[str]] = {}
    for name in _TABLES:
        for symbol, day in lake.partitions(name):
            built.setdefault((day, symbol), []).append(name)
    days = [_joined(*key, parts, tuple(built.get(key[:2], ()))) for key, parts in found.items()]
    held = {(day.day, day.symbol) for day in days}
    days += [
        Day(
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
            tables=tuple(tables),
        )
        for (day, symbol), tables in built.items()
        if (day, symbol) not in held
    ]
    wanted = [day for day in days if symbols is None or day.symbol in symbols]
    return sorted(wanted, key=lambda day: (day.day, day.symbol, day.source))


def missing(days: Collection[Day]) -> list[tuple[str, str, str, int]]:
    """(symbol, first date, last date, how many) of dates in between of which nothing is held."""
    held: dict[str, set[str]] = {}
    for day in days:
        held.setdefault(day.symbol, set()).add(day.day)
    found = []
    for symbol, dates in sorted(held.items()):
        ordered = sorted(dates)
        for before, after in pairwise(ordered):
            between = days_between(before, after)[1:-1]
            if between:
                found.append((symbol, between[0], between[-1], len(between)))
    return found


def _captures(lake: Lake) -> Iterator[tuple[str, str]]:
    """(source, path) of every capture of a local lake."""
    source = "synthetic" if lake.source == "synthetic" else "capture"
    for day in lake.capture_dates():
        for path in lake.captures(day):
            yield source, path
    for symbol, day in lake.archives():
        yield "archive", lake.archive(symbol, day)


def _contents(path: str, book_depth: int, say: Callable[[str], None]) -> Contents:
    kept = Path(path).with_suffix(".coverage.json")
    size = Path(path).stat().st_size
    if kept.exists():
        try:
            known = msgspec.json.decode(kept.read_bytes(), type=Contents)
        except msgspec.MsgspecError:
            known = None  # of another version, or torn: read anew
        if known and (known.version, known.size, known.depth) == (_VERSION, size, book_depth):
            return known
    if not size:
        return Contents(_VERSION, 0, book_depth, True, [])
    say(f"reading {Path(path).name}")
    contents = _read(path, size, book_depth)
    kept.write_bytes(msgspec.json.encode(contents))
    return contents


def _read(path: str, size: int, book_depth: int) -> Contents:
    reader = _Reader(book_depth)
    torn = False
    for block in read_blocks(path):
        reader.take(block)
        torn |= block.torn
    stretches = sorted(reader.stretches.values(), key=lambda held: (held.day, held.symbol))
    return Contents(_VERSION, size, book_depth, torn, stretches)


class _Reader:
    """Gathers stretches from the lines of one capture."""

    def __init__(self, book_depth: int) -> None:
        self._book = book_topic(book_depth, "").encode()
        self.stretches: dict[tuple[str, str], Stretch] = {}
        self._clock = 0
        self._day, self._turn = "", 0
        self._update: dict[bytes, int] = {}

    def take(self, block: Block) -> None:
        for line in _LINE.finditer(block.data):
            stamp, topic, rest = int(line[1]), line[2], line[3]
            if line[0].find(b'{"l2"', 0, 32) > 0:
                if topic.startswith(self._book) and (named := _UPDATE.search(rest)):
                    self._update[topic] = int(named[1])
                continue
            self._clock = max(self._clock, stamp)
            if self._clock >= self._turn:
                self._day = utc_date(self._clock)
                self._turn = day_start_ns(self._day) + DAY_NS
            symbol = topic.rpartition(b".")[2].decode()
            stretch = self.stretches.get((self._day, symbol))
            if stretch is None:
                stretch = self.stretches[self._day, symbol] = Stretch(symbol, self._day)
            stretch.frames += 1
            if topic.startswith(self._book):
                self._follow(stretch, topic, line[0], rest)

    def _follow(self, stretch: Stretch, topic: bytes, line: bytes, rest: bytes) -> None:
        now = self._clock
        if stretch.last_ns and now - stretch.last_ns > HOLE_NS:
            stretch.holes.append((stretch.last_ns, now))
        stretch.first_ns = stretch.first_ns or now
        stretch.last_ns = now
        named = _UPDATE.search(rest)
        if named is None:
            return
        update, last = int(named[1]), self._update.get(topic)
        if b'"snapshot"' not in line and (last is None or update > last + 1):
            stretch.gaps += 1
        self._update[topic] = update


def _joined(
    day: str,
    symbol: str,
    source: str,
    parts: list[tuple[Stretch, bool]],
    tables: tuple[str, ...],
) -> Day:
    ordered = sorted((part for part, _ in parts if part.first_ns), key=lambda part: part.first_ns)
    holes = [hole for part in ordered for hole in part.holes]
    last = 0
    for part in ordered:
        if last and part.first_ns - last > HOLE_NS:
            holes.append((last, part.first_ns))
        last = max(last, part.last_ns)
    return Day(
        day=day,
        symbol=symbol,
        source=source,
        files=len(parts),
        first_ns=ordered[0].first_ns if ordered else 0,
        last_ns=last,
        frames=sum(part.frames for part, _ in parts),
        gaps=sum(part.gaps for part in ordered),
        holes=tuple(sorted(holes)),
        torn=sum(torn for _, torn in parts),
        tables=tables,
    )


def _clock(ns: int, day: str) -> str:
    """Time of day of a receive time, a dash when there is none."""
    if not ns:
        return "–"
    seconds = (ns - day_start_ns(day)) // 1_000_000_000
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


# -- the verb --------------------------------------------------------------------------------------


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 coverage`."""
    parser.add_argument("--symbols", metavar="A,B", help="default: every symbol held")


def command(settings: Settings, options: argparse.Namespace) -> Result:
    """`l2 coverage`: a line a date, and the ranges of dates that nothing is held of."""
    lake = Lake(settings.root)
    days = coverage(lake, settings.market.book_depth, names(options.symbols) or None, say)
    lacking = missing(days)
    if not options.json:
        print(table([day.row() for day in days], HEAD) if days else f"{lake.uri}: holds no day")
        for symbol, first, last, count in lacking:
            print(f"{symbol}: nothing of {count} dates, {first} to {last}")
    return {
        "source": lake.source,
        "days": [day.data() for day in days],
        "missing": [list(span) for span in lacking],
    }
