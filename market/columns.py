"""The columns of a one-second bar: names, units and meanings, in order."""

from __future__ import annotations

from collections import namedtuple
from typing import Any, Final

#: Bar columns after ``t_ns`` (int64, epoch ns of the bar's end): name -> (unit, meaning). All are
#: float64 and NULL (NaN in memory) where the quantity does not exist.
COLUMNS: Final[dict[str, tuple[str, str]]] = {
    # -- state of the record
    "frames": ("count", "book frames applied"),
    "updates": ("count", "book level rows applied"),
    "gap": (
        "0/1",
        "book was invalid at some instant: no snapshot yet, frames missing, crossed, silent",
    ),
    "stale_s": ("s", "time from the last book frame to the close; NULL before the first"),
    "lag_ms": ("ms", "mean of receive minus exchange time over book frames"),
    "truncated": ("0/1", "a depth band or a sweep at the close passed the last level"),
    # -- price
    "mid_open": ("quote", "mid at the first valid instant"),
    "mid_high": ("quote", "highest mid"),
    "mid_low": ("quote", "lowest mid"),
    "mid_close": ("quote", "mid at the close; NULL when the book is invalid then"),
    "mid_twap": ("quote", "time-weighted mean mid"),
    "micro_close": ("quote", "mid weighted by opposite best quantities at the close"),
    "vamp_close": ("quote", "volume-adjusted mid over five levels at the close"),
    # -- spread
    "spread_ticks": ("ticks", "spread at the close"),
    "spread_mean": ("ticks", "time-weighted mean spread"),
    "spread_std": ("ticks", "time-weighted standard deviation of the spread"),
    "spread_one": ("share", "share of time with a spread of one tick"),
    "spread_bps": ("bps", "spread over mid at the close"),
    # -- quantity and depth at the close, unless said otherwise
    "bid_q1": ("base", "best bid quantity"),
    "ask_q1": ("base", "best ask quantity"),
    "bid_q1_mean": ("base", "time-weighted mean of the best bid quantity"),
    "ask_q1_mean": ("base", "time-weighted mean of the best ask quantity"),
    "bid_q5": ("base", "bid quantity on five levels"),
    "ask_q5": ("base", "ask quantity on five levels"),
    "bid_q10": ("base", "bid quantity on ten levels"),
    "ask_q10": ("base", "ask quantity on ten levels"),
    "bid_d1": ("quote", "bid notional within 1 bps of mid; NULL if the book ends before"),
    "ask_d1": ("quote", "ask notional within 1 bps of mid; NULL if the book ends before"),
    "bid_d2": ("quote", "bid notional within 2 bps of mid; NULL if the book ends before"),
    "ask_d2": ("quote", "ask notional within 2 bps of mid; NULL if the book ends before"),
    "bid_d3": ("quote", "bid notional within 3 bps of mid; NULL if the book ends before"),
    "ask_d3": ("quote", "ask notional within 3 bps of mid; NULL if the book ends before"),
    "bid_depth": ("quote", "bid notional on all levels"),
    "ask_depth": ("quote", "ask notional on all levels"),
    "bid_reach": ("bps", "distance of the last bid level from mid"),
    "ask_reach": ("bps", "distance of the last ask level from mid"),
    "bid_slope": (
        "quote/bps",
        "slope of cumulative bid notional on distance, with its square, no intercept",
    ),
    "ask_slope": (
        "quote/bps",
        "slope of cumulative ask notional on distance, with its square, no intercept",
    ),
    "bid_convexity": (
        "quote/bps2",
        "coefficient of the squared distance in the same regression, bids",
    ),
    "ask_convexity": (
        "quote/bps2",
        "coefficient of the squared distance in the same regression, asks",
    ),
    "bid_gap": ("ticks", "distance between best and second bid"),
    "ask_gap": ("ticks", "distance between best and second ask"),
    "empty_share": ("share", "share of empty ticks among the 50 nearest on either side"),
    "sweep_buy_10k": ("bps", "cost over mid of buying 10,000 quote; NULL beyond the book"),
    "sweep_sell_10k": ("bps", "cost under mid of selling 10,000 quote; NULL beyond the book"),
    "sweep_buy_100k": ("bps", "the same for 100,000"),
    "sweep_sell_100k": ("bps", "the same for 100,000"),
    "sweep_buy_1m": ("bps", "the same for 1,000,000"),
    "sweep_sell_1m": ("bps", "the same for 1,000,000"),
    # -- order flow, summed over the second
    **{
        f"ofi_{level}": ("base", f"order-flow imbalance at level {level}, event by event")
        for level in range(1, 11)
    },
    "depth_norm": ("base", "mean over frames and ten levels of half the bid and ask quantities"),
    "bid_add": (
        "base",
        "inferred additions to bids: max(0, dq + V) with V the visible trades there",
    ),
    "bid_cancel": ("base", "inferred cancels of bids: max(0, -dq - V)"),
    "ask_add": ("base", "inferred additions to asks"),
    "ask_cancel": ("base", "inferred cancels of asks"),
    "bid_add_1": ("base", "inferred additions at the best bid before the frame, or above it"),
    "bid_cancel_1": ("base", "inferred cancels at the best bid"),
    "ask_add_1": ("base", "inferred additions at the best ask before the frame, or below it"),
    "ask_cancel_1": ("base", "inferred cancels at the best ask"),
    "best_changes": ("count", "changes of the best bid or best ask price"),
    "flicker": ("count", "best-price moves that reverse the one before within 100 ms"),
    "quote_life": ("log s", "mean log lifetime of best prices, event-time EWMA over 100 s"),
    # -- trades; block trades only in block_buy_qty and block_sell_qty
    "buy_qty": ("base", "taker buys"),
    "sell_qty": ("base", "taker sells"),
    "buy_n": ("count", "taker buys"),
    "sell_n": ("count", "taker sells"),
    "buy_notional": ("quote", "taker buys"),
    "sell_notional": ("quote", "taker sells"),
    "vwap": ("quote", "volume-weighted trade price; NULL without a trade"),
    "last_price": ("quote", "last trade price so far; NULL before the first"),
    "max_trade": ("base", "largest single trade"),
    "rpi_buy_qty": ("base", "part of the taker buys that matched RPI orders"),
    "rpi_sell_qty": ("base", "part of the taker sells that matched RPI orders"),
    "block_buy_qty": ("base", "block trades, taker buys"),
    "block_sell_qty": ("base", "block trades, taker sells"),
    "run_length": ("count", "signed length of the current run of same-side trades at the close"),
    "trade_age_s": ("s", "time from the last trade to the close; NULL before the first"),
    **{
        f"hawkes_{side}_{tau}": ("count", f"sum of exp(-age/{tau} s) over all taker {side}s so far")
        for tau in (1, 10, 100)
        for side in ("buy", "sell")
    },
    "vpin": (
        "share",
        "one-sidedness |buys - sells| / volume of buckets of 250,000 quote, event-time EWMA over 100 s",
    ),
    # -- variation of the mid between book frames, in squared log returns
    "rv": ("1", "realised variance"),
    "bv": (
        "1",
        "bipower variation, pi/2 times the sum of products of neighbouring absolute returns",
    ),
    "rv_up": ("1", "part of rv from upward moves"),
    "rv_down": ("1", "part of rv from downward moves"),
    # -- ticker, last known at the close
    "mark": ("quote", "mark price"),
    "index_price": ("quote", "index price"),
    "basis_bps": ("bps", "log of mark price over index price"),
    "funding_rate": (
        "1",
        "running estimate of the next funding rate; of archives the last settled rate",
    ),
    "funding_mean": ("1", "the same, time-weighted mean over the known part of the second"),
    "funding_in_s": (
        "s",
        "until the next funding settlement; NULL without a ticker, as in archives",
    ),
    "open_interest": ("base", "open interest"),
    "turnover_24h": ("quote", "turnover over 24 h"),
    "ticker_age_s": ("s", "time from the last ticker frame to the close"),
    # -- liquidations
    "liq_long": ("quote", "notional of liquidated longs"),
    "liq_short": ("quote", "notional of liquidated shorts"),
}

_NAMES: Final = tuple(COLUMNS)
#: Columns that need the levels of the book; the others follow from prices, trades or the ticker.
BOOK: Final = frozenset(
    {"frames", "updates", "micro_close", "vamp_close"}
    | set(_NAMES[_NAMES.index("spread_ticks") : _NAMES.index("buy_qty")])
)

#: Column name -> its index in a row of values; a tuple, so that kernels see constants.
C: Final[Any] = namedtuple("C", COLUMNS)(*range(len(COLUMNS)))
