"""What the monitor holds of a market, and what it lets us expect of a parent."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execution.liquidity import (
    PRIOR_S,
    Costs,
    Monitor,
    SpreadRegime,
    depth_lots,
    estimate_taker,
    sweep_bps,
)
from execution.venue import View
from market.units import SECOND_NS
from tests.execution.tape import ASKS, BIDS, INSTRUMENT, SYMBOL


def picture(now_ns: int = 0, shift: int = 0, **more: object) -> View:
    view = View(
        symbol=SYMBOL,
        now_ns=now_ns,
        bids=tuple((ticks + shift, lots) for ticks, lots in BIDS),
        asks=tuple((ticks + shift, lots) for ticks, lots in ASKS),
        stale=False,
        instrument=INSTRUMENT,
    )
    return msgspec.structs.replace(view, **more)


def test_depth_counts_the_levels_within_reach() -> None:
    assert depth_lots(BIDS, 100.5, 60.0) == 10  # 60 bps of 100.5 are 0.6 ticks
    assert depth_lots(BIDS, 100.5, 200.0) == 30
    assert depth_lots((), 100.5, 200.0) == 0


def test_a_sweep_costs_its_mean_distance_and_is_none_beyond_the_book() -> None:
    half = 0.5 / 100.5 * 1e4
    assert sweep_bps(ASKS, 100.5, 10) == pytest.approx(half)
    assert sweep_bps(ASKS, 100.5, 30) == pytest.approx((10 * 0.5 + 20 * 1.5) / 30 / 100.5 * 1e4)
    assert sweep_bps(ASKS, 100.5, 61) is None


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.integers(1, 59))
def test_a_larger_sweep_is_never_cheaper_a_lot(lots: int) -> None:
    smaller, larger = sweep_bps(ASKS, 100.5, lots), sweep_bps(ASKS, 100.5, lots + 1)
    assert smaller is not None
    assert larger is not None
    assert smaller <= larger + 1e-9


def test_volatility_is_learnt_from_the_mid() -> None:
    """A walk of ±1 tick a second around 10,000 has 1 bp per square root of a second."""
    monitor = Monitor(memory_s=1e9, sigma_bps=5.0)
    steps = np.random.Generator(np.random.Philox(key=1)).choice([-1, 1], 4_000).cumsum()
    for k, step in enumerate(steps.tolist()):
        monitor.see(picture(k * SECOND_NS, 9_900 + step))
    assert monitor.sigma_bps == pytest.approx(1.0, abs=0.05)


def test_outflow_is_what_takers_took_from_the_own_side() -> None:
    """A buyer waits at the bid, which sellers empty."""
    monitor = Monitor(memory_s=1e9)
    for k in range(1_001):
        monitor.see(picture(k * SECOND_NS, sold_lots=7 * k, bought_lots=2 * k))
    view = picture(0)
    assert monitor.outflow_lots_s(1, view) == pytest.approx(7, rel=0.02)
    assert monitor.outflow_lots_s(-1, view) == pytest.approx(2, rel=0.02)


def test_the_prior_outflow_is_one_queue_in_the_prior_time() -> None:
    assert Monitor().outflow_lots_s(1, picture()) == pytest.approx(10 / PRIOR_S)


def test_spread_regimes() -> None:
    monitor = Monitor()
    for k in range(60):
        monitor.see(picture(k * SECOND_NS, asks=((103, 10),)))
    assert monitor.regime(picture()) is SpreadRegime.ONE_TICK
    assert monitor.regime(picture(asks=((103, 10),))) is SpreadRegime.USUAL
    assert monitor.regime(picture(asks=((110, 10),))) is SpreadRegime.WIDE


def test_a_stale_view_changes_no_estimate() -> None:
    monitor = Monitor()
    monitor.see(picture(0))
    monitor.see(picture(SECOND_NS, 50, stale=True))
    before = monitor.sigma_bps
    monitor.see(picture(2 * SECOND_NS, 50))
    assert monitor.sigma_bps == before


# -- estimates -------------------------------------------------------------------------------------


def test_a_small_taker_pays_half_the_spread_and_the_fee() -> None:
    estimate = estimate_taker(Monitor(), picture(), 1, 5, Costs())
    half = 0.5 / 100.5 * 1e4
    assert estimate.total_bps == pytest.approx(half + 5.5)
    assert estimate.impact_bps == 0.0


def test_a_taker_beyond_the_visible_book_is_estimated_and_dearer() -> None:
    inside = estimate_taker(Monitor(), picture(), -1, 60, Costs())
    beyond = estimate_taker(Monitor(), picture(), -1, 10_000, Costs())
    assert beyond.total_bps > inside.total_bps
    assert math.isfinite(beyond.total_bps)
