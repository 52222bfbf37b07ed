"""Execution study: the same parent orders under several algorithms, over the same recorded events.

At every instant of a fixed grid one buy and one sell of each size are decided, so the market's drift
cancels out of their mean. Each algorithm works them in a simulator of its own, once per queue model:
``risk_averse`` is the pessimistic bound of passive fills, ``power3`` a generous model and no bound. Parents
of one side never overlap, so none competes with another for the recorded quantity.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, Protocol

import msgspec
import numpy as np
import pyarrow as pa

from execution.account import rate_of_bps, unit_e8
from execution.algorithms import ALGORITHMS, start
from execution.algorithms.working import Parent, Working
from execution.order_machine import Order
from execution.orders import Action, Event, Filled, Submit
from execution.simulation.simulator import Simulator, clock_shift_ns, latency_of
from execution.tca import (
    TABLES,
    FillRow,
    Interval,
    MarkoutRow,
    MidRecorder,
    OrderRow,
    ParentRow,
    Row,
    Shortfall,
    Summary,
    difference,
    displayed_ahead,
    fill_row,
    markout_rows,
    order_row,
    parent_row,
    shortfall,
    summarise,
    to_table,
)
from execution.venue import Venue, View
from market.console import estimate, fixed, percent, table
from market.errors import UsageError
from market.events import Events
from market.instruments import Instrument
from market.settings import FEE_ROWS_BPS, Settings
from market.units import E8, MS_NS, SECOND_NS

#: How often an algorithm is stepped when nothing happens.
TIMER_NS: Final = 100 * MS_NS


class StudyError(UsageError):
    """The study cannot be made as asked; the message says what to change."""


def known(names: Sequence[str]) -> Sequence[str]:
    """The names of algorithms, unchanged; StudyError for an unknown one."""
    if unknown := [name for name in names if name not in ALGORITHMS]:
        raise StudyError(f"algorithm {unknown[0]!r}: expected some of {', '.join(ALGORITHMS)}")
    return names


class Task:
    """A parent being worked: its algorithm, its orders and their events."""

    def __init__(self, parent: Parent, working: Working) -> None:
        self.parent = parent
        self.working = working
        self.fills: list[Filled] = []
        self.end_ns: int | None = None
        #: Displayed queue ahead of each order when it was sent.
        self.ahead: dict[str, float] = {}
        self._changed: list[Order] = []
        self._stepped_ns = -1

    def receive(self, event: Event) -> None:
        """Take in an event of one of our orders, for the next step."""
        if (order := self.working.orders.apply(event)) is not None:
            self._changed.append(order)
            if isinstance(event, Filled):
                self.fills.append(event)

    def due(self, now_ns: int, timer_ns: int) -> bool:
        """Whether the algorithm is new, has events to react to, or its timer is due."""
        timer = now_ns % timer_ns == 0 and self._stepped_ns < now_ns
        return bool(self._changed) or self._stepped_ns < 0 or timer

    def step(self, view: View) -> Sequence[Action]:
        """Step the algorithm at the view's time; returns the actions to send."""
        now_ns = self._stepped_ns = view.now_ns
        actions = self.working.step(now_ns, view, self._changed)
        self._changed = []
        orders = self.working.orders
        for action in actions:
            if isinstance(action, Submit):
                self.ahead[action.client_id] = displayed_ahead(view, action)
                orders.sent(action, self.parent.id, now_ns)
            else:
                orders.requested(action, now_ns)
        if self.working.done:
            self.end_ns = now_ns
        return actions

    def order_rows(self, venue: str) -> Iterator[OrderRow]:
        """The rows of its orders, as they are now."""
        for order in self.working.orders.by_id.values():
            yield order_row(order, venue)


class Running(Venue, Protocol):
    """A venue with a simulated clock and a picture of its markets."""

    @property
    def now_ns(self) -> int: ...

    def touch(self, symbol: str) -> tuple[int | None, int | None]: ...

    def view(self, symbol: str) -> View: ...

    def advance_to_news(self, until_ns: int) -> int: ...


def drive(venue: Running, tasks: Sequence[Task], until_ns: int, timer_ns: int = TIMER_NS) -> None:
    """Work tasks until ``until_ns`` or until all are done, which leaves the clock at the last end.

    Pass ended tasks too: late events of their orders (the rejection of an amend that a fill overtook,
    for one) are delivered to them.

    An algorithm is stepped when it is new, when an event of its orders reaches us, when the touch of
    its symbol changes, and at multiples of ``timer_ns``: the same instants however calls divide the
    time.
    """
    active = [task for task in tasks if task.end_ns is None]
    owners = {client_id: task for task in tasks for client_id in task.working.orders.by_id}
    touches = {task.parent.symbol: venue.touch(task.parent.symbol) for task in active}
    while active:
        now = venue.now_ns
        for event in venue.poll():
            owners[event.client_id].receive(event)
        for symbol in touches:
            touch = venue.touch(symbol)
            moved, touches[symbol] = touch != touches[symbol], touch
            for task in active:
                if task.parent.symbol == symbol and (moved or task.due(now, timer_ns)):
                    actions = task.step(venue.view(symbol))
                    owners.update((action.client_id, task) for action in actions)
                    venue.send(actions)
        active = [task for task in active if task.end_ns is None]
        if not active or now >= until_ns:
            return
        venue.advance_to_news(min(until_ns, (now // timer_ns + 1) * timer_ns))


class StudyReport(msgspec.Struct, kw_only=True):
    """Cost of the algorithms. ``differences`` are paired with the first algorithm named, by (symbol,
    size, algorithm, queue). ``cut`` parents ran into the end of the record and are left out, finished
    or not; ``skipped`` counts instants with a stale book."""

    rows: list[Shortfall] = msgspec.field(default_factory=list)
    parents: list[ParentRow] = msgspec.field(default_factory=list)
    orders: list[OrderRow] = msgspec.field(default_factory=list)
    fills: list[FillRow] = msgspec.field(default_factory=list)
    markouts: list[MarkoutRow] = msgspec.field(default_factory=list)
    summaries: list[Summary] = msgspec.field(default_factory=list)
    differences: dict[tuple[str, float, str, str], Interval] = msgspec.field(default_factory=dict)
    clock_shift_ns: dict[str, int] = msgspec.field(default_factory=dict)
    cut: int = 0
    skipped: int = 0

    def close(self, baseline: str) -> None:
        """Compute the summaries and the differences from ``baseline``."""
        self.summaries = summarise(self.rows)
        for s in self.summaries:
            if s.side == 0 and s.algorithm != baseline:
                mine = [r for r in self.rows if (r.algorithm, r.venue) == (s.algorithm, s.venue)]
                base = [r for r in self.rows if (r.algorithm, r.venue) == (baseline, s.venue)]
                key = (s.symbol, s.size_usdt)
                self.differences[*key, s.algorithm, s.venue] = difference(
                    (r for r in mine if (r.symbol, r.size_usdt) == key), base
                )

    def tables(self) -> dict[str, pa.Table]:
        """The lake's execution tables: parents, orders, fills, tca, markouts."""
        rows: dict[str, Sequence[Row]] = {
            "parents": self.parents,
            "orders": self.orders,
            "fills": self.fills,
            "tca": self.rows,
            "markouts": self.markouts,
        }
        return {name: to_table(rows[name], kind) for name, kind in TABLES.items()}

    def text(self) -> str:
        """A table for people: cost in bps of the decision price, positive = paid."""
        rows = []
        for s in self.summaries:
            if s.side:
                continue
            paired = self.differences.get((s.symbol, s.size_usdt, s.algorithm, s.venue))
            rows.append(
                (
                    *(s.symbol, fixed(s.size_usdt, 0), s.algorithm, s.venue, s.instants),
                    estimate(s.total_bps, s.low_bps, s.high_bps, fixed),
                    *(fixed(s.spread_bps), fixed(s.timing_bps), fixed(s.fees_bps)),
                    *(percent(s.fill_rate), percent(s.maker_share), fixed(s.time_to_fill_s, 1)),
                    estimate(paired.mean, paired.low, paired.high, fixed) if paired else "",
                )
            )
        return table(
            rows,
            (
                *("symbol", "size", "algorithm", "queue", "n", "cost bps [95 %]", "spread"),
                *("timing", "fees", "filled", "maker", "time s", "vs first [95 %]"),
            ),
        )


class _Trial:
    """One algorithm under one queue model, for one symbol and size, in a simulator of its own."""

    def __init__(
        self,
        instrument: Instrument,
        settings: Settings,
        algorithm: str,
        queue: str,
        size_usdt: float,
        deadline_ns: int,
        shift_ns: int,
        offset_ns: int,
    ) -> None:
        taker_bps, maker_bps = FEE_ROWS_BPS[settings.model.fee_row]
        self.instrument, self.symbol = instrument, instrument.symbol
        self.algorithm, self.queue, self.size_usdt = algorithm, queue, size_usdt
        self.tasks: list[Task] = []
        self.skipped = 0
        self._deadline_ns, self.offset_ns = deadline_ns, offset_ns
        self.simulator = Simulator(
            {self.symbol: instrument},
            latency=latency_of(settings.execution),
            queue=queue,
            taker_fee=rate_of_bps(taker_bps),
            maker_fee=rate_of_bps(maker_bps),
            clock_shift_ns=shift_ns,
            stale_after_ns=round(settings.market.stale_after_s * 1e9),
            window_levels=settings.market.book_depth,
        )

    def run(self, decisions_ns: Sequence[int], until_ns: int) -> None:
        """Work up to ``until_ns``, deciding parents at ``decisions_ns``."""
        for instant in (*decisions_ns, until_ns):
            drive(self.simulator, self.tasks, instant)
            self.simulator.advance(instant)
            if instant < until_ns:
                self._decide(instant)

    def close(self, report: StudyReport, market: MidRecorder, last_ns: int) -> None:
        """Add its parents to the report, those decided after ``last_ns`` as cut."""
        report.skipped += self.skipped
        for task in self.tasks:
            if task.parent.decision_ns > last_ns:
                report.cut += 1
            else:
                self._add(report, task, market)

    def _add(self, report: StudyReport, task: Task, market: MidRecorder) -> None:
        parent, end_ns = task.parent, task.end_ns
        if end_ns is None:
            raise RuntimeError(f"parent {parent.id} never ended: {task.working.orders.by_id}")
        report.parents.append(
            parent_row(parent, self.algorithm, self.queue, self.instrument, self.size_usdt)
        )
        orders = list(task.order_rows(self.queue))
        report.orders.extend(orders)
        report.markouts.extend(
            markout_rows(parent.id, self.queue, orders, task.fills, market.mids, task.ahead)
        )
        report.fills.extend(fill_row(fill, parent.id, self.queue) for fill in task.fills)
        report.rows.append(
            shortfall(
                parent,
                task.fills,
                market.mids,
                self.instrument,
                algorithm=self.algorithm,
                venue=self.queue,
                arrival_ns=task.working.arrival_ns,
                end_ns=end_ns,
                size_usdt=self.size_usdt,
                # Recorded markets are the same without us.
                control=market.mids,
                traded=market.traded,
            )
        )

    def _decide(self, now_ns: int) -> None:
        """One buy and one sell, unless the book is stale."""
        view = self.simulator.view(self.symbol)
        if view.stale:
            self.skipped += 1
            return
        mid = view.mid_ticks
        lot_usdt = unit_e8(self.instrument) * mid / E8
        lots = max(1, round(self.size_usdt / lot_usdt))
        for side, name in ((1, "buy"), (-1, "sell")):
            parent = Parent(
                id=f"{self.symbol}/{now_ns}/{name}/{self.size_usdt:g}/{self.algorithm}/{self.queue}",
                symbol=self.symbol,
                side=side,
                qty_lots=lots,
                decision_ns=now_ns,
                deadline_ns=now_ns + self._deadline_ns,
                decision_mid_ticks=mid,
            )
            self.tasks.append(Task(parent, start(self.algorithm, parent)))


def study(
    feeds: Mapping[str, Events | Iterable[Events]],
    instruments: Mapping[str, Instrument],
    settings: Settings,
    *,
    algorithms: Sequence[str] = ("market", "passive"),
    every_s: float = 60.0,
    sizes_usdt: Sequence[float] = (10_000.0,),
    deadline_s: float | None = None,
    queues: Sequence[str] = ("risk_averse", "power3"),
    rounds: int = 1,
) -> StudyReport:
    """Cost of the same two-sided parents under each algorithm and queue model.

    ``feeds`` gives each symbol's rows in receive order, as one array or as chunks of whole frames.
    A parent is decided every ``every_s`` seconds, has ``deadline_s`` (default: the settings') and is
    worth about each of ``sizes_usdt`` in turn. ``rounds`` are evenly offset in time, each in
    simulators of its own: more parents from a short recording, which overlap and so carry less
    information than as many that do not. Latencies, fees and depth are the settings'. Raises
    ValueError when the parents of one side would overlap, and for unknown names.
    """
    deadline_s = settings.execution.deadline_s if deadline_s is None else deadline_s
    patience_s = deadline_s + Working.grace_ns / SECOND_NS
    if every_s <= patience_s:
        raise ValueError(
            f"a parent every {every_s:g} s with a deadline of {deadline_s:g} s may overlap the next "
            f"and compete with it; decide less often than every {patience_s:g} s"
        )
    report = StudyReport()
    every_ns, deadline_ns = round(every_s * 1e9), round(deadline_s * 1e9)
    offsets = [every_ns * n // rounds for n in range(rounds)]
    for symbol, feed in feeds.items():
        market = MidRecorder()
        trials: list[_Trial] = []
        decided_ns: dict[int, int] = {}  #: the last decision of each round, by its offset
        for events in [feed] if isinstance(feed, np.ndarray) else feed:
            if len(events) == 0:
                continue
            market.push(events)
            if not trials:
                shift_ns = report.clock_shift_ns[symbol] = clock_shift_ns(events)
                # The first second is for the snapshot.
                before_ns = int(events["receive_ns"][0]) + SECOND_NS - every_ns
                decided_ns = {offset: before_ns + offset for offset in offsets}
                trials = [
                    _Trial(
                        instruments[symbol],
                        settings,
                        name,
                        queue,
                        size,
                        deadline_ns,
                        shift_ns,
                        offset,
                    )
                    for size in sizes_usdt
                    for name in algorithms
                    for queue in queues
                    for offset in offsets
                ]
            for trial in trials:
                trial.simulator.on_events(symbol, events)
            until_ns = trials[0].simulator.horizon_ns(symbol)
            decisions = {
                offset: range(last_ns + every_ns, until_ns, every_ns)
                for offset, last_ns in decided_ns.items()
            }
            decided_ns |= {offset: times[-1] for offset, times in decisions.items() if times}
            for trial in trials:
                trial.run(decisions[trial.offset_ns], until_ns)
        # The same parents are left out of every trial, however early it was done with them.
        last_ns = market.mids.until_ns - round(patience_s * 1e9)
        for trial in trials:
            trial.close(report, market, last_ns)
    report.close(algorithms[0])
    return report
