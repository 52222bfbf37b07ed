"""The exchange in simulated time: running markets, clients and their orders; one thread, no network.

Its state is a function of the profile, the seed and the requests with their times, whatever the steps
that time advances in: it acts at fixed cycles of 20 ms and at requests. `account_book` books what happens,
`private_messages` tells clients of it.

A market covers one UTC day of simulated time; the first may begin at any second. At midnight the next day's
market takes over with books of its own, and open orders are entered again, oldest first, behind the orders
that rest there.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Final

import msgspec

from execution.margin import MarginMode, Terms
from market.units import DAY_NS, E8, HOUR_NS, MINUTE_NS, MS_NS, SECOND_NS, day_start_ns, utc_date
from market.wire.encode import Encoder
from proving.sandbox.account_book import AccountBook, IdGenerator
from proving.sandbox.accounts import Client, VenueOrder
from proving.sandbox.conditional import ConditionalOrders
from proving.sandbox.listing import LISTINGS
from proving.sandbox.private_messages import PrivateMessage, PrivateMessages
from proving.sandbox.tape import (
    DEEP,
    DEEP_NS,
    MARKET_DEPTHS,
    TICKER_NS,
    Levels,
    Listener,
    PublicTape,
)
from proving.synthetic.background import BACKGROUND
from proving.synthetic.marketplace import ExecutionReport, SyntheticMarket, built_in
from proving.synthetic.matching import Status, TimeInForce
from proving.synthetic.profiles import Profile
from proving.synthetic.publication import TOPICS

#: Simulated time starts on this day at midnight, unless said otherwise, and clients come so much later.
FIRST_DAY: Final = "2026-03-01"
START_NS: Final = 300 * SECOND_NS
#: How long before midnight the next day's markets begin to be built.
PREBUILD_NS: Final = 30 * MINUTE_NS
DEPOSIT_E8: Final = 100_000 * E8
#: Period of marks, triggers and everything else that follows prices and positions.
CYCLE_NS: Final = 20 * MS_NS
FUNDING_NS: Final = 8 * HOUR_NS

#: Latencies of requests by the median, drawn.
_LATENCIES: Final = (0.5, 0.7, 0.9, 1.0, 1.2, 1.8, 6.0)

TIMES_IN_FORCE: Final = {
    "GTC": TimeInForce.GOOD_TILL_CANCELLED,
    "IOC": TimeInForce.IMMEDIATE_OR_CANCEL,
    "FOK": TimeInForce.FILL_OR_KILL,
    "PostOnly": TimeInForce.POST_ONLY,
}
#: ``rejectReason`` of an order that the matching engine cancelled on arrival, by its status there.
_ARRIVAL_REASONS: Final = {
    Status.WOULD_TAKE: "EC_PostOnlyWillTakeLiquidity",
    Status.CANNOT_FILL: "EC_NoEnoughQtyToFill",
}
#: ``rejectReason`` of a cancelled order by its ``cancelType``.
_CANCEL_REASONS: Final = {"CancelByUser": "EC_PerCancelRequest", "CancelBySmp": "EC_BySelfMatch"}


class SandboxExchange:
    """``on_frame`` is called with the topic and bytes of every public frame, ``on_message`` with every
    private message, each in order; public frames are made of the topics that ``is_read`` says.

    Clients come ``start_ns`` after ``begins_ns``. ``latency_ms`` is the median time between a request's answer
    and its arrival at the market, so that fills and cancels race; 0 for none. ``prebuilds``: the next day's markets are built by a
    thread, before midnight; without it there is no thread.
    ``depths`` are the books that are published, of those of the market and in its order.
    """

    def __init__(
        self,
        profile: Profile,
        seed: int,
        symbols: Sequence[str] = ("BTCUSDT",),
        *,
        clients: int = 2,
        deposit_e8: int = DEPOSIT_E8,
        begins_ns: int = day_start_ns(FIRST_DAY),
        start_ns: int = START_NS,
        latency_ms: float = 0.0,
        cycle_ns: int = CYCLE_NS,
        prebuilds: bool = True,
        depths: Sequence[int] = MARKET_DEPTHS,
        on_frame: Listener = lambda topic, frame: None,
        is_read: Callable[[str], bool] = lambda topic: True,
        on_message: Callable[[PrivateMessage], None] = lambda message: None,
    ) -> None:
        self.profile, self.seed = profile, seed
        self._topics = [topic for topic in TOPICS if topic[0] in depths]
        self.instruments = {symbol: built_in(symbol) for symbol in symbols}
        self.tapes = {
            symbol: PublicTape(item, on_frame, is_read, partial(self._deep_levels, symbol), depths)
            for symbol, item in self.instruments.items()
        }
        self.now_ns = begins_ns
        keys = random.Random(f"{seed}/keys")
        self.clients = [
            Client(
                owner,
                "".join(keys.choices("ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnpqrstuvwxyz", k=18)),
                f"{keys.getrandbits(144):036x}",
                self.instruments,
                {
                    symbol: Terms(tiers=LISTINGS[symbol].tiers, mode=MarginMode.CROSS)
                    for symbol in self.instruments
                },
                deposit_e8,
                self.now_ms,
            )
            for owner in range(BACKGROUND + 1, BACKGROUND + 1 + clients)
        ]
        self._ids = IdGenerator(seed)
        self.account_book = AccountBook(self.tapes, self.clients, self._ids)
        self.private_messages = PrivateMessages(seed, self.tapes, self.marks, on_message)
        self.conditional = ConditionalOrders(
            self.tapes, self.private_messages, self.submit, self.new_order
        )
        self._encoders = {symbol: Encoder(item) for symbol, item in self.instruments.items()}
        self.latency_ms = latency_ms
        self._dice = random.Random(f"{seed}/latency")
        self._numbers = itertools.count()
        #: heap of (when, number, what) arrives at the market, and when the last of a client does
        self._in_flight: list[tuple[int, int, Callable[[], None]]] = []
        self._arrivals_ns: dict[Client, int] = {}
        self._orders: dict[str, dict[int, VenueOrder]] = {}  #: by symbol and handle
        self._changed_positions: dict[tuple[Client, str], None] = {}  #: in order of change
        self._is_day_turn = False  #: while open orders are entered into the next day's markets
        # Building a day's markets takes seconds of wall time; a thread does it before midnight.
        self._builder = ThreadPoolExecutor(1, "markets") if prebuilds else None
        self._next_markets: Future[dict[str, SyntheticMarket]] | None = None
        # Longer cycles are as good as long as there is no order: they only follow prices.
        self.cycle_ns = SECOND_NS
        self._open_day()
        self.advance(self.now_ns + start_ns)
        self.cycle_ns, self.start_ns = cycle_ns, self.now_ns

    @property
    def now_ms(self) -> int:
        return self.now_ns // MS_NS

    @property
    def marks(self) -> dict[str, int]:
        """Mark prices at 1e-8 by symbol, as of the last cycle."""
        return self.account_book.marks

    # -- time --------------------------------------------------------------------------------------

    @property
    def next_cycle_ns(self) -> int:
        """When prices and positions are followed next."""
        return self.now_ns - self.now_ns % self.cycle_ns + self.cycle_ns

    @property
    def next_ns(self) -> int:
        """When something happens next: a cycle, a request's arrival or a private message."""
        times = [self.next_cycle_ns, *(due[0] for due in self._in_flight[:1])]
        message_ns = self.private_messages.next_ns
        return min(times if message_ns is None else [*times, message_ns])

    def advance(self, until_ns: int) -> None:
        """Advance simulated time."""
        while self.now_ns < until_ns:
            stop_ns = min(until_ns, self.next_cycle_ns, *(due[0] for due in self._in_flight[:1]))
            self._run_markets(tuple(self.tapes), stop_ns)
            self.now_ns = stop_ns
            if stop_ns % self.cycle_ns == 0:
                self._cycle()
            self._arrive()
            self.private_messages.release(stop_ns)

    def _cycle(self) -> None:
        """Everything that happens at fixed times."""
        now_ns = self.now_ns
        self.account_book.update_marks()
        self._follow_up(tuple(self.tapes))
        if now_ns % TICKER_NS == 0:
            self._publish()
        if now_ns % SECOND_NS == 0:
            self._liquidate()
        if now_ns % FUNDING_NS == 0:
            for symbol in self.tapes:
                self.settle_funding(symbol)
        if now_ns % DAY_NS == DAY_NS - PREBUILD_NS and self._builder is not None:
            self._next_markets = self._builder.submit(self._build_markets, now_ns + PREBUILD_NS)
        if now_ns % DAY_NS == 0:
            self._open_day()

    def _open_day(self) -> None:
        """Switch to the markets of the day that begins now, and enter open orders there."""
        prebuilt, self._next_markets = self._next_markets, None
        self.markets = prebuilt.result() if prebuilt else self._build_markets(self.now_ns)
        self._orders = {symbol: {} for symbol in self.instruments}
        resting = [
            order
            for client in self.clients
            for order in client.open.values()
            if not order.is_in_flight
        ]
        self._is_day_turn = True
        for order in sorted(resting, key=lambda order: order.number):
            self.submit(order)
        self._is_day_turn = False

    def _build_markets(self, begins_ns: int) -> dict[str, SyntheticMarket]:
        """The markets of the day that begins at a midnight, or the first one's at their beginning."""
        day = utc_date(begins_ns)
        return {
            symbol: SyntheticMarket(
                self.profile, self.seed, symbol, day, item, begins_ns=begins_ns, topics=self._topics
            )
            for symbol, item in self.instruments.items()
        }

    def _run_markets(self, symbols: Sequence[str], until_ns: int) -> None:
        """Run markets up to a time and process their reports, oldest first."""
        reports: list[tuple[str, ExecutionReport]] = []
        for symbol in symbols:
            market = self.markets[symbol]
            self.tapes[symbol].apply(market.advance(max(until_ns, market.now_ns)))
            reports += [(symbol, report) for report in market.reports()]
        for symbol, report in sorted(reports, key=lambda entry: entry[1].exchange_ns):
            self._on_report(symbol, report)

    def _follow_up(self, symbols: Sequence[str]) -> None:
        """Adjust orders to changed positions, and trigger conditional orders at changed prices."""
        while self._changed_positions:
            client, symbol = next(iter(self._changed_positions))
            del self._changed_positions[client, symbol]
            self._trim_reduce_only(client, symbol)
            self.conditional.on_position_change(client, symbol, self.now_ns)
        for symbol in symbols:
            self.conditional.check(symbol, self.now_ns)

    def _publish(self) -> None:
        for tape in self.tapes.values():
            if not tape.values:
                continue
            if self.now_ns % DEEP_NS == 0:
                tape.publish_deep_book(self.now_ns)
            tape.publish_ticker(self.now_ns)

    def _deep_levels(self, symbol: str, side: int) -> Levels:
        return self.markets[symbol].levels(side, DEEP)

    # -- orders ------------------------------------------------------------------------------------

    def new_order(
        self,
        client: Client,
        symbol: str,
        side: int,
        ticks: int,
        lots: int,
        *,
        is_market: bool = False,
        time_in_force: str = "IOC",
        link_id: str = "",
        reduce_only: bool = False,
        close_on_trigger: bool = False,
    ) -> VenueOrder:
        """Create an order without submitting it."""
        tape = self.tapes[symbol]
        return VenueOrder(
            client=client,
            codec=tape.codec,
            order_id=self._ids.next("order"),
            number=self._ids.counts["order"],
            link_id=link_id,
            side=side,
            is_market=is_market,
            ticks=ticks,
            lots=lots,
            time_in_force=time_in_force,
            reduce_only=reduce_only,
            close_on_trigger=close_on_trigger,
            created_ms=self.now_ms,
            updated_ms=self.now_ms,
            last_ticks=tape.last_ticks,
        )

    def enter(self, client: Client, action: Callable[[], None]) -> None:
        """Let a request that the gateway accepted arrive at the market, after the latency between them;
        those of a client arrive in order."""
        if not self.latency_ms:
            action()
            return
        drawn = _LATENCIES[self._dice.randrange(len(_LATENCIES))]
        due_ns = self.now_ns + round(self.latency_ms * drawn * MS_NS)
        due_ns = self._arrivals_ns[client] = max(due_ns, self._arrivals_ns.get(client, 0))
        heapq.heappush(self._in_flight, (due_ns, next(self._numbers), action))

    def _arrive(self) -> None:
        """What is due arrives."""
        while self._in_flight and self._in_flight[0][0] <= self.now_ns:
            heapq.heappop(self._in_flight)[2]()

    def submit(self, order: VenueOrder) -> None:
        """Submit an open order (it is in ``client.open``) to the market; it may be closed afterwards."""
        market, owner = self.markets[order.symbol], order.client.owner
        lots, time_in_force = order.lots - order.executed_lots, TIMES_IN_FORCE[order.time_in_force]
        if order.smp_type != "None" and order.time_in_force != "PostOnly" and not self._is_day_turn:
            matchable = self._prevent_self_match(order, lots)
            if matchable < lots:
                order.cancel_type, order.reject_reason = "CancelBySmp", "EC_BySelfMatch"
                if not matchable or order.time_in_force == "FOK":
                    order.status = "Cancelled"
                    order.client.close(order)
                    sequence = self.tapes[order.symbol].sequence(self.now_ns)
                    self.private_messages.order_changed(order, [], self.now_ns, sequence)
                    return
                lots, time_in_force = matchable, TimeInForce.IMMEDIATE_OR_CANCEL
        if order.is_market:
            order.handle = market.take(order.side, lots, order.ticks, owner)
        else:
            order.handle = market.submit(order.side, order.ticks, lots, time_in_force, owner)
        self._orders[order.symbol][order.handle] = order
        self._process(order.symbol)

    def _prevent_self_match(self, order: VenueOrder, lots: int) -> int:
        """Self-match prevention: cancel the client's resting orders that an incoming one would match, if
        its type says so; the lots that it may execute."""
        market = self.markets[order.symbol]
        crossed = [
            own
            for own in order.client.open.values()
            if own.symbol == order.symbol
            and own.side == -order.side
            and order.side * (order.ticks - own.ticks) >= 0
            and market.lots_ahead(own.handle) is not None
        ]

        def priority(own: VenueOrder) -> tuple[int, int]:
            return order.side * own.ticks, market.lots_ahead(own.handle) or 0

        for own in sorted(crossed, key=priority):
            levels = market.levels(own.side)
            better = sum(qty for ticks, qty in levels if order.side * (ticks - own.ticks) < 0)
            matchable = better + (market.lots_ahead(own.handle) or 0)
            if matchable >= lots:
                break
            if order.smp_type != "CancelTaker":
                own.smp_order_id = order.order_id
                self.cancel(own, "CancelBySmp")
            if order.smp_type != "CancelMaker":
                order.smp_order_id = own.order_id
                return matchable
        return lots

    def cancel(self, order: VenueOrder, cancel_type: str = "CancelByUser") -> None:
        """Cancel an order that is in the market, or on its way there."""
        order.cancel_type = cancel_type
        order.reject_reason = _CANCEL_REASONS.get(cancel_type, "EC_NoError")
        if not order.handle:
            order.status, order.updated_ms = "Cancelled", self.now_ms
            order.client.close(order)
            sequence = self.tapes[order.symbol].sequence(self.now_ns)
            self.private_messages.order_changed(order, [], self.now_ns, sequence)
            return
        self.markets[order.symbol].cancel(order.handle)
        self._process(order.symbol)

    def report_too_late(self, order: VenueOrder) -> None:
        """Say that an order was filled before its cancel arrived; the order itself stays as it was."""
        told = msgspec.structs.replace(
            order, cancel_type="CancelByUser", reject_reason="EC_OrigClOrdIDDoesNotExist"
        )
        sequence = self.tapes[order.symbol].sequence(self.now_ns)
        self.private_messages.order_changed(told, [], self.now_ns, sequence)

    def amend(self, order: VenueOrder, ticks: int, lots: int) -> None:
        """Amend price and total quantity, which must exceed the executed quantity."""
        remaining = lots - order.executed_lots
        order.ticks, order.lots, order.updated_ms = ticks, lots, self.now_ms
        self.markets[order.symbol].amend(
            order.handle, ticks, remaining, TIMES_IN_FORCE[order.time_in_force]
        )
        self._process(order.symbol)

    def _process(self, symbol: str) -> None:
        """Run a market to now, so that a request just sent takes effect."""
        self._run_markets((symbol,), self.now_ns)
        self._follow_up((symbol,))
        self.private_messages.release(self.now_ns)

    def _on_report(self, symbol: str, report: ExecutionReport) -> None:
        """Book the executions of a report, and update its order."""
        order, market = self._orders[symbol][report.handle], self.markets[symbol]
        status, at_ns, sequence = report.status, report.exchange_ns, report.sequence
        executions = []
        for n, execution in enumerate(report.executions):
            exec_id = self._encoders[symbol].trade_id(sequence, report.place + n)
            row = self.account_book.book_trade(
                order, execution, status is None, exec_id, at_ns, sequence
            )
            executions.append(row)
            self._changed_positions[order.client, symbol] = None
        if not self._is_day_turn or executions:
            order.updated_ms = at_ns // MS_NS
        if status in _ARRIVAL_REASONS and order.executed_lots == 0:
            order.reject_reason = _ARRIVAL_REASONS[status]
        if status is Status.WOULD_TAKE and market.lots_ahead(order.handle) is not None:
            # A resting post-only order was amended to a price at which it would take: cancel it.
            order.reject_reason = _ARRIVAL_REASONS[status]
            market.cancel(order.handle)
            self._run_markets((symbol,), self.now_ns)
            return
        if status is Status.RESTING or (status is None and report.left):
            order.status = "PartiallyFilled" if order.executed_lots else "New"
            if self._is_day_turn and not executions:
                return
        elif order.executed_lots == order.lots:
            self._close(symbol, order, "Filled")
        else:
            if status is Status.EXPIRED:
                order.reject_reason = (
                    "EC_CancelForNoFullFill" if order.executed_lots else "EC_NoImmediateQtyToFill"
                )
            self._close(symbol, order, "Cancelled")
        sequence = sequence or self.tapes[symbol].sequence(at_ns)
        self.private_messages.order_changed(order, executions, at_ns, sequence)
        if executions and order.stops is not None:
            filled = sum(execution.lots for execution in report.executions)
            self.conditional.on_fill(order, filled, at_ns)

    def _close(self, symbol: str, order: VenueOrder, status: str) -> None:
        order.status = status
        order.client.close(order)
        del self._orders[symbol][order.handle]

    def _trim_reduce_only(self, client: Client, symbol: str) -> None:
        """Cut or cancel reduce-only orders that exceed the position, the newest first."""
        position = client.position_lots(symbol)
        for order in list(client.open.values()):
            if order.symbol != symbol or not order.only_reduces or not order.is_open:
                continue
            if order.is_in_flight:  # on arrival it is cut to the position
                continue
            room = max(0, -order.side * position)
            if room == 0:
                self.cancel(order, "CancelByReduceOnly")
                continue
            if order.leaves_lots > room:
                self.amend(order, order.ticks, order.executed_lots + room)
            position += order.side * order.leaves_lots

    # -- funding and liquidation -------------------------------------------------------------------

    def settle_funding(self, symbol: str) -> None:
        """Settle funding on all positions of a symbol."""
        for client, row in self.account_book.settle_funding(symbol, self.now_ns):
            self.private_messages.funding_settled(client, row, self.now_ns)

    def _liquidate(self) -> None:
        """Transfer positions whose margin is used up to the insurance fund."""
        self.account_book.update_marks()
        for client in self.clients:
            if client.held_symbols():
                self.liquidate(client, client.margin.liquidated(self.marks))

    def liquidate(self, client: Client, symbols: Collection[str], ticks: int = 0) -> None:
        """Cancel a client's orders in symbols, and transfer its positions to the insurance fund, at their
        bankruptcy prices or at one given."""
        for order in list(client.open.values()):
            if order.symbol in symbols:
                self.cancel(order, "CancelAllBeforeLiq")
        for order in list(client.untriggered.values()):
            if order.symbol in symbols:
                self.conditional.deactivate(order, "CancelAllBeforeLiq", self.now_ns)
        held = [symbol for symbol in symbols if client.position_lots(symbol)]
        book = self.account_book
        prices = {s: ticks or book.bankruptcy_ticks(client, s, self.marks) for s in held}
        for symbol, price in prices.items():
            self.take_over(client, symbol, price, abs(client.position_lots(symbol)))

    def take_over(
        self, client: Client, symbol: str, ticks: int, lots: int, exec_type: str = "BustTrade"
    ) -> None:
        """Transfer so much of a position to the insurance fund at a price."""
        side = -1 if client.position_lots(symbol) > 0 else 1
        order = self.new_order(client, symbol, side, ticks, lots, is_market=True)
        row = self.account_book.take_over(order, self.now_ns, exec_type)
        self.private_messages.order_changed(order, [row], self.now_ns, row["seq"])
        self._trim_reduce_only(client, symbol)
        self.conditional.on_position_change(client, symbol, self.now_ns)
