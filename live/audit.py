"""Audits: whether log and venue agree about a symbol's open orders, executions and position.

    OPEN_ORDERS and EXECUTIONS since the last agreement ─► both complete ─► POSITION ─► equal: agreed
                       ▲                                                       │
                       └── differs: again, until it did so `ROUNDS` times alike ┘ then the venue's is taken

What the log does not explain meets the policy `live.differences`: go on (adopt), close (cancel), or wait for
the operator (halt). The venue's position is the position in any case.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Final

import msgspec

from execution.account import Account
from execution.order_machine import Order, Orders
from execution.orders import ExecutionType, Filled, OrderReport, OrderState
from live.messages import (
    Append,
    CancelAll,
    Effect,
    PositionReport,
    Query,
    QueryKind,
    QueryResult,
    Say,
)
from live.protection import Protection
from live.requests import Retries, Retry
from live.safety import Safety
from live.statement import Statements, StatementState
from market.settings import Settings
from market.units import MS_NS, SECOND_NS

#: A position report this much older than our last execution may still be of after it: the same fact.
SAME_NS: Final = 50 * MS_NS
#: A position that differs on the private stream is looked into after this; evidence comes in any order.
GRACE_NS: Final = SECOND_NS
#: A difference is a fact when so many rounds in a row found it alike.
ROUNDS: Final = 3
#: Executions are asked for from this long before the last agreement.
MARGIN_NS: Final = 10 * SECOND_NS
#: Ids of executions and stops that are remembered.
KEPT: Final = 256


class Audit(msgspec.Struct, kw_only=True):
    """A comparison under way; ``blocking`` when nothing is opened before it agrees."""

    blocking: bool
    waiting: set[str]
    venue_ns: int = 0
    rounds: int = 0
    differs: tuple[int, int] | None = None


class AuditState(msgspec.Struct, kw_only=True):
    """A checkpoint of `Audits`: venue time up to which executions are known, and what was told."""

    since_ns: dict[str, int] = {}
    strangers: list[str] = []  #: ids of open orders that are not ours
    statement: StatementState = msgspec.field(default_factory=StatementState)
    stops: dict[str, str] = {}  #: venue's id of a stop order -> symbol


class Audits:
    """Compares symbol by symbol. ``ask`` looks into an order; ``emit`` takes lines."""

    def __init__(
        self,
        orders: Orders,
        account: Account,
        retries: Retries,
        protection: Protection,
        safety: Safety,
        settings: Settings,
        ask: Callable[[int, Order], None],
        emit: Callable[[Effect], None],
        state: AuditState,
    ) -> None:
        self._orders, self._account, self._retries = orders, account, retries
        self._protection, self._safety, self._settings = protection, safety, settings
        self._ask, self._emit = ask, emit
        self.state = copy.deepcopy(state)
        self._statements = Statements(
            account, retries, safety, settings.live.venue, emit, self.state.statement
        )
        self._under_way: dict[str, Audit] = {}
        self._positions: dict[str, PositionReport] = {}
        self._fill_ns: dict[str, int] = {}
        self._differs_ns: dict[str, int] = {}

    @property
    def busy(self) -> bool:
        """Whether `scan` has something to look at."""
        return bool(self._differs_ns)

    def under_way(self, blocking: bool = False) -> list[str]:
        """Symbols that are compared now, or those of them that wait for it."""
        return [s for s, audit in self._under_way.items() if audit.blocking or not blocking]

    def begin(self, now_ns: int, symbol: str, blocking: bool, delay_ns: int = 0) -> None:
        """Compare, from the beginning when one is under way that does not block and this one does."""
        audit = self._under_way.get(symbol)
        if audit is not None and not blocking:
            return
        if audit is None:
            audit = self._under_way[symbol] = Audit(blocking=blocking, waiting=set())
        audit.blocking = blocking
        self._round(now_ns, symbol, audit, delay_ns)

    def _round(self, now_ns: int, symbol: str, audit: Audit, delay_ns: int) -> None:
        since_ns = self.state.since_ns.get(symbol, 0)
        self._retries.done(_key(QueryKind.POSITION, symbol))
        audit.waiting = {QueryKind.OPEN_ORDERS, QueryKind.EXECUTIONS}
        for kind in (QueryKind.OPEN_ORDERS, QueryKind.EXECUTIONS):
            key = _key(kind, symbol)
            self._retries.done(key)  # an answer under way may be of before the gap
            start_ns = since_ns if kind is QueryKind.EXECUTIONS else 0
            query = Query(kind=kind, symbol=symbol, since_ns=start_ns)
            self._retries.want(now_ns, key, query, delay_ns)

    def result(self, now_ns: int, retry: Retry, result: QueryResult) -> None:
        """A complete answer to one of the questions, after its evidence was applied."""
        symbol = result.query.symbol
        if result.query.kind is QueryKind.TRANSACTIONS:
            self._statements.result(now_ns, retry, result)
            return
        audit = self._under_way[symbol]
        self._retries.done(retry.key)
        if result.query.kind is QueryKind.POSITION:
            self._compare(now_ns, symbol, audit, result)
            return
        if result.query.kind is QueryKind.OPEN_ORDERS:
            self._open_orders(now_ns, symbol, result)
        else:
            audit.venue_ns = result.venue_ns
        audit.waiting.discard(result.query.kind)
        if not audit.waiting:
            self._ask_position(now_ns, symbol)

    def _ask_position(self, now_ns: int, symbol: str, delay_ns: int = 0) -> None:
        query = Query(kind=QueryKind.POSITION, symbol=symbol)
        self._retries.want(now_ns, _key(QueryKind.POSITION, symbol), query, delay_ns)

    # -- orders ----------------------------------------------------------------------------------

    def _open_orders(self, now_ns: int, symbol: str, result: QueryResult) -> None:
        listed = set()
        for report in result.orders:
            if not isinstance(report, OrderReport) or report.is_stop or report.state.is_final:
                continue
            order = self._orders.get(report.client_id, report.venue_order_id)
            if order is None:
                self._foreign_order(now_ns, report)
                continue
            listed.add(order.client_id)
            # A list from before the order's end says nothing of it.
            if order.state.is_final and result.venue_ns > order.venue_ns:
                self._say(
                    "error", "an ended order is open at the venue", symbol, id=order.client_id
                )
                self._protection.cancel(now_ns, order)
        for order in list(self._orders.open(symbol)):
            if order.client_id not in listed and not order.state.is_final:
                self._ask(now_ns, order)

    def _foreign_order(self, now_ns: int, report: OrderReport) -> None:
        symbol, name = report.symbol, report.client_id or report.venue_order_id
        if self._is_new(name):
            self.policy(now_ns, symbol, f"order {name} is not ours", closes=False)
        if self._settings.live.differences == "cancel":
            self._retries.want(now_ns, f"cancel/{symbol}", CancelAll(symbol=symbol))

    def order(self, report: OrderReport) -> None:
        """An order report: the venue's ids of stops are remembered."""
        if report.is_stop:
            self.state.stops[report.venue_order_id] = report.symbol
            if len(self.state.stops) > KEPT:
                del self.state.stops[next(iter(self.state.stops))]

    # -- executions ------------------------------------------------------------------------------

    def fill(self, now_ns: int, fill: Filled, order: Order | None) -> None:
        """An execution that was booked just now."""
        symbol = fill.symbol
        self._fill_ns[symbol] = max(self._fill_ns.get(symbol, 0), fill.venue_ns)
        if order is None:
            self._stranger(now_ns, fill)
        elif fill.execution is not ExecutionType.TRADE:
            self.halt(now_ns, symbol, f"execution {fill.exec_id} of type {fill.execution}")

    def _stranger(self, now_ns: int, fill: Filled) -> None:
        symbol, about = fill.symbol, f"execution {fill.exec_id} of no order of ours"
        if fill.execution in (ExecutionType.UNKNOWN, ExecutionType.LIQUIDATION):
            self.halt(now_ns, symbol, f"execution {fill.exec_id} of type {fill.execution}")
        elif fill.execution is not ExecutionType.TRADE:
            self._say("warning", "the venue moved a position", symbol, type=str(fill.execution))
        elif fill.venue_order_id in self.state.stops or self._protection.fits_stop(fill):
            self._say("warning", "stop filled", symbol, lots=fill.side * fill.qty_lots)
        else:
            self.policy(now_ns, symbol, about)
        self.begin(now_ns, symbol, blocking=False)

    def _is_new(self, name: str) -> bool:
        """Whether a stranger is met for the first time."""
        if name in self.state.strangers:
            return False
        self.state.strangers = [*self.state.strangers, name][-KEPT:]
        return True

    # -- positions -------------------------------------------------------------------------------

    def report(self, now_ns: int, report: PositionReport) -> None:
        """The venue states a position, on the private stream or in an answer."""
        symbol = report.symbol
        if report.hedged:
            self.halt(now_ns, symbol, "the account is in hedge mode")
        if report.venue_ns + SAME_NS < self._fill_ns.get(symbol, 0):
            return  # from before our last execution
        self._positions[symbol] = report
        self._protection.report(now_ns, report)
        if report.lots == self._account.position_lots(symbol):
            self._differs_ns.pop(symbol, None)
        else:
            self._differs_ns.setdefault(symbol, now_ns)

    def scan(self, now_ns: int) -> None:
        """Look into positions that have differed for longer than evidence takes."""
        for symbol, since_ns in list(self._differs_ns.items()):
            if self._positions[symbol].lots == self._account.position_lots(symbol):
                del self._differs_ns[symbol]
            elif now_ns - since_ns >= GRACE_NS:
                del self._differs_ns[symbol]
                self.begin(now_ns, symbol, blocking=True)

    def _compare(self, now_ns: int, symbol: str, audit: Audit, result: QueryResult) -> None:
        if any(o.state is OrderState.UNKNOWN or o.missing_lots for o in self._orders.open(symbol)):
            self._ask_position(now_ns, symbol, SECOND_NS)
            return
        stated = [r for r in result.reports if isinstance(r, PositionReport) and r.symbol == symbol]
        report = stated[-1] if stated else PositionReport(symbol=symbol, lots=0)
        ours = self._account.position_lots(symbol)
        if report.lots == ours:
            self._agree(now_ns, symbol, audit)
            return
        audit.rounds = audit.rounds + 1 if audit.differs == (ours, report.lots) else 1
        audit.differs = ours, report.lots
        audit.blocking = True
        if audit.rounds >= ROUNDS:
            self._account.adopt(symbol, report.lots, report.entry_e8, report.venue_ns)
            body = msgspec.json.encode(report)
            self._emit(Append(kind="adopted", time_ns=now_ns, body=body, symbol=symbol))
            self._protection.report(now_ns, report)
            self.policy(
                now_ns, symbol, f"position {ours} lots in the log, {report.lots} at the venue"
            )
        self._round(now_ns, symbol, audit, SECOND_NS)

    def _agree(self, now_ns: int, symbol: str, audit: Audit) -> None:
        del self._under_way[symbol]
        self._differs_ns.pop(symbol, None)
        since_ns = max(self.state.since_ns.get(symbol, 0), audit.venue_ns - MARGIN_NS)
        self.state.since_ns[symbol] = since_ns
        if not self._under_way:  # executions are known up to this time
            self._statements.look(now_ns, audit.venue_ns)
        if audit.blocking:
            lots = self._account.position_lots(symbol)
            self._say("info", "log and venue agree", symbol, lots=lots)
        self._protection.protect(now_ns, symbol)
        if symbol not in self._settings.market.symbols and self._account.position_lots(symbol):
            self._protection.close(now_ns, symbol, "the symbol is not traded")

    # -- policy ----------------------------------------------------------------------------------

    def policy(self, now_ns: int, symbol: str, what: str, closes: bool = True) -> None:
        """What the log does not explain; ``closes``: it moved the position."""
        policy = self._settings.live.differences
        self._say("warning", "unexplained", symbol, what=what, policy=policy)
        if policy == "halt":
            self._safety.see(now_ns, "unexplained", 1.0, symbol)
        elif policy == "cancel" and closes:
            self._protection.close(now_ns, symbol, what)

    def halt(self, now_ns: int, symbol: str, why: str) -> None:
        """Wait for the operator, whatever the policy."""
        if "unexplained" not in self._safety.why(symbol):
            self._say("error", "halted", symbol, why=why)
            self._safety.see(now_ns, "unexplained", 1.0, symbol)

    def _say(self, level: str, event: str, symbol: str, **fields: object) -> None:
        self._emit(Say(level=level, event=event, fields={"symbol": symbol, **fields}))


def _key(kind: QueryKind, symbol: str) -> str:
    return f"audit/{kind}/{symbol}"
