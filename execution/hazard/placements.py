"""Hypothetical orders: minimum-size post-only orders in the simulator, and their outcomes.

Every `EVERY_S` a bid and an ask join their touch in a simulator, at its latencies. An order lives
until all of it is filled, until the price has run away from it (it is cancelled then), or until
`WATCH_S` have passed. It is observed when it is sent and again at the ages `AGES_S`, with the queue
position that our own view gives then (`QueueEstimate`), so that the model is fitted on orders in the
middle of their lives too. The same orders are sent to one simulator for each queue model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from typing import Final, NamedTuple

import msgspec
import numpy as np

from execution.hazard import COVARIATES, Queued, QueueEstimate
from execution.hazard.survival import CENSORED, FILLED, RAN_AWAY, Lives
from execution.liquidity import Monitor
from execution.orders import Cancel, Cancelled, Filled, OrderType, Rejected, Submit, TimeInForce
from execution.simulation.latency import Latency
from execution.simulation.simulator import Simulator, clock_shift_ns
from execution.venue import View
from market.events import Events
from market.instruments import Instrument
from market.units import BPS, MS_NS, SECOND_NS

#: How often the market is observed: the pace of Bybit's book of 200 levels.
STEP_NS: Final = 100 * MS_NS
EVERY_S: Final = 1.0
WATCH_S: Final = 60.0
AGES_S: Final = (2.0, 5.0, 15.0)
#: Warm-up of the monitor's averages at the start of a span.
WARM_S: Final = 20.0
#: Queue models: the pessimistic and the optimistic one that a study reports.
QUEUES: Final = ("risk_averse", "power3")

#: Expected return at a time, bps; None where there is no signal. Honest without look-ahead.
Signal = Callable[[int], float | None]


class Span(NamedTuple):
    """A part of a stream's time, both ends included."""

    begin_ns: int
    end_ns: int


#: All of a stream.
ALL: Final = (Span(0, 1 << 62),)


class _Observation(NamedTuple):
    time_ns: int
    covariates: tuple[float, ...]


class _Order:
    """One order under one queue model, with its observations."""

    __slots__ = ("ended_ns", "observations", "outcome", "position", "until_ns")

    def __init__(self, position: QueueEstimate, first: _Observation, until_ns: int) -> None:
        self.position, self.until_ns = position, until_ns
        self.observations = [first]
        self.outcome = CENSORED
        self.ended_ns = 0

    def due(self, now_ns: int) -> bool:
        """Whether the next observation is due."""
        due = len(self.observations) - 1
        age_ns = now_ns - self.observations[0].time_ns
        return due < len(AGES_S) and age_ns >= AGES_S[due] * SECOND_NS


class Placed(NamedTuple):
    """Outcomes of the orders of one stream. ``refused`` counts those that would have crossed."""

    lives: dict[str, Lives]  #: by queue model
    refused: dict[str, int]


class _Orders:
    """The orders under one queue model."""

    def __init__(self, simulator: Simulator, symbol: str, lots: int, away_bps: float) -> None:
        self.simulator = simulator
        self._symbol, self._lots, self._away_bps = symbol, lots, away_bps
        self._live: dict[str, _Order] = {}
        self._ended: list[_Order] = []
        self.refused = 0

    def submit(self, name: str, position: QueueEstimate, first: _Observation, end_ns: int) -> None:
        """Send an order that is watched for `WATCH_S`, and no longer than to ``end_ns``."""
        until_ns = min(first.time_ns + round(WATCH_S * SECOND_NS), end_ns)
        self._live[name] = _Order(position, first, until_ns)
        order = Submit(
            client_id=name,
            symbol=self._symbol,
            side=position.side,
            qty_lots=self._lots,
            price_ticks=position.price_ticks,
            order_type=OrderType.LIMIT,
            time_in_force=TimeInForce.POST_ONLY,
        )
        self.simulator.send([order])

    def poll(self) -> None:
        """Take in the outcomes that have reached us."""
        for event in self.simulator.poll():
            order = self._live.get(event.client_id)
            if order is None:
                continue
            if isinstance(event, Filled) and event.leaves_lots:
                continue
            if isinstance(event, Filled):
                self._end(event.client_id, FILLED, event.time_ns)
            elif isinstance(event, Rejected | Cancelled):
                # Orders that we cancel have ended before: the venue ended it, it would have crossed.
                self.refused += 1
                del self._live[event.client_id]

    def observe(self, view: View, monitor: Monitor) -> None:
        """Update every queue position, observe what is due, cancel orders that have ended."""
        now, mid = view.now_ns, view.mid_ticks
        for name, order in list(self._live.items()):
            position = order.position
            position.see(view)
            side = position.side
            behind = side * (view.touch(side) - position.price_ticks) / mid * BPS
            if now >= order.until_ns:
                self._end(name, CENSORED, order.until_ns)
                self.simulator.send([Cancel(client_id=name)])
            elif behind >= self._away_bps:
                self._end(name, RAN_AWAY, now)
                self.simulator.send([Cancel(client_id=name)])
            elif order.due(now):
                state = Queued.of(
                    monitor,
                    view,
                    side,
                    self._lots,
                    ahead_lots=position.ahead_lots,
                    price_ticks=position.price_ticks,
                )
                order.observations.append(_Observation(now, state.covariates()))

    def lives(self, until_ns: int) -> Lives:
        """A life for every observation; the stream is known up to ``until_ns``."""
        rows = []
        for order in (*self._ended, *self._live.values()):
            last_ns = min(order.until_ns, until_ns)
            ends = order.outcome != CENSORED and order.ended_ns <= last_ns
            ended_ns = order.ended_ns if ends else last_ns
            outcome = order.outcome if ends else CENSORED
            for time_ns, covariates in order.observations:
                lasted, watched = ended_ns - time_ns, last_ns - time_ns
                if lasted > 0:
                    rows.append((time_ns, covariates, lasted, watched, outcome))
        rows.sort(key=itemgetter(0))
        return Lives(
            covariates=np.array([row[1] for row in rows]).reshape(len(rows), len(COVARIATES)),
            lasted_s=np.array([row[2] for row in rows]) / SECOND_NS,
            watched_s=np.array([row[3] for row in rows]) / SECOND_NS,
            outcome=np.array([row[4] for row in rows], np.int64),
            observed_s=np.array([row[0] for row in rows]) / SECOND_NS,
        )

    def _end(self, name: str, outcome: int, time_ns: int) -> None:
        order = self._live.pop(name)
        order.outcome, order.ended_ns = outcome, time_ns
        self._ended.append(order)


class _Clock:
    """Times at which the market is observed: multiples of `STEP_NS` within spans."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self.now_ns = 0
        self.span = Span(0, 0)
        self._spans = list(spans)

    def steps(self, until_ns: int) -> Iterator[bool]:
        """Advance to a time, step by step; yields True at the first step of a span."""
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
    """Place orders into one symbol's events and watch them until they end.

    ``feed`` gives rows in receive order, in chunks of whole frames; ``signal`` is the expected return
    of the mid in bps, not signed for a side (default: none); ``spans`` are the parts of the stream to
    use, disjoint and in time order. Nothing is placed in the first `WARM_S` of a span (warm-up), or
    while the view is stale. ``latency`` is honest as in `simulation.latency`.
    """
    symbol, lots = instrument.symbol, max(1, instrument.qty_lots(instrument.min_qty))
    models: dict[str, _Orders] = {}
    clock, monitor = _Clock(spans), Monitor()
    number = warm_ns = 0
    every_ns, warming_ns = round(EVERY_S * SECOND_NS), round(WARM_S * SECOND_NS)
    for events in feed:
        if len(events) == 0:
            continue
        if not models:
            shift = clock_shift_ns(events)
            for queue in queues:
                simulator = Simulator(
                    {symbol: instrument}, latency=latency, queue=queue, clock_shift_ns=shift
                )
                models[queue] = _Orders(simulator, symbol, lots, away_bps)
            clock.now_ns = int(events["receive_ns"][0]) // STEP_NS * STEP_NS
        for orders in models.values():
            orders.simulator.on_events(symbol, events)
        until_ns = min(orders.simulator.horizon_ns(symbol) for orders in models.values())
        for opens in clock.steps(until_ns):
            now_ns = clock.now_ns
            if opens:
                monitor, warm_ns = Monitor(), now_ns + warming_ns
            for orders in models.values():
                orders.simulator.advance(now_ns)
                orders.poll()
            view = next(iter(models.values())).simulator.view(symbol)
            if signal is not None:
                view = msgspec.structs.replace(view, signal_bps=signal(now_ns))
            monitor.see(view)
            if view.stale:
                continue
            for orders in models.values():
                orders.observe(view, monitor)
            if now_ns % every_ns or now_ns < warm_ns:
                continue
            for side in (1, -1):
                number += 1
                first = _Observation(now_ns, Queued.of(monitor, view, side, lots).covariates())
                for orders in models.values():
                    position = QueueEstimate(side, view.touch(side), view)
                    orders.submit(str(number), position, first, clock.span.end_ns)
    return Placed(
        {queue: orders.lives(clock.now_ns) for queue, orders in models.items()},
        {queue: orders.refused for queue, orders in models.items()},
    )
