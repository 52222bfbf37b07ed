"""Races of requests with fills, and what happens to an account while its client is away."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from execution.margin import MarginMode
from proving.sandbox.accounts import Client
from proving.sandbox.staging import STATES, Staged, StagingError, stage
from proving.sandbox.virtual import Delivery, VirtualVenue

MS: Final = 1_000_000
SECOND: Final = 1000 * MS
SYMBOL: Final = "BTCUSDT"
PRIVATE: Final = ("order", "execution", "position", "wallet")


@pytest.fixture
def venue() -> VirtualVenue:
    """A venue whose requests take some 50 ms to the market."""
    return VirtualVenue(
        seed=8, start_ns=5 * SECOND, latency_ms=50.0, clients=3, limited=False, deposit_e8=10**16
    )


def ask(venue: VirtualVenue, path: str, client: int = 0, **params: Any) -> Any:
    """The answer to a request about the symbol."""
    body = {"category": "linear", "symbol": SYMBOL, **params}
    answer = venue.request(venue.clients[client], path, body).answer
    assert answer is not None
    return json.loads(answer.body)


def created(venue: VirtualVenue, client: int = 0, **fields: Any) -> str:
    """The id of a new order."""
    order = {"side": "Buy", "orderType": "Limit", "qty": "0.010", **fields}
    answer = ask(venue, "order/create", client, **order)
    assert answer["retCode"] == 0, answer
    return str(answer["result"]["orderId"])


def after(venue: VirtualVenue, ms: int) -> list[Delivery]:
    return venue.advance(venue.now_ns + ms * MS)


def rows(deliveries: list[Delivery], topic: str) -> list[dict[str, Any]]:
    """Rows of a private topic."""
    frames = [json.loads(d.frame) for d in deliveries if d.frame is not None]
    return [row for frame in frames if frame.get("topic") == topic for row in frame["data"]]


def price(venue: VirtualVenue, ticks: int) -> str:
    """A price so many ticks from the last trade."""
    tape = venue.exchange.tapes[SYMBOL]
    return tape.codec.price(tape.last_ticks + ticks)


def hold(venue: VirtualVenue, qty: str = "0.1", **fields: Any) -> Client:
    """The first client with a long position, whose streams are read."""
    client = venue.clients[0]
    venue.connect("private", client, PRIVATE)
    created(venue, orderType="Market", qty=qty, **fields)
    after(venue, 1000)
    assert client.position_lots(SYMBOL) > 0
    return client


def test_an_order_is_in_no_list_before_it_reaches_the_market(venue: VirtualVenue) -> None:
    venue.connect("private", venue.clients[0], PRIVATE)
    order_id = created(venue, price=price(venue, -300))
    before = ask(venue, "order/realtime", orderId=order_id)["result"]["list"]
    messages = after(venue, 1000)
    listed = ask(venue, "order/realtime", orderId=order_id)["result"]["list"]
    assert (before, [row["orderStatus"] for row in listed]) == ([], ["New"])
    (row,) = rows(messages, "order")
    assert int(row["updatedTime"]) - int(row["createdTime"]) >= 25


def test_a_cancel_that_comes_too_late_is_told_by_a_second_filled_message(
    venue: VirtualVenue,
) -> None:
    venue.connect("private", venue.clients[0], PRIVATE)
    order_id = created(venue, orderType="Market")
    assert ask(venue, "order/cancel", orderId=order_id)["retCode"] == 0
    told = [row for row in rows(after(venue, 2000), "order") if row["orderId"] == order_id]
    states = [(row["orderStatus"], row["cancelType"], row["rejectReason"]) for row in told]
    assert states == [
        ("Filled", "UNKNOWN", "EC_NoError"),
        ("Filled", "CancelByUser", "EC_OrigClOrdIDDoesNotExist"),
    ]
    assert ask(venue, "order/cancel", orderId=order_id)["retCode"] == 110001


def test_requests_of_a_client_arrive_in_order(venue: VirtualVenue) -> None:
    """Twenty orders, each amended and cancelled at once: all end cancelled with the amended quantity."""
    for _ in range(20):
        order_id = created(venue, price=price(venue, -300))
        ask(venue, "order/amend", orderId=order_id, qty="0.020")
        ask(venue, "order/cancel", orderId=order_id)
    after(venue, 3000)
    closed = list(venue.clients[0].closed)
    assert [(order.status, order.lots) for order in closed] == [("Cancelled", 20)] * 20
    assert [order.number for order in closed] == sorted(order.number for order in closed)


def test_a_fill_before_the_cancel_wins_and_after_it_does_not_happen(venue: VirtualVenue) -> None:
    """A resting order is cancelled while another client's order that would fill it is on its way."""
    outcomes = set()
    for _ in range(30):
        bid = next(iter(venue.exchange.tapes[SYMBOL].books[1].sides[1]))
        order_id = created(venue, price=venue.exchange.tapes[SYMBOL].codec.price(bid), qty="0.001")
        after(venue, 400)
        ask(venue, "order/cancel", orderId=order_id)
        created(venue, client=1, side="Sell", orderType="Market", qty="90")
        after(venue, 400)
        order = next(o for o in venue.clients[0].closed if o.order_id == order_id)
        outcomes.add((order.status, order.executed_lots))
        venue.stage("close", to=venue.clients[1].key)
    assert outcomes >= {("Filled", 1), ("Cancelled", 0)}


# -- stops -----------------------------------------------------------------------------------------


def test_an_attached_stop_arms_with_the_first_fill_and_follows_the_position(
    venue: VirtualVenue,
) -> None:
    client = hold(venue, stopLoss=price(venue, -900))
    (stop,) = client.full_stops(SYMBOL).values()
    assert (stop.lots, stop.side, stop.reduce_only) == (100, -1, True)
    created(venue, orderType="Market", qty="0.05")
    after(venue, 1000)
    assert [order.lots for order in client.full_stops(SYMBOL).values()] == [150]
    moved = price(venue, -800)
    assert ask(venue, "position/trading-stop", stopLoss=moved, positionIdx=0)["retCode"] == 0
    (row,) = ask(venue, "position/list")["result"]["list"]
    assert float(row["stopLoss"]) == float(moved)
    assert [order.order_id for order in client.full_stops(SYMBOL).values()] == [stop.order_id]


def test_later_fills_of_an_order_do_not_move_a_stop_that_was_moved(venue: VirtualVenue) -> None:
    client = venue.clients[0]
    touch = next(iter(venue.exchange.tapes[SYMBOL].books[1].sides[1]))
    at = venue.exchange.tapes[SYMBOL].codec.price(touch)
    order_id = created(venue, qty="20", price=at, stopLoss=price(venue, -900))
    while not client.full_stops(SYMBOL):
        after(venue, 100)
    moved = price(venue, -700)
    ask(venue, "position/trading-stop", stopLoss=moved, positionIdx=0)
    held = client.position_lots(SYMBOL)
    order = client.open[order_id]
    while client.position_lots(SYMBOL) == held and order.is_open:
        after(venue, 100)
    (row,) = ask(venue, "position/list")["result"]["list"]
    assert float(row["stopLoss"]) == float(moved)


def test_an_order_that_turns_a_position_arms_its_own_stop(venue: VirtualVenue) -> None:
    client = hold(venue, stopLoss=price(venue, -900))
    created(venue, side="Sell", orderType="Market", qty="0.3", stopLoss=price(venue, 900))
    after(venue, 1000)
    assert client.position_lots(SYMBOL) == -200
    assert [(o.side, o.lots) for o in client.full_stops(SYMBOL).values()] == [(1, 200)]


# -- while the client is away ----------------------------------------------------------------------


def test_a_liquidation_has_its_execution_and_cancels_orders(venue: VirtualVenue) -> None:
    client = hold(venue, stopLoss=price(venue, -900))
    created(venue, price=price(venue, -300))
    after(venue, 500)
    venue.stage("liquidate", to=client.key)
    messages = after(venue, 500)
    (execution,) = rows(messages, "execution")
    assert (execution["execType"], execution["orderLinkId"]) == ("BustTrade", "")
    assert rows(messages, "position")[-1]["size"] == "0"
    assert (client.open, client.untriggered) == ({}, {})


def test_deleveraging_closes_a_part_at_the_mark(venue: VirtualVenue) -> None:
    client = hold(venue)
    venue.stage("adl", to=client.key, qty="0.04")
    (execution,) = rows(after(venue, 500), "execution")
    assert (execution["execType"], execution["execQty"]) == ("AdlTrade", "0.04")
    assert execution["createType"] == "CreateByAdl_PassThrough"
    assert client.position_lots(SYMBOL) == 60


def test_a_human_trades_beside_the_client(venue: VirtualVenue) -> None:
    client = hold(venue)
    venue.stage("order", to=client.key, side="Buy", qty="0.02")
    (execution,) = rows(after(venue, 500), "execution")
    assert (execution["execType"], execution["orderLinkId"]) == ("Trade", "")
    venue.stage("order", side="Buy", qty="0.02", price=price(venue, -300))
    after(venue, 500)
    assert len(client.open) == 1
    venue.stage("close", to=client.key)
    after(venue, 500)
    assert client.position_lots(SYMBOL) == 0


def test_a_stop_fires_while_nobody_listens(venue: VirtualVenue) -> None:
    client = hold(venue, stopLoss=price(venue, -900))
    venue.disconnect(next(iter(venue.venue.private_stream.connections)))
    venue.stage("stop", to=client.key)
    after(venue, 500)
    assert client.position_lots(SYMBOL) == 0
    (newest, *_) = ask(venue, "execution/list")["result"]["list"]
    assert (newest["createType"], newest["closedSize"]) == ("CreateByStopLoss", "0.1")


@pytest.mark.parametrize(
    "staged",
    [
        Staged("liquidate"),
        Staged("stop"),
        Staged("order", side="Up", qty="1"),
        Staged("dance"),
        Staged("close", symbol="NOPE"),
        Staged("close", to="nobody"),
        Staged("state", state="happy"),
    ],
)
def test_what_cannot_be_staged_is_explained(venue: VirtualVenue, staged: Staged) -> None:
    with pytest.raises(StagingError):
        stage(venue.exchange, staged)


# -- states ----------------------------------------------------------------------------------------


def test_an_account_shows_the_state_that_it_is_found_in(venue: VirtualVenue) -> None:
    client = venue.clients[0]
    for name in STATES:
        venue.stage("state", to=client.key, state=name)
    key = ask(venue, "user/query-api")["result"]
    assert (key["readOnly"], "Withdraw" in key["permissions"]["Wallet"]) == (1, True)
    (row,) = ask(venue, "position/symbol-info")["result"]["list"]
    assert row["leverage"] == "25"
    assert len(ask(venue, "position/list")["result"]["list"]) == 2
    assert ask(venue, "account/info")["result"]["marginMode"] == "ISOLATED_MARGIN"
    (fees,) = ask(venue, "account/fee-rate")["result"]["list"]
    assert (fees["makerFeeRate"], fees["takerFeeRate"]) == ("0.00018", "0.0004")
    assert ask(venue, "order/create", side="Buy")["retCode"] == 10005
    assert venue.clients[1].mode is MarginMode.CROSS


def test_fees_are_charged_at_the_rates_of_the_account(venue: VirtualVenue) -> None:
    STATES["vip"].apply(venue.clients[0])
    hold(venue)
    (row,) = ask(venue, "execution/list")["result"]["list"]
    assert row["feeRate"] == "0.0004"


@pytest.mark.parametrize("side", ["Buy", "Sell"])
def test_a_cross_position_names_the_price_at_which_it_is_liquidated(side: str) -> None:
    venue = VirtualVenue(seed=8, start_ns=5 * SECOND, clients=1, deposit_e8=1_000 * 10**8)
    created(venue, side=side, orderType="Market", qty="0.100")
    after(venue, 200)
    client, sign = venue.clients[0], 1 if side == "Buy" else -1
    (row,) = ask(venue, "position/list")["result"]["list"]
    told = round(float(row["liqPrice"]) * 10**8)
    assert sign * (venue.exchange.marks[SYMBOL] - told) > 0
    assert client.margin.liquidated({SYMBOL: round(told * (1 - sign * 0.001))}) == [SYMBOL]
    assert client.margin.liquidated({SYMBOL: round(told * (1 + sign * 0.001))}) == []


# -- what was ------------------------------------------------------------------------------------


def paged(venue: VirtualVenue, path: str, **query: Any) -> list[dict[str, Any]]:
    """All rows of a list, page by page."""
    found: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = ask(venue, path, limit="3", cursor=cursor, **query)["result"]
        found += page["list"]
        cursor = page["nextPageCursor"]
        assert bool(cursor) == (len(page["list"]) == 3 and bool(cursor))
        if not cursor:
            return found


def test_lists_can_be_filtered_paged_and_cut_in_time(venue: VirtualVenue) -> None:
    for n in range(7):
        created(venue, orderLinkId=f"r{n}", price=price(venue, -300))
        created(venue, orderLinkId=f"m{n}", orderType="Market", qty="0.001")
        after(venue, 300)
    middle = venue.now_ns // MS
    ask(venue, "order/cancel", orderLinkId="r6")
    after(venue, 300)
    created(venue, orderLinkId="late", orderType="Market", qty="0.001")
    after(venue, 300)

    def links(rows: list[dict[str, Any]]) -> list[str]:
        return [row["orderLinkId"] for row in rows]

    resting = paged(venue, "order/realtime")
    assert links(resting) == [f"r{n}" for n in range(5, -1, -1)]
    assert links(paged(venue, "order/realtime", openOnly="0")) == links(resting)
    recent = links(paged(venue, "order/realtime", openOnly="1"))
    assert recent[:2] == ["late", "m6"]
    assert set(recent) == {"late", "r6", *(f"m{n}" for n in range(7))}
    assert links(paged(venue, "order/realtime", orderLinkId="r2")) == ["r2"]
    assert links(paged(venue, "order/realtime", orderLinkId="r6")) == ["r6"]
    assert paged(venue, "order/realtime", orderFilter="StopOrder") == []
    history = paged(venue, "order/history")
    assert set(links(history)) == set(recent)
    assert links(paged(venue, "order/history", orderStatus="Cancelled")) == ["r6"]
    assert links(paged(venue, "order/history", orderLinkId="m3")) == ["m3"]
    assert links(paged(venue, "order/history", startTime=str(middle))) == ["late"]
    executions = paged(venue, "execution/list")
    assert links(executions)[0] == "late"
    assert links(paged(venue, "execution/list", orderLinkId="m3")) == ["m3"]
    assert links(paged(venue, "execution/list", startTime=str(middle))) == ["late"]
    assert "late" not in links(paged(venue, "execution/list", endTime=str(middle)))
    times = [int(row["execTime"]) for row in executions]
    assert times == sorted(times, reverse=True)
    week = 7 * 86_400_000
    wide = ask(venue, "execution/list", startTime="1000", endTime=str(1001 + week))
    assert wide["retCode"] == 10001
    for query in ({"openOnly": "7"}, {"orderFilter": "tpslOrder"}, {"limit": "x"}, {"cursor": "y"}):
        assert ask(venue, "order/realtime", **query)["retCode"] == 10001
    assert ask(venue, "execution/list", execType="Nothing")["retCode"] == 10001
    assert ask(venue, "order/history", orderStatus="Nothing")["retCode"] == 10001
