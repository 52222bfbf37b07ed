"""Bugs planted on purpose, to show that the fault simulation can fail: each is one that somebody had.

A bug is put in at run time, into the process of the run alone, by replacing a method of the product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from execution.order_machine import Order, Orders
from execution.orders import (
    ExecutionType,
    Filled,
    Liquidity,
    Lost,
    OrderState,
    Rejected,
    Submit,
)
from live import restoration
from live.bybit.rows import Reader
from live.core import Core, CoreState
from live.log import LogWriter
from live.messages import Evidence, FundingReport, Link, Send
from live.protection import Protection
from live.reconciliation import Reconciliation
from market.units import SECOND_NS

Plant = Callable[[], None]


def _replace(owner: Any, name: str, method: Any) -> Any:
    """Put a method in the place of another, which is returned."""
    before = getattr(owner, name)
    setattr(owner, name, method)
    return before


def _timeout_is_a_rejection() -> None:
    """No answer in time: the order is taken for rejected."""

    def lost(self: Reconciliation, now_ns: int, send: Send, reason: str) -> Any:
        event = before(self, now_ns, send, reason)
        if not isinstance(event, Lost) or not isinstance(send.body, Submit):
            return event
        return Rejected(client_id=event.client_id, time_ns=now_ns, venue_ns=now_ns, reason=reason)

    before = _replace(Reconciliation, "lost", lost)


def _sent_again_under_a_new_id() -> None:
    """No answer in time: the order is sent again at once, as another."""

    def lost(self: Any, now_ns: int, send: Send, reason: str) -> Any:
        body = send.body
        if isinstance(body, Submit) and not body.client_id.endswith("R"):
            again = msgspec.structs.replace(body, client_id=f"{body.client_id}R")
            core = cores[0]
            core.desk.orders.sent(again, "", now_ns)
            core.trader.effects.append(core.requests.open(now_ns, again, body.symbol))
        return before(self, now_ns, send, reason)

    def init(self: Core, *arguments: Any, **named: Any) -> None:
        begin(self, *arguments, **named)
        cores[:] = [self]

    cores: list[Any] = []
    before = _replace(Reconciliation, "lost", lost)
    begin = _replace(Core, "__init__", init)


def _execution_counts_twice() -> None:
    """An execution is not recognised when it is told again."""

    def fill(self: Orders, order: Order, told: Filled) -> Any:
        order.filled_lots += told.qty_lots
        return before(self, order, told)

    before = _replace(Orders, "_fill", fill)


def _reports_are_ignored() -> None:
    """What the venue states of an order, cumulatively, is not read: single events alone are."""
    _replace(Orders, "_report", lambda self, order, report: None)


def _funding_is_a_fill() -> None:
    """A settlement is an execution like any other."""

    def execution(self: Reader, row: Any, now_ns: int) -> list[Evidence]:
        return [_as_fill(told, now_ns) for told in before(self, row, now_ns)]

    before = _replace(Reader, "execution", execution)


def _as_fill(told: Evidence, now_ns: int) -> Evidence:
    if not isinstance(told, FundingReport):
        return told
    return Filled(
        client_id="",
        time_ns=now_ns,
        venue_ns=told.venue_ns,
        exec_id=told.exec_id,
        symbol=told.symbol,
        side=1 if told.lots > 0 else -1,
        qty_lots=abs(told.lots),
        price_ticks=told.mark_e8 // 10_000_000,
        liquidity=Liquidity.TAKER,
        fee_e8=told.paid_e8,
        leaves_lots=0,
        execution=ExecutionType.TRADE,
    )


def _sent_before_the_sync() -> None:
    """Requests leave before what they rest on is on disk."""
    _replace(LogWriter, "sync", lambda self: None)


def _executions_without_an_id_are_dropped() -> None:
    """An execution that is of no order of ours does not count."""

    def unfold(self: Reconciliation, told: Evidence) -> list[Evidence]:
        return [e for e in before(self, told) if not isinstance(e, Filled) or e.client_id]

    before = _replace(Reconciliation, "unfold", unfold)


def _no_stop_is_armed_later() -> None:
    """A position that is found without its stop gets none."""
    _replace(Protection, "protect", lambda self, now_ns, symbol: None)


def _time_closes_the_unknown() -> None:
    """An order without evidence counts as rejected after 0.1 s, which an answer to a question may take."""

    def due(self: Core, now_ns: int) -> None:
        before(self, now_ns)
        for order in list(self.orders.open()):
            if order.state is OrderState.UNKNOWN and now_ns > order.changed_ns + SECOND_NS // 10:
                order.acknowledged = False
                refusal = Rejected(
                    client_id=order.client_id, time_ns=now_ns, venue_ns=now_ns, reason="timeout"
                )
                self._learn(now_ns, [refusal])

    before = _replace(Core, "_due", due)


def _a_halt_ends_with_the_process() -> None:
    """A restart forgets what an operator ordered."""

    def restore(*arguments: Any) -> Any:
        found = before(*arguments)
        if found is None:
            return None
        state = msgspec.structs.replace(found.state, safety=CoreState().safety)
        return found._replace(state=state)

    before = _replace(restoration, "restore", restore)


def _nothing_is_asked_after_a_reconnection() -> None:
    """A private stream that comes back is trusted at once."""

    def link(self: Reconciliation, now_ns: int, link: Link) -> None:
        if link.up:
            self._down.discard(link.stream)
        else:
            before(self, now_ns, link)

    before = _replace(Reconciliation, "link", link)


def _open_orders_are_no_exposure() -> None:
    """The limits count the position alone, and orders may be opened while some are unknown."""
    _replace(Order, "exposed_lots", property(lambda self: 0))
    _replace(Reconciliation, "may_open", lambda self, symbol: True)


BUGS: Final[dict[str, Plant]] = {
    "timeout taken for a rejection": _timeout_is_a_rejection,
    "sent again under a new id": _sent_again_under_a_new_id,
    "execution counted twice": _execution_counts_twice,
    "open orders are no exposure": _open_orders_are_no_exposure,
    "cumulative reports ignored": _reports_are_ignored,
    "funding taken for a fill": _funding_is_a_fill,
    "sent before the sync": _sent_before_the_sync,
    "executions without an id dropped": _executions_without_an_id_are_dropped,
    "no stop armed later": _no_stop_is_armed_later,
    "UNKNOWN closed by time": _time_closes_the_unknown,
    "nothing asked after a reconnection": _nothing_is_asked_after_a_reconnection,
    "halt forgotten at a restart": _a_halt_ends_with_the_process,
}
