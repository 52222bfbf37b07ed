"""Position sizing: from an expected return to a target position, its side and its size.

The side is `next_target`, one rule for validation, backtest and live. Being in the market costs a
round trip, so it enters only for more than that:

- flat: take the signal's side when the expected return exceeds the round trip's cost;
- in a position: a signal on our side above the cost confirms it, and its age starts again;
- a signal on the other side above the cost turns it round;
- otherwise stay until the age reaches the horizon of the expectation, then leave.

The size is the smallest of several rules (`size`): fractional Kelly, a volatility target and a cap,
each a share of capital; 1 is a notional equal to the capital. Liquidity caps an order, correlation
scales the positions held together, and funding comes off the edge. Returns and volatilities are of
the same horizon, in bps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import numpy as np

from market.kernel import compiled
from market.units import BPS

#: Fractional Kelly: an edge is never as good as its estimate.
KELLY_SHARE: Final = 0.25


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


class Edge(msgspec.Struct, frozen=True, kw_only=True):
    """Expected return of a position net of its costs, the standard error of that mean, and the
    volatility of the return, all in bps over the model's horizon.

    Honest when mean and error come from out-of-sample data.
    """

    mean_bps: float
    error_bps: float
    sigma_bps: float


def shrunk_bps(mean_bps: float, error_bps: float) -> float:
    """A mean shrunk towards zero by its error: m·max(0, 1 - (e/m)²) (positive-part James-Stein)."""
    if abs(mean_bps) <= error_bps:
        return 0.0
    return mean_bps * (1 - (error_bps / mean_bps) ** 2)


def kelly(edge: Edge, share: float = KELLY_SHARE) -> float:
    """Signed share of capital by fractional Kelly with a shrunken edge: share·μ/σ².

    ValueError for a volatility that is not positive.
    """
    if edge.sigma_bps <= 0:
        raise ValueError(f"volatility {edge.sigma_bps:g} bps: expected more than zero")
    mean = shrunk_bps(edge.mean_bps, edge.error_bps) / BPS
    return share * mean / (edge.sigma_bps / BPS) ** 2


def volatility_share(target_bps: float, sigma_bps: float) -> float:
    """Share of capital at which a position has the target volatility, σ*/σ; ValueError for σ ≤ 0."""
    if sigma_bps <= 0:
        raise ValueError(f"volatility {sigma_bps:g} bps: expected more than zero")
    return target_bps / sigma_bps


def liquidity_lots(depth_lots: int, share: float) -> int:
    """Liquidity cap: the largest order, in lots, that is a ``share`` of the depth near the touch."""
    return math.floor(depth_lots * share)


def portfolio_scale(
    shares: Mapping[str, float],
    sigmas_bps: Mapping[str, float],
    correlation: Sequence[Sequence[float]],
    target_bps: float,
) -> float:
    """Factor in [0, 1] that scales positions held together down to a target volatility: σ*/√(rᵀCr).

    r are the positions' volatilities (``shares`` × ``sigmas_bps``) and C is ``correlation``, in the
    order of ``shares``; positions that hedge each other are not scaled for it. ValueError for a
    matrix that is no correlation.
    """
    names = list(shares)
    matrix = np.asarray(correlation, np.float64)
    if matrix.shape != (len(names), len(names)) or not np.allclose(matrix, matrix.T):
        raise ValueError(f"correlation of {len(names)} symbols: expected a symmetric square matrix")
    if np.any(np.diag(matrix) != 1) or np.linalg.eigvalsh(matrix)[0] < -1e-9:
        raise ValueError("correlation: expected ones on the diagonal and no negative eigenvalue")
    risks = np.array([shares[name] * sigmas_bps[name] for name in names])
    total = math.sqrt(max(0.0, float(risks @ matrix @ risks)))
    return 1.0 if total <= target_bps else target_bps / total


def size(
    edge: Edge,
    *,
    target_sigma_bps: float,
    cap_share: float,
    funding: float = 0.0,
) -> float:
    """Signed share of capital for one symbol: the smallest of Kelly, volatility target and cap.

    ``funding`` is the expected funding payment in bps, which comes off the edge; an
    edge that is no larger gives 0.
    """
    sign = math.copysign(1.0, edge.mean_bps)
    mean = max(0.0, abs(edge.mean_bps) - funding) * sign
    wanted = kelly(msgspec.structs.replace(edge, mean_bps=mean))
    limit = min(cap_share, volatility_share(target_sigma_bps, edge.sigma_bps))
    return math.copysign(min(abs(wanted), limit), wanted) if wanted else 0.0
