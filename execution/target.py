"""From an expected return to a target position: one rule, for validation, backtest and live.

Being in the market costs a round trip, so the rule enters only for more than that:

- flat: take the signal's side when the expected return exceeds the round trip's cost;
- in a position: a signal on our side above the cost confirms it, and its age starts again;
- a signal on the other side above the cost turns it round;
- otherwise stay until the age reaches the horizon the expectation was made for, then leave.
"""

from __future__ import annotations

from market.kernel import compiled


@compiled
def next_target(
    position: int, age_s: float, expected_bps: float, cost_bps: float, horizon_s: float
) -> int:
    """The next target's sign: +1 long, 0 flat, -1 short.

    ``position`` is the present sign, ``age_s`` the time since it was entered or last confirmed,
    ``expected_bps`` the signed expected return over ``horizon_s`` (NaN when there is none, which
    confirms nothing and enters nothing), ``cost_bps`` the round trip's cost.
    """
    if expected_bps > cost_bps:
        return 1
    if expected_bps < -cost_bps:
        return -1
    return position if age_s < horizon_s else 0
