"""What a synthetic market is made of, and what is planted in it: parameters, named profiles, truths.

One score drives everything that a trader could see of the alpha. Per symbol,

    x_t   Ornstein-Uhlenbeck with unit variance and the profile's half-life
    α_t = a·x_t                    drift of the efficient price, bp/s
    u_t = x_t + n_t                the score; n_t is noise flow, a faster Ornstein-Uhlenbeck process

and queue imbalance and trade signs follow u_t. On a null market a = 0: the book and the tape obey the
same law, and mean nothing. Because everything is linear and Gaussian up to a clip, the best that any
model can do from the symbol's own book is a Kalman filter of two states, and both the information
coefficient of the alpha itself and that of the filter are known before a market is made.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Annotated, Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

#: Seconds between book frames (`orderbook.200` is pushed every 100 ms) and steps of every process.
STEP_S: Final = 0.1

Share = Annotated[float, Meta(ge=0, le=1)]
Positive = Annotated[float, Meta(gt=0)]
Count = Annotated[float, Meta(ge=0)]


class ProfileError(ValueError):
    """A synthetic market with these parameters cannot exist; the message gives the range."""


class Listing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One symbol of a synthetic market. "Recorded" means busy and quiet days of mid-2024."""

    symbol: str
    #: Price around which midnight prices are drawn (quote currency). Mid-2024 levels.
    price: Positive
    #: Standard deviation of the efficient price's one-second noise (bps). Recorded 0.5 to 1.3.
    sigma_bps: Positive
    #: Symbol whose efficient price this one follows, and how closely (elasticity); "" for none.
    follows: str = ""
    beta: Count = 0.0
    #: Time by which it follows (s). Below the second of latency that labels allow for.
    lag_s: Annotated[float, Meta(ge=0, lt=1)] = 0.3
    #: Mean quantity at the touch (base currency). Recorded medians: BTC 3 to 13, ETH 16 to 74.
    touch_qty: Positive
    #: Median and log standard deviation of the quantity of a level behind the touch (base currency).
    #: Recorded: BTC 0.05 to 0.15, ETH 0.3 to 2; log standard deviation 2.0 to 2.3.
    level_qty: Positive
    level_log_sd: Count = 1.8
    #: Share of ticks behind the touch that hold a level. With 200 levels a side it sets how far the
    #: book reaches: recorded 4 to 6 bps for BTC, 7 to 9 bps for ETH.
    occupancy: Annotated[float, Meta(ge=0.1, le=1)] = 0.4
    #: Mean number of taker orders per second. Recorded trades: 22 to 62 per second.
    orders_per_s: Count
    #: Mean quantity of a taker order (base currency).
    order_qty: Positive
    #: Mean open interest (base currency) and mean turnover of 24 hours (quote currency).
    open_interest: Positive
    turnover_24h: Positive


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parameters of a synthetic market; a parameter without a recorded value is a choice."""

    name: str
    listings: tuple[Listing, ...]

    # -- what is planted
    #: Information coefficient of the alpha itself with the return over ``ic_horizon_s``; 0 is null.
    ic: Share = 0.0
    ic_horizon_s: Positive = 60.0
    #: Half-life of the alpha (s).
    half_life_s: Positive = 60.0
    #: Correlation of the best filter with the alpha: the share of ``ic`` that can be had.
    filterable: Annotated[float, Meta(gt=0, lt=1)] = 0.65
    #: Half-life of the noise flow (s). Recorded queue imbalance loses half its memory in 0.5 to 2 s.
    noise_half_life_s: Positive = 2.0
    #: Standard deviation of the touch imbalance (q_bid - q_ask)/(q_bid + q_ask) due to the score.
    #: Recorded imbalances have 0.6 in all.
    imbalance_sd: Positive = 0.45
    #: Standard deviation of the touch imbalance that is new in every frame.
    touch_noise: Positive = 0.1
    #: Touch imbalance per unit of (efficient price - mid) / ``hold_bps``.
    touch_gap: Count = 0.15
    #: Standard deviation, due to the score, of the difference of buy and sell probabilities.
    flow_sd: Count = 0.3
    #: The same difference per standard deviation of the efficient price's move in that frame.
    flow_impact: Count = 0.6

    # -- volatility; multipliers of sigma_bps, scaled so that their mean square is one
    #: Volatility of each regime relative to the others, and its mean stay (s).
    regimes: tuple[Positive, ...] = (0.7, 1.0, 1.6)
    regime_stay_s: Positive = 10_800.0
    #: Log standard deviation and half-life (s) of fast volatility. With the regimes they give one
    #: second returns a kurtosis of about 10; recorded 10 to 24.
    vol_log_sd: Annotated[float, Meta(ge=0, le=1)] = 0.45
    vol_half_life_s: Positive = 30.0
    #: Amplitude of the daily wave of volatility, with its crest at 14:30 UTC.
    season: Annotated[float, Meta(ge=0, le=0.9)] = 0.25

    # -- quotes
    #: Quotes follow the efficient price with hazard (gap / hold_bps)² + ``restless`` per frame.
    #: Recorded mids stand still in 87 to 96 % of frames and then move by 0.4 bps (median).
    hold_bps: Positive = 1.0
    restless: Share = 0.01
    #: Probability that a move leaves a spread of several ticks. Recorded: one tick 99.2 to 100 %.
    wide: Share = 0.03
    #: Share of a depleted touch that is refilled in a frame.
    refill: Share = 0.2
    #: Mean number of levels behind the touch redrawn per frame, within about ``churn_bps``.
    churn: Count = 16.0
    churn_bps: Positive = 1.0

    # -- trades
    #: Mean number of orders that one order brings about, and after how long (s).
    branching: Annotated[float, Meta(ge=0, le=0.95)] = 0.6
    branching_s: Positive = 1.0
    #: Probability that a taker order hits the touch just before it retreats.
    sweep: Share = 0.15
    #: Share of taker orders that match an RPI order, which the book does not show.
    rpi: Share = 0.02
    #: Liquidations per hour at mean volatility.
    liquidations_per_h: Count = 6.0

    # -- transport
    #: Median one-way latency (ms) and its log standard deviation.
    latency_ms: Positive = 8.0
    latency_log_sd: Count = 0.3

    def __post_init__(self) -> None:
        limit = ic_limit(self)
        if self.ic >= limit:
            raise ProfileError(
                f"profile {self.name}: ic {self.ic:g} at {self.ic_horizon_s:g} s is impossible with "
                f"a half-life of {self.half_life_s:g} s: admissible is 0 <= ic < {limit:.4f}"
            )
        if self.noise_half_life_s >= self.half_life_s:
            raise ProfileError(
                f"profile {self.name}: noise_half_life_s {self.noise_half_life_s:g} must be below "
                f"half_life_s {self.half_life_s:g}, or no filter could tell noise from alpha"
            )
        if not self.regimes:
            raise ProfileError(f"profile {self.name}: regimes needs one multiplier or more")
        names = [listing.symbol for listing in self.listings]
        if len(set(names)) != len(names):
            raise ProfileError(f"profile {self.name}: a symbol is listed twice: {', '.join(names)}")
        for listing in self.listings:
            self._check(listing)

    def _check(self, listing: Listing) -> None:
        if not listing.follows:
            if listing.beta:
                raise ProfileError(f"{listing.symbol}: beta {listing.beta:g} without follows")
            return
        others = {other.symbol: other for other in self.listings}
        leader = others.get(listing.follows)
        if leader is None or leader.follows:
            raise ProfileError(
                f"{listing.symbol}: follows {listing.follows}, which must be a listed symbol that "
                f"follows none itself; listed are {', '.join(others)}"
            )
        if listing.beta * leader.sigma_bps >= listing.sigma_bps:
            raise ProfileError(
                f"{listing.symbol}: beta {listing.beta:g} brings {listing.beta * leader.sigma_bps:g} "
                f"bps of {listing.follows}'s volatility into {listing.sigma_bps:g} bps: admissible "
                f"is 0 <= beta < {listing.sigma_bps / leader.sigma_bps:.4f}"
            )

    def listing(self, symbol: str) -> Listing:
        """The symbol's parameters; ProfileError when it is not listed."""
        for listing in self.listings:
            if listing.symbol == symbol:
                return listing
        known = ", ".join(listing.symbol for listing in self.listings)
        raise ProfileError(f"profile {self.name} has no {symbol}; it lists {known}")

    def alpha_sd(self, symbol: str) -> float:
        """Standard deviation a of the symbol's alpha in bp/s, solved from ``ic``.

        IC² = a²B²/(σ²h + a²V) with B and V of `_moments`, hence a² = IC²σ²h/(B² - IC²V).
        """
        gain, spread = _moments(self.half_life_s, self.ic_horizon_s)
        variance = self.ic**2 * self.ic_horizon_s / (gain**2 - self.ic**2 * spread)
        return math.sqrt(variance) * self.listing(symbol).sigma_bps


def altered(profile: Profile, **changes: Any) -> Profile:
    """The profile with other parameters, each checked against its range.

    ProfileError names the parameter and the admissible range.
    """
    try:
        return msgspec.convert({**msgspec.to_builtins(profile), **changes}, Profile)
    except msgspec.ValidationError as error:
        raise ProfileError(f"profile {profile.name}: {error}") from error


def _moments(half_life_s: float, horizon_s: float) -> tuple[float, float]:
    """(B, V) of an OU process with unit variance over a horizon h, κ its rate of return.

    B = (1 - e^(-κh))/κ is the expected integral per unit of its value now,
    V = (2/κ²)(κh - 1 + e^(-κh)) the variance of the integral.
    """
    rate = math.log(2) / half_life_s
    z = rate * horizon_s
    return -math.expm1(-z) / rate, 2 * (z + math.expm1(-z)) / rate**2


def ic_limit(profile: Profile) -> float:
    """The information coefficient of an alpha without any noise beside it: B/√V."""
    gain, spread = _moments(profile.half_life_s, profile.ic_horizon_s)
    return gain / math.sqrt(spread)


def closed_form_ic(profile: Profile, horizon_s: float, delay_s: float = 0.0) -> float:
    """IC* = a·B(h)·e^(-κδ) / √(σ²h + a²V(h)): alpha now, return from δ to δ + h seconds ahead.

    The same for every symbol of the profile, because alpha scales with volatility.
    """
    gain, spread = _moments(profile.half_life_s, horizon_s)
    symbol = profile.listings[0]
    a, sigma = profile.alpha_sd(symbol.symbol), symbol.sigma_bps
    decay = math.exp(-math.log(2) / profile.half_life_s * delay_s)
    return a * gain * decay / math.sqrt(sigma**2 * horizon_s + a**2 * spread)


def filterable_ic(profile: Profile, horizon_s: float, delay_s: float = 1.0) -> float:
    """The IC of the Kalman filter on the symbol's own score, with the label's delay of a second.

    E[R|filter] is proportional to the filtered alpha, so its IC is IC* times the correlation of
    filter and alpha.
    """
    return closed_form_ic(profile, horizon_s, delay_s) * profile.filterable


class Filter(msgspec.Struct, frozen=True):
    """The steady-state Kalman filter of (x, n) from one observation per frame, y = x + n + e."""

    decay: tuple[float, float]  #: of x and n over one frame
    gain: tuple[float, float]  #: state correction per unit of surprise in y
    noise_sd: float  #: standard deviation of n
    error_sd: float  #: standard deviation of e: what is new in every frame, in units of the score
    score_gain: float  #: touch imbalance per unit of the score
    correlation: float  #: of the filtered x with x


@lru_cache(maxsize=32)
def score_filter(profile: Profile) -> Filter:
    """The filter of a profile; n is as large as makes it find the ``filterable`` share of alpha.

    ProfileError when the noise that is new in every frame alone hides more than that.
    """
    low, high = 1e-3, 1e3
    if _solve(profile, low).correlation < profile.filterable:
        raise ProfileError(
            f"profile {profile.name}: filterable {profile.filterable:g} is impossible with "
            f"touch_noise {profile.touch_noise:g} beside imbalance_sd {profile.imbalance_sd:g}: "
            f"admissible is 0 < filterable <= {_solve(profile, low).correlation:.4f}"
        )
    while high / low > 1 + 1e-12:
        middle = math.sqrt(low * high)
        if _solve(profile, middle).correlation > profile.filterable:
            low = middle
        else:
            high = middle
    return _solve(profile, low)


def _solve(profile: Profile, noise_sd: float) -> Filter:
    rates = math.log(2) / np.array([profile.half_life_s, profile.noise_half_life_s])
    decay = np.exp(-rates * STEP_S)
    score_gain = profile.imbalance_sd / math.sqrt(1 + noise_sd**2)
    error_sd = profile.touch_noise / score_gain
    variance = np.diag([1.0, noise_sd**2])
    shocks = variance * (1 - np.diag(decay**2))
    seen = np.ones((1, 2))
    predicted = _riccati(np.diag(decay), seen, shocks, error_sd**2)
    gain = (predicted @ seen.T / (seen @ predicted @ seen.T + error_sd**2)).ravel()
    left = predicted - np.outer(gain, seen @ predicted)
    return Filter(
        (float(decay[0]), float(decay[1])),
        (float(gain[0]), float(gain[1])),
        noise_sd,
        error_sd,
        score_gain,
        math.sqrt(max(0.0, 1 - float(left[0, 0]))),
    )


def _riccati(
    step: npt.NDArray[Any], seen: npt.NDArray[Any], shocks: npt.NDArray[Any], noise: float
) -> npt.NDArray[Any]:
    """Steady-state prediction covariance, by structure-preserving doubling (Chu, Fan, Lin 2005)."""
    a, g, h = step.T.copy(), seen.T @ seen / noise, shocks.copy()
    unit = np.eye(len(step))
    for _ in range(60):
        w = np.linalg.inv(unit + g @ h)
        a, g, h_next = a @ w @ a, g + a @ w @ g @ a.T, h + a.T @ h @ w @ a
        if np.allclose(h_next, h, rtol=1e-14, atol=0):
            return np.asarray(h_next)
        h = h_next
    raise ProfileError("the filter's covariance does not converge")


_BTC: Final = Listing(
    symbol="BTCUSDT",
    price=60_000.0,
    sigma_bps=0.9,
    touch_qty=6.0,
    level_qty=0.08,
    occupancy=0.55,
    orders_per_s=15.0,
    order_qty=0.12,
    open_interest=55_000.0,
    turnover_24h=9e9,
)
_ETH: Final = Listing(
    symbol="ETHUSDT",
    price=3_000.0,
    sigma_bps=1.0,
    follows="BTCUSDT",
    beta=0.85,
    touch_qty=35.0,
    level_qty=0.8,
    occupancy=0.75,
    orders_per_s=12.0,
    order_qty=1.2,
    open_interest=600_000.0,
    turnover_24h=5e9,
)

_DEFAULT: Final = Profile(name="default", listings=(_BTC, _ETH), ic=0.10, half_life_s=30.0)

#: ``default``: a medium alpha in a busy book. ``null``: the same market without alpha. ``demo``: a
#: strong alpha, of which a filter can have an IC of 0.26 at 60 s, in a lighter book: a smoke test of
#: the whole path, never a claim about real markets.
PROFILES: Final[dict[str, Profile]] = {
    "default": _DEFAULT,
    "null": msgspec.structs.replace(_DEFAULT, name="null", ic=0.0),
    "demo": msgspec.structs.replace(
        _DEFAULT, name="demo", ic=0.40, half_life_s=60.0, filterable=0.66, churn=5.0
    ),
}


def profile(name: str) -> Profile:
    """A named profile; ProfileError names the known ones."""
    if name not in PROFILES:
        raise ProfileError(f"{name}: no such synthetic market; known are {', '.join(PROFILES)}")
    return PROFILES[name]
