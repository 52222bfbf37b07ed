"""Every probe lets honest work pass and names the leak that it is for."""

from __future__ import annotations

import numpy as np
import planted
import pytest

from market.lake import Lake
from market.units import SECOND_NS
from models_registry import dataset, probes
from models_registry.dataset import Rows
from models_registry.validation import information_coefficient

COUNT = 40_000
T_NS = np.arange(1, COUNT + 1, dtype=np.int64) * SECOND_NS
HORIZON = 60


@pytest.fixture(scope="module")
def market() -> tuple[np.ndarray, np.ndarray]:
    """Mid of a random walk, and features made of its past: last return, mean of 15, noise."""
    generator = np.random.Generator(np.random.Philox(key=1))
    returns = 1e-4 * generator.standard_t(5, COUNT)
    mid = 100.0 * np.exp(np.cumsum(returns))
    mean = np.convolve(returns, np.ones(15) / 15)[:COUNT]
    return mid, np.column_stack((returns, mean, generator.normal(size=COUNT)))


NAMES = ("return", "mean", "noise")


def shift(mid: np.ndarray, features: np.ndarray) -> probes.Probe:
    return probes.time_shift(features, NAMES, mid, T_NS, HORIZON)


@pytest.mark.parametrize("column", [0, 1])
def test_a_feature_one_bar_early_jumps(market, column: int) -> None:
    mid, features = market
    honest = shift(mid, features)
    assert honest.passed
    assert "2 of 3 features would show" in honest.text
    early = features.copy()
    early[:-1, column] = features[1:, column]
    found = shift(mid, early)
    assert not found.passed
    assert f"looks ahead: {NAMES[column]} " in found.text
    # A bar late only blunts it.
    late = features.copy()
    late[1:, column] = features[:-1, column]
    assert shift(mid, late).passed


def test_features_that_follow_nothing_say_that_they_could_not_tell(market) -> None:
    mid, features = market
    found = shift(mid, features[:, [2, 2, 2]])
    assert found.passed
    assert "would not show" in found.text


def test_a_decoy_made_of_the_label_ends_with_it(market) -> None:
    mid, features = market
    log = np.log(mid)
    label = np.full(COUNT, np.nan)
    label[: COUNT - 61] = log[61:] - log[1:-60]
    noise = np.random.default_rng(2).normal(size=COUNT)
    leaky = features.copy()
    leaky[:, 2] = label + np.nanstd(label) * noise
    assert probes.label_edge(features, NAMES, mid, T_NS, HORIZON).passed
    found = probes.label_edge(leaky, NAMES, mid, T_NS, HORIZON)
    assert not found.passed
    assert found.text.startswith("noise: ")
    short = probes.label_edge(features[:300], NAMES, mid[:300], T_NS[:300], HORIZON)
    assert "too few" in short.text


def test_a_centred_filter_and_a_whole_sample_s_scaler_change_with_later_data(market) -> None:
    mid, _ = market
    log = np.log(mid)

    def past(n: int) -> np.ndarray:
        return np.convolve(log[:n], np.ones(5) / 5)[:n, np.newaxis]

    def centred(n: int) -> np.ndarray:
        return np.convolve(log[:n], np.ones(5) / 5, mode="same")[:, np.newaxis]

    def scaled(n: int) -> np.ndarray:
        return ((log[:n] - log[:n].mean()) / log[:n].std())[:, np.newaxis]

    cuts = (5000, 12_345)
    assert probes.truncation(past, COUNT, cuts).passed
    assert probes.truncation(centred, COUNT, cuts).value == 4  # two rows before each cut
    assert probes.truncation(scaled, COUNT, cuts).value > 9_000


def test_a_shuffled_split_overlaps_and_a_purged_one_does_not() -> None:
    reach = 61
    assert probes.split(T_NS[: 10_000 - reach + 1], T_NS[10_000:], HORIZON).passed
    one = probes.split(T_NS[: 10_000 - reach + 2], T_NS[10_000:], HORIZON)
    assert one.value == 1
    after = probes.split(T_NS[10_000:], T_NS[:10_000], HORIZON)
    assert after.value == reach - 1
    shuffled = np.random.default_rng(3).permutation(T_NS)
    assert probes.split(shuffled[:10_000], shuffled[10_000:], HORIZON).value > 9_000


@pytest.fixture(scope="module")
def rows(planted_lake: Lake) -> Rows:
    names, horizons = planted.FEATURES.names, planted.HORIZONS
    return dataset.load(
        planted_lake, planted.SYMBOLS, ["2026-01-01", "2026-01-02"], names, horizons, 5
    )


def knn(train: Rows, test: Rows) -> np.ndarray:
    """Predicts the label of the nearest training time: memorises what overlaps."""
    order = np.argsort(train.t_ns, kind="stable")
    at = np.searchsorted(train.t_ns[order], test.t_ns).clip(1, len(order) - 1)
    return np.nan_to_num(train.labels_bps[order, 1])[at]


@pytest.mark.parametrize("shuffled", [False, True])
def test_permuted_labels_are_predicted_only_across_a_shuffled_split(rows, shuffled) -> None:
    half = rows.t_ns <= np.median(rows.t_ns)
    if shuffled:
        half = np.random.default_rng(4).random(len(rows)) < 0.5

    def score(given: Rows) -> tuple[float, float]:
        train, test = given.where(half), given.where(~half)
        ic = information_coefficient(knn(train, test), test.labels_bps[:, 1], test.t_ns, HORIZON)
        return ic.rank, ic.n_eff

    assert probes.permuted(score, rows, 900, seed=5).passed is not shuffled


def test_permuted_labels_are_those_of_other_blocks(rows) -> None:
    moved = probes.permute(rows, 900, 6)
    assert np.nanmean(moved == rows.labels_bps) < 0.2
    known = np.sort(moved[~np.isnan(moved)])
    assert len(known) > 0.98 * np.sum(~np.isnan(rows.labels_bps))
    assert np.isin(known, rows.labels_bps).all()


def test_a_scaler_fitted_on_all_rows_changes_with_later_ones(rows) -> None:
    later = rows.t_ns > np.median(rows.t_ns)

    def honest(given: Rows) -> bytes:
        return given.features[~later].mean(axis=0).tobytes()

    def leaky(given: Rows) -> bytes:
        return given.features.mean(axis=0).tobytes()

    assert probes.future_fit(honest, rows, later, seed=1).passed
    assert not probes.future_fit(leaky, rows, later, seed=1).passed


def test_noise_may_be_chosen_once_and_not_twice() -> None:
    importance = np.tile([5.0, 4.0, 3.0, 0.0], (3, 1))
    noise = np.array([False, False, False, True])
    importance[0, 3] = 9.0
    assert probes.decoys(importance, noise, 2).passed
    importance[1, 3] = 9.0
    assert not probes.decoys(importance, noise, 2).passed
