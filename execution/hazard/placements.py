"""Orders that might have been: the least post-only orders, and what became of them in the simulator.

Every `EVERY_S` a bid and an ask join their touch in the queue of a simulator, at its latencies. An
order of the venue's least quantity lives until all of it is filled, until the price has run away from it (it is cancelled then), or until
`WATCH_S` have passed. It is looked at when it is sent and again at the ages `AGES_S`, with what our
own view tells of it then (`Place`), so that the model knows of orders in the middle of their lives.
The same orders are sent to one simulator for each bound of the queue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from typing import Final, NamedTuple

import msgspec
import numpy as np

from execution.hazard import COVARIATES, Place, Queued
from execution.hazard.survival import CENSORED, FILLED, RAN_AWAY, Lives
from execution.liquidity import Monitor
from execution.orders import Cancel, Cancelled, Filled, OrderType, Rejected, Submit, TimeInForce
from execution.simulation.latency import Latency
from execution.simulation.simulator import Simulator, clock_shift_ns
from execution.venue import View
from market.events import Events
from market.instruments import Instrument
from market.units import BPS, SECOND_NS

#: How often the market is looked at: the pace of Bybit's book of 200 levels.
STEP_NS: Final = 100_000_000
EVERY_S: Final = 1.0
WATCH_S: Final = 60.0
AGES_S: Final = (2.0, 5.0, 15.0)
#: The first seconds of a stretch make the monitor's averages.
WARM_S: Final = 20.0
#: The two bounds of the queue that a study reports.
QUEUES: Final = ("risk_averse", "power3")

#: The expected return at a time, bps; None where nothing is expected.
Signal = Callable[[int], float | None]


class Span(NamedTuple):
    """A part of a stream's time, both ends included."""

    begin_ns: int
    end_ns: int


#: All of a stream.
ALL: Final = (Span(0, 1 << 62),)


class _Look(NamedTuple):
    time_ns: int
    covariates: tuple[float, ...]


class _Order:
    """One order at one bound, with every look at it."""

    __slots__ = ("ended_ns", "looks", "outcome", "place", "until_ns")

    def __init__(self, place: Place, look: _Look, until_ns: int) -> None:
        self.place, self.until_ns = place, until_ns
        self.looks = [look]
        self.outcome = CENSORED
        self.ended_ns = 0

    def looks_at(self, now_ns: int) -> bool:
        """Whether the next look is due."""
        due = len(self.looks) - 1
        age_ns = now_ns - self.looks[0].time_ns
        return due < len(AGES_S) and age_ns >= AGES_S[due] * SECOND_NS


class Placed(NamedTuple):
    """What became of the orders of one stream. ``refused`` met a moved market and never rested."""

    lives: dict[str, Lives]  #: by queue bound
    refused: dict[str, int]


class _Bound:
    """The orders under one bound of the queue."""

    def __init__(self, simulator: Simulator, symbol: str, lots: int, away_bps: float) -> None:
        self.simulator = simulator
        self._symbol, self._lots, self._away_bps = symbol, lots, away_bps
        self._live: dict[str, _Order] = {}
        self._ended: list[_Order] = []
        self.refused = 0

    def submit(self, name: str, place: Place, look: _Look, end_ns: int) -> None:
        """Send an order that is watched for `WATCH_S`, and no longer than to ``end_ns``."""
        until_ns = min(look.time_ns + round(WATCH_S * SECOND_NS), end_ns)
        self._live[name] = _Order(place, look, until_ns)
        order = Submit(
            client_id=name,
            symbol=self._symbol,
            side=place.side,
            qty_lots=self._lots,
            price_ticks=place.price_ticks,
            order_type=OrderType.LIMIT,
            time_in_force=TimeInForce.POST_ONLY,
        )
        self.simulator.send([order])

    def hear(self) -> None:
        """Outcomes that have reached us; what fills is filled whatever we had decided meanwhile."""
        for event in self.simulator.poll():
            order = self._live.get(event.client_id)
            if order is None:
                continue
            if isinstance(event, Filled) and event.leaves_lots:
                continue
            if isinstance(event, Filled):
                self._end(event.client_id, FILLED, event.time_ns)
            elif isinstance(event, Rejected | Cancelled):
                # Not by us: what we cancel has ended before. It would have crossed.
                self.refused += 1
                del self._live[event.client_id]

    def look(self, view: View, monitor: Monitor) -> None:
        """See where every order stands; take back those whose watch has ended, one way or another."""
        now, mid = view.now_ns, view.mid_ticks
        for name, order in list(self._live.items()):
            place = order.place
            place.see(view)
            behind = place.side * (view.touch(place.side) - place.price_ticks) / mid * BPS
            if now >= order.until_ns:
                self._end(name, CENSORED, order.until_ns)
                self.simulator.send([Cancel(client_id=name)])
            elif behind >= self._away_bps:
                self._end(name, RAN_AWAY, now)
                self.simulator.send([Cancel(client_id=name)])
            elif order.looks_at(now):
                state = Queued.of(
                    monitor,
                    view,
                    place.side,
                    self._lots,
                    ahead_lots=place.ahead_lots,
                    price_ticks=place.price_ticks,
                )
                order.looks.append(_Look(now, state.covariates()))

    def lives(self, until_ns: int) -> Lives:
        """A life for every look; the stream is known up to ``until_ns``."""
        rows = []
        for order in (*self._ended, *self._live.values()):
            last_ns = min(order.until_ns, until_ns)
            ends = order.outcome != CENSORED and order.ended_ns <= last_ns
            ended_ns = order.ended_ns if ends else last_ns
            outcome = order.outcome if ends else CENSORED
            for look in order.looks:
                lasted, watched = ended_ns - look.time_ns, last_ns - look.time_ns
                if lasted > 0:
                    rows.append((look.time_ns, look.covariates, lasted, watched, outcome))
        rows.sort(key=itemgetter(0))
        return Lives(
            covariates=np.array([row[1] for row in rows]).reshape(len(rows), len(COVARIATES)),
            lasted_s=np.array([row[2] for row in rows]) / SECOND_NS,
            watched_s=np.array([row[3] for row in rows]) / SECOND_NS,
            outcome=np.array([row[4] for row in rows], np.int64),
            looked_s=np.array([row[0] for row in rows]) / SECOND_NS,
        )

    def _end(self, name: str, outcome: int, time_ns: int) -> None:
        order = self._live.pop(name)
        order.outcome, order.ended_ns = outcome, time_ns
        self._ended.append(order)


class _Clock:
    """Times at which the market is looked at: multiples of `STEP_NS` within spans."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self.now_ns = 0
        self.span = Span(0, 0)
        self._spans = list(spans)

    def steps(self, until_ns: int) -> Iterator[bool]:
        """Go on up to a time, step by step; True at the first step of a span."""
        while self._spans:
            span = self._spans[0]
            now_ns = max(self.now_ns + STEP_NS, -(-span.begin_ns // STEP_NS) * STEP_NS)
            if now_ns > span.end_ns:
                self._spans.pop(0)
                continue
            if now_ns > until_ns:
                return
            opens, self.span, self.now_ns = self.span != span, span, now_ns
            yield opens


def place_orders(
    feed: Iterable[Events],
    instrument: Instrument,
    *,
    away_bps: float,
    latency: Latency,
    signal: Signal | None = None,
    spans: Iterable[Span] = ALL,
    queues: Iterable[str] = QUEUES,
) -> Placed:
    """Place orders into one symbol's events and watch them.

    ``feed`` gives rows in receive order, in chunks of whole frames; ``signal`` is the expected return
    of the mid in bps, not signed for a side (default: nothing is expected); ``spans`` are the parts of
    the stream that are looked at, apart and in time order. Nothing is placed in the first `WARM_S` of
    a span or of the stream, or while the view is stale.
    """
    symbol, lots = instrument.symbol, max(1, instrument.qty_lots(instrument.min_qty))
    bounds: dict[str, _Bound] = {}
    clock, monitor = _Clock(spans), Monitor()
    number = warm_ns = 0
    every_ns, warming_ns = round(EVERY_S * SECOND_NS), round(WARM_S * SECOND_NS)
    for events in feed:
        if len(events) == 0:
            continue
        if not bounds:
            shift = clock_shift_ns(events)
            for queue in queues:
                simulator = Simulator(
                    {symbol: instrument}, latency=latency, queue=queue, clock_shift_ns=shift
                )
                bounds[queue] = _Bound(simulator, symbol, lots, away_bps)
            clock.now_ns = int(events["receive_ns"][0]) // STEP_NS * STEP_NS
        for bound in bounds.values():
            bound.simulator.on_events(symbol, events)
        until_ns = min(bound.simulator.horizon_ns(symbol) for bound in bounds.values())
        for opens in clock.steps(until_ns):
            now_ns = clock.now_ns
            if opens:
                monitor, warm_ns = Monitor(), now_ns + warming_ns
            for bound in bounds.values():
                bound.simulator.advance(now_ns)
                bound.hear()
            view = next(iter(bounds.values())).simulator.view(symbol)
            if signal is not None:
                view = msgspec.structs.replace(view, signal_bps=signal(now_ns))
            monitor.see(view)
            if view.stale:
                continue
            for bound in bounds.values():
                bound.look(view, monitor)
            if now_ns % every_ns or now_ns < warm_ns:
                continue
            for side in (1, -1):
                number += 1
                look = _Look(now_ns, Queued.of(monitor, view, side, lots).covariates())
                for bound in bounds.values():
                    place = Place(side, view.touch(side), view)
                    bound.submit(str(number), place, look, clock.span.end_ns)
    return Placed(
        {queue: bound.lives(clock.now_ns) for queue, bound in bounds.items()},
        {queue: bound.refused for queue, bound in bounds.items()},
    )
