"""Stylised facts of a market: each function takes its observations and returns one number.

The estimators are those of `proving.realism.stylised`; here they are applied to series, at a scale.
Observations are pooled without pairing the end of one with the beginning of another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from market.units import BPS, SECOND_NS
from proving.realism import stylised
from proving.realism.conflation import PERIOD_NS
from proving.realism.observation import FRAMES_A_SECOND, PROFILE_BPS, Observation
from proving.realism.stylised import Floats

#: Of one market: days, seeds or recordings.
Observations = Sequence[Observation]

LOTS: Final = ("bid_lots", "ask_lots")
NEAR: Final = ("bid_near", "ask_near")


# -- numbers of observations


def seconds(market: Observations) -> int:
    return sum(obs.seconds for obs in market)


def minutes(market: Observations) -> int:
    return sum(obs.seconds // 60 for obs in market)


def orders(market: Observations) -> int:
    return sum(len(obs.orders) for obs in market)


def probes(market: Observations) -> int:
    return sum(len(obs.probes) for obs in market) // 2


# -- series


def bars(market: Observations, name: str) -> list[Floats]:
    return [obs.bars[name] for obs in market]


def log_mids(market: Observations, step: int = 1) -> list[Floats]:
    """Log mid at every ``step``-th second's close."""
    return [np.log(obs.bars["mid_close"][step - 1 :: step]) for obs in market]


def returns(market: Observations, step: int) -> list[Floats]:
    """Returns over ``step`` seconds that do not overlap."""
    return stylised.returns(log_mids(market, step), 1)


def summed(series: Floats, step: int) -> Floats:
    """Sums over consecutive ``step`` places; an incomplete rest is left out."""
    whole = len(series) // step * step
    sums: Floats = series[:whole].reshape(-1, step).sum(axis=1)
    return sums


def on_grid(obs: Observation, values: Floats) -> Floats:
    """A value per frame, sampled at the end of each 100 ms; NaN before the first frame."""
    ends = obs.start_ns + PERIOD_NS * np.arange(1, obs.seconds * FRAMES_A_SECOND + 1)
    place = np.searchsorted(obs.frames["t_ns"], ends, "right") - 1
    if not len(values):
        return np.full(len(ends), np.nan)
    return np.where(place >= 0, values[np.maximum(place, 0)], np.nan)


def mids(obs: Observation) -> Floats:
    """Mid per 100 ms, in quote currency."""
    both = obs.frames["bid"] + obs.frames["ask"]
    return on_grid(obs, 0.5 * obs.tick * both)


# -- book and trades


def spread_one(market: Observations) -> float:
    return mean(bars(market, "spread_one"))


def spread_mean(market: Observations) -> float:
    return mean(bars(market, "spread_mean"))


def touch(market: Observations) -> float:
    """Median quantity of either best price, base currency."""
    both = [obs.frames[side] * obs.lot for obs in market for side in LOTS]
    return median(both)


def near(market: Observations) -> float:
    """Median notional of a side within `observation.NEAR_BPS` of the mid."""
    return median([obs.frames[side] for obs in market for side in NEAR])


def depth(market: Observations) -> float:
    return median([*bars(market, "bid_depth"), *bars(market, "ask_depth")])


def reach(market: Observations) -> float:
    return median([*bars(market, "bid_reach"), *bars(market, "ask_reach")])


def mean_profile(market: Observations) -> Floats:
    """Mean cumulative notional by side and distance, shape (2, len(PROFILE_BPS)).

    NaN where fewer than half of the samples reach so far: their mean would be biased to wide books.
    """
    profiles = [obs.profile for obs in market if len(obs.profile)]
    if not profiles:
        return np.full((2, len(PROFILE_BPS)), np.nan)
    every = np.concatenate(profiles)
    finite = np.isfinite(every)
    with np.errstate(invalid="ignore"):
        average = np.where(finite, every, 0.0).sum(axis=0) / finite.sum(axis=0)
    profile: Floats = np.where(finite.mean(axis=0) >= 0.5, average, np.nan)
    return profile


def profile_exponent(market: Observations) -> float:
    """Exponent of cumulative depth in distance, between 0.5 and 3 bps."""
    kept = (PROFILE_BPS >= 0.5) & (PROFILE_BPS <= 3.0)
    both: Floats = mean_profile(market).sum(axis=0)
    return stylised.power_exponent(PROFILE_BPS[kept], both[kept])


def asymmetry(market: Observations) -> float:
    """Logarithm of mean bid depth over mean ask depth within 2 bps."""
    at = int(np.searchsorted(PROFILE_BPS, 2.0))
    bid, ask = mean_profile(market)[:, at].tolist()
    return math.log(bid / ask) if bid > 0 and ask > 0 else math.nan


def changes(market: Observations) -> float:
    """Level changes a frame, at ten frames a second."""
    frames = np.nansum(stylised.pooled(bars(market, "frames")))
    return (
        float(np.nansum(stylised.pooled(bars(market, "updates"))) / frames) if frames else math.nan
    )


def _moves(market: Observations) -> Floats:
    """Absolute change of the mid from frame to frame, bps."""
    logs = [np.log((obs.frames["bid"] + obs.frames["ask"]).astype(float)) for obs in market]
    return np.abs(stylised.pooled(stylised.returns(logs, 1))) * BPS


def moving(market: Observations) -> float:
    moves = _moves(market)
    return float(np.mean(moves > 0)) if len(moves) else math.nan


def move(market: Observations) -> float:
    moves = _moves(market)
    return median([moves[moves > 0]])


def cancelled(market: Observations) -> float:
    """Share of the quantity that leaves the book by cancels rather than trades."""
    gone = sum(stylised.pooled(bars(market, name)).sum() for name in ("bid_cancel", "ask_cancel"))
    traded = sum(stylised.pooled(bars(market, name)).sum() for name in ("buy_qty", "sell_qty"))
    return float(gone / (gone + traded)) if gone + traded > 0 else math.nan


def crossed(market: Observations) -> float:
    """Frames that left the book crossed; of a part of an observation, those of the whole."""
    return float(sum(obs.crossed for obs in market))


def order_rate(market: Observations) -> float:
    return orders(market) / max(1, seconds(market))


def turnover(market: Observations) -> float:
    """Traded notional a second, both sides."""
    both = sum(
        stylised.pooled(bars(market, name)).sum() for name in ("buy_notional", "sell_notional")
    )
    return float(both) / max(1, seconds(market))


# -- returns


def volatility(market: Observations) -> float:
    """Standard deviation of one-second returns, bps."""
    moves = stylised.pooled(returns(market, 1))
    return float(moves.std()) * BPS if len(moves) else math.nan


def largest_score(market: Observations) -> float:
    return float(np.nanmax(np.abs(stylised.correlation_scores(returns(market, 60), 20))))


def signature(market: Observations, step_s: int) -> float:
    """Realised variance per second from ``step_s``-second returns, bps²."""
    return stylised.variance_per_step(log_mids(market), step_s) * BPS**2


def signature_short(market: Observations) -> float:
    return signature(market, 1) / signature(market, 10)


def signature_long(market: Observations) -> float:
    return signature(market, 1) / signature(market, 300)


def _kurtosis(market: Observations, step_s: int) -> float:
    return stylised.kurtosis(stylised.pooled(returns(market, step_s)))


def kurtosis_1s(market: Observations) -> float:
    return _kurtosis(market, 1)


def kurtosis_1min(market: Observations) -> float:
    return _kurtosis(market, 60)


def kurtosis_ratio(market: Observations) -> float:
    return _kurtosis(market, 1) / _kurtosis(market, 300)


def hill_1s(market: Observations) -> float:
    return stylised.hill(stylised.pooled(returns(market, 1)))


def hill_1min(market: Observations) -> float:
    return stylised.hill(stylised.pooled(returns(market, 60)))


def magnitude_memory(market: Observations, step_s: int, lags: int) -> Floats:
    """Autocorrelation of absolute returns at lags 1 … ``lags`` of ``step_s`` seconds."""
    return stylised.autocorrelation([np.abs(piece) for piece in returns(market, step_s)], lags)


def memory_1s(market: Observations) -> float:
    return stylised.decay_exponent(magnitude_memory(market, 1, 100))


def memory_1min(market: Observations) -> float:
    return stylised.decay_exponent(magnitude_memory(market, 60, 200))


def jumps(market: Observations) -> float:
    """Jump share of ten-second returns, over their ten offsets."""
    logs = log_mids(market)
    return stylised.jump_share(
        [
            piece
            for first in range(10)
            for piece in stylised.returns([x[first:] for x in logs], 10, 10)
        ]
    )


def _volume_volatility(market: Observations, step: int) -> float:
    """Correlation of realised volatility and log volume over ``step`` seconds."""
    moves, volumes = [], []
    for obs in market:
        squares = np.diff(np.log(obs.bars["mid_close"]), prepend=np.nan) ** 2
        moves.append(np.sqrt(summed(squares, step)))
        volume = summed(obs.bars["buy_qty"] + obs.bars["sell_qty"], step)
        volumes.append(np.log(np.where(volume > 0, volume, np.nan)))
    return stylised.correlation(np.concatenate(moves), np.concatenate(volumes))


def volume_volatility_10s(market: Observations) -> float:
    return _volume_volatility(market, 10)


def volume_volatility_1min(market: Observations) -> float:
    return _volume_volatility(market, 60)


def leverage(market: Observations) -> float:
    pieces = [piece for piece in returns(market, 60) if len(piece) > 1]
    if not pieces:
        return math.nan
    now = np.concatenate([piece[:-1] for piece in pieces])
    after = np.concatenate([np.abs(piece[1:]) for piece in pieces])
    return stylised.correlation(now, after)


# -- order flow


def sign_correlation(market: Observations, lags: int) -> Floats:
    """Autocorrelation of the signs of taker orders, by number of orders."""
    return stylised.autocorrelation([obs.orders["side"].astype(float) for obs in market], lags)


def sign_memory(market: Observations) -> float:
    return stylised.decay_exponent(sign_correlation(market, 200))


def sign_lag_10(market: Observations) -> float:
    """Mean of lags 8 to 12: a single lag is noise in a recording."""
    return float(np.mean(sign_correlation(market, 12)[7:]))


def fano(market: Observations, window_s: float) -> float:
    """Fano factor of the numbers of taker orders in windows."""
    times = [(obs.orders["t_ns"] - obs.start_ns) / SECOND_NS for obs in market]
    spans = [(0.0, float(obs.seconds)) for obs in market]
    return stylised.fano(stylised.counts(times, spans, window_s))


def fano_1s(market: Observations) -> float:
    return fano(market, 1.0)


def branching_10s(market: Observations) -> float:
    return stylised.branching(fano(market, 10.0))


def same_bar(market: Observations, step: int) -> tuple[Floats, Floats]:
    """Order-flow imbalance and return (bps) over the same ``step`` seconds."""
    flow = np.concatenate([summed(obs.bars["ofi_1"], step)[1:] for obs in market])
    moves = np.concatenate(returns(market, step)) * BPS
    return flow, moves


def ofi_same(market: Observations) -> float:
    """R² of the return on the best level's order-flow imbalance of the same ten seconds."""
    return stylised.correlation(*same_bar(market, 10)) ** 2


def ofi_by_minute(market: Observations) -> tuple[Floats, Floats, Floats]:
    """By whole minute: mean best quantity, slope of 1 s returns (bps) on imbalance, and standard
    deviation of the residuals (bps)."""
    depths, slopes, rests = [], [], []
    for obs in market:
        best = 0.5 * (obs.bars["bid_q1_mean"] + obs.bars["ask_q1_mean"])
        moves = np.diff(np.log(obs.bars["mid_close"]), prepend=np.nan) * BPS
        for first in range(0, obs.seconds - 59, 60):
            at = slice(first, first + 60)
            depths.append(mean([best[at]]))
            flow = obs.bars["ofi_1"][at]
            slopes.append(stylised.slope(flow, moves[at]))
            residual = moves[at] - slopes[-1] * flow
            residual = residual[np.isfinite(residual)]  # none in a minute without flow
            rests.append(float(residual.std()) if len(residual) else math.nan)
    return np.array(depths), np.array(slopes), np.array(rests)


def ofi_depth(market: Observations) -> float:
    """λ of slope ∝ depth^-λ (Cont, Kukanov and Stoikov 2014)."""
    depths, slopes, _ = ofi_by_minute(market)
    return -stylised.power_exponent(depths, slopes)


def ofi_depth_like_volatility(market: Observations) -> float:
    """λ of slope ∝ depth^-λ · volatility^μ: the exponent of depth at equal volatility.

    Volatility is that of the residuals: that of returns would contain the slope itself.
    """
    depths, slopes, rests = ofi_by_minute(market)
    return -stylised.partial_exponent(depths, rests, slopes)


def _ofi_next(market: Observations, horizon_s: int) -> float:
    """Correlation of the imbalance of ten seconds with the return over the next ``horizon_s``."""
    flows, moves = [], []
    for obs in market:
        logs = np.log(obs.bars["mid_close"])
        if len(logs) <= 10 + horizon_s:
            continue
        flow = np.convolve(obs.bars["ofi_1"], np.ones(10), "valid")
        future = logs[9 + horizon_s :] - logs[9:-horizon_s]
        flows.append(flow[: len(future)])
        moves.append(future)
    if not flows:
        return math.nan
    return stylised.correlation(np.concatenate(flows), np.concatenate(moves))


def ofi_next_10s(market: Observations) -> float:
    return _ofi_next(market, 10)


def ofi_next_60s(market: Observations) -> float:
    return _ofi_next(market, 60)


# -- distributions


def order_sizes(market: Observations) -> Floats:
    """Quantities of taker orders, base currency."""
    return stylised.pooled([obs.orders["lots"] * obs.lot for obs in market])


def level_sizes(market: Observations) -> Floats:
    """Quantities of the twenty levels behind the touch, base currency."""
    return stylised.pooled([obs.level_lots[obs.level_lots > 0] * obs.lot for obs in market])


def lifetimes(market: Observations) -> Floats:
    """Lifetimes of best prices, seconds; the first and last of each side are left out."""
    parts = []
    for obs in market:
        for side in ("bid", "ask"):
            ends = np.flatnonzero(np.diff(obs.frames[side])) + 1
            parts.append(np.diff(obs.frames["t_ns"][ends]) / SECOND_NS)
    return stylised.pooled(parts)


def mean(pieces: Sequence[Floats]) -> float:
    """Mean of all finite values, NaN without any."""
    values = stylised.pooled(pieces)
    return float(values.mean()) if len(values) else math.nan


def median(pieces: Sequence[Floats]) -> float:
    """Median of all finite values, NaN without any."""
    values = stylised.pooled(pieces)
    return float(np.median(values)) if len(values) else math.nan
