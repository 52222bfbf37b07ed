"""A price-time priority matching engine, order by order, compiled.

A level is a queue of orders in order of arrival; which levels live, their quantities and the touch
are kept by `market.book`, the same kernel that follows a venue's book. An order is a row of
``ORDER_FIELDS`` integers (one cache line) in a pool with a free list; its neighbours in the queue are
two of them, so that adding, cancelling and executing cost the same in a book of any size.

An order is known by its reference, ``generation << 32 | row``: a row that is used again gives another
reference, so a stale one is refused and never means somebody else's order.

Rules
-----
- An incoming order executes against the best price first and, at a price, against the oldest order
  first, at the price of the resting order.
- GOOD_TILL_CANCELLED rests with what is left. IMMEDIATE_OR_CANCEL and market orders expire with it.
  FILL_OR_KILL executes in full or not at all, POST_ONLY rests in full or not at all.
- Less quantity at the same price keeps an order's place; any other change is a new arrival, under the
  same reference.
- A refused request changes nothing.

The pool never grows inside a kernel: `POOL_FULL` refuses, and `MatchingEngine` makes room beforehand.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from market import book as bk
from market.book import BookState, row_of
from market.kernel import kernel

Integers = npt.NDArray[np.int64]


class TimeInForce(IntEnum):
    """What becomes of the part of an order that does not execute on arrival."""

    GOOD_TILL_CANCELLED = 0
    IMMEDIATE_OR_CANCEL = 1
    FILL_OR_KILL = 2
    POST_ONLY = 3


class Status(IntEnum):
    """What became of a request; below zero it was refused and changed nothing."""

    RESTING = 0  #: stands in the book, perhaps after executions
    FILLED = 1  #: executed in full
    EXPIRED = 2  #: the part that did not execute is gone
    CANCELLED = 3
    WOULD_TAKE = -1  #: post-only, and it would have executed
    CANNOT_FILL = -2  #: fill-or-kill, and the book holds less within the price
    UNKNOWN_ORDER = -3  #: no order rests under this reference
    BAD_QUANTITY = -4  #: not between 1 and `MAX_LOTS`
    BAD_PRICE = -5  #: not between 1 and `MAX_TICKS`
    BAD_SIDE = -6  #: neither +1 nor -1
    OUT_OF_REACH = -7  #: a level stands a multiple of `book.WIDTH` ticks away
    POOL_FULL = -8


MAX_LOTS: Final = 1 << 40
MAX_TICKS: Final = 1 << 40

# Columns of the pool.
SIDE: Final = 0
TICKS: Final = 1
LOTS: Final = 2  #: what is left; zero in a free row
OWNER: Final = 3
MARK: Final = 4  #: a number of the owner's own
NEXT: Final = 5  #: the row behind in the queue or in the free list, -1 at the end
BEFORE: Final = 6  #: the row ahead in the queue, -1 at the head
GENERATION: Final = 7
ORDER_FIELDS: Final = 8

# Columns of an execution; ``F_SIDE`` is the taker's, ``F_LEFT`` what is left of the maker's order.
F_MAKER: Final = 0
F_MAKER_OWNER: Final = 1
F_TAKER: Final = 2
F_TAKER_OWNER: Final = 3
F_SIDE: Final = 4
F_TICKS: Final = 5
F_LOTS: Final = 6
F_LEFT: Final = 7
FILL_FIELDS: Final = 8

# Places in the head. ADDED, EXECUTED and CANCELLED count lots since the beginning, so that
# ADDED = 2 x EXECUTED + CANCELLED + the lots that rest (an execution takes from two orders).
FREE: Final = 0  #: first free row, -1 for none
ROOM: Final = 1  #: free rows
FILLS: Final = 2  #: executions written since `clear_fills`
REFERENCE: Final = 3  #: of the order last entered or amended
TAKEN: Final = 4  #: lots it executed on arrival
LEFT: Final = 5  #: lots it has left in the book
ADDED: Final = 6
EXECUTED: Final = 7
CANCELLED: Final = 8
EVENTS: Final = 9  #: orders entered, amended and cancelled, and executions, since the beginning
HEAD_SIZE: Final = 10

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
    """The whole engine. An execution buffer as long as the pool holds any one order's executions."""

    book: BookState  #: levels: which live, their lots, the touch
    ends: Integers  #: (2, book.WIDTH, 2) first and last row of each live level's queue
    orders: Integers  #: (capacity, ORDER_FIELDS)
    fills: Integers  #: (capacity, FILL_FIELDS) executions, oldest first
    head: Integers  #: (HEAD_SIZE,)


def new_engine(capacity: int) -> EngineState:
    """An engine without orders, for at most ``capacity`` of them at a time."""
    orders = np.zeros((capacity, ORDER_FIELDS), np.int64)
    orders[:, NEXT] = np.arange(1, capacity + 1)
    orders[-1, NEXT] = -1
    head = np.zeros(HEAD_SIZE, np.int64)
    head[ROOM] = capacity
    return EngineState(
        bk.new_state(),
        np.zeros((2, bk.WIDTH, 2), np.int64),
        orders,
        np.zeros((capacity, FILL_FIELDS), np.int64),
        head,
    )


def grown(engine: EngineState, capacity: int) -> EngineState:
    """The same engine with a larger pool: references, queues and executions stay as they are."""
    old = len(engine.orders)
    if capacity <= old:
        raise ValueError(f"capacity {capacity}: the pool holds {old} already")
    orders = np.zeros((capacity, ORDER_FIELDS), np.int64)
    orders[:old] = engine.orders
    orders[old:, NEXT] = np.arange(old + 1, capacity + 1)
    orders[-1, NEXT] = engine.head[FREE] if engine.head[ROOM] else -1
    fills = np.zeros((capacity, FILL_FIELDS), np.int64)
    fills[:old] = engine.fills
    engine.head[FREE] = old
    engine.head[ROOM] += capacity - old
    return engine._replace(orders=orders, fills=fills)


@kernel
def row_under(engine: EngineState, reference: int) -> int:
    """The pool's row of a resting order, -1 when none rests under the reference."""
    row = reference & _ROW_MASK
    if reference < 0 or row >= len(engine.orders):
        return -1
    order = engine.orders[row]
    if order[LOTS] == 0 or order[GENERATION] != reference >> 32:
        return -1
    return int(row)


@kernel
def clear_fills(engine: EngineState) -> None:
    """Forget the executions written so far."""
    engine.head[FILLS] = 0


@kernel
def _release(engine: EngineState, row: int) -> None:
    """Give a row back; its reference is void from here on."""
    order = engine.orders[row]
    order[LOTS] = 0
    order[GENERATION] += 1
    order[NEXT] = engine.head[FREE]
    engine.head[FREE] = row
    engine.head[ROOM] += 1


@kernel
def _append(engine: EngineState, row: int) -> None:
    """Put an order at the end of its level's queue."""
    order = engine.orders[row]
    side, ticks = order[SIDE], order[TICKS]
    ends = engine.ends[row_of(side), (-side * ticks) & _LEVEL_MASK]
    held = bk.level(engine.book, side, ticks)
    order[NEXT] = -1
    if held == 0:
        order[BEFORE] = -1
        ends[0] = row
    else:
        order[BEFORE] = ends[1]
        engine.orders[ends[1], NEXT] = row
    ends[1] = row
    bk.set_level(engine.book, side, ticks, held + order[LOTS])


@kernel
def _unlink(engine: EngineState, row: int) -> None:
    """Take an order out of its queue, and its lots from the level."""
    order = engine.orders[row]
    side, ticks = order[SIDE], order[TICKS]
    ends = engine.ends[row_of(side), (-side * ticks) & _LEVEL_MASK]
    if order[BEFORE] >= 0:
        engine.orders[order[BEFORE], NEXT] = order[NEXT]
    else:
        ends[0] = order[NEXT]
    if order[NEXT] >= 0:
        engine.orders[order[NEXT], BEFORE] = order[BEFORE]
    else:
        ends[1] = order[BEFORE]
    bk.set_level(engine.book, side, ticks, bk.level(engine.book, side, ticks) - order[LOTS])


@kernel
def crosses(engine: EngineState, side: int, ticks: int) -> bool:
    """Whether an order at this price would execute."""
    return bool(bk.best_key(engine.book, row_of(-side)) <= side * ticks)


@kernel
def available(engine: EngineState, side: int, ticks: int, wanted: int) -> int:
    """Lots that an order at this price would meet; counting stops at ``wanted``."""
    other = row_of(-side)
    key, total = bk.best_key(engine.book, other), 0
    while key <= side * ticks and total < wanted:
        total += bk.lots_at(engine.book, other, key)
        key = bk.next_key(engine.book, other, key)
    return int(total)


@kernel
def _match(engine: EngineState, row: int) -> None:
    """Execute an order that is in no queue against the book, as far as its price allows."""
    orders, head, order = engine.orders, engine.head, engine.orders[row]
    side, left = order[SIDE], order[LOTS]
    other = row_of(-side)
    reference = order[GENERATION] << 32 | row
    while left > 0 and crosses(engine, side, order[TICKS]):
        key = bk.best_key(engine.book, other)
        ends = engine.ends[other, key & _LEVEL_MASK]
        total = bk.lots_at(engine.book, other, key)
        while left > 0 and total > 0:
            maker = ends[0]
            resting = orders[maker]
            size = min(left, resting[LOTS])
            left -= size
            total -= size
            resting[LOTS] -= size
            head[EXECUTED] += size
            head[EVENTS] += 1
            fill = engine.fills[head[FILLS]]
            head[FILLS] += 1
            fill[F_MAKER] = resting[GENERATION] << 32 | maker
            fill[F_MAKER_OWNER] = resting[OWNER]
            fill[F_TAKER] = reference
            fill[F_TAKER_OWNER] = order[OWNER]
            fill[F_SIDE] = side
            fill[F_TICKS] = side * key
            fill[F_LOTS] = size
            fill[F_LEFT] = resting[LOTS]
            if resting[LOTS] == 0:
                ends[0] = resting[NEXT]
                if resting[NEXT] >= 0:
                    orders[resting[NEXT], BEFORE] = -1
                _release(engine, maker)
        bk.set_level(engine.book, -side, side * key, total)
    head[TAKEN] = order[LOTS] - left
    order[LOTS] = left


@kernel
def _settle(engine: EngineState, row: int, rests: bool) -> int:
    """Match an order that is in no queue, then rest or release it; returns its `Status`."""
    order, head = engine.orders[row], engine.head
    head[REFERENCE] = order[GENERATION] << 32 | row
    _match(engine, row)
    left = order[LOTS]
    if left > 0 and rests:
        head[LEFT] = left
        _append(engine, row)
        return _RESTING
    head[LEFT] = 0
    head[CANCELLED] += left
    _release(engine, row)
    return _EXPIRED if left > 0 else _FILLED


@kernel
def _refusal(engine: EngineState, side: int, ticks: int, lots: int, force: int) -> int:
    """Why an order may not enter, zero when it may."""
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
    engine: EngineState, side: int, ticks: int, lots: int, owner: int, mark: int, force: int
) -> int:
    """A limit order with a `TimeInForce`; returns its `Status`.

    ``head`` then holds its REFERENCE, the lots TAKEN on arrival and LEFT in the book, and ``fills``
    gained its executions. The caller clears ``fills`` before: they must not outgrow the buffer.
    """
    reason = _refusal(engine, side, ticks, lots, force)
    if reason < 0:
        return int(reason)
    head = engine.head
    if head[ROOM] == 0:
        return _POOL_FULL
    row = head[FREE]
    order = engine.orders[row]
    head[FREE] = order[NEXT]
    head[ROOM] -= 1
    head[ADDED] += lots
    head[EVENTS] += 1
    order[SIDE] = side
    order[TICKS] = ticks
    order[LOTS] = lots
    order[OWNER] = owner
    order[MARK] = mark
    return int(_settle(engine, row, force in (_GTC, _POST_ONLY)))


@kernel
def market(engine: EngineState, side: int, lots: int, owner: int, mark: int, bound: int) -> int:
    """A market order that pays no more (takes no less) than ``bound`` ticks, 0 for any price."""
    ticks = bound if bound != 0 else (MAX_TICKS if side > 0 else 1)
    return int(enter(engine, side, ticks, lots, owner, mark, _IOC))


@kernel
def cancel_row(engine: EngineState, row: int) -> int:
    """Cancel the order that rests in a row of the pool; returns its lots."""
    lots = engine.orders[row, LOTS]
    _unlink(engine, row)
    engine.head[CANCELLED] += lots
    engine.head[EVENTS] += 1
    _release(engine, row)
    return int(lots)


@kernel
def cancel(engine: EngineState, reference: int) -> int:
    """Cancel an order; ``head[LEFT]`` then holds the lots that were cancelled."""
    row = row_under(engine, reference)
    if row < 0:
        return _UNKNOWN_ORDER
    engine.head[REFERENCE] = reference
    engine.head[LEFT] = cancel_row(engine, row)
    return _CANCELLED


@kernel
def amend(engine: EngineState, reference: int, ticks: int, lots: int, force: int) -> int:
    """Change a resting order's price and the lots it has left; ``head`` as after `enter`.

    ``force`` is GOOD_TILL_CANCELLED or POST_ONLY.
    """
    row = row_under(engine, reference)
    if row < 0:
        return _UNKNOWN_ORDER
    order, head = engine.orders[row], engine.head
    side, held = order[SIDE], order[LOTS]
    reason = _refusal(engine, side, ticks, lots, force)
    if reason < 0:
        return int(reason)
    head[EVENTS] += 1
    if ticks == order[TICKS] and lots <= held:
        order[LOTS] = lots
        bk.set_level(engine.book, side, ticks, bk.level(engine.book, side, ticks) + lots - held)
        head[CANCELLED] += held - lots
        head[REFERENCE], head[TAKEN], head[LEFT] = reference, 0, lots
        return _RESTING
    _unlink(engine, row)
    head[CANCELLED] += held
    head[ADDED] += lots
    order[TICKS] = ticks
    order[LOTS] = lots
    return int(_settle(engine, row, True))


@kernel
def lots_ahead(engine: EngineState, row: int) -> int:
    """Lots that execute at the price of a resting order before it does."""
    total, at = 0, engine.orders[row, BEFORE]
    while at >= 0:
        total += engine.orders[at, LOTS]
        at = engine.orders[at, BEFORE]
    return int(total)


@kernel
def first_at(engine: EngineState, side: int, ticks: int) -> int:
    """The row of the oldest order at a price, -1 when there is none; NEXT leads on."""
    if bk.level(engine.book, side, ticks) == 0:
        return -1
    return int(engine.ends[row_of(side), (-side * ticks) & _LEVEL_MASK, 0])


@kernel
def last_at(engine: EngineState, side: int, ticks: int) -> int:
    """The row of the newest order at a price, -1 when there is none; BEFORE leads on."""
    if bk.level(engine.book, side, ticks) == 0:
        return -1
    return int(engine.ends[row_of(side), (-side * ticks) & _LEVEL_MASK, 1])


class EngineExecution(NamedTuple):
    """Two orders met; the price is the maker's, ``maker_left`` what its order still has."""

    maker: int
    maker_owner: int
    taker: int
    taker_owner: int
    side: int  #: of the taker
    ticks: int
    lots: int
    maker_left: int


class MatchResult(NamedTuple):
    """What a request did. ``reference`` is zero when it was refused."""

    status: Status
    reference: int
    taken: int  #: lots executed on arrival
    left: int  #: lots that rest; of a cancel, the lots cancelled
    executions: tuple[EngineExecution, ...]


class RestingOrder(NamedTuple):
    """A resting order."""

    reference: int
    owner: int
    mark: int
    side: int
    ticks: int
    lots: int


class MatchingEngine:
    """The engine for Python code; ``state`` is what the kernels take, and share."""

    def __init__(self, capacity: int = 4096) -> None:
        if capacity < 1:
            raise ValueError(f"capacity {capacity}: expected one order or more")
        self.state = new_engine(capacity)

    def reserve(self, orders: int) -> None:
        """Make room for so many further orders; ``state`` may be replaced."""
        short = orders - int(self.state.head[ROOM])
        if short > 0:
            capacity = len(self.state.orders)
            self.state = grown(self.state, max(2 * capacity, capacity + short))

    def limit(
        self,
        side: int,
        ticks: int,
        lots: int,
        owner: int = 0,
        force: TimeInForce = TimeInForce.GOOD_TILL_CANCELLED,
        mark: int = 0,
    ) -> MatchResult:
        """A limit order; ``side`` +1 buys, -1 sells."""
        self._prepare()
        return self._outcome(enter(self.state, side, ticks, lots, owner, mark, int(force)))

    def market(
        self, side: int, lots: int, owner: int = 0, bound: int | None = None, mark: int = 0
    ) -> MatchResult:
        """A market order; ``bound`` is the worst price in ticks that it accepts."""
        if bound is not None and bound < 1:
            return MatchResult(Status.BAD_PRICE, 0, 0, 0, ())
        self._prepare()
        return self._outcome(market(self.state, side, lots, owner, mark, bound or 0))

    def cancel(self, reference: int) -> MatchResult:
        """Cancel an order; `MatchResult.left` are the lots that no longer rest."""
        self._prepare()
        return self._outcome(cancel(self.state, reference))

    def amend(
        self,
        reference: int,
        ticks: int,
        lots: int,
        force: TimeInForce = TimeInForce.GOOD_TILL_CANCELLED,
    ) -> MatchResult:
        """Change a resting order's price and the lots it has left, under the same reference.

        ``force``: GOOD_TILL_CANCELLED or POST_ONLY; ValueError for another.
        """
        if force not in (TimeInForce.GOOD_TILL_CANCELLED, TimeInForce.POST_ONLY):
            raise ValueError(f"{force.name}: a resting order is amended to rest or to post only")
        self._prepare()
        return self._outcome(amend(self.state, reference, ticks, lots, int(force)))

    def _prepare(self) -> None:
        self.reserve(1)
        clear_fills(self.state)

    def _outcome(self, code: int) -> MatchResult:
        status = Status(code)
        if status < 0:
            return MatchResult(status, 0, 0, 0, ())
        head = self.state.head
        reference, left = int(head[REFERENCE]), int(head[LEFT])
        if status is Status.CANCELLED:
            return MatchResult(status, reference, 0, left, ())
        fills = self.state.fills[: head[FILLS]].tolist()
        executions = tuple(EngineExecution(*fill) for fill in fills)
        return MatchResult(status, reference, int(head[TAKEN]), left, executions)

    def order(self, reference: int) -> RestingOrder | None:
        """The order that rests under a reference, None when none does."""
        row = row_under(self.state, reference)
        return None if row < 0 else self._order(row)

    def _order(self, row: int) -> RestingOrder:
        side, ticks, lots, owner, mark, _, _, generation = self.state.orders[row].tolist()
        return RestingOrder(generation << 32 | row, owner, mark, side, ticks, lots)

    def lots_ahead(self, reference: int) -> int | None:
        """Lots before an order in its queue, None when no order rests under the reference."""
        row = row_under(self.state, reference)
        return None if row < 0 else int(lots_ahead(self.state, row))

    def queue(self, side: int, ticks: int) -> list[RestingOrder]:
        """The orders at a price, oldest first."""
        found, row = [], int(first_at(self.state, side, ticks))
        while row >= 0:
            found.append(self._order(row))
            row = int(self.state.orders[row, NEXT])
        return found

    def best(self, side: int) -> int | None:
        """Best price of a side in ticks, None when the side is empty."""
        ticks = int(bk.best(self.state.book, side))
        return None if ticks == bk.NO_LEVEL else ticks

    def levels(self, side: int, n: int | None = None) -> list[tuple[int, int]]:
        """The best ``n`` levels of a side (all by default) as (price_ticks, qty_lots), best first."""
        held = int(bk.count(self.state.book, side))
        room = held if n is None else min(n, held)
        ticks, lots = np.empty(room, np.int64), np.empty(room, np.int64)
        bk.top(self.state.book, side, ticks, lots)
        return list(zip(ticks.tolist(), lots.tolist(), strict=True))

    @property
    def counts(self) -> dict[str, int]:
        """Lots added, executed and cancelled and events since the beginning, and orders that rest.

        An event is an order entered, amended or cancelled, or an execution.
        """
        head = self.state.head
        return {
            "added": int(head[ADDED]),
            "executed": int(head[EXECUTED]),
            "cancelled": int(head[CANCELLED]),
            "events": int(head[EVENTS]),
            "orders": len(self.state.orders) - int(head[ROOM]),
        }
