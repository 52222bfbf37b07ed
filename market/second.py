"""The second in progress: the compiled kernel that bars are made by.

What a frame may say
--------------------
A frame that leaves the book valid sets prices, spreads and depths. It also speaks of *flow* (order
flow imbalance, additions, cancels) when it is a delta and the frame before it left a valid book: a
snapshot restates the book after an interval nobody saw, so its differences are not events. Price
moves (returns, changes of the best prices) need a valid frame before and count across snapshots. A
checkpoint that agrees with a valid book is no event at all, for files may restate their book
wherever they begin; one that does not agree begins anew.
A book that has been silent for longer than the limit is invalid until its next frame.

State lies in flat arrays: ``cells`` int64, ``sums`` float64, ``row`` the flows of this second in ticks
and lots, ``tape`` the visible trades since the last book frame.
Nothing here depends on how a stream is cut:
time-weighted sums advance at frames and at closes only, and a close changes no recursion.
"""

from __future__ import annotations

from math import exp, log, log1p, pi, sqrt
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from market import book as bk
from market import depth as dp
from market.book import BookState
from market.columns import COLUMNS, C
from market.events import Events, Field, Flag, Kind
from market.kernel import kernel
from market.units import SECOND_NS

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
_FUNDING: Final = int(Field.FUNDING_RATE)
#: Columns that repeat the last value of a ticker field.
_QUOTED: Final = (
    (C.mark, int(Field.MARK_PRICE)),
    (C.index_price, int(Field.INDEX_PRICE)),
    (C.funding_rate, int(Field.FUNDING_RATE)),
    (C.open_interest, int(Field.OPEN_INTEREST)),
    (C.turnover_24h, int(Field.TURNOVER_24H)),
)

_LADDER: Final = 10  #: levels with an order-flow imbalance of their own
_HAWKES_NS: Final = (1e9, 10e9, 100e9)
_LIFE_NS: Final = 100e9
_BUCKET_QUOTE: Final = 250_000.0  #: traded notional that makes a volume bucket
_TOXIC_NS: Final = 100e9
_FLICKER_NS: Final = 100_000_000
#: Nothing shorter than this can be told from the publishing period of the feed.
_SHORTEST_LIFE_NS: Final = 1_000_000

# Places in ``cells`` (int64).
_CLOCK: Final = 0  #: latest instant known to have passed
NEXT: Final = 1  #: end of the second in progress; zero before the first event
LATE: Final = 2  #: events older than the clock
REFUSED: Final = 3  #: trades and liquidations without a side or with a negative quantity
_STALE: Final = 4  #: limit of silence
_VALID: Final = 5  #: the last frame left a valid book
_VALID_UNTIL: Final = 6  #: when silence will have lasted too long
_FLOW: Final = 7  #: the frame in progress may speak of flow
_BROKEN: Final = 8  #: the book was invalid at some frame of this second
_SINCE: Final = 9  #: instant up to which time-weighted sums stand
_VALID_NS: Final = 10  #: valid time of this second
_MID2: Final = 11  #: best bid plus best ask, ticks
_OPEN2: Final = 12  #: MID2 at the second's first valid instant; zero before it
_HIGH2: Final = 13
_LOW2: Final = 14
_SPREAD: Final = 15
_STAMP: Final = 16  #: number of the book frame in progress
_TAPED: Final = 17  #: visible trades since the last book frame
_BEST_SINCE: Final = 18  #: 2: when the best price became best
_MOVED: Final = 20  #: 2: when the best price last moved
_DIRECTION: Final = 22  #: 2: and whether it became better (-1) or worse (+1); zero for never
_LIFE_AT: Final = 24  #: instant of the last best-price lifetime
_EXCITED_AT: Final = 25  #: 2: instant of the last taker buy and sell
_TRADE_NS: Final = 27
_PRICE: Final = 28  #: last trade price in ticks
_RUN: Final = 29
_TICKER_NS: Final = 30
_FUNDING_MS: Final = 31
_FUNDING_SINCE: Final = 32  #: instant up to which the mean funding rate stands
_FUNDING_NS: Final = 33  #: time of this second in which the rate was known
_BUCKET_AT: Final = 34  #: when the last volume bucket was full
_KEYS: Final = 35  #: 2 x _LADDER keys, as of the last frame
_LOTS: Final = _KEYS + 2 * _LADDER
_NEW: Final = _LOTS + 2 * _LADDER  #: keys and lots of the frame that ends
_CELLS: Final = _NEW + 4 * _LADDER

# Places in ``sums`` (float64).
_TICK: Final = 0
_LOT: Final = 1
_LAG: Final = 2
_MID_TIME: Final = 3  #: time integral of MID2 - OPEN2
_SPREAD_MEAN: Final = 4  #: West's running mean and sum of squares about it
_SPREAD_M2: Final = 5
_ONE_TIME: Final = 6
_QTY_TIME: Final = 7  #: 2
_DEPTH: Final = 9
_DEPTH_FRAMES: Final = 10
_RETURN: Final = 11  #: last absolute return; zero when there is none to pair with
_LIFE: Final = 12  #: decayed sum of log lifetimes, and of their weights
_LIFE_WEIGHT: Final = 13
_EXCITED: Final = 14  #: 3 x 2: decay outer, buy and sell inner
_BUCKET: Final = 20  #: 2: what taker buys and sells put into the volume bucket, quote
_TOXIC: Final = 22  #: decayed sum of full buckets' imbalances, and of their volumes
_TOXIC_VOLUME: Final = 23
_FUNDING_MEAN: Final = 24  #: West's running mean, as for the spread
_QUOTES: Final = 25  #: last ticker value by field
_SHAPE: Final = 37  #: room for `depth.measure`
_SUMS: Final = _SHAPE + dp.MEASURES


def new_cells(stale_ns: int) -> npt.NDArray[np.int64]:
    """Integer state before the first event."""
    cells = np.zeros(_CELLS, np.int64)
    cells[_STALE] = stale_ns
    cells[_STAMP] = 1
    return cells


def new_sums(tick: float, lot: float) -> npt.NDArray[np.float64]:
    """Float state before the first event."""
    sums = np.zeros(_SUMS)
    sums[[_TICK, _LOT]] = tick, lot
    sums[_QUOTES:] = np.nan
    return sums


def new_tape() -> npt.NDArray[np.int64]:
    """Visible trades by level: (frame number, key, lots), two sides x `book.WIDTH` slots."""
    return np.zeros(6 * bk.WIDTH, np.int64)


def new_scale(tick: float, lot: float) -> npt.NDArray[np.float64]:
    """What turns a column of flow from lots, or ticks times lots, into its unit."""
    units = {"base": lot, "quote": tick * lot}
    return np.array([units.get(unit, 1.0) for unit, _ in COLUMNS.values()])


@kernel
def _elapse(cells: Any, sums: Any, until: int) -> None:
    """Carry the time-weighted sums from `_SINCE` to an instant, over the valid part of it."""
    if cells[_VALID]:
        span = min(until, cells[_VALID_UNTIL]) - cells[_SINCE]
        if span > 0:
            cells[_VALID_NS] += span
            spread = cells[_SPREAD]
            sums[_MID_TIME] += float(cells[_MID2] - cells[_OPEN2]) * span
            off = spread - sums[_SPREAD_MEAN]
            sums[_SPREAD_MEAN] += off * (span / cells[_VALID_NS])
            sums[_SPREAD_M2] += off * (spread - sums[_SPREAD_MEAN]) * span
            if spread == 1:
                sums[_ONE_TIME] += span
            sums[_QTY_TIME] += float(cells[_LOTS]) * span
            sums[_QTY_TIME + 1] += float(cells[_LOTS + _LADDER]) * span
    cells[_SINCE] = until


@kernel
def _look(book: BookState, cells: Any) -> bool:
    """Write the book's ladder to `_NEW`; True when it is the ladder of the last frame."""
    same = True
    for side_row in range(2):
        key = book[bk.BEST + side_row]
        for n in range(_LADDER):
            place = side_row * _LADDER + n
            if n > 0 and key != bk.NO_KEY:
                key = bk.next_key(book, side_row, key)
            lots = bk.lots_at(book, side_row, key) if key != bk.NO_KEY else 0
            cells[_NEW + place] = key
            cells[_NEW + 2 * _LADDER + place] = lots
            same = same and key == cells[_KEYS + place] and lots == cells[_LOTS + place]
    return same


@kernel
def _end_frame(book: BookState, cells: Any, sums: Any, row: Any, event: Any, now: int) -> None:
    """What a whole book frame says: prices, moves and order-flow imbalance.

    Imbalance per level after Cont, Kukanov and Stoikov (2014) and, beyond the best, Xu, Gould and
    Howison (2018). In keys (smaller is better) the event of either side is
    1{k' <= k} q' - 1{k' >= k} q, signed by the side.
    """
    checkpoint = event.flags & _CHECKPOINT != 0
    valid = bk.is_valid(book)
    flow = cells[_FLOW]
    cells[_FLOW] = valid
    if checkpoint and cells[_VALID] and valid and _look(book, cells):
        return
    _elapse(cells, sums, now)
    before = cells[_VALID] != 0 and not checkpoint
    cells[_VALID] = valid
    cells[_VALID_UNTIL] = book[bk.RECEIVE_NS] + cells[_STALE]
    if not checkpoint:
        row[C.frames] += 1.0
        sums[_LAG] += event.receive_ns - event.exchange_ns
        cells[_STAMP] += 1
        cells[_TAPED] = 0
    if not valid:
        cells[_BROKEN] = 1
        return

    _look(book, cells)
    depth = 0.0
    for place in range(2 * _LADDER):
        key, lots = cells[_NEW + place], cells[_NEW + 2 * _LADDER + place]
        old_key, old_lots = cells[_KEYS + place], cells[_LOTS + place]
        side_row = place // _LADDER
        best = place == side_row * _LADDER
        if best and not before:
            cells[_BEST_SINCE + side_row] = now
            cells[_DIRECTION + side_row] = 0
        elif best and key != old_key:
            _move_best(cells, sums, row, side_row, 1 if key > old_key else -1, now)
        if flow and before:
            gained = lots if key <= old_key else 0
            lost = old_lots if key >= old_key else 0
            row[C.ofi_1 + place % _LADDER] += float((1 - 2 * side_row) * (gained - lost))
        cells[_KEYS + place] = key
        cells[_LOTS + place] = lots
        depth += lots
    if not checkpoint:
        sums[_DEPTH] += depth / (2 * _LADDER)
        sums[_DEPTH_FRAMES] += 1.0

    mid2 = cells[_KEYS + _LADDER] - cells[_KEYS]
    if before:
        change = log1p((mid2 - cells[_MID2]) / cells[_MID2])
        row[C.rv] += change * change
        row[C.rv_up if change > 0.0 else C.rv_down] += change * change
        row[C.bv] += pi / 2 * abs(change) * sums[_RETURN]
        sums[_RETURN] = abs(change)
    else:
        sums[_RETURN] = 0.0
    cells[_MID2] = mid2
    cells[_SPREAD] = cells[_KEYS + _LADDER] + cells[_KEYS]
    if cells[_OPEN2] == 0:
        cells[_OPEN2] = cells[_HIGH2] = cells[_LOW2] = mid2
    cells[_HIGH2] = max(cells[_HIGH2], mid2)
    cells[_LOW2] = min(cells[_LOW2], mid2)


@kernel
def _move_best(cells: Any, sums: Any, row: Any, side_row: int, direction: int, now: int) -> None:
    """A best price gave way to another: lifetimes, changes and flicker."""
    row[C.best_changes] += 1.0
    if cells[_DIRECTION + side_row] == -direction and now - cells[_MOVED + side_row] <= _FLICKER_NS:
        row[C.flicker] += 1.0
    cells[_DIRECTION + side_row] = direction
    cells[_MOVED + side_row] = now
    life = max(now - cells[_BEST_SINCE + side_row], _SHORTEST_LIFE_NS)
    decay = exp((cells[_LIFE_AT] - now) / _LIFE_NS)
    sums[_LIFE] = sums[_LIFE] * decay + log(life * 1e-9)
    sums[_LIFE_WEIGHT] = sums[_LIFE_WEIGHT] * decay + 1.0
    cells[_LIFE_AT] = now
    cells[_BEST_SINCE + side_row] = now


@kernel
def _book_row(
    book: BookState, tape: Any, cells: Any, sums: Any, row: Any, event: Any, now: int
) -> None:
    """A level of a book frame: inferred additions and cancels, then the level itself."""
    if event.flags != 0:
        if event.flags & _GAP:
            _elapse(cells, sums, now)
            cells[_VALID] = 0
            cells[_BROKEN] = 1
        bk.begin_row(book, event)
    if event.kind == _SNAPSHOT:
        cells[_FLOW] = 0
    held = bk.set_row(book, event)
    if event.side != 0:
        if event.flags & _CHECKPOINT == 0:
            row[C.updates] += 1.0
        if cells[_FLOW] and cells[_VALID]:
            side_row = bk.row_of(event.side)
            key = -event.side * event.price_ticks
            change = event.qty_lots - held
            if cells[_TAPED]:
                slot = 3 * (side_row * bk.WIDTH + (key & (bk.WIDTH - 1)))
                if tape[slot] == cells[_STAMP] and tape[slot + 1] == key:
                    change += tape[slot + 2]
                    tape[slot + 2] = 0
            column = 2 * side_row + (change < 0)
            row[C.bid_add + column] += abs(change)
            if key <= cells[_KEYS + side_row * _LADDER]:
                row[C.bid_add_1 + column] += abs(change)
    if event.flags & _LAST:
        bk.end_row(book, event)
        _end_frame(book, cells, sums, row, event, now)


@kernel
def _trade(tape: Any, cells: Any, sums: Any, row: Any, event: Any, now: int) -> None:
    """A trade: volumes, excitation, and what it took from the displayed level."""
    lots = float(event.qty_lots)
    taker = bk.row_of(event.side)
    if event.flags & _BLOCK:
        row[C.block_buy_qty + taker] += lots
        return
    row[C.buy_qty + taker] += lots
    row[C.buy_n + taker] += 1.0
    row[C.buy_notional + taker] += lots * event.price_ticks
    row[C.max_trade] = max(row[C.max_trade], lots)
    if event.flags & _RPI:
        row[C.rpi_buy_qty + taker] += lots
    else:
        # The level it met is on the other side, where its key is side * price.
        key = event.side * event.price_ticks
        slot = 3 * ((1 - taker) * bk.WIDTH + (key & (bk.WIDTH - 1)))
        if tape[slot] != cells[_STAMP] or tape[slot + 1] != key:
            tape[slot] = cells[_STAMP]
            tape[slot + 1] = key
            tape[slot + 2] = 0
        tape[slot + 2] += event.qty_lots
        cells[_TAPED] += 1
    age = now - cells[_EXCITED_AT + taker]
    cells[_EXCITED_AT + taker] = now
    for n in range(len(_HAWKES_NS)):
        place = _EXCITED + 2 * n + taker
        sums[place] = sums[place] * exp(-age / _HAWKES_NS[n]) + 1.0
    _fill_bucket(cells, sums, taker, lots * event.price_ticks * sums[_TICK] * sums[_LOT], now)
    cells[_TRADE_NS] = now
    cells[_PRICE] = event.price_ticks
    run = cells[_RUN]
    cells[_RUN] = run + event.side if run * event.side > 0 else event.side


@kernel
def _fill_bucket(cells: Any, sums: Any, taker: int, notional: float, now: int) -> None:
    """Put a trade into the volume bucket; what it overflows goes into the next ones.

    Buckets of equal volume after Easley, Lopez de Prado and O'Hara (2012), on true sides. A large
    trade fills whole buckets alone, which are one-sided.
    """
    room = _BUCKET_QUOTE - sums[_BUCKET] - sums[_BUCKET + 1]
    if notional < room:
        sums[_BUCKET + taker] += notional
        return
    sums[_BUCKET + taker] += room
    rest = (notional - room) % _BUCKET_QUOTE
    whole = notional - room - rest
    decay = exp((cells[_BUCKET_AT] - now) / _TOXIC_NS)
    cells[_BUCKET_AT] = now
    imbalance = abs(sums[_BUCKET] - sums[_BUCKET + 1])
    sums[_TOXIC] = sums[_TOXIC] * decay + imbalance + whole
    sums[_TOXIC_VOLUME] = sums[_TOXIC_VOLUME] * decay + _BUCKET_QUOTE + whole
    sums[_BUCKET + taker] = rest
    sums[_BUCKET + 1 - taker] = 0.0


@kernel
def _hold_funding(cells: Any, sums: Any, until: int) -> None:
    """Carry the mean funding rate to an instant."""
    rate = sums[_QUOTES + _FUNDING]
    span = until - cells[_FUNDING_SINCE]
    if span > 0 and rate == rate:
        cells[_FUNDING_NS] += span
        sums[_FUNDING_MEAN] += (rate - sums[_FUNDING_MEAN]) * (span / cells[_FUNDING_NS])
    cells[_FUNDING_SINCE] = until


@kernel
def _ticker(cells: Any, sums: Any, event: Any, now: int) -> None:
    if event.field == _FUNDING:
        _hold_funding(cells, sums, now)
    if event.field == _NEXT_FUNDING:
        cells[_FUNDING_MS] = event.value_e8
    elif event.field < _SHAPE - _QUOTES:
        sums[_QUOTES + event.field] = event.value_e8 / 1e8
    if event.flags & _CHECKPOINT == 0 or cells[_TICKER_NS] == 0:
        cells[_TICKER_NS] = now


@kernel
def _close(book: BookState, cells: Any, sums: Any, row: Any, scale: Any, out: Any) -> None:
    """Write the bar that ends at `NEXT` into ``out`` and begin the next second."""
    t = cells[NEXT]
    tick, lot = sums[_TICK], sums[_LOT]
    _elapse(cells, sums, t)
    valid = cells[_VALID] and t <= cells[_VALID_UNTIL] and bk.is_valid(book)
    for n in range(len(row)):
        out[n] = row[n] * scale[n]
    _close_book(book, cells, sums, valid, out)

    out[C.gap] = 0.0 if valid and cells[_VALID_NS] == SECOND_NS and not cells[_BROKEN] else 1.0
    known = book[bk.RECEIVE_NS] != 0
    out[C.stale_s] = (t - book[bk.RECEIVE_NS]) * 1e-9 if known else np.nan
    out[C.lag_ms] = sums[_LAG] / row[C.frames] * 1e-6
    half = 0.5 * tick
    opened = cells[_OPEN2] != 0
    out[C.mid_open] = cells[_OPEN2] * half if opened else np.nan
    out[C.mid_high] = cells[_HIGH2] * half if opened else np.nan
    out[C.mid_low] = cells[_LOW2] * half if opened else np.nan
    time = float(cells[_VALID_NS])
    out[C.mid_twap] = (cells[_OPEN2] + sums[_MID_TIME] / time) * half
    out[C.spread_mean] = sums[_SPREAD_MEAN] if time > 0.0 else np.nan
    out[C.spread_std] = sqrt(max(sums[_SPREAD_M2], 0.0) / time) if time > 0.0 else np.nan
    out[C.spread_one] = sums[_ONE_TIME] / time
    for side_row in range(2):
        out[C.bid_q1_mean + side_row] = sums[_QTY_TIME + side_row] / time * lot
    out[C.depth_norm] = sums[_DEPTH] / sums[_DEPTH_FRAMES] * lot
    out[C.quote_life] = sums[_LIFE] / sums[_LIFE_WEIGHT]

    volume = row[C.buy_qty] + row[C.sell_qty]
    out[C.vwap] = (row[C.buy_notional] + row[C.sell_notional]) / volume * tick
    traded = cells[_TRADE_NS] != 0
    out[C.last_price] = cells[_PRICE] * tick if traded else np.nan
    out[C.trade_age_s] = (t - cells[_TRADE_NS]) * 1e-9 if traded else np.nan
    out[C.run_length] = cells[_RUN]
    for taker in range(2):
        age = t - cells[_EXCITED_AT + taker]
        for n in range(len(_HAWKES_NS)):
            place = 2 * n + taker
            out[C.hawkes_buy_1 + place] = sums[_EXCITED + place] * exp(-age / _HAWKES_NS[n])
    out[C.vpin] = sums[_TOXIC] / sums[_TOXIC_VOLUME]

    for column, field in _QUOTED:
        out[column] = sums[_QUOTES + field]
    over = out[C.mark] / out[C.index_price]
    out[C.basis_bps] = log(over) * 1e4 if over > 0.0 else np.nan
    _hold_funding(cells, sums, t)
    out[C.funding_mean] = sums[_FUNDING_MEAN] if cells[_FUNDING_NS] > 0 else np.nan
    funding = cells[_FUNDING_MS]
    out[C.funding_in_s] = (funding * 1_000_000 - t) * 1e-9 if funding != 0 else np.nan
    quoted = cells[_TICKER_NS] != 0
    out[C.ticker_age_s] = (t - cells[_TICKER_NS]) * 1e-9 if quoted else np.nan

    row[:] = 0.0
    sums[_LAG:_RETURN] = 0.0
    sums[_FUNDING_MEAN] = 0.0
    cells[_FUNDING_NS] = 0
    cells[_VALID_NS] = 0
    cells[_BROKEN] = 0
    cells[_OPEN2] = cells[_HIGH2] = cells[_LOW2] = cells[_MID2] if valid else 0
    cells[NEXT] = t + SECOND_NS


@kernel
def _close_book(book: BookState, cells: Any, sums: Any, valid: bool, out: Any) -> None:
    """The columns that show the book at the close; NaN when it is invalid then."""
    if not valid:
        out[C.mid_close] = np.nan
        out[C.truncated] = np.nan
        for n in range(C.micro_close, C.spread_mean):
            out[n] = np.nan
        out[C.spread_bps : C.bid_q1_mean] = np.nan
        out[C.bid_q5 : C.ofi_1] = np.nan
        return
    tick, lot = sums[_TICK], sums[_LOT]
    mid2, spread = cells[_MID2], cells[_SPREAD]
    mid = mid2 * 0.5
    bid, ask = -cells[_KEYS], cells[_KEYS + _LADDER]
    bid_lots, ask_lots = float(cells[_LOTS]), float(cells[_LOTS + _LADDER])
    out[C.mid_close] = mid * tick
    lean = (bid_lots - ask_lots) / (bid_lots + ask_lots)
    out[C.micro_close] = (mid + 0.5 * spread * lean) * tick
    weighted = weight = 0.0
    for n in range(5):
        bid_n, ask_n = cells[_LOTS + n], cells[_LOTS + _LADDER + n]
        if bid_n > 0 and ask_n > 0:
            weighted += (-cells[_KEYS + n] - mid) * ask_n
            weighted += (cells[_KEYS + _LADDER + n] - mid) * bid_n
            weight += bid_n + ask_n
    out[C.vamp_close] = (mid + weighted / weight) * tick
    out[C.spread_ticks] = ask - bid
    out[C.spread_bps] = spread / mid * 1e4
    shape = sums[_SHAPE:_SUMS]
    truncated = False
    near = 0.0
    for side_row in range(2):
        passed = dp.measure(book, 1 - 2 * side_row, mid2, tick, lot, shape)
        truncated = truncated or passed
        near += shape[dp.NEAR]
        out[C.bid_q1 + side_row] = shape[dp.QTY_1]
        out[C.bid_q5 + side_row] = shape[dp.QTY_5]
        out[C.bid_q10 + side_row] = shape[dp.QTY_10]
        for n in range(len(dp.BANDS_BPS)):
            out[C.bid_d1 + 2 * n + side_row] = shape[dp.BAND_1 + n]
        out[C.bid_depth + side_row] = shape[dp.DEPTH]
        out[C.bid_reach + side_row] = shape[dp.REACH]
        out[C.bid_slope + side_row] = shape[dp.SLOPE]
        out[C.bid_convexity + side_row] = shape[dp.CONVEXITY]
        out[C.bid_gap + side_row] = shape[dp.GAP]
        for n in range(len(dp.SWEEPS)):
            # A buyer sweeps asks (row 1), and comes first.
            out[C.sweep_buy_10k + 2 * n + 1 - side_row] = shape[dp.SWEEP + n]
    out[C.empty_share] = 1.0 - near / (2 * dp.NEAR_TICKS)
    out[C.truncated] = 1.0 if truncated else 0.0


@kernel
def within(cells: Any, events: Events) -> bool:
    """Whether all events belong to the second in progress, so that they will close no bar."""
    for n in range(len(events)):  # noqa: SIM110 - numba compiles no generator
        if events[n].receive_ns >= cells[NEXT]:
            return False
    return True


@kernel
def advance(
    book: BookState,
    tape: Any,
    cells: Any,
    sums: Any,
    row: Any,
    scale: Any,
    events: Events,
    out: Any,
) -> int:
    """Take events in; returns the number of bars written to ``out`` (its rows must suffice)."""
    closed = 0
    clock = cells[_CLOCK]
    for n in range(len(events)):
        event = events[n]
        if event.receive_ns < clock:
            cells[LATE] += 1
        else:
            clock = event.receive_ns
        if clock >= cells[NEXT]:
            if cells[NEXT] == 0:
                cells[_SINCE] = cells[_FUNDING_SINCE] = clock // SECOND_NS * SECOND_NS
                cells[NEXT] = cells[_SINCE] + SECOND_NS
            while clock >= cells[NEXT]:
                _close(book, cells, sums, row, scale, out[closed])
                closed += 1
        if event.kind == _DELTA or event.kind == _SNAPSHOT:
            _book_row(book, tape, cells, sums, row, event, clock)
        elif event.kind == _TICKER:
            _ticker(cells, sums, event, clock)
        elif (event.side != 1 and event.side != -1) or event.qty_lots < 0:
            cells[REFUSED] += 1
        elif event.kind == _TRADE:
            _trade(tape, cells, sums, row, event, clock)
        elif event.kind == _LIQUIDATION:
            notional = float(event.qty_lots) * event.price_ticks
            row[C.liq_long + bk.row_of(event.side)] += notional
    cells[_CLOCK] = clock
    return closed


@kernel
def pass_seconds(book: BookState, cells: Any, sums: Any, row: Any, scale: Any, out: Any) -> None:
    """Close ``len(out)`` seconds in which nothing more will happen."""
    for n in range(len(out)):
        cells[_CLOCK] = max(cells[_CLOCK], cells[NEXT])
        _close(book, cells, sums, row, scale, out[n])
