"""What the sandbox tells clients of their orders: for every fate the messages, in their order."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple

import pytest

from proving.sandbox import desk, entry
from proving.sandbox.exchange import Exchange
from proving.sandbox.notices import Notice
from proving.sandbox.refusal import RefusedError
from proving.sandbox.trading import Client
from proving.synthetic.profiles import profile

SYMBOL = "BTCUSDT"
MS = 1_000_000
SECOND = 1_000_000_000


class World:
    """An exchange, its first client and what that client is told."""

    def __init__(self, seed: int = 11) -> None:
        self.told: list[Notice] = []
        self.trades: list[dict[str, Any]] = []
        self.exchange = Exchange(
            profile("default"), seed, clients=3, listen=self._listen, tell=self._tell
        )
        self.client, self.other, self.third = self.exchange.clients

    def _tell(self, notice: Notice) -> None:
        self.told.append(notice)

    def _listen(self, topic: str, frame: bytes) -> None:
        if topic.startswith("publicTrade"):
            self.trades += json.loads(frame)["data"]

    def wait(self, ms: int = 100) -> None:
        self.exchange.advance(self.exchange.now_ns + ms * MS)

    def price(self, side: int, away: int = 0) -> str:
        """So many ticks behind the best price of a side, or before it when it is negative."""
        best = self.exchange.markets[SYMBOL].best(side)
        assert best is not None
        return self.exchange.tapes[SYMBOL].figures.price(best - side * away)

    def send(self, verb: str = "create", client: Client | None = None, **fields: Any) -> str:
        """The id of the order that a request was about."""
        body = {"category": "linear", "symbol": SYMBOL, **fields}
        run: Callable[..., Any] = getattr(entry, verb)
        done: dict[str, str] = run(self.exchange, client or self.client, body)
        return done["orderId"]

    def limit(self, side: str, qty: str, price: str, **more: Any) -> str:
        return self.send(side=side, orderType="Limit", qty=qty, price=price, **more)

    def market(self, side: str, qty: str, **more: Any) -> str:
        return self.send(side=side, orderType="Market", qty=qty, **more)

    def heard(self, client: Client | None = None) -> list[tuple[str, dict[str, Any]]]:
        """Topic and message of all that a client was told since it was asked last."""
        self.wait()
        client = client or self.client
        mine = [notice for notice in self.told if notice.client is client]
        self.told = [notice for notice in self.told if notice.client is not client]
        return [(notice.topic, json.loads(notice.frame(notice.topic))) for notice in mine]

    def quiet(self) -> None:
        """Nobody holds or asks for anything, and nothing is left to be told."""
        for client in self.exchange.clients:
            entry.cancel_all(self.exchange, client, {"category": "linear", "settleCoin": "USDT"})
            while held := client.account.holdings[SYMBOL].position_lots:
                qty = self.exchange.tapes[SYMBOL].figures.qty(abs(held))
                side = "Sell" if held > 0 else "Buy"
                self.market(side, qty, client=client, reduceOnly=True)
        self.wait()
        self.told.clear()


@pytest.fixture(scope="module")
def lasting() -> World:
    return World()


@pytest.fixture
def world(lasting: World) -> World:
    lasting.quiet()
    return lasting


def states(messages: list[tuple[str, dict[str, Any]]]) -> list[str]:
    return [topic for topic, _ in messages if topic in ("position", "wallet")]


class Fate(NamedTuple):
    """What is done to an order, and the statuses told of: (status, cancel type, reason, executed,
    left), with the number of fills that come with each."""

    name: str
    act: Callable[[World], None]
    told: list[tuple[str, str, str, str, str]]


def rests(world: World) -> str:
    return world.limit("Buy", "0.1", world.price(1, 500))


def at_best(world: World, **more: Any) -> str:
    """An order at the best bid, behind those that are there."""
    return world.limit("Buy", "0.1", world.price(1), **more)


def filled_by_other(world: World, order: str, lots: int) -> None:
    """The other client sells what stands before an order, and so many lots more."""
    made = world.client.open[order]
    ahead = world.exchange.markets[SYMBOL].lots_ahead(made.handle)
    assert ahead is not None
    figures = world.exchange.tapes[SYMBOL].figures
    limit = {"orderType": "Limit", "price": figures.price(made.ticks), "timeInForce": "IOC"}
    qty = figures.qty(ahead + lots)
    world.send(client=world.other, side="Sell", qty=qty, **limit)


UNKNOWN, OK = "UNKNOWN", "EC_NoError"
NEW = ("New", UNKNOWN, OK, "0", "0.1")
GONE = ("Cancelled", "CancelByUser", "EC_PerCancelRequest")
WOULD_TAKE = ("Cancelled", UNKNOWN, "EC_PostOnlyWillTakeLiquidity", "0", "0")


def _cancelled(world: World) -> None:
    world.send("cancel", orderId=rests(world))


def _amended(world: World) -> None:
    world.send("amend", orderId=rests(world), qty="0.2")


def _amended_into_the_market(world: World) -> None:
    world.send("amend", orderId=rests(world), price=world.price(-1, 50))


def _part_cancelled(world: World) -> None:
    order = at_best(world)
    filled_by_other(world, order, 40)
    world.send("cancel", orderId=order)


def _filled_in_two(world: World) -> None:
    order = at_best(world)
    filled_by_other(world, order, 40)
    filled_by_other(world, order, 60)


FATES = [
    Fate("rests", lambda w: void(rests(w)), [NEW]),
    Fate("is cancelled by its owner", _cancelled, [NEW, (*GONE, "0", "0")]),
    Fate("is amended", _amended, [NEW, ("New", UNKNOWN, OK, "0", "0.2")]),
    Fate(
        "is amended to a price at which it fills",
        _amended_into_the_market,
        [NEW, ("Filled", UNKNOWN, OK, "0.1", "0")],
    ),
    Fate(
        "fills at once as a market order",
        lambda w: void(w.market("Buy", "0.1")),
        [("Filled", UNKNOWN, OK, "0.1", "0")],
    ),
    Fate(
        "fills at once as a limit order",
        lambda w: void(w.limit("Buy", "0.1", w.price(-1, 50))),
        [("Filled", UNKNOWN, OK, "0.1", "0")],
    ),
    Fate(
        "fills in two parts",
        _filled_in_two,
        [
            NEW,
            ("PartiallyFilled", UNKNOWN, OK, "0.04", "0.06"),
            ("Filled", UNKNOWN, OK, "0.1", "0"),
        ],
    ),
    Fate(
        "fills in part and is cancelled",
        _part_cancelled,
        [NEW, ("PartiallyFilled", UNKNOWN, OK, "0.04", "0.06"), (*GONE, "0.04", "0")],
    ),
    Fate(
        "is post-only and would take",
        lambda w: void(w.limit("Buy", "0.1", w.price(-1), timeInForce="PostOnly")),
        [WOULD_TAKE],
    ),
    Fate(
        "is post-only and amended to a price at which it would take",
        lambda w: void(
            w.send(
                "amend",
                orderId=w.limit("Buy", "0.1", w.price(1, 500), timeInForce="PostOnly"),
                price=w.price(-1),
            )
        ),
        [NEW, WOULD_TAKE],
    ),
    Fate(
        "is immediate and finds nothing",
        lambda w: void(w.limit("Buy", "0.1", w.price(1), timeInForce="IOC")),
        [("Cancelled", UNKNOWN, "EC_NoImmediateQtyToFill", "0", "0")],
    ),
    Fate(
        "is to be filled whole and cannot",
        lambda w: void(w.limit("Buy", "0.1", w.price(1), timeInForce="FOK")),
        [("Cancelled", UNKNOWN, "EC_NoEnoughQtyToFill", "0", "0")],
    ),
]


def void(_: Any) -> None:
    """For what is done for its effect."""


@pytest.mark.parametrize("fate", FATES, ids=lambda fate: fate.name)
def test_every_fate_has_its_messages(world: World, fate: Fate) -> None:
    """One order message a change, with an execution message of its id where it executed; then wallet
    and position, changed or not."""
    fate.act(world)
    messages = world.heard()
    orders = [(message, message["data"][0]) for topic, message in messages if topic == "order"]
    told = [
        (
            row["orderStatus"],
            row["cancelType"],
            row["rejectReason"],
            row["cumExecQty"],
            row["leavesQty"],
        )
        for _, row in orders
    ]
    assert told == fate.told
    assert states(messages) == ["wallet", "position"] * len(told)
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


def test_an_order_that_is_refused_is_not_told_of(world: World) -> None:
    with pytest.raises(RefusedError):
        world.limit("Buy", "0.1", "61000.05")
    with pytest.raises(RefusedError):
        world.send("cancel", orderId="unknown")
    assert world.heard() == []


def test_executions_are_trades_that_all_could_see(world: World) -> None:
    """The id, price and quantity of each is a public trade's; maker and taker are told the same id."""
    filled_by_other(world, at_best(world), 40)
    world.market("Buy", "2")
    names: dict[str, list[str]] = {}
    for client in (world.client, world.other):
        for topic, message in world.heard(client):
            for row in message["data"] if topic == "execution" else ():
                names.setdefault(row["execId"], []).append("maker" if row["isMaker"] else "taker")
                trade = next(t for t in world.trades if t["i"] == row["execId"])
                assert Decimal(trade["p"]) == Decimal(row["execPrice"])
                assert Decimal(trade["v"]) == Decimal(row["execQty"])
                assert (str(trade["T"]), trade["seq"]) == (row["execTime"], row["seq"])
    assert sorted(names.values(), key=len)[-1] == ["maker", "taker"]


def test_fast_executions_come_first_and_do_not_name_a_maker_s_order(world: World) -> None:
    order = at_best(world, orderLinkId="fast-1")
    filled_by_other(world, order, 40)
    messages = world.heard()
    fast = [message for topic, message in messages if topic == "execution.fast"]
    whole = [message for topic, message in messages if topic == "execution"]
    assert len(fast) == len(whole) == 1
    assert "id" not in fast[0]
    assert fast[0]["creationTime"] <= whole[0]["creationTime"]
    (row,) = fast[0]["data"]
    assert row == {name: whole[0]["data"][0][name] if name != "orderLinkId" else "" for name in row}
    assert (row["orderId"], row["isMaker"]) == (order, True)
    assert whole[0]["data"][0]["orderLinkId"] == "fast-1"


def test_the_last_position_and_wallet_are_those_of_the_account(world: World) -> None:
    world.market("Buy", "0.3")
    world.limit("Buy", "0.1", world.price(1, 300))
    last = dict(world.heard())
    (position,), (wallet,) = last["position"]["data"], last["wallet"]["data"]
    account, tape = world.client.account, world.exchange.tapes[SYMBOL]
    listed = world.client.position_row(tape.figures, world.exchange.marks()[SYMBOL])
    assert (position["side"], position["size"]) == ("Buy", "0.3")
    assert position["entryPrice"] == listed["avgPrice"]
    assert position["category"] == "linear"
    assert Decimal(wallet["totalWalletBalance"]).scaleb(8) == account.balance_e8
    assert Decimal(wallet["coin"][0]["totalOrderIM"]) > 0
    world.market("Sell", "0.3", reduceOnly=True)
    (flat,) = dict(world.heard())["position"]["data"]
    assert (flat["side"], flat["size"], flat["entryPrice"], flat["positionValue"]) == (
        *("", "0"),
        *("0", "0"),
    )


def test_settings_that_change_margins_are_told_of(world: World) -> None:
    body = {"category": "linear", "symbol": SYMBOL, "buyLeverage": "7", "sellLeverage": "7"}
    desk.set_leverage(world.exchange, world.client, body)
    messages = world.heard()
    assert states(messages) == ["wallet", "position"]
    assert dict(messages)["position"]["data"][0]["leverage"] == "7"
    world.client.margin.set_leverage(SYMBOL, "10")


def test_funding_is_told_of_as_an_execution(world: World) -> None:
    world.market("Buy", "0.3")
    world.heard()
    world.exchange.settle(SYMBOL)
    messages = world.heard()
    assert [topic for topic, _ in messages] == ["execution", "wallet", "position"]
    (row,) = messages[0][1]["data"]
    assert (row["execType"], row["orderType"], row["execQty"]) == ("Funding", "UNKNOWN", "0.3")


def test_liquidation_is_told_of_in_full(world: World) -> None:
    """The mark is taken down by hand: orders end first, then the position goes over to the fund."""
    client, tape = world.third, world.exchange.tapes[SYMBOL]
    client.account.opening_e8 -= client.account.balance_e8 - 1500 * 10**8
    world.market("Buy", "0.2", client=client)
    world.limit("Buy", "0.001", world.price(1, 500), client=client)
    world.heard(client)
    mark = tape.values[1]
    tape.values[1] = mark * 87 // 100
    world.exchange._liquidate()
    tape.values[1] = mark
    orders = [
        (row["orderStatus"], row["cancelType"], row["createType"])
        for topic, message in world.heard(client)
        if topic == "order"
        for row in message["data"]
    ]
    client.account.opening_e8 += 100_000 * 10**8 - client.account.balance_e8
    assert orders == [
        ("Cancelled", "CancelAllBeforeLiq", "CreateByUser"),
        ("Filled", UNKNOWN, "CreateByTakeOver_PassThrough"),
    ]


def test_an_order_that_goes_over_into_the_next_day_is_not_told_of(world: World) -> None:
    order = rests(world)
    world.heard()
    exchange, day_ns = world.exchange, 86_400 * SECOND
    exchange.now_ns = exchange.now_ns // day_ns * day_ns + day_ns
    exchange._open_day()
    exchange.advance(exchange.now_ns + 2 * SECOND)
    assert world.heard() == []
    assert world.client.open[order].updated_ms < exchange.now_ms - 1000


def test_what_clients_are_told_is_a_function_of_seed_and_requests() -> None:
    """However finely time is let go on between requests."""
    told = []
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
        told.append([(notice.client.owner, notice.frame(notice.topic)) for notice in world.told])
    assert told[0] == told[1]
    assert len(told[0]) > 150
