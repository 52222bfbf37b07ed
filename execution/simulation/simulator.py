"""A venue that replays recorded events with our orders in the queue.

Two clocks run through the rows of a symbol. At *exchange time* (the matching engine's stamp) rows
change the book that our orders meet; at *receive time* they change the local book that `view`
shows. Between them lie the latencies:

    send at t ──entry──► exchange at t + entry ──response──► poll from t + entry + response

Both ways are first in, first out. At equal times data come before requests. Rows may be pushed before
their time (a study) or as they arrive (paper trading): a request meets the exchange when the rows up
to its arrival are known, so live it waits for the feed, which a quiet feed may delay by
``patience_ns`` at most.

`arrivals` says what becomes of a request at the exchange; `replay` is the compiled loop. Here requests
become rows of its tables, and rows of its tables events.
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
from execution.simulation import latency as travel
from execution.simulation import replay
from execution.simulation import state as st
from execution.simulation.latency import Latency
from execution.simulation.state import (
    ACCEPTED,
    AMENDED,
    CANCELLED,
    CODE,
    FILLED,
    POLICIES,
    REASONS,
    REJECTED,
    Reason,
)
from execution.simulation.symbol import SymbolReplay
from execution.venue import View
from market.book import NO_LEVEL, Book
from market.events import EVENT, Events
from market.instruments import Instrument
from market.settings import Execution
from market.units import SECOND_NS

# Members of an enumeration are slow to look up, and these are needed for every order.
_AT_MARKET: Final = OrderType.MARKET
_LIQUIDITIES: Final = (Liquidity.TAKER, Liquidity.MAKER)
_OFF_TICK: Final = CODE[Reason.OFF_TICK]
_OFF_LOT: Final = CODE[Reason.OFF_LOT]


def _clamped(price_ticks: int, qty_lots: int, side: int) -> tuple[int, int, int, int]:
    """Price, quantity and side as the tables can hold them, and the code of a rejection; 0 for none.

    What is beyond all prices and quantities stays so, and is rejected at the exchange.
    """
    reason = 0
    values = []
    for value, code in ((qty_lots, _OFF_LOT), (price_ticks, _OFF_TICK)):
        try:
            whole = index(value)
        except TypeError:
            whole, reason = 0, reason or code
        values.append(whole if whole == st.KEEP else max(-st.MOST, min(whole, st.MOST + 1)))
    lots, price = values
    return price, lots, side if side in (1, -1) and type(side) is int else 0, reason


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
    `clock_shift_ns`). A market order is rejected when the venue's book has been silent for
    ``stale_after_ns``. ``window_levels`` is the depth of the book topic, ``mode`` the matching mode
    (``partial`` conserves quantity, ``whole`` agrees with an independent engine). ``positions`` are
    signed lots held at the start. A finished order is known until ``remembers`` more of its symbol
    have been sent; later its id is free and a request for it finds no order, so that memory does not
    grow with the orders.

    Honest latencies, fees and queue models are those of `latency`, the account's fee row and
    `queue.BOUNDS`.

    A sender that reacts to one symbol's outcome by an order in another may find that market up to
    one step of `advance` later than the outcome; give such a pair latencies above the step, or one
    simulator per symbol.
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
        stale_after_ns: int = 5 * SECOND_NS,
        patience_ns: int = SECOND_NS,
        window_levels: int = 200,
        mode: str = "partial",
        view_levels: int = 5,
        positions: Mapping[str, int] | None = None,
        remembers: int = 16_384,
    ) -> None:
        self.now_ns = 0
        self._latency = latency or travel.constant(entry_latency_ns, response_latency_ns)
        self._constant = self._latency.kind == travel.CONSTANT
        self._stale_ns, self._view_levels = stale_after_ns, view_levels
        self._replays: dict[str, SymbolReplay] = {}
        for symbol, instrument in instruments.items():
            local = Book()
            state = st.new_replay_state(
                instrument,
                local.state,
                queue=queue,
                queue_power=queue_power,
                stale_after_ns=stale_after_ns,
                patience_ns=patience_ns,
                window_levels=window_levels,
                mode=mode,
                clock_shift_ns=clock_shift_ns,
                latency=self._latency,
            )
            fees = (taker_fee or instrument.taker_fee, maker_fee or instrument.maker_fee)
            self._replays[symbol] = SymbolReplay(instrument, fees, local, state, remembers)
        self._only = next(iter(self._replays.values())) if len(self._replays) == 1 else None
        for symbol, lots in (positions or {}).items():
            self._replay(symbol).scalars.position_lots[0] = lots
        #: The newest order of each client id: its symbol's replay and its number there.
        self._numbers: dict[str, tuple[SymbolReplay, int]] = {}
        self._strays: list[Event] = []  #: outcomes that no symbol's exchange gives

    # -- the feed ------------------------------------------------------------------------------

    def on_events(self, symbol: str, events: Events) -> None:
        """Push rows of whole frames in receive order; nothing happens before `advance`.

        Raises ValueError for a symbol without an instrument, rows of another dtype, and rows that
        were received before rows pushed earlier or in front of them; none of them is taken.
        """
        replayed = self._replay(symbol)
        if events.dtype != EVENT:
            raise ValueError(f"events of dtype {events.dtype}: expected market.events.EVENT")
        if len(events) == 0:
            return
        row = replay.register(replayed.state.scalars, events)
        if row >= 0:
            raise ValueError(
                f"{symbol}: row {row} was received at {int(events['receive_ns'][row])}, before "
                "the row in front of it; sort the events by receive_ns, as ingest does"
            )
        replayed.push(events)

    def horizon_ns(self, symbol: str) -> int:
        """Exchange time up to which every row is known; more rows of the last instant may come.

        A study that advances no further misses nothing.
        """
        return self._replay(symbol).scalars.pushed_ns[0] - 1

    def next_frame_ns(self) -> int | None:
        """Receive time of the next book frame that `view` has not seen, None when none is pushed."""
        times = (each.next_frame_ns() for each in self._replays.values())
        return min((time for time in times if time is not None), default=None)

    def advance(self, now_ns: int, *, stop_at_outcome: bool = False) -> int:
        """Move the clock to ``now_ns``; returns its time.

        With ``stop_at_outcome`` it stops earlier, at the first instant at which an outcome reaches
        us. A time before the present is the present.
        """
        limit = max(now_ns, self.now_ns)
        if stop_at_outcome and self._strays:
            limit = max(self.now_ns, min(limit, self._strays[0].time_ns))
        if self._only:
            limit = self._only.run(limit, stop_at_outcome, False, 0)
        else:
            for each in self._replays.values():
                limit = each.match(limit, stop_at_outcome)
            for each in self._replays.values():
                each.receive(limit)
        self.now_ns = limit
        return limit

    def advance_to_news(self, until_ns: int, every_ns: int = 0) -> int:
        """Move the clock to the next news, ``until_ns`` at the latest; returns its time.

        News is an outcome that reaches us, or a touch that is not what it was when this method
        returned last. With ``every_ns`` the clock stops at multiples of it only: at the first at
        which there is news.
        """
        if self._only and not self._strays:
            at_once = every_ns == 0
            self.now_ns = self._only.run(until_ns, at_once, at_once, every_ns)
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
            for each in self._replays.values():
                news |= each.news(self.now_ns)
        return self.now_ns

    def touch(self, symbol: str) -> tuple[int | None, int | None]:
        """Best bid and ask in ticks of the local book."""
        scalars = self._replay(symbol).scalars
        bid, ask = scalars.bid_ticks[0], scalars.ask_ticks[0]
        return None if bid == NO_LEVEL else bid, None if ask == NO_LEVEL else ask

    def view(self, symbol: str) -> View:
        """The local picture at the present."""
        each = self._replay(symbol)
        return View(
            symbol=symbol,
            now_ns=self.now_ns,
            bids=tuple(each.local.bids(self._view_levels)),
            asks=tuple(each.local.asks(self._view_levels)),
            stale=each.local.stale(self.now_ns, self._stale_ns),
            instrument=each.instrument,
            bought_lots=each.scalars.bought_lots[0],
            sold_lots=each.scalars.sold_lots[0],
            book=each.local,
        )

    # -- the venue -----------------------------------------------------------------------------

    def send(self, actions: Sequence[Action]) -> None:
        """Put requests under way; each arrives after the entry latency, in the order sent."""
        for action in actions:
            if isinstance(action, Submit):
                self._submit(action)
                continue
            each, number = self._numbers.get(action.client_id, (None, 0))
            if each is None:
                self._reject_stray(action)
            elif isinstance(action, Amend):
                price = st.KEEP if action.price_ticks is None else action.price_ticks
                lots = st.KEEP if action.qty_lots is None else action.qty_lots
                price, lots, _, reason = _clamped(price, lots, 0)
                self._dispatch(each, st.AMEND, number, price, lots, reason)
            else:
                self._dispatch(each, st.CANCEL, number, 0, 0, 0)

    def _submit(self, order: Submit) -> None:
        each = self._replays.get(order.symbol)
        if each is None:
            self._reject_stray(order)
            return
        if each.full:
            self._make_room(each)
        reason, side = 0, order.side if order.side in (1, -1) else 0
        price, lots, policy = order.price_ticks, order.qty_lots, st.MARKET
        if order.order_type is not _AT_MARKET:
            policy = POLICIES.index(order.time_in_force)
        else:
            price = 0
        if not (type(price) is type(lots) is type(side) is int and abs(price) + lots < st.MOST):
            price, lots, side, reason = _clamped(price, lots, side)
        before, earlier = self._numbers.get(order.client_id, (each, -1))
        if before is not each:
            # The id belongs to an order in another symbol, whose state another exchange knows.
            earlier, reason = -1, CODE[Reason.DUPLICATE]
        values = (side, price, lots, policy, order.reduce_only, earlier, 0, 0, 0, 0)
        number = each.add(order, values)
        if before is each:
            self._numbers[order.client_id] = each, number
        self._dispatch(each, st.SUBMIT, number, 0, 0, reason)

    def _make_room(self, full: SymbolReplay) -> None:
        """Room for an order of a symbol whose table is full."""
        if not full.make_room():
            return
        others = {name: place for name, place in self._numbers.items() if place[0] is not full}
        own = {
            order.client_id: (full, number)
            for number, order in enumerate(full.orders)
            if order.client_id not in others
        }
        self._numbers = others | own

    def _dispatch(
        self, each: SymbolReplay, kind: int, number: int, price: int, lots: int, reason: int
    ) -> None:
        """Put a request under way, unless it is lost on the way."""
        now = self.now_ns
        if self._constant:
            entry = self._latency.entry_ns
        else:
            scalars = each.scalars
            count, elapsed = scalars.received_rows[0], now - scalars.counted_ns[0]
            entry = travel.entry_ns(self._latency, now, count, elapsed)
        if entry < 0:
            submits = kind == st.SUBMIT
            if submits:
                each.state.orders["state"][number] = st.REFUSED
            outcome = REJECTED if submits else st.CANCEL_REJECTED
            each.lose(now - entry, outcome, number, CODE[Reason.NOT_DELIVERED])
            return
        each.last_arrival_ns = max(now + entry, each.last_arrival_ns)
        each.request(each.last_arrival_ns, kind, number, price, lots, reason)

    def poll(self) -> Sequence[Event]:
        """Outcomes that have reached us since the last call, by time."""
        now = self.now_ns
        if self._only and not self._strays:
            return [_event(self._only, row) for row in self._only.outcomes(now)]
        events = [
            _event(each, row) for each in self._replays.values() for row in each.outcomes(now)
        ]
        events += [event for event in self._strays if event.time_ns <= now]
        self._strays = [event for event in self._strays if event.time_ns > now]
        events.sort(key=_time_of)
        return events

    def position_lots(self, symbol: str) -> int:
        """Signed position: lots held at the start plus the sum of all executions."""
        return self._replay(symbol).scalars.position_lots[0]

    @property
    def idle(self) -> bool:
        """No order is open, under way or about to be answered."""
        return not self._strays and not any(
            each.open_orders[0]
            or each.inbox_head[0] < each.inbox_end[0]
            or each.outbox_head[0] < each.outbox_end[0]
            for each in (replayed.scalars for replayed in self._replays.values())
        )

    def _reject_stray(self, action: Action) -> None:
        """Answer a request that no symbol's exchange can answer, at a quiet market's latencies."""
        entry = int(travel.entry_ns(self._latency, self.now_ns, 0.0, 0))
        venue_ns = self.now_ns + abs(entry)
        response = int(travel.response_ns(self._latency, venue_ns, 0.0, 0))
        due_ns = venue_ns if entry < 0 else venue_ns + response
        kind, reason = (
            (Rejected, Reason.UNKNOWN_SYMBOL)
            if isinstance(action, Submit)
            else (CancelRejected, Reason.NO_ORDER)
        )
        self._strays.append(
            kind(client_id=action.client_id, time_ns=due_ns, venue_ns=venue_ns, reason=reason)
        )
        self._strays.sort(key=_time_of)

    def _replay(self, symbol: str) -> SymbolReplay:
        each = self._replays.get(symbol)
        if each is None:
            raise ValueError(f"{symbol}: the simulator has no such instrument; add it to settings")
        return each


_time_of = attrgetter("time_ns")


def _event(each: SymbolReplay, row: tuple[int, ...]) -> Event:
    """An outcome's row as an event."""
    due, venue, outcome, number, price, lots, leaves, detail, ahead, execution = row
    order = each.orders[number]
    name = order.client_id
    if outcome == ACCEPTED:
        return Accepted(client_id=name, time_ns=due, venue_ns=venue, venue_order_id=f"sim-{detail}")
    if outcome == FILLED:
        notional = each.scalars.unit_e8[0] * price * lots
        return Filled(
            client_id=name,
            time_ns=due,
            venue_ns=venue,
            exec_id=f"{name}/{execution}",
            symbol=order.symbol,
            side=order.side,
            qty_lots=lots,
            price_ticks=price,
            liquidity=_LIQUIDITIES[detail],
            fee_e8=fee_e8(notional, each.fees[detail]),
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
    if outcome == REJECTED:
        duplicate = reason is Reason.DUPLICATE
        return Rejected(
            client_id=name, time_ns=due, venue_ns=venue, reason=reason, duplicate=duplicate
        )
    return CancelRejected(client_id=name, time_ns=due, venue_ns=venue, reason=reason)
