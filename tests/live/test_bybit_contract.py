"""The venue contract over the exchange on loopback, with its trade socket on and off.

The market stands still: nobody else trades, and the book of `tests.execution.tape` is another account's
orders. What the driver says is folded by the product's own order machine; the events are its changes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest

from execution.order_machine import Orders
from execution.orders import (
    Accepted,
    Action,
    Amend,
    Amended,
    Cancelled,
    CancelRejected,
    Event,
    Filled,
    OrderReport,
    OrderState,
    OrderType,
    Rejected,
    Submit,
)
from live.messages import Answer, Evidence, Expired
from proving.sandbox import order_entry
from proving.sandbox.exchange import SandboxExchange
from proving.sandbox.server import Sandbox
from proving.synthetic.marketplace import SyntheticMarket
from tests.execution.tape import ASKS, BIDS, SYMBOL
from tests.execution.venue_contract import VenueContract
from tests.live.bybit_venue import Client, connected
from tests.proving.sandbox_server import Served, served

TRADED = "BTCUSDT"
#: The account whose orders are the book; a test has the next of the others to itself.
MAKER = 0
ACCOUNTS = itertools.count(1)


class Quiet(SyntheticMarket):
    """A market in which nothing happens but our requests."""

    def _run(self, until_ns: int) -> None:
        self._state.clock[0] = max(until_ns, int(self._state.clock[0]))

    def empty(self) -> None:
        for side in (1, -1):
            for ticks, _ in self.levels(side):
                for order in self._engine.queue(side, ticks):
                    self._engine.cancel(order.reference)


def _enter(exchange: SandboxExchange, side: int, ticks: int, lots: int, force: str) -> None:
    name = "Buy" if side > 0 else "Sell"
    order = {"category": "linear", "symbol": TRADED, "side": name, "orderType": "Limit"}
    codec = exchange.tapes[TRADED].codec
    order |= {"qty": codec.qty(lots), "price": codec.price(ticks), "timeInForce": force}
    order_entry.create(exchange, exchange.clients[MAKER], order)


@pytest.fixture(scope="module")
def venue() -> Iterator[tuple[Served, int]]:
    """The exchange, and the price in ticks that the book's 100 stands for."""

    def quieten(exchange: SandboxExchange) -> int:
        market = exchange.markets[TRADED]
        base = market.best(1)
        assert base is not None
        market.__class__ = Quiet
        market.empty()  # type: ignore[attr-defined]
        return base

    with served(Sandbox(5, clients=60, begins_ns=None)) as running:
        yield running, running.run(quieten) - 100


class LoopbackTape:
    """The harness of `tests.execution.tape.Tape` around a client of the exchange."""

    def __init__(self, client: Client, shift: int) -> None:
        self.client, self.shift, self.simulator = client, shift, self
        self.orders, self.events = Orders(), list[Event]()
        self._under_way: list[int] = []
        self._read = 0
        self._ended: list[Cancelled] = []  #: whose executions have not all come

    def opens(self) -> LoopbackTape:
        def refill(exchange: SandboxExchange) -> None:
            for client in exchange.clients:
                body = {"category": "linear", "symbol": TRADED}
                order_entry.cancel_all(exchange, client, body)
            for side, levels in ((1, BIDS), (-1, ASKS)):
                for price, lots in levels:
                    _enter(exchange, side, price + self.shift, lots, "GTC")

        self.client.venue.run(refill)
        return self

    def send(self, *actions: Action | Sequence[Action]) -> list[Event]:
        """Send actions; as the simulator's `send`, which takes them as one list, without waiting."""
        if len(actions) == 1 and not isinstance(actions[0], msgspec.Struct):
            self._send(actions[0])
            return []
        self._send(actions)  # type: ignore[arg-type]
        return self.wait()

    def _send(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Submit):
                action = self._moved(action)
                if self.orders.get(action.client_id) is None:
                    self.orders.sent(action, "", self.client.clock())
            elif isinstance(action, Amend) and action.price_ticks is not None:
                price = action.price_ticks + self.shift
                action = msgspec.structs.replace(action, price_ticks=price)
            self._under_way.append(self.client.send(action, TRADED))

    def _moved(self, submit: Submit) -> Submit:
        price = submit.price_ticks + self.shift if submit.price_ticks > 0 else submit.price_ticks
        if submit.order_type is OrderType.MARKET:
            price = self.shift + 100 + 50 * submit.side
        symbol = TRADED if submit.symbol == SYMBOL else submit.symbol
        return msgspec.structs.replace(submit, symbol=symbol, price_ticks=price)

    def prints(self, side: int, price_ticks: int, qty_lots: int) -> list[Event]:
        """Somebody trades through everything better than a price, and ``qty_lots`` at it."""
        ticks = price_ticks + self.shift

        def trade(exchange: SandboxExchange) -> None:
            levels = exchange.markets[TRADED].levels(-side)
            better = sum(lots for at, lots in levels if side * (ticks - at) > 0)
            _enter(exchange, side, ticks, better + qty_lots, "IOC")

        self.client.venue.run(trade)
        return self.wait()

    def wait(self) -> list[Event]:
        """The events until what the driver said is what the exchange holds."""
        first = len(self.events)
        self.client.until(self._agrees)
        return self.events[first:]

    def _agrees(self) -> bool:
        for evidence in self.client.evidence[self._read :]:
            self._fold(evidence)
        self._read = len(self.client.evidence)
        answered = {
            given.request for _, given in self.client.inputs if isinstance(given, Answer | Expired)
        }
        return answered.issuperset(self._under_way) and self.client.venue.run(
            lambda exchange: all(self._same(order) for order in self._taken())
        )

    def _taken(self) -> list[Any]:
        return list(self.client.account.by_link_id.values())

    def _same(self, venue_order: Any) -> bool:
        order = self.orders.get(venue_order.link_id)
        assert order is not None
        return (
            order.state.is_final == (not venue_order.is_open)
            and (order.filled_lots, order.missing_lots) == (venue_order.executed_lots, 0)
            and (order.state.is_final or order.qty_lots == venue_order.lots)
            and (order.state.is_final or order.price_ticks == venue_order.ticks)
        )

    def _fold(self, evidence: Evidence) -> None:
        kinds = (Accepted, Rejected, Filled, CancelRejected, OrderReport)
        if not isinstance(evidence, kinds):
            return
        order = self.orders.get(evidence.client_id, getattr(evidence, "venue_order_id", ""))
        if order is None:
            if isinstance(evidence, CancelRejected):
                self.events.append(evidence)
            return
        before = (order.acknowledged, order.state, order.price_ticks, order.qty_lots)
        applied = self.orders.apply(evidence)
        known: dict[str, Any] = {
            "client_id": order.client_id,
            "time_ns": evidence.time_ns,
            "venue_ns": evidence.venue_ns,
        }
        if isinstance(evidence, Rejected | CancelRejected):
            self.events.append(evidence)
        elif order.acknowledged and not before[0]:
            self.events.append(Accepted(**known))
        if isinstance(evidence, Filled) and applied is not None:
            price = evidence.price_ticks - self.shift
            fill = msgspec.structs.replace(evidence, symbol=SYMBOL, price_ticks=price)
            self.events.append(fill)
        elif (order.price_ticks, order.qty_lots) != before[2:]:
            self.events.append(
                Amended(**known, price_ticks=order.price_ticks, qty_lots=order.qty_lots)
            )
        if order.state is OrderState.CANCELLED and before[1] is not OrderState.CANCELLED:
            self._ended.append(Cancelled(**known, reason=order.reason))
        for ended in list(self._ended):
            its = self.orders.by_id[ended.client_id]
            if not its.missing_lots:
                self._ended.remove(ended)
                leaves = its.qty_lots - its.filled_lots
                again = {"time_ns": evidence.time_ns, "leaves_lots": leaves}
                self.events.append(msgspec.structs.replace(ended, **again))

    def position_lots(self, symbol: str) -> int:
        return sum(e.side * e.qty_lots for e in self.events if isinstance(e, Filled))

    @property
    def position(self) -> int:
        """As the venue holds it."""
        held: int = self.client.account.position_lots(TRADED)
        return held


class _OverLoopback(VenueContract):
    trade = True

    @pytest.fixture
    def tape(self, venue: tuple[Served, int]) -> Iterator[LoopbackTape]:
        running, shift = venue
        with connected(running, trade=self.trade, client=next(ACCOUNTS)) as client:
            yield LoopbackTape(client, shift).opens()


class TestTradeSocket(_OverLoopback):
    """Orders are entered over the trade socket."""


class TestRest(_OverLoopback):
    """Orders are entered over REST, as at the demo venue."""

    trade = False
