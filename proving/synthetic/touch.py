"""The best quotes in the reduced form: how they follow the efficient price, frame by frame.

The touch stands still while the efficient price wanders, and moves with a hazard that grows with the
gap between the mid and the target of quotes: the efficient price of a moment ago plus an offset that
mean-reverts over seconds to hours (what is left of impact). It then moves by a few ticks (a nudge), or
is quoted anew near the target. Hazards, ticks, landing errors and spreads are tables over the size of
the gap; `fit` counts them in frames of the full market, `follow` draws from them.

The model is symmetric: everything is counted towards and away from the gap.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from market import book as bk
from market.book import BookState
from market.events import Events, Flag, Kind
from market.kernel import compiled
from proving.synthetic.latent import PER_SECOND, Drivers, smooth

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_SNAPSHOT: Final = int(Kind.SNAPSHOT)
_DELTA: Final = int(Kind.DELTA)
_LAST: Final = int(Flag.LAST)
_FRAME_NS: Final = 100_000_000

#: Half-lives of the Ornstein-Uhlenbeck parts of the offset (s).
OFFSET_HALF_LIVES_S: Final = (5.0, 30.0, 180.0, 1_000.0, 6_000.0)
#: Lags at which the offset's memory is fitted (s).
_LAGS_S: Final = (5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120)
#: Half-lives tried for the mean of observed offsets (s).
_TRIED_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0)
#: A move of the mid by no more than this many half ticks is a nudge, not a new quote.
NUDGE_HALF_TICKS: Final = 8
_BINS: Final = 24
_QUANTILES: Final = 65
_SPREADS: Final = 12
_LONGEST_DELAY: Final = 5


class TouchModel(NamedTuple):
    """Tables of the touch; the first axis is whether the spread before was wider than a tick.

    ``b`` is _BINS bins of the gap's size.
    """

    delay: Integers  #: (1,) frames by which quotes lag the efficient price
    keep: Floats  #: (1,) share of the mean observed offset that is left a frame later
    #: (len(OFFSET_HALF_LIVES_S),) standard deviations of the offset's parts, log price
    offset: Floats
    edges: Floats  #: (b - 1,) inner edges of the bins, log price
    #: (2, 2, b) per frame, of a new quote and of a nudge, in the usual state of the market
    hazard: Floats
    mood: Floats  #: (2, 4) log multiplier of those: intercept, then per unit of `market_state`
    nudge: Floats  #: (2, b, 2 NUDGE_HALF_TICKS + 1) cumulative, half ticks towards the gap
    landing: Floats  #: (2, b, _QUANTILES) error of a new quote towards the gap, log price
    #: (2, 2, _SPREADS) cumulative, by spread before and whether nudged; from one tick
    spread: Floats
    arrival_s: Floats  #: (1,) mean time from a frame's tenth of a second to its receipt
    flicker: Floats  #: (1,) share of reversals in neighbouring frames that come within 100 ms


def market_state(hidden: Drivers) -> Floats:
    """The state that scales hazards, (frames + 1, 3): logs of volatility, depth and intensity."""
    return np.log(np.stack([hidden.volatility, hidden.depth, hidden.intensity], axis=1))


class TouchRecorder:
    """Records the touch after the frame of each tenth of a second, from event rows as they come."""

    def __init__(self, midnight_ns: int, frames: int) -> None:
        self._midnight_ns = midnight_ns
        self._state = bk.new_state()
        self._bid, self._ask = np.zeros(frames, np.int64), np.zeros(frames, np.int64)
        self._delay = np.zeros(2)

    def push(self, events: Events) -> None:
        """Apply event rows, in receive order."""
        _record(self._state, events, self._midnight_ns, self._bid, self._ask, self._delay)

    def recorded(self) -> tuple[Integers, Integers, float]:
        """Best bid and ask (ticks) by tenth of a second, and the mean receive time within it (s).

        Tenths without a frame repeat the one before; those before the first frame repeat the first.
        """
        known = np.where(self._bid > 0, np.arange(len(self._bid)), 0)
        known[0] = int(np.argmax(self._bid > 0))
        place = np.maximum.accumulate(known)
        return self._bid[place], self._ask[place], float(self._delay[0] / self._delay[1])


@compiled
def _record(
    state: BookState, events: Events, midnight_ns: int, bid: Integers, ask: Integers, delay: Floats
) -> None:
    for n in range(len(events)):
        event = events[n]
        if event.kind != _DELTA and event.kind != _SNAPSHOT:
            continue
        bk.apply(state, event)
        if event.flags & _LAST:
            tenth = (event.exchange_ns - midnight_ns) // _FRAME_NS
            if 0 <= tenth < len(bid):
                bid[tenth] = -bk.best_key(state, 0)
                ask[tenth] = bk.best_key(state, 1)
                delay[0] += (event.receive_ns - midnight_ns - tenth * _FRAME_NS) * 1e-9
                delay[1] += 1


# -- fitting ---------------------------------------------------------------------------------------


class DayTouch(NamedTuple):
    """The touch of one day of the full market by frame, beside its latent state."""

    bid: Integers
    ask: Integers
    log_price: Floats  #: (frames + 1,)
    state: Floats  #: `market_state`
    tick: float
    arrival_s: float


def fit(days: list[DayTouch]) -> TouchModel:
    """Fit the model to days of the full market; delay and memory minimise the miss of new quotes."""
    tried = [(delay, h) for delay in range(_LONGEST_DELAY + 1) for h in _TRIED_S]
    misses = [
        sum(_missed(day.bid + day.ask, _value(day, delay), _keep(h)) for day in days)
        for delay, h in tried
    ]
    delay, half_life_s = tried[int(np.argmin(misses))]
    keep = _keep(half_life_s)
    parts = [_changes(d.bid, d.ask, _value(d, delay), keep) for d in days]
    gap, wide, kind, nudge, error, spread = (
        np.concatenate(part) for part in zip(*parts, strict=True)
    )
    size = np.abs(gap)
    # Finer where gaps are large, because that is where the touch moves.
    shares = 1 - np.geomspace(1, 2e-3, _BINS)[1:] if _BINS > 1 else np.array([])
    edges = np.quantile(size, shares)
    place = np.searchsorted(edges, size)
    state = np.concatenate([day.state[1 : len(day.bid)] for day in days])
    mood = np.stack(
        [_state_regression(state, place, kind == 2), _state_regression(state, place, kind == 1)]
    )
    pace = [np.exp(mood[k, 0] + state @ mood[k, 1:]) for k in range(2)]
    hazard = np.zeros((2, 2, _BINS))
    steps = np.zeros((2, _BINS, 2 * NUDGE_HALF_TICKS + 1))
    landing = np.zeros((2, _BINS, _QUANTILES))
    spreads = np.zeros((2, 2, _SPREADS))
    levels = np.linspace(0, 1, _QUANTILES)
    for before in range(2):
        for b in range(_BINS):
            here = (wide == before) & (place == b)
            if here.sum() < 50:  # too few frames of wide spreads: use all
                here = place == b
            for k, of_kind in enumerate((kind == 2, kind == 1)):
                hazard[before, k, b] = (here & of_kind).sum() / max(
                    1e-9, float(pace[k][here].sum())
                )
            of_nudges = nudge[here & (kind == 1)] + NUDGE_HALF_TICKS
            counts = np.bincount(of_nudges, minlength=2 * NUDGE_HALF_TICKS + 1) + 1e-9
            steps[before, b] = np.cumsum(counts / counts.sum())
            errors_here = error[here & (kind == 2)]
            if len(errors_here) > 10:
                landing[before, b] = np.quantile(errors_here, levels)
        for nudges in range(2):
            spreads_here = spread[(wide == before) & (kind == 2 - nudges)]
            counts = (
                np.bincount(np.minimum(spreads_here, _SPREADS), minlength=_SPREADS + 1)[1:] + 1e-9
            )
            spreads[before, nudges] = np.cumsum(counts / counts.sum())
    arrival = float(np.mean([day.arrival_s for day in days]))
    return TouchModel(
        np.array([delay]),
        np.array([keep]),
        _offset_parts(days),
        edges,
        hazard,
        mood,
        steps,
        landing,
        spreads,
        np.array([arrival]),
        np.array([0.5]),
    )


def _state_regression(state: Floats, place: Integers, happened: npt.NDArray[np.bool_]) -> Floats:
    """Poisson regression of a change on the market's state, given the gap's bin: (4,) coefficients.

    Frames are summed over seconds, within which the state hardly moves.
    """
    usual = np.bincount(place, happened, _BINS) / np.maximum(np.bincount(place, minlength=_BINS), 1)
    n = len(place) // PER_SECOND * PER_SECOND
    expected = usual[place[:n]].reshape(-1, PER_SECOND).sum(axis=1)
    count = happened[:n].reshape(-1, PER_SECOND).sum(axis=1)
    design = np.column_stack([np.ones(len(count)), state[:n:PER_SECOND]])
    weights = np.zeros(4)
    for _ in range(12):
        mean = expected * np.exp(design @ weights) + 1e-12
        curvature = (design * mean[:, None]).T @ design + 1e-6 * np.eye(4)
        step = np.linalg.solve(curvature, design.T @ (count - mean))
        weights = weights + np.clip(step, -1, 1)
    return np.asarray(weights)


def _keep(half_life_s: float) -> float:
    return float(0.5 ** (1 / (PER_SECOND * half_life_s)))


def _offset_parts(days: list[DayTouch]) -> Floats:
    """Standard deviations of the offset's parts, whose autocovariances sum to the observed one."""
    observed = np.zeros(len(_LAGS_S))
    for day in days:
        apart = np.log(0.5 * (day.bid + day.ask) * day.tick) - day.log_price[: len(day.bid)]
        path = apart[::PER_SECOND]
        observed += [float(np.mean(path[lag:] * path[:-lag])) for lag in _LAGS_S]
    memory = 0.5 ** (np.array(_LAGS_S)[:, None] / np.array(OFFSET_HALF_LIVES_S))
    variances, _ = nnls(memory, observed / len(days))
    return np.asarray(np.sqrt(variances), np.float64)


def _value(day: DayTouch, delay: int) -> Floats:
    """Log of twice the efficient price in ticks, at the delay of quotes, by frame."""
    late = np.maximum(np.arange(len(day.bid)) - delay, 0)
    return np.asarray(day.log_price[late] + np.log(2 / day.tick))


@compiled
def _missed(mid2: Integers, value: Floats, keep: float) -> float:
    """Sum of squared distances of new quotes from the target by the mean offset."""
    mean, offset, total = 0.0, 0.0, 0.0
    for j in range(1, len(mid2)):
        if abs(mid2[j] - mid2[j - 1]) > NUDGE_HALF_TICKS:
            offset = np.log(mid2[j]) - value[j]
            total += (offset - mean) ** 2
        mean += (1 - keep) * (offset - mean)
    return total


@compiled
def _changes(
    bid: Integers, ask: Integers, value: Floats, keep: float
) -> tuple[Floats, Integers, Integers, Integers, Floats, Integers]:
    """By frame: gap, wide spread before, kind of change (0 none, 1 nudge, 2 new quote), nudge in half
    ticks, landing error, spread after."""
    n = len(bid)
    gap, error = np.zeros(n - 1), np.zeros(n - 1)
    wide, kind = np.zeros(n - 1, np.int64), np.zeros(n - 1, np.int64)
    nudge, spread = np.zeros(n - 1, np.int64), np.zeros(n - 1, np.int64)
    mean, offset = 0.0, 0.0
    for j in range(1, n):
        goal = value[j] + mean
        before, after = bid[j - 1] + ask[j - 1], bid[j] + ask[j]
        here = goal - np.log(before)
        towards = 1 if here >= 0 else -1
        gap[j - 1] = here
        wide[j - 1] = ask[j - 1] - bid[j - 1] > 1
        spread[j - 1] = ask[j] - bid[j]
        if bid[j] != bid[j - 1] or ask[j] != ask[j - 1]:
            if abs(after - before) <= NUDGE_HALF_TICKS:
                kind[j - 1] = 1
                nudge[j - 1] = towards * (after - before)
            else:
                kind[j - 1] = 2
                error[j - 1] = towards * (np.log(after) - goal)
                offset = np.log(after) - value[j]
        mean += (1 - keep) * (offset - mean)
    return gap, wide, kind, nudge, error, spread


def targets(model: TouchModel, day: DayTouch) -> Floats:
    """Target of quotes by frame (log of twice the price in ticks), given the observed quotes."""
    value = _value(day, int(model.delay[0]))
    return np.asarray(_targets(day.bid + day.ask, value, float(model.keep[0])))


@compiled
def _targets(mid2: Integers, value: Floats, keep: float) -> Floats:
    mean, offset = 0.0, 0.0
    out = np.empty(len(mid2))
    for j in range(len(mid2)):
        out[j] = value[j] + mean
        if j > 0 and abs(mid2[j] - mid2[j - 1]) > NUDGE_HALF_TICKS:
            offset = np.log(mid2[j]) - value[j]
        mean += (1 - keep) * (offset - mean)
    return out


# -- following -------------------------------------------------------------------------------------


def follow(
    model: TouchModel, hidden: Drivers, tick: float, rng: np.random.Generator
) -> tuple[Integers, Integers, Floats]:
    """Draw best bid and spread (ticks) by frame; also the target of quotes, as `targets` gives it."""
    n = len(hidden.log_price) - 1
    late = np.maximum(np.arange(n) - int(model.delay[0]), 0)
    target = hidden.log_price[late] + np.log(2 / tick)
    for spread, half_life_s in zip(model.offset, OFFSET_HALF_LIVES_S, strict=True):
        if spread > 0:
            path = rng.standard_normal(n)
            smooth(path, _keep(half_life_s))
            target += spread * path
    # Written out: a library's matrix product may round otherwise on another machine.
    volatile, deep, intense = market_state(hidden).T
    pace = np.exp(
        np.stack([m[0] + m[1] * volatile + m[2] * deep + m[3] * intense for m in model.mood])
    )
    bid, width = _follow(rng.random((n, 3)), target, pace, model)
    return bid, width, target


@compiled
def _draw(cumulative: Floats, u: float) -> int:
    """The place that a uniform falls on in cumulative probabilities."""
    n = 0
    while n < len(cumulative) - 1 and u >= cumulative[n]:
        n += 1
    return n


@compiled
def _follow(
    uniform: Floats, targets: Floats, pace: Floats, model: TouchModel
) -> tuple[Integers, Integers]:
    n = len(uniform)
    bid, spread = np.empty(n, np.int64), np.empty(n, np.int64)
    here = int(np.exp(targets[0]) / 2)
    width = 1
    log_mid = np.log(2 * here + width)
    for j in range(n):
        target = targets[j]
        gap = target - log_mid
        towards = 1 if gap >= 0 else -1
        b = np.searchsorted(model.edges, abs(gap))
        before = 1 if width > 1 else 0
        anew = model.hazard[before, 0, b] * pace[0, j]
        if uniform[j, 0] < anew + model.hazard[before, 1, b] * pace[1, j]:
            nudged = 1 if uniform[j, 0] >= anew else 0
            after = 1 + _draw(model.spread[before, nudged], uniform[j, 1])
            if nudged:
                step = _draw(model.nudge[before, b], uniform[j, 2]) - NUDGE_HALF_TICKS
                mid2 = 2 * here + width + towards * step
                # A mid between two ticks needs an odd spread, and the other way round.
                if (mid2 - after) % 2:
                    mid2 += towards if step <= 0 else -towards
            else:
                at = uniform[j, 2] * (_QUANTILES - 1)
                low = min(int(at), _QUANTILES - 2)
                errors = model.landing[before, b]
                error = errors[low] + (at - low) * (errors[low + 1] - errors[low])
                landed = target + towards * error
                mid2 = 2 * round(0.5 * (np.exp(landed) - after)) + after
            here, width = (mid2 - after) // 2, after
            log_mid = np.log(2 * here + width)
        bid[j], spread[j] = here, width
    return bid, spread


# -- columns of bars ---------------------------------------------------------------------------

#: Columns of a bar that follow from the touch alone, in the order of `columns`.
COLUMNS: Final = (
    "mid_open", "mid_high", "mid_low", "mid_close", "mid_twap", "spread_ticks", "spread_mean",
    "spread_std", "spread_one", "spread_bps", "best_changes", "flicker", "quote_life", "rv", "bv",
    "rv_up", "rv_down",
)  # fmt: skip
_LIFE_S: Final = 100.0
_SHORTEST_LIFE_S: Final = 1e-3


@compiled
def columns(
    bid: Integers,
    spread: Integers,
    tick: float,
    arrival_s: float,
    flicker_share: float,
    coin: Floats,
    out: Floats,
) -> None:
    """Write `COLUMNS` of each second into ``out`` (seconds, len(COLUMNS)), as `market.second` does.

    Frame j is received at j · 0.1 s + ``arrival_s``. A reversal in the next frame counts as within
    100 ms, which jitter decides, when the second's ``coin`` is below ``flicker_share``.
    """
    frames = len(bid)
    j = 0
    mid2, width = 0, 0
    life, weight, life_at = 0.0, 0.0, 0.0
    since, moved, direction = np.zeros(2), np.full(2, -1.0), np.zeros(2)
    last_return = 0.0
    best = np.zeros(2, np.int64)
    for s in range(len(out)):
        valid, begun = 0.0, float(s)
        opened = high = low = mid2
        mid_time = mean = square = one = 0.0
        changes = flicker = rv = bv = up = 0.0
        while True:
            at = j * 0.1 + arrival_s
            until = min(at, s + 1.0) if j < frames else s + 1.0
            span = until - begun
            if mid2 > 0 and span > 0:
                valid += span
                mid_time += (mid2 - opened) * span
                off = width - mean
                mean += off * span / valid
                square += off * (width - mean) * span
                one += span if width == 1 else 0.0
            begun = max(begun, until)
            if j >= frames or at >= s + 1.0:
                break
            if mid2 == 0:
                best[0], best[1] = -bid[j], bid[j] + spread[j]
                since[:] = at
                opened = high = low = 2 * bid[j] + spread[j]
            else:
                for side in range(2):
                    key = -bid[j] if side == 0 else bid[j] + spread[j]
                    if key == best[side]:
                        continue
                    turn = 1.0 if key > best[side] else -1.0
                    changes += 1
                    if (
                        direction[side] == -turn
                        and at - moved[side] < 0.11
                        and coin[s] < flicker_share
                    ):
                        flicker += 1
                    direction[side], moved[side] = turn, at
                    decay = np.exp((life_at - at) / _LIFE_S)
                    life = life * decay + np.log(max(at - since[side], _SHORTEST_LIFE_S))
                    weight = weight * decay + 1
                    life_at = at
                    since[side] = at
                    best[side] = key
                after = 2 * bid[j] + spread[j]
                change = np.log1p((after - mid2) / mid2)
                rv += change * change
                if change > 0:
                    up += change * change
                bv += np.pi / 2 * abs(change) * last_return
                last_return = abs(change)
                high, low = max(high, after), min(low, after)
            mid2, width = 2 * bid[j] + spread[j], spread[j]
            j += 1
        half = 0.5 * tick
        row = out[s]
        row[0], row[1], row[2], row[3] = opened * half, high * half, low * half, mid2 * half
        row[4] = (opened + mid_time / valid) * half
        row[5], row[6] = width, mean
        row[7] = np.sqrt(max(square, 0.0) / valid)
        row[8] = one / valid
        row[9] = width / (0.5 * mid2) * 1e4
        row[10], row[11] = changes, flicker
        row[12] = life / weight if weight > 0 else np.nan
        row[13], row[14], row[15], row[16] = rv, bv, up, rv - up
