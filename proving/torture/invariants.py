"""What has to hold in every run, whatever goes wrong; `Judge` watches a run and says what did not.

The list is in words in docs/torture.md; the numbers are the same. Positions, orders and money are counted
at the venue, which nothing of ours computes.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from execution.account import Account
from execution.order_machine import Orders
from execution.orders import OrderState, Submit
from live import protection
from live.bybit.codec import Call
from live.messages import Answer, Command, Effect, Input, Link, PrivateFrame, Query, QueryKind, Send
from market.units import E8, MS_NS, SECOND_NS
from proving.sandbox.accounts import Client, VenueOrder
from proving.sandbox.exchange import SandboxExchange
from proving.torture.network import Heap
from proving.torture.process import Process

#: T: a position is without a stop at the venue no longer than this, while the process runs: what the worker
#: tries to arm it for, and the time to close it.
UNPROTECTED_NS: Final = protection.UNPROTECTED_NS + 5 * SECOND_NS
#: How long after the faults have ended an order has to be sent and filled.
LIVELY_NS: Final = 25 * SECOND_NS
#: A request is sent again after its receive window and this at the earliest.
ABSENCE_NS: Final = 7 * SECOND_NS
#: What others do to a position is heard of within this, also where a stream ended unnoticed.
UNHEARD_NS: Final = 12 * SECOND_NS
#: Positions are limited at the price of an order, and counted at mark.
TOLERANCE: Final = 1.01
#: What has to be known before a new process opens anything.
_NEEDED: Final = {QueryKind.OPEN_ORDERS, QueryKind.EXECUTIONS, QueryKind.POSITION}
_STATES: Final = {
    "Filled": OrderState.FILLED,
    "Cancelled": OrderState.CANCELLED,
    "Rejected": OrderState.REJECTED,
}


class Judge:
    """Watches a run over all its processes; ``violations`` are its findings, each with its number."""

    def __init__(
        self,
        exchange: SandboxExchange,
        heap: Heap,
        client: Client,
        symbols: tuple[str, ...],
        limit_usdt: float,
    ) -> None:
        self.violations: list[str] = []
        self.counts: Counter[str] = Counter()
        self.intents: dict[str, Submit] = {}  #: every order that a log says was to be sent
        self.halted: set[str] = set()  #: symbols, by an operator or by an unknown execution
        self.unknown: dict[
            str, str
        ] = {}  #: id of an unknown execution → its symbol, until it is read
        self.faults_end_ns = 1 << 62
        self._exchange, self._heap, self._client = exchange, heap, client
        self._symbols = symbols
        self._limit_usdt = limit_usdt
        self._left: dict[str, tuple[Submit, int]] = {}  #: by client id, and when
        self._asked: dict[int, QueryKind] = {}
        self._known: set[QueryKind] = set()
        self._since_ns: int | None = None
        self._watched_ns = 0
        self._exposed_ns: dict[str, int] = {}

    def found(self, number: int, text: str) -> None:
        """A violation of an invariant."""
        at_s = (self._heap.now_ns - self._exchange.start_ns) / SECOND_NS
        self.violations.append(f"{number}: {text} (at {at_s:.3f} s)")

    # -- while it runs -----------------------------------------------------------------------------

    def began(self) -> None:
        """A process begins, or what the venue says was not heard: nothing is known of it yet."""
        self._known.clear()
        self._asked.clear()

    def given(self, process: Process, now_ns: int, body: Input) -> None:
        if isinstance(body, Link) and body.stream == "private":
            self.began()
        if isinstance(body, Command) and body.command in ("halt", "resume"):
            self.halted = set(self._symbols if body.command == "halt" else ())
        if self.unknown and isinstance(body, Answer | PrivateFrame):
            text = body.body if isinstance(body, Answer) else body.frame
            for exec_id in [name for name in self.unknown if name.encode() in text]:
                self.halted.add(self.unknown.pop(exec_id))
        if isinstance(body, Answer) and body.body.startswith(b'{"complete":true'):
            kind = self._asked.pop(body.request, None)
            if kind is not None:
                self._known.add(kind)

    def made(self, process: Process, now_ns: int, effect: Effect) -> None:
        if not isinstance(effect, Send):
            return
        body = effect.body
        self.counts["requests"] += 1
        if isinstance(body, Query):
            self._asked[effect.number] = body.kind
        elif isinstance(body, Submit):
            self.counts["orders"] += 1
            self.counts["orders after the faults"] += self._heap.now_ns > self.faults_end_ns
            self._new_order(body)

    def left(self, process: Process, submit: Submit) -> None:
        """A new order leaves. One that a process made and died with left no trace, and uses no id."""
        client_id, now_ns = submit.client_id, self._heap.now_ns
        before, before_ns = self._left.get(client_id, (submit, now_ns - ABSENCE_NS))
        if before != submit:
            self.found(2, f"{client_id} was used for another order before")
        elif client_id in self._client.by_link_id:
            self.found(2, f"{client_id} was sent again, and the venue has it")
        elif now_ns < before_ns + ABSENCE_NS:
            self.found(2, f"{client_id} was sent again before its absence could be proven")
        self._left[client_id] = submit, now_ns

    def _new_order(self, submit: Submit) -> None:
        client_id = submit.client_id
        self.intents[client_id] = submit
        if submit.reduce_only:
            return
        if not self._known >= _NEEDED:
            missing = ", ".join(sorted(_NEEDED - self._known))
            self.found(10, f"{client_id} was sent before {missing} were known")
        if submit.symbol in self.halted:
            self.found(10, f"{client_id} was sent after a halt")

    def carried_out(self, process: Process, call: Call) -> None:
        if call.path in ("order/create", "order/amend") and not call.params.get("reduceOnly"):
            self._check_limits(str(call.params.get("orderLinkId")))

    def _check_limits(self, link_id: str) -> None:
        """The position with every open order of a side filled."""
        order = self._client.by_link_id.get(link_id)
        if order is None or order.reduce_only:
            return
        opening = [
            o
            for o in self._client.open.values()
            if not o.reduce_only and (o.symbol, o.side) == (order.symbol, order.side)
        ]
        position = self._client.position_lots(order.symbol)
        lots = order.side * position + sum(o.leaves_lots for o in opening)
        lots -= self._moved_lots(order.symbol, order.side)
        usdt = lots * self._lot_e8(order.symbol) / E8
        if usdt > self._limit_usdt * TOLERANCE:
            self.found(3, f"{link_id}: {usdt:,.0f} USDT with every open order filled")

    def _moved_lots(self, symbol: str, side: int) -> int:
        """Lots by which others moved the position to a side, and the worker may not have heard of it."""
        codec, since_ms = (
            self._exchange.tapes[symbol].codec,
            (self._heap.now_ns - UNHEARD_NS) // MS_NS,
        )
        lots = 0
        for row in reversed(self._client.executions):
            if int(row["execTime"]) < since_ms:
                break
            if row["symbol"] == symbol and not row["orderLinkId"] and row["execType"] != "Funding":
                lots += codec.lots(row["execQty"]) if (row["side"] == "Buy") == (side > 0) else 0
        return lots

    def _lot_e8(self, symbol: str) -> int:
        """Value of a lot at mark."""
        instrument = self._exchange.instruments[symbol]
        return round(self._exchange.marks[symbol] * float(instrument.lot_size))

    def watch(self, process: Process | None) -> None:
        """Time has passed."""
        now_ns = self._heap.now_ns
        passed_ns, self._watched_ns = now_ns - self._watched_ns, now_ns
        runs = process is not None and process.is_alive and now_ns >= process.busy_until_ns
        for symbol in self._symbols:
            lots, before_ns = self._client.position_lots(symbol), self._exposed_ns.get(symbol, 0)
            if not lots or "StopLoss" in self._client.full_stops(symbol):
                self._exposed_ns[symbol] = 0
            elif runs:
                self._exposed_ns[symbol] = before_ns + passed_ns
                if before_ns <= UNPROTECTED_NS < before_ns + passed_ns:
                    self.found(8, f"a position of {lots} lots in {symbol} without a stop")

    # -- at the end --------------------------------------------------------------------------------

    def settled(self, orders: Orders, account: Account, left: list[str]) -> None:
        """The faults have ended, the worker has stopped and said what is left."""
        self._check_orders(orders)
        for symbol in self._symbols:
            self._check_account(account, symbol)
        for client_id in self.intents:
            order = orders.by_id.get(client_id)
            if order is not None and not order.state.is_final and client_id not in " ".join(left):
                self.found(
                    4, f"{client_id} ended as {order.state}, its evidence {order.evidence!r}"
                )
        open_orders = [order.link_id or order.order_id for order in self._client.open.values()]
        lots = sum(abs(self._client.position_lots(symbol)) for symbol in self._symbols)
        if (lots or open_orders) and not left:
            self.found(
                12, f"{lots} lots and {len(open_orders)} orders are left, and nothing says so"
            )

    def _check_orders(self, orders: Orders) -> None:
        for client_id in self.intents:
            theirs, ours = self._client.by_link_id.get(client_id), orders.by_id.get(client_id)
            if ours is None:
                if theirs is not None and theirs.is_open:
                    self.found(1, f"{client_id} is open at the venue, and unknown here")
            elif theirs is None:
                if ours.state is not OrderState.REJECTED:
                    self.found(1, f"{client_id} never was at the venue, and is {ours.state} here")
            else:
                self._compare(client_id, theirs, ours.state, ours.filled_lots)

    def _compare(self, client_id: str, theirs: VenueOrder, state: OrderState, filled: int) -> None:
        expected = _STATES.get(theirs.status)
        if expected is not None and state is not expected:
            self.found(1, f"{client_id} is {theirs.status} at the venue, and {state} here")
        if filled != theirs.executed_lots:
            self.found(5, f"{client_id}: {theirs.executed_lots} lots at the venue, {filled} here")

    def _check_account(self, account: Account, symbol: str) -> None:
        ours, theirs = account.holdings[symbol], self._client.account.holdings[symbol]
        for number, name in (
            (1, "position_lots"),
            (5, "bought_lots"),
            (5, "sold_lots"),
            (6, "turnover_e8"),
            (7, "fees_e8"),
            (7, "funding_e8"),
        ):
            here, there = getattr(ours, name), getattr(theirs, name)
            if here != there:
                self.found(number, f"{symbol}: {name} is {there} at the venue, and {here} here")
        # Signed value of all trades: independent of their order, unlike the parts.
        here, there = ours.cost_e8 - ours.realised_e8, theirs.cost_e8 - theirs.realised_e8
        if here != there:
            self.found(7, f"{symbol}: the trades' value is {there} at the venue, and {here} here")

    def check_liveliness(self, filled_before: int) -> None:
        """After the faults orders were sent and filled again."""
        filled = self._filled() - filled_before
        self.counts["fills after the faults"] = filled
        if not self.counts["orders after the faults"] or not filled:
            sent = self.counts["orders after the faults"]
            self.found(9, f"{sent} orders sent and {filled} lots filled after the faults ended")

    def _filled(self) -> int:
        return sum(
            o.executed_lots for link, o in self._client.by_link_id.items() if link in self.intents
        )

    filled = property(_filled)
