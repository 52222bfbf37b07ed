"""How long an algorithm takes to decide: every step of parents of a minute, timed one by one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from execution.algorithms import ALGORITHMS, start
from execution.algorithms.working import Parent, Working
from execution.orders import Action
from execution.simulation.simulator import Simulator
from execution.study import Task, drive
from execution.venue import View
from market.events import Events
from market.instruments import BUILT_IN
from market.units import SECOND_NS
from proving.bench.yardstick import Measure

SYMBOL: Final = "BTCUSDT"
_DEADLINE_NS: Final = 60 * SECOND_NS
_EVERY_NS: Final = _DEADLINE_NS + 2 * Working.grace_ns
_LOTS: Final = 170  #: some 10,000 USDT


class Timed(Task):
    """A task whose decisions are timed (ns)."""

    def __init__(self, parent: Parent, working: Working) -> None:
        super().__init__(parent, working)
        self.spent_ns: list[int] = []

    def step(self, view: View) -> Sequence[Action]:
        begun = time.perf_counter_ns()
        actions = super().step(view)
        self.spent_ns.append(time.perf_counter_ns() - begun)
        return actions


def spent_ns(name: str, rows: Events, parents: int) -> list[int]:
    """Time of every decision of so many parents, both sides in turn, over the rows."""
    market = Simulator(
        {SYMBOL: BUILT_IN[SYMBOL]},
        entry_latency_ns=10_000_000,
        response_latency_ns=10_000_000,
    )
    market.on_events(SYMBOL, rows)
    begin_ns = int(rows["receive_ns"][0]) + SECOND_NS
    tasks: list[Timed] = []
    for n in range(parents):
        now_ns = begin_ns + n * _EVERY_NS
        if now_ns + _EVERY_NS > market.horizon_ns(SYMBOL):
            break
        market.advance(now_ns)
        parent = Parent(
            id=f"{name}/{n}",
            symbol=SYMBOL,
            side=1 if n % 2 else -1,
            qty_lots=_LOTS,
            decision_ns=now_ns,
            deadline_ns=now_ns + _DEADLINE_NS,
            decision_mid_ticks=market.view(SYMBOL).mid_ticks,
        )
        # Those that have ended may still be told of their last orders.
        tasks.append(Timed(parent, start(name, parent)))
        drive(market, tasks, now_ns + _EVERY_NS)
    return [spent for task in tasks for spent in task.spent_ns]


def decisions(rows: Events, parents: int) -> Iterator[Measure]:
    """The 99th percentile of every algorithm's decisions."""
    for name in ALGORITHMS:
        spent_ns(name, rows, 1)
        found = spent_ns(name, rows, parents)
        yield Measure(
            name=f"decision, {name}: p99",
            ours=float(np.quantile(found, 0.99)) / 1e3 if found else 0.0,
            unit="µs",
            better="less",
            how=f"{len(found):,} steps of {parents} parents of 10,000 USDT and 60 s at most",
        )
