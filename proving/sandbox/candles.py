"""Candles of a price: minutes, aggregated to longer intervals on request."""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime
from typing import Final

import msgspec

from market.units import DAY_MS

MINUTE_MS: Final = 60_000
#: Minute candles kept: a week.
KEPT_MINUTES: Final = 10_080
INTERVALS: Final = ("1", "3", "5", "15", "30", "60", "120", "240", "360", "720", "D", "W", "M")


class Candle(msgspec.Struct):
    """Prices in the unit that they were added in, quantity in lots, turnover at 1e-8."""

    start_ms: int
    open: int
    high: int
    low: int
    close: int
    lots: int = 0
    turnover_e8: int = 0


def candle_start(at_ms: int, interval: str) -> int:
    """Start of the candle that contains a time; ValueError for an unknown interval."""
    if interval not in INTERVALS:
        raise ValueError(f"{interval}: intervals are {', '.join(INTERVALS)}")
    if interval == "M":
        month = datetime.fromtimestamp(at_ms / 1000, UTC)
        return int(datetime(month.year, month.month, 1, tzinfo=UTC).timestamp()) * 1000
    if interval == "W":  # weeks begin on Monday; the epoch was a Thursday
        return at_ms - (at_ms + 3 * DAY_MS) % (7 * DAY_MS)
    length = DAY_MS if interval == "D" else int(interval) * MINUTE_MS
    return at_ms - at_ms % length


def candle_end(start_ms: int, interval: str) -> int:
    """The first millisecond after a candle."""
    if interval == "M":
        return candle_start(start_ms + 32 * DAY_MS, "M")
    lengths = {"W": 7 * DAY_MS, "D": DAY_MS}
    return start_ms + (lengths.get(interval) or int(interval) * MINUTE_MS)


class Candles:
    """Minute candles of one price, aggregated to longer intervals on request.

    ``unit_e8`` is the value of one lot at a price of one; 0 for prices that are not traded (mark, index,
    premium).
    """

    def __init__(self, unit_e8: int) -> None:
        self._unit_e8 = unit_e8
        self._minutes: deque[Candle] = deque(maxlen=KEPT_MINUTES)
        #: By length in minutes: start of the running minute, and the minutes before it as one candle.
        self._cache: dict[int, tuple[int, Candle | None]] = {}

    def add(self, at_ms: int, price: int, lots: int) -> None:
        """A trade or a price at a time; minutes without one repeat the last close."""
        minute = at_ms - at_ms % MINUTE_MS
        while self._minutes and self._minutes[-1].start_ms < minute:
            last = self._minutes[-1]
            self._minutes.append(Candle(last.start_ms + MINUTE_MS, *[last.close] * 4))
        if not self._minutes:
            self._minutes.append(Candle(minute, price, price, price, price))
        candle = self._minutes[-1]
        candle.high, candle.low = max(candle.high, price), min(candle.low, price)
        candle.close = price
        candle.lots += lots
        candle.turnover_e8 += price * lots * self._unit_e8

    def trailing(self, minutes: int) -> Candle | None:
        """The last minutes, the running one included, as one candle; None before the first trade."""
        if not self._minutes:
            return None
        running = self._minutes[-1]
        cached = self._cache.get(minutes)
        if cached is None or cached[0] != running.start_ms:
            cached = running.start_ms, _merged(list(self._minutes)[-minutes:-1])
            self._cache[minutes] = cached
        return _merged([candle for candle in (cached[1], running) if candle is not None])

    def latest(self, interval: str, limit: int, start_ms: int, end_ms: int) -> list[Candle]:
        """The last ``limit`` candles that start within two times (both included), oldest first."""
        groups: dict[int, list[Candle]] = {}
        for minute in self._minutes:
            groups.setdefault(candle_start(minute.start_ms, interval), []).append(minute)
        chosen = [group for start, group in groups.items() if start_ms <= start <= end_ms]
        return [
            msgspec.structs.replace(candle, start_ms=candle_start(candle.start_ms, interval))
            for candle in map(_merged, chosen[-limit:])
            if candle is not None
        ]


def _merged(minutes: list[Candle]) -> Candle | None:
    if not minutes:
        return None
    return Candle(
        minutes[0].start_ms,
        minutes[0].open,
        max(minute.high for minute in minutes),
        min(minute.low for minute in minutes),
        minutes[-1].close,
        sum(minute.lots for minute in minutes),
        sum(minute.turnover_e8 for minute in minutes),
    )
