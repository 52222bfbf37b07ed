"""The sandbox's exchange without a server: matching, fees, funding, liquidation and conservation."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from execution.account import fee_e8, funding_e8, value_e8
from execution.margin import MarginError, MarginMode
from market.units import E8
from proving.sandbox import order_entry
from proving.sandbox.accounts import Client, VenueOrder
from proving.sandbox.exchange import PREBUILD_NS, SandboxExchange
from proving.sandbox.protocol import RefusedError
from proving.sandbox.rows import order_row, position_row
from proving.synthetic.profiles import profile

SYMBOL = "BTCUSDT"
SECOND = 1_000_000_000
DAY_NS = 86_400 * SECOND


@pytest.fixture(scope="module")
def world() -> SandboxExchange:
    return SandboxExchange(profile("default"), 11, clients=4)


@pytest.fixture
def exchange(world: SandboxExchange) -> SandboxExchange:
    """A shared exchange, advanced from test to test, without positions and open orders."""
    for client in world.clients:
        flatten(world, client)
    world.advance(world.now_ns + SECOND)
    return world


def flatten(exchange: SandboxExchange, client: Client) -> None:
    """Cancel a client's orders and close its position."""
    order_entry.cancel_all(exchange, client, {"category": "linear", "settleCoin": "USDT"})
    for _ in range(100):  # seconds, until the market takes it
        position = client.position_lots(SYMBOL)
        if not position:
            return
        side = "Sell" if position > 0 else "Buy"
        send(exchange, client, side, abs(position), reduceOnly=True)
        exchange.advance(exchange.now_ns + SECOND)
    raise AssertionError(f"{client.key} still holds {position} lots")


def send(
    exchange: SandboxExchange,
    client: Client,
    side: str,
    lots: int,
    ticks: int | None = None,
    **more: Any,
) -> VenueOrder:
    """A limit order, or a market order without a price."""
    codec = exchange.tapes[SYMBOL].codec
    body = {
        "category": "linear",
        "symbol": SYMBOL,
        "side": side,
        "orderType": "Market" if ticks is None else "Limit",
        "qty": codec.qty(lots),
        **({} if ticks is None else {"price": codec.price(ticks)}),
        **more,
    }
    order_id = order_entry.create(exchange, client, body)["orderId"]
    return next(o for o in [*client.open.values(), *client.closed] if o.order_id == order_id)


def best(exchange: SandboxExchange, side: int) -> int:
    ticks = exchange.markets[SYMBOL].best(side)
    assert ticks is not None
    return ticks


def check_books(exchange: SandboxExchange) -> None:
    """Assert that positions sum to zero, cash is accounted for to 1e-8, and open orders rest in the book."""
    positions = [c.position_lots(SYMBOL) for c in exchange.clients]
    fund = exchange.account_book.fund.holdings[SYMBOL].position_lots
    assert sum(positions) + fund + exchange.account_book.background_lots[SYMBOL] == 0
    instrument = exchange.instruments[SYMBOL]
    resting: dict[int, int] = {}
    for client in exchange.clients:
        mark = best(exchange, 1)
        value = value_e8(instrument, mark, client.position_lots(SYMBOL))
        cash = sum(_cash_e8(row) for row in client.executions)
        assert client.account.equity_e8({SYMBOL: mark}) == client.account.opening_e8 + value + cash
        for order in client.open.values():
            assert order.leaves_lots > 0
            resting[order.ticks] = resting.get(order.ticks, 0) + order.leaves_lots
            assert exchange.markets[SYMBOL].lots_ahead(order.handle) is not None
    book = dict(exchange.markets[SYMBOL].levels(1)) | dict(exchange.markets[SYMBOL].levels(-1))
    assert all(book[ticks] >= lots for ticks, lots in resting.items())


def _cash_e8(row: dict[str, Any]) -> int:
    """The cash flow of a listed execution."""
    fee = int(Decimal(row["execFee"]) * E8)
    if row["execType"] == "Funding":
        return -fee
    value = int(Decimal(row["execValue"]) * E8)
    return (-value if row["side"] == "Buy" else value) - fee


def test_public_frames_are_a_function_of_seed_and_orders() -> None:
    runs: list[list[tuple[str, bytes]]] = []
    for _ in range(2):
        frames: list[tuple[str, bytes]] = []
        exchange = SandboxExchange(
            profile("default"), 5, clients=1, on_frame=lambda *frame, to=frames: to.append(frame)
        )
        send(exchange, exchange.clients[0], "Buy", 500)
        exchange.advance(exchange.now_ns + SECOND)
        runs.append([*frames, ("keys", exchange.clients[0].secret.encode())])
    assert runs[0] == runs[1]
    assert len(runs[0]) > 1000


def test_a_resting_order_is_partially_filled_by_another_client(exchange: SandboxExchange) -> None:
    maker, taker = exchange.clients[:2]
    order = send(exchange, maker, "Buy", 1000, best(exchange, 1))
    ahead = exchange.markets[SYMBOL].lots_ahead(order.handle)
    assert ahead is not None
    send(exchange, taker, "Sell", ahead + 400)
    assert (order.status, order.executed_lots) == ("PartiallyFilled", 400)
    row = maker.executions[-1]
    assert row["isMaker"]
    assert row["leavesQty"] == "0.6"
    value = value_e8(exchange.instruments[SYMBOL], order.ticks, 400)
    assert order.fee_e8 == fee_e8(value, "0.0002")
    exchange.cancel(order)
    assert order_row(order)["orderStatus"] == "Cancelled"
    assert order_row(order)["cumExecQty"] == "0.4"
    assert order_row(order)["rejectReason"] == "EC_PerCancelRequest"
    check_books(exchange)


def test_amending_down_keeps_queue_position_and_up_loses_it(exchange: SandboxExchange) -> None:
    first, second = exchange.clients[:2]
    market = exchange.markets[SYMBOL]
    ticks = best(exchange, 1) - 50
    order = send(exchange, first, "Buy", 100, ticks)
    send(exchange, second, "Buy", 70, ticks)
    ahead = market.lots_ahead(order.handle)
    exchange.amend(order, ticks, 60)
    assert market.lots_ahead(order.handle) == ahead
    exchange.amend(order, ticks, 61)
    assert market.lots_ahead(order.handle) == (ahead or 0) + 70
    assert order.leaves_lots == 61


def test_an_order_amended_through_the_spread_takes_and_post_only_ends(
    exchange: SandboxExchange,
) -> None:
    client = exchange.clients[0]
    order = send(exchange, client, "Buy", 10, best(exchange, 1) - 100)
    exchange.amend(order, best(exchange, -1), 10)
    assert order.status == "Filled"
    order = send(exchange, client, "Buy", 10, best(exchange, 1) - 100, timeInForce="PostOnly")
    exchange.amend(order, best(exchange, -1), 10)
    assert (order.status, order.reject_reason) == ("Cancelled", "EC_PostOnlyWillTakeLiquidity")
    assert not client.open
    check_books(exchange)


def test_reduce_only_orders_are_trimmed_to_the_position(exchange: SandboxExchange) -> None:
    client = exchange.clients[0]
    send(exchange, client, "Buy", 100)
    far = best(exchange, -1) + 300
    first = send(exchange, client, "Sell", 70, far, reduceOnly=True)
    second = send(exchange, client, "Sell", 70, far, reduceOnly=True)
    assert (first.leaves_lots, second.leaves_lots) == (70, 30)
    with pytest.raises(RefusedError) as refused:
        send(exchange, client, "Sell", 10, far, reduceOnly=True)
    assert refused.value.code == 110017
    send(exchange, client, "Sell", 60)
    assert (first.leaves_lots, second.status) == (40, "Cancelled")
    assert second.cancel_type == "CancelByReduceOnly"
    send(exchange, client, "Sell", 0, reduceOnly=True, closeOnTrigger=True, qty="0")
    assert client.position_lots(SYMBOL) == 0
    assert not client.open


def test_funding_is_paid_by_longs_and_received_by_shorts(exchange: SandboxExchange) -> None:
    long, short, tape = *exchange.clients[:2], exchange.tapes[SYMBOL]
    send(exchange, long, "Buy", 300)
    send(exchange, short, "Sell", 200)
    before = [client.account.balance_e8 for client in (long, short)]
    exchange.settle_funding(SYMBOL)
    rate, mark = tape.funding_rate_e8, tape.mark_e8
    for client, lots, balance in zip((long, short), (300, -200), before, strict=True):
        paid = funding_e8(tape.instrument, lots, mark, rate)
        row = client.executions[-1]
        assert client.account.balance_e8 == balance - paid
        assert int(Decimal(row["execFee"]) * E8) == paid
        assert row["execType"] == "Funding"
        assert Decimal(row["feeRate"]) == Decimal(rate if lots > 0 else -rate).scaleb(-8)
        assert Decimal(client.transactions[-1]["change"]) == -Decimal(row["execFee"])
    assert tape.funding[-1] == (exchange.now_ms, rate)
    check_books(exchange)


@pytest.mark.parametrize("mode", list(MarginMode))
def test_a_liquidated_position_goes_to_the_insurance_fund(
    exchange: SandboxExchange, mode: MarginMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mark is set below the liquidation price by hand."""
    client, tape = exchange.clients[3], exchange.tapes[SYMBOL]
    client.set_mode(mode)
    if mode is MarginMode.CROSS:
        client.account.opening_e8 -= client.account.balance_e8 - 1500 * E8
    send(exchange, client, "Buy", 200)
    resting = send(exchange, client, "Buy", 1, best(exchange, 1) - 500)
    fund = exchange.account_book.fund.holdings[SYMBOL].position_lots
    frames: list[bytes] = []
    monkeypatch.setattr(tape, "_on_frame", lambda topic, frame: frames.append(frame))
    mark = tape.mark_e8
    tape.values[1] = mark * 87 // 100
    exchange._liquidate()
    tape.values[1] = mark
    assert client.position_lots(SYMBOL) == 0
    assert exchange.account_book.fund.holdings[SYMBOL].position_lots == fund + 200
    assert (resting.status, resting.cancel_type) == ("Cancelled", "CancelAllBeforeLiq")
    row = client.executions[-1]
    assert row["execType"] == "BustTrade"
    assert b'"S":"Buy"' in frames[0]
    assert b"allLiquidation" in frames[0]
    check_books(exchange)
    if mode is MarginMode.CROSS:
        assert abs(client.account.balance_e8) < 5 * E8
    client.account.opening_e8 += 100_000 * E8 - client.account.balance_e8
    client.set_mode(MarginMode.CROSS)


def test_open_orders_carry_over_midnight(exchange: SandboxExchange) -> None:
    client = exchange.clients[0]
    ticks = best(exchange, 1) - 2000
    order = send(exchange, client, "Buy", 20, ticks)
    exchange.now_ns = exchange.now_ns // DAY_NS * DAY_NS + DAY_NS
    exchange._open_day()
    exchange.advance(exchange.now_ns + 2 * SECOND)
    assert order.status == "New"
    assert exchange.markets[SYMBOL].lots_ahead(order.handle) is not None
    exchange.cancel(order)
    assert order.status == "Cancelled"


def test_the_prebuilt_market_of_the_next_day_is_the_same(exchange: SandboxExchange) -> None:
    """Built in a thread before midnight, and still a function of the seed."""
    midnight_ns = exchange.now_ns // DAY_NS * DAY_NS + DAY_NS
    exchange.now_ns = midnight_ns - PREBUILD_NS
    exchange._cycle()
    prebuilding = exchange._next_markets
    assert prebuilding is not None
    built = prebuilding.result(60)[SYMBOL]
    rebuilt = exchange._build_markets(midnight_ns)[SYMBOL]
    assert (built.advance(midnight_ns + SECOND) == rebuilt.advance(midnight_ns + SECOND)).all()
    exchange.now_ns = midnight_ns
    exchange._open_day()
    assert exchange.markets[SYMBOL] is built


ACTIONS = st.tuples(
    st.integers(0, 3),
    st.sampled_from(["Buy", "Sell"]),
    st.sampled_from(["GTC", "IOC", "FOK", "PostOnly", "market", "cancel", "amend", "wait"]),
    st.integers(1, 3000),
    st.integers(-30, 30),
    st.booleans(),
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(actions=st.lists(ACTIONS, min_size=5, max_size=30))
def test_money_and_positions_are_conserved_under_random_orders(
    world: SandboxExchange, actions: list[tuple[int, str, str, int, int, bool]]
) -> None:
    """Positions sum to zero, money to deposits, and open orders rest in the book."""
    codes: list[int] = []
    for number, side, kind, lots, offset, reduce_only in actions:
        client = world.clients[number]
        try:
            if kind == "wait":
                world.advance(world.now_ns + lots * 200_000)
            elif kind == "market":
                send(world, client, side, lots, reduceOnly=reduce_only)
            elif kind in ("cancel", "amend"):
                order = next(iter(client.open.values()), None)
                if order is not None and kind == "cancel":
                    world.cancel(order)
                elif order is not None:
                    codec = world.tapes[SYMBOL].codec
                    price = codec.price(order.ticks + offset)
                    body = {"category": "linear", "symbol": SYMBOL, "orderId": order.order_id}
                    order_entry.amend(
                        world, client, {**body, "price": price, "qty": codec.qty(lots)}
                    )
            else:
                ticks = best(world, 1) + offset
                more = {"timeInForce": kind, "reduceOnly": reduce_only}
                send(world, client, side, lots, ticks, **more)
        except RefusedError as refused:
            codes.append(refused.code)
    assert set(codes) <= {10001, 110007, 110017, 110064, 110094}
    check_books(world)


@pytest.mark.parametrize(
    ("tag", "taker", "maker", "executed"),
    [
        ("None", "Filled", "PartiallyFilled", 300),
        ("CancelMaker", "Cancelled", "Cancelled", 200),
        ("CancelTaker", "Cancelled", "New", 200),
        ("CancelBoth", "Cancelled", "Cancelled", 200),
    ],
)
def test_self_match_prevention_cancels_maker_taker_or_both(
    exchange: SandboxExchange, tag: str, taker: str, maker: str, executed: int
) -> None:
    """An order of 300 lots meets 200 of another client, then 500 of its own."""
    client, other = exchange.clients[:2]
    ticks = best(exchange, -1) - 1
    if ticks == best(exchange, 1):  # make room for a level inside the spread
        level_lots = dict(exchange.markets[SYMBOL].levels(-1))[ticks + 1]
        send(exchange, other, "Buy", level_lots, ticks + 1)
        ticks = best(exchange, -1) - 1
    send(exchange, other, "Sell", 200, ticks)
    own = send(exchange, client, "Sell", 500, ticks)
    incoming = send(exchange, client, "Buy", 300, ticks, timeInForce="IOC", smpType=tag)
    assert (incoming.status, own.status) == (taker, maker)
    assert incoming.executed_lots == executed
    if tag in ("CancelTaker", "CancelBoth"):
        assert (incoming.cancel_type, incoming.reject_reason) == ("CancelBySmp", "EC_BySelfMatch")
        assert order_row(incoming)["smpOrderId"] == own.order_id
    if own.status == "Cancelled":
        assert (own.cancel_type, own.reject_reason) == ("CancelBySmp", "EC_BySelfMatch")
    check_books(exchange)


def test_leverage_limits_the_risk_tier_of_orders(exchange: SandboxExchange) -> None:
    client, tape = exchange.clients[2], exchange.tapes[SYMBOL]
    old = client.margin.terms[SYMBOL].leverage
    client.margin.set_leverage(SYMBOL, "150")
    lots = 310_000 * E8 // value_e8(tape.instrument, best(exchange, -1), 1)
    with pytest.raises(RefusedError) as refused:
        send(exchange, client, "Buy", lots)
    assert refused.value.code == 110090
    client.margin.set_leverage(SYMBOL, "100")
    send(exchange, client, "Buy", lots)
    with pytest.raises(MarginError):
        client.margin.set_leverage(SYMBOL, "150")
    flatten(exchange, client)
    client.margin.set_leverage(SYMBOL, old)


def test_a_rising_mark_may_move_a_position_into_the_next_tier(
    exchange: SandboxExchange,
) -> None:
    """Even at the highest leverage of its tier."""
    client, tape = exchange.clients[2], exchange.tapes[SYMBOL]
    tape_leverage = client.margin.terms[SYMBOL].leverage
    client.margin.set_leverage(SYMBOL, "150")
    lots = 295_000 * E8 // value_e8(tape.instrument, best(exchange, -1), 1)
    send(exchange, client, "Buy", lots)
    mark = tape.mark_e8
    tape.values[1] = mark * 102 // 100
    exchange._liquidate()
    assert position_row(client, tape.codec, tape.mark_e8)["riskId"] == 2
    tape.values[1] = mark
    flatten(exchange, client)
    client.margin.set_leverage(SYMBOL, tape_leverage)


def test_price_limits_follow_mark_and_index(exchange: SandboxExchange) -> None:
    tape = exchange.tapes[SYMBOL]
    low, high = tape.price_limits()
    mark = Fraction(tape.mark_e8, E8) / Fraction(tape.instrument.tick)
    assert mark * Fraction(98, 100) <= low < mark < high <= mark * Fraction(102, 100)
