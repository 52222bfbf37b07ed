"""Truncates the frames of a deep order-book topic to those of a shallower topic.

As the venue does it: in the frame in which a level leaves the best ``depth`` levels it is deleted, and
in the frame in which one enters them it is set. A truncated side is therefore the difference of the
best ``depth`` levels before and after the frame, plus every level in them that the frame names; best
level first. Prices and sizes keep their digits as received.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from market.kernel import kernel
from market.wire.jsontext import (
    CLOSE_LIST,
    CLOSE_OBJECT,
    COMMA,
    OPEN_LIST,
    OPEN_OBJECT,
    Text,
    decimal,
    integer,
    key_at,
    packed,
    put,
    put_number,
    same,
    scaled,
    starts,
    string_end,
)

#: Levels a side that fit; more than any venue shows.
ROOM: Final = 10_000
_LEVEL_BYTES: Final = 56
_HEAD_BYTES: Final = 512

#: A level. Sides are sorted by ``key``, ascending, so the best level is the last and a change at the
#: touch, the most frequent one, moves few levels.
LEVEL: Final = np.dtype(
    [
        ("key", "i8"),  # price in units of 1e-8, negative for asks
        ("price_places", "i8"),  # decimals of the price as received
        ("size", "i8"),  # digits of the size as an integer
        ("size_places", "i8"),
        ("frame", "i8"),  # number of the frame that set it
    ]
)
#: The book between frames; pairs are bids, then asks.
STATE: Final = np.dtype([("count", "i8", (2,)), ("synchronised", "i8"), ("frame", "i8")])
#: Where a frame's values are in its text, and how many levels it names a side.
PARSED: Final = np.dtype(
    [
        ("snapshot", "i8"),
        ("named", "i8", (2,)),
        *((name, "i8", (2,)) for name in ("ts", "cts", "s", "u", "seq")),  # start and end
        ("seen", "i8"),  # bits below
    ]
)
Structured = npt.NDArray[np.void]

_KEY_PLACES: Final = 8
_LARGEST: Final = 1 << 60

#: Why `_truncate` gives no frame: not in the plain form, or more than ROOM levels.
_NOT_PLAIN, _TOO_MANY = -1, -2

_TOPIC = packed("topic")[0]
_TYPE = packed("type")[0]
_TS = packed("ts")[0]
_CTS = packed("cts")[0]
_DATA = packed("data")[0]
_S = packed("s")[0]
_B = packed("b")[0]
_A = packed("a")[0]
_U = packed("u")[0]
_SEQ = packed("seq")[0]

#: Bits of ``seen``, one for each key of a frame.
_SEEN_SEQ, _SEEN_CTS = 16, 256
_SEEN_ALL: Final = (1 << 10) - 1
_REQUIRED: Final = _SEEN_ALL & ~(_SEEN_SEQ | _SEEN_CTS)


def _bytes(text: str) -> Text:
    return np.frombuffer(text.encode(), np.uint8).copy()


_SNAPSHOT = _bytes('"snapshot"')
_DELTA = _bytes('"delta"')
_TOPIC_KEY = _bytes('{"topic":')
_TYPE_KEY = _bytes(',"type":')
_TS_KEY = _bytes(',"ts":')
_DATA_KEY = _bytes(',"data":{"s":')
_SIDE_KEYS = (_bytes(',"b":['), _bytes('],"a":['))
_U_KEY = _bytes('],"u":')
_SEQ_KEY = _bytes(',"seq":')
_CTS_KEY = _bytes(',"cts":')
_OPEN = _bytes('["')
_BETWEEN = _bytes('","')
_CLOSE = _bytes('"],')
_ZERO = _bytes('0"],')


class _Data(msgspec.Struct, omit_defaults=True):
    s: str
    b: list[tuple[str, str]]
    a: list[tuple[str, str]]
    u: int
    seq: int | msgspec.UnsetType = msgspec.UNSET


class _Frame(msgspec.Struct, omit_defaults=True):
    topic: str
    type: str
    ts: int
    data: _Data
    cts: int | msgspec.UnsetType = msgspec.UNSET


_read_frame = msgspec.json.Decoder(_Frame).decode


class _Tables(NamedTuple):
    """State between frames, and work space."""

    state: Structured  #: (1,) STATE
    levels: Structured  #: (2, ROOM) LEVEL: the whole book, bids, then asks
    named: Structured  #: (2, ROOM) LEVEL: the levels that a frame names, in its order
    window: Structured  #: (depth,) LEVEL: the best levels of a side before the frame
    parsed: Structured  #: (1,) PARSED
    source: Text  #: name of the deep topic, quoted
    topic: Text  #: name of the shallow topic, quoted
    out: Text


class BookTruncator:
    """Turns the frames of one deep book topic into those of the topic of ``depth`` levels a side."""

    def __init__(self, symbol: str, source_depth: int, depth: int) -> None:
        self._depth = depth
        self._tables = _Tables(
            np.zeros(1, STATE),
            np.zeros((2, ROOM), LEVEL),
            np.zeros((2, ROOM), LEVEL),
            np.zeros(min(depth, ROOM), LEVEL),
            np.zeros(1, PARSED),
            _bytes(f'"orderbook.{source_depth}.{symbol}"'),
            _bytes(f'"orderbook.{depth}.{symbol}"'),
            np.empty(4 * ROOM * _LEVEL_BYTES + _HEAD_BYTES, np.uint8),
        )

    def frame(self, text: bytes) -> bytes:
        """The truncated frame; before the first snapshot only the topic is replaced.

        ValueError or MsgspecError when the text is not a frame of the deep topic.
        """
        size = _truncate(self._tables, np.frombuffer(text, np.uint8), self._depth)
        if size == _NOT_PLAIN:
            # White space, escapes or unknown fields: the re-encoded frame has none of them.
            plain = msgspec.json.encode(_read_frame(text))
            size = _truncate(self._tables, np.frombuffer(plain, np.uint8), self._depth)
        if size == _TOO_MANY:
            raise ValueError(f"more than {ROOM:,} levels on a side")
        if size < 0:
            raise ValueError("not a book frame of plain positive decimals")
        return self._tables.out[:size].tobytes()


# -- the book --------------------------------------------------------------------------------------


@kernel
def _index(levels: Structured, count: int, key: int) -> int:
    """Index of a key among the first ``count`` levels, or where to insert it (binary search)."""
    low, high = 0, count
    while low < high:
        middle = (low + high) >> 1
        if levels[middle].key < key:
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def _apply(levels: Structured, count: int, named: Structured, named_count: int) -> int:
    """Set and delete levels of one side; the new count, `_TOO_MANY` when they do not fit."""
    for n in range(named_count):
        key = named[n].key
        at = _index(levels, count, key)
        exists = at < count and levels[at].key == key
        if named[n].size == 0:
            if exists:
                count -= 1
                for k in range(at, count):
                    levels[k] = levels[k + 1]
            continue
        if not exists:
            if count == ROOM:
                return _TOO_MANY
            for k in range(count, at, -1):
                levels[k] = levels[k - 1]
            count += 1
        levels[at] = named[n]
    return count


# -- writing ---------------------------------------------------------------------------------------


@kernel
def _put_level(out: Text, at: int, level: Any, deleted: bool) -> int:
    """Write a record of LEVEL, with size zero if it is deleted."""
    at = put(out, at, _OPEN)
    price = abs(level.key)
    for _ in range(_KEY_PLACES - level.price_places):
        price //= 10
    at = put_number(out, at, price, level.price_places)
    at = put(out, at, _BETWEEN)
    if deleted:
        return int(put(out, at, _ZERO))
    at = put_number(out, at, level.size, level.size_places)
    return int(put(out, at, _CLOSE))


@kernel
def _put_changes(
    out: Text,
    at: int,
    before: Structured,
    before_count: int,
    levels: Structured,
    count: int,
    depth: int,
    frame: int,
) -> int:
    """Changes of a side's best ``depth`` levels: left, entered or set by the frame; best first."""
    start = at
    i, j = before_count - 1, count - 1
    last = max(0, count - depth)
    while i >= 0 or j >= last:
        if j < last or (i >= 0 and before[i].key > levels[j].key):
            at = _put_level(out, at, before[i], True)
            i -= 1
        elif i < 0 or levels[j].key > before[i].key:
            at = _put_level(out, at, levels[j], False)
            j -= 1
        else:
            if levels[j].frame == frame:
                at = _put_level(out, at, levels[j], False)
            i -= 1
            j -= 1
    return at - 1 if at > start else at  # without the last comma


@kernel
def _truncate(tables: _Tables, text: Text, depth: int) -> int:
    """Write one truncated frame into ``tables.out``; its size, or a negative reason."""
    reason = _parse(tables, text)
    if reason < 0:
        return int(reason)
    state, parsed, out = tables.state[0], tables.parsed[0], tables.out
    frame = state.frame + 1
    at = put(out, 0, _TOPIC_KEY)
    at = put(out, at, tables.topic)
    at = put(out, at, _TYPE_KEY)
    at = put(out, at, _SNAPSHOT if parsed.snapshot else _DELTA)
    at = put(out, at, _TS_KEY)
    at = put(out, at, text[parsed.ts[0] : parsed.ts[1]])
    at = put(out, at, _DATA_KEY)
    at = put(out, at, text[parsed.s[0] : parsed.s[1]])
    for side in range(2):
        named_count = parsed.named[side]
        named, levels = tables.named[side], tables.levels[side]
        at = put(out, at, _SIDE_KEYS[side])
        if not parsed.snapshot and not state.synchronised:
            start = at
            for n in range(named_count):
                at = _put_level(out, at, named[n], named[n].size == 0)
            at -= at > start
            continue
        count = 0 if parsed.snapshot else state.count[side]
        before_count = min(depth, count)
        for n in range(before_count):
            tables.window[n] = levels[count - before_count + n]
        count = _apply(levels, count, named, named_count)
        if count < 0:
            return _TOO_MANY
        state.count[side] = count
        at = _put_changes(out, at, tables.window, before_count, levels, count, depth, frame)
    state.synchronised |= parsed.snapshot
    state.frame = frame
    at = put(out, at, _U_KEY)
    at = put(out, at, text[parsed.u[0] : parsed.u[1]])
    if parsed.seen & _SEEN_SEQ:
        at = put(out, at, _SEQ_KEY)
        at = put(out, at, text[parsed.seq[0] : parsed.seq[1]])
    out[at] = CLOSE_OBJECT
    at += 1
    if parsed.seen & _SEEN_CTS:
        at = put(out, at, _CTS_KEY)
        at = put(out, at, text[parsed.cts[0] : parsed.cts[1]])
    out[at] = CLOSE_OBJECT
    return int(at + 1)


# -- parsing ---------------------------------------------------------------------------------------


@kernel
def _parse(tables: _Tables, text: Text) -> int:
    """Find a frame's values into ``tables.parsed`` and its levels into ``tables.named``.

    Zero, or the negative reason for which it is refused.
    """
    end = len(text)
    frame = tables.state[0].frame + 1
    parsed = tables.parsed[0]
    if end == 0 or text[0] != OPEN_OBJECT:
        return _NOT_PLAIN
    at = 0
    in_data = False
    seen = 0
    while True:
        key, key_rest, at = key_at(text, at + 1, end)
        if at < 0 or at >= end or key_rest != 0:
            return _NOT_PLAIN
        start = at
        if in_data:
            if key == _S:
                bit = 1
                at = string_end(text, at, end)
                parsed.s[0], parsed.s[1] = start, at
            elif key == _B:
                bit = 2
                parsed.named[0], at = _parse_levels(text, at, end, 1, frame, tables.named[0])
            elif key == _A:
                bit = 4
                parsed.named[1], at = _parse_levels(text, at, end, -1, frame, tables.named[1])
            elif key == _U:
                bit = 8
                _, at = integer(text, at, end)
                parsed.u[0], parsed.u[1] = start, at
            elif key == _SEQ:
                bit = _SEEN_SEQ
                _, at = integer(text, at, end)
                parsed.seq[0], parsed.seq[1] = start, at
            else:
                return _NOT_PLAIN
        elif key == _TOPIC:
            bit = 32
            at = string_end(text, at, end)
            if at < 0 or not same(text, start, at, tables.source, 0, len(tables.source)):
                return _NOT_PLAIN
        elif key == _TYPE:
            bit = 64
            snapshot = starts(text, at, end, _SNAPSHOT)
            if not snapshot and not starts(text, at, end, _DELTA):
                return _NOT_PLAIN
            at += len(_SNAPSHOT) if snapshot else len(_DELTA)
            parsed.snapshot = snapshot
        elif key == _TS:
            bit = 128
            _, at = integer(text, at, end)
            parsed.ts[0], parsed.ts[1] = start, at
        elif key == _CTS:
            bit = _SEEN_CTS
            _, at = integer(text, at, end)
            parsed.cts[0], parsed.cts[1] = start, at
        elif key == _DATA and text[at] == OPEN_OBJECT:
            bit = 512
            in_data = True
        else:
            return _NOT_PLAIN
        if at < 0:
            return int(at)
        if at >= end or seen & bit:
            return _NOT_PLAIN
        seen |= bit
        if bit == 512:
            continue
        if in_data and text[at] == CLOSE_OBJECT:
            in_data = False
            at += 1
            if at >= end:
                return _NOT_PLAIN
        if text[at] == CLOSE_OBJECT:
            break
        if text[at] != COMMA:
            return _NOT_PLAIN
    if in_data or at + 1 != end or seen & _REQUIRED != _REQUIRED:
        return _NOT_PLAIN
    parsed.seen = seen
    return 0


@kernel
def _parse_levels(
    text: Text, at: int, end: int, sign: int, frame: int, named: Structured
) -> tuple[int, int]:
    """A list of ``["price","size"]`` into ``named``, keys of this sign; (count, position after it)."""
    if at + 1 >= end or text[at] != OPEN_LIST:
        return 0, _NOT_PLAIN
    if text[at + 1] == CLOSE_LIST:
        return 0, at + 2
    count = 0
    while True:
        if at + 1 >= end or text[at + 1] != OPEN_LIST:
            return 0, _NOT_PLAIN
        if count == ROOM:
            return 0, _TOO_MANY
        value, places, at = decimal(text, at + 2, end)
        price = 0
        if at >= 0 and places <= _KEY_PLACES:
            price = scaled(value, places, _KEY_PLACES, 1, _LARGEST)
        if price <= 0 or at >= end or text[at] != COMMA:
            return 0, _NOT_PLAIN
        size, size_places, at = decimal(text, at + 1, end)
        if at < 0 or at + 1 >= end or text[at] != CLOSE_LIST:
            return 0, _NOT_PLAIN
        level = named[count]
        level.key = sign * price
        level.price_places = places
        level.size = size
        level.size_places = size_places
        level.frame = frame
        count += 1
        at += 1
        if text[at] == CLOSE_LIST:
            return count, at + 1
        if text[at] != COMMA:
            return 0, _NOT_PLAIN
