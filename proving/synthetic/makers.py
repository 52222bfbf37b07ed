"""Market makers of the synthetic market: quotes around a delayed, noisy picture of the efficient price.

Every 20 ms makers see the efficient price of a moment ago, with an error, moved by the impact of past
trades. The wider the gap between that and the mid, the likelier they quote anew: they cancel what is
on the wrong side of the new touch, quote it, and fill up the ticks between. The touch thus stands
still and then moves by many ticks at once, with a spread of one tick.

Impact is transient: an execution moves the price that makers see by c·√(q/q̄)·(s - E[s]), s the taker's
side and E[s] the sign expected from score and gap; it decays as a sum of exponentials that approximates
a power of time. It is the same for every trader.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from market import book as bk
from market.kernel import kernel
from proving.synthetic import matching as me
from proving.synthetic.arrivals import Floats, philox
from proving.synthetic.background import (
    BACKGROUND,
    IMPACT_DECAY_S,
    IMPACT_POWER,
    LANDING_STREAM,
    MAKER_STEP_NS,
    MAKER_STREAM,
    QUOTE_STREAM,
    STEP_NS,
    BackgroundParameters,
    BackgroundState,
    LatentPath,
    level_lots,
    normal,
    occupancy,
)
from proving.synthetic.matching import EngineState, TimeInForce

_GTC: Final = int(TimeInForce.GOOD_TILL_CANCELLED)
_IOC: Final = int(TimeInForce.IMMEDIATE_OR_CANCEL)
_DECAY: Final = np.exp(-MAKER_STEP_NS * 1e-9 / IMPACT_DECAY_S)
_WEIGHT: Final = IMPACT_DECAY_S**-IMPACT_POWER / np.sum(IMPACT_DECAY_S**-IMPACT_POWER)


@kernel
def _cancel_level(engine: EngineState, side: int, ticks: int, keep: int) -> None:
    """Cancel the background's orders at a price, the newest first, but for ``keep`` of them."""
    row = me.last_at(engine, side, ticks)
    count = 0
    while row >= 0:
        count += engine.orders[row].owner == BACKGROUND
        row = engine.orders[row].previous
    row = me.last_at(engine, side, ticks)
    while row >= 0 and count > keep:
        previous = engine.orders[row].previous
        if engine.orders[row].owner == BACKGROUND:
            me.cancel_row(engine, row)
            count -= 1
        row = previous


@kernel
def _populate(
    engine: EngineState,
    law: BackgroundParameters,
    state: BackgroundState,
    side: int,
    ticks: int,
    share: float,
    count: int,
) -> None:
    """Draw a tick behind the touch from its stationary law, with probability ``share``."""
    draws = state.draws[1]
    philox(state.key, QUOTE_STREAM, count, draws)
    ratio = occupancy(law, ticks)
    if draws[0] >= share * ratio:
        return
    # The queue's length is geometric: P(n or more) = ratio^n.
    orders = min(12, 1 + int(math.log(1 - (draws[1] - 0.5 * 2.0**-32)) / math.log(ratio)))
    for n in range(orders):
        # Sizes of one tick are drawn from shifted copies of one uniform.
        shifted = draws[2] + 0.6180339887498949 * n
        lots = level_lots(law, shifted - math.floor(shifted), ticks)
        me.enter(engine, side, ticks, lots, BACKGROUND, 0, _GTC)


@kernel
def _extend(
    engine: EngineState,
    law: BackgroundParameters,
    state: BackgroundState,
    side: int,
    ticks: int,
    count: int,
) -> None:
    """Populate the ticks that have come into reach behind a touch at ``ticks``."""
    row, key = bk.row_of(side), -side * ticks
    start = max(state.populated[row], key) + 1
    for k in range(start, key + law.reach + 1):
        count += 1
        _populate(engine, law, state, side, -side * k, 1.0, count)
    state.populated[row] = max(state.populated[row], key + law.reach)


@kernel
def _post(
    engine: EngineState,
    law: BackgroundParameters,
    state: BackgroundState,
    side: int,
    ticks: int,
    lots: float,
    count: int,
) -> None:
    """Post about so many lots at a price as several orders."""
    draws = state.draws[1]
    orders = max(1, int(0.6 * law.touch_orders))
    for n in range(orders):
        if n % 4 == 0:
            philox(state.key, QUOTE_STREAM, count + n // 4, draws)
        part = lots / orders * (0.25 + 1.5 * draws[n % 4])
        me.enter(engine, side, ticks, max(1, int(part)), BACKGROUND, 0, _GTC)


@kernel
def requote(
    engine: EngineState,
    law: BackgroundParameters,
    state: BackgroundState,
    bid: int,
    ask: int,
    sweep: float,
) -> None:
    """Quote a new touch. ``sweep`` > 0: takers first take that share of the quantity that would go."""
    number = state.head[0].maker_steps << 20
    for side in (1, -1):
        new = bid if side > 0 else ask
        row = bk.row_of(side)
        key, goal = bk.best_key(engine.book, row), -side * new
        if key >= goal:
            continue
        if sweep > 0:
            offered = me.available(engine, -side, new + side, me.MAX_LOTS)
            lots = max(1, int(offered * sweep))
            me.enter(engine, -side, new + side, lots, BACKGROUND, 0, _IOC)
        # The background leaves the wrong side of the new touch; orders of others stay and are met.
        key = bk.best_key(engine.book, row)
        while key < goal:
            following = bk.next_key(engine.book, row, key)
            _cancel_level(engine, side, -side * key, 0)
            key = following
    for side in (1, -1):
        new = bid if side > 0 else ask
        row = bk.row_of(side)
        key, goal = bk.best_key(engine.book, row), -side * new
        count = number + (row << 19)
        if key > goal and key != bk.NO_KEY:
            # The touch advances: the old one becomes a level like others.
            _cancel_level(engine, side, -side * key, 1)
            for k in range(goal + 1, min(key, goal + law.reach)):
                count += 1
                _populate(engine, law, state, side, -side * k, law.refill, count)
        count = number + (row << 19) + (1 << 17)
        philox(state.key, QUOTE_STREAM, count, state.draws[1])
        wanted = state.targets[row] * math.exp(
            law.touch_log_sd * normal(state.draws[1, 0]) - 0.5 * law.touch_log_sd**2
        )
        lots = bk.level(engine.book, side, new)
        if lots < 0.8 * wanted:
            _post(engine, law, state, side, new, wanted - lots, count + 1)
        _extend(engine, law, state, side, new, number + (row << 19) + (1 << 18))


@kernel
def _at(values: Floats, t_ns: int) -> float:
    """A path's value at a time after midnight, linear between its steps."""
    j = t_ns // STEP_NS
    if j < 0:
        return float(values[0])
    if j >= len(values) - 1:
        return float(values[-1])
    share = (t_ns - j * STEP_NS) / STEP_NS
    return float(values[j] + share * (values[j + 1] - values[j]))


@kernel
def maker_step(
    engine: EngineState, law: BackgroundParameters, path: LatentPath, state: BackgroundState
) -> None:
    """One decision of the makers: update what they see and want, and perhaps quote anew."""
    head, draws = state.head[0], state.draws[0]
    t_ns = head.maker_steps * MAKER_STEP_NS
    philox(state.key, MAKER_STREAM, head.maker_steps, draws)
    impact = 0.0
    for k in range(len(_DECAY)):
        state.impact[k] *= _DECAY[k]
        impact += state.impact[k]
    head.maker_noise = law.noise_keep * head.maker_noise + law.noise_sd * math.sqrt(
        1 - law.noise_keep**2
    ) * normal(draws[3])
    log_price = _at(path.log_price, t_ns - int(law.delay * STEP_NS)) + impact + head.maker_noise
    price = math.exp(log_price) / law.tick
    bid_key, ask_key = bk.best_key(engine.book, 0), bk.best_key(engine.book, 1)
    two_sided = bid_key != bk.NO_KEY and ask_key != bk.NO_KEY
    bid = -bid_key if two_sided else math.floor(price)
    ask = ask_key if two_sided else bid + 1
    gap = (price - 0.5 * (bid + ask)) / (law.hold * price)
    near = min(1.0, max(-1.0, gap))
    j = min(t_ns // STEP_NS, len(path.score) - 1)
    score, depth = path.score[j], path.depth[j]
    tilt = law.imbalance_sd * score + law.touch_gap * near
    tilt = min(0.95, max(-0.95, tilt))
    head.maker_price = price
    state.targets[0] = law.touch_lots * depth * (1 + tilt)
    state.targets[1] = law.touch_lots * depth * (1 - tilt)
    head.expected_sign = min(0.95, max(-0.95, law.flow_sd * score + law.flow_gap * near))
    hazard = gap * gap + law.restless + law.unsettled * head.freshness
    head.freshness *= law.calming
    if not two_sided or draws[0] < hazard * (MAKER_STEP_NS / STEP_NS):
        width = 1
        philox(state.key, LANDING_STREAM, head.maker_steps, state.draws[1])
        error = law.landing * normal(state.draws[1, 0]) if two_sided else 0.0
        new = math.floor(price * (1 + error))
        if draws[1] < law.wide:
            width = 2 + int(3 * draws[1] / law.wide)
            new -= width // 2
        if new != bid or new + width != ask or not two_sided:
            # The touch that is about to retreat is taken in part, or all of it.
            share = 0.0
            if two_sided and draws[2] < law.sweep:
                share = (draws[2] / law.sweep) ** 2
            requote(engine, law, state, max(1, new), max(1, new) + width, share)
            head.freshness = 1.0
    elif ask - bid > 1 and draws[1] < law.close:
        # An open spread closes around the price that makers see.
        new = min(ask - 1, max(bid, math.floor(price)))
        requote(engine, law, state, new, new + 1, 0.0)
    head.maker_steps += 1


@kernel
def apply_impact(engine: EngineState, law: BackgroundParameters, state: BackgroundState) -> None:
    """Move the price that makers see by the executions since `matching.clear_fills`."""
    fills = engine.head[0].fills
    n = 0
    while n < fills:
        taker, side, lots = engine.fills[n].taker, engine.fills[n].side, 0
        while n < fills and engine.fills[n].taker == taker:
            lots += engine.fills[n].lots
            n += 1
        push = (
            law.impact
            * math.sqrt(lots / law.order_lots)
            * (side - (1 - law.split) * state.head[0].expected_sign)
        )
        for k in range(len(_WEIGHT)):
            state.impact[k] += push * _WEIGHT[k]
