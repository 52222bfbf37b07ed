"""hftbacktest's own reading and writing of event files. Run by the peer's own interpreter:

    peers/hftbacktest/bin/python tests/peers/hftbacktest_events.py replay EVENTS.npz INSTANTS.npy TICK LOT OUT.npz
    peers/hftbacktest/bin/python tests/peers/hftbacktest_events.py tardis OUT.npz TRADES.csv.gz BOOK.csv.gz

``replay`` lets the library check the order of the events and read the file itself; ``OUT.npz`` has the ticks
``bid`` and ``ask`` of its book at each instant (0 where a side is empty), ``levels`` of (side, ticks,
lots) at the end, and ``same``: whether its own correction of the order changes nothing. ``tardis`` is the
library's converter.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from hftbacktest import BacktestAsset, HashMapMarketDepthBacktest
from hftbacktest.data.utils import tardis
from hftbacktest.data.validation import correct_event_order, validate_event_order
from hftbacktest.types import event_dtype
from numba import njit

FAR = 1 << 60  #: an empty side's tick lies beyond


@njit
def touches(hbt, instants):
    found = np.zeros((2, len(instants)), np.int64)
    hbt.elapse(0)
    for n in range(len(instants)):
        hbt.elapse(instants[n] - hbt.current_timestamp)
        depth = hbt.depth(0)
        bid, ask = depth.best_bid_tick, depth.best_ask_tick
        found[0, n] = bid if 0 < bid < FAR else 0
        found[1, n] = ask if 0 < ask < FAR else 0
    return found


@njit
def quantities(hbt, low, high):
    depth = hbt.depth(0)
    held = np.zeros((2, high - low + 1))
    for tick in range(low, high + 1):
        held[0, tick - low] = depth.bid_qty_at_tick(tick)
        held[1, tick - low] = depth.ask_qty_at_tick(tick)
    return held


def replay(events: str, instants: str, tick: float, lot: float) -> dict[str, Any]:
    with np.load(events) as file:
        rows = file["data"]
    assert rows.dtype == event_dtype
    rows = rows.astype(event_dtype)  # aligned, which no file says
    validate_event_order(rows)
    by_exchange, by_local = (
        np.argsort(rows[name], kind="stable") for name in ("exch_ts", "local_ts")
    )
    corrected = correct_event_order(rows, by_exchange, by_local)
    asset = BacktestAsset().data([events]).linear_asset(1.0).constant_order_latency(0, 0)
    asset.risk_adverse_queue_model().no_partial_fill_exchange()
    asset.trading_value_fee_model(0.0, 0.0).tick_size(tick).lot_size(lot)
    hbt = HashMapMarketDepthBacktest([asset])
    bid, ask = touches(hbt, np.load(instants))
    ticks = np.rint(rows["px"][rows["px"] > 0] / tick).astype(np.int64)
    held = quantities(hbt, int(ticks.min()), int(ticks.max()))
    side, place = np.nonzero(held)
    lots = np.rint(held[side, place] / lot).astype(np.int64)
    hbt.close()
    return {
        "bid": bid,
        "ask": ask,
        "levels": np.column_stack([1 - 2 * side, place + ticks.min(), lots]),
        "same": bool(np.array_equal(corrected, rows)),
    }


if __name__ == "__main__":
    if sys.argv[1] == "replay":
        made = replay(sys.argv[2], sys.argv[3], float(sys.argv[4]), float(sys.argv[5]))
        np.savez(sys.argv[6], **made)
    else:
        tardis.convert(sys.argv[3:], sys.argv[2], buffer_size=2_000_000, ss_buffer_size=10_000)
