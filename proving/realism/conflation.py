"""Conflation of a feed: the same events with at most one book frame per period.

One venue pushes a book frame every 50 ms, another every 100 ms; statistics per frame (additions,
cancels, lifetimes, moves) are comparable only at one rate. `Conflation` sends the book as of the
instants of a grid of receive time and passes every other event through, so that its output is an event
stream like any other. Nothing is interpolated: there is a frame only for periods with a book update.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from market.book import (
    NO_KEY,
    SYNCHRONISED,
    BookState,
    apply,
    best_key,
    count,
    level,
    lots_at,
    new_state,
    next_key,
    set_level,
)
from market.events import EVENT, Events, Flag, Kind, begin_row
from market.kernel import kernel

PERIOD_NS: Final = 100_000_000

_DELTA: Final = int(Kind.DELTA)
_SNAPSHOT: Final = int(Kind.SNAPSHOT)
_FIRST: Final = int(Flag.FIRST)
_LAST: Final = int(Flag.LAST)
_GAP: Final = int(Flag.GAP)
_WORDS: Final = EVENT.itemsize // 8

_HEAD: Final = np.dtype(
    [
        ("due_ns", "i8"),  # the next instant of the grid; zero before the first event
        ("period_ns", "i8"),
        ("touched", "i8"),  # levels in ``touched`` since the last frame sent
        ("updated", "i8"),  # whether a frame of the feed ended since then
        ("restated", "i8"),  # whether a snapshot replaced the book since then
        ("gaps", "i8"),  # gaps of the feed that were passed on
        ("update", "i8"),  # update id of the last frame sent
    ]
)


@kernel
def _row(out: Events, n: int, source: BookState, head: Any, kind: int) -> None:
    """Begin a row of the frame that is being sent."""
    begin_row(out, n, head.due_ns, source[0].exchange_ns, source[0].publish_ns, head.update, kind)


@kernel
def _level_row(
    out: Events, n: int, source: BookState, head: Any, kind: int, side: int, ticks: int, lots: int
) -> None:
    _row(out, n, source, head, kind)
    out[n].side = side
    out[n].price_ticks = ticks
    out[n].qty_lots = lots


@kernel
def _show(
    out: Events, n: int, source: BookState, shown: BookState, heads: Any, touched: Any
) -> int:
    """Write the frame that is due; returns the next free row."""
    head = heads[0]
    first = n
    head.update += 1
    lost = source[0].gaps > head.gaps
    head.gaps = source[0].gaps
    whole = source[0].status & SYNCHRONISED != 0
    restate = whole and (head.restated != 0 or lost)
    if restate:
        for row in range(2):
            side = 1 - 2 * row
            key = best_key(source, row)
            while key != NO_KEY:
                _level_row(
                    out, n, source, head, _SNAPSHOT, side, -side * key, lots_at(source, row, key)
                )
                n += 1
                key = next_key(source, row, key)
    elif whole:
        for k in range(head.touched):
            side, ticks = touched[k, 0], touched[k, 1]
            lots = level(source, side, ticks)
            # A level named twice is sent once.
            if lots != level(shown, side, ticks):
                set_level(shown, side, ticks, lots)
                _level_row(out, n, source, head, _DELTA, side, ticks, lots)
                n += 1
    if n == first:
        _row(out, n, source, head, _SNAPSHOT if restate else _DELTA)
        n += 1
    out[first].flags |= _FIRST | (_GAP if lost and not restate else 0)
    out[n - 1].flags |= _LAST
    if restate:
        for k in range(first, n):
            apply(shown, out[k])
        head.restated = 0
    elif lost:
        head.restated = 1
    head.touched = 0
    head.updated = 0
    return n


@kernel
def _conflate(
    out: Events,
    out_words: Any,
    events: Events,
    words: Any,
    source: BookState,
    shown: BookState,
    heads: Any,
    touched: Any,
) -> int:
    """Apply event rows; returns the number of rows written to ``out``, which must have room."""
    head, n = heads[0], 0
    for i in range(len(events)):
        event = events[i]
        if head.due_ns == 0:
            head.due_ns = (event.receive_ns + head.period_ns - 1) // head.period_ns * head.period_ns
        if event.receive_ns > head.due_ns:
            if head.updated:
                n = _show(out, n, source, shown, heads, touched)
            behind = event.receive_ns - head.due_ns + head.period_ns - 1
            head.due_ns += behind // head.period_ns * head.period_ns
        if event.kind != _DELTA and event.kind != _SNAPSHOT:
            for word in range(_WORDS):
                out_words[n, word] = words[i, word]
            n += 1
            continue
        if event.kind == _SNAPSHOT and event.flags & _FIRST:
            head.restated = 1
        if event.side != 0:
            touched[head.touched, 0] = event.side
            touched[head.touched, 1] = event.price_ticks
            head.touched += 1
        if apply(source, event):
            head.updated = 1
    return n


class Conflation:
    """One symbol's feed, conflated as it comes."""

    def __init__(self, period_ns: int = PERIOD_NS) -> None:
        self._source, self._shown = new_state(), new_state()
        self._head = np.zeros(1, _HEAD)
        self._head["period_ns"] = period_ns
        self._touched = np.zeros((0, 2), np.int64)

    def push(self, events: Events) -> Events:
        """Event rows in receive order (dtype ``EVENT``) → the rows of the conflated feed up to there.

        A book frame is sent at the end of its period, so with a later call if that is not reached.
        """
        if len(events) == 0:
            return np.empty(0, EVENT)
        pending = int(self._head["touched"][0])
        self._touched = np.concatenate(
            [self._touched[:pending], np.empty((len(events), 2), np.int64)]
        )
        events = np.ascontiguousarray(events)
        out = self._room(2 * len(events))
        n = _conflate(
            out,
            _words(out),
            events,
            _words(events),
            self._source,
            self._shown,
            self._head,
            self._touched,
        )
        return out[:n]

    def finish(self) -> Events:
        """The frame of the last period, if it has one, once the feed has ended."""
        if not self._head["updated"][0]:
            return np.empty(0, EVENT)
        out = self._room(0)
        return out[: _show(out, 0, self._source, self._shown, self._head, self._touched)]

    def _room(self, rows: int) -> Events:
        """Room for incoming rows, and for pending changes or the whole book."""
        pending = int(self._head["touched"][0]) + count(self._source, 1) + count(self._source, -1)
        return np.empty(rows + pending + 2, EVENT)


def conflated(chunks: Iterable[Events], period_ns: int = PERIOD_NS) -> Iterator[Events]:
    """A finite stream of event chunks, conflated."""
    feed = Conflation(period_ns)
    for chunk in chunks:
        yield feed.push(chunk)
    yield feed.finish()


def _words(events: Events) -> npt.NDArray[np.int64]:
    return events.view(np.int64).reshape(len(events), _WORDS)
