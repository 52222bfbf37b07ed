"""What becomes of our orders at the simulated exchange, compiled.

| order              | crosses                                   | does not cross |
|--------------------|-------------------------------------------|----------------|
| limit GTC          | takes displayed quantity, the rest rests  | rests          |
| limit IOC, market  | takes displayed quantity, rest cancelled  | cancelled      |
| limit FOK          | whole at once, or cancelled               | cancelled      |
| PostOnly           | cancelled                                 | rests          |

Resting orders fill as `execution.simulation.queue` says. Quantity is conserved: the position is the signed sum
of executions, a displayed level is taken once, and a print passes our orders once.

That is mode ``partial``. In mode ``whole`` nothing fills in part: resting orders fill as
`execution.simulation.whole` says, and whatever crosses fills whole at the best opposite price.

Our own orders never meet each other: each meets the recorded market only.

An amendment that moves the price or asks for more goes to the end of the queue; less keeps the place.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from execution.orders import TimeInForce
from execution.simulation import exchange as ex
from execution.simulation.exchange import CODE, POLICIES, Exchange, Reason
from execution.simulation.latency import ACTIVITY, rate_at, response_ns
from execution.simulation.queue import (
    available,
    beyond_window,
    is_known,
    join,
    leave,
    place_of,
    reachable,
    take,
)
from market.book import (
    NO_LEVEL,
    SYNCHRONISED,
    best,
    is_valid,
    level,
    next_level,
    row_of,
)
from market.kernel import kernel

_DUPLICATE: Final = CODE[Reason.DUPLICATE]
_SIDE: Final = CODE[Reason.SIDE]
_PRICE: Final = CODE[Reason.PRICE]
_QUANTITY: Final = CODE[Reason.QUANTITY]
_MIN_QUANTITY: Final = CODE[Reason.MIN_QUANTITY]
_MIN_NOTIONAL: Final = CODE[Reason.MIN_NOTIONAL]
_NO_BOOK: Final = CODE[Reason.NO_BOOK]
_NO_MARKET: Final = CODE[Reason.NO_MARKET]
_NOT_REDUCING: Final = CODE[Reason.NOT_REDUCING]
_POST_ONLY: Final = CODE[Reason.POST_ONLY]
_NOT_FILLED: Final = CODE[Reason.NOT_FILLED]
_BY_USER: Final = CODE[Reason.BY_USER]
_NO_ORDER: Final = CODE[Reason.NO_ORDER]
_FINISHED: Final = CODE[Reason.FINISHED]
_BELOW_FILLED: Final = CODE[Reason.BELOW_FILLED]

_IOC: Final = POLICIES.index(TimeInForce.IOC)
_FOK: Final = POLICIES.index(TimeInForce.FOK)
_POST: Final = POLICIES.index(TimeInForce.POST_ONLY)

#: A limit price that every displayed price satisfies.
_ANY_PRICE: Final = 1 << 60


@kernel
def _say(
    exchange: Exchange,
    outcome: int,
    order: int,
    detail: int,
    price_ticks: int,
    qty_lots: int,
) -> None:
    """Put an outcome on its way: in order, and never into our past."""
    cells, asked = exchange.cells, exchange.orders[order]
    clock = cells[ex.CLOCK]
    rate = 0.0
    if exchange.latency.kind == ACTIVITY:
        rate = rate_at(exchange.reals[ex.MATCHED_ROWS], clock - cells[ex.MATCHED_NS])
    due = clock + response_ns(exchange.latency, clock, rate)
    cells[ex.LAST_DUE] = max(due, cells[ex.LAST_DUE], cells[ex.NOW])
    row = exchange.outbox[cells[ex.OUTBOX_END]]
    row[ex.DUE], row[ex.VENUE], row[ex.OUTCOME], row[ex.ORDER_NUMBER] = (
        cells[ex.LAST_DUE],
        clock,
        outcome,
        order,
    )
    row[ex.PRICE], row[ex.QTY], row[ex.DETAIL] = price_ticks, qty_lots, detail
    row[ex.LEAVES] = asked.qty_lots - asked.filled_lots
    row[ex.AHEAD], row[ex.EXECUTION] = asked.queue_ahead_lots, asked.executions
    cells[ex.OUTBOX_END] += 1


@kernel
def _close(exchange: Exchange, order: int) -> None:
    """The order is finished: out of the queue, out of the open orders."""
    leave(exchange.queue, order)
    exchange.orders[order].state = ex.FINISHED
    exchange.cells[ex.OPEN_ORDERS] -= 1


@kernel
def _cancel(exchange: Exchange, order: int, reason: int) -> None:
    _close(exchange, order)
    _say(exchange, ex.CANCELLED, order, reason, 0, 0)


@kernel
def _execute(exchange: Exchange, order: int, price_ticks: int, lots: int, maker: int) -> None:
    """Book one execution; a reduce-only order never does more than flatten."""
    asked, cells = exchange.orders[order], exchange.cells
    if asked.reduce_only:
        lots = min(lots, max(0, -asked.side * cells[ex.POSITION]))
    if lots > 0:
        asked.filled_lots += lots
        asked.executions += 1
        cells[ex.POSITION] += asked.side * lots
        _say(exchange, ex.FILLED, order, maker, price_ticks, lots)
    if asked.filled_lots == asked.qty_lots:
        _close(exchange, order)
    elif asked.reduce_only and asked.side * cells[ex.POSITION] >= 0:
        _cancel(exchange, order, _NOT_REDUCING)


@kernel
def book_fills(exchange: Exchange) -> None:
    """Book what the present row filled of resting orders, in their priority."""
    resting, used = exchange.queue.resting, exchange.queue.used
    n = 0
    while n < used[0]:
        lots, order = resting[n].filled, resting[n].order
        if lots > 0:
            resting[n].filled = 0
            _execute(exchange, order, resting[n].price_ticks, lots, 1)
        if n < used[0] and resting[n].order == order:
            n += 1


# -- arrivals --------------------------------------------------------------------------------------


@kernel
def _matches(exchange: Exchange) -> bool:
    """Whether orders can be matched now; mode ``whole`` has a touch in a crossed book too."""
    if exchange.cells[ex.WHOLE]:
        return bool(exchange.book[0].status & SYNCHRONISED)
    return bool(is_known(exchange.book))


@kernel
def _refusal(exchange: Exchange, asked: Any) -> int:
    """Code of the reason why an arriving order is refused; 0 when it is not."""
    cells, book, earlier = exchange.cells, exchange.book, asked.earlier
    # An id is free again when no order under it was ever accepted.
    while earlier >= 0:
        if exchange.orders[earlier].state != ex.REFUSED:
            return _DUPLICATE
        earlier = exchange.orders[earlier].earlier
    if asked.side != 1 and asked.side != -1:
        return _SIDE
    if asked.qty_lots <= 0 or asked.qty_lots > ex.MOST:
        return _QUANTITY
    if asked.qty_lots < cells[ex.MIN_LOTS]:
        return _MIN_QUANTITY
    market = asked.policy == ex.MARKET
    if not market and (asked.price_ticks <= 0 or asked.price_ticks > ex.MOST):
        return _PRICE
    if not _matches(exchange):
        return _NO_BOOK
    silent = cells[ex.CLOCK] - book[0].receive_ns > cells[ex.STALE_NS]
    if market and (silent or not is_valid(book)):
        return _NO_MARKET
    if asked.reduce_only:
        return _NOT_REDUCING if asked.side * cells[ex.POSITION] >= 0 else 0
    price = best(book, -asked.side) if market else asked.price_ticks
    # The least price whose value is enough: the value itself might not fit into 64 bits.
    if price < -(-cells[ex.MIN_VALUE_E8] // (cells[ex.UNIT_E8] * asked.qty_lots)):
        return _MIN_NOTIONAL
    return 0


@kernel
def _place_whole(exchange: Exchange, order: int) -> None:
    """`_place` in mode ``whole``."""
    asked = exchange.orders[order]
    opposite = exchange.touch[row_of(-asked.side)]
    crosses = opposite != NO_LEVEL and (
        asked.policy == ex.MARKET or asked.side * (asked.price_ticks - opposite) >= 0
    )
    if crosses and asked.policy == _POST:
        _cancel(exchange, order, _POST_ONLY)
    elif crosses:
        _execute(exchange, order, opposite, asked.qty_lots - asked.filled_lots, 0)
    elif asked.policy in (_IOC, _FOK, ex.MARKET):
        _cancel(exchange, order, _NOT_FILLED)
    else:
        _rest(exchange, order)


@kernel
def _place(exchange: Exchange, order: int) -> None:
    """Match an order that arrives or has moved; what may rest joins the queue."""
    if exchange.cells[ex.WHOLE]:
        _place_whole(exchange, order)
        return
    asked, book, queue = exchange.orders[order], exchange.book, exchange.queue
    side, policy = asked.side, asked.policy
    limit = side * _ANY_PRICE if policy == ex.MARKET else asked.price_ticks
    there = reachable(book, queue, side, limit)
    if policy == _POST and there > 0:
        _cancel(exchange, order, _POST_ONLY)
        return
    if policy == _FOK and there < asked.qty_lots - asked.filled_lots:
        _cancel(exchange, order, _NOT_FILLED)
        return
    price = best(book, -side)
    while asked.state == ex.OPEN and price != NO_LEVEL and side * (limit - price) >= 0:
        lots = min(asked.qty_lots - asked.filled_lots, available(book, queue, -side, price))
        if asked.reduce_only:
            lots = min(lots, -side * exchange.cells[ex.POSITION])
        if lots > 0:
            take(queue, -side, price, lots)
            _execute(exchange, order, price, lots, 0)
        price = next_level(book, -side, price)
    if asked.state != ex.OPEN:
        return
    if policy in (_IOC, _FOK, ex.MARKET):
        _cancel(exchange, order, _NOT_FILLED)
    else:
        _rest(exchange, order)


@kernel
def _rest(exchange: Exchange, order: int) -> None:
    """Stand behind what is displayed at the price, and behind our own earlier orders."""
    asked, cells = exchange.orders[order], exchange.cells
    side, price = asked.side, asked.price_ticks
    ahead = level(exchange.book, side, price)
    asked.queue_ahead_lots = ahead
    front = float(ahead)
    # Past the displayed window the queue is not known; it is when the price comes into view.
    if (
        ahead == 0
        and not cells[ex.WHOLE]
        and beyond_window(exchange.book, side, price, cells[ex.WINDOW_LEVELS])
    ):
        front = np.inf
    join(exchange.queue, order, side, price, asked.qty_lots - asked.filled_lots, front)


@kernel
def _amend(exchange: Exchange, order: int, new_price: int, new_qty: int) -> None:
    asked, cells = exchange.orders[order], exchange.cells
    price = asked.price_ticks if new_price == ex.KEEP else new_price
    qty = asked.qty_lots if new_qty == ex.KEEP else new_qty
    moves = price != asked.price_ticks or qty > asked.qty_lots
    reason = 0
    if price <= 0 or price > ex.MOST:
        reason = _PRICE
    elif qty > ex.MOST:
        reason = _QUANTITY
    elif qty <= asked.filled_lots:
        reason = _BELOW_FILLED
    elif qty < cells[ex.MIN_LOTS]:
        reason = _MIN_QUANTITY
    elif moves and not _matches(exchange):
        reason = _NO_BOOK
    if reason:
        _say(exchange, ex.CANCEL_REJECTED, order, reason, 0, 0)
        return
    asked.qty_lots = qty
    _say(exchange, ex.AMENDED, order, 0, price, qty)
    if moves:
        leave(exchange.queue, order)
        asked.price_ticks = price
        _place(exchange, order)
    else:
        place = place_of(exchange.queue, order)
        exchange.queue.resting[place].leaves = qty - asked.filled_lots


@kernel
def arrive(exchange: Exchange, request: npt.NDArray[np.int64]) -> None:
    """A request reaches the exchange at its clock."""
    order = request[ex.TARGET]
    if request[ex.REQUEST] == ex.SUBMIT:
        asked = exchange.orders[order]
        reason = request[ex.REFUSE]
        if reason == 0:
            reason = _refusal(exchange, asked)
        if reason:
            asked.state = ex.REFUSED
            _say(exchange, ex.REJECTED, order, reason, 0, 0)
            return
        asked.state = ex.OPEN
        exchange.cells[ex.OPEN_ORDERS] += 1
        exchange.cells[ex.ACCEPTANCES] += 1
        _say(exchange, ex.ACCEPTED, order, exchange.cells[ex.ACCEPTANCES], 0, 0)
        _place(exchange, order)
        return
    # A refused order leaves its client id to the one that bore it before.
    while exchange.orders[order].state == ex.REFUSED and exchange.orders[order].earlier >= 0:
        order = exchange.orders[order].earlier
    state = exchange.orders[order].state
    if state != ex.OPEN:
        reason = _FINISHED if state == ex.FINISHED else _NO_ORDER
        _say(exchange, ex.CANCEL_REJECTED, order, reason, 0, 0)
    elif request[ex.REFUSE]:
        _say(exchange, ex.CANCEL_REJECTED, order, request[ex.REFUSE], 0, 0)
    elif request[ex.REQUEST] == ex.CANCEL:
        _cancel(exchange, order, _BY_USER)
    else:
        _amend(exchange, order, request[ex.NEW_PRICE], request[ex.NEW_QTY])
