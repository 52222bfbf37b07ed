"""The order router: picks the algorithm that works a parent, by expected cost from here on.

At its first sound view the router estimates every option all in (`execution.estimates`), and works the
parent by the cheapest:

    market     now: spread, the visible book and fees
    passive    a queue at the touch: it fills with the probability of the fill model, for the maker fee
               and the adverse selection of its fills; the remainder crosses
    patient    the same from behind the touch at first, where there is time for it
    twap       in slices, where a passive parent would leave more to cross at once than the book takes

Urgency (`execution.urgency`) decides whether it crosses, and its time: at 1 there is nothing but the
market, below 1 only how to wait is chosen, within the time that is left. Where it is not judged, the
market is one option of four.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from execution.algorithms.placement import MarketOrder, PassivePeg
from execution.algorithms.schedules import Twap
from execution.algorithms.working import Parent, Working
from execution.estimates import POLICY, SLICES, Decay, Policy, Prospect, share_taken
from execution.liquidity import Costs, Estimate
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
#: Slices are an option where a passive parent would leave more than this share to cross.
_LEFT: Final = 0.1
#: Pegging to the touch for minutes takes more moves than the default for seconds.
_PEG: Final[dict[str, Any]] = {"max_moves": 1_000}


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """One way to work a parent: algorithm, parameters and expected cost."""

    name: str
    algorithm: str
    estimate: Estimate
    parameters: dict[str, Any] = {}


class Router(Working):
    """Picks and parametrises an algorithm, and works the parent by it.

    ``decay`` says how soon the view's signal comes. Nothing is picked before the first sound view.
    """

    def __init__(
        self,
        parent: Parent,
        *,
        costs: Costs | None = None,
        decay: Decay | None = None,
        policy: Policy = POLICY,
    ) -> None:
        super().__init__(parent)
        self._costs, self._decay, self._policy = costs or Costs(), decay or Decay(), policy
        self._inner: Working | None = None

    def estimate(self, view: View) -> tuple[str, Estimate] | None:
        """The option that would be picked now and its expected cost; None without a sound view."""
        if view.stale:
            return None
        picked = self._pick(view.now_ns, view)
        return picked.name, picked.estimate

    def options(self, now_ns: int, view: View) -> list[Option]:
        """Every option from now on, with its expected cost; the view is sound (not stale)."""
        parent, costs, policy = self.parent, self._costs, self._policy
        side, lots = parent.side, parent.qty_lots
        self._hurry(view)
        span_s = (self.until_ns - now_ns) / SECOND_NS
        seen = Prospect(self.monitor, view, side, lots, costs, self._decay, policy)
        market = Option(name="market", algorithm="market", estimate=seen.taken())
        if span_s <= 0:
            return [market]
        passive = seen.resting(span_s)
        options = [Option(name="passive", algorithm="passive", estimate=passive, parameters=_PEG)]
        if view.urgency is None:
            options.insert(0, market)
        own = (view.bids if side > 0 else view.asks)[0][1]
        behind_bps = policy.behind * self.monitor.sigma_bps
        if behind_bps and (span_s >= policy.patient_s or lots > policy.patient_share * own):
            joined_s = span_s * (1 - policy.patience / 2)
            patient = seen.resting(joined_s, policy.patient_adverse)
            patience = {"behind_bps": behind_bps, "patience": policy.patience}
            options.append(
                Option(
                    name="patient",
                    algorithm="passive",
                    estimate=patient,
                    parameters=_PEG | patience,
                )
            )
        if share_taken(passive, costs) > _LEFT:
            whole_s = (parent.deadline_ns - parent.decision_ns) / SECOND_NS
            slices = seen.sliced(span_s, whole_s / SLICES)
            options.append(
                Option(
                    name="twap", algorithm="twap", estimate=slices, parameters={"slices": SLICES}
                )
            )
        return options

    def _pick(self, now_ns: int, view: View) -> Option:
        return min(self.options(now_ns, view), key=lambda each: each.estimate.total_bps)

    @property
    def due_lots(self) -> int:
        return super().due_lots if self._inner is None else self._inner.due_lots

    # -- the picked algorithm does the work --------------------------------------------------------

    def abandon(self) -> None:
        super().abandon()
        if self._inner is not None:
            self._inner.abandon()

    def step(self, now_ns: int, view: View, changed: Sequence[Order]) -> Sequence[Action]:
        if self._inner is None:
            if view.stale or self._ended:
                return super().step(now_ns, view, changed)
            self._inner = self._begin(now_ns, view)
        inner = self._inner
        actions = inner.step(now_ns, view, changed)
        self.filled_lots, self.arrival_ns = inner.filled_lots, inner.arrival_ns
        self._ended = inner._ended
        return actions

    def _decide(self, now_ns: int, view: View) -> Iterator[Action]:
        """Nothing, before something is picked."""
        yield from ()

    def _begin(self, now_ns: int, view: View) -> Working:
        """Pick and start an algorithm, which shares the orders of the router."""
        option = self._pick(now_ns, view)
        self.picked = option.name
        inner = _PICKS[option.algorithm](self.parent, **option.parameters)
        inner.inform(self.monitor)
        inner.band_bps = self.band_bps
        inner.orders, inner.children, inner._pending = self.orders, self.children, self._pending
        inner._asked = self._asked
        return inner
