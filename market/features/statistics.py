"""Statistics of a window, compiled: of the values in it that are not NaN."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from market.features.expression import NEGLIGIBLE
from market.kernel import compiled

Floats = npt.NDArray[np.float64]

# Most windows have no NaN, and kept values are too small to overflow: a plain sum in four independent
# accumulators is NaN only when a value is missing. Then the sum that adds zero for NaN runs.


@compiled
def count_and_sum(x: Floats) -> tuple[int, float]:
    """Count and sum of the values that are not NaN."""
    s0 = s1 = s2 = s3 = 0.0
    for k in range(x.size // 4):
        i = 4 * k
        s0 += x[i]
        s1 += x[i + 1]
        s2 += x[i + 2]
        s3 += x[i + 3]
    total = (s0 + s1) + (s2 + s3)
    for i in range(x.size // 4 * 4, x.size):
        total += x[i]
    if total == total:
        return x.size, total
    count = 0
    s0 = s1 = s2 = s3 = 0.0
    for k in range(x.size // 4):
        i = 4 * k
        s0 += _or_zero(x[i])
        s1 += _or_zero(x[i + 1])
        s2 += _or_zero(x[i + 2])
        s3 += _or_zero(x[i + 3])
    for i in range(x.size // 4 * 4, x.size):
        s0 += _or_zero(x[i])
    for i in range(x.size):
        count += x[i] == x[i]
    return count, (s0 + s1) + (s2 + s3)


@compiled
def _or_zero(value: float) -> float:
    return value if value == value else 0.0


@compiled
def _products(x: Floats, mean_x: float, y: Floats, mean_y: float) -> float:
    """Sum of products of centred values, none NaN."""
    s0 = s1 = s2 = s3 = 0.0
    for k in range(x.size // 4):
        i = 4 * k
        s0 += (x[i] - mean_x) * (y[i] - mean_y)
        s1 += (x[i + 1] - mean_x) * (y[i + 1] - mean_y)
        s2 += (x[i + 2] - mean_x) * (y[i + 2] - mean_y)
        s3 += (x[i + 3] - mean_x) * (y[i + 3] - mean_y)
    total = (s0 + s1) + (s2 + s3)
    for i in range(x.size // 4 * 4, x.size):
        total += (x[i] - mean_x) * (y[i] - mean_y)
    return total


@compiled
def _both(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """The rows where both exist."""
    kept_x, kept_y, count = np.empty(x.size), np.empty(x.size), 0
    for i in range(x.size):
        kept_x[count], kept_y[count] = x[i], y[i]
        count += x[i] == x[i] and y[i] == y[i]
    return kept_x[:count], kept_y[:count]


@compiled
def extreme(x: Floats, sign: float) -> float:
    """The largest value that is not NaN, or with sign -1 the smallest; NaN when there is none."""
    best = -np.inf
    for i in range(x.size):
        if sign * x[i] > best:
            best = sign * x[i]
    return sign * best if best > -np.inf else np.nan


@compiled
def _negligible(variance: float, mean: float) -> bool:
    return variance < NEGLIGIBLE * (mean * mean + 1.0)


@compiled
def std(x: Floats) -> float:
    """Population standard deviation; 0 when the variance is negligible, NaN without a value."""
    count, total = count_and_sum(x)
    if count == 0:
        return np.nan
    if count < x.size:
        x, _ = _both(x, x)
    mean = total / count
    variance = _products(x, mean, x, mean) / count
    return 0.0 if _negligible(variance, mean) else np.sqrt(variance)


@compiled
def pair(x: Floats, y: Floats, correlation: bool) -> float:
    """Correlation of x and y, or slope of x on y, where both exist."""
    count, total_x = count_and_sum(x)
    count_y, total_y = count_and_sum(y)
    if count < x.size or count_y < y.size:
        x, y = _both(x, y)
        count, total_x = count_and_sum(x)
        count_y, total_y = count_and_sum(y)
    if count == 0:
        return np.nan
    mean_x, mean_y = total_x / count, total_y / count
    var_y = _products(y, mean_y, y, mean_y) / count
    if _negligible(var_y, mean_y):
        return np.nan
    cov: float = _products(x, mean_x, y, mean_y) / count
    if not correlation:
        return float(cov / var_y)
    var_x = _products(x, mean_x, x, mean_x) / count
    if _negligible(var_x, mean_x):
        return np.nan
    return float(cov / (np.sqrt(var_x) * np.sqrt(var_y)))
