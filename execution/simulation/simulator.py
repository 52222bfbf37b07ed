"""A venue that replays recorded events with our orders in the queue.

Two clocks run through the rows of a symbol. At *exchange time* (the matching engine's stamp) rows
change the book that our orders meet; at *receive time* they change the local book that `view`
shows. Between them lie the latencies:

    send at t ──entry──► exchange at t + entry ──response──► poll from t + entry + response

Both ways are first in, first out. At equal times data come before orders. Rows may be pushed ahead
of the clock (a study) or as they arrive (paper trading): an order meets the exchange when the rows
up to its arrival are known, so live it waits for the feed, which a quiet feed may delay by
``patience_ns`` at most.

What becomes of an order at the exchange is said in `arrivals`; `replay` is the compiled loop. Here
requests become rows of its tables, and rows of its tables events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter, index
from typing import Final

from execution.account import fee_e8
from execution.orders import (
    Accepted,
    Action,
    Amend,
    Amended,
    Cancelled,
    CancelRejected,
    Event,
    Filled,
    Liquidity,
    OrderType,
    Rejected,
    Submit,
)
from execution.simulation import exchange as ex
from execution.simulation import latency as travel
from execution.simulation import replay
from execution.simulation.exchange import (
    ACCEPTED,
    AMENDED,
    CANCELLED,
    CODE,
    FILLED,
    POLICIES,
    REASONS,
    REJECTED,
    Reason,
    new_exchange,
)
from execution.simulation.lane import Lane
from execution.simulation.latency import Latency
from execution.venue import View
from market.book import NO_LEVEL
from market.events import EVENT, Events
from market.instruments import Instrument
from market.settings import Execution

# Members of an enumeration are slow to look up, and these are needed for every order.
_AT_MARKET: Final = OrderType.MARKET
_LIQUIDITIES: Final = (Liquidity.TAKER, Liquidity.MAKER)
_OFF_TICK: Final = CODE[Reason.OFF_TICK]
_OFF_LOT: Final = CODE[Reason.OFF_LOT]


def _in_tables(price_ticks: int, qty_lots: int, side: int) -> tuple[int, int, int, int]:
    """Price, quantity and side as the tables hold them, and the code of a refusal; 0 for none."""
    refusal = 0
    held = []
    for value, code in ((qty_lots, _OFF_LOT), (price_ticks, _OFF_TICK)):
        try:
            whole = index(value)
        except TypeError:
            whole, refusal = 0, refusal or code
        held.append(whole if whole == ex.KEEP else max(-ex.MOST, min(whole, ex.MOST + 1)))
    lots, price = held
    return price, lots, side if side in (1, -1) and type(side) is int else 0, refusal


def clock_shift_ns(events: Events) -> int:
    """What to add to exchange times so that no row is received before it happened; 0 or negative.

    A local clock that runs behind the exchange's makes lags negative; the smallest then becomes 0.
    """
    if len(events) == 0:
        return 0
    return min(0, int((events["receive_ns"] - events["exchange_ns"]).min()))


def latency_of(settings: Execution) -> Latency:
    """The latencies that the settings name: constant, unless a busy market is slower."""
    entry, response, busy = (
        round(ms * 1e6)
        for ms in (
            settings.entry_latency_ms,
            settings.response_latency_ms,
            settings.busy_latency_ms,
        )
    )
    return travel.activity(entry, response, busy) if busy else travel.constant(entry, response)


class Simulator:
    """A `Venue` over recorded or live event rows.

    Latencies are constant (``entry_latency_ns``, ``response_latency_ns``) unless ``latency`` gives
    another model. ``queue`` names the queue model, ``queue_power`` is the exponent of the power
    models. Fees are those of each instrument unless ``taker_fee`` or ``maker_fee`` (decimal strings,
    fractions of notional) override them. ``clock_shift_ns`` is added to exchange times (see
    `clock_shift_ns`). A market order is refused when the venue's book has been silent for
    ``stale_after_ns``. ``window_levels`` is the depth of the book topic, ``mode`` the exchange's
    (``partial`` conserves quantity, ``whole`` agrees with an independent engine). ``positions`` are
    signed lots held at the start. A finished order is known until ``remembers`` more of its symbol
    have been asked for; later its id is free and a request for it finds no order, so that memory
    does not grow with the orders.

    A sender that reacts to one symbol's outcome by an order in another may find that market up to
    one step of `advance` ahead of it; give such a pair latencies above the step, or one simulator
    per symbol.
    """

    def __init__(
        self,
        instruments: Mapping[str, Instrument],
        *,
        entry_latency_ns: int = 0,
        response_latency_ns: int = 0,
        latency: Latency | None = None,
        queue: str = "risk_averse",
        queue_power: float = 3.0,
        taker_fee: str | None = None,
        maker_fee: str | None = None,
        clock_shift_ns: int = 0,
        stale_after_ns: int = 5_000_000_000,
        patience_ns: int = 1_000_000_000,
        window_levels: int = 200,
        mode: str = "partial",
        view_levels: int = 5,
        positions: Mapping[str, int] | None = None,
        remembers: int = 16_384,
    ) -> None:
        self.now_ns = 0
        self._latency = latency or travel.constant(entry_latency_ns, response_latency_ns)
        self._constant = self._latency.kind == travel.CONSTANT
        self._stale_ns, self._patience_ns = stale_after_ns, patience_ns
        self._view_levels = view_levels
        self._lanes: dict[str, Lane] = {}
        for symbol, instrument in instruments.items():
            exchange = new_exchange(
                instrument,
                queue=queue,
                queue_power=queue_power,
                stale_after_ns=stale_after_ns,
                window_levels=window_levels,
                mode=mode,
                clock_shift_ns=clock_shift_ns,
                latency=self._latency,
            )
            fees = (taker_fee or instrument.taker_fee, maker_fee or instrument.maker_fee)
            self._lanes[symbol] = Lane(instrument, fees, exchange, remembers)
        self._only = next(iter(self._lanes.values())) if len(self._lanes) == 1 else None
        for symbol, lots in (positions or {}).items():
            self._lane(symbol).cells[ex.POSITION] = lots
        self._numbers: dict[str, tuple[Lane, int]] = {}  #: newest order of each client id
        self._strays: list[Event] = []  #: outcomes that no symbol's exchange gives

    # -- the feed ------------------------------------------------------------------------------

    def on_events(self, symbol: str, events: Events) -> None:
        """Rows of whole frames in receive order; nothing happens before `advance`.

        Raises ValueError for a symbol without an instrument, rows of another dtype, and rows that
        were received before those that stand or came in front of them; none of them is taken.
        """
        lane = self._lane(symbol)
        if events.dtype != EVENT:
            raise ValueError(f"events of dtype {events.dtype}: expected market.events.EVENT")
        if len(events) == 0:
            return
        place = replay.survey(events, lane.cells[ex.SHIFT_NS], lane.clock)
        if place >= 0:
            raise ValueError(
                f"{symbol}: row {place} was received at {int(events['receive_ns'][place])}, before "
                "the row in front of it; sort the events by receive_ns, as ingest does"
            )
        lane.push(events)

    def horizon_ns(self, symbol: str) -> int:
        """Exchange time up to which every row is known, more rows of the last instant may come.

        A study that advances no further misses nothing.
        """
        return self._lane(symbol).times[replay.PUSHED_NS] - 1

    def next_frame_ns(self) -> int | None:
        """Receive time of the next book frame that `view` has not seen, None when none is pushed."""
        times = (lane.next_frame_ns() for lane in self._lanes.values())
        return min((time for time in times if time is not None), default=None)

    def advance(self, now_ns: int, *, stop_at_outcome: bool = False) -> int:
        """Move the clock to ``now_ns``; returns where it stands.

        With ``stop_at_outcome`` it stops earlier, at the first instant at which an outcome reaches
        us. A time before the present is the present.
        """
        limit = max(now_ns, self.now_ns)
        if stop_at_outcome and self._strays:
            limit = max(self.now_ns, min(limit, self._strays[0].time_ns))
        if self._only:
            limit = self._only.run(limit, self._patience_ns, stop_at_outcome, False, 0)
        else:
            for lane in self._lanes.values():
                limit = lane.match(limit, self._patience_ns, stop_at_outcome)
            for lane in self._lanes.values():
                lane.see(limit)
        self.now_ns = limit
        return limit

    def advance_to_news(self, until_ns: int, every_ns: int = 0) -> int:
        """Move the clock to the next news, ``until_ns`` at the latest; returns where it stands.

        News is an outcome that reaches us, or a touch that is not what it was when this method
        returned last. With ``every_ns`` the clock stops at multiples of it only: at the first at
        which there is news.
        """
        if self._only and not self._strays:
            at_once = every_ns == 0
            self.now_ns = self._only.run(until_ns, self._patience_ns, at_once, at_once, every_ns)
            return self.now_ns
        news = False
        while not news and self.now_ns < until_ns:
            if every_ns:
                self.advance(min(until_ns, (self.now_ns // every_ns + 1) * every_ns))
            else:
                frame = self.next_frame_ns()
                stop = until_ns if frame is None else max(frame, self.now_ns)
                self.advance(min(until_ns, stop), stop_at_outcome=True)
            news = bool(self._strays) and self._strays[0].time_ns <= self.now_ns
            for lane in self._lanes.values():
                news |= lane.news(self.now_ns)
        return self.now_ns

    def touch(self, symbol: str) -> tuple[int | None, int | None]:
        """Best bid and ask in ticks of the local book."""
        times = self._lane(symbol).times
        bid, ask = times[replay.BID], times[replay.ASK]
        return None if bid == NO_LEVEL else bid, None if ask == NO_LEVEL else ask

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
            bought_lots=lane.times[replay.BOUGHT],
            sold_lots=lane.times[replay.SOLD],
        )

    # -- the venue -----------------------------------------------------------------------------

    def send(self, actions: Sequence[Action]) -> None:
        """Put actions under way; each arrives after the entry latency, in the order sent."""
        for action in actions:
            if isinstance(action, Submit):
                self._submit(action)
                continue
            lane, number = self._numbers.get(action.client_id, (None, 0))
            if lane is None:
                self._refuse_stray(action)
            elif isinstance(action, Amend):
                price = ex.KEEP if action.price_ticks is None else action.price_ticks
                lots = ex.KEEP if action.qty_lots is None else action.qty_lots
                price, lots, _, refusal = _in_tables(price, lots, 0)
                self._dispatch(lane, ex.AMEND, number, price, lots, refusal)
            else:
                self._dispatch(lane, ex.CANCEL, number, 0, 0, 0)

    def _submit(self, order: Submit) -> None:
        lane = self._lanes.get(order.symbol)
        if lane is None:
            self._refuse_stray(order)
            return
        if lane.full:
            self._make_room(lane)
        refusal, side = 0, order.side if order.side in (1, -1) else 0
        price, lots, policy = order.price_ticks, order.qty_lots, ex.MARKET
        if order.order_type is not _AT_MARKET:
            policy = POLICIES.index(order.time_in_force)
        else:
            price = 0
        if not (type(price) is type(lots) is type(side) is int and abs(price) + lots < ex.MOST):
            price, lots, side, refusal = _in_tables(price, lots, side)
        before, earlier = self._numbers.get(order.client_id, (lane, -1))
        if before is not lane:
            # The id was given to an order in another symbol, whose fate another exchange knows.
            earlier, refusal = -1, CODE[Reason.DUPLICATE]
        values = (side, price, lots, policy, order.reduce_only, earlier, 0, 0, 0, 0)
        number = lane.open(order, values)
        if before is lane:
            self._numbers[order.client_id] = lane, number
        self._dispatch(lane, ex.SUBMIT, number, 0, 0, refusal)

    def _make_room(self, lane: Lane) -> None:
        """Room for an order in a lane whose table is full."""
        if not lane.make_room():
            return
        others = {name: place for name, place in self._numbers.items() if place[0] is not lane}
        own = {
            order.client_id: (lane, number)
            for number, order in enumerate(lane.asked)
            if order.client_id not in others
        }
        self._numbers = others | own

    def _dispatch(
        self, lane: Lane, request: int, number: int, price: int, lots: int, refusal: int
    ) -> None:
        """Put a request on its way, unless it is lost on it."""
        now = self.now_ns
        if self._constant:
            way = self._latency.entry_ns
        else:
            rate = travel.rate_at(lane.exchange.reals[ex.SEEN_ROWS], now - lane.cells[ex.SEEN_NS])
            way = travel.entry_ns(self._latency, now, rate)
        if way < 0:
            submits = request == ex.SUBMIT
            if submits:
                lane.exchange.orders["state"][number] = ex.REFUSED
            outcome = REJECTED if submits else ex.CANCEL_REJECTED
            lane.say(now - way, outcome, number, CODE[Reason.NOT_DELIVERED])
            return
        lane.last_arrival_ns = max(now + way, lane.last_arrival_ns)
        lane.enter(lane.last_arrival_ns, request, number, price, lots, refusal)

    def poll(self) -> Sequence[Event]:
        """Outcomes that have reached us since the last call, by time."""
        now = self.now_ns
        if self._only and not self._strays:
            return [_event(self._only, row) for row in self._only.outcomes(now)]
        events = [_event(lane, row) for lane in self._lanes.values() for row in lane.outcomes(now)]
        events += [event for event in self._strays if event.time_ns <= now]
        self._strays = [event for event in self._strays if event.time_ns > now]
        events.sort(key=_time_of)
        return events

    def position_lots(self, symbol: str) -> int:
        """Signed position: what was held at the start and the sum of all executions."""
        return self._lane(symbol).cells[ex.POSITION]

    @property
    def idle(self) -> bool:
        """No order is open, under way or about to be answered."""
        return not self._strays and not any(
            lane.cells[ex.OPEN_ORDERS]
            or lane.cells[ex.ARRIVED] < lane.cells[ex.INBOX_END]
            or lane.cells[ex.HEARD] < lane.cells[ex.OUTBOX_END]
            for lane in self._lanes.values()
        )

    def _refuse_stray(self, action: Action) -> None:
        """Answer an action that no symbol's exchange can answer."""
        there, back = self._ways()
        venue_ns = self.now_ns + abs(there)
        due_ns = venue_ns if there < 0 else venue_ns + back
        kind, reason = (
            (Rejected, Reason.UNKNOWN_SYMBOL)
            if isinstance(action, Submit)
            else (CancelRejected, Reason.NO_ORDER)
        )
        self._strays.append(
            kind(client_id=action.client_id, time_ns=due_ns, venue_ns=venue_ns, reason=reason)
        )
        self._strays.sort(key=_time_of)

    def _ways(self) -> tuple[int, int]:
        """Latencies of a request that meets no exchange: those of a quiet market."""
        there = int(travel.entry_ns(self._latency, self.now_ns, 0.0))
        return there, int(travel.response_ns(self._latency, self.now_ns + abs(there), 0.0))

    def _lane(self, symbol: str) -> Lane:
        lane = self._lanes.get(symbol)
        if lane is None:
            raise ValueError(f"{symbol}: the simulator has no such instrument; add it to settings")
        return lane


_time_of = attrgetter("time_ns")


def _event(lane: Lane, row: tuple[int, ...]) -> Event:
    """An outcome's row as an event."""
    due, venue, outcome, number, price, lots, leaves, detail, ahead, execution = row
    asked = lane.asked[number]
    name = asked.client_id
    if outcome == ACCEPTED:
        return Accepted(client_id=name, time_ns=due, venue_ns=venue, venue_order_id=f"sim-{detail}")
    if outcome == FILLED:
        value = lane.cells[ex.UNIT_E8] * price * lots
        return Filled(
            client_id=name,
            time_ns=due,
            venue_ns=venue,
            exec_id=f"{name}/{execution}",
            symbol=asked.symbol,
            side=asked.side,
            qty_lots=lots,
            price_ticks=price,
            liquidity=_LIQUIDITIES[detail],
            fee_e8=fee_e8(value, lane.fees[detail]),
            leaves_lots=leaves,
            queue_ahead_lots=ahead,
        )
    if outcome == AMENDED:
        return Amended(
            client_id=name, time_ns=due, venue_ns=venue, price_ticks=price, qty_lots=lots
        )
    reason = REASONS[detail - 1]
    if outcome == CANCELLED:
        return Cancelled(
            client_id=name, time_ns=due, venue_ns=venue, reason=reason, leaves_lots=leaves
        )
    kind = Rejected if outcome == REJECTED else CancelRejected
    return kind(client_id=name, time_ns=due, venue_ns=venue, reason=reason)
