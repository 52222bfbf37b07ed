"""Reference implementation of both matching modes: plain Python, one row and one order at a time.

It shares nothing with the compiled engine but the numbers of kinds and queue models. `replay` gives
every outcome of a case's orders, in the order in which it reaches us.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from market.events import Flag, Kind
from tests.execution.judged import Case, OutcomeLine

GTC, POST_ONLY, FOK, IOC = range(4)
RISK_AVERSE, PESSIMISTIC, OPTIMISTIC = 0, 6, 7
WINDOW = 200  #: levels that the book topic shows
NAN = math.nan


def ratio(above: float, below: float) -> float:
    """above / below as floating point has it."""
    if below != 0:
        return above / below
    return NAN if above == 0 else math.copysign(math.inf, above)


def power(x: float, n: float) -> float:
    return NAN if x < 0 and n != int(n) else x**n


def log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf if x == 0 else NAN


def smaller(a: float, b: float) -> float:
    """Minimum; a number wins against NaN."""
    return b if math.isnan(a) else a if math.isnan(b) else min(a, b)


def share_behind(model: int, n: float, ahead: float, behind: float) -> float:
    """Probability that a cancelled quantity stood behind us, by queue model."""
    f, b = ahead, behind
    share = {
        1: lambda: ratio(power(b, n), power(b, n) + power(f, n)),
        2: lambda: ratio(power(b, n), power(b + f, n)),
        3: lambda: 1 - power(ratio(f, f + b), n),
        4: lambda: ratio(log(1 + b), log(1 + b) + log(1 + f)),
        5: lambda: ratio(log(1 + b), log(1 + b + f)),
        OPTIMISTIC: lambda: 0.0,
    }[model]()
    return 1.0 if math.isinf(share) else share


@dataclass
class ReferenceOrder:
    number: int
    side: int
    price: int
    lots: int
    policy: int
    market: bool
    filled: int = 0
    ahead: float = 0.0  #: queue ahead of us
    shown: int = 0  #: quantity displayed when the queue was last judged
    traded: float = 0.0  #: lots traded there since
    touched: int = 0  #: by the current frame: 1 names our level, 2 restates the book

    @property
    def leaves(self) -> int:
        return self.lots - self.filled


class ReferenceExchange:
    """Matches displayed levels, prints and requests against our orders.

    ``whole``: each order fills whole or not at all, alone in the market. Otherwise quantity is
    conserved: what we took of a level is not there again, and a print passes our orders once.
    """

    def __init__(self, whole: bool, model: int, exponent: float) -> None:
        self.whole, self.model, self.exponent = whole, model, exponent
        self.levels: dict[int, dict[int, int]] = {1: {}, -1: {}}
        self.best: dict[int, int | None] = {1: None, -1: None}  #: as mode whole follows it
        self.taken: dict[tuple[int, int], int] = {}
        self.resting: list[ReferenceOrder] = []  #: by price, then by arrival
        self.accepted: set[int] = set()
        self.outcomes: list[tuple[str, int, int, int, int]] = []

    # -- the market ----------------------------------------------------------------------------

    def row(self, price: int, lots: int, kind: int, side: int, flags: int) -> None:
        if kind == Kind.TRADE:
            if not flags & (Flag.RPI | Flag.BLOCK):
                self.print_whole(side, price, lots) if self.whole else self.print(side, price, lots)
            return
        if kind == Kind.SNAPSHOT and flags & Flag.FIRST:
            self.levels, self.best = {1: {}, -1: {}}, {1: None, -1: None}
            for order in self.resting:
                order.touched = 2
        held = self.levels[side].pop(price, 0)
        if lots:
            self.levels[side][price] = lots
        at_level = [o for o in self.resting if (o.side, o.price) == (side, price)]
        if self.whole:
            for order in at_level:
                order.shown = held
                self.judge(order, lots)
            self.follow_touch(side, price, lots)
            return
        for order in at_level:
            order.touched = order.touched or 1
        if flags & Flag.LAST:
            self.frame_ended()

    def outwards(self, side: int) -> list[int]:
        return sorted(self.levels[side], key=lambda price: -side * price)

    @property
    def crossed(self) -> bool:
        bids, asks = self.levels[1], self.levels[-1]
        return bool(bids and asks and max(bids) >= min(asks))

    def judge(self, order: ReferenceOrder, shown: int) -> None:
        """Split a cancelled quantity into ahead and behind when the displayed quantity changed."""
        cancelled = order.shown - shown - order.traded
        behind = order.shown - order.ahead
        order.shown, order.traded = shown, 0.0
        if self.model in (RISK_AVERSE, PESSIMISTIC) or cancelled < 0 or math.isinf(order.ahead):
            order.ahead = smaller(order.ahead, shown)
            return
        share = share_behind(self.model, self.exponent, order.ahead, behind)
        estimate = order.ahead - (1 - share) * cancelled + smaller(behind - share * cancelled, 0)
        order.ahead = smaller(estimate, shown)

    def frame_ended(self) -> None:
        """Conserved: queues, levels we took, and orders that the other side has reached."""
        for (side, price), lots in self.taken.items():
            self.taken[side, price] = min(lots, self.levels[side].get(price, 0))
        for order in self.resting:
            shown = self.levels[order.side].get(order.price, 0)
            touched, order.touched = order.touched, 0
            restated = touched == 2 and shown == order.shown
            if touched and not restated and (shown or not self.out_of_view(order)):
                order.ahead = max(order.ahead, 0.0)
                self.judge(order, shown)
                order.ahead = max(order.ahead, 0.0)
        if not self.crossed:
            for order in list(self.resting):
                lots = sum(lots for _, lots in self.take(order, order.price))
                self.fill(order, order.price, lots)

    def out_of_view(self, order: ReferenceOrder) -> bool:
        """Past the last level of a full window, where the quantity is unknown."""
        prices = self.outwards(order.side)
        return len(prices) >= WINDOW and order.side * (order.price - prices[-1]) < 0

    def take(self, order: ReferenceOrder, limit: int) -> list[tuple[int, int]]:
        """Conserved: fills of an order from the other side, (price, lots), each lot once."""
        side, wanted, taken = -order.side, order.leaves, []
        for price in self.outwards(side):
            if order.side * (limit - price) < 0:
                break
            left = self.levels[side][price] - self.taken.get((side, price), 0)
            lots = min(wanted, left)
            if lots > 0:
                self.taken[side, price] = self.taken.get((side, price), 0) + lots
                taken.append((price, lots))
                wanted -= lots
        return taken

    def print(self, taker: int, price: int, lots: int) -> None:
        """Conserved: a print passes our orders in priority, and its quantity is there once."""
        pool = lots
        for order in list(self.resting):
            better = order.side * (order.price - price)
            if order.side == taker or better < 0:
                continue
            ours = min(order.leaves, pool)
            if better > 0:
                order.ahead = 0.0
            else:
                order.ahead -= pool
                order.traded += lots
                ours = min(ours, math.floor(-order.ahead + 0.5)) if order.ahead < 0 else 0
                order.ahead += ours
            pool -= ours
            self.fill(order, order.price, ours)

    def print_whole(self, taker: int, price: int, lots: int) -> None:
        """Whole: a print fills better-priced orders, and at its price those with no queue left."""
        for order in list(self.resting):
            better = order.side * (order.price - price)
            if order.side == taker or better < 0:
                continue
            if better == 0:
                order.ahead -= lots
                order.traded += lots
            if better > 0 or order.ahead <= -0.5:
                self.fill(order, order.price, order.leaves)

    def follow_touch(self, side: int, price: int, lots: int) -> None:
        """Whole: a level that improves the touch moves a crossed one, and fills orders it reaches."""
        best, opposite = self.best[side], self.best[-side]
        if lots == 0 and price == best:
            self.best[side] = self.next_worse(side, price)
        if lots == 0 or (best is not None and side * (price - best) <= 0):
            return
        self.best[side] = price
        if opposite is not None and side * (price - opposite) >= 0:
            self.best[-side] = self.next_worse(-side, price)
        for order in list(self.resting):
            if order.side == -side and side * (price - order.price) >= 0:
                self.fill(order, order.price, order.leaves)

    def next_worse(self, side: int, price: int) -> int | None:
        return next((p for p in self.outwards(side) if side * (p - price) < 0), None)

    # -- our orders ----------------------------------------------------------------------------

    def report(self, what: str, order: int, price: int = 0, lots: int = 0, leaves: int = 0) -> None:
        self.outcomes.append((what, order, price, lots, leaves))

    def fill(self, order: ReferenceOrder, price: int, lots: int) -> None:
        if lots:
            order.filled += lots
            self.report("filled", order.number, price, lots, order.leaves)
        if order.leaves == 0 and order in self.resting:
            self.resting.remove(order)

    def cancel(self, order: ReferenceOrder) -> None:
        if order in self.resting:
            self.resting.remove(order)
        self.report("cancelled", order.number, leaves=order.leaves)

    def place(self, order: ReferenceOrder) -> None:
        """Match an order that arrives or whose price changed; a remainder that may rest joins the queue."""
        limit = order.side * 10**9 if order.market else order.price
        if self.whole:
            opposite = self.best[-order.side]
            reached = opposite is not None and order.side * (limit - opposite) >= 0
            fills = [(opposite or 0, order.leaves)] if reached else []
        else:
            before = dict(self.taken)
            fills = self.take(order, limit)
        total = sum(lots for _, lots in fills)
        if (order.policy == POST_ONLY and fills) or (order.policy == FOK and total < order.leaves):
            if not self.whole:
                self.taken = before
            self.cancel(order)
            return
        for price, lots in fills:
            self.fill(order, price, lots)
        if order.leaves and order.policy in (IOC, FOK):
            self.cancel(order)
        elif order.leaves:
            shown = self.levels[order.side].get(order.price, 0)
            order.ahead, order.shown, order.traded, order.touched = float(shown), shown, 0.0, 0
            if not self.whole and shown == 0 and self.out_of_view(order):
                order.ahead = math.inf
            self.resting.append(order)
            self.resting.sort(key=lambda o: -o.side * o.price)

    def arrive(self, request: Sequence[int]) -> None:
        _, kind, number, side, price, lots, policy, market = request
        if kind == 0:
            if self.crossed and not self.whole:
                self.report("rejected", number)
                return
            self.accepted.add(number)
            self.report("accepted", number)
            self.place(
                ReferenceOrder(number, side, price, lots, IOC if market else policy, bool(market))
            )
            return
        order = next((o for o in self.resting if o.number == number), None)
        if order is not None and kind == 2:
            self.cancel(order)
            return
        moves = order is not None and (price != order.price or lots > order.lots)
        blind = moves and self.crossed and not self.whole
        if order is None or lots <= order.filled or blind:
            self.report("too late", number)
            return
        order.lots = lots
        self.report("amended", number, price, lots)
        if moves:
            order.price = price
            self.resting.remove(order)
            self.place(order)


# -- latencies ---------------------------------------------------------------------------------------


def interpolated(table: Sequence[tuple[int, int]], time: int) -> int:
    """Between neighbouring (time, latency), cut to whole ns; the first and the last beyond them."""
    n = bisect_right([row[0] for row in table], time) - 1
    if n < 0 or n == len(table) - 1:
        return table[max(n, 0)][1]
    (x0, y0), (x1, y1) = table[n], table[n + 1]
    return int((y1 - y0) / (x1 - x0) * (time - x0)) + y0


def replay(case: Case, sent: Sequence[bool], *, whole: bool) -> list[OutcomeLine]:
    """Every outcome of a case: rows before requests at equal times, both ways first in, first out."""
    setting, records = case.setting, case.records.tolist()
    entry = [(s, x - s) for s, x, _ in records] or [(0, int(setting["entry_ns"]))]
    response = [(x, a - x) for _, x, a in records] or [(0, int(setting["response_ns"]))]
    exchange = ReferenceExchange(whole, int(setting["model"]), float(setting["power"]))
    rows, inbox = deque(case.rows.tolist()), deque[tuple[int, Sequence[int]]]()
    last_arrival = last_due = 0
    received: list[OutcomeLine] = []

    def send_back(now: int) -> None:
        nonlocal last_due
        for what, number, price, lots, leaves in exchange.outcomes:
            last_due = max(last_due, now + interpolated(response, now))
            received.append((last_due, number, what, now, price, lots, leaves))
        exchange.outcomes.clear()

    def pass_until(end: int) -> None:
        while True:
            row = rows[0][0] if rows else math.inf
            request = inbox[0][0] if inbox else math.inf
            if min(row, request) > end:
                return
            if row <= request:
                exchange.row(*rows.popleft()[1:])
            else:
                exchange.arrive(inbox.popleft()[1])
            send_back(int(min(row, request)))

    for action, goes in zip(case.actions.tolist(), sent, strict=True):
        if goes:
            now = action[0]
            pass_until(now)
            way = interpolated(entry, now)
            if way < 0:
                last_due = max(last_due, now - way)
                what = "rejected" if action[1] == 0 else "too late"
                received.append((last_due, action[2], what, -1, 0, 0, 0))
            else:
                last_arrival = max(last_arrival, now + way)
                inbox.append((last_arrival, action))
    end = int(setting["end_ns"]) - 1
    pass_until(end)
    return [outcome for outcome in received if outcome[0] <= end]
