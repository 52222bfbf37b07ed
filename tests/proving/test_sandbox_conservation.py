"""Nothing appears and nothing vanishes in the sandbox, whatever its clients do and whatever goes wrong.

    money      a client's equity is its deposits, less what it has paid and with what it was paid in
               every execution that it was told of, less fees and funding, and what it holds at mark
    deposits   of clients and fund add up to what was paid in: who is made good is so by the fund
    positions  of clients, fund and everybody else add up to nothing
    orders     in the matching engine a client has what it has open, to the lot, and nothing else

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
from proving.sandbox.exchange import DEPOSIT_E8, Exchange
from proving.sandbox.faults import rates_of
from proving.sandbox.notices import Notice
from proving.sandbox.rest import Rest
from proving.sandbox.server import Sandbox
from proving.sandbox.signing import signature
from proving.sandbox.trading import Client
from proving.synthetic.background import BACKGROUND
from proving.synthetic.profiles import profile
from tests.proving.sandbox_server import served

SYMBOL = "BTCUSDT"
CLIENTS = 4
MS = 1_000_000


class Told:
    """What clients have been told of their executions, and nothing else."""

    def __init__(self) -> None:
        self.paid_e8: dict[int, int] = defaultdict(int)  #: by owner: values bought, fees, funding
        self.lots: dict[int, int] = defaultdict(int)
        self._sides: dict[str, list[int]] = defaultdict(list)  #: by trade: signed lots of clients

    def hear(self, notice: Notice) -> None:
        if notice.topic == "execution":
            for row in msgspec.json.decode(notice.data):
                self.take(notice.client.owner, row)

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
    def crowd_lots(self) -> int:
        """The position of everybody else: the other side of trades with one client in them."""
        return -sum(map(sum, self._sides.values()))


def check(exchange: Exchange, told: Told) -> None:
    """The four equalities of the module, all at this moment."""
    exchange.notices.release(exchange.now_ns + 60_000 * MS)  # all of them, however late
    clients, ledger = exchange.clients, exchange.ledger
    instrument = exchange.instruments[SYMBOL]
    mark = 1_000_000  # ticks; money is accounted for at any price
    for client in clients:
        holding = client.account.holdings[SYMBOL]
        assert holding.position_lots == told.lots[client.owner]
        held = value_e8(instrument, mark, holding.position_lots)
        paid = told.paid_e8[client.owner]
        equity = client.account.equity_e8({SYMBOL: mark})
        assert equity == client.account.opening_e8 + held - paid
    deposits = sum(client.account.opening_e8 for client in clients)
    assert deposits + ledger.fund.opening_e8 == len(clients) * DEPOSIT_E8
    fund = ledger.fund.holdings[SYMBOL].position_lots
    assert ledger.crowd_lots[SYMBOL] == told.crowd_lots
    assert sum(told.lots.values()) + fund + told.crowd_lots == 0
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

#: What a client does: a verb, a side, lots, ticks from the mid, and what else there is to choose.
Action = tuple[str, int, int, int, int]

VERBS = (
    *("GTC", "GTC", "GTC", "IOC", "FOK", "PostOnly", "market", "market", "reduce", "close"),
    *(
        "amend",
        "amend",
        "cancel",
        "cancel-all",
        "batch",
        "trigger",
        "protected",
        "leverage",
        "mode",
    ),
)


def request(exchange: Exchange, client: Client, action: Action) -> tuple[str, dict[str, Any]]:
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
        held = client.account.holdings[SYMBOL].position_lots
        body = {**order, "side": "Sell" if held > 0 else "Buy", "orderType": "Market", "qty": "0"}
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
def world() -> tuple[Exchange, Told]:
    told = Told()
    return Exchange(profile("default"), 17, clients=CLIENTS, tell=told.hear), told


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(STEPS, min_size=10, max_size=40))
def test_nothing_appears_and_nothing_vanishes(
    world: tuple[Exchange, Told], steps: list[tuple[Any, Any]]
) -> None:
    """Random clients, funding at any time, and marks that jump so that positions are liquidated."""
    exchange, told = world
    rest = Rest(exchange, lambda: None, limited=False)
    for who, what in steps:
        if who == "wait":
            exchange.advance(exchange.now_ns + what * MS)
        elif who == "funding":
            exchange.settle(SYMBOL)
        elif who == "shock":
            tape = exchange.tapes[SYMBOL]
            mark = tape.values[Field.MARK_PRICE]
            tape.values[Field.MARK_PRICE] = mark * (100 + what) // 100
            exchange._liquidate()
            tape.values[Field.MARK_PRICE] = mark
        else:
            client = exchange.clients[who]
            route, body = request(exchange, client, what)
            rest.carry_out(client, route, body, exchange.now_ms)
        check(exchange, told)


def test_the_random_clients_do_what_they_are_there_for(world: tuple[Exchange, Told]) -> None:
    """Their executions are of all kinds, or the property says less than it seems to."""
    exchange, _ = world
    rest, dice = Rest(exchange, lambda: None, limited=False), random.Random(1)
    for _ in range(600):
        client = dice.choice(exchange.clients)
        route, body = request(exchange, client, drawn(dice))
        rest.carry_out(client, route, body, exchange.now_ms)
        exchange.advance(exchange.now_ns + dice.randrange(50) * MS)
    exchange.settle(SYMBOL)
    closed = [order for client in exchange.clients for order in client.closed]
    assert {"Filled", "Cancelled"} <= {order.status for order in closed}
    rows = [row for client in exchange.clients for row in client.executions]
    assert {"Trade", "Funding"} <= {row["execType"] for row in rows}
    assert {True, False} == {row["isMaker"] for row in rows}


def drawn(dice: random.Random) -> Action:
    lots = dice.choice((dice.randint(1, 60), dice.randint(1, 2000)))
    return (
        dice.choice(VERBS),
        dice.choice((1, -1)),
        lots,
        dice.randint(-60, 60),
        dice.randrange(1000),
    )


def test_after_faults_too() -> None:
    """Answers lost, connections cut, codes made up: what the exchange holds is whole all the same."""
    told, dice = Told(), random.Random(2)
    sandbox = Sandbox(3, speed=2.0, clients=CLIENTS, limited=False, fault_rates=rates_of("all=200"))
    tell = sandbox.exchange.notices.tell
    sandbox.exchange.notices.tell = lambda notice: (told.hear(notice), tell(notice))[1]
    sandbox.exchange.notices.heard = lambda client: True
    with served(sandbox) as venue:
        done = 0
        until = time.monotonic() + 6
        while time.monotonic() < until or done < 100:
            client = dice.choice(sandbox.exchange.clients)
            action = drawn(dice)
            route, body = venue.now(lambda exchange, a=action, c=client: request(exchange, c, a))
            sent(venue.told["rest"], client, route, body)
            done += 1
        venue.now(lambda exchange: check(exchange, told))
        happened = {line.kind for line in sandbox.faults.log}
    assert {"cut_before", "cut_after", "timed_out", "rate_limited", "restart"} <= happened
    assert told.lots


def sent(address: str, client: Client, route: str, body: dict[str, Any]) -> None:
    """A request whose answer nobody waits long for."""
    payload, at = msgspec.json.encode(body), str(time.time_ns() // MS)
    signed = signature(client.secret, f"{at}{client.key}5000".encode() + payload)
    headers = {
        "X-BAPI-API-KEY": client.key,
        "X-BAPI-TIMESTAMP": at,
        "X-BAPI-SIGN": signed,
        "X-BAPI-RECV-WINDOW": "5000",
    }
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=0.2)
    try:
        connection.request("POST", f"/v5/{route}", payload, headers)
        connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        pass  # it may have been carried out, and it may not
    finally:
        connection.close()
