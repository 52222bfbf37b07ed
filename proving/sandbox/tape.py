"""Public market data of one symbol: books, trades, candles, ticker and price limits.

A `PublicTape` turns the market's event rows into the frames of the public topics and keeps each topic's
book as last published, so that a late subscriber's snapshot joins the deltas without a gap. Books of 1,
50 and 200 levels are the market's own topics; the book of 1000 is built here, five times a second.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from execution.account import unit_e8
from market.events import EVENT, STEP_E8, Events, Field, Flag, Kind
from market.instruments import Instrument
from market.units import E8, MS_NS
from market.wire.encode import Encoder
from market.wire.topics import book_topic, symbol_topics
from proving.sandbox.candles import Candles, candle_end
from proving.sandbox.listing import FUNDING_CAP, DecimalCodec
from proving.sandbox.protocol import Row, money, rounded
from proving.synthetic.publication import TOPICS

DEPTHS: Final = (1, 50, 200, 1000)
DEEP: Final = 1000
DEEP_NS: Final = 200_000_000
TICKER_NS: Final = 100_000_000
#: Price limits are published with every third ticker.
PRICE_LIMIT_NS: Final = 300_000_000
#: An unchanged best bid and ask are repeated after this long.
REPEAT_NS: Final = 3_000_000_000
RECENT_TRADES: Final = 1000
OPEN_INTEREST_MS: Final = 300_000
#: Seconds of the mean premium (mid less mark) in the price limits.
PREMIUM_S: Final = 30

# Plain integers: arithmetic of enumerations is slow, and this is done for every row.
_SNAPSHOT: Final = int(Kind.SNAPSHOT)
_DELTA: Final = int(Kind.DELTA)
_FIRST: Final = int(Flag.FIRST)

#: Fields of a ticker that are sent together when one of them changed.
_TOGETHER: Final = (
    ("bid1Price", "bid1Size"),
    ("ask1Price", "ask1Size"),
    ("turnover24h", "volume24h"),
    ("openInterest", "singleOpenInterest"),
    ("openInterestValue", "singleOpenInterestValue"),
)

#: Depths that the market publishes, by their place in its rows.
MARKET_DEPTHS: Final = tuple(depth for depth, _ in TOPICS)

Levels = list[tuple[int, int]]  #: (ticks, lots), best first
Listener = Callable[[str, bytes], None]  #: called with a topic and a frame


# -- books -----------------------------------------------------------------------------------------


class PublishedBook:
    """The book of one topic as last published."""

    def __init__(self, instrument: Instrument, depth: int) -> None:
        self.topic = book_topic(depth, instrument.symbol)
        self.encoder = Encoder(instrument, depth)
        self.sides: dict[int, dict[int, int]] = {1: {}, -1: {}}  #: by side: lots by ticks
        self.update_id = self.exchange_ns = self.publish_ns = 0
        self.update_id_offset = 0  #: the market's update id less ours, since a restart

    def apply(self, rows: Events) -> None:
        """Apply the snapshots and deltas of whole frames."""
        names = ("kind", "side", "flags", "price_ticks", "qty_lots")
        columns = [rows[name].tolist() for name in names]
        for kind, side, flags, ticks, lots in zip(*columns, strict=True):
            if kind == _SNAPSHOT and flags & _FIRST:
                self.sides = {1: {}, -1: {}}
            if side and lots:
                self.sides[side][ticks] = lots
            elif side:
                self.sides[side].pop(ticks, None)
        last = rows[-1]
        self.update_id = int(last["update_id"])
        self.exchange_ns, self.publish_ns = int(last["exchange_ns"]), int(last["publish_ns"])

    def levels(self, side: int, limit: int) -> Levels:
        """(ticks, lots), best first."""
        return sorted(self.sides[side].items(), reverse=side > 0)[:limit]

    def rows(self, kind: Kind, levels: list[tuple[int, int, int]]) -> Events:
        """The event rows of one frame of (side, ticks, lots) with the book's times and update id."""
        rows = np.zeros(max(1, len(levels)), EVENT)
        rows["kind"], rows["update_id"] = kind, self.update_id
        rows["exchange_ns"] = self.exchange_ns
        rows["publish_ns"] = rows["receive_ns"] = self.publish_ns
        for row, (side, ticks, lots) in zip(rows, levels, strict=False):
            row["side"], row["price_ticks"], row["qty_lots"] = side, ticks, lots
        rows["flags"][0] |= Flag.FIRST
        rows["flags"][-1] |= Flag.LAST
        return rows

    def snapshot(self) -> bytes:
        """The whole book as a snapshot frame."""
        levels = [(side, *level) for side in (1, -1) for level in self.levels(side, DEEP)]
        return next(self.encoder.frames(self.rows(Kind.SNAPSHOT, levels)))[1]


# -- the tape --------------------------------------------------------------------------------------


class PublicTape:
    """Public market data of one symbol; ``on_frame`` is called with each topic's frames, in order.

    Frames of a topic that nobody reads, says ``is_read``, are not made. ``deep_levels`` gives
    the levels of a side of the market's book, of which the deep book is made, ``depths`` are the market's
    topics by their place in its rows.
    """

    def __init__(
        self,
        instrument: Instrument,
        on_frame: Listener,
        is_read: Callable[[str], bool],
        deep_levels: Callable[[int], Levels],
        depths: Sequence[int] = MARKET_DEPTHS,
    ) -> None:
        self._depths = depths
        self.instrument, self.symbol = instrument, instrument.symbol
        _, self._trade_topic, self._ticker_topic, self._liquidation_topic = symbol_topics(
            self.symbol, DEEP
        )
        self.codec = DecimalCodec(instrument)
        self.tick_e8 = self.codec.tick_e8
        #: ticker values at 1e-8 (times in ms) by `events.Field`
        self.values: dict[int, int] = {}
        self.trades: deque[Row] = deque(maxlen=RECENT_TRADES)
        self.last_ticks = 0
        self.candles = {
            "kline": Candles(unit_e8(instrument)),
            "mark-price-kline": Candles(0),
            "index-price-kline": Candles(0),
            "premium-index-price-kline": Candles(0),
        }
        self.funding: deque[tuple[int, int]] = deque(maxlen=200)  #: (ms, rate at 1e-8), newest last
        #: (ms, open interest at 1e-8) every five minutes for a week, newest last
        self.open_interest: deque[tuple[int, int]] = deque(maxlen=2016)
        self.books = {depth: PublishedBook(instrument, depth) for depth in DEPTHS}
        self._on_frame, self._is_read = on_frame, is_read
        self._deep_levels = deep_levels
        self._encoder = Encoder(instrument)
        self._trade_range = (0, 0)  #: lowest and highest trade since `pop_trade_range`, ticks
        self._trades_ns = 0  #: when the last frame of trades left
        self._premiums: deque[int] = deque(maxlen=PREMIUM_S)
        self._best: tuple[Any, ...] = ()
        self._best_frame, self._best_ns = b"", 0
        self._ticker: dict[str, str] = {}
        self._direction = "ZeroPlusTick"
        self._first_ticks = 0

    # -- input -------------------------------------------------------------------------------------

    def apply(self, rows: Events) -> None:
        """Publish the market's event rows, which come in its order."""
        if not len(rows):
            return
        kinds = rows["kind"]
        places = np.where(kinds <= _DELTA, rows["pad"].astype(np.int16), -1)
        for place, depth in enumerate(self._depths):
            book_rows = rows[places == place]
            if len(book_rows):
                self._apply_book(depth, book_rows)
        others = rows[places < 0]
        if not len(others):
            return
        kinds = others["kind"]
        trades = others[kinds == int(Kind.TRADE)]
        if len(trades):
            self._apply_trades(trades)
        for _, frame in self._encoder.frames(others[kinds == int(Kind.LIQUIDATION)]):
            self._on_frame(self._liquidation_topic, frame)
        ticker = others[kinds == int(Kind.TICKER)]
        if len(ticker):
            self._apply_ticker(ticker)

    def _apply_book(self, depth: int, rows: Events) -> None:
        book = self.books[depth]
        # A delta without a change is none: the venue sends no empty frames.
        empty = (rows["side"] == 0) & (rows["kind"] == _DELTA)
        rows["update_id"] -= book.update_id_offset + np.cumsum(empty)
        if empty.any():
            book.update_id_offset += int(empty.sum())
            rows = rows[~empty]
            if not len(rows):
                return
        book.apply(rows)
        if depth > 1:
            if self._is_read(book.topic):
                for _, frame in book.encoder.frames(rows):
                    self._on_frame(book.topic, frame)
            return
        if not self._is_read(book.topic):
            self._best = ()
            return
        # The book of one level is published when it changes, and repeated after a silence.
        ends = np.flatnonzero(rows["flags"] & Flag.LAST).tolist()
        start = 0
        for end, (_, frame) in zip(ends, book.encoder.frames(rows), strict=True):
            part = rows[start : end + 1]
            start = end + 1
            best = tuple(part["price_ticks"].tolist() + part["qty_lots"].tolist())
            now_ns = int(part["exchange_ns"][0])
            if best != self._best:
                self._best, self._best_frame, self._best_ns = best, frame, now_ns
                self._on_frame(book.topic, frame)
            elif now_ns - self._best_ns >= REPEAT_NS:
                self._best_ns = now_ns
                self._on_frame(book.topic, self._best_frame)

    def _apply_trades(self, rows: Events) -> None:
        # The market draws each frame's lag; the topic's frames leave in order.
        rows["publish_ns"][0] = max(rows["publish_ns"][0], self._trades_ns)
        rows["publish_ns"] = np.maximum.accumulate(rows["publish_ns"])
        self._trades_ns = int(rows["publish_ns"][-1])
        for _, frame in self._encoder.frames(rows):
            self._on_frame(self._trade_topic, frame)
            self.trades.extend(msgspec.json.decode(frame)["data"])
        self._direction = self.trades[-1]["L"]
        candles = self.candles["kline"]
        columns = [rows[name].tolist() for name in ("exchange_ns", "price_ticks", "qty_lots")]
        for exchange_ns, ticks, lots in zip(*columns, strict=True):
            candles.add(exchange_ns // MS_NS, ticks, lots)
        prices = rows["price_ticks"]
        self.last_ticks = int(prices[-1])
        low, high = self._trade_range
        self._trade_range = (
            min(low or self.last_ticks, int(prices.min())),
            max(high, int(prices.max())),
        )
        self._first_ticks = self._first_ticks or int(prices[0])

    def _apply_ticker(self, rows: Events) -> None:
        for field, value in zip(rows["field"].tolist(), rows["value"].tolist(), strict=True):
            self.values[field] = value * int(STEP_E8[field])
        at_ms = int(rows["exchange_ns"][-1]) // MS_NS
        self.candles["mark-price-kline"].add(at_ms, self.mark_e8, 0)
        self.candles["index-price-kline"].add(at_ms, self.index_e8, 0)
        premium = (self._mid_e8() - self.index_e8) * E8 // self.index_e8
        self.candles["premium-index-price-kline"].add(at_ms, premium, 0)
        period_ms = at_ms - at_ms % OPEN_INTEREST_MS
        if not self.open_interest or self.open_interest[-1][0] < period_ms:
            self.open_interest.append((period_ms, self.values.get(Field.OPEN_INTEREST, 0)))
        self._premiums.append(self._mid_e8() - self.mark_e8)

    def deep_book(self) -> PublishedBook:
        """The deep book as last published; while nobody reads it, as it is now."""
        book = self.books[DEEP]
        if not self._is_read(book.topic):
            book.sides = {side: dict(self._deep_levels(side)) for side in (1, -1)}
        return book

    def publish_deep_book(self, now_ns: int) -> None:
        """Publish what changed in the market's levels as the deep book's next frame."""
        book = self.books[DEEP]
        first = not book.update_id
        if not self._is_read(book.topic):
            book.update_id += 1
            book.exchange_ns, book.publish_ns = now_ns, now_ns + MS_NS
            return
        changes: list[tuple[int, int, int]] = []
        for side in (1, -1):
            levels, published = self._deep_levels(side), book.sides[side]
            current = dict(levels)
            removed = [(ticks, 0) for ticks in published.keys() - current.keys()]
            changed = [(ticks, lots) for ticks, lots in levels if published.get(ticks) != lots]
            ordered = sorted(removed + changed, reverse=side > 0)
            changes += [(side, ticks, lots) for ticks, lots in ordered]
        if not changes and not first:
            return
        book.update_id += 1
        book.exchange_ns, book.publish_ns = now_ns, now_ns + MS_NS
        rows = book.rows(Kind.SNAPSHOT if first else Kind.DELTA, changes)
        book.apply(rows)
        for _, frame in book.encoder.frames(rows):
            self._on_frame(book.topic, frame)

    def restart(self) -> None:
        """Publish every book anew as a snapshot of update id 1, as after a restart of the venue."""
        for depth, book in self.books.items():
            if not book.update_id:
                continue
            book.update_id_offset += book.update_id - 1
            book.update_id = 1
            if depth == DEEP:
                self.deep_book()
            frame = book.snapshot()
            if depth == 1:
                self._best_frame = frame
            self._on_frame(book.topic, frame)

    def publish_ticker(self, now_ns: int) -> None:
        """Publish the ticker fields that changed since the last frame, and now and then price limits."""
        if self._is_read(self._ticker_topic):
            fields = self.ticker_fields()
            differs = {name for name, text in fields.items() if self._ticker.get(name) != text}
            for pair in _TOGETHER:
                if not differs.isdisjoint(pair):
                    differs.update(pair)
            changed = {name: text for name, text in fields.items() if name in differs}
            kind = "delta" if self._ticker else "snapshot"
            self._ticker = fields
            if changed:
                self._on_frame(self._ticker_topic, self._ticker_frame(kind, changed, now_ns))
        else:
            self._ticker = {}
        topic = f"priceLimit.{self.symbol}"
        if now_ns % PRICE_LIMIT_NS == 0 and self._is_read(topic):
            limits = {"topic": topic, "data": self.price_limit_row(), "ts": now_ns // MS_NS}
            self._on_frame(topic, msgspec.json.encode(limits))

    def publish_liquidation(self, side: int, ticks: int, lots: int, now_ns: int) -> None:
        """Publish the liquidation of a position; ``side`` is the position's."""
        row = np.zeros(1, EVENT)
        row["kind"], row["side"], row["flags"] = Kind.LIQUIDATION, side, Flag.LAST
        row["price_ticks"], row["qty_lots"] = ticks, lots
        row["exchange_ns"] = row["publish_ns"] = row["receive_ns"] = now_ns
        self.apply(row)

    def pop_trade_range(self) -> tuple[int, int]:
        """Lowest and highest trade since the last call, ticks; the last trade when there was none."""
        low, high = self._trade_range if self._trade_range[0] else (self.last_ticks,) * 2
        self._trade_range = (0, 0)
        return low, high

    # -- frames ------------------------------------------------------------------------------------

    def snapshot(self, topic: str, now_ns: int) -> bytes | None:
        """The first frame of a new subscriber; None for topics without a snapshot."""
        for book in self.books.values():
            if book.topic == topic and book.update_id:
                if book is self.books[DEEP]:
                    self.deep_book()
                frame = book.snapshot()
                if book is self.books[1] and not self._best:
                    levels = [level for side in (1, -1) for level in book.levels(side, 1)]
                    self._best = tuple(n for column in zip(*levels, strict=True) for n in column)
                    self._best_frame, self._best_ns = frame, book.exchange_ns
                return frame
        if topic == self._ticker_topic and self.values:
            self._ticker = self._ticker or self.ticker_fields()
            return self._ticker_frame("snapshot", self._ticker, now_ns)
        return None

    def _ticker_frame(self, kind: str, fields: dict[str, str], now_ns: int) -> bytes:
        frame = {
            "topic": self._ticker_topic,
            "type": kind,
            "data": {"symbol": self.symbol, **fields},
            "cs": self.sequence(now_ns),
            "ts": now_ns // MS_NS,
        }
        return msgspec.json.encode(frame)

    def candle_frame(self, interval: str, now_ns: int) -> bytes | None:
        """The running candle of an interval, and the one before for a second; None before a trade."""
        now_ms = now_ns // MS_NS
        candles = self.candles["kline"].latest(interval, 2, 0, now_ms)
        if not candles:
            return None
        price = self.codec.price
        data = [
            {
                "start": candle.start_ms,
                "end": candle_end(candle.start_ms, interval) - 1,
                "interval": interval,
                "open": price(candle.open),
                "close": price(candle.close),
                "high": price(candle.high),
                "low": price(candle.low),
                "volume": self.codec.qty(candle.lots),
                "turnover": money(candle.turnover_e8),
                "confirm": now_ms >= candle_end(candle.start_ms, interval),
                "timestamp": now_ms,
            }
            for candle in candles
            if now_ms - candle_end(candle.start_ms, interval) < 1000
        ]
        topic = f"kline.{interval}.{self.symbol}"
        frame = {"topic": topic, "data": data, "ts": now_ms, "type": "snapshot"}
        return msgspec.json.encode(frame)

    # -- prices ------------------------------------------------------------------------------------

    def sequence(self, now_ns: int) -> int:
        """The cross sequence at a time, which orders the frames of all topics."""
        return now_ns // MS_NS * 16 + 15

    @property
    def mark_e8(self) -> int:
        return self.values[Field.MARK_PRICE]

    @property
    def index_e8(self) -> int:
        return self.values[Field.INDEX_PRICE]

    @property
    def funding_rate_e8(self) -> int:
        return self.values[Field.FUNDING_RATE]

    def _mid_e8(self) -> int:
        book = self.books[1]
        return (next(iter(book.sides[1])) + next(iter(book.sides[-1]))) * self.tick_e8 // 2

    def price_limits(self) -> tuple[int, int]:
        """Lowest price of a sell order and highest of a buy order, ticks.

        With mark M, index I and P the mean of mid less mark over 30 s, a buy order may pay at most
        min(1.02 M, max(I, 1.01 M + max(0, P))); sell orders mirror it (the venue's rule).
        """
        mark, index = self.mark_e8, self.index_e8
        premium = sum(self._premiums) // max(1, len(self._premiums))
        highest = min(mark * 102 // 100, max(index, mark * 101 // 100 + max(0, premium)))
        lowest = max(-(-mark * 98 // 100), min(index, -(-mark * 99 // 100) + min(0, premium)))
        return -(-lowest // self.tick_e8), highest // self.tick_e8

    def price_limit_row(self) -> dict[str, str]:
        """The price limits as the venue writes them."""
        lowest, highest = self.price_limits()
        price = self.codec.padded_price
        return {"symbol": self.symbol, "buyLmt": price(highest), "sellLmt": price(lowest)}

    def ticker_fields(self) -> dict[str, str]:
        """The ticker's fields as the venue writes them."""
        price, value = self.codec.padded_price, self.values
        bids, asks = (self.books[1].levels(side, 1) or [(0, 0)] for side in (1, -1))
        day, hour = (self.candles["kline"].trailing(minutes) for minutes in (1440, 60))
        first = self._first_ticks or self.last_ticks
        change = (self.last_ticks - first) / first if first else 0.0
        interest = value.get(Field.OPEN_INTEREST, 0)
        interest_value = interest * value.get(Field.MARK_PRICE, 0) // E8
        places = self.codec.qty_places
        return {
            "tickDirection": self._direction,
            "price24hPcnt": f"{change:.6f}",
            "lastPrice": price(self.last_ticks),
            "prevPrice24h": price(first),
            "highPrice24h": price(day.high if day else self.last_ticks),
            "lowPrice24h": price(day.low if day else self.last_ticks),
            "prevPrice1h": price(hour.open if hour else self.last_ticks),
            "markPrice": rounded(value.get(Field.MARK_PRICE, 0), 2),
            "indexPrice": rounded(value.get(Field.INDEX_PRICE, 0), 2),
            "openInterest": rounded(interest, places),
            "openInterestValue": rounded(interest_value, 2),
            "singleOpenInterest": rounded(interest // 2, places),
            "singleOpenInterestValue": rounded(interest_value // 2, 2),
            "turnover24h": rounded(value.get(Field.TURNOVER_24H, 0), 4),
            "volume24h": rounded(value.get(Field.VOLUME_24H, 0), 4),
            "fundingIntervalHour": "8",
            "fundingCap": FUNDING_CAP,
            "nextFundingTime": str(value.get(Field.NEXT_FUNDING_MS, 0)),
            "fundingRate": money(value.get(Field.FUNDING_RATE, 0)),
            "bid1Price": price(bids[0][0]),
            "bid1Size": self.codec.padded_qty(bids[0][1]),
            "ask1Price": price(asks[0][0]),
            "ask1Size": self.codec.padded_qty(asks[0][1]),
            "preOpenPrice": "",
            "preQty": "",
            "curPreListingPhase": "",
        }
