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
def test_at_every_frame_the_conflated_book_equals_the_feeds(frames: list[Events]) -> None:
    """Invariant: after each frame shown, at its instant, both feeds give the same book."""
    feed = np.concatenate(frames)
    slower = np.concatenate(list(conflated([feed])))
    for instant in np.unique(slower["receive_ns"][is_book(slower)]):
        assert levels(slower, instant) == levels(feed, instant)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(streams())
def test_one_frame_per_period_with_an_update_at_its_end(frames: list[Events]) -> None:
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
def test_other_events_pass_unchanged_and_receive_times_never_fall(
    frames: list[Events],
) -> None:
    feed = np.concatenate(frames)
    slower = np.concatenate(list(conflated([feed])))
    assert slower[~is_book(slower)].tobytes() == feed[~is_book(feed)].tobytes()
    assert np.all(np.diff(slower["receive_ns"]) >= 0)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(streams(), st.lists(st.integers(0, 400), max_size=6))
def test_conflation_does_not_depend_on_chunk_sizes(frames: list[Events], cuts: list[int]) -> None:
    feed = np.concatenate(frames)
    pieces = np.split(feed, sorted(cut for cut in cuts if cut < len(feed)))
    once, cut = list(conflated([feed])), list(conflated(pieces))
    assert np.concatenate(cut).tobytes() == np.concatenate(once).tobytes()


def test_an_empty_feed_conflates_to_nothing() -> None:
    feed = Conflation()
    assert len(feed.push(np.zeros(0, EVENT))) == 0
    assert len(feed.finish()) == 0


@pytest.mark.parametrize("name", ["usdm-20240718", "bybit-linear-20260809"])
def test_recorded_books_are_conflated_without_loss(name: str, data_dir: Path) -> None:
    """The end of the recording, and twenty instants of it: the same 200 levels a side."""
    feed = recorded(data_dir, name, "BTCUSDT", 30)
    slower = np.concatenate(list(conflated([feed[:20_000], feed[20_000:]])))
    instants = np.unique(slower["receive_ns"][is_book(slower)])
    assert np.all(np.diff(instants) % PERIOD_NS == 0)
    for instant in instants[:: len(instants) // 20]:
        assert levels(slower, instant) == levels(feed, instant)
