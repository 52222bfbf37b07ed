"""A synthetic market that runs: time goes on, and our own orders meet everybody else's in one book.

    market = SyntheticMarket(profile("default"), seed, "BTCUSDT", "2026-03-01", entry_ns=5_000_000)
    rows = market.advance(market.midnight_ns + 60_000_000_000)   # what the venue published
    handle = market.submit(1, ticks, lots, POST_ONLY)             # arrives 5 ms later
    rows = market.advance(...)
    market.reports()                                              # what became of it, and when we knew

Background randomness is counted by request, look and frame, so two markets of one seed differ by what
our orders do to the book and to what makers see, and by nothing else.
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
from market.kernel import compiled
from market.units import SECOND_NS, day_start_ns
from proving.synthetic import flow, latent, publication
from proving.synthetic.arrivals import Arrivals, Floats, Request, arrivals, philox_key
from proving.synthetic.latent import FRAMES, SECONDS
from proving.synthetic.matching import (
    EngineExecution,
    MatchingEngine,
    MatchResult,
    Status,
    TimeInForce,
)
from proving.synthetic.profiles import STEP_S, Listing, Profile, ProfileError

CHUNK_ROWS: Final = 250_000
_POOL: Final = 1 << 16
#: Arrivals follow the efficient price's moves of the last moments: their share, and half-life (s).
AGITATION: Final = 0.6
AGITATION_HALF_LIFE_S: Final = 0.5
#: Our orders' owner when nothing else is said; anything but the background's will do.
OURS: Final = 1


def built_in(symbol: str) -> Instrument:
    """The symbol's built-in instrument; ProfileError names the known ones."""
    if symbol not in BUILT_IN:
        raise ProfileError(f"{symbol}: no built-in instrument; known are {', '.join(BUILT_IN)}")
    return BUILT_IN[symbol]


@lru_cache(maxsize=2)
def _hidden(profile: Profile, seed: int, symbol: str, day: str) -> latent.Drivers:
    """The hidden day, kept: markets that are compared share it."""
    return latent.drivers(profile, seed, symbol, day)


def first_update(day: str) -> int:
    """Update id of the first book frame of a day: days join without a gap."""
    return date.fromisoformat(day).toordinal() * FRAMES + 1


class ExecutionReport(NamedTuple):
    """What the venue says of one of our orders."""

    receive_ns: int  #: when we learn of it
    exchange_ns: int
    handle: int  #: as `SyntheticMarket.submit` returned it
    status: Status | None  #: of the request; None for executions of an order that was resting
    left: int  #: lots that rest; of a cancel, the lots cancelled
    executions: tuple[EngineExecution, ...]
    sequence: int = 0  #: of the public trades that these executions are
    place: int = 0  #: of the first among the trades of that sequence


class _Pending(NamedTuple):
    """A request on its way to the venue."""

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

    ``entry_ns`` and ``response_ns`` are the latencies of our requests and of what we hear of them.
    ``start_s``: nothing is published before; the market runs from midnight all the same.
    ``topics`` are (levels, period ns) of `publication.TOPICS` to publish, the first for certain; rows
    of others than the first carry their place in ``pad``.
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
        topics: Sequence[tuple[int, int]] = publication.TOPICS[:1],
    ) -> None:
        listing = profile.listing(symbol)
        self.instrument = instrument or built_in(symbol)
        self.midnight_ns = day_start_ns(day)
        self.entry_ns, self.response_ns = entry_ns, response_ns
        self.hidden = _hidden(profile, seed, symbol, day)
        self._engine = MatchingEngine(_POOL)
        self._law = law(profile, listing, self.instrument)
        self._arriving = arriving(profile, listing)
        self._path = flow.Path(
            self.hidden.log_price,
            self.hidden.score,
            self.hidden.depth,
            self.hidden.intensity
            * self.hidden.volatility
            * agitation(self.hidden, listing.sigma_bps),
        )
        digest = hashlib.blake2b(f"{seed}/{symbol}/{day}/flow".encode(), digest_size=8).digest()
        self._crowd = flow.new_crowd(philox_key(digest))
        lot = self.instrument.lot_size
        self._values = np.stack(
            latent.reference(listing, seed, day, self.midnight_ns, self.hidden.log_price, lot)
        )
        first_frame = start_s * SECOND_NS // publication.TOPICS[0][1]
        self._wire = publication.Wire(
            midnight_ns=self.midnight_ns,
            phase_ms=hashlib.blake2b(symbol.encode(), digest_size=1).digest()[0] % 40,
            first_frame=first_frame,
            liquidations=profile.liquidations_per_h / 3600,
            order_lots=listing.order_qty / lot,
            latency_log=math.log(profile.latency_ms * 1e6),
            latency_log_sd=profile.latency_log_sd,
            tick_e8=round(self.instrument.tick_size * 1e8),
        )
        self._sheet = publication.new_sheet(topics, first_update(day))
        publication.open_sheet(self._sheet, self._wire, self._crowd)
        self._clock = np.zeros(1, np.int64)
        self._rows = np.empty(0, EVENT)
        self._used = 0
        self._pending: list[_Pending] = []
        self._reports: list[ExecutionReport] = []
        self._references: dict[int, int] = {}  # by handle
        self._handles: dict[int, int] = {}  # by reference
        self._requests = 0
        # The first look finds an empty book and fills it.
        flow.look(self._engine.state, self._law, self._path, self._crowd)

    @property
    def now_ns(self) -> int:
        """The venue's time: everything before it has happened."""
        return self.midnight_ns + int(self._clock[0])

    @property
    def requests(self) -> int:
        """Requests of the background that have come, looks of its makers not counted."""
        return int(self._crowd.counts[flow.REQUESTS])

    def best(self, side: int) -> int | None:
        """The venue's best price of a side now, ticks."""
        return self._engine.best(side)

    def levels(self, side: int, n: int | None = None) -> list[tuple[int, int]]:
        """The venue's best levels of a side now, as (price_ticks, qty_lots)."""
        return self._engine.levels(side, n)

    def lots_ahead(self, handle: int) -> int | None:
        """Lots before one of our orders in its queue now; None when it does not rest."""
        reference = self._references.get(handle)
        return None if reference is None else self._engine.lots_ahead(reference)

    @property
    def counts(self) -> dict[str, int]:
        """Lots added, executed and cancelled and events by everybody, and orders that rest."""
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
        """Send a market order that pays no more (takes no less) than ``bound`` ticks, 0 for any."""
        return self._send("take", 0, side, bound, lots, TimeInForce.IMMEDIATE_OR_CANCEL, owner)

    def cancel(self, handle: int) -> None:
        """Ask to cancel an order."""
        self._send("cancel", handle)

    def amend(
        self,
        handle: int,
        ticks: int,
        lots: int,
        force: TimeInForce = TimeInForce.GOOD_TILL_CANCELLED,
    ) -> None:
        """Ask to change an order's price and the lots it has left."""
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
        if owner == flow.BACKGROUND:
            raise ValueError(f"owner {owner} is the background's: use another for our own orders")
        self._requests += 1
        handle = handle or self._requests
        request = _Pending(
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
        heapq.heappush(self._pending, request)
        return handle

    def advance(self, until_ns: int) -> Events:
        """Let time go on to ``until_ns``; returns what the venue published meanwhile.

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
        """As `advance`, but may stop early, with some 250,000 rows: ask again while it is."""
        while self.now_ns < until_ns or self._due(until_ns):
            stop_ns = self._pending[0].arrival_ns if self._due(until_ns) else until_ns
            self._run(max(stop_ns, self.now_ns) - self.midnight_ns)
            if self._used > CHUNK_ROWS:
                break
            if self._due(until_ns) and self._pending[0].arrival_ns <= self.now_ns:
                self._apply(heapq.heappop(self._pending))
        rows = self._rows[: self._used].copy()
        self._used = 0
        return rows

    def reports(self, until_ns: int | None = None) -> list[ExecutionReport]:
        """What we hear of our orders up to a time (all by default), oldest first; given once."""
        self._reports.sort(key=lambda report: report.receive_ns)
        limit = math.inf if until_ns is None else until_ns
        heard = [report for report in self._reports if report.receive_ns <= limit]
        self._reports = self._reports[len(heard) :]
        return heard

    def _due(self, until_ns: int) -> bool:
        return bool(self._pending) and self._pending[0].arrival_ns <= until_ns

    def _run(self, until_ns: int) -> None:
        """To a time after midnight, or until the rows are full."""
        while self._clock[0] < until_ns and self._used <= CHUNK_ROWS:
            self._make_room()
            self._used = publication.run(
                self._rows,
                self._used,
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
                until_ns,
            )
            self._collect()

    def _make_room(self) -> None:
        """Room in the pool, the rows and the outbox for any one step, before it is taken."""
        self._engine.reserve(flow.POOL_ROOM)
        needed = publication.rows_needed(self._engine.state)
        if len(self._rows) < CHUNK_ROWS + 2 * needed:
            rows = np.empty(CHUNK_ROWS + 4 * needed, EVENT)
            rows[: self._used] = self._rows[: self._used]
            self._rows = rows
        outbox = self._sheet.outbox
        if len(outbox) < 2 * needed:
            larger = np.zeros((4 * needed, outbox.shape[1]), np.int64)
            larger[: len(outbox)] = outbox
            self._sheet = self._sheet._replace(outbox=larger)

    def _collect(self) -> None:
        """Executions of our resting orders become reports."""
        head, outbox = self._sheet.head, self._sheet.outbox
        for *fill, t_ns, sequence, place in outbox[: head[publication.OUT_FILLS]].tolist():
            execution = EngineExecution(*fill)
            exchange_ns = self.midnight_ns + t_ns
            handle = self._handles[execution.maker]
            left = execution.maker_left
            self._report(exchange_ns, handle, None, left, (execution,), sequence, place)
            if not left:
                self._forget(handle)
        head[publication.OUT_FILLS] = 0

    def _apply(self, request: _Pending) -> None:
        """One of our requests reaches the venue."""
        engine = self._engine
        reference = self._references.get(request.handle, -1)
        _, _, verb, handle, side, ticks, lots, force, owner = request
        self._make_room()
        if verb == "submit":
            outcome = engine.limit(side, ticks, lots, owner, force)
        elif verb == "take":
            outcome = engine.market(side, lots, owner, ticks or None)
        elif verb == "cancel":
            outcome = engine.cancel(reference)
        else:
            outcome = engine.amend(reference, ticks, lots, force)
        if outcome.status is Status.RESTING or engine.order(reference) is None:
            self._forget(handle)
        if outcome.status is Status.RESTING:
            self._references[handle] = outcome.reference
            self._handles[outcome.reference] = handle
        self._publish(outcome)
        exchange_ns = self.now_ns
        sequence = int(self._sheet.head[publication.SEQ]) if outcome.executions else 0
        self._report(
            exchange_ns, handle, outcome.status, outcome.left, outcome.executions, sequence
        )
        self._collect()

    def _forget(self, handle: int) -> None:
        """One of our orders no longer rests under its reference."""
        reference = self._references.pop(handle, None)
        if reference is not None:
            del self._handles[reference]

    def _publish(self, outcome: MatchResult) -> None:
        """The trades of one of our requests, and what makers feel of them."""
        if not outcome.executions:
            return
        flow.felt(self._engine.state, self._law, self._crowd)
        self._used = publication.publish_trades(
            self._rows,
            self._used,
            self._engine.state,
            self._sheet,
            self._wire,
            self._crowd,
            int(self._clock[0]),
        )

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


def agitation(hidden: latent.Drivers, sigma_bps: float) -> Floats:
    """Multiplier of arrivals by how far the efficient price just moved for its volatility, mean one."""
    sd = sigma_bps * 1e-4 * math.sqrt(STEP_S) * np.maximum(hidden.volatility, 1e-3)
    moved = np.abs(np.diff(hidden.log_price, prepend=hidden.log_price[0])) / sd
    # The mean of |z| is √(2/π); a jump counts as ten times that at most.
    excess = np.minimum(moved * math.sqrt(math.pi / 2), 10.0)
    return np.asarray(1 - AGITATION + AGITATION * _smoothed(excess, AGITATION_HALF_LIFE_S))


@compiled
def _smoothed(values: Floats, half_life_s: float) -> Floats:
    """Exponential mean of a path over the past, from one."""
    keep = 0.5 ** (STEP_S / half_life_s)
    out, mean = np.empty(len(values)), 1.0
    for j in range(len(values)):
        mean = keep * mean + (1 - keep) * values[j]
        out[j] = mean
    return out


def law(profile: Profile, listing: Listing, instrument: Instrument) -> flow.Law:
    """The profile in the units of the flow."""
    lot, tick = instrument.lot_size, instrument.tick_size
    shown = publication.MAX_DEPTH / listing.occupancy
    look_s = flow.LOOK_NS * 1e-9
    return flow.Law(
        tick=tick,
        hold=profile.hold_bps * 1e-4,
        restless=profile.restless,
        unsettled=profile.unsettled,
        settle=0.5 ** (look_s / profile.settle_s),
        landing=profile.maker_noise_bps * 1e-4,
        wide=profile.wide,
        close=profile.close,
        sweep=profile.sweep,
        refill=profile.refill,
        rpi=profile.rpi,
        touch_lots=listing.touch_qty / lot,
        touch_orders=profile.touch_orders,
        touch_log_sd=profile.touch_log_sd,
        level_log=math.log(listing.level_qty / lot),
        level_log_sd=listing.level_log_sd,
        dust=profile.dust,
        dust_log=math.log(listing.dust_lots),
        occupancy=min(listing.occupancy, flow.MOST_OCCUPIED),
        reach=200 + round(1.5 * shown),
        churn_reach=1.1 * shown,
        order_lots=listing.order_qty / lot,
        bound_ticks=round(profile.bound_bps * 1e-4 * listing.price / tick),
        imbalance_sd=profile.imbalance_sd,
        touch_gap=profile.touch_gap,
        flow_sd=profile.flow_sd,
        flow_gap=profile.flow_gap,
        split=profile.split,
        delay=profile.delay_ms * 1e6 / flow.STEP_NS,
        noise_sd=profile.maker_noise_bps * 1e-4,
        noise_keep=0.5 ** (look_s / profile.maker_noise_half_life_s),
        impact=profile.impact_bps * 1e-4,
    )


def arriving(profile: Profile, listing: Listing) -> Arrivals:
    """The arrivals of a profile: mean rates per second by `Request`, and their branching ratio."""
    # Half of the changes behind the touch place and half withdraw; a withdrawal that meets an empty
    # tick does nothing, so there are more of them.
    placed = 0.5 * profile.churn * SECOND_NS / flow.STEP_NS
    rates = np.zeros(len(Request))
    rates[Request.TAKE] = listing.orders_per_s
    rates[Request.JOIN] = profile.joins_per_s
    rates[Request.LEAVE] = profile.leaves_per_s
    rates[Request.PLACE] = placed
    rates[Request.WITHDRAW] = placed / min(listing.occupancy, flow.MOST_OCCUPIED)
    rates[Request.IMPROVE] = profile.improves_per_s
    return arrivals(rates, profile.branching)
