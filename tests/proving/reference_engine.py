"""Price-time priority in plain Python: a dictionary of queues, read and judged by eye."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

from proving.synthetic.matching import Status, TimeInForce

REST = (TimeInForce.GOOD_TILL_CANCELLED, TimeInForce.POST_ONLY)


@dataclass
class Resting:
    name: int
    owner: int
    side: int
    ticks: int
    lots: int


@dataclass
class Trade:
    maker: int
    taker: int
    side: int
    ticks: int
    lots: int
    maker_left: int


@dataclass
class ReferenceEngine:
    """Orders by the name they were given, 1, 2, 3, …; an amended order keeps its name."""

    queues: dict[tuple[int, int], list[Resting]] = field(default_factory=dict)
    names: count[int] = field(default_factory=lambda: count(1))
    trades: list[Trade] = field(default_factory=list)

    def best(self, side: int) -> int | None:
        prices = [ticks for own, ticks in self.queues if own == side]
        return max(prices, key=lambda ticks: side * ticks) if prices else None

    def crosses(self, side: int, ticks: int) -> bool:
        best = self.best(-side)
        return best is not None and side * best <= side * ticks

    def limit(
        self, side: int, ticks: int, lots: int, owner: int, force: TimeInForce
    ) -> tuple[Status, int]:
        if lots < 1:
            return Status.BAD_QUANTITY, 0
        if ticks < 1:
            return Status.BAD_PRICE, 0
        if force is TimeInForce.POST_ONLY and self.crosses(side, ticks):
            return Status.WOULD_TAKE, 0
        if force is TimeInForce.FILL_OR_KILL:
            offered = [
                order.lots
                for (own, price), queue in self.queues.items()
                if own == -side and side * price <= side * ticks
                for order in queue
            ]
            if sum(offered) < lots:
                return Status.CANNOT_FILL, 0
        order = Resting(next(self.names), owner, side, ticks, lots)
        return self._arrive(order, force in REST), order.name

    def _arrive(self, order: Resting, rests: bool) -> Status:
        while order.lots and self.crosses(order.side, order.ticks):
            price = self.best(-order.side)
            assert price is not None
            queue = self.queues[-order.side, price]
            maker = queue[0]
            lots = min(order.lots, maker.lots)
            order.lots -= lots
            maker.lots -= lots
            self.trades.append(Trade(maker.name, order.name, order.side, price, lots, maker.lots))
            if not maker.lots:
                self._leave(maker)
        if not order.lots:
            return Status.FILLED
        if not rests:
            return Status.EXPIRED
        self.queues.setdefault((order.side, order.ticks), []).append(order)
        return Status.RESTING

    def _leave(self, order: Resting) -> None:
        queue = self.queues[order.side, order.ticks]
        queue.remove(order)
        if not queue:
            del self.queues[order.side, order.ticks]

    def find(self, name: int) -> Resting | None:
        orders = (order for queue in self.queues.values() for order in queue)
        return next((order for order in orders if order.name == name), None)

    def cancel(self, name: int) -> Status:
        order = self.find(name)
        if order is None:
            return Status.UNKNOWN_ORDER
        self._leave(order)
        return Status.CANCELLED

    def amend(self, name: int, ticks: int, lots: int, force: TimeInForce) -> Status:
        order = self.find(name)
        if order is None:
            return Status.UNKNOWN_ORDER
        if lots < 1:
            return Status.BAD_QUANTITY
        if ticks < 1:
            return Status.BAD_PRICE
        if force is TimeInForce.POST_ONLY and self.crosses(order.side, ticks):
            return Status.WOULD_TAKE
        if ticks == order.ticks and lots <= order.lots:
            order.lots = lots
            return Status.RESTING
        self._leave(order)
        order.ticks, order.lots = ticks, lots
        return self._arrive(order, rests=True)
