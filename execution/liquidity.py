"""Liquidity: depth, order flow and volatility as seen, and what taking costs.

A `Monitor` follows one symbol through its views and measures what no single view shows: the rate at
which the touch is traded away, the usual spread, the volatility of the mid. `execution.estimates` turns that into the expected cost of a parent.

Rates are exponential averages over ``memory_s`` seconds of the view's own time, started by priors
that count as ``PRIOR_S`` seconds of observation.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Final

import msgspec

from execution.venue import View
from market.units import BPS, SECOND_NS

#: Priors weigh as much as this many seconds of observation.
PRIOR_S: Final = 10.0
#: Coefficient Y of the square-root law; between 0.5 and 1 for bitcoin (Donier and Bonart 2015).
IMPACT: Final = 0.75

Levels = Sequence[tuple[int, int]]


def depth_lots(levels: Levels, mid_ticks: float, within_bps: float) -> int:
    """Depth: quantity of the levels no further than ``within_bps`` from the mid."""
    reach = mid_ticks * within_bps / BPS
    return sum(lots for ticks, lots in levels if abs(ticks - mid_ticks) <= reach)


def sweep_bps(levels: Levels, mid_ticks: float, lots: int) -> float | None:
    """Cost against the mid of taking ``lots`` at once, in bps; None beyond the last level.

    ``levels`` are those of the side that is taken from, from the touch outwards.
    """
    remaining_lots, paid = lots, 0.0
    for ticks, displayed in levels:
        taken = min(remaining_lots, displayed)
        paid += taken * abs(ticks - mid_ticks)
        remaining_lots -= taken
        if remaining_lots == 0:
            return paid / lots / mid_ticks * BPS
    return None


class SpreadRegime(StrEnum):
    """The spread against one tick and against its own average."""

    ONE_TICK = "one_tick"
    USUAL = "usual"
    WIDE = "wide"


class Monitor:
    """Measures one symbol's liquidity from its views; every figure is of the past only.

    ``memory_s`` is the time constant of the averages, ``sigma_bps`` the prior of the volatility.
    """

    def __init__(self, *, memory_s: float = 60.0, sigma_bps: float = 1.0) -> None:
        self._memory_s = memory_s
        self._now_ns: int | None = None
        self._mid = math.nan
        self._traded = (0, 0)
        self._seconds = 0.0  #: discounted time observed
        self._variance = sigma_bps**2 * PRIOR_S
        self._spread = 0.0
        self._outflow = [0.0, 0.0]  #: discounted lots taken from the bid, from the ask

    def copy(self) -> Monitor:
        """One that goes its own way from here."""
        other = copy.copy(self)
        other._outflow = list(self._outflow)
        return other

    def see(self, view: View) -> None:
        """Take in a view; views that are stale or not newer are ignored."""
        if view.stale:
            self._now_ns = None
            return
        mid, traded = view.mid_ticks, (view.sold_lots, view.bought_lots)
        if self._now_ns is not None and view.now_ns > self._now_ns:
            dt = (view.now_ns - self._now_ns) / SECOND_NS
            keep = math.exp(-dt / self._memory_s)
            self._seconds = self._seconds * keep + dt
            move = math.log(mid / self._mid) * BPS
            self._variance = self._variance * keep + move * move
            spread = (view.asks[0][0] - view.bids[0][0]) / mid * BPS
            self._spread = self._spread * keep + spread * dt
            for k in (0, 1):
                self._outflow[k] = self._outflow[k] * keep + traded[k] - self._traded[k]
        self._now_ns, self._mid, self._traded = view.now_ns, mid, traded

    @property
    def sigma_bps(self) -> float:
        """Volatility of the mid, bps per square root of a second."""
        return math.sqrt(self._variance / (self._seconds + PRIOR_S))

    def outflow_lots_s(self, side: int, view: View) -> float:
        """Lots a second that takers take from the own side's touch of a parent of ``side``.

        The prior: the quantity displayed there now, in `PRIOR_S` seconds.
        """
        k = 0 if side > 0 else 1
        displayed = (view.bids, view.asks)[k][0][1] if not view.stale else 0
        return (self._outflow[k] + displayed) / (self._seconds + PRIOR_S)

    def volume_lots_s(self, view: View) -> float:
        """Lots a second that trade on both sides."""
        return self.outflow_lots_s(1, view) + self.outflow_lots_s(-1, view)

    def regime(self, view: View) -> SpreadRegime:
        """Spread regime: the spread against a tick and against 1.5 times its average."""
        ticks = view.asks[0][0] - view.bids[0][0]
        if ticks <= 1:
            return SpreadRegime.ONE_TICK
        usual = self._spread / self._seconds if self._seconds > 0 else math.inf
        wide = ticks / view.mid_ticks * BPS > 1.5 * usual
        return SpreadRegime.WIDE if wide else SpreadRegime.USUAL


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """Expected cost of a parent (bps of the decision price, positive = paid).

    ``timing_bps`` is the adverse drift that passive fills come with. No parts of the total: ``risk_bps``, the
    standard deviation of the outcome, and ``bias_bps``, that of what the estimate itself is off by.
    """

    spread_bps: float
    impact_bps: float
    timing_bps: float
    fees_bps: float
    risk_bps: float
    bias_bps: float = 0.0

    @property
    def total_bps(self) -> float:
        """Expected cost, all in."""
        return self.spread_bps + self.impact_bps + self.timing_bps + self.fees_bps


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of an estimate beyond the market: fees, and coefficients fitted on recorded parents.

    Fees are honest when they are the account's own fee row, fills when the fill model was fitted on such
    markets: ``source`` is `Settings.source`.
    """

    taker_bps: float = 5.5
    maker_bps: float = 2.0
    impact: float = IMPACT
    source: str = "recorded"


def impact_bps(monitor: Monitor, view: View, lots: int, coefficient: float = IMPACT) -> float:
    """Market impact of ``lots``: the square-root law, Y σ √(Q / V) · 2/3.

    σ and V are of the same time unit, which cancels. 2/3 because a fill pays the path's mean and
    not its peak: the mean of √q over q up to Q is 2/3 of its end.
    """
    ratio = lots / monitor.volume_lots_s(view)
    return coefficient * monitor.sigma_bps * math.sqrt(ratio) * 2 / 3


class Propagator(msgspec.Struct, frozen=True, kw_only=True):
    """A transient propagator (Bouchaud et al. 2004) of a market of this volatility and volume.

    Taking q lots moves the mid by Y σ √(q / V), which then decays as G(τ) = (1 + τ/``scale_s``)^-``decay``.
    """

    sigma_bps: float
    volume_s: float
    coefficient: float = IMPACT
    decay: float = 0.25
    scale_s: float = 1.0

    def own_bps(self, lots: float) -> float:
        """How far taking ``lots`` moves the mid at once."""
        return self.coefficient * self.sigma_bps * math.sqrt(lots / self.volume_s)

    def left_bps(self, slices: Sequence[tuple[float, float]], at: float) -> float:
        """Impact that earlier ``slices``, (time s, lots), still have at a time."""
        return math.fsum(
            self.own_bps(lots) * (1 + (at - then) / self.scale_s) ** -self.decay
            for then, lots in slices
        )


def estimate_taker(monitor: Monitor, view: View, side: int, lots: int, costs: Costs) -> Estimate:
    """Cost of a market order: the visible book, and the square-root law beyond it."""
    levels = view.reached(-side, lots)
    half = view.half_spread_bps
    swept = sweep_bps(levels, view.mid_ticks, lots)
    if swept is None:
        reach = abs(levels[-1][0] - view.mid_ticks) / view.mid_ticks * BPS
        swept = max(reach, half + impact_bps(monitor, view, lots, costs.impact))
    return Estimate(
        spread_bps=half,
        impact_bps=max(0.0, swept - half),
        timing_bps=0.0,
        fees_bps=costs.taker_bps,
        risk_bps=0.0,
    )
