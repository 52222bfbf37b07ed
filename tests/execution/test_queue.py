"""Queue models against plain Python, formula by formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execution.simulation.queue import (
    BOUNDS,
    MODELS,
    RESTING,
    beyond_window,
    depth_changed,
    share_behind,
)
from market.book import Book
from market.events import Flag, Kind
from tests.execution.judged import PUBLISHED
from tests.execution.tape import SYMBOL, Tape, fills, frame, limit, snapshot


def reference_share(model: str, n: float, f: float, b: float) -> float:
    with np.errstate(all="ignore"):
        f_, b_ = np.float64(f), np.float64(b)
        share = {
            "power1": lambda: b_**n / (b_**n + f_**n),
            "power2": lambda: b_**n / (b_ + f_) ** n,
            "power3": lambda: 1 - (f_ / (f_ + b_)) ** n,
            "log1": lambda: np.log1p(b_) / (np.log1p(b_) + np.log1p(f_)),
            "log2": lambda: np.log1p(b_) / np.log1p(b_ + f_),
        }[model]()
    return 1.0 if np.isinf(share) else float(share)


class ReferenceQueue:
    """One order's queue as the formulas say it, in plain numbers; nothing else fills it."""

    def __init__(self, model: str, n: float, shown: int) -> None:
        self.model, self.n = model, n
        self.ahead, self.traded, self.shown = float(shown), 0.0, shown

    def trade(self, lots: int) -> int:
        self.ahead -= lots
        self.traded += lots
        filled = 0
        if self.ahead < 0:
            filled = min(math.floor(-self.ahead + 0.5), lots)
            self.ahead += filled
        return filled

    def depth(self, new: int) -> None:
        ahead = max(self.ahead, 0.0)
        change, behind = self.shown - new - self.traded, self.shown - ahead
        self.shown, self.traded = new, 0.0
        if self.model in ("risk_averse", "pessimistic") or change < 0:
            self.ahead = min(ahead, new)
            return
        p = 0.0
        if self.model != "optimistic" and ahead + behind > 0:
            p = reference_share(self.model, self.n, ahead, behind)
        self.ahead = max(0.0, min(ahead - (1 - p) * change + min(behind - p * change, 0.0), new))


@pytest.mark.parametrize("model", [m for m in PUBLISHED if m != "risk_averse"])
@pytest.mark.parametrize(("ahead", "behind"), [(3, 5), (1, 0), (0, 4), (0, 0), (2.5, 7.25)])
@pytest.mark.parametrize("n", [1.0, 2.0, 3.0])
def test_shares_are_the_published_formulas(
    model: str, ahead: float, behind: float, n: float
) -> None:
    mine = share_behind(MODELS[model], n, ahead, behind)
    assert mine == pytest.approx(reference_share(model, n, ahead, behind), rel=1e-12, nan_ok=True)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("trade"), st.integers(1, 12)),
        st.tuples(st.just("depth"), st.integers(0, 40)),
    ),
    max_size=25,
)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(steps=STEPS, model=st.sampled_from(list(MODELS)), n=st.sampled_from([1.0, 2.0, 3.0]))
def test_an_order_fills_as_the_formulas_say(
    steps: list[tuple[str, int]], model: str, n: float
) -> None:
    """A single resting bid, far larger than what trades, fills after each print at its price exactly
    what the model's front leaves of it; depth changes alone never fill it."""
    tape = Tape(queue=model, queue_power=n).opens(bids=[(100, 20), (90, 1)], asks=[(110, 5)])
    tape.send(limit("a", 1, 100, 10_000))
    queue = ReferenceQueue(model, n, 20)
    for what, lots in steps:
        if what == "trade":
            expected = queue.trade(lots)
            assert fills(tape.prints(-1, 100, lots)) == ([(100, expected)] if expected else [])
        else:
            queue.depth(lots)
            assert fills(tape.shows(bids=[(100, lots)])) == []


@settings(derandomize=True, max_examples=40, deadline=None)
@given(
    steps=STEPS,
    model=st.sampled_from(list(MODELS)),
    ahead=st.integers(0, 30),
    more=st.integers(1, 10),
)
def test_a_longer_queue_ahead_never_fills_earlier(
    steps: list[tuple[str, int]], model: str, ahead: int, more: int
) -> None:
    filled = []
    for shown in (ahead, ahead + more):
        tape = Tape(queue=model).opens(bids=[(100, shown), (90, 1)], asks=[(110, 5)])
        tape.send(limit("a", 1, 100, 10_000))
        running, total = [], 0
        for what, lots in steps:
            # Depth changes move both queues by the same quantity.
            events = (
                tape.prints(-1, 100, lots)
                if what == "trade"
                else tape.shows(bids=[(100, lots + shown - ahead)])
            )
            total += sum(q for _, q in fills(events))
            running.append(total)
        filled.append(running)
    assert all(near >= far for near, far in zip(*filled, strict=True))


@settings(derandomize=True, max_examples=60, deadline=None)
@given(steps=STEPS, model=st.sampled_from(PUBLISHED), n=st.sampled_from([0.5, 1.0, 2.0, 3.0]))
def test_every_model_fills_between_the_bounds(
    steps: list[tuple[str, int]], model: str, n: float
) -> None:
    """After every print and every change of depth: pessimistic ≤ model ≤ optimistic."""
    pessimistic, optimistic = BOUNDS
    tapes = [
        Tape(queue=name, queue_power=n).opens(bids=[(100, 20), (90, 1)], asks=[(110, 5)])
        for name in (pessimistic, model, optimistic)
    ]
    for tape in tapes:
        tape.send(limit("a", 1, 100, 10_000))
    for what, lots in steps:
        for tape in tapes:
            if what == "trade":
                tape.prints(-1, 100, lots)
            else:
                tape.shows(bids=[(100, lots)])
        low, between, high = (tape.position for tape in tapes)
        assert low <= between <= high


def test_the_bounds_differ_by_where_cancels_come_from() -> None:
    filled = []
    for name in BOUNDS:
        tape = Tape(queue=name).opens()
        tape.send(limit("a", 1, 100, 5))
        tape.shows(bids=[(100, 12)])
        tape.shows(bids=[(100, 8)])
        filled.append(fills(tape.prints(-1, 100, 7)))
    # Ten stood ahead, two came behind; four cancelled: all from behind, or all from ahead.
    assert filled == [[], [(100, 1)]]


@settings(derandomize=True, max_examples=200, deadline=None)
@given(
    model=st.sampled_from(list(MODELS)),
    n=st.sampled_from([0.5, 1.0, 2.0, 3.0]),
    shown=st.integers(0, 12),
    new=st.integers(0, 12),
    traded=st.integers(0, 12),
    ahead=st.integers(-24, 24),
)
def test_the_queue_ahead_is_never_nan(
    model: str, n: float, shown: int, new: int, traded: int, ahead: int
) -> None:
    """Also where a formula has no value: an empty queue, or queues below zero as mode ``whole`` has
    them. The queue ahead never exceeds what is displayed."""
    orders = np.zeros(1, RESTING)
    orders["shown"], orders["traded"], orders["ahead"] = shown, traded, ahead / 2
    depth_changed(orders[0], new, MODELS[model], n)
    assert orders["ahead"][0] <= new
    assert (orders["shown"][0], orders["traded"][0]) == (new, 0)


def test_an_empty_queue_has_no_share_and_stays_empty() -> None:
    assert math.isnan(share_behind(MODELS["power3"], 3.0, 0.0, 0.0))
    orders = np.zeros(1, RESTING)
    depth_changed(orders[0], 0, MODELS["power3"], 3.0)
    assert orders["ahead"][0] == 0


def test_retail_price_improvement_and_block_prints_deplete_nothing() -> None:
    tape = Tape().opens()
    tape.send(limit("a", 1, 100, 5))
    for flag in (Flag.RPI, Flag.BLOCK):
        assert tape.prints(-1, 100, 50, flag) == []
        assert tape.prints(-1, 95, 50, flag) == []
    assert fills(tape.prints(-1, 100, 12)) == [(100, 2)]


def test_a_print_of_the_other_side_fills_nothing() -> None:
    tape = Tape().opens()
    tape.send(limit("a", 1, 100, 5))
    assert tape.prints(1, 100, 500) == []


def test_a_level_that_leaves_the_window_keeps_its_queue() -> None:
    """Ten levels are shown. A bid rests at the last of them; better bids push it out of view, which
    says nothing about the queue there, and a real deletion inside the window does."""
    bids = [(100 - k, 10) for k in range(10)]
    tape = Tape(window_levels=10).opens(bids=bids, asks=[(110, 1)])
    tape.send(limit("a", 1, 91, 5))
    tape.shows(bids=[(101, 10), (91, 0)])
    assert fills(tape.prints(-1, 91, 9)) == []
    tape.shows(bids=[(101, 0), (91, 1)])
    tape.shows(bids=[(91, 0), (90, 10)])
    assert fills(tape.prints(-1, 91, 1)) == [(91, 1)]


def test_an_order_beyond_the_window_waits_for_its_queue_to_show() -> None:
    bids = [(100 - k, 10) for k in range(10)]
    tape = Tape(window_levels=10).opens(bids=bids, asks=[(110, 1)])
    tape.send(limit("a", 1, 80, 5))
    assert fills(tape.prints(-1, 80, 1_000)) == []
    tape.shows(bids=[(100 - k, 0) for k in range(10)] + [(80, 3)])
    assert fills(tape.prints(-1, 80, 4)) == [(80, 1)]


def test_window_ends_at_the_last_of_as_many_levels_as_the_topic_has() -> None:
    book = Book()
    book.apply(snapshot(1, [(100, 1), (99, 1)], [(101, 1), (102, 1)]))
    assert beyond_window(book.state, 1, 98, 2)
    assert beyond_window(book.state, -1, 103, 2)
    assert not beyond_window(book.state, 1, 99, 2)
    assert not beyond_window(book.state, 1, 98, 3)


def test_a_snapshot_that_repeats_the_book_moves_no_queue() -> None:
    calm, restated = Tape(queue="power3").opens(), Tape(queue="power3").opens()
    for tape in (calm, restated):
        tape.send(limit("a", 1, 100, 5))
        tape.prints(-1, 100, 4)
    restated.shows([(100, 10), (99, 20)], [(101, 10)], kind=Kind.SNAPSHOT)
    for tape in (calm, restated):
        tape.shows(bids=[(100, 6)])
    assert fills(calm.prints(-1, 100, 8)) == fills(restated.prints(-1, 100, 8)) == [(100, 2)]


def test_a_snapshot_without_our_level_empties_the_queue_ahead() -> None:
    tape = Tape().opens()
    tape.send(limit("a", 1, 100, 5))
    tape.shows([(99, 20)], [(101, 10)], kind=Kind.SNAPSHOT)
    assert fills(tape.prints(-1, 100, 1)) == [(100, 1)]


def test_rows_of_a_frame_are_one_instant() -> None:
    """The bid rises through the old ask within one frame; an ask of ours above is not touched."""
    tape = Tape().opens()
    tape.send(limit("a", -1, 103, 5))
    tape.simulator.on_events(
        SYMBOL, frame(tape.now_ns + 2, [(102, 5)], [(101, 0), (102, 0), (103, 7)])
    )
    tape.now_ns += 2
    assert tape.wait() == []
