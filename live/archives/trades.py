"""Reads a trade archive's CSV text into ``publicTrade`` frames: validated line by line, compiled.

    timestamp,symbol,side,size,price,tickDirection,trdMatchID,…[,RPI]

``timestamp`` is in seconds with any number of decimals. Trades of one millisecond share a frame, in the
order in which they happened. Sizes, prices and ids keep their text as received.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from market.kernel import compiled
from market.units import MS_NS, SECOND_NS
from market.wire.jsontext import (
    BACKSLASH,
    COMMA,
    DOT,
    NEWLINE,
    NINE,
    QUOTE,
    SPACE,
    ZERO,
    Text,
    put,
    put_number,
    same,
)

Integers = npt.NDArray[np.int64]
Structured = npt.NDArray[np.void]

_HEADER: Final = (b"timestamp", b"symbol", b"side", b"size", b"price", b"tickDirection")
_ID: Final = b"trdMatchID"
_RPI: Final = b"RPI"
#: Columns of a line, as in the header.
_TIMESTAMP, _SYMBOL, _SIDE, _SIZE, _PRICE, _TICK_DIRECTION = range(6)
#: Frames written at once.
_FRAMES: Final = 1 << 16
#: Bytes of a trade beside the fields that are copied, and of a frame beside its trades.
_TRADE_BYTES: Final = 160
_FRAME_BYTES: Final = 160
#: A later time (year 2100) is an error in the file.
_LAST_SECOND: Final = 4_102_444_800

#: Bytes of CSV beside those of JSON.
_RETURN: Final = 13
_ONE: Final = 49
_LAST_PRINTABLE: Final = 126

#: A trade's time and where its line starts in the text.
LINE: Final = np.dtype([("time_ns", "i8"), ("start", "i8")])
#: A written frame's time and where it ends in the output.
FRAME: Final = np.dtype([("ms", "i8"), ("end", "i8")])

#: Verdicts of `_index` on a line.
_VALID, _NO_TRADE, _OTHER_SYMBOL = range(3)


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


class _Layout(NamedTuple):
    """Columns of this archive, and how its frames start."""

    columns: int
    id: int  #: column of the trade id
    rpi: int  #: column of the retail-price-improvement flag, 0 without one
    symbol: Text
    head: Text  #: a frame up to and with ``"ts":``


class TradeArchive:
    """The trades of one archive; ``len`` is their number.

    ValueError with the line number for text that is not a trade archive of the symbol.
    """

    def __init__(self, text: bytes, symbol: str) -> None:
        first = text.partition(b"\n")[0]
        header = tuple(first.strip().split(b","))
        if header[: len(_HEADER)] != _HEADER or _ID not in header:
            raise ValueError("line 1: not the header of a trade archive")
        self._layout = _Layout(
            len(header),
            header.index(_ID),
            header.index(_RPI) if _RPI in header else 0,
            _bytes(symbol),
            _bytes(f'{{"topic":"publicTrade.{symbol}","type":"snapshot","ts":'),
        )
        self._text = np.frombuffer(text, np.uint8)
        self._fields = np.zeros((len(header), 2), np.int64)
        lines = np.empty(text.count(b"\n") + 1, LINE)
        count, number, verdict, self._longest = _index(
            self._text, min(len(first) + 1, len(text)), self._layout, self._fields, lines
        )
        if verdict == _OTHER_SYMBOL:
            start, end = self._fields[_SYMBOL]
            raise ValueError(f"line {number}: a trade of {text[start:end].decode()}, not {symbol}")
        if verdict == _NO_TRADE:
            raise ValueError(f"line {number}: not a trade")
        lines = lines[:count]
        # Newest first: reversed before the stable sort, so that trades of one time keep their order.
        if count > 1 and lines["time_ns"][0] > lines["time_ns"][-1]:
            lines = lines[::-1]
        self._lines = lines[np.argsort(lines["time_ns"], kind="stable")]

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def times_ns(self) -> Integers:
        """Trade times, oldest first: epoch ns, shape (n,)."""
        times: Integers = self._lines["time_ns"]
        return times

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """(trade time in epoch ms, frame), oldest first."""
        if not len(self):
            return
        starts = np.flatnonzero(np.diff(self.times_ns // MS_NS, prepend=-1))
        stops = np.append(starts[1:], len(self))
        for first in range(0, len(starts), _FRAMES):
            begins, ends = starts[first : first + _FRAMES], stops[first : first + _FRAMES]
            room = int(ends[-1] - begins[0]) * (self._longest + _TRADE_BYTES)
            room += len(begins) * (len(self._layout.head) + _FRAME_BYTES)
            out = np.empty(room, np.uint8)
            frames = np.empty(len(begins), FRAME)
            _write(self._text, self._layout, self._fields, self._lines, begins, ends, out, frames)
            text = out[: frames["end"][-1]].tobytes()
            start = 0
            for ms, end in frames.tolist():
                yield ms, text[start:end]
                start = end


@compiled
def _split(text: Text, at: int, fields: Integers) -> tuple[int, int]:
    """Bounds of the fields of the line at ``at``; (count, the line's end), -1 if it is not plain."""
    end = at
    while end < len(text) and text[end] != NEWLINE:
        end += 1
    stop = end
    while stop > at and (text[stop - 1] == _RETURN or text[stop - 1] == SPACE):
        stop -= 1
    count = 0
    start = at
    for k in range(at, stop + 1):
        if k == stop or text[k] == COMMA:
            if count == len(fields):
                return -1, end
            fields[count, 0] = start
            fields[count, 1] = k
            count += 1
            start = k + 1
        elif (
            text[k] < SPACE or text[k] > _LAST_PRINTABLE or text[k] == QUOTE or text[k] == BACKSLASH
        ):
            return -1, end
    return (0 if stop == at else count), end


@compiled
def _time_ns(text: Text, at: int, end: int) -> int:
    """Epoch ns of decimal seconds, exact; 0 if the text is no such number."""
    seconds = 0
    if at == end or text[at] == DOT:
        return 0
    while at < end and text[at] != DOT:
        if not ZERO <= text[at] <= NINE:
            return 0
        seconds = seconds * 10 + (text[at] - ZERO)
        if seconds > _LAST_SECOND:
            return 0
        at += 1
    at += 1
    fraction = 0
    for place in range(9):
        fraction *= 10
        if at + place < end:
            fraction += text[at + place] - ZERO
    for k in range(at, end):
        if not ZERO <= text[k] <= NINE:
            return 0
    return seconds * SECOND_NS + fraction


@compiled
def _equals(text: Text, field: Integers, value: Text) -> bool:
    return bool(same(text, field[0], field[1], value, 0, len(value)))


@compiled
def _index(
    text: Text, at: int, layout: _Layout, fields: Integers, lines: Structured
) -> tuple[int, int, int, int]:
    """Find and validate every trade: (trades, number of the last line, its verdict, longest line)."""
    count = longest = 0
    number = 1
    while at < len(text):
        number += 1
        columns, end = _split(text, at, fields)
        if columns != 0:  # else an empty line
            if columns != layout.columns:
                return count, number, _NO_TRADE, longest
            time_ns = _time_ns(text, fields[_TIMESTAMP, 0], fields[_TIMESTAMP, 1])
            sided = _equals(text, fields[_SIDE], _BUY) or _equals(text, fields[_SIDE], _SELL)
            if time_ns == 0 or not sided:
                return count, number, _NO_TRADE, longest
            if not _equals(text, fields[_SYMBOL], layout.symbol):
                return count, number, _OTHER_SYMBOL, longest
            lines[count].time_ns = time_ns
            lines[count].start = at
            count += 1
            longest = max(longest, end - at)
        at = end + 1
    return count, number, _VALID, longest


@compiled
def _put_field(out: Text, at: int, text: Text, field: Integers) -> int:
    return int(put(out, at, text[field[0] : field[1]]))


@compiled
def _write(
    text: Text,
    layout: _Layout,
    fields: Integers,
    lines: Structured,
    begins: Integers,
    ends: Integers,
    out: Text,
    frames: Structured,
) -> None:
    """Write one frame per group of lines ``[begins[n], ends[n])`` into ``out`` and ``frames[n]``."""
    at = 0
    for group in range(len(begins)):
        ms = lines[begins[group]].time_ns // MS_NS
        at = put(out, at, layout.head)
        at = put_number(out, at, ms, 0)
        at = put(out, at, _DATA)
        for n in range(begins[group], ends[group]):
            _split(text, lines[n].start, fields)
            at = put(out, at, _T)
            at = put_number(out, at, ms, 0)
            at = put(out, at, _S)
            at = put(out, at, layout.symbol)
            at = put(out, at, _BUYS if _equals(text, fields[_SIDE], _BUY) else _SELLS)
            at = _put_field(out, at, text, fields[_SIZE])
            at = put(out, at, _P)
            at = _put_field(out, at, text, fields[_PRICE])
            at = put(out, at, _L)
            at = _put_field(out, at, text, fields[_TICK_DIRECTION])
            at = put(out, at, _I)
            at = _put_field(out, at, text, fields[layout.id])
            rpi = fields[layout.rpi]
            improved = layout.rpi > 0 and rpi[1] == rpi[0] + 1 and text[rpi[0]] == _ONE
            at = put(out, at, _IMPROVED if improved else _PLAIN)
        at = put(out, at - 1, _END)  # over the last comma
        frames[group].ms = ms
        frames[group].end = at
