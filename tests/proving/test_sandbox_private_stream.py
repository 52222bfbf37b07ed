"""The sandbox's private stream, by hand, by pybit and by ccxt.pro."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pybit.unified_trading
import pytest
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

from proving.sandbox import streams
from proving.sandbox.server import Sandbox
from tests.proving.sandbox_clients import SYMBOL, Wire, authentication, ccxt_client
from tests.proving.sandbox_server import Served, ask, eventually, pybit_stream, served

TOPICS = ["order", "execution", "position", "wallet"]


@pytest.fixture(scope="module")
def venue() -> Iterator[Served]:
    with served(Sandbox(seed=7, clients=4, limited=False)) as running:
        yield running


@contextmanager
def private_wire(venue: Served, client: int = 0, *topics: str) -> Iterator[Wire]:
    """A connection that has authenticated and subscribed."""
    with connect(venue.description["ws_private"]) as socket:
        wire = Wire(socket)
        assert wire.ask(authentication(venue, client))["success"]
        if topics:
            assert wire.ask({"op": "subscribe", "args": list(topics)})["success"]
        yield wire


def post(venue: Served, path: str, client: int = 0, **body: Any) -> dict[str, Any]:
    sent = json.dumps({"category": "linear", "symbol": "BTCUSDT", **body}).encode()
    _, answer, _ = ask(venue, f"/v5/{path}", sent, client=client)
    assert answer["retCode"] == 0, answer
    result: dict[str, Any] = answer["result"]
    return result


def rest_order(venue: Served, client: int = 0, **more: Any) -> str:
    """A limit order far from the market; its id."""
    far = venue.run(lambda exchange: exchange.markets["BTCUSDT"].best(1)) - 3000
    fields = {"side": "Buy", "orderType": "Limit", "qty": "0.010", "price": f"{far / 10:.1f}"}
    order: str = post(venue, "order/create", client, **{**fields, **more})["orderId"]
    return order


def market_order(venue: Served, client: int, side: str, qty: str = "0.010") -> str:
    created = post(venue, "order/create", client, side=side, orderType="Market", qty=qty)
    order: str = created["orderId"]
    return order


def test_authentication_is_answered_as_recorded(venue: Served) -> None:
    with connect(venue.description["ws_private"]) as socket:
        wire = Wire(socket)
        past = time.time_ns() // 1_000_000 - 1
        wrong: list[dict[str, Any]] = [
            authentication(venue, secret="another"),
            authentication(venue, key="unknown"),
            authentication(venue, expires=past),
            {"op": "auth", "args": []},
            {"op": "auth"},
            {"op": "auth", "args": ["a", "b", "c"]},
        ]
        for request in wrong:
            answer = wire.ask(request)
            assert (answer["success"], answer["op"]) == (False, "auth")
            assert answer["ret_msg"] == "error:USVC1111"
            assert answer["request"] == {"op": "auth", "args": request.get("args")}
        refused = wire.ask({"op": "subscribe", "args": ["order"], "req_id": "9"})
        assert (refused["success"], refused["req_id"]) == (False, "9")
        # The expiry may be a number or a string.
        stamp = str(time.time_ns() // 1_000_000 + 30_000)
        for request in (authentication(venue), authentication(venue, expires=stamp)):
            answer = wire.ask({**request, "req_id": "10001"})
            assert answer.pop("conn_id")
            assert answer == {"success": True, "ret_msg": "", "op": "auth", "req_id": "10001"}
        assert not wire.ask(authentication(venue, 1))["success"]
        assert wire.ask({"op": "subscribe", "args": ["order"]})["success"]


def test_private_requests_are_answered_and_refused_as_on_the_venue(venue: Served) -> None:
    with private_wire(venue, 0, "order", "wallet") as wire:
        again = wire.ask({"op": "subscribe", "args": ["position", "order"], "req_id": 4})
        assert again["ret_msg"] == "error:already subscribed,topic:order"
        assert again["req_id"] == "4"
        for topic in ("orders", "tickers.BTCUSDT", "order.BTCUSDT", "wallet.linear", 7):
            refused = wire.ask({"op": "subscribe", "args": ["position", topic]})
            assert refused["ret_msg"] == f"error:handler not found,topic:{topic}"
        mixed = wire.ask({"op": "subscribe", "args": ["execution", "execution.linear"]})
        assert not mixed["success"]
        assert wire.ask({"op": "subscribe", "args": ["position"]})["success"]
        assert wire.ask({"op": "unsubscribe", "args": ["order"]})["success"]
        assert wire.ask({"op": "subscribe", "args": ["order.linear"]})["success"]
        pong = wire.ask({"op": "ping", "req_id": "2"})
        assert set(pong) == {"req_id", "op", "args", "conn_id"}
        assert (pong["req_id"], pong["op"]) == ("2", "pong")
        assert abs(int(pong["args"][0]) - time.time() * 1000) < 10_000
        assert wire.ask({"op": "dance"})["ret_msg"] == "error:invalid op"
        assert wire.ask("{")["ret_msg"].startswith("Failed to decode incoming data:")


def test_messages_reach_every_connection_under_its_topic_name(
    venue: Served,
) -> None:
    with (
        private_wire(venue, 0, *TOPICS) as first,
        private_wire(venue, 0, "order.linear", "position.linear") as second,
        private_wire(venue, 1, *TOPICS) as other,
    ):
        order = rest_order(venue, orderLinkId="both-1")
        messages = first.topics(3)
        assert [frame["topic"] for frame in messages] == ["order", "wallet", "position"]
        twin = second.topics(2)
        assert [frame["topic"] for frame in twin] == ["order.linear", "position.linear"]
        assert [frame["id"] for frame in twin] == [messages[0]["id"], messages[2]["id"]]
        assert twin[0]["data"] == messages[0]["data"]
        (row,) = messages[0]["data"]
        assert (row["orderId"], row["orderLinkId"]) == (order, "both-1")
        post(venue, "order/cancel", orderId=order)
        assert first.topics(3)[0]["data"][0]["cancelType"] == "CancelByUser"
        assert other.is_silent()


def test_rest_has_everything_missed_while_disconnected(venue: Served) -> None:
    """Past messages are not sent again."""
    with private_wire(venue, 0, *TOPICS) as wire:
        order = rest_order(venue)
        wire.topics(3)
    post(venue, "order/amend", orderId=order, qty="0.020")
    filled = market_order(venue, 0, "Buy")
    with private_wire(venue, 0, *TOPICS) as wire:
        assert wire.is_silent()
        query = "/v5/order/realtime?category=linear&symbol=BTCUSDT"
        (row,) = ask(venue, query)[1]["result"]["list"]
        assert (row["orderId"], float(row["qty"])) == (order, 0.02)
        executions = ask(venue, f"/v5/execution/list?category=linear&orderId={filled}")[1]
        assert executions["result"]["list"]
        post(venue, "order/cancel", orderId=order)
        assert wire.topics(3)[0]["data"][0]["orderId"] == order
        market_order(venue, 0, "Sell")
        frames = wire.topics(4)
        assert {frame["topic"] for frame in frames} == set(TOPICS)
        (flat,) = next(frame for frame in frames if frame["topic"] == "position")["data"]
        assert flat["size"] == "0"


def test_disconnect_cancel_all_cancels_after_the_window(venue: Served) -> None:
    """Not for a client that has reconnected in time, nor for one without protection."""
    orders = (rest_order(venue, client) for client in (2, 3, 1))
    protected, reconnected, unprotected = orders
    for client in (2, 3):
        post(venue, "order/disconnected-cancel-all", client, product="DERIVATIVES", timeWindow=3)
    info = ask(venue, "/v5/account/query-dcp-info", client=2)[1]["result"]
    row = {"product": "DERIVATIVES", "dcpStatus": "ON", "timeWindow": "3"}
    assert info == {"dcpInfos": [row]}
    with private_wire(venue, 2, streams.DCP_TOPIC), private_wire(venue, 3, streams.DCP_TOPIC):
        pass
    with private_wire(venue, 1, "wallet"):
        pass
    with (
        private_wire(venue, 2, "order") as wire,
        private_wire(venue, 3, streams.DCP_TOPIC),
    ):
        (ended,) = wire.topics(1)
        (row,) = ended["data"]
        assert (row["orderId"], row["orderStatus"]) == (protected, "Cancelled")
        assert row["cancelType"] == "CancelByDCP"
        clients = venue.run(lambda exchange: [set(c.open) for c in exchange.clients])
        assert reconnected in clients[3]
        assert unprotected in clients[1]
        post(venue, "order/cancel", 3, orderId=reconnected)
        post(venue, "order/cancel", 1, orderId=unprotected)


@pytest.mark.parametrize("window", [2, 301, "10", None])
def test_a_disconnect_window_out_of_range_is_refused(venue: Served, window: Any) -> None:
    body = json.dumps({"product": "DERIVATIVES", "timeWindow": window}).encode()
    answer = ask(venue, "/v5/order/disconnected-cancel-all", body)[1]
    assert answer["retCode"] == 10001


@pytest.mark.parametrize(
    ("requested", "seconds"),
    [("", 600), ("30s", 30), ("1m", 60), ("5s", 30), ("11m", 600), ("soon", 600)],
)
def test_the_idle_timeout_can_be_requested_within_bounds(requested: str, seconds: int) -> None:
    assert streams.idle_timeout_s(requested) == seconds


def test_an_idle_connection_is_cut_and_a_pinging_one_stays(
    venue: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a closing frame."""
    monkeypatch.setattr(streams, "_MIN_IDLE_TIMEOUT_S", 2)
    address = venue.description["ws_private"] + "?max_active_time=2s"
    with connect(address) as silent, connect(address) as speaking:

        def cut() -> bool:
            assert Wire(speaking).ask({"op": "ping"})["op"] == "pong"
            try:
                silent.recv(timeout=0.1)
            except TimeoutError:
                return False
            except ConnectionClosedError:
                return True
            raise AssertionError("an unexpected frame")

        eventually(cut)
        assert Wire(speaking).ask({"op": "ping"})["op"] == "pong"


@pytest.mark.usefixtures("minutes_at_most")
def test_pybit_receives_its_private_topics(venue: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pybit.unified_trading, "PRIVATE_WSS", venue.description["ws_private"])
    keys = venue.description["keys"][0]
    named = {"api_key": keys["key"], "api_secret": keys["secret"]}
    stream = pybit_stream(channel_type="private", private_auth_expire=30, **named)
    frames: dict[str, list[dict[str, Any]]] = {topic: [] for topic in (*TOPICS, "execution.fast")}
    stream.order_stream(frames["order"].append)
    stream.execution_stream(frames["execution"].append)
    stream.fast_execution_stream(frames["execution.fast"].append)
    stream.position_stream(frames["position"].append)
    stream.wallet_stream(frames["wallet"].append)
    session = pybit.unified_trading.HTTP(**named)
    session.endpoint = venue.description["rest"]
    eventually(
        lambda: venue.run(lambda _: len(venue.sandbox.venue.private_stream.subscribers)) >= 5
    )
    created = session.place_order(
        category="linear", symbol="BTCUSDT", side="Buy", orderType="Market", qty="0.02"
    )
    session.place_order(
        category="linear", symbol="BTCUSDT", side="Sell", orderType="Market", qty="0.02"
    )
    eventually(
        lambda: {topic: len(each) for topic, each in frames.items()} == dict.fromkeys(frames, 2)
    )
    stream.exit()
    (row,) = frames["order"][0]["data"]
    assert row["orderId"] == created["result"]["orderId"]
    assert row["orderStatus"] == "Filled"
    fills = [fill for frame in frames["execution"] for fill in frame["data"]]
    fast = [fill for frame in frames["execution.fast"] for fill in frame["data"]]
    assert [fill["execId"] for fill in fills] == [fill["execId"] for fill in fast]
    assert frames["position"][0]["data"][0]["size"] == "0.02"
    assert frames["position"][-1]["data"][0]["side"] == ""


def test_ccxt_pro_watches_orders_trades_positions_and_balance(venue: Served) -> None:
    async def watched() -> dict[str, Any]:
        exchange = ccxt_client(venue, pro=True)
        seen: dict[str, Any] = {}

        async def open_positions() -> list[Any]:
            """A copy of the first non-empty positions: ccxt may repeat REST's first, and mutates what it
            has returned."""
            while True:
                rows = await exchange.watch_positions([SYMBOL])
                if any(row["contracts"] for row in rows):
                    return [dict(row) for row in rows]

        try:
            await exchange.load_markets()
            before = await exchange.fetch_balance()
            assert await exchange.watch_positions([SYMBOL]) == []  # what REST has
            watches = {
                "order": asyncio.create_task(exchange.watch_orders(SYMBOL)),
                "trades": asyncio.create_task(exchange.watch_my_trades(SYMBOL)),
                "positions": asyncio.create_task(open_positions()),
                "balance": asyncio.create_task(exchange.watch_balance()),
            }
            stream = venue.sandbox.venue.private_stream
            while not set(TOPICS) <= set(stream.subscribers):
                await asyncio.sleep(0.02)
            await exchange.create_order(SYMBOL, "market", "buy", 0.03)
            for name, watch in watches.items():
                seen[name] = await watch
            await exchange.create_order(SYMBOL, "market", "sell", 0.03, None, {"reduceOnly": True})
            while not (closing := await exchange.watch_orders(SYMBOL))[-1]["reduceOnly"]:
                pass
            seen["flat"] = closing
            while (last := await exchange.watch_positions([SYMBOL]))[-1]["contracts"]:
                pass
            seen["last"] = last[-1]
            seen["before"] = before
        finally:
            await exchange.close()
        return seen

    seen = asyncio.run(asyncio.wait_for(watched(), 30))
    order = seen["order"][-1]
    assert (order["status"], order["filled"], order["side"]) == ("closed", 0.03, "buy")
    assert sum(trade["amount"] for trade in seen["trades"]) == pytest.approx(0.03)
    assert {trade["order"] for trade in seen["trades"]} == {order["id"]}
    assert {trade["takerOrMaker"] for trade in seen["trades"]} == {"taker"}
    (position,) = seen["positions"]
    assert (position["side"], position["contracts"]) == ("long", 0.03)
    assert seen["balance"]["USDT"]["total"] < seen["before"]["USDT"]["total"]
    assert seen["flat"][-1]["status"] == "closed"
    assert seen["last"]["contracts"] == 0
