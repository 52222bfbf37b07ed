"""The interface between algorithms and any market: one small protocol, many drivers.

A call returns at once; every outcome arrives later as an event of `orders`. The replay simulator,
the paper venue and (later) Bybit itself implement the protocol, and one contract suite
(tests/execution/venue_contract.py) runs over all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from execution.orders import Action, Event
from market.book import Book
from market.instruments import Instrument
from market.units import BPS


class View(msgspec.Struct, frozen=True, kw_only=True):
    """One symbol as an algorithm may see it at an instant: our local, delayed picture.

    ``bids`` and ``asks`` are (price_ticks, qty_lots) from the touch outwards, at least one level
    each unless ``stale``. ``signal_bps`` is the model's expected return over its horizon, signed,
    None when there is none, ``urgency`` that of the parent at work (`execution.urgency`), None where it
    is not judged: then an algorithm has all of its time. ``bought_lots`` and ``sold_lots`` are lots that takers have bought and
    sold since the venue began, as far as received; only differences mean something.
    """

    symbol: str
    now_ns: int
    bids: tuple[tuple[int, int], ...]
    asks: tuple[tuple[int, int], ...]
    stale: bool
    instrument: Instrument
    signal_bps: float | None = None
    urgency: float | None = None
    bought_lots: int = 0
    sold_lots: int = 0
    #: The book behind the levels shown, as it is now and not as it was at ``now_ns``; None where there is none.
    book: Book | None = None

    def levels(self, side: int) -> Sequence[tuple[int, int]]:
        """Every level of a side that is known, from the touch outwards."""
        if self.book is not None:
            return self.book.bids() if side > 0 else self.book.asks()
        return self.bids if side > 0 else self.asks

    def reached(self, side: int, lots: int) -> Sequence[tuple[int, int]]:
        """The levels of a side that hold ``lots``, or more of them; every one that is known if none do."""
        shown = self.bids if side > 0 else self.asks
        return shown if sum(held for _, held in shown) >= lots else self.levels(side)

    @property
    def mid_ticks(self) -> float:
        """Middle of the touch in ticks; ValueError when a side is empty."""
        if not self.bids or not self.asks:
            raise ValueError(f"{self.symbol}: one side of the book is empty")
        return (self.bids[0][0] + self.asks[0][0]) / 2

    @property
    def half_spread_bps(self) -> float:
        """Half the spread over the mid; ValueError when a side is empty."""
        mid_ticks = self.mid_ticks
        return (self.asks[0][0] - self.bids[0][0]) / 2 / mid_ticks * BPS

    def touch(self, side: int) -> int:
        """Best price of our own side: the bid for a buyer (+1), the ask for a seller (-1)."""
        return self.bids[0][0] if side > 0 else self.asks[0][0]


class Venue(Protocol):
    """Where orders go. Outcomes come back through `poll`, in order."""

    def send(self, actions: Sequence[Action]) -> None:
        """Send requests; returns at once, and raises nothing for what the venue may reject."""
        ...

    def poll(self) -> Sequence[Event]:
        """Outcomes that have reached us since the last call."""
        ...

    def position_lots(self, symbol: str) -> int:
        """Signed position at the venue: the sum of executions."""
        ...
