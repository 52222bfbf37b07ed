"""Position, realised profit and balance from fills and funding: exact integers at 1e-8.

For a linear perpetual only realised profit, fees and funding move the balance; the notional never
does. With v the signed notional of each fill (price × quantity, positive when bought), the books
balance to the last unit at every instant:

    equity - opening balance = position × mark price - Σ v - fees - funding

A remainder of a division is rounded against us (fees, funding) or stays in the cost of the open
position (partial close), so that money neither appears nor vanishes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache

import msgspec

from execution.orders import Filled
from market.errors import DataError
from market.instruments import Instrument
from market.units import E8, HOUR_NS


@lru_cache(maxsize=256)
def unit_e8(instrument: Instrument) -> int:
    """Notional of one lot at a price of one tick, at 1e-8; DataError when it is not whole."""
    unit = Decimal(instrument.tick) * Decimal(instrument.lot) * E8
    if unit != int(unit) or unit <= 0:
        raise DataError(
            f"{instrument.symbol}: tick {instrument.tick} × lot {instrument.lot} is not a positive "
            "multiple of 1e-8, in which money is counted; it can be recorded, and not traded"
        )
    return int(unit)


def value_e8(instrument: Instrument, price_ticks: int, qty_lots: int) -> int:
    """Notional, price × quantity, in quote currency at 1e-8; exact."""
    return unit_e8(instrument) * price_ticks * qty_lots


def fee_e8(notional_e8: int, rate: str) -> int:
    """Notional × rate, rounded up to 1e-8: a fee is never too small, a rebate never too large.

    ``rate`` is a decimal string, a fraction of notional; negative for a rebate.
    """
    numerator, denominator = _fraction(rate)
    return -(-notional_e8 * numerator // denominator)


@lru_cache(maxsize=256)
def _fraction(rate: str) -> tuple[int, int]:
    return Decimal(rate).as_integer_ratio()


def rate_of_bps(bps: float) -> str:
    """Basis points as the exact decimal fraction that fees are computed by: 5.5 → "0.00055"."""
    return f"{(Decimal(str(bps)) / 10_000).normalize():f}"


def funding_e8(instrument: Instrument, position_lots: int, mark_e8: int, rate_e8: int) -> int:
    """Funding payment at 1e-8, positive when paid: position × mark price × rate, rounded up.

    ``mark_e8`` is the mark price at settlement and ``rate_e8`` the funding rate, both at 1e-8
    (the units of ticker rows). At a positive rate longs pay shorts.
    """
    exact = Decimal(instrument.lot).as_integer_ratio()
    numerator = position_lots * exact[0] * mark_e8 * rate_e8
    return -(-numerator // (exact[1] * E8))


class Holding(msgspec.Struct, kw_only=True):
    """One symbol's position and its profit, fees and funding so far; all money at 1e-8."""

    instrument: Instrument
    position_lots: int = 0
    #: Signed entry notional of the open position: positive for a long, negative for a short.
    cost_e8: int = 0
    realised_e8: int = 0
    fees_e8: int = 0
    funding_e8: int = 0
    #: Opening fees of the open position; part of ``fees_e8``.
    open_fees_e8: int = 0
    #: Profit of closed positions after their fees, as the venue reports it (closed PnL).
    closed_e8: int = 0
    bought_lots: int = 0
    sold_lots: int = 0
    turnover_e8: int = 0

    @property
    def entry_ticks(self) -> Fraction | None:
        """Average entry price in ticks, exact; None when flat."""
        if not self.position_lots:
            return None
        return Fraction(self.cost_e8, self.position_lots * unit_e8(self.instrument))

    def unrealised_e8(self, mark_ticks: int) -> int:
        """Unrealised profit of the position at the mark, without the cost of closing."""
        return value_e8(self.instrument, mark_ticks, self.position_lots) - self.cost_e8

    def trade(self, signed_lots: int, price_ticks: int, fee: int) -> int:
        """Book one execution of ``signed_lots`` (positive bought) at a price.

        Returns the closed PnL: the profit of the part of the position that it closed, less that
        part's share of the opening fees and the closing fee. Remainders stay with the open position.
        """
        value = value_e8(self.instrument, price_ticks, signed_lots)
        position, closed_pnl = self.position_lots, 0
        if position * signed_lots < 0:
            closed = -signed_lots if abs(signed_lots) <= abs(position) else position
            cost = self.cost_e8 * closed // position
            proceeds = value_e8(self.instrument, price_ticks, closed)
            opening = self.open_fees_e8 * closed // position
            closing = fee * abs(closed) // abs(signed_lots)
            closed_pnl = proceeds - cost - opening - closing
            self.realised_e8 += proceeds - cost
            self.cost_e8 += value + proceeds - cost
            self.open_fees_e8 += fee - opening - closing
            self.closed_e8 += closed_pnl
        else:
            self.cost_e8 += value
            self.open_fees_e8 += fee
        self.position_lots += signed_lots
        self.fees_e8 += fee
        self.turnover_e8 += abs(value)
        self.bought_lots += max(0, signed_lots)
        self.sold_lots += max(0, -signed_lots)
        return closed_pnl


class Account:
    """Balance and positions over several symbols: the signed sum of executions, and funding.

    ``holdings`` has a `Holding` for every symbol.
    """

    def __init__(self, instruments: Mapping[str, Instrument], opening_e8: int = 0) -> None:
        self.opening_e8 = opening_e8
        self.holdings = {
            symbol: Holding(instrument=instrument) for symbol, instrument in instruments.items()
        }
        self._executions: set[str] = set()
        self._recent: dict[str, deque[tuple[int, int]]] = {
            symbol: deque() for symbol in instruments
        }

    def apply(self, fill: Filled) -> bool:
        """Book a fill; False for a duplicate, an execution that is booked already.

        Raises KeyError for a symbol that the account does not know.
        """
        if fill.exec_id in self._executions:
            return False
        self.holdings[fill.symbol].trade(fill.side * fill.qty_lots, fill.price_ticks, fill.fee_e8)
        self._executions.add(fill.exec_id)
        recent = self._recent[fill.symbol]
        recent.append((fill.venue_ns, fill.side * fill.qty_lots))
        while recent[0][0] < fill.venue_ns - HOUR_NS:
            recent.popleft()
        return True

    def position_lots_at(self, symbol: str, time_ns: int) -> int:
        """The position at an instant of the last hour, of what was executed before it."""
        later = sum(lots for venue_ns, lots in self._recent[symbol] if venue_ns >= time_ns)
        return self.holdings[symbol].position_lots - later

    def settle(
        self, symbol: str, mark_e8: int, rate_e8: int, position_lots: int | None = None
    ) -> int:
        """Settle funding on a position, by default the present one; the payment (positive = paid)."""
        holding = self.holdings[symbol]
        lots = holding.position_lots if position_lots is None else position_lots
        paid = funding_e8(holding.instrument, lots, mark_e8, rate_e8)
        holding.funding_e8 += paid
        return paid

    @property
    def balance_e8(self) -> int:
        """Opening balance plus realised profit, less fees and funding."""
        return self.opening_e8 + sum(
            h.realised_e8 - h.fees_e8 - h.funding_e8 for h in self.holdings.values()
        )

    def equity_e8(self, marks: Mapping[str, int]) -> int:
        """Balance plus unrealised profit at mark prices in ticks.

        Raises KeyError when a symbol with a position has no mark.
        """
        return self.balance_e8 + sum(
            h.unrealised_e8(marks[symbol]) for symbol, h in self.holdings.items() if h.position_lots
        )
