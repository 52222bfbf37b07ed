"""The order machine: the state of every order of ours, folded from evidence once, for everybody.

Guard, algorithms, records, costs and reconciliation read `Orders`; none of them folds events itself.

    PENDING_NEW ──► NEW ──► PARTIALLY_FILLED ──► FILLED
         │           │            │
         │           └──► PENDING_CANCEL ──► CANCELLED
         ├──► REJECTED
         └──► UNKNOWN, from any state not final: no answer came, or an answer that contradicts what we
              know; only evidence leads out of it, never time

`TRANSITIONS` is that diagram as data. Four rules make the fold independent of the order, the repetition
and the loss of evidence:

- a final state stays, whatever comes later; but executions count, however late;
- an execution counts once, by its id;
- a report is cumulative: one that knows less than we do changes nothing;
- price and quantity are those of the latest venue time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from execution.orders import (
    NEVER_REST,
    Accepted,
    Amend,
    Amended,
    Cancel,
    Cancelled,
    CancelRejected,
    Event,
    Filled,
    Lost,
    OrderReport,
    OrderState,
    OrderType,
    Rejected,
    Submit,
)

_PENDING, _NEW, _PARTIAL = OrderState.PENDING_NEW, OrderState.NEW, OrderState.PARTIALLY_FILLED
_CANCELLING, _UNKNOWN = OrderState.PENDING_CANCEL, OrderState.UNKNOWN
_FILLED, _CANCELLED, _REJECTED = OrderState.FILLED, OrderState.CANCELLED, OrderState.REJECTED

#: (state, evidence) → state. What is not here leaves the state as it is. NEW stands for "open":
#: PARTIALLY_FILLED once something has filled. FILLED and PARTIALLY_FILLED follow from quantities.
#: A refusal of an acknowledged order is evidence "duplicate"; "rejected" is then only a report's.
TRANSITIONS: Final[dict[tuple[OrderState, str], OrderState]] = {
    (_PENDING, "accepted"): _NEW,
    (_PENDING, "amended"): _NEW,
    (_PENDING, "rejected"): _REJECTED,
    (_PENDING, "duplicate"): _UNKNOWN,
    (_PENDING, "cancelled"): _CANCELLED,
    (_PENDING, "gone"): _UNKNOWN,
    (_PENDING, "lost"): _UNKNOWN,
    (_NEW, "cancel sent"): _CANCELLING,
    (_NEW, "cancelled"): _CANCELLED,
    (_NEW, "rejected"): _REJECTED,
    (_NEW, "gone"): _UNKNOWN,
    (_NEW, "lost"): _UNKNOWN,
    (_CANCELLING, "cancelled"): _CANCELLED,
    (_CANCELLING, "rejected"): _REJECTED,
    (_CANCELLING, "cancel rejected"): _NEW,
    (_CANCELLING, "gone"): _UNKNOWN,
    (_CANCELLING, "lost"): _UNKNOWN,
    (_UNKNOWN, "sent again"): _PENDING,
    (_UNKNOWN, "accepted"): _NEW,
    (_UNKNOWN, "amended"): _NEW,
    (_UNKNOWN, "rejected"): _REJECTED,
    (_UNKNOWN, "cancelled"): _CANCELLED,
    **{(state, "complete"): _FILLED for state in (_PENDING, _NEW, _CANCELLING, _UNKNOWN)},
}

#: Evidence that the order reached the venue.
_PRESENCE: Final = frozenset({"accepted", "amended", "cancelled", "complete", "duplicate"})

#: Time of what never happened.
NEVER_NS: Final = -(1 << 62)


class Order(msgspec.Struct, kw_only=True):
    """An order and its state. Quantities in lots, prices in ticks, times in ns.

    ``price_ticks`` and ``qty_lots`` are the present ones, after amends. ``filled_lots`` are of executions
    received; ``reported_lots`` is the venue's cumulative count, which may run ahead of them.
    ``evidence`` names the last evidence, ``changed_ns`` when it came, ``venue_ns`` when it was true at
    the latest. ``terms_ns`` is the venue time of price and quantity.
    """

    submit: Submit
    parent_id: str
    state: OrderState = OrderState.PENDING_NEW
    venue_order_id: str = ""
    price_ticks: int
    qty_lots: int
    sent_ns: int
    changed_ns: int
    venue_ns: int = 0
    terms_ns: int = 0
    evidence: str = "sent"
    filled_lots: int = 0
    reported_lots: int = 0
    reason: str = ""
    amends: int = 0
    #: Total quantities of amends under way: any of them may come true.
    amend_lots: list[int] = []
    amending: bool = False  #: an amend is under way
    cancel_sent: bool = False
    refused_ns: int = NEVER_NS  #: when a cancel or amend was last refused
    acknowledged: bool = False  #: there is evidence that it reached the venue

    @property
    def client_id(self) -> str:
        return self.submit.client_id

    @property
    def symbol(self) -> str:
        return self.submit.symbol

    @property
    def missing_lots(self) -> int:
        """Executed by the venue's count, and not received yet."""
        return max(0, self.reported_lots - self.filled_lots)

    @property
    def open_lots(self) -> int:
        """Quantity that may still fill, or whose executions have not been received yet."""
        if self.state.is_final:
            return self.missing_lots
        return max(0, self.qty_lots - self.filled_lots)

    @property
    def exposed_lots(self) -> int:
        """The same in the worst case, with every amend under way."""
        if self.state.is_final:
            return self.missing_lots
        return max(0, max(self.qty_lots, *self.amend_lots, 0) - self.filled_lots)

    @property
    def rests(self) -> bool:
        """Whether it is known to rest in the book."""
        return self.state in (_NEW, _PARTIAL) and not self.crosses

    @property
    def crosses(self) -> bool:
        """Whether it never rests: it takes what it can at once, and there is nothing to cancel."""
        return self.submit.time_in_force in NEVER_REST or self.submit.order_type is OrderType.MARKET


class Orders:
    """Every order that may still matter, by client id, with the venue's id as an alias.

    `forget` bounds the memory: orders that are final and complete leave it.
    """

    def __init__(self) -> None:
        self.by_id: dict[str, Order] = {}
        self.entered: dict[OrderState, int] = {}  #: transitions of this process into each state
        self._aliases: dict[str, str] = {}
        self._executions: dict[str, set[str]] = {}
        self._open: dict[str, None] = {}  #: ids of orders that may still fill, oldest first

    def get(self, client_id: str, venue_order_id: str = "") -> Order | None:
        """An order by our id, or by the venue's; None for one that is not ours, or forgotten."""
        found = self.by_id.get(client_id)
        if found is None and venue_order_id:
            found = self.by_id.get(self._aliases.get(venue_order_id, ""))
        return found

    def open(self, symbol: str | None = None) -> Iterator[Order]:
        """Orders that may still fill or whose executions are not all here, oldest first."""
        for client_id in self._open:
            order = self.by_id[client_id]
            if symbol is None or order.submit.symbol == symbol:
                yield order

    # -- our requests --------------------------------------------------------------------------

    def sent(self, submit: Submit, parent_id: str, time_ns: int) -> Order:
        """An order is about to be sent: a new one, or again one that never reached the venue.

        ValueError for an id that was used before, unless its order is UNKNOWN without any evidence that
        the venue has it; that it has not is for the caller to know.
        """
        known = self.by_id.get(submit.client_id)
        if known is not None:
            if known.state is not _UNKNOWN or known.acknowledged or known.submit != submit:
                raise ValueError(f"client order id {submit.client_id} was used before")
            self._move(known, "sent again")
            known.sent_ns = known.changed_ns = time_ns
            return known
        order = Order(
            submit=submit,
            parent_id=parent_id,
            price_ticks=submit.price_ticks,
            qty_lots=submit.qty_lots,
            sent_ns=time_ns,
            changed_ns=time_ns,
        )
        self.by_id[submit.client_id] = order
        self._open[submit.client_id] = None
        return order

    def requested(self, action: Amend | Cancel, time_ns: int) -> Order | None:
        """A cancel or amend is about to be sent."""
        order = self.by_id.get(action.client_id)
        if order is None or order.state.is_final:
            return order
        if isinstance(action, Amend):
            order.amends += 1
            order.amending = True
            if action.qty_lots is not None:
                order.amend_lots.append(action.qty_lots)
        else:
            order.cancel_sent = True
            self._move(order, "cancel sent")
            order.changed_ns = time_ns
        return order

    # -- evidence ------------------------------------------------------------------------------

    def apply(self, event: Event) -> Order | None:
        """Fold evidence in; the order that it is of, None when it is of none of ours, or an execution
        that was counted before.
        """
        venue_order_id = getattr(event, "venue_order_id", "")
        order = self.get(event.client_id, venue_order_id)
        if order is None:
            return None
        if venue_order_id and not order.venue_order_id:
            order.venue_order_id = venue_order_id
            self._aliases[venue_order_id] = order.submit.client_id
        if isinstance(event, Filled):
            if not self._fill(order, event):
                return None
        else:
            self._take(order, event)
        order.changed_ns = event.time_ns
        order.venue_ns = max(order.venue_ns, event.venue_ns)
        self._settle(order)
        return order

    def _fill(self, order: Order, fill: Filled) -> bool:
        seen = self._executions.setdefault(order.submit.client_id, set())
        if fill.exec_id in seen:
            return False
        seen.add(fill.exec_id)
        order.filled_lots += fill.qty_lots
        # The first sign of an order says that it was accepted; a later fill does not say that an order
        # of unknown state is still open.
        if not order.acknowledged:
            self._move(order, "accepted")
        order.evidence = "filled"
        return True

    def _take(self, order: Order, event: Event) -> None:
        match event:
            case OrderReport():
                self._report(order, event)
            case Amended():
                self._terms(order, event)
                self._move(order, "amended")
            case _ if order.state.is_final:
                return
            case Accepted():
                self._move(order, "accepted")
            case Cancelled():
                if event.leaves_lots:
                    # Of the quantities that it may have had, the least that agrees with what has filled.
                    totals = sorted({order.qty_lots, *order.amend_lots})
                    done = [total - event.leaves_lots for total in totals]
                    counts = [lots for lots in done if lots >= order.filled_lots] or done[-1:]
                    order.reported_lots = max(order.reported_lots, counts[0])
                order.reason = event.reason
                self._move(order, "cancelled")
            case Rejected():
                if event.duplicate or order.acknowledged:
                    self._move(order, "duplicate")
                else:
                    order.reason = event.reason
                    self._move(order, "rejected")
            case CancelRejected():
                # Which request was refused is not said: with one under way it is known, and where the
                # order is gone nothing comes true any more.
                if event.gone or (order.state is not _CANCELLING and len(order.amend_lots) == 1):
                    order.amend_lots.clear()
                order.amending, order.refused_ns = False, event.time_ns
                self._move(order, "gone" if event.gone else "cancel rejected")
            case Lost():
                order.reason = event.reason
                self._move(order, "lost")

    def _report(self, order: Order, report: OrderReport) -> None:
        """A cumulative report: one that knows less than we do changes nothing."""
        order.reported_lots = max(order.reported_lots, report.filled_lots)
        is_open = report.state in (_NEW, _PARTIAL)
        if is_open and report.filled_lots < order.filled_lots:
            return
        if is_open or report.state is _FILLED:
            self._terms(order, report)
        if order.state.is_final:
            return
        if is_open:
            order.amending = order.amending and order.state is not _UNKNOWN
            self._move(order, "accepted")
        elif report.state is _FILLED:
            self._move(order, "complete")
        else:
            order.reason = report.reason
            refused = report.state is _REJECTED and not order.reported_lots + order.filled_lots
            self._move(order, "rejected" if refused else "cancelled")

    def _terms(self, order: Order, said: Amended | OrderReport) -> None:
        """Price and quantity as the venue states them, unless it stated later ones before."""
        if isinstance(said, Amended) or (said.price_ticks, said.qty_lots) != (
            order.price_ticks,
            order.qty_lots,
        ):
            order.amending = False
        if said.venue_ns >= order.terms_ns:
            order.price_ticks, order.qty_lots = said.price_ticks, said.qty_lots
            order.terms_ns = said.venue_ns
        if said.qty_lots in order.amend_lots:
            order.amend_lots.remove(said.qty_lots)

    def _move(self, order: Order, evidence: str) -> None:
        if evidence in _PRESENCE:
            order.acknowledged = True
        state = _NEW if order.state is _PARTIAL else order.state
        if (after := TRANSITIONS.get((state, evidence))) is not None:
            order.state = after
            self.entered[after] = self.entered.get(after, 0) + 1
        order.evidence = evidence

    def _settle(self, order: Order) -> None:
        """What follows from the quantities."""
        if not order.state.is_final and order.filled_lots and not order.exposed_lots:
            order.state = _FILLED
        elif order.state is _NEW and order.filled_lots:
            order.state = _PARTIAL
        if order.state.is_final:
            order.amend_lots.clear()
            order.amending = False
        if order.state.is_final and not order.open_lots:
            self._open.pop(order.submit.client_id, None)
        else:
            self._open.setdefault(order.submit.client_id)

    # -- memory and restart --------------------------------------------------------------------

    def forget(self, before_ns: int) -> None:
        """Drop orders that are final, complete and unchanged since before a time."""
        for client_id in [
            client_id
            for client_id, order in self.by_id.items()
            if client_id not in self._open and order.changed_ns < before_ns
        ]:
            order = self.by_id.pop(client_id)
            self._aliases.pop(order.venue_order_id, None)
            self._executions.pop(client_id, None)

    def restore(self, orders: Iterable[Order], executions: Iterable[tuple[str, str]] = ()) -> None:
        """Take over orders of an earlier process, with the (client id, execution id) counted in them."""
        for order in orders:
            client_id = order.submit.client_id
            self.by_id[client_id] = order
            if order.venue_order_id:
                self._aliases[order.venue_order_id] = client_id
            if not order.state.is_final or order.open_lots:
                self._open[client_id] = None
        for client_id, exec_id in executions:
            self._executions.setdefault(client_id, set()).add(exec_id)

    def executions(self) -> Iterator[tuple[str, str]]:
        """(client id, execution id) of every execution of the orders in memory."""
        for client_id, seen in self._executions.items():
            for exec_id in sorted(seen):
                yield client_id, exec_id
