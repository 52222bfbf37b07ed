"""Queue position of our resting orders: recorded rows matched against them, compiled.

The recorded market does not know of us, so two quantities are kept beside the displayed book:

- *ahead*: the quantity in the queue ahead of a resting order at its price. It starts as the displayed
  quantity there. A trade at the price takes from it; when the displayed quantity shrinks by more
  than the trades explain, orders were cancelled, and a queue model says how many of them stood ahead
  of us (Rigtorp 2013; the formulas are those of hftbacktest). ``risk_averse`` assumes that all of
  them stood behind, the ``power`` and ``log`` models share them out by position.
- *taken*: the part of a displayed level that we have consumed. It is not there a second time: it
  becomes available again only as the feed shows new quantity at that price.

Which model is honest cannot be seen in level-2 data: report the two `BOUNDS`, between which every
model's fills lie, and read a result that holds under one model only as no result.

Quantities are in lots, also inside the ``log`` and ``power`` formulas (``log1``, ``log2`` depend on
the unit). A frame is one instant: depth changes are judged at its ``LAST`` row.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from market.book import (
    CROSSED,
    NO_LEVEL,
    SYNCHRONISED,
    BookState,
    apply,
    best,
    count,
    level,
    next_level,
)
from market.events import Flag, Kind
from market.kernel import inlined, kernel

#: Queue models by name, as in ``settings.execution.queue``; ``pessimistic`` is another name of the rule of
#: ``risk_averse``.
MODELS: Final = {
    "risk_averse": 0,
    "power1": 1,
    "power2": 2,
    "power3": 3,
    "log1": 4,
    "log2": 5,
    "pessimistic": 6,
    "optimistic": 7,
}
#: Bounds of every other model's fills in mode ``partial``: cancels all come from behind us, or all
#: from ahead.
BOUNDS: Final = ("pessimistic", "optimistic")
_RISK_AVERSE: Final = 0
_PESSIMISTIC: Final = 6
_OPTIMISTIC: Final = 7

#: One resting order. ``order`` is its number, ``leaves`` its open lots. ``ahead`` may hold a fraction;
#: ``shown`` is the displayed quantity that the queue model saw last, ``traded`` what traded at the
#: price since then, ``filled`` what the present row filled, ``touched`` whether the current frame
#: names the price (1) or all prices (2).
RESTING: Final = np.dtype(
    [
        ("order", "i8"),
        ("side", "i8"),
        ("price_ticks", "i8"),
        ("leaves", "i8"),
        ("ahead", "f8"),
        ("traded", "f8"),
        ("shown", "i8"),
        ("filled", "i8"),
        ("touched", "i8"),
    ]
)
TAKEN: Final = np.dtype([("side", "i8"), ("price_ticks", "i8"), ("lots", "i8")])

_TRADE: Final = int(Kind.TRADE)
_SNAPSHOT: Final = int(Kind.SNAPSHOT)
_FIRST: Final = int(Flag.FIRST)
HIDDEN: Final = int(Flag.RPI | Flag.BLOCK)  #: prints that met no order of the visible book


class Queue(NamedTuple):
    """Our side of one symbol's market. ``used`` counts the rows in use of both tables.

    ``resting`` is sorted by priority: better price first, then earlier arrival.
    """

    resting: npt.NDArray[np.void]  #: dtype RESTING
    taken: npt.NDArray[np.void]  #: dtype TAKEN; an entry with zero lots is free
    used: npt.NDArray[np.int64]  #: (2,)


def new_queue(resting: int = 16, taken: int = 1024) -> Queue:
    """Empty tables with room for so many resting orders and taken levels."""
    return Queue(np.zeros(resting, RESTING), np.zeros(taken, TAKEN), np.zeros(2, np.int64))


def make_room(book: BookState, queue: Queue, orders: int = 1) -> Queue:
    """A queue with room for ``orders`` more, and for all that is displayed to be taken."""
    resting, taken, used = queue.resting, queue.taken, queue.used
    if used[0] + orders > len(resting):
        resting = np.concatenate([resting, np.zeros(len(resting) + orders, RESTING)])
    displayed = int(count(book, 1)) + int(count(book, -1))
    if used[1] + displayed > len(taken):
        live = taken[: used[1]][taken["lots"][: used[1]] > 0]
        room = 2 * (len(live) + displayed)
        taken = np.zeros(max(room, len(taken)), TAKEN)
        taken[: len(live)] = live
        used[1] = len(live)
    return Queue(resting, taken, used)


@inlined
def has_room(book: BookState, queue: Queue) -> bool:
    """Whether one more order could rest, and all that is displayed be taken, level by level."""
    displayed = count(book, 1) + count(book, -1)
    taken_fits = queue.used[1] + displayed <= len(queue.taken)
    return bool(taken_fits and queue.used[0] < len(queue.resting))


@kernel
def join(queue: Queue, order: int, side: int, price_ticks: int, leaves: int, ahead: float) -> None:
    """Join the end of a price's queue, behind ``ahead`` lots that are not ours."""
    resting, used = queue.resting, queue.used
    place = used[0]
    while place > 0 and -resting[place - 1].side * resting[place - 1].price_ticks > (
        -side * price_ticks
    ):
        resting[place] = resting[place - 1]
        place -= 1
    entry = resting[place]
    entry.order, entry.side, entry.price_ticks, entry.leaves = order, side, price_ticks, leaves
    entry.ahead, entry.traded = ahead, 0.0
    entry.shown = 0 if math.isinf(ahead) else int(ahead)
    entry.filled = entry.touched = 0
    used[0] += 1


@kernel
def place_of(queue: Queue, order: int) -> int:
    """Row of an order among the resting ones, -1 when it does not rest."""
    for n in range(queue.used[0]):
        if queue.resting[n].order == order:
            return n
    return -1


@kernel
def leave(queue: Queue, order: int) -> None:
    """Take an order out of its queue, if it is in one."""
    place = place_of(queue, order)
    if place >= 0:
        queue.used[0] -= 1
        for n in range(place, queue.used[0]):
            queue.resting[n] = queue.resting[n + 1]


@kernel
def share_behind(model: int, power: float, ahead: float, behind: float) -> float:
    """Probability that a cancelled quantity stood behind us, with f lots ahead and b behind.

    power1 bⁿ/(bⁿ+fⁿ), power2 bⁿ/(b+f)ⁿ, power3 1-(f/(f+b))ⁿ; log1 and log2 are power1 and power2
    with n = 1 and ln(1+x) in place of x. NaN where the formula has no value, which is for its caller
    to resolve: an empty queue, or (in the published rules) quantities below zero.
    """
    if model == 4:
        share = math.log(1 + behind) / (math.log(1 + behind) + math.log(1 + ahead))
    elif model == 5:
        share = math.log(1 + behind) / math.log(1 + behind + ahead)
    elif model == 1:
        share = behind**power / (behind**power + ahead**power)
    elif model == 2:
        share = behind**power / (behind + ahead) ** power
    else:
        share = 1 - (ahead / (ahead + behind)) ** power
    return 1.0 if math.isinf(share) else share


@inlined
def depth_changed(order: Any, shown: int, model: int, power: float) -> None:
    """The displayed quantity at an order's price is now ``shown``; ``ahead`` is never NaN."""
    change = order.shown - shown - order.traded
    behind = order.shown - order.ahead
    order.shown = shown
    order.traded = 0
    passive = model in (_RISK_AVERSE, _PESSIMISTIC)
    if passive or change < 0 or math.isinf(order.ahead):
        order.ahead = min(order.ahead, float(shown))
        return
    share = 0.0 if model == _OPTIMISTIC else share_behind(model, power, order.ahead, behind)
    # Rust's min, which the independent engine uses, prefers the number to NaN.
    moved = behind - share * change
    estimate = order.ahead - (1 - share) * change + (min(moved, 0.0) if moved == moved else 0.0)
    order.ahead = min(estimate, float(shown)) if estimate == estimate else float(shown)


@kernel
def nearest(lots: float) -> int:
    """Nearest whole number, halves away from zero."""
    return int(math.copysign(math.floor(abs(lots) + 0.5), lots))


@kernel
def _traded(queue: Queue, side: int, price_ticks: int, qty_lots: int) -> int:
    """A print of ``qty_lots`` that consumed orders of ``side``; returns the lots of ours it filled.

    Its quantity is there once: it passes our orders in priority. An order priced better than the
    print would have been met first, whatever queued ahead of it.
    """
    pool = qty_lots
    for n in range(queue.used[0]):
        order = queue.resting[n]
        better = side * (order.price_ticks - price_ticks)
        if order.side != side or better < 0:
            continue
        if better > 0:
            order.ahead = 0.0
            fill = min(order.leaves, pool)
        else:
            order.ahead -= pool
            order.traded += qty_lots
            fill = 0
            if order.ahead < 0:
                fill = min(nearest(-order.ahead), min(order.leaves, pool))
                order.ahead += fill
        order.leaves -= fill
        order.filled += fill
        pool -= fill
    return qty_lots - pool


@kernel
def _taken_at(queue: Queue, side: int, price_ticks: int) -> int:
    """Row of a level in the table of what we took, -1 when it has none."""
    for n in range(queue.used[1]):
        entry = queue.taken[n]
        if entry.lots > 0 and entry.price_ticks == price_ticks and entry.side == side:
            return n
    return -1


@kernel
def available(book: BookState, queue: Queue, side: int, price_ticks: int) -> int:
    """Displayed lots at a level that we have not consumed."""
    place = _taken_at(queue, side, price_ticks)
    displayed = level(book, side, price_ticks)
    return int(displayed if place < 0 else displayed - queue.taken[place].lots)


@kernel
def take(queue: Queue, side: int, price_ticks: int, qty_lots: int) -> None:
    """Note that we consumed a part of a level; `make_room` has made room for it."""
    place = _taken_at(queue, side, price_ticks)
    if place < 0:
        place = 0
        while place < queue.used[1] and queue.taken[place].lots > 0:
            place += 1
        queue.used[1] = max(queue.used[1], place + 1)
        entry = queue.taken[place]
        entry.side = side
        entry.price_ticks = price_ticks
        entry.lots = 0
    queue.taken[place].lots += qty_lots


@kernel
def is_known(book: BookState) -> bool:
    """Whether the displayed book may be matched against: synchronised and not crossed."""
    return bool(book[0].status & (SYNCHRONISED | CROSSED) == SYNCHRONISED)


@kernel
def reachable(book: BookState, queue: Queue, side: int, limit_ticks: int) -> int:
    """Opposite lots that an order of ``side`` could take now at ``limit_ticks`` or better."""
    total = 0
    price = best(book, -side)
    while price != NO_LEVEL and side * (limit_ticks - price) >= 0:
        total += available(book, queue, -side, price)
        price = next_level(book, -side, price)
    return total


@kernel
def _fill_crossed(book: BookState, queue: Queue) -> int:
    """Fill resting orders that the opposite side has reached, at their own price, as far as the
    quantity displayed there goes; returns the lots."""
    total = 0
    for n in range(queue.used[0]):
        order = queue.resting[n]
        side = order.side
        price = best(book, -side)
        while order.leaves > 0 and price != NO_LEVEL and side * (order.price_ticks - price) >= 0:
            lots = min(order.leaves, available(book, queue, -side, price))
            if lots > 0:
                take(queue, -side, price, lots)
                order.leaves -= lots
                order.filled += lots
                total += lots
            price = next_level(book, -side, price)
    return total


@kernel
def beyond_window(book: BookState, side: int, price_ticks: int, depth: int) -> bool:
    """Whether a price lies past the last level of a book that shows ``depth`` levels and no more.

    The quantity there is unknown: a level that leaves the window has not been cancelled.
    """
    if count(book, side) < depth:
        return False
    price = best(book, side)
    while price != NO_LEVEL:
        if side * (price_ticks - price) >= 0:
            return False
        price = next_level(book, side, price)
    return True


@kernel
def _prune(book: BookState, queue: Queue) -> None:
    """Cap the lots taken of each level at the quantity still displayed there."""
    taken, used = queue.taken, queue.used
    for n in range(used[1]):
        entry = taken[n]
        if entry.lots > 0:
            entry.lots = min(entry.lots, level(book, entry.side, entry.price_ticks))
    while used[1] > 0 and taken[used[1] - 1].lots == 0:
        used[1] -= 1


@kernel
def _frame_ended(book: BookState, queue: Queue, model: int, power: float, depth: int) -> int:
    """Judge a whole frame: queues, what we took, and which orders the opposite side reached.

    ``ahead`` is kept at zero or more, where shares are probabilities; the published formulas let it
    fall below, which has no meaning.
    """
    _prune(book, queue)
    for n in range(queue.used[0]):
        order = queue.resting[n]
        if order.touched:
            shown = level(book, order.side, order.price_ticks)
            # A snapshot that repeats the displayed quantity says nothing about the queue.
            repeated = order.touched == 2 and shown == order.shown
            order.touched = 0
            if repeated:
                continue
            if shown > 0 or not beyond_window(book, order.side, order.price_ticks, depth):
                order.ahead = max(order.ahead, 0.0)
                depth_changed(order, shown, model, power)
                order.ahead = max(order.ahead, 0.0)
    return _fill_crossed(book, queue) if is_known(book) else 0


@inlined
def row_matched(
    book: BookState, queue: Queue, event: Any, model: int, power: float, depth: int
) -> int:
    """Apply a row to the book and to our resting orders; returns the lots of ours that filled.

    The fills are in ``filled`` of the resting orders.
    """
    resting, used = queue.resting, queue.used
    if event.kind == _TRADE:
        if event.flags & HIDDEN == 0 and used[0] > 0:
            return int(_traded(queue, -event.side, event.price_ticks, event.qty_lots))
        return 0
    restated = event.kind == _SNAPSHOT and event.flags & _FIRST
    for k in range(used[0]):
        order = resting[k]
        if restated:
            order.touched = 2
        elif order.touched == 0 and order.price_ticks == event.price_ticks:
            order.touched = order.side == event.side
    if apply(book, event) and used[0] + used[1] > 0:
        return int(_frame_ended(book, queue, model, power, depth))
    return 0
