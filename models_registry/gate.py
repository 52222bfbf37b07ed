"""The promotion gate: promote, abstain, or not enough data.

not_enough_data   fewer test blocks than required
abstain           not significant at 95 % that it ranks returns and earns more than its costs
promote           the lower bounds of the IC and of the net expectancy are both above zero
"""

from __future__ import annotations

import math

from models_registry.manifest import Gate
from models_registry.trades import FeeResult


def decide(
    *,
    blocks: int,
    min_blocks: int,
    ic: float,
    ic_lower: float,
    result: FeeResult | None,
    min_trades: int,
    shortfall: tuple[str, ...] = (),
) -> Gate:
    """The verdict with its reasons.

    ``ic_lower`` is the one-sided 95 % lower bound of the pooled rank IC, ``result`` the target rule at
    the fee row in force, honest when that row is what the account really pays; ``shortfall`` says why
    blocks are missing.
    """
    if blocks < min_blocks or result is None:
        return Gate(
            verdict="not_enough_data",
            reasons=(f"{blocks} test blocks of at least {min_blocks}", *shortfall),
        )
    reasons = []
    if not ic_lower > 0.0:
        reasons.append(f"rank IC {ic:.4f} has a 95 % lower bound of {ic_lower:.4f}, not above zero")
    if result.trades < min_trades:
        reasons.append(
            f"{result.trades} trades at fee row {result.row} of at least {min_trades}: expectations "
            "rarely exceed the cost"
        )
    elif not result.net_lower_bps > 0.0:
        bound = (
            f"{result.net_lower_bps:.3f} bps" if math.isfinite(result.net_lower_bps) else "no value"
        )
        reasons.append(
            f"net {result.net_bps:.3f} bps per trade at fee row {result.row} has a 95 % lower "
            f"bound of {bound}, not above zero"
        )
    if reasons:
        return Gate(verdict="abstain", reasons=tuple(reasons))
    return Gate(
        verdict="promote",
        reasons=(
            f"rank IC {ic:.4f}, lower bound {ic_lower:.4f}",
            f"net {result.net_bps:.3f} bps per trade over {result.trades} trades at fee row "
            f"{result.row}, lower bound {result.net_lower_bps:.3f} bps",
        ),
    )
