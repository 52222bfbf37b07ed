"""The exchange: running markets, clients and their orders, in time.

Everything here happens in simulated time and in one thread; the world is a function of the profile,
the seed and the requests with the times they came at, however finely time is let go on. What executions do to money is the `ledger`'s
affair; what clients are told of it, the `notices`'.

A market lasts for a day: at midnight (UTC, simulated) the next day's takes over with books of its
own, and open orders are entered again, oldest first, behind what rests there.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Final

from execution.margin import MarginMode, Terms
from market.units import DAY_NS, E8, MS_NS, SECOND_NS, day_start_ns
from proving.sandbox.ledger import Ledger, Names
from proving.sandbox.listing import LISTINGS
from proving.sandbox.notices import Notice, Notices
from proving.sandbox.tape import DEEP, DEEP_NS, TICKER_NS, Listener, Tape
from proving.sandbox.trading import Client, Order
from proving.sandbox.triggers import Triggers
from proving.synthetic.background import BACKGROUND
from proving.synthetic.encode import Encoder
from proving.synthetic.marketplace import ExecutionReport, SyntheticMarket, built_in
from proving.synthetic.matching import Status, TimeInForce
from proving.synthetic.profiles import Profile
from proving.synthetic.publication import TOPICS

#: The world begins on this day, so long after its midnight.
FIRST_DAY: Final = "2026-03-01"
START_S: Final = 300
#: How long before midnight the next day's markets are begun to be made.
AHEAD_NS: Final = 1800 * 1_000_000_000
DEPOSIT_E8: Final = 100_000 * E8
#: Prices and positions are looked at so often for what they mean to orders.
BEAT_NS: Final = 20_000_000
FUNDING_NS: Final = 8 * 3600 * 1_000_000_000


FORCES: Final = {
    "GTC": TimeInForce.GOOD_TILL_CANCELLED,
    "IOC": TimeInForce.IMMEDIATE_OR_CANCEL,
    "FOK": TimeInForce.FILL_OR_KILL,
    "PostOnly": TimeInForce.POST_ONLY,
}
#: Why an order that was not refused on arrival ended without resting.
_REASONS: Final = {
    Status.WOULD_TAKE: "EC_PostOnlyWillTakeLiquidity",
    Status.CANNOT_FILL: "EC_NoEnoughQtyToFill",
}


_SMP: Final = ("CancelBySmp", "EC_BySelfMatch")
_CANCELLED: Final = {"CancelByUser": "EC_PerCancelRequest", "CancelBySmp": "EC_BySelfMatch"}


def _unheard(topic: str, frame: bytes) -> None:
    """Nobody listens."""


def _untold(notice: Notice) -> None:
    """Nobody listens."""


class Exchange:
    """``listen`` is called with every public frame and its topic, ``tell`` with every notice to a
    client, each in order."""

    def __init__(
        self,
        profile: Profile,
        seed: int,
        symbols: Sequence[str] = ("BTCUSDT",),
        *,
        clients: int = 2,
        deposit_e8: int = DEPOSIT_E8,
        day: str = FIRST_DAY,
        listen: Listener = _unheard,
        tell: Callable[[Notice], None] = _untold,
    ) -> None:
        self.profile, self.seed = profile, seed
        self.instruments = {symbol: built_in(symbol) for symbol in symbols}
        self.tapes = {symbol: Tape(item, listen) for symbol, item in self.instruments.items()}
        self.requests = 0
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
                day_start_ns(day) // MS_NS,
            )
            for owner in range(BACKGROUND + 1, BACKGROUND + 1 + clients)
        ]
        self._names = Names(seed)
        self.ledger = Ledger(self.tapes, self.clients, self._names)
        self.notices = Notices(seed, self.tapes, self.ledger.marks, tell)
        self.triggers = Triggers(self.tapes, self.notices, self.enter, self.order)
        self._prints = {symbol: Encoder(item) for symbol, item in self.instruments.items()}
        self._orders: dict[str, dict[int, Order]] = {}  # by symbol and handle
        self._touched: dict[tuple[Client, str], None] = {}
        self._entering_again = False
        self.now_ns = day_start_ns(day)
        # A day's markets take seconds to make: they are made beside what goes on, which does not show.
        self._builder = ThreadPoolExecutor(1, "markets")
        self._coming: Future[dict[str, SyntheticMarket]] | None = None
        self._open_day()
        self.advance(self.now_ns + START_S * SECOND_NS)
        self.start_ns = self.now_ns

    # -- time --------------------------------------------------------------------------------------

    @property
    def now_ms(self) -> int:
        return self.now_ns // MS_NS

    def advance(self, until_ns: int) -> None:
        """Let time go on."""
        while self.now_ns < until_ns:
            stop_ns = min(until_ns, self.now_ns - self.now_ns % BEAT_NS + BEAT_NS)
            self._run(tuple(self.tapes), stop_ns)
            self.now_ns = stop_ns
            if stop_ns % BEAT_NS == 0:
                self._beat()
            self.notices.release(stop_ns)

    def _beat(self) -> None:
        """What is done at certain times, and not whenever somebody looks."""
        now_ns = self.now_ns
        self.ledger.mark()
        self._follow_up(tuple(self.tapes))
        if now_ns % TICKER_NS == 0:
            self._publish()
        if now_ns % SECOND_NS == 0:
            self._liquidate()
        if now_ns % FUNDING_NS == 0:
            for symbol in self.tapes:
                self.settle(symbol)
        if now_ns % DAY_NS == DAY_NS - AHEAD_NS:
            self._coming = self._builder.submit(self._markets_of, now_ns + AHEAD_NS)
        if now_ns % DAY_NS == 0:
            self._open_day()

    def _open_day(self) -> None:
        """The markets of the day that begins now."""
        coming, self._coming = self._coming, None
        self.markets = coming.result() if coming else self._markets_of(self.now_ns)
        self._orders = {symbol: {} for symbol in self.instruments}
        resting = [order for client in self.clients for order in client.open.values()]
        self._entering_again = True
        for order in sorted(resting, key=lambda order: order.number):
            self.enter(order)
        self._entering_again = False

    def _markets_of(self, midnight_ns: int) -> dict[str, SyntheticMarket]:
        """The markets of the day that begins at a midnight."""
        day = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=midnight_ns // SECOND_NS)
        name = day.date().isoformat()
        return {
            symbol: SyntheticMarket(
                self.profile, self.seed, symbol, name, instrument, topics=TOPICS
            )
            for symbol, instrument in self.instruments.items()
        }

    def _run(self, symbols: Sequence[str], until_ns: int) -> None:
        """Markets to a time, and what is heard of them, oldest first."""
        heard: list[tuple[str, ExecutionReport]] = []
        for symbol in symbols:
            market = self.markets[symbol]
            self.tapes[symbol].take(market.advance(max(until_ns, market.now_ns)))
            heard += [(symbol, report) for report in market.reports()]
        for symbol, report in sorted(heard, key=lambda entry: entry[1].exchange_ns):
            self._hear(symbol, report)

    def _follow_up(self, symbols: Sequence[str]) -> None:
        """What positions and prices that have changed mean for orders."""
        while self._touched:
            touched = next(iter(self._touched))
            del self._touched[touched]
            self._trim(*touched)
            self.triggers.follow(*touched, self.now_ns)
        for symbol in symbols:
            self.triggers.check(symbol, self.now_ns)

    def _publish(self) -> None:
        for symbol, tape in self.tapes.items():
            if not tape.values:
                continue
            if self.now_ns % DEEP_NS == 0:
                market = self.markets[symbol]
                tape.deepen(market.levels(1, DEEP), market.levels(-1, DEEP), self.now_ns)
            tape.tick(self.now_ns)

    def marks(self) -> dict[str, int]:
        """Mark prices at 1e-8 by symbol, as of the last beat."""
        return self.ledger.marks

    # -- orders ------------------------------------------------------------------------------------

    def enter(self, order: Order) -> None:
        """An order meets the market; it is open before, and may be closed after."""
        market, owner = self.markets[order.symbol], order.client.owner
        left, force = order.lots - order.executed_lots, FORCES[order.force]
        if order.smp_type != "None" and order.force != "PostOnly" and not self._entering_again:
            others = self._before_own(order, left)
            if others < left:
                order.cancel_type, order.reject_reason = _SMP
                if not others or order.force == "FOK":
                    order.status = "Cancelled"
                    order.client.close(order)
                    sequence = self.tapes[order.symbol].sequence(self.now_ns)
                    self.notices.order(order, [], self.now_ns, sequence)
                    return
                left, force = others, TimeInForce.IMMEDIATE_OR_CANCEL
        if order.market:
            order.handle = market.take(order.side, left, order.ticks, owner)
        else:
            order.handle = market.submit(order.side, order.ticks, left, force, owner)
        self._orders[order.symbol][order.handle] = order
        self._now(order.symbol)

    def _before_own(self, order: Order, left: int) -> int:
        """Lots that an incoming order can take before it meets one of its client's, if it may not.

        Of those that it would meet, the ones that are to give way are cancelled first.
        """
        market = self.markets[order.symbol]
        met = [
            own
            for own in order.client.open.values()
            if own.symbol == order.symbol
            and own.side == -order.side
            and order.side * (order.ticks - own.ticks) >= 0
            and market.lots_ahead(own.handle) is not None
        ]

        def turn(own: Order) -> tuple[int, int]:
            return order.side * own.ticks, market.lots_ahead(own.handle) or 0

        for own in sorted(met, key=turn):
            levels = market.levels(own.side)
            better = sum(lots for ticks, lots in levels if order.side * (ticks - own.ticks) < 0)
            others = better + (market.lots_ahead(own.handle) or 0)
            if others >= left:
                break
            if order.smp_type != "CancelTaker":
                own.smp_order_id = order.order_id
                self.cancel(own, "CancelBySmp")
            if order.smp_type != "CancelMaker":
                order.smp_order_id = own.order_id
                return others
        return left

    def cancel(self, order: Order, cancel_type: str = "CancelByUser") -> None:
        """Take an open order out of the market."""
        order.cancel_type = cancel_type
        order.reject_reason = _CANCELLED.get(cancel_type, "EC_NoError")
        self.markets[order.symbol].cancel(order.handle)
        self._now(order.symbol)

    def amend(self, order: Order, ticks: int, lots: int) -> None:
        """Another price or total quantity, more than is executed already."""
        force = FORCES[order.force]
        left = lots - order.executed_lots
        order.ticks, order.lots, order.updated_ms = ticks, lots, self.now_ms
        self.markets[order.symbol].amend(order.handle, ticks, left, force)
        self._now(order.symbol)

    def _now(self, symbol: str) -> None:
        """What comes of requests that were sent just now."""
        self._run((symbol,), self.now_ns)
        self._follow_up((symbol,))
        self.notices.release(self.now_ns)

    def _hear(self, symbol: str, report: ExecutionReport) -> None:
        order = self._orders[symbol][report.handle]
        status, at_ns, sequence = report.status, report.exchange_ns, report.sequence
        maker = status is None
        fills = []
        for n, execution in enumerate(report.executions):
            name = self._prints[symbol].trade_id(sequence, report.place + n)
            fills.append(self.ledger.trade(order, execution, maker, name, at_ns, sequence))
            self._touched[order.client, symbol] = None
        if not self._entering_again or fills:
            order.updated_ms = at_ns // MS_NS
        if status in _REASONS and order.executed_lots == 0:
            order.reject_reason = _REASONS[status]
        if (
            status is Status.WOULD_TAKE
            and self.markets[symbol].lots_ahead(order.handle) is not None
        ):
            # A resting order that was amended to a price at which it would take.
            order.reject_reason = _REASONS[status]
            self.markets[symbol].cancel(order.handle)
            self._run((symbol,), self.now_ns)
            return
        if status is Status.RESTING or (status is None and report.left):
            order.status = "PartiallyFilled" if order.executed_lots else "New"
            if self._entering_again and not fills:
                return
        elif order.executed_lots == order.lots:
            self._close(symbol, order, "Filled")
        else:
            if status is Status.EXPIRED:
                some = (
                    "EC_CancelForNoFullFill" if order.executed_lots else "EC_NoImmediateQtyToFill"
                )
                order.reject_reason = some
            self._close(symbol, order, "Cancelled")
        tape = self.tapes[symbol]
        self.notices.order(order, fills, at_ns, sequence or tape.sequence(at_ns))
        if fills and order.stops is not None:
            lots = sum(execution.lots for execution in report.executions)
            self.triggers.attach(order, lots, at_ns)

    def _close(self, symbol: str, order: Order, status: str) -> None:
        order.status = status
        order.client.close(order)
        del self._orders[symbol][order.handle]

    def _trim(self, client: Client, symbol: str) -> None:
        """Reduce-only orders never ask for more than there is to reduce; the newest give way."""
        free = client.account.holdings[symbol].position_lots
        for order in list(client.open.values()):
            if order.symbol != symbol or not order.reduce_only or not order.is_open:
                continue
            room = max(0, -order.side * free)
            if room == 0:
                self.cancel(order, "CancelByReduceOnly")
                continue
            if order.leaves_lots > room:
                self.amend(order, order.ticks, order.executed_lots + room)
            free += order.side * order.leaves_lots

    # -- funding and liquidation -------------------------------------------------------------------

    def settle(self, symbol: str) -> None:
        """Funding for what is held now."""
        for client, row in self.ledger.settle(symbol, self.now_ns):
            self.notices.settled(client, row, self.now_ns)

    def _liquidate(self) -> None:
        """Positions that their margins no longer hold go to the fund."""
        self.ledger.mark()
        marks = self.marks()
        for client in self.clients:
            if not any(h.position_lots for h in client.account.holdings.values()):
                continue
            gone = client.margin.liquidated(marks)
            for order in list(client.open.values()):
                if order.symbol in gone:
                    self.cancel(order, "CancelAllBeforeLiq")
            for order in list(client.waiting.values()):
                if order.symbol in gone:
                    self.triggers.deactivate(order, "CancelAllBeforeLiq", self.now_ns)
            prices = {s: self.ledger.bankruptcy_ticks(client, s, marks) for s in gone}
            for symbol, ticks in prices.items():
                self._take_over(client, symbol, ticks)

    def _take_over(self, client: Client, symbol: str, ticks: int) -> None:
        held = client.account.holdings[symbol].position_lots
        side = -1 if held > 0 else 1
        order = self.order(client, symbol, side, ticks, abs(held), market=True)
        row = self.ledger.take_over(order, self.now_ns)
        self.notices.order(order, [row], self.now_ns, row["seq"])
        self.triggers.follow(client, symbol, self.now_ns)

    # -- making orders -----------------------------------------------------------------------------

    def order(
        self,
        client: Client,
        symbol: str,
        side: int,
        ticks: int,
        lots: int,
        *,
        market: bool = False,
        force: str = "IOC",
        link_id: str = "",
        reduce_only: bool = False,
        close_on_trigger: bool = False,
    ) -> Order:
        """A new order of a client, not entered yet."""
        tape = self.tapes[symbol]
        return Order(
            client=client,
            figures=tape.figures,
            order_id=self._names.next("order"),
            number=self._names.given["order"],
            link_id=link_id,
            side=side,
            market=market,
            ticks=ticks,
            lots=lots,
            force=force,
            reduce_only=reduce_only,
            close_on_trigger=close_on_trigger,
            created_ms=self.now_ms,
            updated_ms=self.now_ms,
            last_ticks=tape.last_ticks,
        )
