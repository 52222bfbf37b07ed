"""Warm-up from the lake: the last hour of bars, so that a worker is warm from its first second.

History joins without a break only if the lake's bars of every symbol end exactly at the second in
which the feed starts, and the events behind them give the book at that second. Otherwise there is no
history, and the worker is warm after 12 minutes of its own frames.

What a run started with is saved beside its capture (`save_history`), because the lake's partitions may
be rebuilt: capture and history together reproduce every decision of the run.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from live.own_capture import TickerState
from market.bars import COLUMNS, BarBuilder, Bars
from market.book import Book
from market.events import from_arrow
from market.instruments import Instrument, partition_instrument
from market.lake import Lake
from market.settings import Settings
from market.units import SECOND_NS, previous_day, utc_date
from market.wire.capture import read_blocks, read_lines
from market.wire.decode import Decoder

#: Features look back 3,600 s; a margin costs nothing.
HISTORY_S: Final = 3_700


class SymbolHistory(NamedTuple):
    """What the lake knows of one symbol up to a whole second."""

    bars: Bars
    book: Book  #: at the close of the last bar
    ticker: TickerState  #: at the close of the last bar


def join_history(
    lake: Lake, instruments: Mapping[str, Instrument], now_ns: int, watched: Collection[str] = ()
) -> dict[str, SymbolHistory] | None:
    """History of every symbol up to ``now_ns`` (a whole second); None if any symbol's ends earlier.

    Of the ``watched`` ones those that the lake has. LakeError when a partition was made by other code.
    """
    histories = {}
    for symbol in instruments:
        bars = _bars(lake, symbol, now_ns)
        book, ticker = Book(), TickerState()
        if bars is not None and _replay(lake, instruments[symbol], now_ns, book, ticker):
            histories[symbol] = SymbolHistory(bars, book, ticker)
        elif symbol not in watched:
            return None
    return histories


def book_states(
    lake: Lake, instruments: Mapping[str, Instrument], now_ns: int, watched: Collection[str] = ()
) -> dict[str, SymbolHistory] | None:
    """Book and ticker of every symbol at ``now_ns`` from the events of its date, without bars.

    For a backtest that starts within a date and warms up from there. None unless the events give a
    synchronised book for every symbol but the ``watched`` ones.
    """
    no_bars = Bars(t_ns=np.zeros(0, np.int64), values=np.zeros((0, len(COLUMNS))))
    histories = {}
    for symbol in instruments:
        book, ticker = Book(), TickerState()
        if _replay(lake, instruments[symbol], now_ns, book, ticker):
            histories[symbol] = SymbolHistory(no_bars, book, ticker)
        elif symbol not in watched:
            return None
    return histories


def capture_history(
    path: str | Path, instruments: Mapping[str, Instrument], settings: Settings
) -> dict[str, SymbolHistory] | None:
    """The history up to the last whole second of a capture; None without bars of every symbol."""
    decoder = Decoder(instruments, settings.market.book_depth, instruments, follow=False)
    builders = {s: BarBuilder(i, settings.market.stale_after_s) for s, i in instruments.items()}
    tickers = {symbol: TickerState() for symbol in instruments}
    parts: dict[str, list[Bars]] = {symbol: [] for symbol in instruments}
    for block in read_blocks(path):
        for symbol, events in decoder.decode_block(block).events.items():
            parts[symbol].append(builders[symbol].push(events))
            tickers[symbol].apply(events)
    end_ns = decoder.clock_ns // SECOND_NS * SECOND_NS
    history = {}
    for symbol, builder in builders.items():
        found = [part for part in (*parts[symbol], builder.close_until(end_ns)) if len(part)]
        if not found:
            return None
        t_ns = np.concatenate([part.t_ns for part in found])[-HISTORY_S:]
        values = np.concatenate([part.values for part in found])[-HISTORY_S:]
        bars = Bars(t_ns=t_ns, values=values)
        history[symbol] = SymbolHistory(bars, builder.book, tickers[symbol])
    return history


def saved_history(
    root: str | Path, run: str, instruments: Mapping[str, Instrument], book_depth: int
) -> dict[str, SymbolHistory] | None:
    """What `save_history` wrote, with books and tickers from the head of the run's capture."""
    live = Path(root) / "live"
    path = live / "history" / f"{run}.parquet"
    captures = sorted(live.glob(f"frames/date=*/{run}.frames.zst"))
    if not path.exists() or not captures:
        return None
    rows = pq.read_table(path, partitioning=None)
    names = rows.column("symbol").to_pylist()
    values = np.column_stack([rows.column(name).to_numpy() for name in COLUMNS])
    t_ns = rows.column("t_ns").to_numpy()
    decoder = Decoder(instruments, book_depth, instruments, follow=False)
    books = {symbol: (Book(), TickerState()) for symbol in instruments}
    for receive_ns, line in read_lines(captures[0]):
        if not line.startswith(b'{"l2":"checkpoint"') and b'"instrument"' not in line[:20]:
            break
        for symbol, events in decoder.decode_frame(receive_ns, line).events.items():
            for state in books[symbol]:
                state.apply(events)
    history = {}
    for symbol, (book, ticker) in books.items():
        mine = np.array([name == symbol for name in names])
        if not mine.any():  # watched, and not in the lake then
            continue
        history[symbol] = SymbolHistory(Bars(t_ns=t_ns[mine], values=values[mine]), book, ticker)
    return history


def save_history(root: str | Path, run: str, history: Mapping[str, SymbolHistory]) -> str:
    """Write the bars that a run starts with, all symbols in one Parquet file; returns its path."""
    path = Path(root) / "live" / "history" / f"{run}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = [
        each.bars.to_arrow().add_column(0, "symbol", pa.array([symbol] * len(each.bars)))
        for symbol, each in history.items()
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
            since_ns = now_ns - HISTORY_S * SECOND_NS
            parts.append(lake.between("bars", symbol, date, since_ns, now_ns))
    rows = pa.concat_tables(parts) if parts else None
    if rows is None or not len(rows) or rows.column("t_ns")[-1].as_py() != now_ns:
        return None
    values = np.empty((len(rows), len(COLUMNS)))
    for n, name in enumerate(COLUMNS):
        values[:, n] = rows.column(name).to_numpy()
    return Bars(t_ns=rows.column("t_ns").to_numpy(), values=values)


def _replay(
    lake: Lake, instrument: Instrument, now_ns: int, book: Book, ticker: TickerState
) -> bool:
    """Replay the date's events before ``now_ns`` into book and ticker.

    False without events, without a synchronised book, or when their tick or lot is not the feed's.
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
        ticker.apply(events)
    return book.synchronised
