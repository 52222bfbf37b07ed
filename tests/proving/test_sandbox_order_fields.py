"""Each documented field of an order request, with each of its values: honoured, or refused by name.

A value is honoured when the order or position shows it; expected is then what it shows. A refusal has the
venue's code, and names the field where its code stands for several.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest

from proving.sandbox import account_requests, order_entry
from proving.sandbox.accounts import Client, VenueOrder
from proving.sandbox.exchange import SandboxExchange
from proving.sandbox.protocol import RefusedError
from proving.sandbox.rows import order_row, position_row
from proving.sandbox.staging import STATES
from proving.synthetic.profiles import profile

SECOND: Final = 1_000_000_000
SYMBOL: Final = "BTCUSDT"
Values = dict[str, Any]


class World:
    """A running exchange with a client that holds a long position of 0.1."""

    def __init__(self) -> None:
        self.exchange = SandboxExchange(
            profile("default"), 3, clients=400, start_ns=30 * SECOND, prebuilds=False
        )
        self._fresh = iter(self.exchange.clients)
        self.tape = self.exchange.tapes[SYMBOL]

    def price(self, offset_bps: float) -> str:
        """The mark price and so much."""
        ticks = round(self.tape.mark_e8 / self.tape.tick_e8 * (1 + offset_bps / 10_000))
        return self.tape.codec.price(ticks)

    def body(self, fields: Values) -> Values:
        """A request, with prices such as "@-30" in basis points from the mark."""
        base = {"category": "linear", "symbol": SYMBOL}
        filled = {
            name: self.price(float(value[1:]))
            if isinstance(value, str) and value[:1] == "@"
            else value
            for name, value in fields.items()
        }
        return {**base, **filled}

    def holder(self, lots: int = 100) -> Client:
        """A client that has not been used, with a position of so many lots."""
        client = next(self._fresh)
        self.exchange.advance(self.exchange.now_ns + SECOND // 10)  # the book fills up again
        if lots:
            side = "Buy" if lots > 0 else "Sell"
            qty = f"{abs(lots) / 1000:.3f}"
            order = {"side": side, "orderType": "Market", "qty": qty}
            order_entry.create(self.exchange, client, self.body(order))
        return client


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def refusal(run: Callable[[], Any]) -> tuple[int, str]:
    """Code and message of a refusal; 0 when there is none."""
    try:
        run()
    except RefusedError as refused:
        return refused.code, refused.message
    return 0, ""


def newest(client: Client) -> VenueOrder:
    """The order created last, open or not."""
    orders = [*client.open.values(), *client.untriggered.values(), *client.closed]
    return max(orders, key=lambda order: order.number)


LIMIT: Final[Values] = {"side": "Buy", "orderType": "Limit", "qty": "0.010", "price": "@-50"}
TAKER: Final[Values] = {"side": "Buy", "orderType": "Market", "qty": "0.010"}
STOP: Final[Values] = {**LIMIT, "triggerPrice": "@40", "triggerDirection": 1}

#: (request, field, expected): a refusal's code, or fields of the order as the stream writes it.
CREATE: Final[list[tuple[Values, Values, int | Values]]] = [
    (LIMIT, {"category": "spot"}, 10001),
    (LIMIT, {"symbol": "NOPEUSDT"}, 10001),
    (LIMIT, {"side": "buy"}, 10001),
    (LIMIT, {"side": "Sell", "price": "@50"}, {"side": "Sell", "orderStatus": "New"}),
    (LIMIT, {"orderType": "Stop"}, 10001),
    (TAKER, {"price": "@-50"}, {"orderType": "Market", "orderStatus": "Filled"}),
    (LIMIT, {"qty": ""}, 10001),
    (LIMIT, {"qty": "0"}, 10001),
    (LIMIT, {"qty": 0.01}, 10001),
    (LIMIT, {"qty": "-0.01"}, 10001),
    (LIMIT, {"qty": "0.0109"}, {"qty": "0.01"}),
    (LIMIT, {"qty": "2000"}, 10001),
    (TAKER, {"qty": "151"}, 10001),
    (LIMIT, {"price": ""}, 10001),
    (LIMIT, {"price": "50000.05"}, 110003),
    (LIMIT, {"price": "3000000"}, 110003),
    (LIMIT, {"qty": "0.001", "price": "4000.0"}, 110094),
    *((LIMIT, {"timeInForce": force}, {"timeInForce": force}) for force in ("GTC", "PostOnly")),
    *((LIMIT, {"timeInForce": force}, {"orderStatus": "Cancelled"}) for force in ("IOC", "FOK")),
    (LIMIT, {"timeInForce": "PostOnly", "price": "@50"}, {"orderStatus": "Cancelled"}),
    (LIMIT, {"timeInForce": "RPI"}, 10001),
    (TAKER, {"timeInForce": "GTC"}, {"timeInForce": "IOC"}),
    (TAKER, {"timeInForce": "never"}, 10001),
    (LIMIT, {"positionIdx": 0}, {"positionIdx": 0}),
    (LIMIT, {"positionIdx": 1}, 10001),
    (LIMIT, {"positionIdx": 2}, 10001),
    (LIMIT, {"orderLinkId": "a-1_B"}, {"orderLinkId": "a-1_B"}),
    (LIMIT, {"orderLinkId": "x" * 37}, 10001),
    (LIMIT, {"orderLinkId": "a b"}, 10001),
    (LIMIT, {"reduceOnly": True}, 110017),
    (LIMIT, {"reduceOnly": True, "side": "Sell", "price": "@50", "qty": "0.5"}, {"qty": "0.1"}),
    (LIMIT, {"reduceOnly": "true"}, 10001),
    (LIMIT, {"reduceOnly": True, "side": "Sell", "stopLoss": "@60", "price": "@50"}, 10001),
    (LIMIT, {"closeOnTrigger": True}, 110017),
    (TAKER, {"closeOnTrigger": True}, 110017),
    (
        TAKER,
        {"closeOnTrigger": True, "side": "Sell", "qty": "0.5"},
        {"cumExecQty": "0.1", "reduceOnly": False, "closeOnTrigger": True},
    ),
    (LIMIT, {"closeOnTrigger": True, "side": "Sell", "stopLoss": "@60", "price": "@50"}, 10001),
    (
        TAKER,
        {"qty": "0", "reduceOnly": True, "closeOnTrigger": True, "side": "Sell"},
        {"cumExecQty": "0.1"},
    ),
    (TAKER, {"qty": "0", "reduceOnly": True, "side": "Sell"}, 10001),
    (STOP, {}, {"orderStatus": "Untriggered", "triggerDirection": 1, "triggerBy": "LastPrice"}),
    (STOP, {"triggerDirection": 2}, 110093),
    (STOP, {"triggerPrice": "@-40"}, 110092),
    (STOP, {"triggerPrice": "@-40", "triggerDirection": 2}, {"triggerDirection": 2}),
    (STOP, {"triggerDirection": 3}, 10001),
    (STOP, {"triggerDirection": 0}, 10001),
    *(
        (STOP, {"triggerBy": by}, {"triggerBy": by})
        for by in ("LastPrice", "MarkPrice", "IndexPrice")
    ),
    (STOP, {"triggerBy": "BestPrice"}, 10001),
    (LIMIT, {"triggerBy": "MarkPrice"}, 10001),
    (LIMIT, {"triggerDirection": 1}, 10001),
    (
        LIMIT,
        {"takeProfit": "@90", "stopLoss": "@-90"},
        {"tpslMode": "Full", "tpTriggerBy": "LastPrice"},
    ),
    (LIMIT, {"stopLoss": "@-90", "slTriggerBy": "MarkPrice"}, {"slTriggerBy": "MarkPrice"}),
    (LIMIT, {"stopLoss": "@-90", "slTriggerBy": "Other"}, 10001),
    (LIMIT, {"stopLoss": "@90"}, 10001),
    (LIMIT, {"takeProfit": "@-90"}, 10001),
    (LIMIT, {"slTriggerBy": "MarkPrice"}, 10001),
    (LIMIT, {"tpslMode": "Partial"}, 10001),
    (LIMIT, {"stopLoss": "@-90", "tpslMode": "Partial"}, {"tpslMode": "Partial"}),
    (LIMIT, {"stopLoss": "@-90", "tpslMode": "Half"}, 10001),
    (LIMIT, {"takeProfit": "@90", "tpOrderType": "Limit", "tpLimitPrice": "@90"}, 10001),
    (
        LIMIT,
        {"takeProfit": "@90", "tpslMode": "Partial", "tpOrderType": "Limit", "tpLimitPrice": "@80"},
        {"tpslMode": "Partial"},
    ),
    (LIMIT, {"takeProfit": "@90", "tpslMode": "Partial", "tpOrderType": "Limit"}, 10001),
    (LIMIT, {"takeProfit": "@90", "tpLimitPrice": "@80"}, 10001),
    (LIMIT, {"stopLoss": "@-90", "slOrderType": "Stop"}, 10001),
    (LIMIT, {"slLimitPrice": "@-90"}, 10001),
    (LIMIT, {"trailingStop": "100"}, 10001),
    (LIMIT, {"activePrice": "@90"}, 10001),
    *(
        (LIMIT, {"smpType": kind}, {"smpType": kind})
        for kind in ("None", "CancelMaker", "CancelTaker", "CancelBoth")
    ),
    (LIMIT, {"smpType": "CancelAll"}, 10001),
    (
        TAKER,
        {"slippageToleranceType": "TickSize", "slippageTolerance": "5"},
        {"orderStatus": "Filled"},
    ),
    (
        TAKER,
        {"slippageToleranceType": "Percent", "slippageTolerance": "0.5"},
        {"orderStatus": "Filled"},
    ),
    (TAKER, {"slippageToleranceType": "TickSize", "slippageTolerance": "0"}, 110108),
    (TAKER, {"slippageToleranceType": "TickSize", "slippageTolerance": "10001"}, 110108),
    (TAKER, {"slippageToleranceType": "Percent", "slippageTolerance": "0.001"}, 110109),
    (TAKER, {"slippageToleranceType": "Percent", "slippageTolerance": "11"}, 110109),
    (TAKER, {"slippageToleranceType": "Bps", "slippageTolerance": "5"}, 10001),
    (TAKER, {"slippageToleranceType": "TickSize"}, 10001),
    (TAKER, {"slippageTolerance": "5"}, 10001),
    (LIMIT, {"slippageToleranceType": "TickSize", "slippageTolerance": "5"}, 10001),
    (LIMIT, {"bboSideType": "Queue", "bboLevel": "1", "price": ""}, {"orderStatus": "New"}),
    (
        LIMIT,
        {"bboSideType": "Counterparty", "bboLevel": "5", "price": ""},
        {"orderStatus": "Filled"},
    ),
    (LIMIT, {"bboSideType": "Queue", "bboLevel": "6", "price": ""}, 10001),
    (LIMIT, {"bboSideType": "Middle", "bboLevel": "1", "price": ""}, 10001),
    (LIMIT, {"bboSideType": "Queue", "bboLevel": "1"}, 10001),
    (LIMIT, {"bboLevel": "1"}, 10001),
    (TAKER, {"bboSideType": "Queue", "bboLevel": "1"}, 10001),
    (LIMIT, {"rpiTakerAccess": False}, {"rpiTakerAccess": False}),
    (LIMIT, {"rpiTakerAccess": True}, 10001),
    (LIMIT, {"isLeverage": 0}, {"orderStatus": "New"}),
    *((LIMIT, {name: value}, 10001) for name, value in (("isLeverage", 1), ("mmp", True))),
    *((LIMIT, {name: "1"}, 10001) for name in ("marketUnit", "orderIv", "orderFilter")),
]


#: Words for what a refusal is about, where the venue's text does not name the field.
WORDS: Final = {"contracts": "qty", "base_price": "stopLoss", "position idx": "positionIdx"}


def named(message: str) -> bool:
    """Whether a refusal says which field it is about."""
    fields = {name for request_, changed, _ in CREATE for name in (*request_, *changed)}
    return any(name in message for name in (*fields, *WORDS))


@pytest.mark.parametrize(
    ("request_", "changed", "expected"), CREATE, ids=[str(changed) for _, changed, _ in CREATE]
)
def test_a_field_of_a_new_order_is_honoured_or_refused_by_name(
    world: World, request_: Values, changed: Values, expected: int | Values
) -> None:
    client = world.holder()
    before = client.position_lots(SYMBOL)
    body = world.body({**request_, **changed})
    code, message = refusal(lambda: order_entry.create(world.exchange, client, body))
    if isinstance(expected, int):
        assert code == expected, message
        assert expected != 10001 or named(message), message
        assert (client.open, client.untriggered) == ({}, {})
        assert client.position_lots(SYMBOL) == before
        return
    assert code == 0, message
    row = order_row(newest(client))
    assert {name: row[name] for name in expected} == expected


@pytest.mark.parametrize("kind", ["Limit", "Market"])
def test_close_on_trigger_never_opens_a_position_from_flat(world: World, kind: str) -> None:
    """Recorded as a fault of this exchange: it opened one."""
    client = world.holder(0)
    body = world.body({**LIMIT, "orderType": kind, "price": "@50", "closeOnTrigger": True})
    assert refusal(lambda: order_entry.create(world.exchange, client, body))[0] == 110017
    conditional = world.body({**STOP, "orderType": kind, "closeOnTrigger": True})
    order_entry.create(world.exchange, client, conditional)
    world.exchange.conditional.fire(newest(client), world.exchange.now_ns)
    assert (newest(client).status, client.position_lots(SYMBOL)) == ("Rejected", 0)


AMEND: Final[list[tuple[Values, Values, int | Values]]] = [
    (LIMIT, {"qty": "0.020"}, {"qty": "0.02"}),
    (LIMIT, {"qty": "0"}, 10001),
    (LIMIT, {"price": "50000.05"}, 110003),
    (LIMIT, {}, 10001),
    (LIMIT, {"triggerPrice": "@40"}, 10001),
    (LIMIT, {"triggerBy": "MarkPrice"}, 10001),
    (STOP, {"triggerPrice": "@60"}, {"orderStatus": "Untriggered"}),
    (STOP, {"triggerPrice": "@-60"}, 110092),
    (STOP, {"triggerBy": "MarkPrice"}, {"triggerBy": "MarkPrice"}),
    (STOP, {"triggerBy": "Other"}, 10001),
    ({**STOP, "orderType": "Market"}, {"price": "@-10"}, 10001),
    (LIMIT, {"stopLoss": "@-90"}, {"tpslMode": "Full", "slTriggerBy": "LastPrice"}),
    (
        {**LIMIT, "stopLoss": "@-90", "slTriggerBy": "MarkPrice"},
        {"takeProfit": "@90"},
        {"slTriggerBy": "MarkPrice"},
    ),
    ({**LIMIT, "stopLoss": "@-90"}, {"stopLoss": "0"}, {"stopLoss": ""}),
    (LIMIT, {"slTriggerBy": "MarkPrice"}, 10001),
    (LIMIT, {"tpslMode": "Partial"}, 10001),
    ({**LIMIT, "reduceOnly": True, "side": "Sell", "price": "@50"}, {"stopLoss": "@-90"}, 10001),
    (LIMIT, {"orderIv": "0.1"}, 10001),
    (LIMIT, {"qty": "0.020", "orderId": "nothing"}, 110001),
]


@pytest.mark.parametrize(
    ("request_", "changed", "expected"), AMEND, ids=[str(changed) for _, changed, _ in AMEND]
)
def test_a_field_of_an_amendment_is_honoured_or_refused_by_name(
    world: World, request_: Values, changed: Values, expected: int | Values
) -> None:
    client = world.holder()
    order_id = order_entry.create(world.exchange, client, world.body(request_))["orderId"]
    before = order_row(newest(client))
    body = world.body({"orderId": order_id, **changed})
    code, message = refusal(lambda: order_entry.amend(world.exchange, client, body))
    row = order_row(newest(client))
    if isinstance(expected, int):
        assert code == expected, message
        assert row == before
        return
    assert code == 0, message
    assert {name: row[name] for name in expected} == expected


STOPS: Final[list[tuple[Values, int | Values]]] = [
    ({"stopLoss": "@-90"}, {"tpslMode": "Full"}),
    ({"takeProfit": "@90", "tpTriggerBy": "IndexPrice"}, {"trailingStop": "0"}),
    ({"trailingStop": "100"}, {"trailingStop": "100"}),
    ({"trailingStop": "100", "activePrice": "@90"}, {"trailingStop": "100"}),
    ({"activePrice": "@90"}, 10001),
    ({"stopLoss": "@90"}, 10001),
    ({"takeProfit": "@-90"}, 10001),
    ({}, 10001),
    ({"stopLoss": "0"}, 34040),
    ({"stopLoss": "@-90", "slSize": "0.05"}, 10001),
    ({"stopLoss": "@-90", "slSize": "0.05", "tpslMode": "Partial"}, {"stopLoss": ""}),
    ({"stopLoss": "@-90", "slSize": "0.5", "tpslMode": "Partial"}, 10001),
    ({"stopLoss": "@-90", "tpslMode": "Partial"}, 10001),
    ({"stopLoss": "@-90", "tpSize": "0.05", "tpslMode": "Partial"}, 10001),
    ({"stopLoss": "@-90", "slOrderType": "Limit", "slLimitPrice": "@-95"}, 10001),
    ({"stopLoss": "@-90", "slLimitPrice": "@-95"}, 10001),
    ({"trailingStop": "100", "tpslMode": "Partial"}, 10001),
    ({"slTriggerBy": "MarkPrice"}, 10001),
    ({"stopLoss": "@-90", "positionIdx": 1}, 10001),
]


@pytest.mark.parametrize(("changed", "expected"), STOPS, ids=[str(changed) for changed, _ in STOPS])
def test_a_field_of_a_trading_stop_is_honoured_or_refused_by_name(
    world: World, changed: Values, expected: int | Values
) -> None:
    client = world.holder()
    body = world.body(changed)
    code, message = refusal(lambda: account_requests.set_trading_stop(world.exchange, client, body))
    if isinstance(expected, int):
        assert code == expected, message
        assert client.untriggered == {}
        return
    assert code == 0, message
    assert client.untriggered
    row = position_row(client, world.tape.codec, world.tape.mark_e8)
    assert {name: row[name] for name in expected} == expected


CANCEL_ALL: Final[list[tuple[Values, int | list[str]]]] = [
    ({}, ["plain", "stop"]),
    ({"orderFilter": "Order"}, ["plain"]),
    ({"orderFilter": "StopOrder"}, ["stop"]),
    ({"orderFilter": "StopOrder", "stopOrderType": "Stop"}, ["stop"]),
    ({"stopOrderType": "TakeProfit"}, []),
    ({"orderFilter": "tpslOrder"}, 10001),
    ({"stopOrderType": "Nothing"}, 10001),
    ({"symbol": "", "settleCoin": "USDT"}, ["plain", "stop"]),
    ({"symbol": "", "settleCoin": "USDC"}, []),
    ({"symbol": "", "baseCoin": "BTC"}, ["plain", "stop"]),
    ({"symbol": "", "baseCoin": "ETH"}, []),
    ({"symbol": ""}, 10001),
]


@pytest.mark.parametrize(
    ("changed", "expected"), CANCEL_ALL, ids=[str(changed) for changed, _ in CANCEL_ALL]
)
def test_a_cancel_of_all_takes_the_orders_that_it_names(
    world: World, changed: Values, expected: int | list[str]
) -> None:
    client = world.holder(0)
    for link, request_ in (("plain", LIMIT), ("stop", STOP)):
        fields = {**request_, "orderLinkId": link}
        order_entry.create(world.exchange, client, world.body(fields))
    body = world.body(changed)
    code, message = refusal(lambda: order_entry.cancel_all(world.exchange, client, body))
    gone = sorted(order.link_id for order in client.closed)
    assert (code or gone) == expected, message


SETTINGS: Final[list[tuple[str, Values, int]]] = [
    ("set_leverage", {"buyLeverage": "5", "sellLeverage": "5"}, 0),
    ("set_leverage", {"buyLeverage": "10", "sellLeverage": "10"}, 110043),
    ("set_leverage", {"buyLeverage": "5", "sellLeverage": "6"}, 10001),
    ("set_leverage", {"buyLeverage": "0.5", "sellLeverage": "0.5"}, 110013),
    ("set_leverage", {"buyLeverage": "151", "sellLeverage": "151"}, 110013),
    ("set_leverage", {"buyLeverage": 5, "sellLeverage": 5}, 10001),
    ("switch_mode", {"mode": 0}, 110025),
    ("switch_mode", {"mode": 3}, 10001),
    ("switch_mode", {"mode": 1}, 10001),
    ("switch_mode", {"mode": 0, "symbol": ""}, 10001),
    ("switch_mode", {"mode": 0, "symbol": "", "coin": "USDT"}, 110025),
    ("set_margin_mode", {"setMarginMode": "ISOLATED_MARGIN"}, 3400045),
    ("set_margin_mode", {"setMarginMode": "REGULAR_MARGIN"}, 110026),
    ("set_margin_mode", {"setMarginMode": "PORTFOLIO_MARGIN"}, 10001),
    ("set_price_action", {"modifyEnable": False}, 0),
    ("set_price_action", {"modifyEnable": "no"}, 10001),
]


@pytest.mark.parametrize(
    ("name", "changed", "expected"), SETTINGS, ids=[f"{n} {c}" for n, c, _ in SETTINGS]
)
def test_a_setting_is_honoured_or_refused(
    world: World, name: str, changed: Values, expected: int
) -> None:
    client, body = world.holder(), world.body(changed)
    run = getattr(account_requests, name)
    code, message = refusal(lambda: run(world.exchange, client, body))
    assert code == expected, message


def test_a_price_beyond_the_limits_moves_or_is_refused_as_the_account_is_set(world: World) -> None:
    client = world.holder(0)
    body = world.body({**LIMIT, "side": "Sell", "price": "@-500", "timeInForce": "PostOnly"})
    order_entry.create(world.exchange, client, body)
    assert newest(client).ticks == world.tape.price_limits()[0]
    client.clamps_price = False
    assert refusal(lambda: order_entry.create(world.exchange, client, body))[0] == 110003


def test_hedge_mode_can_be_left_once_the_account_is_flat(world: World) -> None:
    client, body = world.holder(0), world.body({"mode": 0})
    STATES["hedge"].apply(client)
    rows = account_requests.positions(
        world.exchange, client, {"category": "linear", "symbol": SYMBOL}
    )
    assert [row["positionIdx"] for row in rows["list"]] == [1, 2]
    order = world.body(LIMIT)
    assert refusal(lambda: order_entry.create(world.exchange, client, order))[0] == 10001
    account_requests.switch_mode(world.exchange, client, body)
    order_entry.create(world.exchange, client, order)
    assert refusal(lambda: account_requests.switch_mode(world.exchange, client, body))[0] == 110025
