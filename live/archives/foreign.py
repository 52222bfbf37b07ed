"""Rows of other formats, as the frames that the venue would have sent.

A source gives rows of one symbol (dtype ``EVENT``) with receive and exchange time, kind, side, price and
quantity, in order of receipt; consecutive rows of equal times and kind are a frame. Sources are merged by
receive time, trades before tickers before books; of a book the best levels are kept, as in the venue's own
topic (`live.archives.truncation`). Update ids are consecutive from the first frame's exchange time (µs),
and so are trades' sequences: those of the venue are in none of these formats.

A row of kind SNAPSHOT without a side stands for itself: a book that is emptied.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Final, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from live.archives.conversion import ArchiveError
from live.archives.truncation import ROOM, BookTruncator
from market.events import EVENT, Events, Flag, Kind
from market.instruments import BUILT_IN, Instrument, refusal
from market.units import MS_NS
from market.wire.capture import CaptureWriter
from market.wire.encode import Encoder

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

SYMBOL: Final = re.compile(r"[A-Za-z0-9_-]{1,32}")
#: Powers of ten from 1 to 1e-8.
_STEPS: Final = ("1", *(f"0.{'0' * n}1" for n in range(8)))


class Refused:
    """Rows of a file that are left out: how many by reason, and where the first of each is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.counts: Counter[str] = Counter()
        self.first: dict[str, int] = {}

    def note(self, reason: str, row: int, count: int = 1) -> None:
        """Count rows, the first of them at ``row`` (from 1, the header not counted)."""
        self.counts[reason] += count
        self.first.setdefault(reason, row)

    def sound(self, reasons: Iterable[tuple[str, Mask]], rows: Integers) -> Mask:
        """Which rows are wrong for no reason; of several reasons the first counts."""
        sound = np.ones(len(rows), np.bool_)
        for reason, wrong in reasons:
            wrong = wrong & sound
            if wrong.any():
                self.note(reason, int(rows[wrong.argmax()]), int(wrong.sum()))
                sound &= ~wrong
        return sound

    def lines(self) -> list[str]:
        """A line for each reason."""
        return [
            f"{self.path.name}: {count:,} rows left out, the first is row {self.first[reason]:,}: {reason}"
            for reason, count in self.counts.items()
        ]


class Source(Protocol):
    """One file of rows of one symbol. Files of one ``feed`` (what the rows are of) follow each other."""

    path: Path
    symbol: str
    feed: str
    start_ns: int  #: receive time of the first row
    refused: Refused

    def blocks(self, instrument: Instrument) -> Iterator[tuple[Integers, Events]]:
        """The usable rows, in blocks of bounded size, each row with its number in the file."""

    def sample(self) -> tuple[Floats, Floats]:
        """Some prices and quantities, from which the grid is inferred where none is given."""


class Converted(msgspec.Struct, frozen=True, kw_only=True):
    """What became a capture: rows used and left out, and frames written, by symbol."""

    rows: int
    frames: dict[str, int]
    refused: int
    findings: tuple[str, ...]


def units(values: Floats, step: str) -> tuple[Integers, Mask]:
    """Multiples of a decimal step, and which values are whole ones."""
    size = float(step)
    held = np.abs(values) < size * (1 << 53)  # neither NaN nor infinite
    sound = np.where(held, values, 0.0)
    whole = np.rint(sound / size)
    near = held & (np.abs(whole * size - sound) <= 1e-12 * np.abs(sound) + 1e-9 * size)
    return np.where(near, whole, 0).astype(np.int64), near


def put_levels(
    events: Events, prices: Floats, quantities: Floats, instrument: Instrument, levels: Mask | bool
) -> list[tuple[str, Mask]]:
    """Set price and quantity of rows whose kind and side are set; what is wrong with which.

    Nothing is asked of rows that are not among ``levels``.
    """
    events["price_ticks"], on_tick = units(prices, instrument.tick)
    events["qty_lots"], on_lot = units(quantities, instrument.lot)
    trade = events["kind"] == Kind.TRADE
    return [
        ("no side", levels & (events["side"] == 0)),
        ("no price above zero", levels & ~(prices > 0)),
        ("no quantity, or below zero", levels & ~((quantities > 0) | (~trade & (quantities == 0)))),
        (f"a price between two ticks of {instrument.tick}", levels & ~on_tick),
        (f"a quantity between two lots of {instrument.lot}", levels & ~on_lot),
    ]


def instrument_of(symbol: str, sources: Iterable[Source], tick: str, lot: str) -> Instrument:
    """The instrument to convert with: the steps given, else those built in, else inferred.

    A built-in lot that is coarser than the quantities gives way: other venues have finer ones.
    ArchiveError for a name that is none of a linear contract.
    """
    if not SYMBOL.fullmatch(symbol):
        raise ArchiveError(f"{symbol}: not a symbol of the venue, such as BTCUSDT")
    if why := refusal(symbol):
        raise ArchiveError(why)
    known = BUILT_IN.get(symbol)
    samples = [source.sample() for source in sources]
    prices, quantities = (np.concatenate(column) for column in zip(*samples, strict=True))
    tick = tick or (known.tick if known else _step(prices, _STEPS))
    lot = lot or _step(quantities, (known.lot, *_STEPS) if known else _STEPS)
    return Instrument(
        symbol=symbol, tick=tick, lot=lot, min_qty=lot, min_notional="5", source="converted rows"
    )


def _step(values: Floats, steps: Sequence[str]) -> str:
    """The first step of which the values are multiples, but for a hundredth that may be wrong."""
    fits = (
        step for step in steps if np.count_nonzero(~units(values, step)[1]) <= len(values) / 100
    )
    return next(fits, steps[-1])


def write_capture(
    out: Path, sources: Sequence[Source], instruments: Mapping[str, Instrument], depth: int
) -> Converted:
    """Write the capture of these sources, whole or not at all; memory is bounded by their blocks.

    ArchiveError when files of one symbol and feed overlap in time, a file is out of order or damaged,
    or nothing can be used.
    """

    def key(source: Source) -> tuple[str, str]:
        return source.symbol, source.feed

    streams = [
        _Stream(list(files), instruments[symbol])
        for (symbol, _), files in groupby(
            sorted(sources, key=lambda source: (*key(source), source.start_ns)), key
        )
    ]
    writers = {symbol: _Frames(instrument, depth) for symbol, instrument in instruments.items()}
    part = out.with_name(f".{out.name}.part")
    part.unlink(missing_ok=True)
    try:
        with CaptureWriter(part) as writer:
            for instrument in instruments.values():
                fields = {"l2": "instrument", **msgspec.to_builtins(instrument)}
                writer.control(min(source.start_ns for source in sources), fields)
            for rows in _merged(streams):
                lines = [
                    line for symbol in sorted(rows) for line in writers[symbol].lines(rows[symbol])
                ]
                if len(rows) > 1:
                    lines.sort(key=lambda line: line[:19])  # receive times have as many digits
                writer.append_block(b"".join(lines))
        findings = [line for source in sources for line in source.refused.lines()]
        if not any(frames.count for frames in writers.values()):
            raise ArchiveError(f"{sources[0].path}: no row can be used; {'; '.join(findings)}")
        os.replace(part, out)
    finally:
        with suppress(FileNotFoundError):
            part.unlink()
    return Converted(
        rows=sum(stream.rows for stream in streams),
        frames={symbol: frames.count for symbol, frames in sorted(writers.items())},
        refused=sum(source.refused.counts.total() for source in sources),
        findings=tuple(findings),
    )


class _Stream:
    """The files of one symbol and feed, one after the other; ``pending`` are rows not yet taken."""

    def __init__(self, files: list[Source], instrument: Instrument) -> None:
        self.symbol, self.feed, self.rows = files[0].symbol, files[0].feed, 0
        self._blocks = self._read(files, instrument)
        self.ended = False
        self.pending = np.zeros(0, EVENT)
        self.extend()

    def _read(self, files: list[Source], instrument: Instrument) -> Iterator[Events]:
        last_ns, before = 0, files[0].path
        for file in files:
            if file.start_ns <= last_ns:
                raise ArchiveError(
                    f"{file.path}: begins before {before} of the same symbol ends; "
                    "give each span of time once"
                )
            for numbers, rows in file.blocks(instrument):
                back = np.flatnonzero(np.diff(rows["receive_ns"], prepend=last_ns) < 0)
                if len(back):
                    raise ArchiveError(
                        f"{file.path} row {numbers[back[0]]:,}: received before the row above; "
                        "sort the file by its local time"
                    )
                if len(rows):
                    last_ns = int(rows["receive_ns"][-1])
                    yield rows
            before = file.path

    def extend(self) -> None:
        """Read another block."""
        block = next(self._blocks, None)
        if block is None:
            self.ended = True
        else:
            self.rows += len(block)
            self.pending = np.concatenate([self.pending, block])

    @property
    def known_until_ns(self) -> int:
        """Up to where, exclusively, all rows are here."""
        return (1 << 62) if self.ended else int(self.pending["receive_ns"][-1])

    def take(self, until_ns: int) -> Events:
        """The rows received before an instant."""
        stop = int(np.searchsorted(self.pending["receive_ns"], until_ns))
        taken, self.pending = self.pending[:stop], self.pending[stop:]
        return taken


def _merged(streams: Sequence[_Stream]) -> Iterator[dict[str, Events]]:
    """Rows by symbol, in order of receipt; those of one instant are never divided."""
    while True:
        until_ns = min(stream.known_until_ns for stream in streams)
        parts: dict[str, list[Events]] = {}
        for stream in sorted(streams, key=lambda stream: stream.feed, reverse=True):
            if len(rows := stream.take(until_ns)):
                parts.setdefault(stream.symbol, []).append(rows)
        together = {symbol: np.concatenate(rows) for symbol, rows in parts.items()}
        if together:
            yield {
                symbol: rows[np.argsort(rows["receive_ns"], kind="stable")]
                for symbol, rows in together.items()
            }
        behind = [s for s in streams if not s.ended and s.known_until_ns == until_ns]
        if not behind:
            return
        for stream in behind:
            stream.extend()


class _Frames:
    """One symbol's rows as lines of a capture."""

    def __init__(self, instrument: Instrument, depth: int) -> None:
        self.count = 0
        self._symbol = instrument.symbol
        self._encoder = Encoder(instrument, ROOM)
        self._truncator = BookTruncator(instrument.symbol, ROOM, depth)
        self._book = b'{"topic":"orderbook.%d.' % ROOM
        self._update_id = self._sequence = 0

    def lines(self, rows: Events) -> Iterator[bytes]:
        """Whole frames as lines; ArchiveError when the book has more levels than fit."""
        begins = np.ones(len(rows), np.bool_)
        begins[1:] = False
        for name in ("receive_ns", "exchange_ns", "kind"):
            begins[1:] |= rows[name][1:] != rows[name][:-1]
        rows["flags"] = np.where(begins, Flag.FIRST, 0) | np.where(
            np.append(begins[1:], True), Flag.LAST, 0
        )
        rows["publish_ns"] = rows["exchange_ns"]
        self._number(rows, begins)
        for line in self._encoder.encode(rows).text.tobytes().splitlines(keepends=True):
            self.count += 1
            if line.startswith(self._book, line.index(b" ") + 1):
                yield self._truncated(line)
            else:
                yield line

    def _number(self, rows: Events, begins: Mask) -> None:
        """Update ids, one a frame of the book, and sequences, one a trade."""
        book = rows["kind"] <= Kind.DELTA
        if not self._update_id and book.any():
            self._update_id = int(rows["exchange_ns"][book.argmax()]) // 1000
        rows["update_id"][book] = self._update_id + np.cumsum((begins & book)[book])
        self._update_id += int((begins & book).sum())
        trades = np.flatnonzero(rows["kind"] == Kind.TRADE)
        if len(trades):
            place = np.arange(len(trades))
            least = np.append(self._sequence + 1, rows["exchange_ns"][trades] // 1000 - place)
            rows["update_id"][trades] = np.maximum.accumulate(least)[1:] + place
            self._sequence = int(rows["update_id"][trades[-1]])

    def _truncated(self, line: bytes) -> bytes:
        receive, _, frame = line.partition(b" ")
        try:
            return b"%b %b\n" % (receive, self._truncator.frame(frame[:-1]))
        except ValueError as error:
            raise ArchiveError(f"{self._symbol} at {int(receive) // MS_NS} ms: {error}") from error
