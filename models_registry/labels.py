"""Labels of one symbol's seconds, and their weights.

Arrays are (n,) by time, one value a second where there is no gap; NaN is an unknown label. A decision at t
is executed at t + 1 s (`DELAY_S`), and its label ends h seconds later; a label that a gap cuts is unknown.
Prices are executable: bought at the ask, sold at the bid. The anchored return itself is the
warehouse's (dbt_project/models/marts/labels.sql).

Source of the barriers: López de Prado (2018), ch. 3.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from market.kernel import compiled
from market.units import SECOND_NS
from models_registry.statistics import uniqueness
from models_registry.validation import DELAY_S

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

#: The share of training returns that the band of `direction` calls flat.
FLAT_SHARE: Final = 1 / 3


def band_width(returns: Float, scale: Float) -> float:
    """k of `direction`: the `FLAT_SHARE` quantile of |return| / scale over these rows.

    Free of look-ahead only for training rows. 0 without a known return.
    """
    sizes = np.abs(returns) / scale
    known = sizes[np.isfinite(sizes)]
    return float(np.quantile(known, FLAT_SHARE)) if len(known) else 0.0


def direction(returns: Float, scale: Float, k: float, least: float = 0.0) -> Float:
    """+1, -1, or 0 where |return| is within the band max(least, k * scale); NaN for NaN.

    ``scale`` is the volatility over the return's horizon in the returns' units, known at the decision.
    """
    band = np.maximum(least, k * scale)
    sign = np.where(np.abs(returns) > band, np.sign(returns), 0.0)
    return np.where(np.isnan(returns) | np.isnan(scale), np.nan, sign)


def ahead(t_ns: Int, values: Float, seconds: int) -> Float:
    """The value ``seconds`` later, NaN where a second is missing on the way."""
    found = np.full(len(values), np.nan)
    if 0 < seconds < len(values):
        joined = t_ns[seconds:] - t_ns[:-seconds] == seconds * SECOND_NS
        found[:-seconds][joined] = values[seconds:][joined]
    elif seconds == 0:
        found[:] = values
    return found


class CostAware(msgspec.Struct, frozen=True, kw_only=True):
    """Net returns (n,) in bps of a round trip from t + 1 s over the horizon, by side, and the label.

    ``label`` is +1 where long earns and earns more than short, -1 the other way round, else 0.
    """

    label: Float
    long_bps: Float
    short_bps: Float


def cost_aware(t_ns: Int, bid: Float, ask: Float, horizon_s: int, fee_bps: float) -> CostAware:
    """Round trips at executable prices and ``fee_bps`` per side, in bps of the entry price."""
    fee = fee_bps * 1e-4
    bid_in, ask_in = ahead(t_ns, bid, DELAY_S), ahead(t_ns, ask, DELAY_S)
    bid_out, ask_out = (ahead(t_ns, price, DELAY_S + horizon_s) for price in (bid, ask))
    long_bps = 1e4 * (bid_out * (1 - fee) - ask_in * (1 + fee)) / ask_in
    short_bps = 1e4 * (bid_in * (1 - fee) - ask_out * (1 + fee)) / bid_in
    label = np.where((long_bps > 0) & (long_bps > short_bps), 1.0, 0.0)
    label[(short_bps > 0) & (short_bps > long_bps)] = -1.0
    label[np.isnan(long_bps) | np.isnan(short_bps)] = np.nan
    return CostAware(label=label, long_bps=long_bps, short_bps=short_bps)


@compiled
def _barriers(t_ns, bid, ask, width, horizon_s, delay_s, label, end):  # type: ignore[no-untyped-def]
    for i in range(len(t_ns)):
        first = i + delay_s
        last = first + horizon_s
        if last >= len(t_ns) or t_ns[last] - t_ns[i] != (delay_s + horizon_s) * SECOND_NS:
            continue
        above = ask[first] * (1 + width[i])
        below = bid[first] * (1 - width[i])
        if np.isnan(above) or np.isnan(below):
            continue
        label[i] = 0.0
        end[i] = t_ns[last]
        for j in range(first + 1, last + 1):
            if bid[j] >= above:
                label[i] = 1.0
            elif ask[j] <= below:
                label[i] = -1.0
            if label[i] != 0.0:
                end[i] = t_ns[j]
                break


def triple_barrier(
    t_ns: Int, bid: Float, ask: Float, width: Float, horizon_s: int
) -> tuple[Float, Int]:
    """The first barrier that an executable exit reaches, and when the label ends (0 when unknown).

    +1 when the bid reaches entry ask * (1 + width) first, -1 when the ask reaches entry bid * (1 - width),
    0 when neither does within the horizon. ``width`` (n,) is a fraction, as k * volatility over the
    horizon, known at the decision.
    """
    label, end = np.full(len(t_ns), np.nan), np.zeros(len(t_ns), np.int64)
    _barriers(t_ns, bid, ask, width, horizon_s, DELAY_S, label, end)
    return label, end


def weights(t_ns: Int, symbol: npt.NDArray[np.int8], horizon_s: int) -> Float:
    """Uniqueness of each decision's label within its symbol (n,), scaled to a mean of one."""
    found = np.empty(len(t_ns))
    for index in np.unique(symbol):
        own = symbol == index
        found[own] = uniqueness(t_ns[own], t_ns[own] + horizon_s * SECOND_NS)
    return found / found.mean() if len(found) else found
