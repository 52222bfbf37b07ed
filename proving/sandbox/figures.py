"""Decimal strings of the venue, and the integers behind them.

Prices stand on ticks and quantities on lots; money and rates are integers at 1e-8.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any, Final

from market.instruments import Instrument
from market.units import E8
from proving.sandbox.refusal import RefusedError

_NUMBER: Final = re.compile(r"[0-9]{1,15}(\.[0-9]{1,18})?")


def money(value_e8: int) -> str:
    """An amount at 1e-8 without trailing zeros: 65370500000 → "653.705"."""
    whole, fraction = divmod(abs(value_e8), E8)
    text = f"{whole}.{fraction:08d}".rstrip("0").rstrip(".")
    return f"-{text}" if value_e8 < 0 else text


def rounded(value_e8: int, places: int) -> str:
    """An amount at 1e-8 with so many decimals, the rest rounded."""
    return f"{Decimal(value_e8).scaleb(-8):.{places}f}"


def number(text: Any, what: str) -> Decimal:
    """A decimal string from a request; refused as the venue refuses a bad parameter."""
    if not isinstance(text, str) or not _NUMBER.fullmatch(text):
        raise RefusedError(10001, f"params error: {what} invalid")
    return Decimal(text)


class Figures:
    """How one instrument's prices and quantities are written.

    Market data are padded to the instrument's scale; a client's own affairs, and candles, have no
    trailing zeros.
    """

    def __init__(self, instrument: Instrument) -> None:
        self.instrument = instrument
        self.tick_e8 = round(instrument.tick_size * E8)
        self._tick, self._lot = Decimal(instrument.tick), Decimal(instrument.lot)
        # The venue pads prices of linear perpetuals to two decimals at least.
        self.price_places = max(2, _places(self._tick))
        self.qty_places = _places(self._lot)

    def price(self, ticks: int) -> str:
        return _plain(self._tick * ticks)

    def qty(self, lots: int) -> str:
        return _plain(self._lot * lots)

    def padded_price(self, ticks: int) -> str:
        return f"{self._tick * ticks:.{self.price_places}f}"

    def padded_qty(self, lots: int) -> str:
        return f"{self._lot * lots:.{self.qty_places}f}"

    def ticks(self, text: Any, what: str = "price") -> int:
        """Ticks of a price in a request; refused off the grid and at zero."""
        ticks, rest = divmod(number(text, what), self._tick)
        if rest or not ticks:
            raise RefusedError(110003, "price is invalid")
        return int(ticks)

    def lots(self, text: Any) -> int:
        """Lots of a quantity in a request; what is finer than a lot is cut off, as the venue does."""
        return int(number(text, "qty") // self._lot)


def _plain(value: Decimal) -> str:
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _places(step: Decimal) -> int:
    return max(0, -int(step.normalize().as_tuple().exponent))
