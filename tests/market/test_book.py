"""The compiled book against a book of two dictionaries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import PlainBook
from streams import START_NS, framed, level_row, recorded, streams

from market import book as bk
from market.book import NO_LEVEL, WIDTH, Book
from market.events import EVENT, Flag, Kind

TICKS = st.integers(0, 400).map(lambda n: n * 40_009)  # never two in one slot, spans of many WIDTHs


def snapshot(*levels: tuple[int, int, int], now_ns: int = START_NS) -> np.ndarray:
    return framed([level_row(Kind.SNAPSHOT, *level) for level in levels], now_ns, 1)


def delta(*levels: tuple[int, int, int], now_ns: int = START_NS, flags: int = 0) -> np.ndarray:
    return framed([level_row(Kind.DELTA, *level) for level in levels], now_ns, 2, flags)


SMALL = ((1, 100, 5), (1, 99, 7), (1, 95, 1), (-1, 101, 2), (-1, 104, 9))


# Invariant: after every frame the compiled book and the dictionaries have the same levels in the same
# order, agree on validity, and count the same deletions of missing levels.
@given(streams())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_every_frame_leaves_the_levels_of_a_plain_book(frames):
    book, plain = Book(), PlainBook()
    for frame in frames:
        book.apply(frame)
        for row in frame[np.isin(frame["kind"], (Kind.SNAPSHOT, Kind.DELTA))]:
            plain.apply(row)
        assert book.bids() == plain.levels(1)
        assert book.asks() == plain.levels(-1)
        assert book.valid == plain.valid
    assert book.counters["unheld"] == plain.unheld


# Invariant: best and next-worse search return every level in order, at any distance.
@given(st.lists(st.tuples(st.sampled_from((1, -1)), TICKS, st.integers(0, 3)), max_size=60))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_levels_many_table_widths_apart_are_found_in_order(changes):
    state, plain = bk.new_state(), PlainBook()
    for side, tick, lots in changes:
        held = plain.sides[side].pop(tick, 0)
        if lots:
            plain.sides[side][tick] = lots
        assert bk.set_level(state, side, tick, lots) == held
        for s in (1, -1):
            walked, tick = [], bk.best(state, s)
            while tick != NO_LEVEL:
                walked.append((tick, bk.level(state, s, tick)))
                tick = bk.next_level(state, s, tick)
            assert walked == plain.levels(s)


def test_rows_in_one_call_and_row_by_row_leave_the_same_bytes(data_dir: Path):
    events = recorded(data_dir, "bybit-linear-20260809", "BTCUSDT", 20)
    whole, single = Book(), Book()
    frames = whole.apply(events)
    assert frames == sum(single.apply(events[n : n + 1]) for n in range(len(events)))
    np.testing.assert_array_equal(whole.state, single.state)


@pytest.mark.parametrize("name", ["bybit-linear-20260809", "usdm-20240808"])
def test_a_recording_is_followed_level_by_level_and_never_crosses(data_dir: Path, name: str):
    events = recorded(data_dir, name, "BTCUSDT", 20)
    events = events[np.isin(events["kind"], (Kind.SNAPSHOT, Kind.DELTA))]
    ends = np.flatnonzero(events["flags"] & Flag.LAST) + 1
    book, plain, start = Book(), PlainBook(), 0
    for end in ends:
        book.apply(events[start:end])
        for row in events[start:end]:
            plain.apply(row)
        start = end
        assert (book.bids(), book.asks()) == (plain.levels(1), plain.levels(-1))
        assert book.valid
    trouble = ("unheld", "evicted", "gaps", "crossed", "one_sided", "refused")
    assert [book.counters[name] for name in trouble] == [0] * len(trouble)
    assert book.counters["frames"] == len(ends)
    assert book.update_id == events["update_id"][-1]


# Conservation: quantity added less quantity taken away is the quantity in the book.
@given(streams())
@settings(max_examples=50, deadline=None, derandomize=True)
def test_quantity_is_conserved_between_snapshots(frames):
    state, balance = bk.new_state(), {1: 0, -1: 0}
    for frame in frames:
        for row in frame[np.isin(frame["kind"], (Kind.SNAPSHOT, Kind.DELTA))]:
            if row["kind"] == Kind.SNAPSHOT and row["flags"] & Flag.FIRST:
                balance = {1: 0, -1: 0}
                bk.clear(state)
            if row["side"]:
                held = bk.set_level(state, row["side"], row["price_ticks"], row["qty_lots"])
                balance[int(row["side"])] += int(row["qty_lots"]) - held
    for side in (1, -1):
        ticks, lots = np.zeros(WIDTH, np.int64), np.zeros(WIDTH, np.int64)
        assert lots[: bk.top(state, side, ticks, lots)].sum() == balance[side]


def test_a_book_is_invalid_until_its_first_snapshot():
    book = Book()
    assert not book.valid
    assert (book.best_bid, book.best_ask, book.bids(), book.update_id) == (None, None, [], 0)
    book.apply(delta((1, 100, 1), (-1, 101, 1), flags=Flag.GAP))
    assert not book.valid
    book.apply(snapshot(*SMALL))
    assert book.valid
    assert (book.best_bid, book.best_ask) == (100, 101)
    assert book.bids(2) == [(100, 5), (99, 7)]
    assert book.qty_lots(-1, 104) == 9
    assert book.qty_lots(-1, 103) == 0


def test_a_gap_invalidates_until_the_next_snapshot():
    book = Book()
    book.apply(snapshot(*SMALL))
    book.apply(delta((1, 100, 6), flags=Flag.GAP))
    assert not book.valid
    assert not book.synchronised
    book.apply(delta((1, 100, 7)))
    assert not book.valid
    book.apply(snapshot(*SMALL))
    assert book.valid
    assert book.counters["gaps"] == 1


def test_crossed_and_one_sided_frames_invalidate_and_the_next_frame_may_heal():
    book = Book()
    book.apply(snapshot(*SMALL))
    book.apply(delta((1, 101, 3)))
    assert not book.valid
    assert book.synchronised
    book.apply(delta((1, 101, 0)))
    assert book.valid
    book.apply(delta((-1, 101, 0), (-1, 104, 0)))
    assert not book.valid
    assert book.best_ask is None
    book.apply(delta((-1, 102, 1)))
    assert book.valid
    assert (book.counters["crossed"], book.counters["one_sided"]) == (1, 1)


def test_a_book_in_the_middle_of_a_frame_is_not_valid_and_cannot_be_restated():
    book = Book()
    book.apply(snapshot(*SMALL))
    frame = delta((1, 100, 0), (1, 99, 1))
    book.apply(frame[:1])
    assert not book.valid
    with pytest.raises(ValueError, match="middle of a frame"):
        book.snapshot_rows(START_NS)
    book.apply(frame[1:])
    assert book.valid


def test_deleting_a_missing_level_is_a_counted_no_op():
    book = Book()
    book.apply(snapshot(*SMALL))
    before = book.bids()
    book.apply(delta((1, 98, 0), (1, 100 - WIDTH, 0)))
    assert book.bids() == before
    assert book.counters["unheld"] == 2


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize("better_first", [True, False])
def test_on_a_slot_collision_the_better_level_stays_and_eviction_counts(side, better_first):
    book, better, worse = Book(), 10 * WIDTH, 10 * WIDTH - side * WIDTH
    for tick in (better, worse) if better_first else (worse, better):
        bk.set_level(book.state, side, tick, 4)
    assert (book.bids() if side > 0 else book.asks()) == [(better, 4)]
    assert book.counters["evicted"] == 1


def test_rows_of_unknown_side_or_negative_quantity_are_refused():
    book = Book()
    book.apply(snapshot(*SMALL))
    before = book.bids(), book.asks()
    book.apply(delta((1, 100, -1), (-5, 100, 3), (7, 100, 3)))
    assert (book.bids(), book.asks()) == before
    assert book.counters["refused"] == 3
    with pytest.raises(ValueError, match="dtype"):
        book.apply(np.zeros(3, np.int64))


def test_an_empty_frame_moves_only_time_and_update_id():
    book = Book()
    book.apply(snapshot(*SMALL))
    before = book.bids(), book.asks()
    frame = delta((0, 0, 0), now_ns=START_NS + 5)
    frame["update_id"] = 77
    book.apply(frame)
    assert (book.bids(), book.asks(), book.update_id) == (*before, 77)
    assert book.receive_ns == START_NS + 5


def test_a_book_silent_beyond_the_limit_is_stale():
    book = Book()
    assert book.stale(START_NS, 10)
    book.apply(snapshot(*SMALL))
    assert not book.stale(START_NS + 10, 10)
    assert book.stale(START_NS + 11, 10)


# Invariant: applying the checkpoint of a synchronised book to any other book gives this book.
@given(streams(), streams(max_frames=5))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_checkpoint_read_alone_gives_the_same_book(frames, others):
    book, other = Book(), Book()
    for frame in frames:
        book.apply(frame)
    for frame in others:
        other.apply(frame)
    rows = book.snapshot_rows(START_NS)
    assert rows.dtype == EVENT
    assert (len(rows) > 0) == book.synchronised
    if len(rows):
        other.apply(rows)
        assert (other.bids(), other.asks()) == (book.bids(), book.asks())
        assert (other.valid, other.update_id) == (book.valid, book.update_id)
        assert (rows["flags"] & Flag.CHECKPOINT).all()


def test_a_checkpoint_over_a_valid_book_does_not_make_it_fresher():
    book = Book()
    book.apply(snapshot(*SMALL))
    book.apply(book.snapshot_rows(START_NS + 1000))
    assert book.receive_ns == START_NS
    assert (book.counters["frames"], book.counters["checkpoints"]) == (1, 1)
    fresh = Book()
    fresh.apply(book.snapshot_rows(START_NS + 1000))
    assert fresh.receive_ns == START_NS + 1000
