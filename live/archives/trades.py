"""A trade archive's text as ``publicTrade`` frames: checked line by line, oldest first, compiled.

    timestamp,symbol,side,size,price,tickDirection,trdMatchID,…[,RPI]

``timestamp`` is in seconds, with any number of decimals. Trades of one millisecond make one frame,
in the order in which they happened. Sizes, prices and names keep the text that came.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from market.kernel import compiled
from market.units import MS_NS
from market.wire.jsontext import Text, put, put_number, same

Integers = npt.NDArray[np.int64]

_HEADER: Final = (b"timestamp", b"symbol", b"side", b"size", b"price", b"tickDirection")
_NAME: Final = b"trdMatchID"
_RPI: Final = b"RPI"
#: Frames written at once.
_GROUPS: Final = 1 << 16
#: Bytes of a trade beside the fields that are copied, and of a frame beside its trades.
_TRADE_BYTES: Final = 160
_FRAME_BYTES: Final = 160
#: The last second that a trade can have (the year 2100): beyond, it is a typing error.
_LAST_SECOND: Final = 4_102_444_800

#: What `_read` says of a line.
_FINE, _NO_TRADE, _OTHER_SYMBOL = range(3)


def _bytes(text: str) -> Text:
    return np.frombuffer(text.encode(), np.uint8).copy()


_BUY = _bytes("Buy")
_SELL = _bytes("Sell")
_T = _bytes('{"T":')
_S = _bytes(',"s":"')
_BUYS = _bytes('","S":"Buy","v":"')
_SELLS = _bytes('","S":"Sell","v":"')
_P = _bytes('","p":"')
_L = _bytes('","L":"')
_I = _bytes('","i":"')
_PLAIN = _bytes('","BT":false,"RPI":false},')
_IMPROVED = _bytes('","BT":false,"RPI":true},')
_DATA = _bytes(',"data":[')
_END = _bytes("]}")


class _Shape(NamedTuple):
    """Where things stand in a line, and what a frame begins with."""

    columns: int
    name: int  #: the column of the trade's name
    rpi: int  #: the column that says whether it improved on retail prices, 0 when there is none
    symbol: Text
    head: Text  #: up to and with ``"ts":``


class Trades:
    """The trades of an archive: ``count`` of them, and their frames.

    ValueError, with the number of the line, for text that is no trade archive of the symbol.
    """

    def __init__(self, text: bytes, symbol: str) -> None:
        first = text.partition(b"\n")[0]
        header = tuple(first.strip().split(b","))
        if header[: len(_HEADER)] != _HEADER or _NAME not in header:
            raise ValueError("line 1: not the header of a trade archive")
        self._shape = _Shape(
            len(header),
            header.index(_NAME),
            header.index(_RPI) if _RPI in header else 0,
            _bytes(symbol),
            _bytes(f'{{"topic":"publicTrade.{symbol}","type":"snapshot","ts":'),
        )
        self._text = np.frombuffer(text, np.uint8)
        self._spans = np.zeros((len(header), 2), np.int64)
        rows = np.empty((text.count(b"\n") + 1, 2), np.int64)
        count, line, verdict, self._longest = _read(
            self._text, min(len(first) + 1, len(text)), self._shape, self._spans, rows
        )
        if verdict == _OTHER_SYMBOL:
            start, end = self._spans[1]
            raise ValueError(f"line {line}: a trade of {text[start:end].decode()}, not {symbol}")
        if verdict == _NO_TRADE:
            raise ValueError(f"line {line}: not a trade")
        rows = rows[:count]
        # Newest first: turned around, so that trades of one time keep the order they happened in.
        if count > 1 and rows[0, 0] > rows[-1, 0]:
            rows = rows[::-1]
        self._rows = rows[np.argsort(rows[:, 0], kind="stable")]

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def times_ns(self) -> Integers:
        """When each happened, oldest first, shape (n,)."""
        return self._rows[:, 0]

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """(T in ms, frame), oldest first."""
        if not len(self):
            return
        starts = np.flatnonzero(np.diff(self.times_ns // MS_NS, prepend=-1))
        stops = np.append(starts[1:], len(self))
        for first in range(0, len(starts), _GROUPS):
            begins, ends = starts[first : first + _GROUPS], stops[first : first + _GROUPS]
            rows = int(ends[-1] - begins[0])
            room = rows * (self._longest + _TRADE_BYTES)
            room += len(begins) * (len(self._shape.head) + _FRAME_BYTES)
            out = np.empty(room, np.uint8)
            written = np.empty((len(begins), 2), np.int64)
            _write(self._text, self._shape, self._spans, self._rows, begins, ends, out, written)
            text = out[: written[-1, 1]].tobytes()
            at = 0
            for ms, end in written.tolist():
                yield ms, text[at:end]
                at = end


@compiled
def _split(text: Text, at: int, spans: Integers) -> tuple[int, int]:
    """The fields of the line at ``at``; (how many, the line's end), -1 for one that is not plain."""
    end = at
    while end < len(text) and text[end] != 10:
        end += 1
    stop = end
    while stop > at and (text[stop - 1] == 13 or text[stop - 1] == 32):
        stop -= 1
    count = 0
    start = at
    for k in range(at, stop + 1):
        if k == stop or text[k] == 44:
            if count == len(spans):
                return -1, end
            spans[count, 0] = start
            spans[count, 1] = k
            count += 1
            start = k + 1
        elif text[k] < 32 or text[k] > 126 or text[k] == 34 or text[k] == 92:
            return -1, end
    return (0 if stop == at else count), end


@compiled
def _time_ns(text: Text, at: int, end: int) -> int:
    """Epoch ns of decimal seconds, exactly; zero when the text is none."""
    seconds = 0
    if at == end or text[at] == 46:
        return 0
    while at < end and text[at] != 46:
        if not 48 <= text[at] <= 57:
            return 0
        seconds = seconds * 10 + (text[at] - 48)
        if seconds > _LAST_SECOND:
            return 0
        at += 1
    at += 1
    fraction = 0
    for place in range(9):
        fraction *= 10
        if at + place < end:
            fraction += text[at + place] - 48
    for k in range(at, end):
        if not 48 <= text[k] <= 57:
            return 0
    return seconds * 1_000_000_000 + fraction


@compiled
def _is(text: Text, span: Integers, name: Text) -> bool:
    """Whether a field is a name."""
    return bool(same(text, span[0], span[1], name, 0, len(name)))


@compiled
def _read(
    text: Text, at: int, shape: _Shape, spans: Integers, rows: Integers
) -> tuple[int, int, int, int]:
    """(Time, start) of each line; (how many, the last line's number, its verdict, longest line)."""
    count = longest = 0
    line = 1
    while at < len(text):
        line += 1
        fields, end = _split(text, at, spans)
        if fields != 0:
            if fields != shape.columns:
                return count, line, _NO_TRADE, longest
            when = _time_ns(text, spans[0, 0], spans[0, 1])
            sided = _is(text, spans[2], _BUY) or _is(text, spans[2], _SELL)
            if when == 0 or not sided:
                return count, line, _NO_TRADE, longest
            if not _is(text, spans[1], shape.symbol):
                return count, line, _OTHER_SYMBOL, longest
            rows[count, 0] = when
            rows[count, 1] = at
            count += 1
            longest = max(longest, end - at)
        at = end + 1
    return count, line, _FINE, longest


@compiled
def _put_field(out: Text, at: int, text: Text, span: Integers) -> int:
    return int(put(out, at, text[span[0] : span[1]]))


@compiled
def _write(
    text: Text,
    shape: _Shape,
    spans: Integers,
    rows: Integers,
    begins: Integers,
    ends: Integers,
    out: Text,
    written: Integers,
) -> None:
    """Write a frame for each group of rows; ``written`` gets (T in ms, where it ends in ``out``)."""
    at = 0
    for group in range(len(begins)):
        ms = rows[begins[group], 0] // MS_NS
        at = put(out, at, shape.head)
        at = put_number(out, at, ms, 0)
        at = put(out, at, _DATA)
        for row in range(begins[group], ends[group]):
            _split(text, rows[row, 1], spans)
            at = put(out, at, _T)
            at = put_number(out, at, ms, 0)
            at = put(out, at, _S)
            at = put(out, at, shape.symbol)
            at = put(out, at, _BUYS if _is(text, spans[2], _BUY) else _SELLS)
            at = _put_field(out, at, text, spans[3])
            at = put(out, at, _P)
            at = _put_field(out, at, text, spans[4])
            at = put(out, at, _L)
            at = _put_field(out, at, text, spans[5])
            at = put(out, at, _I)
            at = _put_field(out, at, text, spans[shape.name])
            rpi = shape.rpi
            improved = rpi > 0 and spans[rpi, 1] == spans[rpi, 0] + 1 and text[spans[rpi, 0]] == 49
            at = put(out, at, _IMPROVED if improved else _PLAIN)
        at = put(out, at - 1, _END)
        written[group, 0] = ms
        written[group, 1] = at
