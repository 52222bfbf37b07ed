"""The worker's own capture: every frame as it was received, before anything is made of it.

One file a run and UTC date, under ``ROOT/live/frames``. A file reads alone: it opens with the
instruments, and where a book or a ticker was held, with checkpoints of them. The same lines open the
worker's own bars of that date, so whoever recomputes a date from its file starts from what the
worker started from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
import numpy as np

from market.book import Book
from market.events import Events, Kind
from market.instruments import Instrument
from market.units import utc_date
from market.wire.capture import CaptureWriter
from market.wire.topics import TICKER_FIELDS, book_topic, ticker_topic

#: Ticker field id -> (name in the venue's frames, decimal places of the integer kept).
_NAMES = {int(field): (name, places) for name, (field, places) in TICKER_FIELDS.items()}


_TICKER = int(Kind.TICKER)


class Recorder:
    """Writes the capture of one run; `open` begins the file of a date."""

    def __init__(self, root: str | Path, run: str, instruments: Mapping[str, Instrument]) -> None:
        self._folder = Path(root) / "live" / "frames"
        self._run = run
        self._instruments = instruments
        self._writer: CaptureWriter | None = None
        self.paths: list[str] = []

    def open(self, now_ns: int, checkpoints: Iterable[bytes] = ()) -> None:
        """Begin the file of the date of ``now_ns``, with these control lines at its head.

        The file before it ends with a ``turn`` line: read alone, it says that the stream went on.
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

    def append(self, receive_ns: int, frame: bytes) -> None:
        if self._writer is None:
            raise RuntimeError("no file is open: call open before the first frame")
        self._writer.append(receive_ns, frame)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class Held:
    """What a stream has said last of one symbol, apart from its book: the ticker's fields."""

    def __init__(self) -> None:
        self.ticker: dict[int, int] = {}

    def apply(self, events: Events) -> None:
        if len(events) and events["kind"][0] == _TICKER:
            self.ticker.update(
                zip(events["field"].tolist(), events["value_e8"].tolist(), strict=True)
            )

    def apply_many(self, events: Events) -> None:
        """`apply` for rows of many frames, of all kinds."""
        rows = events[events["kind"] == _TICKER]
        for field in np.unique(rows["field"]).tolist():
            self.ticker[field] = int(rows["value_e8"][rows["field"] == field][-1])


def checkpoints(instrument: Instrument, book: Book, held: Held, book_depth: int) -> list[bytes]:
    """Control lines that restate a book and a ticker; none of what is not held."""
    symbol = instrument.symbol
    lines = []
    if book.synchronised:
        sides = {
            name: [[str(instrument.price(p)), str(instrument.qty(q))] for p, q in levels]
            for name, levels in (("b", book.bids()), ("a", book.asks()))
        }
        data = {"s": symbol, **sides, "u": book.update_id}
        lines.append(_line(book_topic(book_depth, symbol), data))
    if held.ticker:
        fields = {}
        for field, value in sorted(held.ticker.items()):
            name, places = _NAMES[field]
            fields[name] = (
                f"{value // 10**places}.{value % 10**places:0{places}d}" if places else str(value)
            )
        lines.append(_line(ticker_topic(symbol), {"symbol": symbol, **fields}))
    return lines


def _line(topic: str, data: object) -> bytes:
    return msgspec.json.encode({"l2": "checkpoint", "topic": topic, "data": data})
