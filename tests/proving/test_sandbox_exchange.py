"""The sandbox's exchange without a server: who meets whom, what it costs, and that nothing is lost."""

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
from proving.sandbox import entry
from proving.sandbox.exchange import AHEAD_NS, Exchange
from proving.sandbox.refusal import RefusedError
from proving.sandbox.trading import Client, Order
from proving.synthetic.profiles import profile

SYMBOL = "BTCUSDT"
SECOND = 1_000_000_000
DAY_NS = 86_400 * SECOND


@pytest.fixture(scope="module")
def world() -> Exchange:
    return Exchange(profile("default"), 11, clients=4)


@pytest.fixture
def exchange(world: Exchange) -> Exchange:
    """A world that goes on from test to test, in which nobody holds or asks for anything."""
    for client in world.clients:
        flatten(world, client)
    world.advance(world.now_ns + SECOND)
    return world


def flatten(exchange: Exchange, client: Client) -> None:
    """Cancel and close everything a client has."""
    entry.cancel_all(exchange, client, {"category": "linear", "settleCoin": "USDT"})
    for _ in range(100):  # seconds, until prices are such that somebody takes it
        held = client.account.holdings[SYMBOL].position_lots
        if not held:
            return
        side = "Sell" if held > 0 else "Buy"
        send(exchange, client, side, abs(held), reduceOnly=True)
        exchange.advance(exchange.now_ns + SECOND)
    raise AssertionError(f"{client.key} still holds {held} lots")


def send(
    exchange: Exchange, client: Client, side: str, lots: int, ticks: int | None = None, **more: Any
) -> Order:
    """A limit order, or a market order without a price."""
    figures = exchange.tapes[SYMBOL].figures
    body = {
        "category": "linear",
        "symbol": SYMBOL,
        "side": side,
        "orderType": "Market" if ticks is None else "Limit",
        "qty": figures.qty(lots),
        **({} if ticks is None else {"price": figures.price(ticks)}),
        **more,
    }
    made = entry.create(exchange, client, body)["orderId"]
    return next(o for o in [*client.open.values(), *client.closed] if o.order_id == made)


def best(exchange: Exchange, side: int) -> int:
    found = exchange.markets[SYMBOL].best(side)
    assert found is not None
    return found


def check_books(exchange: Exchange) -> None:
    """Positions of all add up to nothing, and every client's money is accounted for to the last unit."""
    positions = [c.account.holdings[SYMBOL].position_lots for c in exchange.clients]
    fund = exchange.ledger.fund.holdings[SYMBOL].position_lots
    assert sum(positions) + fund + exchange.ledger.crowd_lots[SYMBOL] == 0
    instrument = exchange.instruments[SYMBOL]
    resting: dict[int, int] = {}
    for client in exchange.clients:
        holding = client.account.holdings[SYMBOL]
        mark = best(exchange, 1)
        held = value_e8(instrument, mark, holding.position_lots)
        cash = sum(_cash_e8(row) for row in client.executions)
        assert client.account.equity_e8({SYMBOL: mark}) == client.account.opening_e8 + held + cash
        for order in client.open.values():
            assert order.leaves_lots > 0
            resting[order.ticks] = resting.get(order.ticks, 0) + order.leaves_lots
            assert exchange.markets[SYMBOL].lots_ahead(order.handle) is not None
    book = dict(exchange.markets[SYMBOL].levels(1)) | dict(exchange.markets[SYMBOL].levels(-1))
    assert all(book[ticks] >= lots for ticks, lots in resting.items())


def _cash_e8(row: dict[str, Any]) -> int:
    """What an execution as the venue lists it has brought, before what is held is valued."""
    fee = int(Decimal(row["execFee"]) * E8)
    if row["execType"] == "Funding":
        return -fee
    value = int(Decimal(row["execValue"]) * E8)
    return (-value if row["side"] == "Buy" else value) - fee


def test_a_world_is_a_function_of_its_seed_and_the_orders_it_receives() -> None:
    told: list[list[tuple[str, bytes]]] = []
    for _ in range(2):
        frames: list[tuple[str, bytes]] = []
        made = Exchange(
            profile("default"), 5, clients=1, listen=lambda *frame, to=frames: to.append(frame)
        )
        send(made, made.clients[0], "Buy", 500)
        made.advance(made.now_ns + SECOND)
        told.append([*frames, ("keys", made.clients[0].secret.encode())])
    assert told[0] == told[1]
    assert len(told[0]) > 1000


def test_two_clients_meet_and_the_first_is_filled_in_part(exchange: Exchange) -> None:
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
    assert order.row()["orderStatus"] == "Cancelled"
    assert order.row()["cumExecQty"] == "0.4"
    assert order.row()["rejectReason"] == "EC_PerCancelRequest"
    check_books(exchange)


def test_less_keeps_the_place_and_more_loses_it(exchange: Exchange) -> None:
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


def test_an_amended_order_can_take_and_a_post_only_one_ends(exchange: Exchange) -> None:
    client = exchange.clients[0]
    order = send(exchange, client, "Buy", 10, best(exchange, 1) - 100)
    exchange.amend(order, best(exchange, -1), 10)
    assert order.status == "Filled"
    order = send(exchange, client, "Buy", 10, best(exchange, 1) - 100, timeInForce="PostOnly")
    exchange.amend(order, best(exchange, -1), 10)
    assert (order.status, order.reject_reason) == ("Cancelled", "EC_PostOnlyWillTakeLiquidity")
    assert not client.open
    check_books(exchange)


def test_reduce_only_orders_give_way_to_what_there_is_to_reduce(exchange: Exchange) -> None:
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
    assert client.account.holdings[SYMBOL].position_lots == 0
    assert not client.open


def test_funding_is_paid_by_longs_and_received_by_shorts(exchange: Exchange) -> None:
    long, short, tape = *exchange.clients[:2], exchange.tapes[SYMBOL]
    send(exchange, long, "Buy", 300)
    send(exchange, short, "Sell", 200)
    before = [client.account.balance_e8 for client in (long, short)]
    exchange.settle(SYMBOL)
    rate, mark = tape.funding_rate_e8, tape.mark_e8
    for client, lots, balance in zip((long, short), (300, -200), before, strict=True):
        paid = funding_e8(tape.instrument, lots, mark, rate)
        row = client.executions[-1]
        assert client.account.balance_e8 == balance - paid
        assert int(Decimal(row["execFee"]) * E8) == paid
        assert row["execType"] == "Funding"
        assert Decimal(row["feeRate"]) == Decimal(rate if lots > 0 else -rate).scaleb(-8)
        assert Decimal(client.log[-1]["change"]) == -Decimal(row["execFee"])
    assert tape.funding[-1] == (exchange.now_ms, rate)
    check_books(exchange)


@pytest.mark.parametrize("mode", list(MarginMode))
def test_a_position_that_its_margin_no_longer_holds_goes_to_the_fund(
    exchange: Exchange, mode: MarginMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The price does not fall within a test: the mark is taken to the price of liquidation by hand."""
    client, tape = exchange.clients[3], exchange.tapes[SYMBOL]
    client.set_mode(mode)
    if mode is MarginMode.CROSS:
        client.account.opening_e8 -= client.account.balance_e8 - 1500 * E8
    send(exchange, client, "Buy", 200)
    resting = send(exchange, client, "Buy", 1, best(exchange, 1) - 500)
    fund = exchange.ledger.fund.holdings[SYMBOL].position_lots
    fallen: list[bytes] = []
    monkeypatch.setattr(tape, "_listen", lambda topic, frame: fallen.append(frame))
    mark = tape.mark_e8
    tape.values[1] = mark * 87 // 100
    exchange._liquidate()
    tape.values[1] = mark
    assert client.account.holdings[SYMBOL].position_lots == 0
    assert exchange.ledger.fund.holdings[SYMBOL].position_lots == fund + 200
    assert (resting.status, resting.cancel_type) == ("Cancelled", "CancelAllBeforeLiq")
    row = client.executions[-1]
    assert row["execType"] == "BustTrade"
    assert b'"S":"Buy"' in fallen[0]
    assert b"allLiquidation" in fallen[0]
    check_books(exchange)
    if mode is MarginMode.CROSS:
        assert abs(client.account.balance_e8) < 5 * E8
    client.account.opening_e8 += 100_000 * E8 - client.account.balance_e8
    client.set_mode(MarginMode.CROSS)


def test_open_orders_go_over_into_the_next_day(exchange: Exchange) -> None:
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


def test_the_next_day_is_made_ahead_and_is_the_same(exchange: Exchange) -> None:
    """Beside what goes on, so that midnight holds nobody up; a function of the seed all the same."""
    midnight_ns = exchange.now_ns // DAY_NS * DAY_NS + DAY_NS
    exchange.now_ns = midnight_ns - AHEAD_NS
    exchange._beat()
    coming = exchange._coming
    assert coming is not None
    made = coming.result(60)[SYMBOL]
    other = exchange._markets_of(midnight_ns)[SYMBOL]
    assert (made.advance(midnight_ns + SECOND) == other.advance(midnight_ns + SECOND)).all()
    exchange.now_ns = midnight_ns
    exchange._open_day()
    assert exchange.markets[SYMBOL] is made


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
def test_nothing_is_lost_whatever_clients_do(
    world: Exchange, actions: list[tuple[int, str, str, int, int, bool]]
) -> None:
    """Whatever is sent, positions add up to nothing, money to deposits, and open orders rest."""
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
                    figures = world.tapes[SYMBOL].figures
                    price = figures.price(order.ticks + offset)
                    body = {"category": "linear", "symbol": SYMBOL, "orderId": order.order_id}
                    entry.amend(world, client, {**body, "price": price, "qty": figures.qty(lots)})
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
def test_a_client_s_orders_do_not_meet_when_the_incoming_one_says_so(
    exchange: Exchange, tag: str, taker: str, maker: str, executed: int
) -> None:
    """200 lots of another client stand before 500 of the same one; 300 come in."""
    client, other = exchange.clients[:2]
    ticks = best(exchange, -1) - 1
    if ticks == best(exchange, 1):  # room for a level of our own between the best prices
        taken = dict(exchange.markets[SYMBOL].levels(-1))[ticks + 1]
        send(exchange, other, "Buy", taken, ticks + 1)
        ticks = best(exchange, -1) - 1
    send(exchange, other, "Sell", 200, ticks)
    own = send(exchange, client, "Sell", 500, ticks)
    incoming = send(exchange, client, "Buy", 300, ticks, timeInForce="IOC", smpType=tag)
    assert (incoming.status, own.status) == (taker, maker)
    assert incoming.executed_lots == executed
    if tag in ("CancelTaker", "CancelBoth"):
        assert (incoming.cancel_type, incoming.reject_reason) == ("CancelBySmp", "EC_BySelfMatch")
        assert incoming.row()["smpOrderId"] == own.order_id
    if own.status == "Cancelled":
        assert (own.cancel_type, own.reject_reason) == ("CancelBySmp", "EC_BySelfMatch")
    check_books(exchange)


def test_leverage_caps_the_tier_that_orders_may_reach(exchange: Exchange) -> None:
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


def test_a_mark_that_takes_a_position_out_of_its_tier_is_no_fault(exchange: Exchange) -> None:
    """At the most leverage of a tier, a rising mark may take the position into the next."""
    client, tape = exchange.clients[2], exchange.tapes[SYMBOL]
    tape_leverage = client.margin.terms[SYMBOL].leverage
    client.margin.set_leverage(SYMBOL, "150")
    lots = 295_000 * E8 // value_e8(tape.instrument, best(exchange, -1), 1)
    send(exchange, client, "Buy", lots)
    mark = tape.mark_e8
    tape.values[1] = mark * 102 // 100
    exchange._liquidate()
    assert client.position_row(tape.figures, tape.mark_e8)["riskId"] == 2
    tape.values[1] = mark
    flatten(exchange, client)
    client.margin.set_leverage(SYMBOL, tape_leverage)


def test_the_price_band_follows_mark_and_index(exchange: Exchange) -> None:
    tape = exchange.tapes[SYMBOL]
    low, high = tape.band()
    mark = Fraction(tape.mark_e8, E8) / Fraction(tape.instrument.tick)
    assert mark * Fraction(98, 100) <= low < mark < high <= mark * Fraction(102, 100)
