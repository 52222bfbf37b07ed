"""A venue stated by hand and the part of the core around reconciliation, for tests of order fate.

`Venue` holds the truth: what arrived, filled and stands there. `Desk` folds evidence as the core does. What
is lost on the way is the test's decision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from execution.account import Account
from execution.order_machine import Order, Orders
from execution.orders import (
    Accepted,
    Amend,
    Cancel,
    CancelRejected,
    Event,
    ExecutionType,
    Filled,
    Liquidity,
    OrderEvent,
    OrderReport,
    OrderState,
    Rejected,
    Submit,
    TimeInForce,
)
from live.exposure import Exposure
from live.messages import (
    Append,
    CancelAll,
    Effect,
    Emitter,
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
    TierReport,
    WalletReport,
)
from live.reconciliation import Reconciliation, ReconciliationState
from live.requests import Requests
from live.safety import Safety
from market.instruments import BUILT_IN
from market.settings import Desk as DeskSettings
from market.settings import Live, Market, Risk, Settings
from market.units import MS_NS, SECOND_NS

T0 = 1_800_000_000 * SECOND_NS
S = "BTCUSDT"
TICK_E8 = 10_000_000  #: of the symbol's tick, 0.1
MID = 1_000_000
#: Without margin: the venue here has no money unless a test gives it some.
SETTINGS = Settings(market=Market(symbols=(S,)), desk=DeskSettings(margin=False))


def settings(venue: str = "sandbox", risk: Risk | None = None, **live: object) -> Settings:
    """Settings of a venue that holds positions."""
    changed = msgspec.structs.replace(Live(), venue=venue, **live)
    return msgspec.structs.replace(SETTINGS, live=changed, risk=risk or Risk())


class VenueOrder(msgspec.Struct):
    submit: Submit
    state: OrderState = OrderState.NEW
    filled: int = 0
    qty: int = 0
    price: int = 0
    updated_ns: int = 0


class Venue:
    """One symbol's orders, executions, position and stop, as they truly are."""

    def __init__(self) -> None:
        self.now_ns = T0
        self.orders: dict[str, VenueOrder] = {}
        self.fills: list[Filled] = []
        self.lots = 0
        self.entry = 0.0
        self.balance_e8, self.margin_rate = 0, 0.0
        self.stop = 0
        self.liquidation_ticks = 0.0
        self.tiers: list[TierReport] = []
        self.takes_stops = True
        self.outbox: list[Evidence] = []  #: of the private stream
        self.asked: list[tuple[int, Query]] = []

    # -- requests --------------------------------------------------------------------------------

    def take(self, send: Send) -> list[Evidence]:
        """Carry a request out; its answer."""
        body, now_ns = send.body, self.now_ns
        match body:
            case Submit():
                return [self._submit(body)]
            case Amend() | Cancel():
                order = self.orders.get(body.client_id)
                if order is None or order.state.is_final:
                    return [
                        CancelRejected(
                            client_id=body.client_id,
                            time_ns=now_ns,
                            venue_ns=now_ns,
                            reason="110001",
                            gone=True,
                        )
                    ]
                if isinstance(body, Cancel):
                    order.state = OrderState.CANCELLED
                elif body.qty_lots is not None and body.qty_lots <= order.filled:
                    return [
                        CancelRejected(
                            client_id=body.client_id,
                            time_ns=now_ns,
                            venue_ns=now_ns,
                            reason="110064",
                        )
                    ]
                elif body.qty_lots is not None:
                    order.qty = body.qty_lots
                self._report(body.client_id)
                return []
            case CancelAll():
                for client_id, order in self.orders.items():
                    if not order.state.is_final:
                        order.state = OrderState.CANCELLED
                        self._report(client_id)
                return []
            case SetStop():
                wrong = self.lots * (MID - body.stop_ticks) <= 0
                if not self.takes_stops or wrong:
                    return [Refused(reason="10001 can not set", code=10001)]
                self.stop = body.stop_ticks
                return []
            case Query():
                self.asked.append((now_ns, body))
                return [self._query(body)]

    def _submit(self, submit: Submit) -> Event:
        times = {"time_ns": self.now_ns, "venue_ns": self.now_ns}
        client_id = submit.client_id
        if client_id in self.orders:
            return Rejected(client_id=client_id, **times, reason="110072", duplicate=True)
        self.orders[client_id] = VenueOrder(submit, qty=submit.qty_lots, price=submit.price_ticks)
        if submit.time_in_force is TimeInForce.IOC:
            room = submit.qty_lots
            if submit.reduce_only:
                room = min(room, max(0, -submit.side * self.lots))
            self.fill(client_id, room)
            if room < submit.qty_lots:
                self.orders[client_id].state = OrderState.CANCELLED
                self._report(client_id)
        else:
            self._report(client_id)
        return Accepted(client_id=client_id, **times, venue_order_id=f"v-{client_id}")

    def _query(self, query: Query) -> QueryResult:
        orders: list[Event] = []
        reports: list[Report] = []
        match query.kind:
            case QueryKind.ORDER:
                if query.client_id in self.orders:
                    orders = [self._state(query.client_id)]
                    orders += [f for f in self.fills if f.client_id == query.client_id]
            case QueryKind.OPEN_ORDERS:
                orders = [self._state(c) for c, o in self.orders.items() if not o.state.is_final]
            case QueryKind.EXECUTIONS:
                orders = [f for f in self.fills if f.venue_ns >= query.since_ns]
            case QueryKind.POSITION:
                reports = [self.position()]
            case QueryKind.RISK_LIMITS:
                reports = list(self.tiers)
            case QueryKind.WALLET:
                reports = [
                    WalletReport(
                        equity_e8=0,
                        balance_e8=self.balance_e8,
                        maintenance_margin_rate=self.margin_rate,
                    )
                ]
        now_ns = self.now_ns
        told = [msgspec.structs.replace(e, time_ns=now_ns) for e in orders]
        return QueryResult(
            query=query,
            complete=True,
            venue_ns=now_ns,
            orders=tuple(told),
            reports=tuple(reports),
        )

    # -- what happens there ----------------------------------------------------------------------

    def fill(
        self,
        client_id: str,
        lots: int,
        side: int = 1,
        price: int = MID,
        kind: ExecutionType = ExecutionType.TRADE,
        venue_order_id: str = "",
    ) -> None:
        """An execution of an order; of none of ours for an id that is not there."""
        if not lots:
            return
        order = self.orders.get(client_id)
        if order is not None:
            side, order.filled = order.submit.side, order.filled + lots
            order.state = (
                OrderState.FILLED if order.filled >= order.qty else OrderState.PARTIALLY_FILLED
            )
        before = self.lots
        self.lots += side * lots
        if before * side >= 0:
            self.entry = (self.entry * abs(before) + price * lots) / abs(self.lots)
        elif self.lots * side > 0:
            self.entry = price
        if order is not None and order.submit.stop_ticks and self.lots * side > 0:
            self.stop = order.submit.stop_ticks
        elif not self.lots or before * self.lots < 0:
            self.stop = 0
        fill = Filled(
            client_id=client_id,
            time_ns=self.now_ns,
            venue_ns=self.now_ns,
            exec_id=f"e{len(self.fills)}",
            symbol=S,
            side=side,
            qty_lots=lots,
            price_ticks=price,
            liquidity=Liquidity.TAKER,
            fee_e8=0,
            leaves_lots=0,
            venue_order_id=venue_order_id or (f"v-{client_id}" if client_id else "x"),
            execution=kind,
        )
        self.fills.append(fill)
        self.outbox.append(fill)
        if order is not None:
            self._report(client_id)
        self.outbox.append(self.position())

    def position(self) -> PositionReport:
        entry = round(self.entry * TICK_E8) if self.lots else 0
        return PositionReport(
            symbol=S,
            lots=self.lots,
            entry_e8=entry,
            stop_ticks=self.stop,
            liquidation_ticks=self.liquidation_ticks,
            venue_ns=self.now_ns,
        )

    def _report(self, client_id: str) -> None:
        self.orders[client_id].updated_ns = self.now_ns
        self.outbox.append(self._state(client_id))

    def _state(self, client_id: str) -> OrderReport:
        order = self.orders[client_id]
        return OrderReport(
            client_id=client_id,
            time_ns=self.now_ns,
            venue_ns=order.updated_ns,
            venue_order_id=f"v-{client_id}",
            symbol=S,
            side=order.submit.side,
            state=order.state,
            price_ticks=order.price,
            qty_lots=order.qty,
            filled_lots=order.filled,
            reduce_only=order.submit.reduce_only,
        )


class Desk:
    """The log's side: orders, account, requests and reconciliation, driven as the core drives them.

    ``reaches`` decides of each request whether it arrives and whether its answer returns.
    """

    def __init__(self, venue: Venue, given: Settings | None = None) -> None:
        self.venue, self.settings = venue, given or settings()
        self.now_ns = venue.now_ns
        self.orders, self.account = Orders(), Account({S: BUILT_IN[S]})
        self.requests = Requests(2 * SECOND_NS)
        self.said: list[Say] = []
        self.recorded = b"{}"  #: of reconciliation, in the log
        self.sent: list[tuple[int, Send]] = []
        self.evidence: list[Event] = []
        self._flights: list[Send] = []
        self.reaches: Callable[[Send], tuple[bool, bool]] = lambda send: (True, True)
        self.hears = True  #: the private stream
        self._build(None, None)

    def _build(self, state: ReconciliationState | None, safety: object) -> None:
        self.safety = Safety((S,), self.settings.risk, self._emit, safety)
        self.fate = Reconciliation(
            self.orders,
            self.account,
            self.requests,
            self.safety,
            {S: BUILT_IN[S]},
            self.settings,
            self._emit,
            state,
        )
        self.exposure = Exposure(
            {S: BUILT_IN[S]}, self.account, self.settings, True, Emitter(self._emit).say
        )
        self.exposure.govern(self.safety, self.fate.look_again)

    def _emit(self, effect: Effect) -> None:
        if isinstance(effect, Say):
            self.said.append(effect)
        elif isinstance(effect, Append) and effect.kind == "section/reconciliation":
            self.recorded = effect.body
        elif isinstance(effect, Send):
            self.sent.append((self.now_ns, effect))
            self._flights.append(effect)

    # -- driving ---------------------------------------------------------------------------------

    def start(self) -> None:
        self.fate.protection.mark(S, float(MID))
        self.fate.start(self.now_ns)
        self.run(0.5)

    def crash(self) -> None:
        """The process ends here; another goes on from log and checkpoint."""
        self._flights.clear()
        state, safety = self.recorded, self.safety.snapshot()
        self.requests.restore(self.requests.snapshot())
        self._build(msgspec.json.decode(state, type=ReconciliationState), safety)

    def submit(self, client_id: str, lots: int = 10, **fields: object) -> Order:
        side = int(fields.pop("side", 1))
        stop = self.fate.protection.entry_stop(S, side, float(MID))
        action = Submit(
            client_id=client_id,
            symbol=S,
            side=side,
            qty_lots=lots,
            price_ticks=MID,
            **{"stop_ticks": stop} | fields,
        )
        order = self.orders.sent(action, "p", self.now_ns)
        self._emit(self.requests.open(self.now_ns, action))
        self.settle()
        return order

    def request(self, action: Amend | Cancel) -> None:
        self.orders.requested(action, self.now_ns)
        self._emit(self.requests.open(self.now_ns, action, S))
        self.settle()

    def run(self, seconds: float, step_ms: int = 100) -> None:
        """Let time pass."""
        for _ in range(round(seconds * 1000 / step_ms)):
            self.now_ns += step_ms * MS_NS
            self.venue.now_ns = self.now_ns
            for send in list(self.requests.under_way.values()):
                if send.deadline_ns <= self.now_ns:
                    self._expire(send)
            self.settle()

    def settle(self) -> None:
        """What is under way arrives, and what follows at once follows."""
        for _ in range(200):
            self._hear()
            if 0 < self.fate.next_ns <= self.now_ns:
                self.fate.step(self.now_ns)
            while made := self.fate.made():
                self._learn(made)
            if not self._flights and not self.venue.outbox:
                return
            flights, self._flights = self._flights, []
            for send in flights:
                arrives, returns = self.reaches(send)
                answer = self.venue.take(send) if arrives else []
                if arrives and returns:
                    self.answer(send, answer)
        raise AssertionError("never at rest")

    def answer(self, send: Send, evidence: Sequence[Evidence]) -> None:
        if self.requests.answered(send.number) is not None:
            self._learn(evidence, send)
            self.fate.answered(self.now_ns, send)

    def _expire(self, send: Send) -> None:
        self.requests.expired(send.number)
        lost = self.fate.lost(self.now_ns, send, "no answer")
        if lost is not None:
            self._fold(lost)
        self.fate.expired(self.now_ns, send)

    def _hear(self) -> None:
        said, self.venue.outbox = self.venue.outbox, []
        if self.hears:
            self._learn(said)

    def tell(self, *evidence: Evidence) -> None:
        """A frame of the private stream by hand."""
        self._learn(evidence)
        self.settle()

    def link(self, up: bool) -> None:
        self.fate.link(self.now_ns, Link(stream="private", up=up))
        self.hears = up
        self.settle()

    def _learn(self, evidence: Sequence[Evidence], send: Send | None = None) -> None:
        for told in evidence:
            for piece in self.fate.unfold(told):
                if isinstance(piece, OrderEvent):
                    self._fold(piece)
                self.fate.evidence(self.now_ns, piece, send)
                self.exposure.evidence(self.now_ns, piece)

    def _fold(self, event: Event) -> None:
        self.evidence.append(event)
        self.orders.apply(event)
        if isinstance(event, Filled):
            self.account.apply(event)

    # -- what is so ------------------------------------------------------------------------------

    @property
    def lots(self) -> int:
        return self.account.position_lots(S)

    def lines(self, event: str) -> list[Say]:
        return [say for say in self.said if say.event == event]

    def bodies(self, kind: type) -> list[object]:
        return [send.body for _, send in self.sent if isinstance(send.body, kind)]

    def agrees(self) -> bool:
        """Log and venue state the same orders and position."""
        theirs = {c: o for c, o in self.venue.orders.items() if not o.state.is_final}
        ours = {o.client_id for o in self.orders.open()}
        return set(theirs) == ours and self.lots == self.venue.lots
