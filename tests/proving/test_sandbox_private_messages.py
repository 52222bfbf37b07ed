"""Private messages: every life of an order makes its messages, in order."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple

import pytest

from proving.sandbox import account_requests, order_entry
from proving.sandbox.accounts import Client
from proving.sandbox.exchange import SandboxExchange
from proving.sandbox.private_messages import PrivateMessage
from proving.sandbox.protocol import RefusedError
from proving.sandbox.rows import position_row
from proving.synthetic.profiles import profile
from tests.proving.test_sandbox_exchange import SECOND, SYMBOL

MS = 1_000_000


class World:
    """An exchange with three clients, and the messages and public trades that it sent."""

    def __init__(self, seed: int = 11) -> None:
        self.sent: list[PrivateMessage] = []
        self.trades: list[dict[str, Any]] = []
        self.exchange = SandboxExchange(
            profile("default"),
            seed,
            clients=3,
            on_frame=self._on_frame,
            on_message=self._on_message,
        )
        self.client, self.other, self.third = self.exchange.clients

    def _on_message(self, message: PrivateMessage) -> None:
        self.sent.append(message)

    def _on_frame(self, topic: str, frame: bytes) -> None:
        if topic.startswith("publicTrade"):
            self.trades += json.loads(frame)["data"]

    def wait(self, ms: int = 100) -> None:
        self.exchange.advance(self.exchange.now_ns + ms * MS)

    def price(self, side: int, away: int = 0) -> str:
        """The best price of a side, so many ticks worse, or better if negative."""
        best = self.exchange.markets[SYMBOL].best(side)
        assert best is not None
        return self.exchange.tapes[SYMBOL].codec.price(best - side * away)

    def send(self, verb: str = "create", client: Client | None = None, **fields: Any) -> str:
        """Send a request; the id of its order."""
        body = {"category": "linear", "symbol": SYMBOL, **fields}
        run: Callable[..., Any] = getattr(order_entry, verb)
        answer: dict[str, str] = run(self.exchange, client or self.client, body)
        return answer["orderId"]

    def limit(self, side: str, qty: str, price: str, **more: Any) -> str:
        return self.send(side=side, orderType="Limit", qty=qty, price=price, **more)

    def market(self, side: str, qty: str, **more: Any) -> str:
        return self.send(side=side, orderType="Market", qty=qty, **more)

    def received(self, client: Client | None = None) -> list[tuple[str, dict[str, Any]]]:
        """(topic, message) of everything sent to a client since the last call."""
        self.wait()
        client = client or self.client
        mine = [message for message in self.sent if message.client is client]
        self.sent = [message for message in self.sent if message.client is not client]
        return [(message.topic, json.loads(message.frame(message.topic))) for message in mine]

    def reset(self) -> None:
        """Close all orders and positions, and discard the messages."""
        for client in self.exchange.clients:
            every = {"category": "linear", "settleCoin": "USDT"}
            order_entry.cancel_all(self.exchange, client, every)
            while position := client.position_lots(SYMBOL):
                qty = self.exchange.tapes[SYMBOL].codec.qty(abs(position))
                side = "Sell" if position > 0 else "Buy"
                self.market(side, qty, client=client, reduceOnly=True)
        self.wait()
        self.sent.clear()


@pytest.fixture(scope="module")
def shared() -> World:
    return World()


@pytest.fixture
def world(shared: World) -> World:
    shared.reset()
    return shared


def states(messages: list[tuple[str, dict[str, Any]]]) -> list[str]:
    return [topic for topic, _ in messages if topic in ("position", "wallet")]


class Life(NamedTuple):
    """What happens to an order, and the order messages expected: (status, cancel type, reject reason,
    executed, remaining)."""

    name: str
    act: Callable[[World], None]
    expected: list[tuple[str, str, str, str, str]]


def resting_order(world: World) -> str:
    return world.limit("Buy", "0.1", world.price(1, 500))


def best_bid_order(world: World, **more: Any) -> str:
    """A buy order at the best bid, at the end of the queue."""
    return world.limit("Buy", "0.1", world.price(1), **more)


def fill_by_other(world: World, order: str, lots: int) -> None:
    """The other client sells into the bid: the queue ahead of an order, and so many lots of it."""
    resting = world.client.open[order]
    ahead = world.exchange.markets[SYMBOL].lots_ahead(resting.handle)
    assert ahead is not None
    codec = world.exchange.tapes[SYMBOL].codec
    limit = {"orderType": "Limit", "price": codec.price(resting.ticks), "timeInForce": "IOC"}
    qty = codec.qty(ahead + lots)
    world.send(client=world.other, side="Sell", qty=qty, **limit)


UNKNOWN, OK = "UNKNOWN", "EC_NoError"
NEW = ("New", UNKNOWN, OK, "0", "0.1")
GONE = ("Cancelled", "CancelByUser", "EC_PerCancelRequest")
WOULD_TAKE = ("Cancelled", UNKNOWN, "EC_PostOnlyWillTakeLiquidity", "0", "0")


def _cancelled(world: World) -> None:
    world.send("cancel", orderId=resting_order(world))


def _amended(world: World) -> None:
    world.send("amend", orderId=resting_order(world), qty="0.2")


def _amended_into_the_market(world: World) -> None:
    world.send("amend", orderId=resting_order(world), price=world.price(-1, 50))


def _part_cancelled(world: World) -> None:
    order = best_bid_order(world)
    fill_by_other(world, order, 40)
    world.send("cancel", orderId=order)


def _filled_in_two(world: World) -> None:
    order = best_bid_order(world)
    fill_by_other(world, order, 40)
    fill_by_other(world, order, 60)


LIVES = [
    Life("rests", lambda w: discard(resting_order(w)), [NEW]),
    Life("is cancelled by its owner", _cancelled, [NEW, (*GONE, "0", "0")]),
    Life("is amended", _amended, [NEW, ("New", UNKNOWN, OK, "0", "0.2")]),
    Life(
        "is amended to a price at which it fills",
        _amended_into_the_market,
        [NEW, ("Filled", UNKNOWN, OK, "0.1", "0")],
    ),
    Life(
        "fills at once as a market order",
        lambda w: discard(w.market("Buy", "0.1")),
        [("Filled", UNKNOWN, OK, "0.1", "0")],
    ),
    Life(
        "fills at once as a limit order",
        lambda w: discard(w.limit("Buy", "0.1", w.price(-1, 50))),
        [("Filled", UNKNOWN, OK, "0.1", "0")],
    ),
    Life(
        "fills in two parts",
        _filled_in_two,
        [
            NEW,
            ("PartiallyFilled", UNKNOWN, OK, "0.04", "0.06"),
            ("Filled", UNKNOWN, OK, "0.1", "0"),
        ],
    ),
    Life(
        "fills in part and is cancelled",
        _part_cancelled,
        [NEW, ("PartiallyFilled", UNKNOWN, OK, "0.04", "0.06"), (*GONE, "0.04", "0")],
    ),
    Life(
        "is post-only and would take",
        lambda w: discard(w.limit("Buy", "0.1", w.price(-1), timeInForce="PostOnly")),
        [WOULD_TAKE],
    ),
    Life(
        "is post-only and amended to a price at which it would take",
        lambda w: discard(
            w.send(
                "amend",
                orderId=w.limit("Buy", "0.1", w.price(1, 500), timeInForce="PostOnly"),
                price=w.price(-1),
            )
        ),
        [NEW, WOULD_TAKE],
    ),
    Life(
        "is immediate and finds nothing",
        lambda w: discard(w.limit("Buy", "0.1", w.price(1), timeInForce="IOC")),
        [("Cancelled", UNKNOWN, "EC_NoImmediateQtyToFill", "0", "0")],
    ),
    Life(
        "is to be filled whole and cannot",
        lambda w: discard(w.limit("Buy", "0.1", w.price(1), timeInForce="FOK")),
        [("Cancelled", UNKNOWN, "EC_NoEnoughQtyToFill", "0", "0")],
    ),
]


def discard(_: Any) -> None:
    """Discard a result."""


@pytest.mark.parametrize("life", LIVES, ids=lambda life: life.name)
def test_every_life_of_an_order_makes_its_messages(world: World, life: Life) -> None:
    """One order message per change, with an execution message of the same id if it executed; then
    wallet and position, changed or not."""
    life.act(world)
    messages = world.received()
    orders = [(message, message["data"][0]) for topic, message in messages if topic == "order"]
    statuses = [
        (
            row["orderStatus"],
            row["cancelType"],
            row["rejectReason"],
            row["cumExecQty"],
            row["leavesQty"],
        )
        for _, row in orders
    ]
    assert statuses == life.expected
    assert states(messages) == ["wallet", "position"] * len(statuses)
    executed = Decimal(0)
    for message, row in orders:
        fills = [
            fill
            for topic, other in messages
            if topic == "execution" and other["id"] == message["id"]
            for fill in other["data"]
        ]
        executed += sum(Decimal(fill["execQty"]) for fill in fills)
        assert executed == Decimal(row["cumExecQty"])
        for fill in fills:
            assert fill["orderId"] == row["orderId"]
            assert message["id"].endswith(f"_{SYMBOL}_{fill['seq']}")
    stamps = [message["creationTime"] for _, message in messages]
    assert stamps == sorted(stamps)
    for message, row in orders:
        assert 0 <= message["creationTime"] - int(row["updatedTime"]) <= 8 + 8


def test_a_refused_order_makes_no_message(world: World) -> None:
    with pytest.raises(RefusedError):
        world.limit("Buy", "0.1", "61000.05")
    with pytest.raises(RefusedError):
        world.send("cancel", orderId="unknown")
    assert world.received() == []


def test_executions_are_public_trades(world: World) -> None:
    """With the same id, price and quantity; maker and taker share the id."""
    fill_by_other(world, best_bid_order(world), 40)
    world.market("Buy", "2")
    names: dict[str, list[str]] = {}
    for client in (world.client, world.other):
        for topic, message in world.received(client):
            for row in message["data"] if topic == "execution" else ():
                names.setdefault(row["execId"], []).append("maker" if row["isMaker"] else "taker")
                trade = next(t for t in world.trades if t["i"] == row["execId"])
                assert Decimal(trade["p"]) == Decimal(row["execPrice"])
                assert Decimal(trade["v"]) == Decimal(row["execQty"])
                assert (str(trade["T"]), trade["seq"]) == (row["execTime"], row["seq"])
    assert sorted(names.values(), key=len)[-1] == ["maker", "taker"]


def test_fast_executions_come_first_without_a_maker_s_link_id(world: World) -> None:
    order = best_bid_order(world, orderLinkId="fast-1")
    fill_by_other(world, order, 40)
    messages = world.received()
    fast = [message for topic, message in messages if topic == "execution.fast"]
    whole = [message for topic, message in messages if topic == "execution"]
    assert len(fast) == len(whole) == 1
    assert "id" not in fast[0]
    assert fast[0]["creationTime"] <= whole[0]["creationTime"]
    (row,) = fast[0]["data"]
    assert row == {name: whole[0]["data"][0][name] if name != "orderLinkId" else "" for name in row}
    assert (row["orderId"], row["isMaker"]) == (order, True)
    assert whole[0]["data"][0]["orderLinkId"] == "fast-1"


def test_position_and_wallet_messages_match_the_account(world: World) -> None:
    world.market("Buy", "0.3")
    world.limit("Buy", "0.1", world.price(1, 300))
    last = dict(world.received())
    (position,), (wallet,) = last["position"]["data"], last["wallet"]["data"]
    account, tape = world.client.account, world.exchange.tapes[SYMBOL]
    listed = position_row(world.client, tape.codec, world.exchange.marks[SYMBOL])
    assert (position["side"], position["size"]) == ("Buy", "0.3")
    assert position["entryPrice"] == listed["avgPrice"]
    assert position["category"] == "linear"
    assert Decimal(wallet["totalWalletBalance"]).scaleb(8) == account.balance_e8
    assert Decimal(wallet["coin"][0]["totalOrderIM"]) > 0
    world.market("Sell", "0.3", reduceOnly=True)
    (flat,) = dict(world.received())["position"]["data"]
    assert (flat["side"], flat["size"], flat["entryPrice"], flat["positionValue"]) == (
        *("", "0"),
        *("0", "0"),
    )


def test_a_leverage_change_sends_wallet_and_position(world: World) -> None:
    body = {"category": "linear", "symbol": SYMBOL, "buyLeverage": "7", "sellLeverage": "7"}
    account_requests.set_leverage(world.exchange, world.client, body)
    messages = world.received()
    assert states(messages) == ["wallet", "position"]
    assert dict(messages)["position"]["data"][0]["leverage"] == "7"
    world.client.margin.set_leverage(SYMBOL, "10")


def test_funding_is_sent_as_an_execution(world: World) -> None:
    world.market("Buy", "0.3")
    world.received()
    world.exchange.settle_funding(SYMBOL)
    messages = world.received()
    assert [topic for topic, _ in messages] == ["execution", "wallet", "position"]
    (row,) = messages[0][1]["data"]
    assert (row["execType"], row["orderType"], row["execQty"]) == ("Funding", "UNKNOWN", "0.3")


def test_liquidation_cancels_orders_then_reports_the_takeover(world: World) -> None:
    """The mark is lowered by hand."""
    client, tape = world.third, world.exchange.tapes[SYMBOL]
    client.account.opening_e8 -= client.account.balance_e8 - 1500 * 10**8
    world.market("Buy", "0.2", client=client)
    world.limit("Buy", "0.001", world.price(1, 500), client=client)
    world.received(client)
    mark = tape.values[1]
    tape.values[1] = mark * 87 // 100
    world.exchange._liquidate()
    tape.values[1] = mark
    orders = [
        (row["orderStatus"], row["cancelType"], row["createType"])
        for topic, message in world.received(client)
        if topic == "order"
        for row in message["data"]
    ]
    client.account.opening_e8 += 100_000 * 10**8 - client.account.balance_e8
    assert orders == [
        ("Cancelled", "CancelAllBeforeLiq", "CreateByUser"),
        ("Filled", UNKNOWN, "CreateByTakeOver_PassThrough"),
    ]


def test_an_order_carried_over_midnight_makes_no_message(world: World) -> None:
    order = resting_order(world)
    world.received()
    exchange, day_ns = world.exchange, 86_400 * SECOND
    exchange.now_ns = exchange.now_ns // day_ns * day_ns + day_ns
    exchange._open_day()
    exchange.advance(exchange.now_ns + 2 * SECOND)
    assert world.received() == []
    assert world.client.open[order].updated_ms < exchange.now_ms - 1000


def test_messages_are_a_function_of_seed_and_requests() -> None:
    """Whatever the steps that time advances in."""
    statuses = []
    for step_ms in (100, 7):
        world = World(seed=5)
        until = world.exchange.start_ns
        for number in range(40):
            client = world.exchange.clients[number % 3]
            side = "Buy" if number % 2 else "Sell"
            if number % 4 == 3:
                world.market(side, "0.05", client=client)
            else:
                near = world.price(1 if side == "Buy" else -1)
                world.limit(side, "0.02", near, client=client, reduceOnly=number % 8 == 6)
            until += 130 * MS
            while world.exchange.now_ns < until:
                world.exchange.advance(min(until, world.exchange.now_ns + step_ms * MS))
        statuses.append(
            [(message.client.owner, message.frame(message.topic)) for message in world.sent]
        )
    assert statuses[0] == statuses[1]
    assert len(statuses[0]) > 150
