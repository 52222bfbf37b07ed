"""The order router: picks the algorithm that works a parent, by expected cost from here on.

At its first sound view the router estimates every option all in, and works the parent by the
cheapest (``urgency`` weighs the standard deviation of the cost beside its mean):

    market     now: spread, the visible book and fees
    passive    a queue at the touch until the deadline: it fills with the probability of the fill
               model, for the maker fee and the adverse selection of its fills; the remainder crosses
    patient    the same from behind the touch at first, where there is time for it
    twap       in slices, where a passive parent would leave more to cross at once than the book takes

`hazard.Queued` puts size against the queue, the market's outflow and its volatility; spread and depth
enter through the cost of taking. A funding settlement before the deadline makes windows of time, before
it and after it, and the expected funding payment counts with the costs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Final

import msgspec

from execution.algorithms.placement import MarketOrder, PassivePeg
from execution.algorithms.schedules import Twap
from execution.algorithms.working import Parent, Working
from execution.hazard import FillModel, Queued
from execution.liquidity import Costs, Estimate, Monitor, estimate_taker, impact_bps, sweep_bps
from execution.order_machine import Order
from execution.orders import Action
from execution.venue import View
from market.units import SECOND_NS

#: Algorithms that a router can pick.
_PICKS: Final[dict[str, type[Working]]] = {
    "market": MarketOrder,
    "passive": PassivePeg,
    "twap": Twap,
}
#: Pegging to the touch for minutes takes more moves than the default for seconds.
_PEG: Final[dict[str, Any]] = {"max_moves": 1_000}
#: A slice of a twap is taken by the market in this share of cases when the book is calm.
_TWAP_TAKEN: Final = 0.1
_SLICES: Final = 10


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
    patient_adverse: float = 0.55
    #: Patience needs this long, or a parent that is larger than this share of the own touch.
    patient_s: float = 120.0
    patient_share: float = 0.5


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """One way to work a parent: algorithm, parameters, window of time and expected cost."""

    name: str
    algorithm: str
    parameters: dict[str, Any]
    begin_ns: int
    deadline_ns: int
    estimate: Estimate
    #: Expected funding payment (positive = paid) on the quantity filled before the settlement, bps.
    funding_bps: float = 0.0

    def cost_bps(self, urgency: float) -> float:
        """The router's objective: expected cost plus ``urgency`` times its standard deviation."""
        return self.estimate.total_bps + self.funding_bps + urgency * self.estimate.risk_bps


@cache
def _model() -> FillModel:
    return FillModel.load()


class Router(Working):
    """Picks and parametrises an algorithm, and works the parent by it.

    ``urgency`` is the weight of the cost's standard deviation beside its mean. ``funding_ns`` and
    ``funding_bps`` are the next funding settlement and the rate that a long position is expected to
    pay there. Nothing is picked before the first sound view.
    """

    def __init__(
        self,
        parent: Parent,
        *,
        costs: Costs | None = None,
        policy: Policy | None = None,
        urgency: float = 0.0,
        funding_ns: int | None = None,
        funding_bps: float = 0.0,
    ) -> None:
        super().__init__(parent)
        self._costs, self._policy = costs or Costs(), policy or Policy()
        self._urgency = urgency
        self._funding_ns, self._funding_bps = funding_ns, funding_bps
        self._inner: Working | None = None
        #: The option that was picked, None before.
        self.option: Option | None = None

    def estimate(self, view: View) -> Estimate | None:
        """Expected cost of the option that would be picked now; None without a sound view."""
        return None if view.stale else self._pick(view.now_ns, view).estimate

    def options(self, now_ns: int, view: View) -> list[Option]:
        """Every option from now on, with its expected cost; the view is sound (not stale)."""
        stamp, deadline = self._funding_ns, self.parent.deadline_ns
        if stamp is None or not now_ns < stamp < deadline:
            return self._within(now_ns, now_ns, deadline, view)
        return [
            *self._within(now_ns, now_ns, deadline, view, stamp),
            *self._within(now_ns, now_ns, stamp, view, stamp),
            *self._within(now_ns, stamp, deadline, view),
        ]

    def _within(
        self, now_ns: int, begin_ns: int, deadline_ns: int, view: View, stamp_ns: int | None = None
    ) -> list[Option]:
        """Options between two times; fills before a settlement at ``stamp_ns`` pay or earn funding."""
        parent, costs, policy = self.parent, self._costs, self._policy
        side, lots = parent.side, parent.qty_lots
        span_s = (deadline_ns - begin_ns) / SECOND_NS
        own = (view.bids if side > 0 else view.asks)[0][1]
        taker = estimate_taker(self.monitor, view, side, lots, costs)
        wait_s = (begin_ns - now_ns) / SECOND_NS
        risk = self.monitor.sigma_bps * math.sqrt(wait_s)
        if wait_s:
            taker = msgspec.structs.replace(taker, risk_bps=risk)

        paid_bps = side * self._funding_bps if stamp_ns is not None else 0.0

        def option(
            name: str,
            algorithm: str,
            expected: Estimate,
            before: float,
            **parameters: Any,
        ) -> Option:
            return Option(
                name=name,
                algorithm=algorithm,
                parameters=parameters,
                begin_ns=begin_ns,
                deadline_ns=deadline_ns,
                estimate=expected,
                funding_bps=paid_bps * before,
            )

        options = [option("market", "market", taker, 1.0)]
        if span_s <= 0:
            return options
        before = 0.0
        if stamp_ns is not None:
            before = 1.0 if stamp_ns == deadline_ns else self._filled(view, stamp_ns - now_ns)
        passive = self._resting(view, taker, lots, span_s, 1.0)
        options.append(option("passive", "passive", passive, before, **_PEG))
        if span_s >= policy.patient_s or lots > policy.patient_share * own:
            patient = self._resting(
                view, taker, lots, span_s * (1 - policy.patience / 2), policy.patient_adverse
            )
            patience = {
                "behind_bps": policy.behind * self.monitor.sigma_bps,
                "patience": policy.patience,
            }
            options.append(option("patient", "passive", patient, before, **_PEG, **patience))
        # Slices always leave some to cross: an option only where a passive parent would leave more.
        if _share_taken(passive, costs) > _TWAP_TAKEN:
            sliced = self._sliced(view, taker, lots, span_s)
            options.append(option("twap", "twap", sliced, before, slices=_SLICES))
        return options

    def _filled(self, view: View, span_ns: int, lots: int = 0) -> float:
        """Expected filled share of ``lots`` (default: the parent) in the touch's queue within a time."""
        # The mean filled share is about the fill probability of half of the quantity.
        half = max(1, (lots or self.parent.qty_lots) // 2)
        state = Queued.of(self.monitor, view, self.parent.side, half)
        return _model().pegged_fill_probability(state, span_ns / SECOND_NS)

    def _resting(
        self, view: View, taker: Estimate, lots: int, span_s: float, adverse: float
    ) -> Estimate:
        """Rest at the touch for ``span_s``, then cross with the remainder."""
        side, costs, monitor = self.parent.side, self._costs, self.monitor
        filled = self._filled(view, round(span_s * SECOND_NS), lots)
        rest = 1 - filled
        drift = side * (view.signal_bps or 0.0)
        sigma = monitor.sigma_bps
        return Estimate(
            spread_bps=taker.spread_bps * (rest - filled),
            impact_bps=rest * _taking(monitor, view, side, lots * rest, costs),
            timing_bps=self._adverse_bps * adverse * filled + drift * rest,
            fees_bps=costs.maker_bps * filled + costs.taker_bps * rest,
            risk_bps=sigma * math.sqrt(span_s * max(rest, 0.05)),
        )

    @property
    def _adverse_bps(self) -> float:
        """Adverse selection: the drift against us that comes with a fill at the touch."""
        return self._policy.adverse_bps + self._policy.adverse * self.monitor.sigma_bps

    def _sliced(self, view: View, taker: Estimate, lots: int, span_s: float) -> Estimate:
        """TWAP: slices that rest one after the other, each for its part of the time."""
        part = max(1, lots // _SLICES)
        one = self._resting(view, taker, part, span_s / _SLICES, 1.0)
        taken = max(_TWAP_TAKEN, _share_taken(one, self._costs))
        risk = self.monitor.sigma_bps * math.sqrt(span_s / 3)
        return Estimate(
            spread_bps=taker.spread_bps * (2 * taken - 1),
            impact_bps=taken
            * max(
                _taking(self.monitor, view, self.parent.side, part * taken, self._costs),
                impact_bps(self.monitor, view, max(1, round(lots * taken)), self._costs.impact),
            ),
            timing_bps=one.timing_bps,
            fees_bps=self._costs.maker_bps * (1 - taken) + self._costs.taker_bps * taken,
            risk_bps=risk,
        )

    def _pick(self, now_ns: int, view: View) -> Option:
        return min(self.options(now_ns, view), key=lambda each: each.cost_bps(self._urgency))

    # -- the picked algorithm does the work --------------------------------------------------------

    def abandon(self) -> None:
        super().abandon()
        if self._inner is not None:
            self._inner.abandon()

    def step(self, now_ns: int, view: View, changed: Sequence[Order]) -> Sequence[Action]:
        if self._inner is None and not self._begin(now_ns, view):
            return super().step(now_ns, view, changed)
        inner = self._inner
        assert inner is not None
        actions = inner.step(now_ns, view, changed)
        self.filled_lots, self.arrival_ns = inner.filled_lots, inner.arrival_ns
        self._ended = inner._ended
        return actions

    def _decide(self, now_ns: int, view: View) -> Iterator[Action]:
        """Nothing, before something is picked."""
        yield from ()

    def _begin(self, now_ns: int, view: View) -> bool:
        """Pick, and start the picked algorithm once its window opens; whether it has started."""
        if view.stale or self._ended:
            return False
        if self.option is None:
            self.option = self._pick(now_ns, view)
            self.picked = self.option.name
        if now_ns < self.option.begin_ns:
            return False
        parent = msgspec.structs.replace(self.parent, deadline_ns=self.option.deadline_ns)
        inner = _PICKS[self.option.algorithm](parent, **self.option.parameters)
        inner.inform(self.monitor)
        inner.band_bps = self.band_bps
        inner.orders, inner.children, inner._pending = self.orders, self.children, self._pending
        inner._asked, self._inner = self._asked, inner
        return True


def _taking(monitor: Monitor, view: View, side: int, lots: float, costs: Costs) -> float:
    """Impact of taking ``lots`` at once, beyond half the spread, bps."""
    whole = max(1, round(lots))
    levels = view.levels(-side)
    half = view.half_spread_bps
    swept = sweep_bps(levels, view.mid_ticks, whole)
    if swept is None:
        swept = half + impact_bps(monitor, view, whole, costs.impact)
    return max(0.0, swept - half)


def _share_taken(expected: Estimate, costs: Costs) -> float:
    """The share that crosses, by the expected fees."""
    span = costs.taker_bps - costs.maker_bps
    return min(1.0, max(0.0, (expected.fees_bps - costs.maker_bps) / span)) if span > 0 else 0.0
