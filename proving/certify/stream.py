"""Streams of predictions and realised returns with a known IC, for the decay monitor.

As the worker serves them: a prediction every `EVERY_S` of the minute that follows, so that labels overlap.
Predictions p are a normal autoregression with a half-life of 30 s, as the alpha of `proving.certify.market`;
the return of a step is c_t·p + ε, with c_t and the variance of ε such that the sum over the minute has
variance 1 and correlation ρ with p. The label is that sum times v_t, log-normal, as the scale runs behind the
volatility. The bound that delays are held to is that of Page's CUSUM with both means known on one independent
label a minute: at an average run length ARL0 and an IC drop d, KL = d²/2 per observation, delay =
(e^-b + b - 1)/KL where e^b - b - 1 = ARL0·KL (Siegmund 1985). Overlapping labels tell more, at most as one every 40 s.
"""

from __future__ import annotations

import math
from typing import Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq

from market.units import SECOND_NS, day_start_ns
from proving.certify.market import FIRST_DAY, mean

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

#: A bin of the monitor and the horizon of the labels; a prediction comes every `EVERY_S`.
SPACING_S: Final = 60
EVERY_S: Final = 15
STEPS: Final = SPACING_S // EVERY_S
PER_DAY: Final = 86_400 // SPACING_S
ARL0_DAYS: Final = 30.0
#: Test days of a gate, from which the reference of a seed is drawn.
REFERENCE_DAYS: Final = (5, 30)
#: Correlation of neighbouring predictions, and of the scale's error, with its log standard deviation.
PREDICTION_KEEP: Final = 0.5 ** (EVERY_S / 30)
SCALE_KEEP, SCALE_LOG_SD = 0.93 ** (EVERY_S / 60), 0.25
#: Of the minute's sum on p: the sum of p's correlations with the steps' own, and the variance of the sum of p.
_REACH: Final = float(np.sum(PREDICTION_KEEP ** np.arange(STEPS)))
_SUM_VAR: Final = float(
    np.sum(PREDICTION_KEEP ** abs(np.subtract.outer(np.arange(STEPS), np.arange(STEPS))))
)

Kind = Literal["step", "1d", "3d", "7d", "volatility", "shift", "bold", "none"]


class Fall(msgspec.Struct, frozen=True, kw_only=True):
    """A change of the stream: the IC falls from ``before`` to ``after``, or something else changes."""

    before: float
    after: float
    kind: Kind = "step"

    @property
    def drop(self) -> float:
        return self.before - self.after


class Stream(msgspec.Struct, frozen=True, kw_only=True):
    """n predictions; ``predicted`` and ``realised`` (n,) in units of their scale."""

    t_ns: Int
    symbol: npt.NDArray[np.int8]
    predicted: Float
    realised: Float

    def part(self, begin: int, end: int) -> Stream:
        """From one minute to another."""
        rows = slice(begin * STEPS, end * STEPS)
        return Stream(**{n: getattr(self, n)[rows] for n in self.__struct_fields__})


def stream(fall: Fall, days: float, change_day: float, seed: int) -> Stream:
    """A seed's stream of so many days; the change begins after ``change_day`` of them."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    n = round(days * PER_DAY) * STEPS
    p = mean(rng.standard_normal(n), PREDICTION_KEEP, math.sqrt(1 - PREDICTION_KEEP**2))
    late = mean(rng.standard_normal(n), SCALE_KEEP, math.sqrt(1 - SCALE_KEEP**2))
    since = np.arange(n) / (PER_DAY * STEPS) - change_day
    changed = since >= 0
    gone = changed.astype(np.float64)
    if fall.kind[:-1].isdigit():
        gone = 1 - np.exp2(-np.maximum(since, 0) / float(fall.kind[:-1]))
    share = (fall.before - fall.drop * gone) / _REACH
    noise = np.sqrt((1 - share**2 * _SUM_VAR) / STEPS) * rng.standard_normal(n)
    step = np.append(share * p + noise, noise[: STEPS - 1])
    realised = np.convolve(step, np.ones(STEPS), "valid") * np.exp(SCALE_LOG_SD * late)
    if fall.kind == "volatility":  # doubled for good, and the scale's window catches up in minutes
        realised *= np.where(changed, 1 + np.exp2(-np.maximum(since, 0) * 288), 1.0)
    if fall.kind == "shift":  # of a feature's mean, and with it of every prediction
        p = p + changed
    if fall.kind == "bold":  # thin depth makes predictions bolder, not better
        p = p * (1 + changed)
    return Stream(
        t_ns=day_start_ns(FIRST_DAY) + np.arange(n) * EVERY_S * SECOND_NS,
        symbol=np.zeros(n, np.int8),
        predicted=p,
        realised=realised,
    )


def cusum_delay_days(drop: float) -> float:
    """Mean delay of the CUSUM that knows both means, at ARL0_DAYS."""
    information = drop**2 / 2
    target = ARL0_DAYS * PER_DAY * information
    b = float(brentq(lambda b: math.exp(b) - b - 1 - target, 1e-9, 50.0))
    return (math.exp(-b) + b - 1) / information / PER_DAY
