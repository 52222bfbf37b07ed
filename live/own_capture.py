"""The worker's own capture: every frame as received, written before it is decoded.

One file per run and UTC date under ``ROOT/live/frames``. Each file can be read alone: it opens with the
instruments and with checkpoints of every known book and ticker. The worker's bars of that date start
from the same checkpoints, so recomputing a date from its file starts where the worker did.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path

import msgspec
import numpy as np

from market.book import Book
from market.events import PLACES, Events, Field, Kind
from market.instruments import Instrument
from market.units import utc_date
from market.wire.capture import CaptureWriter
from market.wire.topics import TICKER_FIELDS, book_topic, ticker_topic

_NAMES = {field: name for name, field in TICKER_FIELDS.items()}
_TICKER = int(Kind.TICKER)


class OwnCapture:
    """Writes the capture of one run; `open` starts the file of a date."""

    def __init__(self, root: str | Path, run: str, instruments: Mapping[str, Instrument]) -> None:
        self._folder = Path(root) / "live" / "frames"
        self._run = run
        self._instruments = instruments
        self._writer: CaptureWriter | None = None
        self.paths: list[str] = []

    def open(self, now_ns: int, checkpoints: Iterable[bytes] = ()) -> None:
        """Start the file of the UTC date of ``now_ns``; ``checkpoints`` are control lines for its head.

        The previous file ends with a ``turn`` line, which tells a reader that the stream went on.
        """
        if self._writer is not None:
            self._writer.control(now_ns, {"l2": "turn"})
        self.close()
        path = self._folder / f"date={utc_date(now_ns)}" / f"{self._run}.frames.zst"
        self._writer = CaptureWriter(path)
        self.paths.append(str(path))
        for instrument in self._instruments.values():
            self._writer.control(now_ns, {"l2": "instrument", **msgspec.to_builtins(instrument)})
        for line in checkpoints:
            self._writer.append(now_ns, line)

    def append(self, frames: Sequence[tuple[int, bytes]]) -> None:
        """Write frames with their receive times; `open` must have been called."""
        if self._writer is None:
            raise RuntimeError("no capture file is open: call open() before the first frame")
        lines = [b"%d %b\n" % (ns, frame.replace(b"\n", b" ")) for ns, frame in frames[:-1]]
        self._writer.append_block(b"".join(lines))
        self._writer.append(*frames[-1])

    def close(self) -> None:
        """Flush and close the current file; no-op when none is open."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class TickerState:
    """The latest value of each ticker field of one symbol: field id -> integer at its own scale."""

    def __init__(self) -> None:
        self.fields: dict[int, int] = {}

    def apply(self, events: Events) -> None:
        """Take event rows of any kind and number of frames, in receive order."""
        rows = np.flatnonzero(events["kind"] == _TICKER)
        names, values = events["field"][rows], events["value"][rows]
        self.fields.update(zip(names.tolist(), values.tolist(), strict=True))


def checkpoints(
    instrument: Instrument, book: Book, ticker: TickerState, book_depth: int
) -> list[bytes]:
    """Checkpoint lines of a book and a ticker; none for a book that is not synchronised."""
    symbol = instrument.symbol
    lines = []
    if book.synchronised:
        sides = {
            name: [[str(instrument.price(p)), str(instrument.qty(q))] for p, q in levels]
            for name, levels in (("b", book.bids()), ("a", book.asks()))
        }
        data = {"s": symbol, **sides, "u": book.update_id}
        lines.append(_checkpoint(book_topic(book_depth, symbol), data))
    if ticker.fields:
        fields = {
            _NAMES[Field(field)]: f"{Decimal(value).scaleb(-PLACES[Field(field)]):f}"
            for field, value in sorted(ticker.fields.items())
        }
        lines.append(_checkpoint(ticker_topic(symbol), {"symbol": symbol, **fields}))
    return lines


def _checkpoint(topic: str, data: object) -> bytes:
    return msgspec.json.encode({"l2": "checkpoint", "topic": topic, "data": data})
