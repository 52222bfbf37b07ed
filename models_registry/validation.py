"""Purged walk-forward and combinatorial splits, information coefficient, stationary bootstrap.

The training span expands, its last part is for calibration, the test block follows. `|` is a UTC
midnight, `.` is purged: decisions whose labels overlap the next span.

    day      0      1      2      3      4      5
    fold 0   |TTTTTTTTTTTTT.CCCC.|######|
    fold 1   |TTTTTTTTTTTTTTTTTT.CCCCC.|######|
    fold 2   |TTTTTTTTTTTTTTTTTTTTTTT.CCCCCC.|######|

The label of a decision at t runs from t + 1 s to t + 1 s + h, so t is in the training span only if
t + 1 s + h_max is not after the first instant of the calibration span, and in that one only if it is not
after the first of the test block (purging: López de Prado 2018, ch. 7). No embargo is needed, because
training data never follow test data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from market.units import DAY_NS, SECOND_NS, utc_date

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


#: Seconds from the decision to the label's first price.
DELAY_S: Final = 1

#: Seconds per time bin of the bootstrap; its blocks are many bins long.
BIN_S: Final = 300


class TimeSpan(msgspec.Struct, frozen=True):
    """Decision times t with ``after_ns < t <= until_ns``, as the rows of a partition."""

    after_ns: int
    until_ns: int

    def mask(self, t_ns: Int) -> Mask:
        """Which times are in the span, (n,)."""
        return np.asarray((t_ns > self.after_ns) & (t_ns <= self.until_ns))

    def part(self, after_ns: int, until_ns: int) -> TimeSpan:
        """What of the span lies between these times."""
        return TimeSpan(after_ns, until_ns)


class Fold(msgspec.Struct, frozen=True, kw_only=True):
    """Training, calibration and test span of one fold, purged."""

    train: TimeSpan
    calibration: TimeSpan
    test: TimeSpan
    #: UTC dates of the test block that have rows.
    test_dates: tuple[str, ...]


def label_reach_ns(horizon_s: int) -> int:
    """Time from a decision to the end of its label: the purge length."""
    return (DELAY_S + horizon_s) * SECOND_NS


def split_tail(
    t_ns: Int, span: TimeSpan, share: float, max_horizon_s: int
) -> tuple[TimeSpan, TimeSpan]:
    """Split a span into a head and a tail with ``share`` of its decisions; the head is purged."""
    inside = np.sort(t_ns[span.mask(t_ns)])
    if not len(inside):
        return span.part(span.after_ns, span.after_ns), span.part(span.after_ns, span.until_ns)
    first = int(inside[min(len(inside) - 1, int(len(inside) * (1.0 - share)))])
    head = span.part(span.after_ns, first - label_reach_ns(max_horizon_s))
    return head, span.part(first - 1, span.until_ns)


def walk_forward(
    t_ns: Int,
    *,
    min_train_days: int,
    max_test_blocks: int,
    calibration_share: float,
    max_horizon_s: int,
) -> tuple[Fold, ...]:
    """Folds over decision times ``t_ns`` (n,), in any order, duplicates allowed.

    Dates without decisions do not count. A test block is one date, or as many as keep the number of
    blocks within ``max_test_blocks``. No folds without more dates than ``min_train_days``. Free of
    leakage only if ``max_horizon_s`` is the longest horizon of any label used.
    """
    days = distinct((t_ns - 1) // DAY_NS)
    testable = days[min_train_days:]
    if not len(testable):
        return ()
    size = math.ceil(len(testable) / max_test_blocks)
    folds = []
    for block in (testable[i : i + size] for i in range(0, len(testable), size)):
        test = TimeSpan(int(block[0]) * DAY_NS, (int(block[-1]) + 1) * DAY_NS)
        past = TimeSpan(
            int(days[0]) * DAY_NS,
            test.after_ns - label_reach_ns(max_horizon_s),
        )
        train, calibration = split_tail(t_ns, past, calibration_share, max_horizon_s)
        folds.append(
            Fold(
                train=train,
                calibration=calibration,
                test=test,
                test_dates=tuple(utc_date(int(day) * DAY_NS) for day in block),
            )
        )
    return tuple(folds)


class Combination(msgspec.Struct, frozen=True, kw_only=True):
    """One split of combinatorial purged cross-validation: row numbers, by time.

    ``groups`` are tested, and ``paths[i]`` is the path that the predictions for ``groups[i]`` belong to.
    """

    train: Int
    test: Int
    groups: tuple[int, ...]
    paths: tuple[int, ...]


def combinatorial_purged(
    t_ns: Int, *, groups: int, test_groups: int, max_horizon_s: int, embargo_s: int = 0
) -> Iterator[Combination]:
    """The C(N, k) splits of decisions at ``t_ns`` (n,) into N groups of time, k of them for testing.

    Their k·C(N, k)/N paths each hold every group once (López de Prado 2018, ch. 12). A training decision is
    dropped if its label overlaps one of the test span before or after it (`label_reach_ns`), or if it
    starts less than ``embargo_s`` after the end of the test labels; the embargo ought to be at least
    the longest look-back of a feature. ValueError for groups that make no split.
    """
    if not 0 < test_groups < groups <= len(t_ns):
        raise ValueError(f"{test_groups} of {groups} groups of {len(t_ns)} decisions make no split")
    order = np.argsort(t_ns, kind="stable")
    ordered = t_ns[order]
    times = distinct(ordered)
    firsts = np.array([part[0] for part in np.array_split(times, groups)])
    group = np.searchsorted(firsts, ordered, side="right") - 1
    reach, embargo = label_reach_ns(max_horizon_s), embargo_s * SECOND_NS
    tested = [0] * groups
    for chosen in combinations(range(groups), test_groups):
        kept = ~np.isin(group, chosen)
        for number in chosen:
            inside = ordered[group == number]
            kept &= (ordered + reach <= inside[0]) | (ordered >= inside[-1] + reach + embargo)
        yield Combination(
            train=order[kept],
            test=order[np.isin(group, chosen)],
            groups=chosen,
            paths=tuple(tested[number] for number in chosen),
        )
        for number in chosen:
            tested[number] += 1


class Decisions(TimeSpan, frozen=True):
    """The decisions at ``times`` (n,), rising; others may lie between them."""

    times: Int

    def mask(self, t_ns: Int) -> Mask:
        return np.isin(t_ns, self.times)

    def part(self, after_ns: int, until_ns: int) -> Decisions:
        inside = (self.times > after_ns) & (self.times <= until_ns)
        return Decisions(after_ns, until_ns, self.times[inside])


def combinatorial_folds(
    t_ns: Int,
    *,
    groups: int,
    test_groups: int,
    calibration_share: float,
    max_horizon_s: int,
    embargo_s: int,
) -> tuple[tuple[Fold, ...], ...]:
    """The paths of `combinatorial_purged` as folds, one for each group of time.

    Folds of one split share their spans for training and calibration: of its training decisions the last
    ``calibration_share`` calibrates, purged. ValueError as there, or when nothing is left to train on.
    """
    parts = np.array_split(distinct(t_ns), max(groups, 1))
    paths: dict[int, dict[int, Fold]] = {}
    for split in combinatorial_purged(
        t_ns,
        groups=groups,
        test_groups=test_groups,
        max_horizon_s=max_horizon_s,
        embargo_s=embargo_s,
    ):
        past = distinct(t_ns[split.train])
        tail = past[int(len(past) * (1.0 - calibration_share)) :]
        head = past[past + label_reach_ns(max_horizon_s) <= tail[:1].sum()]
        if not len(head):
            raise ValueError(f"groups {split.groups} leave nothing to train on")
        train, calibration = (
            Decisions(int(times[0]) - 1, int(times[-1]), times) for times in (head, tail)
        )
        for group, path in zip(split.groups, split.paths, strict=True):
            times = parts[group]
            paths.setdefault(path, {})[group] = Fold(
                train=train,
                calibration=calibration,
                test=TimeSpan(int(times[0]) - 1, int(times[-1])),
                test_dates=tuple(
                    utc_date(int(day) * DAY_NS) for day in distinct((times - 1) // DAY_NS)
                ),
            )
    return tuple(
        tuple(paths[path][group] for group in sorted(paths[path])) for path in sorted(paths)
    )


def normal_scores(values: Float) -> Float:
    """Ranks as standard normal quantiles, mean 0 and variance 1 (van der Waerden); NaN stays NaN.

    Ties share their mean rank; a constant gives zeros.
    """
    from scipy.special import ndtri
    from scipy.stats import rankdata

    out = np.full(len(values), np.nan)
    known = ~np.isnan(values)
    count = int(known.sum())
    if count:
        scores = ndtri((rankdata(values[known]) - 0.5) / count)
        spread = float(scores.std())
        out[known] = (scores - scores.mean()) / spread if spread > 0 else 0.0
    return out


def mean_known(values: Float) -> float:
    """The mean of the values that are not NaN; 0 without one."""
    return 0.0 if np.isnan(values).all() else float(np.nanmean(values))


class Coefficient(msgspec.Struct, frozen=True, kw_only=True):
    """Correlations of prediction and realised return; ``rank`` is that of their normal scores.

    ``n_eff`` is the effective number of independent observations.
    """

    rank: float
    pearson: float
    rows: int
    n_eff: float


def information_coefficient(
    predicted: Float, realised: Float, t_ns: Int, horizon_s: int
) -> Coefficient:
    """IC over rows (n,) without NaN; 0 if either side is constant.

    ``n_eff`` is the covered time over the horizon: overlapping labels are not independent, nor are
    two symbols in the same second.
    """
    known = ~(np.isnan(predicted) | np.isnan(realised))
    p, y = predicted[known], realised[known]
    n_eff = effective_count(t_ns[known], horizon_s)
    if len(p) < 2 or p.std() == 0 or y.std() == 0:
        return Coefficient(rank=0.0, pearson=0.0, rows=len(p), n_eff=n_eff)
    return Coefficient(
        rank=float(np.mean(normal_scores(p) * normal_scores(y))),
        pearson=float(np.corrcoef(p, y)[0, 1]),
        rows=len(p),
        n_eff=n_eff,
    )


def distinct(values: Int) -> Int:
    """The distinct values, in order; on times `numpy.unique` hashes, which takes 25 times as long."""
    ordered = np.sort(values, kind="stable")
    return np.asarray(ordered[np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]])


def effective_count(t_ns: Int, horizon_s: int) -> float:
    """Independent labels among decisions at these times: covered time over the horizon.

    Every decision covers the time to the next distinct one, at most the horizon.
    """
    times = distinct(t_ns)
    if not len(times):
        return 0.0
    steps = np.minimum(np.diff(times) / SECOND_NS, horizon_s)
    typical = float(np.median(steps)) if len(steps) else 1.0
    return float((steps.sum() + typical) / horizon_s)


def bin_sums(t_ns: Int, columns: Sequence[Float], bin_s: int = BIN_S) -> Float:
    """Sums of columns (n,) over the non-empty time bins: float64 (bins, columns), in time order.

    Rows of several symbols at one time share a bin, so they are resampled together.
    """
    bins, index = np.unique(t_ns // (bin_s * SECOND_NS), return_inverse=True)
    out = np.empty((len(bins), len(columns)))
    for column, values in enumerate(columns):
        out[:, column] = np.bincount(index, values, len(bins))
    return out


def stationary_indices(
    generator: np.random.Generator, count: int, mean_block: float, length: int | None = None
) -> npt.NDArray[np.int64]:
    """Stationary bootstrap: 0..count-1 resampled in circular blocks of geometric length.

    Politis & Romano (1994). As long as the original, or of the given ``length``.
    """
    length = count if length is None else length
    restart = generator.random(length) < 1.0 / max(mean_block, 1.0)
    restart[0] = True
    starts = generator.integers(0, count, length)
    position = np.arange(length)
    origin = np.maximum.accumulate(np.where(restart, position, 0))
    return np.asarray((starts[origin] + position - origin) % count)


def bootstrap(
    sums: Float,
    statistic: Callable[[Float], Float],
    *,
    mean_block: float,
    samples: int,
    seed: int,
) -> Float:
    """Bootstrap distribution (samples,) of a function of column totals.

    ``sums`` is float64 (bins, columns) in time order, ``mean_block`` the mean block length in bins,
    ``statistic`` maps totals (samples, columns) to (samples,). The same seed gives the same sample.
    """
    generator = np.random.Generator(np.random.Philox(key=seed))
    totals = np.empty((samples, sums.shape[1]))
    for sample in range(samples):
        totals[sample] = sums[stationary_indices(generator, len(sums), mean_block)].sum(axis=0)
    return statistic(totals)


def ratio(totals: Float) -> Float:
    """First column over second; minus infinity where the second is not positive."""
    out = np.full(len(totals), -np.inf)
    np.divide(totals[:, 0], totals[:, 1], out=out, where=totals[:, 1] > 0)
    return out


def lower_bound(
    t_ns: Int,
    values: Float,
    weights: Float,
    *,
    block_s: int,
    samples: int,
    seed: int,
    confidence: float = 0.95,
) -> float:
    """One-sided lower bound of the weighted mean of ``values`` (n,) at times ``t_ns`` (n,).

    Percentile of the stationary bootstrap over time blocks. ``t_ns`` includes times without a value,
    at weight 0, so that blocks are stretches of time and not of events; a resample without weight counts
    as minus infinity.
    """
    if not (weights > 0).any():
        return -math.inf
    sums = bin_sums(t_ns, (np.where(weights > 0, values * weights, 0.0), weights))
    drawn = bootstrap(sums, ratio, mean_block=block_s / BIN_S, samples=samples, seed=seed)
    # "lower" does not interpolate between a number and minus infinity.
    return float(np.quantile(drawn, 1.0 - confidence, method="lower"))
