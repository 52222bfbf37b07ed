"""Conditional orders, take-profit, stop-loss and trailing stops of the sandbox."""

from __future__ import annotations

from typing import Any

import pytest

from proving.sandbox import desk, entry
from proving.sandbox.exchange import Exchange
from proving.sandbox.refusal import RefusedError
from proving.sandbox.trading import Client, Order
from proving.synthetic.profiles import profile
from tests.proving.test_sandbox_exchange import SECOND, SYMBOL, check_books, flatten, send

TICK = 10_000_000  #: at 1e-8


@pytest.fixture(scope="module")
def world() -> Exchange:
    return Exchange(profile("default"), 13, clients=2)


@pytest.fixture
def exchange(world: Exchange) -> Exchange:
    """A world that goes on from test to test, in which nobody holds or waits for anything."""
    for client in world.clients:
        flatten(world, client)
        assert not client.waiting
    world.advance(world.now_ns + SECOND)
    return world


def conditional(
    exchange: Exchange, client: Client, side: str, ticks: int, direction: int, **more: Any
) -> Order:
    """A market order for 0.01 that waits for a price, unless said otherwise."""
    figures = exchange.tapes[SYMBOL].figures
    body = {
        "category": "linear",
        "symbol": SYMBOL,
        "side": side,
        "orderType": "Market",
        "qty": "0.010",
        "triggerPrice": figures.price(ticks),
        "triggerDirection": direction,
        **more,
    }
    return client.waiting[entry.create(exchange, client, body)["orderId"]]


def until(exchange: Exchange, order: Order, status: str, seconds: int = 900) -> None:
    """Let time go on until an order has a status."""
    for _ in range(seconds * 10):
        if order.status == status:
            return
        exchange.advance(exchange.now_ns + SECOND // 10)
    pytest.fail(f"the order is {order.status} after {seconds} s")


def refusal(exchange: Exchange, client: Client, *order: Any, **more: Any) -> int:
    with pytest.raises(RefusedError) as refused:
        conditional(exchange, client, *order, **more)
    return refused.value.code


@pytest.mark.parametrize("by", ["LastPrice", "MarkPrice", "IndexPrice"])
def test_an_order_waits_outside_the_market_until_its_price_is_reached(
    exchange: Exchange, by: str
) -> None:
    client, tape = exchange.clients[0], exchange.tapes[SYMBOL]
    now_e8 = {"LastPrice": tape.last_ticks * TICK, "MarkPrice": tape.mark_e8}
    ticks = now_e8.get(by, tape.index_e8) // TICK + 3
    reserved = client.margin.available_e8(exchange.marks(), client.open_orders())
    order = conditional(exchange, client, "Buy", ticks, 1, triggerBy=by)
    assert order.status == "Untriggered"
    row = order.row()
    assert (row["stopOrderType"], row["triggerBy"], row["triggerDirection"]) == ("Stop", by, 1)
    assert client.margin.available_e8(exchange.marks(), client.open_orders()) == reserved
    until(exchange, order, "Filled")
    assert client.account.holdings[SYMBOL].position_lots == 10
    assert not client.waiting
    check_books(exchange)


def test_a_trade_between_two_looks_triggers(exchange: Exchange) -> None:
    """Watched is every trade, not the last of a moment."""
    client, tape = exchange.clients[0], exchange.tapes[SYMBOL]
    order = conditional(exchange, client, "Buy", tape.last_ticks + 40, 1)
    tape._span = (tape.last_ticks, tape.last_ticks + 40)
    exchange.triggers.check(SYMBOL, exchange.now_ns)
    assert order.status == "Filled"


def test_a_waiting_order_is_amended_and_deactivated(exchange: Exchange) -> None:
    client, tape = exchange.clients[0], exchange.tapes[SYMBOL]
    far = tape.last_ticks - 5000
    order = conditional(exchange, client, "Sell", far, 2, orderLinkId="waits")
    body = {"category": "linear", "symbol": SYMBOL, "orderLinkId": "waits"}
    price = tape.figures.price(far - 100)
    entry.amend(exchange, client, {**body, "triggerPrice": price, "qty": "0.020"})
    assert (order.row()["triggerPrice"], order.lots) == (price, 20)
    with pytest.raises(RefusedError):
        entry.amend(exchange, client, {**body, "triggerPrice": price})
    listed = desk.open_orders(exchange, client, {"category": "linear", "symbol": SYMBOL})["list"]
    assert [(row["orderStatus"], row["stopOrderType"]) for row in listed] == [
        ("Untriggered", "Stop")
    ]
    plain = {"category": "linear", "symbol": SYMBOL, "orderFilter": "Order"}
    assert desk.open_orders(exchange, client, plain)["list"] == []
    assert entry.cancel_all(exchange, client, plain)["list"] == []
    entry.cancel(exchange, client, body)
    assert (order.status, order.cancel_type) == ("Deactivated", "CancelByUser")
    with pytest.raises(RefusedError) as refused:
        entry.cancel(exchange, client, body)
    assert refused.value.code == 110001


def test_what_cannot_wait_is_refused(exchange: Exchange) -> None:
    client, tape = exchange.clients[0], exchange.tapes[SYMBOL]
    last = tape.last_ticks
    assert refusal(exchange, client, "Buy", last - 50, 1) == 110092
    assert refusal(exchange, client, "Buy", last + 50, 2) == 110093
    assert refusal(exchange, client, "Buy", last + 50, 3) == 10001
    assert refusal(exchange, client, "Buy", last + 50, 1, triggerBy="Nothing") == 10001
    for _ in range(10):
        conditional(exchange, client, "Buy", last + 5000, 1)
    assert refusal(exchange, client, "Buy", last + 5000, 1) == 110009
    flatten(exchange, client)


def test_what_there_is_no_margin_for_is_rejected_when_its_time_comes(exchange: Exchange) -> None:
    client, tape = exchange.clients[0], exchange.tapes[SYMBOL]
    order = conditional(exchange, client, "Buy", tape.last_ticks + 2, 1, qty="140")
    until(exchange, order, "Rejected")
    assert client.account.holdings[SYMBOL].position_lots == 0
    reducing = conditional(exchange, client, "Sell", tape.last_ticks + 2, 1, reduceOnly=True)
    until(exchange, reducing, "Rejected")


def test_take_profit_and_stop_loss_come_with_a_fill_and_one_ends_the_other(
    exchange: Exchange,
) -> None:
    client, tape = exchange.clients[0], exchange.tapes[SYMBOL]
    last, price = tape.last_ticks, tape.figures.price
    more = {"takeProfit": price(last + 400), "stopLoss": price(last - 400)}
    order = send(exchange, client, "Buy", 30, None, **more)
    assert order.row()["tpslMode"] == "Full"
    waiting = client.stops(SYMBOL)
    assert set(waiting) == {"TakeProfit", "StopLoss"}
    row = client.position_row(tape.figures, tape.mark_e8)
    assert (row["takeProfit"], row["stopLoss"]) == (price(last + 400), price(last - 400))
    send(exchange, client, "Buy", 20)
    take, stop = waiting["TakeProfit"], waiting["StopLoss"]
    assert (take.lots, stop.lots) == (50, 50)
    tape._span = (last, last + 400)
    exchange.triggers.check(SYMBOL, exchange.now_ns)
    assert (take.status, take.executed_lots) == ("Filled", 50)
    assert take.create_type == "CreateByTakeProfit"
    assert (stop.status, stop.cancel_type) == ("Deactivated", "CancelByTpSlTsClear")
    assert client.account.holdings[SYMBOL].position_lots == 0
    check_books(exchange)


def test_a_part_of_a_position_has_stops_of_its_own(exchange: Exchange) -> None:
    client, tape = exchange.clients[0], exchange.tapes[SYMBOL]
    last, price = tape.last_ticks, tape.figures.price
    send(exchange, client, "Sell", 20)
    more = {
        "takeProfit": price(last - 300),
        "stopLoss": price(last + 300),
        "tpslMode": "Partial",
        "tpOrderType": "Limit",
        "tpLimitPrice": price(last - 290),
    }
    send(exchange, client, "Sell", 30, None, **more)
    kinds = {order.row()["stopOrderType"]: order for order in client.waiting.values()}
    assert set(kinds) == {"PartialTakeProfit", "PartialStopLoss"}
    stop, take = kinds["PartialStopLoss"], kinds["PartialTakeProfit"]
    assert (take.lots, take.row()["orderType"]) == (30, "Limit")
    tape._span = (last, last + 300)
    exchange.triggers.check(SYMBOL, exchange.now_ns)
    assert (stop.status, take.status) == ("Filled", "Deactivated")
    assert client.account.holdings[SYMBOL].position_lots == -20


def test_stops_of_a_position_are_set_moved_and_taken_away(exchange: Exchange) -> None:
    client, tape = exchange.clients[0], exchange.tapes[SYMBOL]
    body: dict[str, Any] = {"category": "linear", "symbol": SYMBOL}
    price, last = tape.figures.price, tape.last_ticks
    with pytest.raises(RefusedError):
        desk.set_trading_stop(exchange, client, {**body, "takeProfit": price(last + 100)})
    send(exchange, client, "Buy", 10)
    desk.set_trading_stop(exchange, client, {**body, "takeProfit": price(last + 500)})
    order = client.stops(SYMBOL)["TakeProfit"]
    desk.set_trading_stop(exchange, client, {**body, "takeProfit": price(last + 600)})
    assert client.stops(SYMBOL) == {"TakeProfit": order}
    assert order.row()["triggerPrice"] == price(last + 600)
    with pytest.raises(RefusedError) as unchanged:
        desk.set_trading_stop(exchange, client, {**body, "takeProfit": price(last + 600)})
    assert unchanged.value.code == 34040
    with pytest.raises(RefusedError):
        desk.set_trading_stop(exchange, client, {**body, "stopLoss": price(last + 100)})
    desk.set_trading_stop(exchange, client, {**body, "takeProfit": "0"})
    assert order.status == "Deactivated"
    assert client.stops(SYMBOL) == {}


def test_a_trailing_stop_follows_the_price_and_closes_when_it_turns(exchange: Exchange) -> None:
    client, tape = exchange.clients[0], exchange.tapes[SYMBOL]
    send(exchange, client, "Buy", 10)
    body = {"category": "linear", "symbol": SYMBOL, "trailingStop": tape.figures.price(300)}
    desk.set_trading_stop(exchange, client, body)
    order, last = client.stops(SYMBOL)["TrailingStop"], tape.last_ticks
    assert client.position_row(tape.figures, tape.mark_e8)["trailingStop"] == "30"
    tape._span = (last + 100, last + 200)
    exchange.triggers.check(SYMBOL, exchange.now_ns)
    assert order.row()["triggerPrice"] == tape.figures.price(last - 100)
    tape._span = (last - 100, last)
    exchange.triggers.check(SYMBOL, exchange.now_ns)
    assert order.status == "Filled"
    assert client.account.holdings[SYMBOL].position_lots == 0
    check_books(exchange)


def test_what_would_close_a_position_ends_with_it(exchange: Exchange) -> None:
    client, tape = exchange.clients[0], exchange.tapes[SYMBOL]
    more = {"stopLoss": tape.figures.price(tape.last_ticks - 3000)}
    send(exchange, client, "Buy", 10, None, **more)
    stop = client.stops(SYMBOL)["StopLoss"]
    own = conditional(exchange, client, "Buy", tape.last_ticks + 3000, 1)
    send(exchange, client, "Sell", 10)
    assert (stop.status, stop.cancel_type) == ("Deactivated", "CancelByTpSlTsClear")
    assert own.status == "Untriggered"
    flatten(exchange, client)


def test_a_check_beforehand_says_what_margin_would_be(exchange: Exchange) -> None:
    client, tape = exchange.clients[0], exchange.tapes[SYMBOL]
    body = {
        "category": "linear",
        "symbol": SYMBOL,
        "side": "Buy",
        "orderType": "Limit",
        "qty": "1",
        "price": tape.figures.price(tape.last_ticks - 10),
    }
    told = entry.check(exchange, client, body)
    assert (told["preImrE4"], told["preMmrE4"], told["postMmrE4"]) == (0, 0, 0)
    balance = client.account.balance_e8 / 1e8
    margin = (tape.last_ticks - 10) / 10 * (0.1 + 0.00055 * 1.9)
    assert told["postImrE4"] == int(margin / balance * 10_000)
    assert not client.open


def test_a_market_order_pays_no_more_than_its_slippage(exchange: Exchange) -> None:
    client, tape = exchange.clients[0], exchange.tapes[SYMBOL]
    ask = next(iter(tape.books[1].sides[-1]))
    more = {"slippageToleranceType": "TickSize", "slippageTolerance": "7"}
    order = send(exchange, client, "Buy", 10, None, **more)
    assert order.ticks == ask + 7
    for kind, value, code in (("TickSize", "0", 110108), ("Percent", "11", 110109)):
        more = {"slippageToleranceType": kind, "slippageTolerance": value}
        with pytest.raises(RefusedError) as refused:
            send(exchange, client, "Buy", 10, None, **more)
        assert refused.value.code == code


def test_a_price_can_be_one_of_the_book_s(exchange: Exchange) -> None:
    client, tape = exchange.clients[0], exchange.tapes[SYMBOL]
    price = tape.figures.price(1)  # not looked at
    more = {"bboSideType": "Queue", "bboLevel": "3", "price": price}
    order = send(exchange, client, "Buy", 10, 1, **more)
    assert order.ticks == tape.books[50].levels(1, 3)[-1][0]
