"""What becomes of our requests when they arrive at the simulated exchange, compiled.

| order              | crosses                                   | does not cross |
|--------------------|-------------------------------------------|----------------|
| limit GTC          | takes displayed quantity, the rest rests  | rests          |
| limit IOC, market  | takes displayed quantity, rest cancelled  | cancelled      |
| limit FOK          | whole at once, or cancelled               | cancelled      |
| PostOnly           | cancelled                                 | rests          |

Resting orders fill as `queue` says. Quantity is conserved: the position is the signed sum of
executions, a displayed level is taken once, and a print passes our orders once.

That is mode ``partial``. In mode ``whole`` there are no partial fills: resting orders fill as `whole`
says, and whatever crosses fills whole at the best opposite price.

No self-match prevention is needed: each of our orders meets the recorded market only.

An amend that moves the price or raises the quantity loses queue position; a lower quantity keeps it.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from execution.orders import TimeInForce
from execution.simulation import state as st
from execution.simulation.latency import response_ns
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
from execution.simulation.state import CODE, POLICIES, Reason, ReplayState
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
def _report(
    state: ReplayState, kind: int, number: int, detail: int, price_ticks: int, qty_lots: int
) -> None:
    """Send an outcome of order ``number``: first in, first out, and never into our past."""
    scalars, order = state.scalars[0], state.orders[number]
    clock = scalars.clock_ns
    count, elapsed = scalars.matched_rows, clock - scalars.matched_ns
    due = clock + response_ns(state.latency, clock, count, elapsed)
    scalars.last_due_ns = max(due, scalars.last_due_ns, scalars.now_ns)
    outcome = state.outbox[scalars.outbox_end]
    outcome.due_ns, outcome.venue_ns = scalars.last_due_ns, clock
    outcome.kind, outcome.order, outcome.detail = kind, number, detail
    outcome.price_ticks, outcome.qty_lots = price_ticks, qty_lots
    outcome.leaves_lots = order.qty_lots - order.filled_lots
    outcome.queue_ahead_lots, outcome.execution = order.queue_ahead_lots, order.executions
    scalars.outbox_end += 1


@kernel
def _finish(state: ReplayState, number: int) -> None:
    """Take a finished order out of the queue and out of the open orders."""
    leave(state.queue, number)
    state.orders[number].state = st.FINISHED
    state.scalars[0].open_orders -= 1


@kernel
def _cancel(state: ReplayState, number: int, reason: int) -> None:
    _finish(state, number)
    _report(state, st.CANCELLED, number, reason, 0, 0)


@kernel
def _fill(state: ReplayState, number: int, price_ticks: int, lots: int, maker: int) -> None:
    """Book one execution; a reduce-only order never does more than flatten."""
    order, scalars = state.orders[number], state.scalars[0]
    if order.reduce_only:
        lots = min(lots, max(0, -order.side * scalars.position_lots))
    if lots > 0:
        order.filled_lots += lots
        order.executions += 1
        scalars.position_lots += order.side * lots
        _report(state, st.FILLED, number, maker, price_ticks, lots)
    if order.filled_lots == order.qty_lots:
        _finish(state, number)
    elif order.reduce_only and order.side * scalars.position_lots >= 0:
        _cancel(state, number, _NOT_REDUCING)


@kernel
def book_fills(state: ReplayState) -> None:
    """Book what the last row filled of resting orders, in their priority."""
    resting, used = state.queue.resting, state.queue.used
    n = 0
    while n < used[0]:
        lots, number = resting[n].filled, resting[n].order
        if lots > 0:
            resting[n].filled = 0
            _fill(state, number, resting[n].price_ticks, lots, 1)
        if n < used[0] and resting[n].order == number:
            n += 1


# -- arrivals --------------------------------------------------------------------------------------


@kernel
def _matches(state: ReplayState) -> bool:
    """Whether orders can be matched now; mode ``whole`` has a touch in a crossed book too."""
    if state.scalars[0].whole:
        return bool(state.book[0].status & SYNCHRONISED)
    return bool(is_known(state.book))


@kernel
def _rejection(state: ReplayState, order: Any) -> int:
    """Code of the reason why an arriving order is rejected; 0 when it is not."""
    scalars, book, earlier = state.scalars[0], state.book, order.earlier
    # An id is free again when no order under it was ever accepted.
    while earlier >= 0:
        if state.orders[earlier].state != st.REFUSED:
            return _DUPLICATE
        earlier = state.orders[earlier].earlier
    if order.side != 1 and order.side != -1:
        return _SIDE
    if order.qty_lots <= 0 or order.qty_lots > st.MOST:
        return _QUANTITY
    if order.qty_lots < scalars.min_lots:
        return _MIN_QUANTITY
    market = order.policy == st.MARKET
    if not market and (order.price_ticks <= 0 or order.price_ticks > st.MOST):
        return _PRICE
    if not _matches(state):
        return _NO_BOOK
    stale = scalars.clock_ns - book[0].receive_ns > scalars.stale_ns
    if market and (stale or not is_valid(book)):
        return _NO_MARKET
    if order.reduce_only:
        return _NOT_REDUCING if order.side * scalars.position_lots >= 0 else 0
    price = best(book, -order.side) if market else order.price_ticks
    # The least price of enough notional: the notional itself might not fit into 64 bits.
    # Rounded up twice, which is rounding up once: unit × quantity can be beyond int64.
    if price < -(-scalars.min_value_e8 // scalars.unit_e8 // order.qty_lots):
        return _MIN_NOTIONAL
    return 0


@kernel
def _match_whole(state: ReplayState, number: int) -> None:
    """`_match` in mode ``whole``."""
    order = state.orders[number]
    opposite = state.touch[row_of(-order.side)]
    crosses = opposite != NO_LEVEL and (
        order.policy == st.MARKET or order.side * (order.price_ticks - opposite) >= 0
    )
    if crosses and order.policy == _POST:
        _cancel(state, number, _POST_ONLY)
    elif crosses:
        _fill(state, number, opposite, order.qty_lots - order.filled_lots, 0)
    elif order.policy in (_IOC, _FOK, st.MARKET):
        _cancel(state, number, _NOT_FILLED)
    else:
        _rest(state, number)


@kernel
def _match(state: ReplayState, number: int) -> None:
    """Match an order that arrives or whose price changed; what may rest joins the queue."""
    if state.scalars[0].whole:
        _match_whole(state, number)
        return
    order, book, queue = state.orders[number], state.book, state.queue
    side, policy = order.side, order.policy
    limit = side * _ANY_PRICE if policy == st.MARKET else order.price_ticks
    takeable = reachable(book, queue, side, limit)
    if policy == _POST and takeable > 0:
        _cancel(state, number, _POST_ONLY)
        return
    if policy == _FOK and takeable < order.qty_lots - order.filled_lots:
        _cancel(state, number, _NOT_FILLED)
        return
    price = best(book, -side)
    while order.state == st.OPEN and price != NO_LEVEL and side * (limit - price) >= 0:
        lots = min(order.qty_lots - order.filled_lots, available(book, queue, -side, price))
        if order.reduce_only:
            lots = min(lots, -side * state.scalars[0].position_lots)
        if lots > 0:
            take(queue, -side, price, lots)
            _fill(state, number, price, lots, 0)
        price = next_level(book, -side, price)
    if order.state != st.OPEN:
        return
    if policy in (_IOC, _FOK, st.MARKET):
        _cancel(state, number, _NOT_FILLED)
    else:
        _rest(state, number)


@kernel
def _rest(state: ReplayState, number: int) -> None:
    """Join the queue behind the displayed quantity, and behind our own earlier orders."""
    order, scalars = state.orders[number], state.scalars[0]
    side, price = order.side, order.price_ticks
    displayed = level(state.book, side, price)
    order.queue_ahead_lots = displayed
    ahead = float(displayed)
    # Beyond the displayed window the queue is unknown until the price comes into view.
    if (
        displayed == 0
        and not scalars.whole
        and beyond_window(state.book, side, price, scalars.window_levels)
    ):
        ahead = np.inf
    join(state.queue, number, side, price, order.qty_lots - order.filled_lots, ahead)


@kernel
def _amend(state: ReplayState, number: int, new_price: int, new_qty: int) -> None:
    order = state.orders[number]
    price = order.price_ticks if new_price == st.KEEP else new_price
    qty = order.qty_lots if new_qty == st.KEEP else new_qty
    requeues = price != order.price_ticks or qty > order.qty_lots
    reason = 0
    if price <= 0 or price > st.MOST:
        reason = _PRICE
    elif qty > st.MOST:
        reason = _QUANTITY
    elif qty <= order.filled_lots:
        reason = _BELOW_FILLED
    elif qty < state.scalars[0].min_lots:
        reason = _MIN_QUANTITY
    elif requeues and not _matches(state):
        reason = _NO_BOOK
    if reason:
        _report(state, st.CANCEL_REJECTED, number, reason, 0, 0)
        return
    order.qty_lots = qty
    _report(state, st.AMENDED, number, 0, price, qty)
    if requeues:
        leave(state.queue, number)
        order.price_ticks = price
        _match(state, number)
    else:
        place = place_of(state.queue, number)
        state.queue.resting[place].leaves = qty - order.filled_lots


@kernel
def arrive(state: ReplayState, request: Any) -> None:
    """A request reaches the exchange at its clock."""
    number = request.order
    if request.kind == st.SUBMIT:
        order, scalars = state.orders[number], state.scalars[0]
        reason = request.reason
        if reason == 0:
            reason = _rejection(state, order)
        if reason:
            order.state = st.REFUSED
            _report(state, st.REJECTED, number, reason, 0, 0)
            return
        order.state = st.OPEN
        scalars.open_orders += 1
        scalars.acceptances += 1
        _report(state, st.ACCEPTED, number, scalars.acceptances, 0, 0)
        _match(state, number)
        return
    # A rejected order leaves its client id to the one that had it before.
    while state.orders[number].state == st.REFUSED and state.orders[number].earlier >= 0:
        number = state.orders[number].earlier
    order_state = state.orders[number].state
    if order_state != st.OPEN:
        reason = _FINISHED if order_state == st.FINISHED else _NO_ORDER
        _report(state, st.CANCEL_REJECTED, number, reason, 0, 0)
    elif request.reason:
        _report(state, st.CANCEL_REJECTED, number, request.reason, 0, 0)
    elif request.kind == st.CANCEL:
        _cancel(state, number, _BY_USER)
    else:
        _amend(state, number, request.price_ticks, request.qty_lots)
