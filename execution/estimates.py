"""What a parent should cost under each way of working it, before it starts.

Fills come from the fill model (`hazard`): size against the queue, the market's outflow and its
volatility. Spread and depth enter through the cost of taking, the signal through what has come of it
by the time at which the unfilled part crosses. What parents cost beyond that is learnt (`Learnt`).
"""

from __future__ import annotations

import math
from functools import cache
from typing import Final, NamedTuple

import msgspec

from execution.hazard import FillModel, Queued
from execution.liquidity import Costs, Estimate, Monitor, estimate_taker, impact_bps, sweep_bps
from execution.venue import View

#: Slices of a twap.
SLICES: Final = 10
#: A schedule without slices takes what has been due for so long.
PATIENCE_S: Final = 10.0
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
    #: The same of an iceberg, whose tips are small.
    iceberg_adverse: float = 0.82
    #: Patience needs this long, or a parent that is larger than this share of the own touch.
    patient_s: float = 120.0
    patient_share: float = 0.5
    #: A pegged order fills so many times as fast as the fill model says, which lets the price run away by
    #: its ``away_bps`` first; algorithms follow every tick.
    pegged: float = 1.75
    #: Standard deviation of the estimate's own bias in another market: a share of adverse selection and
    #: impact, and what the market moves within the latency (bps). How many parents weigh as much as that
    #: prior; more than ``most`` weigh no more, so that what was learnt gives way.
    bias: float = 0.5
    bias_bps: float = 0.02
    bias_parents: int = 40
    most: int = 400

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


class Prospect(NamedTuple):
    """A parent of ``lots`` that has not started, and its market; the view is sound (not stale)."""

    monitor: Monitor
    view: View
    side: int
    lots: int
    costs: Costs
    decay: Decay
    policy: Policy = POLICY

    def resting(self, span_s: float, adverse: float = 1.0) -> Estimate:
        """Rest at the touch for ``span_s``, then cross with the remainder; ``adverse`` is the share of the
        touch's adverse selection that its fills have."""
        monitor, view, side, lots, costs, decay, policy = self
        order, model = queued(monitor, view, side, lots), fill_model(costs.source)
        filled = model.pegged_fill_probability(order, span_s * policy.pegged)
        rest = 1 - filled
        # A fill means that the market came to us: only the unfilled part bears the drift.
        drift = side * (view.signal_bps or 0.0) * decay.share(span_s)
        against = policy.adverse_at(monitor) * adverse * filled
        impact = rest * self._taking(lots * rest)
        return Estimate(
            spread_bps=view.half_spread_bps * (rest - filled),
            impact_bps=impact,
            timing_bps=against + drift * rest,
            fees_bps=costs.maker_bps * filled + costs.taker_bps * rest,
            risk_bps=monitor.sigma_bps * math.sqrt(span_s * max(rest, 0.05)),
            bias_bps=policy.bias_bps + policy.bias * (against + impact),
        )

    def sliced(self, span_s: float, patience_s: float) -> Estimate:
        """Slices that come due one after the other over ``span_s``; each rests for ``patience_s``, or what
        is left of the time, and then crosses."""
        part = max(1, self.lots // SLICES)
        shares: dict[float, float] = {}  # by seconds of rest; the last slices' thirds rest for less
        for last, share in ((2, 0.3), (5.5, 0.4), (9, 0.3)):
            rest_s = min(patience_s, span_s * last / SLICES)
            shares[rest_s] = shares.get(rest_s, 0.0) + share
        one = self._replace(lots=part)
        found = [(share, one.resting(rest_s)) for rest_s, share in shares.items()]
        costs = self.costs
        taken = sum(share * share_taken(each, costs) for share, each in found)
        whole = max(1, round(self.lots * taken))
        impact = taken * max(
            self._taking(part * taken), impact_bps(self.monitor, self.view, whole, costs.impact)
        )
        return Estimate(
            spread_bps=self.view.half_spread_bps * (2 * taken - 1),
            impact_bps=impact,
            timing_bps=sum(share * each.timing_bps for share, each in found),
            fees_bps=costs.maker_bps * (1 - taken) + costs.taker_bps * taken,
            risk_bps=self.monitor.sigma_bps * math.sqrt(span_s / 3),
            bias_bps=sum(share * each.bias_bps for share, each in found),
        )

    def _taking(self, lots: float) -> float:
        """Impact of taking ``lots`` at once, beyond half the spread, bps."""
        view, whole = self.view, max(1, round(lots))
        half = view.half_spread_bps
        swept = sweep_bps(view.reached(-self.side, whole), view.mid_ticks, whole)
        if swept is None:
            swept = half + impact_bps(self.monitor, view, whole, self.costs.impact)
        return max(0.0, swept - half)

    def taken(self) -> Estimate:
        """A market order."""
        found = estimate_taker(self.monitor, self.view, self.side, self.lots, self.costs)
        bias_bps = self.policy.bias_bps + self.policy.bias * found.impact_bps
        return msgspec.structs.replace(found, bias_bps=bias_bps)

    def estimate(self, algorithm: str, whole_s: float) -> Estimate:
        """Expected cost under an algorithm of that name, ``whole_s`` before its deadline.

        A market order takes, a schedule rests in slices, every other rests at the touch and then crosses;
        urgency shortens the time of all of them, but not how long a twap's slice rests.
        """
        span_s = whole_s * (1 - (self.view.urgency or 0.0))
        if algorithm == "market" or span_s <= 0:
            return self.taken()
        if algorithm in SCHEDULED:
            return self.sliced(span_s, whole_s / SLICES if algorithm == "twap" else PATIENCE_S)
        return self.resting(span_s, self.policy.iceberg_adverse if algorithm == "iceberg" else 1.0)


def share_taken(expected: Estimate, costs: Costs) -> float:
    """The share that crosses, by the expected fees."""
    span = costs.taker_bps - costs.maker_bps
    return min(1.0, max(0.0, (expected.fees_bps - costs.maker_bps) / span)) if span > 0 else 0.0


# -- what parents cost beyond their estimates ------------------------------------------------------

#: Urgency in thirds.
URGENCIES: Final = ("low", "middle", "high")
#: One parent's cost teaches no more than this (bps): beyond it is the market, not the estimate.
_MOST_MISSED_BPS: Final = 8.0


def group_of(algorithm: str, urgency: float | None) -> str:
    """The group of a parent whose bias is told: its algorithm and third of urgency."""
    if urgency is None or math.isnan(urgency):
        return algorithm
    return f"{algorithm}, urgency {URGENCIES[min(2, int(3 * urgency))]}"


class Learnt:
    """Realised less expected cost of earlier parents by key, shrunken towards zero.

    With n parents and the prior's weight k the correction is their sum / (n + k), and what is left of the
    estimate's bias √(k / (n + k)) of the prior: the posterior of a normal mean. ``state`` has n and correction.
    """

    def __init__(self, policy: Policy = POLICY) -> None:
        self._policy = policy
        self.state: dict[str, tuple[int, float]] = {}

    def learn(self, key: str, missed_bps: float) -> None:
        """A parent cost so much more than its corrected estimate; NaN teaches nothing."""
        if not math.isnan(missed_bps):
            parents, bias_bps = self.state.get(key, (0, 0.0))
            parents = min(parents + 1, self._policy.most)
            missed_bps = max(-_MOST_MISSED_BPS, min(_MOST_MISSED_BPS, missed_bps))
            bias_bps += missed_bps / (parents + self._policy.bias_parents)
            self.state = self.state | {key: (parents, bias_bps)}

    def corrected(self, key: str, expected: Estimate) -> Estimate:
        """An estimate with what was learnt, as drift."""
        if (found := self.state.get(key)) is None:
            return expected
        weight = self._policy.bias_parents
        return msgspec.structs.replace(
            expected,
            timing_bps=expected.timing_bps + found[1],
            bias_bps=expected.bias_bps * math.sqrt(weight / (found[0] + weight)),
        )
