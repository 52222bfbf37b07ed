"""Closed forms of the planted alpha: information coefficients, the Kalman filter, schedules.

One score drives everything observable about the alpha. Per symbol,

    x_t   Ornstein-Uhlenbeck with unit variance and the profile's half-life
    α_t = a·g_t·d_t·x_t             drift of the efficient price, bp/s; g_t the regime's multiplier,
                                    d_t the schedule's (`Change`)
    u_t ∝ x_t + n_t                 the score; n_t is noise flow, a faster Ornstein-Uhlenbeck process

and quotes and trade signs follow u_t. On a null market a = 0: book and trades have the same law but
predict nothing. Everything is linear and Gaussian, so the information coefficient (IC) of the alpha, and
of its best estimate, are known before a market is generated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from proving.synthetic.profiles import STEP_S, Change, Profile, ProfileError, instant_ns

Floats = npt.NDArray[np.float64]

#: Observation noise of the score: zero would make the filter's equations singular.
_SCORE_NOISE_SD = 1e-3


def alpha_sd(profile: Profile, symbol: str) -> float:
    """Standard deviation a of the symbol's alpha in bp/s where regime and schedule are 1.

    Solved from ``ic``: IC² = a²B²/(σ²h + a²V) with B and V of `moments`, hence
    a² = IC²σ²h/(B² - IC²V).
    """
    gain, spread = moments(_rate(profile), profile.ic_horizon_s)
    variance = profile.ic**2 * profile.ic_horizon_s / (gain**2 - profile.ic**2 * spread)
    return math.sqrt(variance) * profile.listing(symbol).sigma_bps


def moments(rate: float, horizon_s: float) -> tuple[float, float]:
    """(B, V) of an OU process with unit variance and rate of return κ, over a horizon h.

    B = (1 - e^(-κh))/κ is the expected integral per unit of its value now,
    V = (2/κ²)(κh - 1 + e^(-κh)) the variance of the integral.
    """
    z = rate * horizon_s
    return -math.expm1(-z) / rate, 2 * (z + math.expm1(-z)) / rate**2


def closed_form_ic(
    profile: Profile, horizon_s: float, delay_s: float = 0.0, strength: float = 1.0
) -> float:
    """The IC of the alpha now with the return from δ to δ + h seconds later.

    With one regime IC* = a·B(h)·e^(-κδ) / √(σ²h + a²V(h)). Regimes change independently of x, with
    E[g_t g_t+s] = m² + v·e^(-μs) of their multipliers' mean m and variance v, so that B and V are
    mixtures of those of the rates κ and κ + μ. ``strength`` is d, the schedule's multiplier.
    The same for every symbol of the profile, because alpha scales with volatility.
    """
    symbol = profile.leader
    a, sigma = alpha_sd(profile, symbol.symbol) * abs(strength), symbol.sigma_bps
    multipliers = np.array([regime.alpha for regime in profile.regimes])
    mean_square = float(np.mean(multipliers**2))
    if a == 0 or mean_square == 0:
        return 0.0
    gain = spread = 0.0
    for weight, rate in (
        (float(multipliers.mean()) ** 2, _rate(profile)),
        (float(multipliers.var()), _rate(profile) + regime_rate(profile)),
    ):
        own_gain, own_spread = moments(rate, horizon_s)
        gain += weight * own_gain * math.exp(-rate * delay_s)
        spread += weight * own_spread
    scale = math.sqrt(mean_square * (sigma**2 * horizon_s + a**2 * spread))
    return a * gain / scale


def filterable_ic(
    profile: Profile, horizon_s: float, delay_s: float = 1.0, symbol: str = ""
) -> float:
    """The IC of the best filter (`Filter`), with the label's delay of a second: an upper bound.

    E[R|filter] is proportional to the filtered alpha, so its IC is that of the alpha times the
    correlation of filter and alpha. Of the leader unless ``symbol`` names another.
    """
    names = [listing.symbol for listing in profile.listings]
    place = names.index(symbol or profile.leader.symbol)
    return closed_form_ic(profile, horizon_s, delay_s) * best_filter(profile).correlation[place]


def regime_rate(profile: Profile) -> float:
    """Rate μ (1/s) of mean reversion of the regime's chain: leaving hazard times K/(K - 1)."""
    states = len(profile.regimes)
    return states / (states - 1) / profile.regime_stay_s if states > 1 else 0.0


def _rate(profile: Profile) -> float:
    return math.log(2) / profile.half_life_s


# -- schedules -------------------------------------------------------------------------------------


def level(changes: Iterable[Change], what: str, t_ns: npt.NDArray[np.int64]) -> Floats:
    """Combined effect of the changes of one kind at instants: a multiplier, or a shift of features.

    A change goes from the neutral value (one; zero for features) to ``to``.
    """
    shift = what == "features"
    out = np.full(len(t_ns), 0.0 if shift else 1.0)
    for change in changes:
        if change.what == what:
            neutral = 0.0 if shift else 1.0
            here = neutral + (change.to - neutral) * _share(change, t_ns)
            out = out + here if shift else out * here
    return out


def _share(change: Change, t_ns: npt.NDArray[np.int64]) -> Floats:
    """Progress of a change, 0 to 1."""
    hours = (t_ns - instant_ns(change.starts)) / 3.6e12
    if change.shape == "step":
        return (hours >= 0).astype(np.float64)
    if change.shape == "ramp":
        return np.clip(hours / change.lasts_h, 0, 1)
    return 1 - np.exp2(-np.maximum(hours, 0) / change.lasts_h)


# -- the filterable bound --------------------------------------------------------------------------


class Filter(msgspec.Struct, frozen=True):
    """The steady-state Kalman filter of every symbol's own x and n from all scores and prices.

    States are the symbols' own x (a follower's x is ``loading`` of all of them), then their n.
    Observations are the scores, observed exactly, then the own parts of the efficient prices' moves over
    a frame, at mean volatility. No function of flow, quotes and prices knows the alpha better, except by
    knowing volatility better.
    """

    loading: Floats  #: (m, m) of each symbol's x on the own ones; rows have unit length
    decay: Floats  #: (2m,) of the states over a frame
    gain: Floats  #: (2m, 2m) state correction per unit of surprise in each observation
    seen: Floats  #: (2m, 2m) observations of the states
    noise_sd: float  #: standard deviation of n
    correlation: tuple[float, ...]  #: of each symbol's filtered x with its x


def loadings(profile: Profile) -> Floats:
    """(m, m): each listing's x as a combination of the listings' own ones, of unit variance."""
    names = [listing.symbol for listing in profile.listings]
    out = np.eye(len(names))
    for place, listing in enumerate(profile.listings):
        if listing.follows:
            share = follower_share(profile, listing.symbol)
            out[place, place] = math.sqrt(1 - share**2)
            out[place, names.index(listing.follows)] = share
    return out


def follower_share(profile: Profile, symbol: str) -> float:
    """Share of a symbol's standard deviation that comes from the one it follows, in quadrature."""
    listing = profile.listing(symbol)
    if not listing.follows:
        return 0.0
    return listing.beta * profile.listing(listing.follows).sigma_bps / listing.sigma_bps


@lru_cache(maxsize=64)
def best_filter(profile: Profile, strength: float = 1.0) -> Filter:
    """The filter of a profile, with n scaled so that its correlation with the alpha is ``filterable``.

    ``strength`` is the multiplier of alpha by regime and schedule, which the filter knows.
    ProfileError when prices alone give a higher correlation.
    """
    return solve(profile, _noise_sd(profile), strength)


@lru_cache(maxsize=64)
def _noise_sd(profile: Profile) -> float:
    place = [listing.symbol for listing in profile.listings].index(profile.leader.symbol)
    low, high = 1e-2, 1e3
    least, most = (solve(profile, sd).correlation[place] for sd in (high, low))
    if not least < profile.filterable < most:
        raise ProfileError(
            f"profile {profile.name}: filterable {profile.filterable:g} is impossible with ic "
            f"{profile.ic:g} and noise of {profile.noise_half_life_s:g} s beside an alpha of "
            f"{profile.half_life_s:g} s: prices alone tell {least:.4f} of it, so that admissible is "
            f"{least:.4f} < filterable < {most:.4f}"
        )
    while high / low > 1 + 1e-12:
        middle = math.sqrt(low * high)
        if solve(profile, middle).correlation[place] > profile.filterable:
            low = middle
        else:
            high = middle
    return low


def solve(profile: Profile, noise_sd: float, strength: float = 1.0) -> Filter:
    """The filter for noise flow of a given standard deviation."""
    m = len(profile.listings)
    loading = loadings(profile)
    half_lives = np.repeat([profile.half_life_s, profile.noise_half_life_s], m)
    decay = np.exp(-math.log(2) / half_lives * STEP_S)
    # A frame's own move in units of its noise; the same for every symbol, as alpha goes with sigma.
    leader = profile.leader
    drift = alpha_sd(profile, leader.symbol) * strength * math.sqrt(STEP_S) / leader.sigma_bps
    seen = np.zeros((2 * m, 2 * m))
    seen[:m, :m] = loading
    seen[:m, m:] = np.eye(m)
    seen[m:, :m] = drift * np.eye(m)
    errors = np.diag(np.repeat([_SCORE_NOISE_SD**2, 1.0], m))
    shocks = np.diag(np.repeat([1.0, noise_sd**2], m) * (1 - decay**2))
    predicted = _riccati(np.diag(decay), seen, shocks, errors)
    gain = predicted @ seen.T @ np.linalg.inv(seen @ predicted @ seen.T + errors)
    left = predicted - gain @ seen @ predicted
    unknown = np.einsum("ij,jk,ik->i", loading, left[:m, :m], loading)
    correlation = tuple(float(c) for c in np.sqrt(np.maximum(0, 1 - unknown)))
    return Filter(loading, decay, gain, seen, noise_sd, correlation)


def _riccati(
    step: npt.NDArray[Any], seen: npt.NDArray[Any], shocks: npt.NDArray[Any], errors: Any
) -> npt.NDArray[Any]:
    """Steady-state prediction covariance, by structure-preserving doubling (Chu, Fan, Lin 2005)."""
    a, g, h = step.T.copy(), seen.T @ np.linalg.inv(errors) @ seen, shocks.copy()
    unit = np.eye(len(step))
    for _ in range(60):
        w = np.linalg.inv(unit + g @ h)
        a, g, h_next = a @ w @ a, g + a @ w @ g @ a.T, h + a.T @ h @ w @ a
        if np.allclose(h_next, h, rtol=1e-13, atol=0):
            return np.asarray(h_next)
        h = h_next
    raise ProfileError("the filter's covariance does not converge")
