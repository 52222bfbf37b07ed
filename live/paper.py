"""The paper venue: the execution simulator fed live, so that orders meet the present market.

The rules are the simulator's, so paper trading and the execution study agree. What a process adds to a
replay: positions that outlive it, and orders that do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from execution.account import rate_of_bps
from execution.orders import Cancelled, Event
from execution.simulation.simulator import Simulator, latency_of
from execution.venue import Venue, View
from live.journal import JournalOrder
from market.events import Events
from market.instruments import Instrument
from market.settings import FEE_ROWS_BPS, Settings


class LiveVenue(Venue, Protocol):
    """A venue and our local picture of its market, as the trader drives them."""

    def on_events(self, symbol: str, events: Events) -> None:
        """Take event rows of whole frames as received."""
        ...

    def advance(self, now_ns: int, *, stop_at_outcome: bool = False) -> int:
        """Advance to receive time ``now_ns``; returns the time reached, which with
        ``stop_at_outcome`` is that of the first order event that arrives earlier."""
        ...

    @property
    def moves_market(self) -> bool:
        """Whether our orders are in the market data that we receive, and our fills among its trades."""
        ...

    @property
    def idle(self) -> bool:
        """No order is open, and no request or event in flight."""
        ...

    def view(self, symbol: str) -> View: ...

    def touch(self, symbol: str) -> tuple[int | None, int | None]:
        """Best bid and ask in ticks, None for an empty side."""
        ...

    def reconcile(self, orders: Iterable[JournalOrder], now_ns: int) -> list[Event]:
        """What became of orders that an earlier process left open; on paper, all are cancelled."""
        ...


class PaperVenue(Simulator):
    """A simulator with the settings' latencies, queue model and fee row, in mode ``partial``: matching and
    queue positions are `execution.simulation.queue`.

    Its results are honest when the latencies are no shorter and the fees no lower than the real ones;
    the queue model is an assumption whose bounds a backtest reports. ``positions`` are signed lots of
    earlier runs.
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

    def reconcile(self, orders: Iterable[JournalOrder], now_ns: int) -> list[Event]:
        """All cancelled: a paper order ends with its process."""
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
    """One venue per symbol, so that no symbol's clock depends on another's frames."""
    return {
        symbol: PaperVenue(
            {symbol: instrument}, settings, {symbol: (positions or {}).get(symbol, 0)}
        )
        for symbol, instrument in instruments.items()
    }
