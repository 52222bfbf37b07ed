"""Market data of a running market: book frames, trades, tickers and liquidations as event rows.

Every topic of the book keeps the window of levels it showed last, and a frame has the differences from
it; a topic of one level sends it whole. Executions become trades, one row each, a frame per taker.
Times are milliseconds at the venue; receive times add a random latency and only grow.

`run` is the loop of a market: requests and maker steps of `proving.synthetic.flow`, and what is
published of them, in order of time.
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
from proving.synthetic import flow
from proving.synthetic import matching as me
from proving.synthetic.arrivals import Floats, HawkesLaw, Integers, philox
from proving.synthetic.background import (
    BACKGROUND,
    NORMAL,
    POOL_ROOM,
    SHOWN_LEVELS,
    BackgroundParameters,
    BackgroundState,
    LatentPath,
    Records,
)
from proving.synthetic.matching import EngineState

#: Levels and period (ns) of the book's topics; the first is the one that events and bars are made of.
TOPICS: Final = ((200, 100_000_000), (50, 20_000_000), (1, 10_000_000))
#: Rows that one step of the loop may need beside those of its executions, of which an order that
#: rests has one at most.
ROW_ROOM: Final = 1 << 12
#: Room at first for executions of our resting orders.
OWN_FILLS: Final = 1 << 14

_SNAPSHOT: Final = int(Kind.SNAPSHOT)
_DELTA: Final = int(Kind.DELTA)
_TRADE: Final = int(Kind.TRADE)
_LIQUIDATION: Final = int(Kind.LIQUIDATION)
_TICKER: Final = int(Kind.TICKER)
_FIRST: Final = int(Flag.FIRST)
_LAST: Final = int(Flag.LAST)
_RPI: Final = int(Flag.RPI)
_LAST_PRICE: Final = int(Field.LAST_PRICE)
#: Value of a ticker field that was never sent.
_NEVER: Final = -(1 << 62)
#: Trade sequence numbers of one millisecond.
_SEQUENCES_PER_MS: Final = 16

# Streams of random numbers, above those of `background`; books take one a topic.
_TRADE_STREAM: Final = 16
_TICKER_STREAM: Final = 17
_LIQUIDATION_STREAM: Final = 18
_BOOK_STREAM: Final = 32

#: Scalars of the publication.
HEAD: Final = np.dtype(
    [
        ("sequence", "i8"),  # of the last trade frame
        ("last_ticks", "i8"),  # last trade price
        ("trade_frames", "i8"),
        ("own_fills", "i8"),  # rows in `PublicationState.own_fills`
    ]
)
#: State of a topic of the book.
TOPIC: Final = np.dtype(
    [
        ("depth", "i8"),
        ("period_ns", "i8"),
        ("frame", "i8"),  # number of its next frame since midnight
        ("due_ns", "i8"),  # time of that frame after midnight
        ("current", "i8"),  # which of its two windows is the one shown
        ("receive_ns", "i8"),  # of the last frame
        ("first_update", "i8"),  # update id of the day's first frame
    ]
)
#: The public trade that a fill of ours is: time after midnight, trade sequence, place in its frame.
TRADE: Final = np.dtype([("t_ns", "i8"), ("sequence", "i8"), ("place", "i8")])


class PublicationParameters(NamedTuple):
    """Scalars of publication."""

    midnight_ns: int
    phase_ms: int  #: of the symbol's book frames
    first_frame: int  #: of the first topic: earlier frames are not published
    liquidations: float  #: per second at mean volatility
    order_lots: float  #: mean quantity of a taker order
    latency_log: float  #: log ns
    latency_log_sd: float
    tick_e8: int


class PublicationState(NamedTuple):
    """State of publication. Row 0 of a window is the bid side; keys are -side·ticks."""

    topics: Records  #: (topics,) `TOPIC`
    keys: Integers  #: (topics, 2, 2, SHOWN_LEVELS) keys by [topic, window, side], best first
    lots: Integers  #: the same shape
    levels: Integers  #: (topics, 2, 2) number of levels in a window
    ticker: Integers  #: (9,) values last sent, by field; the venue sends those up to LAST_PRICE
    head: Records  #: (1,) `HEAD`
    own_fills: Records  #: (room,) `matching.FILL` of resting orders that are not the background's
    own_trades: Records  #: (room,) `TRADE` of each
    draws: Floats  #: (4,) scratch


class MarketState(NamedTuple):
    """A running market, as the kernels take it."""

    engine: EngineState
    law: BackgroundParameters
    arrivals: HawkesLaw
    path: LatentPath
    background: BackgroundState
    ticker_values: Integers  #: (fields, seconds) of `latent.Reference`
    wire: PublicationParameters
    publication: PublicationState
    clock: Integers  #: (1,) ns after midnight before which everything has happened


def new_publication(topics: Sequence[tuple[int, int]], first_update: int) -> PublicationState:
    """Nothing published yet; ``topics`` are of `TOPICS`, and include the first.

    ``first_update``: update id of the day's first frame of the first topic. ValueError for others.
    """
    if not topics or topics[0] != TOPICS[0] or not set(topics) <= set(TOPICS):
        raise ValueError(f"topics {tuple(topics)}: expected {TOPICS[0]} and any of {TOPICS[1:]}")
    table = np.zeros(len(topics), TOPIC)
    for topic, (depth, period_ns) in zip(table, topics, strict=True):
        topic["depth"], topic["period_ns"] = depth, period_ns
        topic["first_update"] = first_update * (TOPICS[0][1] // period_ns)
    return PublicationState(
        table,
        np.zeros((len(topics), 2, 2, SHOWN_LEVELS), np.int64),
        np.zeros((len(topics), 2, 2, SHOWN_LEVELS), np.int64),
        np.zeros((len(topics), 2, 2), np.int64),
        np.full(_LAST_PRICE + 1, _NEVER, np.int64),
        np.zeros(1, HEAD),
        np.zeros(OWN_FILLS, me.FILL),
        np.zeros(OWN_FILLS, TRADE),
        np.zeros(4),
    )


@kernel
def _receive_ns(
    state: PublicationState, wire: PublicationParameters, topic: int, publish_ns: int
) -> int:
    """Receive time of a frame by the uniform in ``draws[3]``, after that of the frame before."""
    z = NORMAL[int(state.draws[3] * len(NORMAL))]
    latency = math.exp(wire.latency_log + wire.latency_log_sd * z)
    receive = max(state.topics[topic].receive_ns + 1_000, publish_ns + int(latency))
    state.topics[topic].receive_ns = receive
    return int(receive)


@kernel
def _schedule(market: MarketState, topic: int) -> None:
    """Set the time of a topic's next frame: its phase, and up to 2 ms late."""
    row, draws = market.publication.topics[topic], market.publication.draws
    philox(market.background.key, _BOOK_STREAM + topic, row.frame, draws)
    late_ms = market.wire.phase_ms + int(draws[0] * 3)
    # Fast topics keep time within their period.
    late_ms = late_ms % (row.period_ns // MS_NS)
    row.due_ns = row.frame * row.period_ns + late_ms * MS_NS


@kernel
def open_publication(market: MarketState) -> None:
    """Set the times of the first frames."""
    for topic in range(len(market.publication.topics)):
        _schedule(market, topic)


@kernel
def _window(engine: EngineState, row: int, depth: int, keys: Integers, lots: Integers) -> int:
    """Write the best levels of a side; returns how many there are."""
    key, count = bk.best_key(engine.book, row), 0
    while count < depth and key != bk.NO_KEY:
        keys[count] = key
        lots[count] = bk.lots_at(engine.book, row, key)
        count += 1
        key = bk.next_key(engine.book, row, key)
    return count


@kernel
def _book_frame(out: Events, n: int, market: MarketState, topic: int) -> int:
    """The next frame of a topic; returns the next free row."""
    state, wire = market.publication, market.wire
    row_of_topic = state.topics[topic]
    number, shown = row_of_topic.frame, row_of_topic.current
    after = 1 - shown
    philox(market.background.key, _BOOK_STREAM + topic, number, state.draws)
    exchange = wire.midnight_ns + row_of_topic.due_ns
    publish = exchange + (1 + int(state.draws[1] * 4)) * MS_NS
    receive = _receive_ns(state, wire, topic, publish)
    update = row_of_topic.first_update + number
    skipped = wire.first_frame * (state.topics[0].period_ns // row_of_topic.period_ns)
    row_of_topic.frame += 1
    _schedule(market, topic)
    if number < skipped:
        return n
    restart = number == skipped or row_of_topic.depth == 1
    kind = _SNAPSHOT if restart else _DELTA
    first = n
    for row in range(2):
        side = 1 - 2 * row
        old_keys, old_lots = state.keys[topic, shown, row], state.lots[topic, shown, row]
        new_keys, new_lots = state.keys[topic, after, row], state.lots[topic, after, row]
        old_count = 0 if restart else state.levels[topic, shown, row]
        count = _window(market.engine, row, row_of_topic.depth, new_keys, new_lots)
        # Merge of both windows, best price first: changed and new levels, deletions of those that left.
        i = k = 0
        while i < old_count or k < count:
            gone = k == count or (i < old_count and old_keys[i] < new_keys[k])
            if not gone and i < old_count and old_keys[i] == new_keys[k]:
                i += 1
                k += 1
                if old_lots[i - 1] == new_lots[k - 1]:
                    continue
            elif gone:
                i += 1
            else:
                k += 1
            begin_row(out, n, receive, exchange, publish, update, kind)
            out[n].price_ticks = -side * (old_keys[i - 1] if gone else new_keys[k - 1])
            out[n].qty_lots = 0 if gone else new_lots[k - 1]
            out[n].side = side
            out[n].pad = topic
            n += 1
        state.levels[topic, after, row] = count
    if n == first:
        begin_row(out, n, receive, exchange, publish, update, kind)
        out[n].pad = topic
        n += 1
    out[first].flags |= _FIRST
    out[n - 1].flags |= _LAST
    row_of_topic.current = after
    return n


@kernel
def _trade_times(market: MarketState, t_ns: int) -> tuple[int, int, int]:
    """Exchange, publish and receive time of the next trade frame; its sequence goes to the head."""
    state, wire = market.publication, market.wire
    head = state.head[0]
    philox(market.background.key, _TRADE_STREAM, head.trade_frames, state.draws)
    head.trade_frames += 1
    exchange = wire.midnight_ns + t_ns // MS_NS * MS_NS
    publish = exchange + int(state.draws[1] * 3) * MS_NS
    head.sequence = max(head.sequence + 1, exchange // MS_NS * _SEQUENCES_PER_MS)
    return exchange, publish, _receive_ns(state, wire, 0, publish)


@kernel
def publish_trades(out: Events, n: int, market: MarketState, t_ns: int) -> int:
    """The engine's executions as trades, a frame per taker; clears them. Returns the next free row.

    Fills of resting orders that are not the background's go to ``own_fills`` as well.
    """
    engine, state = market.engine, market.publication
    fills, head = engine.head[0].fills, state.head[0]
    at = 0
    while at < fills:
        taker = engine.fills[at].taker
        exchange, publish, receive = _trade_times(market, t_ns)
        first = at
        while at < fills and engine.fills[at].taker == taker:
            fill = engine.fills[at]
            begin_row(out, n, receive, exchange, publish, head.sequence, _TRADE)
            out[n].price_ticks = fill.ticks
            out[n].qty_lots = fill.lots
            out[n].side = fill.side
            head.last_ticks = fill.ticks
            n += 1
            if fill.maker_owner != BACKGROUND:
                state.own_fills[head.own_fills] = fill
                trade = state.own_trades[head.own_fills]
                trade.t_ns = t_ns
                trade.sequence = head.sequence
                trade.place = at - first
                head.own_fills += 1
            at += 1
        out[n - 1].flags |= _LAST
    pending = market.background.head[0]
    if pending.rpi_lots > 0:
        side = pending.rpi_side
        key = bk.best_key(engine.book, bk.row_of(-side))
        if key != bk.NO_KEY:
            exchange, publish, receive = _trade_times(market, t_ns)
            begin_row(out, n, receive, exchange, publish, head.sequence, _TRADE)
            out[n].price_ticks = side * key
            out[n].qty_lots = pending.rpi_lots
            out[n].side = side
            out[n].flags = _RPI | _LAST
            n += 1
        pending.rpi_lots = 0
    me.clear_fills(engine)
    return n


@kernel
def _ticker(
    out: Events, n: int, market: MarketState, second: int, publish: int, receive: int
) -> int:
    """A ticker frame: the fields whose value differs from the one sent last."""
    state, values = market.publication, market.ticker_values
    first = n
    for field in range(1, len(state.ticker)):
        if field == _LAST_PRICE:
            if state.head[0].last_ticks == 0:
                continue
            value = state.head[0].last_ticks * market.wire.tick_e8
        else:
            value = values[field - 1, second]
        if value == state.ticker[field]:
            continue
        state.ticker[field] = value
        begin_row(out, n, receive, publish, publish, 0, _TICKER)
        out[n].value = value
        out[n].field = field
        n += 1
    if n > first:
        out[n - 1].flags = _LAST
    return n


@kernel
def _with_frame(out: Events, n: int, market: MarketState, number: int, cts_ns: int) -> int:
    """The liquidation and the ticker that come with a frame of the first topic, if any."""
    state, wire, path = market.publication, market.wire, market.path
    philox(market.background.key, _LIQUIDATION_STREAM, number, state.draws)
    j = min(number, len(path.volatility) - 1)
    if state.draws[0] < 0.1 * wire.liquidations * path.volatility[j] ** 2:
        # A fall liquidates longs (side +1), which sell at the bid.
        falling = path.log_price[j] < path.log_price[max(0, j - 1)]
        side = 1 if falling else -1
        key = bk.best_key(market.engine.book, bk.row_of(side))
        publish = wire.midnight_ns + cts_ns + 5 * MS_NS
        receive = _receive_ns(state, wire, 0, publish)
        if number >= wire.first_frame and key != bk.NO_KEY:
            begin_row(out, n, receive, wire.midnight_ns + cts_ns, publish, 0, _LIQUIDATION)
            out[n].price_ticks = -side * key
            out[n].qty_lots = 1 + int(2 * wire.order_lots * state.draws[1] ** (-2 / 3))
            out[n].side = side
            out[n].flags = _LAST
            n += 1
    second = min(number // 10, market.ticker_values.shape[1] - 1)
    if number == wire.first_frame:
        # Comes with the snapshot and draws nothing, so that what follows does not depend on it.
        state.topics[0].receive_ns += 1
        n = _ticker(out, n, market, second, out[n - 1].publish_ns, state.topics[0].receive_ns)
    elif number % 10 == 5:
        philox(market.background.key, _TICKER_STREAM, number, state.draws)
        publish = wire.midnight_ns + cts_ns + 8 * MS_NS
        receive = _receive_ns(state, wire, 0, publish)
        if number > wire.first_frame:
            n = _ticker(out, n, market, second, publish, receive)
    return n


@kernel
def rows_needed(engine: EngineState) -> int:
    """Most rows that one step may need."""
    return ROW_ROOM + len(engine.orders) - int(engine.head[0].room)


@kernel
def run(out: Events, n: int, market: MarketState, until_ns: int) -> int:
    """Run the market to a time after midnight, writing rows from ``n`` on; returns the next free row.

    Stops early, with ``clock[0]`` below ``until_ns``, when the rows, the engine's pool or ``own_fills``
    need room.
    """
    engine, state, clock = market.engine, market.publication, market.clock
    topics = state.topics
    while clock[0] < until_ns:
        if (
            n + rows_needed(engine) > len(out)
            or engine.head[0].room < POOL_ROOM
            or state.head[0].own_fills + rows_needed(engine) > len(state.own_fills)
        ):
            return n
        topic, due_ns = 0, topics[0].due_ns
        for k in range(1, len(topics)):
            if topics[k].due_ns < due_ns:
                topic, due_ns = k, topics[k].due_ns
        t_ns = flow.advance(
            engine,
            market.law,
            market.arrivals,
            market.path,
            market.background,
            min(until_ns, due_ns),
        )
        clock[0] = t_ns
        if engine.head[0].fills > 0 or market.background.head[0].rpi_lots > 0:
            m = publish_trades(out, n, market, t_ns)
            n = m if topics[0].frame > market.wire.first_frame else n
        elif t_ns == due_ns and t_ns < until_ns:
            number = topics[topic].frame
            n = _book_frame(out, n, market, topic)
            if topic == 0:
                n = _with_frame(out, n, market, number, due_ns)
    return n
