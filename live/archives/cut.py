"""The frames of a deep book topic as those of a shallower one.

As the venue does it: a level that leaves the window of the best ``depth`` levels is deleted, and one
that comes into it is set, in the frame in which it happens. What a cut frame says of a side is the
difference of the windows before and after the frame, and every level of the window that the frame
names; the best level comes first. Numbers keep the digits that came.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from market.kernel import kernel
from market.wire.jsontext import (
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

Integers = npt.NDArray[np.int64]

#: More levels a side than any venue shows.
ROOM: Final = 10_000
_LEVEL_BYTES: Final = 56
_HEAD_BYTES: Final = 512

# Columns of a level. A side's levels stand by KEY, its price at 1e-8, negative for asks: the best is
# the last, so that what changes at the touch, as most does, moves few others.
_KEY, _PLACES, _SIZE, _SIZE_PLACES, _FRAME = range(5)
# Columns of what a cut holds in ``state``, by side where there are two.
_COUNT, _HELD, _NUMBER = 0, 2, 3

_FINEST: Final = 8
_LARGEST: Final = 1 << 60

#: Why `_cut` gives no frame.
_UNUSUAL, _FLOOD = -1, -2

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
    """What a cut holds between frames, and where it works."""

    state: Integers  #: (4,) levels of either side, whether a snapshot came, number of the frame
    levels: Integers  #: (2, ROOM, 5) the whole book: bids, then asks
    named: Integers  #: (2, ROOM, 5) the levels that a frame names, as they come
    window: Integers  #: (ROOM, 5) a side's window before the frame
    source: Text  #: the deep topic's name, quoted
    topic: Text  #: the shallow topic's name, quoted
    out: Text


class Cut:
    """Turns the frames of one deep book topic into those of one of ``depth`` levels a side."""

    def __init__(self, symbol: str, source_depth: int, depth: int) -> None:
        self._depth = depth
        self._tables = _Tables(
            np.zeros(4, np.int64),
            np.zeros((2, ROOM, 5), np.int64),
            np.zeros((2, ROOM, 5), np.int64),
            np.zeros((min(depth, ROOM), 5), np.int64),
            _bytes(f'"orderbook.{source_depth}.{symbol}"'),
            _bytes(f'"orderbook.{depth}.{symbol}"'),
            np.empty(4 * ROOM * _LEVEL_BYTES + _HEAD_BYTES, np.uint8),
        )

    def frame(self, text: bytes) -> bytes:
        """The cut frame; before the first snapshot only its name is changed.

        ValueError when the text is no frame of the deep topic.
        """
        size = _cut(self._tables, np.frombuffer(text, np.uint8), self._depth)
        if size == _UNUSUAL:
            # White space, escapes, other fields: without them the frame says the same.
            plain = msgspec.json.encode(_read_frame(text))
            size = _cut(self._tables, np.frombuffer(plain, np.uint8), self._depth)
        if size == _FLOOD:
            raise ValueError(f"more than {ROOM:,} levels on a side")
        if size < 0:
            raise ValueError("not a book frame of plain positive decimals")
        return self._tables.out[:size].tobytes()


@kernel
def _list(text: Text, at: int, end: int, sign: int, frame: int, named: Integers) -> tuple[int, int]:
    """A list of ``["price","quantity"]`` into ``named``; (how many, position after).

    ``sign`` is that of the keys.
    """
    if at + 1 >= end or text[at] != 91:
        return 0, _UNUSUAL
    if text[at + 1] == 93:
        return 0, at + 2
    count = 0
    while True:
        if at + 1 >= end or text[at + 1] != 91:
            return 0, _UNUSUAL
        if count == ROOM:
            return 0, _FLOOD
        value, places, at = decimal(text, at + 2, end)
        price = scaled(value, places, _FINEST, 1, _LARGEST) if at >= 0 and places <= 8 else 0
        if price <= 0 or at >= end or text[at] != 44:
            return 0, _UNUSUAL
        size, size_places, at = decimal(text, at + 1, end)
        if at < 0 or at + 1 >= end or text[at] != 93:
            return 0, _UNUSUAL
        named[count, _KEY] = sign * price
        named[count, _PLACES] = places
        named[count, _SIZE] = size
        named[count, _SIZE_PLACES] = size_places
        named[count, _FRAME] = frame
        count += 1
        at += 1
        if text[at] == 93:
            return count, at + 1
        if text[at] != 44:
            return 0, _UNUSUAL


@kernel
def _place(levels: Integers, count: int, key: int) -> int:
    """Where a key stands among the first ``count`` levels, or would stand."""
    low, high = 0, count
    while low < high:
        middle = (low + high) >> 1
        if levels[middle, _KEY] < key:
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def _copy(target: Integers, to: int, source: Integers, at: int) -> None:
    for column in range(5):
        target[to, column] = source[at, column]


@kernel
def _apply(levels: Integers, count: int, named: Integers, many: int) -> int:
    """Set and delete levels of one side; how many it then has, `_FLOOD` when there is no room."""
    for n in range(many):
        key = named[n, _KEY]
        at = _place(levels, count, key)
        there = at < count and levels[at, _KEY] == key
        if named[n, _SIZE] == 0:
            if there:
                count -= 1
                for k in range(at, count):
                    _copy(levels, k, levels, k + 1)
            continue
        if not there:
            if count == ROOM:
                return _FLOOD
            for k in range(count, at, -1):
                _copy(levels, k, levels, k - 1)
            count += 1
        _copy(levels, at, named, n)
    return count


@kernel
def _put_level(out: Text, at: int, levels: Integers, n: int, deleted: bool) -> int:
    at = put(out, at, _OPEN)
    units = abs(levels[n, _KEY])
    for _ in range(_FINEST - levels[n, _PLACES]):
        units //= 10
    at = put_number(out, at, units, levels[n, _PLACES])
    at = put(out, at, _BETWEEN)
    if deleted:
        return int(put(out, at, _ZERO))
    at = put_number(out, at, levels[n, _SIZE], levels[n, _SIZE_PLACES])
    return int(put(out, at, _CLOSE))


@kernel
def _put_side(
    out: Text,
    at: int,
    before: Integers,
    old: int,
    levels: Integers,
    count: int,
    depth: int,
    frame: int,
) -> int:
    """What became of a window: levels gone, come, and named by the frame, the best first."""
    start = at
    i, j = old - 1, count - 1
    last = max(0, count - depth)
    while i >= 0 or j >= last:
        if j < last or (i >= 0 and before[i, _KEY] > levels[j, _KEY]):
            at = _put_level(out, at, before, i, True)
            i -= 1
        elif i < 0 or levels[j, _KEY] > before[i, _KEY]:
            at = _put_level(out, at, levels, j, False)
            j -= 1
        else:
            if levels[j, _FRAME] == frame:
                at = _put_level(out, at, levels, j, False)
            i -= 1
            j -= 1
    return at - 1 if at > start else at


@kernel
def _cut(tables: _Tables, text: Text, depth: int) -> int:
    """One frame into ``tables.out``; its size, or why there is none."""
    end = len(text)
    state = tables.state
    frame = state[_NUMBER] + 1
    snapshot = False
    ts = ts_end = cts = cts_end = u = u_end = seq = seq_end = s = s_end = 0
    bids = asks = -1
    if end == 0 or text[0] != 123:
        return _UNUSUAL
    at = 0
    inner = False
    seen = 0
    while True:
        low, high, at = key_at(text, at + 1, end)
        if at < 0 or at >= end or high != 0:
            return _UNUSUAL
        first = at
        if inner:
            if low == _S:
                bit = 1
                s, at = first, string_end(text, at, end)
                s_end = at
            elif low == _B:
                bit = 2
                bids, at = _list(text, at, end, 1, frame, tables.named[0])
            elif low == _A:
                bit = 4
                asks, at = _list(text, at, end, -1, frame, tables.named[1])
            elif low == _U:
                bit = 8
                u, (_, at) = first, integer(text, at, end)
                u_end = at
            elif low == _SEQ:
                bit = 16
                seq, (_, at) = first, integer(text, at, end)
                seq_end = at
            else:
                return _UNUSUAL
        elif low == _TOPIC:
            bit = 32
            at = string_end(text, at, end)
            if at < 0 or not same(text, first, at, tables.source, 0, len(tables.source)):
                return _UNUSUAL
        elif low == _TYPE:
            bit = 64
            snapshot = starts(text, at, end, _SNAPSHOT)
            if not snapshot and not starts(text, at, end, _DELTA):
                return _UNUSUAL
            at += len(_SNAPSHOT) if snapshot else len(_DELTA)
        elif low == _TS:
            bit = 128
            ts, (_, at) = first, integer(text, at, end)
            ts_end = at
        elif low == _CTS:
            bit = 256
            cts, (_, at) = first, integer(text, at, end)
            cts_end = at
        elif low == _DATA and text[at] == 123:
            bit = 512
            inner = True
        else:
            return _UNUSUAL
        if at < 0:
            return int(at)
        if at >= end or seen & bit:
            return _UNUSUAL
        seen |= bit
        if bit == 512:
            continue
        if inner and text[at] == 125:
            inner = False
            at += 1
            if at >= end:
                return _UNUSUAL
        if text[at] == 125:
            break
        if text[at] != 44:
            return _UNUSUAL
    if inner or at + 1 != end or seen & 0b1011101111 != 0b1011101111:
        return _UNUSUAL
    out = tables.out
    at = put(out, 0, _TOPIC_KEY)
    at = put(out, at, tables.topic)
    at = put(out, at, _TYPE_KEY)
    at = put(out, at, _SNAPSHOT if snapshot else _DELTA)
    at = put(out, at, _TS_KEY)
    at = put(out, at, text[ts:ts_end])
    at = put(out, at, _DATA_KEY)
    at = put(out, at, text[s:s_end])
    for side in range(2):
        many = bids if side == 0 else asks
        named, levels = tables.named[side], tables.levels[side]
        at = put(out, at, _SIDE_KEYS[side])
        if not snapshot and state[_HELD] == 0:
            start = at
            for n in range(many):
                at = _put_level(out, at, named, n, named[n, _SIZE] == 0)
            at -= at > start
            continue
        count = 0 if snapshot else state[_COUNT + side]
        old = min(depth, count)
        for n in range(old):
            _copy(tables.window, n, levels, count - old + n)
        count = _apply(levels, count, named, many)
        if count < 0:
            return _FLOOD
        state[_COUNT + side] = count
        at = _put_side(out, at, tables.window, old, levels, count, depth, frame)
    state[_HELD] |= snapshot
    state[_NUMBER] = frame
    at = put(out, at, _U_KEY)
    at = put(out, at, text[u:u_end])
    if seen & 16:
        at = put(out, at, _SEQ_KEY)
        at = put(out, at, text[seq:seq_end])
    out[at] = 125
    at += 1
    if seen & 256:
        at = put(out, at, _CTS_KEY)
        at = put(out, at, text[cts:cts_end])
    out[at] = 125
    return int(at + 1)
