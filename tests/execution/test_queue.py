"""Queue models against plain Python, formula by formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execution.queue import MODELS, beyond_window, share_behind
from market.book import Book
from market.events import Flag, Kind
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
        self.front, self.traded, self.shown = float(shown), 0.0, shown

    def trade(self, lots: int) -> int:
        self.front -= lots
        self.traded += lots
        filled = 0
        if self.front < 0:
            filled = min(math.floor(-self.front + 0.5), lots)
            self.front += filled
        return filled

    def depth(self, new: int) -> None:
        change, back = self.shown - new - self.traded, self.shown - self.front
        self.shown, self.traded = new, 0.0
        if self.model == "risk_averse" or change < 0:
            self.front = min(self.front, new)
            return
        p = reference_share(self.model, self.n, self.front, back)
        estimate = self.front - (1 - p) * change + float(np.fmin(back - p * change, 0.0))
        self.front = float(np.fmin(estimate, new))


@pytest.mark.parametrize("model", [m for m in MODELS if m != "risk_averse"])
@pytest.mark.parametrize(("front", "back"), [(3, 5), (1, 0), (0, 4), (0, 0), (2.5, 7.25)])
@pytest.mark.parametrize("n", [1.0, 2.0, 3.0])
def test_shares_are_the_published_formulas(model: str, front: float, back: float, n: float) -> None:
    mine = share_behind(MODELS[model], n, front, back)
    assert mine == pytest.approx(reference_share(model, n, front, back), rel=1e-12, nan_ok=True)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("trade"), st.integers(1, 12)),
        st.tuples(st.just("depth"), st.integers(0, 40)),
    ),
    max_size=25,
)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(steps=STEPS, model=st.sampled_from(list(MODELS)), n=st.sampled_from([1.0, 2.0, 3.0]))
def test_an_order_fills_when_and_as_the_formulas_say(
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
    front=st.integers(0, 30),
    more=st.integers(1, 10),
)
def test_more_quantity_in_front_never_fills_earlier(
    steps: list[tuple[str, int]], model: str, front: int, more: int
) -> None:
    filled = []
    for shown in (front, front + more):
        tape = Tape(queue=model).opens(bids=[(100, shown), (90, 1)], asks=[(110, 5)])
        tape.send(limit("a", 1, 100, 10_000))
        running, total = [], 0
        for what, lots in steps:
            # Depth changes move both queues by the same quantity.
            events = (
                tape.prints(-1, 100, lots)
                if what == "trade"
                else tape.shows(bids=[(100, lots + shown - front)])
            )
            total += sum(q for _, q in fills(events))
            running.append(total)
        filled.append(running)
    assert all(near >= far for near, far in zip(*filled, strict=True))


@settings(derandomize=True, max_examples=40, deadline=None)
@given(steps=STEPS, model=st.sampled_from([m for m in MODELS if m != "risk_averse"]))
def test_the_pessimistic_queue_never_fills_more(steps: list[tuple[str, int]], model: str) -> None:
    """Until the published formulas take more from the front than stands there: a negative front has
    no meaning, and what they make of it is theirs."""
    queue = ReferenceQueue(model, 3.0, 20)
    tapes = [
        Tape(queue=name).opens(bids=[(100, 20), (90, 1)], asks=[(110, 5)])
        for name in ("risk_averse", model)
    ]
    for tape in tapes:
        tape.send(limit("a", 1, 100, 10_000))
    for what, lots in steps:
        if what == "trade":
            queue.trade(lots)
        else:
            queue.depth(lots)
        if queue.front < 0:
            break
        for tape in tapes:
            if what == "trade":
                tape.prints(-1, 100, lots)
            else:
                tape.shows(bids=[(100, lots)])
        assert tapes[0].position <= tapes[1].position


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


def test_a_snapshot_without_our_level_means_that_nobody_is_in_front() -> None:
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
