"""Slow, readable reference implementations of book and bars: dictionaries, lists, plain formulas."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from market.columns import COLUMNS
from market.events import PLACES, Events, Field, Flag, Kind
from market.instruments import Instrument
from market.units import SECOND_NS

NAN = math.nan


class PlainBook:
    """A book of two dictionaries, price -> lots."""

    def __init__(self) -> None:
        self.sides: dict[int, dict[int, int]] = {1: {}, -1: {}}
        self.synchronised = self.in_frame = self.sound = False
        self.unheld = 0

    @property
    def valid(self) -> bool:
        return self.synchronised and not self.in_frame and self.sound

    def levels(self, side: int) -> list[tuple[int, int]]:
        """(price_ticks, qty_lots), best first."""
        return sorted(self.sides[side].items(), key=lambda level: -side * level[0])

    def apply(self, row: Any) -> int:
        """Apply one book row; returns the lots at its price before."""
        flags, side, price = int(row["flags"]), int(row["side"]), int(row["price_ticks"])
        if flags & Flag.GAP:
            self.synchronised = False
        if row["kind"] == Kind.SNAPSHOT and flags & Flag.FIRST:
            self.sides = {1: {}, -1: {}}
            self.synchronised = True
        self.in_frame = True
        held = 0
        if side:
            held = self.sides[side].pop(price, 0)
            if row["qty_lots"]:
                self.sides[side][price] = int(row["qty_lots"])
            elif not held:
                self.unheld += 1
        if flags & Flag.LAST:
            self.in_frame = False
            bids, asks = self.sides[1], self.sides[-1]
            self.sound = bool(bids and asks) and max(bids) < min(asks)
        return held


@dataclass
class Picture:
    """The book after a frame."""

    ns: int
    valid: bool
    until: int  #: valid until then, unless another frame comes
    bids: list[tuple[int, int]]
    asks: list[tuple[int, int]]
    restated: bool = False  #: by a checkpoint, over a valid book

    @property
    def mid(self) -> float:
        return (self.bids[0][0] + self.asks[0][0]) / 2

    @property
    def spread(self) -> int:
        return self.asks[0][0] - self.bids[0][0]


@dataclass
class Second:
    """The input of one bar."""

    pictures: list[Picture] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(COLUMNS, 0.0))
    lags: list[int] = field(default_factory=list)
    depths: list[float] = field(default_factory=list)
    broken: bool = False


def mlofi(before: Picture, after: Picture, level: int) -> float:
    """Cont, Kukanov and Stoikov's event at one level, written out for both sides."""

    def at(levels: list[tuple[int, int]], absent: float) -> tuple[float, float]:
        return levels[level] if level < len(levels) else (absent, 0)

    (b0, qb0), (b1, qb1) = at(before.bids, -math.inf), at(after.bids, -math.inf)
    (a0, qa0), (a1, qa1) = at(before.asks, math.inf), at(after.asks, math.inf)
    return (b1 >= b0) * qb1 - (b1 <= b0) * qb0 - (a1 <= a0) * qa1 + (a1 >= a0) * qa0


class ReferenceBars:
    """All bars of a finite stream, by the definitions of `market.columns` and `market.second`."""

    def __init__(self, instrument: Instrument, stale_after_s: float) -> None:
        self.tick, self.lot = instrument.tick_size, instrument.lot_size
        self.stale = round(stale_after_s * SECOND_NS)
        self.book = PlainBook()
        self.last = Picture(0, False, 0, [], [])
        self.seconds: dict[int, Second] = {}
        self.flow = False
        self.previous_return: float | None = None
        self.visible: dict[tuple[int, int], int] = {}
        self.best: dict[int, tuple[int, int, int]] = {}  # side -> (since, moved at, direction)
        self.lives: list[tuple[int, float]] = []
        self.prints: list[tuple[int, int, int]] = []  # (ns, side, price)
        self.volume: list[tuple[int, int, float]] = []  # (ns, side, notional)
        self.quotes: list[tuple[int, int, int, bool]] = []  # (ns, field, value, checkpoint)
        self.frame_ns: list[int] = []

    def run(self, events: Events) -> tuple[np.ndarray, np.ndarray]:
        """(t_ns, values) of every second from the first event's to the last one's."""
        ends = [int(event["receive_ns"]) // SECOND_NS * SECOND_NS + SECOND_NS for event in events]
        for t in range(ends[0], ends[-1] + SECOND_NS, SECOND_NS):
            self.seconds[t] = Second()
        pictures = {}
        for t, event in zip(ends, events, strict=True):
            self.take(event, self.seconds[t])
            pictures[t] = self.last
        rows, carried = [], Picture(0, False, 0, [], [])
        for t, second in self.seconds.items():
            rows.append(self.close(t, second, carried))
            carried = second.pictures[-1] if second.pictures else carried
        return np.array(list(self.seconds)), np.array(rows)

    def take(self, event: Any, second: Second) -> None:
        now, side, flags = int(event["receive_ns"]), int(event["side"]), int(event["flags"])
        lots, price, sums = int(event["qty_lots"]), int(event["price_ticks"]), second.sums
        match Kind(int(event["kind"])):
            case Kind.SNAPSHOT | Kind.DELTA:
                self.book_row(event, second)
            case Kind.TRADE if flags & Flag.BLOCK:
                sums[f"block_{'buy' if side > 0 else 'sell'}_qty"] += lots * self.lot
            case Kind.TRADE:
                name = "buy" if side > 0 else "sell"
                sums[f"{name}_qty"] += lots * self.lot
                sums[f"{name}_n"] += 1
                sums[f"{name}_notional"] += lots * self.lot * price * self.tick
                sums["max_trade"] = max(sums["max_trade"], lots * self.lot)
                self.prints.append((now, side, price))
                self.volume.append((now, side, lots * self.lot * price * self.tick))
                if flags & Flag.RPI:
                    sums[f"rpi_{name}_qty"] += lots * self.lot
                else:
                    level = (-side, price)
                    self.visible[level] = self.visible.get(level, 0) + lots
            case Kind.LIQUIDATION:
                name = "liq_long" if side > 0 else "liq_short"
                sums[name] += lots * self.lot * price * self.tick
            case Kind.TICKER:
                value = int(event["value"])
                self.quotes.append((now, int(event["field"]), value, bool(flags & Flag.CHECKPOINT)))

    def book_row(self, event: Any, second: Second) -> None:
        now, side, flags = int(event["receive_ns"]), int(event["side"]), int(event["flags"])
        restates = bool(flags & Flag.CHECKPOINT)
        if flags & Flag.GAP:
            second.broken = True
            self.last = Picture(now, False, 0, [], [])
            second.pictures.append(self.last)
        if event["kind"] == Kind.SNAPSHOT or flags & Flag.GAP:
            self.flow = False
        change = int(event["qty_lots"]) - self.book.apply(event)
        if side and not restates:
            second.sums["updates"] += 1
        if side and self.flow and self.last.valid:
            price = int(event["price_ticks"])
            change += self.visible.pop((side, price), 0)
            name = f"{'bid' if side > 0 else 'ask'}_{'add' if change >= 0 else 'cancel'}"
            second.sums[name] += abs(change) * self.lot
            best = (self.last.bids if side > 0 else self.last.asks)[0][0]
            if side * price >= side * best:
                second.sums[f"{name}_1"] += abs(change) * self.lot
        if flags & Flag.LAST:
            self.end_frame(event, second, now, restates)

    def end_frame(self, event: Any, second: Second, now: int, restates: bool) -> None:
        before = self.last
        bids, asks = self.book.levels(1), self.book.levels(-1)
        restated = restates and before.valid
        until = before.until if restated else now + self.stale
        if not restated:
            self.frame_ns.append(now)
        after = Picture(now, self.book.valid, until, bids, asks, restated)
        self.last = after
        second.pictures.append(after)
        if not restates:
            second.sums["frames"] += 1
            second.lags.append(now - int(event["exchange_ns"]))
            self.visible = {}
        flow, self.flow = self.flow and before.valid, after.valid
        if not after.valid:
            second.broken = True
        if after.valid and not restates:
            second.depths.append(sum(q for _, q in bids[:10] + asks[:10]) / 20)
        if not (before.valid and after.valid):
            self.previous_return = None
            self.best = {1: (now, 0, 0), -1: (now, 0, 0)}
            return
        if flow:
            for level in range(10):
                second.sums[f"ofi_{level + 1}"] += mlofi(before, after, level) * self.lot
        if not restates:
            self.moves(before, after, second, now)

    def moves(self, before: Picture, after: Picture, second: Second, now: int) -> None:
        ret = math.log(after.mid / before.mid)
        second.sums["rv"] += ret**2
        second.sums["rv_up"] += ret**2 * (ret > 0)
        second.sums["rv_down"] += ret**2 * (ret <= 0)
        if self.previous_return is not None:
            second.sums["bv"] += math.pi / 2 * abs(ret * self.previous_return)
        self.previous_return = ret
        for side in (1, -1):
            old, new = ((p.bids if side > 0 else p.asks)[0][0] for p in (before, after))
            if old == new:
                continue
            second.sums["best_changes"] += 1
            since, moved_at, direction = self.best[side]
            up = 1 if new > old else -1
            if direction == -up and now - moved_at <= SECOND_NS // 10:
                second.sums["flicker"] += 1
            self.best[side] = (now, now, up)
            self.lives.append((now, math.log(max(now - since, 1_000_000) / 1e9)))

    def close(self, t: int, second: Second, carried: Picture) -> list[float]:
        bar = {**second.sums}
        start = t - SECOND_NS
        line = [carried, *second.pictures]
        spans = []  # (seconds, picture) of valid time
        for n, picture in enumerate(line):
            begin = max(picture.ns, start)
            end = min(line[n + 1].ns if n + 1 < len(line) else t, picture.until)
            if picture.valid and end > begin:
                spans.append((end - begin, picture))
        time = sum(span for span, _ in spans)

        def mean(value: Any) -> float:
            return sum(span * value(p) for span, p in spans) / time if time else NAN

        now = line[-1]
        valid = now.valid and t <= now.until
        bar["gap"] = float(not (valid and time == SECOND_NS and not second.broken))
        frames = [ns for ns in self.frame_ns if ns < t]
        bar["stale_s"] = (t - frames[-1]) / 1e9 if frames else NAN
        bar["lag_ms"] = float(np.mean(second.lags)) / 1e6 if second.lags else NAN
        seen = [p.mid for p in second.pictures if p.valid and not p.restated]
        if carried.valid and start <= carried.until:
            seen.insert(0, carried.mid)
        bar["mid_open"] = seen[0] * self.tick if seen else NAN
        bar["mid_high"] = max(seen) * self.tick if seen else NAN
        bar["mid_low"] = min(seen) * self.tick if seen else NAN
        bar["mid_twap"] = mean(lambda p: p.mid) * self.tick
        average = bar["spread_mean"] = mean(lambda p: p.spread)
        bar["spread_std"] = math.sqrt(mean(lambda p: (p.spread - average) ** 2)) if time else NAN
        bar["spread_one"] = mean(lambda p: float(p.spread == 1))
        bar["bid_q1_mean"] = mean(lambda p: p.bids[0][1]) * self.lot
        bar["ask_q1_mean"] = mean(lambda p: p.asks[0][1]) * self.lot
        bar["depth_norm"] = float(np.mean(second.depths)) * self.lot if second.depths else NAN
        bar.update(self.shape(now) if valid else dict.fromkeys(SHAPE, NAN))

        lives = [(math.exp((ns - t) / 100e9), life) for ns, life in self.lives if ns < t]
        total = sum(weight for weight, _ in lives)
        bar["quote_life"] = sum(w * life for w, life in lives) / total if lives else NAN
        volume = bar["buy_qty"] + bar["sell_qty"]
        bar["vwap"] = (bar["buy_notional"] + bar["sell_notional"]) / volume if volume else NAN
        prints = [p for p in self.prints if p[0] < t]
        bar["last_price"] = prints[-1][2] * self.tick if prints else NAN
        bar["trade_age_s"] = (t - prints[-1][0]) / 1e9 if prints else NAN
        run = 0
        for _, side, _ in prints:
            run = run + side if run * side > 0 else side
        bar["run_length"] = run
        for tau in (1, 10, 100):
            for name, side in (("buy", 1), ("sell", -1)):
                ages = [(t - ns) / 1e9 for ns, s, _ in prints if s == side]
                bar[f"hawkes_{name}_{tau}"] = sum(math.exp(-age / tau) for age in ages)
        bar["vpin"] = self.one_sidedness(t)
        known = {number: value for ns, number, value, _ in self.quotes if ns < t}
        for name, number in QUOTES.items():
            bar[name] = known[number] / 10 ** PLACES[Field(number)] if number in known else NAN
        both = known.get(Field.MARK_PRICE, 0), known.get(Field.INDEX_PRICE, 0)
        bar["basis_bps"] = math.log(both[0] / both[1]) * 1e4 if min(both) > 0 else NAN
        rates = [(ns, value / 1e8) for ns, n, value, _ in self.quotes if n == Field.FUNDING_RATE]
        ends = [*(ns for ns, _ in rates), t][1:]
        held = [
            (min(end, t) - max(ns, start), rate)
            for (ns, rate), end in zip(rates, ends, strict=True)
            if min(end, t) > max(ns, start)
        ]
        known_ns = sum(span for span, _ in held)
        bar["funding_mean"] = sum(s * r for s, r in held) / known_ns if held else NAN
        dues = [value for ns, number, value, _ in self.quotes if ns < t and number in DUE]
        funding = dues[-1] if dues else None
        bar["funding_in_s"] = (funding * 1_000_000 - t) / 1e9 if funding else NAN
        heard = [q[0] for n, q in enumerate(self.quotes) if q[0] < t and (n == 0 or not q[3])]
        bar["ticker_age_s"] = (t - heard[-1]) / 1e9 if heard else NAN
        return [bar[name] for name in COLUMNS]

    def one_sidedness(self, t: int) -> float:
        """Mean imbalance of the buckets of 250,000 that were full before t, weights of 100 s."""
        size, total, weights = 250_000.0, 0.0, 0.0
        bucket = {1: 0.0, -1: 0.0}
        for ns, side, notional in self.volume:
            left = notional if ns < t else 0.0
            while left >= size - sum(bucket.values()):
                room = size - sum(bucket.values())
                bucket[side] += room
                left -= room
                weight = math.exp((ns - t) / 100e9)
                total += weight * abs(bucket[1] - bucket[-1])
                weights += weight * size
                bucket = {1: 0.0, -1: 0.0}
            bucket[side] += left
        return total / weights if weights else NAN

    def shape(self, book: Picture) -> dict[str, float]:
        """Everything that shows the book at the close."""
        tick, lot, mid = self.tick, self.lot, book.mid
        (bid, qb), (ask, qa) = book.bids[0], book.asks[0]
        pairs = list(zip(book.bids[:5], book.asks[:5], strict=False))
        weight = sum(b[1] + a[1] for b, a in pairs)
        out = {
            "mid_close": mid * tick,
            "micro_close": (qb * ask + qa * bid) / (qa + qb) * tick,
            "vamp_close": sum(b[0] * a[1] + a[0] * b[1] for b, a in pairs) / weight * tick,
            "spread_ticks": float(book.spread),
            "spread_bps": book.spread / mid * 1e4,
        }
        truncated, near = False, 0
        for side, name, levels in ((1, "bid", book.bids), (-1, "ask", book.asks)):
            best = levels[0][0]
            distance = [side * (mid - price) / mid * 1e4 for price, _ in levels]
            notional = [price * tick * lots * lot for price, lots in levels]
            for n in (1, 5, 10):
                out[f"{name}_q{n}"] = sum(lots for _, lots in levels[:n]) * lot
            for band in (1, 2, 3):
                inside = [v for d, v in zip(distance, notional, strict=True) if d <= band]
                out[f"{name}_d{band}"] = sum(inside) if distance[-1] >= band else NAN
                truncated |= distance[-1] < band
            out[f"{name}_depth"] = sum(notional)
            out[f"{name}_reach"] = distance[-1]
            out[f"{name}_slope"] = out[f"{name}_convexity"] = NAN
            if len(levels) > 1:
                x = np.array(distance)
                fit, *_ = np.linalg.lstsq(np.c_[x, x**2], np.cumsum(notional), rcond=None)
                out[f"{name}_slope"], out[f"{name}_convexity"] = fit
            out[f"{name}_gap"] = abs(best - levels[1][0]) if len(levels) > 1 else NAN
            near += sum(abs(price - best) < 50 for price, _ in levels)
            taker = "sell" if side > 0 else "buy"
            for label, amount in (("10k", 10_000.0), ("100k", 100_000.0), ("1m", 1_000_000.0)):
                left, got = amount, 0.0
                for (price, _), value in zip(levels, notional, strict=True):
                    got += min(left, value) / (price * tick)
                    left = max(0.0, left - value)
                cost = -side * (amount / got / (mid * tick) - 1) * 1e4
                out[f"sweep_{taker}_{label}"] = NAN if left else cost
                truncated |= left > 0
        out["empty_share"] = 1 - near / 100
        out["truncated"] = float(truncated)
        return out


SHAPE = [
    *("mid_close", "micro_close", "vamp_close", "spread_ticks", "spread_bps", "empty_share"),
    "truncated",
    *(
        f"{side}_{what}"
        for side in ("bid", "ask")
        for what in [
            "q1",
            "q5",
            "q10",
            "d1",
            "d2",
            "d3",
            "depth",
            "reach",
            "slope",
            "convexity",
            "gap",
        ]
    ),
    *(f"sweep_{side}_{size}" for side in ("buy", "sell") for size in ("10k", "100k", "1m")),
]

DUE = (Field.NEXT_FUNDING_MS, Field.EXPECTED_FUNDING_MS)

QUOTES = {
    "mark": Field.MARK_PRICE,
    "index_price": Field.INDEX_PRICE,
    "funding_rate": Field.FUNDING_RATE,
    "open_interest": Field.OPEN_INTEREST,
    "turnover_24h": Field.TURNOVER_24H,
}
