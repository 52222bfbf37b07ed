"""What the lake knows up to this second, so that a worker need not warm up from frames.

History joins without a break when the lake's bars of every symbol end exactly at the second in which
the feed begins, and the events behind them say which book stood then. Otherwise there is nothing to
join: a minute missing is a break like any other, and 3,600 s of frames follow it.

What a run began with is kept beside its capture (`keep`), because the lake's may be made anew: the
two say all that the run's decisions were made of.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from live.recorder import Held
from market.bars import COLUMNS, Bars
from market.book import Book
from market.events import from_arrow
from market.instruments import Instrument, partition_instrument
from market.lake import Lake
from market.units import SECOND_NS, previous_day, utc_date

#: Features look back an hour; a little more costs nothing.
HISTORY_S: Final = 3_700


class History(NamedTuple):
    bars: Bars
    book: Book  #: as it stood when the last bar closed
    held: Held


def join(
    lake: Lake, instruments: Mapping[str, Instrument], now_ns: int
) -> dict[str, History] | None:
    """The hour before ``now_ns`` (a whole second) of every symbol, None when one does not reach it.

    LakeError when a partition that is needed was made by other code.
    """
    found = {}
    for symbol in instruments:
        bars = _bars(lake, symbol, now_ns)
        if bars is None:
            return None
        book, held = Book(), Held()
        if not _replay(lake, instruments[symbol], now_ns, book, held):
            return None
        found[symbol] = History(bars, book, held)
    return found


def stood(
    lake: Lake, instruments: Mapping[str, Instrument], now_ns: int
) -> dict[str, History] | None:
    """Book and ticker of every symbol as the events of the date say that they stood at ``now_ns``.

    Without bars: for who begins in the midst of a date and warms up from there. None when the events
    do not say it of every symbol.
    """
    nothing = Bars(t_ns=np.zeros(0, np.int64), values=np.zeros((0, len(COLUMNS))))
    found = {}
    for symbol in instruments:
        book, held = Book(), Held()
        if not _replay(lake, instruments[symbol], now_ns, book, held):
            return None
        found[symbol] = History(nothing, book, held)
    return found


def keep(root: str | Path, run: str, history: Mapping[str, History]) -> str:
    """Write the bars that a run begins with, all symbols in one file; returns its path."""
    path = Path(root) / "live" / "history" / f"{run}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = [
        found.bars.to_arrow().add_column(0, "symbol", pa.array([symbol] * len(found.bars)))
        for symbol, found in history.items()
    ]
    temporary = path.with_suffix(".tmp")
    pq.write_table(
        pa.concat_tables(parts), temporary, compression="zstd", use_dictionary=["symbol"]
    )
    os.replace(temporary, path)
    return str(path)


def _bars(lake: Lake, symbol: str, now_ns: int) -> Bars | None:
    day = utc_date(now_ns - 1)
    parts = []
    for date in (previous_day(day), day):
        if lake.exists("bars", symbol, date):
            rows = lake.read("bars", symbol, date)
            times = rows.column("t_ns")
            inside = pc.and_(
                pc.greater(times, now_ns - HISTORY_S * SECOND_NS), pc.less_equal(times, now_ns)
            )
            parts.append(rows.filter(inside))
    rows = pa.concat_tables(parts) if parts else None
    if rows is None or not len(rows) or rows.column("t_ns")[-1].as_py() != now_ns:
        return None
    values = np.empty((len(rows), len(COLUMNS)))
    for n, name in enumerate(COLUMNS):
        values[:, n] = rows.column(name).to_numpy()
    return Bars(t_ns=rows.column("t_ns").to_numpy(), values=values)


def _replay(lake: Lake, instrument: Instrument, now_ns: int, book: Book, held: Held) -> bool:
    """Bring book and ticker to where they stood at ``now_ns`` by the events of that date.

    False when the events do not say, or count in another tick or lot than the feed will.
    """
    key = "events", instrument.symbol, utc_date(now_ns - 1)
    if not lake.exists(*key):
        return False
    source = partition_instrument(lake.metadata(*key), instrument.symbol)
    if (source.tick, source.lot) != (instrument.tick, instrument.lot):
        return False
    for batch in lake.open(*key).iter_batches(batch_size=1 << 18):
        events = from_arrow(batch)
        if events["receive_ns"][0] >= now_ns:
            break
        events = events[events["receive_ns"] < now_ns]
        book.apply(events)
        held.apply_many(events)
    return book.synchronised
