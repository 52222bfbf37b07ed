"""The same parent orders under several algorithms, over the same recorded events.

At every instant of a fixed grid one buy and one sell of each size are decided, so what the market did
cancels out of their mean. Each algorithm works them in a simulator of its own, once per queue model:
``risk_averse`` is the pessimistic bound of passive fills and ``power3`` the optimistic one. Parents
of one side never overlap, so none competes with another for the recorded quantity.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec
import numpy as np
import pyarrow as pa

from execution.account import rate_of_bps, unit_e8
from execution.algorithms import ALGORITHMS, start
from execution.algorithms.working import Parent, Working
from execution.orders import (
    Action,
    Amend,
    Amended,
    Cancelled,
    Event,
    Filled,
    Rejected,
    Submit,
)
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
    parent_row,
    shortfall,
    summarise,
    to_table,
)
from execution.venue import Venue, View
from market.errors import UsageError
from market.events import Events
from market.instruments import Instrument
from market.settings import FEE_ROWS_BPS, Settings
from market.units import E8, SECOND_NS

#: How often an algorithm is stepped when nothing happens.
TIMER_NS: Final = 100_000_000


class StudyError(UsageError):
    """The study cannot be made as asked; the message says what to change."""


def known(names: Sequence[str]) -> Sequence[str]:
    """The names of algorithms; StudyError for one that there is none of."""
    if unknown := [name for name in names if name not in ALGORITHMS]:
        raise StudyError(f"algorithm {unknown[0]!r}: expected some of {', '.join(ALGORITHMS)}")
    return names


class Task:
    """A parent being worked: its algorithm, and what was sent and heard."""

    def __init__(self, parent: Parent, working: Working) -> None:
        self.parent = parent
        self.working = working
        self.fills: list[Filled] = []
        self.end_ns: int | None = None
        #: What stood in front of each limit order when it was sent, as displayed.
        self.ahead: dict[str, float] = {}
        self._orders: dict[str, dict[str, Any]] = {}
        self._news: list[Event] = []
        self._stepped_ns = -1

    def heard(self, event: Event) -> None:
        """An outcome of one of our orders, for the next step."""
        self._news.append(event)
        order = self._orders[event.client_id]
        order["changed_ns"] = event.time_ns
        if isinstance(event, Filled):
            self.fills.append(event)
            order["filled_lots"] += event.qty_lots
        elif isinstance(event, Amended):
            order["price_ticks"], order["qty_lots"] = event.price_ticks, event.qty_lots
        elif isinstance(event, Rejected | Cancelled):
            order["reason"] = event.reason

    def due(self, now_ns: int, timer_ns: int) -> bool:
        """Whether the algorithm is new, has news, or its timer rings."""
        rings = now_ns % timer_ns == 0 and self._stepped_ns < now_ns
        return bool(self._news) or self._stepped_ns < 0 or rings

    def step(self, view: View) -> Sequence[Action]:
        """Step the algorithm at the view's time; returns what is to be sent."""
        now_ns = self._stepped_ns = view.now_ns
        actions = self.working.step(now_ns, view, self._news)
        self._news = []
        for action in actions:
            if isinstance(action, Submit):
                self.ahead[action.client_id] = displayed_ahead(view, action)
                self._orders[action.client_id] = {
                    "asked": action,
                    "price_ticks": action.price_ticks,
                    "qty_lots": action.qty_lots,
                    "filled_lots": 0,
                    "reason": "",
                    "sent_ns": now_ns,
                    "changed_ns": now_ns,
                    "amends": 0,
                }
            elif isinstance(action, Amend):
                self._orders[action.client_id]["amends"] += 1
        if self.working.done:
            self.end_ns = now_ns
        return actions

    def order_rows(self, venue: str) -> Iterator[OrderRow]:
        for client_id, held in self._orders.items():
            order = dict(held)
            asked = order.pop("asked")
            yield OrderRow(
                client_id=client_id,
                parent_id=self.parent.id,
                symbol=asked.symbol,
                side=asked.side,
                venue=venue,
                order_type=str(asked.order_type),
                time_in_force=str(asked.time_in_force),
                state=str(self.working.children[client_id].state),
                **order,
            )


class Running(Venue, Protocol):
    """A venue whose time is ours to move, with a picture of its markets."""

    @property
    def now_ns(self) -> int: ...

    def touch(self, symbol: str) -> tuple[int | None, int | None]: ...

    def view(self, symbol: str) -> View: ...

    def advance_to_news(self, until_ns: int) -> int: ...


def drive(venue: Running, tasks: Sequence[Task], until_ns: int, timer_ns: int = TIMER_NS) -> None:
    """Work tasks until ``until_ns`` or until all are done, which leaves the clock at the last end.

    Tasks that have ended are worked no more, but news of their orders can still be on its way (the
    refusal of an amendment that a fill overtook, for one) and is theirs.

    An algorithm is stepped when it is new, when an outcome of its orders reaches us, when the touch
    of its symbol changes, and at multiples of ``timer_ns``: the same instants however ``until_ns``
    cuts the time up.
    """
    active = [task for task in tasks if task.end_ns is None]
    owners = {client_id: task for task in tasks for client_id in task.working.children}
    touches = {task.parent.symbol: venue.touch(task.parent.symbol) for task in active}
    while active:
        now = venue.now_ns
        for event in venue.poll():
            owners[event.client_id].heard(event)
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
    """What the algorithms cost. ``differences`` are paired with the first algorithm named, by
    (symbol, size, algorithm, queue). ``cut`` parents ran into the end of the record and are left
    out, finished or not; ``skipped`` instants had no market to decide by."""

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
        """Summarise what was collected."""
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
        lines = [
            f"{'symbol':9}{'size':>9} {'algorithm':10}{'queue':12}{'n':>4}{'cost bps [95 %]':>24}"
            f"{'spread':>8}{'timing':>8}{'fees':>7}{'filled':>8}{'maker':>7}{'time s':>8}"
            f"{'vs first [95 %]':>26}"
        ]
        for s in self.summaries:
            if s.side:
                continue
            paired = self.differences.get((s.symbol, s.size_usdt, s.algorithm, s.venue))
            against = (
                f"{paired.mean:+.2f} [{paired.low:+.2f}, {paired.high:+.2f}]" if paired else ""
            )
            cost = f"{s.total_bps:.2f} [{s.low_bps:.2f}, {s.high_bps:.2f}]"
            lines.append(
                f"{s.symbol:9}{s.size_usdt:9,.0f} {s.algorithm:10}{s.venue:12}{s.instants:4}{cost:>24}"
                f"{s.spread_bps:8.2f}{s.timing_bps:8.2f}{s.fees_bps:7.2f}{s.fill_rate:8.1%}"
                f"{s.maker_share:7.0%}{s.time_to_fill_s:8.1f}{against:>26}"
            )
        return "\n".join(lines)


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
        late_ns: int = 0,
    ) -> None:
        taker_bps, maker_bps = FEE_ROWS_BPS[settings.model.fee_row]
        self.instrument, self.symbol = instrument, instrument.symbol
        self.algorithm, self.queue, self.size_usdt = algorithm, queue, size_usdt
        self.tasks: list[Task] = []
        self.skipped = 0
        self._deadline_ns, self.late_ns = deadline_ns, late_ns
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
        """Work up to ``until_ns``, with parents decided at the given times up to there."""
        for instant in (*decisions_ns, until_ns):
            drive(self.simulator, self.tasks, instant)
            self.simulator.advance(instant)
            if instant < until_ns:
                self._decide(instant)

    def add(self, report: StudyReport, task: Task, market: MidRecorder) -> None:
        """Put a finished parent into the report."""
        parent, end_ns = task.parent, task.end_ns
        if end_ns is None:
            raise RuntimeError(f"parent {parent.id} never ended: {task.working.children}")
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
        """One buy and one sell, unless there is no market to decide by."""
        view = self.simulator.view(self.symbol)
        if view.stale:
            self.skipped += 1
            return
        mid = view.mid_ticks
        worth = unit_e8(self.instrument) * mid / E8
        lots = max(1, round(self.size_usdt / worth))
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
    worth about each of ``sizes_usdt`` in turn. ``rounds`` are evenly shifted against each other, each
    in simulators of its own: more parents of a short recording, which overlap in time and tell less
    than as many that do not. Latencies, fees and depth are the settings'. Raises
    ValueError when parents would overlap, and for names that are not known.
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
    for symbol, feed in feeds.items():
        recorder = MidRecorder()
        trials: list[_Trial] = []
        decided_ns: dict[int, int] = {}  #: the last decision, by the lateness of its round
        for events in [feed] if isinstance(feed, np.ndarray) else feed:
            if len(events) == 0:
                continue
            recorder.push(events)
            if not trials:
                shift = report.clock_shift_ns[symbol] = clock_shift_ns(events)
                # The first second is for the snapshot.
                before_ns = int(events["receive_ns"][0]) + SECOND_NS - every_ns
                late = [every_ns * n // rounds for n in range(rounds)]
                decided_ns = {late_ns: before_ns + late_ns for late_ns in late}
                trials = [
                    _Trial(
                        instruments[symbol],
                        settings,
                        name,
                        queue,
                        size,
                        deadline_ns,
                        shift,
                        late_ns,
                    )
                    for size in sizes_usdt
                    for name in algorithms
                    for queue in queues
                    for late_ns in late
                ]
            for trial in trials:
                trial.simulator.on_events(symbol, events)
            until_ns = trials[0].simulator.horizon_ns(symbol)
            decisions = {
                late_ns: range(last_ns + every_ns, until_ns, every_ns)
                for late_ns, last_ns in decided_ns.items()
            }
            decided_ns |= {late_ns: times[-1] for late_ns, times in decisions.items() if times}
            for trial in trials:
                trial.run(decisions[trial.late_ns], until_ns)
        # The same parents are left out of every trial, however early it was done with them.
        last_ns = recorder.mids.until_ns - round(patience_s * 1e9)
        for trial in trials:
            report.skipped += trial.skipped
            for task in trial.tasks:
                if task.parent.decision_ns > last_ns:
                    report.cut += 1
                else:
                    trial.add(report, task, recorder)
    report.close(algorithms[0])
    return report
