"""The matching engine for Python code: requests as calls, results as named tuples."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from market import book as bk
from proving.synthetic import matching
from proving.synthetic.matching import Status, TimeInForce


class EngineExecution(NamedTuple):
    """Two orders matched at the maker's price; the fields of `matching.FILL`."""

    maker: int  #: reference
    maker_owner: int
    taker: int
    taker_owner: int
    side: int  #: of the taker
    ticks: int
    lots: int
    maker_left: int  #: lots left of the maker's order


class MatchResult(NamedTuple):
    """Result of a request. ``reference`` is zero when it was rejected."""

    status: Status
    reference: int
    taken: int  #: lots executed on arrival
    left: int  #: lots that rest; of a cancel, the lots cancelled
    executions: tuple[EngineExecution, ...]


class RestingOrder(NamedTuple):
    """A resting order."""

    reference: int
    owner: int
    tag: int
    side: int
    ticks: int
    lots: int


class MatchingEngine:
    """Price-time priority; ``state`` is what the kernels of `matching` take, and share."""

    def __init__(self, capacity: int = 4096) -> None:
        if capacity < 1:
            raise ValueError(f"capacity {capacity}: expected one order or more")
        self.state = matching.new_engine(capacity)

    def reserve(self, orders: int) -> None:
        """Make room for so many further orders; ``state`` may be replaced."""
        short = orders - int(self.state.head["room"][0])
        if short > 0:
            capacity = len(self.state.orders)
            self.state = matching.grown(self.state, max(2 * capacity, capacity + short))

    def limit(
        self,
        side: int,
        ticks: int,
        lots: int,
        owner: int = 0,
        force: TimeInForce = TimeInForce.GOOD_TILL_CANCELLED,
        tag: int = 0,
    ) -> MatchResult:
        """A limit order; ``side`` +1 buys, -1 sells."""
        self._prepare()
        code = matching.enter(self.state, side, ticks, lots, owner, tag, int(force))
        return self._result(code)

    def market(
        self, side: int, lots: int, owner: int = 0, bound: int | None = None, tag: int = 0
    ) -> MatchResult:
        """A market order; ``bound`` is the worst price in ticks that it accepts."""
        if bound is not None and bound < 1:
            return MatchResult(Status.BAD_PRICE, 0, 0, 0, ())
        self._prepare()
        return self._result(matching.market(self.state, side, lots, owner, tag, bound or 0))

    def cancel(self, reference: int) -> MatchResult:
        """Cancel an order; `MatchResult.left` are the lots that no longer rest."""
        self._prepare()
        return self._result(matching.cancel(self.state, reference))

    def amend(
        self,
        reference: int,
        ticks: int,
        lots: int,
        force: TimeInForce = TimeInForce.GOOD_TILL_CANCELLED,
    ) -> MatchResult:
        """Change a resting order's price and the lots it has left, under the same reference.

        ``force``: GOOD_TILL_CANCELLED or POST_ONLY; ValueError for another.
        """
        if force not in (TimeInForce.GOOD_TILL_CANCELLED, TimeInForce.POST_ONLY):
            raise ValueError(f"{force.name}: a resting order is amended to rest or to post only")
        self._prepare()
        return self._result(matching.amend(self.state, reference, ticks, lots, int(force)))

    def _prepare(self) -> None:
        self.reserve(1)
        matching.clear_fills(self.state)

    def _result(self, code: int) -> MatchResult:
        status = Status(code)
        if status < 0:
            return MatchResult(status, 0, 0, 0, ())
        head = self.state.head[0]
        reference, left = int(head["reference"]), int(head["left"])
        if status is Status.CANCELLED:
            return MatchResult(status, reference, 0, left, ())
        fills = self.state.fills[: head["fills"]].tolist()
        executions = tuple(EngineExecution(*fill) for fill in fills)
        return MatchResult(status, reference, int(head["taken"]), left, executions)

    def order(self, reference: int) -> RestingOrder | None:
        """The order that rests under a reference, None when none does."""
        row = matching.row_under(self.state, reference)
        return None if row < 0 else self._order(row)

    def _order(self, row: int) -> RestingOrder:
        side, ticks, lots, owner, tag, _, _, generation = self.state.orders[row].tolist()
        return RestingOrder(generation << 32 | row, owner, tag, side, ticks, lots)

    def lots_ahead(self, reference: int) -> int | None:
        """Lots in front of an order in its queue, None when no order rests under the reference."""
        row = matching.row_under(self.state, reference)
        return None if row < 0 else int(matching.lots_ahead(self.state, row))

    def queue(self, side: int, ticks: int) -> list[RestingOrder]:
        """The orders at a price, oldest first."""
        orders, row = [], int(matching.first_at(self.state, side, ticks))
        while row >= 0:
            orders.append(self._order(row))
            row = int(self.state.orders["next"][row])
        return orders

    def best(self, side: int) -> int | None:
        """Best price of a side in ticks, None when the side is empty."""
        ticks = int(bk.best(self.state.book, side))
        return None if ticks == bk.NO_LEVEL else ticks

    def levels(self, side: int, n: int | None = None) -> list[tuple[int, int]]:
        """The best ``n`` levels of a side (all by default) as (price_ticks, qty_lots), best first."""
        count = int(bk.count(self.state.book, side))
        count = count if n is None else min(n, count)
        ticks, lots = np.empty(count, np.int64), np.empty(count, np.int64)
        bk.top(self.state.book, side, ticks, lots)
        return list(zip(ticks.tolist(), lots.tolist(), strict=True))

    @property
    def counts(self) -> dict[str, int]:
        """Lots added, executed and cancelled, events since the beginning, and resting orders.

        An event is an order entered, amended or cancelled, or an execution.
        """
        head = self.state.head[0]
        counters = {name: int(head[name]) for name in ("added", "executed", "cancelled", "events")}
        return {**counters, "orders": len(self.state.orders) - int(head["room"])}
