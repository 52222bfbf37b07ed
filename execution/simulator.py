"""A venue that replays recorded events with our orders in the queue.

Two clocks run through the rows of a symbol. At *exchange time* (the matching engine's stamp) rows
change the book that our orders meet; at *receive time* they change the local book that `view`
shows. Between them lie the latencies:

    send at t ──entry──► exchange at t + entry ──response──► poll from t + entry + response

Both ways are first in, first out. At equal times data come before orders. Rows may be pushed ahead
of the clock (a study) or as they arrive (paper trading): an order meets the exchange when the rows
up to its arrival are known, so live it waits for the feed, which a quiet feed may delay by
``patience_ns`` at most.

What becomes of an order at the exchange is `execution.exchange`'s.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from execution.exchange import Exchange, Reason
from execution.orders import Action, CancelRejected, Event, Rejected, Submit
from execution.venue import View
from market.book import Book
from market.events import EVENT, Events, Flag, Kind
from market.instruments import Instrument


def clock_shift_ns(events: Events) -> int:
    """What to add to exchange times so that no row is received before it happened; 0 or negative.

    A local clock that runs behind the exchange's makes lags negative; the smallest then becomes 0.
    """
    if len(events) == 0:
        return 0
    return min(0, int((events["receive_ns"] - events["exchange_ns"]).min()))


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


class _Lane:
    """One symbol: its exchange, our delayed picture of it, and what is under way in between."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.local = Book()
        self.inbox: deque[tuple[int, Action]] = deque()
        self.to_match: deque[_Rows] = deque()
        self.to_see: deque[_Rows] = deque()
        self.pushed_ns = 0  #: exchange time of the last row pushed
        self.last_arrival_ns = 0
        self.last_response_ns = 0


class Simulator:
    """A `Venue` over recorded or live event rows.

    ``queue`` names the queue model, ``queue_power`` is the exponent of the power models. Fees are
    those of each instrument unless ``taker_fee`` or ``maker_fee`` (decimal strings, fractions of
    notional) override them. ``clock_shift_ns`` is added to exchange times (see `clock_shift_ns`).
    A market order is refused when the venue's book has been silent for ``stale_after_ns``.
    ``window_levels`` is the depth of the book topic, ``mode`` the exchange's (``partial`` conserves
    quantity, ``whole`` agrees with an independent engine). ``positions`` are signed lots held at the start.

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
        mode: str = "partial",
        view_levels: int = 5,
        positions: Mapping[str, int] | None = None,
    ) -> None:
        if entry_latency_ns < 0 or response_latency_ns < 0:
            raise ValueError("latencies of the simulator are negative: expected 0 or more ns")
        self.now_ns = 0
        self._entry_ns, self._response_ns = entry_latency_ns, response_latency_ns
        self._shift_ns = clock_shift_ns
        self._stale_ns, self._patience_ns = stale_after_ns, patience_ns
        self._view_levels = view_levels
        self._lanes = {
            symbol: _Lane(
                Exchange(
                    instrument,
                    queue=queue,
                    queue_power=queue_power,
                    taker_fee=taker_fee or instrument.taker_fee,
                    maker_fee=maker_fee or instrument.maker_fee,
                    stale_after_ns=stale_after_ns,
                    window_levels=window_levels,
                    mode=mode,
                )
            )
            for symbol, instrument in instruments.items()
        }
        for symbol, lots in (positions or {}).items():
            self._lane(symbol).exchange.position_lots = lots
        self._symbol_of: dict[str, str] = {}
        self._outbox: list[tuple[int, int, Event]] = []
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
        """Exchange time up to which every row is known, more rows of the last instant may come.

        A study that advances no further misses nothing.
        """
        return self._lane(symbol).pushed_ns - 1

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
            known = max(lane.pushed_ns - 1, limit - self._patience_ns)
            self._match(lane, limit, known, stop_at_outcome)
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
            instrument=lane.exchange.instrument,
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
        return self._lane(symbol).exchange.position_lots

    @property
    def idle(self) -> bool:
        """No order is open, under way or about to be answered."""
        return not self._outbox and not any(
            lane.exchange.orders or lane.inbox for lane in self._lanes.values()
        )

    # -- the clocks ----------------------------------------------------------------------------

    def _match(self, lane: _Lane, limit_ns: int, known_ns: int, stop_at_outcome: bool) -> None:
        """Run the exchange of one symbol up to ``limit_ns``, with actions up to ``known_ns``."""
        exchange = lane.exchange
        while True:
            if stop_at_outcome and self._outbox:
                limit_ns = min(limit_ns, max(self._outbox[0][0], self.now_ns))
            due = bool(lane.inbox) and lane.inbox[0][0] <= min(limit_ns, known_ns)
            until_ns = lane.inbox[0][0] if due else limit_ns
            while lane.to_match and not exchange.answers:
                rows = lane.to_match[0]
                if rows.exchange_ns[rows.matched] > until_ns:
                    break
                rows.matched = exchange.replay(
                    rows.events, rows.exchange_ns, rows.matched, until_ns
                )
                if rows.matched == len(rows.events):
                    lane.to_match.popleft()
            if not exchange.answers:
                if not due:
                    exchange.clock_ns = max(exchange.clock_ns, min(limit_ns, known_ns))
                    return
                exchange.clock_ns = max(exchange.clock_ns, until_ns)
                exchange.arrive(lane.inbox.popleft()[1])
            self._carry_back(lane)

    def _carry_back(self, lane: _Lane) -> None:
        """Put answers on their way: in order, and never into our past."""
        for answer in lane.exchange.answers:
            due = max(answer.venue_ns + self._response_ns, lane.last_response_ns, self.now_ns)
            lane.last_response_ns = due
            self._post(msgspec.structs.replace(answer, time_ns=due))
        lane.exchange.answers.clear()

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

    def _post(self, event: Event) -> None:
        self._posted += 1
        heapq.heappush(self._outbox, (event.time_ns, self._posted, event))

    def _lane(self, symbol: str) -> _Lane:
        lane = self._lanes.get(symbol)
        if lane is None:
            raise ValueError(f"{symbol}: the simulator has no such instrument; add it to settings")
        return lane
