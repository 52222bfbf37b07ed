"""Faults between the venue and us: sequence gaps, resets, duplicate frames, clock skew.

Faults are keyed to book frames, so that a part of a day has those of the whole. The rows are those that
ingest makes of the frames as received:

    gap        book frames are missing; the next one is flagged GAP, and a snapshot follows after
               `RECOVERY_FRAMES`, as after a new subscription
    reset      the venue restarts its book: a snapshot with update id 1, and counting on from there
    duplicate  a book frame comes twice: nothing in events, one more line in a capture
    skew       the local clock is off: receive times shift
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from market.book import Book
from market.events import EVENT, Events, Flag, Kind
from market.units import MS_NS
from proving.synthetic.latent import FRAMES, generator
from proving.synthetic.profiles import Profile

#: Book frames between the first one after a gap and the snapshot that resynchronises.
RECOVERY_FRAMES: Final = 15
#: Longest gap (frames).
LONGEST_GAP: Final = 20

_DELTA: Final = int(Kind.DELTA)
_FIRST: Final = int(Flag.FIRST)
_LAST: Final = int(Flag.LAST)
_GAP: Final = int(Flag.GAP)


def has_faults(profile: Profile) -> bool:
    """Whether a profile has any faults."""
    return any(
        (profile.gaps_per_h, profile.resets_per_h, profile.duplicates_per_h, profile.skew_ms)
    )


class Transport:
    """The faults of one symbol-day; takes whole frames in order."""

    def __init__(
        self, profile: Profile, seed: int, symbol: str, day: str, first_update: int, levels: int
    ) -> None:
        rng = generator(seed, symbol, day, "faults")
        hours = 24.0

        def drawn(per_h: float) -> npt.NDArray[np.int64]:
            # Not at once: a capture that opens with a fault would have no book.
            return np.unique(rng.integers(50, FRAMES, rng.poisson(per_h * hours)))

        gaps = drawn(profile.gaps_per_h)
        self._lost = {
            int(first + n)
            for first, length in zip(gaps, rng.integers(1, LONGEST_GAP + 1, len(gaps)), strict=True)
            for n in range(length)
        }
        last_lost = {frame for frame in self._lost if frame + 1 not in self._lost}
        self._after_gap = {frame + 1 for frame in last_lost}
        self._resynchronised = {frame + 1 + RECOVERY_FRAMES for frame in last_lost} - self._lost
        self._resets = set(drawn(profile.resets_per_h).tolist()) - self._lost
        self._twice = set(drawn(profile.duplicates_per_h).tolist()) - self._lost
        self._skew_ns = round(profile.skew_ms * MS_NS)
        self._first_update, self._levels = first_update, levels
        self._book = Book()
        self._offset = 0  #: subtracted from update ids since the last reset

    def carried(self, rows: Events) -> tuple[Events, npt.NDArray[np.int64]]:
        """The rows received of some whole frames, and the places of frames that come twice."""
        lasts = np.flatnonzero(rows["flags"] & _LAST)
        firsts = np.concatenate([[0], lasts[:-1] + 1])
        pieces: list[Events] = []
        twice: list[int] = []
        place = at = 0
        for first, last in self._faulty(rows, firsts, lasts):
            frame, stop = int(rows["update_id"][first]) - self._first_update, last + 1
            pieces.append(self._renumbered(rows[at:first]))
            place += int(np.count_nonzero(rows["flags"][at:first] & _LAST))
            self._book.apply(rows[at:stop])
            at = stop
            if frame in self._lost:
                continue
            own = rows[first:stop]
            if frame in self._resets:
                self._offset = int(rows["update_id"][first]) - 1
                own = self._snapshot(own)
            elif frame in self._resynchronised:
                own = self._snapshot(own)
            elif frame in self._after_gap and own["kind"][0] == _DELTA:
                own = own.copy()
                own["flags"][0] |= _GAP
            if frame in self._twice and own["kind"][0] == _DELTA:
                twice.append(place)
            pieces.append(self._renumbered(own))
            place += 1
        self._book.apply(rows[at:])
        pieces.append(self._renumbered(rows[at:]))
        out = np.concatenate(pieces) if len(pieces) > 1 else pieces[0]
        out["receive_ns"] += self._skew_ns
        return out, np.array(twice, np.int64)

    def _faulty(
        self, rows: Events, firsts: npt.NDArray[np.int64], lasts: npt.NDArray[np.int64]
    ) -> list[tuple[int, int]]:
        """(first, last) row of each book frame with a fault."""
        books = rows["kind"][firsts] <= _DELTA
        numbers = rows["update_id"][firsts] - self._first_update
        numbers_of_faults = (
            self._lost | self._after_gap | self._resynchronised | self._resets | self._twice
        )
        places = np.flatnonzero(books & np.isin(numbers, list(numbers_of_faults)))
        return [(int(firsts[n]), int(lasts[n])) for n in places]

    def _renumbered(self, rows: Events) -> Events:
        rows = rows.copy()
        if self._offset:
            rows["update_id"][rows["kind"] <= _DELTA] -= self._offset
        return rows

    def _snapshot(self, frame: Events) -> Events:
        """A snapshot of the book after a frame, to replace it."""
        sides = ((1, self._book.bids(self._levels)), (-1, self._book.asks(self._levels)))
        rows = np.zeros(sum(len(levels) for _, levels in sides), EVENT)
        for name in ("receive_ns", "exchange_ns", "publish_ns", "update_id", "pad"):
            rows[name] = frame[name][0]
        rows["kind"] = int(Kind.SNAPSHOT)
        rows["side"] = [side for side, levels in sides for _ in levels]
        both = [level for _, levels in sides for level in levels]
        rows["price_ticks"], rows["qty_lots"] = zip(*both, strict=True)
        rows["flags"][0] |= _FIRST
        rows["flags"][-1] |= _LAST
        return rows
