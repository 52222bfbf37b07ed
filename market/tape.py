"""What the venue shows of a hidden day: book, trades, tickers and liquidations as event rows.

Behind the touch each tick holds a level or none; a price that comes into reach, or is passed over by
a moving touch, is drawn from the same law, and churn draws levels anew from it, so the book is
stationary. A taker order takes from the quantity displayed before it, and what it took is missing at
that price in the next frame, then refilled.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from datetime import date
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from market.events import EVENT, Events, Field, Flag, Kind
from market.instruments import Instrument
from market.kernel import compiled
from market.lake import day_start_ns
from market.latent import FRAMES, Day, Floats, Reference, generator
from market.profiles import STEP_S, Profile

DEPTH: Final = 200  #: levels a side that the topic shows
CHUNK_ROWS: Final = 250_000
_ROOM: Final = 8_192  #: rows that one frame and the trades before it may need at most
_MAX_FILLS: Final = 4
_MAX_ORDERS: Final = 500  #: taker orders in 100 ms; with four fills each they fit `_ROOM`

_RING: Final = 1 << 14
_RING_MASK: Final = _RING - 1
_KEPT: Final = 1 << 13  #: ticks behind the touch that are remembered

_STEP_NS: Final = round(STEP_S * 1e9)
_MS: Final = 1_000_000
_SECOND: Final = 1_000_000_000
_PER_SECOND: Final = round(1 / STEP_S)

_SNAPSHOT: Final = int(Kind.SNAPSHOT)
_DELTA: Final = int(Kind.DELTA)
_TRADE: Final = int(Kind.TRADE)
_LIQUIDATION: Final = int(Kind.LIQUIDATION)
_TICKER: Final = int(Kind.TICKER)
_FIRST: Final = int(Flag.FIRST)
_LAST: Final = int(Flag.LAST)
_RPI: Final = int(Flag.RPI)
_LAST_PRICE: Final = int(Field.LAST_PRICE)


class _Law(NamedTuple):
    """Scalars of the event kernel: the profile in ticks, lots and frames."""

    midnight_ns: int
    phase_ms: int  #: of the symbol's book frames within 100 ms
    first_update: int
    touch_lots: float
    level_log: float
    level_log_sd: float
    occupancy: float
    reach: int  #: ticks behind the touch that are populated at least
    refill: float
    churn: float
    churn_ticks: float
    base_orders: float  #: spontaneous orders per frame at mean volatility
    branching: float
    echo: float  #: decay of order excitement over a frame
    order_lots: float
    sweep: float
    rpi: float
    liquidations: float  #: per frame at mean volatility
    latency_log: float
    latency_log_sd: float
    tick_e8: int


class _Shown(NamedTuple):
    """State of the event kernel. Row 0 is the bid side, row 1 the ask side, keys are -side·ticks."""

    lots: npt.NDArray[np.int64]  #: (2, _RING) the whole book, level of key k at k & _RING_MASK
    key: npt.NDArray[np.int64]  #: (2, 2, DEPTH + 1) displayed keys, best first: [now or next, row]
    qty: npt.NDArray[np.int64]  #: (2, 2, DEPTH + 1) displayed lots
    levels: npt.NDArray[np.int64]  #: (2, 2) displayed levels
    best: npt.NDArray[np.int64]  #: (2,) key of the touch
    far: npt.NDArray[np.int64]  #: (2,) last populated key
    taken: Floats  #: (2,) lots missing at the touch
    ticker: npt.NDArray[np.int64]  #: (9,) values last sent, by field
    head: npt.NDArray[np.int64]  #: see below
    excitement: Floats  #: (1,) orders per frame due to earlier orders


_NOW: Final = 0  #: which of the two displayed windows is current
_RECEIVE: Final = 1  #: last receive time, ns
_SEQ: Final = 2  #: last trade sequence
_CTS: Final = 3  #: time of the last book frame, ms after midnight
_LAST_TICKS: Final = 4  #: last trade price


def _state() -> _Shown:
    return _Shown(
        np.zeros((2, _RING), np.int64),
        np.zeros((2, 2, DEPTH + 1), np.int64),
        np.zeros((2, 2, DEPTH + 1), np.int64),
        np.zeros((2, 2), np.int64),
        np.zeros(2, np.int64),
        np.zeros(2, np.int64),
        np.zeros(2),
        np.full(len(Field) + 1, -(1 << 62), np.int64),
        np.zeros(5, np.int64),
        np.zeros(1),
    )


@compiled
def _level(law: _Law, rng: np.random.Generator, key: int) -> int:
    """Lots of a level behind the touch, zero for none; tens of ticks are fuller than the rest."""
    round_price = key % 10 == 0
    if rng.random() >= min(1.0, law.occupancy * (1.6 if round_price else 1.0)):
        return 0
    size = math.exp(law.level_log + law.level_log_sd * rng.standard_normal())
    return max(1, int(size * (3.0 if round_price else 1.0)))


@compiled
def _move_touch(shown: _Shown, law: _Law, rng: np.random.Generator, row: int, key: int) -> None:
    """Bring one side's touch to a key; what lies before it is gone, what lies behind is populated."""
    lots, best = shown.lots[row], shown.best[row]
    if key > best:
        for k in range(best, min(key, best + _RING)):
            lots[k & _RING_MASK] = 0
    elif key < best:
        for k in range(key + 1, min(best + 1, key + _KEPT)):
            lots[k & _RING_MASK] = _level(law, rng, k)
    if key != best:
        shown.taken[row] = 0.0
        shown.best[row] = key
    shown.far[row] = min(max(shown.far[row], key), key + _KEPT)
    while shown.far[row] < key + law.reach:
        shown.far[row] += 1
        lots[shown.far[row] & _RING_MASK] = _level(law, rng, shown.far[row])


@compiled
def _churn(shown: _Shown, law: _Law, rng: np.random.Generator) -> None:
    for row in range(2):
        for _ in range(rng.poisson(0.5 * law.churn)):
            key = shown.best[row] + 1 + int(rng.exponential(law.churn_ticks))
            if key <= shown.far[row]:
                shown.lots[row, key & _RING_MASK] = _level(law, rng, key)


@compiled
def _arrival(shown: _Shown, law: _Law, rng: np.random.Generator, publish_ns: int) -> int:
    """Receive time of a frame: latency drawn, and never before the frame received last."""
    latency = math.exp(law.latency_log + law.latency_log_sd * rng.standard_normal())
    receive = max(shown.head[_RECEIVE] + 1_000, publish_ns + int(latency))
    shown.head[_RECEIVE] = receive
    return int(receive)


@compiled
def _row(
    out: Events, n: int, receive: int, exchange: int, publish: int, update: int, kind: int
) -> None:
    """Begin a row: every field is set, because the memory may hold anything."""
    out[n].receive_ns = receive
    out[n].exchange_ns = exchange
    out[n].publish_ns = publish
    out[n].update_id = update
    out[n].price_ticks = 0
    out[n].qty_lots = 0
    out[n].value_e8 = 0
    out[n].kind = kind
    out[n].side = 0
    out[n].flags = 0
    out[n].field = 0
    out[n].pad = 0


@compiled
def _orders(
    out: Events,
    n: int,
    shown: _Shown,
    law: _Law,
    day: Day,
    rng: np.random.Generator,
    j: int,
    cts_ms: int,
) -> int:
    """Taker orders between book frames j - 1 and j; returns the next free row."""
    head, now = shown.head, shown.head[_NOW]
    pace = law.base_orders * day.volatility[j] + shown.excitement[0]
    count = min(rng.poisson(pace), _MAX_ORDERS)
    shown.excitement[0] = law.echo * shown.excitement[0] + law.branching * (1 - law.echo) * count
    left = np.empty(2, np.int64)
    for row in range(2):
        left[row] = shown.qty[now, row, 0]
    # A touch that is about to retreat may be hit: the order comes last in the interval.
    swept = -1
    if rng.random() < law.sweep:
        if day.bid[j] < -shown.best[0]:
            swept = 0
        elif day.bid[j] + day.spread[j] > shown.best[1]:
            swept = 1
    room = cts_ms - head[_CTS]
    for i in range(count + (swept >= 0)):
        if i < count:
            side = 1 if 2 * rng.random() < 1 + day.flow[j] else -1
            row = (side + 1) >> 1  # a buy meets the asks
            # Pareto with tail index 1.5: its mean is three times its least value.
            size = int(law.order_lots / 3 * (1 - rng.random()) ** (-2 / 3))
        else:
            row = swept
            side = 2 * row - 1
            # Mostly a small part: the rest of the touch is cancelled.
            size = int(left[row] * rng.random() ** 3)
        hidden = i < count and rng.random() < law.rpi
        size = max(1, size if hidden else min(size, left[row]))
        if left[row] <= 0 and not hidden:
            continue
        if hidden:
            size = min(size, int(law.touch_lots) + 1)
        else:
            left[row] -= size
            shown.taken[row] += size
        ticks = -(1 - 2 * row) * shown.key[now, row, 0]
        t_ms = head[_CTS] + 1 + (room - 1) * (i + 1) // (count + 2)
        exchange = law.midnight_ns + t_ms * _MS
        publish = exchange + int(rng.random() * 3) * _MS
        receive = _arrival(shown, law, rng, publish)
        head[_SEQ] = max(head[_SEQ] + 1, exchange // _MS * 16)
        fills = 1
        while fills < min(_MAX_FILLS, size) and rng.random() < 0.25:
            fills += 1
        for f in range(fills):
            part = size // fills + (1 if f < size % fills else 0)
            _row(out, n, receive, exchange, publish, head[_SEQ], _TRADE)
            out[n].price_ticks = ticks
            out[n].qty_lots = part
            out[n].side = side
            out[n].flags = _RPI if hidden else 0
            n += 1
        out[n - 1].flags |= _LAST
        head[_LAST_TICKS] = ticks
    return n


@compiled
def _book(
    out: Events,
    n: int,
    shown: _Shown,
    law: _Law,
    day: Day,
    rngs: tuple[np.random.Generator, np.random.Generator],
    j: int,
    cts_ms: int,
    restart: bool,
) -> int:
    """Book frame j: move the touch, churn, and show what changed on the best 200 levels."""
    rng, transport = rngs
    now = shown.head[_NOW]
    after = 1 - now
    for row in range(2):
        side = 1 - 2 * row
        key = -day.bid[j] if row == 0 else day.bid[j] + day.spread[j]
        if j == 0:
            shown.best[row] = key
            shown.far[row] = key
        _move_touch(shown, law, rng, row, key)
        target = law.touch_lots * day.depth[j] * (1 + side * day.imbalance[j])
        shown.lots[row, key & _RING_MASK] = max(1, int(target - shown.taken[row]))
        shown.taken[row] *= 1 - law.refill
    _churn(shown, law, rng)
    exchange = law.midnight_ns + cts_ms * _MS
    publish = exchange + (1 + int(transport.random() * 4)) * _MS
    receive = _arrival(shown, law, transport, publish)
    update = law.first_update + j
    kind = _SNAPSHOT if restart else _DELTA
    first = n
    for row in range(2):
        side = 1 - 2 * row
        lots, key_now, qty_now = shown.lots[row], shown.key[now, row], shown.qty[now, row]
        key_next, qty_next = shown.key[after, row], shown.qty[after, row]
        held = 0 if restart else shown.levels[now, row]
        # The new window. Whether a tick holds a level is a coin toss that no branch predictor wins,
        # so every tick is written and only a level moves the cursor on.
        count, key = 0, shown.best[row]
        while count < DEPTH and key <= shown.far[row]:
            size = lots[key & _RING_MASK]
            key_next[count] = key
            qty_next[count] = size
            count += size > 0
            key += 1
        # What differs from the old one, best prices first; what left it is deleted.
        i = k = 0
        while i < held or k < count:
            gone = k == count or (i < held and key_now[i] < key_next[k])
            if not gone and i < held and key_now[i] == key_next[k]:
                i += 1
                k += 1
                if qty_now[i - 1] == qty_next[k - 1]:
                    continue
            elif gone:
                i += 1
            else:
                k += 1
            _row(out, n, receive, exchange, publish, update, kind)
            out[n].price_ticks = -side * (key_now[i - 1] if gone else key_next[k - 1])
            out[n].qty_lots = 0 if gone else qty_next[k - 1]
            out[n].side = side
            n += 1
        shown.levels[after, row] = count
    if n == first:
        _row(out, n, receive, exchange, publish, update, kind)
        n += 1
    out[first].flags |= _FIRST
    out[n - 1].flags |= _LAST
    shown.head[_NOW] = after
    shown.head[_CTS] = cts_ms
    return n


@compiled
def _ticker(
    out: Events,
    n: int,
    shown: _Shown,
    law: _Law,
    values: npt.NDArray[np.int64],
    second: int,
    publish: int,
    receive: int,
) -> int:
    """A ticker frame: the fields whose value is not the one sent last."""
    first = n
    for field in range(1, len(shown.ticker)):
        if field == _LAST_PRICE:
            if shown.head[_LAST_TICKS] == 0:
                continue
            value = shown.head[_LAST_TICKS] * law.tick_e8
        else:
            value = values[field - 1, second]
        if value == shown.ticker[field]:
            continue
        shown.ticker[field] = value
        _row(out, n, receive, publish, publish, 0, _TICKER)
        out[n].value_e8 = value
        out[n].field = field
        n += 1
    if n > first:
        out[n - 1].flags = _LAST
    return n


@compiled
def _run(
    out: Events,
    shown: _Shown,
    law: _Law,
    day: Day,
    values: npt.NDArray[np.int64],
    rngs: tuple[np.random.Generator, np.random.Generator, np.random.Generator],
    j: int,
    first: int,
    stop: int,
) -> tuple[int, int]:
    """Frames from j on, until ``out`` is nearly full or ``stop``; rows before ``first`` are dropped.

    Returns the number of rows and the next frame.
    """
    books, orders, transport = rngs
    n = 0
    while j < stop and n + _ROOM <= len(out):
        cts_ms = j * 100 + law.phase_ms + int(transport.random() * 3)
        if j > 0:
            n = _orders(out, n, shown, law, day, orders, j, cts_ms)
        if j <= first:
            n = 0
        if j == first:
            shown.ticker[:] = -(1 << 62)
        n = _book(out, n, shown, law, day, (books, transport), j, cts_ms, j == first)
        pace = law.liquidations * day.volatility[j] ** 2
        if j > 0 and orders.random() < pace:
            # A fall liquidates longs (side +1), and takes them out at the bid.
            side = 1 if day.log_price[j] < day.log_price[j - 1] else -1
            row = (1 - side) >> 1
            publish = law.midnight_ns + (cts_ms + 5) * _MS
            receive = _arrival(shown, law, transport, publish)
            _row(out, n, receive, law.midnight_ns + cts_ms * _MS, publish, 0, _LIQUIDATION)
            out[n].price_ticks = -side * shown.best[row]
            out[n].qty_lots = 1 + int(5 * law.order_lots * (1 - orders.random()) ** (-2 / 3))
            out[n].side = side
            out[n].flags = _LAST
            n += 1
        publish = law.midnight_ns + (cts_ms + 8) * _MS
        if j == first:
            # Comes with the snapshot and draws nothing, so that what follows does not depend on it.
            opening = out[n - 1].publish_ns
            shown.head[_RECEIVE] += 1
            n = _ticker(out, n, shown, law, values, j // 10, opening, shown.head[_RECEIVE])
        elif j % 10 == 5:
            receive = _arrival(shown, law, transport, publish)
            n = _ticker(out, n, shown, law, values, j // 10, publish, receive)
        if j < first:
            n = 0
        j += 1
    return n, j


def shown(
    hidden: Day,
    known: Reference,
    profile: Profile,
    seed: int,
    day: str,
    instrument: Instrument,
    start_s: int,
    stop_s: int,
) -> Iterator[Events]:
    """The events received in [start_s, stop_s) after midnight, in chunks of whole frames."""
    symbol = instrument.symbol
    law = _law(profile, symbol, day, instrument)
    rngs = tuple(generator(seed, symbol, day, name) for name in ("book", "orders", "transport"))
    state, values = _state(), np.stack(known)
    first, stop = start_s * _PER_SECOND, min(stop_s * _PER_SECOND, FRAMES)
    end_ns = law.midnight_ns + stop_s * _SECOND
    j = 0
    while j < stop:
        out = np.empty(CHUNK_ROWS + _ROOM, EVENT)
        n, j = _run(out, state, law, hidden, values, rngs, j, first, stop)
        rows = out[:n]
        if n and rows["receive_ns"][-1] >= end_ns:
            # Receive times rise, so what comes after the span is a tail of whole frames.
            yield rows[: np.searchsorted(rows["receive_ns"], end_ns)]
            return
        if n:
            yield rows


def _law(profile: Profile, symbol: str, day: str, instrument: Instrument) -> _Law:
    listing = profile.listing(symbol)
    lot, tick = instrument.lot_size, instrument.tick_size
    return _Law(
        midnight_ns=day_start_ns(day),
        phase_ms=hashlib.blake2b(symbol.encode(), digest_size=1).digest()[0] % 40,
        first_update=date.fromisoformat(day).toordinal() * FRAMES + 1,
        touch_lots=listing.touch_qty / lot,
        level_log=math.log(listing.level_qty / lot),
        level_log_sd=listing.level_log_sd,
        occupancy=listing.occupancy,
        reach=min(_KEPT, 200 + round(1.5 * DEPTH / listing.occupancy)),
        refill=profile.refill,
        churn=profile.churn,
        churn_ticks=profile.churn_bps * 1e-4 * listing.price / tick,
        base_orders=listing.orders_per_s * STEP_S * (1 - profile.branching),
        branching=profile.branching,
        echo=math.exp(-STEP_S / profile.branching_s),
        order_lots=listing.order_qty / lot,
        sweep=profile.sweep,
        rpi=profile.rpi,
        liquidations=profile.liquidations_per_h * STEP_S / 3600,
        latency_log=math.log(profile.latency_ms * _MS),
        latency_log_sd=profile.latency_log_sd,
        tick_e8=round(tick * 1e8),
    )
