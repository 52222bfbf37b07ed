"""A synthetic market that can stand where another one stands, and is seen as it reaches us.

The picture that we have of it is made of what it publishes, at the times at which that is received.
Venue time runs ahead of ours by the latency of our requests at most, so that none arrives in the past.
"""

from __future__ import annotations

import heapq
from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from execution.simulation.queue import HIDDEN
from market.book import NO_LEVEL, Book, BookState, apply, best, is_valid
from market.events import Events, Kind
from market.kernel import compiled
from proving.synthetic import publication
from proving.synthetic.arrivals import Arrivals, Floats, Integers
from proving.synthetic.flow import Crowd, Law, Path
from proving.synthetic.marketplace import ExecutionReport, SyntheticMarket
from proving.synthetic.matching import EngineState, grown
from proving.synthetic.profiles import Profile
from proving.synthetic.publication import Sheet, Wire

# Places in a picture's clock.
NOW: Final = 0  #: our time
SEEN: Final = 1  #: rows that have reached us, and rows published, of those held
USED: Final = 2
BID: Final = 3  #: touch of the local book in ticks, `NO_LEVEL` for none
ASK: Final = 4
BOUGHT: Final = 5  #: lots that takers have bought in the visible book, as far as seen
SOLD: Final = 6
MIDS: Final = 7  #: mids written
LOWEST: Final = 8  #: lowest price at which takers sold, and highest at which they bought, since
HIGHEST: Final = 9  #: `Branch.watch` was called
_CLOCK: Final = 10


class Why(IntEnum):
    """Why `_to_news` came back."""

    QUIET = 0  #: our time is where it was to go
    TOUCH = 1  #: the touch of the local book has changed
    FILLED = 2  #: resting orders of ours were executed
    ARRIVED = 3  #: the market is where our next request arrives
    ROOM = 4  #: rows, pool, outbox or mids need room


_QUIET: Final = int(Why.QUIET)
_TOUCH: Final = int(Why.TOUCH)
_FILLED: Final = int(Why.FILLED)
_ARRIVED: Final = int(Why.ARRIVED)
_ROOM: Final = int(Why.ROOM)

_TRADE: Final = int(Kind.TRADE)
#: Room for mids: more than there are frames in ten minutes.
_ROOM_MIDS: Final = 1 << 14


@compiled
def _to_news(
    rows: Events,
    engine: EngineState,
    law: Law,
    arriving: Arrivals,
    path: Path,
    volatility: Floats,
    values: Integers,
    crowd: Crowd,
    sheet: Sheet,
    wire: Wire,
    market_clock: Integers,
    local: BookState,
    clock: Integers,
    mids_ns: Integers,
    mids_ticks: Floats,
    until_ns: int,
    arrival_ns: int,
    entry_ns: int,
    stops: bool,
) -> int:
    """Our time goes on to news (where it ``stops`` at a touch that changed), or to ``until_ns``.

    The market goes ahead of it by ``entry_ns``, and no further than ``arrival_ns``.
    """
    while True:
        venue_ns = wire.midnight_ns + market_clock[0]
        limit = min(until_ns, venue_ns)
        while clock[SEEN] < clock[USED] and rows[clock[SEEN]].receive_ns <= limit:
            if clock[MIDS] == len(mids_ns):
                return _ROOM
            row = rows[clock[SEEN]]
            clock[SEEN] += 1
            if row.kind == _TRADE:
                if not row.flags & HIDDEN:
                    clock[BOUGHT if row.side > 0 else SOLD] += row.qty_lots
                    if row.side > 0:
                        clock[HIGHEST] = max(clock[HIGHEST], row.price_ticks)
                    else:
                        clock[LOWEST] = min(clock[LOWEST], row.price_ticks)
            elif apply(local, row):
                bid, ask = best(local, 1), best(local, -1)
                if bid != clock[BID] or ask != clock[ASK]:
                    clock[BID], clock[ASK] = bid, ask
                    if is_valid(local):
                        mids_ns[clock[MIDS]] = row.receive_ns
                        mids_ticks[clock[MIDS]] = (bid + ask) / 2
                        clock[MIDS] += 1
                    if stops:
                        clock[NOW] = row.receive_ns
                        return _TOUCH
        clock[NOW] = max(clock[NOW], limit)
        if limit == until_ns:
            return _QUIET
        if venue_ns >= arrival_ns:
            return _ARRIVED
        if clock[SEEN] == clock[USED]:
            clock[SEEN] = clock[USED] = 0
        target = min(clock[NOW] + entry_ns, arrival_ns) - wire.midnight_ns
        clock[USED] = publication.run(
            rows,
            clock[USED],
            engine,
            law,
            arriving,
            path,
            volatility,
            values,
            crowd,
            sheet,
            wire,
            market_clock,
            target,
        )
        if sheet.head[publication.OUT_FILLS] > 0:
            return _FILLED
        if market_clock[0] < target:
            return _ROOM


class Branch(SyntheticMarket):
    """A market that can go on from another's state, and whose publications are seen in time."""

    def __init__(self, profile: Profile, seed: int, symbol: str, day: str) -> None:
        super().__init__(profile, seed, symbol, day)
        self.local = Book()
        self.clock = np.zeros(_CLOCK, np.int64)
        self.clock[NOW] = self.midnight_ns
        self.clock[[BID, ASK]] = NO_LEVEL
        self.watch()
        self._mids_ns = np.empty(_ROOM_MIDS, np.int64)
        self._mids_ticks = np.empty(_ROOM_MIDS)
        self._mids: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]] = []

    def watch(self) -> None:
        """Begin to look for the extremes of what takers pay."""
        self.clock[LOWEST], self.clock[HIGHEST] = -NO_LEVEL, NO_LEVEL

    def take_over(self, other: Branch) -> None:
        """Stand where another branch of the same day stands, with nothing of ours in the book."""
        mine, theirs = self._engine.state, other._engine.state
        if len(mine.orders) < len(theirs.orders):
            mine = self._engine.state = grown(mine, len(theirs.orders))
        if len(mine.orders) > len(theirs.orders):
            theirs = other._engine.state = grown(theirs, len(mine.orders))
        for field in ("book", "ends", "orders", "head"):
            np.copyto(getattr(mine, field), getattr(theirs, field))
        for field in self._crowd._fields:
            np.copyto(getattr(self._crowd, field), getattr(other._crowd, field))
        for field in self._sheet._fields:
            if field != "outbox":  # empty between two calls
                np.copyto(getattr(self._sheet, field), getattr(other._sheet, field))
        self._clock[0] = other._clock[0]
        self._pending, self._reports = [], []
        self._references, self._handles = {}, {}
        np.copyto(self.local.state, other.local.state)
        np.copyto(self.clock, other.clock)
        held = other._rows[other.clock[SEEN] : other.clock[USED]]
        self._make_room()
        self._rows[: len(held)] = held
        self.clock[SEEN], self.clock[USED] = 0, len(held)
        self.clock[MIDS] = 0
        self._mids = []

    def to_news(self, until_ns: int, arrival_ns: int, entry_ns: int, stops: bool) -> Why:
        """`_to_news`, with room made for it."""
        while True:
            found = _to_news(
                self._rows,
                self._engine.state,
                self._law,
                self._arriving,
                self._path,
                self.hidden.volatility,
                self._values,
                self._crowd,
                self._sheet,
                self._wire,
                self._clock,
                self.local.state,
                self.clock,
                self._mids_ns,
                self._mids_ticks,
                until_ns,
                arrival_ns,
                entry_ns,
                stops,
            )
            if found == _FILLED:
                self._collect()
            if found != _ROOM:
                return Why(found)
            self._close_ranks()

    def met(self) -> list[ExecutionReport]:
        """What our requests, sent just now without latency, came to, and executions since."""
        while self._pending:
            self._close_ranks()
            self._used = int(self.clock[USED])
            self._apply(heapq.heappop(self._pending))
            self.clock[USED] = self._used
        return self.reports()

    def _close_ranks(self) -> None:
        """Rows that were seen and mids that are full make room."""
        seen, used = self.clock[SEEN], self.clock[USED]
        self._rows[: used - seen] = self._rows[seen:used].copy()
        self.clock[SEEN], self.clock[USED] = 0, used - seen
        self._used = int(used - seen)
        self._make_room()
        if self.clock[MIDS] == len(self._mids_ns):
            self._keep_mids()

    def _keep_mids(self) -> None:
        written = int(self.clock[MIDS])
        self._mids.append((self._mids_ns[:written].copy(), self._mids_ticks[:written].copy()))
        self.clock[MIDS] = 0

    def mids(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Receive times and local mids (ticks) since the last call or `take_over`; given once."""
        self._keep_mids()
        times, ticks = zip(*self._mids, strict=True)
        self._mids = []
        return np.concatenate(times), np.concatenate(ticks)
