"""The compiled half of decoding: well-formed frames read byte by byte into event rows.

The scanner knows one thing well, the venue's own compact JSON for the four topics that become
events, read by key and in any order that still allows one pass. Whatever differs (white space, an
escape, an unknown key, a price off the grid, another topic) it hands over, unread, to
`market.decode`, which is the reference and alone decides what is rejected and why.

Both write rows as eight int64 words, the memory of dtype ``EVENT``, and both end a frame in
`settle`: the rules of time, continuity and flags exist once.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from market.events import EVENT, Field, Flag, Kind

Words = npt.NDArray[np.int64]
Text = npt.NDArray[np.uint8]

#: Families of topics; a topic's index is ``4 * symbol + family``.
BOOK, TRADE, TICKER, LIQUIDATION = range(4)
FAMILIES: Final = 4

# Columns of ``Tables.state``, one row a topic.
LAST_U, HELD, PENDING_GAP, FRAMES, EVENTS, REJECTED, DUPLICATES, GAPS, STEPS_BACK = range(9)
MIN_LAG, MAX_LAG = 9, 10
STATE_SIZE: Final = 11
#: Where the counters begin, which are taken and cleared after each call.
COUNTERS: Final = FRAMES

NEVER: Final = (1 << 63) - 1
#: A frame received later than this after the venue sent it has a wrong receive time.
MAX_LAG_NS: Final = 86_400_000_000_000
#: Quantities and prices stay exact when a float holds them.
MAX_UNITS: Final = 1 << 53
#: Milliseconds of epoch time that fit in int64 ns and are no typing error (the year 2100).
MAX_MS: Final = 4_102_444_800_000
MAX_LEVELS: Final = 5000
MAX_TOPIC: Final = 64

#: What `settle` says of a frame.
KEPT, DUPLICATE, PAST, BAD_TIME = range(4)
#: Why `scan` returned.
DONE, UNUSUAL, FULL, REACHED = range(4)

_RECEIVE, _EXCHANGE, _PUBLISH, _UPDATE, _PRICE, _QTY, _VALUE, _BITS = range(8)
WORDS: Final = 8
assert EVENT.itemsize == 8 * WORDS

_FIRST: Final = int(Flag.FIRST)
_LAST: Final = int(Flag.LAST)
_RPI: Final = int(Flag.RPI)
_BLOCK: Final = int(Flag.BLOCK)
_GAP: Final = int(Flag.GAP)
_CHECKPOINT: Final = int(Flag.CHECKPOINT)
_SNAPSHOT: Final = int(Kind.SNAPSHOT)
_DELTA: Final = int(Kind.DELTA)
_KINDS: Final = (0, int(Kind.TRADE), int(Kind.TICKER), int(Kind.LIQUIDATION))

_POW10: Final = np.array([10**n for n in range(19)], np.int64)
_MAX_INT: Final = (1 << 63) - 1


class Tables(NamedTuple):
    """What is known per symbol and topic, as arrays that both halves read and write."""

    topic: Text  #: (topics, MAX_TOPIC) the topic's name
    topic_size: Words  #: (topics,)
    symbol_size: Words  #: (symbols,) the symbol ends each of its topics' names
    grid: Words  #: (symbols, 4) tick and lot as integer and number of decimals
    state: Words  #: (topics, STATE_SIZE)
    clock: Words  #: (1,) running maximum of receive time


def _packed(name: str) -> tuple[int, int]:
    """A key of up to 16 characters as two integers, as `_key` reads it."""
    raw = name.encode().ljust(16, b"\0")
    return int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:], "little")


_TOPIC = _packed("topic")[0]
_TYPE = _packed("type")[0]
_TS = _packed("ts")[0]
_CTS = _packed("cts")[0]
_CS = _packed("cs")[0]
_DATA = _packed("data")[0]
_S_LOWER = _packed("s")[0]
_S_UPPER = _packed("S")[0]
_B = _packed("b")[0]
_A = _packed("a")[0]
_U = _packed("u")[0]
_SEQ = _packed("seq")[0]
_T_UPPER = _packed("T")[0]
_V = _packed("v")[0]
_P = _packed("p")[0]
_L_UPPER = _packed("L")[0]
_I = _packed("i")[0]
_BT = _packed("BT")[0]
_RPI_KEY = _packed("RPI")[0]
_SYMBOL = _packed("symbol")[0]

_SNAPSHOT_NAME: Final = np.frombuffer(b'"snapshot"', np.uint8)
_DELTA_NAME: Final = np.frombuffer(b'"delta"', np.uint8)
_BUY: Final = np.frombuffer(b'"Buy"', np.uint8)
_SELL: Final = np.frombuffer(b'"Sell"', np.uint8)
_TRUE: Final = np.frombuffer(b"true", np.uint8)
_FALSE: Final = np.frombuffer(b"false", np.uint8)

#: Ticker fields by the venue's name: (field, decimals of the stored integer).
TICKER_FIELDS: Final[dict[str, tuple[Field, int]]] = {
    "markPrice": (Field.MARK_PRICE, 8),
    "indexPrice": (Field.INDEX_PRICE, 8),
    "fundingRate": (Field.FUNDING_RATE, 8),
    "nextFundingTime": (Field.NEXT_FUNDING_MS, 0),
    "openInterest": (Field.OPEN_INTEREST, 8),
    "turnover24h": (Field.TURNOVER_24H, 8),
    "volume24h": (Field.VOLUME_24H, 8),
    "lastPrice": (Field.LAST_PRICE, 8),
}
_FIELD_KEYS: Final = np.array(
    [[*_packed(name), int(field), places] for name, (field, places) in TICKER_FIELDS.items()],
    np.int64,
)


# -- the rules that end a frame --------------------------------------------------------------------


@njit(cache=True)
def bits(kind: int, side: int, flags: int, field: int) -> int:
    """The last word of a row: kind, side, flags and field, one byte each."""
    return kind | (side & 255) << 8 | flags << 16 | field << 24


@njit(cache=True)
def settle(
    tables: Tables,
    topic: int,
    rows: Words,
    first: int,
    stop: int,
    receive_ns: int,
    publish_ns: int,
    exchange_ns: int,
    update_id: int,
    snapshot: bool,
    extra: int,
    until_ns: int,
) -> int:
    """Apply the rules of time, continuity and flags to a frame's rows ``[first, stop)``.

    Rows come with price, quantity, value, side and field set (trades and liquidations with
    their own exchange time and sequence as well). Returns KEPT, DUPLICATE (drop the rows), PAST (the
    frame belongs after ``until_ns``; nothing was changed) or BAD_TIME (nothing was changed).
    """
    state = tables.state[topic]
    family = topic % FAMILIES
    now = max(tables.clock[0], receive_ns)
    restated = extra & _CHECKPOINT != 0
    # A receive time that lies far after the venue's own would push the running maximum with it.
    if receive_ns > tables.clock[0] and receive_ns - publish_ns > MAX_LAG_NS and not restated:
        return BAD_TIME
    if now >= until_ns:
        return PAST
    if not restated:
        state[FRAMES] += 1
        state[STEPS_BACK] += receive_ns < tables.clock[0]
    tables.clock[0] = now
    kind = _KINDS[family]
    flags = extra
    if family == BOOK:
        kind = _SNAPSHOT if snapshot else _DELTA
        if not snapshot:
            known = state[HELD] != 0 and state[PENDING_GAP] == 0
            if known and update_id <= state[LAST_U]:
                state[DUPLICATES] += 1
                return DUPLICATE
            if not known or update_id != state[LAST_U] + 1:
                state[GAPS] += 1
                flags |= _GAP
        state[LAST_U] = update_id
        state[HELD] = 1
        state[PENDING_GAP] = 0
    state[EVENTS] += stop - first
    for n in range(first, stop):
        row = rows[n]
        row[_RECEIVE] = now
        row[_PUBLISH] = publish_ns
        if family in (BOOK, TICKER):
            row[_EXCHANGE] = exchange_ns
            row[_UPDATE] = update_id
        own = extra
        if n == first and family == BOOK:
            own |= _FIRST | flags
        if n == stop - 1:
            own |= _LAST
        row[_BITS] |= kind | own << 16
        if not restated:
            lag = now - row[_EXCHANGE]
            state[MIN_LAG] = min(state[MIN_LAG], lag)
            state[MAX_LAG] = max(state[MAX_LAG], lag)
    return KEPT


# -- pieces of JSON; a position of -1 means "not what the scanner knows" -----------------------------


@njit(cache=True)
def _integer(text: Text, at: int, end: int) -> tuple[int, int]:
    """A JSON integer of at most 19 digits that fits in int64; (value, position after it)."""
    start = at
    value = 0
    while at < end and 48 <= text[at] <= 57:
        value = value * 10 + (text[at] - 48)
        at += 1
        if at - start > 19:
            return 0, -1
    size = at - start
    if size == 0 or (text[start] == 48 and size > 1) or (size == 19 and text[start] == 57):
        return 0, -1
    return value, at


@njit(cache=True)
def _key(text: Text, at: int, end: int) -> tuple[int, int, int]:
    """A key and its colon; (first 8 characters, next 8, position after). Longer keys give zeros."""
    if at >= end or text[at] != 34:
        return 0, 0, -1
    at += 1
    low = 0
    high = 0
    size = 0
    while at < end:
        byte = int(text[at])
        if byte == 34:
            break
        if not (97 <= byte <= 122 or 65 <= byte <= 90 or 48 <= byte <= 57):
            return 0, 0, -1
        if size < 8:
            low |= byte << (8 * size)
        elif size < 16:
            high |= byte << (8 * (size - 8))
        size += 1
        at += 1
    if at + 1 >= end or text[at + 1] != 58 or size == 0:
        return 0, 0, -1
    if size > 16:
        low = 0
        high = 0
    return low, high, at + 2


@njit(cache=True)
def _string_end(text: Text, at: int, end: int) -> int:
    """The position after a string of plain ASCII without escapes that starts at ``at``."""
    if at >= end or text[at] != 34:
        return -1
    at += 1
    while at < end:
        byte = text[at]
        if byte == 34:
            return at + 1
        if byte < 32 or byte > 126 or byte == 92:
            return -1
        at += 1
    return -1


@njit(cache=True)
def _is(text: Text, at: int, stop: int, name: Text, start: int, size: int) -> bool:
    """Whether ``text[at:stop]`` is ``name[start:start + size]``."""
    if stop - at != size:
        return False
    for n in range(size):  # noqa: SIM110 - numba compiles no generator
        if text[at + n] != name[start + n]:
            return False
    return True


@njit(cache=True)
def _starts(text: Text, at: int, end: int, name: Text) -> bool:
    """Whether ``text`` goes on with ``name`` at ``at``."""
    return at + len(name) <= end and _is(text, at, at + len(name), name, 0, len(name))


@njit(cache=True)
def _decimal(text: Text, at: int, end: int) -> tuple[int, int, int]:
    """A quoted decimal of at most 18 digits; (its digits as an integer, decimals, position after)."""
    if at >= end or text[at] != 34:
        return 0, 0, -1
    at += 1
    start = at
    value = 0
    point = -1
    while at < end:
        byte = int(text[at])
        if 48 <= byte <= 57:
            value = value * 10 + (byte - 48)
        elif byte == 46 and point < 0 and at > start:
            point = at
        elif byte == 34 and at > start and at - 1 != point:
            if at - start > (18 if point < 0 else 19):
                return 0, 0, -1
            return value, 0 if point < 0 else at - 1 - point, at + 1
        else:
            return 0, 0, -1
        at += 1
        if at - start > 20:
            return 0, 0, -1
    return 0, 0, -1


@njit(cache=True)
def _scaled(value: int, decimals: int, places: int, unit: int, limit: int) -> int:
    """``value * 10^-decimals`` in units of ``unit * 10^-places``; -1 when not whole or too large."""
    if decimals <= places:
        factor = _POW10[places - decimals]
        if value > _MAX_INT // factor:
            return -1
        value *= factor
    else:
        factor = _POW10[decimals - places]
        if value % factor != 0:
            return -1
        value //= factor
    if unit != 1:
        if value % unit != 0:
            return -1
        value //= unit
    return value if value <= limit else -1


# -- the data of each family -----------------------------------------------------------------------


@njit(cache=True)
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
        value, decimals, at = _decimal(text, at + 2, end)
        if at < 0 or at >= end or text[at] != 44:
            return n, -1
        price = _scaled(value, decimals, grid[1], grid[0], MAX_UNITS)
        value, decimals, at = _decimal(text, at + 1, end)
        if at < 0 or at + 1 >= end or text[at] != 93:
            return n, -1
        qty = _scaled(value, decimals, grid[3], grid[2], MAX_UNITS)
        if price <= 0 or qty < 0 or n - first >= MAX_LEVELS:
            return n, -1
        if n >= len(rows):
            return n, -2
        row = rows[n]
        row[_PRICE] = price
        row[_QTY] = qty
        row[_VALUE] = 0
        row[_BITS] = (side & 255) << 8
        n += 1
        at += 1
        if text[at] == 93:
            return n, at + 1
        if text[at] != 44:
            return n, -1


@njit(cache=True)
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
        low, high, at = _key(text, at + 1, end)
        if at < 0 or high != 0:
            return 0, n, -1
        if low == _S_LOWER:
            bit = 1
            start = at + 1
            at = _string_end(text, at, end)
            name = tables.topic_size[topic] - size
            if at < 0 or not _is(text, start, at - 1, tables.topic[topic], name, size):
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
            update_id, at = _integer(text, at, end)
            if update_id > MAX_UNITS:
                return 0, n, -1
        elif low == _SEQ:
            bit = 16
            _, at = _integer(text, at, end)
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


@njit(cache=True)
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
    while True:
        at += 1
        if at >= end or text[at] != 123:
            return n, -1
        if n >= len(rows):
            return n, -2
        row = rows[n]
        row[:] = 0
        seen = 0
        flags = 0
        side = 0
        while True:
            low, high, at = _key(text, at + 1, end)
            if at < 0 or high != 0:
                return n, -1
            if low == _T_UPPER:
                bit = 1
                ms, at = _integer(text, at, end)
                if ms > MAX_MS:
                    return n, -1
                row[_EXCHANGE] = ms * 1_000_000
            elif low == _S_LOWER:
                bit = 2
                start = at + 1
                at = _string_end(text, at, end)
                if at < 0 or not _is(text, start, at - 1, tables.topic[topic], name, size):
                    return n, -1
            elif low == _S_UPPER:
                bit = 4
                side = _starts(text, at, end, _BUY) - _starts(text, at, end, _SELL)
                if side == 0:
                    return n, -1
                at += 5 if side > 0 else 6
            elif low == _V:
                bit = 8
                value, decimals, at = _decimal(text, at, end)
                if at < 0:
                    return n, -1
                row[_QTY] = _scaled(value, decimals, grid[3], grid[2], MAX_UNITS)
            elif low == _P:
                bit = 16
                value, decimals, at = _decimal(text, at, end)
                if at < 0:
                    return n, -1
                row[_PRICE] = _scaled(value, decimals, grid[1], grid[0], MAX_UNITS)
            elif low in (_L_UPPER, _I):
                bit = 32 if low == _I else 64
                at = _string_end(text, at, end)
            elif low in (_BT, _RPI_KEY):
                bit = 128 if low == _BT else 256
                if _starts(text, at, end, _TRUE):
                    flags |= _BLOCK if low == _BT else _RPI
                    at += 4
                elif _starts(text, at, end, _FALSE):
                    at += 5
                else:
                    return n, -1
            elif low == _SEQ:
                bit = 512
                row[_UPDATE], at = _integer(text, at, end)
                if row[_UPDATE] > MAX_UNITS:
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
        if seen & 31 != 31 or row[_PRICE] <= 0 or row[_QTY] <= 0:
            return n, -1
        row[_BITS] = (side & 255) << 8 | flags << 16
        n += 1
        at += 1
        if at >= end:
            return n, -1
        if text[at] == 93:
            return n, at + 1
        if text[at] != 44:
            return n, -1


@njit(cache=True)
def _ticker(
    tables: Tables, topic: int, text: Text, at: int, end: int, rows: Words, n: int
) -> tuple[int, int]:
    """The ``data`` of a ticker frame; (rows written so far, position after)."""
    size = tables.symbol_size[topic // FAMILIES]
    seen = 0
    while True:
        low, high, at = _key(text, at + 1, end)
        if at < 0 or at + 1 >= end:
            return n, -1
        field = -1
        for k in range(len(_FIELD_KEYS)):
            if low == _FIELD_KEYS[k, 0] and high == _FIELD_KEYS[k, 1]:
                field = k
                break
        start = at + 1
        if field >= 0 and text[at] == 34 and text[at + 1] != 34:
            value, decimals, at = _decimal(text, at, end)
            if at < 0 or seen & 1 << field:
                return n, -1
            value = _scaled(value, decimals, _FIELD_KEYS[field, 3], 1, _MAX_INT)
            if value < 0:
                return n, -1
            if n >= len(rows):
                return n, -2
            seen |= 1 << field
            rows[n, :] = 0
            rows[n, _VALUE] = value
            rows[n, _BITS] = _FIELD_KEYS[field, 2] << 24
            n += 1
        else:
            at = _string_end(text, at, end)
            if at < 0:
                return n, -1
            if low == _SYMBOL and high == 0:
                name = tables.topic_size[topic] - size
                if seen & 1 << 40 or not _is(text, start, at - 1, tables.topic[topic], name, size):
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


@njit(cache=True)
def _topic(tables: Tables, text: Text, start: int, stop: int) -> int:
    """The index of the topic named by ``text[start:stop]``, -1 when it is none of ours."""
    for n in range(len(tables.topic_size)):
        if _is(text, start, stop, tables.topic[n], 0, tables.topic_size[n]):
            return n
    return -1


@njit(cache=True)
def _frame(
    tables: Tables,
    text: Text,
    at: int,
    end: int,
    receive_ns: int,
    until_ns: int,
    rows: Words,
    first: int,
) -> tuple[int, int, int, int]:
    """One frame; (status, topic, rows written so far, position after the frame)."""
    if at >= end or text[at] != 123:
        return UNUSUAL, 0, first, at
    n = first
    topic = -1
    publish_ms = 0
    exchange_ms = 0
    update_id = 0
    snapshot = False
    seen = 0
    while True:
        low, high, at = _key(text, at + 1, end)
        if at < 0 or at >= end or high != 0:
            return UNUSUAL, 0, first, at
        if low == _TOPIC:
            bit = 1
            start = at + 1
            at = _string_end(text, at, end)
            if at < 0:
                return UNUSUAL, 0, first, at
            topic = _topic(tables, text, start, at - 1)
            if topic < 0:
                return UNUSUAL, 0, first, at
        elif low == _TYPE:
            bit = 2
            snapshot = _starts(text, at, end, _SNAPSHOT_NAME)
            if not snapshot and not _starts(text, at, end, _DELTA_NAME):
                return UNUSUAL, 0, first, at
            at += len(_SNAPSHOT_NAME) if snapshot else len(_DELTA_NAME)
        elif low == _TS:
            bit = 4
            publish_ms, at = _integer(text, at, end)
        elif low == _CTS:
            bit = 8
            exchange_ms, at = _integer(text, at, end)
        elif low == _CS:
            bit = 16
            _, at = _integer(text, at, end)
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
    if verdict == BAD_TIME:
        return UNUSUAL, topic, first, at
    if verdict == PAST:
        return REACHED, topic, first, at
    return DONE, topic, n if verdict == KEPT else first, at


@njit(cache=True)
def scan(
    tables: Tables,
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
            receive_ns, body = _integer(text, at, end)
            if body < 0 or body >= end or text[body] != 32 or receive_ns == 0:
                return UNUSUAL, at, n, lines, topic
            body += 1
        status, topic, stop, after = _frame(tables, text, body, end, receive_ns, until_ns, rows, n)
        if status != DONE:
            return status, at, n, lines, topic
        for k in range(n, stop):
            symbols[k] = topic // FAMILIES
        n = stop
        at = after + 1
        lines += 1
    return DONE, at, n, lines, topic


def symbol_topics(symbol: str, book_depth: int) -> tuple[str, str, str, str]:
    """The names of a symbol's topics, in the order of the families."""
    return (
        f"orderbook.{book_depth}.{symbol}",
        f"publicTrade.{symbol}",
        f"tickers.{symbol}",
        f"allLiquidation.{symbol}",
    )


def as_events(rows: Any) -> Any:
    """Rows as words seen as dtype ``EVENT``, without a copy."""
    return rows.reshape(-1).view(EVENT)
