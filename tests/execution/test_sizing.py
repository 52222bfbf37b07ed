"""How large a position may be, and which cap says so."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execution.sizing import (
    HEADROOM,
    Edge,
    Inputs,
    Size,
    kelly,
    position_lots,
    shrunk_bps,
)
from market.settings import Desk, Risk

#: Two bps, known to a tenth, for 0.1 bps, in a market of 50 % a year.
EDGE = Edge(
    mean_bps=2.0, error_bps=0.1, cost_bps=0.1, sigma_bps=6.9, horizon_s=60.0, impact_bps=0.001
)
PLAIN = Inputs(
    side=1,
    desk=Desk(),
    risk=Risk(),
    lot_usdt=60.0,
    edge=EDGE,
    equity_usdt=200_000.0,
    depth_lots=40_000,
    room_usdt=(400_000.0, 600_000.0),
)


def sized(edge: dict[str, Any] | None = None, **changes: Any) -> Size:
    """The size of `PLAIN` with changes, of its edge too."""
    if edge is not None:
        changes["edge"] = msgspec.structs.replace(EDGE, **edge)
    return position_lots(msgspec.structs.replace(PLAIN, **changes))


def test_a_known_edge_gets_its_share_of_kelly() -> None:
    """μ = 1 bp and σ = 100 bps: full Kelly holds μ/σ² = 1, a quarter of it 0.25."""
    assert kelly(1.0, 100.0, 0.25) == pytest.approx(0.25)
    assert kelly(-1.0, 100.0, 0.25) == 0.0


def test_an_edge_within_its_error_is_zero_and_one_without_error_counts_half() -> None:
    assert shrunk_bps(1.0, 1.0) == shrunk_bps(1.0, 2.0) == shrunk_bps(0.0, 1.0) == 0.0
    assert shrunk_bps(2.0, 1.0) == pytest.approx(1.5)
    assert msgspec.structs.replace(EDGE, error_bps=math.nan).net_bps == pytest.approx(0.9)
    assert EDGE.net_bps == pytest.approx(2.0 * (1 - 0.05**2) - 0.1)


def test_every_cap_is_its_formula_and_the_smallest_binds() -> None:
    size = sized()
    net, year = EDGE.net_bps, 6.9e-4 * math.sqrt(365 * 86_400 / 60)
    assert size.caps == {
        "kelly": math.floor(200_000 * 0.002 * net * 1e-4 / 6.9e-4**2 / 60),
        "impact": math.floor((net / 0.003) ** 2),
        "volatility": math.floor(200_000 * 0.1 / year / 60),
        "depth": 4_000,
        "symbol": math.floor(50_000 / 60),
        "order": math.floor(HEADROOM * 50_000 / 60),
        "position": math.floor(HEADROOM * 200_000 / 60),
        "book": math.floor(HEADROOM * 400_000 / 60),
        "leverage": math.floor(HEADROOM * 600_000 / 60),
    }
    assert (size.lots, size.binding) == (size.caps["volatility"], "volatility")


@pytest.mark.parametrize(
    ("changes", "lots", "binding"),
    [
        ({"edge": {"mean_bps": 0.0}}, 0, "kelly"),  # no edge
        ({"edge": {"mean_bps": 2.0, "error_bps": 2.0}}, 0, "kelly"),
        ({"edge": {"cost_bps": 2.0}}, 0, "kelly"),
        ({"edge": {"mean_bps": math.nan}}, 0, "kelly"),
        ({"edge": {"mean_bps": 1e9, "error_bps": 0.0}}, 666, "volatility"),  # huge edge
        ({"edge": {"mean_bps": 0.2, "impact_bps": 0.01}}, 2, "impact"),
        ({"edge": {"sigma_bps": math.nan}}, 0, "volatility unknown"),
        ({"edge": {"sigma_bps": 0.0}}, 0, "volatility unknown"),
        ({"depth_lots": 0}, 0, "depth"),  # no depth
        ({"depth_lots": 19}, 1, "depth"),
        ({"equity_usdt": 0.0}, 0, "equity"),
        ({"equity_usdt": -5.0}, 0, "equity"),
        ({"equity_usdt": math.nan}, 0, "equity"),
        ({"equity_usdt": 240.0}, 0, "volatility"),
        ({"equity_usdt": 302.0}, 1, "volatility"),  # one lot
        ({"equity_usdt": 302.0, "least_lots": 2}, 0, "volatility"),
        ({"lot_usdt": 60_000.0}, 0, "volatility"),  # a lot larger than the cap
        ({"risk": Risk(order_usdt=59.0)}, 0, "order"),
        ({"against_lots": 800}, 16, "order"),
        ({"against_lots": 5_000}, 0, "order"),
        ({"risk": Risk(position_usdt=6_000.0)}, 98, "position"),
        ({"room_usdt": (0.0, 1e9)}, 0, "book"),
        ({"room_usdt": (1e9, 60.0)}, 0, "leverage"),
        ({"group_usdt": {"ETHUSDT": 79_000.0}}, 16, "group"),
        ({"group_usdt": {"ETHUSDT": 90_000.0}}, 0, "group"),
        ({"group_usdt": {"ETHUSDT": -90_000.0}}, 666, "volatility"),  # a hedge adds no room
        ({"more": {"margin": 7}}, 7, "margin"),
        ({"ramp": 0.25}, 166, "ramp"),
        ({"ramp": 0.25, "depth_lots": 10}, 1, "depth"),  # one lot is not made less
        ({"ramp": 0.25, "depth_lots": 0}, 0, "depth"),
        ({"edge": None, "fixed_lots": 167}, 167, "fixed"),
        ({"edge": None, "fixed_lots": 167, "more": {"margin": 7}}, 7, "margin"),
        ({"edge": None, "fixed_lots": 167, "ramp": 0.5}, 83, "ramp"),
        ({"edge": None, "fixed_lots": 1, "least_lots": 2}, 0, "fixed"),
    ],
)
def test_the_ends(changes: dict[str, Any], lots: int, binding: str) -> None:
    edge = changes.pop("edge", {})
    size = sized(**changes, **({"edge": edge} if edge is not None else {"edge": None}))
    if edge is None:
        size = position_lots(msgspec.structs.replace(PLAIN, edge=None, **changes))
    assert (size.lots, size.binding) == (lots, binding)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(
    mean=st.floats(-1e6, 1e6),
    error=st.floats(0, 1e3) | st.just(math.nan),
    cost=st.floats(0, 50),
    sigma=st.floats(0, 1e4),
    impact=st.floats(0, 10),
    equity=st.floats(-1e6, 1e9),
    lot=st.floats(1e-4, 1e6),
    depth=st.integers(0, 10**9),
    against=st.integers(0, 10**6),
    held=st.floats(-1e9, 1e9),
    ramp=st.floats(0.01, 1),
    least=st.integers(1, 50),
)
def test_a_size_is_never_beyond_a_cap_and_needs_an_edge(
    mean: float, error: float, cost: float, sigma: float, impact: float, equity: float, lot: float,
    depth: int, against: int, held: float, ramp: float, least: int,
) -> None:  # fmt: skip
    given_edge = {
        "mean_bps": mean, "error_bps": error, "cost_bps": cost, "sigma_bps": sigma,
        "impact_bps": impact,
    }  # fmt: skip
    changes = {
        "equity_usdt": equity, "lot_usdt": lot, "depth_lots": depth, "against_lots": against,
        "group_usdt": {"other": held}, "least_lots": least,
    }  # fmt: skip
    size = sized(given_edge, ramp=ramp, **changes)
    whole = sized(given_edge, **changes)
    assert size.lots == 0 or least <= size.lots == min(size.caps.values()) <= whole.lots
    assert (size.lots == 0) == (whole.lots == 0)
    assert size.binding in size.caps
    assert all(lots >= 0 for lots in size.caps.values())
    if mean <= cost or equity <= 0:
        assert size.lots == 0
    else:
        assert size.lots * lot <= max(0.25 * equity, 0)
    assert sized(given_edge, **(changes | {"equity_usdt": equity / 2})).lots <= max(whole.lots, 0)
