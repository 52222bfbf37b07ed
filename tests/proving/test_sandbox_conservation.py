"""Conservation of money, positions and orders in the sandbox, whatever clients do and faults happen.

    money      a client's equity is its deposits, plus the cash flow of every execution that it was
               told of, less fees and funding, plus the value of its position at mark
    deposits   of clients and insurance fund sum to the initial ones: the fund covers negative balances
    positions  of clients, fund and background traders sum to zero
    orders     of a client in the matching engine are its open orders, to the lot

Equity and executions are integers at 1e-8, so every equality is exact.
"""

from __future__ import annotations

import http.client
import random
import time
from collections import defaultdict
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from execution.account import value_e8
from market.events import Field
from market.units import E8
from proving.sandbox.accounts import Client
from proving.sandbox.exchange import DEPOSIT_E8, SandboxExchange
from proving.sandbox.faults import rates_of
from proving.sandbox.gateway import Gateway
from proving.sandbox.private_messages import PrivateMessage
from proving.sandbox.server import Sandbox
from proving.synthetic.background import BACKGROUND
from proving.synthetic.profiles import profile
from tests.proving.sandbox_server import served, signed_headers

SYMBOL = "BTCUSDT"
CLIENTS = 4
MS = 1_000_000


class MessageTotals:
    """Cash flows and positions by client, from execution messages alone."""

    def __init__(self) -> None:
        self.paid_e8: dict[int, int] = defaultdict(
            int
        )  #: by owner: notional bought less sold, fees, funding
        self.lots: dict[int, int] = defaultdict(int)
        self._sides: dict[str, list[int]] = defaultdict(
            list
        )  #: by execution id: signed lots of clients

    def on_message(self, message: PrivateMessage) -> None:
        if message.topic == "execution":
            for row in msgspec.json.decode(message.data):
                self.take(message.client.owner, row)

    def take(self, owner: int, row: dict[str, Any]) -> None:
        self.paid_e8[owner] += int(Decimal(row["execFee"]) * E8)
        if row["execType"] == "Funding":
            return
        sign = 1 if row["side"] == "Buy" else -1
        self.paid_e8[owner] += sign * int(Decimal(row["execValue"]) * E8)
        lots = sign * int(Decimal(row["execQty"]) * 1000)
        self.lots[owner] += lots
        if row["execType"] == "Trade":
            self._sides[row["execId"]].append(lots)

    @property
    def background_lots(self) -> int:
        """The background traders' position: the counterparty of trades with one client."""
        return -sum(map(sum, self._sides.values()))


def check(exchange: SandboxExchange, totals: MessageTotals) -> None:
    """Assert the four equalities above, now."""
    exchange.private_messages.release(exchange.now_ns + 60_000 * MS)  # all that are queued
    clients, book = exchange.clients, exchange.account_book
    instrument = exchange.instruments[SYMBOL]
    mark = 1_000_000  # ticks; the equality holds at any price
    for client in clients:
        position = client.position_lots(SYMBOL)
        assert position == totals.lots[client.owner]
        value = value_e8(instrument, mark, position)
        paid = totals.paid_e8[client.owner]
        equity = client.account.equity_e8({SYMBOL: mark})
        assert equity == client.account.opening_e8 + value - paid
    deposits = sum(client.account.opening_e8 for client in clients)
    assert deposits + book.fund.opening_e8 == len(clients) * DEPOSIT_E8
    fund = book.fund.holdings[SYMBOL].position_lots
    assert book.background_lots[SYMBOL] == totals.background_lots
    assert sum(totals.lots.values()) + fund + totals.background_lots == 0
    orders = exchange.markets[SYMBOL]._engine.state.orders
    live = orders[(orders["lots"] > 0) & (orders["owner"] != BACKGROUND)]
    assert sorted(
        zip(*(live[name].tolist() for name in ("owner", "side", "ticks", "lots")), strict=True)
    ) == sorted(
        (client.owner, order.side, order.ticks, order.leaves_lots)
        for client in clients
        for order in client.open.values()
        if order.status in ("New", "PartiallyFilled")
    )


# -- random clients ----------------------------------------------------------------------------------

#: What a client does: verb, side, lots, ticks from the last price, and a number to choose by.
Action = tuple[str, int, int, int, int]

VERBS = (
    *(
        "GTC",
        "GTC",
        "GTC",
        "IOC",
        "FOK",
        "PostOnly",
        "market",
        "market",
        "reduce",
        "close",
        "amend",
    ),
    *("amend", "cancel", "cancel-all", "batch", "trigger", "protected", "leverage", "mode"),
)


def request(
    exchange: SandboxExchange, client: Client, action: Action
) -> tuple[str, dict[str, Any]]:
    """Route and body of an action."""
    verb, side, lots, away, pick = action
    tape = exchange.tapes[SYMBOL]
    base: dict[str, Any] = {"category": "linear", "symbol": SYMBOL}
    price = f"{(tape.last_ticks + away) / 10:.1f}"
    order = {
        **base,
        "side": "Buy" if side > 0 else "Sell",
        "orderType": "Limit",
        "qty": f"{lots / 1000:.3f}",
        "price": price,
    }
    chosen = list(client.open.values())[pick % len(client.open)] if client.open else None
    known = {**base, "orderId": chosen.order_id if chosen else "none"}
    if verb in ("GTC", "IOC", "FOK", "PostOnly"):
        return "order/create", {**order, "timeInForce": verb}
    if verb == "market":
        return "order/create", {**order, "orderType": "Market"}
    if verb == "reduce":
        return "order/create", {**order, "reduceOnly": True}
    if verb == "close":
        position = client.position_lots(SYMBOL)
        body = {
            **order,
            "side": "Sell" if position > 0 else "Buy",
            "orderType": "Market",
            "qty": "0",
        }
        return "order/create", {**body, "reduceOnly": True, "closeOnTrigger": True}
    if verb == "amend":
        return "order/amend", {**known, "price": price, "qty": order["qty"]}
    if verb == "cancel":
        return "order/cancel", known
    if verb == "cancel-all":
        return "order/cancel-all", base
    if verb == "batch":
        legs = [{**order, "side": name} for name in ("Buy", "Sell", "Neither")]
        return "order/create-batch", {"category": "linear", "request": legs}
    if verb == "trigger":
        direction = 1 if away > 0 else 2
        return "order/create", {**order, "triggerPrice": price, "triggerDirection": direction}
    if verb == "protected":
        loss = f"{(tape.last_ticks - side * (20 + pick)) / 10:.1f}"
        return "order/create", {**order, "orderType": "Market", "stopLoss": loss}
    if verb == "leverage":
        leverage = str((1, 10, 50, 100)[pick % 4])
        return "position/set-leverage", {**base, "buyLeverage": leverage, "sellLeverage": leverage}
    name = ("ISOLATED_MARGIN", "REGULAR_MARGIN")[pick % 2]
    return "account/set-margin-mode", {"setMarginMode": name}


ACTIONS = st.tuples(
    st.sampled_from(VERBS),
    st.sampled_from((1, -1)),
    st.one_of(st.integers(1, 60), st.integers(1, 20_000)),
    st.integers(-60, 60),
    st.integers(0, 1000),
)
STEPS = st.one_of(
    st.tuples(st.integers(0, CLIENTS - 1), ACTIONS),
    st.tuples(st.integers(0, CLIENTS - 1), ACTIONS),
    st.tuples(st.just("wait"), st.integers(1, 1500)),
    st.tuples(st.just("funding"), st.just(0)),
    st.tuples(st.just("shock"), st.integers(-30, 30)),
)


@pytest.fixture(scope="module")
def world() -> tuple[SandboxExchange, MessageTotals]:
    totals = MessageTotals()
    return SandboxExchange(
        profile("default"), 17, clients=CLIENTS, on_message=totals.on_message
    ), totals


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(STEPS, min_size=10, max_size=40))
def test_money_positions_and_orders_are_conserved(
    world: tuple[SandboxExchange, MessageTotals], steps: list[tuple[Any, Any]]
) -> None:
    """Under random requests, funding at any time, and mark jumps that liquidate positions."""
    exchange, totals = world
    rest = Gateway(exchange, lambda: None, limited=False)
    for actor, action in steps:
        if actor == "wait":
            exchange.advance(exchange.now_ns + action * MS)
        elif actor == "funding":
            exchange.settle_funding(SYMBOL)
        elif actor == "shock":
            tape = exchange.tapes[SYMBOL]
            mark = tape.values[Field.MARK_PRICE]
            tape.values[Field.MARK_PRICE] = mark * (100 + action) // 100
            exchange._liquidate()
            tape.values[Field.MARK_PRICE] = mark
        else:
            client = exchange.clients[actor]
            route, body = request(exchange, client, action)
            rest.execute(client, route, body, exchange.now_ms)
        check(exchange, totals)


def test_the_random_clients_cause_every_kind_of_execution(
    world: tuple[SandboxExchange, MessageTotals],
) -> None:
    """Otherwise the property above would be weaker than it seems."""
    exchange, _ = world
    rest, dice = Gateway(exchange, lambda: None, limited=False), random.Random(1)
    for _ in range(600):
        client = dice.choice(exchange.clients)
        route, body = request(exchange, client, random_action(dice))
        rest.execute(client, route, body, exchange.now_ms)
        exchange.advance(exchange.now_ns + dice.randrange(50) * MS)
    exchange.settle_funding(SYMBOL)
    closed = [order for client in exchange.clients for order in client.closed]
    assert {"Filled", "Cancelled"} <= {order.status for order in closed}
    rows = [row for client in exchange.clients for row in client.executions]
    assert {"Trade", "Funding"} <= {row["execType"] for row in rows}
    assert {True, False} == {row["isMaker"] for row in rows}


def random_action(dice: random.Random) -> Action:
    lots = dice.choice((dice.randint(1, 60), dice.randint(1, 2000)))
    return (
        dice.choice(VERBS),
        dice.choice((1, -1)),
        lots,
        dice.randint(-60, 60),
        dice.randrange(1000),
    )


def test_conservation_holds_after_faults() -> None:
    """Lost answers, cut connections and made-up error codes leave the exchange consistent."""
    totals, dice = MessageTotals(), random.Random(2)
    sandbox = Sandbox(3, speed=2.0, clients=CLIENTS, limited=False, fault_rates=rates_of("all=200"))
    tell = sandbox.exchange.private_messages.on_message
    sandbox.exchange.private_messages.on_message = lambda notice: (
        totals.on_message(notice),
        tell(notice),
    )[1]
    sandbox.exchange.private_messages.has_reader = lambda client: True
    with served(sandbox) as venue:
        requests = 0
        until = time.monotonic() + 6
        wanted = {"cut_before", "cut_after", "timed_out", "rate_limited", "restart"}
        while time.monotonic() < until or requests < 100 or wanted:
            assert time.monotonic() < until + 60, f"no {wanted}"
            client = dice.choice(sandbox.exchange.clients)
            action = random_action(dice)
            route, body = venue.run(lambda exchange, a=action, c=client: request(exchange, c, a))
            send_request(venue.description["rest"], client, route, body)
            requests += 1
            wanted -= {line.kind for line in sandbox.faults.log}
        venue.run(lambda exchange: check(exchange, totals))
    assert totals.lots


def send_request(address: str, client: Client, route: str, body: dict[str, Any]) -> None:
    """Send a request and wait only briefly for its answer."""
    payload = msgspec.json.encode(body)
    headers = signed_headers({"key": client.key, "secret": client.secret}, payload)
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=0.2)
    try:
        connection.request("POST", f"/v5/{route}", payload, headers)
        connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        pass  # it may have taken effect or not
    finally:
        connection.close()
