"""A histogram of durations, of constant size: percentiles within 9 %, whatever the range."""

from __future__ import annotations

from typing import Any, Final

#: Buckets for every doubling.
_STEPS: Final = 8
#: What is recent is of the last one or two of these (seconds).
_SPAN_S: Final = 60.0


class Histogram:
    """Counts durations (ns) in buckets whose bounds grow by an eighth of a doubling."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.count = self.most_ns = 0
        self._before: list[dict[int, int]] = [{}, {}]  # as of the last turn but one, and the last
        self._turned_s = 0.0

    def add(self, ns: int) -> None:
        """Count a duration."""
        bits = ns.bit_length()
        bucket = bits * _STEPS + (ns >> bits - 4 & 7) if bits > 3 else ns
        self._counts[bucket] = self._counts.get(bucket, 0) + 1
        self.count += 1
        self.most_ns = max(self.most_ns, ns)

    def percentile_us(self, percent: float) -> float:
        """The bound (µs) below which so many percent are; 0 without any."""
        left = self.count * percent / 100
        for bucket, bound_us, _ in self._rows():
            left -= self._counts[bucket]
            if left <= 0:
                return min(bound_us, self.most_ns / 1e3)
        return 0.0

    def recent(self, now_s: float) -> Histogram:
        """What was added in the last one or two minutes, if this is asked every minute at least; ``now_s`` of any
        clock that runs on."""
        if now_s - self._turned_s >= _SPAN_S:
            self._before, self._turned_s = [self._before[1], dict(self._counts)], now_s
        found, before = Histogram(), self._before[0]
        found._counts = {b: n - before.get(b, 0) for b, n in self._counts.items()}
        found.count, found.most_ns = sum(found._counts.values()), self.most_ns
        return found

    def buckets(self) -> list[tuple[float, int]]:
        """(upper bound in µs, count) of every bucket that has any, smallest first."""
        return [(bound_us, count) for _, bound_us, count in self._rows()]

    def _rows(self) -> list[tuple[int, float, int]]:
        return [(b, _bound_ns(b) / 1e3, self._counts[b]) for b in sorted(self._counts)]

    def summary(self) -> dict[str, Any]:
        """p50, p99, p99.9 and the most in µs, and how many."""
        figures = {f"p{p:g}": round(self.percentile_us(p), 1) for p in (50, 99, 99.9)}
        return figures | {"most": round(self.most_ns / 1e3, 1), "n": self.count}


def _bound_ns(bucket: int) -> int:
    bits, step = divmod(bucket, _STEPS)
    return bucket + 1 if bucket < 4 * _STEPS else _STEPS + step + 1 << bits - 4
