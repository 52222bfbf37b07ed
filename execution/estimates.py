"""What a parent should cost under each way of working it, before it starts.

Fills come from the fill model (`hazard`): size against the queue, the market's outflow and its
volatility. Spread and depth enter through the cost of taking, the signal through what has come of it
by the time at which the unfilled part crosses.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Final

import msgspec

from execution.hazard import FillModel, Queued
from execution.liquidity import Costs, Estimate, Monitor, estimate_taker, impact_bps, sweep_bps
from execution.venue import View

#: Slices of a twap.
SLICES: Final = 10
#: Algorithms that follow a schedule.
SCHEDULED: Final = frozenset({"twap", "vwap", "pov", "almgren_chriss"})


class Decay(msgspec.Struct, frozen=True, kw_only=True):
    """How soon the return that a signal foresees over ``horizon_s`` comes: with a half-life.

    0 counts all of it at once, infinity evenly over the horizon.
    """

    half_life_s: float = 0.0
    horizon_s: float = 60.0

    def ratio(self, seconds: float) -> float:
        """Return after a time over that after the horizon: (1 - 2^(-t/H)) / (1 - 2^(-h/H))."""
        if seconds <= 0 or self.half_life_s == 0:
            return float(seconds > 0)
        if math.isinf(self.half_life_s):
            return seconds / self.horizon_s
        rate = math.log(2) / self.half_life_s
        return math.expm1(-rate * seconds) / math.expm1(-rate * self.horizon_s)

    def share(self, seconds: float) -> float:
        """The same, at most 1: what the signal foresees beyond its horizon is not known."""
        return min(1.0, self.ratio(seconds))


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of the estimates; see docs/execution.md.

    Honest when fitted on recordings and seeds that no result is reported on.
    """

    #: Adverse selection of fills at the touch: constant (bps), and in units of one second's volatility.
    adverse_bps: float = 0.30
    adverse: float = 0.28
    #: Initial distance of a patient parent behind the touch, in the same unit, and the share of its time
    #: in which it moves up to the touch.
    behind: float = 1.1
    patience: float = 0.25
    #: Adverse selection of patient fills, as a share of that of fills at the touch.
    patient_adverse: float = 0.78
    #: Patience needs this long, or a parent that is larger than this share of the own touch.
    patient_s: float = 120.0
    patient_share: float = 0.5
    #: A pegged order fills so many times as fast as the fill model says, which lets the price run away by
    #: its ``away_bps`` first; algorithms follow every tick.
    pegged: float = 1.75

    def adverse_at(self, monitor: Monitor) -> float:
        """Adverse selection: the drift against us that comes with a fill at the touch, bps."""
        return self.adverse_bps + self.adverse * monitor.sigma_bps


POLICY: Final = Policy()


@cache
def fill_model(source: str) -> FillModel:
    """The fill model of estimates in markets of a source, read once."""
    return FillModel.load(source=source)


def queued(monitor: Monitor, view: View, side: int, lots: int) -> Queued:
    """A parent of ``lots`` at the end of the touch's queue.

    Its mean filled share is about the fill probability of half of the quantity.
    """
    return Queued.of(monitor, view, side, max(1, lots // 2))


def resting(
    monitor: Monitor,
    view: View,
    side: int,
    lots: int,
    span_s: float,
    costs: Costs,
    decay: Decay,
    policy: Policy = POLICY,
    adverse: float = 1.0,
) -> Estimate:
    """Rest at the touch for ``span_s``, then cross with the remainder; ``adverse`` is the share of the
    touch's adverse selection that its fills have."""
    half, sigma = view.half_spread_bps, monitor.sigma_bps
    order, model = queued(monitor, view, side, lots), fill_model(costs.source)
    filled = model.pegged_fill_probability(order, span_s * policy.pegged)
    rest = 1 - filled
    # A fill means that the market came to us: only the unfilled part bears the drift.
    drift = side * (view.signal_bps or 0.0) * decay.share(span_s)
    return Estimate(
        spread_bps=half * (rest - filled),
        impact_bps=rest * _taking(monitor, view, side, lots * rest, costs),
        timing_bps=policy.adverse_at(monitor) * adverse * filled + drift * rest,
        fees_bps=costs.maker_bps * filled + costs.taker_bps * rest,
        risk_bps=sigma * math.sqrt(span_s * max(rest, 0.05)),
    )


def sliced(
    monitor: Monitor,
    view: View,
    side: int,
    lots: int,
    span_s: float,
    costs: Costs,
    decay: Decay,
    policy: Policy = POLICY,
) -> Estimate:
    """Slices that rest one after the other, each for its part of the time, and then cross."""
    part = max(1, lots // SLICES)
    one = resting(monitor, view, side, part, span_s / SLICES, costs, decay, policy)
    taken = share_taken(one, costs)
    return Estimate(
        spread_bps=view.half_spread_bps * (2 * taken - 1),
        impact_bps=taken
        * max(
            _taking(monitor, view, side, part * taken, costs),
            impact_bps(monitor, view, max(1, round(lots * taken)), costs.impact),
        ),
        timing_bps=one.timing_bps,
        fees_bps=costs.maker_bps * (1 - taken) + costs.taker_bps * taken,
        risk_bps=monitor.sigma_bps * math.sqrt(span_s / 3),
    )


def _taking(monitor: Monitor, view: View, side: int, lots: float, costs: Costs) -> float:
    """Impact of taking ``lots`` at once, beyond half the spread, bps."""
    whole = max(1, round(lots))
    half = view.half_spread_bps
    swept = sweep_bps(view.reached(-side, whole), view.mid_ticks, whole)
    if swept is None:
        swept = half + impact_bps(monitor, view, whole, costs.impact)
    return max(0.0, swept - half)


def share_taken(expected: Estimate, costs: Costs) -> float:
    """The share that crosses, by the expected fees."""
    span = costs.taker_bps - costs.maker_bps
    return min(1.0, max(0.0, (expected.fees_bps - costs.maker_bps) / span)) if span > 0 else 0.0


def estimate(
    algorithm: str,
    monitor: Monitor,
    view: View,
    side: int,
    lots: int,
    span_s: float,
    costs: Costs,
    decay: Decay,
    policy: Policy = POLICY,
) -> Estimate:
    """Expected cost of a parent under an algorithm of that name, ``span_s`` before its deadline.

    A market order takes, a schedule rests in slices, every other rests at the touch and then crosses;
    urgency shortens the time of all of them.
    """
    span_s *= 1 - (view.urgency or 0.0)
    if algorithm == "market" or span_s <= 0:
        return estimate_taker(monitor, view, side, lots, costs)
    works = sliced if algorithm in SCHEDULED else resting
    return works(monitor, view, side, lots, span_s, costs, decay, policy)
