"""One-second bars: the book and the trades of [t - 1 s, t), labelled t.

Every event counts into the second in which it was received (no look-ahead); a close shows the book as
of the last frame before t. Seconds without data have bars too. The bars of a stream are the same, bit
for bit, however it is split into calls. The rules are in `market.second`, the columns in
`market.columns`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from market.book import Book
from market.columns import COLUMNS as COLUMNS
from market.columns import C
from market.events import EVENT, Events, from_arrow
from market.instruments import Instrument, partition_instrument
from market.lake import Lake, LakeError
from market.provenance import Table
from market.second import advance, new_second, pass_seconds, within
from market.settings import Settings, changed
from market.units import SECOND_NS

BARS: Final = Table("bars", version=1, upstream=("events",))

#: A call that would close more bars than this is an error: a clock is wrong somewhere.
MAX_BARS: Final = 2 * 86_400


class Bars(msgspec.Struct, frozen=True, kw_only=True):
    """Bars in time order: ``t_ns`` int64 (n,), ``values`` float64 (n, len(COLUMNS)), NaN for NULL."""

    t_ns: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.t_ns)

    def column(self, name: str) -> npt.NDArray[np.float64]:
        """One column, shape (n,)."""
        return self.values[:, getattr(C, name)]

    def to_arrow(self) -> pa.Table:
        """The bars as an Arrow table of `ARROW_SCHEMA`."""
        columns = [pa.array(self.t_ns)]
        columns += [pa.array(self.values[:, n], from_pandas=True) for n in range(len(COLUMNS))]
        return pa.table(columns, schema=ARROW_SCHEMA)


ARROW_SCHEMA: Final = pa.schema(
    [pa.field("t_ns", pa.int64(), nullable=False)]
    + [pa.field(name, pa.float64()) for name in COLUMNS]
)


class BarBuilder:
    """Turns one symbol's event rows into bars as they come; `book` is the book after them.

    ``stale_after_s`` is the silence after which the book is invalid.
    """

    def __init__(self, instrument: Instrument, stale_after_s: float) -> None:
        self.book = Book()
        stale_ns = round(stale_after_s * SECOND_NS)
        self._second = new_second(instrument.tick_size, instrument.lot_size, stale_ns)

    @property
    def late(self) -> int:
        """Events older than an earlier one; they counted as of the clock."""
        return int(self._second[0]["late"])

    @property
    def refused(self) -> int:
        """Trades and liquidations left out: without a side, or with a negative quantity."""
        return int(self._second[0]["refused"])

    def push(self, events: Events) -> Bars:
        """Take event rows in (dtype ``EVENT``, receive order); returns the bars they closed.

        A frame may be split between calls. ValueError for another dtype, or when time jumps ahead
        by more than MAX_BARS seconds.
        """
        if events.dtype != EVENT:
            raise ValueError(f"events of dtype {events.dtype}: expected market.events.EVENT")
        bars = _NO_BARS
        # Most calls of a live stream close nothing, and microseconds count there.
        if not within(self._second, events):
            first = int(self._second[0]["end_ns"])
            if first == 0:
                first = int(events["receive_ns"][0]) // SECOND_NS * SECOND_NS + SECOND_NS
            bars = _empty_bars(first, int(events["receive_ns"].max()))
        advance(self.book.state, self._second, events, bars.values)
        return bars

    def close_until(self, now_ns: int) -> Bars:
        """Close the bars with t <= ``now_ns``; all events before it must have been pushed.

        Before the first event there is nothing to close. A later event with an earlier time counts
        into the second in progress, and into `late`.
        """
        first = int(self._second[0]["end_ns"])
        if first == 0:
            return _NO_BARS
        bars = _empty_bars(first, now_ns)
        pass_seconds(self.book.state, self._second, bars.values)
        return bars

    def finish(self) -> Bars:
        """Close the second in progress as well: the stream has ended."""
        return self.close_until(int(self._second[0]["end_ns"]))


def _empty_bars(first_ns: int, now_ns: int) -> Bars:
    """Empty bars that end at ``first_ns``, a second later, … up to ``now_ns``."""
    due = max(0, (now_ns - first_ns) // SECOND_NS + 1) if first_ns else 0
    if due > MAX_BARS:
        raise ValueError(
            f"receive time jumps from {first_ns} to {now_ns} ns: {due} bars at once, at most "
            f"{MAX_BARS}; look for a wrong clock in the events, or push them in smaller parts"
        )
    ends = first_ns + SECOND_NS * np.arange(due, dtype=np.int64)
    return Bars(t_ns=ends, values=np.empty((due, len(COLUMNS))))


_NO_BARS: Final = _empty_bars(0, 0)


def bars_from_chunks(
    chunks: Iterable[Events], instrument: Instrument, settings: Settings, until_ns: int = 0
) -> Bars:
    """All bars of a finite stream, from the second of its first event to that of its last, or to
    ``until_ns`` when the stream went on in silence until then."""
    return _whole(BarBuilder(instrument, settings.market.stale_after_s), chunks, until_ns)


def _whole(builder: BarBuilder, chunks: Iterable[Events], until_ns: int) -> Bars:
    parts = [builder.push(chunk) for chunk in chunks]
    parts += [builder.finish(), builder.close_until(until_ns)]
    return Bars(
        t_ns=np.concatenate([part.t_ns for part in parts]),
        values=np.concatenate([part.values for part in parts]),
    )


def bar_inputs(lake: Lake, symbol: str, day: str, settings: Settings) -> str:
    """What a partition of bars is made from: its events, and the settings that decide it."""
    return lake.fingerprint("events", symbol, day) + changed(settings.market, "stale_after_s")


def make_bars(lake: Lake, symbol: str, day: str, settings: Settings) -> int:
    """Make one bars partition of one events partition; returns the number of bars.

    The instrument is that of the events partition; bars go up to the instant to which its stream is
    known. The partition notes the shares of frames that left the book crossed, and one-sided.
    LakeError when there are no events, or no instrument.
    """
    source = lake.open("events", symbol, day)
    notes = lake.metadata("events", symbol, day)
    try:
        instrument = partition_instrument(notes, symbol)
    except KeyError:
        raise LakeError(
            f"{lake.path('events', symbol, day)}: names no instrument for {symbol}"
        ) from None
    chunks = (from_arrow(batch) for batch in source.iter_batches(batch_size=1 << 18))
    builder = BarBuilder(instrument, settings.market.stale_after_s)
    bars = _whole(builder, chunks, int(notes.get("until_ns", 0)))
    counted = builder.book.counters
    shares = {name: counted[name] / max(1, counted["frames"]) for name in ("crossed", "one_sided")}
    inputs = bar_inputs(lake, symbol, day, settings)
    lake.write("bars", symbol, day, bars.to_arrow(), inputs=inputs, extra=shares)
    return len(bars)
