"""Initial and maintenance margin of positions and orders, and liquidation.

For a linear perpetual, with value V = price × quantity, leverage L, taker rate t, and the maintenance
rate and deduction of the risk tier (∓ is - for a long, + for a short):

| quantity              | formula                                          |
|-----------------------|--------------------------------------------------|
| closing fee           | V · (1 ∓ 1/L) · t                                |
| initial, position     | V/L + closing fee                                |
| initial, order        | V/L + V·t + closing fee                          |
| maintenance, position | V · rate - deduction + closing fee               |
| bankruptcy price      | E · (1 ∓ 1/L)                                    |
| liquidation, long     | (S·E·(1 - 1/L) - extra/(1-t) - deduction) / (S·(1-rate)) |
| liquidation, short    | (S·E·(1 + 1/L) + extra/(1+t) + deduction) / (S·(1+rate)) |

E is the entry price, S the quantity, extra the margin added by hand. An *isolated* position is secured
by its own margin, V taken at entry; its liquidation price moves only when the position does. *Cross*
positions are secured by the whole balance, V taken at mark, and the account is liquidated when its
balance at mark no longer exceeds the maintenance margins. The price at which that happens to one of its
positions, the others' marks fixed, is that of the table with the margin V/L replaced by the balance that
secures the position, and the closing fee added to the maintenance rate (`liquidation_ticks`).

Money is exact, in units of 1e-8, rounded up (towards +∞), as the venue's figures are. The formulas are
those of Bybit's unified trading account (help centre, "Initial Margin", "Maintenance Margin",
"Liquidation Price" of USDT contracts).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from fractions import Fraction
from functools import lru_cache
from math import ceil
from typing import Final

import msgspec

from execution.account import Account, Holding, unit_e8, value_e8
from market.errors import UsageError
from market.instruments import Instrument
from market.units import E8


class MarginError(UsageError):
    """A request breaks a margin rule; the message says which."""


class MarginMode(StrEnum):
    ISOLATED = "isolated"
    CROSS = "cross"


class Tier(msgspec.Struct, frozen=True):
    """A risk tier: margin rates and largest leverage of positions worth up to ``limit`` (quote
    currency); rates and leverage are decimal strings, so that they stay exact."""

    limit: int
    initial: str
    maintenance: str
    max_leverage: str
    #: Makes the maintenance margin continuous from tier to tier (quote currency).
    deduction: Fraction = Fraction(0)


def tiers(rows: Iterable[tuple[int, str, str, str]]) -> tuple[Tier, ...]:
    """Tiers from (limit, initial rate, maintenance rate, largest leverage), by rising limits.

    A deduction follows from the tier below: that deduction, plus that limit times the step of the
    maintenance rate. MarginError when limits or rates do not grow.
    """
    result: list[Tier] = []
    for limit, initial, maintenance, leverage in rows:
        deduction = Fraction(0)
        if result:
            below = result[-1]
            step = Fraction(maintenance) - Fraction(below.maintenance)
            if limit <= below.limit or step < 0:
                raise MarginError(f"risk tier up to {limit}: limits and rates have to grow")
            deduction = below.deduction + below.limit * step
        result.append(Tier(limit, initial, maintenance, leverage, deduction))
    if not result:
        raise MarginError("no risk tier is given")
    return tuple(result)


#: BTCUSDT as of 2026; prefer the venue's own list where it can be requested.
BTC_TIERS: Final = tiers(
    [
        (300_000, "0.0066", "0.0033", "150"),
        (2_000_000, "0.01", "0.005", "100"),
        (2_600_000, "0.0111", "0.0056", "90"),
        (3_200_000, "0.0125", "0.0063", "80"),
        (3_800_000, "0.0133", "0.0067", "75"),
        (4_400_000, "0.0143", "0.0071", "70"),
        (5_000_000, "0.0154", "0.0077", "65"),
        (5_600_000, "0.0182", "0.0091", "55"),
        (8_500_000, "0.02", "0.01", "50"),
        (10_000_000, "0.0222", "0.013", "45"),
        (14_000_000, "0.025", "0.015", "40"),
        (20_000_000, "0.0286", "0.016", "35"),
        (28_000_000, "0.0333", "0.02", "30"),
        (38_000_000, "0.04", "0.025", "25"),
        (50_000_000, "0.05", "0.029", "20"),
        (55_000_000, "0.0526", "0.03", "19"),
        (60_000_000, "0.0556", "0.035", "18"),
        (65_000_000, "0.0588", "0.036", "17"),
        (70_000_000, "0.0625", "0.038", "16"),
        (75_000_000, "0.0667", "0.04", "15"),
        (80_000_000, "0.0714", "0.045", "14"),
        (85_000_000, "0.0769", "0.05", "13"),
        (90_000_000, "0.0833", "0.055", "12"),
        (95_000_000, "0.0909", "0.06", "11"),
        (100_000_000, "0.1", "0.065", "10"),
        (105_000_000, "0.1111", "0.07", "9"),
        (110_000_000, "0.125", "0.085", "8"),
        (115_000_000, "0.1429", "0.095", "7"),
        (120_000_000, "0.1667", "0.1", "6"),
        (150_000_000, "0.2", "0.12", "5"),
        (200_000_000, "0.25", "0.14", "4"),
        (250_000_000, "0.3333", "0.18", "3"),
        (400_000_000, "0.5", "0.3", "2"),
        (800_000_000, "0.6993", "0.42", "1.43"),
        (1_200_000_000, "1", "0.6", "1"),
    ]
)


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """Margin terms of one symbol; decimal strings, so that they stay exact."""

    tiers: tuple[Tier, ...]
    leverage: str = "10"
    mode: MarginMode = MarginMode.ISOLATED
    taker_fee: str = "0.00055"

    def tier(self, value_e8: int) -> Tier:
        """Risk tier of a position of this value; MarginError when it or the leverage is too high."""
        tier = self.reached(value_e8)
        if _exact(self.leverage) > _exact(tier.max_leverage):
            raise MarginError(
                f"leverage {self.leverage} is above {tier.max_leverage}, the most for "
                f"positions up to {tier.limit}"
            )
        return tier

    def reached(self, value_e8: int) -> Tier:
        """Risk tier of a position whatever its leverage (the mark price may have raised it there);
        MarginError beyond the last tier."""
        for tier in self.tiers:
            if value_e8 <= tier.limit * E8:
                return tier
        raise MarginError(f"a position of {value_e8 / E8:,.2f} is beyond the last risk tier")

    def order_margin_e8(self, side: int, value_e8: int) -> int:
        """Initial margin of an order of this value, with the fees of opening and of closing."""
        return _up(value_e8, _order_rate(side, self.leverage, self.taker_fee))

    def position_margin_e8(self, side: int, value_e8: int) -> int:
        """Initial margin of a position of this value."""
        return _up(value_e8, _position_rate(side, self.leverage, self.taker_fee))

    def maintenance_e8(self, side: int, value_e8: int) -> int:
        """Maintenance margin of a position of this value."""
        return self._maintained_e8(side, value_e8, self.reached(value_e8))

    def upkeep_e8(self, side: int, value_e8: int) -> int:
        """The same, in the last tier beyond it."""
        held = (tier for tier in self.tiers if value_e8 <= tier.limit * E8)
        return self._maintained_e8(side, value_e8, next(held, self.tiers[-1]))

    def _maintained_e8(self, side: int, value_e8: int, tier: Tier) -> int:
        rate = _exact(tier.maintenance) + _closing_rate(side, self.leverage, self.taker_fee)
        return ceil(value_e8 * rate - tier.deduction * E8)


def liquidation_ticks(
    terms: Terms, side: int, per_tick_e8: float, value_e8: float, backing_e8: float
) -> float:
    """Price in ticks at which ``backing_e8``, less the loss, is the maintenance margin.

    ``value_e8`` is the value at entry and ``per_tick_e8`` its change by a tick. Not above 0 where no price
    liquidates a long, or where every price liquidates a short. An isolated position stays in its tier.
    """
    isolated, price = terms.mode is MarginMode.ISOLATED, 0.0
    fee = 0.0 if isolated else float(_closing_rate(side, terms.leverage, terms.taker_fee))
    for tier in terms.tiers:
        rate = float(tier.maintenance) + fee
        rest = value_e8 - side * (backing_e8 + float(tier.deduction) * E8)
        price = rest / (per_tick_e8 * (1 - side * rate))
        # Maintenance is convex in the value: the first tier that holds its own price is the one.
        if (value_e8 if isolated else price * per_tick_e8) <= tier.limit * E8:
            break
    return price


# Every order needs a few exact rates; they are cached.


def _up(value_e8: int, rate: Fraction) -> int:
    """Value × rate, rounded up."""
    return -(-value_e8 * rate.numerator // rate.denominator)


@lru_cache(maxsize=1024)
def _exact(text: str) -> Fraction:
    """A decimal string as an exact fraction."""
    return Fraction(text)


@lru_cache(maxsize=1024)
def _closing_rate(side: int, leverage: str, taker_fee: str) -> Fraction:
    """Rate of the fee of closing at the bankruptcy price."""
    return (1 - side / _exact(leverage)) * _exact(taker_fee)


@lru_cache(maxsize=1024)
def _position_rate(side: int, leverage: str, taker_fee: str) -> Fraction:
    return 1 / _exact(leverage) + _closing_rate(side, leverage, taker_fee)


@lru_cache(maxsize=1024)
def _order_rate(side: int, leverage: str, taker_fee: str) -> Fraction:
    return _position_rate(side, leverage, taker_fee) + _exact(taker_fee)


class Security(msgspec.Struct, frozen=True, kw_only=True):
    """Exposure and prices of one position. Prices are exact ticks; ``liquidation_ticks`` is None in
    cross mode, and where no price above zero would liquidate the position."""

    initial_e8: int
    maintenance_e8: int
    bankruptcy_ticks: Fraction
    liquidation_ticks: Fraction | None


class OpenOrder(msgspec.Struct, frozen=True):
    """An open order as far as it needs margin."""

    symbol: str
    side: int
    price_ticks: int
    leaves_lots: int


class Margin:
    """Margin of an account: reserved for orders and positions, available, and liquidation.

    ``terms`` are those of each symbol; ``marks`` are mark prices at 1e-8 by symbol, needed wherever
    there is a position (KeyError). Isolated positions may be given extra margin with `add`.
    """

    def __init__(self, account: Account, terms: Mapping[str, Terms]) -> None:
        self.account = account
        self.terms = dict(terms)
        self.extra_e8: dict[str, int] = {}

    def add(self, symbol: str, amount_e8: int) -> None:
        """Add extra margin to an isolated position (negative takes it back); MarginError otherwise."""
        extra = self.extra_e8.get(symbol, 0) + amount_e8
        if extra < 0:
            raise MarginError(f"{symbol}: {extra / E8:.8f} of extra margin would be left")
        if self.terms[symbol].mode is not MarginMode.ISOLATED:
            raise MarginError(f"{symbol}: extra margin is for isolated positions")
        if not self.account.holdings[symbol].position_lots:
            raise MarginError(f"{symbol}: there is no position to secure")
        self.extra_e8[symbol] = extra

    def security(self, symbol: str, mark_e8: int) -> Security | None:
        """Exposure, bankruptcy and liquidation price of a symbol's position; None when flat."""
        holding, terms = self.account.holdings[symbol], self.terms[symbol]
        lots = holding.position_lots
        if not lots:
            return None
        side = 1 if lots > 0 else -1
        isolated = terms.mode is MarginMode.ISOLATED
        value = abs(holding.cost_e8) if isolated else at_mark_e8(holding.instrument, lots, mark_e8)
        entry = holding.entry_ticks
        assert entry is not None
        return Security(
            initial_e8=terms.position_margin_e8(side, value),
            maintenance_e8=terms.maintenance_e8(side, value),
            bankruptcy_ticks=entry * (1 - side / _exact(terms.leverage)),
            liquidation_ticks=self._liquidation(holding, terms, side) if isolated else None,
        )

    def _liquidation(self, holding: Holding, terms: Terms, side: int) -> Fraction | None:
        value = abs(holding.cost_e8)
        tier = terms.reached(value)
        extra = Fraction(self.extra_e8.get(holding.instrument.symbol, 0))
        rest = value * (1 - side / _exact(terms.leverage))
        rest -= side * (extra / (1 - side * _exact(terms.taker_fee)) + tier.deduction * E8)
        lots = abs(holding.position_lots) * unit_e8(holding.instrument)
        price = rest / (lots * (1 - side * _exact(tier.maintenance)))
        return price if price > 0 else None

    # -- the account -----------------------------------------------------------------------------

    def orders_e8(self, orders: Sequence[OpenOrder]) -> int:
        """Margin reserved for open orders.

        Orders that reduce a position need none: up to its size they are free, the cheapest first.
        """
        total = 0
        for symbol, terms in self.terms.items():
            holding = self.account.holdings[symbol]
            for side in (1, -1):
                free = max(0, -side * holding.position_lots)
                mine = [o for o in orders if o.symbol == symbol and o.side == side]
                for order in sorted(mine, key=lambda o: o.price_ticks):
                    reduces = min(free, order.leaves_lots)
                    free -= reduces
                    lots = order.leaves_lots - reduces
                    value = value_e8(holding.instrument, order.price_ticks, lots)
                    total += terms.order_margin_e8(side, value)
        return total

    def available_e8(self, marks: Mapping[str, int], orders: Sequence[OpenOrder] = ()) -> int:
        """Available balance for new orders; negative when positions have used up their margins.

        Unrealised profit and loss count in cross mode only; those of an isolated position are its own.
        """
        free = self.account.balance_e8 - self.orders_e8(orders) - sum(self.extra_e8.values())
        for symbol, security in self._securities(marks):
            free -= security.initial_e8
            if self.terms[symbol].mode is MarginMode.CROSS:
                free += self.unrealised_e8(symbol, marks[symbol])
        return free

    def unrealised_e8(self, symbol: str, mark_e8: int) -> int:
        """Unrealised profit at the mark price, rounded down; the mark may be finer than a tick."""
        holding = self.account.holdings[symbol]
        lots = holding.position_lots
        side = 1 if lots > 0 else -1
        exact = side * _at_mark(holding.instrument, lots, mark_e8) - holding.cost_e8
        return exact.numerator // exact.denominator

    def liquidated(self, marks: Mapping[str, int]) -> list[str]:
        """Symbols whose positions are liquidated at these mark prices.

        Isolated ones whose mark has reached their liquidation price, and all cross ones when the
        balance at mark is no more than their maintenance margins.
        """
        isolated: list[str] = []
        cross: list[str] = []
        balance = self.account.balance_e8 - sum(self.extra_e8.values())
        maintained = 0
        for symbol, security in self._securities(marks):
            holding = self.account.holdings[symbol]
            side = 1 if holding.position_lots > 0 else -1
            if self.terms[symbol].mode is MarginMode.CROSS:
                cross.append(symbol)
                balance += self.unrealised_e8(symbol, marks[symbol])
                maintained += security.maintenance_e8
                continue
            balance -= security.initial_e8
            price = security.liquidation_ticks
            mark = Fraction(marks[symbol], E8) / Fraction(holding.instrument.tick)
            if price is not None and side * (mark - price) <= 0:
                isolated.append(symbol)
        return isolated + cross if cross and balance <= maintained else isolated

    def _securities(self, marks: Mapping[str, int]) -> list[tuple[str, Security]]:
        securities = []
        for symbol in self.terms:
            if self.account.holdings[symbol].position_lots:
                security = self.security(symbol, marks[symbol])
                assert security is not None
                securities.append((symbol, security))
        return securities


def _at_mark(instrument: Instrument, lots: int, mark_e8: int) -> Fraction:
    return abs(lots) * _exact(instrument.lot) * mark_e8


def at_mark_e8(instrument: Instrument, lots: int, mark_e8: int) -> int:
    """Notional of a position at a mark price in 1e-8 units, rounded up."""
    return _up(abs(lots) * mark_e8, _exact(instrument.lot))
