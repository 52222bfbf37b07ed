"""How large a position may be."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execution.sizing import (
    Edge,
    kelly,
    liquidity_lots,
    portfolio_scale,
    shrunk_bps,
    size,
    volatility_share,
)


def test_a_known_edge_gets_a_quarter_of_kelly() -> None:
    """μ = 1 bp and σ = 100 bps: full Kelly holds μ/σ² = 1, a quarter of it 0.25."""
    assert kelly(Edge(mean_bps=1, error_bps=0, sigma_bps=100)) == pytest.approx(0.25)
    assert kelly(Edge(mean_bps=-1, error_bps=0, sigma_bps=100)) == pytest.approx(-0.25)


def test_an_edge_within_its_error_is_zero() -> None:
    assert shrunk_bps(1.0, 1.0) == 0.0
    assert shrunk_bps(1.0, 2.0) == 0.0
    assert shrunk_bps(2.0, 1.0) == pytest.approx(1.5)
    assert shrunk_bps(0.0, 1.0) == 0.0


def test_the_volatility_target_halves_a_position_when_volatility_doubles() -> None:
    assert volatility_share(50, 200) == pytest.approx(volatility_share(50, 100) / 2)


def test_correlated_positions_are_scaled_and_a_hedge_is_not() -> None:
    sigmas = {"BTCUSDT": 100.0, "ETHUSDT": 100.0}
    both = {"BTCUSDT": 1.0, "ETHUSDT": 1.0}
    hedge = {"BTCUSDT": 1.0, "ETHUSDT": -1.0}
    alike = [[1.0, 0.8], [0.8, 1.0]]
    assert portfolio_scale(both, sigmas, alike, 100.0) == pytest.approx(1 / math.sqrt(3.6))
    assert portfolio_scale(hedge, sigmas, alike, 100.0) == 1.0


@pytest.mark.parametrize(
    "matrix", [[[1.0, 0.5]], [[1.0, 0.5], [0.4, 1.0]], [[1.0, 2.0], [2.0, 1.0]], [[2.0, 0], [0, 2]]]
)
def test_a_matrix_that_is_no_correlation_is_refused(matrix: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="correlation"):
        portfolio_scale({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 1.0}, matrix, 1.0)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(
    st.floats(-50, 50),
    st.floats(0, 20),
    st.floats(1, 500),
    st.floats(1, 200),
    st.floats(0.01, 2),
    st.floats(-5, 5),
)
def test_no_limit_is_exceeded_and_the_side_is_the_edges(
    mean: float, error: float, sigma: float, target: float, cap: float, funding: float
) -> None:
    """A size is never beyond the cap, the volatility target or Kelly without funding received, and
    never against the edge."""
    edge = Edge(mean_bps=mean, error_bps=error, sigma_bps=sigma)
    share = size(edge, target_sigma_bps=target, cap_share=cap, funding=funding)
    assert abs(share) <= min(cap, volatility_share(target, sigma)) + 1e-12
    assert share * mean >= 0
    if funding >= 0:
        assert abs(share) <= abs(kelly(edge)) + 1e-12
    if funding >= abs(mean):
        assert share == 0


def test_the_liquidity_cap_rounds_down() -> None:
    assert liquidity_lots(99, 0.1) == 9


@pytest.mark.parametrize("sigma", [0.0, -1.0])
def test_volatility_has_to_be_positive(sigma: float) -> None:
    with pytest.raises(ValueError, match="volatility"):
        volatility_share(10, sigma)
    with pytest.raises(ValueError, match="volatility"):
        kelly(Edge(mean_bps=1, error_bps=0, sigma_bps=sigma))
