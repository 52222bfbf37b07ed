"""Features as float32: what is rounded and how, and that 24 bits are enough for every feature."""

from __future__ import annotations

import numpy as np
import pytest
from feature_bars import NAMES, random_bars
from hypothesis import given
from hypothesis import strategies as st

from market.columns import COLUMNS
from market.features import FeatureEvaluator, feature_names
from market.features.precision import rounded
from market.units import SECOND_NS, day_start_ns

ANY = st.lists(st.floats(allow_nan=True, allow_infinity=True, width=64), min_size=1)


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (0.1, 0.10000000149011612),  # the nearest, not the one below
        (16_777_217.0, 16_777_216.0),  # 2^24 + 1: a tie goes to the even
        (16_777_219.0, 16_777_220.0),
        (-0.0, -0.0),
        (1e-46, 0.0),
        (3.4028234663852886e38, 3.4028234663852886e38),
        (1e39, np.nan),  # no infinity: the SQL has NULL for what cannot be held
        (-1e100, np.nan),
        (np.inf, np.nan),
        (np.nan, np.nan),
    ],
)
def test_a_feature_is_the_nearest_float32_or_nothing(value: float, kept: float) -> None:
    found = rounded(np.array([value]))
    assert found.dtype == np.float32
    assert np.array_equal(found.astype(np.float64), [kept], equal_nan=True)
    assert np.signbit(found[0]) == np.signbit(kept) or np.isnan(kept)


@given(ANY)
def test_rounding_twice_is_rounding_once_and_keeps_order(values: list[float]) -> None:
    source = np.sort(np.array(values))  # NaN last
    once = rounded(source)
    assert np.array_equal(rounded(once), once, equal_nan=True)
    finite = once[np.isfinite(once)]
    assert (np.diff(finite) >= 0).all()
    assert np.array_equal(source, np.sort(np.array(values)), equal_nan=True)  # a copy


@pytest.mark.parametrize("price", [1e-8, 0.3, 60_000.0, 1e8])
@pytest.mark.parametrize("lot", [1e-6, 1.0, 1e9])
def test_24_bits_resolve_every_feature_at_any_price_and_lot(price: float, lot: float) -> None:
    """A feature is relative: whatever the market's units, rounding is small beside its variation."""
    bars = random_bars(np.random.default_rng(5), 1_200, price)
    for n, name in enumerate(NAMES):
        unit = COLUMNS[name][0]
        is_price = name.startswith(("mid_", "micro_", "vamp_")) or name in (
            *("vwap", "last_price", "mark", "index_price"),
        )
        if unit == "base":
            bars[:, n] *= lot
        elif unit.startswith("quote") and not is_price:
            bars[:, n] *= lot * price
    evaluator = FeatureEvaluator(["BTCUSDT"])
    start_ns, rows = day_start_ns("2026-01-02"), []
    for n, bar in enumerate(bars):
        t_ns = start_ns + (n + 1) * SECOND_NS
        evaluator.push("BTCUSDT", t_ns, bar)
        evaluator.push("ETHUSDT", t_ns, bar)
        if n >= 1_000:
            rows.append(evaluator.evaluate("BTCUSDT")[0].copy())
    values = np.array(rows)
    judged = 0
    for name, of_one in zip(feature_names(), values.T, strict=True):
        known = of_one[np.isfinite(of_one)]
        if len(known) > 100:
            judged += 1
            worst = np.abs(rounded(known) - known).max()
            assert worst <= max(1e-4 * known.std(), 1e-9), name
    assert judged > 140
