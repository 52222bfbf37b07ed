"""Against published or independently computed numbers, and by simulation what has no closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from market.units import DAY_NS, day_start_ns
from models_registry.statistics import (
    Moments,
    anytime_lower,
    clopper_pearson_upper,
    day_bound,
    days_to_resolve,
    deflated_sharpe,
    difference_variance,
    effective_trials,
    expected_maximum_sharpe,
    minimum_track_record,
    moments,
    overfitting_probability,
    probabilistic_sharpe,
    selection_stability,
    sharpe_difference,
    sharpe_difference_bootstrap,
    uniqueness,
)

DAILY = 1.0 / math.sqrt(365.0)


def of(sharpe: float, count: int, skew: float = 0.0, kurtosis: float = 3.0) -> Moments:
    return Moments(sharpe, skew, kurtosis, count)


def test_psr_is_its_formula_and_rises_with_the_record() -> None:
    # SR 0.1 a day, skew -1, kurtosis 10, 250 days: z = 0.1·√249 / √(1 + 0.1 + 2.25·0.01).
    assert probabilistic_sharpe(of(0.1, 250, -1, 10)) == pytest.approx(
        norm.cdf(0.1 * math.sqrt(249) / math.sqrt(1.1225))
    )
    assert probabilistic_sharpe(of(0.1, 50)) < probabilistic_sharpe(of(0.1, 500))
    assert probabilistic_sharpe(of(0.1, 250), benchmark=0.1) == pytest.approx(0.5)
    assert probabilistic_sharpe(of(0.0, 1)) == 0.5


def test_moments_are_per_period_with_raw_kurtosis() -> None:
    found = moments(np.random.default_rng(1).normal(0.1, 1.0, 200_000))
    assert found.sharpe == pytest.approx(0.1, abs=0.01)
    assert found.skew == pytest.approx(0.0, abs=0.03)
    assert found.kurtosis == pytest.approx(3.0, abs=0.06)
    assert moments(np.ones(5)).sharpe == 0.0


@pytest.mark.parametrize(
    ("skew", "kurtosis", "days"),
    [(0, 3, (990, 249, 112, 42)), (-1, 10, (1046, 280, 134, 57))],
)
def test_the_minimum_track_record_in_days(skew, kurtosis, days) -> None:
    for annual, expected in zip((1, 2, 3, 5), days, strict=True):
        found = minimum_track_record(of(annual * DAILY, 0, skew, kurtosis))
        assert found == pytest.approx(expected, abs=1.0)
        assert probabilistic_sharpe(
            of(annual * DAILY, math.ceil(found), skew, kurtosis)
        ) == pytest.approx(0.95, abs=0.003)
    assert minimum_track_record(of(0.0, 0)) == math.inf


@pytest.mark.parametrize(
    ("days", "annual"), [(30, (5.5, 8.8, 11.3)), (90, (3.2, 5.1, 6.6)), (365, (1.6, 2.5, 3.3))]
)
def test_the_best_of_many_trials_without_skill(days, annual) -> None:
    found = [expected_maximum_sharpe(1.0 / days, n) / DAILY for n in (10, 100, 1000)]
    assert found == pytest.approx(annual, abs=0.06)


def test_the_dsr_of_the_best_of_many_trials_without_skill_is_no_evidence() -> None:
    generator = np.random.default_rng(2)
    best = [
        max((moments(x) for x in generator.normal(size=(50, 200))), key=lambda m: m.sharpe)
        for _ in range(40)
    ]
    assert np.mean([probabilistic_sharpe(m) for m in best]) > 0.97
    assert 0.3 < np.mean([deflated_sharpe(m, 50) for m in best]) < 0.7
    assert deflated_sharpe(best[0], 1) == probabilistic_sharpe(best[0])
    assert effective_trials(100, 0.0) == 100
    assert effective_trials(100, 0.9) == pytest.approx(10.9)
    assert effective_trials(100, 1.0) == 1.0


def test_pbo_of_skill_is_zero_and_of_noise_about_a_half() -> None:
    generator = np.random.default_rng(3)
    noise = [overfitting_probability(generator.normal(size=(160, 10)), 8) for _ in range(40)]
    assert np.mean(noise) == pytest.approx(0.5, abs=0.1)
    skilled = generator.normal(size=(320, 10))
    skilled[:, 4] += 0.5
    assert overfitting_probability(skilled) == 0.0
    # By hand: what is best in one half is worst in the other, in two of the two splits.
    swapped = np.array([[3.0, 1.0], [3.1, 1.1], [1.0, 3.0], [1.1, 3.1]])
    assert overfitting_probability(swapped, 2) == 1.0
    with pytest.raises(ValueError, match="even blocks"):
        overfitting_probability(swapped, 8)


@pytest.mark.parametrize(
    ("correlation", "days"), [(0.9, (5035, 1274, 577, 221, 70)), (0.97, (1513, 385, 176, 69, 23))]
)
def test_days_until_a_gain_of_30_percent_shows(correlation, days) -> None:
    found = [days_to_resolve(1.3 * sr * DAILY, sr * DAILY, correlation) for sr in (1, 2, 3, 5, 10)]
    assert found == pytest.approx(days, abs=1.0)


def test_the_difference_of_two_sharpe_ratios_has_its_error() -> None:
    generator = np.random.default_rng(4)
    n, mix = 400, math.sqrt(1 - 0.9**2)
    differences, errors, above = [], [], 0
    for _ in range(300):
        a = generator.normal(size=n)
        b = 0.9 * a + mix * generator.normal(size=n)
        found = sharpe_difference(a + 0.2, b + 0.2)
        differences.append(found.value)
        errors.append(found.error)
        above += found.lower > 0
    assert np.std(differences) == pytest.approx(np.mean(errors), rel=0.15)
    assert np.mean(errors) == pytest.approx(
        math.sqrt(difference_variance(0.2, 0.2, 0.9) / n), rel=0.05
    )
    assert above / 300 < 0.09
    again = sharpe_difference_bootstrap(a + 0.2, b + 0.2, mean_block=1.0, samples=400, seed=1)
    assert again.error == pytest.approx(errors[-1], rel=0.25)


def test_the_false_signal_bound_is_clopper_and_pearsons() -> None:
    # 17 % of 441, 18 % of 1022 and 3 of 37 independent signals bound the share below 20 %.
    assert clopper_pearson_upper(3, 37) < 0.2
    assert clopper_pearson_upper(74, 441) < 0.2 < clopper_pearson_upper(75, 441)
    assert clopper_pearson_upper(183, 1022) < 0.2 < clopper_pearson_upper(184, 1022)
    assert clopper_pearson_upper(22, 153) < 0.2 < clopper_pearson_upper(23, 153)
    assert clopper_pearson_upper(5, 5) == clopper_pearson_upper(0, 0) == 1.0


def test_simultaneous_intervals_count_once() -> None:
    begin = np.array([0, 0, 100, 150, 300], np.int64)
    end = np.array([100, 100, 200, 250, 310], np.int64)
    assert uniqueness(begin, end).tolist() == [0.5, 0.5, 0.75, 0.75, 1.0]
    assert uniqueness(np.array([5]), np.array([5])).tolist() == [1.0]
    assert len(uniqueness(begin[:0], end[:0])) == 0


def test_whole_days_are_resampled() -> None:
    # Ten days of opposite sign: within-day blocks would see no doubt in a mean that days leave open.
    t_ns = day_start_ns("2026-01-01") + np.arange(1, 10 * 24 + 1) * (DAY_NS // 24)
    values = np.repeat([1.0, -0.8] * 5, 24)
    lower = day_bound(t_ns, values, samples=500, seed=1)
    assert lower == pytest.approx(0.1 - 1.645 * 0.9 / math.sqrt(10), abs=0.12)
    assert day_bound(t_ns[:24], values[:24], samples=10, seed=1) == -math.inf


def test_stability_is_that_of_nogueira() -> None:
    same = np.tile(np.arange(10) < 3, (5, 1))
    assert selection_stability(same) == (1.0, 1.0, 1.0)
    # By hand, M = 2, d = 4, k = 2, one in common: p = (1, ½, ½, 0), 1 - 2·(0.5/4)/(¼) = 0.
    once = np.array([[True, True, False, False], [True, False, True, False]])
    assert selection_stability(once).value == pytest.approx(0.0)
    generator = np.random.default_rng(5)
    inside = 0
    for _ in range(200):
        chosen = np.argsort(generator.random((20, 40)), axis=1) < 8
        found = selection_stability(chosen)
        inside += found.low <= 0.0 <= found.high
    assert inside / 200 > 0.9
    assert math.isnan(selection_stability(np.ones((3, 4), bool)).value)
    with pytest.raises(ValueError, match="at least two"):
        selection_stability(once[:1])


def test_a_sequential_bound_holds_at_all_looks_and_finds_what_is_there() -> None:
    generator = np.random.default_rng(6)
    ever, naive = 0, 0
    for _ in range(500):
        x = generator.normal(size=60)
        looks = range(5, 61)
        ever += any(anytime_lower(x[:n], 0.05, 1.0) > 0 for n in looks)
        naive += any(x[:n].mean() > 1.645 * x[:n].std(ddof=1) / math.sqrt(n) for n in looks)
    assert ever / 500 <= 0.05
    assert naive / 500 > 0.15
    strong = 1.0 + generator.normal(size=60)
    assert 0.5 < anytime_lower(strong, 0.05, 1.0) < strong.mean()
    # Of scale and place: the bound moves with the data.
    assert anytime_lower(3 * strong + 2, 0.05, 1.0) == pytest.approx(
        3 * anytime_lower(strong, 0.05, 1.0) + 2
    )
    assert anytime_lower(strong[:1], 0.05, 1.0) == -math.inf
