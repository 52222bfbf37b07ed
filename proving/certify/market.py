"""One symbol's training rows of a market with planted truth, in memory: features without a book.

Second by second, with every component c of the alpha an Ornstein-Uhlenbeck process x_c of unit variance,

    d log price = σ_t (Σ_c a_c·s_c(t)·x_c(t) + e(t)),    e standard normal
    z_c1, z_c2  = x_c + white noise                      two sources of each component

σ_t is a fast and a slow log-normal factor times that of the regime; s_c is the strength by regime and
schedule. Features are exponential means of the sources, the trailing volatility, what shows the regime,
and decoys. The best forecast is a Kalman filter per component, so the information coefficient (IC) that
can be had is known before anything is drawn; the source noise is solved from it.

A day is its first ``hours``: a label at their end takes prices that the rows do not show.
"""

from __future__ import annotations

import math
from typing import Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from scipy.signal import lfilter, savgol_filter

from market.units import DAY_NS, SECOND_NS, day_start_ns
from models_registry.dataset import Features, Rows
from models_registry.ensemble import SCALE_FEATURE, SCALE_WINDOW_S
from models_registry.validation import DELAY_S
from proving.synthetic.planted import moments

Float = npt.NDArray[np.float64]

FIRST_DAY: Final = "2026-01-01"
SIGMA_BPS: Final = 0.9  #: of a second
SPREAD_BPS: Final = 0.02
WARM_UP_S: Final = 1800
#: Windows of the sources' means (s), and half-lives and log standard deviations of the volatility.
WINDOWS_S: Final = (5.0, 20.0, 60.0)
VOLATILITY: Final = ((600.0, 0.25), (21_600.0, 0.30))
#: Decoys: half-lives of those that wander (s), how many are white, and how many of these heavy-tailed.
DECOY_HALF_LIVES_S: Final = (2, 5, 15, 30, 60, 120, 300, 900, 1800, 3600, 7200, 21_600)
WHITE_DECOYS: Final = 8
HEAVY_DECOYS: Final = 3
#: Decoys that predict with this IC during the first days and never again.
IN_SAMPLE_IC: Final = 0.05
IN_SAMPLE_DAYS: Final = 3

Change = Literal["none", "step", "1d", "3d", "7d", "flip"]
Leak = Literal["none", "advanced", "centred", "decoy"]


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """What is planted. ``ic`` is the alpha's at the horizon, ``filterable`` the filter's share of it.

    ``change`` takes the first component's strength to 0 (``flip``: -1) from ``change_day`` on, at once or
    with a half-life in days; the second component then grows as the first one goes.
    """

    days: int
    hours: float
    ic: float = 0.0
    filterable: float = 0.7
    half_life_s: float = 30.0
    horizon_s: int = 60
    regimes: bool = False
    change: Change = "none"
    change_day: float = 0.0
    leak: Leak = "none"


class Regime(msgspec.Struct, frozen=True):
    """Multipliers of a state of the market, and how long it lasts on average, as a share of a day."""

    alpha: float
    sigma: float
    depth: float
    stay: float


#: One without alpha, and one in which it is turned round.
REGIMES: Final = (
    Regime(1.0, 1.0, 1.0, 1 / 3),
    Regime(0.0, 0.6, 1.6, 1 / 8),
    Regime(-1.0, 1.5, 0.6, 1 / 8),
)


class Planted(msgspec.Struct, frozen=True, kw_only=True):
    """Rows, and for each (n,) the filter's expected return over the horizon (bps)."""

    rows: Rows
    features: Features
    oracle_bps: Float


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """Closed form of one component: drift ``a`` in σ, forecast per unit of x, noise variance and gain.

    ``ic`` is that of the filter's forecast at full strength, without regimes.
    """

    keep: float
    a: float
    forecast: float
    noise: float
    gain: float
    ic: float


def known(scenario: Scenario) -> Known:
    """The component's closed form.

    IC² = a²B²e^(-2κδ)/(h + a²V) with B, V of `planted.moments` is solved for a; the filter's error
    variance P = 1 - filterable² for the noise r = P·Q/(Q - P), with Q = k²P + 1 - k² one step ahead.
    """
    rate, horizon = math.log(2) / scenario.half_life_s, scenario.horizon_s
    gain, spread = moments(rate, horizon)
    gain *= math.exp(-rate * DELAY_S)
    free = gain**2 - scenario.ic**2 * spread
    if free <= 0:
        raise ValueError(
            f"IC {scenario.ic:g} is impossible with a half-life of {scenario.half_life_s:g} s"
        )
    a = math.sqrt(scenario.ic**2 * horizon / free)
    keep = math.exp(-rate)
    error = 1 - scenario.filterable**2
    ahead = keep**2 * error + 1 - keep**2
    noise = error * ahead / (ahead - error)
    return Known(
        keep=keep,
        a=a,
        forecast=a * gain,
        noise=noise,
        gain=ahead / (ahead + noise),
        ic=scenario.ic * scenario.filterable,
    )


def ou(rng: np.random.Generator, n: int, half_life_s: float) -> Float:
    """Ornstein-Uhlenbeck path (n,) of unit variance by the second."""
    keep = 0.5 ** (1 / half_life_s)
    shocks = rng.standard_normal(n) * math.sqrt(1 - keep**2)
    shocks[0] /= math.sqrt(1 - keep**2)
    return mean(shocks, keep, 1.0)


def mean(path: Float, keep: float, gain: float) -> Float:
    """y_t = keep·y_(t-1) + gain·path_t."""
    return np.asarray(lfilter([gain], [1.0, -keep], path), np.float64)


def strengths(scenario: Scenario, day: Float) -> tuple[Float, Float]:
    """Strengths of both components at times in days since the first, without regimes."""
    since = day - scenario.change_day
    if scenario.change == "none":
        return np.ones(len(day)), np.zeros(len(day))
    if scenario.change in ("step", "flip"):
        left = (since < 0).astype(np.float64)
    else:
        left = np.exp2(-np.maximum(since, 0.0) / float(scenario.change[:-1]))
    if scenario.change == "flip":
        return 2 * left - 1, np.zeros(len(day))
    return left, np.sqrt(1 - left**2)


def plant(scenario: Scenario, seed: int) -> Planted:
    """The rows of a seed; the same seed draws the same market whatever is planted in it."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    truth, tail = known(scenario), scenario.horizon_s + DELAY_S
    session = round(scenario.hours * 3600)
    n = WARM_UP_S + scenario.days * (session + tail)
    second = np.arange(n) - WARM_UP_S
    number, within = np.divmod(second, session + tail)
    shown = np.flatnonzero((second >= 0) & (within < session))
    day = number + within / (session + tail)

    state = _regime_path(rng, n, session if scenario.regimes else 0)
    by_state = np.array([[r.alpha, r.sigma, r.depth] for r in REGIMES])[state]
    sigma = SIGMA_BPS * by_state[:, 1]
    for half_life, spread in VOLATILITY:
        sigma *= np.exp(spread * ou(rng, n, half_life) - spread**2)

    columns: dict[str, Float] = {}
    drift, oracle = np.zeros(n), np.zeros(n)
    first, second_strength = strengths(scenario, day)
    for name, strength in (("book", first * by_state[:, 0]), ("flow", second_strength)):
        x = ou(rng, n, scenario.half_life_s)
        sources = [
            x + math.sqrt(2 * truth.noise) * rng.standard_normal(n) for _ in ("first", "second")
        ]
        for place, source in enumerate(sources):
            for window in WINDOWS_S:
                keep = math.exp(-1 / window)
                columns[f"{name}_{place}_{window:.0f}"] = mean(source, keep, 1 - keep)
        filtered = mean(0.5 * (sources[0] + sources[1]), truth.keep * (1 - truth.gain), truth.gain)
        drift += truth.a * strength * x
        oracle += truth.forecast * strength * filtered * sigma
    early = known(
        msgspec.structs.replace(scenario, ic=IN_SAMPLE_IC, half_life_s=30.0, filterable=0.7)
    )
    for place in range(2):
        x = ou(rng, n, 30.0)
        drift += early.a * x * (number < IN_SAMPLE_DAYS)
        columns[f"early_{place}"] = x
    log_bps = np.cumsum(sigma * (drift + rng.standard_normal(n)))

    columns |= _decoys(rng, n)
    columns["depth"] = np.log(by_state[:, 2]) + 0.3 * ou(rng, n, 60.0)
    columns["spread"] = SPREAD_BPS * np.exp(0.2 * ou(rng, n, 60.0))
    step = np.diff(log_bps, prepend=log_bps[0])
    # What goes with the bar it stands in and not with the next one.
    ofi = step / sigma + 0.7 * rng.standard_normal(n)
    columns["ofi_5"] = mean(ofi, math.exp(-1 / 5), 1 - math.exp(-1 / 5))
    columns["return_60"] = log_bps - log_bps[np.maximum(np.arange(n) - 60, 0)]
    squares = np.concatenate([[0.0], np.cumsum(step**2)])
    past = np.maximum(np.arange(n) + 1 - SCALE_WINDOW_S, 0)
    columns[SCALE_FEATURE] = np.sqrt(squares[1:] - squares[past])
    if scenario.leak != "none":
        columns["leaky"] = _leaky(rng, scenario, log_bps, columns)

    features = Features.of(list(columns))
    rows = Rows(
        t_ns=day_start_ns(FIRST_DAY) + number[shown] * DAY_NS + (within[shown] + 1) * SECOND_NS,
        symbol=np.zeros(len(shown), np.int8),
        mid=60_000.0 * np.exp(log_bps[shown] * 1e-4),
        spread_bps=np.full(len(shown), SPREAD_BPS),
        features=np.column_stack([c[shown].astype(np.float32) for c in columns.values()]),
        labels_bps=(log_bps[shown + tail] - log_bps[shown + DELAY_S])[:, np.newaxis],
    )
    return Planted(rows=rows, features=features, oracle_bps=oracle[shown])


def _regime_path(rng: np.random.Generator, n: int, day_s: int) -> npt.NDArray[np.int64]:
    """Places in REGIMES by the second: a chain that stays for an exponential time; ``day_s`` 0 for none."""
    path = np.zeros(n, np.int64)
    at, state = 0, 0
    while day_s and at < n:
        stay = 1 + int(rng.exponential(REGIMES[state].stay * day_s))
        path[at : at + stay] = state
        at, state = at + stay, (state + int(rng.integers(1, len(REGIMES)))) % len(REGIMES)
    return path


def _decoys(rng: np.random.Generator, n: int) -> dict[str, Float]:
    out = {f"noise_{h}s": ou(rng, n, h) for h in DECOY_HALF_LIVES_S}
    for place in range(WHITE_DECOYS):
        heavy = place < HEAVY_DECOYS
        out[f"noise_{place}"] = rng.standard_t(3, n) if heavy else rng.standard_normal(n)
    return out


def _leaky(
    rng: np.random.Generator, scenario: Scenario, log_bps: Float, columns: dict[str, Float]
) -> Float:
    """A feature one bar early, a centred filter of the price, or the label in much noise."""
    if scenario.leak == "advanced":
        return np.append(columns["ofi_5"][1:], 0.0)
    if scenario.leak == "centred":
        return np.asarray(savgol_filter(log_bps, 21, 3, deriv=1), np.float64)
    begin = np.minimum(np.arange(len(log_bps)) + DELAY_S, len(log_bps) - 1)
    end = np.minimum(begin + scenario.horizon_s, len(log_bps) - 1)
    label = (log_bps[end] - log_bps[begin]) / np.maximum(columns[SCALE_FEATURE], 1e-9)
    return np.asarray(label + rng.standard_normal(len(label)))
