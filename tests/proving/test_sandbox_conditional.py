"""Conditional orders, take-profit, stop-loss and trailing stops of the sandbox."""

from __future__ import annotations

from typing import Any

import pytest

from proving.sandbox import account_requests, order_entry
from proving.sandbox.accounts import Client, VenueOrder
from proving.sandbox.exchange import SandboxExchange
from proving.sandbox.protocol import RefusedError
from proving.sandbox.rows import order_row, position_row
from proving.synthetic.profiles import profile
from tests.proving.test_sandbox_exchange import SECOND, SYMBOL, check_books, flatten, send

TICK = 10_000_000  #: at 1e-8


@pytest.fixture(scope="module")
def world() -> SandboxExchange:
    return SandboxExchange(profile("default"), 13, clients=2)


@pytest.fixture
def exchange(world: SandboxExchange) -> SandboxExchange:
    """A shared exchange, advanced from test to test, without positions and open orders."""
    for client in world.clients:
        flatten(world, client)
        assert not client.untriggered
    world.advance(world.now_ns + SECOND)
    return world


def conditional(
    exchange: SandboxExchange, client: Client, side: str, ticks: int, direction: int, **more: Any
) -> VenueOrder:
    """A conditional order, for 0.01 at the market by default."""
    codec = exchange.tapes[SYMBOL].codec
    body = {
        "category": "linear",
        "symbol": SYMBOL,
        "side": side,
        "orderType": "Market",
        "qty": "0.010",
        "triggerPrice": codec.price(ticks),
        "triggerDirection": direction,
        **more,
    }
    return client.untriggered[order_entry.create(exchange, client, body)["orderId"]]


def until(exchange: SandboxExchange, order: VenueOrder, status: str, seconds: int = 900) -> None:
    """Advance time until an order has a status."""
    for _ in range(seconds * 10):
        if order.status == status:
            return
        exchange.advance(exchange.now_ns + SECOND // 10)
    pytest.fail(f"the order is {order.status} after {seconds} s")


def refusal(exchange: SandboxExchange, client: Client, *order: Any, **more: Any) -> int:
    with pytest.raises(RefusedError) as refused:
        conditional(exchange, client, *order, **more)
    return refused.value.code


@pytest.mark.parametrize("by", ["LastPrice", "MarkPrice", "IndexPrice"])
def test_a_conditional_order_reserves_no_margin_and_fills_when_triggered(
    exchange: SandboxExchange, by: str
) -> None:
    client, tape = exchange.clients[0], exchange.tapes[SYMBOL]
    now_e8 = {"LastPrice": tape.last_ticks * TICK, "MarkPrice": tape.mark_e8}
    ticks = now_e8.get(by, tape.index_e8) // TICK + 3
    reserved = client.margin.available_e8(exchange.marks, client.open_orders())
    order = conditional(exchange, client, "Buy", ticks, 1, triggerBy=by)
    assert order.status == "Untriggered"
    row = order_row(order)
    assert (row["stopOrderType"], row["triggerBy"], row["triggerDirection"]) == ("Stop", by, 1)
    assert client.margin.available_e8(exchange.marks, client.open_orders()) == reserved
    until(exchange, order, "Filled")
    assert client.position_lots(SYMBOL) == 10
    assert not client.untriggered
    check_books(exchange)


def test_a_trade_between_two_checks_triggers(exchange: SandboxExchange) -> None:
    """Every trade counts, not only the last before a check."""
    client, tape = exchange.clients[0], exchange.tapes[SYMBOL]
    order = conditional(exchange, client, "Buy", tape.last_ticks + 40, 1)
    tape._trade_range = (tape.last_ticks, tape.last_ticks + 40)
    exchange.conditional.check(SYMBOL, exchange.now_ns)
    assert order.status == "Filled"


def test_an_untriggered_order_is_amended_and_cancelled(exchange: SandboxExchange) -> None:
    client, tape = exchange.clients[0], exchange.tapes[SYMBOL]
    far = tape.last_ticks - 5000
    order = conditional(exchange, client, "Sell", far, 2, orderLinkId="waits")
    body = {"category": "linear", "symbol": SYMBOL, "orderLinkId": "waits"}
    price = tape.codec.price(far - 100)
    order_entry.amend(exchange, client, {**body, "triggerPrice": price, "qty": "0.020"})
    assert (order_row(order)["triggerPrice"], order.lots) == (price, 20)
    with pytest.raises(RefusedError):
        order_entry.amend(exchange, client, {**body, "triggerPrice": price})
    listed = account_requests.open_orders(
        exchange, client, {"category": "linear", "symbol": SYMBOL}
    )["list"]
    assert [(row["orderStatus"], row["stopOrderType"]) for row in listed] == [
        ("Untriggered", "Stop")
    ]
    plain = {"category": "linear", "symbol": SYMBOL, "orderFilter": "Order"}
    assert account_requests.open_orders(exchange, client, plain)["list"] == []
    assert order_entry.cancel_all(exchange, client, plain)["list"] == []
    order_entry.cancel(exchange, client, body)
    assert (order.status, order.cancel_type) == ("Deactivated", "CancelByUser")
    with pytest.raises(RefusedError) as refused:
        order_entry.cancel(exchange, client, body)
    assert refused.value.code == 110001


def test_invalid_triggers_and_an_eleventh_order_are_refused(exchange: SandboxExchange) -> None:
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


def test_an_order_is_rejected_at_its_trigger_without_margin_or_position(
    exchange: SandboxExchange,
) -> None:
    client, tape = exchange.clients[0], exchange.tapes[SYMBOL]
    order = conditional(exchange, client, "Buy", tape.last_ticks + 2, 1, qty="140")
    until(exchange, order, "Rejected")
    assert client.position_lots(SYMBOL) == 0
    reducing = conditional(exchange, client, "Sell", tape.last_ticks + 2, 1, reduceOnly=True)
    until(exchange, reducing, "Rejected")


def test_attached_take_profit_and_stop_loss_cancel_each_other(
    exchange: SandboxExchange,
) -> None:
    client, tape = exchange.clients[0], exchange.tapes[SYMBOL]
    last, price = tape.last_ticks, tape.codec.price
    more = {"takeProfit": price(last + 400), "stopLoss": price(last - 400)}
    order = send(exchange, client, "Buy", 30, None, **more)
    assert order_row(order)["tpslMode"] == "Full"
    waiting = client.full_stops(SYMBOL)
    assert set(waiting) == {"TakeProfit", "StopLoss"}
    row = position_row(client, tape.codec, tape.mark_e8)
    assert (row["takeProfit"], row["stopLoss"]) == (price(last + 400), price(last - 400))
    send(exchange, client, "Buy", 20)
    take, stop = waiting["TakeProfit"], waiting["StopLoss"]
    assert (take.lots, stop.lots) == (50, 50)
    tape._trade_range = (last, last + 400)
    exchange.conditional.check(SYMBOL, exchange.now_ns)
    assert (take.status, take.executed_lots) == ("Filled", 50)
    assert take.create_type == "CreateByTakeProfit"
    assert (stop.status, stop.cancel_type) == ("Deactivated", "CancelByTpSlTsClear")
    assert client.position_lots(SYMBOL) == 0
    check_books(exchange)


def test_partial_stops_close_a_part_of_the_position(exchange: SandboxExchange) -> None:
    client, tape = exchange.clients[0], exchange.tapes[SYMBOL]
    last, price = tape.last_ticks, tape.codec.price
    send(exchange, client, "Sell", 20)
    more = {
        "takeProfit": price(last - 300),
        "stopLoss": price(last + 300),
        "tpslMode": "Partial",
        "tpOrderType": "Limit",
        "tpLimitPrice": price(last - 290),
    }
    send(exchange, client, "Sell", 30, None, **more)
    kinds = {order_row(order)["stopOrderType"]: order for order in client.untriggered.values()}
    assert set(kinds) == {"PartialTakeProfit", "PartialStopLoss"}
    stop, take = kinds["PartialStopLoss"], kinds["PartialTakeProfit"]
    assert (take.lots, order_row(take)["orderType"]) == (30, "Limit")
    tape._trade_range = (last, last + 300)
    exchange.conditional.check(SYMBOL, exchange.now_ns)
    assert (stop.status, take.status) == ("Filled", "Deactivated")
    assert client.position_lots(SYMBOL) == -20


def test_position_stops_are_set_moved_and_removed(exchange: SandboxExchange) -> None:
    client, tape = exchange.clients[0], exchange.tapes[SYMBOL]
    body: dict[str, Any] = {"category": "linear", "symbol": SYMBOL}
    price, last = tape.codec.price, tape.last_ticks
    with pytest.raises(RefusedError):
        account_requests.set_trading_stop(
            exchange, client, {**body, "takeProfit": price(last + 100)}
        )
    send(exchange, client, "Buy", 10)
    account_requests.set_trading_stop(exchange, client, {**body, "takeProfit": price(last + 500)})
    order = client.full_stops(SYMBOL)["TakeProfit"]
    account_requests.set_trading_stop(exchange, client, {**body, "takeProfit": price(last + 600)})
    assert client.full_stops(SYMBOL) == {"TakeProfit": order}
    assert order_row(order)["triggerPrice"] == price(last + 600)
    with pytest.raises(RefusedError) as unchanged:
        account_requests.set_trading_stop(
            exchange, client, {**body, "takeProfit": price(last + 600)}
        )
    assert unchanged.value.code == 34040
    with pytest.raises(RefusedError):
        account_requests.set_trading_stop(exchange, client, {**body, "stopLoss": price(last + 100)})
    account_requests.set_trading_stop(exchange, client, {**body, "takeProfit": "0"})
    assert order.status == "Deactivated"
    assert client.full_stops(SYMBOL) == {}


def test_a_trailing_stop_follows_the_price_and_closes_when_it_reverses(
    exchange: SandboxExchange,
) -> None:
    client, tape = exchange.clients[0], exchange.tapes[SYMBOL]
    send(exchange, client, "Buy", 10)
    body = {"category": "linear", "symbol": SYMBOL, "trailingStop": tape.codec.price(300)}
    account_requests.set_trading_stop(exchange, client, body)
    order, last = client.full_stops(SYMBOL)["TrailingStop"], tape.last_ticks
    assert position_row(client, tape.codec, tape.mark_e8)["trailingStop"] == "30"
    tape._trade_range = (last + 100, last + 200)
    exchange.conditional.check(SYMBOL, exchange.now_ns)
    assert order_row(order)["triggerPrice"] == tape.codec.price(last - 100)
    tape._trade_range = (last - 100, last)
    exchange.conditional.check(SYMBOL, exchange.now_ns)
    assert order.status == "Filled"
    assert client.position_lots(SYMBOL) == 0
    check_books(exchange)


def test_stops_are_deactivated_when_their_position_closes(exchange: SandboxExchange) -> None:
    client, tape = exchange.clients[0], exchange.tapes[SYMBOL]
    more = {"stopLoss": tape.codec.price(tape.last_ticks - 3000)}
    send(exchange, client, "Buy", 10, None, **more)
    stop = client.full_stops(SYMBOL)["StopLoss"]
    own = conditional(exchange, client, "Buy", tape.last_ticks + 3000, 1)
    send(exchange, client, "Sell", 10)
    assert (stop.status, stop.cancel_type) == ("Deactivated", "CancelByTpSlTsClear")
    assert own.status == "Untriggered"
    flatten(exchange, client)


def test_pre_check_gives_margin_rates_and_places_nothing(exchange: SandboxExchange) -> None:
    client, tape = exchange.clients[0], exchange.tapes[SYMBOL]
    body = {
        "category": "linear",
        "symbol": SYMBOL,
        "side": "Buy",
        "orderType": "Limit",
        "qty": "1",
        "price": tape.codec.price(tape.last_ticks - 10),
    }
    rates = order_entry.pre_check(exchange, client, body)
    assert (rates["preImrE4"], rates["preMmrE4"], rates["postMmrE4"]) == (0, 0, 0)
    balance = client.account.balance_e8 / 1e8
    margin = (tape.last_ticks - 10) / 10 * (0.1 + 0.00055 * 1.9)
    assert rates["postImrE4"] == int(margin / balance * 10_000)
    assert not client.open


def test_a_market_order_respects_its_slippage_tolerance(exchange: SandboxExchange) -> None:
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


def test_a_limit_price_can_be_taken_from_a_book_level(exchange: SandboxExchange) -> None:
    client, tape = exchange.clients[0], exchange.tapes[SYMBOL]
    more = {"bboSideType": "Queue", "bboLevel": "3", "price": ""}
    order = send(exchange, client, "Buy", 10, 1, **more)
    assert order.ticks == tape.books[200].levels(1, 3)[-1][0]
