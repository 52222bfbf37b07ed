"""The liquidity survey over hand-made bars."""

from __future__ import annotations

import math

import numpy as np
import pytest

from execution.hazard import FillModel
from execution.liquidity_survey import (
    COLUMNS,
    RECOVERY_S,
    Floats,
    Survey,
    averaged,
    resilience,
    survey,
)


def quiet(seconds: int = 400) -> dict[str, Floats]:
    """A market in which every second is like the last: 2 base at either touch of 100."""
    bars = {name: np.ones(seconds) for name in COLUMNS}
    bars["mid_close"] = 100.0 * (1 + 1e-5 * np.cos(np.arange(seconds)))
    for side in ("bid", "ask"):
        bars[f"{side}_q1"] = np.full(seconds, 2.0)
        bars[f"{side}_d2"] = np.full(seconds, 900.0)
    return bars


def figures(found: Survey) -> dict[str, float]:
    return {each.name: each.median for each in found.measured if each.median is not None}


def test_depth_sweeps_and_flow_are_those_of_the_bars_in_money() -> None:
    bars = quiet()
    bars["sweep_buy_100k"] = np.full(400, 0.4)
    bars["sweep_sell_100k"] = np.full(400, 0.4)
    bars["buy_notional"], bars["sell_notional"] = np.full(400, 30.0), np.full(400, 10.0)
    found = survey("TEST", bars, FillModel.load())
    assert found.seconds == 400
    values = figures(found)
    assert values["depth within 2 bps, a side"] == 900
    assert values["sweep of 100,000"] == pytest.approx(0.4)
    assert values["queue at the touch"] == pytest.approx(200, rel=1e-3)
    taken = next(each for each in found.measured if each.name == "taken from a side")
    assert (taken.mean, taken.low, taken.high, taken.n) == (20, 10, 30, 800)


def test_a_sweep_beyond_the_book_is_counted_and_not_averaged() -> None:
    bars = quiet()
    bars["sweep_buy_1m"][:100] = math.nan
    found = {each.name: each for each in survey("TEST", bars, FillModel.load()).measured}
    assert found["sweep of 1,000,000"].n == 700
    assert found["sweep of 1,000,000 passes the book"].mean == pytest.approx(100 / 800)


def test_seconds_without_a_valid_book_are_left_out() -> None:
    bars = {name: np.full(50, math.nan) for name in COLUMNS}
    found = survey("TEST", bars, FillModel.load())
    assert all(each.n == 0 and each.mean is None for each in found.measured)
    assert found.resilience.half_life_s is None


def test_fill_probability_grows_with_time_and_outflow() -> None:
    calm, busy = quiet(), quiet()
    busy["buy_notional"] = busy["sell_notional"] = np.full(400, 50_000.0)
    values = [figures(survey("TEST", bars, FillModel.load())) for bars in (calm, busy)]
    chances = [[t[f"a lot at the touch fills within {h} s"] for h in (1, 5, 30)] for t in values]
    for each in chances:
        assert each == sorted(each)
    assert chances[1][0] > chances[0][0]


@pytest.mark.parametrize("half_life_s", [1.0, 4.0])
def test_the_half_life_of_depth_is_found_on_the_side_that_was_hit(half_life_s: float) -> None:
    """Every 60 s sellers take 450 of 900; what is missing is halved every half-life."""
    bars = quiet(1_000)
    since = np.arange(1_000) % 60
    bars["sell_notional"] = np.where(since == 0, 450.0, 1.0)
    bars["bid_d2"] = 900 - 450 * 2 ** (-since / half_life_s)
    found = resilience(bars)
    assert found.shocks == 16
    assert found.half_life_s == pytest.approx(half_life_s, rel=0.03)
    assert list(found.returned) == list(RECOVERY_S)
    assert found.returned[1] == pytest.approx(1 - 2 ** (-1 / half_life_s), abs=0.01)


def test_noise_of_depth_is_not_taken_for_recovery() -> None:
    """Without takers there are no shocks, however much depth moves."""
    bars = quiet()
    bars["bid_d2"] = np.random.Generator(np.random.Philox(key=1)).uniform(100, 900, 400)
    assert resilience(bars).shocks == 0


def test_an_exponential_average_skips_unknown_values() -> None:
    values = np.concatenate([np.full(600, 5.0), [math.nan], np.full(60, 1.0)])
    found = averaged(values)
    assert found[600] == pytest.approx(5)
    assert found[-1] == pytest.approx(1 + 4 * math.exp(-1), rel=0.02)
    assert math.isnan(averaged(np.full(3, math.nan))[2])
