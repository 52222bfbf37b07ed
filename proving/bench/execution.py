"""`l2 bench execution`: the simulator beside the peer's, the fill model, and decisions of algorithms.

The strategy (`proving.bench.quotes`) is plain Python and the same on both sides: every 100 ms of the
local clock it keeps one post-only order of one lot at the best price of either side; an order that is
no longer at the best price is cancelled and replaced, one that was filled or rejected is replaced.
Both engines fill by the same rules (mode ``whole``, risk-averse queue), and the requests sent must be
the same, one for one. The peer calls Python at every step; ours at every step at which something
that Python could see has changed, and, in a row of its own, at every step too.

Rows are received 5 ms after they happened; requests and responses take 5 ms each.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import numpy as np

from execution.algorithms import ALGORITHMS, start
from execution.algorithms.working import Parent, Working
from execution.hazard import FillModel, Queued
from execution.orders import Action
from execution.simulation.simulator import Simulator
from execution.study import Task, drive
from execution.venue import View
from market.console import Say
from market.events import EVENT, Events, Flag, Kind
from market.instruments import BUILT_IN
from market.units import SECOND_NS
from proving.bench.command import (
    Peer,
    PeerError,
    in_turn,
    peer_ready,
    recorded,
    run_peer,
    seconds,
)
from proving.bench.goals import Measure
from proving.bench.market import generated_rows, recorded_rows
from proving.bench.quotes import FEED_NS, ORDER_NS, STEP_NS, SYMBOL, Sent, quotes, replay

_PROGRAM: Final = "hftbacktest_quotes.py"
#: Parents whose decisions are timed.
_DEADLINE_NS: Final = 60 * SECOND_NS
_EVERY_NS: Final = _DEADLINE_NS + 2 * Working.grace_ns
_LOTS: Final = 170  #: some 10,000 USDT


def measure(quick: bool, say: Say) -> Iterator[Measure]:
    """Every figure of this area, as it is measured."""
    repetitions = 1 if quick else 5
    rows = visible(generated_rows(20_000 if quick else 2_000_000))
    yield from replays("generated", rows, repetitions, say)
    yield from days(rows[: len(rows) // 4], 4, repetitions)
    yield from decisions(rows, 1 if quick else 20)
    yield from fill_model(repetitions, 100 if quick else 2_000)
    recordings = recorded()
    if recordings:
        rows = visible(recorded_rows(recordings[-1:])[0])
        yield from replays("recorded", rows[:20_000] if quick else rows, repetitions, say)
    else:
        say("no recordings: their rows are left out; set L2_TEST_DATA to a folder of captures")


def visible(events: Events) -> Events:
    """Rows that both engines know, each received `FEED_NS` after it happened."""
    known = (events["kind"] <= Kind.TRADE) & (events["side"] != 0)
    rows: Events = events[known & (events["flags"] & (Flag.RPI | Flag.BLOCK) == 0)]
    happened = np.minimum(rows["exchange_ns"], rows["receive_ns"])
    rows["exchange_ns"] = np.maximum.accumulate(happened)
    rows["receive_ns"] = rows["exchange_ns"] + FEED_NS
    return rows


# -- side by side ----------------------------------------------------------------------------------


def replays(data: str, rows: Events, repetitions: int, say: Say) -> Iterator[Measure]:
    """Speed and memory on some rows; PeerError when the strategy sends different requests."""
    say(f"the simulator, {data}")
    sent: dict[bool, Sent] = {}

    def ours(every_step: bool) -> float:
        def work() -> None:
            sent[every_step] = quotes(rows, every_step=every_step)

        return seconds(work)

    works: list[Callable[[], float]] = [
        lambda: seconds(lambda: replay(rows)),
        lambda: ours(False),
        lambda: ours(True),
    ]
    for work in works:
        work()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        peak, peer_peak = _peak(rows, folder), None
        if peer_ready():
            peer = stack.enter_context(_peer(rows, folder))
            works += [lambda: float(peer.ask("replay")), lambda: float(peer.ask("quotes"))]
        best = in_turn(works, repetitions)
        if sent[False] != sent[True]:
            raise PeerError(f"{data}: called at news only, the strategy sends other requests")
        if peer_ready():
            peer_peak = float(peer.ask("peak"))
            if peer.ask("orders") != [len(sent[True]), fingerprint(sent[True])]:
                raise PeerError(f"{data}: the strategy sends other requests to the peer")
    rates = [len(rows) / time / 1e6 for time in best]
    rates += [0.0] * (5 - len(rates))
    theirs = [rate or None for rate in rates[3:]]
    how = f"best of {repetitions} in turn; {data} {SYMBOL}, {len(rows):,} rows"
    how_quotes = f"{how}, {len(sent[True]):,} requests, the same on both sides"
    yield Measure(
        name=f"replay without a strategy, {data}",
        ours=rates[0],
        peer=theirs[0],
        unit="M rows/s",
        how=f"{how}; the peer with its array book",
    )
    yield Measure(
        name=f"quotes in plain Python, {data}",
        ours=rates[1],
        peer=theirs[1],
        unit="M rows/s",
        how=f"{how_quotes}; Python asked at the steps at which something has changed",
    )
    yield Measure(
        name=f"quotes in plain Python, asked at every step, {data}",
        ours=rates[2],
        peer=theirs[1],
        unit="M rows/s",
        how=how_quotes,
    )
    yield Measure(
        name=f"quotes, peak memory, {data}",
        ours=peak,
        peer=peer_peak,
        unit="MB",
        better="less",
        how="largest resident memory of a process that loads the rows and runs the strategy",
    )


def days(rows: Events, count: int, repetitions: int) -> Iterator[Measure]:
    """Cost per row of the strategy over several spans, relative to one."""
    span_ns = int(rows["receive_ns"][-1] - rows["receive_ns"][0]) // STEP_NS * STEP_NS + STEP_NS
    many = np.concatenate([rows] * count)
    shifts = np.repeat(np.arange(count) * span_ns, len(rows))
    many["receive_ns"] += shifts
    many["exchange_ns"] += shifts
    one, several = in_turn(
        [lambda: seconds(lambda: quotes(rows)), lambda: seconds(lambda: quotes(many))], repetitions
    )
    yield Measure(
        name=f"quotes, cost per row of {count} spans over one",
        ours=several / count / one,
        unit="times",
        better="less",
        how=f"best of {repetitions} in turn; {len(rows):,} rows and {count} times as many",
    )


def fill_model(repetitions: int, calls: int) -> Iterator[Measure]:
    """Time of one fill probability."""
    model = FillModel.load()
    state = Queued(
        ahead_usdt=200e3,
        own_usdt=200e3,
        opposite_usdt=300e3,
        spread_ticks=1,
        outflow_usdt_s=50e3,
        sigma_bps=0.5,
    )

    def timed(answer: Callable[[Queued], object]) -> Callable[[], float]:
        return lambda: seconds(lambda: [answer(state) for _ in range(calls)])

    chance, pegged = in_turn(
        [
            timed(lambda state: model.fill_probability(state, 30.0)),
            timed(lambda state: model.pegged_fill_probability(state, 30.0)),
        ],
        repetitions,
    )
    for name, best in (("", chance), (" of an order that follows the touch", pegged)):
        yield Measure(
            name=f"fill probability of one state{name}",
            ours=best / calls * 1e6,
            unit="µs",
            better="less",
            how=f"best of {repetitions} in turn; {calls:,} answers for 30 s",
        )


def fingerprint(sent: Sent) -> str:
    """Hash of the requests sent, as the peer's program computes it."""
    return hashlib.sha256(np.array(sent, np.int64).tobytes()).hexdigest()


def _peer(rows: Events, folder: Path) -> Peer:
    """The peer's program on rows converted beforehand, so that its memory is that of the run alone."""
    given = np.zeros(
        len(rows),
        [
            ("time_ns", "i8"),
            *((name, EVENT[name]) for name in ("price_ticks", "qty_lots", "kind", "side", "flags")),
        ],
    )
    given["time_ns"] = rows["exchange_ns"]
    for name in ("price_ticks", "qty_lots", "kind", "side", "flags"):
        given[name] = rows[name]
    np.savez(folder / "rows.npz", rows=given)
    run_peer(_PROGRAM, "convert", folder / "rows.npz", folder / "events.npy")
    setting = {"feed_ns": FEED_NS, "order_ns": ORDER_NS, "step_ns": STEP_NS}
    return Peer(_PROGRAM, folder / "events.npy", json.dumps(setting))


def _peak(rows: Events, folder: Path) -> float:
    """Peak memory (MB) of the strategy over the rows, in a process of its own."""
    np.save(folder / "ours.npy", rows)
    command = [sys.executable, "-m", "proving.bench.quotes", str(folder / "ours.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


# -- decisions -------------------------------------------------------------------------------------


class _TimedTask(Task):
    """A task that keeps the time of each of its decisions (ns)."""

    def __init__(self, parent: Parent, working: Working) -> None:
        super().__init__(parent, working)
        self.times_ns: list[int] = []

    def step(self, view: View) -> Sequence[Action]:
        started = time.perf_counter_ns()
        actions = super().step(view)
        self.times_ns.append(time.perf_counter_ns() - started)
        return actions


def decision_times_ns(name: str, rows: Events, parents: int) -> list[int]:
    """Time of every decision of an algorithm over the rows, for so many parents, sides alternating."""
    market = Simulator(
        {SYMBOL: BUILT_IN[SYMBOL]},
        entry_latency_ns=10_000_000,
        response_latency_ns=10_000_000,
    )
    market.on_events(SYMBOL, rows)
    begin_ns = int(rows["receive_ns"][0]) + SECOND_NS
    tasks: list[_TimedTask] = []
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
        # Tasks that have ended may still receive events of their last orders.
        tasks.append(_TimedTask(parent, start(name, parent)))
        drive(market, tasks, now_ns + _EVERY_NS)
    return [spent for task in tasks for spent in task.times_ns]


def decisions(rows: Events, parents: int) -> Iterator[Measure]:
    """The 99th percentile of every algorithm's decisions."""
    for name in ALGORITHMS:
        decision_times_ns(name, rows, 1)  # compiles
        times = decision_times_ns(name, rows, parents)
        yield Measure(
            name=f"decision, {name}: p99",
            ours=float(np.quantile(times, 0.99)) / 1e3 if times else 0.0,
            unit="µs",
            better="less",
            how=f"{len(times):,} steps of {parents} parents of 10,000 USDT and 60 s at most",
        )
