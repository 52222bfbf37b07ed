"""The blotter: what executions add up to, as round trips and as equity at every fee row.

One run of orders was made at one fee row; the other rows price the same executions again, by their
actual liquidity. So the rows differ in what was paid, never in what was done.

A round trip runs from flat to flat. An execution that turns a position round ends one and begins the
next; its value and fees are divided by lots, the rest of a division staying with the one it ends.
All sums are exact integers in quote currency at 1e-8 (`execution.account`); floats begin at `Trade`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final

import msgspec

from execution.account import fee_e8, rate_of_bps, unit_e8, value_e8
from execution.orders import Filled, Liquidity
from execution.tca import Row
from market.instruments import Instrument
from market.units import E8

#: Sizes (quote currency) at which bars state what sweeping the book costs.
SWEEP_SIZES: Final = (10_000.0, 100_000.0, 1_000_000.0)


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """Why a parent was opened: the regime, the expectation (bps), and for each of `SWEEP_SIZES` the
    cost in bps of sweeping that much from the book, NaN where it reaches past the book."""

    regime: str
    expected_bps: float
    sweeps_bps: tuple[float, ...]


class Trade(Row, frozen=True, kw_only=True):
    """One round trip. Money in quote currency, costs positive; ``net_*`` are after fees and funding.

    ``entry_price`` and ``exit_price`` are means over the executions that built and closed it;
    ``value_usdt`` is what was opened in all, ``turnover_usdt`` what was traded on both legs.
    """

    symbol: str
    side: int
    regime: str
    expected_bps: float
    entry_ns: int
    exit_ns: int
    lots: int
    entry_price: float
    exit_price: float
    value_usdt: float
    turnover_usdt: float
    maker_share: float
    fills: int
    gross_usdt: float
    funding_usdt: float
    fees_vip0_usdt: float
    fees_vip3_usdt: float
    net_usdt_vip0: float
    net_usdt_vip3: float
    net_usdt_zero: float
    sweep_10k_bps: float
    sweep_100k_bps: float
    sweep_1m_bps: float

    def net_usdt(self, row: str) -> float:
        return float(getattr(self, f"net_usdt_{row}"))

    def net_bps(self, row: str) -> float:
        """Net result over what was opened."""
        return self.net_usdt(row) / self.value_usdt * 1e4

    @property
    def gross_bps(self) -> float:
        return self.gross_usdt / self.value_usdt * 1e4


class _Open(msgspec.Struct, kw_only=True):
    """A round trip under way; values at 1e-8."""

    side: int
    reason: Reason
    entry_ns: int
    exit_ns: int = 0
    entered_lots: int = 0
    left_lots: int = 0
    entered_e8: int = 0
    left_e8: int = 0
    maker_e8: int = 0
    funding_e8: int = 0
    fills: int = 0
    fees_e8: dict[str, int]


class Holding(msgspec.Struct, kw_only=True):
    """A symbol's sums: signed lots, cash from its executions, fees by row, funding; money at 1e-8."""

    instrument: Instrument
    lots: int = 0
    cash_e8: int = 0
    turnover_e8: int = 0
    maker_e8: int = 0
    funding_e8: int = 0
    fees_e8: dict[str, int]


class Blotter:
    """Books executions and funding of several symbols.

    ``fee_rows_bps`` names each row's taker and maker fee in bps. `Trade` has columns for the rows
    vip0, vip3 and zero; ValueError when these are not the rows.
    """

    def __init__(
        self,
        instruments: Mapping[str, Instrument],
        fee_rows_bps: Mapping[str, tuple[float, float]],
    ) -> None:
        if set(fee_rows_bps) != {"vip0", "vip3", "zero"}:
            raise ValueError(f"fee rows {', '.join(fee_rows_bps)}: expected vip0, vip3 and zero")
        self._rates = {
            row: {Liquidity.TAKER: rate_of_bps(taker), Liquidity.MAKER: rate_of_bps(maker)}
            for row, (taker, maker) in fee_rows_bps.items()
        }
        self.holdings = {
            symbol: Holding(instrument=found, fees_e8=dict.fromkeys(fee_rows_bps, 0))
            for symbol, found in instruments.items()
        }
        self.trades: list[Trade] = []
        self.fills = 0
        self.changes = 0  #: grows with every execution and payment
        self._open: dict[str, _Open] = {}
        self._reasons: dict[str, Reason] = {}

    def opened(self, symbol: str, reason: Reason) -> None:
        """A parent was opened; a round trip that begins from now on has this reason."""
        self._reasons[symbol] = reason

    def filled(self, fill: Filled) -> None:
        """Book an execution, once. KeyError for a symbol that is not traded."""
        holding = self.holdings[fill.symbol]
        value = value_e8(holding.instrument, fill.price_ticks, fill.qty_lots)
        fees = {row: fee_e8(value, rates[fill.liquidity]) for row, rates in self._rates.items()}
        held = holding.lots
        holding.lots += fill.side * fill.qty_lots
        holding.cash_e8 -= fill.side * value
        holding.turnover_e8 += value
        holding.maker_e8 += value * (fill.liquidity is Liquidity.MAKER)
        for row, fee in fees.items():
            holding.fees_e8[row] += fee
        self.fills += 1
        self.changes += 1
        closing = min(fill.qty_lots, abs(held)) if held * fill.side < 0 else 0
        opening = fill.qty_lots - closing
        if closing:
            rest = {row: fee * opening // fill.qty_lots for row, fee in fees.items()}
            paid = {row: fee - rest[row] for row, fee in fees.items()}
            self._add(fill, closing, paid, closes=True)
            if closing == abs(held):
                self._close(fill)
            fees = rest
        if opening:
            self._add(fill, opening, fees, closes=False)

    def funded(self, symbol: str, paid_e8: int) -> None:
        """Book a funding payment (positive = paid)."""
        self.holdings[symbol].funding_e8 += paid_e8
        self.changes += 1
        if symbol in self._open:
            self._open[symbol].funding_e8 += paid_e8

    def gross_e8(self, symbol: str, mid_ticks: float) -> float:
        """What a symbol has brought before fees and funding, its position valued at a mid."""
        holding = self.holdings[symbol]
        if not holding.lots:
            return holding.cash_e8
        return holding.cash_e8 + unit_e8(holding.instrument) * holding.lots * mid_ticks

    def equity(self, mids_ticks: Mapping[str, float]) -> dict[str, float]:
        """Profit so far by fee row in quote currency, after fees and funding."""
        gross = math.fsum(
            self.gross_e8(symbol, mids_ticks.get(symbol, math.nan)) - holding.funding_e8
            for symbol, holding in self.holdings.items()
        )
        return {
            row: (gross - sum(holding.fees_e8[row] for holding in self.holdings.values())) / E8
            for row in self._rates
        }

    def _add(self, fill: Filled, lots: int, fees: Mapping[str, int], closes: bool) -> None:
        trip = self._open.get(fill.symbol)
        if trip is None:
            trip = self._open[fill.symbol] = _Open(
                side=fill.side,
                reason=self._reasons.get(fill.symbol, _UNKNOWN),
                entry_ns=fill.time_ns,
                fees_e8=dict.fromkeys(self._rates, 0),
            )
        value = value_e8(self.holdings[fill.symbol].instrument, fill.price_ticks, lots)
        if closes:
            trip.left_lots += lots
            trip.left_e8 += value
        else:
            trip.entered_lots += lots
            trip.entered_e8 += value
        trip.maker_e8 += value * (fill.liquidity is Liquidity.MAKER)
        trip.fills += 1
        for row, fee in fees.items():
            trip.fees_e8[row] += fee

    def _close(self, fill: Filled) -> None:
        trip = self._open.pop(fill.symbol)
        instrument = self.holdings[fill.symbol].instrument
        gross = trip.side * (trip.left_e8 - trip.entered_e8)
        lot_price = E8 * instrument.lot_size
        net = {row: (gross - fee - trip.funding_e8) / E8 for row, fee in trip.fees_e8.items()}
        sweeps = trip.reason.sweeps_bps
        self.trades.append(
            Trade(
                symbol=fill.symbol,
                side=trip.side,
                regime=trip.reason.regime,
                expected_bps=trip.reason.expected_bps,
                entry_ns=trip.entry_ns,
                exit_ns=fill.time_ns,
                lots=trip.entered_lots,
                entry_price=trip.entered_e8 / trip.entered_lots / lot_price,
                exit_price=trip.left_e8 / trip.left_lots / lot_price,
                value_usdt=trip.entered_e8 / E8,
                turnover_usdt=(trip.entered_e8 + trip.left_e8) / E8,
                maker_share=trip.maker_e8 / (trip.entered_e8 + trip.left_e8),
                fills=trip.fills,
                gross_usdt=gross / E8,
                funding_usdt=trip.funding_e8 / E8,
                fees_vip0_usdt=trip.fees_e8["vip0"] / E8,
                fees_vip3_usdt=trip.fees_e8["vip3"] / E8,
                net_usdt_vip0=net["vip0"],
                net_usdt_vip3=net["vip3"],
                net_usdt_zero=net["zero"],
                sweep_10k_bps=sweeps[0],
                sweep_100k_bps=sweeps[1],
                sweep_1m_bps=sweeps[2],
            )
        )


_UNKNOWN: Final = Reason(
    regime="unknown", expected_bps=math.nan, sweeps_bps=(math.nan,) * len(SWEEP_SIZES)
)


def break_even_bps(gross_usdt: float, funding_usdt: float, turnover_usdt: float) -> float:
    """Fee per side at which these executions would have earned nothing; NaN without any."""
    return (gross_usdt - funding_usdt) / turnover_usdt * 1e4 if turnover_usdt else math.nan


def capacity_usdt(trades: Sequence[Trade], row: str) -> float:
    """The order size at which sweeping the displayed book would use up the mean net result, or NaN.

    Taken at the entries: the mean cost of sweeping each of `SWEEP_SIZES`, joined by straight lines in
    the logarithm of size, counted for both legs and in excess of what the present mean size costs.
    Above the largest size that every entry's book could hold nothing is claimed: that size is then the
    answer. NaN when the trades do not earn anything at this row, or their books do not say.
    """
    if not trades:
        return math.nan
    value = math.fsum(t.value_usdt for t in trades)
    net = math.fsum(t.net_usdt(row) for t in trades) / value * 1e4
    costs: list[tuple[float, float]] = []
    for size, name in zip(
        SWEEP_SIZES, ("sweep_10k_bps", "sweep_100k_bps", "sweep_1m_bps"), strict=True
    ):
        told = [getattr(t, name) for t in trades]
        if any(math.isnan(cost) for cost in told):
            break
        costs.append((math.log(size), math.fsum(told) / len(told)))
    if net <= 0 or not costs:
        return math.nan
    limit = _at(costs, math.log(value / len(trades))) + net / 2
    for (x0, c0), (x1, c1) in pairwise(costs):
        if c1 > limit:
            return math.exp(x0 + (x1 - x0) * max(0.0, limit - c0) / (c1 - c0))
    return math.exp(costs[-1][0])


def _at(points: Sequence[tuple[float, float]], x: float) -> float:
    """The broken line through points at x, level outside."""
    for (x0, c0), (x1, c1) in pairwise(points):
        if x <= x1:
            return c0 + (c1 - c0) * max(0.0, (x - x0) / (x1 - x0))
    return points[-1][1]
