"""The reference half of decoding: a frame's data, as parsed JSON, to event rows, or a named refusal.

It reads every frame that is valid, slowly and by the letter, and is the only place that says what is
wrong with one. Decimal strings become integers of the grid without a float in between.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import numpy as np

from market.events import Flag
from market.instruments import Instrument
from market.wire import stream
from market.wire.stream import Words

_DECIMAL: Final = re.compile(r"(-?)([0-9]+)(?:\.([0-9]+))?")
_MAX_NUMBER: Final = 40


class RejectedError(Exception):
    """Why the reference refuses a line."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


class Grid(msgspec.Struct, frozen=True):
    """A tick or lot as ``unit * 10^-places``."""

    unit: int
    places: int


class Quote(msgspec.Struct, frozen=True):
    """A symbol and the grid that its prices and quantities stand on."""

    symbol: str
    tick: Grid
    lot: Grid


def quote_of(instrument: Instrument) -> Quote:
    """The grid of an instrument; ValueError when tick or lot is not a positive decimal."""
    return Quote(instrument.symbol, grid_of(instrument.tick), grid_of(instrument.lot))


def book_rows(quote: Quote, data: dict[str, Any]) -> tuple[int, Words]:
    """(update id, rows) of a book frame's data; bids first."""
    _check_symbol(quote, data, "s")
    update_id = whole_in(data, "u", stream.MAX_UNITS)
    sides = []
    for side, name in ((1, "b"), (-1, "a")):
        levels = field_in(data, name, list)
        if len(levels) > stream.MAX_LEVELS:
            raise RejectedError("level flood", f"{len(levels)} levels in {name}")
        sides += [(side, level) for level in levels]
    rows = np.zeros((max(1, len(sides)), stream.WORDS), np.int64)
    for row, (side, level) in zip(rows, sides, strict=False):
        if type(level) is not list or len(level) != 2:
            raise RejectedError("unknown shape", "a level is [price, quantity]")
        row[stream.PRICE_WORD] = _price(level[0], quote.tick)
        row[stream.QTY_WORD] = _quantity(level[1], quote.lot)
        row[stream.BITS_WORD] = stream.bits(0, side, 0, 0)
    return update_id, rows


def print_rows(quote: Quote, data: list[Any]) -> Words:
    """Rows of a trade or liquidation frame's data."""
    if len(data) > stream.MAX_PRINTS:
        raise RejectedError("trade flood", f"{len(data)} trades or liquidations")
    rows = np.zeros((len(data), stream.WORDS), np.int64)
    for row, entry in zip(rows, data, strict=True):
        if type(entry) is not dict:
            raise RejectedError("wrong type", "data holds something that is no object")
        _check_symbol(quote, entry, "s")
        row[stream.EXCHANGE_WORD] = whole_in(entry, "T", stream.MAX_MS) * 1_000_000
        row[stream.UPDATE_WORD] = whole_in(entry, "seq", stream.MAX_UNITS) if "seq" in entry else 0
        row[stream.PRICE_WORD] = _price(field_in(entry, "p", str), quote.tick)
        row[stream.QTY_WORD] = _quantity(field_in(entry, "v", str), quote.lot)
        if row[stream.QTY_WORD] == 0:
            raise RejectedError("quantity not positive", "a trade of nothing")
        side = {"Buy": 1, "Sell": -1}.get(text_in(entry, "S"))
        if side is None:
            raise RejectedError("unknown side", f"{entry['S'][:20]!r}")
        flags = 0
        for name, flag in (("BT", Flag.BLOCK), ("RPI", Flag.RPI)):
            if name in entry and field_in(entry, name, bool):
                flags |= flag
        row[stream.BITS_WORD] = stream.bits(0, side, int(flags), 0)
    return rows


def ticker_rows(quote: Quote, data: dict[str, Any]) -> Words:
    """One row for each known field that the frame carries with a value."""
    _check_symbol(quote, data, "symbol")
    rows = []
    for name, text in data.items():
        known = stream.TICKER_FIELDS.get(name)
        if known is None or text == "":
            continue
        field, places = known
        row = [0] * stream.WORDS
        row[stream.VALUE_WORD] = _units(
            text, Grid(1, places), name, "finer than 1e-8", (1 << 63) - 1
        )
        row[stream.BITS_WORD] = stream.bits(0, 0, 0, int(field))
        rows.append(row)
    return np.array(rows, np.int64).reshape(-1, stream.WORDS)


def _check_symbol(quote: Quote, data: dict[str, Any], name: str) -> None:
    if text_in(data, name) != quote.symbol:
        raise RejectedError("wrong symbol", f"{data[name][:32]!r} in a frame of {quote.symbol}")


# -- values ----------------------------------------------------------------------------------------


def field_in(data: Mapping[str, Any], name: str, kind: type) -> Any:
    if name not in data:
        raise RejectedError("missing field", name)
    value = data[name]
    if type(value) is not kind:
        raise RejectedError("wrong type", f"{name} is not {kind.__name__}")
    return value


def text_in(data: Mapping[str, Any], name: str) -> str:
    value: str = field_in(data, name, str)
    return value


def whole_in(data: Mapping[str, Any], name: str, limit: int) -> int:
    value: int = field_in(data, name, int)
    if not 0 <= value <= limit:
        raise RejectedError("absurd size", f"{name} = {str(value)[:_MAX_NUMBER]}")
    return value


def _units(text: Any, grid: Grid, what: str, off: str, limit: int) -> int:
    """A decimal string as an exact number of grid units; ``off`` is the reason when it is none."""
    if type(text) is not str:
        raise RejectedError("wrong type", f"{what} is not a string")
    parts = _DECIMAL.fullmatch(text) if len(text) <= _MAX_NUMBER else None
    if parts is None:
        reason = "absurd size" if len(text) > _MAX_NUMBER else "wrong type"
        raise RejectedError(reason, f"{what} {text[:_MAX_NUMBER]!r} is no decimal number")
    sign, whole, fraction = parts[1], parts[2], parts[3] or ""
    scaled = int(whole + fraction) * 10**grid.places
    count: int
    count, rest = divmod(scaled, grid.unit * 10 ** len(fraction))
    if rest:
        raise RejectedError(off, f"{what} {text}")
    if count > limit:
        raise RejectedError("absurd size", f"{what} {text}")
    return -count if sign else count


def _price(text: Any, tick: Grid) -> int:
    ticks = _units(text, tick, "price", "price off tick", stream.MAX_UNITS)
    if ticks <= 0:
        raise RejectedError("price not positive", f"price {text}")
    return ticks


def _quantity(text: Any, lot: Grid) -> int:
    lots = _units(text, lot, "quantity", "quantity off lot", stream.MAX_UNITS)
    if lots < 0:
        raise RejectedError("negative quantity", f"quantity {text}")
    return lots


def grid_of(decimal: str) -> Grid:
    """A positive decimal string as ``unit * 10^-places``; ValueError when it is not one."""
    parts = _DECIMAL.fullmatch(decimal) if len(decimal) <= 16 else None
    if parts is None or parts[1] or not int(parts[2] + (parts[3] or "")):
        raise ValueError(f"{decimal[:16]!r} is not a positive decimal number")
    fraction = (parts[3] or "").rstrip("0")
    return Grid(int(parts[2] + fraction), len(fraction))
