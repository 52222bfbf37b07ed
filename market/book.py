"""The order book: a compiled kernel over event rows, the same for a day and for one frame.

Both sides share one code path. A level is known by its *key*, ``-side * price_ticks``: on either
side a smaller key is a better price, so "next worse" is always "next larger". Each side is a
direct-mapped table of ``WIDTH`` slots (slot = key modulo ``WIDTH``, the key kept as a tag) with a
bitmap over it, so that setting a level costs the same at any depth and walking outwards reads one
bit per tick. Two live levels of one side can meet in a slot only when they lie a multiple of
``WIDTH`` ticks apart (13 % of the price for BTC at 100,000); the better one is kept and the loss is
counted in ``EVICTED``.

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

# Places in a book's state. BEST, WORST and COUNT take two each: bids, then asks. WORST bounds the
# keys of live levels from above; it may be loose, and is tightened when a search proves it.
BEST: Final = 0
WORST: Final = 2
COUNT: Final = 4
STATUS: Final = 6  #: bits below
UPDATE_ID: Final = 7  #: of the last whole frame
RECEIVE_NS: Final = 8  #: of the last frame the venue sent (a checkpoint only when it opens a book)
EXCHANGE_NS: Final = 9
PUBLISH_NS: Final = 10
FRAMES: Final = 11  #: whole frames the venue sent
CHECKPOINTS: Final = 12  #: whole frames that restated the book
LEVELS: Final = 13  #: level rows applied
UNHELD: Final = 14  #: deletions of a level that was not held: no-ops
EVICTED: Final = 15  #: levels lost because another lies WIDTH ticks away
GAPS: Final = 16  #: rows flagged GAP
CROSSED_FRAMES: Final = 17
ONE_SIDED_FRAMES: Final = 18
REFUSED: Final = 19  #: rows of no known side or with a negative quantity: not applied
_LIVE: Final = 32  #: 2 x _WORDS of bitmap: bids, then asks
_SLOTS: Final = _LIVE + 2 * _WORDS  #: 2 x WIDTH pairs of key and lots; no lots, no level
STATE_SIZE: Final = _SLOTS + 4 * WIDTH

#: Bits of STATUS.
SYNCHRONISED: Final = 1  #: a snapshot came and no frame is known to be missing since
IN_FRAME: Final = 2  #: rows of a frame came, its last one has not
CROSSED: Final = 4
ONE_SIDED: Final = 8
_WAS_VALID: Final = 16  #: the frame in progress restates a book that was valid

_SNAPSHOT: Final = int(Kind.SNAPSHOT)
_DELTA: Final = int(Kind.DELTA)
_LAST: Final = int(Flag.LAST)
_FIRST: Final = int(Flag.FIRST)
_GAP: Final = int(Flag.GAP)
_CHECKPOINT: Final = int(Flag.CHECKPOINT)


#: The whole book: int64, shape (STATE_SIZE,).
BookState = npt.NDArray[np.int64]


def new_state() -> BookState:
    """An empty book that has seen no snapshot (4 MB, of which only touched pages are real)."""
    state = np.zeros(STATE_SIZE, np.int64)
    state[BEST : BEST + 2] = NO_KEY
    state[WORST : WORST + 2] = -NO_KEY
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
def _slot_of(row: int, key: int) -> int:
    """Place of the pair (key, lots) where a key lives, if it does."""
    return _SLOTS + 2 * (row * WIDTH + (key & _MASK))


@kernel
def _word_of(row: int, key: int) -> int:
    """Place of the bitmap word of a key."""
    return _LIVE + row * _WORDS + ((key & _MASK) >> 6)


@kernel
def next_key(state: BookState, row: int, key: int) -> int:
    """The smallest live key above ``key``, ``NO_KEY`` when there is none."""
    worst = state[WORST + row]
    if key >= worst:
        return NO_KEY
    first = (key + 1) & _MASK
    word = first >> 6
    bits = state[_LIVE + row * _WORDS + word] & (-1 << (first & 63))
    nearest = NO_KEY
    # A whole turn visits the first word twice, the second time for the slots before ``first``.
    for _ in range(min(_WORDS, ((worst - key) >> 6) + 1) + 1):
        while bits != 0:
            found = state[_slot_of(row, (word << 6) + _trailing_zeros(bits))]
            if found > key:
                if found - key <= WIDTH:
                    return int(found)
                nearest = min(nearest, found)
            bits &= bits - 1
        word = (word + 1) & (_WORDS - 1)
        bits = state[_LIVE + row * _WORDS + word]
    if nearest == NO_KEY:
        state[WORST + row] = key
    return nearest


@kernel
def set_level(state: BookState, side: int, price_ticks: int, qty_lots: int) -> int:
    """Set a level's absolute quantity (zero deletes it); returns the quantity held before.

    ``side`` is +1 for bids, -1 for asks. Deleting a level that is not held is counted and changes
    nothing.
    """
    row = row_of(side)
    key = -side * price_ticks
    slot = _slot_of(row, key)
    held = state[slot + 1]
    if held != 0 and state[slot] != key:
        if qty_lots == 0:
            state[UNHELD] += 1
            return 0
        state[EVICTED] += 1
        if state[slot] < key:
            return 0
        state[COUNT + row] -= 1
        held = 0
    state[slot + 1] = qty_lots
    if qty_lots == 0:
        if held == 0:
            state[UNHELD] += 1
            return 0
        state[_word_of(row, key)] &= ~(1 << (key & 63))
        state[COUNT + row] -= 1
        if key == state[BEST + row]:
            state[BEST + row] = next_key(state, row, key)
    elif held == 0:
        state[slot] = key
        state[_word_of(row, key)] |= 1 << (key & 63)
        state[COUNT + row] += 1
        state[BEST + row] = min(state[BEST + row], key)
        state[WORST + row] = max(state[WORST + row], key)
    return int(held)


@kernel
def lots_at(state: BookState, row: int, key: int) -> int:
    """Lots of a key, zero when it is not live; for walks with `next_key`."""
    slot = _slot_of(row, key)
    return int(state[slot + 1]) if state[slot] == key else 0


@kernel
def is_occupied(state: BookState, row: int, key: int) -> bool:
    """Whether another key lives in this key's slot: setting the key would evict one of the two."""
    slot = _slot_of(row, key)
    return bool(state[slot + 1] != 0 and state[slot] != key)


@kernel
def level(state: BookState, side: int, price_ticks: int) -> int:
    """Quantity in lots at a price; zero when no level is held there."""
    return int(lots_at(state, row_of(side), -side * price_ticks))


@kernel
def best(state: BookState, side: int) -> int:
    """Best price of a side in ticks, `NO_LEVEL` when the side is empty."""
    key = state[BEST + row_of(side)]
    return NO_LEVEL if key == NO_KEY else -side * key


@kernel
def next_level(state: BookState, side: int, price_ticks: int) -> int:
    """The next worse price that holds a level, in ticks; `NO_LEVEL` at the end of the side."""
    key = next_key(state, row_of(side), -side * price_ticks)
    return NO_LEVEL if key == NO_KEY else -side * key


@kernel
def count(state: BookState, side: int) -> int:
    """Number of levels of a side."""
    return int(state[COUNT + row_of(side)])


@kernel
def top(
    state: BookState, side: int, ticks: npt.NDArray[np.int64], lots: npt.NDArray[np.int64]
) -> int:
    """Write the best ``len(ticks)`` levels of a side, best first; returns how many there were."""
    row = row_of(side)
    key = state[BEST + row]
    wanted = min(len(ticks), state[COUNT + row])
    for n in range(wanted):
        ticks[n] = -side * key
        lots[n] = lots_at(state, row, key)
        if n + 1 < wanted:
            key = next_key(state, row, key)
    return int(wanted)


@kernel
def is_valid(state: BookState) -> bool:
    """Whether the book can be believed: synchronised, whole, two-sided and not crossed."""
    status = state[STATUS] & (SYNCHRONISED | IN_FRAME | CROSSED | ONE_SIDED)
    return bool(status == SYNCHRONISED)


@kernel
def clear(state: BookState) -> None:
    """Take all levels away; status and counters stay."""
    for row in range(2):
        if state[COUNT + row] > 0:
            for word in range(_WORDS):
                bits = state[_LIVE + row * _WORDS + word]
                while bits != 0:
                    state[_slot_of(row, (word << 6) + _trailing_zeros(bits)) + 1] = 0
                    bits &= bits - 1
                state[_LIVE + row * _WORDS + word] = 0
        state[COUNT + row] = 0
        state[BEST + row] = NO_KEY
        state[WORST + row] = -NO_KEY


@kernel
def begin_row(state: BookState, event: Any) -> None:
    """The part of a book row that comes before its level: gaps and snapshots."""
    if event.flags & _GAP:
        state[GAPS] += 1
        state[STATUS] &= ~SYNCHRONISED
    if event.kind == _SNAPSHOT and event.flags & _FIRST:
        restates = event.flags & _CHECKPOINT and is_valid(state)
        clear(state)
        state[STATUS] = SYNCHRONISED | (_WAS_VALID if restates else 0)
    state[STATUS] |= IN_FRAME


@kernel
def set_row(state: BookState, event: Any) -> int:
    """The level of a book row, if it has one; returns the quantity held there before."""
    if event.side == 0:
        return 0
    if event.qty_lots < 0 or (event.side != 1 and event.side != -1):
        state[REFUSED] += 1
        return 0
    state[LEVELS] += 1
    return int(set_level(state, event.side, event.price_ticks, event.qty_lots))


@kernel
def end_row(state: BookState, event: Any) -> bool:
    """The part of a book row that comes after its level; True when the row ends its frame."""
    if event.flags & _LAST == 0:
        return False
    status = state[STATUS] & ~(IN_FRAME | CROSSED | ONE_SIDED | _WAS_VALID)
    if state[COUNT] == 0 or state[COUNT + 1] == 0:
        status |= ONE_SIDED
        state[ONE_SIDED_FRAMES] += 1
    elif -state[BEST] >= state[BEST + 1]:
        status |= CROSSED
        state[CROSSED_FRAMES] += 1
    if event.flags & _CHECKPOINT:
        state[CHECKPOINTS] += 1
    else:
        state[FRAMES] += 1
    # A checkpoint over a valid book is not news: the book stays as old as its last frame.
    if state[STATUS] & _WAS_VALID == 0:
        state[RECEIVE_NS] = event.receive_ns
        state[EXCHANGE_NS] = event.exchange_ns
        state[PUBLISH_NS] = event.publish_ns
    state[UPDATE_ID] = event.update_id
    state[STATUS] = status
    return True


@kernel
def apply(state: BookState, event: Any) -> bool:
    """Apply one event row; rows that are not about the book change nothing.

    Returns True when the row ends a book frame.
    """
    if event.kind != _DELTA and event.kind != _SNAPSHOT:
        return False
    if event.flags != 0:
        begin_row(state, event)
    set_row(state, event)
    return bool(event.flags & _LAST != 0 and end_row(state, event))


@kernel
def apply_rows(state: BookState, events: Events, start: int, stop: int) -> int:
    """Apply ``events[start:stop]``; returns the number of book frames that ended there."""
    frames = 0
    for n in range(start, stop):
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
        return int(apply_rows(self.state, events, 0, len(events)))

    @property
    def valid(self) -> bool:
        """Synchronised, whole, two-sided and not crossed."""
        return bool(is_valid(self.state))

    @property
    def synchronised(self) -> bool:
        """A snapshot came and no frame is known to be missing since."""
        return bool(self.state[STATUS] & SYNCHRONISED)

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
        held = int(count(self.state, side))
        room = held if n is None else min(n, held)
        ticks, lots = np.empty(room, np.int64), np.empty(room, np.int64)
        top(self.state, side, ticks, lots)
        return list(zip(ticks.tolist(), lots.tolist(), strict=True))

    @property
    def update_id(self) -> int:
        """Update id of the last whole frame, zero before the first."""
        return int(self.state[UPDATE_ID])

    @property
    def receive_ns(self) -> int:
        """Receive time of the last frame, zero before the first."""
        return int(self.state[RECEIVE_NS])

    @property
    def counters(self) -> dict[str, int]:
        """What happened so far: frames, levels, and everything that was not as it should be."""
        names = {
            "frames": FRAMES,
            "checkpoints": CHECKPOINTS,
            "levels": LEVELS,
            "unheld": UNHELD,
            "evicted": EVICTED,
            "gaps": GAPS,
            "crossed": CROSSED_FRAMES,
            "one_sided": ONE_SIDED_FRAMES,
            "refused": REFUSED,
        }
        return {name: int(self.state[place]) for name, place in names.items()}

    def snapshot_rows(self, receive_ns: int) -> Events:
        """Event rows that restate the book at ``receive_ns`` (a SNAPSHOT frame, CHECKPOINT).

        Applying them to any book gives this one. Empty while the book is not synchronised, because
        a restatement would make it look sound. Raises ValueError in the middle of a frame.
        """
        state = self.state
        if state[STATUS] & IN_FRAME:
            raise ValueError("the book stands in the middle of a frame: apply its last row first")
        if not self.synchronised:
            return np.zeros(0, EVENT)
        bids, asks = self.bids(), self.asks()
        rows = np.zeros(max(1, len(bids) + len(asks)), EVENT)
        rows["receive_ns"] = receive_ns
        rows["exchange_ns"], rows["publish_ns"] = state[EXCHANGE_NS], state[PUBLISH_NS]
        rows["update_id"] = state[UPDATE_ID]
        rows["kind"], rows["flags"] = Kind.SNAPSHOT, Flag.CHECKPOINT
        if bids or asks:
            rows["side"] = [1] * len(bids) + [-1] * len(asks)
            rows["price_ticks"], rows["qty_lots"] = zip(*bids, *asks, strict=True)
        rows["flags"][0] |= Flag.FIRST
        rows["flags"][-1] |= Flag.LAST
        return rows
