"""One symbol of the trader: its market picture from its own book, and its latest bar and decision."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from execution.simulation.queue import HIDDEN
from execution.venue import View
from live.funding import Settlement, Settlements
from live.messages import Renew
from live.own_capture import TickerState
from market.bars import COLUMNS, BarBuilder
from market.events import EVENT, Events, Flag, Kind
from market.instruments import Instrument
from market.kernel import kernel
from market.units import SECOND_NS

_TICKER: Final = int(Kind.TICKER)
_TRADE: Final = int(Kind.TRADE)
_LAST, _CHECKPOINT = int(Flag.LAST), int(Flag.CHECKPOINT)

_MID, _GAP = (list(COLUMNS).index(name) for name in ("mid_close", "gap"))

#: Levels of a view, and takers' trades that are kept to be shown.
VIEW_LEVELS: Final = 5
SHOWN_TRADES: Final = 20

#: A book that is not known is asked for at once, and again after waits that double up to the last.
RENEW_NS: Final = 2 * SECOND_NS
MOST_RENEW_NS: Final = 30 * SECOND_NS


@kernel
def count_taken(rows: Events, taken: npt.NDArray[np.int64]) -> None:
    """Add the lots that takers bought and sold in the visible book, and note the last trades (`new_taken`)."""
    for row in rows:
        if row.kind == _TRADE and not row.flags & HIDDEN:
            taken[0 if row.side > 0 else 1] += row.qty_lots
            at = 3 + 4 * (taken[2] % SHOWN_TRADES)
            taken[at] = row.exchange_ns
            taken[at + 1] = row.side
            taken[at + 2] = row.price_ticks
            taken[at + 3] = row.qty_lots
            taken[2] += 1


def new_taken() -> npt.NDArray[np.int64]:
    """Lots that takers bought and sold, the number of trades, and a ring of the last: exchange time (ns), side,
    ticks, lots."""
    return np.zeros(3 + 4 * SHOWN_TRADES, np.int64)


class SymbolState:
    """State of one symbol: its bar builder and ticker, and its latest bar, decision and funding."""

    def __init__(self, instrument: Instrument, stale_after_s: float) -> None:
        self.instrument = instrument
        self.stale_after_s = stale_after_s
        self.builder = BarBuilder(instrument, stale_after_s)
        self.ticker = TickerState()
        self.taken = new_taken()  #: as received
        self.row: npt.NDArray[np.float64] | None = None  #: the last closed bar
        self.row_ns = 0
        self.target = 0
        self.target_lots = 0
        self.signal_ns = 0  #: of the last signal in the target's direction
        self.sized_bps = 0.0  #: expected return after costs when the target was sized
        self.signals = 0
        self.entries = 0
        self.settlements = Settlements()
        self.unpaid: list[Settlement] = []  #: settled within the last second
        self.funding_missed = False  #: an entry was judged without a predicted rate
        self._stale_ns = round(stale_after_s * 1e9)

    def take(self, rows: Events) -> None:
        """Take event rows of whole frames; no second may end within them (RuntimeError)."""
        self.ticker.apply(rows)
        count_taken(rows, self.taken)
        if len(self.builder.push(rows)):
            # Cannot be: seconds are closed before the first event behind them is pushed.
            symbol = self.instrument.symbol
            raise RuntimeError(f"{symbol}: an event closed a bar that time had not closed")

    def view(self, now_ns: int) -> View:
        """Our picture of the market at an instant."""
        book = self.builder.book
        return View(
            symbol=self.instrument.symbol,
            now_ns=now_ns,
            bids=tuple(book.bids(VIEW_LEVELS)),
            asks=tuple(book.asks(VIEW_LEVELS)),
            stale=book.stale(now_ns, self._stale_ns),
            instrument=self.instrument,
            bought_lots=int(self.taken[0]),
            sold_lots=int(self.taken[1]),
            book=book,
        )

    def last_trades(self) -> list[list[int]]:
        """Takers' last trades, the newest first: exchange time (ns), side, ticks, lots."""
        count = int(self.taken[2])
        ring = self.taken[3:].reshape(SHOWN_TRADES, 4)
        return [
            ring[(count - n) % SHOWN_TRADES].tolist()
            for n in range(1, min(count, SHOWN_TRADES) + 1)
        ]

    def mid_at(self, t_ns: int) -> float:
        """The mid at the close of the second that ended at ``t_ns``; NaN without a sound bar of it."""
        if self.row is None or self.row_ns != t_ns or self.row[_GAP]:
            return math.nan
        return float(self.row[_MID])

    def touch(self) -> tuple[int | None, int | None]:
        """Best bid and ask in ticks, None for an empty side."""
        book = self.builder.book
        return book.best_bid, book.best_ask

    def checkpoint_rows(self, now_ns: int) -> Events:
        """Checkpoint rows of book and ticker at ``now_ns``."""
        book = self.builder.book.snapshot_rows(now_ns)
        ticker = np.zeros(len(self.ticker.fields), EVENT)
        for row, (field, value) in zip(ticker, sorted(self.ticker.fields.items()), strict=True):
            row["field"], row["value"] = field, value
        for name in ("receive_ns", "exchange_ns", "publish_ns"):
            ticker[name] = now_ns
        ticker["kind"], ticker["flags"] = _TICKER, _CHECKPOINT
        ticker["flags"][-1:] |= _LAST
        return np.concatenate([book, ticker])

    def restart_bars(self, rows: Events) -> None:
        """Restart the bar builder from checkpoint rows, as a date's partition does."""
        self.builder = BarBuilder(self.instrument, self.stale_after_s)
        self.builder.push(rows)


class BookWatch:
    """Asks for a book anew when it is not known: at once, then with growing patience."""

    def __init__(self, topics: tuple[str, ...]) -> None:
        self._topics = topics
        self._wait_ns, self._due_ns = RENEW_NS, 0
        self.lost_ns = 0  #: since when the book is not known; 0 while it is

    def look(self, now_ns: int, synchronised: bool) -> Renew | None:
        """The request for a new book, when one is due."""
        if synchronised:
            self.lost_ns, self._wait_ns, self._due_ns = 0, RENEW_NS, 0
            return None
        self.lost_ns = self.lost_ns or now_ns
        if now_ns < self._due_ns:
            return None
        self._due_ns = now_ns + self._wait_ns
        self._wait_ns = min(2 * self._wait_ns, MOST_RENEW_NS)
        return Renew(topics=self._topics)
