"""Inference for signals and strategies: Sharpe ratios, many trials, sequential bounds, stability.

Sharpe ratios are per period (aggregate to days first), ``kurtosis`` is raw (3 for a normal). References
by function; the numbers that the tests hold them to were computed independently of this code.
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from market.units import DAY_NS
from models_registry.validation import bootstrap, distinct, stationary_indices

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

_EULER: Final = 0.5772156649015329


class Moments(NamedTuple):
    """Sharpe ratio per period, skewness and raw kurtosis of n returns."""

    sharpe: float
    skew: float
    kurtosis: float
    periods: int


def moments(returns: Float) -> Moments:
    """Moments of returns (n,); a Sharpe ratio of 0 without variance."""
    spread = float(returns.std(ddof=1)) if len(returns) > 1 else 0.0
    if spread == 0.0:
        return Moments(0.0, 0.0, 3.0, len(returns))
    z = (returns - returns.mean()) / returns.std()
    return Moments(
        float(returns.mean()) / spread, float((z**3).mean()), float((z**4).mean()), len(returns)
    )


def sharpe_variance(found: Moments) -> float:
    """n times the variance of the estimated Sharpe ratio: 1 - γ₃·SR + (γ₄ - 1)/4·SR² (Mertens 2002)."""
    return 1.0 - found.skew * found.sharpe + (found.kurtosis - 1.0) / 4.0 * found.sharpe**2


def probabilistic_sharpe(found: Moments, benchmark: float = 0.0) -> float:
    """PSR: the probability that the true Sharpe ratio exceeds ``benchmark``.

    Φ((SR - SR*)·√(n - 1)/√variance) (Bailey & López de Prado 2012); 0.5 with fewer than two periods.
    """
    from scipy.special import ndtr

    if found.periods < 2:
        return 0.5
    scale = math.sqrt(max(sharpe_variance(found), 1e-300))
    return float(ndtr((found.sharpe - benchmark) * math.sqrt(found.periods - 1) / scale))


def effective_trials(trials: float, mean_correlation: float) -> float:
    """Independent trials among correlated ones: ρ̄ + (1 - ρ̄)·M (Bailey & López de Prado 2014)."""
    rho = min(1.0, max(0.0, mean_correlation))
    return rho + (1.0 - rho) * trials


def expected_maximum_sharpe(variance: float, trials: float) -> float:
    """The best Sharpe ratio to be expected of ``trials`` independent ones without skill.

    √V·((1 - γ)·Φ⁻¹(1 - 1/N) + γ·Φ⁻¹(1 - 1/(N·e))) with V the variance among trials; 0 for one trial.
    """
    from scipy.special import ndtri

    if trials <= 1.0:
        return 0.0
    quantiles = ndtri([1.0 - 1.0 / trials, 1.0 - 1.0 / (trials * math.e)])
    return math.sqrt(variance) * max(
        0.0, float((1.0 - _EULER) * quantiles[0] + _EULER * quantiles[1])
    )


def deflated_sharpe(found: Moments, trials: float, variance: float | None = None) -> float:
    """DSR: PSR against the best of ``trials`` (effective) trials without skill.

    ``variance`` is that of the trials' Sharpe ratios; by default the sampling variance 1/(n - 1) of a
    strategy without skill.
    """
    if found.periods < 2:
        return 0.5
    spread = 1.0 / (found.periods - 1) if variance is None else variance
    return probabilistic_sharpe(found, expected_maximum_sharpe(spread, trials))


def minimum_track_record(found: Moments, benchmark: float = 0.0, confidence: float = 0.95) -> float:
    """MinTRL: periods after which the PSR reaches ``confidence``; infinite if never."""
    from scipy.special import ndtri

    if found.sharpe <= benchmark:
        return math.inf
    z = float(ndtri(confidence))
    return 1.0 + sharpe_variance(found) * (z / (found.sharpe - benchmark)) ** 2


def overfitting_probability(returns: Float, blocks: int = 16) -> float:
    """PBO by combinatorially symmetric cross-validation (Bailey, Borwein, López de Prado & Zhu 2017).

    ``returns`` (periods, trials) are cut into an even number of ``blocks``. In every half of them the
    best trial by Sharpe ratio is chosen, and ω is its rank in the other half over trials + 1: PBO is
    the share of halves with ln(ω/(1 - ω)) <= 0. ValueError without two trials and a period per block.
    """
    periods, trials = returns.shape
    if trials < 2 or periods < blocks or blocks % 2:
        raise ValueError(f"{periods} periods of {trials} trials do not make {blocks} even blocks")
    parts = np.array_split(returns, blocks)
    sums = np.array([part.sum(axis=0) for part in parts])
    squares = np.array([(part**2).sum(axis=0) for part in parts])
    counts = np.array([len(part) for part in parts], np.float64)
    halves = np.zeros((math.comb(blocks, blocks // 2), blocks))
    for row, chosen in enumerate(combinations(range(blocks), blocks // 2)):
        halves[row, chosen] = 1.0

    def sharpes(selection: Float) -> Float:
        n = (selection @ counts)[:, np.newaxis]
        mean = (selection @ sums) / n
        variance = np.maximum((selection @ squares) / n - mean**2, 1e-300)
        return np.asarray(mean / np.sqrt(variance))

    best = sharpes(halves).argmax(axis=1)
    outside = sharpes(1.0 - halves)
    own = np.take_along_axis(outside, best[:, np.newaxis], axis=1)
    # Mean ranks among ties; ω <= 1/2.
    ranks = (outside < own).sum(axis=1) + 0.5 * ((outside == own).sum(axis=1) + 1.0)
    return float(np.mean(2.0 * ranks <= trials + 1))


class Difference(NamedTuple):
    """A difference of Sharpe ratios, its standard error and its one-sided lower bound."""

    value: float
    error: float
    lower: float


def difference_variance(sharpe_a: float, sharpe_b: float, correlation: float) -> float:
    """n times the variance of the difference of two Sharpe ratios (Jobson & Korkie 1981, Memmel 2003).

    2(1 - ρ) + (a² + b² - 2abρ²)/2 for jointly normal returns.
    """
    cross = sharpe_a * sharpe_b * correlation**2
    return 2.0 * (1.0 - correlation) + 0.5 * (sharpe_a**2 + sharpe_b**2 - 2.0 * cross)


def sharpe_difference(a: Float, b: Float, confidence: float = 0.95) -> Difference:
    """SR(a) - SR(b) of returns (n,) of the same periods, by Jobson–Korkie–Memmel."""
    from scipy.special import ndtri

    first, second = moments(a).sharpe, moments(b).sharpe
    rho = float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else 0.0
    error = math.sqrt(max(difference_variance(first, second, rho), 0.0) / len(a))
    value = first - second
    return Difference(value, error, value - float(ndtri(confidence)) * error)


def days_to_resolve(
    sharpe_a: float, sharpe_b: float, correlation: float, power: float = 0.8, level: float = 0.05
) -> float:
    """Periods after which a one-sided test tells two Sharpe ratios apart with this power."""
    from scipy.special import ndtri

    z = float(ndtri(1.0 - level) + ndtri(power))
    if sharpe_a == sharpe_b:
        return math.inf
    return difference_variance(sharpe_a, sharpe_b, correlation) * (z / (sharpe_a - sharpe_b)) ** 2


def sharpe_difference_bootstrap(
    a: Float, b: Float, *, mean_block: float, samples: int, seed: int, confidence: float = 0.95
) -> Difference:
    """SR(a) - SR(b) with a percentile bound: stationary bootstrap of the pairs, mean block in periods."""
    generator = np.random.Generator(np.random.Philox(key=seed))
    drawn = np.empty(samples)
    for sample in range(samples):
        index = stationary_indices(generator, len(a), mean_block)
        drawn[sample] = moments(a[index]).sharpe - moments(b[index]).sharpe
    value = moments(a).sharpe - moments(b).sharpe
    return Difference(value, float(drawn.std()), float(np.quantile(drawn, 1.0 - confidence)))


def day_bound(
    t_ns: Int,
    values: Float,
    *,
    samples: int,
    seed: int,
    confidence: float = 0.95,
) -> float:
    """One-sided lower bound of the mean of ``values`` (n,): whole UTC dates resampled.

    NaN values do not count. Honest from some ten dates on; minus infinity with fewer than two.
    """
    known = ~np.isnan(values)
    days, index = np.unique((t_ns[known] - 1) // DAY_NS, return_inverse=True)
    if len(days) < 2:
        return -math.inf
    sums = np.column_stack(
        (np.bincount(index, values[known]), np.bincount(index, minlength=0) * 1.0)
    )
    drawn = bootstrap(
        sums, lambda totals: totals[:, 0] / totals[:, 1], mean_block=1.0, samples=samples, seed=seed
    )
    return float(np.quantile(drawn, 1.0 - confidence))


def clopper_pearson_upper(failures: float, trials: float, confidence: float = 0.95) -> float:
    """One-sided upper bound of a proportion (Clopper & Pearson 1934); 1 without trials.

    Counts may be effective ones (`uniqueness`), which need not be whole.
    """
    from scipy.special import betaincinv

    if failures >= trials:
        return 1.0
    return float(betaincinv(failures + 1.0, trials - failures, confidence))


def uniqueness(begin_ns: Int, end_ns: Int) -> Float:
    """Weight (n,) of each interval: the mean over it of 1/(intervals open at the time).

    The sum is the effective number of independent ones (López de Prado 2018, ch. 4): two symbols held
    over the same minute count once. An interval without length counts as open for one nanosecond.
    """
    if not len(begin_ns):
        return np.empty(0)
    end_ns = np.maximum(end_ns, begin_ns + 1)
    edges = distinct(np.concatenate((begin_ns, end_ns)))
    first, last = np.searchsorted(edges, begin_ns), np.searchsorted(edges, end_ns)
    change = np.zeros(len(edges))
    np.add.at(change, first, 1.0)
    np.add.at(change, last, -1.0)
    open_ = np.cumsum(change)[:-1]
    share = np.divide(np.diff(edges), open_, out=np.zeros(len(open_)), where=open_ > 0)
    total = np.concatenate(([0.0], np.cumsum(share)))
    return np.asarray((total[last] - total[first]) / (end_ns - begin_ns))


class Stability(NamedTuple):
    """Stability of selections and its interval; 1 for equal ones, about 0 for random ones."""

    value: float
    low: float
    high: float


def selection_stability(chosen: npt.NDArray[np.bool_], confidence: float = 0.95) -> Stability:
    """The index of Nogueira, Sechidis & Brown (2018) of selections (folds, features), with interval.

    1 - mean_f(M/(M-1)·p_f(1 - p_f)) / (k̄/d·(1 - k̄/d)), interval by their theorem 7. ValueError with
    fewer than two folds; NaN if none or all features are chosen.
    """
    from scipy.special import ndtri

    picked = chosen.astype(np.float64)
    folds, features = picked.shape
    if folds < 2:
        raise ValueError("stability needs at least two selections")
    share = picked.mean(axis=0)
    size = picked.sum(axis=1) / features
    mean_size = float(size.mean())
    spread = mean_size * (1.0 - mean_size)
    if spread == 0.0:
        return Stability(math.nan, math.nan, math.nan)
    index = 1.0 - folds / (folds - 1) * float((share * (1.0 - share)).mean()) / spread
    own = (
        (picked * share).mean(axis=1)
        - size * mean_size
        - index / 2.0 * (2.0 * mean_size * size - size - mean_size + 1.0)
    ) / spread
    error = math.sqrt(4.0 / folds**2 * float(((own - own.mean()) ** 2).sum()))
    z = float(ndtri(0.5 + confidence / 2.0))
    return Stability(index, index - z * error, index + z * error)


def anytime_lower(x: Float, alpha: float, effect: float) -> float:
    """Lower limit of the mean of blocks ``x`` (n,), valid at every look: a sequential t-test inverted.

    For independent normal blocks of unknown variance, the mixture over the effect size δ ~ N(0, g),
    g = ``effect``², of the likelihood ratios of T = √n(x̄ - m)/s against δ = 0,

        M_n(m) = (1 + ng)^(-1/2) · [(1 + T²/(n-1)) / (1 + T²/((n-1)(1 + ng)))]^(n/2),

    is a test martingale for mean m (Wang & Ramdas 2024, "Anytime-valid t-tests", after Lai 1976), so
    by Ville's inequality P(M_n >= 1/α at any n) <= α. One-sided: with the half of the mixture on δ > 0,
    which is M_n·2·P(δ > 0 | T) and rises in T, a mean below m only lowers it; and it is at least M_n where T > 0. So

        x̄ - s·√(u(n-1)/n),   u = (r-1)/(1 - r/(1 + ng)),   r = (√(1 + ng)/α)^(2/n)

    is below the mean at all looks at once with probability 1 - α; minus infinity while r >= 1 + ng.
    """
    n = len(x)
    if n < 2:
        return -math.inf
    growth = 1.0 + n * effect**2
    r = (math.sqrt(growth) / alpha) ** (2.0 / n)
    if r >= growth:
        return -math.inf
    u = (r - 1.0) / (1.0 - r / growth)
    return float(x.mean() - x.std(ddof=1) * math.sqrt(u * (n - 1) / n))


def anytime_interval(x: Float, alpha: float, effect: float) -> tuple[float, float]:
    """Limits of the mean of ``x`` that hold at every look with probability 1 - ``alpha`` (`anytime_lower`)."""
    return anytime_lower(x, alpha / 2, effect), -anytime_lower(-x, alpha / 2, effect)
