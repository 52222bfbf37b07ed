"""Estimators of stylised facts (Cont 2001, "Empirical properties of asset returns"), on plain arrays.

Each takes disjoint pieces of a series (`Pieces`), so that days, seeds and gaps are pooled without
pairing values that were not neighbours. NaN marks a missing value and never enters a sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

Floats = npt.NDArray[np.float64]
Pieces = Sequence[npt.NDArray[Any]]
T = TypeVar("T")

#: Fewest points of a fit or correlation.
_LEAST: Final = 8


def returns(log_price: Pieces, step: int, every: int = 1) -> list[Floats]:
    """Differences over ``step`` places, beginning at each ``every``-th place."""
    long_enough = [piece for piece in log_price if len(piece) > step]
    return [np.asarray((piece[step:] - piece[:-step])[::every]) for piece in long_enough]


def pooled(pieces: Pieces) -> Floats:
    """All finite values, concatenated."""
    if not pieces:
        return np.empty(0)
    values: Floats = np.concatenate([np.asarray(piece, np.float64) for piece in pieces])
    finite: Floats = values[np.isfinite(values)]
    return finite


def _lagged(pieces: Pieces, lags: int) -> tuple[Floats, Floats]:
    """Sum of products of deviations from the pooled mean at lags 0 … ``lags``, and of pairs."""
    mean = pooled(pieces).mean() if len(pooled(pieces)) else 0.0
    products, pairs = np.zeros(lags + 1), np.zeros(lags + 1)
    for piece in pieces:
        finite = np.isfinite(piece)
        values = np.where(finite, piece - mean, 0.0)
        size = 1 << (len(values) + lags).bit_length()
        for series, total in ((values, products), (finite.astype(float), pairs)):
            spectrum = np.fft.rfft(series, size)
            total += np.fft.irfft(spectrum * spectrum.conj(), size)[: lags + 1]
    return products, np.rint(pairs)


def autocorrelation(pieces: Pieces, lags: int) -> Floats:
    """Autocorrelation at lags 1 … ``lags``, about the pooled mean; NaN without a pair."""
    products, pairs = _lagged(pieces, lags)
    with np.errstate(invalid="ignore", divide="ignore"):
        covariance = np.where(pairs > 0, products / pairs, np.nan)
        correlations: Floats = covariance[1:] / covariance[0]
    return correlations


def correlation_scores(pieces: Pieces, lags: int) -> Floats:
    """z score of each autocorrelation under no correlation, robust to clustered volatility.

    Σ r_t r_{t+k} / √(Σ r_t² r_{t+k}²): with clustered volatility the ±2/√n of constant variance is
    too narrow (Diebold 1986).
    """
    mean = pooled(pieces).mean() if len(pooled(pieces)) else 0.0
    centred = [np.where(np.isfinite(piece), piece - mean, 0.0) for piece in pieces]
    scores = np.empty(lags)
    for lag in range(1, lags + 1):
        products = np.concatenate(
            [piece[lag:] * piece[:-lag] for piece in centred if len(piece) > lag] or [np.zeros(0)]
        )
        spread = math.sqrt(float(np.sum(products**2)))
        scores[lag - 1] = products.sum() / spread if spread > 0 else np.nan
    return scores


def variance_per_step(log_price: Pieces, step: int) -> float:
    """Mean square of overlapping ``step``-place returns over ``step``: the signature plot."""
    moves = pooled(returns(log_price, step))
    return float(np.mean(moves**2)) / step if len(moves) else math.nan


def kurtosis(values: Floats) -> float:
    """Fourth moment about the mean over the squared variance; 3 for a normal variable."""
    off = values - values.mean() if len(values) else values
    square = float(np.mean(off**2)) if len(values) else 0.0
    return float(np.mean(off**4)) / square**2 if square > 0 else math.nan


def hill(values: Floats, share: float = 0.05) -> float:
    """Tail index of |x| from its largest ``share`` (Hill 1975): 1/mean of ln(x_i/x_k)."""
    magnitude = np.sort(np.abs(values))
    k = int(share * len(magnitude))
    if k < _LEAST or magnitude[-k - 1] <= 0:
        return math.nan
    return 1.0 / float(np.mean(np.log(magnitude[-k:] / magnitude[-k - 1])))


def jump_share(pieces: Pieces) -> float:
    """Share of realised variance beyond bipower variation: max(0, RV - BV)/RV.

    BV = π/2 Σ|r_i||r_{i-1}|, each scaled to the number of its terms (Barndorff-Nielsen, Shephard
    2004).
    """
    squares = pooled([piece**2 for piece in pieces])
    products = pooled([np.abs(piece[1:] * piece[:-1]) for piece in pieces])
    if not len(products) or squares.mean() == 0:
        return math.nan
    return max(0.0, 1.0 - math.pi / 2 * float(products.mean() / squares.mean()))


def correlation(x: Floats, y: Floats) -> float:
    """Pearson's, over the places where both are finite."""
    both = np.isfinite(x) & np.isfinite(y)
    if both.sum() < _LEAST:
        return math.nan
    x, y = x[both] - x[both].mean(), y[both] - y[both].mean()
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale > 0 else math.nan


def slope(x: Floats, y: Floats) -> float:
    """Least squares slope of y on x, with an intercept."""
    both = np.isfinite(x) & np.isfinite(y)
    if both.sum() < _LEAST:
        return math.nan
    off = x[both] - x[both].mean()
    square = float(off @ off)
    return float(off @ y[both]) / square if square > 0 else math.nan


def decay_exponent(curve: Floats, first: int = 1, bins: int = 16) -> float:
    """γ of c·ℓ^-γ fitted to a curve given at lags 1 … len(curve), from lag ``first`` on.

    The curve is averaged over bins of equal width in ln ℓ and fitted by least squares in the curve
    itself, not in its logarithm, so that noise about zero neither is dropped nor biases the fit. A bin
    is weighted by its number of lags.
    """
    lags = np.arange(1, len(curve) + 1)
    kept = np.isfinite(curve) & (lags >= first)
    if kept.sum() < _LEAST:
        return math.nan
    lags, curve = lags[kept], curve[kept]
    edges = np.geomspace(lags[0], lags[-1] + 1, bins + 1)
    place = np.clip(np.searchsorted(edges, lags, "right") - 1, 0, bins - 1)
    weight = np.bincount(place, minlength=bins).astype(float)
    filled = weight > 0
    at = np.exp(np.bincount(place, np.log(lags), bins)[filled] / weight[filled])
    value = np.bincount(place, curve, bins)[filled] / weight[filled]
    weight = np.sqrt(weight[filled])

    def residual(exponent: float) -> float:
        shape = at**-exponent
        scale = max(0.0, float((weight * shape) @ value / ((weight * shape) @ shape)))
        return float(weight @ (value - scale * shape) ** 2)

    grid = np.linspace(0.0, 3.0, 61)
    start = float(grid[np.argmin([residual(exponent) for exponent in grid])])
    minimum = optimize.minimize_scalar(
        residual, bounds=(max(0.0, start - 0.05), start + 0.05), method="bounded"
    )
    return float(minimum.x)


def power_exponent(x: Floats, y: Floats) -> float:
    """δ of y ∝ x^δ from the positive points, by least squares in logarithms."""
    kept = (x > 0) & (y > 0) & np.isfinite(x) & np.isfinite(y)
    if kept.sum() < 2:
        return math.nan
    log_x, log_y = np.log(x[kept]), np.log(y[kept])
    off = log_x - log_x.mean()
    return float(off @ log_y / (off @ off)) if off @ off > 0 else math.nan


def partial_exponent(x: Floats, beside: Floats, y: Floats) -> float:
    """δ of y ∝ x^δ · beside^μ from the positive points, by least squares in logarithms."""
    kept = (x > 0) & (beside > 0) & (y > 0) & np.isfinite(x * beside * y)
    if kept.sum() < 4:
        return math.nan
    columns = np.stack([np.ones(kept.sum()), np.log(x[kept]), np.log(beside[kept])], axis=1)
    coefficients, _, rank, _ = np.linalg.lstsq(columns, np.log(y[kept]), rcond=None)
    return float(coefficients[1]) if rank == 3 else math.nan


def counts(times: Pieces, spans: Sequence[tuple[float, float]], window: float) -> Floats:
    """Numbers of events in the whole windows of each span; ``times`` has a piece per span."""
    parts = []
    for stamps, (start, stop) in zip(times, spans, strict=True):
        windows = int((stop - start) // window)
        if windows:
            edges = start + window * np.arange(windows + 1)
            parts.append(np.diff(np.searchsorted(stamps, edges)).astype(float))
    return np.concatenate(parts) if parts else np.empty(0)


def fano(numbers: Floats) -> float:
    """Variance over mean of counts: one for a Poisson process."""
    mean = float(numbers.mean()) if len(numbers) else 0.0
    return float(numbers.var(ddof=1)) / mean if mean > 0 and len(numbers) > 1 else math.nan


def branching(fano_factor: float) -> float:
    """Branching ratio, the mean number of events that one triggers, from the Fano factor.

    A Hawkes process with branching ratio n has F → 1/(1-n)² (Hardiman and Bouchaud 2014), so
    n = 1 - 1/√F. Windows shorter than its memory give less, a rate that wanders gives more.
    """
    return 1.0 - 1.0 / math.sqrt(fano_factor) if fano_factor > 1 else 0.0


def distance(x: Floats, y: Floats) -> float:
    """Kolmogorov-Smirnov: the largest difference of the two distribution functions."""
    if not len(x) or not len(y):
        return math.nan
    return float(stats.ks_2samp(x, y, method="asymp").statistic)


def half_life(recovery: Floats, step_s: float) -> float:
    """Half-life of a recovery R(τ) = 1 - e^(-ρτ) given at τ = step, 2·step, …: ln 2/ρ (s).

    Least squares in R. Infinite when nothing recovers, NaN without points.
    """
    kept = np.isfinite(recovery)
    if kept.sum() < 3:
        return math.nan
    tau = step_s * np.arange(1, len(recovery) + 1)[kept]
    value = recovery[kept]
    if value.mean() <= 0:
        return math.inf

    def residual(log_rate: float) -> float:
        return float(np.sum((value - 1 + np.exp(-math.exp(log_rate) * tau)) ** 2))

    grid = np.linspace(math.log(1e-3 / step_s), math.log(1e2 / step_s), 200)
    start = float(grid[np.argmin([residual(at) for at in grid])])
    width = float(grid[1] - grid[0])
    minimum = optimize.minimize_scalar(
        residual, bounds=(start - width, start + width), method="bounded"
    )
    return math.log(2) / math.exp(float(minimum.x))


def jackknife(estimate: Callable[[T], float], without: Sequence[T], value: float) -> Any:
    """95 % jackknife interval of an estimate; (NaN, NaN) with fewer than four values.

    ``without`` has the data without block 1, 2, …; the interval is honest when blocks are longer than
    the memory of the data.
    """
    left = np.array([estimate(data) for data in without])
    left = left[np.isfinite(left)]
    if len(left) < 4 or not math.isfinite(value):
        return math.nan, math.nan
    g = len(left)
    error = math.sqrt((g - 1) / g * float(np.sum((left - left.mean()) ** 2)))
    reach = float(stats.t.ppf(0.975, g - 1)) * error
    return value - reach, value + reach
