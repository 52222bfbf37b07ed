"""Matching without partial fills: the rules on which an independent engine (hftbacktest) agrees.

An order fills whole or not at all, and quantity is not conserved: each of our orders is matched as if
it were alone, and a level or a print may fill several. It exists to be compared, and as an optimistic
bound; `queue` is the realistic mode. What differs from there:

- every book row is judged by itself, not the frame: the queue at its price, then the touch;
- a row that crosses the other side moves that side's best beyond it, and the crossed levels count
  again only when the feed restates them. *touch*, (2,) best bid and best ask, is followed so;
- a resting order fills at its own price when the opposite touch improves to it or beyond, when a
  print passes it, or when a print at its price has used up the queue ahead.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from execution.simulation.queue import HIDDEN, Queue, depth_changed, nearest
from market.book import NO_LEVEL, BookState, begin_row, end_row, next_level, row_of, set_row
from market.events import Flag, Kind
from market.kernel import inlined, kernel

_TRADE: Final = int(Kind.TRADE)
_SNAPSHOT: Final = int(Kind.SNAPSHOT)
_DELTA: Final = int(Kind.DELTA)
_FIRST: Final = int(Flag.FIRST)

Touch = npt.NDArray[np.int64]


def new_touch() -> Touch:
    """Best bid and best ask in ticks of an empty book."""
    return np.full(2, NO_LEVEL, np.int64)


@inlined
def _improved(book: BookState, touch: Touch, side: int, price_ticks: int, qty_lots: int) -> bool:
    """Follow the touch through a level's change; whether the side's best improved."""
    own, other = row_of(side), row_of(-side)
    if qty_lots == 0:
        if price_ticks == touch[own]:
            touch[own] = next_level(book, side, price_ticks)
        return False
    if touch[own] != NO_LEVEL and side * (price_ticks - touch[own]) <= 0:
        return False
    touch[own] = price_ticks
    if touch[other] != NO_LEVEL and side * (price_ticks - touch[other]) >= 0:
        touch[other] = next_level(book, -side, price_ticks)
    return True


@kernel
def _fill(queue: Queue, place: int) -> int:
    """Fill a resting order whole; returns its lots."""
    order = queue.resting[place]
    lots = order.leaves
    order.filled += lots
    order.leaves = 0
    return int(lots)


@kernel
def _traded(queue: Queue, side: int, price_ticks: int, qty_lots: int) -> int:
    """A print that consumed orders of ``side``; returns the lots of ours that it filled."""
    total = 0
    for n in range(queue.used[0]):
        order = queue.resting[n]
        better = side * (order.price_ticks - price_ticks)
        if order.side != side or better < 0:
            continue
        if better == 0:
            order.ahead -= qty_lots
            order.traded += qty_lots
        if better > 0 or nearest(-order.ahead) > 0:
            total += _fill(queue, n)
    return total


@inlined
def _level_changed(
    book: BookState,
    queue: Queue,
    touch: Touch,
    side: int,
    price_ticks: int,
    before: int,
    shown: int,
    model: int,
    power: float,
) -> int:
    """A level went from ``before`` to ``shown`` lots; returns the lots of ours that it filled."""
    for n in range(queue.used[0]):
        order = queue.resting[n]
        if order.side == side and order.price_ticks == price_ticks:
            order.shown = before
            depth_changed(order, shown, model, power)
    total = 0
    if _improved(book, touch, side, price_ticks, shown):
        for n in range(queue.used[0]):
            order = queue.resting[n]
            if order.side == -side and order.side * (order.price_ticks - price_ticks) >= 0:
                total += _fill(queue, n)
    return total


@inlined
def row_matched_whole(
    book: BookState, queue: Queue, touch: Touch, event: Any, model: int, power: float
) -> int:
    """Apply a row to the book, the touch and our resting orders; returns the lots of ours that
    filled, which are in ``filled`` of the resting orders."""
    filled = 0
    if event.kind == _TRADE:
        if event.flags & HIDDEN == 0:
            filled = _traded(queue, -event.side, event.price_ticks, event.qty_lots)
    elif event.kind == _SNAPSHOT or event.kind == _DELTA:
        begin_row(book, event)
        if event.kind == _SNAPSHOT and event.flags & _FIRST:
            touch[:] = NO_LEVEL
        before = set_row(book, event)
        if abs(event.side) == 1 and event.qty_lots >= 0:
            side, price, shown = event.side, event.price_ticks, event.qty_lots
            filled = _level_changed(book, queue, touch, side, price, before, shown, model, power)
        end_row(book, event)
    return int(filled)
