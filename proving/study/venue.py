"""A venue in the synthetic market: our orders in the same book as everybody else's.

The market matches order by order, so queue positions are exact, and our orders have market impact.
Requests and responses have latency, and the local picture is made of market data as it is received:

    send at t ──entry──► market at t + entry ──response──► poll from t + entry + response

A venue can `take_over` another's state. Every algorithm then starts from the same instant of the same
market with the same random numbers to come, so that two of them differ by their orders alone.
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
from proving.study.branch import Branch, Why
from proving.synthetic.engine import EngineExecution
from proving.synthetic.marketplace import ExecutionReport
from proving.synthetic.matching import Status, TimeInForce
from proving.synthetic.profiles import Profile

_FORCES: Final = {
    Force.GTC: TimeInForce.GOOD_TILL_CANCELLED,
    Force.IOC: TimeInForce.IMMEDIATE_OR_CANCEL,
    Force.FOK: TimeInForce.FILL_OR_KILL,
    Force.POST_ONLY: TimeInForce.POST_ONLY,
}
#: Prices and quantities are 64-bit integers at the market.
_MOST: Final = 1 << 62
_REJECTIONS: Final = {
    Status.BAD_SIDE: Reason.SIDE,
    Status.BAD_QUANTITY: Reason.QUANTITY,
    Status.BAD_PRICE: Reason.PRICE,
    Status.OUT_OF_REACH: Reason.PRICE,
    Status.POOL_FULL: Reason.QUANTITY,
}


class _VenueOrder:
    """One of our orders at the market."""

    __slots__ = ("filled_lots", "handle", "lots", "open", "queue_ahead_lots", "submit", "ticks")

    def __init__(self, submit: Submit) -> None:
        self.submit = submit
        self.handle = 0
        self.ticks, self.lots = submit.price_ticks, submit.qty_lots
        self.filled_lots = self.queue_ahead_lots = 0
        self.open = False


class EngineVenue:
    """A `Venue` over a synthetic symbol-day, with a clock of its own.

    ``entry_ns`` and ``response_ns`` are the latencies of requests and responses; use those measured at
    the real venue. Entry takes at least a millisecond (ValueError): the market runs ahead of our clock
    by it. Fees are decimal strings, fractions of notional.
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
        self._reset()

    def _reset(self) -> None:
        self._orders: dict[str, _VenueOrder] = {}
        self._by_handle: dict[int, _VenueOrder] = {}
        self._inbox: deque[tuple[int, Action]] = deque()
        self._outbox: deque[Event] = deque()
        self._position = 0
        self._executions = 0

    def take_over(self, other: EngineVenue) -> None:
        """Continue from the state of another venue of the same day, without orders or position."""
        self.market.take_over(other.market)
        self._reset()

    @property
    def instrument(self) -> Instrument:
        """The symbol's tick, lot and limits."""
        return self.market.instrument

    @property
    def now_ns(self) -> int:
        """Our time."""
        return int(self.market.picture["now_ns"])

    # -- time and the local picture ------------------------------------------------------------

    def advance(self, until_ns: int) -> None:
        """Advance our time to ``until_ns``."""
        while self.now_ns < until_ns:
            self._move(until_ns, stops=False)

    def advance_to_news(self, until_ns: int) -> int:
        """Advance to the next news: a changed touch, or an event of ours received; returns the time."""
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
        why = market.to_news(until_ns, arrival_ns, self._entry_ns, stops)
        if why is Why.ARRIVED:
            while self._inbox and self._inbox[0][0] <= market.now_ns:
                self._arrive(self._inbox.popleft()[1])
        elif why is Why.FILLED:
            self._fill_resting(market.reports())
        return why is Why.TOUCH

    def touch(self, symbol: str) -> tuple[int | None, int | None]:
        """Best bid and ask in ticks of the local book."""
        bid, ask = int(self.market.picture["bid"]), int(self.market.picture["ask"])
        return None if bid == NO_LEVEL else bid, None if ask == NO_LEVEL else ask

    def view(self, symbol: str) -> View:
        """The local picture at the present."""
        local, picture = self.market.local, self.market.picture
        now_ns = int(picture["now_ns"])
        return View(
            symbol=symbol,
            now_ns=now_ns,
            bids=tuple(local.bids(self._view_levels)),
            asks=tuple(local.asks(self._view_levels)),
            stale=local.stale(now_ns, self._stale_ns),
            instrument=self.market.instrument,
            bought_lots=int(picture["bought_lots"]),
            sold_lots=int(picture["sold_lots"]),
            book=local,
        )

    # -- the venue -----------------------------------------------------------------------------

    def send(self, actions: Sequence[Action]) -> None:
        """Send actions; they arrive after the entry latency in the order sent."""
        arrival_ns = self.now_ns + self._entry_ns
        self._inbox.extend((arrival_ns, action) for action in actions)

    def poll(self) -> Sequence[Event]:
        """Events received since the last call, by time."""
        now_ns, received = self.now_ns, []
        while self._outbox and self._outbox[0].time_ns <= now_ns:
            received.append(self._outbox.popleft())
        return received

    def position_lots(self, symbol: str) -> int:
        """Signed sum of fills, as of the venue's time."""
        return self._position

    @property
    def idle(self) -> bool:
        """Whether no order is open and no request or event is in flight."""
        return not (
            self._inbox or self._outbox or any(order.open for order in self._orders.values())
        )

    # -- at the market -------------------------------------------------------------------------

    def _arrive(self, action: Action) -> None:
        """A request arrives."""
        if isinstance(action, Submit):
            self._enter(action)
            return
        order = self._orders.get(action.client_id)
        if order is None or not order.open:
            reason = Reason.NO_ORDER if order is None else Reason.FINISHED
            self._emit(CancelRejected, action.client_id, reason=reason)
        elif isinstance(action, Amend):
            self._amend(order, action)
        else:
            self.market.cancel(order.handle)
            (report,) = self.market.arrived()
            self._end(order, Reason.BY_USER, report.left)

    def _enter(self, submit: Submit) -> None:
        order, lots = _VenueOrder(submit), submit.qty_lots
        rejection = self._rejection(submit)
        if rejection:
            self._emit(Rejected, submit.client_id, reason=rejection)
            return
        if submit.reduce_only:
            lots = order.lots = min(lots, abs(self._position))
        if submit.order_type is OrderType.MARKET:
            order.handle = self.market.take(submit.side, lots)
        else:
            force = _FORCES[submit.time_in_force]
            order.handle = self.market.submit(submit.side, submit.price_ticks, lots, force)
        self._by_handle[order.handle] = order
        report, *others = self.market.arrived()
        if report.status in _REJECTIONS:
            self._emit(Rejected, submit.client_id, reason=_REJECTIONS[report.status])
            return
        self._orders[submit.client_id] = order
        order.open = True
        self._emit(Accepted, submit.client_id, venue_order_id=f"engine-{order.handle}")
        for execution in report.executions:
            self._fill(order, execution, Liquidity.TAKER)
        self._fill_resting(others)
        left = order.lots - order.filled_lots
        if report.status is Status.RESTING:
            order.queue_ahead_lots = self.market.lots_ahead(order.handle) or 0
        elif left:
            crossed = report.status is Status.WOULD_TAKE
            self._end(order, Reason.POST_ONLY if crossed else Reason.NOT_FILLED, left)

    def _rejection(self, submit: Submit) -> Reason | None:
        instrument, lots = self.instrument, submit.qty_lots
        if submit.symbol != instrument.symbol:
            return Reason.UNKNOWN_SYMBOL
        if submit.client_id in self._orders:
            return Reason.DUPLICATE
        if submit.side not in (1, -1):
            return Reason.SIDE
        if type(lots) is not int:
            return Reason.OFF_LOT
        at_market = submit.order_type is OrderType.MARKET
        if not at_market and type(submit.price_ticks) is not int:
            return Reason.OFF_TICK
        if not 0 < lots < _MOST:
            return Reason.QUANTITY
        if not at_market and not 0 < submit.price_ticks < _MOST:
            return Reason.PRICE
        if lots < instrument.qty_lots(instrument.min_qty):
            return Reason.MIN_QUANTITY
        opposite = self.market.best(-submit.side)
        if at_market and opposite is None:
            return Reason.NO_MARKET
        if submit.reduce_only:
            return Reason.NOT_REDUCING if submit.side * self._position >= 0 else None
        price = opposite if at_market else submit.price_ticks
        least_e8 = round(float(instrument.min_notional) * E8)
        if price is not None and unit_e8(instrument) * price * lots < least_e8:
            return Reason.MIN_NOTIONAL
        return None

    def _amend(self, order: _VenueOrder, action: Amend) -> None:
        ticks = order.ticks if action.price_ticks is None else action.price_ticks
        lots = order.lots if action.qty_lots is None else action.qty_lots
        if lots <= order.filled_lots:
            self._emit(CancelRejected, action.client_id, reason=Reason.BELOW_FILLED)
            return
        posts = order.submit.time_in_force is Force.POST_ONLY
        force = TimeInForce.POST_ONLY if posts else TimeInForce.GOOD_TILL_CANCELLED
        self.market.amend(order.handle, ticks, lots - order.filled_lots, force)
        report, *others = self.market.arrived()
        if report.status is Status.WOULD_TAKE:
            self.market.cancel(order.handle)
            (report,) = self.market.arrived()
            self._end(order, Reason.POST_ONLY, report.left)
        elif report.status in _REJECTIONS:
            self._emit(CancelRejected, action.client_id, reason=_REJECTIONS[report.status])
        else:
            order.ticks, order.lots = ticks, lots
            self._emit(Amended, action.client_id, price_ticks=ticks, qty_lots=lots)
            for execution in report.executions:
                self._fill(order, execution, Liquidity.TAKER)
            order.queue_ahead_lots = self.market.lots_ahead(order.handle) or 0
        self._fill_resting(others)

    def _fill_resting(self, reports: Sequence[ExecutionReport]) -> None:
        """Fills of resting orders."""
        for report in reports:
            for execution in report.executions:
                order = self._by_handle[report.handle]
                self._fill(order, execution, Liquidity.MAKER, report.exchange_ns)

    def _fill(
        self,
        order: _VenueOrder,
        execution: EngineExecution,
        liquidity: Liquidity,
        venue_ns: int = 0,
    ) -> None:
        order.filled_lots += execution.lots
        order.open = order.filled_lots < order.lots
        self._position += order.submit.side * execution.lots
        self._executions += 1
        value = unit_e8(self.instrument) * execution.ticks * execution.lots
        self._emit(
            Filled,
            order.submit.client_id,
            venue_ns,
            exec_id=f"{order.submit.client_id}/{self._executions}",
            symbol=order.submit.symbol,
            side=order.submit.side,
            qty_lots=execution.lots,
            price_ticks=execution.ticks,
            liquidity=liquidity,
            fee_e8=fee_e8(value, self._fees[liquidity]),
            leaves_lots=order.lots - order.filled_lots,
            queue_ahead_lots=order.queue_ahead_lots if liquidity is Liquidity.MAKER else 0,
        )

    def _end(self, order: _VenueOrder, reason: Reason, left: int) -> None:
        order.open = False
        self._emit(Cancelled, order.submit.client_id, reason=reason, leaves_lots=left)

    def _emit(
        self, kind: Callable[..., Event], client_id: str, venue_ns: int = 0, **more: Any
    ) -> None:
        """Put an event in flight to us."""
        venue_ns = venue_ns or self.market.now_ns
        time_ns = venue_ns + self._response_ns
        if self._outbox:
            time_ns = max(time_ns, self._outbox[-1].time_ns)
        self._outbox.append(kind(client_id=client_id, venue_ns=venue_ns, time_ns=time_ns, **more))
