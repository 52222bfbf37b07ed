"""The venue in simulated time: a function of seed and requests, with every fault by command."""

from __future__ import annotations

import json
import os
import threading
from typing import Any

import pytest

from market.units import day_start_ns
from proving.sandbox.faults import KINDS
from proving.sandbox.virtual import Delivery, VirtualVenue

SECOND = 1_000_000_000
BOOK = "orderbook.200.BTCUSDT"
PUBLIC = (BOOK, "publicTrade.BTCUSDT", "tickers.BTCUSDT")
PRIVATE = ("order", "execution", "position", "wallet")
ORDER = {"category": "linear", "symbol": "BTCUSDT", "side": "Buy", "qty": "0.001"}
MARKET = {**ORDER, "orderType": "Market"}


@pytest.fixture
def venue() -> VirtualVenue:
    """A venue that a client has just come to."""
    return VirtualVenue(seed=5, start_ns=5 * SECOND)


def after(venue: VirtualVenue, seconds: float) -> list[Delivery]:
    """What leaves the venue in so much time."""
    return venue.advance(venue.now_ns + round(seconds * SECOND))


def frames(deliveries: list[Delivery], topic: str) -> list[dict[str, Any]]:
    """The frames of a topic."""
    decoded = [json.loads(d.frame) for d in deliveries if d.frame is not None]
    return [frame for frame in decoded if frame.get("topic") == topic]


def code(venue: VirtualVenue, path: str, params: dict[str, Any]) -> int | None:
    """The return code of a request; None when it has no answer."""
    answer = venue.request(venue.clients[0], path, params).answer
    return None if answer is None else int(json.loads(answer.body)["retCode"])


def placed(venue: VirtualVenue, link: str) -> bool:
    """Whether the venue has an order, by what it answers to a query."""
    params = {"category": "linear", "symbol": "BTCUSDT", "orderLinkId": link}
    answer = venue.request(venue.clients[0], "order/realtime", params).answer
    assert answer is not None
    return bool(json.loads(answer.body)["result"]["list"])


def played(seed: int, cycle_ns: int) -> list[Any]:
    """Everything that leaves a venue in five seconds with faults and requests."""
    venue = VirtualVenue(
        seed=seed, start_ns=SECOND, cycle_ns=cycle_ns, fault_rates={"drop": 60.0, "abort": 20.0}
    )
    client = venue.clients[0]
    venue.connect("public", topics=PUBLIC)
    venue.connect("private", client, PRIVATE)
    out: list[Any] = []
    for second in range(5):
        out += [(d.time_ns, d.connection.name, d.frame) for d in after(venue, 1.0)]
        trade = venue.connect("trade", client)
        stamp = str(venue.now_ns // 1_000_000)
        header = {"X-BAPI-TIMESTAMP": stamp}
        request = {"reqId": str(second), "header": header, "op": "order.create", "args": [MARKET]}
        venue.send(trade, request)
        out.append(venue.request(client, "order/create", MARKET).answer)
    return out


@pytest.mark.parametrize("cycle_ns", [20_000_000, 100_000_000])
def test_a_run_is_a_function_of_its_seed_and_requests(cycle_ns: int) -> None:
    first = played(3, cycle_ns)
    assert first == played(3, cycle_ns)
    assert first != played(4, cycle_ns)


def test_a_client_hears_of_its_order_on_its_streams_in_order_of_time(venue: VirtualVenue) -> None:
    client = venue.clients[0]
    venue.connect("public", topics=PUBLIC)
    venue.connect("private", client, PRIVATE)
    before = after(venue, 1.0)
    assert code(venue, "order/create", MARKET) == 0
    deliveries = after(venue, 1.0)
    assert [order["data"][0]["orderStatus"] for order in frames(deliveries, "order")] == ["Filled"]
    assert all(frames(deliveries, topic) for topic in PRIVATE)
    assert frames(before, BOOK)[0]["type"] == "snapshot"
    updates = [frame["data"]["u"] for frame in frames(before + deliveries, BOOK)]
    assert updates == list(range(updates[0], updates[0] + len(updates)))
    times = [delivery.time_ns for delivery in before + deliveries]
    assert times == sorted(times)


@pytest.mark.parametrize("kind", [kind for kind, what in KINDS.items() if what.place == "request"])
def test_a_fault_of_a_request_says_what_became_of_the_order(venue: VirtualVenue, kind: str) -> None:
    low = venue.exchange.tapes["BTCUSDT"].price_limits()[0]
    order = {**ORDER, "orderType": "Limit", "price": f"{low / 10:.1f}", "orderLinkId": "mine"}
    venue.command(kind, to=venue.clients[0].key, what="order/create")
    outcome = venue.request(venue.clients[0], "order/create", order)
    expected = {
        "answer_lost": (False, False),
        "cut_before": (False, True),
        "cut_after": (False, True),
    }
    answered = (outcome.answer is not None, outcome.is_cut)
    assert answered == expected.get(kind, (True, False))
    assert (outcome.delay_ns > 0) == (kind == "answer_late")
    carried_out = ("answer_lost", "answer_late", "cut_after", "timed_out")
    assert placed(venue, "mine") == (kind in carried_out)


def test_a_wrong_clock_refuses_a_stamp_that_was_right(venue: VirtualVenue) -> None:
    client = venue.clients[0]
    venue.command("clock", ms=5_001)
    late = venue.request(client, "order/create", MARKET, stamp_ns=venue.now_ns).answer
    assert late is not None
    assert json.loads(late.body)["retCode"] == 10002
    venue.faults.clear()
    assert code(venue, "order/create", MARKET) == 0


def test_silence_holds_frames_and_the_end_of_a_connection_is_a_delivery(
    venue: VirtualVenue,
) -> None:
    public = venue.connect("public", topics=[BOOK])
    after(venue, 0.5)
    venue.command("silence", to=public.name, ms=1000)
    assert after(venue, 0.9) == []
    assert len(frames(after(venue, 0.5), BOOK)) >= 10
    venue.command("abort", to=public.name)
    ended = after(venue, 0.5)
    assert [(d.connection, d.frame) for d in ended] == [(public, None)]
    assert not public.is_open


def test_after_a_restart_books_begin_anew(venue: VirtualVenue) -> None:
    venue.connect("public", topics=[BOOK])
    after(venue, 0.5)
    venue.command("restart")
    first = frames(after(venue, 0.5), BOOK)[0]
    assert (first["type"], first["data"]["u"]) == ("snapshot", 1)


def test_a_dead_client_is_disconnected_and_its_orders_cancelled_if_it_asked_for_it(
    venue: VirtualVenue,
) -> None:
    client = venue.clients[0]
    window = {"product": "DERIVATIVES", "timeWindow": 5}
    assert code(venue, "order/disconnected-cancel-all", window) == 0
    private = venue.connect("private", client, ["dcp.future"])
    low = venue.exchange.tapes["BTCUSDT"].price_limits()[0]
    order = {**ORDER, "orderType": "Limit", "price": f"{low / 10:.1f}"}
    assert code(venue, "order/create", order) == 0
    venue.disconnect(private)
    after(venue, 4.9)
    assert client.open
    after(venue, 0.2)
    assert not client.open


def test_a_venue_has_no_thread() -> None:
    before = threading.active_count()
    after(VirtualVenue(seed=5, begins_ns=day_start_ns("2026-03-02") - 31 * 60 * SECOND), 120.0)
    assert threading.active_count() == before


def test_a_forked_venue_goes_on_alone(venue: VirtualVenue) -> None:
    def run(venue: VirtualVenue) -> list[tuple[int, bytes | None]]:
        return [(d.time_ns, d.frame) for d in after(venue, 2.0)]

    venue.connect("public", topics=PUBLIC)
    read, write = os.pipe()
    if not os.fork():
        os.write(write, f"{hash(tuple(run(venue)))}".encode())
        os._exit(0)
    assert int(os.read(read, 100)) == hash(tuple(run(venue)))
    os.wait()
    os.close(read)
    os.close(write)
