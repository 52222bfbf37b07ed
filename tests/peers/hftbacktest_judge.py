"""Asks hftbacktest what becomes of orders. Run by the peer's own interpreter, and it knows no other:

    peers/hftbacktest/bin/python tests/peers/hftbacktest_judge.py CASES.npz ANSWERS.npz

``CASES.npz`` holds what `pack` of tests/execution/judged.py writes. One tick is 1.0, one lot is 1.0.
``ANSWERS.npz`` holds, for all cases together, ``sent`` (per action: whether the peer took it; it
refuses a second request while one is under way), ``log`` of columns case, receive_ns, order, status,
venue_ns, price_ticks, qty_lots: a row whenever an order's visible state changed. The peer's position
is no evidence: it counts a fill again when a cancel of the filled order is answered.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from hftbacktest import (
    BUY_EVENT,
    DEPTH_CLEAR_EVENT,
    DEPTH_EVENT,
    DEPTH_SNAPSHOT_EVENT,
    EXCH_EVENT,
    LOCAL_EVENT,
    SELL_EVENT,
    TRADE_EVENT,
    BacktestAsset,
    HashMapMarketDepthBacktest,
)
from hftbacktest.types import event_dtype
from numba import njit

SNAPSHOT, DELTA, TRADE = 1, 2, 3  #: kinds of rows
#: The peer's layout of recorded latencies.
LATENCY = np.dtype([("req_ts", "i8"), ("exch_ts", "i8"), ("resp_ts", "i8"), ("_padding", "i8")])
FIRST = 2  #: flag of rows
SUBMIT, AMEND, CANCEL = 0, 1, 2  #: kinds of actions
MODELS = (
    lambda asset, power: asset.risk_adverse_queue_model(),
    lambda asset, power: asset.power_prob_queue_model(power),
    lambda asset, power: asset.power_prob_queue_model2(power),
    lambda asset, power: asset.power_prob_queue_model3(power),
    lambda asset, power: asset.log_prob_queue_model(),
    lambda asset, power: asset.log_prob_queue_model2(),
)


def feed(rows: Any, end_ns: int) -> Any:
    """The peer's events: a snapshot clears the book first; a last row, of no effect, ends the data
    behind everything that is still under way."""
    clears = (rows["kind"] == SNAPSHOT) & (rows["flags"] & FIRST != 0)
    places = np.cumsum(1 + clears) - 1
    events = np.zeros(len(rows) + int(clears.sum()) + 1, event_dtype)
    both = EXCH_EVENT | LOCAL_EVENT
    kinds = np.array([0, DEPTH_SNAPSHOT_EVENT, DEPTH_EVENT, TRADE_EVENT], np.uint64)[rows["kind"]]
    sides = np.where(rows["side"] > 0, BUY_EVENT, SELL_EVENT).astype(np.uint64)
    sides[rows["side"] == 0] = 0
    events["ev"][places] = kinds | sides | np.uint64(both)
    events["exch_ts"][places] = rows["time_ns"]
    events["px"][places], events["qty"][places] = rows["price_ticks"], rows["qty_lots"]
    before = places[clears] - 1
    events["ev"][before] = DEPTH_CLEAR_EVENT | both
    events["exch_ts"][before] = rows["time_ns"][clears]
    events["ev"][-1] = DEPTH_EVENT | BUY_EVENT | both
    events["exch_ts"][-1] = end_ns
    events["px"][-1] = 1.0
    events["local_ts"] = events["exch_ts"]
    return events


@njit
def observe(hbt, seen, log, used):
    """Note the orders whose visible state has changed."""
    values = hbt.orders(0).values()
    while values.has_next():
        order = values.get()
        n = order.order_id
        if order.status == seen[n, 0] and order.exch_timestamp == seen[n, 1]:
            continue
        seen[n, 0], seen[n, 1] = order.status, order.exch_timestamp
        filled = order.status == 3
        log[used, 0] = hbt.current_timestamp
        log[used, 1] = n
        log[used, 2] = order.status
        log[used, 3] = order.exch_timestamp
        log[used, 4] = order.exec_price_tick if filled else 0
        log[used, 5] = round(order.exec_qty) if filled else 0
        used += 1
    return used


@njit
def wait_until(hbt, time_ns, seen, log, used):
    while True:
        code = hbt.wait_next_feed(True, time_ns - hbt.current_timestamp)
        used = observe(hbt, seen, log, used)
        if code == 0 or code == 1:
            return used
        if code != 2 and code != 3:
            raise ValueError("the peer failed to wait")


@njit
def drive(hbt, actions, end_ns, sent, log):
    """Send each action at its time; returns the rows of ``log`` that were written."""
    seen = np.zeros((len(actions) + 1, 2), np.int64)
    hbt.elapse(0)
    used = 0
    for n in range(len(actions)):
        time_ns, kind, order, side, price, lots, policy, market = actions[n]
        used = wait_until(hbt, time_ns, seen, log, used)
        if kind == 0 and side > 0:
            code = hbt.submit_buy_order(0, order, price, lots, policy, market, False)
        elif kind == 0:
            code = hbt.submit_sell_order(0, order, price, lots, policy, market, False)
        elif kind == 1:
            code = hbt.modify(0, order, price, lots, False)
        else:
            code = hbt.cancel(0, order, False)
        sent[n] = code == 0
        if code != 0 and code != 11:
            raise ValueError("the peer refused an action that is in order")
    return wait_until(hbt, end_ns - 1, seen, log, used)


def judge(cases: Any) -> dict[str, Any]:
    sent, logs = [], []
    for n, setting in enumerate(cases["settings"]):
        rows = cases["rows"][cases["row_ends"][n] : cases["row_ends"][n + 1]]
        actions = cases["actions"][cases["action_ends"][n] : cases["action_ends"][n + 1]]
        end_ns = int(setting["end_ns"])
        events = feed(rows, end_ns)
        asset = BacktestAsset().data(events).linear_asset(1.0)
        records = cases["records"][cases["record_ends"][n] : cases["record_ends"][n + 1]]
        # the peer holds a raw pointer to the latencies, too
        latencies = np.zeros(len(records), LATENCY)
        if len(records):
            latencies["req_ts"], latencies["exch_ts"], latencies["resp_ts"] = records.T
            asset.intp_order_latency(latencies)
        else:
            asset.constant_order_latency(int(setting["entry_ns"]), int(setting["response_ns"]))
        MODELS[setting["model"]](asset, float(setting["power"]))
        asset.no_partial_fill_exchange().trading_value_fee_model(0.0, 0.0)
        asset.tick_size(1.0).lot_size(1.0)
        hbt = HashMapMarketDepthBacktest([asset])
        taken = np.zeros(len(actions), np.bool_)
        log = np.zeros((8 * len(actions) + 8, 6), np.int64)
        used = drive(hbt, actions, end_ns, taken, log)
        hbt.close()
        sent.append(taken)
        logs.append(np.column_stack([np.full(used, n), log[:used]]))
    return {
        "sent": np.concatenate(sent),
        "log": np.concatenate(logs),
    }


if __name__ == "__main__":
    with np.load(sys.argv[1]) as cases:
        np.savez_compressed(sys.argv[2], **judge(dict(cases)))
