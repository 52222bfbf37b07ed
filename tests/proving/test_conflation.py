"""A slower feed says the same: the book at every instant of its grid, and everything else as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.book import Book
from market.events import EVENT, Events, Flag, Kind
from proving.realism.conflation import PERIOD_NS, Conflation, conflated
from tests.market.streams import recorded, streams

BOOK_KINDS = (Kind.SNAPSHOT, Kind.DELTA)


def is_book(events: Events) -> np.ndarray:
    return np.isin(events["kind"], BOOK_KINDS)


def levels(events: Events, until_ns: int) -> tuple[bool, object, object]:
    """Whether the book is synchronised after all that was received up to an instant, and its levels."""
    book = Book()
    book.apply(events[events["receive_ns"] <= until_ns])
    if not book.synchronised:
        return False, None, None
    return True, book.bids(), book.asks()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(streams())
def test_at_every_frame_the_book_is_the_one_of_the_feed(frames: list[Events]) -> None:
    """Invariant: after each frame shown, at its instant, both feeds give the same book."""
    feed = np.concatenate(frames)
    slower = np.concatenate(list(conflated([feed])))
    for instant in np.unique(slower["receive_ns"][is_book(slower)]):
        assert levels(slower, instant) == levels(feed, instant)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(streams())
def test_one_frame_a_period_at_its_end_and_only_when_the_feed_spoke(frames: list[Events]) -> None:
    """Invariant: frames stand at multiples of the period, one for each period with a frame."""
    feed = np.concatenate(frames)
    slower = np.concatenate(list(conflated([feed])))
    shown = slower[is_book(slower)]
    ends = shown["receive_ns"][(shown["flags"] & Flag.LAST) > 0]
    heard = feed["receive_ns"][is_book(feed) & ((feed["flags"] & Flag.LAST) > 0)]
    assert ends.tolist() == sorted(set((-(-heard // PERIOD_NS) * PERIOD_NS).tolist()))
    assert np.sum((shown["flags"] & Flag.FIRST) > 0) == len(ends)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(streams())
def test_what_is_not_the_book_passes_unchanged_and_nothing_goes_back(
    frames: list[Events],
) -> None:
    feed = np.concatenate(frames)
    slower = np.concatenate(list(conflated([feed])))
    assert slower[~is_book(slower)].tobytes() == feed[~is_book(feed)].tobytes()
    assert np.all(np.diff(slower["receive_ns"]) >= 0)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(streams(), st.lists(st.integers(0, 400), max_size=6))
def test_the_result_does_not_depend_on_how_the_feed_is_cut(
    frames: list[Events], cuts: list[int]
) -> None:
    feed = np.concatenate(frames)
    pieces = np.split(feed, sorted(cut for cut in cuts if cut < len(feed)))
    once, cut = list(conflated([feed])), list(conflated(pieces))
    assert np.concatenate(cut).tobytes() == np.concatenate(once).tobytes()


def test_a_feed_without_events_gives_none() -> None:
    feed = Conflation()
    assert len(feed.push(np.zeros(0, EVENT))) == 0
    assert len(feed.finish()) == 0


@pytest.mark.parametrize("name", ["usdm-20240718", "bybit-linear-20260809"])
def test_recorded_books_are_followed_frame_by_frame(name: str, data_dir: Path) -> None:
    """The end of the recording, and twenty instants of it: the same 200 levels a side."""
    feed = recorded(data_dir, name, "BTCUSDT", 30)
    slower = np.concatenate(list(conflated([feed[:20_000], feed[20_000:]])))
    instants = np.unique(slower["receive_ns"][is_book(slower)])
    assert np.all(np.diff(instants) % PERIOD_NS == 0)
    for instant in instants[:: len(instants) // 20]:
        assert levels(slower, instant) == levels(feed, instant)
