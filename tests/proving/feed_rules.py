"""What recorded frames of the venue never do: rules in words, each a check of the frames of one topic.

A rule is stated by its docstring. `violations` runs all rules of a topic; `tests/proving/test_feed_rules.py`
holds recorded frames and those of the exchange on loopback to them. Fields that older recordings lack are
not asked for there; where frames are single examples, what joins them to others cannot be checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from decimal import ROUND_CEILING, Decimal
from itertools import pairwise
from typing import Any, Final

Frame = dict[str, Any]
Rule = Callable[[list[Frame]], Iterator[str]]

#: Rules by the stem of the topics that they hold for.
RULES: Final[dict[str, list[Rule]]] = {}

_OPEN = ("New", "PartiallyFilled", "Untriggered")
_ROUNDING = Decimal("0.00000001")


def rule(*stems: str) -> Callable[[Rule], Rule]:
    """Register a rule for topics."""

    def register(check: Rule) -> Rule:
        for stem in stems:
            RULES.setdefault(stem, []).append(check)
        return check

    return register


def violations(stem: str, frames: list[Frame]) -> list[str]:
    """What the frames of one topic do against its rules, oldest first: "rule: where"."""
    return [f"{check.__name__}: {found}" for check in RULES[stem] for found in check(frames)]


def _never_falls(name: str, values: Iterable[Any]) -> Iterator[str]:
    last = None
    for value in values:
        if last is not None and value < last:
            yield f"{name} {value} after {last}"
        last = value


# -- books -----------------------------------------------------------------------------------------

BOOKS = ("orderbook.1", "orderbook.50", "orderbook.200", "orderbook.1000")
DELTA_BOOKS = BOOKS[1:]


@rule(*BOOKS)
def no_frame_is_empty(frames: list[Frame]) -> Iterator[str]:
    """One side of a delta may be empty, both never; a snapshot has both sides."""
    for frame in frames:
        sides = bool(frame["data"]["b"]) + bool(frame["data"]["a"])
        if sides < (2 if frame["type"] == "snapshot" else 1):
            yield f"u {frame['data']['u']}"


@rule(*DELTA_BOOKS)
def updates_are_counted(frames: list[Frame]) -> Iterator[str]:
    """`u` of a delta is that of the frame before it and one."""
    last = None
    for frame in frames:
        update = frame["data"]["u"]
        if frame["type"] == "delta" and last is not None and update != last + 1:
            yield f"u {update} after {last}"
        last = update


@rule("orderbook.1")
def one_level_is_always_whole(frames: list[Frame]) -> Iterator[str]:
    """The book of one level comes as snapshots of one level a side; a repeated `u` repeats the frame,
    three seconds after it at the earliest; what is not repeated differs from the frame before."""
    last = None
    for frame in frames:
        data = frame["data"]
        if "cts" in frame and (frame["type"], len(data["b"]), len(data["a"])) != ("snapshot", 1, 1):
            yield f"u {data['u']}: {frame['type']}"
        if last is not None and data["u"] == last["data"]["u"]:
            if data != last["data"] or frame["ts"] < last["ts"]:
                yield f"u {data['u']} repeated otherwise"
        elif last is not None and [data["b"], data["a"]] == [last["data"]["b"], last["data"]["a"]]:
            yield f"u {data['u']} is as the frame before"
        last = frame


@rule(*BOOKS)
def times_and_sequences_grow(frames: list[Frame]) -> Iterator[str]:
    """`ts`, `cts` and `seq` never fall, and a frame is sent after the state that it tells."""
    yield from _never_falls("ts", (frame["ts"] for frame in frames))
    yield from _never_falls("seq", (frame["data"]["seq"] for frame in frames))
    timed = [frame for frame in frames if "cts" in frame]
    yield from _never_falls("cts", (frame["cts"] for frame in timed))
    yield from (f"cts {f['cts']} after ts {f['ts']}" for f in timed if f["cts"] > f["ts"])


@rule(*BOOKS)
def levels_are_sorted(frames: list[Frame]) -> Iterator[str]:
    """Within a frame bids fall and asks rise, no price comes twice, and a snapshot has no zero."""
    for frame in frames:
        for name, sign in (("b", -1), ("a", 1)):
            prices = [sign * Decimal(price) for price, _ in frame["data"][name]]
            if prices != sorted(set(prices)):
                yield f"u {frame['data']['u']}: {name}"
            sizes = [size for _, size in frame["data"][name]]
            if frame["type"] == "snapshot" and any(not Decimal(size) for size in sizes):
                yield f"u {frame['data']['u']}: a size of 0 in a snapshot"


@rule(*DELTA_BOOKS)
def deltas_change_the_book(frames: list[Frame]) -> Iterator[str]:
    """A delta deletes (size "0") only what is held, sets no size that a level has already, leaves no
    more levels than the topic's depth on a side, and the book is never crossed."""
    sides: dict[str, dict[Decimal, str]] = {}
    for frame in frames:
        data, at = frame["data"], f"u {frame['data']['u']}"
        if frame["type"] == "snapshot":
            sides = {"b": {}, "a": {}}
        if not sides:
            return
        for name, side in sides.items():
            for text, size in data[name]:
                price = Decimal(text)
                if side.get(price, "0") == size:
                    yield f"{at}: {text} is {size} already"
                if size == "0":
                    side.pop(price, None)
                else:
                    side[price] = size
            if len(side) > int(frame["topic"].split(".")[1]):
                yield f"{at}: {len(side)} levels"
        if max(sides["b"]) >= min(sides["a"]):
            yield f"{at}: crossed"


# -- other public topics ---------------------------------------------------------------------------


@rule("publicTrade")
def trades_come_in_order(frames: list[Frame]) -> Iterator[str]:
    """Every frame is a snapshot of 1 to 1,024 trades of one symbol; `ts`, `T` and `seq` never fall, within
    a frame as across frames; a frame is sent after its trades; no id comes twice."""
    trades = [trade for frame in frames for trade in frame["data"]]
    yield from _never_falls("ts", (frame["ts"] for frame in frames))
    yield from _never_falls("T", (trade["T"] for trade in trades))
    yield from _never_falls("seq", (trade["seq"] for trade in trades if "seq" in trade))
    for frame in frames:
        data = frame["data"]
        if frame["type"] != "snapshot" or not 1 <= len(data) <= 1024:
            yield f"ts {frame['ts']}: {frame['type']} of {len(data)}"
        if any(trade["T"] > frame["ts"] for trade in data):
            yield f"ts {frame['ts']}: a later trade"
        if {trade["s"] for trade in data} != {frame["topic"].rpartition(".")[2]}:
            yield f"ts {frame['ts']}: another symbol"
    if len({trade["i"] for trade in trades}) < len(trades):
        yield "an id came twice"


@rule("publicTrade")
def tick_direction_follows_prices(frames: list[Frame]) -> Iterator[str]:
    """`L` says how the price differs from that of the trade before; a size is more than 0."""
    last: Frame | None = None
    for trade in (trade for frame in frames for trade in frame["data"]):
        if last is not None:
            change = Decimal(trade["p"]) - Decimal(last["p"])
            rises = change > 0 if change else "Plus" in last["L"]
            if trade["L"] != ("" if change else "Zero") + ("Plus" if rises else "Minus") + "Tick":
                yield f"{trade['i']}: {trade['L']} at {trade['p']} after {last['L']} at {last['p']}"
        if Decimal(trade["v"]) <= 0:
            yield f"{trade['i']}: size {trade['v']}"
        last = trade


#: Fields of a ticker that come together or not at all.
_TOGETHER = (
    ("bid1Price", "bid1Size"),
    ("ask1Price", "ask1Size"),
    ("turnover24h", "volume24h"),
    ("openInterest", "singleOpenInterest"),
    ("openInterestValue", "singleOpenInterestValue"),
)


@rule("tickers")
def ticker_deltas_tell_changes(frames: list[Frame]) -> Iterator[str]:
    """A delta names the fields that changed, at least one; a side of the book comes as price and size, as
    do other pairs; `ts` and `cs` never fall; bid below ask."""
    state: Frame = {}
    yield from _never_falls("ts", (frame["ts"] for frame in frames))
    yield from _never_falls("cs", (frame["cs"] for frame in frames))
    for frame in frames:
        data, at = frame["data"], f"cs {frame['cs']}"
        if frame["type"] == "snapshot":
            state = dict(data)
        elif state:
            changed = {name for name, value in data.items() if state.get(name) != value}
            paired = {name for pair in _TOGETHER for name in pair if changed & set(pair)}
            restated = set(data) - changed - paired - {"symbol"}
            if not changed or restated:
                yield f"{at}: changed {sorted(changed)}, restated {sorted(restated)}"
            state |= data
        for pair in _TOGETHER:
            if len(set(pair) & set(data)) == 1 and (pair[1] in state):
                yield f"{at}: one of {pair}"
        if state.get("bid1Price") and Decimal(state["bid1Price"]) >= Decimal(state["ask1Price"]):
            yield f"{at}: crossed"


@rule("allLiquidation")
def liquidations_were_before(frames: list[Frame]) -> Iterator[str]:
    """A frame has at least one liquidation, each of its symbol, before `ts` and of a size."""
    yield from _never_falls("ts", (frame["ts"] for frame in frames))
    for frame in frames:
        symbol = frame["topic"].rpartition(".")[2]
        if not frame["data"]:
            yield f"ts {frame['ts']}: none"
        for row in frame["data"]:
            if row["s"] != symbol or row["T"] > frame["ts"] or Decimal(row["v"]) <= 0:
                yield f"ts {frame['ts']}: {row}"


@rule("kline")
def candles_hold_together(frames: list[Frame]) -> Iterator[str]:
    """A candle ends a millisecond before the next begins, open and close are within low and high, its
    `timestamp` is the frame's or before; only a candle that has ended is confirmed, and once."""
    confirmed: set[int] = set()
    yield from _never_falls("ts", (frame["ts"] for frame in frames))
    for frame in frames:
        for row in frame["data"]:
            low, high = Decimal(row["low"]), Decimal(row["high"])
            ends = [low <= Decimal(row[name]) <= high for name in ("open", "close")]
            length_ms = 60_000 * int(row["interval"])
            if row["start"] % length_ms or row["end"] != row["start"] + length_ms - 1:
                yield f"{row['start']} to {row['end']}"
            if not all(ends) or row["timestamp"] > frame["ts"]:
                yield f"{row['start']}: {row}"
            if row["start"] in confirmed or row["confirm"] != (frame["ts"] > row["end"]):
                yield f"{row['start']}: confirm {row['confirm']} at {frame['ts']}"
            if row["confirm"]:
                confirmed.add(row["start"])


@rule("priceLimit")
def buys_may_pay_more_than_sells(frames: list[Frame]) -> Iterator[str]:
    """The highest price of a buy is above the lowest of a sell; `ts` never falls."""
    yield from _never_falls("ts", (frame["ts"] for frame in frames))
    for frame in frames:
        if Decimal(frame["data"]["buyLmt"]) <= Decimal(frame["data"]["sellLmt"]):
            yield f"ts {frame['ts']}"


# -- private topics --------------------------------------------------------------------------------


def _rows(frames: list[Frame]) -> Iterator[tuple[Frame, Frame]]:
    """Every row of linear perpetuals with its frame."""
    for frame in frames:
        for row in frame["data"]:
            if row.get("category", "linear") in ("", "linear"):
                yield frame, row


@rule("order", "execution", "execution.fast", "position", "wallet")
def messages_leave_after_what_they_tell(frames: list[Frame]) -> Iterator[str]:
    """`creationTime` never falls within a run and is no earlier than the row's own time."""
    for frame, row in _rows(frames):
        told = row.get("updatedTime") or row.get("execTime") or "0"
        if int(told) > frame["creationTime"]:
            yield f"{told} told at {frame['creationTime']}"


@rule("order")
def quantities_of_an_order_add_up(frames: list[Frame]) -> Iterator[str]:
    """What is left is what was ordered less what was executed while the order is open, and 0 afterwards;
    the average price is the value by the quantity, and empty before the first execution."""
    for _, row in _rows(frames):
        total, done, left = (Decimal(row[name]) for name in ("qty", "cumExecQty", "leavesQty"))
        value, at = Decimal(row["cumExecValue"]), f"{row['orderId']} {row['orderStatus']}"
        is_open = row["orderStatus"] in _OPEN
        if left != (total - done if is_open else 0):
            yield f"{at}: {left} left of {total} with {done} executed"
        if bool(row["avgPrice"]) != bool(done):
            yield f"{at}: average {row['avgPrice']!r} with {done} executed"
        elif done and abs(Decimal(row["avgPrice"]) * done - value) > value * Decimal("1e-6"):
            yield f"{at}: average {row['avgPrice']} of {value}"


@rule("order")
def states_of_an_order_follow(frames: list[Frame]) -> Iterator[str]:
    """Filled means all; New means nothing executed; a cancelled order was not filled; a market order is
    IOC with its bound as price; what is executed never falls; nothing follows the end of an order but a
    second Filled message that says a cancel came too late."""
    last: dict[str, Frame] = {}
    for _, row in _rows(frames):
        total, done = Decimal(row["qty"]), Decimal(row["cumExecQty"])
        status, at = row["orderStatus"], f"{row['orderId']} {row['orderStatus']}"
        part = {"Filled": done == total, "New": not done, "PartiallyFilled": 0 < done < total}
        if not part.get(status, True) or (status == "Cancelled" and done == total):
            yield f"{at}: {done} of {total}"
        is_entered = status not in ("Untriggered", "Deactivated", "Triggered", "Rejected")
        is_bounded = row["timeInForce"] == "IOC" and Decimal(row["price"] or "0")
        if row["orderType"] == "Market" and is_entered and not is_bounded:
            yield f"{at}: {row['timeInForce']} at {row['price']}"
        if int(row["updatedTime"]) < int(row["createdTime"]):
            yield f"{at}: updated before it was created"
        before = last.get(row["orderId"])
        if before is not None and done < Decimal(before["cumExecQty"]):
            yield f"{at}: executed {done} after {before['cumExecQty']}"
        too_late = row["rejectReason"] == "EC_OrigClOrdIDDoesNotExist" and status == "Filled"
        ended = before is not None and before["orderStatus"] not in (*_OPEN, "Triggered")
        if ended and not too_late:
            yield f"{at}: after {before['orderStatus'] if before else ''}"
        last[row["orderId"]] = row


@rule("execution")
def amounts_of_an_execution_follow(frames: list[Frame]) -> Iterator[str]:
    """Value is price by quantity, the fee is value by rate rounded up at the eighth decimal; no id comes
    twice, no more is closed than executed; what is left counts down within an order."""
    ids: set[str] = set()
    left: dict[str, Decimal] = {}
    for _, row in _rows(frames):
        qty, price = Decimal(row["execQty"]), Decimal(row["execPrice"])
        value, at = Decimal(row["execValue"]), row["execId"]
        if row["execType"] == "Trade":
            fee = (value * Decimal(row["feeRate"])).quantize(_ROUNDING, ROUND_CEILING)
            if qty * price != value or Decimal(row["execFee"]) != fee:
                yield f"{at}: {qty} at {price} is {value}, fee {row['execFee']}"
            remaining = Decimal(row["leavesQty"])
            if remaining >= left.get(row["orderId"], remaining + 1):
                yield f"{at}: {remaining} left after {left[row['orderId']]}"
            left[row["orderId"]] = remaining
        if at in ids or Decimal(row["closedSize"]) > qty:
            yield f"{at}: closed {row['closedSize']} of {qty}"
        ids.add(at)


@rule("execution.fast")
def fast_executions_hide_makers(frames: list[Frame]) -> Iterator[str]:
    """No id of a message, and none of a maker's own."""
    for frame, row in _rows(frames):
        if "id" in frame or (row["isMaker"] and row["orderLinkId"]):
            yield row["execId"]


@rule("position")
def a_position_has_a_side_or_nothing(frames: list[Frame]) -> Iterator[str]:
    """A size is never negative; a flat position has no side, entry, value or margin; a profit is size by
    the difference of mark and entry."""
    for _, row in _rows(frames):
        size, at = Decimal(row["size"]), f"{row['symbol']} {row['side']} {row['size']}"
        if size < 0 or (row["side"] in ("Buy", "Sell")) != bool(size):
            yield at
        if not size and any(
            Decimal(row[name] or 0) for name in ("entryPrice", "positionValue", "positionIM")
        ):
            yield f"{at}: an entry, a value or a margin"
        sign = {"Buy": 1, "Sell": -1}.get(row["side"], 0)
        mark, entry = Decimal(row["markPrice"]), Decimal(row["entryPrice"] or 0)
        profit = sign * size * (mark - entry)
        if abs(profit - Decimal(row["unrealisedPnl"])) > size * Decimal("0.01"):
            yield f"{at}: profit {row['unrealisedPnl']}, not {profit}"


@rule("wallet")
def sums_of_a_wallet_hold(frames: list[Frame]) -> Iterator[str]:
    """Margin balance is wallet balance and profit of perpetuals; available is that less initial margin;
    a coin's equity is its balance and profit; a rate is margin by balance, cut at four decimals."""
    for _, row in _rows(frames):
        if not row["totalMarginBalance"]:  # isolated margin has no sums
            continue
        names = ("totalWalletBalance", "totalPerpUPL", "totalMarginBalance", "totalInitialMargin")
        wallet, profit, balance, initial = (Decimal(row[name]) for name in names)
        cent = Decimal("0.0000001")
        available = Decimal(row["totalAvailableBalance"])
        if abs(wallet + profit - balance) > cent or (
            available and abs(balance - initial - available) > cent
        ):
            yield f"{wallet} + {profit} = {balance}, available {available}"
        for coin in row["coin"]:
            equity = Decimal(coin["walletBalance"]) + Decimal(coin["unrealisedPnl"])
            if abs(equity - Decimal(coin["equity"])) > cent:
                yield f"{coin['coin']}: equity {coin['equity']}, not {equity}"
        rate = Decimal(int(initial / balance * 10_000)) / 10_000 if balance > 0 else Decimal(0)
        if Decimal(row["accountIMRate"]) != rate:
            yield f"rate {row['accountIMRate']}, not {rate}"


# -- across topics ---------------------------------------------------------------------------------


def out_of_order(frames: list[Frame]) -> list[str]:
    """Cross sequences order what happened to a symbol: of trades and books, an event with a larger one is
    no earlier."""
    events = []
    for frame in frames:
        data = frame["data"]
        if frame["topic"].startswith("orderbook") and "cts" in frame:
            events.append((data["seq"], frame["cts"], f"{frame['topic']} u {data['u']}"))
        elif frame["topic"].startswith("publicTrade"):
            events += [(trade["seq"], trade["T"], f"trade {trade['i']}") for trade in data]
    events.sort()
    return [
        f"{b[2]} is at {b[1]}, {a[2]} before it at {a[1]}"
        for a, b in pairwise(events)
        if b[1] < a[1] and b[0] > a[0]
    ]


def untold_executions(frames: list[Frame]) -> list[str]:
    """Executions of an order sum up to what its last message says, and every one is of an order told of."""
    done: dict[str, Decimal] = {}
    summed: dict[str, Decimal] = {}
    for frame in (frame for frame in frames if frame["topic"] in ("order", "execution")):
        for row in frame["data"]:
            if frame["topic"] == "order":
                done[row["orderId"]] = Decimal(row["cumExecQty"])
            elif row["execType"] != "Funding":
                order_id = row["orderId"]
                summed[order_id] = summed.get(order_id, Decimal(0)) + Decimal(row["execQty"])
    return [
        f"{order_id}: {qty} executed, {done.get(order_id)} told"
        for order_id, qty in summed.items()
        if done.get(order_id) != qty
    ]
