"""The state of a stream of frames, and the rules that end a frame.

The compiled reader and the reference reader parse the same frames in two ways. What they share is
here: the arrays of a stream's state, the limits, and `accept`, so that the rules of time, sequence
and flags exist once.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from market.events import Events, Flag, Kind
from market.kernel import kernel
from market.units import DAY_NS, SECOND_NS
from market.wire.jsontext import Text
from market.wire.topics import BOOK, FAMILIES, LIQUIDATION, MAX_TOPIC, TICKER, TRADE

Words = npt.NDArray[np.int64]

NEVER: Final = (1 << 63) - 1
#: A frame received later than this after the venue sent it has a wrong receive time; one whose own
#: times lie further apart, or ahead of its receipt, has a wrong one of the venue's.
MAX_LAG_NS: Final = DAY_NS
#: Frames received up to this long before an earlier one take its time; after a longer step back of
#: the clock frames are left out until it has passed the earlier time again.
MAX_STEP_BACK_NS: Final = SECOND_NS
#: Quantities and prices stay exact when a float holds them.
MAX_UNITS: Final = 1 << 53
#: Milliseconds of epoch time that fit in int64 ns and are no typing error (the year 2100).
MAX_MS: Final = 4_102_444_800_000
MAX_LEVELS: Final = 5000
#: Trades or liquidations in a frame; the venue sends at most 1,024.
MAX_PRINTS: Final = 5000
#: Topics that are not converted and that the compiled reader knows by name.
MAX_PASSED: Final = 64
#: Size of a free slot's name; 0 would match the empty topic of a venue at fault.
UNNAMED: Final = -1

#: Verdicts of `accept`. BEYOND_END: the frame was received at or after the time to read up to.
ACCEPTED, DUPLICATE, BEYOND_END, BAD_RECEIVE_TIME, BAD_VENUE_TIME = range(5)

_FIRST: Final = int(Flag.FIRST)
_LAST: Final = int(Flag.LAST)
_GAP: Final = int(Flag.GAP)
_CHECKPOINT: Final = int(Flag.CHECKPOINT)
_SNAPSHOT: Final = int(Kind.SNAPSHOT)
_DELTA: Final = int(Kind.DELTA)
_KINDS: Final = (0, int(Kind.TRADE), int(Kind.TICKER), int(Kind.LIQUIDATION))

#: Counts of a topic since they were last taken, in the order of `market.wire.results.TopicCounts`.
COUNTS: Final = np.dtype(
    [
        ("frames", "i8"),
        ("events", "i8"),
        ("rejected", "i8"),
        ("duplicates", "i8"),
        ("gaps", "i8"),
        ("steps_back", "i8"),
        ("left_out", "i8"),
        ("min_lag_ns", "i8"),
        ("max_lag_ns", "i8"),
    ]
)
NO_COUNTS: Final = np.array((0, 0, 0, 0, 0, 0, 0, NEVER, -NEVER), COUNTS)

#: A topic: its name, its symbol's grid, and where its sequence of frames is.
TOPIC: Final = np.dtype(
    [
        ("name", "u1", (MAX_TOPIC,)),
        ("name_size", "i8"),  # UNNAMED for a free slot
        ("symbol_start", "i8"),  # place of the symbol in the name
        ("tick_unit", "i8"),  # a tick is unit * 10^-places
        ("tick_places", "i8"),
        ("lot_unit", "i8"),
        ("lot_places", "i8"),
        ("update_id", "i8"),  # ``u`` of the last frame of a book
        ("followed", "i8"),  # a book frame came, so that ``update_id`` is known
        ("gap_pending", "i8"),  # the next delta does not follow on, whatever its ``u``
        ("counts", COUNTS),
    ]
)


class Tables(NamedTuple):
    """The state of a stream, read and written by both readers."""

    topics: npt.NDArray[np.void]  #: (4 * symbols,) of TOPIC; index is 4 * symbol + family
    passed: npt.NDArray[np.void]  #: (MAX_PASSED,) of TOPIC: frames are checked and counted only
    clock: Words  #: (2,) running maximum of receive time; whether frames are left out until it


class Head(NamedTuple):
    """Times, sequence and flags of a frame, beside its rows."""

    receive_ns: int
    publish_ns: int
    exchange_ns: int
    update_id: int
    is_snapshot: bool
    flags: int  #: of every row; CHECKPOINT for a restatement


def new_topics(count: int) -> npt.NDArray[np.void]:
    """Free slots for topics."""
    topics = np.zeros(count, TOPIC)
    topics["name_size"] = UNNAMED
    topics["counts"] = NO_COUNTS
    return topics


def set_name(topic: Any, name: str) -> None:
    """Write a topic's name into its slot."""
    topic["name"][: len(name)] = np.frombuffer(name.encode(), np.uint8)
    topic["name_size"] = len(name)
    topic["symbol_start"] = name.rfind(".") + 1


@kernel
def accept(
    tables: Tables, index: int, rows: Events, first: int, stop: int, head: Head, until_ns: int
) -> int:
    """Apply the rules of time, sequence and flags to a frame's rows ``[first, stop)``.

    Rows come with price, quantity, value, side and field set (trades and liquidations with
    their own exchange time and sequence as well). Returns ACCEPTED, or DUPLICATE: drop the rows (an old ``u``,
    or a clock that was set back); or
    BEYOND_END, BAD_RECEIVE_TIME or BAD_VENUE_TIME, and then nothing was changed.
    """
    topic = tables.topics[index]
    counts = topic.counts
    family = index % FAMILIES
    now = max(tables.clock[0], head.receive_ns)
    restated = head.flags & _CHECKPOINT != 0
    # A receive time that lies far after the venue's own would push the running maximum with it.
    late = head.receive_ns - head.publish_ns > MAX_LAG_NS
    if late and head.receive_ns > tables.clock[0] and not restated:
        return BAD_RECEIVE_TIME
    if head.publish_ns - now > MAX_LAG_NS or abs(head.exchange_ns - head.publish_ns) > MAX_LAG_NS:
        return BAD_VENUE_TIME
    if family in (TRADE, LIQUIDATION):
        for n in range(first, stop):
            if abs(rows[n].exchange_ns - head.publish_ns) > MAX_LAG_NS:
                return BAD_VENUE_TIME
    if now >= until_ns:
        return BEYOND_END
    if not restated:
        counts.frames += 1
        behind_ns = tables.clock[0] - head.receive_ns
        counts.steps_back += behind_ns > 0
        tables.clock[1] = behind_ns > MAX_STEP_BACK_NS or (behind_ns > 0 and tables.clock[1] != 0)
        if tables.clock[1] != 0:
            counts.left_out += 1
            return DUPLICATE
    tables.clock[0] = now
    kind = _KINDS[family]
    first_flags = head.flags
    if family == BOOK:
        kind = _SNAPSHOT if head.is_snapshot else _DELTA
        first_flags |= _FIRST
        if not head.is_snapshot:
            known = topic.followed != 0 and topic.gap_pending == 0
            if known and head.update_id <= topic.update_id:
                counts.duplicates += 1
                return DUPLICATE
            if not known or head.update_id != topic.update_id + 1:
                counts.gaps += 1
                first_flags |= _GAP
        topic.update_id = head.update_id
        topic.followed = 1
        topic.gap_pending = 0
    counts.events += stop - first
    for n in range(first, stop):
        row = rows[n]
        row.receive_ns = now
        row.publish_ns = head.publish_ns
        if family in (BOOK, TICKER):
            row.exchange_ns = head.exchange_ns
            row.update_id = head.update_id
        flags = first_flags if n == first else head.flags
        if n == stop - 1:
            flags |= _LAST
        row.kind = kind
        row.flags |= flags
        if not restated:
            lag = now - row.exchange_ns
            counts.min_lag_ns = min(counts.min_lag_ns, lag)
            counts.max_lag_ns = max(counts.max_lag_ns, lag)
    return ACCEPTED


@kernel
def take_rows(rows: Events, symbols: Text, symbol: int, out: Events) -> None:
    """Copy the first ``len(out)`` rows of one symbol, in order."""
    n = 0
    for taken in range(len(out)):
        while symbols[n] != symbol:
            n += 1
        out[taken] = rows[n]
        n += 1
