"""Instruments: tick size, lot size, and exact conversion of prices and quantities to integers.

A price in ticks times ``tick`` is the price in quote currency; a quantity in lots times ``lot`` is
the quantity in base currency. Both scales are exact decimals, never floats.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal

import msgspec


class Instrument(msgspec.Struct, frozen=True, kw_only=True):
    """One linear perpetual as the venue lists it.

    ``tick`` and ``lot`` are decimal strings so that they stay exact; fees are fractions of notional
    (0.00055 = 5.5 bps); ``source`` names where the figures were read, ``valid_from`` (epoch ns) since
    when they are valid.
    """

    symbol: str
    tick: str
    lot: str
    min_qty: str
    min_notional: str
    taker_fee: str = "0.00055"
    maker_fee: str = "0.0002"
    valid_from: int = 0
    source: str = "built in"

    @property
    def tick_size(self) -> float:
        return float(self.tick)

    @property
    def lot_size(self) -> float:
        return float(self.lot)

    def price_ticks(self, price: str | Decimal) -> int:
        """Exact number of ticks; ValueError when the price is no multiple of the tick."""
        return _units(Decimal(price), Decimal(self.tick), f"price {price} of {self.symbol}", "tick")

    def qty_lots(self, qty: str | Decimal) -> int:
        """Exact number of lots; ValueError when the quantity is no multiple of the lot."""
        return _units(Decimal(qty), Decimal(self.lot), f"quantity {qty} of {self.symbol}", "lot")

    def price(self, ticks: int) -> Decimal:
        """The price of a number of ticks, exact."""
        return Decimal(self.tick) * ticks

    def qty(self, lots: int) -> Decimal:
        """The quantity of a number of lots, exact."""
        return Decimal(self.lot) * lots


def _units(value: Decimal, unit: Decimal, name: str, grid: str) -> int:
    units, rest = divmod(value, unit)
    if rest:
        raise ValueError(f"{name} is not a multiple of the {grid} {unit}")
    return int(units)


_INVERSE = re.compile(r"[A-Z0-9]+USD([HMUZ][0-9]{2})?")
_DATED = re.compile(r"[A-Z0-9]+-[0-9]{1,2}[A-Z]{3}[0-9]{2}(-.+)?")


def refusal(symbol: str) -> str:
    """Why a symbol is not taken in, one line; empty for what may be a linear perpetual.

    Those are settled in USDT (BTCUSDT) or USDC (BTCPERP). Of the others positions, profit or funding
    would be wrong: an inverse contract is worth a fixed sum of dollars, and settled in its coin.
    """
    if _INVERSE.fullmatch(symbol):
        kind = "an inverse contract, settled in its coin"
    elif _DATED.fullmatch(symbol):
        kind = "a contract with a delivery date"
    else:
        return ""
    return f"{symbol}: {kind}; only linear perpetuals are taken in (BTCUSDT, or BTCPERP in USDC)"


#: Used where neither the capture nor an events partition names an instrument.
BUILT_IN: dict[str, Instrument] = {
    "BTCUSDT": Instrument(
        symbol="BTCUSDT", tick="0.1", lot="0.001", min_qty="0.001", min_notional="5"
    ),
    "ETHUSDT": Instrument(
        symbol="ETHUSDT", tick="0.01", lot="0.01", min_qty="0.01", min_notional="5"
    ),
}

#: Whose bars enter a symbol's cross-asset features.
LEADER: dict[str, str] = {"BTCUSDT": "ETHUSDT", "ETHUSDT": "BTCUSDT"}


def leader(symbol: str) -> str:
    """The symbol whose bars lead this one's: ETH for BTC, BTC for everything else."""
    return LEADER.get(symbol, "BTCUSDT")


def partition_instrument(metadata: Mapping[str, str], symbol: str) -> Instrument:
    """The instrument of an events partition, as its metadata names it.

    A partition names its own, because a foreign recording can have a finer lot than the built-in
    instrument; KeyError when it does not and no instrument is built in.
    """
    if "instrument" in metadata:
        return msgspec.json.decode(metadata["instrument"], type=Instrument)
    return BUILT_IN[symbol]
