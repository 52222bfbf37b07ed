"""The sandbox's order entry over WebSocket, by hand, by pybit and by ccxt.pro."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import ccxt
import pybit._websocket_trading
import pybit.unified_trading
import pytest
from websockets.sync.client import connect

from proving.sandbox.server import Sandbox
from tests.proving.sandbox_clients import SYMBOL, Wire, authentication, ccxt_client
from tests.proving.sandbox_server import Served, ask, eventually, served


@pytest.fixture(scope="module")
def venue() -> Iterator[Served]:
    with served(Sandbox(seed=7, clients=3)) as running:
        yield running


@pytest.fixture
def bare(venue: Served) -> Iterator[Wire]:
    with connect(venue.description["ws_trade"]) as socket:
        yield Wire(socket)


@pytest.fixture
def wire(venue: Served, bare: Wire) -> Wire:
    """A connection that has authenticated, at the beginning of a second of limits."""
    time.sleep(1.05)
    assert bare.ask(authentication(venue))["retCode"] == 0
    return bare


def request(op: str, name: str = "", *, header: Any = None, **fields: Any) -> dict[str, Any]:
    stamp = {"X-BAPI-TIMESTAMP": str(time.time_ns() // 1_000_000)}
    body = {"category": "linear", **fields}
    created = {"op": op, "header": stamp if header is None else header, "args": [body]}
    return {"reqId": name, **created} if name else created


def far(venue: Served, away: int = 3000) -> dict[str, Any]:
    """A limit order to buy that rests."""
    ticks = venue.run(lambda exchange: exchange.markets["BTCUSDT"].best(1)) - away
    order = {"symbol": "BTCUSDT", "side": "Buy", "orderType": "Limit", "qty": "0.010"}
    return {**order, "price": f"{ticks / 10:.1f}"}


def open_ids(venue: Served, client: int = 0) -> set[str]:
    ids: set[str] = venue.run(lambda exchange: set(exchange.clients[client].open))
    return ids


def test_an_order_is_created_amended_and_cancelled(venue: Served, wire: Wire) -> None:
    created = wire.ask(request("order.create", "c-1", **far(venue), orderLinkId="t-1"))
    assert list(created) == [
        *("reqId", "retCode", "retMsg", "op", "data"),
        *("retExtInfo", "header", "connId"),
    ]
    assert (created["reqId"], created["retCode"], created["retMsg"]) == ("c-1", 0, "OK")
    assert (created["op"], created["retExtInfo"]) == ("order.create", {})
    order = created["data"]["orderId"]
    assert created["data"] == {"orderId": order, "orderLinkId": "t-1"}
    header = created["header"]
    assert (header["X-Bapi-Limit"], header["X-Bapi-Limit-Status"]) == ("10", "9")
    assert len(header["Traceid"]) == 32
    assert 0 <= venue.run(lambda exchange: exchange.now_ms) - int(header["Timenow"]) < 20_000
    assert order in open_ids(venue)
    same = {"symbol": "BTCUSDT", "orderId": order}
    amended = wire.ask(request("order.amend", "a-1", **same, qty="0.020"))
    assert (amended["retCode"], amended["data"]["orderId"]) == (0, order)
    assert venue.run(lambda exchange: exchange.clients[0].open[order].lots) == 20
    cancelled = wire.ask(request("order.cancel", **same))
    assert "reqId" not in cancelled
    assert cancelled["retCode"] == 0
    assert order not in open_ids(venue)
    late = wire.ask(request("order.cancel", "x-1", **same))
    assert (late["retCode"], late["data"]) == (110001, {})
    assert late["retMsg"] == "order not exists or too late to cancel"
    late = wire.ask(request("order.amend", "x-2", **same, qty="0.030"))
    assert late["retMsg"] == "order not exists or too late to replace"
    assert late["header"]["X-Bapi-Limit"] == "10"


def test_batches_answer_leg_by_leg(venue: Served, wire: Wire) -> None:
    good, bad = far(venue), {**far(venue), "price": "60000.05"}
    created = wire.ask(request("order.create-batch", "b-1", request=[good, bad, good]))
    assert created["retCode"] == 0
    assert [leg["code"] for leg in created["retExtInfo"]["list"]] == [0, 110003, 0]
    ids = [leg["orderId"] for leg in created["data"]["list"]]
    assert [bool(name) for name in ids] == [True, False, True]
    legs = [{"symbol": "BTCUSDT", "orderId": name, "qty": "0.030"} for name in ids if name]
    amended = wire.ask(request("order.amend-batch", "b-2", request=legs))
    assert [leg["code"] for leg in amended["retExtInfo"]["list"]] == [0, 0]
    legs = [{"symbol": "BTCUSDT", "orderId": name or "unknown"} for name in ids]
    cancelled = wire.ask(request("order.cancel-batch", "b-3", request=legs))
    assert [leg["code"] for leg in cancelled["retExtInfo"]["list"]] == [0, 110001, 0]
    assert not open_ids(venue)


def test_authentication_and_pings(venue: Served, bare: Wire) -> None:
    refused = bare.ask(request("order.create", "n-1", **far(venue)))
    assert refused["retCode"] == 10004
    assert refused["data"] == {}
    assert bare.ask(authentication(venue, secret="another"))["retCode"] == 10004
    assert bare.ask(authentication(venue, key="unknown"))["retCode"] == 10003
    assert bare.ask({"op": "auth", "args": ["a"]})["retCode"] == 10001
    answer = bare.ask({**authentication(venue), "reqId": "au-1"})
    assert answer.pop("connId")
    assert answer == {"reqId": "au-1", "retCode": 0, "retMsg": "OK", "op": "auth"}
    assert bare.ask(authentication(venue))["retCode"] == 20001
    pong = bare.ask({"op": "ping"})
    assert (pong["op"], pong["retCode"], len(pong["data"])) == ("pong", 0, 1)
    assert not open_ids(venue)


WRONG: list[tuple[int, dict[str, Any]]] = [
    (10404, {"op": "order.dance"}),
    (10404, {"op": 7}),
    (10404, {"op": ["order.create"]}),
    (10001, {"reqId": "x" * 37}),
    (10001, {"reqId": 5}),
    (10001, {"args": []}),
    (10001, {"args": [{}, {}]}),
    (10001, {"args": ["x"]}),
    (10001, {"args": {"category": "linear"}}),
    (10001, {"header": None}),
    (10001, {"header": {}}),
    (10002, {"header": {"X-BAPI-TIMESTAMP": "1600000000000"}}),
    (10001, {"header": {"X-BAPI-TIMESTAMP": []}}),
    (10001, {"args": [{"category": "nothing", "symbol": "BTCUSDT"}]}),
]


def test_what_is_wrong_is_refused_and_changes_nothing(venue: Served, wire: Wire) -> None:
    for number, (code, part) in enumerate(WRONG):
        answer = wire.ask({**request("order.create", f"w-{number}", **far(venue)), **part})
        assert answer["retCode"] == code, part
        assert answer["connId"]
    assert wire.ask("[" * 50)["retCode"] == 10001
    once = wire.ask(request("order.cancel", "twice", symbol="BTCUSDT", orderId="unknown"))
    again = wire.ask(request("order.cancel", "twice", symbol="BTCUSDT", orderId="unknown"))
    assert (once["retCode"], again["retCode"]) == (110001, 20006)
    assert not open_ids(venue)
    # A number is as good a time as a string.
    header = {"X-BAPI-TIMESTAMP": time.time_ns() // 1_000_000, "X-BAPI-RECV-WINDOW": 5000}
    unknown_order = {"symbol": "BTCUSDT", "orderId": "unknown"}
    answer = wire.ask(request("order.cancel", "n-2", header=header, **unknown_order))
    assert answer["retCode"] == 110001


def test_limits_are_those_of_rest_and_shared_with_it(venue: Served, wire: Wire) -> None:
    body = json.dumps({"category": "linear", "symbol": "BTCUSDT", "orderId": "unknown"}).encode()
    codes = []
    for number in range(12):
        fields = {"symbol": "BTCUSDT", "orderId": "unknown"}
        answer = wire.ask(request("order.cancel", f"l-{number}", **fields))
        codes.append(answer["retCode"])
        if answer["retCode"] == 10006:
            break
    status, refused, headers = ask(venue, "/v5/order/cancel", body)
    assert codes == [110001] * 10 + [10006]
    assert answer["header"]["X-Bapi-Limit-Status"] == "0"
    assert (status, refused["retCode"]) == (200, 10006)
    assert headers["X-Bapi-Limit-Status"] == "0"


def test_answers_come_before_and_after_what_the_private_stream_says(
    venue: Served, wire: Wire
) -> None:
    """Which comes first is drawn; whatever comes first, both say the same of the order."""
    with connect(venue.description["ws_private"]) as socket:
        private = Wire(socket)
        private.ask(authentication(venue))
        private.ask({"op": "subscribe", "args": ["order"]})
        for number in range(6):
            created = wire.ask(request("order.create", f"p-{number}", **far(venue)))
            (message,) = private.topics(1)
            assert message["data"][0]["orderId"] == created["data"]["orderId"]
            fields = {"symbol": "BTCUSDT", "orderId": created["data"]["orderId"]}
            wire.ask(request("order.cancel", **fields))
            assert private.topics(1)[0]["data"][0]["orderStatus"] == "Cancelled"


@pytest.mark.usefixtures("minutes_at_most")
def test_pybit_trades(venue: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pybit._websocket_trading, "TRADE_WSS", venue.description["ws_trade"])
    keys = venue.description["keys"][1]
    trading = pybit.unified_trading.WebSocketTrading(
        testnet=False,
        api_key=keys["key"],
        api_secret=keys["secret"],
        private_auth_expire=30,
        recv_window=20_000,
    )
    answers: list[dict[str, Any]] = []

    def next_answer() -> dict[str, Any]:
        eventually(lambda: answers)
        return answers.pop()

    while not trading.auth:
        time.sleep(0.02)
    # pybit notes whom to call only after it has sent: two requests may not be under way at once.
    trading.place_order(answers.append, category="linear", **far(venue))
    time.sleep(0.2)
    created = next_answer()["data"]["orderId"]
    assert created in open_ids(venue, 1)
    same = {"category": "linear", "symbol": "BTCUSDT", "orderId": created}
    trading.amend_order(answers.append, qty="0.050", **same)
    assert next_answer()["data"]["orderId"] == created
    trading.cancel_order(answers.append, **same)
    assert next_answer()["op"] == "order.cancel"
    refusals: list[dict[str, Any]] = []
    trading.cancel_order(answers.append, refusals.append, **same)
    eventually(lambda: refusals)
    trading.exit()
    assert refusals[0]["retCode"] == 110001
    assert not open_ids(venue, 1)


def test_ccxt_pro_trades(venue: Served) -> None:
    async def traded() -> dict[str, Any]:
        exchange = ccxt_client(venue, 2, pro=True)
        seen: dict[str, Any] = {}
        try:
            await exchange.load_markets()
            price = float(far(venue)["price"])
            created = await exchange.create_order_ws(SYMBOL, "limit", "buy", 0.01, price)
            seen["created"] = created["id"], open_ids(venue, 2)
            amended = await exchange.edit_order_ws(
                created["id"], SYMBOL, "limit", "buy", 0.02, price - 10
            )
            seen["amended"] = amended["id"]
            await exchange.cancel_order_ws(created["id"], SYMBOL)
            seen["open"] = open_ids(venue, 2)
            with pytest.raises(ccxt.OrderNotFound):
                await exchange.cancel_order_ws(created["id"], SYMBOL)
            with pytest.raises(ccxt.InsufficientFunds):
                await exchange.create_order_ws(SYMBOL, "market", "buy", 100)
        finally:
            await exchange.close()
        return seen

    seen = asyncio.run(asyncio.wait_for(traded(), 60))
    created, resting = seen["created"]
    assert resting == {created}
    assert seen["amended"] == created
    assert seen["open"] == set()
