"""Reconcile log and venue: what became of requests without an answer, and whether both agree.

Start-up and shut-down are phases. It asks, cancels, protects and closes; what it proves (an order that never
arrived) is evidence, which the core folds like the venue's own. docs/live.md: what happened → what is done.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Final

import msgspec

from execution.account import Account
from execution.order_machine import Order, Orders
from execution.orders import (
    Amend,
    Cancel,
    Event,
    Filled,
    OrderEvent,
    OrderReport,
    OrderState,
    Rejected,
    Submit,
)
from live.audit import Audits, AuditState
from live.messages import (
    Append,
    Effect,
    Evidence,
    Link,
    PositionReport,
    Query,
    QueryKind,
    QueryResult,
    Refused,
    Report,
    Say,
    Send,
    SetStop,
    WalletReport,
)
from live.order_fate import OrderFate, lost
from live.protection import Protection, ProtectionState
from live.requests import Requests, Retries, Retry
from live.safety import Mode, Safety
from market.instruments import Instrument
from market.settings import Settings
from market.units import E8, SECOND_NS

#: Orders, positions and modes are looked at this often while there is something to look at.
SCAN_NS: Final = SECOND_NS
#: The desk flattens; what it has not closed after so long is closed here (no book, no view).
FLATTEN_NS: Final = 5 * SECOND_NS
#: Audits after unreadable evidence are no closer than this.
GAP_NS: Final = 2 * SECOND_NS
#: Balances that differ by less are the same.
CENT_E8: Final = E8 // 100


class Phase(StrEnum):
    """STARTING: nothing trades until log and venue agree. TRADING. RECONCILING: some symbol waits for
    evidence. STOPPING: cancelling and flattening. ENDED: proven, or out of time.
    """

    STARTING = "starting"
    TRADING = "trading"
    RECONCILING = "reconciling"
    STOPPING = "stopping"
    ENDED = "ended"


class ReconciliationState(msgspec.Struct, kw_only=True):
    """A checkpoint of `Reconciliation`. What is under way is begun anew by `start`."""

    audits: AuditState = msgspec.field(default_factory=AuditState)
    protection: ProtectionState = msgspec.field(default_factory=ProtectionState)
    apart_e8: int | None = None  #: the venue's balance less the log's, which only transfers change


class Reconciliation:
    """Orders, executions, positions and stops: log against venue. Times are epoch ns.

    `Core` calls it after `Orders` and `Account` took the evidence; what it has `made` is evidence in turn.
    ``emit`` takes requests, lines and records. ``check`` says in what the venue's first reports contradict the
    settings, a line each; before it is content nothing but questions is sent.
    """

    def __init__(
        self,
        orders: Orders,
        account: Account,
        requests: Requests,
        safety: Safety,
        instruments: Mapping[str, Instrument],
        settings: Settings,
        emit: Callable[[Effect], None],
        state: ReconciliationState | None = None,
        check: Callable[[list[Report]], list[str]] = lambda reports: [],
    ) -> None:
        self._orders, self._account, self._requests = orders, account, requests
        self._safety, self._settings, self._emit, self._check = safety, settings, emit, check
        self._at_venue = settings.live.venue != "paper"
        self._symbols = list(instruments)
        state = state or ReconciliationState()
        self._retries = Retries(requests, emit)
        self.protection = Protection(
            orders, account, requests, self._retries, settings, emit, state.protection
        )
        self._fate = OrderFate(orders, requests, self._retries, self.protection, settings, emit)
        self._audits = Audits(
            orders,
            account,
            self._retries,
            self.protection,
            safety,
            settings,
            self._fate.suspect,
            emit,
            state.audits,
        )
        self.protection.doubts = self._doubts
        self.problems: list[str] = []  #: why start-up does not end; the shell says them and ends
        self._reports: dict[tuple[str, str], Report] = {}  #: the newest by kind and symbol
        self._traded = {s: h.bought_lots + h.sold_lots for s, h in account.holdings.items()}
        self._apart_e8 = state.apart_e8
        self._down: set[str] = set()
        self._refused: dict[int, Refused] = {}
        self._flatten_ns: dict[str, int] = {}
        self._starting, self._ended, self._checked = True, False, not self._at_venue
        self._deadline_ns = 0
        self._flatten = self._leave = self._proving = False
        self._scanned_ns = self._audited_ns = 0
        self._closing = list(state.protection.closing)  #: on record
        self._gap = False  #: something was said that could not be read

    # -- phases ----------------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        if self._ended:
            return Phase.ENDED
        if self._deadline_ns:
            return Phase.STOPPING
        if self._starting:
            return Phase.STARTING
        agree = all(self.may_open(symbol) for symbol in self._symbols)
        return Phase.TRADING if agree else Phase.RECONCILING

    def start(self, now_ns: int) -> None:
        """A process begins: requests under way are without an answer, and nothing trades until log and
        venue agree.
        """
        self._starting = True
        since_ns = self._audits.state.since_ns
        for number in list(self._requests.under_way):
            self._requests.expired(number)
        self._fate.start(now_ns)
        for symbol in self._symbols if self._at_venue else ():
            since_ns.setdefault(symbol, now_ns)
            for kind in (QueryKind.INSTRUMENT, QueryKind.FEES):
                self._want(now_ns, kind, symbol)
            if self._settings.desk.margin:
                self._want(now_ns, QueryKind.RISK_LIMITS, symbol)
            self._audits.begin(now_ns, symbol, blocking=True)
        if self._at_venue:
            self._want(now_ns, QueryKind.ACCOUNT)
            self._want(now_ns, QueryKind.WALLET)
            self._record(now_ns)
        self._audited_ns = now_ns
        self._progress(now_ns)

    def _want(self, now_ns: int, kind: QueryKind, symbol: str = "") -> None:
        self._retries.want(now_ns, f"start/{kind}/{symbol}", Query(kind=kind, symbol=symbol))

    def _progress(self, now_ns: int) -> None:
        """Start-up ends when the account is as it should be, and nothing is open to question."""
        if not self._starting or self._deadline_ns or self._retries.keys("start/"):
            return
        if not self._checked and all(
            (PositionReport.__name__, symbol) in self._reports for symbol in self._symbols
        ):
            before, self.problems = self.problems, self._check(list(self._reports.values()))
            for problem in self.problems if self.problems != before else ():
                self._say("error", "not started", why=problem)
            self._checked = not self.problems
        if self._checked and not self._audits.under_way() and not self._retries.keys("order/"):
            self._starting = False
            self._compare_balance()
            self._record(now_ns)
            self._say("info", "log and venue agree, trading", symbols=self._symbols)

    def _compare_balance(self) -> None:
        wallet, before = self._reports.get(("WalletReport", "")), self._apart_e8
        if isinstance(wallet, WalletReport):
            self._apart_e8 = wallet.balance_e8 - self._account.balance_e8
            moved = 0 if before is None else self._apart_e8 - before
            if abs(moved) >= CENT_E8:
                self._say("warning", "the balance moved by what the log lacks", usdt=moved / E8)

    def _record(self, now_ns: int) -> None:
        """Put what a new process needs in the log."""
        body = msgspec.json.encode(self.snapshot())
        self._emit(Append(kind="section/reconciliation", time_ns=now_ns, body=body))

    def is_started(self) -> bool:
        """Whether the desk may send: log and venue agreed, and it is not the next worker's turn."""
        return not (self._starting or self._leave)

    def may_open(self, symbol: str) -> bool:
        """Whether parents may be opened for a symbol: its log and the venue agree."""
        if self._starting or self._deadline_ns or self._down:
            return False
        if self.protection.is_closing(symbol) or symbol in self._audits.under_way(blocking=True):
            return False
        return not self._is_unknown(symbol)

    def _doubts(self, symbol: str) -> bool:
        return symbol in self._audits.under_way() or self._is_unknown(symbol)

    def _is_unknown(self, symbol: str) -> bool:
        """Whether an order is in unknown state, or executions that the venue counts are overdue."""
        return any(
            order.state is OrderState.UNKNOWN
            or (order.missing_lots and f"order/{order.client_id}" in self._retries)
            for order in self._orders.open(symbol)
        )

    def snapshot(self) -> ReconciliationState:
        """For a checkpoint."""
        audits, protection = self._audits.state, self.protection.state
        state = ReconciliationState(audits=audits, protection=protection, apart_e8=self._apart_e8)
        return copy.deepcopy(state)

    def made(self) -> list[Event]:
        """Evidence that was proven since the last call, e.g. `Rejected` of an order that never arrived."""
        made, self._fate.made = self._fate.made, []
        return made

    # -- what comes in ---------------------------------------------------------------------------

    def lost(self, now_ns: int, send: Send, reason: str) -> Event | None:
        """The evidence that a request's expiry is: `Lost` of its order; None for other requests."""
        if isinstance(send.body, Submit | Amend | Cancel):
            return lost(send.body.client_id, now_ns, reason)
        return None

    def expired(self, now_ns: int, send: Send) -> None:
        """A request ended without an answer (after the core applied `lost`)."""
        if (retry := self._retries.of(send.number)) is not None:
            self._retries.again(now_ns, retry)
        elif isinstance(send.body, Submit | Amend | Cancel):
            self._fate.look_at(now_ns, self._orders.get(send.body.client_id))

    def unfold(self, evidence: Evidence) -> list[Evidence]:
        """A query's result as evidence for everybody, its orders and reports, and last itself; other evidence
        as it is. What could not be read of an answer makes it incomplete, and is no news.
        """
        if not isinstance(evidence, QueryResult):
            return [evidence]
        reports = [report for report in evidence.reports if not isinstance(report, Refused)]
        return [*evidence.orders, *reports, evidence]

    def evidence(self, now_ns: int, evidence: Evidence, send: Send | None = None) -> None:
        """What the venue says, in a frame or in the answer to ``send``, after it was applied."""
        match evidence:
            case Filled():
                order = self._orders.get(evidence.client_id, evidence.venue_order_id)
                if self._was_booked(evidence.symbol):
                    self._audits.fill(now_ns, evidence, order)
                    self.protection.fill(now_ns, evidence, order)
                self._fate.look_at(now_ns, order)
            case OrderReport():
                self._audits.order(evidence)
                order = self._orders.get(evidence.client_id, evidence.venue_order_id)
                self._fate.look_at(now_ns, order)
            case OrderEvent():
                order = self._orders.get(evidence.client_id)
                # A cancel or amend that loses the race to a fill is refused day in, day out.
                if isinstance(evidence, Rejected):
                    self._safety.rejected(now_ns)
                    if order is not None and order.submit.reduce_only and self._at_venue:
                        self._audits.begin(now_ns, order.symbol, blocking=False)
                self._fate.look_at(now_ns, order)
            case PositionReport():
                self._audits.report(now_ns, evidence)
            case WalletReport():
                self._safety.see(now_ns, "margin_rate", evidence.maintenance_margin_rate)
            case Refused():
                if send is not None:
                    self._refused[send.number] = evidence
                else:
                    self._say("warning", "unreadable evidence", why=evidence.reason)
                    self._gap = True
            case QueryResult():
                if send is not None and (retry := self._retries.of(send.number)) is not None:
                    self._result(now_ns, retry, evidence)
            case _:
                pass
        if self._starting and isinstance(evidence, Report) and not isinstance(evidence, Refused):
            self._reports[type(evidence).__name__, getattr(evidence, "symbol", "")] = evidence

    def _was_booked(self, symbol: str) -> bool:
        """Whether the account's executions have changed since the last call; repetitions change nothing."""
        holding, before = self._account.holdings[symbol], self._traded.get(symbol, 0)
        self._traded[symbol] = holding.bought_lots + holding.sold_lots
        return self._traded[symbol] != before

    def answered(self, now_ns: int, send: Send) -> None:
        """The answer to ``send`` was taken in."""
        retry, refused = self._retries.of(send.number), self._refused.pop(send.number, None)
        if retry is None or isinstance(send.body, Query):
            return
        if refused is not None:
            self._say("warning", "refused", request=retry.key, why=refused.reason)
            self._retries.again(now_ns, retry)
            if not refused.retry and isinstance(send.body, SetStop):
                self._audits.begin(now_ns, send.body.symbol, blocking=False)
            return
        self._retries.done(retry.key)
        if isinstance(send.body, SetStop):
            self.protection.armed(now_ns, send.body)
            self._record(now_ns)

    def link(self, now_ns: int, link: Link) -> None:
        """A connection came up or went down. What the private stream said meanwhile is asked for."""
        if link.stream == "public":
            return
        if not link.up:
            about = {"stream": link.stream, "why": link.reason}
            self._say("warning", "nothing is opened: stream down", **about)
            self._down.add(link.stream)
            return
        self._down.discard(link.stream)
        if link.stream == "private":
            self._audit_all(now_ns, blocking=True)

    def _audit_all(self, now_ns: int, blocking: bool) -> None:
        self._audited_ns, self._gap = now_ns, False
        if self._at_venue:
            for symbol in self._symbols:
                self._audits.begin(now_ns, symbol, blocking)
            self._want(now_ns, QueryKind.WALLET)  # no message says how its margin rate moves

    def look_again(self, now_ns: int, symbol: str, delay_ns: int) -> None:
        """Ask for a symbol's position after a delay, and for the wallet."""
        query = Query(kind=QueryKind.POSITION, symbol=symbol)
        self._retries.want(now_ns, f"look/{symbol}", query, delay_ns)
        self._want(now_ns, QueryKind.WALLET)

    def _result(self, now_ns: int, retry: Retry, result: QueryResult) -> None:
        what = retry.key.partition("/")[0]
        refused = any(isinstance(r, Refused) and not r.retry for r in result.reports)
        if not result.complete and not (what == "start" and refused):
            if what == "order" and self._fate.outdated(now_ns, retry, result.venue_ns):
                return
            if retry.tries in (1, 10, 100):
                self._say("warning", "incomplete answer", request=retry.key, why=result.reason)
            self._retries.again(now_ns, retry)
            return
        if what == "order":
            self._fate.looked_up(now_ns, retry, result)
        elif what == "audit":
            self._audits.result(now_ns, retry, result)
        else:
            self._retries.done(retry.key)
        self._progress(now_ns)

    # -- time ------------------------------------------------------------------------------------

    @property
    def next_ns(self) -> int:
        """When `step` is due; 0 for never."""
        due = [self._retries.next_ns]
        if self._is_busy:
            due.append(self._scanned_ns + SCAN_NS)
        due += [0 if self._ended else self._deadline_ns, self._audit_ns if self._at_venue else 0]
        return min((ns for ns in due if ns), default=0)

    @property
    def _audit_ns(self) -> int:
        """When the next audit of all symbols is due; soon after a frame that could not be read."""
        wait_ns = GAP_NS if self._gap else round(self._settings.live.audit_s * SECOND_NS)
        return self._audited_ns + wait_ns

    @property
    def _is_busy(self) -> bool:
        return (
            next(self._orders.open(), None) is not None
            or self._audits.busy
            or self.protection.busy
            or (self._starting and bool(self._reports))
            or bool(self._deadline_ns and not self._ended)
            or any(self._safety.mode(symbol) >= Mode.FLATTEN for symbol in self._symbols)
        )

    def step(self, now_ns: int) -> None:
        """What is due by time."""
        if now_ns >= self._scanned_ns + SCAN_NS or (not self._ended and self._is_late(now_ns)):
            self._scanned_ns = now_ns
            self._scan(now_ns)
        if self._at_venue and now_ns >= self._audit_ns:
            self._audit_all(now_ns, blocking=False)
        self._retries.step(now_ns, object if self._checked else Query)

    def _scan(self, now_ns: int) -> None:
        self._fate.scan(now_ns)
        self._audits.scan(now_ns)
        self._shut_down(now_ns)
        if self._checked:
            for symbol in self._symbols:
                self._obey(now_ns, symbol)
            self.protection.step(now_ns)
        if (closing := list(self.protection.state.closing)) != self._closing:
            self._closing = closing
            self._record(now_ns)
        self._progress(now_ns)

    def _obey(self, now_ns: int, symbol: str) -> None:
        """What a mode asks for beside what the desk does."""
        mode = self._safety.mode(symbol)
        if mode is Mode.HALT:
            self.protection.cancel_resting(now_ns, symbol)
        if mode is not Mode.FLATTEN:
            self._flatten_ns.pop(symbol, None)
            return
        since_ns = self._flatten_ns.setdefault(symbol, now_ns)
        if now_ns - since_ns >= FLATTEN_NS and self._is_held(symbol):
            self.protection.close(now_ns, symbol, ", ".join(self._safety.why(symbol)))

    def _is_held(self, symbol: str) -> bool:
        orders = next(self._orders.open(symbol), None)
        return orders is not None or bool(self._account.position_lots(symbol))

    # -- shut-down -------------------------------------------------------------------------------

    def stop(self, now_ns: int, end_ns: int, flatten: bool, leave: bool = False) -> None:
        """Shut down by ``end_ns``: cancel all, with ``flatten`` close positions; or ``leave`` what rests."""
        if not self._deadline_ns:
            self._deadline_ns = end_ns
            self._flatten, self._leave = flatten, leave
            self._scan(now_ns)

    def _shut_down(self, now_ns: int) -> None:
        if not self._deadline_ns or self._ended:
            return
        for symbol in self._symbols:
            if self._flatten and self._is_held(symbol):
                self.protection.close(now_ns, symbol, "shut-down")
            elif not (self._flatten or self._leave):
                self.protection.cancel_resting(now_ns, symbol)
        if self._is_late(now_ns):
            self._end(now_ns)
        elif not self.left() and not self._audits.under_way():
            if self._proving or not self._at_venue:
                self._end(now_ns)
            else:
                self._proving = True
                self._audit_all(now_ns, blocking=True)

    def _is_late(self, now_ns: int) -> bool:
        return 0 < self._deadline_ns <= now_ns

    def _end(self, now_ns: int) -> None:
        self._ended = True
        left = self.left()
        for line in left:
            self._say("error", "left behind", what=line)
        self._record(now_ns)
        if stay := [order.client_id for order in self._orders.open() if self._stays(order)]:
            self._say("info", "orders left for the next worker", ids=stay)
        self._say("info", "shut down", proven=self._proving and not left, left=len(left))

    def _stays(self, order: Order) -> bool:
        return self._leave and order.rests and not (order.amending or order.missing_lots)

    def left(self) -> list[str]:
        """What shut-down has not settled: orders, with flatten positions, a line each."""
        lines = [
            f"order {order.client_id} of {order.symbol} is {order.state}, "
            f"{order.open_lots} lots may still fill"
            for order in self._orders.open()
            if not self._stays(order)
        ]
        positions = {symbol: self._account.position_lots(symbol) for symbol in self._symbols}
        return lines + [
            f"position of {lots} lots in {symbol}"
            for symbol, lots in positions.items()
            if lots and self._flatten
        ]

    def _say(self, level: str, event: str, **fields: object) -> None:
        self._emit(Say(level=level, event=event, fields=fields))
