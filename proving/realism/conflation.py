"""A feed made slower: the same events with at most one book frame per period.

Feeds differ in pace: one venue sends a book frame every 50 ms, another every 100 ms. What is counted
per frame (additions, cancels, lifetimes, moves) can be compared only at one pace. `Conflation` shows
each book as it stands at the instants of a grid of receive time and lets everything else pass, so
that whatever reads events reads its output as well. Nothing is interpolated: a frame comes only
after an instant in front of which the feed said something of the book.
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

# Places in ``head`` (int64).
_DUE: Final = 0  #: the next instant of the grid; zero before the first event
_PERIOD: Final = 1
_TOUCHED: Final = 2  #: entries of ``touched`` since the last frame shown
_HEARD: Final = 3  #: a frame ended since the last one shown
_RESTATED: Final = 4  #: the book was replaced since
_GAPS: Final = 5  #: gaps of the feed that have been shown
_UPDATE: Final = 6  #: update id of the last frame shown
_HEAD: Final = 7


@kernel
def _row(out: Events, n: int, source: BookState, head: Any, kind: int) -> None:
    """Begin a row of the frame that is being shown."""
    begin_row(out, n, head[_DUE], source[0].exchange_ns, source[0].publish_ns, head[_UPDATE], kind)


@kernel
def _level_row(
    out: Events, n: int, source: BookState, head: Any, kind: int, side: int, ticks: int, lots: int
) -> None:
    _row(out, n, source, head, kind)
    out[n].side = side
    out[n].price_ticks = ticks
    out[n].qty_lots = lots


@kernel
def _show(out: Events, n: int, source: BookState, shown: BookState, head: Any, touched: Any) -> int:
    """Write the frame due; returns the next free row."""
    first = n
    head[_UPDATE] += 1
    lost = source[0].gaps > head[_GAPS]
    head[_GAPS] = source[0].gaps
    whole = source[0].status & SYNCHRONISED != 0
    restate = whole and (head[_RESTATED] != 0 or lost)
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
        for k in range(head[_TOUCHED]):
            side, ticks = touched[k, 0], touched[k, 1]
            lots = level(source, side, ticks)
            # A level named twice differs from what was shown only the first time.
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
        head[_RESTATED] = 0
    elif lost:
        head[_RESTATED] = 1
    head[_TOUCHED] = 0
    head[_HEARD] = 0
    return n


@kernel
def _conflate(
    out: Events,
    out_words: Any,
    events: Events,
    words: Any,
    source: BookState,
    shown: BookState,
    head: Any,
    touched: Any,
) -> int:
    """Take event rows in; returns the number of rows written to ``out`` (its rows must suffice)."""
    n = 0
    for i in range(len(events)):
        event = events[i]
        if head[_DUE] == 0:
            head[_DUE] = (event.receive_ns + head[_PERIOD] - 1) // head[_PERIOD] * head[_PERIOD]
        if event.receive_ns > head[_DUE]:
            if head[_HEARD]:
                n = _show(out, n, source, shown, head, touched)
            behind = event.receive_ns - head[_DUE] + head[_PERIOD] - 1
            head[_DUE] += behind // head[_PERIOD] * head[_PERIOD]
        if event.kind != _DELTA and event.kind != _SNAPSHOT:
            for word in range(_WORDS):
                out_words[n, word] = words[i, word]
            n += 1
            continue
        if event.kind == _SNAPSHOT and event.flags & _FIRST:
            head[_RESTATED] = 1
        if event.side != 0:
            touched[head[_TOUCHED], 0] = event.side
            touched[head[_TOUCHED], 1] = event.price_ticks
            head[_TOUCHED] += 1
        if apply(source, event):
            head[_HEARD] = 1
    return n


class Conflation:
    """One symbol's feed at one book frame a period, as it comes."""

    def __init__(self, period_ns: int = PERIOD_NS) -> None:
        self._source, self._shown = new_state(), new_state()
        self._head = np.zeros(_HEAD, np.int64)
        self._head[_PERIOD] = period_ns
        self._touched = np.zeros((0, 2), np.int64)

    def push(self, events: Events) -> Events:
        """Event rows in receive order (dtype ``EVENT``) → the rows of the slower feed up to there.

        A book frame is shown at the end of its period, so it comes with a later call if that end has
        not been reached.
        """
        if len(events) == 0:
            return np.empty(0, EVENT)
        held = int(self._head[_TOUCHED])
        self._touched = np.concatenate([self._touched[:held], np.empty((len(events), 2), np.int64)])
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
        """The feed has ended: the frame of the last period, if it has one."""
        if not self._head[_HEARD]:
            return np.empty(0, EVENT)
        out = self._room(0)
        return out[: _show(out, 0, self._source, self._shown, self._head, self._touched)]

    def _room(self, rows: int) -> Events:
        """Rows for what comes in, and for what is held: changes, or the whole book."""
        held = int(self._head[_TOUCHED]) + count(self._source, 1) + count(self._source, -1)
        return np.empty(rows + held + 2, EVENT)


def conflated(chunks: Iterable[Events], period_ns: int = PERIOD_NS) -> Iterator[Events]:
    """A finite stream of event chunks at one book frame a period."""
    feed = Conflation(period_ns)
    for chunk in chunks:
        yield feed.push(chunk)
    yield feed.finish()


def _words(events: Events) -> npt.NDArray[np.int64]:
    return events.view(np.int64).reshape(len(events), _WORDS)
