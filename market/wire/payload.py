"""The ``data`` of each family of topics, read byte by byte into event rows, compiled.

`market.wire.reference` reads the same data as parsed JSON. Keys come in any order that allows one
pass. A reader returns the position after the data; NOT_PLAIN where the reference must decide, and
NO_ROOM where the buffer of rows is full.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from market.events import PLACES, SUMS, Events, Flag, begin_row
from market.kernel import inlined, kernel
from market.units import MS_NS
from market.wire.jsontext import (
    CLOSE_LIST,
    CLOSE_OBJECT,
    COMMA,
    MAX_INT,
    NOT_PLAIN,
    OPEN_LIST,
    OPEN_OBJECT,
    QUOTE,
    Text,
    decimal,
    integer,
    key_at,
    packed,
    same,
    scaled,
    starts,
    string_end,
)
from market.wire.stream import MAX_LEVELS, MAX_MS, MAX_PRINTS, MAX_UNITS
from market.wire.topics import TICKER_FIELDS

NO_ROOM: Final = -2

_RPI: Final = int(Flag.RPI)
_BLOCK: Final = int(Flag.BLOCK)

_S_LOWER = packed("s")[0]
_S_UPPER = packed("S")[0]
_B = packed("b")[0]
_A = packed("a")[0]
_U = packed("u")[0]
_SEQ = packed("seq")[0]
_T_UPPER = packed("T")[0]
_V = packed("v")[0]
_P = packed("p")[0]
_L_UPPER = packed("L")[0]
_I = packed("i")[0]
_BT = packed("BT")[0]
_RPI_KEY = packed("RPI")[0]
_SYMBOL = packed("symbol")[0]

_BUY: Final = np.frombuffer(b'"Buy"', np.uint8)
_SELL: Final = np.frombuffer(b'"Sell"', np.uint8)
_TRUE: Final = np.frombuffer(b"true", np.uint8)
_FALSE: Final = np.frombuffer(b"false", np.uint8)

#: Ticker fields: the packed name, the field's number, its decimals, and whether further ones are cut.
_FIELD_KEYS: Final = np.array(
    [
        [*packed(name), int(field), PLACES[field], field in SUMS]
        for name, field in TICKER_FIELDS.items()
    ],
    np.int64,
)
_SYMBOL_BIT: Final = 1 << 40  #: beyond the bits of the ticker fields


@kernel
def _own_symbol(topic: Any, text: Text, at: int, end: int) -> int:
    """The position after a string that is the topic's symbol, NOT_PLAIN for any other."""
    after = string_end(text, at, end)
    size = topic.name_size - topic.symbol_start
    if after < 0 or not same(text, at + 1, after - 1, topic.name, topic.symbol_start, size):
        return NOT_PLAIN
    return int(after)


@inlined
def _price(topic: Any, text: Text, at: int, end: int) -> tuple[int, int]:
    """A quoted price; (ticks, -1 off the grid, and the position after)."""
    value, decimals, at = decimal(text, at, end)
    if at < 0:
        return -1, NOT_PLAIN
    return scaled(value, decimals, topic.tick_places, topic.tick_unit, MAX_UNITS), at


@inlined
def _quantity(topic: Any, text: Text, at: int, end: int) -> tuple[int, int]:
    """A quoted quantity; (lots, -1 off the grid, and the position after)."""
    value, decimals, at = decimal(text, at, end)
    if at < 0:
        return -1, NOT_PLAIN
    return scaled(value, decimals, topic.lot_places, topic.lot_unit, MAX_UNITS), at


@kernel
def _levels(
    topic: Any, text: Text, at: int, end: int, side: int, rows: Events, n: int
) -> tuple[int, int]:
    """A list of ``["price","quantity"]``; (rows written so far, position after)."""
    if at + 1 >= end or text[at] != OPEN_LIST:
        return n, NOT_PLAIN
    if text[at + 1] == CLOSE_LIST:
        return n, at + 2
    first = n
    while True:
        if at + 1 >= end or text[at + 1] != OPEN_LIST:
            return n, NOT_PLAIN
        price, at = _price(topic, text, at + 2, end)
        if at < 0 or at >= end or text[at] != COMMA:
            return n, NOT_PLAIN
        qty, at = _quantity(topic, text, at + 1, end)
        if at < 0 or at + 1 >= end or text[at] != CLOSE_LIST:
            return n, NOT_PLAIN
        if price <= 0 or qty < 0 or n - first >= MAX_LEVELS:
            return n, NOT_PLAIN
        if n >= len(rows):
            return n, NO_ROOM
        begin_row(rows, n, 0, 0, 0, 0, 0)
        rows[n].price_ticks = price
        rows[n].qty_lots = qty
        rows[n].side = side
        n += 1
        at += 1
        if text[at] == CLOSE_LIST:
            return n, at + 1
        if text[at] != COMMA:
            return n, NOT_PLAIN


@kernel
def book(topic: Any, text: Text, at: int, end: int, rows: Events, n: int) -> tuple[int, int, int]:
    """The ``data`` of a book frame; (update id, rows written so far, position after)."""
    update_id = 0
    seen = 0
    first = n
    while True:
        low, high, at = key_at(text, at + 1, end)
        if at < 0 or high != 0:
            return 0, n, NOT_PLAIN
        if low == _S_LOWER:
            bit = 1
            at = _own_symbol(topic, text, at, end)
        elif low == _B:
            bit = 2
            n, at = _levels(topic, text, at, end, 1, rows, n)
        elif low == _A:
            # Rows are bids first; the reverse order is rare enough to be handed over.
            bit = 4
            if not seen & 2:
                return 0, n, NOT_PLAIN
            n, at = _levels(topic, text, at, end, -1, rows, n)
        elif low == _U:
            bit = 8
            update_id, at = integer(text, at, end)
            if update_id > MAX_UNITS:
                return 0, n, NOT_PLAIN
        elif low == _SEQ:
            bit = 16
            _, at = integer(text, at, end)
        else:
            return 0, n, NOT_PLAIN
        if at < 0 or at >= end or seen & bit:
            return 0, n, min(at, NOT_PLAIN)
        seen |= bit
        if text[at] == CLOSE_OBJECT:
            break
        if text[at] != COMMA:
            return 0, n, NOT_PLAIN
    if seen & 15 != 15:
        return 0, n, NOT_PLAIN
    if n == first:
        if n >= len(rows):
            return 0, n, NO_ROOM
        begin_row(rows, n, 0, 0, 0, 0, 0)
        n += 1
    return update_id, n, at + 1


@kernel
def _print(topic: Any, text: Text, at: int, end: int, row: Any) -> int:
    """One trade or liquidation, from its first brace to its last; the position of the last."""
    seen = 0
    while True:
        low, high, at = key_at(text, at + 1, end)
        if at < 0 or high != 0:
            return NOT_PLAIN
        if low == _T_UPPER:
            bit = 1
            ms, at = integer(text, at, end)
            if ms > MAX_MS:
                return NOT_PLAIN
            row.exchange_ns = ms * MS_NS
        elif low == _S_LOWER:
            bit = 2
            at = _own_symbol(topic, text, at, end)
        elif low == _S_UPPER:
            bit = 4
            side = starts(text, at, end, _BUY) - starts(text, at, end, _SELL)
            if side == 0:
                return NOT_PLAIN
            row.side = side
            at += len(_BUY) if side > 0 else len(_SELL)
        elif low == _V:
            bit = 8
            row.qty_lots, at = _quantity(topic, text, at, end)
        elif low == _P:
            bit = 16
            row.price_ticks, at = _price(topic, text, at, end)
        elif low in (_L_UPPER, _I):
            bit = 32 if low == _I else 64
            at = string_end(text, at, end)
        elif low in (_BT, _RPI_KEY):
            bit = 128 if low == _BT else 256
            if starts(text, at, end, _TRUE):
                row.flags |= _BLOCK if low == _BT else _RPI
                at += len(_TRUE)
            elif starts(text, at, end, _FALSE):
                at += len(_FALSE)
            else:
                return NOT_PLAIN
        elif low == _SEQ:
            bit = 512
            row.update_id, at = integer(text, at, end)
            if row.update_id > MAX_UNITS:
                return NOT_PLAIN
        else:
            return NOT_PLAIN
        if at < 0 or at >= end or seen & bit:
            return NOT_PLAIN
        seen |= bit
        if text[at] == CLOSE_OBJECT:
            break
        if text[at] != COMMA:
            return NOT_PLAIN
    return at if seen & 31 == 31 and row.price_ticks > 0 and row.qty_lots > 0 else NOT_PLAIN


@kernel
def prints(topic: Any, text: Text, at: int, end: int, rows: Events, n: int) -> tuple[int, int]:
    """The ``data`` of a trade or liquidation frame; (rows written so far, position after)."""
    if at + 1 >= end or text[at] != OPEN_LIST:
        return n, NOT_PLAIN
    if text[at + 1] == CLOSE_LIST:
        return n, at + 2
    first = n
    while True:
        at += 1
        if at >= end or text[at] != OPEN_OBJECT or n - first >= MAX_PRINTS:
            return n, NOT_PLAIN
        if n >= len(rows):
            return n, NO_ROOM
        begin_row(rows, n, 0, 0, 0, 0, 0)
        at = _print(topic, text, at, end, rows[n])
        if at < 0 or at + 1 >= end:
            return n, NOT_PLAIN
        n += 1
        at += 1
        if text[at] == CLOSE_LIST:
            return n, at + 1
        if text[at] != COMMA:
            return n, NOT_PLAIN


@kernel
def _ticker_field(low: int, high: int) -> int:
    """The place of a ticker field in `_FIELD_KEYS`, -1 for a key that is not kept."""
    for k in range(len(_FIELD_KEYS)):
        if low == _FIELD_KEYS[k, 0] and high == _FIELD_KEYS[k, 1]:
            return k
    return -1


@kernel
def ticker(topic: Any, text: Text, at: int, end: int, rows: Events, n: int) -> tuple[int, int]:
    """The ``data`` of a ticker frame; (rows written so far, position after)."""
    seen = 0
    while True:
        low, high, at = key_at(text, at + 1, end)
        if at < 0 or at + 1 >= end:
            return n, NOT_PLAIN
        field = _ticker_field(low, high)
        if field >= 0:
            if seen & 1 << field:
                return n, NOT_PLAIN
            seen |= 1 << field
        if field >= 0 and text[at] == QUOTE and text[at + 1] != QUOTE:
            value, decimals, at = decimal(text, at, end)
            if at < 0:
                return n, NOT_PLAIN
            places = _FIELD_KEYS[field, 3]
            while decimals > places and _FIELD_KEYS[field, 4]:
                value //= 10
                decimals -= 1
            value = scaled(value, decimals, places, 1, MAX_INT)
            if value < 0:
                return n, NOT_PLAIN
            if n >= len(rows):
                return n, NO_ROOM
            begin_row(rows, n, 0, 0, 0, 0, 0)
            rows[n].value = value
            rows[n].field = _FIELD_KEYS[field, 2]
            n += 1
        elif low == _SYMBOL and high == 0:
            if seen & _SYMBOL_BIT:
                return n, NOT_PLAIN
            seen |= _SYMBOL_BIT
            at = _own_symbol(topic, text, at, end)
        else:
            at = string_end(text, at, end)
        if at < 0 or at >= end:
            return n, NOT_PLAIN
        if text[at] == CLOSE_OBJECT:
            break
        if text[at] != COMMA:
            return n, NOT_PLAIN
    return n, at + 1 if seen & _SYMBOL_BIT else NOT_PLAIN
