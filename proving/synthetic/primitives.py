"""Primitives of a bar: independent quantities into which its columns decompose, and the inverse.

The columns of a bar constrain each other: depth bands grow, a sweep within the touch costs half the
spread, sums have parts, a mean size needs a trade. `decompose` gives one quantity per degree of freedom
of a second given its touch, each free above a bound; `compose` inverts it and gives consistent columns
for any values. Columns of the touch are made by `proving.synthetic.touch`, those that depend on the order
of trades within the second by `trades`.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from market.columns import COLUMNS, C
from market.depth import BANDS_BPS, SWEEPS
from market.kernel import compiled

Floats = npt.NDArray[np.float64]

SIDES: Final = ("bid", "ask")
TAKERS: Final = ("buy", "sell")

#: Of the record as a whole.
_WHOLE: Final = (
    "frames", "updates", "stale_s", "lag_ms", "ticker_age_s", "empty_share", "depth_norm", "vamp",
    "largest", "trade_age_s", "last_off", "vpin", "quote_life",
)  # fmt: skip
#: Of each side of the book: quantities beyond the ones named before, notionals likewise.
_BOOK: Final = (
    "q1", "q1_mean", "to_q5", "to_q10", "to_d1", "to_d2", "to_d3", "to_depth", "reach", "slope",
    "convexity", "gap", "add_1", "cancel_1", "add_rest", "cancel_rest",
)  # fmt: skip
#: Of the takers of each side.
_TAKEN: Final = ("n", "qty", "off", "rpi", "liq", "sweep_10k", "sweep_100k", "sweep_1m")

NAMES: Final[tuple[str, ...]] = (
    *_WHOLE,
    *(f"{side}_{name}" for side in SIDES for name in _BOOK),
    *(f"{taker}_{name}" for taker in TAKERS for name in _TAKEN),
    *(f"ofi_{level}" for level in range(1, 11)),
)
P: Final = {name: place for place, name in enumerate(NAMES)}

_LIQUIDATED: Final = {"buy": "liq_short", "sell": "liq_long"}


def decompose(values: Floats) -> Floats:
    """Primitives (n, len(NAMES)) of bars (n, len(COLUMNS)); NaN where a second has no such quantity.

    Distances in the book are in ticks. Slope and convexity are relative to depth over reach. Trade prices
    are placed between the second's worst and best touch, 0 to 1, and beyond in ticks. A sweep is its cost
    beyond half the spread; if the touch suffices, the (negative) log of notional over touch.
    """
    bar = {name: values[:, place] for place, name in enumerate(COLUMNS)}
    part: dict[str, Floats] = {name: bar[name] for name in _WHOLE if name in bar}
    mid, half = bar["mid_close"], 0.5 * bar["spread_bps"]
    ticks = bar["spread_ticks"] / bar["spread_bps"]
    part["vamp"] = (bar["vamp_close"] / mid - 1) * 1e4 * ticks
    with np.errstate(invalid="ignore", divide="ignore"):
        for side in SIDES:
            of = {name: bar[f"{side}_{name}"] for name in ("q1", "q5", "q10", "depth", "reach")}
            bands = [bar[f"{side}_d{bps}"] for bps in BANDS_BPS]
            # Beyond the last level a band holds what there is.
            depths = [np.where(np.isnan(band), of["depth"], band) for band in bands]
            unit = of["depth"] / of["reach"]
            own = {
                "q1": of["q1"],
                "q1_mean": bar[f"{side}_q1_mean"],
                "to_q5": of["q5"] - of["q1"],
                "to_q10": of["q10"] - of["q5"],
                "to_d1": depths[0] - of["q1"] * mid,
                "to_d2": depths[1] - depths[0],
                "to_d3": depths[2] - depths[1],
                "to_depth": of["depth"] - depths[2],
                "reach": of["reach"] * ticks,
                "slope": bar[f"{side}_slope"] / unit,
                "convexity": bar[f"{side}_convexity"] / (unit / of["reach"]),
                "gap": bar[f"{side}_gap"],
                "add_1": bar[f"{side}_add_1"],
                "cancel_1": bar[f"{side}_cancel_1"],
                "add_rest": bar[f"{side}_add"] - bar[f"{side}_add_1"],
                "cancel_rest": bar[f"{side}_cancel"] - bar[f"{side}_cancel_1"],
            }
            part |= {f"{side}_{name}": column for name, column in own.items()}
        for sign, taker, side in ((1, "buy", "ask"), (-1, "sell", "bid")):
            qty, n = bar[f"{taker}_qty"], bar[f"{taker}_n"]
            paid = bar[f"{taker}_notional"] / qty
            own = {
                "n": n,
                "qty": qty,
                "off": _placed(sign * paid, sign, bar),
                "rpi": bar[f"rpi_{taker}_qty"],
                "liq": bar[_LIQUIDATED[taker]],
            }
            touch = bar[f"{side}_q1"] * mid
            for name, notional in zip(("10k", "100k", "1m"), SWEEPS, strict=True):
                beyond = (bar[f"sweep_{taker}_{name}"] - half) * ticks
                inside = np.minimum(np.log(notional / touch), 0)
                own[f"sweep_{name}"] = np.where(beyond > 1e-6, beyond, inside)
            part |= {f"{taker}_{name}": column for name, column in own.items()}
        low = np.fmax(bar["buy_qty"] / bar["buy_n"], bar["sell_qty"] / bar["sell_n"])
        high = np.fmax(bar["buy_qty"], bar["sell_qty"])
        part["largest"] = (bar["max_trade"] - low) / (high - low)
        traded = bar["buy_n"] + bar["sell_n"] > 0
        part["trade_age_s"] = np.where(traded, bar["trade_age_s"], 1.0)
        last = np.sign(bar["run_length"]) * (bar["last_price"] / mid - 1) * 1e4 - half
        part["last_off"] = np.where(traded, last, np.nan)
    part |= {f"ofi_{level}": bar[f"ofi_{level}"] for level in range(1, 11)}
    return np.stack([part[name] for name in NAMES], axis=1)


def compose(parts: Floats, values: Floats, lot: float) -> None:
    """Write primitives into bars that have the columns of the touch already, in place.

    The inverse of `decompose`: quantities in whole lots, whole counts, NULL where the book does not
    reach or nothing traded.
    """
    bar = {name: values[:, place] for place, name in enumerate(COLUMNS)}
    part = {name: parts[:, place] for place, name in enumerate(NAMES)}
    for name in ("frames", "updates"):
        bar[name][:] = np.maximum(np.rint(part[name]), 0)
    for name in ("stale_s", "lag_ms", "ticker_age_s"):
        bar[name][:] = np.maximum(part[name], 0)
    bar["empty_share"][:] = 1 - np.clip(np.rint(100 - 100 * part["empty_share"]), 0, 100) / 100
    bar["vpin"][:] = np.clip(part["vpin"], 0, 1)
    bar["quote_life"][:] = part["quote_life"]
    mid, half = bar["mid_close"], 0.5 * bar["spread_bps"]
    short = np.zeros(len(values), bool)
    for side in SIDES:
        short |= _compose_book(side, bar, part, mid, lot)
    bar["depth_norm"][:] = np.maximum(part["depth_norm"], lot)
    lean = (bar["bid_q1"] - bar["ask_q1"]) / (bar["bid_q1"] + bar["ask_q1"])
    bar["micro_close"][:] = mid * (1 + half * lean * 1e-4)
    tick_bps = bar["spread_bps"] / bar["spread_ticks"]
    bar["vamp_close"][:] = mid * (1 + part["vamp"] * tick_bps * 1e-4)
    for taker, side in zip(TAKERS, reversed(SIDES), strict=True):
        before = half
        for name, notional in zip(("10k", "100k", "1m"), SWEEPS, strict=True):
            touch = bar[f"{side}_q1"] * mid * (1 + (half if side == "ask" else -half) * 1e-4)
            # Beyond the touch a sweep costs at least its share of the gap to the next level.
            beyond = 1 - np.minimum(touch / notional, 1)
            drawn = part[f"{taker}_sweep_{name}"] * tick_bps
            least = beyond * bar[f"{side}_gap"] * tick_bps
            cost = half + np.where(beyond > 0, np.maximum(drawn, least), 0)
            cost = np.minimum(np.maximum(cost, before), bar[f"{side}_reach"])
            missing = bar[f"{side}_depth"] < notional
            bar[f"sweep_{taker}_{name}"][:] = np.where(missing, np.nan, cost)
            short |= missing
            before = cost
    bar["truncated"][:] = short
    for level in range(1, 11):
        bar[f"ofi_{level}"][:] = _lots(part[f"ofi_{level}"], lot)
    _compose_trades(bar, part, lot)


def _touch_range(sign: int, bar: dict[str, Floats]) -> tuple[Floats, Floats]:
    """Approximate signed prices of the lowest and highest touch that takers of a side met."""
    half = (
        0.5 * bar["spread_mean"] * bar["mid_close"] * bar["spread_bps"] / bar["spread_ticks"] * 1e-4
    )
    ends = (bar["mid_low"], bar["mid_high"]) if sign > 0 else (-bar["mid_high"], -bar["mid_low"])
    return ends[0] + half, ends[1] + half


def _placed(signed_price: Floats, sign: int, bar: dict[str, Floats]) -> Floats:
    low, high = _touch_range(sign, bar)
    tick = bar["mid_close"] * bar["spread_bps"] / bar["spread_ticks"] * 1e-4
    inside = np.where(high > low, (signed_price - low) / (high - low), 1.0)
    above, below = (signed_price - high) / tick, (signed_price - low) / tick
    return np.where(above > 0, 1 + above, np.where(below < 0, below, inside))


def _price(placed: Floats, sign: int, bar: dict[str, Floats]) -> Floats:
    low, high = _touch_range(sign, bar)
    tick = bar["mid_close"] * bar["spread_bps"] / bar["spread_ticks"] * 1e-4
    inside = np.clip(placed, 0, 1)
    beyond = np.maximum(placed - 1, 0) + np.minimum(placed, 0)
    return np.asarray(low + inside * (high - low) + beyond * tick)


def _lots(quantity: Floats, lot: float) -> Floats:
    return np.asarray(np.rint(quantity / lot) * lot)


def _compose_book(
    side: str, bar: dict[str, Floats], part: dict[str, Floats], mid: Floats, lot: float
) -> npt.NDArray[np.bool_]:
    """Write one side of the book; True where a depth band reaches beyond its last level."""
    of = {name: np.maximum(part[f"{side}_{name}"], 0) for name in _BOOK if name != "convexity"}
    q1 = bar[f"{side}_q1"]
    q1[:] = np.maximum(_lots(of["q1"], lot), lot)
    bar[f"{side}_q1_mean"][:] = np.maximum(of["q1_mean"], lot)
    bar[f"{side}_q5"][:] = q1 + np.maximum(_lots(of["to_q5"], lot), 4 * lot)
    bar[f"{side}_q10"][:] = bar[f"{side}_q5"] + np.maximum(_lots(of["to_q10"], lot), 5 * lot)
    reach = bar[f"{side}_reach"]
    reach[:] = np.maximum(of["reach"], 10) * bar["spread_bps"] / bar["spread_ticks"]
    # A book that ends within a band has nothing in the bands beyond.
    step = [q1 * mid + of["to_d1"], of["to_d2"], of["to_d3"]]
    within = np.zeros(len(mid))
    ends = np.zeros(len(mid), bool)
    for bps, more in zip(BANDS_BPS, step, strict=True):
        within = within + more
        short = reach < bps
        bar[f"{side}_d{bps}"][:] = np.where(short, np.nan, within)
        ends |= short
    depth = bar[f"{side}_depth"]
    depth[:] = np.maximum(within + of["to_depth"], bar[f"{side}_q10"] * mid)
    bar[f"{side}_slope"][:] = part[f"{side}_slope"] * depth / reach
    bar[f"{side}_convexity"][:] = part[f"{side}_convexity"] * depth / reach**2
    bar[f"{side}_gap"][:] = np.maximum(np.rint(of["gap"]), 1)
    for name in ("add", "cancel"):
        first = bar[f"{side}_{name}_1"]
        first[:] = _lots(of[f"{name}_1"], lot)
        bar[f"{side}_{name}"][:] = first + _lots(of[f"{name}_rest"], lot)
    return ends


def _compose_trades(bar: dict[str, Floats], part: dict[str, Floats], lot: float) -> None:
    """Write counts, quantities and prices of the second's takers."""
    sizes = []
    for sign, taker in ((1, "buy"), (-1, "sell")):
        n, qty = bar[f"{taker}_n"], bar[f"{taker}_qty"]
        n[:] = np.maximum(np.rint(part[f"{taker}_n"]), 0)
        qty[:] = np.where(n > 0, np.maximum(_lots(part[f"{taker}_qty"], lot), n * lot), 0)
        price = sign * _price(part[f"{taker}_off"], sign, bar)
        bar[f"{taker}_notional"][:] = np.where(n > 0, qty * price, 0)
        hidden = np.maximum(_lots(part[f"{taker}_rpi"], lot), 0)
        bar[f"rpi_{taker}_qty"][:] = np.minimum(hidden, qty)
        bar[_LIQUIDATED[taker]][:] = np.maximum(part[f"{taker}_liq"], 0)
        bar[f"block_{taker}_qty"][:] = 0
        sizes.append(np.divide(qty, n, out=np.zeros(len(n)), where=n > 0))
    low = np.maximum(*sizes)
    high = np.maximum(bar["buy_qty"], bar["sell_qty"])
    largest = low + np.clip(np.nan_to_num(part["largest"]), 0, 1) * (high - low)
    bar["max_trade"][:] = np.clip(_lots(largest, lot), low, high)
    volume = bar["buy_qty"] + bar["sell_qty"]
    notional = bar["buy_notional"] + bar["sell_notional"]
    bar["vwap"][:] = np.divide(notional, volume, out=np.full(len(volume), np.nan), where=volume > 0)


# -- columns that depend on the order of trades ----------------------------------------------------

_HAWKES_S: Final = (1.0, 10.0, 100.0)


@compiled
def trades(values: Floats, age: Floats, off: Floats, uniform: Floats, stick: float) -> None:
    """Draw the order and times of each second's trades; write the columns that follow, in place.

    Runs, last price, age of the last trade and Hawkes sums, by the rules of `market.second`. ``age`` and
    ``off`` (seconds,) are the last trade's age and its distance beyond the touch (bps) in a second with
    trades. ``uniform`` (seconds, 64) drives the draws; ``stick`` is the excess probability that a trade
    has the side of the one before.
    """
    hawkes = np.zeros((3, 2))
    run, last = 0.0, np.nan
    since = np.nan
    for s in range(len(values)):
        row = values[s]
        left = np.array([row[C.buy_n], row[C.sell_n]])
        for n in range(3):
            hawkes[n] *= math.exp(-1 / _HAWKES_S[n])
        count = int(left[0] + left[1])
        if count > 0:
            since = min(max(age[s], 0.0), 1.0)
        elif since == since:
            since += 1.0
        for i in range(count):
            # Trades spread evenly between the second's start and the last one, which has its age.
            at = (
                since
                if i == count - 1
                else since + (1 - since) * (1 - (i + uniform[s, 63]) / count)
            )
            buys = left[0] / (left[0] + left[1])
            if run > 0:
                buys += stick * (1 - buys) * (left[0] > 0)
            elif run < 0:
                buys -= stick * buys * (left[1] > 0)
            taker = 0 if uniform[s, i % 63] < buys and left[0] > 0 else 1
            if left[taker] == 0:
                taker = 1 - taker
            left[taker] -= 1
            side = 1.0 - 2.0 * taker
            run = run + side if run * side > 0 else side
            for n in range(3):
                hawkes[n, taker] += math.exp(-at / _HAWKES_S[n])
        if count > 0:
            beyond = (0.5 * row[C.spread_bps] + off[s]) * 1e-4
            last = row[C.mid_close] * (1 + (beyond if run > 0 else -beyond))
        row[C.run_length] = run
        row[C.trade_age_s] = since
        row[C.last_price] = last
        for n in range(3):
            row[C.hawkes_buy_1 + 2 * n] = hawkes[n, 0]
            row[C.hawkes_buy_1 + 2 * n + 1] = hawkes[n, 1]
