"""Order fate: what became of an order whose state is not known, proven by questions and never by time.

An order is never sent again: on proof that the venue does not have it (a complete answer of a venue time after
which the venue would refuse the request) it counts as refused, and the desk decides anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from execution.order_machine import Order, Orders
from execution.orders import Cancelled, CancelRejected, Event, Lost, OrderState, Rejected
from live.messages import Effect, Query, QueryKind, QueryResult, Say
from live.protection import Protection
from live.requests import Requests, Retries, Retry
from market.settings import Settings
from market.units import DAY_NS, MS_NS, SECOND_NS

#: After its receive window a venue has this long to write down what it took.
SETTLED_NS: Final = 2 * SECOND_NS
#: An acknowledged order that so many complete answers do not list has ended.
ABSENCES: Final = 3
#: Orders that ended without an execution are listed for so long.
LISTED_NS: Final = DAY_NS


class OrderFate:
    """Looks into orders without evidence; what is proven waits in ``made``."""

    def __init__(
        self,
        orders: Orders,
        requests: Requests,
        retries: Retries,
        protection: Protection,
        settings: Settings,
        emit: Callable[[Effect], None],
    ) -> None:
        self._orders, self._requests, self._retries = orders, requests, retries
        self._protection, self._emit = protection, emit
        #: So long after a request's time stamp the venue refuses it, and shows what it took before.
        self._too_late_ns = settings.live.receive_window_ms * MS_NS + SETTLED_NS
        self._suspects: dict[str, bool] = {}  #: client id -> not among the open ones
        self.made: list[Event] = []

    def start(self, now_ns: int) -> None:
        """A process begins: nothing is known of requests under way, and every open order is asked for."""
        for order in self._orders.open():
            if order.state in (OrderState.PENDING_NEW, OrderState.PENDING_CANCEL):
                self.made.append(lost(order.client_id, now_ns, "the process ended"))
            self.suspect(now_ns, order, is_unlisted=False)

    def look_at(self, now_ns: int, order: Order | None) -> None:
        """Ask for an order at once when its state is not known."""
        if order is not None and order.state is OrderState.UNKNOWN:
            self._ask(now_ns, order)

    def suspect(self, now_ns: int, order: Order, is_unlisted: bool = True) -> None:
        """Ask for an order that should be there, and is not among the open ones or was not looked for."""
        self._suspects[order.client_id] = is_unlisted
        self._ask(now_ns, order)

    def _ask(self, now_ns: int, order: Order) -> None:
        client_id = order.client_id
        query = Query(
            kind=QueryKind.ORDER, symbol=order.symbol, client_id=client_id, since_ns=order.sent_ns
        )
        self._retries.want(now_ns, f"order/{client_id}", query)

    def _is_open_to_question(self, now_ns: int, order: Order) -> bool:
        """Whether only a question can tell: UNKNOWN, or evidence that is due has not come."""
        if order.state is OrderState.UNKNOWN or order.client_id in self._suspects:
            return True
        if now_ns - order.changed_ns < self._requests.answer_ns:
            return False
        if order.state.is_final:
            return order.missing_lots > 0
        under_way = {getattr(s.body, "client_id", "") for s in self._requests.under_way.values()}
        return order.client_id not in under_way and (
            order.state in (OrderState.PENDING_NEW, OrderState.PENDING_CANCEL)
            or order.crosses
            or order.cancel_sent
            or bool(order.amend_lots)
            or order.missing_lots > 0
        )

    def looked_up(self, now_ns: int, retry: Retry, result: QueryResult) -> None:
        """A complete answer about one order, after its evidence was applied."""
        order = self._orders.get(result.query.client_id)
        self._suspects.pop(result.query.client_id, None)
        if order is None or (order.state.is_final and not order.missing_lots):
            self._retries.done(retry.key)
        elif not result.orders:
            self._absent(now_ns, retry, order, result.venue_ns)
        elif order.state.is_final or order.missing_lots:
            self._retries.again(
                now_ns, retry
            )  # the list of executions comes later than the order's
        elif order.amend_lots and result.venue_ns < retry.born_ns + self._too_late_ns:
            self._retries.again(now_ns, retry)  # the amend may come true
        else:
            self._retries.done(retry.key)
            if order.amend_lots:
                self.made.append(
                    CancelRejected(
                        client_id=order.client_id,
                        time_ns=now_ns,
                        venue_ns=result.venue_ns,
                        reason="the amend is absent at the venue",
                    )
                )
            if order.cancel_sent:
                self._protection.cancel(now_ns, order)

    def _absent(self, now_ns: int, retry: Retry, order: Order, venue_ns: int) -> None:
        """Neither open, nor ended, nor executed, as of ``venue_ns``. The request left before its deadline."""
        left_ns = self._requests.deadline_ns(order.client_id)
        left_ns = max(left_ns, order.sent_ns + self._requests.answer_ns)
        missing_ns = left_ns + self._too_late_ns - venue_ns
        if missing_ns > 0:
            self._retries.again(now_ns, retry, missing_ns)
            return
        if not order.acknowledged:
            reason = "absent at the venue after its receive window: it never arrived"
            event = Rejected(
                client_id=order.client_id, time_ns=now_ns, venue_ns=venue_ns, reason=reason
            )
            self._prove(retry, event)
            return
        retry.absences += 1
        if retry.absences < ABSENCES:
            self._retries.again(now_ns, retry)
        else:
            self._ended(
                now_ns, retry, order, venue_ns, "absent at the venue, which had it: it ended"
            )

    def outdated(self, now_ns: int, retry: Retry, venue_ns: int) -> bool:
        """Whether an order is older than what the venue lists of ended ones, and not among the open ones:
        then it has ended, and its executions are known from those of the symbol.
        """
        order = self._orders.get(retry.key.removeprefix("order/"))
        if order is None or venue_ns - order.sent_ns <= LISTED_NS:
            return False
        if not self._suspects.get(order.client_id):
            return False
        del self._suspects[order.client_id]
        self._ended(now_ns, retry, order, venue_ns, "not open any more, and too old to be listed")
        return True

    def _ended(self, now_ns: int, retry: Retry, order: Order, venue_ns: int, reason: str) -> None:
        event = Cancelled(
            client_id=order.client_id,
            time_ns=now_ns,
            venue_ns=venue_ns,
            reason=reason,
            leaves_lots=order.qty_lots - order.filled_lots,
        )
        self._prove(retry, event)

    def _prove(self, retry: Retry, event: Rejected | Cancelled) -> None:
        self.made.append(event)
        self._retries.done(retry.key)
        fields: dict[str, object] = {"id": event.client_id, "why": event.reason}
        self._emit(Say(level="warning", event="order absent", fields=fields))

    def scan(self, now_ns: int) -> None:
        """Ask for orders whose evidence is overdue; what came meanwhile is not asked for any more."""
        for order in list(self._orders.open()):
            if self._is_open_to_question(now_ns, order):
                self._ask(now_ns, order)
        for key in self._retries.waiting("order/"):
            asked = self._orders.get(key.removeprefix("order/"))
            if asked is None or not (asked.amend_lots or self._is_open_to_question(now_ns, asked)):
                self._retries.done(key)


def lost(client_id: str, now_ns: int, reason: str) -> Lost:
    """No answer came; the venue said nothing, so there is no time of its own."""
    return Lost(client_id=client_id, time_ns=now_ns, venue_ns=0, reason=reason)
