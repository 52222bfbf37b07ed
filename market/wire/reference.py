"""The reference reader: a frame's data, as parsed JSON, to event rows or a named rejection.

It reads every valid frame, slowly and strictly, and is the only place that names what is wrong with
one. Decimal strings become integers of the grid without a float in between.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import numpy as np

from market.events import EVENT, PLACES, SUMS, Events, Field, Flag
from market.instruments import Instrument
from market.units import MS_NS
from market.wire.stream import MAX_LEVELS, MAX_MS, MAX_PRINTS, MAX_UNITS, NEVER
from market.wire.topics import TICKER_FIELDS

_DECIMAL: Final = re.compile(r"(-?)([0-9]+)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]{1,2}))?")
_MAX_NUMBER: Final = 40
#: Decimals of a tick or lot at most, and of the whole numbers that they are made of.
_MAX_PLACES: Final = 12


class RejectedError(Exception):
    """Why the reference rejects a line."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


class Unit(msgspec.Struct, frozen=True):
    """A tick or lot as ``unit * 10^-places``."""

    unit: int
    places: int


class Grid(msgspec.Struct, frozen=True):
    """The grid of a symbol's prices and quantities."""

    symbol: str
    tick: Unit
    lot: Unit


def grid_of(instrument: Instrument) -> Grid:
    """The grid of an instrument; ValueError when tick or lot is not a positive decimal."""
    return Grid(instrument.symbol, _unit(instrument.tick), _unit(instrument.lot))


def book_rows(grid: Grid, data: dict[str, Any]) -> tuple[int, Events]:
    """(update id, rows) of a book frame's data; bids first."""
    _check_symbol(grid, data, "s")
    update_id = int_in(data, "u", MAX_UNITS)
    levels = []
    for side, name in ((1, "b"), (-1, "a")):
        pairs = field_in(data, name, list)
        if len(pairs) > MAX_LEVELS:
            raise RejectedError("level flood", f"{len(pairs)} levels in {name}")
        levels += [(side, pair) for pair in pairs]
    rows = np.zeros(max(1, len(levels)), EVENT)
    if levels:
        sides, prices, quantities = zip(*(_level(grid, *level) for level in levels), strict=True)
        rows["side"], rows["price_ticks"], rows["qty_lots"] = sides, prices, quantities
    return update_id, rows


def _level(grid: Grid, side: int, pair: Any) -> tuple[int, int, int]:
    if type(pair) is not list or len(pair) != 2:
        raise RejectedError("unknown shape", "a level is [price, quantity]")
    return side, _price(pair[0], grid.tick), _quantity(pair[1], grid.lot)


def print_rows(grid: Grid, data: list[Any]) -> Events:
    """Rows of a trade or liquidation frame's data."""
    if len(data) > MAX_PRINTS:
        raise RejectedError("trade flood", f"{len(data)} trades or liquidations")
    rows = np.zeros(len(data), EVENT)
    for row, entry in zip(rows, data, strict=True):
        if type(entry) is not dict:
            raise RejectedError("wrong type", "data holds something that is no object")
        _check_symbol(grid, entry, "s")
        row["exchange_ns"] = int_in(entry, "T", MAX_MS) * MS_NS
        row["update_id"] = int_in(entry, "seq", MAX_UNITS) if "seq" in entry else 0
        row["price_ticks"] = _price(field_in(entry, "p", str), grid.tick)
        row["qty_lots"] = _quantity(field_in(entry, "v", str), grid.lot)
        if row["qty_lots"] == 0:
            raise RejectedError("quantity not positive", "a trade of nothing")
        side = {"Buy": 1, "Sell": -1}.get(str_in(entry, "S"))
        if side is None:
            raise RejectedError("unknown side", f"{entry['S'][:20]!r}")
        flags = 0
        for name, flag in (("BT", Flag.BLOCK), ("RPI", Flag.RPI)):
            if name in entry and field_in(entry, name, bool):
                flags |= flag
        row["side"], row["flags"] = side, flags
    return rows


def ticker_rows(grid: Grid, data: dict[str, Any]) -> tuple[Events, list[RejectedError]]:
    """One row for each known field that the frame carries with a value, and the fields left out.

    A field is left out alone when its value is malformed, too fine or too large.
    """
    _check_symbol(grid, data, "symbol")
    values: list[tuple[Field, int]] = []
    left_out = []
    for name, text in data.items():
        field = TICKER_FIELDS.get(name)
        if field is None or text == "":
            continue
        finer = "" if field in SUMS else f"finer than {10.0 ** -PLACES[field]:g}"
        try:
            values.append((field, _units(text, Unit(1, PLACES[field]), name, finer, NEVER)))
        except RejectedError as error:
            left_out.append(RejectedError(f"{name} left out", f"{error.reason}: {error.detail}"))
    rows = np.zeros(len(values), EVENT)
    if values:
        rows["field"], rows["value"] = zip(*values, strict=True)
    return rows, left_out


def _check_symbol(grid: Grid, data: dict[str, Any], name: str) -> None:
    if str_in(data, name) != grid.symbol:
        raise RejectedError("wrong symbol", f"{data[name][:32]!r} in a frame of {grid.symbol}")


# -- values ----------------------------------------------------------------------------------------


def field_in(data: Mapping[str, Any], name: str, kind: type) -> Any:
    """A field of exactly this type; RejectedError otherwise."""
    if name not in data:
        raise RejectedError("missing field", name)
    value = data[name]
    if type(value) is not kind:
        raise RejectedError("wrong type", f"{name} is not {kind.__name__}")
    return value


def str_in(data: Mapping[str, Any], name: str) -> str:
    """A string field of a frame; RejectedError when it is missing or of another type."""
    value: str = field_in(data, name, str)
    return value


def int_in(data: Mapping[str, Any], name: str, limit: int) -> int:
    """An integer field in [0, limit]; RejectedError otherwise."""
    value: int = field_in(data, name, int)
    if not 0 <= value <= limit:
        raise RejectedError("absurd size", f"{name} = {str(value)[:_MAX_NUMBER]}")
    return value


def _units(text: Any, unit: Unit, name: str, off_grid: str, limit: int) -> int:
    """A decimal string as an exact number of units; ``off_grid`` is the reason when it is none.

    Without a reason, what is less than a unit is cut.
    """
    if type(text) is not str:
        raise RejectedError("wrong type", f"{name} is not a string")
    parts = _DECIMAL.fullmatch(text) if len(text) <= _MAX_NUMBER else None
    if parts is None:
        reason = "absurd size" if len(text) > _MAX_NUMBER else "wrong type"
        raise RejectedError(reason, f"{name} {text[:_MAX_NUMBER]!r} is no decimal number")
    digits, shift = _digits(parts)
    shift += unit.places
    count: int
    count, rest = divmod(digits * 10 ** max(shift, 0), unit.unit * 10 ** max(-shift, 0))
    if rest and off_grid:
        raise RejectedError(off_grid, f"{name} {text}")
    if count > limit:
        raise RejectedError("absurd size", f"{name} {text}")
    return -count if parts[1] else count


def _digits(parts: re.Match[str]) -> tuple[int, int]:
    """A decimal number as an integer and the power of ten that it is multiplied by."""
    fraction = parts[3] or ""
    return int(parts[2] + fraction), int(parts[4] or 0) - len(fraction)


def _price(text: Any, tick: Unit) -> int:
    ticks = _units(text, tick, "price", "price off tick", MAX_UNITS)
    if ticks <= 0:
        raise RejectedError("price not positive", f"price {text}")
    return ticks


def _quantity(text: Any, lot: Unit) -> int:
    lots = _units(text, lot, "quantity", "quantity off lot", MAX_UNITS)
    if lots < 0:
        raise RejectedError("negative quantity", f"quantity {text}")
    return lots


def _unit(decimal: str) -> Unit:
    """A positive decimal string as ``unit * 10^-places``; ValueError when it is not one."""
    parts = _DECIMAL.fullmatch(decimal) if len(decimal) <= 16 else None
    digits, shift = _digits(parts) if parts else (0, 0)
    while digits and digits % 10 == 0 and shift < 0:
        digits, shift = digits // 10, shift + 1
    if parts is None or parts[1] or not digits or abs(shift) > _MAX_PLACES:
        raise ValueError(f"{decimal[:16]!r} is not a positive decimal number of at most 1e-12")
    return Unit(digits * 10 ** max(shift, 0), max(-shift, 0))
