"""What the venue says of a running market: book frames, trades, tickers and liquidations as event rows.

Every topic of the book keeps the window it showed last, and a frame holds what differs from it; a
topic of one level sends it whole. Executions become trades, one row each, with a frame per taker.
Times are milliseconds at the venue; receive times add a drawn latency and only grow.

`run` is the loop of a market: requests and looks of `proving.synthetic.flow`, and what is published of them, in
order of time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from market import book as bk
from market.events import Events, Field, Flag, Kind, begin_row
from market.kernel import kernel
from market.units import MS_NS
from proving.synthetic import flow as fl
from proving.synthetic import matching as me
from proving.synthetic.arrivals import Arrivals, Floats, Integers, philox
from proving.synthetic.flow import NORMAL, Crowd, Law, Path
from proving.synthetic.matching import EngineState

#: Levels and period (ns) of the book's topics; the first is the one that events and bars are made of.
TOPICS: Final = ((200, 100_000_000), (50, 20_000_000), (1, 10_000_000))
MAX_DEPTH: Final = 200
#: Rows that one step of the loop may need beside those of its executions, of which an order that
#: rests has one at most.
ROW_ROOM: Final = 1 << 12
#: Room at first for executions of resting orders that are not the background's.
OUTBOX: Final = 1 << 14

_SNAPSHOT: Final = int(Kind.SNAPSHOT)
_DELTA: Final = int(Kind.DELTA)
_TRADE: Final = int(Kind.TRADE)
_LIQUIDATION: Final = int(Kind.LIQUIDATION)
_TICKER: Final = int(Kind.TICKER)
_FIRST: Final = int(Flag.FIRST)
_LAST: Final = int(Flag.LAST)
_RPI: Final = int(Flag.RPI)
_LAST_PRICE: Final = int(Field.LAST_PRICE)
_NEVER: Final = -(1 << 62)

# Streams of counted randomness, above those of the flow; books take one a topic.
_TRADES: Final = 16
_TICKERS: Final = 17
_LIQUIDATIONS: Final = 18
_BOOKS: Final = 32

# Places in `Sheet.head`.
SEQ: Final = 0  #: last trade sequence
LAST_TICKS: Final = 1  #: last trade price
TRADE_FRAMES: Final = 2
OUT_FILLS: Final = 3  #: rows in the outbox
_HEAD: Final = 4

# Columns of `Sheet.topics`.
DEPTH: Final = 0
PERIOD: Final = 1
FRAME: Final = 2  #: number of its next frame since midnight
DUE: Final = 3  #: time of that frame, ns after midnight
NOW: Final = 4  #: which of its two windows is current
TOPIC_RECEIVE: Final = 5  #: last receive time
UPDATE: Final = 6  #: update id of the first frame of the day
_TOPIC_FIELDS: Final = 7

#: Columns of the outbox: those of a fill, then the time in ns after midnight, and the sequence and
#: place in its frame of the trade that the public is told of.
OUT_NS: Final = me.FILL_FIELDS
OUT_SEQ: Final = me.FILL_FIELDS + 1
OUT_PLACE: Final = me.FILL_FIELDS + 2
OUT_FIELDS: Final = me.FILL_FIELDS + 3


class Wire(NamedTuple):
    """Scalars of publication."""

    midnight_ns: int
    phase_ms: int  #: of the symbol's book frames
    first_frame: int  #: of the first topic: earlier ones are not shown
    liquidations: float  #: per second at mean volatility
    order_lots: float  #: mean quantity of a taker order
    latency_log: float  #: log ns
    latency_log_sd: float
    tick_e8: int


class Sheet(NamedTuple):
    """State of publication. Row 0 of a window is the bid side, keys are -side·ticks."""

    topics: Integers  #: (topics, _TOPIC_FIELDS)
    keys: Integers  #: (topics, 2, 2, MAX_DEPTH) displayed keys, best first: [topic, which, side]
    lots: Integers  #: the same shape
    levels: Integers  #: (topics, 2, 2)
    ticker: Integers  #: (9,) values last sent, by field
    head: Integers  #: (_HEAD,)
    outbox: Integers  #: (room, OUT_FIELDS)
    draws: Floats  #: (4,)


def new_sheet(topics: Sequence[tuple[int, int]], first_update: int) -> Sheet:
    """Nothing shown yet; ``topics`` are of `TOPICS`, the first of those for certain.

    ``first_update``: update id of the day's first frame of the first topic. ValueError for others.
    """
    if not topics or topics[0] != TOPICS[0] or not set(topics) <= set(TOPICS):
        raise ValueError(f"topics {tuple(topics)}: expected {TOPICS[0]} and any of {TOPICS[1:]}")
    table = np.zeros((len(topics), _TOPIC_FIELDS), np.int64)
    for place, (depth, period) in enumerate(topics):
        table[place, [DEPTH, PERIOD]] = depth, period
        table[place, UPDATE] = first_update * (TOPICS[0][1] // period)
    return Sheet(
        table,
        np.zeros((len(topics), 2, 2, MAX_DEPTH), np.int64),
        np.zeros((len(topics), 2, 2, MAX_DEPTH), np.int64),
        np.zeros((len(topics), 2, 2), np.int64),
        np.full(len(Field) + 1, _NEVER, np.int64),
        np.zeros(_HEAD, np.int64),
        np.zeros((OUTBOX, OUT_FIELDS), np.int64),
        np.zeros(4),
    )


@kernel
def _arrival(sheet: Sheet, wire: Wire, topic: int, publish_ns: int) -> int:
    """Receive time of a frame by the uniform in ``draws[3]``; never before the frame before it."""
    z = NORMAL[int(sheet.draws[3] * len(NORMAL))]
    latency = math.exp(wire.latency_log + wire.latency_log_sd * z)
    receive = max(sheet.topics[topic, TOPIC_RECEIVE] + 1_000, publish_ns + int(latency))
    sheet.topics[topic, TOPIC_RECEIVE] = receive
    return int(receive)


@kernel
def _due(wire: Wire, sheet: Sheet, crowd: Crowd, topic: int) -> None:
    """Set the time of a topic's next frame: its phase and up to 2 ms late."""
    row = sheet.topics[topic]
    philox(crowd.key, _BOOKS + topic, row[FRAME], sheet.draws)
    late_ms = wire.phase_ms + int(sheet.draws[0] * 3)
    # Fast topics keep time within their period.
    late_ms = late_ms % (row[PERIOD] // MS_NS)
    row[DUE] = row[FRAME] * row[PERIOD] + late_ms * MS_NS


@kernel
def open_sheet(sheet: Sheet, wire: Wire, crowd: Crowd) -> None:
    """Set the times of the first frames."""
    for topic in range(len(sheet.topics)):
        _due(wire, sheet, crowd, topic)


@kernel
def _window(engine: EngineState, row: int, depth: int, keys: Integers, lots: Integers) -> int:
    """The best levels of a side; returns how many there are."""
    key, count = bk.best_key(engine.book, row), 0
    while count < depth and key != bk.NO_KEY:
        keys[count] = key
        lots[count] = bk.lots_at(engine.book, row, key)
        count += 1
        key = bk.next_key(engine.book, row, key)
    return count


@kernel
def _frame(
    out: Events, n: int, engine: EngineState, sheet: Sheet, wire: Wire, crowd: Crowd, topic: int
) -> int:
    """The next frame of a topic; returns the next free row."""
    state = sheet.topics[topic]
    now, after = state[NOW], 1 - state[NOW]
    number = state[FRAME]
    philox(crowd.key, _BOOKS + topic, number, sheet.draws)
    exchange = wire.midnight_ns + state[DUE]
    publish = exchange + (1 + int(sheet.draws[1] * 4)) * MS_NS
    receive = _arrival(sheet, wire, topic, publish)
    update = state[UPDATE] + number
    skipped = wire.first_frame * (sheet.topics[0, PERIOD] // state[PERIOD])
    state[FRAME] += 1
    _due(wire, sheet, crowd, topic)
    if number < skipped:
        return n
    restart = number == skipped or state[DEPTH] == 1
    kind = _SNAPSHOT if restart else _DELTA
    first = n
    for row in range(2):
        side = 1 - 2 * row
        keys_now, lots_now = sheet.keys[topic, now, row], sheet.lots[topic, now, row]
        keys_next, lots_next = sheet.keys[topic, after, row], sheet.lots[topic, after, row]
        held = 0 if restart else sheet.levels[topic, now, row]
        count = _window(engine, row, state[DEPTH], keys_next, lots_next)
        # What differs from the old window, best prices first; what left it is deleted.
        i = k = 0
        while i < held or k < count:
            gone = k == count or (i < held and keys_now[i] < keys_next[k])
            if not gone and i < held and keys_now[i] == keys_next[k]:
                i += 1
                k += 1
                if lots_now[i - 1] == lots_next[k - 1]:
                    continue
            elif gone:
                i += 1
            else:
                k += 1
            begin_row(out, n, receive, exchange, publish, update, kind)
            out[n].price_ticks = -side * (keys_now[i - 1] if gone else keys_next[k - 1])
            out[n].qty_lots = 0 if gone else lots_next[k - 1]
            out[n].side = side
            out[n].pad = topic
            n += 1
        sheet.levels[topic, after, row] = count
    if n == first:
        begin_row(out, n, receive, exchange, publish, update, kind)
        out[n].pad = topic
        n += 1
    out[first].flags |= _FIRST
    out[n - 1].flags |= _LAST
    state[NOW] = after
    return n


@kernel
def _trade_times(sheet: Sheet, wire: Wire, crowd: Crowd, t_ns: int) -> tuple[int, int, int]:
    """Exchange, publish and receive time of the next trade frame; its sequence goes to the head."""
    head = sheet.head
    philox(crowd.key, _TRADES, head[TRADE_FRAMES], sheet.draws)
    head[TRADE_FRAMES] += 1
    exchange = wire.midnight_ns + t_ns // MS_NS * MS_NS
    publish = exchange + int(sheet.draws[1] * 3) * MS_NS
    head[SEQ] = max(head[SEQ] + 1, exchange // MS_NS * 16)
    return exchange, publish, _arrival(sheet, wire, 0, publish)


@kernel
def publish_trades(
    out: Events,
    n: int,
    engine: EngineState,
    sheet: Sheet,
    wire: Wire,
    crowd: Crowd,
    t_ns: int,
) -> int:
    """The engine's executions as trades, a frame per taker; clears them. Returns the next free row.

    What happens to resting orders of others than the background goes to the outbox as well.
    """
    fills, head = engine.head[me.FILLS], sheet.head
    at = 0
    while at < fills:
        taker = engine.fills[at, me.F_TAKER]
        exchange, publish, receive = _trade_times(sheet, wire, crowd, t_ns)
        first = at
        while at < fills and engine.fills[at, me.F_TAKER] == taker:
            fill = engine.fills[at]
            begin_row(out, n, receive, exchange, publish, head[SEQ], _TRADE)
            out[n].price_ticks = fill[me.F_TICKS]
            out[n].qty_lots = fill[me.F_LOTS]
            out[n].side = fill[me.F_SIDE]
            head[LAST_TICKS] = fill[me.F_TICKS]
            n += 1
            if fill[me.F_MAKER_OWNER] != fl.BACKGROUND:
                kept = sheet.outbox[head[OUT_FILLS]]
                for k in range(me.FILL_FIELDS):
                    kept[k] = fill[k]
                kept[OUT_NS] = t_ns
                kept[OUT_SEQ] = head[SEQ]
                kept[OUT_PLACE] = at - first
                head[OUT_FILLS] += 1
            at += 1
        out[n - 1].flags |= _LAST
    if crowd.counts[fl.RPI_LOTS] > 0:
        side = crowd.counts[fl.RPI_SIDE]
        key = bk.best_key(engine.book, bk.row_of(-side))
        if key != bk.NO_KEY:
            exchange, publish, receive = _trade_times(sheet, wire, crowd, t_ns)
            begin_row(out, n, receive, exchange, publish, head[SEQ], _TRADE)
            out[n].price_ticks = side * key
            out[n].qty_lots = crowd.counts[fl.RPI_LOTS]
            out[n].side = side
            out[n].flags = _RPI | _LAST
            n += 1
        crowd.counts[fl.RPI_LOTS] = 0
    me.clear_fills(engine)
    return n


@kernel
def _ticker(
    out: Events,
    n: int,
    sheet: Sheet,
    wire: Wire,
    values: Integers,
    second: int,
    publish: int,
    receive: int,
) -> int:
    """A ticker frame: the fields whose value is not the one sent last."""
    first = n
    for field in range(1, len(sheet.ticker)):
        if field == _LAST_PRICE:
            if sheet.head[LAST_TICKS] == 0:
                continue
            value = sheet.head[LAST_TICKS] * wire.tick_e8
        else:
            value = values[field - 1, second]
        if value == sheet.ticker[field]:
            continue
        sheet.ticker[field] = value
        begin_row(out, n, receive, publish, publish, 0, _TICKER)
        out[n].value_e8 = value
        out[n].field = field
        n += 1
    if n > first:
        out[n - 1].flags = _LAST
    return n


@kernel
def _beside(
    out: Events,
    n: int,
    engine: EngineState,
    sheet: Sheet,
    wire: Wire,
    crowd: Crowd,
    values: Integers,
    volatility: Floats,
    falling: bool,
    number: int,
    cts_ns: int,
) -> int:
    """What comes with a frame of the first topic: a liquidation, a ticker."""
    philox(crowd.key, _LIQUIDATIONS, number, sheet.draws)
    j = min(number, len(volatility) - 1)
    if sheet.draws[0] < 0.1 * wire.liquidations * volatility[j] ** 2:
        # A fall liquidates longs (side +1), and takes them out at the bid.
        side = 1 if falling else -1
        key = bk.best_key(engine.book, bk.row_of(side))
        publish = wire.midnight_ns + cts_ns + 5 * MS_NS
        receive = _arrival(sheet, wire, 0, publish)
        if number >= wire.first_frame and key != bk.NO_KEY:
            begin_row(out, n, receive, wire.midnight_ns + cts_ns, publish, 0, _LIQUIDATION)
            out[n].price_ticks = -side * key
            out[n].qty_lots = 1 + int(2 * wire.order_lots * sheet.draws[1] ** (-2 / 3))
            out[n].side = side
            out[n].flags = _LAST
            n += 1
    second = min(number // 10, values.shape[1] - 1)
    if number == wire.first_frame:
        # Comes with the snapshot and draws nothing, so that what follows does not depend on it.
        sheet.topics[0, TOPIC_RECEIVE] += 1
        opening, receive = out[n - 1].publish_ns, sheet.topics[0, TOPIC_RECEIVE]
        n = _ticker(out, n, sheet, wire, values, second, opening, receive)
    elif number % 10 == 5:
        philox(crowd.key, _TICKERS, number, sheet.draws)
        publish = wire.midnight_ns + cts_ns + 8 * MS_NS
        receive = _arrival(sheet, wire, 0, publish)
        if number > wire.first_frame:
            n = _ticker(out, n, sheet, wire, values, second, publish, receive)
    return n


@kernel
def rows_needed(engine: EngineState) -> int:
    """Rows that one step may need."""
    return ROW_ROOM + len(engine.orders) - int(engine.head[me.ROOM])


@kernel
def run(
    out: Events,
    n: int,
    engine: EngineState,
    law: Law,
    arriving: Arrivals,
    path: Path,
    volatility: Floats,
    values: Integers,
    crowd: Crowd,
    sheet: Sheet,
    wire: Wire,
    clock: Integers,
    until_ns: int,
) -> int:
    """Let the market run until a time after midnight; returns the next free row.

    Stops early, with ``clock[0]`` below ``until_ns``, when rows, the engine's pool or the outbox need
    room. ``clock[0]`` is the time up to which everything has happened.
    """
    topics = sheet.topics
    while clock[0] < until_ns:
        if (
            n + rows_needed(engine) > len(out)
            or engine.head[me.ROOM] < fl.POOL_ROOM
            or sheet.head[OUT_FILLS] + rows_needed(engine) > len(sheet.outbox)
        ):
            return n
        topic, due = 0, topics[0, DUE]
        for k in range(1, len(topics)):
            if topics[k, DUE] < due:
                topic, due = k, topics[k, DUE]
        t_ns = fl.advance(engine, law, arriving, path, crowd, min(until_ns, due))
        clock[0] = t_ns
        if engine.head[me.FILLS] > 0 or crowd.counts[fl.RPI_LOTS] > 0:
            m = publish_trades(out, n, engine, sheet, wire, crowd, t_ns)
            n = m if topics[0, FRAME] > wire.first_frame else n
        elif t_ns == due and t_ns < until_ns:
            number = topics[topic, FRAME]
            n = _frame(out, n, engine, sheet, wire, crowd, topic)
            if topic == 0:
                j = min(number, len(path.log_price) - 1)
                falling = path.log_price[j] < path.log_price[max(0, j - 1)]
                n = _beside(
                    out, n, engine, sheet, wire, crowd, values, volatility, falling, number, due
                )
    return n
