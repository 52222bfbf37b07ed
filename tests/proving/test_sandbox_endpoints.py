"""Every REST endpoint of the sandbox, called by unmodified ccxt and pybit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import ccxt
import pytest

from proving.sandbox.gateway import ROUTES
from proving.sandbox.server import Sandbox
from tests.proving.sandbox_clients import SYMBOL, ccxt_client, pybit_client
from tests.proving.sandbox_server import Served, served

BTC: Final = {"category": "linear", "symbol": "BTCUSDT"}


class Clients:
    """ccxt and pybit on an account each, and orders for them to place."""

    def __init__(self, venue: Served) -> None:
        self.ccxt = ccxt_client(venue)
        self.ccxt.load_markets()
        self.pybit = pybit_client(venue, 1)
        bid = self.ccxt.fetch_order_book(SYMBOL, 5)["bids"][0][0]
        self.far, self.near = f"{bid - 300:.1f}", f"{bid - 200:.1f}"

    def order(self) -> dict[str, str]:
        fields = {"side": "Buy", "orderType": "Limit", "qty": "0.010", "price": self.far}
        return {**BTC, **fields}

    def ccxt_order(self) -> str:
        created = self.ccxt.create_order(SYMBOL, "limit", "buy", 0.01, float(self.far))
        return str(created["id"])

    def pybit_order(self) -> str:
        return str(self.pybit.place_order(**self.order())["result"]["orderId"])

    def leg(self) -> dict[str, str]:
        order = self.order()
        del order["category"]
        return order

    def ccxt_leg(self) -> dict[str, Any]:
        order = {"type": "limit", "side": "buy", "amount": 0.01, "price": float(self.far)}
        return {"symbol": SYMBOL, **order}


Call = Callable[[Clients], Any]


def implicit(name: str, **params: Any) -> Call:
    """A ccxt method without a unified form; asserts that its answer's code is 0."""

    def call(clients: Clients) -> Any:
        answer = getattr(clients.ccxt, name)(params)
        assert str(answer["retCode"]) == "0"
        return answer

    return call


def pybit(name: str, **params: Any) -> Call:
    return lambda clients: getattr(clients.pybit, name)(**params)


def unified(name: str, *arguments: Any, **params: Any) -> Call:
    return lambda clients: getattr(clients.ccxt, name)(*arguments, params)


#: By path: the call of ccxt and of pybit; None where the client has none.
ENDPOINTS: Final[dict[str, tuple[Call | None, Call | None]]] = {
    "market/time": (lambda c: c.ccxt.fetch_time(), pybit("get_server_time")),
    "market/instruments-info": (
        lambda c: c.ccxt.load_markets(True),
        pybit("get_instruments_info", **BTC),
    ),
    "market/orderbook": (
        lambda c: c.ccxt.fetch_order_book(SYMBOL, 1000),
        pybit("get_orderbook", **BTC, limit=200),
    ),
    "market/tickers": (lambda c: c.ccxt.fetch_ticker(SYMBOL), pybit("get_tickers", **BTC)),
    "market/recent-trade": (
        lambda c: c.ccxt.fetch_trades(SYMBOL),
        pybit("get_public_trade_history", **BTC),
    ),
    "market/kline": (
        lambda c: c.ccxt.fetch_ohlcv(SYMBOL, "1m"),
        pybit("get_kline", **BTC, interval=5),
    ),
    "market/mark-price-kline": (
        lambda c: c.ccxt.fetch_ohlcv(SYMBOL, "1m", params={"price": "mark"}),
        pybit("get_mark_price_kline", **BTC, interval=1),
    ),
    "market/index-price-kline": (
        lambda c: c.ccxt.fetch_ohlcv(SYMBOL, "1m", params={"price": "index"}),
        pybit("get_index_price_kline", **BTC, interval=1),
    ),
    "market/premium-index-price-kline": (
        lambda c: c.ccxt.fetch_ohlcv(SYMBOL, "1m", params={"price": "premiumIndex"}),
        pybit("get_premium_index_price_kline", **BTC, interval=1),
    ),
    "market/funding/history": (
        lambda c: c.ccxt.fetch_funding_rate_history(SYMBOL),
        pybit("get_funding_rate_history", **BTC),
    ),
    "market/open-interest": (
        lambda c: c.ccxt.fetch_open_interest(SYMBOL),
        pybit("get_open_interest", **BTC, intervalTime="5min"),
    ),
    "market/risk-limit": (
        lambda c: c.ccxt.fetch_market_leverage_tiers(SYMBOL),
        pybit("get_risk_limit", **BTC),
    ),
    "market/price-limit": (
        implicit("publicGetV5MarketPriceLimit", **BTC),
        pybit("get_price_limit", **BTC),
    ),
    "system/status": (lambda c: c.ccxt.fetch_status(), pybit("get_system_status")),
    "order/create": (Clients.ccxt_order, Clients.pybit_order),
    "order/amend": (
        lambda c: c.ccxt.edit_order(c.ccxt_order(), SYMBOL, "limit", "buy", 0.02, float(c.near)),
        lambda c: c.pybit.amend_order(**BTC, orderId=c.pybit_order(), qty="0.020"),
    ),
    "order/cancel": (
        lambda c: c.ccxt.cancel_order(c.ccxt_order(), SYMBOL),
        lambda c: c.pybit.cancel_order(**BTC, orderId=c.pybit_order()),
    ),
    "order/cancel-all": (
        lambda c: c.ccxt.cancel_all_orders(SYMBOL),
        pybit("cancel_all_orders", category="linear", settleCoin="USDT"),
    ),
    "order/create-batch": (
        lambda c: c.ccxt.create_orders([c.ccxt_leg(), c.ccxt_leg()]),
        lambda c: c.pybit.place_batch_order(category="linear", request=[c.leg(), c.leg()]),
    ),
    "order/amend-batch": (
        lambda c: c.ccxt.edit_orders([{"id": c.ccxt_order(), **c.ccxt_leg(), "amount": 0.03}]),
        lambda c: c.pybit.amend_batch_order(
            category="linear",
            request=[{"symbol": "BTCUSDT", "orderId": c.pybit_order(), "qty": "0.03"}],
        ),
    ),
    "order/cancel-batch": (
        lambda c: c.ccxt.cancel_orders([c.ccxt_order(), c.ccxt_order()], SYMBOL),
        lambda c: c.pybit.cancel_batch_order(
            category="linear", request=[{"symbol": "BTCUSDT", "orderId": c.pybit_order()}]
        ),
    ),
    "order/pre-check": (
        lambda c: implicit("privatePostV5OrderPreCheck", **c.order())(c),
        lambda c: c.pybit.pre_check_order(**c.order()),
    ),
    "order/disconnected-cancel-all": (
        lambda c: c.ccxt.cancel_all_orders_after(10_000),
        pybit("set_dcp", product="DERIVATIVES", timeWindow=10),
    ),
    "order/realtime": (
        lambda c: c.ccxt.fetch_open_orders(SYMBOL),
        pybit("get_open_orders", **BTC),
    ),
    "order/history": (
        lambda c: c.ccxt.fetch_canceled_orders(SYMBOL),
        pybit("get_order_history", **BTC),
    ),
    "execution/list": (lambda c: c.ccxt.fetch_my_trades(SYMBOL), pybit("get_executions", **BTC)),
    "position/list": (lambda c: c.ccxt.fetch_positions(), pybit("get_positions", **BTC)),
    "position/closed-pnl": (
        lambda c: c.ccxt.fetch_positions_history([SYMBOL]),
        pybit("get_closed_pnl", **BTC),
    ),
    "position/set-leverage": (
        lambda c: c.ccxt.set_leverage(7, SYMBOL),
        pybit("set_leverage", **BTC, buyLeverage="8", sellLeverage="8"),
    ),
    "position/trading-stop": (
        lambda c: (
            c.ccxt.create_order(SYMBOL, "market", "buy", 0.01),
            c.ccxt.create_order(
                SYMBOL, "market", "sell", 0.01, None, {"stopLossPrice": float(c.far)}
            ),
            implicit("privatePostV5PositionTradingStop", **BTC, takeProfit="90000")(c),
        ),
        lambda c: (
            c.pybit.place_order(**{**c.order(), "orderType": "Market"}),
            c.pybit.set_trading_stop(**BTC, stopLoss=c.far, positionIdx=0),
        ),
    ),
    "position/symbol-info": (implicit("privateGetV5PositionSymbolInfo", **BTC), None),
    "account/wallet-balance": (
        lambda c: c.ccxt.fetch_balance(),
        pybit("get_wallet_balance", accountType="UNIFIED", coin="USDT"),
    ),
    "account/fee-rate": (lambda c: c.ccxt.fetch_trading_fee(SYMBOL), pybit("get_fee_rates", **BTC)),
    "account/info": (implicit("privateGetV5AccountInfo"), pybit("get_account_info")),
    "account/query-dcp-info": (
        implicit("privateGetV5AccountQueryDcpInfo"),
        pybit("query_dcp_info"),
    ),
    "account/transaction-log": (
        lambda c: c.ccxt.fetch_ledger("USDT"),
        pybit("get_transaction_log", accountType="UNIFIED"),
    ),
    "account/set-limit-px-action": (
        implicit("privatePostV5AccountSetLimitPxAction", category="linear", modifyEnable=True),
        pybit("set_limit_price_action", category="linear", modifyEnable=True),
    ),
    "user/query-api": (implicit("privateGetV5UserQueryApi"), pybit("get_api_key_information")),
    "asset/coin/query-info": (implicit("privateGetV5AssetCoinQueryInfo"), pybit("get_coin_info")),
}
#: Settings that would disturb the other tests, so that their refusal is tested: (ccxt, pybit, code).
REFUSED: Final[dict[str, tuple[Call, Call, str]]] = {
    "position/switch-mode": (
        lambda c: c.ccxt.set_position_mode(False, SYMBOL),
        pybit("switch_position_mode", **BTC, mode=0),
        "110025",
    ),
    "account/set-margin-mode": (
        lambda c: c.ccxt.set_margin_mode("cross", SYMBOL),
        pybit("set_margin_mode", setMarginMode="REGULAR_MARGIN"),
        "110026",
    ),
}


@pytest.fixture(scope="module")
def clients() -> Iterator[Clients]:
    with served(Sandbox(seed=7, symbols=("BTCUSDT", "ETHUSDT"), limited=False)) as venue:
        yield Clients(venue)


def test_every_symbol_has_its_own_market_tiers_and_leverage(clients: Clients) -> None:
    ether, trader = "ETH/USDT:USDT", clients.ccxt
    market = trader.market(ether)
    assert (market["precision"]["price"], market["limits"]["leverage"]["max"]) == (0.01, 100)
    lowest = trader.fetch_market_leverage_tiers(ether)[0]
    assert (lowest["maxNotional"], lowest["maintenanceMarginRate"]) == (900_000, 0.005)
    with pytest.raises(ccxt.BadRequest, match="110013"):
        trader.set_leverage(101, ether)
    trader.set_leverage(100, ether)
    assert trader.fetch_position(SYMBOL)["leverage"] != 100
    bid, ask = (trader.fetch_order_book(ether, 5)[side][0][0] for side in ("bids", "asks"))
    assert 0 < ask - bid < 5 < bid < 10_000
    trader.create_order(ether, "market", "buy", 0.5)
    position = trader.fetch_position(ether)
    assert (position["contracts"], position["info"]["riskId"]) == (0.5, 11)
    trader.create_order(ether, "market", "sell", 0.5, None, {"reduceOnly": True})
    with pytest.raises(ccxt.BadRequest, match="symbol invalid"):
        trader.public_get_v5_market_tickers({"category": "linear", "symbol": "XRPUSDT"})


def test_every_route_is_in_the_tables() -> None:
    assert {*ENDPOINTS, *REFUSED} == {*ROUTES, "market/time"}


@pytest.mark.parametrize("path", ENDPOINTS)
def test_ccxt_and_pybit_understand_the_answer(clients: Clients, path: str) -> None:
    for call in ENDPOINTS[path]:
        if call is not None:
            assert call(clients) is not None


def test_histories_are_paged_newest_first(clients: Clients) -> None:
    for _ in range(3):
        clients.pybit.cancel_order(**BTC, orderId=clients.pybit_order())
    whole = clients.pybit.get_order_history(**BTC)["result"]["list"]
    times = [int(row["createdTime"]) for row in whole]
    assert times == sorted(times, reverse=True)
    cursor, rows = "", []
    for _ in range(3):
        page = clients.pybit.get_order_history(**BTC, limit=1, cursor=cursor)["result"]
        rows += page["list"]
        cursor = page["nextPageCursor"]
    assert rows == whole[:3]
    one = clients.pybit.get_order_history(**BTC, orderId=whole[2]["orderId"])["result"]
    assert (one["list"], one["nextPageCursor"]) == (whole[2:3], "")


@pytest.mark.parametrize("path", REFUSED)
def test_ccxt_and_pybit_understand_the_refusal(clients: Clients, path: str) -> None:
    by_ccxt, by_pybit, code = REFUSED[path]
    with pytest.raises(ccxt.BaseError, match=code):
        by_ccxt(clients)
    with pytest.raises(Exception, match=code):
        by_pybit(clients)
