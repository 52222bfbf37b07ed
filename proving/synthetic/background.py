"""Parameters and state of the background flow: everybody else's orders in the synthetic market.

`proving.synthetic.makers` moves the quotes, `proving.synthetic.flow` sends the other requests; both
read `BackgroundParameters` and the day's `LatentPath` and change `BackgroundState` and the matching
engine. All randomness is counter-based (`arrivals.philox`): by request, by maker step, by quote.
Executing, cancelling or adding orders of our own changes none of it.

Behind the touch every tick is a queue of its own: orders are placed at one rate and cancelled, the
newest first, at another, so that the share of ticks with a level is the ratio of the two and the
stationary law is known: a price that comes into reach is drawn from it.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from market import book as bk
from market.instruments import Instrument
from market.kernel import compiled, kernel
from market.units import SECOND_NS
from proving.synthetic.arrivals import (
    Floats,
    HawkesLaw,
    HawkesState,
    Integers,
    RequestKind,
    hawkes_law,
    new_hawkes,
)
from proving.synthetic.latent import Drivers
from proving.synthetic.profiles import STEP_S, Listing, Profile

#: Owner of the background's orders.
BACKGROUND: Final = 0
STEP_NS: Final = 100_000_000  #: of the latent day's arrays
MAKER_STEP_NS: Final = 20_000_000  #: between two decisions of the makers
#: Most rows of the engine's pool that one step may need.
POOL_ROOM: Final = 1 << 14

#: Time constants of the decay of impact (s), and the power of time that their sum approximates.
IMPACT_DECAY_S: Final = 0.5 * 4.0 ** np.arange(8)
IMPACT_POWER: Final = 0.3
#: Metaorders that are worked side by side; each is chosen as often as the others.
METAORDERS: Final = 3
#: Tail index of metaorder lengths: signs then have the autocorrelation exponent 1.5 - 1 = 0.5.
METAORDER_TAIL: Final = 1.5
#: Log standard deviation of a taker order's quantity.
TAKER_LOG_SD: Final = 2.0
#: Log standard deviation of the quantity of dust.
DUST_LOG_SD: Final = 0.5
#: Round prices have levels more often, and larger ones.
ROUND: Final = 10
ROUND_OCCUPANCY: Final = 1.6
ROUND_SIZE: Final = 1.5
#: Highest probability of a level at a tick; queues would otherwise be unbounded.
MOST_OCCUPIED: Final = 0.85
#: Levels a side that the venue shows at most.
SHOWN_LEVELS: Final = 200
#: Arrivals follow the efficient price's latest moves: the share that does, and the half-life (s).
MOVE_SHARE: Final = 0.6
MOVE_HALF_LIFE_S: Final = 0.5

# Streams of random numbers; 0 is `arrivals.CANDIDATE_STREAM`, publication has those above.
REQUEST_STREAM: Final = 1
TAKER_STREAM: Final = 2
MAKER_STREAM: Final = 3
QUOTE_STREAM: Final = 4
LANDING_STREAM: Final = 5

_QUANTILES: Final = 4096
#: Standard normal quantiles at the middles of equal probabilities.
NORMAL: Final = np.array([NormalDist().inv_cdf((n + 0.5) / _QUANTILES) for n in range(_QUANTILES)])

Records = npt.NDArray[Any]

#: Scalars of the background's state.
HEAD: Final = np.dtype(
    [
        ("requests", "i8"),  # arrived so far
        ("maker_steps", "i8"),
        ("next_ns", "i8"),  # time of the next request
        ("next_kind", "i8"),  # its kind, -1 while it is not drawn
        ("drawn_ns", "i8"),  # arrivals are drawn up to here
        ("rpi_lots", "i8"),  # a pending print against hidden retail liquidity, and its side
        ("rpi_side", "i8"),
        ("maker_price", "f8"),  # the price that makers see, ticks
        ("maker_noise", "f8"),  # its error (log price)
        ("expected_sign", "f8"),  # of a taker that works no metaorder
        ("freshness", "f8"),  # of the last quote: one at first, then decaying
    ]
)
METAORDER: Final = np.dtype([("side", "i8"), ("orders_left", "i8")])


class BackgroundParameters(NamedTuple):
    """Scalars of the flow: the profile in ticks, lots and maker steps."""

    tick: float  #: quote currency
    hold: float  #: gap at which a new quote within 100 ms is certain (log price)
    restless: float  #: hazard of a new quote without a gap, per 100 ms
    unsettled: float  #: additional hazard just after a new quote
    calming: float  #: share of that left at the next maker step
    landing: float  #: error of a new quote (log price)
    wide: float  #: probability that a new quote leaves a spread of several ticks
    close: float  #: probability per maker step that an open spread is closed
    sweep: float  #: probability that a taker meets the touch that is about to retreat
    refill: float  #: share of the ticks passed over that are filled at once
    rpi: float  #: share of takers that meet hidden retail liquidity
    touch_lots: float  #: mean quantity at the touch
    touch_orders: float  #: mean number of orders there
    touch_log_sd: float  #: of a fresh touch
    level_log: float  #: median of an order behind the touch, log lots
    level_log_sd: float
    dust: float  #: share of orders behind the touch that are dust
    dust_log: float  #: median of dust, log lots
    occupancy: float  #: share of ticks behind the touch that have a level
    reach: int  #: ticks behind the touch that are populated
    churn_reach: float  #: ticks behind the touch within which orders are placed and cancelled
    order_lots: float  #: mean quantity of a taker order
    bound_ticks: int  #: how far beyond the touch a taker goes
    imbalance_sd: float  #: of the touch, by the score
    touch_gap: float  #: of the touch, by the gap
    flow_sd: float  #: of the expected sign, by the score
    flow_gap: float  #: of the expected sign, by the gap
    split: float  #: share of takers that work metaorders
    delay: float  #: of the price that makers see, in steps of 100 ms
    noise_sd: float  #: of the price that makers see (log price)
    noise_keep: float  #: share of that noise left at the next maker step
    impact: float  #: log price, of a taker order of mean quantity


class LatentPath(NamedTuple):
    """The latent day, shape (FRAMES + 1,), entry j at j · 0.1 s after midnight."""

    log_price: Floats
    score: Floats
    depth: Floats  #: multiplier of quantities at the touch
    activity: Floats  #: multiplier of spontaneous arrivals
    volatility: Floats


class BackgroundState(NamedTuple):
    """State of the background flow."""

    key: npt.NDArray[np.uint64]  #: (2,) of the day's randomness
    hawkes: HawkesState
    head: Records  #: (1,) `HEAD`
    targets: Floats  #: (2,) lots wanted at the touch: bid, ask
    impact: Floats  #: (len(IMPACT_DECAY_S),) log price
    metaorders: Records  #: (METAORDERS,) `METAORDER`
    populated: Integers  #: (2,) last populated key of each side
    draws: Floats  #: (2, 4) scratch for uniforms: of a request or maker step, of a quote


def new_background(key: npt.NDArray[np.uint64]) -> BackgroundState:
    """The flow before its day; the first maker step fills the book."""
    head = np.zeros(1, HEAD)
    head["next_kind"] = -1
    return BackgroundState(
        key,
        new_hawkes(key),
        head,
        np.zeros(2),
        np.zeros(len(IMPACT_DECAY_S)),
        np.zeros(METAORDERS, METAORDER),
        np.full(2, -bk.NO_KEY, np.int64),
        np.zeros((2, 4)),
    )


# -- from a profile --------------------------------------------------------------------------------


def background_parameters(
    profile: Profile, listing: Listing, instrument: Instrument
) -> BackgroundParameters:
    """The profile in the units of the flow."""
    lot, tick = instrument.lot_size, instrument.tick_size
    shown_ticks = SHOWN_LEVELS / listing.occupancy
    step_s = MAKER_STEP_NS * 1e-9
    return BackgroundParameters(
        tick=tick,
        hold=profile.hold_bps * 1e-4,
        restless=profile.restless,
        unsettled=profile.unsettled,
        calming=0.5 ** (step_s / profile.settle_s),
        landing=profile.maker_noise_bps * 1e-4,
        wide=profile.wide,
        close=profile.close,
        sweep=profile.sweep,
        refill=profile.refill,
        rpi=profile.rpi,
        touch_lots=listing.touch_qty / lot,
        touch_orders=profile.touch_orders,
        touch_log_sd=profile.touch_log_sd,
        level_log=math.log(listing.level_qty / lot),
        level_log_sd=listing.level_log_sd,
        dust=profile.dust,
        dust_log=math.log(listing.dust_lots),
        occupancy=min(listing.occupancy, MOST_OCCUPIED),
        reach=200 + round(1.5 * shown_ticks),
        churn_reach=1.1 * shown_ticks,
        order_lots=listing.order_qty / lot,
        bound_ticks=round(profile.bound_bps * 1e-4 * listing.price / tick),
        imbalance_sd=profile.imbalance_sd,
        touch_gap=profile.touch_gap,
        flow_sd=profile.flow_sd,
        flow_gap=profile.flow_gap,
        split=profile.split,
        delay=profile.delay_ms * 1e6 / STEP_NS,
        noise_sd=profile.maker_noise_bps * 1e-4,
        noise_keep=0.5 ** (step_s / profile.maker_noise_half_life_s),
        impact=profile.impact_bps * 1e-4,
    )


def arrival_law(profile: Profile, listing: Listing) -> HawkesLaw:
    """The Hawkes process of a profile: its mean rates per second and its branching ratio."""
    # Half of the changes behind the touch place an order and half cancel one; a cancel that meets an
    # empty tick does nothing, so there are more of them.
    placed = 0.5 * profile.churn * SECOND_NS / STEP_NS
    rates = np.zeros(len(RequestKind))
    rates[RequestKind.TAKE] = listing.orders_per_s
    rates[RequestKind.JOIN] = profile.joins_per_s
    rates[RequestKind.LEAVE] = profile.leaves_per_s
    rates[RequestKind.PLACE] = placed
    rates[RequestKind.WITHDRAW] = placed / min(listing.occupancy, MOST_OCCUPIED)
    rates[RequestKind.IMPROVE] = profile.improves_per_s
    return hawkes_law(rates, profile.branching)


def latent_path(hidden: Drivers, listing: Listing) -> LatentPath:
    """The parts of a latent day that the flow follows."""
    activity = hidden.intensity * hidden.volatility * _move_multiplier(hidden, listing.sigma_bps)
    return LatentPath(hidden.log_price, hidden.score, hidden.depth, activity, hidden.volatility)


def _move_multiplier(hidden: Drivers, sigma_bps: float) -> Floats:
    """Multiplier of arrivals, mean one, by the efficient price's latest moves relative to volatility."""
    sd = sigma_bps * 1e-4 * math.sqrt(STEP_S) * np.maximum(hidden.volatility, 1e-3)
    moved = np.abs(np.diff(hidden.log_price, prepend=hidden.log_price[0])) / sd
    # The mean of |z| is √(2/π); a jump counts as ten times that at most.
    excess = np.minimum(moved * math.sqrt(math.pi / 2), 10.0)
    return np.asarray(1 - MOVE_SHARE + MOVE_SHARE * _smoothed(excess, MOVE_HALF_LIFE_S))


@compiled
def _smoothed(values: Floats, half_life_s: float) -> Floats:
    """Exponential mean of a path over the past, starting at one."""
    keep = 0.5 ** (STEP_S / half_life_s)
    out, mean = np.empty(len(values)), 1.0
    for j in range(len(values)):
        mean = keep * mean + (1 - keep) * values[j]
        out[j] = mean
    return out


# -- what makers and flow share --------------------------------------------------------------------


@kernel
def normal(uniform: float) -> float:
    """The standard normal quantile of a uniform, from a table."""
    return float(NORMAL[int(uniform * _QUANTILES)])


@kernel
def level_lots(law: BackgroundParameters, uniform: float, ticks: int) -> int:
    """Lots of an order behind the touch."""
    if uniform < law.dust:
        return max(1, round(math.exp(law.dust_log + DUST_LOG_SD * normal(uniform / law.dust))))
    rest = (uniform - law.dust) / (1 - law.dust)
    lots = math.exp(law.level_log + law.level_log_sd * normal(rest))
    return max(1, int(lots * (ROUND_SIZE if ticks % ROUND == 0 else 1.0)))


@kernel
def occupancy(law: BackgroundParameters, ticks: int) -> float:
    """Probability that a tick behind the touch has a level."""
    round_price = ticks % ROUND == 0
    return min(MOST_OCCUPIED, law.occupancy * (ROUND_OCCUPANCY if round_price else 1.0))
