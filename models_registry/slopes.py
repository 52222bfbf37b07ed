"""Lines through zero with their standard errors: slopes weighted by recency, and drawn together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from market.units import DAY_NS
from models_registry.validation import effective_count

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

#: One-sided 95 % normal quantile.
Z95: Final = 1.6448536269514722

#: Outcomes halve in weight with every so many days of age.
HALF_LIFE_DAYS: Final = 5.0


class LineFit(msgspec.Struct, frozen=True, kw_only=True):
    """A least-squares line through zero; ``error`` is its slope's standard error."""

    slope: float
    error: float
    n_eff: float

    @property
    def shrunk(self) -> float:
        """Positive-part James–Stein shrinkage of the slope; never negative."""
        if not self.slope > 0:
            return 0.0
        return self.slope * max(0.0, 1.0 - (self.error / self.slope) ** 2)

    @property
    def lower(self) -> float:
        """One-sided 95 % lower bound."""
        return self.slope - Z95 * self.error


def fit_line(x: Float, y: Float, t_ns: Int, horizon_s: int, weight: Float | None = None) -> LineFit:
    """y on x through zero over rows without NaN; the error allows for overlapping labels.

    Rows of unequal ``weight`` (n,) count as (Σw)²/Σw² equal ones (Kish 1965).
    """
    known = ~(np.isnan(x) | np.isnan(y))
    x, y = x[known], y[known]
    w = np.ones(len(x)) if weight is None else _normalised(weight[known])
    rows = float(w.sum())
    n_eff = effective_count(t_ns[known], horizon_s) * (rows / len(x) if len(x) else 0.0)
    # Sums, not products of BLAS: its threads spin on vectors of this size.
    power = float((w * x * x).sum())
    if power <= 0.0 or n_eff < 2.0:
        return LineFit(slope=0.0, error=math.inf, n_eff=n_eff)
    slope = float((w * x * y).sum()) / power
    variance = float((w * (y - slope * x) ** 2).sum()) / rows / power
    return LineFit(slope=slope, error=math.sqrt(variance * max(1.0, rows / n_eff)), n_eff=n_eff)


def _normalised(weight: Float) -> Float:
    """Weights that sum to the number of equal rows that say as much, (Σw)²/Σw²."""
    squares = float((weight**2).sum())
    return weight * (float(weight.sum()) / squares if squares > 0 else 0.0)


def recency(t_ns: Int) -> Float:
    """Weights (n,) that halve with every `HALF_LIFE_DAYS` before the last of the times."""
    last = t_ns.max() if len(t_ns) else 0
    return np.asarray(np.exp2((t_ns - last) / (HALF_LIFE_DAYS * DAY_NS)))


def fit_sign(edge: Float, realised: Float, t_ns: Int, horizon_s: int, weight: Float) -> LineFit:
    """Log-odds that ``realised`` has the sign of ``edge``, per unit of |edge|: logistic, through zero.

    Newton's method; weights and error as in `fit_line`. Rows without NaN count.
    """
    from scipy.special import expit

    known = ~(np.isnan(edge) | np.isnan(realised)) & (edge != 0)
    size, right = np.abs(edge[known]), (edge * realised)[known] > 0
    w = _normalised(weight[known])
    rows = float(w.sum())
    n_eff = effective_count(t_ns[known], horizon_s) * (rows / len(w) if len(w) else 0.0)
    slope, information = 0.0, 0.0
    for _ in range(25 if len(size) and n_eff >= 2.0 else 0):
        p = expit(slope * size)
        information = float(np.sum(w * p * (1 - p) * size**2))
        if information <= 0.0:
            break
        slope += float(np.sum(w * (right - p) * size)) / information
    if information <= 0.0:
        return LineFit(slope=0.0, error=math.inf, n_eff=n_eff)
    error = math.sqrt(max(1.0, rows / n_eff) / information)
    return LineFit(slope=slope, error=error, n_eff=n_eff)


def pooled(lines: Sequence[LineFit]) -> list[LineFit]:
    """Each slope drawn to the common one by its error against the variance between them, τ².

    τ² by the method of moments (DerSimonian & Laird 1986), the slopes and errors given it by Morris (1983):
    with B = e²/(e² + τ²), slope' = B·common + (1 - B)·slope, error'² = (1 - B)·e² + B²·error_common².
    """
    known = [line for line in lines if math.isfinite(line.error) and line.error > 0]
    if not known:
        return list(lines)
    slope = np.array([line.slope for line in known])
    square = np.array([line.error for line in known]) ** 2
    w = 1.0 / square
    spread = float((w * (slope - np.average(slope, weights=w)) ** 2).sum())
    free = float(w.sum() - (w**2).sum() / w.sum())
    between = max(0.0, (spread - (len(known) - 1)) / free) if free > 0 else 0.0
    w = 1.0 / (square + between)
    common, error = float(np.average(slope, weights=w)), 1.0 / float(w.sum())
    out = []
    for line in lines:
        own = line.error**2
        share = own / (own + between) if math.isfinite(own) else 1.0
        out.append(
            LineFit(
                slope=share * common + (1 - share) * line.slope,
                error=math.sqrt((0.0 if share == 1.0 else (1 - share) * own) + share**2 * error),
                n_eff=line.n_eff,
            )
        )
    return out
