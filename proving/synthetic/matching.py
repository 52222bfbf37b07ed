"""A price-time priority matching engine, order by order, compiled.

A price level is a FIFO queue of orders; which levels are occupied, their quantities and the touch are
kept by `market.book`, the kernel that also follows a venue's book. An order is a row of `ORDER` (one
cache line) in a pool with a free list; the queue links rows both ways, so that adding, cancelling and
executing cost the same in a book of any size.

An order's reference is ``generation << 32 | row``. Reusing a row gives another reference, so a stale one
is rejected and never means another order.

Rules
-----
- An incoming order executes against the best price first and, at a price, against the oldest order
  first, at the price of the resting order.
- GOOD_TILL_CANCELLED rests with the quantity left. IMMEDIATE_OR_CANCEL and market orders expire with it.
  FILL_OR_KILL executes in full or not at all, POST_ONLY rests in full or not at all.
- Less quantity at the same price keeps the queue position; any other amendment loses it, and keeps the
  reference.
- A rejected request changes nothing.

The pool never grows inside a kernel: `POOL_FULL` rejects, and `proving.synthetic.engine` makes room
beforehand.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from market import book as bk
from market.book import BookState, row_of
from market.kernel import kernel

Records = npt.NDArray[Any]


class TimeInForce(IntEnum):
    """What becomes of the quantity that does not execute on arrival; numbers, for kernels."""

    GOOD_TILL_CANCELLED = 0
    IMMEDIATE_OR_CANCEL = 1
    FILL_OR_KILL = 2
    POST_ONLY = 3


class Status(IntEnum):
    """Result of a request; below zero it was rejected and changed nothing."""

    RESTING = 0  #: in the book, perhaps after a partial fill
    FILLED = 1  #: executed in full
    EXPIRED = 2  #: the quantity that did not execute was cancelled
    CANCELLED = 3
    WOULD_TAKE = -1  #: post-only, and it would have executed
    CANNOT_FILL = -2  #: fill-or-kill, and the book has less within the price
    UNKNOWN_ORDER = -3  #: no order rests under this reference
    BAD_QUANTITY = -4  #: not between 1 and `MAX_LOTS`
    BAD_PRICE = -5  #: not between 1 and `MAX_TICKS`
    BAD_SIDE = -6  #: neither +1 nor -1
    OUT_OF_REACH = -7  #: the book has a level a multiple of `book.WIDTH` ticks away
    POOL_FULL = -8


MAX_LOTS: Final = 1 << 40
MAX_TICKS: Final = 1 << 40
#: No row: the end of a queue or of the free list.
NO_ROW: Final = -1

#: A row of the pool.
ORDER: Final = np.dtype(
    [
        ("side", "i8"),
        ("ticks", "i8"),
        ("lots", "i8"),  # left to execute; zero marks a free row
        ("owner", "i8"),
        ("tag", "i8"),  # the owner's own number
        ("next", "i8"),  # row behind it in the queue or in the free list
        ("previous", "i8"),  # row in front of it in the queue
        ("generation", "i8"),  # how often the row was released
    ]
)

#: An execution; ``side`` is the taker's, ``maker_left`` the lots left of the maker's order.
FILL: Final = np.dtype(
    [
        ("maker", "i8"),
        ("maker_owner", "i8"),
        ("taker", "i8"),
        ("taker_owner", "i8"),
        ("side", "i8"),
        ("ticks", "i8"),
        ("lots", "i8"),
        ("maker_left", "i8"),
    ]
)

#: First and last row of a level's queue.
QUEUE: Final = np.dtype([("first", "i8"), ("last", "i8")])

#: Scalars of the engine. ``added``, ``executed`` and ``cancelled`` count lots since the beginning, so
#: that added = 2 x executed + cancelled + resting lots (an execution takes from two orders).
HEAD: Final = np.dtype(
    [
        ("free", "i8"),  # first free row
        ("room", "i8"),  # number of free rows
        ("fills", "i8"),  # executions written since `clear_fills`
        ("reference", "i8"),  # of the order last entered, amended or cancelled
        ("taken", "i8"),  # lots it executed on arrival
        ("left", "i8"),  # lots it has left in the book; of a cancel, the lots cancelled
        ("added", "i8"),
        ("executed", "i8"),
        ("cancelled", "i8"),
        ("events", "i8"),  # orders entered, amended and cancelled, and executions
    ]
)

_IOC: Final = int(TimeInForce.IMMEDIATE_OR_CANCEL)
_FOK: Final = int(TimeInForce.FILL_OR_KILL)
_POST_ONLY: Final = int(TimeInForce.POST_ONLY)
_GTC: Final = int(TimeInForce.GOOD_TILL_CANCELLED)
_RESTING: Final = int(Status.RESTING)
_FILLED: Final = int(Status.FILLED)
_EXPIRED: Final = int(Status.EXPIRED)
_CANCELLED: Final = int(Status.CANCELLED)
_WOULD_TAKE: Final = int(Status.WOULD_TAKE)
_CANNOT_FILL: Final = int(Status.CANNOT_FILL)
_UNKNOWN_ORDER: Final = int(Status.UNKNOWN_ORDER)
_BAD_QUANTITY: Final = int(Status.BAD_QUANTITY)
_BAD_PRICE: Final = int(Status.BAD_PRICE)
_BAD_SIDE: Final = int(Status.BAD_SIDE)
_OUT_OF_REACH: Final = int(Status.OUT_OF_REACH)
_POOL_FULL: Final = int(Status.POOL_FULL)

_ROW_MASK: Final = (1 << 32) - 1
_LEVEL_MASK: Final = bk.WIDTH - 1


class EngineState(NamedTuple):
    """The whole engine. ``fills`` is as long as the pool, so one order's executions always fit."""

    book: BookState  #: occupied levels, their lots, the touch
    queues: Records  #: (2, book.WIDTH) `QUEUE` by side and level, meaningful where the level is occupied
    orders: Records  #: (capacity,) `ORDER`
    fills: Records  #: (capacity,) `FILL`, oldest first
    head: Records  #: (1,) `HEAD`


def new_engine(capacity: int) -> EngineState:
    """An empty engine for at most ``capacity`` resting orders."""
    orders = np.zeros(capacity, ORDER)
    orders["next"] = np.arange(1, capacity + 1)
    orders["next"][-1] = NO_ROW
    head = np.zeros(1, HEAD)
    head["room"] = capacity
    queues = np.zeros((2, bk.WIDTH), QUEUE)
    return EngineState(bk.new_state(), queues, orders, np.zeros(capacity, FILL), head)


def grown(engine: EngineState, capacity: int) -> EngineState:
    """The same engine with a larger pool: references, queues and executions stay as they are."""
    old = len(engine.orders)
    if capacity <= old:
        raise ValueError(f"capacity {capacity}: the pool already has {old} rows")
    head = engine.head[0]
    orders = np.zeros(capacity, ORDER)
    orders[:old] = engine.orders
    orders["next"][old:] = np.arange(old + 1, capacity + 1)
    orders["next"][-1] = head["free"] if head["room"] else NO_ROW
    fills = np.zeros(capacity, FILL)
    fills[:old] = engine.fills
    head["free"] = old
    head["room"] += capacity - old
    return engine._replace(orders=orders, fills=fills)


@kernel
def row_under(engine: EngineState, reference: int) -> int:
    """The pool's row of a resting order, `NO_ROW` when none rests under the reference."""
    row = reference & _ROW_MASK
    if reference < 0 or row >= len(engine.orders):
        return NO_ROW
    order = engine.orders[row]
    if order.lots == 0 or order.generation != reference >> 32:
        return NO_ROW
    return int(row)


@kernel
def clear_fills(engine: EngineState) -> None:
    """Discard the executions written so far."""
    engine.head[0].fills = 0


@kernel
def _release(engine: EngineState, row: int) -> None:
    """Free a row, which voids its reference."""
    order, head = engine.orders[row], engine.head[0]
    order.lots = 0
    order.generation += 1
    order.next = head.free
    head.free = row
    head.room += 1


@kernel
def _append(engine: EngineState, row: int) -> None:
    """Put an order at the back of its level's queue."""
    order = engine.orders[row]
    side, ticks = order.side, order.ticks
    queue = engine.queues[row_of(side), (-side * ticks) & _LEVEL_MASK]
    resting_lots = bk.level(engine.book, side, ticks)
    order.next = NO_ROW
    if resting_lots == 0:
        order.previous = NO_ROW
        queue.first = row
    else:
        order.previous = queue.last
        engine.orders[queue.last].next = row
    queue.last = row
    bk.set_level(engine.book, side, ticks, resting_lots + order.lots)


@kernel
def _unlink(engine: EngineState, row: int) -> None:
    """Take an order out of its queue, and its lots from the level."""
    order = engine.orders[row]
    side, ticks = order.side, order.ticks
    queue = engine.queues[row_of(side), (-side * ticks) & _LEVEL_MASK]
    if order.previous >= 0:
        engine.orders[order.previous].next = order.next
    else:
        queue.first = order.next
    if order.next >= 0:
        engine.orders[order.next].previous = order.previous
    else:
        queue.last = order.previous
    bk.set_level(engine.book, side, ticks, bk.level(engine.book, side, ticks) - order.lots)


@kernel
def crosses(engine: EngineState, side: int, ticks: int) -> bool:
    """Whether an order at this price would execute."""
    return bool(bk.best_key(engine.book, row_of(-side)) <= side * ticks)


@kernel
def available(engine: EngineState, side: int, ticks: int, wanted: int) -> int:
    """Opposite lots within an order's price; counting stops at ``wanted``."""
    other = row_of(-side)
    key, total = bk.best_key(engine.book, other), 0
    while key <= side * ticks and total < wanted:
        total += bk.lots_at(engine.book, other, key)
        key = bk.next_key(engine.book, other, key)
    return int(total)


@kernel
def _match(engine: EngineState, row: int) -> None:
    """Execute an order that is in no queue against the book, as far as its price allows."""
    orders, head, order = engine.orders, engine.head[0], engine.orders[row]
    side, left = order.side, order.lots
    other = row_of(-side)
    reference = order.generation << 32 | row
    while left > 0 and crosses(engine, side, order.ticks):
        key = bk.best_key(engine.book, other)
        queue = engine.queues[other, key & _LEVEL_MASK]
        total = bk.lots_at(engine.book, other, key)
        while left > 0 and total > 0:
            row_of_maker = queue.first
            maker = orders[row_of_maker]
            size = min(left, maker.lots)
            left -= size
            total -= size
            maker.lots -= size
            head.executed += size
            head.events += 1
            fill = engine.fills[head.fills]
            head.fills += 1
            fill.maker = maker.generation << 32 | row_of_maker
            fill.maker_owner = maker.owner
            fill.taker = reference
            fill.taker_owner = order.owner
            fill.side = side
            fill.ticks = side * key
            fill.lots = size
            fill.maker_left = maker.lots
            if maker.lots == 0:
                queue.first = maker.next
                if maker.next >= 0:
                    orders[maker.next].previous = NO_ROW
                _release(engine, row_of_maker)
        bk.set_level(engine.book, -side, side * key, total)
    head.taken = order.lots - left
    order.lots = left


@kernel
def _match_then_rest(engine: EngineState, row: int, rests: bool) -> int:
    """Match an order that is in no queue, then rest or release it; returns its `Status`."""
    order, head = engine.orders[row], engine.head[0]
    head.reference = order.generation << 32 | row
    _match(engine, row)
    left = order.lots
    if left > 0 and rests:
        head.left = left
        _append(engine, row)
        return _RESTING
    head.left = 0
    head.cancelled += left
    _release(engine, row)
    return _EXPIRED if left > 0 else _FILLED


@kernel
def _rejection(engine: EngineState, side: int, ticks: int, lots: int, force: int) -> int:
    """The `Status` by which an order is rejected, zero when it may enter."""
    if side != 1 and side != -1:
        return _BAD_SIDE
    if lots < 1 or lots > MAX_LOTS:
        return _BAD_QUANTITY
    if ticks < 1 or ticks > MAX_TICKS:
        return _BAD_PRICE
    if force == _POST_ONLY and crosses(engine, side, ticks):
        return _WOULD_TAKE
    if force == _FOK and available(engine, side, ticks, lots) < lots:
        return _CANNOT_FILL
    if force in (_GTC, _POST_ONLY) and bk.is_occupied(engine.book, row_of(side), -side * ticks):
        return _OUT_OF_REACH
    return 0


@kernel
def enter(
    engine: EngineState, side: int, ticks: int, lots: int, owner: int, tag: int, force: int
) -> int:
    """A limit order with a `TimeInForce`; returns its `Status`.

    ``head`` then has its ``reference``, the lots ``taken`` on arrival and ``left`` in the book; its
    executions are appended to ``fills``, which the caller clears before, so that they cannot overflow.
    """
    reason = _rejection(engine, side, ticks, lots, force)
    if reason < 0:
        return int(reason)
    head = engine.head[0]
    if head.room == 0:
        return _POOL_FULL
    row = head.free
    order = engine.orders[row]
    head.free = order.next
    head.room -= 1
    head.added += lots
    head.events += 1
    order.side = side
    order.ticks = ticks
    order.lots = lots
    order.owner = owner
    order.tag = tag
    return int(_match_then_rest(engine, row, force in (_GTC, _POST_ONLY)))


@kernel
def market(engine: EngineState, side: int, lots: int, owner: int, tag: int, bound: int) -> int:
    """A market order whose worst acceptable price is ``bound`` ticks, 0 for any price."""
    ticks = bound if bound != 0 else (MAX_TICKS if side > 0 else 1)
    return int(enter(engine, side, ticks, lots, owner, tag, _IOC))


@kernel
def cancel_row(engine: EngineState, row: int) -> int:
    """Cancel the order that rests in a row of the pool; returns its lots."""
    lots, head = engine.orders[row].lots, engine.head[0]
    _unlink(engine, row)
    head.cancelled += lots
    head.events += 1
    _release(engine, row)
    return int(lots)


@kernel
def cancel(engine: EngineState, reference: int) -> int:
    """Cancel an order; ``head`` then has the lots that were cancelled in ``left``."""
    row = row_under(engine, reference)
    if row < 0:
        return _UNKNOWN_ORDER
    engine.head[0].reference = reference
    engine.head[0].left = cancel_row(engine, row)
    return _CANCELLED


@kernel
def amend(engine: EngineState, reference: int, ticks: int, lots: int, force: int) -> int:
    """Change a resting order's price and the lots it has left; ``head`` as after `enter`.

    ``force`` is GOOD_TILL_CANCELLED or POST_ONLY.
    """
    row = row_under(engine, reference)
    if row < 0:
        return _UNKNOWN_ORDER
    order, head = engine.orders[row], engine.head[0]
    side, old_lots = order.side, order.lots
    reason = _rejection(engine, side, ticks, lots, force)
    if reason < 0:
        return int(reason)
    head.events += 1
    if ticks == order.ticks and lots <= old_lots:
        order.lots = lots
        bk.set_level(engine.book, side, ticks, bk.level(engine.book, side, ticks) + lots - old_lots)
        head.cancelled += old_lots - lots
        head.reference, head.taken, head.left = reference, 0, lots
        return _RESTING
    _unlink(engine, row)
    head.cancelled += old_lots
    head.added += lots
    order.ticks = ticks
    order.lots = lots
    return int(_match_then_rest(engine, row, True))


@kernel
def lots_ahead(engine: EngineState, row: int) -> int:
    """Queue position of a resting order: the lots in front of it at its price."""
    total, at = 0, engine.orders[row].previous
    while at >= 0:
        total += engine.orders[at].lots
        at = engine.orders[at].previous
    return int(total)


@kernel
def first_at(engine: EngineState, side: int, ticks: int) -> int:
    """The row of the oldest order at a price, `NO_ROW` when there is none; ``next`` leads on."""
    if bk.level(engine.book, side, ticks) == 0:
        return NO_ROW
    return int(engine.queues[row_of(side), (-side * ticks) & _LEVEL_MASK].first)


@kernel
def last_at(engine: EngineState, side: int, ticks: int) -> int:
    """The row of the newest order at a price, `NO_ROW` when there is none; ``previous`` leads on."""
    if bk.level(engine.book, side, ticks) == 0:
        return NO_ROW
    return int(engine.queues[row_of(side), (-side * ticks) & _LEVEL_MASK].last)
