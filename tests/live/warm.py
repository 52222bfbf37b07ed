"""Minutes in which a trader is warm: a stretch of a market behind an hour made of its own bars.

The recordings are minutes long and features look back an hour; a synthetic hour would take too long.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from live.history import SymbolHistory
from live.own_capture import TickerState
from market.bars import BarBuilder, Bars
from market.book import Book
from market.events import ARROW_SCHEMA, Events, Flag, to_arrow
from market.instruments import BUILT_IN, Instrument
from market.lake import Lake
from market.units import DAY_NS, day_start_ns, utc_date
from market.wire.capture import read_blocks
from market.wire.decode import Decoder
from market.wire.survey import instruments_of
from proving.synthetic import generate, profile

S = 1_000_000_000
SYMBOLS = ("BTCUSDT", "ETHUSDT")
HISTORY_S = 3_660


class Minutes(NamedTuple):
    """``events`` from the whole second ``start_ns`` on, each symbol opening with a snapshot at it;
    ``history`` is what a lake would know at that second."""

    start_ns: int
    instruments: dict[str, Instrument]
    events: dict[str, Events]
    history: dict[str, SymbolHistory]


def repeated(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]], until_ns: int) -> Bars:
    """An hour of bars up to ``until_ns``, made of the given ones over and over."""
    back = np.arange(HISTORY_S, dtype=np.int64)[::-1]
    return Bars(t_ns=until_ns - S * back, values=values[back % len(values)])


def minutes(recording: Path, seconds: int) -> Minutes:
    """The first whole seconds of a recording of both symbols, to be traded from the first one on."""
    instruments = instruments_of([str(recording)], SYMBOLS)
    decoder = Decoder(instruments, 200, SYMBOLS, follow=False)
    parts: dict[str, list[Events]] = {symbol: [] for symbol in SYMBOLS}
    start_ns = until_ns = 0
    for block in read_blocks(recording):
        for symbol, rows in decoder.decode_block(block).events.items():
            parts[symbol].append(rows)
        start_ns = start_ns or (int(parts["BTCUSDT"][0]["receive_ns"][0]) // S + 2) * S
        until_ns = start_ns + seconds * S
        if decoder.clock_ns >= until_ns:
            break
    whole = {symbol: np.concatenate(found) for symbol, found in parts.items()}
    return _begun(whole, instruments, start_ns, until_ns)


def planted(name: str, day: str, seconds: int, seed: int = 7) -> Minutes:
    """The first seconds of a day of a synthetic market of both symbols, likewise."""
    law = profile(name)
    instruments = {symbol: BUILT_IN[symbol] for symbol in SYMBOLS}
    whole = {
        symbol: np.concatenate(list(generate(law, seed, symbol, day, 0, seconds + 2)))
        for symbol in SYMBOLS
    }
    start_ns = day_start_ns(day) + 2 * S
    return _begun(whole, instruments, start_ns, start_ns + seconds * S)


def _begun(
    whole: Mapping[str, Events], instruments: dict[str, Instrument], start_ns: int, until_ns: int
) -> Minutes:
    """Rows cut to [start_ns, until_ns), with what was before them as history."""
    events: dict[str, Events] = {}
    history: dict[str, SymbolHistory] = {}
    for symbol, rows in whole.items():
        times = rows["receive_ns"]
        book, held = Book(), TickerState()
        book.apply(rows[times < start_ns])
        opening = book.snapshot_rows(start_ns)
        stretch = rows[(times >= start_ns) & (times < until_ns)]
        events[symbol] = np.concatenate([opening, stretch])
        builder = BarBuilder(instruments[symbol], 5.0)
        values = np.concatenate([builder.push(events[symbol]).values, builder.finish().values])
        history[symbol] = SymbolHistory(repeated(values[2:], start_ns), book, held)
    return Minutes(start_ns, instruments, events, history)


def write(lake: Lake, market: Minutes) -> None:
    """The minutes as a lake's partitions: events, and bars of the hour before.

    The events open with the first book a second early, which is what history is joined by.
    """
    for symbol, rows in market.events.items():
        opening = market.history[symbol].book.snapshot_rows(market.start_ns - S)
        whole = np.concatenate([opening, rows])
        extra = {"instrument": msgspec.json.encode(market.instruments[symbol]).decode()}
        for day in np.unique(whole["receive_ns"] // DAY_NS).tolist():
            part = whole[whole["receive_ns"] // DAY_NS == day]
            with lake.writer(
                "events", symbol, utc_date(day * DAY_NS), ARROW_SCHEMA, "", extra
            ) as out:
                out.write_table(to_arrow(part).replace_schema_metadata(out.schema.metadata))
        bars = market.history[symbol].bars
        for day in np.unique((bars.t_ns - 1) // DAY_NS).tolist():
            mine = (bars.t_ns - 1) // DAY_NS == day
            held = Bars(t_ns=bars.t_ns[mine], values=bars.values[mine])
            lake.write("bars", symbol, utc_date(day * DAY_NS), held.to_arrow())


def snapshot(market: Minutes, symbol: str, time_ns: int) -> Events:
    """The snapshot that a venue would send at a time: its book as it stood then."""
    rows = market.events[symbol]
    book = Book()
    book.apply(rows[rows["receive_ns"] < time_ns])
    sent = book.snapshot_rows(time_ns)
    sent["exchange_ns"] = sent["publish_ns"] = time_ns
    sent["flags"] &= ~np.uint8(Flag.CHECKPOINT)  # it is the venue that says so
    return sent


def fresh(history: Mapping[str, SymbolHistory]) -> dict[str, SymbolHistory]:
    """The same history for one more trader, which may write on its own copy."""
    copies = {}
    for symbol, (bars, book, held) in history.items():
        own, ticker = Book(), TickerState()
        own.apply(book.snapshot_rows(book.receive_ns))
        ticker.fields = dict(held.fields)
        copies[symbol] = SymbolHistory(bars, own, ticker)
    return copies
