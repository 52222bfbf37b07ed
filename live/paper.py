"""The paper venue: the simulator fed live, so that orders meet the market of this very moment.

It is the simulator and nothing else: what the study measured and what paper trading does are one
set of rules. What is added is what a process has and a replay has not: positions that outlive it,
and orders that do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from execution.account import rate_of_bps
from execution.orders import Cancelled, Event
from execution.simulation.simulator import Simulator, latency_of
from execution.venue import Venue, View
from live.journal import Order
from market.events import Events
from market.instruments import Instrument
from market.settings import FEE_ROWS_BPS, Settings


class LiveVenue(Venue, Protocol):
    """A venue and our local picture of its market, as the worker drives them."""

    def on_events(self, symbol: str, events: Events) -> None:
        """Rows of whole frames that were just received."""
        ...

    def advance(self, now_ns: int, *, stop_at_outcome: bool = False) -> int:
        """The receive clock stands at ``now_ns``; returns that, or with ``stop_at_outcome`` the
        earlier time at which an outcome that was under way reached us."""
        ...

    @property
    def moves_market(self) -> bool:
        """Whether our orders are in the market that we see, and our trades on its tape."""
        ...

    @property
    def idle(self) -> bool:
        """No order is open, under way or about to be answered."""
        ...

    def view(self, symbol: str) -> View: ...

    def touch(self, symbol: str) -> tuple[int | None, int | None]:
        """Best bid and ask in ticks."""
        ...

    def settle(self, orders: Iterable[Order], now_ns: int) -> list[Event]:
        """What this venue knows at once of orders that an earlier process left open."""
        ...


class PaperVenue(Simulator):
    """A simulator with the settings' latencies, queue model and fee row.

    ``positions`` are signed lots that earlier runs left.
    """

    moves_market = False

    def __init__(
        self,
        instruments: Mapping[str, Instrument],
        settings: Settings,
        positions: Mapping[str, int] | None = None,
    ) -> None:
        taker_bps, maker_bps = FEE_ROWS_BPS[settings.model.fee_row]
        super().__init__(
            instruments,
            latency=latency_of(settings.execution),
            queue=settings.execution.queue,
            taker_fee=rate_of_bps(taker_bps),
            maker_fee=rate_of_bps(maker_bps),
            stale_after_ns=round(settings.market.stale_after_s * 1e9),
            window_levels=settings.market.book_depth,
            positions={symbol: lots for symbol, lots in (positions or {}).items() if lots},
        )

    def settle(self, orders: Iterable[Order], now_ns: int) -> list[Event]:
        """A paper order lives in its process, whose end is the evidence that it is gone."""
        return [
            Cancelled(
                client_id=order.submit.client_id,
                time_ns=now_ns,
                venue_ns=now_ns,
                reason="the paper venue ended with its process",
                leaves_lots=order.qty_lots - order.filled_lots,
            )
            for order in orders
        ]


def paper_venues(
    instruments: Mapping[str, Instrument],
    settings: Settings,
    positions: Mapping[str, int] | None = None,
) -> dict[str, PaperVenue]:
    """A venue a symbol, so that no symbol's clock depends on another's frames."""
    return {
        symbol: PaperVenue(
            {symbol: instrument}, settings, {symbol: (positions or {}).get(symbol, 0)}
        )
        for symbol, instrument in instruments.items()
    }
