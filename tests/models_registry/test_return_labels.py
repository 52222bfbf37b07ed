"""Labels on paths made by hand: direction, costs, barriers, gaps and uniqueness."""

from __future__ import annotations

import numpy as np
import pytest

from models_registry import labels
from models_registry.statistics import uniqueness
from models_registry.validation import effective_count

SECOND = 1_000_000_000


def seconds(*values: int) -> np.ndarray:
    return np.array(values, np.int64) * SECOND


def test_direction_is_flat_within_a_band_of_the_volatility_known_then() -> None:
    returns = np.array([3.0, -3.0, 1.0, np.nan, 3.0, 3.0])
    scale = np.array([2.0, 2.0, 2.0, 2.0, 4.0, np.nan])
    found = labels.direction(returns, scale, 1.0)
    assert np.array_equal(found, [1, -1, 0, np.nan, 0, np.nan], equal_nan=True)
    assert labels.direction(returns, scale, 1.0, least=5.0)[:3].tolist() == [0, 0, 0]


def test_the_band_is_a_third_of_the_training_returns() -> None:
    returns = np.append(np.arange(1.0, 10.0), np.nan)
    k = labels.band_width(returns, np.full(10, 2.0))
    assert (labels.direction(returns, np.full(10, 2.0), k)[:9] == 0).sum() == 3
    assert labels.band_width(np.array([np.nan]), np.ones(1)) == 0.0


@pytest.mark.parametrize(("fee_bps", "label"), [(0.0, 1.0), (40.0, 1.0), (60.0, 0.0)])
def test_a_round_trip_buys_at_the_ask_a_second_later_and_sells_at_the_bid(fee_bps, label) -> None:
    bid = np.array([1.0, 100.0, 50.0, 102.0])
    found = labels.cost_aware(seconds(1, 2, 3, 4), bid, bid + 1.0, 2, fee_bps)
    fee = fee_bps * 1e-4
    assert found.long_bps[0] == pytest.approx(1e4 * (102 * (1 - fee) - 101 * (1 + fee)) / 101)
    assert found.short_bps[0] == pytest.approx(1e4 * (100 * (1 - fee) - 103 * (1 + fee)) / 100)
    assert found.label[0] == label
    assert np.isnan(found.label[1:]).all()


def test_a_fall_is_a_short_and_a_gap_is_no_label() -> None:
    bid = np.array([100.0, 100.0, 90.0, 90.0])
    assert labels.cost_aware(seconds(1, 2, 3, 4), bid, bid, 1, 0.0).label[0] == -1
    assert np.isnan(labels.cost_aware(seconds(1, 2, 4, 5), bid, bid, 1, 0.0).label[0])


@pytest.mark.parametrize(
    ("bid", "label", "ends"),
    [
        ([100, 100, 101, 102, 90, 100], 1, 4),  # the bid reaches 1 % above the ask first
        ([100, 100, 100.9, 100, 98, 103], -1, 5),  # the ask reaches 1 % below the bid first
        ([100, 100, 101, 100, 99, 100], 0, 6),  # the spread keeps both exits away
        ([100, 50, 51.1, 50.6, 50.5, 50], 1, 3),  # the entry is a second after the decision
    ],
)
def test_the_first_barrier_that_an_executable_exit_reaches(bid, label, ends) -> None:
    quotes = np.array(bid, float)
    found, end = labels.triple_barrier(
        seconds(1, 2, 3, 4, 5, 6), quotes, quotes + 0.5, np.full(6, 0.01), 4
    )
    assert (found[0], end[0]) == (label, ends * SECOND)
    assert np.isnan(found[1:]).all()
    assert not end[1:].any()


def test_barriers_across_a_gap_or_a_missing_quote_are_unknown() -> None:
    flat = np.full(4, 100.0)
    assert np.isnan(labels.triple_barrier(seconds(1, 2, 4, 5), flat, flat, flat, 2)[0]).all()
    assert np.isnan(labels.triple_barrier(seconds(1, 2, 3, 4), flat * np.nan, flat, flat, 2)[0][0])


def test_the_sum_of_uniqueness_is_the_effective_number_of_labels() -> None:
    t_ns = seconds(*range(0, 6000, 15), *range(20_000, 26_000, 15))
    own = uniqueness(t_ns, t_ns + 300 * SECOND)
    assert own.sum() == pytest.approx(effective_count(t_ns, 300), rel=0.06)
    both = labels.weights(np.repeat(t_ns, 2), np.tile([0, 1], len(t_ns)).astype(np.int8), 300)
    assert both.mean() == pytest.approx(1.0)
    assert np.array_equal(both[::2], both[1::2])
    assert both[0] > both[200]
