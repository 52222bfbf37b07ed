"""The blotter: executions as round trips, and as equity (profit and loss) at every fee row.

A run trades at one fee row; the other rows price the same executions again, by their actual
liquidity. So rows differ in fees, never in executions.

A round trip runs from flat to flat. An execution that reverses a position ends one and begins the
next; its notional and fees are divided by lots, the remainder staying with the one it ends. All sums
are exact integers in quote currency at 1e-8 (`execution.account`); floats begin at `Trade`.
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
from market.units import BPS, E8, SECOND_NS

#: Sizes (quote currency) at which bars have the cost of sweeping the book.
SWEEP_SIZES: Final = (10_000.0, 100_000.0, 1_000_000.0)


class EntryReason(msgspec.Struct, frozen=True, kw_only=True):
    """What a parent was opened on: the regime, the expected return (bps), and for each of
    `SWEEP_SIZES` the cost in bps of sweeping that much, NaN where the book is not deep enough."""

    regime: str
    expected_bps: float
    sweeps_bps: tuple[float, ...]


class Trade(Row, frozen=True, kw_only=True):
    """One round trip. Money in quote currency, costs positive; ``net_*`` are after fees and funding.

    ``entry_price`` and ``exit_price`` are means over the executions that opened and closed it;
    ``value_usdt`` is the notional opened, ``turnover_usdt`` that of both legs.
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
        """Net result at a fee row."""
        return float(getattr(self, f"net_usdt_{row}"))

    def net_bps(self, row: str) -> float:
        """Net result over the notional opened."""
        return self.net_usdt(row) / self.value_usdt * BPS

    @property
    def gross_bps(self) -> float:
        """Result before fees and funding over the notional opened."""
        return self.gross_usdt / self.value_usdt * BPS


class _Open(msgspec.Struct, kw_only=True):
    """An open round trip; money at 1e-8."""

    side: int
    entry: EntryReason
    entry_ns: int
    exit_ns: int = 0
    entered_lots: int = 0
    exited_lots: int = 0
    entered_e8: int = 0
    exited_e8: int = 0
    maker_e8: int = 0
    funding_e8: int = 0
    fills: int = 0
    fees_e8: dict[str, int]


class SymbolTotals(msgspec.Struct, kw_only=True):
    """A symbol's totals: signed lots, cash from executions, fees by row, funding; money at 1e-8."""

    instrument: Instrument
    lots: int = 0
    cash_e8: int = 0
    turnover_e8: int = 0
    maker_e8: int = 0
    funding_e8: int = 0
    fees_e8: dict[str, int]


class Blotter:
    """Books executions and funding payments of several symbols.

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
        self.totals = {
            symbol: SymbolTotals(instrument=instrument, fees_e8=dict.fromkeys(fee_rows_bps, 0))
            for symbol, instrument in instruments.items()
        }
        self.trades: list[Trade] = []
        self.fills = 0
        self.changes = 0  #: grows with every execution and payment
        self._open: dict[str, _Open] = {}
        self._entries: dict[str, EntryReason] = {}

    def opened(self, symbol: str, entry: EntryReason) -> None:
        """A parent was opened; round trips that begin from now on have this entry."""
        self._entries[symbol] = entry

    def filled(self, fill: Filled) -> None:
        """Book an execution (no duplicates). KeyError for a symbol that is not traded."""
        totals = self.totals[fill.symbol]
        value = value_e8(totals.instrument, fill.price_ticks, fill.qty_lots)
        fees = {row: fee_e8(value, rates[fill.liquidity]) for row, rates in self._rates.items()}
        position = totals.lots
        totals.lots += fill.side * fill.qty_lots
        totals.cash_e8 -= fill.side * value
        totals.turnover_e8 += value
        totals.maker_e8 += value * (fill.liquidity is Liquidity.MAKER)
        for row, fee in fees.items():
            totals.fees_e8[row] += fee
        self.fills += 1
        self.changes += 1
        closing = min(fill.qty_lots, abs(position)) if position * fill.side < 0 else 0
        opening = fill.qty_lots - closing
        if closing:
            opening_fees = {row: fee * opening // fill.qty_lots for row, fee in fees.items()}
            closing_fees = {row: fee - opening_fees[row] for row, fee in fees.items()}
            self._add(fill, closing, closing_fees, closes=True)
            if closing == abs(position):
                self._close(fill)
            fees = opening_fees
        if opening:
            self._add(fill, opening, fees, closes=False)

    def funded(self, symbol: str, paid_e8: int, time_ns: int) -> None:
        """Book a funding payment (positive = paid) of a settlement, to the round trip that was open."""
        self.totals[symbol].funding_e8 += paid_e8
        self.changes += 1
        for n in range(len(self.trades) - 1, -1, -1):
            trade = self.trades[n]
            if trade.exit_ns <= time_ns - SECOND_NS:
                break
            if trade.symbol == symbol and trade.entry_ns <= time_ns < trade.exit_ns:
                paid = paid_e8 / E8
                self.trades[n] = msgspec.structs.replace(
                    trade,
                    funding_usdt=trade.funding_usdt + paid,
                    net_usdt_vip0=trade.net_usdt_vip0 - paid,
                    net_usdt_vip3=trade.net_usdt_vip3 - paid,
                    net_usdt_zero=trade.net_usdt_zero - paid,
                )
                return
        if symbol in self._open:
            self._open[symbol].funding_e8 += paid_e8

    def gross_e8(self, symbol: str, mid_ticks: float) -> float:
        """A symbol's profit before fees and funding, its position marked at a mid."""
        totals = self.totals[symbol]
        if not totals.lots:
            return totals.cash_e8
        return totals.cash_e8 + unit_e8(totals.instrument) * totals.lots * mid_ticks

    def equity(self, mids_ticks: Mapping[str, float]) -> dict[str, float]:
        """Profit so far by fee row in quote currency, after fees and funding."""
        gross = math.fsum(
            self.gross_e8(symbol, mids_ticks.get(symbol, math.nan)) - totals.funding_e8
            for symbol, totals in self.totals.items()
        )
        return {
            row: (gross - sum(totals.fees_e8[row] for totals in self.totals.values())) / E8
            for row in self._rates
        }

    def _add(self, fill: Filled, lots: int, fees: Mapping[str, int], closes: bool) -> None:
        trip = self._open.get(fill.symbol)
        if trip is None:
            trip = self._open[fill.symbol] = _Open(
                side=fill.side,
                entry=self._entries.get(fill.symbol, _UNKNOWN),
                entry_ns=fill.time_ns,
                fees_e8=dict.fromkeys(self._rates, 0),
            )
        value = value_e8(self.totals[fill.symbol].instrument, fill.price_ticks, lots)
        if closes:
            trip.exited_lots += lots
            trip.exited_e8 += value
        else:
            trip.entered_lots += lots
            trip.entered_e8 += value
        trip.maker_e8 += value * (fill.liquidity is Liquidity.MAKER)
        trip.fills += 1
        for row, fee in fees.items():
            trip.fees_e8[row] += fee

    def _close(self, fill: Filled) -> None:
        trip = self._open.pop(fill.symbol)
        instrument = self.totals[fill.symbol].instrument
        gross = trip.side * (trip.exited_e8 - trip.entered_e8)
        lot_price = E8 * instrument.lot_size
        net = {row: (gross - fee - trip.funding_e8) / E8 for row, fee in trip.fees_e8.items()}
        sweeps = trip.entry.sweeps_bps
        self.trades.append(
            Trade(
                symbol=fill.symbol,
                side=trip.side,
                regime=trip.entry.regime,
                expected_bps=trip.entry.expected_bps,
                entry_ns=trip.entry_ns,
                exit_ns=fill.time_ns,
                lots=trip.entered_lots,
                entry_price=trip.entered_e8 / trip.entered_lots / lot_price,
                exit_price=trip.exited_e8 / trip.exited_lots / lot_price,
                value_usdt=trip.entered_e8 / E8,
                turnover_usdt=(trip.entered_e8 + trip.exited_e8) / E8,
                maker_share=trip.maker_e8 / (trip.entered_e8 + trip.exited_e8),
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


_UNKNOWN: Final = EntryReason(
    regime="unknown", expected_bps=math.nan, sweeps_bps=(math.nan,) * len(SWEEP_SIZES)
)


def break_even_bps(gross_usdt: float, funding_usdt: float, turnover_usdt: float) -> float:
    """Fee per side at which the net result would be zero; NaN without turnover."""
    return (gross_usdt - funding_usdt) / turnover_usdt * BPS if turnover_usdt else math.nan


def capacity_usdt(trades: Sequence[Trade], row: str) -> float:
    """The order size at which sweeping the displayed book would use up the mean net result, or NaN.

    Taken at the entries: the mean cost of sweeping each of `SWEEP_SIZES`, joined by straight lines in
    the logarithm of size, counted for both legs and in excess of what the present mean size costs.
    The result is capped at the largest size that every entry's book could fill. NaN when the trades
    earn nothing at this row, or the cost of sweeping is not known.
    """
    if not trades:
        return math.nan
    value = math.fsum(t.value_usdt for t in trades)
    net = math.fsum(t.net_usdt(row) for t in trades) / value * BPS
    costs: list[tuple[float, float]] = []
    for size, name in zip(
        SWEEP_SIZES, ("sweep_10k_bps", "sweep_100k_bps", "sweep_1m_bps"), strict=True
    ):
        sweeps = [getattr(t, name) for t in trades]
        if any(math.isnan(cost) for cost in sweeps):
            break
        costs.append((math.log(size), math.fsum(sweeps) / len(sweeps)))
    if net <= 0 or not costs:
        return math.nan
    limit = _interpolated(costs, math.log(value / len(trades))) + net / 2
    for (x0, c0), (x1, c1) in pairwise(costs):
        if c1 > limit:
            return math.exp(x0 + (x1 - x0) * max(0.0, limit - c0) / (c1 - c0))
    return math.exp(costs[-1][0])


def _interpolated(points: Sequence[tuple[float, float]], x: float) -> float:
    """Linear interpolation between points at x, constant outside."""
    for (x0, c0), (x1, c1) in pairwise(points):
        if x <= x1:
            return c0 + (c1 - c0) * max(0.0, (x - x0) / (x1 - x0))
    return points[-1][1]
