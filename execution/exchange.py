"""One symbol's simulated exchange: what becomes of our orders in a recorded market.

It knows the exchange's clock and nothing of latencies: `execution.simulator` brings rows and actions
in time order and carries the answers back. What becomes of an order at its arrival:

| order              | crosses                                   | does not cross |
|--------------------|-------------------------------------------|----------------|
| limit GTC          | takes displayed quantity, the rest rests  | rests          |
| limit IOC, market  | takes displayed quantity, rest cancelled  | cancelled      |
| limit FOK          | whole at once, or cancelled               | cancelled      |
| PostOnly           | cancelled                                 | rests          |

Resting orders fill as `execution.queue` says. Quantity is conserved: the position is the signed sum
of executions, a displayed level is taken once, and a print passes our orders once.

That is mode ``partial``. In mode ``whole`` nothing fills in part: resting orders fill as
`execution.whole` says, and whatever crosses fills whole at the best opposite price.
"""

from __future__ import annotations

from bisect import bisect_right
from decimal import Decimal
from enum import StrEnum
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from execution.account import E8, fee_e8, value_e8
from execution.orders import (
    Accepted,
    Action,
    Amend,
    Amended,
    Cancel,
    Cancelled,
    CancelRejected,
    Event,
    Filled,
    Liquidity,
    OrderType,
    Rejected,
    Submit,
    TimeInForce,
)
from execution.queue import (
    ANY_PRICE,
    MODELS,
    beyond_window,
    is_known,
    make_room,
    new_queue,
    reachable,
    replay,
    sweep,
)
from execution.whole import new_touch, replay_whole
from market.book import NO_LEVEL, STATUS, SYNCHRONISED, Book, count, row_of
from market.events import Events
from market.instruments import Instrument

#: Exchange modes by name.
MODES: Final = ("partial", "whole")


class Reason(StrEnum):
    """Why the simulated venue refused or cancelled."""

    UNKNOWN_SYMBOL = "symbol is not traded here"
    DUPLICATE = "client id was used before"
    SIDE = "side is neither +1 nor -1"
    PRICE = "price is not positive"
    QUANTITY = "quantity is not positive"
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


class Order(msgspec.Struct, kw_only=True, eq=False):
    """An order at the exchange."""

    asked: Submit
    price_ticks: int
    qty_lots: int
    priority: tuple[int, int] = (0, 0)
    queue_ahead_lots: int = 0
    filled_lots: int = 0
    executions: int = 0

    @property
    def leaves_lots(self) -> int:
        return self.qty_lots - self.filled_lots


class Exchange:
    """The venue's side of one symbol.

    ``queue`` names the queue model and ``queue_power`` is the exponent of the power models; fees are
    decimal strings, fractions of notional. Market orders are refused when the book has been silent
    for ``stale_after_ns``; ``window_levels`` is the depth of the book topic, ``mode`` one of `MODES`.

    Answers are events whose ``time_ns`` is still the venue's time.
    """

    def __init__(
        self,
        instrument: Instrument,
        *,
        queue: str,
        queue_power: float,
        taker_fee: str,
        maker_fee: str,
        stale_after_ns: int,
        window_levels: int,
        mode: str = "partial",
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"exchange mode {mode!r}: expected one of {', '.join(MODES)}")
        if queue not in MODELS:
            raise ValueError(f"queue {queue!r}: expected one of {', '.join(MODELS)}")
        self.instrument = instrument
        self.fees = {Liquidity.TAKER: taker_fee, Liquidity.MAKER: maker_fee}
        self.min_lots = instrument.qty_lots(instrument.min_qty)
        self.min_notional_e8 = int(Decimal(instrument.min_notional) * E8)
        self.stale_after_ns = stale_after_ns
        self.window_levels = window_levels
        self.model, self.power = MODELS[queue], queue_power
        self.book = Book()
        self.whole = mode == "whole"
        self.touch = new_touch()  #: followed in mode ``whole`` only
        self.clock_ns = 0
        self.position_lots = 0
        self.orders: dict[str, Order] = {}  #: open orders
        self.answers: list[Event] = []
        self.queue = new_queue()
        self.resting: list[Order] = []  #: in the order of ``queue.resting``
        self._arrived: set[str] = set()
        self._sequence = 0

    def replay(
        self,
        events: Events,
        exchange_ns: npt.NDArray[np.int64],
        start: int,
        until_ns: int,
    ) -> int:
        """Apply rows from ``start`` whose exchange time is not after ``until_ns``.

        Returns the next row; it stops behind the first row that fills an order of ours.
        """
        self.queue = make_room(self.book.state, self.queue)
        state, rows = (
            self.book.state,
            (events, exchange_ns, start, until_ns, self.model, self.power),
        )
        if self.whole:
            stop, filled = replay_whole(state, self.queue, self.touch, *rows)
        else:
            stop, filled = replay(state, self.queue, *rows, self.window_levels)
        if filled:
            self.clock_ns = max(self.clock_ns, int(exchange_ns[stop - 1]))
            self._collect()
        return int(stop)

    def _collect(self) -> None:
        """Book what the kernel filled."""
        filled = self.queue.resting["filled"]
        fills = [(order, int(filled[n])) for n, order in enumerate(self.resting) if filled[n]]
        filled[:] = 0
        for order, lots in fills:
            self._execute(order, order.price_ticks, lots, Liquidity.MAKER)

    def _execute(self, order: Order, price_ticks: int, lots: int, liquidity: Liquidity) -> None:
        """Book one execution; a reduce-only order never does more than flatten."""
        asked = order.asked
        if asked.reduce_only:
            lots = min(lots, max(0, -asked.side * self.position_lots))
        if lots:
            order.filled_lots += lots
            order.executions += 1
            self.position_lots += asked.side * lots
            value = value_e8(self.instrument, price_ticks, lots)
            self.answers.append(
                Filled(
                    client_id=asked.client_id,
                    time_ns=self.clock_ns,
                    venue_ns=self.clock_ns,
                    exec_id=f"{asked.client_id}/{order.executions}",
                    symbol=asked.symbol,
                    side=asked.side,
                    qty_lots=lots,
                    price_ticks=price_ticks,
                    liquidity=liquidity,
                    fee_e8=fee_e8(value, self.fees[liquidity]),
                    leaves_lots=order.leaves_lots,
                    queue_ahead_lots=order.queue_ahead_lots,
                )
            )
        if order.leaves_lots == 0:
            self._close(order)
        elif asked.reduce_only and asked.side * self.position_lots >= 0:
            self._cancel(order, Reason.NOT_REDUCING)

    # -- arrivals ------------------------------------------------------------------------------

    def arrive(self, action: Action) -> None:
        """An action reaches the venue at ``clock_ns``; answers go to ``answers``."""
        if isinstance(action, Submit):
            self._submit(action)
            return
        order = self.orders.get(action.client_id)
        if order is None:
            known = action.client_id in self._arrived
            self._too_late(action.client_id, Reason.FINISHED if known else Reason.NO_ORDER)
        elif isinstance(action, Cancel):
            self._cancel(order, Reason.BY_USER)
        else:
            self._amend(order, action)

    def _submit(self, asked: Submit) -> None:
        reason = self._refusal(asked)
        if reason is not None:
            self.answers.append(
                Rejected(
                    client_id=asked.client_id,
                    time_ns=self.clock_ns,
                    venue_ns=self.clock_ns,
                    reason=reason,
                )
            )
            return
        self._arrived.add(asked.client_id)
        order = Order(asked=asked, price_ticks=asked.price_ticks, qty_lots=asked.qty_lots)
        self.orders[asked.client_id] = order
        self.answers.append(
            Accepted(
                client_id=asked.client_id,
                time_ns=self.clock_ns,
                venue_ns=self.clock_ns,
                venue_order_id=f"sim-{len(self._arrived)}",
            )
        )
        self._place(order)

    @property
    def _matches(self) -> bool:
        """Whether orders can be matched now; mode ``whole`` has a touch in a crossed book too."""
        state = self.book.state
        return bool(state[STATUS] & SYNCHRONISED) if self.whole else bool(is_known(state))

    def _refusal(self, asked: Submit) -> Reason | None:
        """Why an arriving order is refused; None when it is not."""
        market = asked.order_type is OrderType.MARKET
        book = self.book
        opposite = book.best_ask if asked.side > 0 else book.best_bid
        price = opposite if market else asked.price_ticks
        value = value_e8(self.instrument, price or 0, asked.qty_lots)
        checks = (
            (asked.client_id in self._arrived, Reason.DUPLICATE),
            (asked.symbol != self.instrument.symbol, Reason.UNKNOWN_SYMBOL),
            (asked.side not in (1, -1), Reason.SIDE),
            (asked.qty_lots <= 0, Reason.QUANTITY),
            (asked.qty_lots < self.min_lots, Reason.MIN_QUANTITY),
            (not market and asked.price_ticks <= 0, Reason.PRICE),
            (not self._matches, Reason.NO_BOOK),
            (market and book.stale(self.clock_ns, self.stale_after_ns), Reason.NO_MARKET),
            (asked.reduce_only and asked.side * self.position_lots >= 0, Reason.NOT_REDUCING),
            (not asked.reduce_only and value < self.min_notional_e8, Reason.MIN_NOTIONAL),
        )
        return next((reason for refused, reason in checks if refused), None)

    def _amend(self, order: Order, change: Amend) -> None:
        price = order.price_ticks if change.price_ticks is None else change.price_ticks
        qty = order.qty_lots if change.qty_lots is None else change.qty_lots
        moves = price != order.price_ticks or qty > order.qty_lots
        checks = (
            (price <= 0, Reason.PRICE),
            (qty <= order.filled_lots, Reason.BELOW_FILLED),
            (qty < self.min_lots, Reason.MIN_QUANTITY),
            (moves and not self._matches, Reason.NO_BOOK),
        )
        for refused, reason in checks:
            if refused:
                self._too_late(change.client_id, reason)
                return
        order.qty_lots = qty
        self.answers.append(
            Amended(
                client_id=change.client_id,
                time_ns=self.clock_ns,
                venue_ns=self.clock_ns,
                price_ticks=price,
                qty_lots=qty,
            )
        )
        if moves:
            self._leave_queue(order)
            order.price_ticks = price
            self._place(order)
        else:
            self.queue.resting["leaves"][self.resting.index(order)] = order.leaves_lots

    def _place_whole(self, order: Order, policy: TimeInForce) -> None:
        """`_place` in mode ``whole``."""
        asked = order.asked
        market = asked.order_type is OrderType.MARKET
        opposite = int(self.touch[row_of(-asked.side)])
        crosses = opposite != NO_LEVEL and (
            market or asked.side * (order.price_ticks - opposite) >= 0
        )
        if crosses and policy is TimeInForce.POST_ONLY:
            self._cancel(order, Reason.POST_ONLY)
        elif crosses:
            self._execute(order, opposite, order.leaves_lots, Liquidity.TAKER)
        elif policy in (TimeInForce.IOC, TimeInForce.FOK):
            self._cancel(order, Reason.NOT_FILLED)
        else:
            self._join_queue(order)

    def _place(self, order: Order) -> None:
        """Match an order that arrives or has moved; what may rest joins the queue."""
        asked, state = order.asked, self.book.state
        market = asked.order_type is OrderType.MARKET
        policy = TimeInForce.IOC if market else asked.time_in_force
        if self.whole:
            self._place_whole(order, policy)
            return
        limit = asked.side * ANY_PRICE if market else order.price_ticks
        lots = order.leaves_lots
        if asked.reduce_only:
            lots = min(lots, -asked.side * self.position_lots)
        self.queue = make_room(state, self.queue)
        there = int(reachable(state, self.queue, asked.side, limit))
        if policy is TimeInForce.POST_ONLY and there:
            self._cancel(order, Reason.POST_ONLY)
        elif policy is TimeInForce.FOK and there < order.leaves_lots:
            self._cancel(order, Reason.NOT_FILLED)
        else:
            fills = np.empty((int(count(state, -asked.side)), 2), np.int64)
            rows = sweep(state, self.queue, asked.side, limit, lots, fills)
            for price, taken in fills[:rows].tolist():
                self._execute(order, price, taken, Liquidity.TAKER)
            if asked.client_id not in self.orders:
                return
            if policy in (TimeInForce.IOC, TimeInForce.FOK):
                self._cancel(order, Reason.NOT_FILLED)
            else:
                self._join_queue(order)

    # -- the queue -----------------------------------------------------------------------------

    def _join_queue(self, order: Order) -> None:
        """Stand behind what is displayed at the price, and behind our own earlier orders."""
        side, price, state = order.asked.side, order.price_ticks, self.book.state
        self._sequence += 1
        order.priority = (-side * price, self._sequence)
        place = bisect_right(self.resting, order.priority, key=lambda o: o.priority)
        used = len(self.resting)
        self.resting.insert(place, order)
        self.queue = make_room(state, self.queue)
        table = self.queue.resting
        table[place + 1 : used + 1] = table[place:used].copy()
        order.queue_ahead_lots = self.book.qty_lots(side, price)
        # Past the displayed window the queue is not known; it is when the price comes into view.
        unknown = (
            not self.whole
            and order.queue_ahead_lots == 0
            and beyond_window(state, side, price, self.window_levels)
        )
        front = np.inf if unknown else order.queue_ahead_lots
        table[place] = (side, price, order.leaves_lots, front, 0.0, order.queue_ahead_lots, 0, 0)
        self.queue.used[0] = used + 1

    def _leave_queue(self, order: Order) -> None:
        place = self.resting.index(order)
        used = len(self.resting)
        self.resting.pop(place)
        table = self.queue.resting
        table[place : used - 1] = table[place + 1 : used].copy()
        self.queue.used[0] = used - 1

    def _close(self, order: Order) -> None:
        """The order is finished: out of the queue, out of the open orders."""
        del self.orders[order.asked.client_id]
        if order in self.resting:
            self._leave_queue(order)

    def _cancel(self, order: Order, reason: Reason) -> None:
        self._close(order)
        self.answers.append(
            Cancelled(
                client_id=order.asked.client_id,
                time_ns=self.clock_ns,
                venue_ns=self.clock_ns,
                reason=reason,
                leaves_lots=order.leaves_lots,
            )
        )

    def _too_late(self, client_id: str, reason: Reason) -> None:
        self.answers.append(
            CancelRejected(
                client_id=client_id,
                time_ns=self.clock_ns,
                venue_ns=self.clock_ns,
                reason=reason,
            )
        )
