"""hftbacktest's array book over rows of ours. Run by the peer's own interpreter, and it knows no other:

    peers/hftbacktest/bin/python tests/peers/hftbacktest_book.py ROWS.npz

``ROWS.npz`` holds streams of rows, each with the fields kind, flags, side, time_ns, price_ticks and qty_lots. One
tick is 1.0, one lot is 1.0. Each question is a line of standard input, each answer a line of standard
output, both JSON:

    "seconds"   wall-clock time of replaying every stream, without strategy; compiled before
    "levels"    per stream, [[side, price_ticks, qty_lots], …] of the book that it left
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
from hftbacktest import BacktestAsset, ROIVectorMarketDepthBacktest
from hftbacktest_judge import feed
from numba import njit

#: Rows enough to compile everything with.
FEW = 1000


def replay(rows: Any) -> tuple[float, Any]:
    """Replay rows through a new backtest; (seconds, levels)."""
    end_ns = int(rows["time_ns"][-1]) + 1
    # the peer holds a raw pointer to the events: they have to outlive the backtest
    events = feed(rows, end_ns)
    on_book = rows["side"] != 0
    low, high = rows["price_ticks"][on_book].min(), rows["price_ticks"][on_book].max()
    asset = BacktestAsset().data(events).linear_asset(1.0).constant_order_latency(0, 0)
    asset.risk_adverse_queue_model().no_partial_fill_exchange()
    asset.trading_value_fee_model(0.0, 0.0).tick_size(1.0).lot_size(1.0)
    asset.roi_lb(float(low)).roi_ub(float(high))
    hbt = ROIVectorMarketDepthBacktest([asset])
    span_ns = end_ns - int(rows["time_ns"][0])
    hbt.elapse(0)
    started = time.perf_counter()
    hbt.elapse(span_ns)
    took = time.perf_counter() - started
    found = levels(hbt, int(low), int(high))
    hbt.close()
    return took, found


@njit
def quantities(hbt, low, high):
    depth = hbt.depth(0)
    held = np.zeros((2, high - low + 1))
    for tick in range(low, high + 1):
        held[0, tick - low] = depth.bid_qty_at_tick(tick)
        held[1, tick - low] = depth.ask_qty_at_tick(tick)
    return held


def levels(hbt: Any, low: int, high: int) -> list[list[int]]:
    held = quantities(hbt, low, high)
    return [
        [side, low + int(place), round(float(held[row, place]))]
        for row, side in enumerate((1, -1))
        for place in np.flatnonzero(held[row])
    ]


def main() -> None:
    with np.load(sys.argv[1]) as data:
        streams = [data[name] for name in data.files]
    replay(streams[0][:FEW])
    left: list[Any] = []
    for line in sys.stdin:
        answer: Any = left
        if json.loads(line) == "seconds":
            times, left = zip(*map(replay, streams), strict=True)
            answer = sum(times)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
