"""The event schema: everything the venue sends, as rows of one fixed-size record.

An event is 64 bytes, one cache line. Prices are integers in ticks and quantities integers in lots
(`market.instruments`). Floats begin at bars.

Rows of one book frame are adjacent and in frame order; the first is flagged ``FIRST``, the last
``LAST``. A book frame without levels is one row with ``side == 0``: it changes no level but keeps
its times, its update id and its flags. Every trade, liquidation and ticker field is a row of its
own, and the last row of its frame is flagged ``LAST``.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from market.kernel import kernel


class Kind(IntEnum):
    """What a row is."""

    SNAPSHOT = 1  #: a book level of a frame that replaces the book
    DELTA = 2  #: a book level with its new absolute quantity; zero deletes it
    TRADE = 3  #: a public trade; ``side`` is the taker's
    LIQUIDATION = 4  #: a liquidation; ``side`` is that of the liquidated position
    TICKER = 5  #: one field of the ticker; ``field`` names it, ``value`` is its value


class Flag(IntFlag):
    """Bits of ``flags``."""

    LAST = 1  #: last row of its frame
    FIRST = 2  #: first row of its frame; on a SNAPSHOT row it empties the book
    RPI = 4  #: the trade matched a retail-price-improvement order: not in the visible book
    BLOCK = 8  #: block trade: not part of the order flow
    GAP = 16  #: book frames are missing before this one: the book is invalid until a snapshot
    CHECKPOINT = 32  #: not sent by the venue: book state restated so that a file reads alone


class Field(IntEnum):
    """Ticker fields that become rows (venue names: `market.wire.topics`); scales are in `PLACES`."""

    MARK_PRICE = 1
    INDEX_PRICE = 2
    FUNDING_RATE = 3
    NEXT_FUNDING_MS = 4  #: epoch milliseconds
    OPEN_INTEREST = 5
    TURNOVER_24H = 6
    VOLUME_24H = 7
    LAST_PRICE = 8
    #: Of archives, which say what was paid and not what was expected: when the next settlement comes if
    #: the interval stays, and the last one's time, rate and mark price.
    EXPECTED_FUNDING_MS = 9
    SETTLED_MS = 10
    SETTLED_RATE = 11
    SETTLED_MARK = 12


#: Decimals of a field's integer: prices and rates are exact at 1e-8. Sums are cut where int64 holds the
#: largest that a market has: 9e15 of a coin that is worth nothing, 9e12 of the quote currency.
PLACES: Final[dict[Field, int]] = {
    Field.MARK_PRICE: 8,
    Field.INDEX_PRICE: 8,
    Field.FUNDING_RATE: 8,
    Field.NEXT_FUNDING_MS: 0,
    Field.OPEN_INTEREST: 3,
    Field.TURNOVER_24H: 6,
    Field.VOLUME_24H: 3,
    Field.LAST_PRICE: 8,
    Field.EXPECTED_FUNDING_MS: 0,
    Field.SETTLED_MS: 0,
    Field.SETTLED_RATE: 8,
    Field.SETTLED_MARK: 8,
}
#: Fields whose further decimals are cut; of others a value between two integers is none.
SUMS: Final = frozenset({Field.OPEN_INTEREST, Field.TURNOVER_24H, Field.VOLUME_24H})
#: What one of a field's integers is in units of 1e-8, by the field's number (times: one).
STEP_E8: Final = np.array([1.0] + [10.0 ** (8 - (PLACES[field] or 8)) for field in Field])


#: Structured dtype of an event row. ``exchange_ns`` is the matching engine's time (``cts``, else
#: ``ts``; ``T`` for trades), ``publish_ns`` the frame's ``ts``, ``update_id`` the book topic's ``u``
#: or the trade's ``seq``. ``side``: +1 bid or buy, -1 ask or sell, 0 none.
EVENT: Final = np.dtype(
    [
        ("receive_ns", "i8"),
        ("exchange_ns", "i8"),
        ("publish_ns", "i8"),
        ("update_id", "i8"),
        ("price_ticks", "i8"),
        ("qty_lots", "i8"),
        ("value", "i8"),
        ("kind", "u1"),
        ("side", "i1"),
        ("flags", "u1"),
        ("field", "u1"),
        ("pad", "u4"),
    ]
)
assert EVENT.itemsize == 64

Events = npt.NDArray[np.void]

_COLUMNS: Final = tuple(name for name in EVENT.names or () if name != "pad")

ARROW_SCHEMA: Final = pa.schema(
    [pa.field(name, pa.from_numpy_dtype(EVENT[name]), nullable=False) for name in _COLUMNS]
)

#: Parquet encodings of events: a dictionary for values that repeat, delta encoding for values near
#: the row before. A quarter smaller than a dictionary of everything, and faster.
DICTIONARY: Final = ("kind", "side", "flags", "field", "value")
ENCODINGS: Final = {"price_ticks": "DELTA_BINARY_PACKED", "qty_lots": "DELTA_BINARY_PACKED"}


def to_arrow(events: Events) -> pa.Table:
    """Events (dtype ``EVENT``, shape (n,)) as an Arrow table of ``ARROW_SCHEMA``."""
    return pa.table(
        [pa.array(np.ascontiguousarray(events[name])) for name in _COLUMNS], schema=ARROW_SCHEMA
    )


def from_arrow(table: pa.Table | pa.RecordBatch) -> Events:
    """The inverse of `to_arrow`: a contiguous array of dtype ``EVENT``."""
    out = np.zeros(table.num_rows, EVENT)
    for name in _COLUMNS:
        out[name] = (
            table.column(name).to_numpy(zero_copy_only=False)
            if isinstance(table, pa.RecordBatch)
            else table.column(name).to_numpy()
        )
    return out


@kernel
def begin_row(
    out: Any, n: int, receive: int, exchange: int, publish: int, update: int, kind: int
) -> None:
    """Begin row ``n`` of an array of events: every field is set, because the memory is not cleared."""
    out[n].receive_ns = receive
    out[n].exchange_ns = exchange
    out[n].publish_ns = publish
    out[n].update_id = update
    out[n].price_ticks = 0
    out[n].qty_lots = 0
    out[n].value = 0
    out[n].kind = kind
    out[n].side = 0
    out[n].flags = 0
    out[n].field = 0
    out[n].pad = 0
