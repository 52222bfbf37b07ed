"""The order book: a compiled kernel over event rows, the same for a whole day and for one frame.

Levels are absolute quantities (level 2): a SNAPSHOT row flagged FIRST empties the book, every row
sets the quantity of a price, zero deletes it. Both sides share one code path. A level is known by
its *key*, ``-side * price_ticks``: on either side a smaller key is a better price, so "next worse"
is always "next larger". Each side is a direct-mapped hash table of ``WIDTH`` slots (slot = key modulo
``WIDTH``, the key stored as a tag) under a bitmap, so that setting a level costs the same at any
depth and walking outwards reads one bit per tick. Two levels of one side collide only when they lie
a multiple of ``WIDTH`` ticks apart (13 % of the price for BTC at 100,000); the better one stays and
the other is counted as evicted.

Status after a row (`is_valid` is "synchronised and none of the others"):

    no snapshot ──SNAPSHOT FIRST──► synchronised ──GAP──► unsynchronised ──SNAPSHOT FIRST──► …

and, judged at the ``LAST`` row of each frame, *crossed* (best bid >= best ask) or *one-sided*, which
the next frame may heal. Between the first and the last row of a frame the book is not valid either.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import intrinsic

from market.events import EVENT, Events, Flag, Kind
from market.kernel import kernel

WIDTH: Final = 1 << 17  #: slots of a side
_MASK: Final = WIDTH - 1
_WORDS: Final = WIDTH // 64

#: What `best`, `next_level` and the like say when there is no level.
NO_LEVEL: Final = -(1 << 62)
NO_KEY: Final = 1 << 62

#: A book as one structured record. Pairs are bids, then asks.
BOOK: Final = np.dtype(
    [
        ("best", "i8", (2,)),  # smallest key, NO_KEY for an empty side
        ("worst", "i8", (2,)),  # upper bound of the keys; tightened when a search proves it loose
        ("count", "i8", (2,)),  # levels in the book
        ("status", "i8"),  # bits below
        ("update_id", "i8"),  # of the last whole frame
        ("receive_ns", "i8"),  # of the last venue frame (a checkpoint only when it opens a book)
        ("exchange_ns", "i8"),
        ("publish_ns", "i8"),
        ("frames", "i8"),  # whole frames of the venue
        ("checkpoints", "i8"),  # whole frames that restated the book
        ("levels", "i8"),  # level rows applied
        ("unheld", "i8"),  # deletions of a level that does not exist: no-ops
        ("evicted", "i8"),  # levels lost to a better one a multiple of WIDTH ticks away
        ("gaps", "i8"),  # rows flagged GAP
        ("crossed", "i8"),  # frames that left the book crossed
        ("one_sided", "i8"),  # frames that left a side empty
        ("refused", "i8"),  # rows of unknown side or negative quantity: not applied
        ("live", "i8", (2, _WORDS)),  # bitmap of the slots in use
        ("slots", [("key", "i8"), ("lots", "i8")], (2, WIDTH)),  # zero lots: a free slot
    ]
)
_COUNTERS: Final = (
    *("frames", "checkpoints", "levels"),
    *("unheld", "evicted", "gaps", "crossed", "one_sided", "refused"),
)

#: Bits of ``status``.
SYNCHRONISED: Final = 1  #: a snapshot came and no frame is known to be missing since
IN_FRAME: Final = 2  #: the last row of the frame in progress is still due
CROSSED: Final = 4
ONE_SIDED: Final = 8
_WAS_VALID: Final = 16  #: the frame in progress restates a book that was valid

_SNAPSHOT: Final = int(Kind.SNAPSHOT)
_DELTA: Final = int(Kind.DELTA)
_LAST: Final = int(Flag.LAST)
_FIRST: Final = int(Flag.FIRST)
_GAP: Final = int(Flag.GAP)
_CHECKPOINT: Final = int(Flag.CHECKPOINT)

#: What the kernels take: shape (1,) of dtype ``BOOK``. An array, because numba takes an array from
#: Python in 0.2 µs and a record in 2 µs.
BookState = npt.NDArray[np.void]


def new_state() -> BookState:
    """An empty book without a snapshot (4 MB, of which the system backs only the touched pages)."""
    state = np.zeros(1, BOOK)
    state["best"] = NO_KEY
    state["worst"] = -NO_KEY
    return state


@intrinsic
def _trailing_zeros(_: Any, word: Any) -> Any:
    """Number of zero bits below the lowest set bit of a non-zero int64."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], context.get_constant(types.boolean, True))

    return types.int64(types.int64), code


@kernel
def row_of(side: int) -> int:
    """Row of a side: bids (+1) are 0, asks (-1) are 1."""
    return (1 - side) >> 1


@kernel
def next_key(state: BookState, row: int, key: int) -> int:
    """The smallest key in the book above ``key``, ``NO_KEY`` when there is none."""
    book = state[0]
    worst = book.worst[row]
    if key >= worst:
        return NO_KEY
    first = (key + 1) & _MASK
    word = first >> 6
    bits = book.live[row, word] & (-1 << (first & 63))
    nearest = NO_KEY
    # A whole turn visits the first word twice, the second time for the slots before ``first``.
    for _ in range(min(_WORDS, ((worst - key) >> 6) + 1) + 1):
        while bits != 0:
            candidate = book.slots[row, (word << 6) + _trailing_zeros(bits)].key
            if candidate > key:
                if candidate - key <= WIDTH:
                    return int(candidate)
                nearest = min(nearest, candidate)
            bits &= bits - 1
        word = (word + 1) & (_WORDS - 1)
        bits = book.live[row, word]
    if nearest == NO_KEY:
        book.worst[row] = key
    return nearest


@kernel
def set_level(state: BookState, side: int, price_ticks: int, qty_lots: int) -> int:
    """Set a level's absolute quantity (zero deletes it); returns the quantity before.

    ``side`` is +1 for bids, -1 for asks. Deleting a level that does not exist is counted and changes
    nothing.
    """
    book = state[0]
    row = row_of(side)
    key = -side * price_ticks
    place = key & _MASK
    slot = book.slots[row, place]
    before = slot.lots
    if before != 0 and slot.key != key:
        if qty_lots == 0:
            book.unheld += 1
            return 0
        book.evicted += 1
        if slot.key < key:
            return 0
        book.count[row] -= 1
        before = 0
    slot.lots = qty_lots
    if qty_lots == 0:
        if before == 0:
            book.unheld += 1
            return 0
        book.live[row, place >> 6] &= ~(1 << (key & 63))
        book.count[row] -= 1
        if key == book.best[row]:
            book.best[row] = next_key(state, row, key)
    elif before == 0:
        slot.key = key
        book.live[row, place >> 6] |= 1 << (key & 63)
        book.count[row] += 1
        book.best[row] = min(book.best[row], key)
        book.worst[row] = max(book.worst[row], key)
    return int(before)


@kernel
def lots_at(state: BookState, row: int, key: int) -> int:
    """Lots at a key, zero when it is not in the book; for walks with `next_key`."""
    slot = state[0].slots[row, key & _MASK]
    return int(slot.lots) if slot.key == key else 0


@kernel
def is_occupied(state: BookState, row: int, key: int) -> bool:
    """Whether another key has this key's slot: setting the key would evict one of the two."""
    slot = state[0].slots[row, key & _MASK]
    return bool(slot.lots != 0 and slot.key != key)


@kernel
def level(state: BookState, side: int, price_ticks: int) -> int:
    """Quantity in lots at a price; zero when there is no level."""
    return int(lots_at(state, row_of(side), -side * price_ticks))


@kernel
def best_key(state: BookState, row: int) -> int:
    """Key of the best level of a row, ``NO_KEY`` when the side is empty."""
    return int(state[0].best[row])


@kernel
def best(state: BookState, side: int) -> int:
    """Best price of a side in ticks, `NO_LEVEL` when the side is empty."""
    key = best_key(state, row_of(side))
    return NO_LEVEL if key == NO_KEY else -side * key


@kernel
def mid_ticks(state: BookState) -> float:
    """The mid in ticks; neither side may be empty."""
    return float(best(state, 1) + best(state, -1)) / 2


@kernel
def next_level(state: BookState, side: int, price_ticks: int) -> int:
    """The next worse price that has a level, in ticks; `NO_LEVEL` at the end of the side."""
    key = next_key(state, row_of(side), -side * price_ticks)
    return NO_LEVEL if key == NO_KEY else -side * key


@kernel
def count(state: BookState, side: int) -> int:
    """Number of levels of a side."""
    return int(state[0].count[row_of(side)])


@kernel
def top(
    state: BookState, side: int, ticks: npt.NDArray[np.int64], lots: npt.NDArray[np.int64]
) -> int:
    """Write the best ``len(ticks)`` levels of a side, best first; returns how many there were."""
    row = row_of(side)
    key = best_key(state, row)
    levels = min(len(ticks), count(state, side))
    for n in range(levels):
        ticks[n] = -side * key
        lots[n] = lots_at(state, row, key)
        if n + 1 < levels:
            key = next_key(state, row, key)
    return int(levels)


@kernel
def is_valid(state: BookState) -> bool:
    """Whether the book may be used: synchronised, whole, two-sided and not crossed."""
    status = state[0].status & (SYNCHRONISED | IN_FRAME | CROSSED | ONE_SIDED)
    return bool(status == SYNCHRONISED)


@kernel
def clear(state: BookState) -> None:
    """Delete all levels; status and counters stay."""
    book = state[0]
    for row in range(2):
        if book.count[row] > 0:
            for word in range(_WORDS):
                bits = book.live[row, word]
                while bits != 0:
                    book.slots[row, (word << 6) + _trailing_zeros(bits)].lots = 0
                    bits &= bits - 1
                book.live[row, word] = 0
        book.count[row] = 0
        book.best[row] = NO_KEY
        book.worst[row] = -NO_KEY


@kernel
def begin_row(state: BookState, event: Any) -> None:
    """The part of a book row before its level: gaps and snapshots."""
    book = state[0]
    if event.flags & _GAP:
        book.gaps += 1
        book.status &= ~SYNCHRONISED
    if event.kind == _SNAPSHOT and event.flags & _FIRST:
        restates = event.flags & _CHECKPOINT and is_valid(state)
        clear(state)
        book.status = SYNCHRONISED | (_WAS_VALID if restates else 0)
    book.status |= IN_FRAME


@kernel
def set_row(state: BookState, event: Any) -> int:
    """The level of a book row, if it has one; returns the quantity there before."""
    if event.side == 0:
        return 0
    if event.qty_lots < 0 or (event.side != 1 and event.side != -1):
        state[0].refused += 1
        return 0
    state[0].levels += 1
    return int(set_level(state, event.side, event.price_ticks, event.qty_lots))


@kernel
def end_row(state: BookState, event: Any) -> bool:
    """The part of a book row after its level; True when the row ends its frame."""
    if event.flags & _LAST == 0:
        return False
    book = state[0]
    status = book.status & ~(IN_FRAME | CROSSED | ONE_SIDED | _WAS_VALID)
    if book.count[0] == 0 or book.count[1] == 0:
        status |= ONE_SIDED
        book.one_sided += 1
    elif -book.best[0] >= book.best[1]:
        status |= CROSSED
        book.crossed += 1
    if event.flags & _CHECKPOINT:
        book.checkpoints += 1
    else:
        book.frames += 1
    # A checkpoint over a valid book is not news: the book stays as old as its last frame.
    if book.status & _WAS_VALID == 0:
        book.receive_ns = event.receive_ns
        book.exchange_ns = event.exchange_ns
        book.publish_ns = event.publish_ns
    book.update_id = event.update_id
    book.status = status
    return True


@kernel
def apply(state: BookState, event: Any) -> bool:
    """Apply one event row; rows of other kinds change nothing.

    Returns True when the row ends a book frame.
    """
    if event.kind != _DELTA and event.kind != _SNAPSHOT:
        return False
    if event.flags != 0:
        begin_row(state, event)
    set_row(state, event)
    return bool(event.flags & _LAST != 0 and end_row(state, event))


@kernel
def apply_rows(state: BookState, events: Events) -> int:
    """Apply event rows in order; returns the number of book frames that ended there."""
    frames = 0
    for n in range(len(events)):
        frames += apply(state, events[n])
    return frames


class Book:
    """One symbol's book for Python code; ``state`` is what the kernels take."""

    def __init__(self) -> None:
        self.state = new_state()

    def apply(self, events: Events) -> int:
        """Apply event rows (dtype ``EVENT``, shape (n,)); returns the number of frames ended."""
        if events.dtype != EVENT:
            raise ValueError(f"events of dtype {events.dtype}: expected market.events.EVENT")
        return int(apply_rows(self.state, events))

    @property
    def valid(self) -> bool:
        """Synchronised, whole, two-sided and not crossed."""
        return bool(is_valid(self.state))

    @property
    def synchronised(self) -> bool:
        """A snapshot came and no frame is known to be missing since."""
        return bool(self.state[0]["status"] & SYNCHRONISED)

    def stale(self, now_ns: int, limit_ns: int) -> bool:
        """Whether the book is invalid, or its last frame is older than the limit."""
        return not self.valid or now_ns - self.receive_ns > limit_ns

    @property
    def best_bid(self) -> int | None:
        """Best bid in ticks, None when there is no bid."""
        return self._best(1)

    @property
    def best_ask(self) -> int | None:
        """Best ask in ticks, None when there is no ask."""
        return self._best(-1)

    def _best(self, side: int) -> int | None:
        ticks = int(best(self.state, side))
        return None if ticks == NO_LEVEL else ticks

    def qty_lots(self, side: int, price_ticks: int) -> int:
        """Displayed lots at a price; zero when there is no level."""
        return int(level(self.state, side, price_ticks))

    def bids(self, n: int | None = None) -> list[tuple[int, int]]:
        """The best ``n`` bids (all by default) as (price_ticks, qty_lots), best first."""
        return self._levels(1, n)

    def asks(self, n: int | None = None) -> list[tuple[int, int]]:
        """The best ``n`` asks (all by default) as (price_ticks, qty_lots), best first."""
        return self._levels(-1, n)

    def _levels(self, side: int, n: int | None) -> list[tuple[int, int]]:
        levels = int(count(self.state, side))
        if n is not None:
            levels = min(n, levels)
        ticks, lots = np.empty(levels, np.int64), np.empty(levels, np.int64)
        top(self.state, side, ticks, lots)
        return list(zip(ticks.tolist(), lots.tolist(), strict=True))

    @property
    def update_id(self) -> int:
        """Update id of the last whole frame, zero before the first."""
        return int(self.state[0]["update_id"])

    @property
    def receive_ns(self) -> int:
        """Receive time of the last frame, zero before the first."""
        return int(self.state[0]["receive_ns"])

    @property
    def counters(self) -> dict[str, int]:
        """Counts by name: frames, checkpoints, level rows, and every anomaly (see `BOOK`)."""
        return {name: int(self.state[0][name]) for name in _COUNTERS}

    def snapshot_rows(self, receive_ns: int) -> Events:
        """Event rows that restate the book at ``receive_ns`` (a SNAPSHOT frame, CHECKPOINT).

        Applying them to any book gives this one. Empty while the book is not synchronised, because
        a restatement would make it look valid. Raises ValueError in the middle of a frame.
        """
        state = self.state[0]
        if state["status"] & IN_FRAME:
            raise ValueError("the book is in the middle of a frame: apply its last row first")
        if not self.synchronised:
            return np.zeros(0, EVENT)
        bids, asks = self.bids(), self.asks()
        rows = np.zeros(max(1, len(bids) + len(asks)), EVENT)
        rows["receive_ns"] = receive_ns
        rows["exchange_ns"], rows["publish_ns"] = state["exchange_ns"], state["publish_ns"]
        rows["update_id"] = state["update_id"]
        rows["kind"], rows["flags"] = Kind.SNAPSHOT, Flag.CHECKPOINT
        if bids or asks:
            rows["side"] = [1] * len(bids) + [-1] * len(asks)
            rows["price_ticks"], rows["qty_lots"] = zip(*bids, *asks, strict=True)
        rows["flags"][0] |= Flag.FIRST
        rows["flags"][-1] |= Flag.LAST
        return rows
