"""How large a position may be: edge, volatility, liquidity, other positions and funding.

Every rule gives a share of capital between 0 and a cap, or scales one; the smallest wins. A share of
1 is a notional equal to the capital. Returns and volatilities are of the same horizon, in bps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import numpy as np

from market.units import BPS

#: A quarter of the Kelly share: what is known of the edge is never as good as its estimate.
KELLY_SHARE: Final = 0.25


class Edge(msgspec.Struct, frozen=True, kw_only=True):
    """What a position is expected to bring, net of its costs: mean, its standard error, and the
    volatility of the return, all in bps over the model's horizon."""

    mean_bps: float
    error_bps: float
    sigma_bps: float


def shrunk_bps(mean_bps: float, error_bps: float) -> float:
    """A mean drawn towards zero by its error: m·max(0, 1 - (e/m)²) (positive-part James-Stein)."""
    if abs(mean_bps) <= error_bps:
        return 0.0
    return mean_bps * (1 - (error_bps / mean_bps) ** 2)


def kelly(edge: Edge, share: float = KELLY_SHARE) -> float:
    """Signed share of capital by fractional Kelly with a shrunken edge: share·μ/σ²."""
    if edge.sigma_bps <= 0:
        raise ValueError(f"volatility {edge.sigma_bps:g} bps: expected more than zero")
    mean = shrunk_bps(edge.mean_bps, edge.error_bps) / BPS
    return share * mean / (edge.sigma_bps / BPS) ** 2


def volatility_share(target_bps: float, sigma_bps: float) -> float:
    """Share of capital at which a position has the target volatility: σ*/σ."""
    if sigma_bps <= 0:
        raise ValueError(f"volatility {sigma_bps:g} bps: expected more than zero")
    return target_bps / sigma_bps


def liquidity_lots(depth_lots: int, share: float) -> int:
    """The part of the depth near the touch that an order may be, in lots."""
    return math.floor(depth_lots * share)


def portfolio_scale(
    shares: Mapping[str, float],
    sigmas_bps: Mapping[str, float],
    correlation: Sequence[Sequence[float]],
    target_bps: float,
) -> float:
    """Factor in [0, 1] that brings positions held together down to a target volatility.

    ``correlation`` is in the order of ``shares``. Two positions that hedge each other are not scaled
    for the volatility that they do not have. ValueError for a matrix that is no correlation.
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


def funding_bps(side: int, predicted_bps: float, to_stamp_s: float, holding_s: float) -> float:
    """Funding that a position entered now is expected to pay (positive) or to get, in bps.

    Only a position held at the stamp pays; longs pay shorts at a positive rate.
    """
    return side * predicted_bps if 0 <= to_stamp_s <= holding_s else 0.0


def leaves_for_funding(
    side: int, predicted_bps: float, to_stamp_s: float, round_trip_bps: float, wait_s: float = 60.0
) -> bool:
    """Whether a position is better closed before the stamp and opened again after it.

    Only within ``wait_s`` of the stamp, and only when the payment is larger than the round trip;
    at the usual 1 bp in eight hours it never is.
    """
    return funding_bps(side, predicted_bps, to_stamp_s, wait_s) > round_trip_bps


def size(
    edge: Edge,
    *,
    target_sigma_bps: float,
    cap_share: float,
    funding: float = 0.0,
) -> float:
    """Signed share of capital for one symbol: the smallest of Kelly, volatility target and cap.

    ``funding`` is what holding the position is expected to pay in bps (`funding_bps`), which comes
    off the edge; an edge that does not survive it gives 0.
    """
    sign = math.copysign(1.0, edge.mean_bps)
    mean = max(0.0, abs(edge.mean_bps) - funding) * sign
    wanted = kelly(msgspec.structs.replace(edge, mean_bps=mean))
    limit = min(cap_share, volatility_share(target_sigma_bps, edge.sigma_bps))
    return math.copysign(min(abs(wanted), limit), wanted) if wanted else 0.0
