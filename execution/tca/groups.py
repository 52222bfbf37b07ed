"""Statistics of many parents: means with bootstrap intervals, paired differences, groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import groupby
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from execution.tca.rows import MARKOUTS_S, PARTS, Row, Shortfall


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """A mean with its 95 % bootstrap interval; ``n`` counts instants, not parents."""

    mean: float
    low: float
    high: float
    n: int


def interval(values: Sequence[float], samples: int = 2000) -> Interval:
    """Mean of a time-ordered series and its interval from a circular block bootstrap.

    Blocks of about n^(1/3) preserve autocorrelation (Politis and Romano 1992). NaN bounds below two
    values. The same values give the same interval (fixed seed).
    """
    series: npt.NDArray[np.float64] = np.asarray(values, np.float64)
    n = len(series)
    if n < 2:
        return Interval(
            mean=float(series.mean()) if n else math.nan, low=math.nan, high=math.nan, n=n
        )
    block = max(1, round(n ** (1 / 3)))
    rng = np.random.Generator(np.random.Philox(key=n))
    starts = rng.integers(0, n, (samples, -(-n // block)))
    places = (starts[:, :, None] + np.arange(block)) % n
    means = series[places.reshape(samples, -1)[:, :n]].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(mean=float(series.mean()), low=float(low), high=float(high), n=n)


class Summary(Row, frozen=True, kw_only=True):
    """Mean cost of a group of parents. ``side`` 0 is both sides, the pair at one instant being one
    observation: the market's drift cancels out of it. ``low_bps`` and ``high_bps`` bound the mean
    total at 95 %; ``instants`` is the number of observations."""

    symbol: str
    size_usdt: float
    algorithm: str
    venue: str
    side: int
    parents: int
    instants: int
    total_bps: float
    low_bps: float
    high_bps: float
    delay_bps: float
    spread_bps: float
    impact_bps: float
    timing_bps: float
    opportunity_bps: float
    fees_bps: float
    fill_rate: float
    maker_share: float
    time_to_fill_s: float
    markout_1s_bps: float
    markout_5s_bps: float
    markout_30s_bps: float
    markout_60s_bps: float


_MEANS: Final = (
    *PARTS,
    "fill_rate",
    "maker_share",
    "time_to_fill_s",
    *(f"markout_{h}s_bps" for h in MARKOUTS_S),
)


def summarise(rows: Iterable[Shortfall], *, by_size: bool = True) -> list[Summary]:
    """Mean all-in cost in bps by symbol, size, algorithm, venue and side (+1, -1 and 0 for both).

    Parents have equal weight whatever their size. With ``by_size`` false sizes are pooled (for parents
    whose sizes all differ).
    """

    def group(row: Shortfall) -> tuple[Any, ...]:
        return row.symbol, row.size_usdt if by_size else 0.0, row.algorithm, row.venue

    summaries = []
    for (symbol, size, algorithm, venue), rows_of in groupby(sorted(rows, key=group), group):
        members = sorted(rows_of, key=lambda r: r.decision_ns)
        for side in (0, 1, -1):
            chosen = [r for r in members if side in (0, r.side)]
            if not chosen:
                continue
            total = interval(_by_instant(chosen, lambda r: r.total_bps))
            means = {name: _mean([getattr(r, name) for r in chosen]) for name in _MEANS}
            summaries.append(
                Summary(
                    symbol=symbol,
                    size_usdt=size if by_size else _mean([r.size_usdt for r in chosen]),
                    algorithm=algorithm,
                    venue=venue,
                    side=side,
                    parents=len(chosen),
                    instants=total.n,
                    total_bps=total.mean,
                    low_bps=total.low,
                    high_bps=total.high,
                    **means,
                )
            )
    return summaries


def difference(rows: Iterable[Shortfall], baseline: Iterable[Shortfall]) -> Interval:
    """Paired mean difference of cost, ``rows`` minus the same parents in ``baseline``, in bps.

    Parents are paired by symbol, size, instant and side; the others are left out.
    """

    def key(row: Shortfall) -> tuple[Any, ...]:
        return row.symbol, row.size_usdt, row.decision_ns, row.side

    base = {key(row): row.total_bps for row in baseline}
    pairs = sorted((row for row in rows if key(row) in base), key=lambda r: r.decision_ns)
    return interval(_by_instant(pairs, lambda row: row.total_bps - base[key(row)]))


def _by_instant(rows: Sequence[Shortfall], value: Callable[[Shortfall], float]) -> list[float]:
    """Mean of a value over the parents of each instant, in time order."""
    return [
        _mean([value(row) for row in group])
        for _, group in groupby(rows, key=lambda row: row.decision_ns)
    ]


def _mean(values: Sequence[float]) -> float:
    """Mean of the values that are not NaN; NaN without any."""
    real = [value for value in values if not math.isnan(value)]
    return math.fsum(real) / len(real) if real else math.nan


# -- groups of anything ----------------------------------------------------------------------------

T = TypeVar("T")


def third(value: float, bounds: tuple[float, float] | None) -> str:
    """Which third a value lies in; ``unknown`` for NaN or without bounds."""
    if bounds is None or math.isnan(value):
        return "unknown"
    return (
        "lower third" if value <= bounds[0] else "middle" if value <= bounds[1] else "upper third"
    )


def thirds(values: Iterable[float]) -> tuple[float, float] | None:
    """The bounds between the thirds of known values; None below three different ones."""
    known = [value for value in values if not math.isnan(value)]
    if len(set(known)) < 3:
        return None
    low, high = np.quantile(known, (1 / 3, 2 / 3))
    return float(low), float(high)


def grouped(
    members: Iterable[T],
    key: Callable[[T], Hashable],
    instant: Callable[[T], Any],
    value: Callable[[T], float],
    weight: Callable[[T], float] = lambda _: 1.0,
) -> dict[Any, Interval]:
    """Mean of a value by group, with its interval; NaN values are left out.

    Members of one instant are one observation, their weighted mean, because their outcomes are
    dependent. ``n`` counts instants.
    """
    series: dict[Hashable, dict[Any, tuple[float, float]]] = {}
    for member in members:
        number = value(member)
        if not math.isnan(number):
            instants = series.setdefault(key(member), {})
            total, weights = instants.get(instant(member), (0.0, 0.0))
            own = weight(member)
            instants[instant(member)] = total + own * number, weights + own
    return {
        name: interval([total / weights for _, (total, weights) in sorted(instants.items())])
        for name, instants in series.items()
    }
