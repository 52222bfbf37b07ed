"""What a stream of frames is known by, and the rules that end a frame.

The compiled scanner and the reference decoder read the same frames in two ways. What they share is
here: the arrays of a stream's state, the limits, and `settle`, so that the rules of time, continuity
and flags exist once. Rows are eight int64 words, the memory of dtype ``EVENT``.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from market.events import EVENT, Field, Flag, Kind
from market.kernel import kernel

Text = npt.NDArray[np.uint8]
Words = npt.NDArray[np.int64]

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
#: A frame received later than this after the venue sent it has a wrong receive time; one whose own
#: times lie further apart, or ahead of its receipt, has a wrong one of the venue's.
MAX_LAG_NS: Final = 86_400_000_000_000
#: Quantities and prices stay exact when a float holds them.
MAX_UNITS: Final = 1 << 53
#: Milliseconds of epoch time that fit in int64 ns and are no typing error (the year 2100).
MAX_MS: Final = 4_102_444_800_000
MAX_LEVELS: Final = 5000
#: Trades or liquidations in a frame; the venue sends at most 1,024.
MAX_PRINTS: Final = 5000
MAX_TOPIC: Final = 64
#: Topics that are not converted and that the compiled reader knows by name.
MAX_PASSED: Final = 64
#: The size of a name that no topic has, not even the empty one that a venue at fault may send.
UNNAMED: Final = -1

#: Why the compiled reader returned.
DONE, UNUSUAL, FULL, REACHED = range(4)

#: What `settle` says of a frame.
KEPT, DUPLICATE, PAST, BAD_TIME, BAD_VENUE_TIME = range(5)

#: Words of a row, in the order of dtype ``EVENT``.
(
    RECEIVE_WORD,
    EXCHANGE_WORD,
    PUBLISH_WORD,
    UPDATE_WORD,
    PRICE_WORD,
    QTY_WORD,
    VALUE_WORD,
    BITS_WORD,
) = range(8)
WORDS: Final = 8
assert EVENT.itemsize == 8 * WORDS

_FIRST: Final = int(Flag.FIRST)
_LAST: Final = int(Flag.LAST)
_GAP: Final = int(Flag.GAP)
_CHECKPOINT: Final = int(Flag.CHECKPOINT)
_SNAPSHOT: Final = int(Kind.SNAPSHOT)
_DELTA: Final = int(Kind.DELTA)
_KINDS: Final = (0, int(Kind.TRADE), int(Kind.TICKER), int(Kind.LIQUIDATION))


class Tables(NamedTuple):
    """What is known per symbol and topic, as arrays that both halves read and write."""

    topic: Text  #: (topics, MAX_TOPIC) the topic's name
    topic_size: Words  #: (topics,)
    symbol_size: Words  #: (symbols,) the symbol ends each of its topics' names
    grid: Words  #: (symbols, 4) tick and lot as integer and number of decimals
    state: Words  #: (topics, STATE_SIZE)
    clock: Words  #: (1,) running maximum of receive time


class Passed(NamedTuple):
    """Topics that are not converted, and that the compiled reader knows by name."""

    topic: Text  #: (MAX_PASSED, MAX_TOPIC) the topic's name
    topic_size: Words  #: (MAX_PASSED,) UNNAMED where there is none yet
    counts: Words  #: (MAX_PASSED, 2) frames and steps back since they were last taken


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


@kernel
def bits(kind: int, side: int, flags: int, field: int) -> int:
    """The last word of a row: kind, side, flags and field, one byte each."""
    return kind | (side & 255) << 8 | flags << 16 | field << 24


@kernel
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
    frame belongs after ``until_ns``; nothing was changed), or BAD_TIME or BAD_VENUE_TIME (nothing was
    changed): the receive time, or the frame's own times, cannot be.
    """
    state = tables.state[topic]
    family = topic % FAMILIES
    now = max(tables.clock[0], receive_ns)
    restated = extra & _CHECKPOINT != 0
    # A receive time that lies far after the venue's own would push the running maximum with it.
    if receive_ns > tables.clock[0] and receive_ns - publish_ns > MAX_LAG_NS and not restated:
        return BAD_TIME
    if publish_ns - now > MAX_LAG_NS or abs(exchange_ns - publish_ns) > MAX_LAG_NS:
        return BAD_VENUE_TIME
    if family in (TRADE, LIQUIDATION):
        for n in range(first, stop):
            if abs(rows[n, EXCHANGE_WORD] - publish_ns) > MAX_LAG_NS:
                return BAD_VENUE_TIME
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
        row[RECEIVE_WORD] = now
        row[PUBLISH_WORD] = publish_ns
        if family in (BOOK, TICKER):
            row[EXCHANGE_WORD] = exchange_ns
            row[UPDATE_WORD] = update_id
        own = extra
        if n == first and family == BOOK:
            own |= _FIRST | flags
        if n == stop - 1:
            own |= _LAST
        row[BITS_WORD] |= kind | own << 16
        if not restated:
            lag = now - row[EXCHANGE_WORD]
            state[MIN_LAG] = min(state[MIN_LAG], lag)
            state[MAX_LAG] = max(state[MAX_LAG], lag)
    return KEPT


def symbol_topics(symbol: str, book_depth: int) -> tuple[str, str, str, str]:
    """The names of a symbol's topics, in the order of the families."""
    return (
        f"orderbook.{book_depth}.{symbol}",
        f"publicTrade.{symbol}",
        f"tickers.{symbol}",
        f"allLiquidation.{symbol}",
    )


@kernel
def take_rows(rows: Words, symbols: Text, symbol: int, out: Words) -> None:
    """Copy the first ``len(out)`` rows of one symbol, in order."""
    n = 0
    for taken in range(len(out)):
        while symbols[n] != symbol:
            n += 1
        for word in range(WORDS):
            out[taken, word] = rows[n, word]
        n += 1


def as_events(rows: Any) -> Any:
    """Rows as words seen as dtype ``EVENT``, without a copy."""
    return rows.reshape(-1).view(EVENT)
