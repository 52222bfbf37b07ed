"""A parent order and what every algorithm shares: which child orders it has, and what remains to be sent.

The state of orders is the order machine's. An algorithm asks for actions; whoever steps it judges them,
tells the order machine what is sent (`Orders.sent`, `Orders.requested`), and at the next step hands on the
orders that evidence came of. What was asked for and not sent was denied.

Whatever the venue answers, late, twice or not at all, an algorithm keeps two invariants:

- filled and open quantity never exceed the parent's: an order of unknown state counts as open, and
  the part of a cancelled order whose fills have not been received yet counts as filled;
- when it is `done`, no order of it is open.

`execution.algorithms` names the algorithms that are built on this.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from execution.liquidity import Estimate, Monitor
from execution.order_machine import Order, Orders
from execution.orders import (
    Action,
    Cancel,
    OrderState,
    Submit,
    TimeInForce,
)
from execution.venue import View
from market.settings import Risk
from market.units import BPS, SECOND_NS


class Parent(msgspec.Struct, frozen=True, kw_only=True):
    """A parent order: what is to be bought or sold, and by when.

    ``decision_mid_ticks`` is the mid at the decision, the benchmark of its implementation shortfall.
    At ``deadline_ns``, or sooner when it is urgent, passive algorithms cross with the remainder. ``reduce_only`` marks an exit, a parent
    that only closes a position: it is never given up. ValueError for a bad side or quantity.
    """

    id: str
    symbol: str
    side: int
    qty_lots: int
    decision_ns: int
    deadline_ns: int
    decision_mid_ticks: float
    reduce_only: bool = False

    def __post_init__(self) -> None:
        if self.side not in (1, -1):
            raise ValueError(f"parent {self.id}: side {self.side}; expected +1 or -1")
        if self.qty_lots % 1 != 0:
            raise ValueError(
                f"parent {self.id}: quantity {self.qty_lots} lots; expected a whole number"
            )
        if self.qty_lots <= 0:
            raise ValueError(
                f"parent {self.id}: quantity {self.qty_lots} lots; expected at least 1"
            )


class Working(ABC):
    """Base of algorithms: the orders of one parent; `_decide` gives the next actions.

    ``orders`` is the order machine of whoever steps it, by default its own, and ``band_bps`` how far
    from the mid it crosses at most; both are set before the first step.
    """

    #: A rejected action is retried no sooner; one of an exit after so long for each failure in a row.
    retry_ns: Final = SECOND_NS
    #: Orders in a row that fail before the algorithm gives up the remainder; exits never do, and wait
    #: no longer than for so many.
    max_failures: Final = 5
    #: How long after the deadline it waits for a market to trade in; an exit waits for ever.
    grace_ns: Final = 10 * SECOND_NS
    #: Name of the option that a router picked.
    picked: str = ""
    #: Whether our fills are among the market's trades; set before the first step.
    own_in_tape: bool = False

    def __init__(self, parent: Parent) -> None:
        self.parent = parent
        self.orders = Orders()
        self.band_bps = Risk().price_band_bps
        #: Orders sent, by client id, and those of them that may still fill, or whose fills have not all
        #: been received.
        self.children: dict[str, Order] = {}
        self._pending: dict[str, Order] = {}
        self._counted: dict[str, int] = {}  #: client id -> filled lots that are in ``filled_lots``
        self._asked: dict[str, Action] = {}  #: by client id, what the last step asked for
        self._submits = 0
        self.filled_lots = 0
        #: When the first order was sent, None before.
        self.arrival_ns: int | None = None
        self._failures = 0
        self._failed_ns = -self.retry_ns
        self._ended = False
        #: When the remainder crosses at the latest.
        self.until_ns = parent.deadline_ns
        self.monitor = Monitor()

    def inform(self, monitor: Monitor) -> None:
        """Use a monitor that has seen the market before the decision; ours to update from now on."""
        self.monitor = monitor

    def estimate(self, view: View) -> tuple[str, Estimate] | None:
        """How the parent would be worked and its expected cost, before the first step; None for an algorithm
        that picks nothing (`execution.estimates` has it by name)."""
        return None

    @property
    def due_lots(self) -> int:
        """What should be done by now, by its schedule; all of the parent without one."""
        return self.parent.qty_lots

    def adopt(self, orders: Sequence[Order], filled_lots: int) -> None:
        """Take over the parent's orders of an earlier process, and what it had filled."""
        self.children = {order.client_id: order for order in orders}
        self._pending = {o.client_id: o for o in orders if not o.state.is_final or o.open_lots}
        self._counted = {order.client_id: order.filled_lots for order in orders}
        self._submits = max(int(order.client_id.rpartition("-")[2]) for order in orders)
        self.arrival_ns = min(order.sent_ns for order in orders)
        self.filled_lots = filled_lots

    @property
    def open_lots(self) -> int:
        """Quantity that may still fill, over all orders."""
        asked = sum(a.qty_lots for a in self._asked.values() if isinstance(a, Submit))
        return asked + sum(order.open_lots for order in self._pending.values())

    @property
    def remaining_lots(self) -> int:
        """Quantity that is neither filled nor open."""
        return max(0, self.parent.qty_lots - self.filled_lots - self.open_lots)

    @property
    def done(self) -> bool:
        """True when nothing remains to work and no order of ours is open."""
        return not self._live and self.open_lots == 0 and (self._ended or not self.remaining_lots)

    def abandon(self) -> None:
        """Give up the unfilled quantity: the next step cancels open orders and sends nothing new."""
        self._ended = True

    def step(self, now_ns: int, view: View, changed: Sequence[Order]) -> Sequence[Action]:
        """React to the time, the view and the orders changed since the last step; the next actions.

        Called at timers, at order events and when the touch changes; actions are sent in order.
        """
        self._find_sent(now_ns)
        for order in changed:
            if order.submit.client_id in self.children:
                self._see(order, now_ns)
        late = now_ns >= self.parent.deadline_ns + self.grace_ns
        if (self._failures >= self.max_failures or late) and not self.parent.reduce_only:
            self._ended = True
        if self._ended:
            return [a for order in self._live for a in self._cancel(order, now_ns)]
        if self.filled_lots >= self.parent.qty_lots:
            return []
        self._hurry(view)
        return list(self._decide(now_ns, view))

    def _hurry(self, view: View) -> None:
        """Bring forward when the remainder crosses: urgency u leaves the first 1 - u of the time.

        It is never put off again, so that a moment's doubt costs no queue position twice.
        """
        if view.urgency is not None:
            begin_ns, end_ns = self.parent.decision_ns, self.parent.deadline_ns
            until_ns = begin_ns + round((1 - view.urgency) * (end_ns - begin_ns))
            self.until_ns = min(self.until_ns, until_ns)

    @abstractmethod
    def _decide(self, now_ns: int, view: View) -> Iterator[Action]:
        """The next actions, while something remains to do."""

    # -- orders --------------------------------------------------------------------------------

    @property
    def _live(self) -> list[Order]:
        """Orders that are not final."""
        return [order for order in self._pending.values() if not order.state.is_final]

    def _find_sent(self, now_ns: int) -> None:
        """Take up the orders that the last step asked for and that were sent."""
        asked = dict(self._asked)
        self._asked.clear()
        for client_id, action in asked.items():
            if isinstance(action, Submit):
                if (order := self.orders.by_id.get(client_id)) is None:
                    self._failed(now_ns)
                else:
                    self.children[client_id] = self._pending[client_id] = order

    def _see(self, order: Order, now_ns: int) -> None:
        """Take notice of an order that evidence came of."""
        client_id = order.submit.client_id
        if (fresh := order.filled_lots - self._counted.get(client_id, 0)) > 0:
            self._counted[client_id] = order.filled_lots
            self._failures = 0
            self.filled_lots += fresh
        if not order.state.is_final or order.open_lots or client_id not in self._pending:
            return
        del self._pending[client_id]
        if order.state is OrderState.REJECTED:
            self._failed(now_ns)
        elif order.state is OrderState.CANCELLED and not (order.cancel_sent or order.filled_lots):
            self._cancelled_unfilled(order, now_ns)

    def _cancelled_unfilled(self, order: Order, now_ns: int) -> None:
        """The venue cancelled an order of ours before any fill."""
        self._failed(now_ns)

    def _failed(self, now_ns: int) -> None:
        self._failures += 1
        self._failed_ns = now_ns

    # -- actions -------------------------------------------------------------------------------

    def _take(self, now_ns: int, lots: int, view: View) -> Iterator[Action]:
        """An order that takes up to ``lots`` at once, no further than the price band.

        What lies beyond it, or beyond what the view shows, is not taken at any price.
        """
        side = self.parent.side
        bound = view.mid_ticks * (1 + side * self.band_bps / BPS)
        price_ticks = math.floor(bound) if side > 0 else max(1, math.ceil(bound))
        yield from self._submit(now_ns, lots, price_ticks, TimeInForce.IOC)

    def _post(self, now_ns: int, lots: int, price_ticks: int) -> Iterator[Action]:
        """A post-only order for up to ``lots``."""
        yield from self._submit(now_ns, lots, price_ticks, TimeInForce.POST_ONLY)

    def _submit(
        self, now_ns: int, lots: int, price_ticks: int, time_in_force: TimeInForce
    ) -> Iterator[Action]:
        """An order for ``lots``, at most what remains; none too soon after a failure."""
        lots = min(lots, self.remaining_lots)
        waits = min(self._failures, self.max_failures) if self.parent.reduce_only else 1
        if lots <= 0 or now_ns - self._failed_ns < waits * self.retry_ns:
            return
        self._submits += 1
        if self.arrival_ns is None:
            self.arrival_ns = now_ns
        submit = Submit(
            client_id=f"{self.parent.id}-{self._submits}",
            symbol=self.parent.symbol,
            side=self.parent.side,
            qty_lots=lots,
            price_ticks=price_ticks,
            time_in_force=time_in_force,
            reduce_only=self.parent.reduce_only,
        )
        self._asked[submit.client_id] = submit
        yield submit

    def _cross(self, now_ns: int, lots: int, view: View) -> Iterator[Action]:
        """Take ``lots`` now from what is not open, and cancel resting orders until that is enough."""
        crossing = sum(order.open_lots for order in self._live if order.crosses)
        missing = lots - crossing
        free = self.remaining_lots
        if not crossing:
            yield from self._take(now_ns, min(missing, free), view)
        # The youngest order has the worst queue position.
        for order in reversed(self._live):
            if missing <= free:
                return
            if not order.crosses:
                free += order.open_lots
                yield from self._cancel(order, now_ns)

    def _rests(self, order: Order) -> bool:
        """Whether an order rests in the book and this step has asked nothing of it."""
        return order.rests and order.submit.client_id not in self._asked

    def _cancel(self, order: Order, now_ns: int) -> Iterator[Action]:
        """A cancel of a resting order, unless one is under way or was refused just now."""
        if self._rests(order) and now_ns - order.refused_ns >= self.retry_ns:
            cancel = Cancel(client_id=order.submit.client_id)
            self._asked[cancel.client_id] = cancel
            yield cancel
