"""Frames that wait are taken together: read, and applied to books and bars, by compiled code.

One after the other they cost Python's overhead each, and a burst holds thousands in a second. What follows
is the same however they are grouped: `Frames.advance` stops after each frame at which an algorithm that
works would be stepped, a book lost its sequence, or something is due.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from live.messages import PublicFrame
from live.symbol_state import count_taken
from live.trader import Trader
from market import book as bk
from market.columns import COLUMNS
from market.events import EVENT, Events, Kind
from market.kernel import kernel
from market.second import advance
from market.units import SECOND_NS
from market.wire import stream
from market.wire.decode import Decoder
from market.wire.jsontext import NEWLINE, Text
from market.wire.scanner import DONE, scan_lines
from market.wire.stream import Tables
from market.wire.topics import FAMILIES

#: Frames that are taken together at most.
MOST: Final = 256

_TRADE: Final = int(Kind.TRADE)
#: A frame: where its rows end, its symbol (-1 without rows), how many gaps it showed.
_FRAME: Final = np.dtype([("receive_ns", "i8"), ("stop", "i8"), ("symbol", "i8"), ("gaps", "i8")])
#: Of a symbol at work (`Desk.step`): its algorithm is stepped after any frame, on another touch than this
#: (ticks), or from a time on.
_AWAITED: Final = np.dtype(
    [("works", "i8"), ("any", "i8"), ("bid", "i8"), ("ask", "i8"), ("timer_ns", "i8")]
)
_NO_BARS: Final = np.empty((0, len(COLUMNS)))


@kernel
def scan_frames(
    tables: Tables, text: Text, until_ns: int, rows: Events, symbols: Text, frames: Any
) -> int:
    """Read lines of a time and a frame, up to one that the reference must read or that was received at
    ``until_ns`` or later; how many were read."""
    at = n = 0
    for k in range(len(frames)):
        end = at
        while text[end] != NEWLINE:
            end += 1
        status, _, stop, lines, topic = scan_lines(
            tables, text[at:end], 0, 0, until_ns, rows, symbols, n
        )
        if status != DONE or lines != 1:
            return k
        frame = frames[k]
        frame.stop, frame.symbol, frame.gaps = stop, topic // FAMILIES if stop > n else -1, 0
        if topic < len(tables.topics):
            counts = tables.topics[topic].counts
            frame.gaps, counts.gaps = counts.gaps, 0
        n = stop
        at = end + 1
    return len(frames)


@kernel
def advance_frames(
    books: Any, seconds: Any, taken: Any, rows: Events, frames: Any, first: int, awaited: Any,
    due_ns: int, bars: npt.NDArray[np.float64],
) -> int:  # fmt: skip
    """Apply frames from ``first`` on; how many are applied when it stops. None of them ends a second."""
    start = frames[first - 1].stop if first > 0 else 0
    for k in range(first, len(frames)):
        frame = frames[k]
        s = frame.symbol
        if s >= 0:
            part = rows[start : frame.stop]
            start = frame.stop
            advance(books[s], seconds[s], part, bars)
            count_taken(part, taken[s])
            wait = awaited[s]
            if (
                wait.works != 0
                and part[0].kind <= _TRADE
                and (
                    wait.any != 0
                    or bk.best(books[s], 1) != wait.bid
                    or bk.best(books[s], -1) != wait.ask
                    or frame.receive_ns >= wait.timer_ns
                )
            ):
                return k + 1
        if frame.gaps > 0 or frame.receive_ns >= due_ns:
            return k + 1
    return len(frames)


class Rows(NamedTuple):
    """Event rows of whole frames of one symbol and second, in receive order: a public frame that has been
    read. Several frames at once only while nothing is open (`Desk.at_rest`).
    """

    symbol: str
    events: Events


class Frames(Decoder):
    """A decoder that also reads several frames at once, and applies them to a trader's symbols."""

    frames: Any = np.zeros(0, _FRAME)  #: those taken together last
    rows_taken = 0  #: their rows

    def together(
        self,
        given: Sequence[tuple[int, PublicFrame]],
        trader: Trader,
        due_ns: Callable[[], int],
    ) -> Iterator[tuple[int, str, int]]:
        """Take the first of these frames; their number is that of ``frames`` then, 0 where they must be taken
        one by one. Yields after each frame at which there may be something to do, given that nothing is due
        before ``due_ns``: its time, the symbol whose algorithm may be stepped, if any, and the gaps it showed.
        """
        count = self.read(given, trader, due_ns())
        done = 0
        while done < count:
            done, symbol = self.advance(done, trader, due_ns())
            now_ns, _, _, gaps = self.frames[done - 1].item()
            yield now_ns, symbol, gaps
        self.rows_taken = self.finish(trader) if count else 0

    def read(self, given: Sequence[tuple[int, PublicFrame]], trader: Trader, until_ns: int) -> int:
        """Read frames of the trader's current second, received before ``until_ns``; how many were."""
        self.frames = self.frames[:0]
        given = given[:MOST]
        text = b"".join([b"%d %b\n" % (now_ns, frame.frame) for now_ns, frame in given])
        end_ns = trader.second_ns + SECOND_NS
        states = self._states = list(trader.symbols.values())
        self._seconds = tuple(state.builder._second for state in states)
        if (
            text.count(b"\n") != len(given)
            or given[0][0] < max(1, self.clock_ns)
            or self._symbols != list(trader.symbols)
            or any(second[0]["end_ns"] != end_ns for second in self._seconds)
        ):
            return 0
        self.frames = np.zeros(len(given), _FRAME)
        self.frames["receive_ns"] = [now_ns for now_ns, _ in given]
        lines = np.frombuffer(text, np.uint8)
        until_ns = min(until_ns, end_ns)
        rows, symbols = self._rows, self._row_symbols
        counts = self._tables.topics["counts"]
        counts[:] = stream.NO_COUNTS
        count = scan_frames(self._tables, lines, until_ns, rows, symbols, self.frames)
        counts[:] = stream.NO_COUNTS
        self.frames = self.frames[:count]
        self._books = tuple(state.builder.book.state for state in states)
        self._taken = tuple(state.taken for state in states)
        self._awaited = np.zeros(len(states), _AWAITED)
        return int(count)

    def advance(self, first: int, trader: Trader, due_ns: int) -> tuple[int, str]:
        """Apply frames from ``first`` on until one after which something may be due: how many are applied
        then, and the symbol whose algorithm may be stepped, if any."""
        self._awaited["works"] = 0
        for n, symbol in enumerate(self._symbols):
            if (work := trader.desk.at_work(symbol)) is not None:
                touch = (bk.NO_LEVEL if price is None else price for price in work.touch)
                self._awaited[n] = True, bool(work.changed) or work.denied, *touch, work.timer_ns
        stop = advance_frames(
            *(self._books, self._seconds, self._taken, self._rows, self.frames),
            *(first, self._awaited, due_ns, _NO_BARS),
        )
        symbol, row = self.frames[stop - 1]["symbol"], self._start_of(stop - 1)
        reacts = symbol >= 0 and self._rows["kind"][row] <= _TRADE
        return int(stop), self._symbols[symbol] if reacts else ""

    def finish(self, trader: Trader) -> int:
        """Hand on the rows of what was applied; how many they are."""
        rows = self._rows[: self.frames["stop"][-1]]
        symbols = self._row_symbols[: len(rows)]
        for n, symbol in enumerate(self._symbols):
            if count := np.count_nonzero(symbols == n):
                part = np.empty(count, EVENT)
                stream.take_rows(rows, symbols, n, part)
                trader.took(symbol, part)
        return len(rows)

    def _start_of(self, frame: int) -> int:
        return int(self.frames["stop"][frame - 1]) if frame else 0
