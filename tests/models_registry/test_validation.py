"""Folds against hand-made intervals and scikit-learn; IC and bounds against references."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn.model_selection import TimeSeriesSplit

from market.units import DAY_NS, SECOND_NS, day_start_ns
from models_registry.validation import (
    Decisions,
    TimeSpan,
    bin_sums,
    combinatorial_purged,
    effective_count,
    information_coefficient,
    lower_bound,
    normal_scores,
    split_tail,
    stationary_indices,
    walk_forward,
)

START = day_start_ns("2026-01-01")


def grid(days: list[int], step_s: int) -> np.ndarray:
    """Decision times of whole days, the last of each on the next midnight."""
    seconds = np.arange(step_s, 86_400 + 1, step_s)
    return np.concatenate([START + (d * 86_400 + seconds) * SECOND_NS for d in days])


def folds(t_ns: np.ndarray, *, horizon: int = 900, share: float = 0.2, blocks: int = 20):
    return walk_forward(
        t_ns,
        min_train_days=2,
        max_test_blocks=blocks,
        calibration_share=share,
        max_horizon_s=horizon,
    )


@settings(derandomize=True, max_examples=40, deadline=None)
@given(
    days=st.sets(st.integers(0, 9), min_size=3, max_size=7),
    step=st.sampled_from([60, 300, 700]),
    horizon=st.sampled_from([10, 60, 900, 5000]),
    share=st.sampled_from([0.1, 0.2, 0.5]),
    blocks=st.integers(1, 6),
)
def test_no_label_reaches_into_what_comes_next(days, step, horizon, share, blocks) -> None:
    # Invariant: the label (t + 1 s, t + 1 s + h] of every training row ends no later than the first
    # calibration row, and that of every calibration row no later than the test block begins; test
    # blocks are disjoint, in order, and together the dates after the training days.
    t_ns = grid(sorted(days), step)
    reach = (1 + horizon) * SECOND_NS
    seen = []
    for fold in folds(t_ns, horizon=horizon, share=share, blocks=blocks):
        train, held, test = (
            t_ns[span.mask(t_ns)] for span in (fold.train, fold.calibration, fold.test)
        )
        assert len(test)
        if len(held):
            assert held.max() + reach <= test.min()
            if len(train):
                assert train.max() + reach <= held.min()
        seen.append(test)
    assert len(seen) <= blocks
    dates = sorted(days)[2:]
    assert np.array_equal(np.concatenate(seen), grid(dates, step))


def test_purging_keeps_the_training_rows_of_scikit_learn() -> None:
    step, horizon = 60, 900
    t_ns = grid(list(range(6)), step)
    per_day = 86_400 // step
    # The rows dropped are those less than 1 + h before the block's midnight, which is a row itself.
    gap = math.ceil((1 + horizon) / step)
    judge = TimeSeriesSplit(n_splits=4, test_size=per_day, gap=gap)
    for fold, (train, test) in zip(folds(t_ns), judge.split(t_ns), strict=True):
        ours = np.flatnonzero(fold.train.mask(t_ns) | fold.calibration.mask(t_ns))
        assert ours.max() == train.max()
        assert np.array_equal(np.flatnonzero(fold.test.mask(t_ns)), test)


def test_hand_made_intervals_are_purged_to_the_second() -> None:
    # Three days, h = 60: the calibration ends 61 s before midnight, not 60 and not 62.
    seconds = np.arange(1, 86_401)
    t_ns = np.concatenate([START + (d * 86_400 + seconds) * SECOND_NS for d in range(3)])
    (fold,) = folds(t_ns, horizon=60)
    midnight = START + 2 * DAY_NS
    held = t_ns[fold.calibration.mask(t_ns)]
    assert held.max() == midnight - 61 * SECOND_NS
    train = t_ns[fold.train.mask(t_ns)]
    assert train.max() == held.min() - 61 * SECOND_NS
    assert len(held) == pytest.approx(0.2 * (len(held) + len(train) + 60), abs=2)


#: Training rows and paths of CombinatorialPurgedCV(n_folds=6, n_test_folds=2, purged_size=2,
#: embargo_size=3) of skfolio 1.12.2 on 60 rows, split by split.
SKFOLIO = [
    ("25-59", (0, 0)), ("15-17 35-59", (1, 0)), ("15-27 45-59", (2, 0)), ("15-37 55-59", (3, 0)),
    ("15-47", (4, 0)), ("0-7 35-59", (1, 1)), ("0-7 25-27 45-59", (2, 1)), ("0-7 25-37 55-59", (3, 1)),
    ("0-7 25-47", (4, 1)), ("0-17 45-59", (2, 2)), ("0-17 35-37 55-59", (3, 2)),
    ("0-17 35-47", (4, 2)), ("0-27 55-59", (3, 3)), ("0-27 45-47", (4, 3)), ("0-37", (4, 4)),
]  # fmt: skip


def test_combinatorial_splits_and_paths_are_those_of_skfolio() -> None:
    # One row a second and labels of 2 s: two rows before a test group reach into it.
    t_ns = np.arange(1, 61) * SECOND_NS
    shuffled = np.random.default_rng(1).permutation(60)
    found = list(
        combinatorial_purged(t_ns[shuffled], groups=6, test_groups=2, max_horizon_s=2, embargo_s=3)
    )
    for split, (train, paths) in zip(found, SKFOLIO, strict=True):
        spans = [tuple(map(int, span.split("-"))) for span in train.split()]
        expected = np.concatenate([np.arange(first, last + 1) for first, last in spans])
        assert np.array_equal(shuffled[split.train], expected)
        assert split.paths == paths
        assert np.array_equal(shuffled[split.test] // 10, np.repeat(split.groups, 10))


def test_each_of_the_paths_tests_every_row_once() -> None:
    t_ns = np.repeat(grid([0, 1, 4], 600), 2)  # two symbols a time, and a break
    paths = np.zeros((8, len(t_ns)))
    splits = list(combinatorial_purged(t_ns, groups=9, test_groups=2, max_horizon_s=900))
    assert len(splits) == math.comb(9, 2)
    reach = 901 * SECOND_NS
    group = np.empty(len(t_ns), np.int64)
    for split in splits:
        for number, rows in zip(split.groups, np.split(split.test, 2), strict=True):
            group[rows] = number
    for split in splits:
        for number, path in zip(split.groups, split.paths, strict=True):
            paths[path, split.test[group[split.test] == number]] += 1
        gaps = np.abs(t_ns[split.train][:, np.newaxis] - t_ns[split.test])
        assert gaps.min() >= reach
    assert (paths == 1).all()
    with pytest.raises(ValueError, match="make no split"):
        next(combinatorial_purged(t_ns, groups=2, test_groups=2, max_horizon_s=1))


def test_too_few_days_make_no_fold() -> None:
    assert folds(grid([0, 1], 60)) == ()
    assert folds(np.empty(0, np.int64)) == ()


def test_a_tail_of_an_empty_span_is_empty() -> None:
    t_ns = grid([0], 60)
    head, tail = split_tail(t_ns, TimeSpan(START + 5 * DAY_NS, START + 6 * DAY_NS), 0.2, 60)
    assert not head.mask(t_ns).any()
    assert not tail.mask(t_ns).any()


def test_normal_scores_rank_like_spearman_and_ignore_size() -> None:
    generator = np.random.default_rng(1)
    x = generator.normal(size=4000)
    y = 0.3 * x + generator.normal(size=4000)
    ours = float(np.mean(normal_scores(x) * normal_scores(y)))
    # For a bivariate normal pair both are functions of the same correlation.
    implied = 2.0 * np.sin(np.pi / 6.0 * spearmanr(x, y).statistic)
    assert ours == pytest.approx(implied, abs=0.02)
    assert np.allclose(normal_scores(np.exp(x)), normal_scores(x))
    assert np.isnan(normal_scores(np.array([1.0, np.nan, 2.0]))[1])
    assert not normal_scores(np.ones(10)).any()


def test_ic_agrees_with_scipy_and_is_zero_for_a_constant() -> None:
    generator = np.random.default_rng(2)
    t_ns = START + np.arange(1, 2001) * SECOND_NS
    x = generator.normal(size=2000)
    y = 0.2 * x + generator.normal(size=2000)
    y[::10] = np.nan
    known = ~np.isnan(y)
    found = information_coefficient(x, y, t_ns, 10)
    assert found.pearson == pytest.approx(pearsonr(x[known], y[known]).statistic)
    assert found.rows == known.sum()
    constant = information_coefficient(np.zeros(2000), y, t_ns, 10)
    assert (constant.rank, constant.pearson) == (0.0, 0.0)


def test_overlapping_labels_and_a_second_symbol_add_no_evidence() -> None:
    hour = START + np.arange(1, 3601) * SECOND_NS
    assert effective_count(hour, 60) == pytest.approx(60.0)
    assert effective_count(np.repeat(hour, 2), 60) == pytest.approx(60.0)
    assert effective_count(hour[::15], 60) == pytest.approx(60.0)
    # A break adds at most one label's length, however long it is.
    apart = np.concatenate([hour, hour + 7 * DAY_NS])
    assert effective_count(apart, 60) == pytest.approx(120.0, abs=1.1)
    assert effective_count(np.empty(0, np.int64), 60) == 0.0


def test_bins_keep_symbols_of_one_second_together() -> None:
    t_ns = START + np.array([0, 0, 10, 299, 300, 300], np.int64) * SECOND_NS
    sums = bin_sums(t_ns, (np.arange(6.0), np.ones(6)), 300)
    assert sums.tolist() == [[6.0, 4.0], [9.0, 2.0]]


def test_stationary_blocks_have_the_mean_length_and_cover_evenly() -> None:
    generator = np.random.Generator(np.random.Philox(key=3))
    count, mean = 500, 20.0
    drawn = np.concatenate([stationary_indices(generator, count, mean) for _ in range(200)])
    joins = np.mean(np.diff(drawn) % count != 1)
    assert 1.0 / joins == pytest.approx(mean, rel=0.05)
    visits = np.bincount(drawn, minlength=count)
    assert visits.min() > 0.5 * visits.mean()


def test_the_lower_bound_has_its_coverage_on_autocorrelated_data() -> None:
    # AR(1) with a mean of zero: the lower bound lies above zero in about 5 % of histories; an
    # independent bootstrap would do so in far more.
    above, naive = 0, 0
    histories = 80
    t_ns = START + np.arange(400) * 300 * SECOND_NS
    for history in range(histories):
        generator = np.random.Generator(np.random.Philox(key=[7, history]))
        x = np.zeros(500)
        for i, shock in enumerate(generator.normal(size=499), start=1):
            x[i] = 0.7 * x[i - 1] + shock
        x = x[100:]
        ones = np.ones(len(x))
        blocks = lower_bound(t_ns, x, ones, block_s=6000, samples=120, seed=history)
        single = lower_bound(t_ns, x, ones, block_s=300, samples=120, seed=history)
        above += blocks > 0
        naive += single > 0
    assert above / histories < 0.13
    assert naive / histories > 0.15


def test_a_bound_is_deterministic_and_without_weight_minus_infinity() -> None:
    t_ns = START + np.arange(100) * 300 * SECOND_NS
    values = np.random.default_rng(5).normal(size=100)
    first, second = (
        lower_bound(t_ns, values, np.ones(100), block_s=600, samples=100, seed=9) for _ in range(2)
    )
    assert first == second
    assert lower_bound(t_ns, values, np.zeros(100), block_s=600, samples=10, seed=9) == -np.inf
    # One weighted bin among a hundred: many resamples miss it, and that is no good evidence.
    once = np.zeros(100)
    once[50] = 1.0
    assert lower_bound(t_ns, values, once, block_s=600, samples=100, seed=9) == -np.inf


def test_a_part_of_named_decisions_has_none_of_those_between() -> None:
    t_ns = grid([0], 60)
    named = Decisions(START, int(t_ns[-1]), np.concatenate([t_ns[:400], t_ns[900:]]))
    head, tail = split_tail(t_ns, named, 0.5, 60)
    kept, scored = t_ns[head.mask(t_ns)], t_ns[tail.mask(t_ns)]
    assert np.isin(kept, named.times).all()
    assert np.isin(scored, named.times).all()
    assert len(scored) == len(named.times) // 2
    assert kept.max() + 61 * SECOND_NS <= scored.min()
