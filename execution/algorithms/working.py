"""A parent order and the book-keeping of its child orders, which every algorithm shares.

Whatever the venue answers, late, twice or not at all, an algorithm keeps two invariants:

- filled and open quantity never exceed the parent's: an order of unknown state counts as open, and
  the part of a cancelled order whose fills have not been received yet counts as filled;
- when it is `done`, no order of it is open.

`execution.algorithms` names the algorithms that are built on this.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from execution.liquidity import Estimate, Monitor
from execution.orders import (
    Accepted,
    Action,
    Amended,
    Cancel,
    Cancelled,
    CancelRejected,
    Event,
    Filled,
    Lost,
    OrderState,
    OrderType,
    Rejected,
    Submit,
    TimeInForce,
)
from execution.venue import View
from market.units import SECOND_NS


class Parent(msgspec.Struct, frozen=True, kw_only=True):
    """A parent order: what is to be bought or sold, and by when.

    ``decision_mid_ticks`` is the mid at the decision, the benchmark of its implementation shortfall.
    At ``deadline_ns`` passive algorithms cross with the remainder. ``reduce_only`` marks a parent that
    closes a position. ValueError for a bad side or quantity.
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


class Child(msgspec.Struct, kw_only=True):
    """A child order, as far as its events have been received."""

    client_id: str
    price_ticks: int
    qty_lots: int
    state: OrderState = OrderState.PENDING_NEW
    filled_lots: int = 0
    #: Total filled by the venue's count, where its final event gave it.
    final_lots: int = 0
    crosses: bool = False  #: it never rests, so there is nothing to cancel
    amending: bool = False
    cancel_sent: bool = False
    rejected_ns: int = -SECOND_NS  #: when a cancel or amend was last rejected

    @property
    def open_lots(self) -> int:
        """Quantity that may still fill, or whose fills have not been received yet."""
        if self.state.is_final:
            return max(0, self.final_lots - self.filled_lots)
        return self.qty_lots - self.filled_lots


class Working(ABC):
    """Base of algorithms: order book-keeping for one parent; `_decide` gives the next actions."""

    #: A rejected action is retried no sooner.
    retry_ns: Final = SECOND_NS
    #: Orders in a row that fail before the algorithm gives up the remainder.
    max_failures: Final = 5
    #: How long after the deadline it waits for a market to trade in.
    grace_ns: Final = 10 * SECOND_NS
    #: Name of the option that a router picked.
    picked: str = ""

    def __init__(self, parent: Parent) -> None:
        self.parent = parent
        self.children: dict[str, Child] = {}
        #: Those of them that may still fill, or whose fills have not all been received.
        self._pending: dict[str, Child] = {}
        self.filled_lots = 0
        #: When the first order was sent, None before.
        self.arrival_ns: int | None = None
        self._executions: set[str] = set()
        self._failures = 0
        self._failed_ns = -self.retry_ns
        self._ended = False
        self.monitor = Monitor()

    def inform(self, monitor: Monitor) -> None:
        """Use a monitor that has seen the market before the decision; ours to update from now on."""
        self.monitor = monitor

    def estimate(self, view: View) -> Estimate | None:
        """Expected cost of the parent before the first step; None for an algorithm without a model."""
        return None

    @property
    def open_lots(self) -> int:
        """Quantity that may still fill, over all orders."""
        return sum(child.open_lots for child in self._pending.values())

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

    def step(self, now_ns: int, view: View, events: Sequence[Event]) -> Sequence[Action]:
        """React to the time, the view and the order events since the last step; the next actions.

        Called at timers, at order events and when the touch changes; actions are sent in order.
        """
        for event in events:
            child = self.children.get(event.client_id)
            if child is not None:
                self._absorb(child, event, now_ns)
                if child.state.is_final and not child.open_lots:
                    self._pending.pop(child.client_id, None)
        late = now_ns >= self.parent.deadline_ns + self.grace_ns
        if self._failures >= self.max_failures or late:
            self._ended = True
        if self._ended:
            return [a for child in self._live for a in self._cancel(child, now_ns)]
        if self.filled_lots >= self.parent.qty_lots:
            return []
        return list(self._decide(now_ns, view))

    @abstractmethod
    def _decide(self, now_ns: int, view: View) -> Iterator[Action]:
        """The next actions, while something remains to do."""

    # -- order events --------------------------------------------------------------------------

    @property
    def _live(self) -> list[Child]:
        """Orders that are not final."""
        return [child for child in self._pending.values() if not child.state.is_final]

    def _absorb(self, child: Child, event: Event, now_ns: int) -> None:
        """Apply an event to its order; duplicates and late events change nothing."""
        if isinstance(event, Filled):
            if event.exec_id in self._executions:
                return
            self._executions.add(event.exec_id)
            self._failures = 0
            child.filled_lots += event.qty_lots
            self.filled_lots += event.qty_lots
            if child.state.is_final:
                return
            if child.filled_lots >= child.qty_lots:
                child.state = OrderState.FILLED
            elif child.state is not OrderState.PENDING_CANCEL:
                child.state = OrderState.PARTIALLY_FILLED
        elif child.state.is_final:
            return
        elif isinstance(event, Accepted):
            if child.state in (OrderState.PENDING_NEW, OrderState.UNKNOWN):
                child.state = OrderState.NEW
        elif isinstance(event, Rejected):
            # A resting order was accepted: the rejection is of a duplicate request.
            if child.state in (OrderState.PENDING_NEW, OrderState.UNKNOWN):
                child.state = OrderState.REJECTED
                self._failed(now_ns)
        elif isinstance(event, Cancelled):
            child.state = OrderState.CANCELLED
            if event.leaves_lots:
                child.final_lots = child.qty_lots - event.leaves_lots
            if not child.cancel_sent and not child.open_lots and not child.filled_lots:
                self._cancelled_unfilled(child, now_ns)
        elif isinstance(event, Amended):
            child.amending = False
            child.price_ticks, child.qty_lots = event.price_ticks, event.qty_lots
        elif isinstance(event, CancelRejected):
            child.amending = False
            child.rejected_ns = now_ns
            if child.state is OrderState.PENDING_CANCEL:
                child.state = OrderState.PARTIALLY_FILLED if child.filled_lots else OrderState.NEW
        elif isinstance(event, Lost):
            child.state = OrderState.UNKNOWN

    def _cancelled_unfilled(self, child: Child, now_ns: int) -> None:
        """The venue cancelled an order of ours before any fill."""
        self._failed(now_ns)

    def _failed(self, now_ns: int) -> None:
        self._failures += 1
        self._failed_ns = now_ns

    # -- actions -------------------------------------------------------------------------------

    def _take(self, now_ns: int, lots: int) -> Iterator[Action]:
        """A market order for up to ``lots``."""
        yield from self._submit(now_ns, lots, 0, OrderType.MARKET, TimeInForce.IOC)

    def _post(self, now_ns: int, lots: int, price_ticks: int) -> Iterator[Action]:
        """A post-only order for up to ``lots``."""
        yield from self._submit(now_ns, lots, price_ticks, OrderType.LIMIT, TimeInForce.POST_ONLY)

    def _submit(
        self,
        now_ns: int,
        lots: int,
        price_ticks: int,
        order_type: OrderType,
        time_in_force: TimeInForce,
    ) -> Iterator[Action]:
        """An order for ``lots``, at most what remains; none within `retry_ns` of a failure."""
        lots = min(lots, self.remaining_lots)
        if lots <= 0 or now_ns - self._failed_ns < self.retry_ns:
            return
        client_id = f"{self.parent.id}-{len(self.children) + 1}"
        self.children[client_id] = self._pending[client_id] = Child(
            client_id=client_id,
            price_ticks=price_ticks,
            qty_lots=lots,
            crosses=order_type is OrderType.MARKET,
        )
        if self.arrival_ns is None:
            self.arrival_ns = now_ns
        yield Submit(
            client_id=client_id,
            symbol=self.parent.symbol,
            side=self.parent.side,
            qty_lots=lots,
            price_ticks=price_ticks,
            order_type=order_type,
            time_in_force=time_in_force,
            reduce_only=self.parent.reduce_only,
        )

    def _cross(self, now_ns: int, lots: int) -> Iterator[Action]:
        """Take ``lots`` now from what is not open, and cancel resting orders until that is enough."""
        crossing = sum(child.open_lots for child in self._live if child.crosses)
        missing = lots - crossing
        free = self.remaining_lots
        if not crossing:
            yield from self._take(now_ns, min(missing, free))
        # The youngest order has the worst queue position.
        for child in reversed(self._live):
            if missing <= free:
                return
            if not child.crosses:
                free += child.open_lots
                yield from self._cancel(child, now_ns)

    def _cancel(self, child: Child, now_ns: int) -> Iterator[Action]:
        """A cancel of a resting order, unless one is under way or was rejected just now."""
        rests = child.state in (OrderState.NEW, OrderState.PARTIALLY_FILLED) and not child.crosses
        if rests and now_ns - child.rejected_ns >= self.retry_ns:
            child.state = OrderState.PENDING_CANCEL
            child.cancel_sent = True
            yield Cancel(client_id=child.client_id)
