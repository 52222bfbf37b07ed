"""A day of the execution study: the same parent orders, from the same instants, under every algorithm.

One market of the day, the control, runs without our orders. At every instant of a grid each algorithm
works a buy and a sell in a branch of that market (`proving.study.branch`); the control runs on, so that
own market impact and the cost of an oracle are measured against it. Sizes and deadlines rotate from
instant to instant, so that each meets every hour of a day.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from execution.account import rate_of_bps, unit_e8
from execution.algorithms import start
from execution.algorithms.working import Parent, Working
from execution.estimates import Decay, Prospect
from execution.liquidity import Costs, Monitor, depth_lots
from execution.study import Task, drive
from execution.tca import MARKOUTS_S, Mids, Row, shortfall
from execution.venue import View
from market.book import NO_LEVEL
from market.settings import FEE_ROWS_BPS, Settings
from market.units import BPS, E8, SECOND_NS, day_start_ns
from proving.study.venue import EngineVenue
from proving.synthetic.profiles import profile

#: The date that is generated from every seed.
DAY: Final = "2026-03-01"
#: Warm-up of the market and of the monitor before the first instant (s).
FIRST_S: Final = 600
#: Interval between steps of an algorithm when nothing happens; most of the running time is waiting.
TIMER_NS: Final = 250_000_000
#: The monitor observes the market every second for so long before an instant (s).
WATCH_S: Final = 180
#: Depth is counted within so much of the mid (bps).
DEPTH_BPS: Final = 3.0
#: Name of the oracle in the rows: it knows every future trade.
ORACLE: Final = "oracle"

_MARKOUT_NS: Final = MARKOUTS_S[-1] * SECOND_NS


class Contender(msgspec.Struct, frozen=True):
    """An algorithm under study: its name in the rows, parameters other than the default, and urgency."""

    name: str
    algorithm: str
    parameters: dict[str, Any] = {}
    urgency: float | None = None


class Size(msgspec.Struct, frozen=True):
    """A parent's size: USDT, or a share of what is displayed within `DEPTH_BPS` of the mid."""

    name: str
    usdt: float = 0.0
    share: float = 0.0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The design of the study of a day."""

    contenders: tuple[Contender, ...]
    sizes: tuple[Size, ...] = (
        Size("10k", usdt=10_000.0),
        Size("50k", usdt=50_000.0),
        Size("25 % of depth", share=0.25),
    )
    deadlines_s: tuple[int, ...] = (60, 300)
    every_s: int = 900
    hours: float = 24.0
    profile: str = "default"

    def turn(self, number: int) -> tuple[Size, int]:
        """Size and deadline of the instant of that number, in rotation."""
        cells = [(size, span) for span in self.deadlines_s for size in self.sizes]
        return cells[number % len(cells)]


class ParentOutcome(Row, frozen=True, kw_only=True):
    """The outcome of one parent. Costs as in `tca.Shortfall`; NaN where undefined."""

    seed: int
    symbol: str
    decision_ns: int
    side: int
    size: str
    deadline_s: int
    algorithm: str
    #: The algorithm that worked it: the same, or the one a router picked.
    picked: str
    qty_lots: int
    filled_lots: int
    size_usdt: float
    total_bps: float
    delay_bps: float
    spread_bps: float
    impact_bps: float
    timing_bps: float
    opportunity_bps: float
    fees_bps: float
    maker_share: float
    time_to_fill_s: float
    markout_1s_bps: float
    markout_5s_bps: float
    markout_30s_bps: float
    markout_60s_bps: float
    #: Pre-trade estimate; NaN without one.
    estimate_bps: float
    #: The market at the decision: spread, volatility (per √s), depth within `DEPTH_BPS`, mean of sides.
    market_spread_bps: float
    sigma_bps: float
    depth_lots: int
    #: Mean time of a decision, wall clock.
    decision_us: float


class _WorkedParent(msgspec.Struct):
    """A parent that has been worked, waiting for the control to be measured against."""

    contender: Contender
    parent: Parent
    task: Task
    mids: Mids
    estimate_bps: float
    decision_us: float


def run_day(
    plan: Plan,
    seed: int,
    symbol: str,
    settings: Settings,
    say: Callable[[str], None] = lambda text: None,
) -> list[ParentOutcome]:
    """Outcomes of every parent of a day under every contender, and of the oracle."""
    control, branch = _venue(plan, seed, symbol, settings), _venue(plan, seed, symbol, settings)
    midnight_ns = day_start_ns(DAY)
    span_ns = max(plan.deadlines_s) * SECOND_NS + Working.grace_ns + _MARKOUT_NS + 2 * SECOND_NS
    if plan.every_s * SECOND_NS < span_ns:
        raise ValueError(
            f"an instant every {plan.every_s} s: each needs the {span_ns // SECOND_NS} s after it"
        )
    end_ns = midnight_ns + round(plan.hours * 3600) * SECOND_NS - span_ns
    outcomes: list[ParentOutcome] = []
    # Each seed begins its turns elsewhere.
    number, now_ns = seed, midnight_ns + FIRST_S * SECOND_NS
    while now_ns <= end_ns:
        monitor = _monitored(control, now_ns)
        view = control.view(symbol)
        if not view.stale:
            size, deadline_s = plan.turn(number)
            worked = [
                _work(plan, contender, side, size, deadline_s, control, branch, monitor, settings)
                for contender in plan.contenders
                for side in (1, -1)
            ]
            outcomes += _judge(
                plan, seed, size, deadline_s, worked, control, monitor, view, settings
            )
        number += 1
        now_ns += plan.every_s * SECOND_NS
        say(f"{symbol} seed {seed}: {(now_ns - midnight_ns) / 36e11:.1f} h")
    return outcomes


def _venue(plan: Plan, seed: int, symbol: str, settings: Settings) -> EngineVenue:
    taker_bps, maker_bps = FEE_ROWS_BPS[settings.model.fee_row]
    return EngineVenue(
        profile(plan.profile),
        seed,
        symbol,
        DAY,
        entry_ns=round(settings.execution.entry_latency_ms * 1e6),
        response_ns=round(settings.execution.response_latency_ms * 1e6),
        taker_fee=rate_of_bps(taker_bps),
        maker_fee=rate_of_bps(maker_bps),
        stale_after_ns=round(settings.market.stale_after_s * 1e9),
    )


def _monitored(control: EngineVenue, until_ns: int) -> Monitor:
    """Advance the control, observed once a second as by a worker that does not trade."""
    monitor = Monitor()
    control.advance(until_ns - WATCH_S * SECOND_NS)
    while control.now_ns < until_ns:
        control.advance(min(until_ns, (control.now_ns // SECOND_NS + 1) * SECOND_NS))
        monitor.see(control.view(control.instrument.symbol))
    return monitor


def _depth(venue: EngineVenue, mid_ticks: float) -> int:
    """Lots within `DEPTH_BPS` of the mid, mean of both sides."""
    local = venue.market.local
    both = (depth_lots(levels, mid_ticks, DEPTH_BPS) for levels in (local.bids(), local.asks()))
    return sum(both) // 2


def _work(
    plan: Plan,
    contender: Contender,
    side: int,
    size: Size,
    deadline_s: int,
    control: EngineVenue,
    branch: EngineVenue,
    monitor: Monitor,
    settings: Settings,
) -> _WorkedParent:
    """Work one parent under one contender, in a branch from the present on."""
    branch.take_over(control)
    symbol, now_ns = control.instrument.symbol, control.now_ns
    view = branch.view(symbol)
    mid = view.mid_ticks
    worth = unit_e8(control.instrument) * mid / E8
    lots = round(size.usdt / worth) if size.usdt else round(size.share * _depth(control, mid))
    parent = Parent(
        id=f"{symbol}/{now_ns}/{side}/{contender.name}",
        symbol=symbol,
        side=side,
        qty_lots=max(1, lots),
        decision_ns=now_ns,
        deadline_ns=now_ns + deadline_s * SECOND_NS,
        decision_mid_ticks=mid,
    )
    costs = Costs(source="synthetic")
    router = {"costs": costs} if contender.algorithm == "router" else {}
    working = start(contender.algorithm, parent, **(router | contender.parameters))
    working.inform(copy.deepcopy(monitor))
    working.own_in_tape = True
    view = msgspec.structs.replace(view, urgency=contender.urgency)
    name = contender.algorithm
    seen = Prospect(monitor, view, side, parent.qty_lots, costs, Decay())
    _, estimate = working.estimate(view) or (name, seen.estimate(name, deadline_s))
    task = _TimedTask(parent, working, contender.urgency)
    drive(branch, [task], parent.deadline_ns + Working.grace_ns + SECOND_NS, TIMER_NS)
    if task.end_ns is None:
        raise RuntimeError(f"parent {parent.id} never ended: {working.orders.by_id}")
    last_ns = max((fill.venue_ns for fill in task.fills), default=task.end_ns)
    branch.advance(max(task.end_ns, last_ns + _MARKOUT_NS))
    return _WorkedParent(
        contender,
        parent,
        task,
        _mids(branch, now_ns, mid),
        estimate.total_bps,
        task.spent_s / max(1, task.steps) * 1e6,
    )


class _TimedTask(Task):
    """A task of constant urgency that measures the time of its decisions."""

    def __init__(self, parent: Parent, working: Working, urgency: float | None) -> None:
        super().__init__(parent, working)
        self.spent_s, self.steps, self._urgency = 0.0, 0, urgency

    def step(self, view: View) -> Sequence[Any]:
        begun = time.perf_counter()
        actions = super().step(msgspec.structs.replace(view, urgency=self._urgency))
        self.spent_s += time.perf_counter() - begun
        self.steps += 1
        return actions


def _mids(venue: EngineVenue, since_ns: int, mid_ticks: float) -> Mids:
    """The local mids since an instant at which the mid was ``mid_ticks``."""
    times, ticks = venue.market.mids()
    kept = times > since_ns
    return Mids([since_ns, *times[kept].tolist()], [mid_ticks, *ticks[kept].tolist()], venue.now_ns)


def _judge(
    plan: Plan,
    seed: int,
    size: Size,
    deadline_s: int,
    worked: Sequence[_WorkedParent],
    control: EngineVenue,
    monitor: Monitor,
    view: View,
    settings: Settings,
) -> list[ParentOutcome]:
    """Advance the control past the parents' markouts, and measure their costs against it."""
    now_ns, instrument = control.now_ns, control.instrument
    sigma_bps, depth = monitor.sigma_bps, _depth(control, view.mid_ticks)
    spread_bps = (view.asks[0][0] - view.bids[0][0]) / view.mid_ticks * BPS
    control.market.mids()
    control.market.watch()
    control.advance(now_ns + deadline_s * SECOND_NS)
    extremes = {
        1: int(control.market.picture["lowest"]),
        -1: int(control.market.picture["highest"]),
    }
    last_ns = max(each.mids.until_ns for each in worked)
    control.advance(last_ns)
    mids = _mids(control, now_ns, view.mid_ticks)
    shared: dict[str, Any] = {
        "seed": seed,
        "symbol": instrument.symbol,
        "decision_ns": now_ns,
        "size": size.name,
        "deadline_s": deadline_s,
        "market_spread_bps": spread_bps,
        "sigma_bps": sigma_bps,
        "depth_lots": depth,
    }
    outcomes = []
    for each in worked:
        cost = shortfall(
            each.parent,
            each.task.fills,
            each.mids,
            instrument,
            algorithm=each.contender.name,
            venue="engine",
            arrival_ns=each.task.working.arrival_ns,
            end_ns=each.task.end_ns or now_ns,
            control=mids,
        )
        measured = {name: getattr(cost, name) for name in _SHORTFALL_FIELDS}
        outcomes.append(
            ParentOutcome(
                **shared,
                **measured,
                algorithm=each.contender.name,
                picked=each.task.working.picked or each.contender.algorithm,
                estimate_bps=each.estimate_bps,
                decision_us=each.decision_us,
            )
        )
    return outcomes + [
        _oracle(shared, each, extremes[each.parent.side], settings)
        for each in worked
        if each.contender is plan.contenders[0]
    ]


#: Fields that an outcome takes from a shortfall.
_SHORTFALL_FIELDS: Final = tuple(
    name
    for name in ParentOutcome.__struct_fields__
    if (name.endswith("_bps") and name not in ("estimate_bps", "market_spread_bps", "sigma_bps"))
    or name in ("side", "qty_lots", "filled_lots", "size_usdt", "maker_share", "time_to_fill_s")
)


def _oracle(
    shared: Mapping[str, Any], each: _WorkedParent, extreme_ticks: int, settings: Settings
) -> ParentOutcome:
    """A maker's fill at the best price of any trade against its side before the deadline.

    It has no queue and no market impact; NaN where nothing traded.
    """
    parent = each.parent
    decided, traded = parent.decision_mid_ticks, abs(extreme_ticks) != -NO_LEVEL
    moved = parent.side * (extreme_ticks - decided) / decided * BPS if traded else math.nan
    fees = FEE_ROWS_BPS[settings.model.fee_row][1]
    unknown = {n: math.nan for n in ParentOutcome.__struct_fields__ if n.endswith(("_bps", "_s"))}
    given = {
        "side": parent.side,
        "algorithm": ORACLE,
        "picked": ORACLE,
        "qty_lots": parent.qty_lots,
        "filled_lots": parent.qty_lots,
        "size_usdt": math.nan,
        "total_bps": moved + fees,
        "timing_bps": moved,
        "fees_bps": fees,
        "maker_share": 1.0,
        "decision_us": math.nan,
    }
    return ParentOutcome(**(unknown | dict(shared) | given))
