"""A survey of captures before they are ingested: their dates, topics and instruments."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import zstandard

from market.errors import DataError
from market.events import Kind
from market.instruments import BUILT_IN, Instrument, refusal
from market.store import open_object
from market.units import DAY_NS, MS_NS, day_start_ns, utc_date
from market.wire.capture import MAGIC, Block, read_blocks
from market.wire.decode import Decoder
from market.wire.results import Decoded
from market.wire.stream import MAX_LAG_NS
from market.wire.topics import symbol_of, symbol_topics

Key = tuple[str, str]

_LINE: Final = re.compile(
    rb'^([0-9]{1,19}) \{[^\n]*?"topic"\s*:\s*"([A-Za-z0-9._-]+)"', re.MULTILINE
)
_CONTROL: Final = re.compile(rb'^([0-9]{1,19}) \{"l2"', re.MULTILINE)
_ANY: Final = re.compile(rb"^([0-9]{1,19}) \{[^\n]*\}$", re.MULTILINE)
#: Of a capture's end are read so many bytes, and so many of text.
_TAIL_BYTES: Final = 4 << 20
_MOST_TEXT: Final = 64 << 20
_FINEST: Final = "0.00000001"
#: For quantities that are too many of the finest lot: of a coin that is worth next to nothing.
_COARSE: Final = "1"


class IngestError(DataError):
    """Captures cannot become the requested partitions; the message names which and why."""


def scan(captures: Iterable[str], book_depth: int = 200) -> dict[Key, dict[str, int]]:
    """The (symbol, date) keys in captures, each with its frames by topic.

    A cheap pass over topics only; no frame is decoded but the first of a date. A key has at least
    one topic that becomes events.
    """
    frames: dict[Key, Counter[str]] = {}
    for path in starts_of(captures):
        clock = 0  # of its file: others may lie beside it
        day, day_end = "", 0
        for block in read_blocks(path):
            for line in _LINE.finditer(block.data):
                stamp = int(line[1])
                if stamp > clock:
                    if stamp >= day_end:
                        if _receive_time(_whole_line(block, line)) is None:
                            continue
                        day = utc_date(stamp)
                        day_end = day_start_ns(day) + DAY_NS
                    clock = stamp
                topic = line[2].decode()
                key = symbol_of(topic), day
                if key not in frames:
                    frames[key] = Counter()
                frames[key][topic] += 1
    return {
        key: dict(sorted(topics.items()))
        for key, topics in sorted(frames.items())
        if not topics.keys().isdisjoint(symbol_topics(key[0], book_depth))
    }


def first_frame_ns(path: str | Path) -> int:
    """Receive time of a capture's first frame; of its first control line when it has no frame.

    IngestError when it has neither.
    """
    frame, control = _first_stamps(path)
    return frame or control


def starts_of(captures: Iterable[str]) -> dict[str, int]:
    """Captures in the order of their first lines, with those lines' receive times."""
    starts = {str(path): min(filter(None, _first_stamps(path))) for path in captures}
    return dict(sorted(starts.items(), key=lambda item: (item[1], item[0])))


def last_receive_ns(path: str | Path) -> int:
    """The last receive time of a capture; of one of many zstd frames only the end is read.

    CaptureError when it cannot be read.
    """
    with suppress(OSError), open_object(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        tail = file.read()
        at = len(tail)
        while (at := tail.rfind(MAGIC, 0, at)) >= 0:
            unpacker = zstandard.ZstdDecompressor().stream_reader(
                tail[at:], read_across_frames=True
            )
            with suppress(zstandard.ZstdError):
                if stamps := [int(line[1]) for line in _ANY.finditer(unpacker.read(_MOST_TEXT))]:
                    return max(stamps)
    blocks = (_ANY.finditer(block.data) for block in read_blocks(path))
    return max((int(line[1]) for lines in blocks for line in lines), default=0)


def _first_stamps(path: str | Path) -> tuple[int, int]:
    """Receive times of a capture's first frame and of its first control line up to there, or 0."""
    control = lines = 0
    for block in read_blocks(path):
        control_line = _CONTROL.search(block.data)
        if control_line and not control:
            control = int(control_line[1])
        for line in _LINE.finditer(block.data):
            receive_ns = _receive_time(_whole_line(block, line))
            if receive_ns is not None:
                return receive_ns, control
        lines += block.data.count(b"\n")
    if not control:
        raise IngestError(
            f"{path}: not one of its {lines} lines is a frame; a capture holds lines of "
            "`<receive time, epoch ns> <frame JSON>`"
        )
    return 0, control


def instruments_of(
    captures: Iterable[str], symbols: Iterable[str], book_depth: int = 200
) -> dict[str, Instrument]:
    """The instruments to decode captures with: their instrument lines', else the built-in ones.

    Captures without instrument lines are foreign recordings and may quote on a finer lot than the
    built-in instrument, or a symbol without one. Then tick and lot are the largest powers of ten that
    divide every price and quantity of the captures' first blocks. Several lines on one symbol give
    the finest grid of all, on which every price and quantity stays exact. IngestError for a symbol that is
    no linear perpetual.
    """
    symbols = set(symbols)
    if refused := [why for symbol in sorted(symbols) if (why := refusal(symbol))]:
        raise IngestError("; ".join(refused))
    openings = _Openings(symbols, book_depth)
    for path in captures:
        openings.read(path)
    return openings.instruments()


def _whole_line(block: Block, match: re.Match[bytes]) -> bytes:
    """The line that a match begins."""
    return block.data[match.start() : block.data.find(b"\n", match.start())]


def _receive_time(line: bytes) -> int | None:
    """The receive time of a line that is a frame with a credible time, else None."""
    head, _, frame = line.partition(b" ")
    try:
        content = msgspec.json.decode(frame)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    if not (isinstance(content, dict) and isinstance(content.get("topic"), str)):
        return None
    stamp, sent_ms = int(head), content.get("ts")
    late = type(sent_ms) is int and stamp - sent_ms * MS_NS > MAX_LAG_NS
    return stamp if 0 < stamp < 1 << 62 and not late else None


class _Openings:
    """The first block of each capture, decoded on the finest grid that its quantities fit on."""

    def __init__(self, symbols: set[str], book_depth: int) -> None:
        self.symbols, self.book_depth = symbols, book_depth
        self.listed: dict[str, list[Instrument]] = {}
        self.quoted: dict[str, tuple[int, int]] = {}

    def read(self, path: str) -> None:
        block = next(iter(read_blocks(path)))
        opening = self._opening(block, _FINEST, self.symbols)
        for control in opening.controls:
            if control.fields["l2"] == "instrument":
                instrument = msgspec.convert(control.fields, Instrument)
                self.listed.setdefault(instrument.symbol, []).append(instrument)
        too_many = {each.symbol for each in opening.rejects if each.reason == "absurd size"}
        self._opening(block, _COARSE, (too_many & self.symbols) - self.listed.keys())

    def _opening(self, block: Block, lot: str, symbols: set[str]) -> Decoded:
        """Decode a block on a grid, and keep what divides the prices and quantities of each symbol."""
        grid = {s: msgspec.structs.replace(_blank(s), lot=lot) for s in symbols}
        opening = Decoder(grid, self.book_depth, symbols, follow=False).decode_block(block)
        units = round(float(lot) * 1e8)
        for symbol, events in opening.events.items():
            quotes = events[(events["kind"] != Kind.TICKER) & (events["side"] != 0)]
            tick, qty = self.quoted.get(symbol, (0, 0))
            self.quoted[symbol] = (
                math.gcd(int(np.gcd.reduce(quotes["price_ticks"], initial=0)), tick),
                math.gcd(int(np.gcd.reduce(quotes["qty_lots"], initial=0)) * units, qty),
            )
        return opening

    def instruments(self) -> dict[str, Instrument]:
        return {
            symbol: instrument
            for symbol in sorted(self.symbols)
            if (instrument := self._instrument(symbol)) is not None
        }

    def _instrument(self, symbol: str) -> Instrument | None:
        if lines := self.listed.get(symbol):
            return msgspec.structs.replace(
                lines[-1],
                tick=min((each.tick for each in lines), key=float),
                lot=min((each.lot for each in lines), key=float),
            )
        built_in = BUILT_IN.get(symbol)
        tick, lot = self.quoted.get(symbol, (0, 0))
        if not tick:
            return built_in
        if built_in is None:
            return msgspec.structs.replace(
                _blank(symbol), tick=_power(tick), lot=_power(lot), min_qty=_power(lot)
            )
        if lot % round(float(built_in.lot) * 1e8) == 0:
            return built_in
        return msgspec.structs.replace(
            built_in, lot=_power(lot), source="quantities of the capture"
        )


def _blank(symbol: str) -> Instrument:
    return Instrument(
        symbol=symbol,
        tick=_FINEST,
        lot=_FINEST,
        min_qty=_FINEST,
        min_notional="5",
        source="prices and quantities of the capture",
    )


def _power(units: int) -> str:
    """The largest power of ten, at most 1, that divides a number of 1e-8 units, as a decimal."""
    zeros = next(n for n in range(8, -1, -1) if units % 10**n == 0)
    return "1" if zeros == 8 else f"{10.0 ** (zeros - 8):.{8 - zeros}f}"
