"""Liquidity of a market in numbers: recovery of depth after shocks, fills and markouts of passive orders.

As in `proving.realism.facts`, a function takes the observations of one market.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from market.units import BPS, SECOND_NS
from proving.realism import stylised
from proving.realism.conflation import PERIOD_NS
from proving.realism.facts import LOTS, NEAR, Observations, mean, mids, on_grid
from proving.realism.observation import FRAMES_A_SECOND, Observation
from proving.realism.stylised import Floats

#: A shock takes this share or more of the best quantity within one frame.
SHOCK_SHARE: Final = 0.5
#: Frames for which depth is observed after a shock.
_RECOVERY: Final = 100
MARKOUT_S: Final = 5


def _shocks(obs: Observation) -> tuple[list[Floats], int]:
    """Near depth of the side that was hit, from just before each shock on; and the number of shocks.

    A shock is a frame in which taker orders took `SHOCK_SHARE` of the best quantity before it.
    """
    windows: list[Floats] = []
    place = (obs.orders["t_ns"] - obs.start_ns - 1) // PERIOD_NS
    size = obs.seconds * FRAMES_A_SECOND
    for row, side in ((0, -1), (1, 1)):  # a sell hits the bids
        best = on_grid(obs, obs.frames[LOTS[row]])
        depth = on_grid(obs, obs.frames[NEAR[row]])
        mine = (obs.orders["side"] == side) & (place >= 0) & (place < size)
        taken = np.bincount(place[mine], obs.orders["lots"][mine], size)
        with np.errstate(invalid="ignore"):
            hit = np.flatnonzero(taken[1:] >= SHOCK_SHARE * best[:-1]) + 1
        windows += [depth[at - 1 : at + _RECOVERY + 1] for at in hit if at + _RECOVERY < size]
    return windows, len(windows)


def shocks(market: Observations) -> int:
    return sum(_shocks(obs)[1] for obs in market)


def recovery(market: Observations) -> Floats:
    """R(τ) = E[D(t+τ) - D(t⁺)] / E[D̄ - D(t⁺)] at τ = 0.1, 0.2, … 10 s after a shock.

    D̄ is the mean depth of the same markets: shocks come when depth is low already, so depth does not
    return to its level just before them.
    """
    windows = [window for obs in market for window in _shocks(obs)[0]]
    if not windows:
        return np.full(_RECOVERY, np.nan)
    after = np.nanmean(np.stack(windows), axis=0)[1:]
    missing = mean([obs.frames[side] for obs in market for side in NEAR]) - after[0]
    if missing <= 0:
        return np.full(_RECOVERY, np.nan)
    curve: Floats = (after[1:] - after[0]) / missing
    return curve


def resilience(market: Observations) -> float:
    return stylised.half_life(recovery(market), PERIOD_NS / SECOND_NS)


def depth_memory(market: Observations, lags: int) -> Floats:
    """Autocorrelation of the logarithm of near depth, by frames of 100 ms."""
    logs = [
        np.log(np.maximum(on_grid(obs, obs.frames[side]), 1.0)) for obs in market for side in NEAR
    ]
    return stylised.autocorrelation(logs, lags)


def depth_half_life(market: Observations) -> float:
    """Seconds after which half of a deviation of near depth is left, on average."""
    memory = depth_memory(market, 300)
    below = np.flatnonzero(memory < 0.5)
    if not len(below) or not np.isfinite(memory[0]):
        return math.nan
    lag = int(below[0])
    before = 1.0 if lag == 0 else float(memory[lag - 1])
    part = (before - 0.5) / (before - float(memory[lag]))
    return (lag + part) * PERIOD_NS / SECOND_NS


def time_to_fill(market: Observations, back: int) -> Floats:
    """Seconds until probe orders fill, infinite for those that do not; ``back``: 1 for the back of the
    queue."""
    parts = []
    for obs in market:
        probes = obs.probes[obs.probes["back"] == back]
        waited = (probes["filled_ns"] - probes["placed_ns"]) / SECOND_NS
        parts.append(np.where(probes["filled_ns"] > 0, waited, math.inf))
    return np.concatenate(parts) if parts else np.empty(0)


def markouts(market: Observations, back: int, after_s: float = MARKOUT_S) -> Floats:
    """s·(mid after ``after_s`` - price)/price of filled probe orders, bps."""
    parts = []
    for obs in market:
        filled = obs.probes[(obs.probes["back"] == back) & (obs.probes["filled_ns"] > 0)]
        later = mids(obs)
        at = (
            (filled["filled_ns"] - obs.start_ns) // PERIOD_NS + round(after_s * FRAMES_A_SECOND) - 1
        )
        inside = at < len(later)
        price = filled["price_ticks"][inside] * obs.tick
        parts.append(filled["side"][inside] * (later[at[inside]] - price) / price * BPS)
    return stylised.pooled(parts)


def fills_front(market: Observations) -> int:
    return len(markouts(market, 0))


def fills_back(market: Observations) -> int:
    return len(markouts(market, 1))


def markout_front(market: Observations) -> float:
    return mean([markouts(market, 0)])


def markout_back(market: Observations) -> float:
    return mean([markouts(market, 1)])


def markout_gap(market: Observations) -> float:
    return markout_back(market) - markout_front(market)


def filled_front(market: Observations) -> float:
    return float(np.mean(time_to_fill(market, 0) <= 10))


def filled_back(market: Observations) -> float:
    return float(np.mean(time_to_fill(market, 1) <= 10))


def time_to_fill_front(market: Observations) -> Floats:
    return time_to_fill(market, 0)


def time_to_fill_back(market: Observations) -> Floats:
    return time_to_fill(market, 1)
