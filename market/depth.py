"""The book at the close of a bar: prices, spread, and the shape of both sides.

Distances are in bps of the mid, notionals in quote currency, quantities in base currency. A depth
band or a sweep beyond the last displayed level is NaN: what lies there is unknown.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from market.book import BookState, best_key, count, lots_at, next_key, row_of
from market.columns import C
from market.kernel import kernel

LADDER: Final = 10  #: levels of a side with columns of their own
BANDS_BPS: Final = (1, 2, 3)
SWEEPS: Final = (10_000.0, 100_000.0, 1_000_000.0)
NEAR_TICKS: Final = 50
_VAMP_LEVELS: Final = 5

#: One side of the book, as `measure` writes it.
SHAPE: Final = np.dtype(
    [
        ("qty_1", "f8"),  # on the best level, on five, on ten
        ("qty_5", "f8"),
        ("qty_10", "f8"),
        ("bands", "f8", (len(BANDS_BPS),)),  # notional within BANDS_BPS of the mid
        ("notional", "f8"),  # on all levels
        ("reach_bps", "f8"),  # distance of the last level
        ("slope", "f8"),
        ("convexity", "f8"),
        ("gap_ticks", "f8"),  # between the best and the second level
        ("near", "f8"),  # levels among the NEAR_TICKS prices from the best outwards
        ("sweeps_bps", "f8", (len(SWEEPS),)),  # cost against the mid of taking each of SWEEPS
        ("untaken", "f8", (len(SWEEPS),)),  # scratch: notional of each sweep yet to take
        ("taken", "f8", (len(SWEEPS),)),  # scratch: quantity taken
    ]
)


@kernel
def mid_price(mid2: int, tick: float) -> float:
    """The mid in quote currency; ``mid2`` is best bid plus best ask in ticks, always an integer."""
    return mid2 * 0.5 * tick


@kernel
def measure(
    state: BookState, side: int, mid2_ticks: int, tick: float, lot: float, shape: Any
) -> bool:
    """Measure one side into ``shape`` (`SHAPE`); True when a band or sweep passed the last level.

    Twice every distance is an integer, so that a level on the edge of a band is inside it without
    rounding. Slope and convexity are the least-squares coefficients of cumulative notional on
    distance and squared distance over the levels, without intercept, and NaN where two levels do not
    tell them apart.
    """
    row = row_of(side)
    best = best_key(state, row)
    shape.qty_1 = shape.qty_5 = shape.qty_10 = shape.near = 0.0
    shape.gap_ticks = np.nan
    shape.bands[:] = 0.0
    shape.sweeps_bps[:] = 0.0
    shape.taken[:] = 0.0
    for sweep in range(len(SWEEPS)):
        shape.untaken[sweep] = SWEEPS[sweep]
    x2 = x3 = x4 = xy = x2y = 0.0
    notional = qty = 0.0
    distance2 = 0
    key = best
    for n in range(count(state, side)):
        if n > 0:
            key = next_key(state, row, key)
        if n == 1:
            shape.gap_ticks = key - best
        distance2 = 2 * key + side * mid2_ticks
        here_qty = lots_at(state, row, key) * lot
        price = -side * key * tick
        here = price * here_qty
        bps = distance2 / mid2_ticks * 1e4
        notional += here
        qty += here_qty
        if n == 0:
            shape.qty_1 = qty
        if n < 5:
            shape.qty_5 = qty
        if n < 10:
            shape.qty_10 = qty
        if key - best < NEAR_TICKS:
            shape.near += 1.0
        for band in range(len(BANDS_BPS)):
            if 1e4 * distance2 <= BANDS_BPS[band] * mid2_ticks:
                shape.bands[band] += here
        for sweep in range(len(SWEEPS)):
            if shape.untaken[sweep] > 0.0 and here > 0.0:
                take = min(shape.untaken[sweep], here)
                shape.untaken[sweep] -= take
                shape.taken[sweep] += take / price
                shape.sweeps_bps[sweep] += take / price * bps
        square = bps * bps
        x2 += square
        x3 += square * bps
        x4 += square * square
        xy += bps * notional
        x2y += square * notional
    shape.notional = notional
    shape.reach_bps = distance2 / mid2_ticks * 1e4
    truncated = False
    for band in range(len(BANDS_BPS)):
        if 1e4 * distance2 < BANDS_BPS[band] * mid2_ticks:
            shape.bands[band] = np.nan
            truncated = True
    for sweep in range(len(SWEEPS)):
        if shape.untaken[sweep] > 0.0:
            shape.sweeps_bps[sweep] = np.nan
            truncated = True
        else:
            shape.sweeps_bps[sweep] /= shape.taken[sweep]
    determinant = x2 * x4 - x3 * x3
    if determinant > 1e-12 * x2 * x4:
        shape.slope = (xy * x4 - x2y * x3) / determinant
        shape.convexity = (x2 * x2y - x3 * xy) / determinant
    else:
        shape.slope = shape.convexity = np.nan
    return truncated


@kernel
def write_book(state: BookState, second: Any, out: Any) -> None:
    """The columns that show a valid book at the close; ``second`` is a record of `market.second`."""
    tick, lot = second.tick, second.lot
    mid2, spread = second.mid2, second.spread
    mid = mid2 * 0.5
    keys, lots = second.keys, second.lots
    bid_lots, ask_lots = float(lots[0, 0]), float(lots[1, 0])
    out[C.mid_close] = mid_price(mid2, tick)
    lean = (bid_lots - ask_lots) / (bid_lots + ask_lots)
    out[C.micro_close] = (mid + 0.5 * spread * lean) * tick
    weighted = weight = 0.0
    for n in range(_VAMP_LEVELS):
        if lots[0, n] > 0 and lots[1, n] > 0:
            weighted += (-keys[0, n] - mid) * lots[1, n]
            weighted += (keys[1, n] - mid) * lots[0, n]
            weight += lots[0, n] + lots[1, n]
    out[C.vamp_close] = (mid + weighted / weight) * tick
    out[C.spread_ticks] = spread
    out[C.spread_bps] = spread / mid * 1e4
    shape = second.shape
    truncated = False
    near = 0.0
    for row in range(2):
        beyond = measure(state, 1 - 2 * row, mid2, tick, lot, shape)
        truncated = truncated or beyond
        near += shape.near
        out[C.bid_q1 + row] = shape.qty_1
        out[C.bid_q5 + row] = shape.qty_5
        out[C.bid_q10 + row] = shape.qty_10
        for n in range(len(BANDS_BPS)):
            out[C.bid_d1 + 2 * n + row] = shape.bands[n]
        out[C.bid_depth + row] = shape.notional
        out[C.bid_reach + row] = shape.reach_bps
        out[C.bid_slope + row] = shape.slope
        out[C.bid_convexity + row] = shape.convexity
        out[C.bid_gap + row] = shape.gap_ticks
        for n in range(len(SWEEPS)):
            # A buyer sweeps asks (row 1), and buying comes first.
            out[C.sweep_buy_10k + 2 * n + 1 - row] = shape.sweeps_bps[n]
    out[C.empty_share] = 1.0 - near / (2 * NEAR_TICKS)
    out[C.truncated] = 1.0 if truncated else 0.0


@kernel
def write_no_book(out: Any) -> None:
    """The same columns when the book is invalid at the close: NaN."""
    out[C.mid_close] = np.nan
    out[C.truncated] = np.nan
    out[C.micro_close : C.spread_mean] = np.nan
    out[C.spread_bps : C.bid_q1_mean] = np.nan
    out[C.bid_q5 : C.ofi_1] = np.nan
