"""What `l2 bench execution` measures: the simulator, beside the peer's on the same rows.

The strategy is plain Python and the same on both sides: every 100 ms of our own clock it looks at the
touch and keeps one post-only order of one lot at the best price of either side. An order whose price
is the best no more is cancelled and replaced; one that is filled or refused is replaced. Both engines
fill by the same rules (mode ``whole``, risk-averse queue), and the requests that they are sent have to
be the same, one for one. The peer's loop asks Python at every step; ours at every step at which
something that Python could see has changed, and, in a row of its own, at every step too.

Rows come 5 ms after they happened, requests and answers travel 5 ms each.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import numpy as np

from execution.hazard import FillModel, Queued
from market.console import Say
from market.events import EVENT, Events, Flag, Kind
from proving.bench.decisions import decisions
from proving.bench.market import generated_rows, recorded_rows
from proving.bench.quotes import FEED_NS, ORDER_NS, STEP_NS, SYMBOL, Sent, quotes, replay
from proving.bench.yardstick import (
    Measure,
    Peer,
    PeerError,
    in_turn,
    peer_ready,
    recorded,
    run_peer,
    seconds,
)

_PROGRAM: Final = "hftbacktest_quotes.py"


def measure(quick: bool, say: Say) -> Iterator[Measure]:
    """Every figure of this area, as it is found."""
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
        say("no recordings at hand, so what is measured on them is left out; set L2_TEST_DATA")


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
    """Speed and memory on some rows; PeerError when the two engines are not sent the same."""
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
            raise PeerError(f"{data}: asked at news only, the strategy sends something else")
        if peer_ready():
            peer_peak = float(peer.ask("peak"))
            if peer.ask("orders") != [len(sent[True]), fingerprint(sent[True])]:
                raise PeerError(f"{data}: the strategy sends something else over there")
    rates = [len(rows) / time / 1e6 for time in best]
    rates += [0.0] * (5 - len(rates))
    theirs = [rate or None for rate in rates[3:]]
    how = f"best of {repetitions} in turn; {data} {SYMBOL}, {len(rows):,} rows"
    asked = f"{how}, {len(sent[True]):,} requests, the same on both sides"
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
        how=f"{asked}; Python asked at the steps at which something has changed",
    )
    yield Measure(
        name=f"quotes in plain Python, asked at every step, {data}",
        ours=rates[2],
        peer=theirs[1],
        unit="M rows/s",
        how=asked,
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
    """What the strategy costs a row over several days, in terms of one."""
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
    """What one answer of the fill model takes."""
    model = FillModel.load()
    state = Queued(
        ahead_usdt=200e3,
        own_usdt=200e3,
        opposite_usdt=300e3,
        spread_ticks=1,
        outflow_usdt_s=50e3,
        sigma_bps=0.5,
    )

    def asked(answer: Callable[[Queued], object]) -> Callable[[], float]:
        return lambda: seconds(lambda: [answer(state) for _ in range(calls)])

    chance, pegged = in_turn(
        [
            asked(lambda state: model.fill_probability(state, 30.0)),
            asked(lambda state: model.pegged_fill_probability(state, 30.0)),
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
    """Hash of what was sent, as the peer's program has it."""
    return hashlib.sha256(np.array(sent, np.int64).tobytes()).hexdigest()


def _peer(rows: Events, folder: Path) -> Peer:
    """The peer's program, its rows converted before: its memory is that of the run alone."""
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
    """Peak memory of the strategy over the rows, in a process of its own, in MB."""
    np.save(folder / "ours.npy", rows)
    command = [sys.executable, "-m", "proving.bench.quotes", str(folder / "ours.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)
