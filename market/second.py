"""The second in progress: the compiled kernel that bars are made by.

Which frame counts for what
---------------------------
A frame that leaves the book valid sets prices, spreads and depths. It counts as *flow* (order-flow
imbalance, additions, cancels) when it is a delta and the frame before it left a valid book: a
snapshot restates the book after an unobserved interval, so its differences are not events. Price
moves (returns, changes of the best prices) need a valid frame before and count across snapshots. A
checkpoint equal to a valid book is no event at all, for files may restate their book wherever they
begin; one that differs starts over. A book that is silent for longer than the limit is invalid until
its next frame.

The result does not depend on how a stream is split into calls: time-weighted sums advance at frames
and at closes only, and a close changes no recursion.
"""

from __future__ import annotations

from math import exp, log, log1p, pi, sqrt
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from market import book as bk
from market.book import BookState
from market.columns import COLUMNS, C
from market.depth import LADDER, SHAPE, mid_price, write_book, write_no_book
from market.events import STEP_E8, Events, Field, Flag, Kind
from market.kernel import kernel
from market.units import BPS, E8, MS_NS, SECOND_NS

_TRADE: Final = int(Kind.TRADE)
_TICKER: Final = int(Kind.TICKER)
_LIQUIDATION: Final = int(Kind.LIQUIDATION)
_SNAPSHOT: Final = int(Kind.SNAPSHOT)
_DELTA: Final = int(Kind.DELTA)
_LAST: Final = int(Flag.LAST)
_RPI: Final = int(Flag.RPI)
_BLOCK: Final = int(Flag.BLOCK)
_GAP: Final = int(Flag.GAP)
_CHECKPOINT: Final = int(Flag.CHECKPOINT)
_NEXT_FUNDING: Final = int(Field.NEXT_FUNDING_MS)
_EXPECTED_FUNDING: Final = int(Field.EXPECTED_FUNDING_MS)
_FUNDING: Final = int(Field.FUNDING_RATE)
_TICKER_FIELDS: Final = len(STEP_E8)
#: Columns that repeat the last value of a ticker field.
_TICKER_COLUMNS: Final = (
    (C.mark, int(Field.MARK_PRICE)),
    (C.index_price, int(Field.INDEX_PRICE)),
    (C.funding_rate, int(Field.FUNDING_RATE)),
    (C.open_interest, int(Field.OPEN_INTEREST)),
    (C.turnover_24h, int(Field.TURNOVER_24H)),
)

_HAWKES_NS: Final = (1e9, 10e9, 100e9)
_LIFE_NS: Final = 100e9
_BUCKET_QUOTE: Final = 250_000.0  #: traded notional that fills a volume bucket
_TOXIC_NS: Final = 100e9
_FLICKER_NS: Final = 100_000_000
#: A shorter lifetime cannot be distinguished from the publishing period of the feed.
_SHORTEST_LIFE_NS: Final = 1_000_000

#: The state as one structured record. Pairs of the book are bids, then asks; of trades taker buys,
#: then sells.
SECOND: Final = np.dtype(
    [
        ("clock_ns", "i8"),  # latest time seen
        ("end_ns", "i8"),  # end of the second in progress; zero before the first event
        ("late", "i8"),  # events older than the clock
        ("refused", "i8"),  # trades and liquidations without a side or with a negative quantity
        ("stale_ns", "i8"),  # limit of silence
        # -- the book
        ("valid", "i8"),  # the last frame left a valid book
        ("valid_until_ns", "i8"),  # when it is stale without another frame
        ("flow", "i8"),  # the frame in progress may count as flow
        ("broken", "i8"),  # the book was invalid at some frame of this second
        ("frame", "i8"),  # number of the book frame in progress
        ("mid2", "i8"),  # best bid plus best ask, ticks
        ("open2", "i8"),  # mid2 at the second's first valid instant; zero before it
        ("high2", "i8"),
        ("low2", "i8"),
        ("spread", "i8"),
        ("keys", "i8", (2, LADDER)),  # best levels as of the last frame
        ("lots", "i8", (2, LADDER)),
        ("new_keys", "i8", (2, LADDER)),  # and of the frame that ends
        ("new_lots", "i8", (2, LADDER)),
        ("best_since_ns", "i8", (2,)),  # when the best price became best
        ("moved_ns", "i8", (2,)),  # when the best price last moved
        ("direction", "i8", (2,)),  # and whether it improved (-1) or worsened (+1); zero for never
        ("lag_ns", "f8"),  # sum over frames
        ("depth", "f8"),  # sum over frames of the mean level
        ("depth_frames", "f8"),
        ("last_return", "f8"),  # absolute; zero when there is none to pair with
        ("life", "f8"),  # decayed sum of log lifetimes of best prices, and of their weights
        ("life_weight", "f8"),
        ("life_ns", "i8"),  # time of the last one
        # -- time integrals of this second, up to `since_ns`
        ("since_ns", "i8"),
        ("valid_ns", "i8"),  # valid time
        ("mid_time", "f8"),  # of mid2 - open2
        ("spread_mean", "f8"),  # West's running mean and sum of squares about it
        ("spread_m2", "f8"),
        ("one_tick_ns", "f8"),  # with a spread of one tick
        ("qty_time", "f8", (2,)),  # of the best quantities
        # -- trades
        ("taker_ns", "i8", (2,)),  # time of the last taker buy and sell
        ("hawkes", "f8", (len(_HAWKES_NS), 2)),
        ("trade_ns", "i8"),
        ("trade_ticks", "i8"),
        ("run", "i8"),
        ("bucket", "f8", (2,)),  # notional in the volume bucket
        ("bucket_ns", "i8"),  # when the last one was full
        ("toxic", "f8"),  # decayed sum of full buckets' imbalances, and of their volumes
        ("toxic_volume", "f8"),
        # -- ticker
        ("ticker_ns", "i8"),
        ("ticker", "f8", (_TICKER_FIELDS,)),  # last value by field's number
        ("next_funding_ms", "i8"),
        ("funding_since_ns", "i8"),  # end of the span of the mean funding rate
        ("funding_ns", "i8"),  # time of this second with a known rate
        ("funding_mean", "f8"),  # West's running mean, as for the spread
        # -- the instrument, and room to work in
        ("tick", "f8"),
        ("lot", "f8"),
        ("flows", "f8", (len(COLUMNS),)),  # sums of this second by column, in ticks and lots
        ("scale", "f8", (len(COLUMNS),)),  # that turns them into the column's unit
        ("shape", SHAPE),
        ("recent_trades", "i8"),  # visible trades since the last book frame
        # the same by level: a level that decreases by them was traded, not cancelled
        ("prints", [("frame", "i8"), ("key", "i8"), ("lots", "i8")], (2, bk.WIDTH)),
    ]
)

#: What `advance` and `pass_seconds` take: shape (1,) of dtype ``SECOND``.
Second = npt.NDArray[np.void]


def new_second(tick: float, lot: float, stale_ns: int) -> Second:
    """The state before the first event."""
    units = {"base": lot, "quote": tick * lot}
    second = np.zeros(1, SECOND)
    second["stale_ns"], second["frame"] = stale_ns, 1
    second["tick"], second["lot"] = tick, lot
    second["scale"] = [units.get(unit, 1.0) for unit, _ in COLUMNS.values()]
    second["ticker"] = np.nan
    return second


@kernel
def _elapse(s: Any, until: int) -> None:
    """Advance the time integrals to an instant, over the valid part of the time."""
    if s.valid:
        span = min(until, s.valid_until_ns) - s.since_ns
        if span > 0:
            s.valid_ns += span
            spread = s.spread
            s.mid_time += float(s.mid2 - s.open2) * span
            off = spread - s.spread_mean
            s.spread_mean += off * (span / s.valid_ns)
            s.spread_m2 += off * (spread - s.spread_mean) * span
            if spread == 1:
                s.one_tick_ns += span
            s.qty_time[0] += float(s.lots[0, 0]) * span
            s.qty_time[1] += float(s.lots[1, 0]) * span
    s.since_ns = until


@kernel
def _read_ladder(book: BookState, s: Any) -> bool:
    """Read the book's best levels; True when they are those of the last frame."""
    same = True
    for row in range(2):
        key = bk.best_key(book, row)
        for n in range(LADDER):
            if n > 0 and key != bk.NO_KEY:
                key = bk.next_key(book, row, key)
            lots = bk.lots_at(book, row, key) if key != bk.NO_KEY else 0
            s.new_keys[row, n] = key
            s.new_lots[row, n] = lots
            same = same and key == s.keys[row, n] and lots == s.lots[row, n]
    return same


@kernel
def _end_frame(book: BookState, s: Any, event: Any, now: int) -> None:
    """After a whole book frame: prices, moves and order-flow imbalance.

    Imbalance per level after Cont, Kukanov and Stoikov (2014) and, beyond the best, Xu, Gould and
    Howison (2018). In keys (smaller is better) the event of either side is
    1{k' <= k} q' - 1{k' >= k} q, signed by the side.
    """
    checkpoint = event.flags & _CHECKPOINT != 0
    valid = bk.is_valid(book)
    flow = s.flow
    s.flow = valid
    if checkpoint and s.valid and valid and _read_ladder(book, s):
        return
    _elapse(s, now)
    before = s.valid != 0 and not checkpoint
    s.valid = valid
    s.valid_until_ns = book[0].receive_ns + s.stale_ns
    flows = s.flows
    if not checkpoint:
        flows[C.frames] += 1.0
        s.lag_ns += event.receive_ns - event.exchange_ns
        s.frame += 1
        s.recent_trades = 0
    if not valid:
        s.broken = 1
        return

    _read_ladder(book, s)
    depth = 0.0
    for row in range(2):
        for n in range(LADDER):
            key, lots = s.new_keys[row, n], s.new_lots[row, n]
            old_key, old_lots = s.keys[row, n], s.lots[row, n]
            if n == 0 and not before:
                s.best_since_ns[row] = now
                s.direction[row] = 0
            elif n == 0 and key != old_key:
                _move_best(s, row, 1 if key > old_key else -1, now)
            if flow and before:
                gained = lots if key <= old_key else 0
                lost = old_lots if key >= old_key else 0
                flows[C.ofi_1 + n] += float((1 - 2 * row) * (gained - lost))
            s.keys[row, n] = key
            s.lots[row, n] = lots
            depth += lots
    if not checkpoint:
        s.depth += depth / (2 * LADDER)
        s.depth_frames += 1.0

    mid2 = s.keys[1, 0] - s.keys[0, 0]
    if before:
        change = log1p((mid2 - s.mid2) / s.mid2)
        flows[C.rv] += change * change
        flows[C.rv_up if change > 0.0 else C.rv_down] += change * change
        flows[C.bv] += pi / 2 * abs(change) * s.last_return
        s.last_return = abs(change)
    else:
        s.last_return = 0.0
    s.mid2 = mid2
    s.spread = s.keys[1, 0] + s.keys[0, 0]
    if s.open2 == 0:
        s.open2 = s.high2 = s.low2 = mid2
    s.high2 = max(s.high2, mid2)
    s.low2 = min(s.low2, mid2)


@kernel
def _move_best(s: Any, row: int, direction: int, now: int) -> None:
    """A best price moved: lifetimes, changes and flicker."""
    s.flows[C.best_changes] += 1.0
    if s.direction[row] == -direction and now - s.moved_ns[row] <= _FLICKER_NS:
        s.flows[C.flicker] += 1.0
    s.direction[row] = direction
    s.moved_ns[row] = now
    life = max(now - s.best_since_ns[row], _SHORTEST_LIFE_NS)
    decay = exp((s.life_ns - now) / _LIFE_NS)
    s.life = s.life * decay + log(life * 1e-9)
    s.life_weight = s.life_weight * decay + 1.0
    s.life_ns = now
    s.best_since_ns[row] = now


@kernel
def _book_row(book: BookState, s: Any, event: Any, now: int) -> None:
    """A level of a book frame: inferred additions and cancels, then the level itself."""
    if event.flags != 0:
        if event.flags & _GAP:
            _elapse(s, now)
            s.valid = 0
            s.broken = 1
        bk.begin_row(book, event)
    if event.kind == _SNAPSHOT:
        s.flow = 0
    before = bk.set_row(book, event)
    if event.side != 0:
        if event.flags & _CHECKPOINT == 0:
            s.flows[C.updates] += 1.0
        if s.flow and s.valid:
            row = bk.row_of(event.side)
            key = -event.side * event.price_ticks
            change = event.qty_lots - before
            if s.recent_trades:
                traded = s.prints[row, key & (bk.WIDTH - 1)]
                if traded.frame == s.frame and traded.key == key:
                    change += traded.lots
                    traded.lots = 0
            column = 2 * row + (change < 0)
            s.flows[C.bid_add + column] += abs(change)
            if key <= s.keys[row, 0]:
                s.flows[C.bid_add_1 + column] += abs(change)
    if event.flags & _LAST:
        bk.end_row(book, event)
        _end_frame(book, s, event, now)


@kernel
def _trade(s: Any, event: Any, now: int) -> None:
    """A trade: volumes, Hawkes intensities, and what it took from the displayed level."""
    flows = s.flows
    lots = float(event.qty_lots)
    taker = bk.row_of(event.side)
    if event.flags & _BLOCK:
        flows[C.block_buy_qty + taker] += lots
        return
    flows[C.buy_qty + taker] += lots
    flows[C.buy_n + taker] += 1.0
    flows[C.buy_notional + taker] += lots * event.price_ticks
    flows[C.max_trade] = max(flows[C.max_trade], lots)
    if event.flags & _RPI:
        flows[C.rpi_buy_qty + taker] += lots
    else:
        # The level it met is on the other side, where its key is side * price.
        key = event.side * event.price_ticks
        traded = s.prints[1 - taker, key & (bk.WIDTH - 1)]
        if traded.frame != s.frame or traded.key != key:
            traded.frame = s.frame
            traded.key = key
            traded.lots = 0
        traded.lots += event.qty_lots
        s.recent_trades += 1
    age = now - s.taker_ns[taker]
    s.taker_ns[taker] = now
    for n in range(len(_HAWKES_NS)):
        s.hawkes[n, taker] = s.hawkes[n, taker] * exp(-age / _HAWKES_NS[n]) + 1.0
    _fill_bucket(s, taker, lots * event.price_ticks * s.tick * s.lot, now)
    s.trade_ns = now
    s.trade_ticks = event.price_ticks
    run = s.run
    s.run = run + event.side if run * event.side > 0 else event.side


@kernel
def _fill_bucket(s: Any, taker: int, notional: float, now: int) -> None:
    """Put a trade into the volume bucket; the overflow goes into the next ones.

    Buckets of equal volume (VPIN) after Easley, Lopez de Prado and O'Hara (2012), on true sides. A
    large trade fills whole buckets alone, which are one-sided.
    """
    room = _BUCKET_QUOTE - s.bucket[0] - s.bucket[1]
    if notional < room:
        s.bucket[taker] += notional
        return
    s.bucket[taker] += room
    rest = (notional - room) % _BUCKET_QUOTE
    whole = notional - room - rest
    decay = exp((s.bucket_ns - now) / _TOXIC_NS)
    s.bucket_ns = now
    imbalance = abs(s.bucket[0] - s.bucket[1])
    s.toxic = s.toxic * decay + imbalance + whole
    s.toxic_volume = s.toxic_volume * decay + _BUCKET_QUOTE + whole
    s.bucket[taker] = rest
    s.bucket[1 - taker] = 0.0


@kernel
def _extend_funding(s: Any, until: int) -> None:
    """Extend the mean funding rate to an instant."""
    rate = s.ticker[_FUNDING]
    span = until - s.funding_since_ns
    if span > 0 and rate == rate:
        s.funding_ns += span
        s.funding_mean += (rate - s.funding_mean) * (span / s.funding_ns)
    s.funding_since_ns = until


@kernel
def _ticker(s: Any, event: Any, now: int) -> None:
    """A ticker field."""
    if event.field == _FUNDING:
        _extend_funding(s, now)
    if event.field == _NEXT_FUNDING or event.field == _EXPECTED_FUNDING:
        s.next_funding_ms = event.value
    elif event.field < _TICKER_FIELDS:
        s.ticker[event.field] = event.value * STEP_E8[event.field] / E8
    if event.flags & _CHECKPOINT == 0 or s.ticker_ns == 0:
        s.ticker_ns = now


@kernel
def _close(book: BookState, s: Any, out: Any) -> None:
    """Write the bar that ends at ``end_ns`` into ``out`` and begin the next second."""
    t = s.end_ns
    tick, lot = s.tick, s.lot
    flows = s.flows
    _elapse(s, t)
    _extend_funding(s, t)
    valid = s.valid and t <= s.valid_until_ns and bk.is_valid(book)
    for n in range(len(out)):
        out[n] = flows[n] * s.scale[n]
    if valid:
        write_book(book, s, out)
    else:
        write_no_book(out)

    out[C.gap] = 0.0 if valid and s.valid_ns == SECOND_NS and not s.broken else 1.0
    received = book[0].receive_ns
    out[C.stale_s] = (t - received) * 1e-9 if received != 0 else np.nan
    out[C.lag_ms] = s.lag_ns / flows[C.frames] * 1e-6
    opened = s.open2 != 0
    out[C.mid_open] = mid_price(s.open2, tick) if opened else np.nan
    out[C.mid_high] = mid_price(s.high2, tick) if opened else np.nan
    out[C.mid_low] = mid_price(s.low2, tick) if opened else np.nan
    time = float(s.valid_ns)
    out[C.mid_twap] = mid_price(s.open2 + s.mid_time / time, tick)
    out[C.spread_mean] = s.spread_mean if time > 0.0 else np.nan
    out[C.spread_std] = sqrt(max(s.spread_m2, 0.0) / time) if time > 0.0 else np.nan
    out[C.spread_one] = s.one_tick_ns / time
    for row in range(2):
        out[C.bid_q1_mean + row] = s.qty_time[row] / time * lot
    out[C.depth_norm] = s.depth / s.depth_frames * lot
    out[C.quote_life] = s.life / s.life_weight

    volume = flows[C.buy_qty] + flows[C.sell_qty]
    out[C.vwap] = (flows[C.buy_notional] + flows[C.sell_notional]) / volume * tick
    traded = s.trade_ns != 0
    out[C.last_price] = s.trade_ticks * tick if traded else np.nan
    out[C.trade_age_s] = (t - s.trade_ns) * 1e-9 if traded else np.nan
    out[C.run_length] = s.run
    for taker in range(2):
        age = t - s.taker_ns[taker]
        for n in range(len(_HAWKES_NS)):
            out[C.hawkes_buy_1 + 2 * n + taker] = s.hawkes[n, taker] * exp(-age / _HAWKES_NS[n])
    out[C.vpin] = s.toxic / s.toxic_volume

    for column, field in _TICKER_COLUMNS:
        out[column] = s.ticker[field]
    over = out[C.mark] / out[C.index_price]
    out[C.basis_bps] = log(over) * BPS if over > 0.0 else np.nan
    out[C.funding_mean] = s.funding_mean if s.funding_ns > 0 else np.nan
    funding = s.next_funding_ms
    out[C.funding_in_s] = (funding * MS_NS - t) * 1e-9 if funding != 0 else np.nan
    out[C.ticker_age_s] = (t - s.ticker_ns) * 1e-9 if s.ticker_ns != 0 else np.nan

    flows[:] = 0.0
    s.lag_ns = s.depth = s.depth_frames = 0.0
    s.mid_time = s.spread_mean = s.spread_m2 = s.one_tick_ns = 0.0
    s.qty_time[:] = 0.0
    s.funding_mean = 0.0
    s.funding_ns = s.valid_ns = s.broken = 0
    s.open2 = s.high2 = s.low2 = s.mid2 if valid else 0
    s.end_ns = t + SECOND_NS


@kernel
def within(second: Second, events: Events) -> bool:
    """Whether all events belong to the second in progress, so that they will close no bar."""
    end_ns = second[0].end_ns
    for n in range(len(events)):  # noqa: SIM110 - numba compiles no generator
        if events[n].receive_ns >= end_ns:
            return False
    return True


@kernel
def advance(book: BookState, second: Second, events: Events, out: Any) -> int:
    """Take events in; returns the number of bars written to ``out`` (its rows must suffice)."""
    s = second[0]
    closed = 0
    clock = s.clock_ns
    for n in range(len(events)):
        event = events[n]
        if event.receive_ns < clock:
            s.late += 1
        else:
            clock = event.receive_ns
        if clock >= s.end_ns:
            if s.end_ns == 0:
                s.since_ns = s.funding_since_ns = clock // SECOND_NS * SECOND_NS
                s.end_ns = s.since_ns + SECOND_NS
            while clock >= s.end_ns:
                _close(book, s, out[closed])
                closed += 1
        if event.kind == _DELTA or event.kind == _SNAPSHOT:
            _book_row(book, s, event, clock)
        elif event.kind == _TICKER:
            _ticker(s, event, clock)
        elif (event.side != 1 and event.side != -1) or event.qty_lots < 0:
            s.refused += 1
        elif event.kind == _TRADE:
            _trade(s, event, clock)
        elif event.kind == _LIQUIDATION:
            notional = float(event.qty_lots) * event.price_ticks
            s.flows[C.liq_long + bk.row_of(event.side)] += notional
    s.clock_ns = clock
    return closed


@kernel
def pass_seconds(book: BookState, second: Second, out: Any) -> None:
    """Close ``len(out)`` seconds without further events."""
    s = second[0]
    for n in range(len(out)):
        s.clock_ns = max(s.clock_ns, s.end_ns)
        _close(book, s, out[n])
