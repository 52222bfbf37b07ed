"""A synthetic market that can continue from another one's state, and its market data as received.

Our picture of the market is made of its market data at their receive times. Venue time runs ahead of
ours by the entry latency at most, so that no request arrives in the past.
"""

from __future__ import annotations

import heapq
from enum import IntEnum
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from execution.simulation.queue import HIDDEN
from market.book import NO_LEVEL, Book, BookState, apply, best, is_valid
from market.events import Events, Kind
from market.kernel import compiled
from proving.synthetic import publication
from proving.synthetic.arrivals import Floats, Integers
from proving.synthetic.marketplace import ExecutionReport, SyntheticMarket
from proving.synthetic.matching import grown
from proving.synthetic.profiles import Profile
from proving.synthetic.publication import MarketState

#: The local picture beside its book. Rows are those of the market's buffer.
PICTURE: Final = np.dtype(
    [
        ("now_ns", "i8"),  # our time
        ("received", "i8"),  # rows that have reached us
        ("published", "i8"),  # rows published
        ("bid", "i8"),  # touch of the local book in ticks, `NO_LEVEL` for none
        ("ask", "i8"),
        ("bought_lots", "i8"),  # by takers in the visible book, as far as received
        ("sold_lots", "i8"),
        ("mids", "i8"),  # mids written
        ("lowest", "i8"),  # lowest price at which takers sold since `Branch.watch`
        ("highest", "i8"),  # highest price at which takers bought since
    ]
)


class Why(IntEnum):
    """Why `_to_news` returned."""

    QUIET = 0  #: our time is where it was to go
    TOUCH = 1  #: the touch of the local book has changed
    FILLED = 2  #: resting orders of ours were executed
    ARRIVED = 3  #: the market is where our next request arrives
    ROOM = 4  #: rows, pool, fills or mids need room


_QUIET: Final = int(Why.QUIET)
_TOUCH: Final = int(Why.TOUCH)
_FILLED: Final = int(Why.FILLED)
_ARRIVED: Final = int(Why.ARRIVED)
_ROOM: Final = int(Why.ROOM)

_TRADE: Final = int(Kind.TRADE)
#: Room for mids: more than there are frames in ten minutes.
_MIDS: Final = 1 << 14


@compiled
def _to_news(
    rows: Events,
    market: MarketState,
    local: BookState,
    pictures: Any,
    mids_ns: Integers,
    mids_ticks: Floats,
    until_ns: int,
    arrival_ns: int,
    entry_ns: int,
    stops: bool,
) -> int:
    """Advance our time to news (if ``stops``, to a touch that changed), or to ``until_ns``.

    The market runs ahead of it by ``entry_ns``, and no further than ``arrival_ns``.
    """
    picture, midnight_ns = pictures[0], market.wire.midnight_ns
    while True:
        venue_ns = midnight_ns + market.clock[0]
        limit = min(until_ns, venue_ns)
        while picture.received < picture.published and rows[picture.received].receive_ns <= limit:
            if picture.mids == len(mids_ns):
                return _ROOM
            row = rows[picture.received]
            picture.received += 1
            if row.kind == _TRADE:
                if row.flags & HIDDEN:
                    continue
                if row.side > 0:
                    picture.bought_lots += row.qty_lots
                    picture.highest = max(picture.highest, row.price_ticks)
                else:
                    picture.sold_lots += row.qty_lots
                    picture.lowest = min(picture.lowest, row.price_ticks)
            elif apply(local, row):
                bid, ask = best(local, 1), best(local, -1)
                if bid != picture.bid or ask != picture.ask:
                    picture.bid, picture.ask = bid, ask
                    if is_valid(local):
                        mids_ns[picture.mids] = row.receive_ns
                        mids_ticks[picture.mids] = (bid + ask) / 2
                        picture.mids += 1
                    if stops:
                        picture.now_ns = row.receive_ns
                        return _TOUCH
        picture.now_ns = max(picture.now_ns, limit)
        if limit == until_ns:
            return _QUIET
        if venue_ns >= arrival_ns:
            return _ARRIVED
        if picture.received == picture.published:
            picture.received = picture.published = 0
        target = min(picture.now_ns + entry_ns, arrival_ns) - midnight_ns
        picture.published = publication.run(rows, picture.published, market, target)
        if market.publication.head[0].own_fills > 0:
            return _FILLED
        if market.clock[0] < target:
            return _ROOM


class Branch(SyntheticMarket):
    """A market that can continue from another's state, with our local picture of it."""

    def __init__(self, profile: Profile, seed: int, symbol: str, day: str) -> None:
        super().__init__(profile, seed, symbol, day)
        self.local = Book()
        self._pictures = np.zeros(1, PICTURE)
        self.picture = self._pictures[0]
        self.picture["now_ns"] = self.midnight_ns
        self.picture["bid"] = self.picture["ask"] = NO_LEVEL
        self.watch()
        self._mids_ns = np.empty(_MIDS, np.int64)
        self._mids_ticks = np.empty(_MIDS)
        self._mids: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]] = []

    def watch(self) -> None:
        """Begin to record the extremes of what takers pay."""
        self.picture["lowest"], self.picture["highest"] = -NO_LEVEL, NO_LEVEL

    def take_over(self, other: Branch) -> None:
        """Copy the state of another branch of the same day, with nothing of ours in the book."""
        size, other_size = (len(each._engine.state.orders) for each in (self, other))
        if size != other_size:
            (self if size < other_size else other)._grow(max(size, other_size))
        self._make_room()
        _copy_state(self._state.engine, other._state.engine)
        _copy_state(self._state.background, other._state.background)
        _copy_state(self._state.publication, other._state.publication)
        np.copyto(self._state.clock, other._state.clock)
        self._in_flight, self._reports = [], []
        self._references, self._handles = {}, {}
        np.copyto(self.local.state, other.local.state)
        pending = other._rows[other.picture["received"] : other.picture["published"]]
        self._pictures[:] = other._pictures
        self._rows[: len(pending)] = pending
        self.picture["received"], self.picture["published"] = 0, len(pending)
        self.picture["mids"] = 0
        self._mids = []

    def _grow(self, capacity: int) -> None:
        self._engine.state = grown(self._engine.state, capacity)
        self._state = self._state._replace(engine=self._engine.state)

    def to_news(self, until_ns: int, arrival_ns: int, entry_ns: int, stops: bool) -> Why:
        """`_to_news`, with room made for it."""
        while True:
            why = _to_news(
                self._rows,
                self._state,
                self.local.state,
                self._pictures,
                self._mids_ns,
                self._mids_ticks,
                until_ns,
                arrival_ns,
                entry_ns,
                stops,
            )
            if why == _FILLED:
                self._collect()
            if why != _ROOM:
                return Why(why)
            self._compact()

    def arrived(self) -> list[ExecutionReport]:
        """Apply the requests sent just now, which have no latency here; their reports, and fills since."""
        while self._in_flight:
            self._compact()
            self._used = int(self.picture["published"])
            self._apply(heapq.heappop(self._in_flight))
            self.picture["published"] = self._used
        return self.reports()

    def _compact(self) -> None:
        """Drop rows that were received, make room, and set full mids aside."""
        received, published = self.picture["received"], self.picture["published"]
        self._rows[: published - received] = self._rows[received:published].copy()
        self.picture["received"], self.picture["published"] = 0, published - received
        self._used = int(published - received)
        self._make_room()
        if self.picture["mids"] == len(self._mids_ns):
            self._keep_mids()

    def _keep_mids(self) -> None:
        written = int(self.picture["mids"])
        self._mids.append((self._mids_ns[:written].copy(), self._mids_ticks[:written].copy()))
        self.picture["mids"] = 0

    def mids(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Receive times and local mids (ticks) since the last call or `take_over`; each is given once."""
        self._keep_mids()
        times, ticks = zip(*self._mids, strict=True)
        self._mids = []
        return np.concatenate(times), np.concatenate(ticks)


def _copy_state(mine: Any, theirs: Any) -> None:
    """Copy the arrays of a kernel's state, but for buffers that are empty between two calls."""
    for field in mine._fields:
        own, other = getattr(mine, field), getattr(theirs, field)
        if isinstance(own, tuple):
            _copy_state(own, other)
        elif field not in ("fills", "own_fills", "own_trades"):
            np.copyto(own, other)
