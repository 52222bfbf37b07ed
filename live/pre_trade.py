"""What a parent should cost before it starts, and how urgent it is: signal, market and funding put together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from execution.algorithms import start
from execution.algorithms.working import Parent, Working
from execution.estimates import Decay, Learnt, Prospect, group_of
from execution.liquidity import Costs, Estimate, Monitor, depth_lots
from execution.order_machine import Orders
from execution.tca import Circumstances, ParentRow, Shortfall
from execution.tca.rows import notional_usdt
from execution.urgency import half_life_s, urgency
from execution.venue import View
from live.funding import predicted
from live.symbol_state import SymbolState
from market.settings import Settings
from market.units import SECOND_NS
from models_registry.manifest import Bundle

#: Recorded depth is the quantity within this many bps of the mid.
DEPTH_BPS: Final = 3.0


class PreTrade:
    """Makes parents and their algorithms, and says what they should cost.

    ``decay`` says how soon the signal comes, and is the model's; ``monitors`` are the desk's. ``learnt`` has
    what parents cost beyond their estimates, by symbol and group. ``own_in_tape``: our fills are among the trades.
    """

    def __init__(
        self,
        settings: Settings,
        symbols: Mapping[str, SymbolState],
        monitors: Mapping[str, Monitor],
        orders: Orders,
        costs: Costs,
        own_in_tape: bool = False,
    ) -> None:
        self.decay = Decay(horizon_s=float(settings.model.primary_s))
        self.learnt = Learnt()
        self._settings, self._switches = settings.execution, settings.desk
        self._band_bps = settings.risk.price_band_bps
        self._symbols, self._monitors = symbols, monitors
        self._orders, self._costs, self._own_in_tape = orders, costs, own_in_tape

    def parent(self, lots: int, view: View, number: int = 0, position_lots: int = 0) -> Parent:
        """A parent that is decided now for ``lots``, which are signed."""
        now_ns = view.now_ns
        return Parent(
            id=f"{view.symbol}-{now_ns // SECOND_NS}-{number}",
            symbol=view.symbol,
            side=1 if lots > 0 else -1,
            qty_lots=abs(lots),
            decision_ns=now_ns,
            deadline_ns=now_ns + round(self._settings.deadline_s * 1e9),
            decision_mid_ticks=view.mid_ticks,
            reduce_only=position_lots * lots < 0 and abs(lots) <= abs(position_lots),
        )

    def started(self, algorithm: str, parent: Parent, **parameters: Any) -> Working:
        """Its algorithm, which knows the market so far."""
        router: dict[str, Any] = {"costs": self._costs, "decay": self.decay}
        given = (router if algorithm == "router" else {}) | parameters
        working = start(algorithm, parent, self._orders, self._band_bps, **given)
        working.inform(self._monitors[parent.symbol].copy())
        working.own_in_tape = self._own_in_tape
        return working

    def judged(
        self, parent: Parent, view: View, expected_bps: float | None, filled_lots: int = 0
    ) -> View:
        """The view with the signal, and with the urgency of what is left of a parent."""
        view = msgspec.structs.replace(view, signal_bps=expected_bps)
        if view.stale or not self._switches.urgency:
            return view
        fields = self._symbols[parent.symbol].ticker.fields
        urgent = urgency(
            self._monitors[parent.symbol],
            view,
            parent.side,
            parent.qty_lots - filled_lots,
            (parent.deadline_ns - view.now_ns) / SECOND_NS,
            self._costs,
            self.decay,
            predicted(fields, view.now_ns) if self._switches.funding else None,
            parent.reduce_only,
        )
        return msgspec.structs.replace(view, urgency=urgent)

    def estimate(self, working: Working, algorithm: str, view: View) -> Estimate:
        """Expected cost of a parent that has not started; the view is judged and sound."""
        parent = working.parent
        if (found := working.estimate(view)) is None:
            monitor, span_s = self._monitors[view.symbol], parent.deadline_ns - parent.decision_ns
            seen = Prospect(monitor, view, parent.side, parent.qty_lots, self._costs, self.decay)
            found = algorithm, seen.estimate(algorithm, span_s / SECOND_NS)
        key = f"{view.symbol} {group_of(found[0], view.urgency)}"
        return self.learnt.corrected(key, found[1])

    def measured(self, row: ParentRow, cost: Shortfall, missed_bps: float) -> float:
        """A parent cost so much more than was expected; returned without what an account's fees exceed those of
        the model's fee row, which is no error of an estimate. One that was given up early teaches nothing, and
        it and one without a fill are no evidence: NaN."""
        if cost.filled_lots:
            share, costs = cost.maker_share, self._costs
            assumed_bps = share * costs.maker_bps + (1 - share) * costs.taker_bps
            missed_bps -= cost.fees_bps - assumed_bps * cost.fill_rate
        if cost.fill_rate < 1 and cost.end_ns < row.deadline_ns:
            return math.nan
        group = group_of(cost.picked or cost.algorithm, row.urgency)
        self.learnt.learn(f"{row.symbol} {group}", missed_bps)
        return missed_bps if cost.filled_lots else math.nan

    def circumstances(self, working: Working, algorithm: str, view: View) -> Circumstances:
        """The market at a parent's start, and its pre-trade cost estimate."""
        monitor, taken = self._monitors[view.symbol], view.levels(-working.parent.side)
        return Circumstances(
            spread_regime=str(monitor.regime(view)),
            sigma_bps=monitor.sigma_bps,
            volume_lots_s=monitor.volume_lots_s(view),
            depth_lots=float(depth_lots(taken, view.mid_ticks, DEPTH_BPS)),
            signal_bps=math.nan if view.signal_bps is None else view.signal_bps,
            signal_s=math.nan if view.signal_bps is None else self.decay.horizon_s,
            urgency=math.nan if view.urgency is None else view.urgency,
            estimate=self.estimate(working, algorithm, view),
        )

    def round_trip_bps(
        self, symbol: str, side: int, expected_bps: float | None, now_ns: int, lots: int = 0
    ) -> float | None:
        """What entering ``lots`` (0: the fixed size) now and leaving again should cost; None without a sound
        book.

        Either way is as its algorithm would work it at its urgency; of the exit's signal nothing is known.
        """
        view, algorithm = self._symbols[symbol].view(now_ns), self._settings.algorithm
        if view.stale:
            return None
        if not lots:
            worth = notional_usdt(view.instrument, 1, view.mid_ticks)
            lots = max(1, round(self._settings.capital_usdt * self._settings.size_share / worth))
        cost_bps = 0.0
        for way, signal, held in ((side, expected_bps, 0), (-side, None, side * lots)):
            parent = self.parent(way * lots, view, position_lots=held)
            working = self.started(algorithm, parent)
            seen = self.judged(parent, view, signal)
            cost_bps += self.estimate(working, algorithm, seen).total_bps
        return cost_bps


def decay_of(bundle: Bundle) -> Decay:
    """How soon the model's signal comes, by the slopes that its calibration found.

    A booster's output has a slope on the return over its own horizon and one on that over the primary;
    their ratio, in the same unit, is the share of the signal that has come by the one against the other.
    Weighted by the error of the slope; evenly over the primary horizon where no booster has another.
    """
    recipe, shares = bundle.recipe, []
    for member in recipe.members:
        line, root = member.calibration, math.sqrt(member.horizon_s / recipe.primary_s)
        if member.objective == "return" and line.slope > 0 and member.to_primary > 0:
            share = line.slope * root / member.to_primary
            error = share * max((line.error or 0.0) / line.fitted, 0.01)
            shares.append((float(member.horizon_s), share, error**-2))
    horizon_s = float(recipe.primary_s)
    others = [each for each in shares if each[0] != horizon_s]
    return Decay(half_life_s=half_life_s(others, horizon_s), horizon_s=horizon_s)
