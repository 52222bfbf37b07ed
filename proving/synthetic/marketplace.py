"""A running synthetic market: our own orders meet everybody else's in one book.

    market = SyntheticMarket(profile("default"), seed, "BTCUSDT", "2026-03-01", entry_ns=5_000_000)
    rows = market.advance(market.midnight_ns + 60_000_000_000)   # market data published meanwhile
    handle = market.submit(1, ticks, lots, POST_ONLY)             # arrives 5 ms later
    rows = market.advance(...)
    market.reports()                                              # execution reports

Background randomness is counted by request, maker step and frame, so two markets of one seed differ by
what our orders do to the book and to the price that makers see, and by nothing else.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Sequence
from datetime import date
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

from market.events import EVENT, Events
from market.instruments import BUILT_IN, Instrument
from market.units import E8, MS_NS, SECOND_NS, day_start_ns
from proving.synthetic import latent, publication
from proving.synthetic.arrivals import philox_key
from proving.synthetic.background import (
    BACKGROUND,
    POOL_ROOM,
    arrival_law,
    background_parameters,
    latent_path,
    new_background,
)
from proving.synthetic.engine import EngineExecution, MatchingEngine, MatchResult
from proving.synthetic.latent import FRAMES, SECONDS
from proving.synthetic.makers import apply_impact, maker_step
from proving.synthetic.matching import Status, TimeInForce
from proving.synthetic.profiles import Profile, ProfileError
from proving.synthetic.publication import MarketState

CHUNK_ROWS: Final = 250_000
_POOL: Final = 1 << 16
#: Default owner of our orders; any but the background's will do.
OURS: Final = 1


def built_in(symbol: str) -> Instrument:
    """The symbol's built-in instrument; ProfileError names the known ones."""
    if symbol not in BUILT_IN:
        raise ProfileError(f"{symbol}: no built-in instrument; known are {', '.join(BUILT_IN)}")
    return BUILT_IN[symbol]


@lru_cache(maxsize=2)
def _hidden(profile: Profile, seed: int, symbol: str, day: str) -> latent.Drivers:
    """The latent day, cached: markets that are compared share it."""
    return latent.drivers(profile, seed, symbol, day)


def first_update(day: str) -> int:
    """Update id of the first book frame of a day: days join without a sequence gap."""
    return date.fromisoformat(day).toordinal() * FRAMES + 1


class ExecutionReport(NamedTuple):
    """An execution report of one of our orders."""

    receive_ns: int
    exchange_ns: int
    handle: int  #: as `SyntheticMarket.submit` returned it
    status: Status | None  #: of the request; None for fills of a resting order
    left: int  #: lots that rest; of a cancel, the lots cancelled
    executions: tuple[EngineExecution, ...]
    sequence: int = 0  #: of the public trades that these executions are
    place: int = 0  #: of the first among the trades of that sequence


class _Request(NamedTuple):
    """A request in flight to the venue; ordered by arrival."""

    arrival_ns: int
    number: int
    verb: str
    handle: int
    side: int
    ticks: int
    lots: int
    force: TimeInForce
    owner: int


class SyntheticMarket:
    """One symbol-day of the synthetic market, from midnight on; times are epoch ns of UTC.

    ``entry_ns`` and ``response_ns`` are the latencies of our requests and of their reports; zero is
    honest only for code that adds a latency of its own. ``start_s``: nothing is published before; the
    market runs from midnight all the same. ``begins_ns``: the day begins then, and not at midnight.
    ``topics`` are (levels, period ns) of `publication.TOPICS`
    to publish, including the first; rows of the others carry their place in ``pad``.
    """

    def __init__(
        self,
        profile: Profile,
        seed: int,
        symbol: str,
        day: str,
        instrument: Instrument | None = None,
        *,
        entry_ns: int = 0,
        response_ns: int = 0,
        start_s: int = 0,
        begins_ns: int | None = None,
        topics: Sequence[tuple[int, int]] = publication.TOPICS[:1],
    ) -> None:
        listing = profile.listing(symbol)
        self.instrument = instrument or built_in(symbol)
        self.midnight_ns = day_start_ns(day) if begins_ns is None else begins_ns
        self.entry_ns, self.response_ns = entry_ns, response_ns
        self.hidden = _hidden(profile, seed, symbol, day)
        lot, tick = self.instrument.lot_size, self.instrument.tick_size
        self._engine = MatchingEngine(_POOL)
        digest = hashlib.blake2b(f"{seed}/{symbol}/{day}/flow".encode(), digest_size=8).digest()
        values = latent.reference(listing, seed, day, self.midnight_ns, self.hidden.log_price, lot)
        self._state = MarketState(
            self._engine.state,
            background_parameters(profile, listing, self.instrument),
            arrival_law(profile, listing),
            latent_path(self.hidden, listing),
            new_background(philox_key(digest)),
            np.stack(values),
            publication.PublicationParameters(
                midnight_ns=self.midnight_ns,
                phase_ms=hashlib.blake2b(symbol.encode(), digest_size=1).digest()[0] % 40,
                first_frame=start_s * SECOND_NS // publication.TOPICS[0][1],
                liquidations=profile.liquidations_per_h / 3600,
                order_lots=listing.order_qty / lot,
                latency_log=math.log(profile.latency_ms * MS_NS),
                latency_log_sd=profile.latency_log_sd,
                tick_e8=round(tick * E8),
            ),
            publication.new_publication(topics, first_update(day)),
            np.zeros(1, np.int64),
        )
        publication.open_publication(self._state)
        self._rows = np.empty(0, EVENT)
        self._used = 0
        self._in_flight: list[_Request] = []
        self._reports: list[ExecutionReport] = []
        self._references: dict[int, int] = {}  # by handle
        self._handles: dict[int, int] = {}  # by reference
        self._requests = 0
        # The first maker step meets an empty book and fills it.
        state = self._state
        maker_step(state.engine, state.law, state.path, state.background)

    @property
    def now_ns(self) -> int:
        """The venue's time: everything before it has happened."""
        return self.midnight_ns + int(self._state.clock[0])

    @property
    def requests(self) -> int:
        """Requests of the background so far, without the steps of its makers."""
        return int(self._state.background.head["requests"][0])

    def best(self, side: int) -> int | None:
        """The venue's best price of a side now, ticks."""
        return self._engine.best(side)

    def levels(self, side: int, n: int | None = None) -> list[tuple[int, int]]:
        """The venue's best levels of a side now, as (price_ticks, qty_lots)."""
        return self._engine.levels(side, n)

    def lots_ahead(self, handle: int) -> int | None:
        """Queue position: lots in front of one of our orders now; None when it does not rest."""
        reference = self._references.get(handle)
        return None if reference is None else self._engine.lots_ahead(reference)

    @property
    def counts(self) -> dict[str, int]:
        """Lots added, executed and cancelled and events by everybody, and resting orders."""
        return self._engine.counts

    def submit(
        self,
        side: int,
        ticks: int,
        lots: int,
        force: TimeInForce = TimeInForce.GOOD_TILL_CANCELLED,
        owner: int = OURS,
    ) -> int:
        """Send a limit order; it arrives ``entry_ns`` from now. Returns its handle."""
        return self._send("submit", 0, side, ticks, lots, force, owner)

    def take(self, side: int, lots: int, bound: int = 0, owner: int = OURS) -> int:
        """Send a market order whose worst acceptable price is ``bound`` ticks, 0 for any."""
        return self._send("take", 0, side, bound, lots, TimeInForce.IMMEDIATE_OR_CANCEL, owner)

    def cancel(self, handle: int) -> None:
        """Send a cancel request."""
        self._send("cancel", handle)

    def amend(
        self,
        handle: int,
        ticks: int,
        lots: int,
        force: TimeInForce = TimeInForce.GOOD_TILL_CANCELLED,
    ) -> None:
        """Send a request to change an order's price and the lots it has left."""
        self._send("amend", handle, 0, ticks, lots, force)

    def _send(
        self,
        verb: str,
        handle: int,
        side: int = 0,
        ticks: int = 0,
        lots: int = 0,
        force: TimeInForce = TimeInForce.GOOD_TILL_CANCELLED,
        owner: int = OURS,
    ) -> int:
        if owner == BACKGROUND:
            raise ValueError(f"owner {owner} is the background's: use another for our own orders")
        self._requests += 1
        handle = handle or self._requests
        request = _Request(
            self.now_ns + self.entry_ns,
            self._requests,
            verb,
            handle,
            side,
            ticks,
            lots,
            force,
            owner,
        )
        heapq.heappush(self._in_flight, request)
        return handle

    def advance(self, until_ns: int) -> Events:
        """Run to ``until_ns``; returns the market data published meanwhile.

        Rows are in receive order within a topic. ValueError beyond the day's end.
        """
        end_ns = self.midnight_ns + SECONDS * SECOND_NS
        if until_ns > end_ns:
            raise ValueError(f"{until_ns} lies beyond the end of the market's day, {end_ns}")
        pieces = []
        while self.now_ns < until_ns or self._due(until_ns):
            pieces.append(self.chunk(until_ns))
        return np.concatenate(pieces) if pieces else np.zeros(0, EVENT)

    def chunk(self, until_ns: int) -> Events:
        """As `advance`, but may stop early, with some 250,000 rows: call again until ``now_ns`` is there."""
        while self.now_ns < until_ns or self._due(until_ns):
            stop_ns = self._in_flight[0].arrival_ns if self._due(until_ns) else until_ns
            self._run(max(stop_ns, self.now_ns) - self.midnight_ns)
            if self._used > CHUNK_ROWS:
                break
            if self._due(until_ns) and self._in_flight[0].arrival_ns <= self.now_ns:
                self._apply(heapq.heappop(self._in_flight))
        rows = self._rows[: self._used].copy()
        self._used = 0
        return rows

    def reports(self, until_ns: int | None = None) -> list[ExecutionReport]:
        """Execution reports received up to a time (all by default), oldest first; each is given once."""
        self._reports.sort(key=lambda report: report.receive_ns)
        limit = math.inf if until_ns is None else until_ns
        received = [report for report in self._reports if report.receive_ns <= limit]
        self._reports = self._reports[len(received) :]
        return received

    def _due(self, until_ns: int) -> bool:
        return bool(self._in_flight) and self._in_flight[0].arrival_ns <= until_ns

    def _run(self, until_ns: int) -> None:
        """Run to a time after midnight, or until the rows are full."""
        while self._state.clock[0] < until_ns and self._used <= CHUNK_ROWS:
            self._make_room()
            self._used = publication.run(self._rows, self._used, self._state, until_ns)
            self._collect()

    def _make_room(self) -> None:
        """Grow the pool, the rows and the buffer of our fills to what any one step may need."""
        self._engine.reserve(POOL_ROOM)
        self._state = self._state._replace(engine=self._engine.state)
        needed = publication.rows_needed(self._engine.state)
        if len(self._rows) < CHUNK_ROWS + 2 * needed:
            rows = np.empty(CHUNK_ROWS + 4 * needed, EVENT)
            rows[: self._used] = self._rows[: self._used]
            self._rows = rows
        published = self._state.publication
        old = len(published.own_fills)
        if old < 2 * needed:
            fills = np.zeros(4 * needed, published.own_fills.dtype)
            trades = np.zeros(4 * needed, published.own_trades.dtype)
            fills[:old], trades[:old] = published.own_fills, published.own_trades
            published = published._replace(own_fills=fills, own_trades=trades)
            self._state = self._state._replace(publication=published)

    def _collect(self) -> None:
        """Fills of our resting orders become reports."""
        published = self._state.publication
        count = int(published.head["own_fills"][0])
        fills, trades = published.own_fills[:count], published.own_trades[:count]
        for fill, (t_ns, sequence, place) in zip(fills.tolist(), trades.tolist(), strict=True):
            execution = EngineExecution(*fill)
            handle, left = self._handles[execution.maker], execution.maker_left
            self._report(self.midnight_ns + t_ns, handle, None, left, (execution,), sequence, place)
            if not left:
                self._forget(handle)
        published.head["own_fills"] = 0

    def _apply(self, request: _Request) -> None:
        """One of our requests arrives at the venue."""
        engine = self._engine
        reference = self._references.get(request.handle, -1)
        _, _, verb, handle, side, ticks, lots, force, owner = request
        self._make_room()
        if verb == "submit":
            result = engine.limit(side, ticks, lots, owner, force)
        elif verb == "take":
            result = engine.market(side, lots, owner, ticks or None)
        elif verb == "cancel":
            result = engine.cancel(reference)
        else:
            result = engine.amend(reference, ticks, lots, force)
        if result.status is Status.RESTING or engine.order(reference) is None:
            self._forget(handle)
        if result.status is Status.RESTING:
            self._references[handle] = result.reference
            self._handles[result.reference] = handle
        self._publish(result)
        exchange_ns = self.now_ns
        sequence = int(self._state.publication.head["sequence"][0]) if result.executions else 0
        self._report(exchange_ns, handle, result.status, result.left, result.executions, sequence)
        self._collect()

    def _forget(self, handle: int) -> None:
        """One of our orders no longer rests under its reference."""
        reference = self._references.pop(handle, None)
        if reference is not None:
            del self._handles[reference]

    def _publish(self, result: MatchResult) -> None:
        """Publish the trades of one of our requests, and apply their impact."""
        if not result.executions:
            return
        state = self._state
        apply_impact(state.engine, state.law, state.background)
        self._used = publication.publish_trades(self._rows, self._used, state, int(state.clock[0]))

    def _report(
        self,
        exchange_ns: int,
        handle: int,
        status: Status | None,
        left: int,
        executions: tuple[EngineExecution, ...],
        sequence: int = 0,
        place: int = 0,
    ) -> None:
        receive_ns = exchange_ns + self.response_ns
        self._reports.append(
            ExecutionReport(
                receive_ns, exchange_ns, handle, status, left, executions, sequence, place
            )
        )
