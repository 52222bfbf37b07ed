"""hftbacktest's array book with and without a plain-Python strategy. Run by the peer's own interpreter:

    peers/hftbacktest/bin/python tests/peers/hftbacktest_quotes.py convert ROWS.npz EVENTS.npy
    peers/hftbacktest/bin/python tests/peers/hftbacktest_quotes.py EVENTS.npy SETTING

``ROWS.npz`` holds ``rows`` as tests/peers/hftbacktest_judge.py reads them, at exchange time; SETTING is
JSON with the feed's and the orders' latency and the step of the strategy, all in ns. One tick is 1.0,
one lot is 1.0. Each question is a line of standard input, each answer one of standard output, JSON:

    "replay"    seconds of replaying all rows without a strategy; compiled before
    "quotes"    seconds of the strategy that proving/bench/execution.py states, by the same rows
    "orders"    how many requests it sent, and the hash of all of them
    "peak"      largest resident memory of this process so far, in MB
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from typing import Any

import numpy as np
from hftbacktest import BacktestAsset, ROIVectorMarketDepthBacktest
from hftbacktest_judge import feed
from numba import njit

GTX, LIMIT = 1, 0
#: A side without a level has a best price beyond, above or below.
NO_PRICE = 1 << 40


def backtest(events: Any, setting: Any) -> Any:
    prices = events["px"][events["px"] > 1]
    asset = BacktestAsset().data(events).linear_asset(1.0)
    asset.constant_order_latency(setting["order_ns"], setting["order_ns"])
    asset.risk_adverse_queue_model().no_partial_fill_exchange()
    asset.trading_value_fee_model(0.0, 0.0).tick_size(1.0).lot_size(1.0)
    asset.roi_lb(float(prices.min()) - 10).roi_ub(float(prices.max()) + 10)
    return ROIVectorMarketDepthBacktest([asset])


@njit
def replay(hbt: Any) -> None:
    while hbt.elapse(3_600_000_000_000) == 0:
        pass


def quotes(hbt: Any, step_ns: int, end_ns: int) -> list[tuple[int, int, int]]:
    """The strategy; returns what was sent: time, side (0 for a cancel), price or order."""
    sent = []
    number = 0
    working = [0, 0]
    prices = [0, 0]
    hbt.elapse(0)
    while hbt.current_timestamp < end_ns:
        now = hbt.current_timestamp
        if hbt.elapse(step_ns - now % step_ns) != 0:
            break
        hbt.clear_inactive_orders(0)
        depth = hbt.depth(0)
        orders = hbt.orders(0)
        for n, touch in enumerate((depth.best_bid_tick, depth.best_ask_tick)):
            if not 0 < touch < NO_PRICE:
                continue
            if working[n] and orders.get(working[n]) is None:
                working[n] = 0
            if working[n] and prices[n] != touch:
                hbt.cancel(0, working[n], False)
                sent.append((hbt.current_timestamp, 0, working[n]))
                working[n] = 0
            if not working[n]:
                number += 1
                working[n], prices[n] = number, touch
                submit = hbt.submit_sell_order if n else hbt.submit_buy_order
                submit(0, number, float(touch), 1.0, GTX, LIMIT, False)
                sent.append((hbt.current_timestamp, -1 if n else 1, touch))
    return sent


def peak_mb() -> float:
    """Largest resident memory of this process; what getrusage says includes its parent's."""
    with open("/proc/self/status") as status:
        (line,) = (line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def convert(rows: Any, path: str) -> None:
    np.save(path, feed(rows, int(rows["time_ns"][-1])))


def main() -> None:
    events, setting = np.load(sys.argv[1]), json.loads(sys.argv[2])
    events["local_ts"] += setting["feed_ns"]
    step_ns = setting["step_ns"]
    end_ns = (int(events["local_ts"][-1]) - 1) // step_ns * step_ns
    few = events[:2_000].copy()
    for data in (few, few):
        replay(backtest(data, setting))
        quotes(backtest(data, setting), step_ns, int(data["local_ts"][-1]))
    sent: list[tuple[int, int, int]] = []
    for line in sys.stdin:
        question = json.loads(line)
        answer: Any = peak_mb()
        if question == "orders":
            answer = [len(sent), hashlib.sha256(np.array(sent, np.int64).tobytes()).hexdigest()]
        elif question != "peak":
            hbt = backtest(events, setting)
            started = time.perf_counter()
            if question == "replay":
                replay(hbt)
            else:
                sent = quotes(hbt, step_ns, end_ns)
            answer = time.perf_counter() - started
            hbt.close()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "convert":
        with np.load(sys.argv[2]) as archive:
            convert(archive["rows"], sys.argv[3])
    else:
        main()
