"""The compiled half of decoding: well-formed frames read byte by byte into event rows.

The scanner knows one thing well, the venue's own compact JSON for the four topics that become
events, read by key and in any order that still allows one pass. Whatever differs (white space, an
escape, an unknown key, a price off the grid, a topic never heard of) it hands over, unread, to
`market.wire.decode`, whose reference alone decides what is rejected and why.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from market.events import Flag
from market.kernel import kernel
from market.wire.jsontext import (
    MAX_INT,
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
from market.wire.passing import pass_by, passed_topic
from market.wire.stream import (
    BAD_TIME,
    BAD_VENUE_TIME,
    BITS_WORD,
    BOOK,
    DONE,
    EXCHANGE_WORD,
    FAMILIES,
    FULL,
    KEPT,
    MAX_LEVELS,
    MAX_MS,
    MAX_PRINTS,
    MAX_UNITS,
    PAST,
    PRICE_WORD,
    QTY_WORD,
    REACHED,
    TICKER,
    TICKER_FIELDS,
    UNUSUAL,
    UPDATE_WORD,
    VALUE_WORD,
    Passed,
    Tables,
    Words,
    settle,
)

_RPI: Final = int(Flag.RPI)
_BLOCK: Final = int(Flag.BLOCK)

_TOPIC = packed("topic")[0]
_TYPE = packed("type")[0]
_TS = packed("ts")[0]
_CTS = packed("cts")[0]
_CS = packed("cs")[0]
_DATA = packed("data")[0]
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

_SNAPSHOT_NAME: Final = np.frombuffer(b'"snapshot"', np.uint8)
_DELTA_NAME: Final = np.frombuffer(b'"delta"', np.uint8)
_BUY: Final = np.frombuffer(b'"Buy"', np.uint8)
_SELL: Final = np.frombuffer(b'"Sell"', np.uint8)
_TRUE: Final = np.frombuffer(b"true", np.uint8)
_FALSE: Final = np.frombuffer(b"false", np.uint8)

_FIELD_KEYS: Final = np.array(
    [[*packed(name), int(field), places] for name, (field, places) in TICKER_FIELDS.items()],
    np.int64,
)


# -- the data of each family -----------------------------------------------------------------------


@kernel
def _levels(
    text: Text, at: int, end: int, side: int, grid: Words, rows: Words, n: int
) -> tuple[int, int]:
    """A list of ``["price","quantity"]``; (rows written so far, position after, -2 when full)."""
    if at + 1 >= end or text[at] != 91:
        return n, -1
    if text[at + 1] == 93:
        return n, at + 2
    first = n
    while True:
        if at + 1 >= end or text[at + 1] != 91:
            return n, -1
        value, decimals, at = decimal(text, at + 2, end)
        if at < 0 or at >= end or text[at] != 44:
            return n, -1
        price = scaled(value, decimals, grid[1], grid[0], MAX_UNITS)
        value, decimals, at = decimal(text, at + 1, end)
        if at < 0 or at + 1 >= end or text[at] != 93:
            return n, -1
        qty = scaled(value, decimals, grid[3], grid[2], MAX_UNITS)
        if price <= 0 or qty < 0 or n - first >= MAX_LEVELS:
            return n, -1
        if n >= len(rows):
            return n, -2
        row = rows[n]
        row[PRICE_WORD] = price
        row[QTY_WORD] = qty
        row[VALUE_WORD] = 0
        row[BITS_WORD] = (side & 255) << 8
        n += 1
        at += 1
        if text[at] == 93:
            return n, at + 1
        if text[at] != 44:
            return n, -1


@kernel
def _book(
    tables: Tables, topic: int, text: Text, at: int, end: int, rows: Words, n: int
) -> tuple[int, int, int]:
    """The ``data`` of a book frame; (update id, rows written so far, position after)."""
    symbol = topic // FAMILIES
    grid = tables.grid[symbol]
    size = tables.symbol_size[symbol]
    update_id = 0
    seen = 0
    first = n
    while True:
        low, high, at = key_at(text, at + 1, end)
        if at < 0 or high != 0:
            return 0, n, -1
        if low == _S_LOWER:
            bit = 1
            start = at + 1
            at = string_end(text, at, end)
            name = tables.topic_size[topic] - size
            if at < 0 or not same(text, start, at - 1, tables.topic[topic], name, size):
                return 0, n, -1
        elif low == _B:
            bit = 2
            n, at = _levels(text, at, end, 1, grid, rows, n)
        elif low == _A:
            # Rows stand bids first; the reverse order is rare enough to be handed over.
            bit = 4
            if not seen & 2:
                return 0, n, -1
            n, at = _levels(text, at, end, -1, grid, rows, n)
        elif low == _U:
            bit = 8
            update_id, at = integer(text, at, end)
            if update_id > MAX_UNITS:
                return 0, n, -1
        elif low == _SEQ:
            bit = 16
            _, at = integer(text, at, end)
        else:
            return 0, n, -1
        if at < 0 or at >= end or seen & bit:
            return 0, n, min(at, -1)
        seen |= bit
        if text[at] == 125:
            break
        if text[at] != 44:
            return 0, n, -1
    if seen & 15 != 15:
        return 0, n, -1
    if n == first:
        if n >= len(rows):
            return 0, n, -2
        rows[n, :] = 0
        n += 1
    return update_id, n, at + 1


@kernel
def _prints(
    tables: Tables, topic: int, text: Text, at: int, end: int, rows: Words, n: int
) -> tuple[int, int]:
    """The ``data`` of a trade or liquidation frame; (rows written so far, position after)."""
    symbol = topic // FAMILIES
    grid = tables.grid[symbol]
    size = tables.symbol_size[symbol]
    name = tables.topic_size[topic] - size
    if at + 1 >= end or text[at] != 91:
        return n, -1
    if text[at + 1] == 93:
        return n, at + 2
    first = n
    while True:
        at += 1
        if at >= end or text[at] != 123 or n - first >= MAX_PRINTS:
            return n, -1
        if n >= len(rows):
            return n, -2
        row = rows[n]
        row[:] = 0
        seen = 0
        flags = 0
        side = 0
        while True:
            low, high, at = key_at(text, at + 1, end)
            if at < 0 or high != 0:
                return n, -1
            if low == _T_UPPER:
                bit = 1
                ms, at = integer(text, at, end)
                if ms > MAX_MS:
                    return n, -1
                row[EXCHANGE_WORD] = ms * 1_000_000
            elif low == _S_LOWER:
                bit = 2
                start = at + 1
                at = string_end(text, at, end)
                if at < 0 or not same(text, start, at - 1, tables.topic[topic], name, size):
                    return n, -1
            elif low == _S_UPPER:
                bit = 4
                side = starts(text, at, end, _BUY) - starts(text, at, end, _SELL)
                if side == 0:
                    return n, -1
                at += 5 if side > 0 else 6
            elif low == _V:
                bit = 8
                value, decimals, at = decimal(text, at, end)
                if at < 0:
                    return n, -1
                row[QTY_WORD] = scaled(value, decimals, grid[3], grid[2], MAX_UNITS)
            elif low == _P:
                bit = 16
                value, decimals, at = decimal(text, at, end)
                if at < 0:
                    return n, -1
                row[PRICE_WORD] = scaled(value, decimals, grid[1], grid[0], MAX_UNITS)
            elif low in (_L_UPPER, _I):
                bit = 32 if low == _I else 64
                at = string_end(text, at, end)
            elif low in (_BT, _RPI_KEY):
                bit = 128 if low == _BT else 256
                if starts(text, at, end, _TRUE):
                    flags |= _BLOCK if low == _BT else _RPI
                    at += 4
                elif starts(text, at, end, _FALSE):
                    at += 5
                else:
                    return n, -1
            elif low == _SEQ:
                bit = 512
                row[UPDATE_WORD], at = integer(text, at, end)
                if row[UPDATE_WORD] > MAX_UNITS:
                    return n, -1
            else:
                return n, -1
            if at < 0 or at >= end or seen & bit:
                return n, -1
            seen |= bit
            if text[at] == 125:
                break
            if text[at] != 44:
                return n, -1
        if seen & 31 != 31 or row[PRICE_WORD] <= 0 or row[QTY_WORD] <= 0:
            return n, -1
        row[BITS_WORD] = (side & 255) << 8 | flags << 16
        n += 1
        at += 1
        if at >= end:
            return n, -1
        if text[at] == 93:
            return n, at + 1
        if text[at] != 44:
            return n, -1


@kernel
def _ticker(
    tables: Tables, topic: int, text: Text, at: int, end: int, rows: Words, n: int
) -> tuple[int, int]:
    """The ``data`` of a ticker frame; (rows written so far, position after)."""
    size = tables.symbol_size[topic // FAMILIES]
    seen = 0
    while True:
        low, high, at = key_at(text, at + 1, end)
        if at < 0 or at + 1 >= end:
            return n, -1
        field = -1
        for k in range(len(_FIELD_KEYS)):
            if low == _FIELD_KEYS[k, 0] and high == _FIELD_KEYS[k, 1]:
                field = k
                break
        start = at + 1
        if field >= 0 and text[at] == 34 and text[at + 1] != 34:
            value, decimals, at = decimal(text, at, end)
            if at < 0 or seen & 1 << field:
                return n, -1
            value = scaled(value, decimals, _FIELD_KEYS[field, 3], 1, MAX_INT)
            if value < 0:
                return n, -1
            if n >= len(rows):
                return n, -2
            seen |= 1 << field
            rows[n, :] = 0
            rows[n, VALUE_WORD] = value
            rows[n, BITS_WORD] = _FIELD_KEYS[field, 2] << 24
            n += 1
        else:
            at = string_end(text, at, end)
            if at < 0:
                return n, -1
            if low == _SYMBOL and high == 0:
                name = tables.topic_size[topic] - size
                if seen & 1 << 40 or not same(text, start, at - 1, tables.topic[topic], name, size):
                    return n, -1
                seen |= 1 << 40
            elif field >= 0:
                if seen & 1 << field:
                    return n, -1
                seen |= 1 << field
        if at >= end:
            return n, -1
        if text[at] == 125:
            break
        if text[at] != 44:
            return n, -1
    return n, at + 1 if seen & 1 << 40 else -1


# -- lines -----------------------------------------------------------------------------------------


@kernel
def _topic(tables: Tables, text: Text, start: int, stop: int) -> int:
    """The index of the topic named by ``text[start:stop]``, -1 when it is none of ours."""
    for n in range(len(tables.topic_size)):
        if same(text, start, stop, tables.topic[n], 0, tables.topic_size[n]):
            return n
    return -1


@kernel
def _frame(
    tables: Tables,
    passed: Passed,
    text: Text,
    at: int,
    end: int,
    receive_ns: int,
    until_ns: int,
    rows: Words,
    first: int,
) -> tuple[int, int, int, int]:
    """One frame; (status, topic, rows written so far, position after the frame).

    The topics that pass are numbered after those that are converted.
    """
    if at >= end or text[at] != 123:
        return UNUSUAL, 0, first, at
    begin = at
    n = first
    topic = -1
    publish_ms = 0
    exchange_ms = 0
    update_id = 0
    snapshot = False
    seen = 0
    while True:
        low, high, at = key_at(text, at + 1, end)
        if at < 0 or at >= end or high != 0:
            return UNUSUAL, 0, first, at
        if low == _TOPIC:
            bit = 1
            start = at + 1
            at = string_end(text, at, end)
            if at < 0:
                return UNUSUAL, 0, first, at
            topic = _topic(tables, text, start, at - 1)
            if topic < 0:
                place = passed_topic(passed, text, start, at - 1)
                if place < 0:
                    return UNUSUAL, 0, first, at
                status, at = pass_by(
                    passed, place, tables.clock, text, begin, end, receive_ns, until_ns
                )
                return status, len(tables.topic_size) + place, first, at
        elif low == _TYPE:
            bit = 2
            snapshot = starts(text, at, end, _SNAPSHOT_NAME)
            if not snapshot and not starts(text, at, end, _DELTA_NAME):
                return UNUSUAL, 0, first, at
            at += len(_SNAPSHOT_NAME) if snapshot else len(_DELTA_NAME)
        elif low == _TS:
            bit = 4
            publish_ms, at = integer(text, at, end)
        elif low == _CTS:
            bit = 8
            exchange_ms, at = integer(text, at, end)
        elif low == _CS:
            bit = 16
            _, at = integer(text, at, end)
        elif low == _DATA and topic >= 0:
            bit = 32
            family = topic % FAMILIES
            if seen & bit:
                return UNUSUAL, 0, first, at
            if family in (BOOK, TICKER):
                if text[at] != 123:
                    return UNUSUAL, 0, first, at
                if family == BOOK:
                    update_id, n, at = _book(tables, topic, text, at, end, rows, n)
                else:
                    n, at = _ticker(tables, topic, text, at, end, rows, n)
            else:
                n, at = _prints(tables, topic, text, at, end, rows, n)
            if at == -2:
                return FULL, 0, first, at
        else:
            return UNUSUAL, 0, first, at
        if at < 0 or at >= end or seen & bit:
            return UNUSUAL, 0, first, at
        seen |= bit
        if text[at] == 125:
            break
        if text[at] != 44:
            return UNUSUAL, 0, first, at
    at += 1
    if seen & 39 != 39 or publish_ms > MAX_MS or exchange_ms > MAX_MS:
        return UNUSUAL, 0, first, at
    if at < end and text[at] != 10:
        return UNUSUAL, 0, first, at
    exchange_ms = exchange_ms if seen & 8 else publish_ms
    verdict = settle(
        tables,
        topic,
        rows,
        first,
        n,
        receive_ns,
        publish_ms * 1_000_000,
        exchange_ms * 1_000_000,
        update_id,
        snapshot,
        0,
        until_ns,
    )
    if verdict in (BAD_TIME, BAD_VENUE_TIME):
        return UNUSUAL, topic, first, at
    if verdict == PAST:
        return REACHED, topic, first, at
    return DONE, topic, n if verdict == KEPT else first, at


@kernel
def scan(
    tables: Tables,
    passed: Passed,
    text: Text,
    at: int,
    received_ns: int,
    until_ns: int,
    rows: Words,
    symbols: Text,
    n: int,
) -> tuple[int, int, int, int, int]:
    """Lines from ``at`` on, rows from ``n`` on; (status, position, rows written, lines, last topic).

    Stops DONE at the end, or before the first line that is UNUSUAL, does not fit any more (FULL) or
    was received at or after ``until_ns`` (REACHED). ``symbols[k]`` is the symbol of row k. With
    ``received_ns`` the text is one frame that was received then, without a time or a newline.
    """
    end = len(text)
    lines = 0
    topic = 0
    while at < end:
        receive_ns = received_ns
        body = at
        if received_ns == 0:
            receive_ns, body = integer(text, at, end)
            if body < 0 or body >= end or text[body] != 32 or receive_ns == 0:
                return UNUSUAL, at, n, lines, topic
            body += 1
        status, topic, stop, after = _frame(
            tables, passed, text, body, end, receive_ns, until_ns, rows, n
        )
        if status != DONE:
            return status, at, n, lines, topic
        for k in range(n, stop):
            symbols[k] = topic // FAMILIES
        n = stop
        at = after + 1
        lines += 1
    return DONE, at, n, lines, topic
