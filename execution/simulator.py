"""A venue that replays recorded events with our orders in the queue.

Two clocks run through the rows of a symbol. At *exchange time* (the matching engine's stamp) rows
change the book that our orders meet; at *receive time* they change the local book that `view`
shows. Between them lie the latencies:

    send at t ──entry──► exchange at t + entry ──response──► poll from t + entry + response

Both ways are first in, first out. At equal times data come before orders. Rows may be pushed ahead
of the clock (a study) or as they arrive (paper trading): an order meets the exchange when the rows
up to its arrival are known, so live it waits for the feed, which a quiet feed may delay by
``patience_ns`` at most.

What becomes of an order at its arrival:

| order              | crosses                                   | does not cross        |
|--------------------|-------------------------------------------|-----------------------|
| limit GTC          | takes displayed quantity, the rest rests  | rests                 |
| limit IOC, market  | takes displayed quantity, rest cancelled  | cancelled             |
| limit FOK          | whole at once, or cancelled               | cancelled             |
| PostOnly           | cancelled                                 | rests                 |

Resting orders fill as `execution.queue` says. Quantity is conserved: the position is the signed sum
of executions, a displayed level is taken once, and a print passes our orders once.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections import deque
from collections.abc import Mapping, Sequence
from decimal import Decimal
from enum import StrEnum

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
from execution.venue import View
from market.book import Book, count
from market.events import EVENT, Events, Flag, Kind
from market.instruments import Instrument


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


def clock_shift_ns(events: Events) -> int:
    """What to add to exchange times so that no row is received before it happened; 0 or negative.

    A local clock that runs behind the exchange's makes lags negative; the smallest then becomes 0.
    """
    if len(events) == 0:
        return 0
    return min(0, int((events["receive_ns"] - events["exchange_ns"]).min()))


class _Order(msgspec.Struct, kw_only=True, eq=False):
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


class _Rows:
    """A pushed array of rows and how far both clocks have read it."""

    def __init__(self, events: Events, exchange_ns: npt.NDArray[np.int64]) -> None:
        self.events = events
        self.exchange_ns = exchange_ns
        self.receive_ns = np.ascontiguousarray(events["receive_ns"])
        ends = (events["kind"] != Kind.TRADE) & (events["flags"] & Flag.LAST != 0)
        self.frame_ends = self.receive_ns[ends]
        self.matched = 0
        self.seen = 0

    @property
    def next_ns(self) -> int:
        """Exchange time of the next row to match."""
        return int(self.exchange_ns[self.matched])


class _Lane:
    """One symbol: its rows, both books, our orders there and what is under way to it."""

    def __init__(self, instrument: Instrument, taker_fee: str, maker_fee: str) -> None:
        self.instrument = instrument
        self.fees = {Liquidity.TAKER: taker_fee, Liquidity.MAKER: maker_fee}
        self.min_lots = instrument.qty_lots(instrument.min_qty)
        self.min_notional_e8 = int(Decimal(instrument.min_notional) * E8)
        self.exchange = Book()
        self.local = Book()
        self.queue = new_queue()
        self.resting: list[_Order] = []  #: in the order of ``queue.resting``
        self.orders: dict[str, _Order] = {}
        self.inbox: deque[tuple[int, Action]] = deque()
        self.to_match: deque[_Rows] = deque()
        self.to_see: deque[_Rows] = deque()
        self.pushed_ns = 0  #: exchange time of the last row pushed
        self.clock_ns = 0
        self.last_arrival_ns = 0
        self.last_response_ns = 0
        self.position_lots = 0


class Simulator:
    """A `Venue` over recorded or live event rows.

    ``queue`` names the queue model, ``queue_power`` is the exponent of the power models. Fees are
    those of each instrument unless ``taker_fee`` or ``maker_fee`` (decimal strings, fractions of
    notional) override them. ``clock_shift_ns`` is added to exchange times (see `clock_shift_ns`).
    A market order is refused when the venue's book has been silent for ``stale_after_ns``.
    ``window_levels`` is the depth of the book topic. ``positions`` are signed lots held at the start.

    A sender that reacts to one symbol's outcome by an order in another may find that market up to
    one step of `advance` ahead of it; give such a pair latencies above the step, or one simulator
    per symbol.
    """

    def __init__(
        self,
        instruments: Mapping[str, Instrument],
        *,
        entry_latency_ns: int,
        response_latency_ns: int,
        queue: str = "risk_averse",
        queue_power: float = 3.0,
        taker_fee: str | None = None,
        maker_fee: str | None = None,
        clock_shift_ns: int = 0,
        stale_after_ns: int = 5_000_000_000,
        patience_ns: int = 1_000_000_000,
        window_levels: int = 200,
        view_levels: int = 5,
        positions: Mapping[str, int] | None = None,
    ) -> None:
        if queue not in MODELS:
            raise ValueError(f"queue {queue!r}: expected one of {', '.join(MODELS)}")
        if entry_latency_ns < 0 or response_latency_ns < 0:
            raise ValueError("latencies of the simulator are negative: expected 0 or more ns")
        self.now_ns = 0
        self._entry_ns, self._response_ns = entry_latency_ns, response_latency_ns
        self._model, self._power = MODELS[queue], queue_power
        self._shift_ns = clock_shift_ns
        self._stale_ns, self._patience_ns = stale_after_ns, patience_ns
        self._window, self._view_levels = window_levels, view_levels
        self._lanes = {
            symbol: _Lane(
                instrument, taker_fee or instrument.taker_fee, maker_fee or instrument.maker_fee
            )
            for symbol, instrument in instruments.items()
        }
        for symbol, lots in (positions or {}).items():
            self._lane(symbol).position_lots = lots
        self._symbol_of: dict[str, str] = {}
        self._arrived: set[str] = set()
        self._outbox: list[tuple[int, int, Event]] = []
        self._sequence = 0
        self._posted = 0

    # -- the feed ------------------------------------------------------------------------------

    def on_events(self, symbol: str, events: Events) -> None:
        """Rows of whole frames in receive order; nothing happens before `advance`.

        Raises ValueError for a symbol without an instrument, or rows of another dtype.
        """
        lane = self._lane(symbol)
        if events.dtype != EVENT:
            raise ValueError(f"events of dtype {events.dtype}: expected market.events.EVENT")
        relevant = events["kind"] <= Kind.TRADE
        if not relevant.all():
            events = events[relevant]
        if len(events) == 0:
            return
        # Nothing is received before it happened, and the engine's time does not run backwards.
        happened = np.minimum(events["exchange_ns"] + self._shift_ns, events["receive_ns"])
        happened[0] = max(int(happened[0]), lane.pushed_ns)
        rows = _Rows(events, np.maximum.accumulate(happened))
        lane.pushed_ns = int(rows.exchange_ns[-1])
        lane.to_match.append(rows)
        lane.to_see.append(rows)

    def horizon_ns(self, symbol: str) -> int:
        """Exchange time up to which rows are known: a study may advance so far and miss nothing."""
        return self._lane(symbol).pushed_ns

    def next_frame_ns(self) -> int | None:
        """Receive time of the next book frame that `view` has not seen, None when none is pushed."""
        times = []
        for lane in self._lanes.values():
            for rows in lane.to_see:
                place = int(np.searchsorted(rows.frame_ends, self.now_ns, "right"))
                if place < len(rows.frame_ends):
                    times.append(int(rows.frame_ends[place]))
                    break
        return min(times, default=None)

    def advance(self, now_ns: int, *, stop_at_outcome: bool = False) -> int:
        """Move the clock to ``now_ns``; returns where it stands.

        With ``stop_at_outcome`` it stops earlier, at the first instant at which an outcome reaches
        us. A time before the present is the present.
        """
        limit = max(now_ns, self.now_ns)
        for lane in self._lanes.values():
            known = max(lane.pushed_ns, limit - self._patience_ns)
            self._match(lane, min(limit, known), stop_at_outcome)
            if stop_at_outcome and self._outbox:
                limit = max(self.now_ns, min(limit, self._outbox[0][0]))
        for lane in self._lanes.values():
            self._see(lane, limit)
        self.now_ns = limit
        return limit

    def touch(self, symbol: str) -> tuple[int | None, int | None]:
        """Best bid and ask in ticks of the local book."""
        book = self._lane(symbol).local
        return book.best_bid, book.best_ask

    def view(self, symbol: str) -> View:
        """The local picture at the present."""
        lane = self._lane(symbol)
        return View(
            symbol=symbol,
            now_ns=self.now_ns,
            bids=tuple(lane.local.bids(self._view_levels)),
            asks=tuple(lane.local.asks(self._view_levels)),
            stale=lane.local.stale(self.now_ns, self._stale_ns),
            instrument=lane.instrument,
        )

    # -- the venue -----------------------------------------------------------------------------

    def send(self, actions: Sequence[Action]) -> None:
        """Put actions under way; each arrives after the entry latency, in the order sent."""
        for action in actions:
            if isinstance(action, Submit):
                symbol = self._symbol_of.setdefault(action.client_id, action.symbol)
            else:
                symbol = self._symbol_of.get(action.client_id, "")
            lane = self._lanes.get(symbol)
            if lane is None:
                self._refuse_stray(action)
                continue
            lane.last_arrival_ns = max(self.now_ns + self._entry_ns, lane.last_arrival_ns)
            lane.inbox.append((lane.last_arrival_ns, action))

    def poll(self) -> Sequence[Event]:
        """Outcomes that have reached us since the last call, by time."""
        events = []
        while self._outbox and self._outbox[0][0] <= self.now_ns:
            events.append(heapq.heappop(self._outbox)[2])
        return events

    def position_lots(self, symbol: str) -> int:
        """Signed position: what was held at the start and the sum of all executions."""
        return self._lane(symbol).position_lots

    @property
    def idle(self) -> bool:
        """No order is open, under way or about to be answered."""
        return not self._outbox and not any(
            lane.orders or lane.inbox for lane in self._lanes.values()
        )

    # -- matching ------------------------------------------------------------------------------

    def _match(self, lane: _Lane, limit_ns: int, stop_at_outcome: bool) -> None:
        """Run the exchange of one symbol up to ``limit_ns``."""
        while True:
            if stop_at_outcome and self._outbox:
                limit_ns = min(limit_ns, max(self._outbox[0][0], self.now_ns))
            arrival_ns = lane.inbox[0][0] if lane.inbox else limit_ns + 1
            if self._replay(lane, min(limit_ns, arrival_ns)):
                continue
            lane.clock_ns = max(lane.clock_ns, min(limit_ns, arrival_ns))
            if arrival_ns > limit_ns:
                return
            self._arrive(lane, lane.inbox.popleft()[1])

    def _replay(self, lane: _Lane, until_ns: int) -> bool:
        """Apply rows up to ``until_ns``; True when it stopped because something of ours filled."""
        while lane.to_match and lane.to_match[0].next_ns <= until_ns:
            rows = lane.to_match[0]
            lane.queue = make_room(lane.exchange.state, lane.queue)
            rows.matched, filled = replay(
                lane.exchange.state,
                lane.queue,
                rows.events,
                rows.exchange_ns,
                rows.matched,
                until_ns,
                self._model,
                self._power,
                self._window,
            )
            if filled:
                lane.clock_ns = max(lane.clock_ns, int(rows.exchange_ns[rows.matched - 1]))
            if rows.matched == len(rows.events):
                lane.to_match.popleft()
            if filled:
                self._collect(lane)
                return True
        return False

    def _see(self, lane: _Lane, now_ns: int) -> None:
        """Bring the local book up to ``now_ns``."""
        while lane.to_see:
            rows = lane.to_see[0]
            stop = int(np.searchsorted(rows.receive_ns, now_ns, "right"))
            if stop > rows.seen:
                lane.local.apply(rows.events[rows.seen : stop])
                rows.seen = stop
            if stop < len(rows.receive_ns):
                return
            lane.to_see.popleft()

    def _collect(self, lane: _Lane) -> None:
        """Book what the kernel filled."""
        filled = lane.queue.resting["filled"]
        fills = [(order, int(filled[n])) for n, order in enumerate(lane.resting) if filled[n]]
        filled[:] = 0
        for order, lots in fills:
            self._execute(lane, order, order.price_ticks, lots, Liquidity.MAKER)

    def _execute(
        self, lane: _Lane, order: _Order, price_ticks: int, lots: int, liquidity: Liquidity
    ) -> None:
        """Book one execution; a reduce-only order never does more than flatten."""
        asked = order.asked
        if asked.reduce_only:
            lots = min(lots, max(0, -asked.side * lane.position_lots))
        if lots:
            order.filled_lots += lots
            order.executions += 1
            lane.position_lots += asked.side * lots
            value = value_e8(lane.instrument, price_ticks, lots)
            self._post(
                Filled(
                    client_id=asked.client_id,
                    time_ns=self._due_ns(lane),
                    venue_ns=lane.clock_ns,
                    exec_id=f"{asked.client_id}/{order.executions}",
                    symbol=asked.symbol,
                    side=asked.side,
                    qty_lots=lots,
                    price_ticks=price_ticks,
                    liquidity=liquidity,
                    fee_e8=fee_e8(value, lane.fees[liquidity]),
                    leaves_lots=order.leaves_lots,
                    queue_ahead_lots=order.queue_ahead_lots,
                )
            )
        if order.leaves_lots == 0:
            self._close(lane, order)
        elif asked.reduce_only and asked.side * lane.position_lots >= 0:
            self._cancel(lane, order, Reason.NOT_REDUCING)

    # -- arrivals ------------------------------------------------------------------------------

    def _arrive(self, lane: _Lane, action: Action) -> None:
        if isinstance(action, Submit):
            self._submit(lane, action)
            return
        order = lane.orders.get(action.client_id)
        if order is None:
            known = action.client_id in self._arrived
            self._too_late(lane, action.client_id, Reason.FINISHED if known else Reason.NO_ORDER)
        elif isinstance(action, Cancel):
            self._cancel(lane, order, Reason.BY_USER)
        else:
            self._amend(lane, order, action)

    def _submit(self, lane: _Lane, asked: Submit) -> None:
        reason = self._refusal(lane, asked)
        if reason is not None:
            self._post(
                Rejected(
                    client_id=asked.client_id,
                    time_ns=self._due_ns(lane),
                    venue_ns=lane.clock_ns,
                    reason=reason,
                )
            )
            return
        self._arrived.add(asked.client_id)
        order = _Order(asked=asked, price_ticks=asked.price_ticks, qty_lots=asked.qty_lots)
        lane.orders[asked.client_id] = order
        self._post(
            Accepted(
                client_id=asked.client_id,
                time_ns=self._due_ns(lane),
                venue_ns=lane.clock_ns,
                venue_order_id=f"sim-{len(self._arrived)}",
            )
        )
        self._place(lane, order)

    def _refusal(self, lane: _Lane, asked: Submit) -> Reason | None:
        """Why an arriving order is refused; None when it is not."""
        market = asked.order_type is OrderType.MARKET
        book = lane.exchange
        opposite = book.best_ask if asked.side > 0 else book.best_bid
        price = opposite if market else asked.price_ticks
        value = value_e8(lane.instrument, price or 0, asked.qty_lots)
        checks = (
            (asked.client_id in self._arrived, Reason.DUPLICATE),
            (asked.symbol != lane.instrument.symbol, Reason.UNKNOWN_SYMBOL),
            (asked.side not in (1, -1), Reason.SIDE),
            (asked.qty_lots <= 0, Reason.QUANTITY),
            (asked.qty_lots < lane.min_lots, Reason.MIN_QUANTITY),
            (not market and asked.price_ticks <= 0, Reason.PRICE),
            (not is_known(book.state), Reason.NO_BOOK),
            (market and book.stale(lane.clock_ns, self._stale_ns), Reason.NO_MARKET),
            (asked.reduce_only and asked.side * lane.position_lots >= 0, Reason.NOT_REDUCING),
            (not asked.reduce_only and value < lane.min_notional_e8, Reason.MIN_NOTIONAL),
        )
        return next((reason for refused, reason in checks if refused), None)

    def _amend(self, lane: _Lane, order: _Order, change: Amend) -> None:
        price = order.price_ticks if change.price_ticks is None else change.price_ticks
        qty = order.qty_lots if change.qty_lots is None else change.qty_lots
        moves = price != order.price_ticks or qty > order.qty_lots
        checks = (
            (price <= 0, Reason.PRICE),
            (qty <= order.filled_lots, Reason.BELOW_FILLED),
            (qty < lane.min_lots, Reason.MIN_QUANTITY),
            (moves and not is_known(lane.exchange.state), Reason.NO_BOOK),
        )
        for refused, reason in checks:
            if refused:
                self._too_late(lane, change.client_id, reason)
                return
        order.qty_lots = qty
        self._post(
            Amended(
                client_id=change.client_id,
                time_ns=self._due_ns(lane),
                venue_ns=lane.clock_ns,
                price_ticks=price,
                qty_lots=qty,
            )
        )
        if moves:
            self._leave_queue(lane, order)
            order.price_ticks = price
            self._place(lane, order)
        else:
            lane.queue.resting["leaves"][lane.resting.index(order)] = order.leaves_lots

    def _place(self, lane: _Lane, order: _Order) -> None:
        """Match an order that arrives or has moved; what may rest joins the queue."""
        asked, state = order.asked, lane.exchange.state
        market = asked.order_type is OrderType.MARKET
        policy = TimeInForce.IOC if market else asked.time_in_force
        limit = asked.side * ANY_PRICE if market else order.price_ticks
        lots = order.leaves_lots
        if asked.reduce_only:
            lots = min(lots, -asked.side * lane.position_lots)
        lane.queue = make_room(state, lane.queue)
        there = int(reachable(state, lane.queue, asked.side, limit))
        if policy is TimeInForce.POST_ONLY and there:
            self._cancel(lane, order, Reason.POST_ONLY)
        elif policy is TimeInForce.FOK and there < order.leaves_lots:
            self._cancel(lane, order, Reason.NOT_FILLED)
        else:
            fills = np.empty((int(count(state, -asked.side)), 2), np.int64)
            rows = sweep(state, lane.queue, asked.side, limit, lots, fills)
            for price, taken in fills[:rows].tolist():
                self._execute(lane, order, price, taken, Liquidity.TAKER)
            if asked.client_id not in lane.orders:
                return
            if policy in (TimeInForce.IOC, TimeInForce.FOK):
                self._cancel(lane, order, Reason.NOT_FILLED)
            else:
                self._join_queue(lane, order)

    # -- the queue -----------------------------------------------------------------------------

    def _join_queue(self, lane: _Lane, order: _Order) -> None:
        """Stand behind what is displayed at the price, and behind our own earlier orders."""
        side, price, state = order.asked.side, order.price_ticks, lane.exchange.state
        self._sequence += 1
        order.priority = (-side * price, self._sequence)
        place = bisect_right(lane.resting, order.priority, key=lambda o: o.priority)
        used = len(lane.resting)
        lane.resting.insert(place, order)
        lane.queue = make_room(state, lane.queue)
        table = lane.queue.resting
        table[place + 1 : used + 1] = table[place:used].copy()
        order.queue_ahead_lots = lane.exchange.qty_lots(side, price)
        # Past the displayed window the queue is not known; it is when the price comes into view.
        unknown = order.queue_ahead_lots == 0 and beyond_window(state, side, price, self._window)
        front = np.inf if unknown else order.queue_ahead_lots
        table[place] = (side, price, order.leaves_lots, front, 0.0, order.queue_ahead_lots, 0, 0)
        lane.queue.used[0] = used + 1

    def _leave_queue(self, lane: _Lane, order: _Order) -> None:
        place = lane.resting.index(order)
        used = len(lane.resting)
        lane.resting.pop(place)
        table = lane.queue.resting
        table[place : used - 1] = table[place + 1 : used].copy()
        lane.queue.used[0] = used - 1

    def _close(self, lane: _Lane, order: _Order) -> None:
        """The order is finished: out of the queue, out of the open orders."""
        del lane.orders[order.asked.client_id]
        if order in lane.resting:
            self._leave_queue(lane, order)

    # -- answers -------------------------------------------------------------------------------

    def _cancel(self, lane: _Lane, order: _Order, reason: Reason) -> None:
        self._close(lane, order)
        self._post(
            Cancelled(
                client_id=order.asked.client_id,
                time_ns=self._due_ns(lane),
                venue_ns=lane.clock_ns,
                reason=reason,
                leaves_lots=order.leaves_lots,
            )
        )

    def _too_late(self, lane: _Lane, client_id: str, reason: Reason) -> None:
        self._post(
            CancelRejected(
                client_id=client_id,
                time_ns=self._due_ns(lane),
                venue_ns=lane.clock_ns,
                reason=reason,
            )
        )

    def _refuse_stray(self, action: Action) -> None:
        """Answer an action that no symbol's exchange can answer."""
        venue_ns = self.now_ns + self._entry_ns
        known = Reason.UNKNOWN_SYMBOL if isinstance(action, Submit) else Reason.NO_ORDER
        kind = Rejected if isinstance(action, Submit) else CancelRejected
        self._post(
            kind(
                client_id=action.client_id,
                time_ns=venue_ns + self._response_ns,
                venue_ns=venue_ns,
                reason=known,
            )
        )

    def _due_ns(self, lane: _Lane) -> int:
        """When an answer given now reaches us: in order, and never in our past."""
        due = max(lane.clock_ns + self._response_ns, lane.last_response_ns, self.now_ns)
        lane.last_response_ns = due
        return due

    def _post(self, event: Event) -> None:
        self._posted += 1
        heapq.heappush(self._outbox, (event.time_ns, self._posted, event))

    def _lane(self, symbol: str) -> _Lane:
        lane = self._lanes.get(symbol)
        if lane is None:
            raise ValueError(f"{symbol}: the simulator has no such instrument; add it to settings")
        return lane
