"""The verdict's table."""

from __future__ import annotations

import math

import pytest

from models_registry.gate import decide
from models_registry.trades import FeeResult


def result(*, trades: int = 100, lower: float = 0.5) -> FeeResult:
    return FeeResult(
        row="vip0",
        taker_bps=5.5,
        trades=trades,
        n_eff=float(trades),
        cut=0,
        gross_bps=13.0,
        spread_bps=0.1,
        net_bps=1.0,
        net_lower_bps=lower,
        net_total_bps=100.0,
        break_even_bps=6.0,
        hit_rate=0.6,
        false_net=0.4,
        false_net_upper=0.5,
        false_gross=0.3,
        payoff=1.0,
        coverage=0.01,
        holding_s=60.0,
    )


@pytest.mark.parametrize(
    ("blocks", "ic_lower", "found", "verdict", "said"),
    [
        (5, 0.01, result(), "promote", "lower bound 0.500"),
        (4, 0.01, result(), "not_enough_data", "4 test blocks of at least 5"),
        (0, -math.inf, None, "not_enough_data", "0 test blocks of at least 5"),
        (5, 0.0, result(), "abstain", "rank IC"),
        (5, -0.01, result(), "abstain", "rank IC"),
        (5, 0.01, result(lower=0.0), "abstain", "net 1.000 bps"),
        (5, 0.01, result(lower=-math.inf), "abstain", "no value"),
        (5, 0.01, result(trades=29), "abstain", "29 trades"),
        (5, math.nan, result(), "abstain", "rank IC"),
        (5, 0.01, result(lower=math.nan), "abstain", "net 1.000 bps"),
    ],
)
def test_the_gate_promotes_only_on_both_bounds(blocks, ic_lower, found, verdict, said) -> None:
    gate = decide(
        blocks=blocks, min_blocks=5, ic=0.02, ic_lower=ic_lower, result=found, min_trades=30
    )
    assert gate.verdict == verdict
    assert any(said in reason for reason in gate.reasons)


def test_missing_blocks_say_why_they_are_missing() -> None:
    gate = decide(
        blocks=1,
        min_blocks=5,
        ic=0.0,
        ic_lower=-math.inf,
        result=result(),
        min_trades=30,
        shortfall=("block from 2026-01-04: 3 independent labels of at least 30",),
    )
    assert "2026-01-04" in gate.reasons[1]
