"""The latent day of a synthetic symbol: alpha, score, efficient price, and the market's state.

Everything is a function of (profile, seed, symbol, day), so days can be generated in any order. They
join at midnight because each process has a keyed draw of its own at each midnight, and the day between
two of them is a bridge. Midnight prices are independent draws around the listing's price, with the
standard deviation that gives their differences the variance of a free day; the bridge then has, within
the day, the law of the free path. Midnight states of the Ornstein-Uhlenbeck processes and of the regime
are independent draws from their stationary laws: over a day they forget their start.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from market.events import PLACES, Field
from market.kernel import compiled
from market.units import SECOND_NS, day_start_ns, next_day
from proving.synthetic.planted import alpha_sd, best_filter, follower_share, level
from proving.synthetic.profiles import STEP_S, Listing, Profile

FRAMES: Final = 864_000  #: book frames of a day
SECONDS: Final = 86_400
PER_SECOND: Final = round(1 / STEP_S)

#: Multipliers of alpha are rounded to this before a filter is made for them.
_STRENGTH_STEP: Final = 1 / 16
#: Half-life of the multiplier of displayed quantities (s), and its log standard deviation.
_DEPTH_HALF_LIFE_S: Final = 60.0
_DEPTH_LOG_SD: Final = 0.35

Floats = npt.NDArray[np.float64]


def generator(seed: int, symbol: str, day: str, stream: str) -> np.random.Generator:
    """Philox keyed by the name of a stream: the same bits in any order and any process."""
    digest = hashlib.blake2b(f"{seed}/{symbol}/{day}/{stream}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, np.uint64)))


class Drivers(NamedTuple):
    """Latent paths of a symbol; arrays of shape (FRAMES + 1,), entry j at j · 0.1 s after midnight."""

    x: Floats  #: the planted process, unit variance
    strength: Floats  #: multiplier of alpha by regime and schedule
    alpha: Floats  #: drift of the efficient price, bp/s: alpha_sd · strength · x
    #: what flow and quotes follow: x and noise flow, unit variance, shifted by schedule
    score: Floats
    log_price: Floats  #: log of the efficient price
    move: Floats  #: its own moves over the frame before, without jumps, in units of their noise
    volatility: Floats  #: multiplier of the listing's sigma, mean square one but for its schedule
    depth: Floats  #: multiplier of displayed quantities, mean near one
    intensity: Floats  #: multiplier of arrival rates by regime
    regime: npt.NDArray[np.int64]  #: place in the profile's regimes
    jumps: Floats  #: log move of the own jumps in the frame before; nearly always zero


def drivers(profile: Profile, seed: int, symbol: str, day: str) -> Drivers:
    """The latent paths of a symbol's day, a follower's from its leader's."""
    listing = profile.listing(symbol)
    share = follower_share(profile, symbol)
    followed = drivers(profile, seed, listing.follows, day) if listing.follows else None
    t_ns = day_start_ns(day) + np.arange(FRAMES + 1) * round(STEP_S * 1e9)
    regime = followed.regime if followed else _market_regimes(profile, seed, symbol, day)
    by_regime = np.array([[r.depth, r.intensity, r.alpha] for r in profile.regimes])[regime]
    grown = level(profile.changes, "volatility", t_ns)
    volatility = _volatility(profile, seed, symbol, day, regime) * grown
    strength = by_regime[:, 2] * level(profile.changes, "alpha", t_ns)

    own_x = _ou(seed, symbol, day, "alpha", profile.half_life_s)
    own_sd = math.sqrt(1 - share**2)
    own_sigma = listing.sigma_bps * own_sd
    drift = alpha_sd(profile, symbol) * own_sd * (strength * grown * own_x)[:-1] * STEP_S * 1e-4
    noise = own_sigma * math.sqrt((1 - profile.jump_share) * STEP_S) * 1e-4 * volatility[:-1]
    step = drift + noise * generator(seed, symbol, day, "price").standard_normal(FRAMES)
    move = np.zeros(FRAMES + 1)
    np.divide(step, own_sigma * math.sqrt(STEP_S) * 1e-4 * grown[:-1], out=move[1:])
    jumps = _jumps(profile, seed, symbol, day, own_sigma * grown)
    path = np.zeros(FRAMES + 1)
    np.cumsum(step + jumps[1:], out=path[1:])
    x = own_x
    if followed:
        late = np.maximum(np.arange(FRAMES + 1) - round(listing.lag_s / STEP_S), 0)
        path += listing.beta * (followed.log_price[late] - followed.log_price[0])
        x = share * followed.x[late] + own_sd * own_x
    gone = np.zeros(FRAMES + 1)
    np.cumsum(np.square(volatility[:-1]), out=gone[1:])
    start = midnight_log_price(profile, seed, symbol, day)
    end = midnight_log_price(profile, seed, symbol, next_day(day))
    path += start + (end - start - path[-1]) * (gone / gone[-1])
    path[-1] = end

    loudness = best_filter(profile).noise_sd
    score = x + loudness * _ou(seed, symbol, day, "noise", profile.noise_half_life_s)
    score /= math.hypot(1, loudness)
    score += level(profile.changes, "features", t_ns)
    alpha = alpha_sd(profile, symbol) * strength * grown * x
    depth = _ou(seed, symbol, day, "depth", _DEPTH_HALF_LIFE_S)
    depth = np.exp(_DEPTH_LOG_SD * depth - _DEPTH_LOG_SD**2 / 2)
    depth *= by_regime[:, 0] * level(profile.changes, "depth", t_ns)
    return Drivers(
        x, strength, alpha, score, path, move, volatility, depth, by_regime[:, 1], regime, jumps
    )


def filtered_alphas(profile: Profile, seed: int, day: str) -> dict[str, Floats]:
    """The Kalman filter's alpha of each symbol by frame, bp/s, from all scores and prices so far.

    It knows the regime, the schedules and the jumps (`planted.Filter`).
    """
    symbols = [listing.symbol for listing in profile.listings]
    hidden = [drivers(profile, seed, symbol, day) for symbol in symbols]
    loudness = math.hypot(1, best_filter(profile).noise_sd)
    t_ns = day_start_ns(day) + np.arange(FRAMES + 1) * round(STEP_S * 1e9)
    shift = level(profile.changes, "features", t_ns)
    seen = np.stack(
        [*(loudness * (h.score - shift) for h in hidden), *(h.move for h in hidden)], axis=1
    )
    strengths = np.rint(hidden[0].strength / _STRENGTH_STEP)
    distinct, which = np.unique(strengths, return_inverse=True)
    filters = [best_filter(profile, float(s) * _STRENGTH_STEP) for s in distinct]
    gains = np.stack([f.gain for f in filters])
    observed = np.stack([f.seen for f in filters])
    states = _kalman(seen, filters[0].decay, gains, observed, which.astype(np.int64))
    # Written out: a library's matrix product may round otherwise on another machine.
    own = [states[:, place] for place in range(len(symbols))]
    filtered = [
        sum((share * path for share, path in zip(row, own, strict=True)), np.zeros(FRAMES + 1))
        for row in filters[0].loading
    ]
    grown = level(profile.changes, "volatility", t_ns)
    return {
        symbol: alpha_sd(profile, symbol) * hidden[place].strength * grown * filtered[place]
        for place, symbol in enumerate(symbols)
    }


def midnight_log_price(profile: Profile, seed: int, symbol: str, day: str) -> float:
    """Log of the efficient price at the day's first instant."""
    listing = profile.listing(symbol)
    moved = 0.0
    if listing.follows:
        leader = profile.listing(listing.follows)
        moved = midnight_log_price(profile, seed, leader.symbol, day) - math.log(leader.price)
    own_sigma = listing.sigma_bps * math.sqrt(1 - follower_share(profile, symbol) ** 2)
    # Half the variance of the days on either side, so that the difference of two has a day's.
    noon_ns = day_start_ns(day) + np.array([-1, 1], np.int64) * (SECONDS // 2 * 1_000_000_000)
    growth = math.sqrt(float(np.mean(level(profile.changes, "volatility", noon_ns) ** 2)))
    spread = own_sigma * growth * math.sqrt(SECONDS / 2) * 1e-4
    own = spread * generator(seed, symbol, day, "midnight").standard_normal()
    return math.log(listing.price) + listing.beta * moved + own


def _market_regimes(profile: Profile, seed: int, symbol: str, day: str) -> npt.NDArray[np.int64]:
    """The regime at each frame: a Markov chain by the second between keyed midnight states."""
    ends = [
        int(generator(seed, symbol, d, "regime midnight").integers(len(profile.regimes)))
        for d in (day, next_day(day))
    ]
    uniform = generator(seed, symbol, day, "regime").random(SECONDS)
    chain = _bridged_chain(
        uniform, len(profile.regimes), 1 / profile.regime_stay_s, ends[0], ends[1]
    )
    return np.repeat(chain, PER_SECOND)[: FRAMES + 1]


def _volatility(
    profile: Profile, seed: int, symbol: str, day: str, regime: npt.NDArray[np.int64]
) -> Floats:
    """Regime x fast and slow log-normal x daily wave, each with mean square one."""
    regimes = np.array([r.volatility for r in profile.regimes])
    regimes /= math.sqrt(float(np.mean(regimes**2)))
    fast, slow = profile.vol_log_sd, profile.slow_vol_log_sd
    log = fast * _ou(seed, symbol, day, "volatility", profile.vol_half_life_s) - fast**2
    log += slow * _ou(seed, symbol, day, "slow volatility", profile.slow_vol_half_life_s)
    log -= slow**2
    hours = np.arange(FRAMES + 1) / (3600 / STEP_S)
    wave = 1 + profile.season * np.cos((hours - 14.5) * (2 * math.pi / 24))
    wave /= math.sqrt(1 + profile.season**2 / 2)
    return np.asarray(regimes[regime] * np.exp(log) * wave)


def _jumps(profile: Profile, seed: int, symbol: str, day: str, sigma_bps: Floats) -> Floats:
    """Log moves of the day's jumps, by frame; together they have their share of the variance."""
    out = np.zeros(FRAMES + 1)
    rng = generator(seed, symbol, day, "jumps")
    count = rng.poisson(profile.jumps_per_day) if profile.jump_share else 0
    places = rng.integers(1, FRAMES + 1, count)
    spread = math.sqrt(profile.jump_share * SECONDS / profile.jumps_per_day) * 1e-4
    np.add.at(out, places, spread * sigma_bps[places] * rng.standard_normal(count))
    return out


def _ou(seed: int, symbol: str, day: str, stream: str, half_life_s: float) -> Floats:
    """An Ornstein-Uhlenbeck path of unit variance by frame, between keyed midnight values."""
    ends = [
        float(generator(seed, symbol, d, f"{stream} midnight").standard_normal())
        for d in (day, next_day(day))
    ]
    path = generator(seed, symbol, day, stream).standard_normal(FRAMES + 1)
    _bridge_ou(path, math.exp(-math.log(2) / half_life_s * STEP_S), ends[0], ends[1])
    return path


@compiled
def _bridge_ou(path: Floats, decay: float, start: float, end: float) -> None:
    """Turn normal draws into the bridge, in place: free from ``start``, then corrected to ``end``.

    The difference at the end is added in proportion to the covariance with the end,
    e^(-κ(T-t)) (1 - e^(-2κt)) / (1 - e^(-2κT)), which gives the exact law of the bridge.
    """
    last = len(path) - 1
    fresh = math.sqrt(1 - decay * decay)
    path[0] = start
    for j in range(1, last + 1):
        path[j] = decay * path[j - 1] + fresh * path[j]
    missing = (end - path[last]) / (1 - decay ** (2.0 * last))
    weight = 1.0
    j = last
    while j > 0 and weight > 1e-18:
        path[j] += missing * weight * (1 - decay ** (2.0 * j))
        weight *= decay
        j -= 1
    path[last] = end


@compiled
def smooth(path: Floats, decay: float) -> None:
    """Turn normal draws into a stationary Ornstein-Uhlenbeck path of unit variance, in place."""
    fresh = math.sqrt(1 - decay * decay)
    for j in range(1, len(path)):
        path[j] = decay * path[j - 1] + fresh * path[j]


@compiled
def _bridged_chain(
    uniform: Floats, states: int, hazard: float, start: int, end: int
) -> npt.NDArray[np.int64]:
    """A Markov chain that leaves each state with the same hazard, given its first and last state.

    A step to j has the chain's own probability times that of being in ``end`` from there, which for
    equally likely ways out is 1/K + (1{j = end} - 1/K)·ρ^m with m steps left.
    """
    n = len(uniform)
    chain = np.full(n + 1, start, np.int64)
    if states == 1:
        return chain
    memory = 1 - hazard * states / (states - 1)
    weights = np.empty(states)
    for s in range(1, n + 1):
        kept = memory ** float(n - s)
        total = 0.0
        for j in range(states):
            step = 1 - hazard if j == chain[s - 1] else hazard / (states - 1)
            weights[j] = step * ((1 - kept) / states + (kept if j == end else 0.0))
            total += weights[j]
        left = uniform[s - 1] * total
        j = 0
        while j < states - 1 and left >= weights[j]:
            left -= weights[j]
            j += 1
        chain[s] = j
    return chain


@compiled
def _kalman(
    seen: Floats, decay: Floats, gains: Floats, observed: Floats, which: npt.NDArray[np.int64]
) -> Floats:
    """The filtered states after each frame; ``which`` is the frame's place in gains and observations."""
    n, m = seen.shape
    states = np.empty((n, m))
    state = np.zeros(m)
    surprise = np.empty(m)
    for j in range(n):
        gain, rows = gains[which[j]], observed[which[j]]
        for i in range(m):
            state[i] *= decay[i]
        for i in range(m):
            expected = 0.0
            for k in range(m):
                expected += rows[i, k] * state[k]
            surprise[i] = seen[j, i] - expected
        for i in range(m):
            for k in range(m):
                state[i] += gain[i, k] * surprise[k]
            states[j, i] = state[i]
    return states


class Reference(NamedTuple):
    """Ticker values per second; integer arrays of shape (SECONDS + 1,), as `events.Field` says."""

    mark: npt.NDArray[np.int64]
    index_price: npt.NDArray[np.int64]
    funding: npt.NDArray[np.int64]
    next_funding_ms: npt.NDArray[np.int64]
    open_interest: npt.NDArray[np.int64]
    turnover: npt.NDArray[np.int64]
    volume: npt.NDArray[np.int64]


def reference(
    listing: Listing, seed: int, day: str, midnight_ns: int, log_price: Floats, lot: float
) -> Reference:
    """Mark, index, funding and open interest of a day, on the venue's decimals.

    Premium and open interest are bridges between keyed midnights. Funding is the venue's rule,
    F = P + clamp(0.01 % - P, ±0.05 %), with P the premium's mean over the interval of eight hours
    so far, weighted by the minute.
    """
    premium = 2e-4 * _bridged(listing.symbol, seed, day, "premium", 3.0)
    interest = listing.open_interest * np.exp(
        0.05 * _bridged(listing.symbol, seed, day, "interest", 1.0)
    )
    turnover = listing.turnover_24h * np.exp(
        0.3 * _bridged(listing.symbol, seed, day, "turnover", 0.0)
    )
    price = np.exp(log_price[:: round(1 / STEP_S)])
    index = price / (1 + premium)
    seconds = np.arange(SECONDS + 1)
    within = seconds % 28_800
    weight = within // 60 + 1.0
    mean = np.empty(SECONDS + 1)
    for start in range(0, SECONDS + 1, 28_800):
        part = slice(start, start + 28_800)
        mean[part] = np.cumsum(weight[part] * premium[part]) / np.cumsum(weight[part])
    funding = mean + np.clip(1e-4 - mean, -5e-4, 5e-4)
    # Shown at minute ends, as the estimate is made by the minute.
    shown = funding[seconds - seconds % 60]
    due = ((midnight_ns // SECOND_NS + seconds) // 28_800 + 1) * 28_800_000
    return Reference(
        _decimals(price * (1 + 0.1 * premium), 2, Field.MARK_PRICE),
        _decimals(index, 2, Field.INDEX_PRICE),
        _decimals(shown, 8, Field.FUNDING_RATE),
        due.astype(np.int64),
        _decimals(np.rint(interest / lot) * lot, 3, Field.OPEN_INTEREST),
        _decimals(turnover, 4, Field.TURNOVER_24H),
        _decimals(turnover / price, 3, Field.VOLUME_24H),
    )


def _decimals(values: Floats, places: int, field: Field) -> npt.NDArray[np.int64]:
    scaled = np.rint(values * 10.0**places).astype(np.int64)
    return np.asarray(scaled * 10 ** (PLACES[field] - places))


def _bridged(symbol: str, seed: int, day: str, stream: str, roughness: float) -> Floats:
    """A path per second from this midnight's keyed normal draw to the next one's.

    ``roughness`` is the standard deviation of a free path over the day; 0 is a straight line.
    """
    ends = [
        float(generator(seed, symbol, d, f"{stream} midnight").standard_normal())
        for d in (day, next_day(day))
    ]
    share = np.arange(SECONDS + 1) / SECONDS
    steps: npt.NDArray[Any] = generator(seed, symbol, day, stream).standard_normal(SECONDS)
    free = np.zeros(SECONDS + 1)
    np.cumsum(steps * (roughness / math.sqrt(SECONDS)), out=free[1:])
    return np.asarray(ends[0] + (ends[1] - ends[0] - free[-1]) * share + free)
