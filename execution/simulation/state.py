"""State of one symbol's replay: the tables that compiled kernels and Python share.

An order is its row number in ``orders``. Requests under way wait in ``inbox`` and outcomes under way
in ``outbox``, both first in, first out. `arrivals` says what becomes of a request, `replay` in which
order rows and requests are matched.
"""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from execution.account import unit_e8
from execution.orders import TimeInForce
from execution.simulation.latency import Latency
from execution.simulation.queue import MODELS, Queue, has_room, make_room, new_queue
from execution.simulation.whole import Touch, new_touch
from market.book import NO_LEVEL, BookState, count, new_state
from market.instruments import Instrument
from market.kernel import inlined
from market.units import E8

#: Matching modes by name.
MODES: Final = ("partial", "whole")


class Reason(StrEnum):
    """Why the simulated venue rejected or cancelled."""

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

#: Largest price and quantity; beyond it their product would not fit into 64 bits.
MOST: Final = 1 << 40


def _integers(*names: str) -> np.dtype[np.void]:
    return np.dtype([(name, "i8") for name in names])


#: An order. ``earlier`` is the order that used its client id before, -1 for none; ``executions``
#: counts its fills.
ORDER: Final = _integers(
    "side", "price_ticks", "qty_lots", "policy", "reduce_only", "earlier", "state", "filled_lots",
    "executions", "queue_ahead_lots",
)  # fmt: skip
#: States of an order.
SENT: Final = 0
REFUSED: Final = 1
OPEN: Final = 2
FINISHED: Final = 3

#: A request under way. ``reason`` is the code of a rejection that was known when it was sent.
REQUEST: Final = _integers("arrival_ns", "kind", "order", "price_ticks", "qty_lots", "reason")
#: Kinds of requests.
SUBMIT: Final = 0
AMEND: Final = 1
CANCEL: Final = 2
KEEP: Final = -(1 << 62)  #: an amend that leaves price or quantity as it is

#: An outcome under way. ``detail`` is the code of a reason; of a fill 1 for maker, 0 for taker; of an
#: acceptance its number. ``execution`` numbers the fills of an order.
OUTCOME: Final = _integers(
    "due_ns", "venue_ns", "kind", "order", "price_ticks", "qty_lots", "leaves_lots", "detail",
    "queue_ahead_lots", "execution",
)  # fmt: skip
#: Kinds of outcomes.
ACCEPTED: Final = 0
REJECTED: Final = 1
FILLED: Final = 2
AMENDED: Final = 3
CANCELLED: Final = 4
CANCEL_REJECTED: Final = 5


class Scalars(NamedTuple):
    """The scalars of a replay as Python reads and writes them: ``scalars.now_ns[0]``.

    Kernels have them by the same names in a record of dtype `SCALARS`.
    """

    # The exchange.
    clock_ns: memoryview[int]
    row_ns: memoryview[int]  #: exchange time of the last row matched
    position_lots: memoryview[int]
    open_orders: memoryview[int]
    acceptances: memoryview[int]
    inbox_head: memoryview[int]  #: the next request to arrive
    inbox_end: memoryview[int]
    outbox_head: memoryview[int]  #: the next outcome to be polled
    outbox_end: memoryview[int]
    last_due_ns: memoryview[int]  #: when the last outcome reaches us
    # The feed and our delayed picture of it.
    now_ns: memoryview[int]  #: our own clock; no outcome reaches us in its past
    next_match: memoryview[int]  #: the next row for the exchange
    next_local: memoryview[int]  #: the next row for the local book
    pushed_ns: memoryview[int]  #: exchange time of the last row pushed
    received_ns: memoryview[int]  #: receive time of the last row pushed
    reached_ns: memoryview[int]  #: how far `replay.match` went
    frame_ns: memoryview[int]  #: end of the next frame to be received; 0 until it is looked up
    bid_ticks: memoryview[int]  #: touch of the local book, `NO_LEVEL` for none
    ask_ticks: memoryview[int]
    reported_bid_ticks: memoryview[int]  #: the touch that was last reported as news
    reported_ask_ticks: memoryview[int]
    bought_lots: memoryview[int]  #: lots that takers bought in the visible book, as far as received
    sold_lots: memoryview[int]
    # Exponential counts of rows, for latencies that depend on activity, and when they were taken.
    matched_rows: memoryview[float]
    matched_ns: memoryview[int]
    received_rows: memoryview[float]
    counted_ns: memoryview[int]
    # Rules, constant.
    queue_model: memoryview[int]
    queue_power: memoryview[float]
    whole: memoryview[int]  #: 1 in mode ``whole``
    window_levels: memoryview[int]
    min_lots: memoryview[int]
    min_value_e8: memoryview[int]
    unit_e8: memoryview[int]
    stale_ns: memoryview[int]
    patience_ns: memoryview[int]
    shift_ns: memoryview[int]


_REALS: Final = ("matched_rows", "received_rows", "queue_power")
#: The scalars as kernels have them, in the one row of a table.
SCALARS: Final = np.dtype([(n, "f8" if n in _REALS else "i8") for n in Scalars._fields])


class ReplayState(NamedTuple):
    """Everything of one symbol's replay that kernels read or change."""

    book: BookState  #: at the exchange
    touch: Touch  #: best bid and ask at the exchange; followed in mode ``whole`` only
    queue: Queue
    orders: npt.NDArray[np.void]  #: dtype ORDER
    inbox: npt.NDArray[np.void]  #: dtype REQUEST
    outbox: npt.NDArray[np.void]  #: dtype OUTCOME
    scalars: npt.NDArray[np.void]  #: one row of dtype SCALARS
    latency: Latency
    local: BookState  #: our delayed book


def scalars_of(state: ReplayState) -> Scalars:
    """The scalars of a state, for Python; its table of them never moves."""
    columns: list[Any] = [state.scalars[name].data for name in Scalars._fields]
    return Scalars(*columns)


def new_replay_state(
    instrument: Instrument,
    local: BookState,
    *,
    queue: str,
    queue_power: float,
    stale_after_ns: int,
    patience_ns: int,
    window_levels: int,
    mode: str,
    clock_shift_ns: int,
    latency: Latency,
) -> ReplayState:
    """The state before the first row; parameters as in `simulator.Simulator`.

    Raises ValueError for a queue model or a mode that does not exist.
    """
    if mode not in MODES:
        raise ValueError(f"exchange mode {mode!r}: expected one of {', '.join(MODES)}")
    if queue not in MODELS:
        raise ValueError(f"queue {queue!r}: expected one of {', '.join(MODELS)}")
    scalars = np.zeros(1, SCALARS)
    values: dict[str, float] = {
        "queue_model": MODELS[queue],
        "queue_power": queue_power,
        "whole": mode == "whole",
        "window_levels": window_levels,
        "min_lots": instrument.qty_lots(instrument.min_qty),
        "min_value_e8": int(Decimal(instrument.min_notional) * E8),
        "unit_e8": unit_e8(instrument),
        "stale_ns": stale_after_ns,
        "patience_ns": patience_ns,
        "shift_ns": clock_shift_ns,
    }
    touches = ("bid_ticks", "ask_ticks", "reported_bid_ticks", "reported_ask_ticks")
    for name, value in {**values, **dict.fromkeys(touches, NO_LEVEL)}.items():
        scalars[name] = value
    return ReplayState(
        book=new_state(),
        touch=new_touch(),
        queue=new_queue(),
        orders=np.zeros(64, ORDER),
        inbox=np.zeros(64, REQUEST),
        outbox=np.zeros(256, OUTCOME),
        scalars=scalars,
        latency=latency,
        local=local,
    )


def with_room(state: ReplayState) -> ReplayState:
    """The state with tables in which the next row or request finds room."""
    scalars, outbox = scalars_of(state), state.outbox
    head, end = scalars.outbox_head[0], scalars.outbox_end[0]
    needed = most_outcomes(state)
    if end + needed > len(outbox):
        pending = outbox[head:end]
        outbox = np.zeros(2 * len(pending) + needed + 256, OUTCOME)
        outbox[: len(pending)] = pending
        scalars.outbox_head[0], scalars.outbox_end[0] = 0, len(pending)
    under_way = scalars.inbox_end[0] - scalars.inbox_head[0]
    queue = make_room(state.book, state.queue, under_way + 1)
    return state._replace(outbox=outbox, queue=queue)


@inlined
def most_outcomes(state: ReplayState) -> int:
    """Upper bound of the outcomes that one row or request may have."""
    book, resting = state.book, state.queue.used[0]
    return int(count(book, 1) + count(book, -1) + 2 * resting + 4)


@inlined
def finds_room(state: ReplayState) -> bool:
    """Whether the tables hold what one row or request may add."""
    free = len(state.outbox) - state.scalars[0].outbox_end
    return bool(free >= most_outcomes(state) and has_room(state.book, state.queue))
