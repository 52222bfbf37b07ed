"""Which algorithm works a parent, by what each should cost from here on.

At its first sound view the router asks of every option what it should cost all in, and works the
parent by the cheapest (by `urgency` standard deviations of the price, also by the safest):

    market     now: spread, the visible book and fees
    passive    a queue at the touch until the deadline: it fills with the probability of the fill
               model, for the maker fee and the adverse drift of its fills; what is left crosses then
    patient    the same from behind the touch at first, where there is time for it
    twap       in slices, where a passive parent would leave more to cross at once than the book takes

`Queued` puts size against the queue, the market's outflow and its volatility; the spread and the depth
enter through the cost of taking. A funding settlement before the deadline makes windows of time, before
it and after it, and what a position would be paid or charged there counts with the costs.

A parent may be dealt out to several books of the same thing (`split`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final

import msgspec

from execution.algorithms.placement import MarketOrder, PassivePeg
from execution.algorithms.schedules import Twap
from execution.algorithms.working import Parent, Working
from execution.hazard import FillModel, Queued
from execution.liquidity import Costs, Estimate, Monitor, estimate_taker, impact_bps, sweep_bps
from execution.orders import Action, Event
from execution.venue import View
from market.units import BPS, SECOND_NS

#: What a router can pick.
_PICKS: Final[dict[str, type[Working]]] = {
    "market": MarketOrder,
    "passive": PassivePeg,
    "twap": Twap,
}
#: Following the touch for minutes takes more moves than a passive parent of seconds is given.
_PEG: Final[dict[str, Any]] = {"max_moves": 1_000}
#: A slice of a twap is taken by the market in this share of cases when the book is calm.
_TWAP_TAKEN: Final = 0.1
_SLICES: Final = 10


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What was fitted on recordings and seeds that nothing is reported on; see docs/execution.md."""

    #: Adverse drift of fills at the touch: in any market (bps), and in units of one second's volatility.
    adverse_bps: float = 0.30
    adverse: float = 0.28
    #: How far behind the touch a patient parent stands at first, in the same unit, and for which share
    #: of its time it is patient.
    behind: float = 1.1
    patience: float = 0.25
    #: Adverse drift of patient fills, as a share of that of fills at the touch.
    patient_adverse: float = 0.55
    #: Patience needs this long, or a parent that is larger than this share of the own touch.
    patient_s: float = 120.0
    patient_share: float = 0.5


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """One way to work a parent: who, how, between when, and what it should cost."""

    name: str
    algorithm: str
    parameters: dict[str, Any]
    begin_ns: int
    deadline_ns: int
    estimate: Estimate
    #: Expected funding paid (positive) by what is filled before the settlement, bps.
    funding_bps: float = 0.0

    def cost_bps(self, urgency: float) -> float:
        """What counts: the expected cost, and ``urgency`` times its standard deviation."""
        return self.estimate.total_bps + self.funding_bps + urgency * self.estimate.risk_bps


@cache
def _model() -> FillModel:
    return FillModel.load()


class Router(Working):
    """Picks and parametrises an algorithm, and works the parent by it.

    ``urgency`` is the weight of the cost's standard deviation beside its mean. ``funding_ns`` and
    ``funding_bps`` are the next settlement and the rate that a long position is expected to pay
    there. Nothing is picked before the first sound view.
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
        #: What was picked, None before.
        self.option: Option | None = None

    def estimate(self, view: View) -> Estimate | None:
        """What the option that would be picked now should cost; None without a sound view."""
        return None if view.stale else self._pick(view.now_ns, view).estimate

    def options(self, now_ns: int, view: View) -> list[Option]:
        """Every way to work what is left, with its expected cost; the view is sound."""
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
        """Options between two times; what fills before ``stamp_ns`` pays or is paid funding there."""
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

        found = [option("market", "market", taker, 1.0)]
        if span_s <= 0:
            return found
        before = 0.0
        if stamp_ns is not None:
            before = 1.0 if stamp_ns == deadline_ns else self._filled(view, stamp_ns - now_ns)
        passive = self._resting(view, taker, lots, span_s, 1.0)
        found.append(option("passive", "passive", passive, before, **_PEG))
        if span_s >= policy.patient_s or lots > policy.patient_share * own:
            patient = self._resting(
                view, taker, lots, span_s * (1 - policy.patience / 2), policy.patient_adverse
            )
            given = {
                "behind_bps": policy.behind * self.monitor.sigma_bps,
                "patience": policy.patience,
            }
            found.append(option("patient", "passive", patient, before, **_PEG, **given))
        # Slices are sure to leave some to cross, so they are worth a look where a queue leaves more.
        if _share_taken(passive, costs) > _TWAP_TAKEN:
            sliced = self._sliced(view, taker, lots, span_s)
            found.append(option("twap", "twap", sliced, before, slices=_SLICES))
        return found

    def _filled(self, view: View, span_ns: int, lots: int = 0) -> float:
        """Share of ``lots`` (of the parent) that should fill in the touch's queue within a time."""
        # The mean share that fills is about what half of the quantity has to wait for.
        half = max(1, (lots or self.parent.qty_lots) // 2)
        state = Queued.of(self.monitor, view, self.parent.side, half)
        return _model().pegged_fill_probability(state, span_ns / SECOND_NS)

    def _resting(
        self, view: View, taker: Estimate, lots: int, span_s: float, adverse: float
    ) -> Estimate:
        """A queue at the touch for ``span_s``, and what is left across the spread."""
        side, costs, monitor = self.parent.side, self._costs, self.monitor
        filled = self._filled(view, round(span_s * SECOND_NS), lots)
        left = 1 - filled
        drift = side * (view.signal_bps or 0.0)
        sigma = monitor.sigma_bps
        return Estimate(
            spread_bps=taker.spread_bps * (left - filled),
            impact_bps=left * _taking(monitor, view, side, lots * left, costs),
            timing_bps=self._adverse_bps * adverse * filled + drift * left,
            fees_bps=costs.maker_bps * filled + costs.taker_bps * left,
            risk_bps=sigma * math.sqrt(span_s * max(left, 0.05)),
        )

    @property
    def _adverse_bps(self) -> float:
        """Adverse drift that a fill at the touch comes with."""
        return self._policy.adverse_bps + self._policy.adverse * self.monitor.sigma_bps

    def _sliced(self, view: View, taker: Estimate, lots: int, span_s: float) -> Estimate:
        """Slices that rest one after the other, each with its part of the time."""
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

    # -- the work is another's ---------------------------------------------------------------------

    def abandon(self) -> None:
        super().abandon()
        if self._inner is not None:
            self._inner.abandon()

    def step(self, now_ns: int, view: View, events: Sequence[Event]) -> Sequence[Action]:
        if self._inner is None and not self._begin(now_ns, view):
            return super().step(now_ns, view, events)
        inner = self._inner
        assert inner is not None
        actions = inner.step(now_ns, view, events)
        self.filled_lots, self.arrival_ns = inner.filled_lots, inner.arrival_ns
        self._ended = inner._ended
        return actions

    def _decide(self, now_ns: int, view: View) -> Iterator[Action]:
        """Nothing, before something is picked."""
        yield from ()

    def _begin(self, now_ns: int, view: View) -> bool:
        """Pick, and begin where the time has come; whether the work has begun."""
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
        self._inner, self.children, self._unsettled = inner, inner.children, inner._unsettled
        return True


def _taking(monitor: Monitor, view: View, side: int, lots: float, costs: Costs) -> float:
    """Cost beyond half the spread of taking so much at once, bps."""
    whole = max(1, round(lots))
    levels = view.asks if side > 0 else view.bids
    half = (view.asks[0][0] - view.bids[0][0]) / 2 / view.mid_ticks * BPS
    swept = sweep_bps(levels, view.mid_ticks, whole)
    if swept is None:
        swept = half + impact_bps(monitor, view, whole, costs.impact)
    return max(0.0, swept - half)


def _share_taken(found: Estimate, costs: Costs) -> float:
    """The share that crosses, by the fees that are expected."""
    span = costs.taker_bps - costs.maker_bps
    return min(1.0, max(0.0, (found.fees_bps - costs.maker_bps) / span)) if span > 0 else 0.0


# -- several books ---------------------------------------------------------------------------------


class Market(msgspec.Struct, frozen=True, kw_only=True):
    """A book in which a parent may trade: what is seen of it, and what it charges."""

    view: View
    monitor: Monitor
    costs: Costs


def split(parent: Parent, books: Mapping[str, Market], parts: int = 20) -> dict[str, Parent]:
    """Sub-parents by book: each part of the parent goes where it adds least to the expected cost.

    Costs grow with the quantity in a book, so parts given one after the other to the cheapest make the
    marginal costs of all books equal, to a part. Books that are stale get nothing; quantities add up
    to the parent's. ValueError when no book is sound.
    """
    sound = {name: book for name, book in books.items() if not book.view.stale}
    if not sound:
        raise ValueError(f"parent {parent.id}: none of {len(books)} books is sound")
    given = dict.fromkeys(sound, 0)
    spent = dict.fromkeys(sound, 0.0)
    left = parent.qty_lots
    while left > 0:
        part = min(left, max(1, parent.qty_lots // parts))
        totals = {name: _value(parent, book, given[name] + part) for name, book in sound.items()}
        name = min(sound, key=lambda each: totals[each] - spent[each])
        given[name] += part
        spent[name] = totals[name]
        left -= part
    return {
        name: msgspec.structs.replace(
            parent,
            id=f"{parent.id}@{name}",
            symbol=sound[name].view.symbol,
            qty_lots=lots,
        )
        for name, lots in given.items()
        if lots
    }


def _value(parent: Parent, book: Market, lots: int) -> float:
    """Expected cost of so many lots in a book, bps × lots."""
    part = msgspec.structs.replace(parent, qty_lots=lots)
    router = Router(part, costs=book.costs)
    router.inform(book.monitor)
    expected = router.estimate(book.view)
    assert expected is not None
    return expected.total_bps * lots
