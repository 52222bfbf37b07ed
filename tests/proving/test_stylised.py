"""The estimators on series whose answers are known."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proving.realism import stylised

Floats = npt.NDArray[np.float64]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20260301)


def autoregressive(rng: np.random.Generator, n: int, coefficient: float) -> Floats:
    series = np.empty(n)
    series[0] = rng.normal(0, 1 / math.sqrt(1 - coefficient**2))
    noise = rng.normal(size=n)
    for i in range(1, n):
        series[i] = coefficient * series[i - 1] + noise[i]
    return series


def hawkes(rng: np.random.Generator, seconds: float, rate: float, ratio: float) -> Floats:
    """Event times of an exponential Hawkes process as its branching: children 1 s (mean) after."""
    found = [np.sort(rng.uniform(0, seconds, rng.poisson(rate * seconds)))]
    while len(found[-1]):
        parents = found[-1]
        children = np.repeat(parents, rng.poisson(ratio, len(parents)))
        children = children + rng.exponential(1.0, len(children))
        found.append(children[children < seconds])
    return np.sort(np.concatenate(found))


def test_autocorrelation_of_an_autoregression_is_the_power_of_its_coefficient(
    rng: np.random.Generator,
) -> None:
    found = stylised.autocorrelation([autoregressive(rng, 200_000, 0.6)], 5)
    assert found == pytest.approx(0.6 ** np.arange(1, 6), abs=0.01)


def test_pieces_are_pooled_and_never_paired_across_their_ends() -> None:
    # Neighbours inside a piece are equal; across the cut they are opposite.
    up, down = np.array([1.0, 1.0]), np.array([-1.0, -1.0])
    assert stylised.autocorrelation([up, down], 1)[0] == pytest.approx(1.0)
    assert stylised.autocorrelation([np.concatenate([up, down])], 1)[0] == pytest.approx(1 / 3)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(-5, 5), min_size=4, max_size=40),
    st.lists(st.booleans(), min_size=40, max_size=40),
)
def test_a_missing_value_takes_only_its_own_pairs_away(
    values: list[float], missing: list[bool]
) -> None:
    """The pooled sums equal those of a plain loop over pairs that are both there."""
    series = np.array(values)
    series[np.array(missing[: len(series)])] = np.nan
    there = series[np.isfinite(series)]
    if len(there) < 2 or np.ptp(there) < 1e-3:
        return
    off = series - there.mean()
    pairs = [
        (off[i], off[i + 1])
        for i in range(len(off) - 1)
        if np.isfinite(off[i]) and np.isfinite(off[i + 1])
    ]
    found = stylised.autocorrelation([series], 1)[0]
    if not pairs:
        assert math.isnan(found)
        return
    expected = np.mean([a * b for a, b in pairs]) / np.nanmean(off**2)
    assert found == pytest.approx(expected, abs=1e-9)


def test_scores_hold_their_level_under_clustered_volatility(rng: np.random.Generator) -> None:
    """White noise whose volatility wanders: the scores have unit variance, ±2/√n does not cover."""
    found, naive = [], []
    for _ in range(200):
        volatility = np.exp(autoregressive(rng, 500, 0.95) * 0.3)
        noise = volatility * rng.normal(size=500)
        found.append(stylised.correlation_scores([noise], 3))
        naive.append(stylised.autocorrelation([noise], 3) * math.sqrt(500))
    assert np.std(found) == pytest.approx(1.0, abs=0.12)
    assert np.std(naive) > 1.3


def test_a_random_walk_has_a_flat_signature_and_a_bouncing_price_a_falling_one(
    rng: np.random.Generator,
) -> None:
    walk = np.cumsum(rng.normal(size=400_000))
    flat = [stylised.variance_per_step([walk], step) for step in (1, 10, 100)]
    assert flat == pytest.approx([1.0, 1.0, 1.0], rel=0.03)
    # Noise of variance 1/2 in the level adds 2·(1/2)/h to the variance per step.
    noisy = walk + rng.normal(0, math.sqrt(0.5), len(walk))
    falling = [stylised.variance_per_step([noisy], step) for step in (1, 10, 100)]
    assert falling == pytest.approx([2.0, 1.1, 1.01], rel=0.03)


def test_kurtosis_of_normal_and_laplace_variables(rng: np.random.Generator) -> None:
    assert stylised.kurtosis(rng.normal(size=400_000)) == pytest.approx(3.0, abs=0.05)
    assert stylised.kurtosis(rng.laplace(size=400_000)) == pytest.approx(6.0, abs=0.25)


@pytest.mark.parametrize("index", [1.5, 3.0, 4.5])
def test_hill_finds_the_tail_index_of_a_pareto_variable(
    index: float, rng: np.random.Generator
) -> None:
    signs = rng.choice([-1.0, 1.0], 200_000)
    found = stylised.hill(signs * (1 + rng.pareto(index, 200_000)))
    assert found == pytest.approx(index, rel=3 / math.sqrt(10_000))


def test_jump_share_is_the_share_of_planted_jumps(rng: np.random.Generator) -> None:
    noise = rng.normal(size=200_000)
    assert stylised.jump_share([noise]) < 0.01
    # Jumps of variance 1/3 of the diffusion's, at one place in a thousand.
    jumps = np.where(
        rng.random(len(noise)) < 1e-3, rng.normal(0, math.sqrt(1000 / 3), len(noise)), 0
    )
    planted = np.sum(jumps**2) / (np.sum(jumps**2) + len(noise))
    assert stylised.jump_share([noise + jumps]) == pytest.approx(planted, abs=0.05)


@pytest.mark.parametrize("exponent", [0.2, 0.5, 0.9])
def test_decay_exponent_under_noise(exponent: float, rng: np.random.Generator) -> None:
    lags = np.arange(1, 501)
    curve = 0.3 * lags**-exponent + rng.normal(0, 0.01, 500)
    assert stylised.decay_exponent(curve) == pytest.approx(exponent, abs=0.05)


def test_power_exponent_of_a_square_root() -> None:
    size = np.geomspace(1, 100, 9)
    assert stylised.power_exponent(size, 3 * np.sqrt(size)) == pytest.approx(0.5)


def test_a_partial_exponent_is_not_confounded(
    rng: np.random.Generator,
) -> None:
    depth = np.exp(rng.normal(size=500))
    volatility = depth**-0.7 * np.exp(0.3 * rng.normal(size=500))
    slope = volatility**0.6 / depth
    assert stylised.partial_exponent(depth, volatility, slope) == pytest.approx(-1.0)
    assert stylised.power_exponent(depth, slope) == pytest.approx(-1.42, abs=0.03)
    # Volatility that is a power of depth cannot be told from it.
    assert math.isnan(stylised.partial_exponent(depth, depth**2, slope))
    assert math.isnan(stylised.partial_exponent(depth[:3], volatility[:3], slope[:3]))


def test_poisson_counts_have_a_fano_factor_of_one_and_no_branching(
    rng: np.random.Generator,
) -> None:
    times = np.sort(rng.uniform(0, 50_000, 200_000))
    found = stylised.fano(stylised.counts([times], [(0.0, 50_000.0)], 1.0))
    assert found == pytest.approx(1.0, abs=0.03)
    assert stylised.branching(found) < 0.03
    assert stylised.branching(0.5) == 0.0


@pytest.mark.parametrize("ratio", [0.4, 0.7])
def test_the_branching_ratio_of_a_hawkes_process_is_estimated(
    ratio: float, rng: np.random.Generator
) -> None:
    times = hawkes(rng, 200_000, 1.0, ratio)
    windows = stylised.counts([times], [(0.0, 200_000.0)], 100.0)
    assert stylised.branching(stylised.fano(windows)) == pytest.approx(ratio, abs=0.03)


def test_counts_take_whole_windows_of_each_span_only() -> None:
    times = [np.array([0.5, 1.5, 1.6, 2.4]), np.array([10.2])]
    assert stylised.counts(times, [(0.0, 2.5), (10.0, 11.0)], 1.0).tolist() == [1.0, 2.0, 1.0]


def test_slope_and_correlation_of_a_noisy_line(rng: np.random.Generator) -> None:
    x = rng.normal(size=100_000)
    y = 2 * x + rng.normal(size=100_000)
    x[::7] = np.nan
    assert stylised.slope(x, y) == pytest.approx(2.0, abs=0.02)
    assert stylised.correlation(x, y) ** 2 == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("seconds", [0.3, 2.0, 15.0])
def test_half_life_of_an_exponential_recovery(seconds: float, rng: np.random.Generator) -> None:
    tau = 0.1 * np.arange(1, 201)
    recovery = 1 - 0.5 ** (tau / seconds) + rng.normal(0, 0.02, 200)
    assert stylised.half_life(recovery, 0.1) == pytest.approx(seconds, rel=0.05)
    assert math.isinf(stylised.half_life(-np.ones(5), 0.1))


def test_the_jackknife_of_a_mean_is_its_usual_interval(rng: np.random.Generator) -> None:
    blocks = rng.normal(size=(20, 50))
    means = blocks.mean(axis=1)
    value = float(blocks.mean())
    low, high = stylised.jackknife(
        lambda data: float(data.mean()), [np.delete(blocks, n, 0) for n in range(20)], value
    )
    assert (high - low) / 2 == pytest.approx(2.093 * means.std(ddof=1) / math.sqrt(20), rel=1e-3)
    assert (low + high) / 2 == pytest.approx(value)


def test_distance_of_two_samples(rng: np.random.Generator) -> None:
    x = rng.uniform(0, 1, 20_000)
    assert stylised.distance(x, x + 0.25) == pytest.approx(0.25, abs=0.02)
    assert math.isnan(stylised.distance(x, np.empty(0)))
