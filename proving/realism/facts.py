"""The facts of a market, each one number of a few stretches of it (`Stretches` → float).

The estimators are those of `proving.realism.stylised`; here stands what they are applied to, at which
scale. Stretches are pooled without pairing the end of one with the beginning of another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from market.units import BPS, SECOND_NS
from proving.realism import stylised
from proving.realism.conflation import PERIOD_NS
from proving.realism.observation import FRAMES_A_SECOND, PROFILE_BPS, Stretch
from proving.realism.stylised import Floats

Stretches = Sequence[Stretch]

#: A shock takes this share or more of the best quantity within one frame.
SHOCK_SHARE: Final = 0.5
#: How long depth is watched after a shock, in frames.
_RECOVERY: Final = 100
MARKOUT_S: Final = 5
_LOTS: Final = ("bid_lots", "ask_lots")
_NEAR: Final = ("bid_near", "ask_near")


# -- how much there is


def seconds(market: Stretches) -> int:
    return sum(stretch.seconds for stretch in market)


def minutes(market: Stretches) -> int:
    return sum(stretch.seconds // 60 for stretch in market)


def orders(market: Stretches) -> int:
    return sum(len(stretch.orders) for stretch in market)


def probes(market: Stretches) -> int:
    return sum(len(stretch.probes) for stretch in market) // 2


# -- series


def bars(market: Stretches, name: str) -> list[Floats]:
    return [stretch.bars[name] for stretch in market]


def log_mids(market: Stretches, step: int = 1) -> list[Floats]:
    """Log mid at every ``step``-th second's close."""
    return [np.log(stretch.bars["mid_close"][step - 1 :: step]) for stretch in market]


def returns(market: Stretches, step: int) -> list[Floats]:
    """Returns over ``step`` seconds that do not overlap."""
    return stylised.returns(log_mids(market, step), 1)


def summed(series: Floats, step: int) -> Floats:
    """Sums over consecutive ``step`` places; an incomplete rest is left out."""
    whole = len(series) // step * step
    sums: Floats = series[:whole].reshape(-1, step).sum(axis=1)
    return sums


def on_grid(stretch: Stretch, values: Floats) -> Floats:
    """A value per frame as it stood at the end of each 100 ms of the stretch; NaN before the first."""
    ends = stretch.start_ns + PERIOD_NS * np.arange(1, stretch.seconds * FRAMES_A_SECOND + 1)
    place = np.searchsorted(stretch.frames["t_ns"], ends, "right") - 1
    if not len(values):
        return np.full(len(ends), np.nan)
    return np.where(place >= 0, values[np.maximum(place, 0)], np.nan)


def mids(stretch: Stretch) -> Floats:
    """Mid per 100 ms, in quote currency."""
    both = stretch.frames["bid"] + stretch.frames["ask"]
    return on_grid(stretch, 0.5 * stretch.tick * both)


# -- what the book and the tape look like


def spread_one(market: Stretches) -> float:
    return mean(bars(market, "spread_one"))


def spread_mean(market: Stretches) -> float:
    return mean(bars(market, "spread_mean"))


def touch(market: Stretches) -> float:
    """Median quantity of either best price, base currency."""
    both = [stretch.frames[side] * stretch.lot for stretch in market for side in _LOTS]
    return median(both)


def near(market: Stretches) -> float:
    """Median notional of a side within `observation.NEAR_BPS` of the mid."""
    return median([stretch.frames[side] for stretch in market for side in _NEAR])


def depth(market: Stretches) -> float:
    return median([*bars(market, "bid_depth"), *bars(market, "ask_depth")])


def reach(market: Stretches) -> float:
    return median([*bars(market, "bid_reach"), *bars(market, "ask_reach")])


def mean_profile(market: Stretches) -> Floats:
    """Mean cumulative notional by side and distance, shape (2, len(PROFILE_BPS)).

    NaN where fewer than half of the samples reach so far: the mean of the others would be of
    unusually wide books only.
    """
    profiles = [stretch.profile for stretch in market if len(stretch.profile)]
    if not profiles:
        return np.full((2, len(PROFILE_BPS)), np.nan)
    every = np.concatenate(profiles)
    there = np.isfinite(every)
    with np.errstate(invalid="ignore"):
        average = np.where(there, every, 0.0).sum(axis=0) / there.sum(axis=0)
    known: Floats = np.where(there.mean(axis=0) >= 0.5, average, np.nan)
    return known


def profile_exponent(market: Stretches) -> float:
    """How cumulative depth grows with distance: its exponent between 0.5 and 3 bps."""
    kept = (PROFILE_BPS >= 0.5) & (PROFILE_BPS <= 3.0)
    both: Floats = mean_profile(market).sum(axis=0)
    return stylised.power_exponent(PROFILE_BPS[kept], both[kept])


def asymmetry(market: Stretches) -> float:
    """Logarithm of mean bid depth over mean ask depth within 2 bps."""
    at = int(np.searchsorted(PROFILE_BPS, 2.0))
    bid, ask = mean_profile(market)[:, at].tolist()
    return math.log(bid / ask) if bid > 0 and ask > 0 else math.nan


def changes(market: Stretches) -> float:
    """Level changes a frame, at ten frames a second."""
    frames = np.nansum(stylised.pooled(bars(market, "frames")))
    return (
        float(np.nansum(stylised.pooled(bars(market, "updates"))) / frames) if frames else math.nan
    )


def _moves(market: Stretches) -> Floats:
    """Absolute change of the mid from frame to frame, bps."""
    logs = [
        np.log((stretch.frames["bid"] + stretch.frames["ask"]).astype(float)) for stretch in market
    ]
    return np.abs(stylised.pooled(stylised.returns(logs, 1))) * BPS


def moving(market: Stretches) -> float:
    moves = _moves(market)
    return float(np.mean(moves > 0)) if len(moves) else math.nan


def move(market: Stretches) -> float:
    moves = _moves(market)
    return median([moves[moves > 0]])


def cancelled(market: Stretches) -> float:
    """Of the quantity that leaves the book, the share that is cancelled rather than traded."""
    gone = sum(stylised.pooled(bars(market, name)).sum() for name in ("bid_cancel", "ask_cancel"))
    traded = sum(stylised.pooled(bars(market, name)).sum() for name in ("buy_qty", "sell_qty"))
    return float(gone / (gone + traded)) if gone + traded > 0 else math.nan


def crossed(market: Stretches) -> float:
    """Frames that left the book crossed; a part of a stretch tells those of the whole."""
    return float(sum(stretch.crossed for stretch in market))


def order_rate(market: Stretches) -> float:
    return orders(market) / max(1, seconds(market))


def turnover(market: Stretches) -> float:
    """Traded notional a second, both sides."""
    both = sum(
        stylised.pooled(bars(market, name)).sum() for name in ("buy_notional", "sell_notional")
    )
    return float(both) / max(1, seconds(market))


# -- returns


def volatility(market: Stretches) -> float:
    """Standard deviation of one-second returns, bps."""
    moves = stylised.pooled(returns(market, 1))
    return float(moves.std()) * BPS if len(moves) else math.nan


def largest_score(market: Stretches) -> float:
    return float(np.nanmax(np.abs(stylised.correlation_scores(returns(market, 60), 20))))


def signature(market: Stretches, step_s: int) -> float:
    """Realised variance per second from ``step_s``-second returns, bps²."""
    return stylised.variance_per_step(log_mids(market), step_s) * BPS**2


def signature_short(market: Stretches) -> float:
    return signature(market, 1) / signature(market, 10)


def signature_long(market: Stretches) -> float:
    return signature(market, 1) / signature(market, 300)


def _kurtosis(market: Stretches, step_s: int) -> float:
    return stylised.kurtosis(stylised.pooled(returns(market, step_s)))


def kurtosis_1s(market: Stretches) -> float:
    return _kurtosis(market, 1)


def kurtosis_1min(market: Stretches) -> float:
    return _kurtosis(market, 60)


def kurtosis_ratio(market: Stretches) -> float:
    return _kurtosis(market, 1) / _kurtosis(market, 300)


def hill_1s(market: Stretches) -> float:
    return stylised.hill(stylised.pooled(returns(market, 1)))


def hill_1min(market: Stretches) -> float:
    return stylised.hill(stylised.pooled(returns(market, 60)))


def magnitude_memory(market: Stretches, step_s: int, lags: int) -> Floats:
    """Autocorrelation of absolute returns at lags 1 … ``lags`` of ``step_s`` seconds."""
    return stylised.autocorrelation([np.abs(piece) for piece in returns(market, step_s)], lags)


def memory_1s(market: Stretches) -> float:
    return stylised.decay_exponent(magnitude_memory(market, 1, 100))


def memory_1min(market: Stretches) -> float:
    return stylised.decay_exponent(magnitude_memory(market, 60, 200))


def jumps(market: Stretches) -> float:
    """From ten-second returns at each of the ten places where they can begin."""
    logs = log_mids(market)
    return stylised.jump_share(
        [
            piece
            for first in range(10)
            for piece in stylised.returns([x[first:] for x in logs], 10, 10)
        ]
    )


def _volume_volatility(market: Stretches, step: int) -> float:
    """Correlation of realised volatility and log volume over ``step`` seconds."""
    moves, volumes = [], []
    for stretch in market:
        squares = np.diff(np.log(stretch.bars["mid_close"]), prepend=np.nan) ** 2
        moves.append(np.sqrt(summed(squares, step)))
        volume = summed(stretch.bars["buy_qty"] + stretch.bars["sell_qty"], step)
        volumes.append(np.log(np.where(volume > 0, volume, np.nan)))
    return stylised.correlation(np.concatenate(moves), np.concatenate(volumes))


def volume_volatility_10s(market: Stretches) -> float:
    return _volume_volatility(market, 10)


def volume_volatility_1min(market: Stretches) -> float:
    return _volume_volatility(market, 60)


def leverage(market: Stretches) -> float:
    pieces = [piece for piece in returns(market, 60) if len(piece) > 1]
    if not pieces:
        return math.nan
    now = np.concatenate([piece[:-1] for piece in pieces])
    after = np.concatenate([np.abs(piece[1:]) for piece in pieces])
    return stylised.correlation(now, after)


# -- order flow


def sign_correlation(market: Stretches, lags: int) -> Floats:
    """Autocorrelation of the signs of taker orders, by number of orders."""
    return stylised.autocorrelation(
        [stretch.orders["side"].astype(float) for stretch in market], lags
    )


def sign_memory(market: Stretches) -> float:
    return stylised.decay_exponent(sign_correlation(market, 200))


def sign_lag_10(market: Stretches) -> float:
    """Mean of lags 8 to 12: one lag alone is noise in a recording."""
    return float(np.mean(sign_correlation(market, 12)[7:]))


def fano(market: Stretches, window_s: float) -> float:
    """Fano factor of the numbers of taker orders in windows."""
    times = [(stretch.orders["t_ns"] - stretch.start_ns) / SECOND_NS for stretch in market]
    spans = [(0.0, float(stretch.seconds)) for stretch in market]
    return stylised.fano(stylised.counts(times, spans, window_s))


def fano_1s(market: Stretches) -> float:
    return fano(market, 1.0)


def branching_10s(market: Stretches) -> float:
    return stylised.branching(fano(market, 10.0))


def same_bar(market: Stretches, step: int) -> tuple[Floats, Floats]:
    """Order-flow imbalance and return (bps) over the same ``step`` seconds."""
    flow = np.concatenate([summed(stretch.bars["ofi_1"], step)[1:] for stretch in market])
    moves = np.concatenate(returns(market, step)) * BPS
    return flow, moves


def ofi_same(market: Stretches) -> float:
    """R² of the return on the best level's order-flow imbalance of the same ten seconds."""
    return stylised.correlation(*same_bar(market, 10)) ** 2


def ofi_by_minute(market: Stretches) -> tuple[Floats, Floats, Floats]:
    """Of each whole minute: mean best quantity, slope of 1 s returns (bps) on imbalance, and standard
    deviation of what imbalance leaves of them (bps)."""
    depths, slopes, rests = [], [], []
    for stretch in market:
        best = 0.5 * (stretch.bars["bid_q1_mean"] + stretch.bars["ask_q1_mean"])
        moves = np.diff(np.log(stretch.bars["mid_close"]), prepend=np.nan) * BPS
        for first in range(0, stretch.seconds - 59, 60):
            at = slice(first, first + 60)
            depths.append(mean([best[at]]))
            flow = stretch.bars["ofi_1"][at]
            slopes.append(stylised.slope(flow, moves[at]))
            left = moves[at] - slopes[-1] * flow
            left = left[np.isfinite(left)]  # none where a minute has no slope: nothing flowed in it
            rests.append(float(left.std()) if len(left) else math.nan)
    return np.array(depths), np.array(slopes), np.array(rests)


def ofi_depth(market: Stretches) -> float:
    """λ of slope ∝ depth^-λ (Cont, Kukanov and Stoikov 2014)."""
    depths, slopes, _ = ofi_by_minute(market)
    return -stylised.power_exponent(depths, slopes)


def ofi_depth_like_volatility(market: Stretches) -> float:
    """λ of slope ∝ depth^-λ · volatility^μ: how the slope falls where only depth differs.

    Volatility is what imbalance leaves of returns: all of it would hold the slope itself.
    """
    depths, slopes, rests = ofi_by_minute(market)
    return -stylised.partial_exponent(depths, rests, slopes)


def _ofi_next(market: Stretches, horizon_s: int) -> float:
    """Correlation of the imbalance of ten seconds with the return over the next ``horizon_s``."""
    flows, moves = [], []
    for stretch in market:
        logs = np.log(stretch.bars["mid_close"])
        if len(logs) <= 10 + horizon_s:
            continue
        flow = np.convolve(stretch.bars["ofi_1"], np.ones(10), "valid")
        ahead = logs[9 + horizon_s :] - logs[9:-horizon_s]
        flows.append(flow[: len(ahead)])
        moves.append(ahead)
    if not flows:
        return math.nan
    return stylised.correlation(np.concatenate(flows), np.concatenate(moves))


def ofi_next_10s(market: Stretches) -> float:
    return _ofi_next(market, 10)


def ofi_next_60s(market: Stretches) -> float:
    return _ofi_next(market, 60)


# -- liquidity


def _shocks(stretch: Stretch) -> tuple[list[Floats], int]:
    """Near depth of the side that was hit, from just before each shock on; and how many there were.

    A shock is a frame in which taker orders took `SHOCK_SHARE` of the best quantity before it.
    """
    windows: list[Floats] = []
    place = (stretch.orders["t_ns"] - stretch.start_ns - 1) // PERIOD_NS
    size = stretch.seconds * FRAMES_A_SECOND
    for row, side in ((0, -1), (1, 1)):  # a sell hits the bids
        best = on_grid(stretch, stretch.frames[_LOTS[row]])
        held = on_grid(stretch, stretch.frames[_NEAR[row]])
        mine = (stretch.orders["side"] == side) & (place >= 0) & (place < size)
        taken = np.bincount(place[mine], stretch.orders["lots"][mine], size)
        with np.errstate(invalid="ignore"):
            hit = np.flatnonzero(taken[1:] >= SHOCK_SHARE * best[:-1]) + 1
        windows += [held[at - 1 : at + _RECOVERY + 1] for at in hit if at + _RECOVERY < size]
    return windows, len(windows)


def shocks(market: Stretches) -> int:
    return sum(_shocks(stretch)[1] for stretch in market)


def recovery(market: Stretches) -> Floats:
    """R(τ) = E[D(t+τ) - D(t⁺)] / E[D̄ - D(t⁺)] at τ = 0.1, 0.2, … 10 s after a shock.

    D̄ is the mean depth of the same markets: shocks come where depth is low already, so what stood
    just before them is not what it returns to.
    """
    windows = [window for stretch in market for window in _shocks(stretch)[0]]
    if not windows:
        return np.full(_RECOVERY, np.nan)
    after = np.nanmean(np.stack(windows), axis=0)[1:]
    missing = mean([stretch.frames[side] for stretch in market for side in _NEAR]) - after[0]
    if missing <= 0:
        return np.full(_RECOVERY, np.nan)
    curve: Floats = (after[1:] - after[0]) / missing
    return curve


def resilience(market: Stretches) -> float:
    return stylised.half_life(recovery(market), PERIOD_NS / SECOND_NS)


def depth_memory(market: Stretches, lags: int) -> Floats:
    """Autocorrelation of the logarithm of near depth, by frames of 100 ms."""
    logs = [
        np.log(np.maximum(on_grid(stretch, stretch.frames[side]), 1.0))
        for stretch in market
        for side in _NEAR
    ]
    return stylised.autocorrelation(logs, lags)


def depth_half_life(market: Stretches) -> float:
    """Seconds after which half of a deviation of near depth is left, on average."""
    memory = depth_memory(market, 300)
    below = np.flatnonzero(memory < 0.5)
    if not len(below) or not np.isfinite(memory[0]):
        return math.nan
    lag = int(below[0])
    before = 1.0 if lag == 0 else float(memory[lag - 1])
    part = (before - 0.5) / (before - float(memory[lag]))
    return (lag + part) * PERIOD_NS / SECOND_NS


def time_to_fill(market: Stretches, back: int) -> Floats:
    """Seconds until hypothetical orders fill, infinite for those that do not."""
    parts = []
    for stretch in market:
        orders_of = stretch.probes[stretch.probes["back"] == back]
        waited = (orders_of["filled_ns"] - orders_of["placed_ns"]) / SECOND_NS
        parts.append(np.where(orders_of["filled_ns"] > 0, waited, math.inf))
    return np.concatenate(parts) if parts else np.empty(0)


def markouts(market: Stretches, back: int, after_s: float = MARKOUT_S) -> Floats:
    """s·(mid after ``after_s`` - price)/price of filled hypothetical orders, bps."""
    parts = []
    for stretch in market:
        filled = stretch.probes[
            (stretch.probes["back"] == back) & (stretch.probes["filled_ns"] > 0)
        ]
        later = mids(stretch)
        at = (
            (filled["filled_ns"] - stretch.start_ns) // PERIOD_NS
            + round(after_s * FRAMES_A_SECOND)
            - 1
        )
        inside = at < len(later)
        price = filled["price_ticks"][inside] * stretch.tick
        parts.append(filled["side"][inside] * (later[at[inside]] - price) / price * BPS)
    return stylised.pooled(parts)


def fills_front(market: Stretches) -> int:
    return len(markouts(market, 0))


def fills_back(market: Stretches) -> int:
    return len(markouts(market, 1))


def markout_front(market: Stretches) -> float:
    return mean([markouts(market, 0)])


def markout_back(market: Stretches) -> float:
    return mean([markouts(market, 1)])


def markout_gap(market: Stretches) -> float:
    return markout_back(market) - markout_front(market)


def filled_front(market: Stretches) -> float:
    return float(np.mean(time_to_fill(market, 0) <= 10))


def filled_back(market: Stretches) -> float:
    return float(np.mean(time_to_fill(market, 1) <= 10))


# -- distributions


def order_sizes(market: Stretches) -> Floats:
    """Quantities of taker orders, base currency."""
    return stylised.pooled([stretch.orders["lots"] * stretch.lot for stretch in market])


def level_sizes(market: Stretches) -> Floats:
    """Quantities of the twenty levels behind the touch, base currency."""
    return stylised.pooled(
        [stretch.level_lots[stretch.level_lots > 0] * stretch.lot for stretch in market]
    )


def lifetimes(market: Stretches) -> Floats:
    """How long a price stays the best of its side, seconds; the first and last are left out."""
    parts = []
    for stretch in market:
        for side in ("bid", "ask"):
            ends = np.flatnonzero(np.diff(stretch.frames[side])) + 1
            parts.append(np.diff(stretch.frames["t_ns"][ends]) / SECOND_NS)
    return stylised.pooled(parts)


def time_to_fill_front(market: Stretches) -> Floats:
    return time_to_fill(market, 0)


def time_to_fill_back(market: Stretches) -> Floats:
    return time_to_fill(market, 1)


def mean(pieces: Sequence[Floats]) -> float:
    """Mean of all values that are there, NaN without any."""
    values = stylised.pooled(pieces)
    return float(values.mean()) if len(values) else math.nan


def median(pieces: Sequence[Floats]) -> float:
    """Median of all values that are there, NaN without any."""
    values = stylised.pooled(pieces)
    return float(np.median(values)) if len(values) else math.nan
