"""What the public may know of one symbol: books, trades, ticker and candles, from the market's rows.

The tape keeps each topic's book as it was last published, so that a reader who comes late begins
where the stream stands; frames go to whoever listens. The books of 50 and 200 levels and the best
prices are the market's own topics; the one of 1000 is made here, five times a second.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec
import numpy as np

from execution.account import unit_e8
from market.events import EVENT, Events, Field, Flag, Kind
from market.instruments import Instrument
from market.units import E8, MS_NS
from proving.sandbox.candles import Candles, end_of
from proving.sandbox.figures import Figures, money, rounded
from proving.synthetic.encode import Encoder
from proving.synthetic.publication import TOPICS

DEPTHS: Final = (1, 50, 200, 1000)
DEEP: Final = 1000
DEEP_NS: Final = 200_000_000
TICKER_NS: Final = 100_000_000
#: Published every third time that the ticker is.
PRICE_LIMIT_NS: Final = 300_000_000
#: The best prices are said again after so long without a change.
REPEAT_NS: Final = 3_000_000_000
RECENT_TRADES: Final = 1000
INTEREST_MS: Final = 300_000
#: Seconds over which the price band takes the mean of mid less mark.
PREMIUM_S: Final = 30
FUNDING_CAP: Final = "0.00333"


Listener = Callable[[str, bytes], None]


class _Book:
    """One topic's book as last published."""

    def __init__(self, instrument: Instrument, depth: int) -> None:
        self.topic = f"orderbook.{depth}.{instrument.symbol}"
        self.encoder = Encoder(instrument, depth)
        self.sides: dict[int, dict[int, int]] = {1: {}, -1: {}}
        self.update_id = self.exchange_ns = self.publish_ns = 0
        self.origin = 0  #: how much more the market's update ids are

    def take(self, rows: Events) -> None:
        """Apply whole frames."""
        names = ("kind", "side", "flags", "price_ticks", "qty_lots")
        columns = [rows[name].tolist() for name in names]
        for kind, side, flags, ticks, lots in zip(*columns, strict=True):
            if kind == Kind.SNAPSHOT and flags & Flag.FIRST:
                self.sides = {1: {}, -1: {}}
            if side and lots:
                self.sides[side][ticks] = lots
            elif side:
                self.sides[side].pop(ticks, None)
        last = rows[-1]
        self.update_id = int(last["update_id"])
        self.exchange_ns, self.publish_ns = int(last["exchange_ns"]), int(last["publish_ns"])

    def levels(self, side: int, limit: int) -> list[tuple[int, int]]:
        """(ticks, lots), best first."""
        return sorted(self.sides[side].items(), reverse=side > 0)[:limit]

    def rows(self, kind: Kind, levels: list[tuple[int, int, int]]) -> Events:
        """A frame of (side, ticks, lots) at the book's times."""
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
        """The whole book as a frame."""
        levels = [(side, *level) for side in (1, -1) for level in self.levels(side, DEEP)]
        return next(self.encoder.frames(self.rows(Kind.SNAPSHOT, levels)))[1]


class Tape:
    """One symbol's public data; ``listen`` is called with each topic's frames, in order."""

    def __init__(self, instrument: Instrument, listen: Listener) -> None:
        self.instrument, self.symbol = instrument, instrument.symbol
        self.figures = Figures(instrument)
        self.values: dict[int, int] = {}  #: ticker values by `events.Field`
        self.trades: deque[dict[str, Any]] = deque(maxlen=RECENT_TRADES)
        self.tick_e8 = self.figures.tick_e8
        self.last_ticks = 0
        self._span = (0, 0)  #: lowest and highest trade since it was last taken, ticks
        unit = unit_e8(instrument)
        self.candles = {
            "kline": Candles(unit),
            "mark-price-kline": Candles(0),
            "index-price-kline": Candles(0),
            "premium-index-price-kline": Candles(0),
        }
        self.funding: deque[tuple[int, int]] = deque(maxlen=200)  #: (ms, rate at 1e-8), newest last
        #: (ms, open interest at 1e-8) every five minutes for a week, newest last
        self.interests: deque[tuple[int, int]] = deque(maxlen=2016)
        self.books = {depth: _Book(instrument, depth) for depth in DEPTHS}
        self._listen = listen
        self._prints = Encoder(instrument)
        self._premiums: deque[int] = deque(maxlen=PREMIUM_S)
        self._best: tuple[Any, ...] = ()
        self._best_frame, self._best_ns = b"", 0
        self._ticker: dict[str, str] = {}
        self._direction = "ZeroPlusTick"
        self._opening_ticks = 0

    # -- what happens ------------------------------------------------------------------------------

    def take(self, rows: Events) -> None:
        """Rows of the market's topics, in its order."""
        if not len(rows):
            return
        for place, (depth, _) in enumerate(TOPICS):
            frames = rows[(rows["kind"] <= Kind.DELTA) & (rows["pad"] == place)]
            if len(frames):
                self._take_book(depth, frames)
        trades = rows[rows["kind"] == Kind.TRADE]
        if len(trades):
            self._take_trades(trades)
        fallen = rows[rows["kind"] == Kind.LIQUIDATION]
        for _, frame in self._prints.frames(fallen):
            self._listen(f"allLiquidation.{self.symbol}", frame)
        ticker = rows[rows["kind"] == Kind.TICKER]
        if len(ticker):
            self._take_ticker(ticker)

    def _take_book(self, depth: int, rows: Events) -> None:
        book = self.books[depth]
        rows["update_id"] -= book.origin
        book.take(rows)
        if depth > 1:
            for _, frame in book.encoder.frames(rows):
                self._listen(book.topic, frame)
            return
        # Of the best prices only changes are news; the venue repeats the last after a silence.
        ends = np.flatnonzero(rows["flags"] & Flag.LAST).tolist()
        start = 0
        for end, (_, frame) in zip(ends, book.encoder.frames(rows), strict=True):
            part = rows[start : end + 1]
            start = end + 1
            best = tuple(part["price_ticks"].tolist() + part["qty_lots"].tolist())
            now_ns = int(part["exchange_ns"][0])
            if best != self._best:
                self._best, self._best_frame, self._best_ns = best, frame, now_ns
                self._listen(book.topic, frame)
            elif now_ns - self._best_ns >= REPEAT_NS:
                self._best_ns = now_ns
                self._listen(book.topic, self._best_frame)

    def _take_trades(self, rows: Events) -> None:
        for _, frame in self._prints.frames(rows):
            self._listen(f"publicTrade.{self.symbol}", frame)
            self.trades.extend(msgspec.json.decode(frame)["data"])
        self._direction = self.trades[-1]["L"]
        candles = self.candles["kline"]
        columns = [rows[name].tolist() for name in ("exchange_ns", "price_ticks", "qty_lots")]
        for exchange_ns, ticks, lots in zip(*columns, strict=True):
            candles.add(exchange_ns // MS_NS, ticks, lots)
        self.last_ticks = int(rows["price_ticks"][-1])
        prices = rows["price_ticks"]
        lowest, highest = self._span
        self._span = (
            min(lowest or self.last_ticks, int(prices.min())),
            max(highest, int(prices.max())),
        )
        self._opening_ticks = self._opening_ticks or int(rows["price_ticks"][0])

    def _take_ticker(self, rows: Events) -> None:
        self.values.update(zip(rows["field"].tolist(), rows["value_e8"].tolist(), strict=True))
        at_ms = int(rows["exchange_ns"][-1]) // MS_NS
        self.candles["mark-price-kline"].add(at_ms, self.mark_e8, 0)
        self.candles["index-price-kline"].add(at_ms, self.index_e8, 0)
        premium = (self._mid_e8() - self.index_e8) * E8 // self.index_e8
        self.candles["premium-index-price-kline"].add(at_ms, premium, 0)
        begun_ms = at_ms - at_ms % INTEREST_MS
        if not self.interests or self.interests[-1][0] < begun_ms:
            self.interests.append((begun_ms, self.values.get(Field.OPEN_INTEREST, 0)))
        self._premiums.append(self._mid_e8() - self.mark_e8)

    def deepen(self, bids: list[tuple[int, int]], asks: list[tuple[int, int]], now_ns: int) -> None:
        """The market's levels as the next frame of the deep book."""
        book = self.books[DEEP]
        first = not book.update_id
        changes: list[tuple[int, int, int]] = []
        for side, levels in ((1, bids), (-1, asks)):
            shown, held = dict(levels), book.sides[side]
            gone = [(ticks, 0) for ticks in held.keys() - shown.keys()]
            news = [(ticks, lots) for ticks, lots in levels if held.get(ticks) != lots]
            ordered = sorted(gone + news, reverse=side > 0)
            changes += [(side, ticks, lots) for ticks, lots in ordered]
        if not changes and not first:
            return
        book.update_id += 1
        book.exchange_ns, book.publish_ns = now_ns, now_ns + MS_NS
        rows = book.rows(Kind.SNAPSHOT if first else Kind.DELTA, changes)
        book.take(rows)
        for _, frame in book.encoder.frames(rows):
            self._listen(book.topic, frame)

    def restart(self) -> None:
        """Every book begins anew with a snapshot of update id 1, as after a restart of the service."""
        for depth, book in self.books.items():
            if not book.update_id:
                continue
            book.origin += book.update_id - 1
            book.update_id = 1
            frame = book.snapshot()
            if depth == 1:
                self._best_frame = frame
            self._listen(book.topic, frame)

    def tick(self, now_ns: int) -> None:
        """The ticker's next frame: what has changed since the last."""
        fields = self.ticker()
        news = {name: text for name, text in fields.items() if self._ticker.get(name) != text}
        kind = "delta" if self._ticker else "snapshot"
        self._ticker = fields
        if news:
            self._listen(f"tickers.{self.symbol}", self._ticker_frame(kind, news, now_ns))
        if now_ns % PRICE_LIMIT_NS == 0:
            topic = f"priceLimit.{self.symbol}"
            limits = {"topic": topic, "data": self.price_limit(), "ts": now_ns // MS_NS}
            self._listen(topic, msgspec.json.encode(limits))

    def _ticker_frame(self, kind: str, fields: dict[str, str], now_ns: int) -> bytes:
        frame = {
            "topic": f"tickers.{self.symbol}",
            "type": kind,
            "data": {"symbol": self.symbol, **fields},
            "cs": self.sequence(now_ns),
            "ts": now_ns // MS_NS,
        }
        return msgspec.json.encode(frame)

    def candle_frame(self, interval: str, now_ns: int) -> bytes | None:
        """The running candle of an interval, or the one that has just ended; None before a trade."""
        now_ms = now_ns // MS_NS
        found = self.candles["kline"].latest(interval, 2, 0, now_ms)
        if not found:
            return None
        rows = [candle for candle in found if now_ms - end_of(candle.start_ms, interval) < 1000]
        data = [
            {
                "start": candle.start_ms,
                "end": end_of(candle.start_ms, interval) - 1,
                "interval": interval,
                "open": self.figures.price(candle.opening),
                "close": self.figures.price(candle.close),
                "high": self.figures.price(candle.high),
                "low": self.figures.price(candle.low),
                "volume": self.figures.qty(candle.lots),
                "turnover": money(candle.turnover_e8),
                "confirm": now_ms >= end_of(candle.start_ms, interval),
                "timestamp": now_ms,
            }
            for candle in rows
        ]
        topic = f"kline.{interval}.{self.symbol}"
        frame = {"topic": topic, "data": data, "ts": now_ms, "type": "snapshot"}
        return msgspec.json.encode(frame)

    def liquidate(self, side: int, ticks: int, lots: int, now_ns: int) -> None:
        """Tell of a liquidated position; ``side`` is the position's."""
        row = np.zeros(1, EVENT)
        row["kind"], row["side"], row["flags"] = Kind.LIQUIDATION, side, Flag.LAST
        row["price_ticks"], row["qty_lots"] = ticks, lots
        row["exchange_ns"] = row["publish_ns"] = row["receive_ns"] = now_ns
        self.take(row)

    def take_span(self) -> tuple[int, int]:
        """Lowest and highest price of trades since the last time, ticks; the last when there is none."""
        lowest, highest = self._span if self._span[0] else (self.last_ticks, self.last_ticks)
        self._span = (0, 0)
        return lowest, highest

    # -- what is known -----------------------------------------------------------------------------

    def snapshot(self, topic: str, now_ns: int) -> bytes | None:
        """What a reader of a topic is sent first; None where a topic begins with its next frame."""
        kind = topic.partition(".")[0]
        if kind == "orderbook":
            book = self.books[int(topic.split(".")[1])]
            return book.snapshot() if book.update_id else None
        if kind == "tickers" and self._ticker:
            return self._ticker_frame("snapshot", self._ticker, now_ns)
        return None

    def sequence(self, now_ns: int) -> int:
        """The cross sequence at a time: frames of all topics are in its order."""
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

    def band(self) -> tuple[int, int]:
        """Lowest price of a sell and highest of a buy order, ticks.

        With M the mark, I the index and P the mean of mid less mark over 30 s: a buy order may pay
        min(1.02 M, max(I, 1.01 M + max(0, P))), and sell orders mirror it.
        """
        mark, index = self.mark_e8, self.index_e8
        premium = sum(self._premiums) // max(1, len(self._premiums))
        highest = min(mark * 102 // 100, max(index, mark * 101 // 100 + max(0, premium)))
        lowest = max(-(-mark * 98 // 100), min(index, -(-mark * 99 // 100) + min(0, premium)))
        return -(-lowest // self.tick_e8), highest // self.tick_e8

    def price_limit(self) -> dict[str, str]:
        """The price band as the venue tells of it."""
        lowest, highest = self.band()
        price = self.figures.padded_price
        return {"symbol": self.symbol, "buyLmt": price(highest), "sellLmt": price(lowest)}

    def ticker(self) -> dict[str, str]:
        """The ticker's fields as the venue writes them."""
        price, value = self.figures.padded_price, self.values
        bids, asks = (self.books[1].levels(side, 1) or [(0, 0)] for side in (1, -1))
        day, hour = self.candles["kline"].over(1440), self.candles["kline"].over(60)
        opening = self._opening_ticks or self.last_ticks
        change = (self.last_ticks - opening) / opening if opening else 0.0
        interest = value.get(Field.OPEN_INTEREST, 0)
        interest_value = interest * value.get(Field.MARK_PRICE, 0) // E8
        places = self.figures.qty_places
        return {
            "tickDirection": self._direction,
            "price24hPcnt": f"{change:.6f}",
            "lastPrice": price(self.last_ticks),
            "prevPrice24h": price(opening),
            "highPrice24h": price(day.high if day else self.last_ticks),
            "lowPrice24h": price(day.low if day else self.last_ticks),
            "prevPrice1h": price(hour.opening if hour else self.last_ticks),
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
            "bid1Size": self.figures.padded_qty(bids[0][1]),
            "ask1Price": price(asks[0][0]),
            "ask1Size": self.figures.padded_qty(asks[0][1]),
            "preOpenPrice": "",
            "preQty": "",
            "curPreListingPhase": "",
        }
