"""The market around a parent, as it reached us: mids and traded volume over time."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from market.book import BookState, apply, is_valid, mid_ticks, new_state
from market.events import Events, Flag, Kind
from market.kernel import compiled
from market.units import MINUTE_NS

#: Kernel's mid of an invalid book, and before the first; a mid is never negative.
_INVALID: Final = -1.0
_NONE_YET: Final = -2.0

#: A recorder lets go of the past in steps of this.
FORGET_NS: Final = MINUTE_NS

_TRADE, _BLOCK = int(Kind.TRADE), int(Flag.BLOCK)


class Mids:
    """The mid over time: a step function in ticks.

    While the book is invalid (crossed, one-sided, sequence gap) the last mid is carried forward, and
    `sound` is false.
    """

    def __init__(
        self, time_ns: Iterable[int] = (), mid_ticks: Iterable[float] = (), until_ns: int = 0
    ) -> None:
        self._time_ns = list(time_ns)
        self._mid_ticks = list(mid_ticks)
        self._sound = [True] * len(self._time_ns)
        #: End of the record; later mids are NaN.
        self.until_ns = max(until_ns, self._time_ns[-1] if self._time_ns else 0)

    def append(self, time_ns: int, mid_ticks: float) -> None:
        """Set the mid from ``time_ns`` on, NaN for an invalid book; times do not run backwards."""
        self.until_ns = max(self.until_ns, time_ns)
        sound = not math.isnan(mid_ticks)
        if not sound:
            if not self._mid_ticks:
                return
            mid_ticks = self._mid_ticks[-1]
        if not self._mid_ticks or (self._mid_ticks[-1], self._sound[-1]) != (mid_ticks, sound):
            self._time_ns.append(time_ns)
            self._mid_ticks.append(mid_ticks)
            self._sound.append(sound)

    def at(self, time_ns: int) -> float:
        """The mid at an instant; NaN past the record's end, the first mid before it."""
        place = self._place(time_ns)
        return math.nan if place is None else self._mid_ticks[max(0, place)]

    def sound(self, time_ns: int) -> bool:
        """Whether the book of that instant is on record and was valid."""
        place = self._place(time_ns)
        return place is not None and place >= 0 and self._sound[place]

    def mean(self, from_ns: int, to_ns: int) -> float:
        """Time-weighted mean of the mid between two instants; NaN past the record's end."""
        first, last = self._place(from_ns), self._place(to_ns)
        if first is None or last is None:
            return math.nan
        if to_ns <= from_ns:
            return self.at(to_ns)
        total = 0.0
        for place in range(max(0, first), max(0, last) + 1):
            begins = from_ns if place <= max(0, first) else self._time_ns[place]
            ends = to_ns if place >= last else self._time_ns[place + 1]
            total += self._mid_ticks[place] * (ends - begins)
        return total / (to_ns - from_ns)

    def forget(self, before_ns: int) -> None:
        """Drop older mids, except the one in force at ``before_ns``."""
        keep = max(0, bisect_right(self._time_ns, before_ns) - 1)
        del self._time_ns[:keep], self._mid_ticks[:keep], self._sound[:keep]

    def _place(self, time_ns: int) -> int | None:
        """Index of the step in force, -1 before the first; None past the record's end."""
        if time_ns > self.until_ns or not self._time_ns:
            return None
        return bisect_right(self._time_ns, time_ns) - 1


class TradedVolume:
    """Traded quantity and value over time as running sums, without block trades."""

    def __init__(self) -> None:
        self._time_ns: list[int] = []
        #: Lots, and lots × ticks, up to each trade; the first entry is of what was forgotten.
        self._lots, self._values = [0], [0]

    def append(self, events: Events) -> None:
        """Add the trades among event rows, in receive order."""
        trades = events[(events["kind"] == _TRADE) & ((events["flags"] & _BLOCK) == 0)]
        if len(trades):
            lots = trades["qty_lots"].astype(np.int64)
            self._time_ns += trades["receive_ns"].tolist()
            self._lots += (self._lots[-1] + np.cumsum(lots)).tolist()
            self._values += (self._values[-1] + np.cumsum(lots * trades["price_ticks"])).tolist()

    def between(self, from_ns: int, to_ns: int) -> tuple[int, int]:
        """Lots, and lots × ticks, received after ``from_ns`` and by ``to_ns``."""
        first, last = (bisect_right(self._time_ns, time_ns) for time_ns in (from_ns, to_ns))
        last = max(first, last)
        return self._lots[last] - self._lots[first], self._values[last] - self._values[first]

    def forget(self, before_ns: int) -> None:
        """Drop the trades up to ``before_ns``."""
        keep = bisect_right(self._time_ns, before_ns)
        del self._time_ns[:keep], self._lots[:keep], self._values[:keep]


@compiled
def _mids(
    state: BookState,
    events: Events,
    time_ns: npt.NDArray[np.int64],
    mids: npt.NDArray[np.float64],
) -> int:
    """Write each new mid, `_INVALID` where the book becomes invalid, with receive times; how many."""
    n = 0
    last = _NONE_YET
    for k in range(len(events)):
        if apply(state, events[k]):
            mid = mid_ticks(state) if is_valid(state) else _INVALID
            if mid != last:
                last = mid
                time_ns[n] = events[k].receive_ns
                mids[n] = mid
                n += 1
    return n


class MidRecorder:
    """Records a symbol's local mids and traded volume from event rows, in receive order."""

    def __init__(self) -> None:
        self.mids = Mids()
        self.traded = TradedVolume()
        self._state = new_state()
        self._forgotten_ns = 0

    def push(self, events: Events) -> None:
        """Add rows of whole frames."""
        time_ns, mid_ticks = np.empty(len(events), np.int64), np.empty(len(events), np.float64)
        n = _mids(self._state, events, time_ns, mid_ticks)
        for time, mid in zip(time_ns[:n].tolist(), mid_ticks[:n].tolist(), strict=True):
            self.mids.append(time, mid if mid != _INVALID else math.nan)
        self.traded.append(events)
        if len(events):
            self.mids.until_ns = max(self.mids.until_ns, int(events["receive_ns"][-1]))

    def forget(self, before_ns: int) -> None:
        """Let go of what is older than the earliest instant still needed, every `FORGET_NS` of it.

        Every second it would cost more than recording does.
        """
        if before_ns - self._forgotten_ns >= FORGET_NS:
            self._forgotten_ns = before_ns
            self.mids.forget(before_ns)
            self.traded.forget(before_ns)
