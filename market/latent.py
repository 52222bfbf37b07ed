"""The hidden day of a synthetic symbol: alpha, efficient price, quotes, and what they let through.

Everything here is a function of (profile, seed, symbol, day) alone, so days can be made in any order.
They join at midnight because the efficient price at each midnight is a keyed draw of its own, and the
day between two of them is a bridge: a free path plus the share of the missing rest that belongs to
the variance gone by. Midnight prices are independent draws around the listing's price, with the
standard deviation that gives their differences the variance of a free day; the bridge then has,
within the day, the law of the free path. Alpha, volatility and noise flow start each day anew from
their stationary law.
"""

from __future__ import annotations

import hashlib
import math
from datetime import date, timedelta
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from market.instruments import Instrument
from market.kernel import compiled
from market.profiles import STEP_S, Filter, Listing, Profile, score_filter

FRAMES: Final = 864_000  #: book frames of a day
SECONDS: Final = 86_400

Floats = npt.NDArray[np.float64]


def generator(seed: int, symbol: str, day: str, stream: str) -> np.random.Generator:
    """Philox keyed by all that names a stream: the same bits in any order and any process."""
    digest = hashlib.blake2b(f"{seed}/{symbol}/{day}/{stream}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, np.uint64)))


class Drivers(NamedTuple):
    """What moves a symbol; arrays of shape (FRAMES + 1,), entry j at j · 0.1 s after midnight."""

    x: Floats  #: the alpha in units of its standard deviation
    log_price: Floats  #: log of the efficient price
    volatility: Floats  #: multiplier of the listing's sigma, mean square one


class Day(NamedTuple):
    """The hidden day; arrays as in `Drivers`."""

    alpha: Floats  #: drift of the efficient price, bp/s
    filtered: Floats  #: the Kalman filter's alpha from the touch up to and with frame j, bp/s
    log_price: Floats
    volatility: Floats
    bid: npt.NDArray[np.int64]  #: best bid, ticks
    spread: npt.NDArray[np.int64]  #: best ask minus best bid, ticks
    imbalance: Floats  #: of the touch, (q_bid - q_ask) / (q_bid + q_ask)
    depth: Floats  #: multiplier of the quantity at the touch
    flow: Floats  #: P(taker buys) - P(taker sells) for orders that arrive before frame j


def drivers(profile: Profile, seed: int, symbol: str, day: str) -> Drivers:
    """Alpha, efficient price and volatility of a day, a follower's from its leader's."""
    listing = profile.listing(symbol)
    own_sigma, share = listing.sigma_bps, 0.0
    if listing.follows:
        leader = drivers(profile, seed, listing.follows, day)
        leader_sigma = listing.beta * profile.listing(listing.follows).sigma_bps
        own_sigma = math.sqrt(listing.sigma_bps**2 - leader_sigma**2)
        share = leader_sigma / listing.sigma_bps
    volatility = _volatility(profile, seed, symbol, day)
    own_x = _ou(generator(seed, symbol, day, "alpha"), profile.half_life_s, FRAMES + 1)
    drift = own_x[:-1] * (profile.alpha_sd(symbol) * math.sqrt(1 - share**2) * STEP_S * 1e-4)
    shocks = generator(seed, symbol, day, "price").standard_normal(FRAMES)
    variance = np.square(volatility[:-1])
    path = np.zeros(FRAMES + 1)
    np.cumsum(
        drift + shocks * volatility[:-1] * (own_sigma * math.sqrt(STEP_S) * 1e-4), out=path[1:]
    )
    x = own_x
    if listing.follows:
        late = np.maximum(np.arange(FRAMES + 1) - round(listing.lag_s / STEP_S), 0)
        path += listing.beta * (leader.log_price[late] - leader.log_price[0])
        x = share * leader.x[late] + math.sqrt(1 - share**2) * own_x
    gone = np.zeros(FRAMES + 1)
    np.cumsum(variance, out=gone[1:])
    start = midnight_log_price(profile, seed, symbol, day)
    end = midnight_log_price(profile, seed, symbol, _next(day))
    path += start + (end - start - path[-1]) * (gone / gone[-1])
    path[-1] = end
    return Drivers(x, path, volatility)


def midnight_log_price(profile: Profile, seed: int, symbol: str, day: str) -> float:
    """Log of the efficient price at the day's first instant."""
    listing = profile.listing(symbol)
    variance, moved = listing.sigma_bps**2, 0.0
    if listing.follows:
        leader = profile.listing(listing.follows)
        variance -= (listing.beta * leader.sigma_bps) ** 2
        moved = midnight_log_price(profile, seed, leader.symbol, day) - math.log(leader.price)
    spread = math.sqrt(variance * SECONDS / 2) * 1e-4
    own = spread * generator(seed, symbol, day, "midnight").standard_normal()
    return math.log(listing.price) + listing.beta * moved + own


def hidden_day(profile: Profile, seed: int, symbol: str, day: str, instrument: Instrument) -> Day:
    """The whole hidden day of a symbol."""
    listing = profile.listing(symbol)
    filters = score_filter(profile)
    moved = drivers(profile, seed, symbol, day)
    noise = _ou(generator(seed, symbol, day, "noise"), profile.noise_half_life_s, FRAMES + 1)
    score = moved.x + filters.noise_sd * noise
    prices = np.exp(moved.log_price) / instrument.tick_size
    rng = generator(seed, symbol, day, "quotes")
    bid, spread, gap = _quotes(
        prices,
        rng.random((FRAMES + 1, 3)),
        profile.hold_bps * 1e-4,
        profile.restless,
        profile.wide,
    )
    fresh = generator(seed, symbol, day, "touch").standard_normal(FRAMES + 1)
    imbalance = filters.score_gain * score + profile.touch_noise * fresh
    imbalance += profile.touch_gap * np.clip(gap, -1, 1)
    np.clip(imbalance, -0.95, 0.95, out=imbalance)
    a = profile.alpha_sd(symbol)
    filtered = a * _kalman(imbalance / filters.score_gain, *_parts(filters))
    surprise = np.zeros(FRAMES + 1)
    surprise[1:] = np.diff(moved.log_price) / (
        moved.volatility[:-1] * (listing.sigma_bps * math.sqrt(STEP_S) * 1e-4)
    )
    flow = profile.flow_sd / math.hypot(1, filters.noise_sd) * score
    flow += profile.flow_impact * surprise
    np.clip(flow, -0.95, 0.95, out=flow)
    thickness = _ou(generator(seed, symbol, day, "depth"), 60.0, FRAMES + 1)
    depth = np.exp(0.35 * thickness - 0.35**2 / 2) / np.sqrt(np.maximum(moved.volatility, 0.05))
    return Day(
        a * moved.x,
        filtered,
        moved.log_price,
        moved.volatility,
        bid,
        spread,
        imbalance,
        depth,
        flow,
    )


def _parts(filters: Filter) -> tuple[float, float, float, float]:
    return (*filters.decay, *filters.gain)


def _next(day: str) -> str:
    return (date.fromisoformat(day) + timedelta(days=1)).isoformat()


def _volatility(profile: Profile, seed: int, symbol: str, day: str) -> Floats:
    """Regime x fast log-normal x daily wave, each with mean square one."""
    rng = generator(seed, symbol, day, "volatility")
    regimes = np.array(profile.regimes)
    regimes /= math.sqrt(float(np.mean(regimes**2)))
    level = _regimes(rng.random((SECONDS + 1, 2)), len(regimes), 1 / profile.regime_stay_s)
    sd = profile.vol_log_sd
    fast = np.exp(sd * _ou(rng, profile.vol_half_life_s, FRAMES + 1) - sd**2)
    hours = np.arange(FRAMES + 1) / (3600 / STEP_S)
    wave = 1 + profile.season * np.cos((hours - 14.5) * (2 * math.pi / 24))
    wave /= math.sqrt(1 + profile.season**2 / 2)
    per_frame = np.repeat(regimes[level], round(1 / STEP_S))[: FRAMES + 1]
    return np.asarray(per_frame * fast * wave)


def _ou(rng: np.random.Generator, half_life_s: float, n: int) -> Floats:
    """A stationary Ornstein-Uhlenbeck path of unit variance, one entry per frame."""
    path = rng.standard_normal(n)
    _smooth(path, math.exp(-math.log(2) / half_life_s * STEP_S))
    return path


@compiled
def _smooth(path: Floats, decay: float) -> None:
    fresh = math.sqrt(1 - decay * decay)
    for j in range(1, len(path)):
        path[j] = decay * path[j - 1] + fresh * path[j]


@compiled
def _regimes(uniform: Floats, states: int, hazard: float) -> npt.NDArray[np.int64]:
    """A Markov chain over equally likely states that leaves each with the same hazard per second."""
    chain = np.empty(len(uniform), np.int64)
    state = min(int(uniform[0, 1] * states), states - 1)
    for s in range(len(uniform)):
        if s > 0 and states > 1 and uniform[s, 0] < hazard:
            state = (state + 1 + min(int(uniform[s, 1] * (states - 1)), states - 2)) % states
        chain[s] = state
    return chain


@compiled
def _quotes(
    prices: Floats, uniform: Floats, hold: float, restless: float, wide: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Floats]:
    """Best bid and spread in ticks, and the gap (price - mid) / hold after each frame.

    The touch stands still while the efficient price wanders, and jumps to it with a hazard that
    grows with the square of the gap: multi-tick moves with a spread of one tick.
    """
    n = len(prices)
    bid = np.empty(n, np.int64)
    spread = np.empty(n, np.int64)
    gap = np.empty(n)
    here, width = math.floor(prices[0]), 1
    for j in range(n):
        reach = hold * prices[j]
        off = (prices[j] - here - 0.5 * width) / reach
        if width > 1 and uniform[j, 2] < 0.8:
            # The spread closes on the side of the efficient price.
            here += (width - 1) if off > 0 else 0
            width = 1
        if uniform[j, 0] < off * off + restless:
            here, width = math.floor(prices[j]), 1
            if uniform[j, 1] < wide:
                width = 2 + int(uniform[j, 1] / wide * 3)
                here -= width // 2
        bid[j], spread[j] = here, width
        gap[j] = (prices[j] - here - 0.5 * width) / reach
    return bid, spread, gap


@compiled
def _kalman(seen: Floats, decay_x: float, decay_n: float, gain_x: float, gain_n: float) -> Floats:
    """The filtered x after each observation y = x + n + e, with steady-state gains."""
    found = np.empty(len(seen))
    x = n = 0.0
    for j in range(len(seen)):
        x *= decay_x
        n *= decay_n
        surprise = seen[j] - x - n
        x += gain_x * surprise
        n += gain_n * surprise
        found[j] = x
    return found


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
    due = midnight_ns // 1_000_000 + (seconds // 28_800 + 1) * 28_800_000
    return Reference(
        _decimals(price * (1 + 0.1 * premium), 2),
        _decimals(index, 2),
        _decimals(shown, 8),
        due.astype(np.int64),
        np.rint(interest / lot).astype(np.int64) * round(lot * 1e8),
        _decimals(turnover, 4),
        _decimals(turnover / price, 4),
    )


def _decimals(values: Floats, places: int) -> npt.NDArray[np.int64]:
    scaled = np.rint(values * 10.0**places).astype(np.int64)
    return np.asarray(scaled * 10 ** (8 - places))


def _bridged(symbol: str, seed: int, day: str, stream: str, roughness: float) -> Floats:
    """A path per second from this midnight's keyed normal draw to the next one's.

    ``roughness`` is the standard deviation of a free path over the day; 0 is a straight line.
    """
    ends = [
        float(generator(seed, symbol, d, f"{stream} midnight").standard_normal())
        for d in (day, _next(day))
    ]
    share = np.arange(SECONDS + 1) / SECONDS
    steps: npt.NDArray[Any] = generator(seed, symbol, day, stream).standard_normal(SECONDS)
    free = np.zeros(SECONDS + 1)
    np.cumsum(steps * (roughness / math.sqrt(SECONDS)), out=free[1:])
    return np.asarray(ends[0] + (ends[1] - ends[0] - free[-1]) * share + free)
