"""The distance to liquidation before and after an order, and the largest position that keeps it.

One computation for guard, sizing, worker and simulated venues, over `execution.margin`. Marks are taken once
a second (`Headroom.mark`); between two of them the figures of a symbol follow its own executions alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import msgspec

from execution.account import Account, Holding, fee_e8, unit_e8, value_e8
from execution.margin import (
    Margin,
    MarginError,
    MarginMode,
    Terms,
    at_mark_e8,
    liquidation_ticks,
)
from market.units import BPS, E8


class Headroom(Margin):
    """Margin of an account as orders to come would leave it. Terms are those of every symbol."""

    def __init__(self, account: Account, terms: Mapping[str, Terms]) -> None:
        super().__init__(account, terms)
        self.unknown: set[str] = set()  #: symbols whose tiers are not known: they get no size
        self._marks: dict[str, int] = {}
        #: What the rest of the account is worth to a symbol at the last `mark`: after the others'
        #: maintenance margins, and after their initial ones.
        self._rest: dict[str, tuple[int, int]] = {}

    def mark(self, marks: Mapping[str, int]) -> None:
        """Take mark prices at 1e-8, and what each symbol's position leaves the others."""
        self._marks |= marks
        self._rest = {symbol: self._rest_of(symbol) for symbol in self.terms}

    def _rest_of(self, symbol: str) -> tuple[int, int]:
        maintained = initial = self.account.opening_e8 + self.account.apart_e8
        for other, holding in self.account.holdings.items():
            if other == symbol:
                continue
            booked = _booked_e8(holding) - self.extra_e8.get(other, 0)
            if other in self.terms and holding.position_lots:
                terms, lots = self.terms[other], holding.position_lots
                mark_e8, side = self.mark_e8(other), 1 if lots > 0 else -1
                value = at_mark_e8(holding.instrument, lots, mark_e8)
                if terms.mode is MarginMode.CROSS:
                    booked += self.unrealised_e8(other, mark_e8)
                    maintained -= min(value, terms.upkeep_e8(side, value))
                else:
                    value = abs(holding.cost_e8)
                    maintained -= terms.position_margin_e8(side, value)
                initial -= terms.position_margin_e8(side, value)
            maintained, initial = maintained + booked, initial + booked
        return maintained, initial

    def mark_e8(self, symbol: str) -> int:
        """The last mark price, before the first the price of entry; 0 for neither."""
        if symbol in self._marks:
            return self._marks[symbol]
        holding = self.account.holdings[symbol]
        ticks = holding.entry_ticks or Fraction(0)
        return round(ticks * Fraction(holding.instrument.tick) * E8)

    def mark_ticks(self, symbol: str) -> float:
        """The same in ticks."""
        return self.mark_e8(symbol) / (self.account.holdings[symbol].instrument.tick_size * E8)

    def after(self, symbol: str, more_lots: int = 0, at_ticks: float = 0.0) -> tuple[int, float]:
        """Position and its liquidation price (ticks, see `liquidation_ticks`) once ``more_lots``, signed,
        have traded at a price, by default the mark, for the taker fee."""
        if symbol not in self._rest:
            self.mark({})
        holding, terms = self.account.holdings[symbol], self.terms[symbol]
        if more_lots:
            holding = msgspec.structs.replace(holding)
            ticks = round(at_ticks or self.mark_ticks(symbol))
            paid = fee_e8(value_e8(holding.instrument, ticks, abs(more_lots)), terms.taker_fee)
            holding.trade(more_lots, ticks, paid)
        lots, value = holding.position_lots, abs(holding.cost_e8)
        side = 1 if lots > 0 else -1
        if not lots:
            return 0, 0.0
        if terms.mode is MarginMode.ISOLATED:
            extra = self.extra_e8.get(symbol, 0) / (1 - side * float(terms.taker_fee))
            backing = value / float(terms.leverage) + extra
        else:
            backing = self._rest[symbol][0] + _booked_e8(holding)
        per_tick = abs(lots) * unit_e8(holding.instrument)
        return lots, liquidation_ticks(terms, side, per_tick, value, backing)

    def distance_bps(self, symbol: str, more_lots: int = 0, at_ticks: float = 0.0) -> float:
        """From a price, by default the mark, to the liquidation price after ``more_lots`` trade at it; infinite
        when flat, negative past it or without a price."""
        lots, ticks = self.after(symbol, more_lots, at_ticks)
        mark = at_ticks or self.mark_ticks(symbol)
        if not lots or mark <= 0:
            return -math.inf if lots else math.inf
        return (1 if lots > 0 else -1) * (mark - ticks) / mark * BPS

    def largest_lots(self, symbol: str, side: int, least_bps: float) -> int:
        """The largest position on a side that the balance covers with initial margin and fee, that a risk tier
        allows, and whose liquidation price is ``least_bps`` away; 0 without a mark price or equity."""
        holding, terms = self.account.holdings[symbol], self.terms[symbol]
        mark_e8 = self.mark_e8(symbol)
        if symbol not in self._rest:
            self.mark({})
        free = self._rest[symbol][1] + _booked_e8(holding)
        if terms.mode is MarginMode.CROSS and mark_e8:
            free += self.unrealised_e8(symbol, mark_e8)
        if not mark_e8 or free <= 0 or symbol in self.unknown:
            return 0

        def fits(lots: int) -> bool:
            more = side * lots - holding.position_lots
            value = at_mark_e8(holding.instrument, lots, mark_e8)
            paid = fee_e8(at_mark_e8(holding.instrument, more, mark_e8), terms.taker_fee)
            try:
                terms.tier(value)
            except MarginError:
                return False
            covered = terms.position_margin_e8(side, value) + paid <= free
            return covered and self.distance_bps(symbol, more) >= least_bps

        lot_e8 = at_mark_e8(holding.instrument, 1, mark_e8)
        low, high = 0, int(free * float(terms.leverage) / lot_e8) + 1
        # Where margin and fee end, or the distance, which goes as A / lots - C: beside it comes before halving.
        rate = (terms.position_margin_e8(side, E8) + fee_e8(E8, terms.taker_fee)) / E8
        near = max(2, int(free / (lot_e8 * rate)))
        far_bps, near_bps = (
            self.distance_bps(symbol, side * lots - holding.position_lots)
            for lots in (near // 2, near)
        )
        if near_bps < least_bps < far_bps:
            near = int(near * (far_bps - near_bps) / (least_bps + far_bps - 2 * near_bps))
        for middle in (near + 2, near - 2):
            if low < middle < high:
                low, high = (middle, high) if fits(middle) else (low, middle)
        while high - low > 1:  # fits(low), not fits(high)
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    def rate(self) -> float:
        """Maintenance margin of cross positions over the balance at mark; infinite when there is none left."""
        balance, maintained = self.account.balance_e8 + self.account.apart_e8, 0
        for symbol, terms in self.terms.items():
            holding = self.account.holdings[symbol]
            if lots := holding.position_lots:
                mark_e8 = self.mark_e8(symbol)
                if terms.mode is MarginMode.CROSS:
                    value = at_mark_e8(holding.instrument, lots, mark_e8)
                    maintained += terms.upkeep_e8(1 if lots > 0 else -1, value)
                    balance += self.unrealised_e8(symbol, mark_e8)
        return 0.0 if not maintained else maintained / balance if balance > 0 else math.inf


def _booked_e8(holding: Holding) -> int:
    return holding.realised_e8 - holding.fees_e8 - holding.funding_e8
