"""The fill rules of exchange mode ``whole``, for reading: plain Python, one row and one order at a
time, sharing nothing with the compiled engine but the names of orders' states."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from market.events import Flag, Kind
from tests.execution.judged import CANCELLED, EXPIRED, FILLED, NEW, Case, Said

GTC, POST_ONLY, FOK, IOC = range(4)
NAN = math.nan


def ratio(above: float, below: float) -> float:
    """above / below as floating point has it."""
    if below != 0:
        return above / below
    return NAN if above == 0 else math.copysign(math.inf, above)


def power(x: float, n: float) -> float:
    return NAN if x < 0 and n != int(n) else x**n


def smaller(a: float, b: float) -> float:
    """Minimum; a number wins against NaN."""
    return b if math.isnan(a) else a if math.isnan(b) else min(a, b)


def share_behind(model: int, n: float, front: float, back: float) -> float:
    """Probability that a quantity which left the queue stood behind us, by queue model."""
    f, b = front, back
    share = {
        1: lambda: ratio(power(b, n), power(b, n) + power(f, n)),
        2: lambda: ratio(power(b, n), power(b + f, n)),
        3: lambda: 1 - power(ratio(f, f + b), n),
        4: lambda: ratio(math.log(1 + b), math.log(1 + b) + math.log(1 + f)),
        5: lambda: ratio(math.log(1 + b), math.log(1 + b + f)),
    }[model]()
    return 1.0 if math.isinf(share) else share


@dataclass
class Order:
    number: int
    side: int
    price: int
    lots: int
    policy: int
    market: bool
    front: float = 0.0
    traded: float = 0.0


class Exchange:
    """What displayed levels, prints and actions make of our orders, each whole or not at all."""

    def __init__(self, model: int, exponent: float) -> None:
        self.model, self.exponent = model, exponent
        self.levels: dict[int, dict[int, int]] = {1: {}, -1: {}}
        self.best: dict[int, int | None] = {1: None, -1: None}
        self.resting: dict[int, Order] = {}
        self.news: list[tuple[int, int, int, int]] = []  #: order, status, price, lots

    # -- the market ----------------------------------------------------------------------------

    def clear(self) -> None:
        self.levels = {1: {}, -1: {}}
        self.best = {1: None, -1: None}

    def next_worse(self, side: int, price: int) -> int | None:
        worse = [p for p in self.levels[side] if side * (p - price) < 0]
        return max(worse, key=lambda p: side * p, default=None)

    def show(self, side: int, price: int, lots: int) -> None:
        """A level has a new quantity: queues at its price first, then the touch."""
        held = self.levels[side].pop(price, 0)
        if lots:
            self.levels[side][price] = lots
        for order in self.resting.values():
            if (order.side, order.price) == (side, price):
                self.shrink(order, held, lots)
        best, opposite = self.best[side], self.best[-side]
        if lots == 0:
            if price == best:
                self.best[side] = self.next_worse(side, price)
        elif best is None or side * (price - best) > 0:
            self.best[side] = price
            if opposite is not None and side * (price - opposite) >= 0:
                self.best[-side] = self.next_worse(-side, price)
            for order in list(self.resting.values()):
                if order.side == -side and side * (price - order.price) >= 0:
                    self.fill(order, order.price)

    def shrink(self, order: Order, held: int, shown: int) -> None:
        """Who left the queue when the displayed quantity changed."""
        left = held - shown - order.traded
        order.traded = 0
        if self.model == 0 or left < 0:
            order.front = smaller(order.front, shown)
            return
        behind = held - order.front
        share = share_behind(self.model, self.exponent, order.front, behind)
        estimate = order.front - (1 - share) * left + smaller(behind - share * left, 0)
        order.front = smaller(estimate, shown)

    def trade(self, taker: int, price: int, lots: int) -> None:
        """A print: it reaches better-priced orders, and at its price those with no queue left."""
        for order in list(self.resting.values()):
            if order.side == taker:
                continue
            if order.price == price:
                order.front -= lots
                order.traded += lots
            if order.side * (order.price - price) > 0 or (
                order.price == price and order.front <= -0.5
            ):
                self.fill(order, order.price)

    # -- our orders ----------------------------------------------------------------------------

    def say(self, order: Order, status: int, price: int = 0, lots: int = 0) -> None:
        self.news.append((order.number, status, price, lots))

    def fill(self, order: Order, price: int) -> None:
        self.resting.pop(order.number, None)
        self.say(order, FILLED, price, order.lots)

    def place(self, order: Order) -> None:
        opposite = self.best[-order.side]
        crosses = opposite is not None and (
            order.market or order.side * (order.price - opposite) >= 0
        )
        if opposite is not None and crosses and order.policy != POST_ONLY:
            self.fill(order, opposite)
        elif crosses or order.policy in (FOK, IOC):
            self.say(order, EXPIRED)
        else:
            order.front = self.levels[order.side].get(order.price, 0)
            order.traded = 0
            self.resting[order.number] = order
            self.say(order, NEW)

    def arrive(self, action: Sequence[int]) -> None:
        _, kind, number, side, price, lots, policy, market = action
        if kind == 0:
            self.place(Order(number, side, price, lots, IOC if market else policy, bool(market)))
            return
        order = self.resting.get(number)
        if order is None:
            return
        if kind == 2:
            del self.resting[number]
            self.say(order, CANCELLED)
            return
        loses_queue = price != order.price or lots > order.lots
        order.price, order.lots = price, lots
        if loses_queue:
            del self.resting[number]
            self.place(order)
        else:
            self.say(order, NEW)


def replay(case: Case, sent: Sequence[bool]) -> list[Said]:
    """What becomes of the orders of a case: data before orders at equal times, both ways FIFO.

    The latencies are constant, so that arrivals are in the order of sending.
    """
    setting = case.setting
    entry, response = int(setting["entry_ns"]), int(setting["response_ns"])
    exchange = Exchange(int(setting["model"]), float(setting["power"]))
    inbox = deque(row for row, goes in zip(case.actions.tolist(), sent, strict=True) if goes)
    last: dict[tuple[int, int], Said] = {}

    def tell(now: int) -> None:
        for number, status, price, lots in exchange.news:
            heard = now + response
            last[heard, number] = (heard, number, status, now, price, lots)
        exchange.news.clear()

    def receive(until: int) -> None:
        while inbox and inbox[0][0] + entry < until:
            action = inbox.popleft()
            exchange.arrive(action)
            tell(action[0] + entry)

    for time, price, lots, kind, side, flags in case.rows.tolist():
        receive(time)
        if kind == Kind.TRADE:
            exchange.trade(side, price, lots)
        else:
            if kind == Kind.SNAPSHOT and flags & Flag.FIRST:
                exchange.clear()
            exchange.show(side, price, lots)
        tell(time)
    receive(int(setting["end_ns"]))
    return sorted(last.values())
