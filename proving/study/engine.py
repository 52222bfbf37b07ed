"""A venue in the synthetic market: our orders in the same book as everybody else's.

The market matches order by order, so the queue is what it is: there are no bounds of it here, and what
our orders do to the book, and to what makers see, is done. Requests and answers travel, and the local
picture is made of what the market publishes, when it reaches us:

    send at t ──entry──► market at t + entry ──response──► poll from t + entry + response

A venue can `take_over` another's state. Every algorithm then starts from the same instant of the same
market, with the same randomness ahead of it, and what differs between two of them is what they did.

Venue time runs ahead of ours by the entry latency at most: a request never arrives in the past.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from execution.account import fee_e8, unit_e8
from execution.orders import (
    Accepted,
    Action,
    Amend,
    Amended,
    Cancelled,
    CancelRejected,
    Event,
    Filled,
    Liquidity,
    OrderType,
    Rejected,
    Submit,
)
from execution.orders import TimeInForce as Force
from execution.simulation.state import Reason
from execution.venue import View
from market.book import NO_LEVEL
from market.instruments import Instrument
from market.units import E8
from proving.study.branch import ASK, BID, BOUGHT, NOW, SOLD, Branch, Why
from proving.synthetic.marketplace import ExecutionReport
from proving.synthetic.matching import EngineExecution, Status, TimeInForce
from proving.synthetic.profiles import Profile

_FORCES: Final = {
    Force.GTC: TimeInForce.GOOD_TILL_CANCELLED,
    Force.IOC: TimeInForce.IMMEDIATE_OR_CANCEL,
    Force.FOK: TimeInForce.FILL_OR_KILL,
    Force.POST_ONLY: TimeInForce.POST_ONLY,
}
_REFUSALS: Final = {
    Status.BAD_SIDE: Reason.SIDE,
    Status.BAD_QUANTITY: Reason.QUANTITY,
    Status.BAD_PRICE: Reason.PRICE,
    Status.OUT_OF_REACH: Reason.PRICE,
    Status.POOL_FULL: Reason.QUANTITY,
}


class _Order:
    """One of our orders at the market."""

    __slots__ = ("asked", "filled_lots", "handle", "lots", "open", "queue_ahead_lots", "ticks")

    def __init__(self, asked: Submit) -> None:
        self.asked = asked
        self.handle = 0
        self.ticks, self.lots = asked.price_ticks, asked.qty_lots
        self.filled_lots = self.queue_ahead_lots = 0
        self.open = False


class EngineVenue:
    """A `Venue` over a synthetic symbol-day, and the time it has.

    ``entry_ns`` and ``response_ns`` are the latencies of requests and answers; entry takes a
    millisecond at least (ValueError), for the market goes ahead by it. Fees are decimal strings,
    fractions of notional.
    """

    def __init__(
        self,
        profile: Profile,
        seed: int,
        symbol: str,
        day: str,
        *,
        entry_ns: int,
        response_ns: int,
        taker_fee: str,
        maker_fee: str,
        stale_after_ns: int = 5_000_000_000,
        view_levels: int = 5,
    ) -> None:
        if entry_ns < 1_000_000 or response_ns < 0:
            raise ValueError(
                f"entry of {entry_ns} ns and response of {response_ns} ns: the engine's venue needs "
                "an entry latency of 1 ms or more, and no negative response"
            )
        self.market = Branch(profile, seed, symbol, day)
        self._entry_ns, self._response_ns = entry_ns, response_ns
        self._fees = {Liquidity.TAKER: taker_fee, Liquidity.MAKER: maker_fee}
        self._stale_ns, self._view_levels = stale_after_ns, view_levels
        self._forget()

    def _forget(self) -> None:
        self._orders: dict[str, _Order] = {}
        self._by_handle: dict[int, _Order] = {}
        self._inbox: deque[tuple[int, Action]] = deque()
        self._outbox: deque[Event] = deque()
        self._position = 0
        self._executions = 0

    def take_over(self, other: EngineVenue) -> None:
        """Stand where another venue of the same day stands, with no order and no position."""
        self.market.take_over(other.market)
        self._forget()

    @property
    def instrument(self) -> Instrument:
        return self.market.instrument

    @property
    def now_ns(self) -> int:
        """Our time."""
        return int(self.market.clock[NOW])

    # -- time and what is seen -----------------------------------------------------------------

    def advance(self, until_ns: int) -> None:
        """Let our time go on to ``until_ns``."""
        while self.now_ns < until_ns:
            self._move(until_ns, stops=False)

    def advance_to_news(self, until_ns: int) -> int:
        """Let it go on to the next news: a touch that has changed, an outcome that reaches us."""
        while self.now_ns < until_ns:
            if self._outbox and self._outbox[0].time_ns <= self.now_ns:
                break
            if self._move(until_ns, stops=True):
                break
        return self.now_ns

    def _move(self, until_ns: int, *, stops: bool) -> bool:
        """One call of the market; whether it ended at a touch that has changed."""
        market = self.market
        arrival_ns = self._inbox[0][0] if self._inbox else 1 << 62
        if stops and self._outbox:
            until_ns = min(until_ns, self._outbox[0].time_ns)
        found = market.to_news(until_ns, arrival_ns, self._entry_ns, stops)
        if found is Why.ARRIVED:
            while self._inbox and self._inbox[0][0] <= market.now_ns:
                self._meet(self._inbox.popleft()[1])
        elif found is Why.FILLED:
            self._hear(market.reports())
        return found is Why.TOUCH

    def touch(self, symbol: str) -> tuple[int | None, int | None]:
        """Best bid and ask in ticks of the local book."""
        bid, ask = int(self.market.clock[BID]), int(self.market.clock[ASK])
        return None if bid == NO_LEVEL else bid, None if ask == NO_LEVEL else ask

    def view(self, symbol: str) -> View:
        """The local picture at the present."""
        local, clock = self.market.local, self.market.clock
        return View(
            symbol=symbol,
            now_ns=int(clock[NOW]),
            bids=tuple(local.bids(self._view_levels)),
            asks=tuple(local.asks(self._view_levels)),
            stale=local.stale(int(clock[NOW]), self._stale_ns),
            instrument=self.market.instrument,
            bought_lots=int(clock[BOUGHT]),
            sold_lots=int(clock[SOLD]),
        )

    # -- the venue -----------------------------------------------------------------------------

    def send(self, actions: Sequence[Action]) -> None:
        """Put actions under way, to arrive after the entry latency in the order sent."""
        arrival_ns = self.now_ns + self._entry_ns
        self._inbox.extend((arrival_ns, action) for action in actions)

    def poll(self) -> Sequence[Event]:
        """Outcomes that have reached us since the last call, by time."""
        now_ns, heard = self.now_ns, []
        while self._outbox and self._outbox[0].time_ns <= now_ns:
            heard.append(self._outbox.popleft())
        return heard

    def position_lots(self, symbol: str) -> int:
        """Signed sum of executions."""
        return self._position

    @property
    def idle(self) -> bool:
        """No order is open, under way or about to be answered."""
        return not (
            self._inbox or self._outbox or any(order.open for order in self._orders.values())
        )

    # -- at the market -------------------------------------------------------------------------

    def _meet(self, action: Action) -> None:
        """A request arrives."""
        if isinstance(action, Submit):
            self._enter(action)
            return
        order = self._orders.get(action.client_id)
        if order is None or not order.open:
            reason = Reason.NO_ORDER if order is None else Reason.FINISHED
            self._say(CancelRejected, action.client_id, reason=reason)
        elif isinstance(action, Amend):
            self._amend(order, action)
        else:
            self.market.cancel(order.handle)
            (report,) = self.market.met()
            self._end(order, Reason.BY_USER, report.left)

    def _enter(self, asked: Submit) -> None:
        order, lots = _Order(asked), asked.qty_lots
        refusal = self._refusal(asked)
        if refusal:
            self._say(Rejected, asked.client_id, reason=refusal)
            return
        if asked.reduce_only:
            lots = order.lots = min(lots, abs(self._position))
        if asked.order_type is OrderType.MARKET:
            order.handle = self.market.take(asked.side, lots)
        else:
            force = _FORCES[asked.time_in_force]
            order.handle = self.market.submit(asked.side, asked.price_ticks, lots, force)
        self._by_handle[order.handle] = order
        report, *others = self.market.met()
        if report.status in _REFUSALS:
            self._say(Rejected, asked.client_id, reason=_REFUSALS[report.status])
            return
        self._orders[asked.client_id] = order
        order.open = True
        self._say(Accepted, asked.client_id, venue_order_id=f"engine-{order.handle}")
        for execution in report.executions:
            self._fill(order, execution, Liquidity.TAKER)
        self._hear(others)
        left = order.lots - order.filled_lots
        if report.status is Status.RESTING:
            order.queue_ahead_lots = self.market.lots_ahead(order.handle) or 0
        elif left:
            met = report.status is Status.WOULD_TAKE
            self._end(order, Reason.POST_ONLY if met else Reason.NOT_FILLED, left)

    def _refusal(self, asked: Submit) -> Reason | None:
        instrument, lots = self.instrument, asked.qty_lots
        if asked.symbol != instrument.symbol:
            return Reason.UNKNOWN_SYMBOL
        if asked.client_id in self._orders:
            return Reason.DUPLICATE
        if asked.side not in (1, -1):
            return Reason.SIDE
        if type(lots) is not int:
            return Reason.OFF_LOT
        at_market = asked.order_type is OrderType.MARKET
        if not at_market and type(asked.price_ticks) is not int:
            return Reason.OFF_TICK
        if lots <= 0:
            return Reason.QUANTITY
        if not at_market and asked.price_ticks <= 0:
            return Reason.PRICE
        if lots < instrument.qty_lots(instrument.min_qty):
            return Reason.MIN_QUANTITY
        opposite = self.market.best(-asked.side)
        if at_market and opposite is None:
            return Reason.NO_MARKET
        if asked.reduce_only:
            return Reason.NOT_REDUCING if asked.side * self._position >= 0 else None
        price = opposite if at_market else asked.price_ticks
        least_e8 = round(float(instrument.min_notional) * E8)
        if price is not None and unit_e8(instrument) * price * lots < least_e8:
            return Reason.MIN_NOTIONAL
        return None

    def _amend(self, order: _Order, action: Amend) -> None:
        ticks = order.ticks if action.price_ticks is None else action.price_ticks
        lots = order.lots if action.qty_lots is None else action.qty_lots
        if lots <= order.filled_lots:
            self._say(CancelRejected, action.client_id, reason=Reason.BELOW_FILLED)
            return
        posts = order.asked.time_in_force is Force.POST_ONLY
        force = TimeInForce.POST_ONLY if posts else TimeInForce.GOOD_TILL_CANCELLED
        self.market.amend(order.handle, ticks, lots - order.filled_lots, force)
        report, *others = self.market.met()
        if report.status is Status.WOULD_TAKE:
            self.market.cancel(order.handle)
            (report,) = self.market.met()
            self._end(order, Reason.POST_ONLY, report.left)
        elif report.status in _REFUSALS:
            self._say(CancelRejected, action.client_id, reason=_REFUSALS[report.status])
        else:
            order.ticks, order.lots = ticks, lots
            self._say(Amended, action.client_id, price_ticks=ticks, qty_lots=lots)
            for execution in report.executions:
                self._fill(order, execution, Liquidity.TAKER)
            order.queue_ahead_lots = self.market.lots_ahead(order.handle) or 0
        self._hear(others)

    def _hear(self, reports: Sequence[ExecutionReport]) -> None:
        """Executions of orders that rested."""
        for report in reports:
            for execution in report.executions:
                order = self._by_handle[report.handle]
                self._fill(order, execution, Liquidity.MAKER, report.exchange_ns)

    def _fill(
        self, order: _Order, execution: EngineExecution, liquidity: Liquidity, venue_ns: int = 0
    ) -> None:
        order.filled_lots += execution.lots
        order.open = order.filled_lots < order.lots
        self._position += order.asked.side * execution.lots
        self._executions += 1
        value = unit_e8(self.instrument) * execution.ticks * execution.lots
        self._say(
            Filled,
            order.asked.client_id,
            venue_ns,
            exec_id=f"{order.asked.client_id}/{self._executions}",
            symbol=order.asked.symbol,
            side=order.asked.side,
            qty_lots=execution.lots,
            price_ticks=execution.ticks,
            liquidity=liquidity,
            fee_e8=fee_e8(value, self._fees[liquidity]),
            leaves_lots=order.lots - order.filled_lots,
            queue_ahead_lots=order.queue_ahead_lots if liquidity is Liquidity.MAKER else 0,
        )

    def _end(self, order: _Order, reason: Reason, left: int) -> None:
        order.open = False
        self._say(Cancelled, order.asked.client_id, reason=reason, leaves_lots=left)

    def _say(
        self, kind: Callable[..., Event], client_id: str, venue_ns: int = 0, **more: Any
    ) -> None:
        """An outcome, on its way to us."""
        venue_ns = venue_ns or self.market.now_ns
        time_ns = venue_ns + self._response_ns
        if self._outbox:
            time_ns = max(time_ns, self._outbox[-1].time_ns)
        self._outbox.append(kind(client_id=client_id, venue_ns=venue_ns, time_ns=time_ns, **more))
