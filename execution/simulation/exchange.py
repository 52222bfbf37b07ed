"""One symbol's simulated exchange: its rules, its state, and the tables that kernels share.

An order is a number, its row in ``orders``. Requests stand in ``inbox`` and outcomes in ``outbox``,
both first in, first out; the rows of both are int64, in the columns named here. What becomes of an
order is said in `arrivals`, the order of rows and requests in time in `replay`.
"""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from execution.account import unit_e8
from execution.orders import TimeInForce
from execution.simulation.latency import Latency
from execution.simulation.queue import MODELS, Queue, has_room, make_room, new_queue
from execution.simulation.whole import Touch, new_touch
from market.book import BookState, count, new_state
from market.instruments import Instrument
from market.kernel import inlined
from market.units import E8

#: Exchange modes by name.
MODES: Final = ("partial", "whole")


class Reason(StrEnum):
    """Why the simulated venue refused or cancelled."""

    UNKNOWN_SYMBOL = "symbol is not traded here"
    DUPLICATE = "client id was used before"
    SIDE = "side is neither +1 nor -1"
    PRICE = "price is not positive, or beyond all prices"
    QUANTITY = "quantity is not positive, or beyond all quantities"
    OFF_TICK = "price is not a whole number of ticks"
    OFF_LOT = "quantity is not a whole number of lots"
    MIN_QUANTITY = "quantity is below the instrument's minimum"
    MIN_NOTIONAL = "value is below the instrument's minimum"
    NO_BOOK = "the venue's book is not known: no snapshot, a gap, or crossed"
    NO_MARKET = "book is stale or the opposite side is empty"
    NOT_REDUCING = "reduce-only order would not reduce the position"
    POST_ONLY = "post-only order would have crossed"
    NOT_FILLED = "not filled at once"
    BY_USER = "cancelled on request"
    NO_ORDER = "no such order"
    FINISHED = "order is finished already"
    BELOW_FILLED = "new quantity is not above what is filled"
    NOT_DELIVERED = "request never reached the venue"


#: Reasons by their code in the tables; 0 is none.
REASONS: Final = tuple(Reason)
CODE: Final = {reason: n + 1 for n, reason in enumerate(REASONS)}

#: How an order may fill, by its code: times in force, then market orders.
POLICIES: Final = (*TimeInForce, "Market")
MARKET: Final = POLICIES.index("Market")

#: Prices and quantities beyond are nobody's, and their product would not fit into 64 bits.
MOST: Final = 1 << 40

#: An order at the exchange. ``earlier`` is the order that used its client id before, -1 for none.
ORDER: Final = np.dtype(
    [
        (name, "i8")
        for name in (
            "side",
            "price_ticks",
            "qty_lots",
            "policy",
            "reduce_only",
            "earlier",
            "state",
            "filled_lots",
            "executions",
            "queue_ahead_lots",
        )
    ]
)
SENT: Final = 0  #: states of an order
REFUSED: Final = 1
OPEN: Final = 2
FINISHED: Final = 3

#: Requests, and the columns of ``inbox``. ``REFUSE`` is the code of a reason that was known when the
#: request was sent.
SUBMIT: Final = 0
AMEND: Final = 1
CANCEL: Final = 2
ARRIVES: Final = 0
REQUEST: Final = 1
TARGET: Final = 2
NEW_PRICE: Final = 3
NEW_QTY: Final = 4
REFUSE: Final = 5
INBOX_COLUMNS: Final = 6
KEEP: Final = -(1 << 62)  #: an amendment that leaves price or quantity alone

#: Outcomes, and the columns of ``outbox``.
ACCEPTED: Final = 0
REJECTED: Final = 1
FILLED: Final = 2
AMENDED: Final = 3
CANCELLED: Final = 4
CANCEL_REJECTED: Final = 5
DUE: Final = 0
VENUE: Final = 1
OUTCOME: Final = 2
ORDER_NUMBER: Final = 3
PRICE: Final = 4
QTY: Final = 5
LEAVES: Final = 6
#: Code of a reason; 1 for fills as maker, 0 as taker; the number of an acceptance.
DETAIL: Final = 7
AHEAD: Final = 8
EXECUTION: Final = 9
OUTBOX_COLUMNS: Final = 10

#: Places in ``cells``: the exchange's state …
CLOCK: Final = 0
POSITION: Final = 1
ROWS_NS: Final = 2  #: exchange time of the last row
ARRIVED: Final = 3  #: requests that arrived: the head of ``inbox``
INBOX_END: Final = 4
HEARD: Final = 5  #: outcomes that were fetched: the head of ``outbox``
OUTBOX_END: Final = 6
LAST_DUE: Final = 7
ACCEPTANCES: Final = 8
OPEN_ORDERS: Final = 9
NOW: Final = 10  #: our own clock: nothing is heard in its past
MATCHED_NS: Final = 11  #: when the count of matched rows stood as in ``reals``
SEEN_NS: Final = 12  #: when the count of seen rows did
# … and its rules.
MODEL: Final = 13
WHOLE: Final = 14
WINDOW_LEVELS: Final = 15
MIN_LOTS: Final = 16
MIN_VALUE_E8: Final = 17
UNIT_E8: Final = 18
STALE_NS: Final = 19
SHIFT_NS: Final = 20
CELLS_SIZE: Final = 21
#: Places in ``reals``.
POWER: Final = 0
MATCHED_ROWS: Final = 1  #: exponential count of rows, for latencies that know activity
SEEN_ROWS: Final = 2


class Exchange(NamedTuple):
    """Everything of one symbol's exchange that kernels read or change."""

    book: BookState
    touch: Touch  #: followed in mode ``whole`` only
    queue: Queue
    orders: npt.NDArray[np.void]  #: dtype ORDER
    inbox: npt.NDArray[np.int64]
    outbox: npt.NDArray[np.int64]
    cells: npt.NDArray[np.int64]
    reals: npt.NDArray[np.float64]
    latency: Latency


def new_exchange(
    instrument: Instrument,
    *,
    queue: str,
    queue_power: float,
    stale_after_ns: int,
    window_levels: int,
    mode: str,
    clock_shift_ns: int,
    latency: Latency,
) -> Exchange:
    """An exchange before its first row.

    ``queue`` names the queue model and ``queue_power`` is the exponent of the power models. Market
    orders are refused when the book has been silent for ``stale_after_ns``; ``window_levels`` is the
    depth of the book topic, ``mode`` one of `MODES`; ``clock_shift_ns`` is added to exchange times.
    Raises ValueError for names that are not known.
    """
    if mode not in MODES:
        raise ValueError(f"exchange mode {mode!r}: expected one of {', '.join(MODES)}")
    if queue not in MODELS:
        raise ValueError(f"queue {queue!r}: expected one of {', '.join(MODELS)}")
    cells = np.zeros(CELLS_SIZE, np.int64)
    cells[MODEL], cells[WHOLE], cells[WINDOW_LEVELS] = MODELS[queue], mode == "whole", window_levels
    cells[MIN_LOTS] = instrument.qty_lots(instrument.min_qty)
    cells[MIN_VALUE_E8] = int(Decimal(instrument.min_notional) * E8)
    cells[UNIT_E8], cells[STALE_NS] = unit_e8(instrument), stale_after_ns
    cells[SHIFT_NS] = clock_shift_ns
    return Exchange(
        book=new_state(),
        touch=new_touch(),
        queue=new_queue(),
        orders=np.zeros(64, ORDER),
        inbox=np.zeros((64, INBOX_COLUMNS), np.int64),
        outbox=np.zeros((256, OUTBOX_COLUMNS), np.int64),
        cells=cells,
        reals=np.array([queue_power, 0.0, 0.0]),
        latency=latency,
    )


def with_room(exchange: Exchange) -> Exchange:
    """The exchange with tables in which the next row or request finds room."""
    cells, outbox = exchange.cells, exchange.outbox
    head, end = int(cells[HEARD]), int(cells[OUTBOX_END])
    needed = most_outcomes(exchange)
    if end + needed > len(outbox):
        kept = outbox[head:end]
        outbox = np.zeros((2 * len(kept) + needed + 256, OUTBOX_COLUMNS), np.int64)
        outbox[: len(kept)] = kept
        cells[HEARD], cells[OUTBOX_END] = 0, len(kept)
    under_way = int(cells[INBOX_END] - cells[ARRIVED])
    queue = make_room(exchange.book, exchange.queue, under_way + 1)
    return exchange._replace(outbox=outbox, queue=queue)


@inlined
def most_outcomes(exchange: Exchange) -> int:
    """No row and no request says more than this."""
    book, resting = exchange.book, exchange.queue.used[0]
    return int(count(book, 1) + count(book, -1) + 2 * resting + 4)


@inlined
def finds_room(exchange: Exchange) -> bool:
    """Whether the tables hold what one row or request may add."""
    free = len(exchange.outbox) - exchange.cells[OUTBOX_END]
    return bool(free >= most_outcomes(exchange) and has_room(exchange.book, exchange.queue))
