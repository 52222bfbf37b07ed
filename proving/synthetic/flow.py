"""What everybody else does: the background flow of a synthetic market, request by request.

Two kinds of actor share the book of `proving.synthetic.matching` with whoever else sends orders.

*Arrivals* (`proving.synthetic.arrivals`) come by themselves: takers, and limit orders and cancels at the touch,
behind it and inside the spread. Takers either work off metaorders, whose Pareto lengths give order
signs their long memory, or lean with the score and with the gap between value and mid.

*Makers* look every 20 ms at a delayed and noisy picture of the efficient price, moved by the impact
of past trades. The wider the gap to the mid, the likelier they quote anew around what they see: they
cancel what stands on the wrong side of it, quote a new touch and fill up what lies between. The touch
thus stands still and then moves by many ticks at once, with a spread of one tick.

Impact is transient: an execution moves what makers see by c·√(q/q̄)·(s - E[s]), with s the taker's
side and E[s] what score and gap let expect, and that fades as a sum of exponentials that follows a power of
time. It does not ask who traded.

Behind the touch, every tick is a queue of its own: orders are placed at one rate and withdrawn, the
newest first, at another, so that the share of ticks that hold a level is the ratio of the two and the
stationary law is known: a price that comes into reach is drawn from it.

All randomness is counted (`arrivals.philox`): by request, by look, by quote. Executing, cancelling or
adding orders of our own changes none of it.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from market import book as bk
from market.kernel import kernel
from proving.synthetic import matching as me
from proving.synthetic.arrivals import (
    KINDS,
    SCALES,
    Arrivals,
    Floats,
    Integers,
    Request,
    next_request,
    philox,
)
from proving.synthetic.matching import EngineState, TimeInForce

STEP_NS: Final = 100_000_000  #: of the hidden day's arrays
LOOK_NS: Final = 20_000_000  #: between two looks of the makers
BACKGROUND: Final = 0  #: owner of everybody else's orders
#: Rows of the pool that one request may need at most.
POOL_ROOM: Final = 1 << 14

#: Times over which impact fades (s), and the power of time that their sum follows.
IMPACT_FADE_S: Final = 0.5 * 4.0 ** np.arange(8)
IMPACT_POWER: Final = 0.3
#: Metaorders that are worked off side by side; each is chosen as often as the others.
METAORDERS: Final = 3
#: Tail index of metaorder lengths: signs then have the autocorrelation exponent 1.5 - 1 = 0.5.
METAORDER_TAIL: Final = 1.5
#: Log standard deviation of a taker order's quantity.
TAKER_LOG_SD: Final = 2.0
#: Log standard deviation of the quantity of dust.
DUST_LOG_SD: Final = 0.5
#: Round prices hold levels more often, and larger ones.
ROUND: Final = 10
ROUND_OCCUPANCY: Final = 1.6
ROUND_SIZE: Final = 1.5
#: No tick holds a level more often than this, or queues would have no bound.
MOST_OCCUPIED: Final = 0.85

# Streams of counted randomness.
_CANDIDATES: Final = 0
_MARKS: Final = 1
_MORE_MARKS: Final = 2
_LOOKS: Final = 3
_QUOTES: Final = 4
_LANDINGS: Final = 5

# Places in `Crowd.counts`.
CANDIDATES: Final = 0  #: drawn so far
REQUESTS: Final = 1  #: that came so far
LOOKS: Final = 2
NEXT_NS: Final = 3  #: time of the next request, and its kind; -1 while it is not drawn
NEXT_KIND: Final = 4
DRAWN_NS: Final = 5  #: up to when arrivals are drawn
RPI_LOTS: Final = 6  #: a print against hidden retail liquidity that is due, with its side
RPI_SIDE: Final = 7
_COUNTS: Final = 8

# Places in `Crowd.sight`: what the makers made of their last look.
SEEN: Final = 0  #: the price they see, ticks
GAP: Final = 1  #: (seen - mid) / hold, within one
TARGET: Final = 2  #: lots wanted at the touch: bids, then asks
NOISE: Final = 4
LEAN: Final = 5  #: expected sign of a taker that works off no metaorder
FRESH: Final = 6  #: how fresh the last quote is: one at first, then fading
_SIGHT: Final = 7

_TAKE: Final = int(Request.TAKE)
_JOIN: Final = int(Request.JOIN)
_LEAVE: Final = int(Request.LEAVE)
_PLACE: Final = int(Request.PLACE)
_WITHDRAW: Final = int(Request.WITHDRAW)
_IMPROVE: Final = int(Request.IMPROVE)
_GTC: Final = int(TimeInForce.GOOD_TILL_CANCELLED)
_IOC: Final = int(TimeInForce.IMMEDIATE_OR_CANCEL)

_QUANTILES: Final = 4096
#: Standard normal quantiles at the middles of equal probabilities.
NORMAL: Final = np.array([NormalDist().inv_cdf((n + 0.5) / _QUANTILES) for n in range(_QUANTILES)])


class Law(NamedTuple):
    """Scalars of the flow: the profile in ticks, lots and looks."""

    tick: float  #: quote currency
    hold: float  #: gap at which a move in 100 ms is certain (log price)
    restless: float  #: hazard of a new quote without a gap, per 100 ms
    unsettled: float  #: the same just after a new quote
    settle: float  #: how much of that is left at the next look
    landing: float  #: error of a new quote (log price)
    wide: float  #: probability that a new quote leaves a spread of several ticks
    close: float  #: probability per look that an open spread is closed
    sweep: float  #: probability that a taker meets the touch that is about to retreat
    refill: float  #: share of the ticks passed over that are filled at once
    rpi: float  #: share of takers that meet hidden retail liquidity
    touch_lots: float  #: mean quantity at the touch
    touch_orders: float  #: mean number of orders there
    touch_log_sd: float  #: of a fresh touch
    level_log: float  #: median and log standard deviation of an order behind the touch, log lots
    level_log_sd: float
    dust: float  #: share of orders behind the touch that are dust, and their median, log lots
    dust_log: float
    occupancy: float  #: share of ticks behind the touch that hold a level
    reach: int  #: ticks behind the touch that are populated
    churn_reach: float  #: ticks behind the touch within which orders are placed and withdrawn
    order_lots: float  #: mean quantity of a taker order
    bound_ticks: int  #: how far beyond the touch a taker goes
    imbalance_sd: float  #: of the touch, by the score
    touch_gap: float  #: of the touch, by the gap
    flow_sd: float  #: of the expected sign, by the score
    flow_gap: float  #: of the expected sign, by the gap
    split: float  #: share of takers that work off metaorders
    delay: float  #: of what makers see, in steps of 100 ms
    noise_sd: float  #: of what makers see (log price), and how much is left of it at the next look
    noise_keep: float
    impact: float  #: log price, of a taker order of mean quantity


class Path(NamedTuple):
    """The hidden day, shape (FRAMES + 1,), entry j at j · 0.1 s after midnight."""

    log_price: Floats
    score: Floats
    depth: Floats  #: multiplier of quantities at the touch
    activity: Floats  #: multiplier of spontaneous arrivals


class Crowd(NamedTuple):
    """State of the flow."""

    key: npt.NDArray[np.uint64]  #: (2,) of the day's randomness
    counts: Integers  #: (_COUNTS,)
    sight: Floats  #: (_SIGHT,)
    excited: Floats  #: (SCALES, KINDS) of the arrivals
    impact: Floats  #: (len(IMPACT_FADE_S),) log price
    metaorders: Integers  #: (METAORDERS, 2) side and number of orders left
    far: Integers  #: (2,) last populated key of a side
    draws: Floats  #: (3, 4) room for uniforms: of a request or look, of a quote, of a candidate


def new_crowd(key: npt.NDArray[np.uint64]) -> Crowd:
    """The flow before its day; `open_market` fills the book."""
    counts = np.zeros(_COUNTS, np.int64)
    counts[NEXT_KIND] = -1
    return Crowd(
        key,
        counts,
        np.zeros(_SIGHT),
        np.zeros((SCALES, KINDS)),
        np.zeros(len(IMPACT_FADE_S)),
        np.zeros((METAORDERS, 2), np.int64),
        np.full(2, -bk.NO_KEY, np.int64),
        np.zeros((3, 4)),
    )


_FADE: Final = np.exp(-LOOK_NS * 1e-9 / IMPACT_FADE_S)
_WEIGHT: Final = IMPACT_FADE_S**-IMPACT_POWER / np.sum(IMPACT_FADE_S**-IMPACT_POWER)


@kernel
def _normal(uniform: float) -> float:
    return float(NORMAL[int(uniform * _QUANTILES)])


@kernel
def _size(law: Law, uniform: float, ticks: int) -> int:
    """Lots of an order behind the touch."""
    if uniform < law.dust:
        return max(1, round(math.exp(law.dust_log + DUST_LOG_SD * _normal(uniform / law.dust))))
    rest = (uniform - law.dust) / (1 - law.dust)
    lots = math.exp(law.level_log + law.level_log_sd * _normal(rest))
    return max(1, int(lots * (ROUND_SIZE if ticks % ROUND == 0 else 1.0)))


@kernel
def _occupancy(law: Law, ticks: int) -> float:
    """Probability that a tick behind the touch holds a level."""
    round_price = ticks % ROUND == 0
    return min(MOST_OCCUPIED, law.occupancy * (ROUND_OCCUPANCY if round_price else 1.0))


@kernel
def _cancel_level(engine: EngineState, side: int, ticks: int, keep: int) -> None:
    """Everybody else cancels at a price, the newest first, but for ``keep`` orders."""
    row = me.last_at(engine, side, ticks)
    held = 0
    while row >= 0:
        held += engine.orders[row, me.OWNER] == BACKGROUND
        row = engine.orders[row, me.BEFORE]
    row = me.last_at(engine, side, ticks)
    while row >= 0 and held > keep:
        before = engine.orders[row, me.BEFORE]
        if engine.orders[row, me.OWNER] == BACKGROUND:
            me.cancel_row(engine, row)
            held -= 1
        row = before


@kernel
def _populate(
    engine: EngineState, law: Law, crowd: Crowd, side: int, ticks: int, share: float, count: int
) -> None:
    """Draw a tick behind the touch from its stationary law, with probability ``share``."""
    draws = crowd.draws[1]
    philox(crowd.key, _QUOTES, count, draws)
    ratio = _occupancy(law, ticks)
    if draws[0] >= share * ratio:
        return
    # The queue's length is geometric: P(n or more) = ratio^n.
    orders = min(12, 1 + int(math.log(1 - (draws[1] - 0.5 * 2.0**-32)) / math.log(ratio)))
    for n in range(orders):
        # Sizes of one tick are drawn from shifted copies of one uniform.
        shifted = draws[2] + 0.6180339887498949 * n
        lots = _size(law, shifted - math.floor(shifted), ticks)
        me.enter(engine, side, ticks, lots, BACKGROUND, 0, _GTC)


@kernel
def _reach(engine: EngineState, law: Law, crowd: Crowd, side: int, ticks: int, count: int) -> None:
    """Populate ticks that have come into reach behind a touch at ``ticks``."""
    row, key = bk.row_of(side), -side * ticks
    start = max(crowd.far[row], key) + 1
    for k in range(start, key + law.reach + 1):
        count += 1
        _populate(engine, law, crowd, side, -side * k, 1.0, count)
    crowd.far[row] = max(crowd.far[row], key + law.reach)


@kernel
def _post(
    engine: EngineState, law: Law, crowd: Crowd, side: int, ticks: int, lots: float, count: int
) -> None:
    """Post about so many lots at a price as several orders."""
    draws = crowd.draws[1]
    orders = max(1, int(0.6 * law.touch_orders))
    for n in range(orders):
        if n % 4 == 0:
            philox(crowd.key, _QUOTES, count + n // 4, draws)
        part = lots / orders * (0.25 + 1.5 * draws[n % 4])
        me.enter(engine, side, ticks, max(1, int(part)), BACKGROUND, 0, _GTC)


@kernel
def quote(engine: EngineState, law: Law, crowd: Crowd, bid: int, ask: int, sweep: float) -> None:
    """The makers quote a new touch. ``sweep`` > 0: takers first take that share of what stands there."""
    number = crowd.counts[LOOKS] << 20
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
        # What stands on the wrong side of the new touch goes; orders of others stay and are met.
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
                _populate(engine, law, crowd, side, -side * k, law.refill, count)
        count = number + (row << 19) + (1 << 17)
        philox(crowd.key, _QUOTES, count, crowd.draws[1])
        wanted = crowd.sight[TARGET + row] * math.exp(
            law.touch_log_sd * _normal(crowd.draws[1, 0]) - 0.5 * law.touch_log_sd**2
        )
        held = bk.level(engine.book, side, new)
        if held < 0.8 * wanted:
            _post(engine, law, crowd, side, new, wanted - held, count + 1)
        _reach(engine, law, crowd, side, new, number + (row << 19) + (1 << 18))


@kernel
def _at(values: Floats, t_ns: int) -> float:
    """A path's value at a time after midnight."""
    j = t_ns // STEP_NS
    if j < 0:
        return float(values[0])
    if j >= len(values) - 1:
        return float(values[-1])
    share = (t_ns - j * STEP_NS) / STEP_NS
    return float(values[j] + share * (values[j + 1] - values[j]))


@kernel
def look(engine: EngineState, law: Law, path: Path, crowd: Crowd) -> None:
    """The makers look at the market and may quote anew."""
    counts, sight, draws = crowd.counts, crowd.sight, crowd.draws[0]
    t_ns = counts[LOOKS] * LOOK_NS
    philox(crowd.key, _LOOKS, counts[LOOKS], draws)
    moved = 0.0
    for k in range(len(_FADE)):
        crowd.impact[k] *= _FADE[k]
        moved += crowd.impact[k]
    sight[NOISE] = law.noise_keep * sight[NOISE] + law.noise_sd * math.sqrt(
        1 - law.noise_keep**2
    ) * _normal(draws[3])
    seen_log = _at(path.log_price, t_ns - int(law.delay * STEP_NS)) + moved + sight[NOISE]
    seen = math.exp(seen_log) / law.tick
    bid_key, ask_key = bk.best_key(engine.book, 0), bk.best_key(engine.book, 1)
    two_sided = bid_key != bk.NO_KEY and ask_key != bk.NO_KEY
    bid = -bid_key if two_sided else math.floor(seen)
    ask = ask_key if two_sided else bid + 1
    gap = (seen - 0.5 * (bid + ask)) / (law.hold * seen)
    near = min(1.0, max(-1.0, gap))
    j = min(t_ns // STEP_NS, len(path.score) - 1)
    score, depth = path.score[j], path.depth[j]
    tilt = law.imbalance_sd * score + law.touch_gap * near
    tilt = min(0.95, max(-0.95, tilt))
    sight[SEEN], sight[GAP] = seen, near
    sight[TARGET] = law.touch_lots * depth * (1 + tilt)
    sight[TARGET + 1] = law.touch_lots * depth * (1 - tilt)
    sight[LEAN] = min(0.95, max(-0.95, law.flow_sd * score + law.flow_gap * near))
    hazard = gap * gap + law.restless + law.unsettled * sight[FRESH]
    sight[FRESH] *= law.settle
    if not two_sided or draws[0] < hazard * (LOOK_NS / STEP_NS):
        width = 1
        philox(crowd.key, _LANDINGS, counts[LOOKS], crowd.draws[1])
        error = law.landing * _normal(crowd.draws[1, 0]) if two_sided else 0.0
        new = math.floor(seen * (1 + error))
        if draws[1] < law.wide:
            width = 2 + int(3 * draws[1] / law.wide)
            new -= width // 2
        if new != bid or new + width != ask or not two_sided:
            # What is about to retreat is taken in part, or all of it.
            share = 0.0
            if two_sided and draws[2] < law.sweep:
                share = (draws[2] / law.sweep) ** 2
            quote(engine, law, crowd, max(1, new), max(1, new) + width, share)
            sight[FRESH] = 1.0
    elif ask - bid > 1 and draws[1] < law.close:
        # An open spread closes around what the makers see.
        new = min(ask - 1, max(bid, math.floor(seen)))
        quote(engine, law, crowd, new, new + 1, 0.0)
    counts[LOOKS] += 1


@kernel
def felt(engine: EngineState, law: Law, crowd: Crowd) -> None:
    """Let what makers see move by the executions since `matching.clear_fills`."""
    fills = engine.head[me.FILLS]
    n = 0
    while n < fills:
        taker, side, lots = engine.fills[n, me.F_TAKER], engine.fills[n, me.F_SIDE], 0
        while n < fills and engine.fills[n, me.F_TAKER] == taker:
            lots += engine.fills[n, me.F_LOTS]
            n += 1
        push = (
            law.impact
            * math.sqrt(lots / law.order_lots)
            * (side - (1 - law.split) * crowd.sight[LEAN])
        )
        for k in range(len(_WEIGHT)):
            crowd.impact[k] += push * _WEIGHT[k]


@kernel
def _metaorder_side(crowd: Crowd, which: float, fresh: Floats) -> int:
    """The side of the next order of one of the metaorders; a new one replaces one that is done."""
    meta = crowd.metaorders[int(which * METAORDERS)]
    if meta[1] <= 0:
        meta[0] = 1 if fresh[0] < 0.5 else -1
        meta[1] = min(100_000, int(fresh[1] ** (-1 / METAORDER_TAIL)))
    meta[1] -= 1
    return int(meta[0])


@kernel
def _take(engine: EngineState, law: Law, crowd: Crowd, draws: Floats) -> None:
    more = crowd.draws[1]
    philox(crowd.key, _MORE_MARKS, crowd.counts[REQUESTS], more)
    if draws[0] < law.split:
        side = _metaorder_side(crowd, draws[0] / law.split, more)
    else:
        side = 1 if 2 * (draws[0] - law.split) < (1 - law.split) * (1 + crowd.sight[LEAN]) else -1
    lots = law.order_lots * math.exp(TAKER_LOG_SD * _normal(draws[1]) - 0.5 * TAKER_LOG_SD**2)
    if draws[2] < law.rpi:
        crowd.counts[RPI_LOTS] = max(1, int(min(lots, law.order_lots)))
        crowd.counts[RPI_SIDE] = side
        return
    key = bk.best_key(engine.book, bk.row_of(-side))
    if key != bk.NO_KEY:
        ticks = side * (key + law.bound_ticks)
        me.enter(engine, side, max(1, ticks), max(1, int(lots)), BACKGROUND, 0, _IOC)


@kernel
def _touch_side(
    engine: EngineState, crowd: Crowd, uniform: float, leaves: bool
) -> tuple[int, float]:
    """A side of the touch, the likelier the more it lacks (or has too much, when an order leaves).

    Also how full the touch is: lots over lots wanted, both sides together.
    """
    held_bid = float(bk.lots_at(engine.book, 0, bk.best_key(engine.book, 0)))
    held_ask = float(bk.lots_at(engine.book, 1, bk.best_key(engine.book, 1)))
    want_bid, want_ask = crowd.sight[TARGET], crowd.sight[TARGET + 1]
    bid, ask = held_bid / want_bid, held_ask / want_ask
    first = ask * ask
    second = bid * bid
    if leaves:
        first, second = second, first
    side = 1 if uniform * (first + second) < first else -1
    return side, (held_bid + held_ask) / (want_bid + want_ask)


@kernel
def request(engine: EngineState, law: Law, crowd: Crowd, kind: int) -> None:
    """One arrival does what its kind does."""
    draws = crowd.draws[0]
    philox(crowd.key, _MARKS, crowd.counts[REQUESTS], draws)
    book = engine.book
    if bk.best_key(book, 0) == bk.NO_KEY or bk.best_key(book, 1) == bk.NO_KEY:
        return
    if kind == _TAKE:
        _take(engine, law, crowd, draws)
    elif kind == _JOIN:
        side, full = _touch_side(engine, crowd, draws[0], False)
        if draws[1] * full * full < 1:
            lots = law.touch_lots / law.touch_orders * math.exp(0.7 * _normal(draws[2]) - 0.245)
            ticks = -side * bk.best_key(book, bk.row_of(side))
            me.enter(engine, side, ticks, max(1, int(lots)), BACKGROUND, 0, _GTC)
    elif kind == _LEAVE:
        side, full = _touch_side(engine, crowd, draws[0], True)
        if draws[1] < full * full:
            ticks = -side * bk.best_key(book, bk.row_of(side))
            _leave(engine, side, ticks, int(draws[2] * law.touch_orders), True)
    elif kind == _IMPROVE:
        bid, ask = -bk.best_key(book, 0), bk.best_key(book, 1)
        if ask - bid > 1:
            side = 1 if crowd.sight[SEEN] > 0.5 * (bid + ask) else -1
            lots = law.touch_lots / law.touch_orders * math.exp(0.7 * _normal(draws[2]) - 0.245)
            ticks = bid + 1 if side > 0 else ask - 1
            me.enter(engine, side, ticks, max(1, int(lots)), BACKGROUND, 0, _GTC)
    else:
        side = 1 if draws[0] < 0.5 else -1
        behind = 1 + int(draws[1] * law.churn_reach)
        ticks = -side * (bk.best_key(book, bk.row_of(side)) + behind)
        if ticks < 1:
            return
        if kind == _PLACE:
            me.enter(engine, side, ticks, _size(law, draws[3], ticks), BACKGROUND, 0, _GTC)
        elif draws[2] * _occupancy(law, ticks) < law.occupancy:
            _leave(engine, side, ticks, 0, False)


@kernel
def _leave(engine: EngineState, side: int, ticks: int, skip: int, holds: bool) -> None:
    """One of everybody else's orders at a price is cancelled: ``skip`` places before the newest.

    ``holds``: never the last order at the price.
    """
    row = me.last_at(engine, side, ticks)
    if row < 0 or (holds and engine.orders[row, me.BEFORE] < 0):
        return
    chosen = -1
    while row >= 0:
        if engine.orders[row, me.OWNER] == BACKGROUND:
            chosen = row
            skip -= 1
            if skip < 0:
                break
        row = engine.orders[row, me.BEFORE]
    if chosen >= 0:
        me.cancel_row(engine, chosen)


@kernel
def draw_next(law: Arrivals, path: Path, crowd: Crowd, until_ns: int) -> int:
    """Time of the next arrival, or ``until_ns`` when none comes before; it stays drawn."""
    counts = crowd.counts
    while counts[NEXT_KIND] < 0 and counts[DRAWN_NS] < until_ns:
        now = counts[DRAWN_NS]
        j = min(now // STEP_NS, len(path.activity) - 1)
        # Whole steps only: where a caller stops must not change what is drawn.
        seconds = ((now // STEP_NS + 1) * STEP_NS - now) * 1e-9
        passed, kind = next_request(
            crowd.excited,
            law,
            path.activity[j],
            seconds,
            crowd.key,
            _CANDIDATES,
            counts,
            CANDIDATES,
            crowd.draws[2],
        )
        if kind < 0:
            counts[DRAWN_NS] = (now // STEP_NS + 1) * STEP_NS
        else:
            counts[DRAWN_NS] = now + int(passed * 1e9)
            counts[NEXT_NS], counts[NEXT_KIND] = counts[DRAWN_NS], kind
    if counts[NEXT_KIND] < 0:
        return until_ns
    return int(min(until_ns, counts[NEXT_NS]))


@kernel
def advance(
    engine: EngineState, law: Law, arriving: Arrivals, path: Path, crowd: Crowd, until_ns: int
) -> int:
    """What happens next before ``until_ns``; returns when, or ``until_ns`` when nothing does.

    One request or one look: its executions are in ``engine.fills``, felt already, and the caller
    clears them. The engine's pool must have `POOL_ROOM`.
    """
    counts = crowd.counts
    look_ns = counts[LOOKS] * LOOK_NS
    next_ns = draw_next(arriving, path, crowd, min(until_ns, look_ns))
    if next_ns >= until_ns:
        return until_ns
    if next_ns < look_ns:
        request(engine, law, crowd, counts[NEXT_KIND])
        counts[NEXT_KIND] = -1
        counts[REQUESTS] += 1
        felt(engine, law, crowd)
    else:
        # What is taken from a touch that retreats follows from what makers see already.
        look(engine, law, path, crowd)
    return int(next_ns)
