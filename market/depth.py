"""The shape of one side of the book at an instant: bands, sweeps, slope, reach.

Distances are in bps of the mid, notionals in quote currency, quantities in base currency. A band or
a sweep that passes the last displayed level is NaN: what lies behind is not known.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from market.book import BEST, COUNT, BookState, lots_at, next_key, row_of
from market.kernel import kernel

#: Places in what `measure` writes.
QTY_1: Final = 0  #: quantity on the best level, on five, on ten
QTY_5: Final = 1
QTY_10: Final = 2
BAND_1: Final = 3  #: notional within 1, 2 and 3 bps of the mid
DEPTH: Final = 6  #: notional on all levels
REACH: Final = 7  #: distance of the last level
SLOPE: Final = 8
CONVEXITY: Final = 9
GAP: Final = 10  #: ticks between the best and the second level
NEAR: Final = 11  #: levels among the NEAR_TICKS prices from the best outwards
SWEEP: Final = 12  #: cost against the mid of taking each of SWEEPS
_LEFT: Final = 15  #: scratch: what of each sweep is left to take, and the quantity taken
_TAKEN: Final = 18
MEASURES: Final = 21

BANDS_BPS: Final = (1, 2, 3)
SWEEPS: Final = (10_000.0, 100_000.0, 1_000_000.0)
NEAR_TICKS: Final = 50


@kernel
def measure(
    state: BookState,
    side: int,
    mid2_ticks: int,
    tick: float,
    lot: float,
    out: npt.NDArray[np.float64],
) -> bool:
    """Measure one side into ``out`` (MEASURES,); True when a band or sweep passed the last level.

    ``mid2_ticks`` is best bid plus best ask, so that twice every distance is an integer and a level
    on the edge of a band is inside it without rounding. Slope and convexity are the least-squares
    coefficients of cumulative notional on distance and squared distance over the levels, without
    intercept, and NaN where two levels do not tell them apart.
    """
    row = row_of(side)
    best_key = state[BEST + row]
    levels = state[COUNT + row]
    out[:] = 0.0
    out[GAP] = np.nan
    for n in range(len(SWEEPS)):
        out[_LEFT + n] = SWEEPS[n]
    x2 = x3 = x4 = xy = x2y = 0.0
    notional = qty = 0.0
    distance2 = 0
    key = best_key
    for n in range(levels):
        if n > 0:
            key = next_key(state, row, key)
        if n == 1:
            out[GAP] = key - best_key
        distance2 = 2 * key + side * mid2_ticks
        here_lots = lots_at(state, row, key) * lot
        price = -side * key * tick
        here = price * here_lots
        bps = distance2 / mid2_ticks * 1e4
        notional += here
        qty += here_lots
        if n == 0:
            out[QTY_1] = qty
        if n < 5:
            out[QTY_5] = qty
        if n < 10:
            out[QTY_10] = qty
        if key - best_key < NEAR_TICKS:
            out[NEAR] += 1.0
        for band in range(len(BANDS_BPS)):
            if 1e4 * distance2 <= BANDS_BPS[band] * mid2_ticks:
                out[BAND_1 + band] += here
        for n_sweep in range(len(SWEEPS)):
            if out[_LEFT + n_sweep] > 0.0 and here > 0.0:
                take = min(out[_LEFT + n_sweep], here)
                out[_LEFT + n_sweep] -= take
                out[_TAKEN + n_sweep] += take / price
                out[SWEEP + n_sweep] += take / price * bps
        square = bps * bps
        x2 += square
        x3 += square * bps
        x4 += square * square
        xy += bps * notional
        x2y += square * notional
    out[DEPTH] = notional
    out[REACH] = distance2 / mid2_ticks * 1e4
    passed = False
    for band in range(len(BANDS_BPS)):
        if 1e4 * distance2 < BANDS_BPS[band] * mid2_ticks:
            out[BAND_1 + band] = np.nan
            passed = True
    for n_sweep in range(len(SWEEPS)):
        if out[_LEFT + n_sweep] > 0.0:
            out[SWEEP + n_sweep] = np.nan
            passed = True
        else:
            out[SWEEP + n_sweep] /= out[_TAKEN + n_sweep]
    determinant = x2 * x4 - x3 * x3
    if determinant > 1e-12 * x2 * x4:
        out[SLOPE] = (xy * x4 - x2y * x3) / determinant
        out[CONVEXITY] = (x2 * x2y - x3 * xy) / determinant
    else:
        out[SLOPE] = out[CONVEXITY] = np.nan
    return passed
