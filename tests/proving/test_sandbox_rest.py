"""The sandbox's REST, by unmodified ccxt and pybit and by requests made by hand."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import ccxt
import pytest

from proving.sandbox.protocol import signature
from proving.sandbox.server import Sandbox
from tests.proving.sandbox_clients import SYMBOL, ccxt_client, pybit_client
from tests.proving.sandbox_server import Served, ask, eventually, served


@pytest.fixture(scope="module")
def venue() -> Iterator[Served]:
    with served(Sandbox(seed=7, clients=3, limited=False)) as running:
        yield running


@pytest.fixture(scope="module")
def trader(venue: Served) -> Any:
    client = ccxt_client(venue)
    client.load_markets()
    return client


def touch(trader: Any) -> tuple[float, float]:
    book = trader.fetch_order_book(SYMBOL, 5)
    return book["bids"][0][0], book["asks"][0][0]


def fetch(trader: Any, order: dict[str, Any]) -> Any:
    return trader.fetch_order(order["id"], SYMBOL, {"acknowledged": True})


def flatten(trader: Any) -> None:
    trader.cancel_all_orders(SYMBOL)
    position = trader.fetch_position(SYMBOL)
    if position["contracts"]:
        side = "sell" if position["side"] == "long" else "buy"
        trader.create_order(
            SYMBOL, "market", side, position["contracts"], None, {"reduceOnly": True}
        )


# -- market data -----------------------------------------------------------------------------------


def test_markets_are_those_of_the_venue(trader: Any) -> None:
    market = trader.market(SYMBOL)
    assert market["id"] == "BTCUSDT"
    assert market["linear"]
    assert (market["precision"]["amount"], market["precision"]["price"]) == (0.001, 0.1)
    assert market["limits"]["amount"]["max"] == 1500
    assert market["limits"]["leverage"]["max"] == 150


def test_market_data_agree_with_each_other(trader: Any) -> None:
    book = trader.fetch_order_book(SYMBOL, 50)
    assert len(book["bids"]) == len(book["asks"]) == 50
    assert book["bids"][0][0] < book["asks"][0][0]
    assert book["bids"] == sorted(book["bids"], reverse=True)
    trades = trader.fetch_trades(SYMBOL, limit=100)
    assert len(trades) == 100
    assert len({trade["id"] for trade in trades}) == 100
    ticker = trader.fetch_ticker(SYMBOL)
    assert ticker["low"] <= ticker["last"] <= ticker["high"]
    candles = trader.fetch_ohlcv(SYMBOL, "1m")
    assert len(candles) >= 5
    assert [row[0] for row in candles] == sorted(row[0] for row in candles)
    for _, opening, high, low, close, volume in candles:
        assert low <= min(opening, close) <= max(opening, close) <= high
        assert volume > 0
    assert all(after[0] - before[0] == 60_000 for before, after in pairwise(candles))


def test_five_minute_candles_aggregate_one_minute_candles(trader: Any) -> None:
    longer = trader.fetch_ohlcv(SYMBOL, "5m")[0]
    ones = trader.fetch_ohlcv(SYMBOL, "1m")[:5]
    assert longer[0] == ones[0][0]
    assert longer[1] == ones[0][1]
    assert longer[2:4] == [max(row[2] for row in ones), min(row[3] for row in ones)]
    assert longer[5] == pytest.approx(sum(row[5] for row in ones))


def test_funding_tiers_limits_and_time(trader: Any) -> None:
    funding = trader.fetch_funding_rate(SYMBOL)
    assert abs(funding["fundingRate"]) <= 0.00333
    assert trader.fetch_funding_rate_history(SYMBOL) == []
    tiers = trader.fetch_market_leverage_tiers(SYMBOL)
    assert len(tiers) == 35
    assert tiers[0]["maxLeverage"] == 150
    assert abs(trader.fetch_time() - time.time() * 1000) < 2000
    assert trader.fetch_open_interest(SYMBOL)["openInterestAmount"] > 0
    assert trader.fetch_status()["status"] == "ok"
    fee = trader.fetch_trading_fee(SYMBOL)
    assert (fee["maker"], fee["taker"]) == (0.0002, 0.00055)


# -- orders ----------------------------------------------------------------------------------------


def test_a_market_order_fills_and_its_fee_is_paid(trader: Any) -> None:
    before = trader.fetch_balance()["USDT"]["total"]
    order = fetch(trader, trader.create_order(SYMBOL, "market", "buy", 0.01))
    assert order["status"] == "closed"
    assert order["filled"] == 0.01
    position = trader.fetch_position(SYMBOL)
    assert (position["side"], position["contracts"]) == ("long", 0.01)
    assert position["entryPrice"] == pytest.approx(order["average"])
    fills = trader.fetch_my_trades(SYMBOL, params={"orderId": order["id"]})
    assert sum(fill["amount"] for fill in fills) == pytest.approx(0.01)
    paid = sum(fill["fee"]["cost"] for fill in fills)
    assert paid == pytest.approx(order["average"] * 0.01 * 0.00055, abs=1e-7)
    assert order["fee"]["cost"] == pytest.approx(paid)
    profit = trader.fetch_position(SYMBOL)["unrealizedPnl"]
    assert trader.fetch_balance()["USDT"]["total"] == pytest.approx(before - paid + profit, abs=2)
    flatten(trader)
    assert trader.fetch_positions() == []
    closed = trader.fetch_positions_history([SYMBOL])[-1]
    assert closed["contracts"] == 0.01
    log = trader.fetch_ledger("USDT")
    assert sum(entry["amount"] * (1 if entry["direction"] == "in" else -1) for entry in log) < 0


def test_a_resting_order_is_amended_and_cancelled(trader: Any) -> None:
    bid, _ = touch(trader)
    created = trader.create_order(
        SYMBOL, "limit", "buy", 0.02, bid - 100, {"clientOrderId": "rest-1"}
    )
    order = fetch(trader, created)
    assert (order["status"], order["clientOrderId"]) == ("open", "rest-1")
    assert [o["id"] for o in trader.fetch_open_orders(SYMBOL)] == [created["id"]]
    trader.edit_order(created["id"], SYMBOL, "limit", "buy", 0.03, bid - 200)
    order = fetch(trader, created)
    assert (order["amount"], order["price"]) == (0.03, pytest.approx(bid - 200))
    with pytest.raises(ccxt.InvalidOrder):
        trader.create_order(SYMBOL, "limit", "buy", 0.02, bid - 90, {"clientOrderId": "rest-1"})
    trader.cancel_order(created["id"], SYMBOL)
    order = fetch(trader, created)
    assert (order["status"], order["filled"]) == ("canceled", 0)
    assert created["id"] in [o["id"] for o in trader.fetch_canceled_orders(SYMBOL)]
    with pytest.raises(ccxt.OrderNotFound):
        trader.cancel_order(created["id"], SYMBOL)
    with pytest.raises(ccxt.OrderNotFound):
        trader.edit_order(created["id"], SYMBOL, "limit", "buy", 0.03, bid - 300)


def test_a_maker_order_is_filled_by_the_market_at_its_price(trader: Any) -> None:
    bid, _ = touch(trader)
    created = trader.create_order(SYMBOL, "limit", "buy", 0.005, bid, {"postOnly": True})

    def filled() -> Any:
        order = fetch(trader, created)
        if order["status"] == "open":  # follow the best bid until it fills
            best, _ = touch(trader)
            if best > order["price"]:
                trader.edit_order(created["id"], SYMBOL, "limit", "buy", 0.005, best)
        return order if order["status"] != "open" else None

    order = eventually(filled)
    if order["status"] == "closed":
        fills = trader.fetch_my_trades(SYMBOL, params={"orderId": created["id"]})
        assert {fill["takerOrMaker"] for fill in fills} == {"maker"}
        assert {fill["price"] for fill in fills} == {order["price"]}
    flatten(trader)


def test_orders_that_cannot_rest_or_fill_are_cancelled_with_reasons(trader: Any) -> None:
    _, ask = touch(trader)
    crossing = ask + 50
    post = trader.create_order(SYMBOL, "limit", "buy", 0.01, crossing, {"postOnly": True})
    row = fetch(trader, post)
    assert (row["status"], row["filled"]) == ("canceled", 0)
    assert row["info"]["rejectReason"] == "EC_PostOnlyWillTakeLiquidity"
    away = trader.create_order(SYMBOL, "limit", "buy", 0.01, ask - 300, {"timeInForce": "IOC"})
    assert fetch(trader, away)["info"]["rejectReason"] == "EC_NoImmediateQtyToFill"
    whole = trader.create_order(SYMBOL, "limit", "buy", 3, ask - 300, {"timeInForce": "FOK"})
    assert fetch(trader, whole)["status"] == "canceled"
    fok = trader.create_order(SYMBOL, "limit", "buy", 0.01, crossing, {"timeInForce": "FOK"})
    assert fetch(trader, fok)["status"] == "closed"
    flatten(trader)


def test_batches_answer_leg_by_leg(trader: Any) -> None:
    bid, _ = touch(trader)
    legs = [
        {"symbol": SYMBOL, "type": "limit", "side": "buy", "amount": 0.01, "price": bid - 100},
        {"symbol": SYMBOL, "type": "limit", "side": "buy", "amount": 0.01, "price": bid - 110},
    ]
    created = trader.create_orders(legs)
    assert all(order["id"] for order in created)
    assert len(trader.fetch_open_orders(SYMBOL)) == 2
    trader.cancel_orders([order["id"] for order in created], SYMBOL)
    assert trader.fetch_open_orders() == []


def test_ccxt_raises_the_matching_exception_for_refusals(trader: Any) -> None:
    bid, _ = touch(trader)
    with pytest.raises(ccxt.InsufficientFunds):
        trader.create_order(SYMBOL, "limit", "buy", 100, bid - 10)
    with pytest.raises(ccxt.InvalidOrder):
        trader.create_order(SYMBOL, "limit", "sell", 0.01, bid + 100, {"reduceOnly": True})
    with pytest.raises(ccxt.BadRequest):
        trader.create_order(SYMBOL, "limit", "buy", 1600, bid - 10)
    assert trader.fetch_open_orders() == []
    assert trader.fetch_positions() == []


def test_a_price_beyond_the_limits_is_clamped(trader: Any) -> None:
    limit = trader.publicGetV5MarketPriceLimit({"category": "linear", "symbol": "BTCUSDT"})[
        "result"
    ]
    far = float(limit["sellLmt"]) - 500
    order = fetch(trader, trader.create_order(SYMBOL, "limit", "sell", 0.01, far))
    assert order["status"] == "closed"
    assert order["price"] == pytest.approx(float(limit["sellLmt"]), rel=1e-3)
    assert order["average"] > order["price"]
    flatten(trader)


def test_leverage_and_margin_mode(venue: Served) -> None:
    trader = ccxt_client(venue, 2)
    trader.set_leverage(5, SYMBOL)
    assert trader.fetch_position(SYMBOL)["leverage"] == 5
    with pytest.raises(ccxt.BadRequest, match="110043"):
        trader.set_leverage(5, SYMBOL)
    trader.set_margin_mode("isolated", SYMBOL, {"leverage": 5})
    trader.create_order(SYMBOL, "market", "sell", 0.02)
    position = trader.fetch_position(SYMBOL)
    assert position["marginMode"] in ("isolated", None) or position["info"]["tradeMode"] == 0
    entry = position["entryPrice"]
    assert entry * 1.15 < position["liquidationPrice"] < entry * 1.2
    assert position["initialMargin"] == pytest.approx(entry * 0.02 / 5, rel=0.01)
    flatten(trader)


# -- pybit -----------------------------------------------------------------------------------------


def test_pybit_trades_as_well(venue: Served) -> None:
    session = pybit_client(venue, 1)
    assert session.get_server_time()["retCode"] == 0
    book = session.get_orderbook(category="linear", symbol="BTCUSDT", limit=5)["result"]
    price = f"{float(book['b'][0][0]) - 100:.1f}"
    created = session.place_order(
        category="linear",
        symbol="BTCUSDT",
        side="Buy",
        orderType="Limit",
        qty="0.010",
        price=price,
        orderLinkId="pybit-1",
    )["result"]
    rows = session.get_open_orders(category="linear", symbol="BTCUSDT")["result"]["list"]
    assert [row["orderId"] for row in rows] == [created["orderId"]]
    wallet = session.get_wallet_balance(accountType="UNIFIED")["result"]["list"][0]
    reserved = float(wallet["coin"][0]["totalOrderIM"])
    assert reserved == pytest.approx(float(price) * 0.01 * (0.1 + 0.00055 * 1.9), rel=1e-6)
    session.cancel_order(category="linear", symbol="BTCUSDT", orderLinkId="pybit-1")
    assert session.get_open_orders(category="linear", symbol="BTCUSDT")["result"]["list"] == []


# -- by hand ---------------------------------------------------------------------------------------


def test_signatures_match_the_documented_vectors() -> None:
    secret = "test-secret-0123456789abcdefghijklmnop"
    get = b"1658384314791TESTKEY0123456789A5000category=linear&symbol=BTCUSDT"
    post = (
        b'1658385579423TESTKEY0123456789A5000{"category":"linear","symbol":"BTCUSDT","side":"Buy",'
        b'"orderType":"Limit","qty":"0.001","price":"27000"}'
    )
    signatures = [signature(secret, text) for text in (get, post, b"GET/realtime1662350400000")]
    assert signatures == [
        "e07d72ddf955f91ae8324849e079b7967637f4ab2832d7540565b6d9c7d8d7fa",
        "7a3128f3a1bcf098461b37624fb7e6b1e1030329e437266c8b7e3680b97aab2b",
        "2987088c04f750ac86546923537373d582f0d73b5a7ec33112e2f00faad8eac7",
    ]


def test_keys_signatures_and_clocks_are_checked(venue: Served) -> None:
    path = "/v5/account/info"
    now = time.time_ns() // 1_000_000
    assert ask(venue, path)[1]["retCode"] == 0
    assert ask(venue, path, key="nobody")[1]["retCode"] == 10003
    status, answer, _ = ask(venue, path + "?a=1", secret="wrong")
    assert (status, answer["retCode"]) == (200, 10004)
    assert "error sign! origin_string[" in answer["retMsg"]
    assert "a=1]" in answer["retMsg"]
    assert ask(venue, path, stamp=now - 6000)[1]["retCode"] == 10002
    assert ask(venue, path, stamp=now + 5000)[1]["retCode"] == 10002
    assert ask(venue, path + "?b=%20x&a=1")[1]["retCode"] == 0
    assert ask(venue, path + "?")[1]["retCode"] == 0
    spaced = b'{"category": "linear", "symbol": "BTCUSDT"}'
    assert ask(venue, "/v5/order/cancel-all", spaced)[1]["retCode"] == 0
    assert ask(venue, "/v5/order/cancel-all", spaced, payload=b"{}")[1]["retCode"] == 10004


ORDER = {
    "category": "linear",
    "symbol": "BTCUSDT",
    "side": "Buy",
    "orderType": "Limit",
    "qty": "0.010",
    "price": "59000.0",
}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"category": "spot"}, 10001),
        ({"symbol": "NOPEUSDT"}, 10001),
        ({"side": "buy"}, 10001),
        ({"side": None}, 10001),
        ({"orderType": "Stop"}, 10001),
        ({"qty": 1}, 10001),
        ({"qty": "-1"}, 10001),
        ({"qty": "1e3"}, 10001),
        ({"qty": "NaN"}, 10001),
        ({"qty": "0.0001"}, 10001),
        ({"qty": "0.00009999999999999999999999"}, 10001),
        ({"price": "59000.05"}, 110003),
        ({"price": "0"}, 110003),
        ({"price": None}, 10001),
        ({"price": "9" * 40}, 10001),
        ({"timeInForce": "GTX"}, 10001),
        ({"positionIdx": 1}, 10001),
        ({"orderLinkId": "x" * 37}, 10001),
        ({"orderLinkId": ["x"]}, 10001),
        ({"reduceOnly": "true"}, 10001),
        ({"takeProfit": "50000"}, 10001),
        ({"stopLoss": "70000"}, 10001),
        ({"takeProfit": "70000", "reduceOnly": True}, 10001),
        ({"triggerPrice": "70000"}, 10001),
        ({"triggerPrice": "70000", "triggerDirection": 2}, 110093),
        ({"triggerPrice": "50000", "triggerDirection": 1}, 110092),
        ({"smpType": "CancelAll"}, 10001),
        ({"bboSideType": "Queue", "bboLevel": "6"}, 10001),
        ({"price": "0.10"}, 110094),
    ],
)
def test_a_bad_order_is_refused_and_changes_nothing(
    venue: Served, change: dict[str, Any], code: int
) -> None:
    body = json.dumps({**ORDER, **change}).encode()
    status, answer, _ = ask(venue, "/v5/order/create", body)
    assert (status, answer["retCode"], answer["result"]) == (200, code, {})
    assert set(answer) == {"retCode", "retMsg", "result", "retExtInfo", "time"}
    assert venue.run(lambda exchange: len(exchange.clients[0].open)) == 0


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b"null", b"[" * 5000])
def test_a_body_that_is_not_a_json_object_is_refused(venue: Served, body: bytes) -> None:
    assert ask(venue, "/v5/order/create", body)[1]["retCode"] == 10001


def test_unknown_routes_and_wrong_methods_are_refused(venue: Served) -> None:
    assert ask(venue, "/v5/nothing")[0] == 404
    assert ask(venue, "/v5/order/create")[0] == 400
    assert ask(venue, "/v5/market/tickers?category=linear&symbol=btcusdt")[1]["retCode"] == 10001
    spot = ask(venue, "/v5/market/instruments-info?category=spot")[1]["result"]
    assert spot == {"category": "spot", "list": [], "nextPageCursor": ""}


def test_requests_beyond_the_limit_are_refused_and_headers_say_so() -> None:
    with served(Sandbox(seed=7, clients=1)) as venue:
        body = b'{"category":"linear","settleCoin":"USDT"}'
        answers = [ask(venue, "/v5/order/cancel-all", body) for _ in range(12)]
        codes = [answer["retCode"] for _, answer, _ in answers]
        assert codes[:10] == [0] * 10
        assert 10006 in codes[10:]
        assert [headers["X-Bapi-Limit-Status"] for _, _, headers in answers[:2]] == ["9", "8"]
        assert {headers["X-Bapi-Limit"] for _, _, headers in answers} == {"10"}
