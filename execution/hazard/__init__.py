"""Fill probability of a resting order: a hazard model with competing risks in discrete time.

A resting order ends in one of two ways: it is *filled*, or the price *runs away* from it (the own
touch has moved `Parameters.away_bps` ahead of the order's price, where an algorithm would follow). A
cancel of ours is neither: it censors the order, of which we only know that nothing had happened yet.

Time since an observation is cut into intervals of growing length. With x the covariates of the order
as it was observed (`Queued.covariates`), interval k of mid-time t_k ends in cause c, given that
neither had happened before, with probability

    h_c(k) = exp(η_c) / (1 + Σ_c' exp(η_c')),   η_c = base_c(k) + x · (level_c + slope_c · ln(1 + t_k))

so that present covariates say more of the next second than of the next minute. Within an interval
both rates are constant; past the last one they stay as they were in it. Fitted in `survival` on the
orders of `placements`; the parameters are in ``parameters.json``, by queue model and by source of the
data (recorded, synthetic: there the queue matters less, because the price moves more).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

import msgspec

from execution.account import unit_e8
from execution.liquidity import Monitor
from execution.venue import View
from market.units import BPS, E8

#: Unit in which notionals of queues enter a logarithm, USDT.
_SCALE_USDT: Final = 1_000.0
#: Upper bound of hazards, so that their logarithm exists.
_MAX_HAZARD: Final = 1 - 1e-12
#: The parameters that come with the code.
PARAMETERS: Final = Path(__file__).with_name("parameters.json")

#: Covariates in their order; `Queued.covariates` gives them.
COVARIATES: Final = (
    "ahead",
    "opposite",
    "imbalance",
    "spread",
    "intensity",
    "volatility",
    "signal",
    "distance",
)


class Queued(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A resting order, or one that might be placed, and its market.

    Values are in USDT at the order's price. ``ahead_usdt`` is the quantity that has to trade before the
    order's last lot fills: the queue ahead of it and the order itself but for one lot. ``signal_bps``
    is signed for the order's side: positive is a price that is expected to run away.
    """

    ahead_usdt: float
    own_usdt: float  #: displayed at the own touch
    opposite_usdt: float  #: displayed at the opposite touch
    spread_ticks: float
    outflow_usdt_s: float  #: traded away from the own touch
    sigma_bps: float  #: of the mid, per square root of a second
    signal_bps: float = 0.0
    distance_bps: float = 0.0  #: of the order behind the own touch

    @classmethod
    def of(
        cls,
        monitor: Monitor,
        view: View,
        side: int,
        lots: int = 1,
        *,
        ahead_lots: float | None = None,
        price_ticks: int | None = None,
    ) -> Queued:
        """An order of ``lots`` that joins the own touch now, or that rests at a queue position.

        ``ahead_lots`` is the queue ahead of it (see `QueueEstimate`), ``price_ticks`` its price. The view
        must be sound (not stale); an order nearer than the touch is taken as at the touch.
        """
        own, other = (view.bids, view.asks)[::side]
        touch, displayed = own[0]
        mid = view.mid_ticks
        price = touch if price_ticks is None else price_ticks
        worth = unit_e8(view.instrument) * price / E8
        ahead = displayed if ahead_lots is None else ahead_lots
        return cls(
            ahead_usdt=(ahead + lots - 1) * worth,
            own_usdt=displayed * worth,
            opposite_usdt=other[0][1] * worth,
            spread_ticks=view.asks[0][0] - view.bids[0][0],
            outflow_usdt_s=monitor.outflow_lots_s(side, view) * worth,
            sigma_bps=monitor.sigma_bps,
            signal_bps=side * (view.signal_bps or 0.0),
            distance_bps=max(0.0, side * (touch - price) / mid * BPS),
        )

    def covariates(self) -> tuple[float, ...]:
        """The covariates of the model, in the order of `COVARIATES`."""
        both = self.own_usdt + self.opposite_usdt
        return (
            math.log1p(self.ahead_usdt / _SCALE_USDT),
            math.log1p(self.opposite_usdt / _SCALE_USDT),
            (self.own_usdt - self.opposite_usdt) / both if both else 0.0,
            math.log(max(1.0, self.spread_ticks)),
            math.log1p(self.outflow_usdt_s / _SCALE_USDT),
            math.log(max(1e-3, self.sigma_bps)),
            self.signal_bps,
            self.distance_bps,
        )

    def at_the_touch(self) -> Queued:
        """The same market, with a lot at the end of the own touch's queue."""
        if self.ahead_usdt == self.own_usdt and self.distance_bps == 0:
            return self
        return msgspec.structs.replace(self, ahead_usdt=self.own_usdt, distance_bps=0.0)


class QueueEstimate:
    """Queue position of a resting order of ours from views alone: an upper bound of the queue ahead.

    Cancels are assumed to come from behind us: only trades at our price move us forward, and the
    quantity displayed there bounds the queue ahead.
    """

    def __init__(self, side: int, price_ticks: int, view: View) -> None:
        self.side, self.price_ticks = side, price_ticks
        self._touched = view.touch(side) == price_ticks
        self._taken = view.sold_lots if side > 0 else view.bought_lots
        self.ahead_lots: float = self._displayed(view) or 0

    def see(self, view: View) -> None:
        """Update from a view; stale ones are ignored."""
        if view.stale:
            return
        taken = view.sold_lots if self.side > 0 else view.bought_lots
        touched = view.touch(self.side) == self.price_ticks
        if touched or self._touched:
            self.ahead_lots = max(0, self.ahead_lots - (taken - self._taken))
        displayed = self._displayed(view)
        if displayed is not None:
            self.ahead_lots = min(self.ahead_lots, displayed)
        self._taken, self._touched = taken, touched

    def _displayed(self, view: View) -> int | None:
        """Lots displayed at our price; None beyond the view's last level."""
        levels = view.bids if self.side > 0 else view.asks
        for ticks, lots in levels:
            if ticks == self.price_ticks:
                return lots
            if self.side * (ticks - self.price_ticks) < 0:
                return 0
        return None


class Cause(msgspec.Struct, frozen=True, kw_only=True):
    """Coefficients of one cause: ``base`` by interval, ``level`` and ``slope`` by covariate."""

    base: tuple[float, ...]
    level: tuple[float, ...]
    slope: tuple[float, ...]


class Causes(msgspec.Struct, frozen=True, kw_only=True):
    """Coefficients of both causes."""

    filled: Cause
    ran_away: Cause


class Fitted(msgspec.Struct, frozen=True, kw_only=True):
    """One fit and its provenance."""

    causes: Causes
    #: Constant rates of both causes on the same observations, 1/s: the baseline of its score.
    rates: tuple[float, float]
    ridge: float
    looks: int
    fitted_on: tuple[str, ...]


class Parameters(msgspec.Struct, frozen=True, kw_only=True):
    """Contents of ``parameters.json``: the fits, their covariates and intervals."""

    #: An order this far behind the own touch counts as one that the price ran away from.
    away_bps: float
    #: Ends of the intervals, seconds since the observation.
    edges_s: tuple[float, ...]
    covariates: tuple[str, ...]
    #: By source of the data (recorded, synthetic), then by queue model: the pessimistic bound and the
    #: optimistic one.
    fits: dict[str, dict[str, Fitted]]

    def __post_init__(self) -> None:
        if self.covariates != COVARIATES:
            raise ValueError(f"covariates {self.covariates}: this code has {COVARIATES}; fit again")


def midtimes_s(edges_s: tuple[float, ...]) -> tuple[float, ...]:
    """Middles of the intervals that end at ``edges_s``, the first of which begins at zero."""
    return tuple((a + b) / 2 for a, b in zip((0.0, *edges_s), edges_s, strict=False))


@cache
def committed() -> Parameters:
    """The parameters that come with the code."""
    return msgspec.json.decode(PARAMETERS.read_bytes(), type=Parameters)


class FillModel:
    """The fitted model under one queue model; plain floats, microseconds a call, and no state.

    Honest for the venue and the queue model that it was fitted on: ``risk_averse`` bounds fills from
    below (pessimistic), ``power3`` is a generous model and no bound.
    """

    def __init__(
        self, parameters: Parameters, queue: str = "risk_averse", source: str = "recorded"
    ) -> None:
        """Raises ValueError for a queue or a source that was not fitted."""
        fits = {(s, q): fit for s, each in parameters.fits.items() for q, fit in each.items()}
        if (source, queue) not in fits:
            known = ", ".join(f"{q} of {s} data" for s, q in fits)
            raise ValueError(
                f"{queue} of {source} data: no fill model is fitted; fitted are {known}"
            )
        causes = fits[source, queue].causes
        self.queue, self.source = queue, source
        self.edges_s = parameters.edges_s
        self.away_bps = parameters.away_bps
        # Per interval: its end, its length, ln(1 + mid-time), both bases.
        self._intervals = tuple(
            (end, end - begin, math.log1p(mid), filled, away)
            for begin, end, mid, filled, away in zip(
                (0.0, *self.edges_s[:-1]),
                self.edges_s,
                midtimes_s(self.edges_s),
                causes.filled.base,
                causes.ran_away.base,
                strict=True,
            )
        )
        # Per covariate: level and slope of both causes.
        self._coefficients = tuple(
            zip(
                causes.filled.level,
                causes.filled.slope,
                causes.ran_away.level,
                causes.ran_away.slope,
                strict=True,
            )
        )

    @classmethod
    def load(cls, queue: str = "risk_averse", source: str = "recorded") -> FillModel:
        """The model that comes with the code, for ``risk_averse`` or ``power3`` and for ``recorded`` or
        ``synthetic`` markets (`Settings.source`)."""
        return cls(committed(), queue, source)

    def fill_probability(self, state: Queued, horizon_s: float) -> float:
        """Probability that the order has filled within ``horizon_s``, before the price ran away."""
        return self._course(self._hazards(state), horizon_s)[0]

    def pegged_fill_probability(self, state: Queued, horizon_s: float) -> float:
        """Probability of a fill within ``horizon_s`` of an order that is pegged to the touch.

        Whenever the price has run away the order joins the end of the touch's queue, in a market that
        is otherwise the same; from then on fills come at one rate, that of `expected_fill_s`.
        """
        rate = 1 / self.expected_fill_s(state.at_the_touch())
        filled, _, _, steps = self._course(self._hazards(state), horizon_s)
        again = math.fsum(away * -math.expm1(-rate * (horizon_s - at)) for at, away in steps)
        return min(1.0, filled + again)

    def expected_fill_s(self, state: Queued) -> float:
        """Expected seconds until a fill, the order being placed again whenever the price has run away:
        the mean length of an attempt over its fill probability. Infinite when it is zero."""
        hazards = self._hazards(state)
        filled, away, spent, _ = self._course(hazards, self.edges_s[-1])
        survival = 1 - filled - away
        # Past the last interval its rates stay.
        _, length, fill, gone = hazards[-1]
        total = fill + gone
        if survival > 0 and total > 0:
            filled += survival * fill / total
            spent += survival * length / -math.log1p(-min(total, _MAX_HAZARD))
        return spent / filled if filled > 0 else math.inf

    def _hazards(self, state: Queued) -> list[tuple[float, float, float, float]]:
        """Per interval: end, length, and the probabilities of both causes."""
        level_f = slope_f = level_a = slope_a = 0.0
        for x, (a, b, c, d) in zip(state.covariates(), self._coefficients, strict=True):
            level_f += a * x
            slope_f += b * x
            level_a += c * x
            slope_a += d * x
        intervals = []
        for end, length, z, base_f, base_a in self._intervals:
            filled = math.exp(min(50.0, base_f + level_f + slope_f * z))
            away = math.exp(min(50.0, base_a + level_a + slope_a * z))
            total = 1.0 + filled + away
            intervals.append((end, length, filled / total, away / total))
        return intervals

    @staticmethod
    def _course(
        hazards: Sequence[tuple[float, float, float, float]], horizon_s: float
    ) -> tuple[float, float, float, list[tuple[float, float]]]:
        """Cumulative incidence of both causes until ``horizon_s``, expected waiting time, and the
        (middle, probability) of running away of every interval."""
        alive, filled, away, spent, now = 1.0, 0.0, 0.0, 0.0, 0.0
        steps: list[tuple[float, float]] = []
        place = 0
        while now < horizon_s:
            _, length, fill, gone = hazards[place]
            total = fill + gone
            taken = min(length, horizon_s - now)
            # Constant rates within an interval: its survival to the power of the part taken.
            if total > 0:
                force = -math.log1p(-min(total, _MAX_HAZARD)) * taken / length
                ended = -math.expm1(-force)
                came = alive * ended / total
                filled += came * fill
                away += came * gone
                steps.append((now + taken / 2, came * gone))
                spent += taken * alive * ended / force
                alive *= 1 - ended
            else:
                spent += taken * alive
            now += taken
            if place < len(hazards) - 1:
                place += 1
            elif taken == length and alive < 1e-9:
                break
        return filled, away, spent, steps
