"""Background requests, one by one: takers, and limit orders and cancels at, behind and inside the touch.

Requests arrive by a Hawkes process (`proving.synthetic.arrivals`); between them the makers
(`proving.synthetic.makers`) decide every 20 ms. Takers either work metaorders, whose Pareto lengths give
order signs their long memory, or lean with the score and with the gap between value and mid.
"""

from __future__ import annotations

import math
from typing import Final

from market import book as bk
from market.kernel import kernel
from proving.synthetic import matching as me
from proving.synthetic.arrivals import Floats, HawkesLaw, RequestKind, next_request, philox
from proving.synthetic.background import (
    BACKGROUND,
    MAKER_STEP_NS,
    METAORDER_TAIL,
    METAORDERS,
    REQUEST_STREAM,
    STEP_NS,
    TAKER_LOG_SD,
    TAKER_STREAM,
    BackgroundParameters,
    BackgroundState,
    LatentPath,
    level_lots,
    normal,
    occupancy,
)
from proving.synthetic.makers import apply_impact, maker_step
from proving.synthetic.matching import EngineState, TimeInForce

_TAKE: Final = int(RequestKind.TAKE)
_JOIN: Final = int(RequestKind.JOIN)
_LEAVE: Final = int(RequestKind.LEAVE)
_PLACE: Final = int(RequestKind.PLACE)
_IMPROVE: Final = int(RequestKind.IMPROVE)
_GTC: Final = int(TimeInForce.GOOD_TILL_CANCELLED)
_IOC: Final = int(TimeInForce.IMMEDIATE_OR_CANCEL)


@kernel
def _metaorder_side(state: BackgroundState, which: float, fresh: Floats) -> int:
    """The side of the next order of one of the metaorders; a finished one is replaced."""
    meta = state.metaorders[int(which * METAORDERS)]
    if meta.orders_left <= 0:
        meta.side = 1 if fresh[0] < 0.5 else -1
        meta.orders_left = min(100_000, int(fresh[1] ** (-1 / METAORDER_TAIL)))
    meta.orders_left -= 1
    return int(meta.side)


@kernel
def _take(
    engine: EngineState, law: BackgroundParameters, state: BackgroundState, draws: Floats
) -> None:
    """A taker order, or a print against hidden retail liquidity, which is left pending."""
    head, more = state.head[0], state.draws[1]
    philox(state.key, TAKER_STREAM, head.requests, more)
    if draws[0] < law.split:
        side = _metaorder_side(state, draws[0] / law.split, more)
    else:
        lean = (1 - law.split) * (1 + head.expected_sign)
        side = 1 if 2 * (draws[0] - law.split) < lean else -1
    lots = law.order_lots * math.exp(TAKER_LOG_SD * normal(draws[1]) - 0.5 * TAKER_LOG_SD**2)
    if draws[2] < law.rpi:
        head.rpi_lots = max(1, int(min(lots, law.order_lots)))
        head.rpi_side = side
        return
    key = bk.best_key(engine.book, bk.row_of(-side))
    if key != bk.NO_KEY:
        ticks = side * (key + law.bound_ticks)
        me.enter(engine, side, max(1, ticks), max(1, int(lots)), BACKGROUND, 0, _IOC)


@kernel
def _touch_side(
    engine: EngineState, state: BackgroundState, uniform: float, leaves: bool
) -> tuple[int, float]:
    """A side of the touch, the likelier the more it lacks (or has too much, when an order leaves).

    Also how full the touch is: lots over lots wanted, both sides together.
    """
    bid_lots = float(bk.lots_at(engine.book, 0, bk.best_key(engine.book, 0)))
    ask_lots = float(bk.lots_at(engine.book, 1, bk.best_key(engine.book, 1)))
    bid_target, ask_target = state.targets[0], state.targets[1]
    bid, ask = bid_lots / bid_target, ask_lots / ask_target
    first = ask * ask
    second = bid * bid
    if leaves:
        first, second = second, first
    side = 1 if uniform * (first + second) < first else -1
    return side, (bid_lots + ask_lots) / (bid_target + ask_target)


@kernel
def _cancel_one(engine: EngineState, side: int, ticks: int, skip: int, keep_level: bool) -> None:
    """Cancel one of the background's orders at a price, ``skip`` places in front of the newest.

    ``keep_level``: never the last order at the price.
    """
    row = me.last_at(engine, side, ticks)
    if row < 0 or (keep_level and engine.orders[row].previous < 0):
        return
    chosen = -1
    while row >= 0:
        if engine.orders[row].owner == BACKGROUND:
            chosen = row
            skip -= 1
            if skip < 0:
                break
        row = engine.orders[row].previous
    if chosen >= 0:
        me.cancel_row(engine, chosen)


@kernel
def _request(
    engine: EngineState, law: BackgroundParameters, state: BackgroundState, kind: int
) -> None:
    """Execute one background request."""
    draws, head = state.draws[0], state.head[0]
    philox(state.key, REQUEST_STREAM, head.requests, draws)
    book = engine.book
    if bk.best_key(book, 0) == bk.NO_KEY or bk.best_key(book, 1) == bk.NO_KEY:
        return
    if kind == _TAKE:
        _take(engine, law, state, draws)
    elif kind == _JOIN:
        side, full = _touch_side(engine, state, draws[0], False)
        if draws[1] * full * full < 1:
            lots = law.touch_lots / law.touch_orders * math.exp(0.7 * normal(draws[2]) - 0.245)
            ticks = -side * bk.best_key(book, bk.row_of(side))
            me.enter(engine, side, ticks, max(1, int(lots)), BACKGROUND, 0, _GTC)
    elif kind == _LEAVE:
        side, full = _touch_side(engine, state, draws[0], True)
        if draws[1] < full * full:
            ticks = -side * bk.best_key(book, bk.row_of(side))
            _cancel_one(engine, side, ticks, int(draws[2] * law.touch_orders), True)
    elif kind == _IMPROVE:
        bid, ask = -bk.best_key(book, 0), bk.best_key(book, 1)
        if ask - bid > 1:
            side = 1 if head.maker_price > 0.5 * (bid + ask) else -1
            lots = law.touch_lots / law.touch_orders * math.exp(0.7 * normal(draws[2]) - 0.245)
            ticks = bid + 1 if side > 0 else ask - 1
            me.enter(engine, side, ticks, max(1, int(lots)), BACKGROUND, 0, _GTC)
    else:
        side = 1 if draws[0] < 0.5 else -1
        behind = 1 + int(draws[1] * law.churn_reach)
        ticks = -side * (bk.best_key(book, bk.row_of(side)) + behind)
        if ticks < 1:
            return
        if kind == _PLACE:
            lots = level_lots(law, draws[3], ticks)
            me.enter(engine, side, ticks, lots, BACKGROUND, 0, _GTC)
        elif draws[2] * occupancy(law, ticks) < law.occupancy:
            _cancel_one(engine, side, ticks, 0, False)


@kernel
def _draw_next(law: HawkesLaw, path: LatentPath, state: BackgroundState, until_ns: int) -> int:
    """Time of the next arrival, or ``until_ns`` when none comes before; it stays drawn."""
    head = state.head[0]
    while head.next_kind < 0 and head.drawn_ns < until_ns:
        now = head.drawn_ns
        j = min(now // STEP_NS, len(path.activity) - 1)
        # Whole steps only: where a caller stops must not change what is drawn.
        seconds = ((now // STEP_NS + 1) * STEP_NS - now) * 1e-9
        passed, kind = next_request(state.hawkes, law, path.activity[j], seconds)
        if kind < 0:
            head.drawn_ns = (now // STEP_NS + 1) * STEP_NS
        else:
            head.drawn_ns = now + int(passed * 1e9)
            head.next_ns, head.next_kind = head.drawn_ns, kind
    if head.next_kind < 0:
        return until_ns
    return int(min(until_ns, head.next_ns))


@kernel
def advance(
    engine: EngineState,
    law: BackgroundParameters,
    arrivals: HawkesLaw,
    path: LatentPath,
    state: BackgroundState,
    until_ns: int,
) -> int:
    """The next step before ``until_ns``, a request or a maker step; returns its time, or ``until_ns``.

    Its executions are in ``engine.fills``, their impact applied; the caller clears them. The engine's
    pool must have `POOL_ROOM`.
    """
    head = state.head[0]
    maker_ns = head.maker_steps * MAKER_STEP_NS
    next_ns = _draw_next(arrivals, path, state, min(until_ns, maker_ns))
    if next_ns >= until_ns:
        return until_ns
    if next_ns < maker_ns:
        _request(engine, law, state, head.next_kind)
        head.next_kind = -1
        head.requests += 1
        apply_impact(engine, law, state)
    else:
        # Executions of a sweep have no impact: makers caused them by what they see already.
        maker_step(engine, law, path, state)
    return int(next_ns)
