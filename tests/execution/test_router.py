"""What the router picks and when, what it hands on, and how a parent is dealt out to books."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from execution.algorithms import start
from execution.algorithms.router import Router
from execution.algorithms.working import Parent
from execution.estimates import Policy
from execution.liquidity import Costs, Monitor
from execution.orders import Accepted, Cancel, Submit, TimeInForce
from execution.venue import View
from market.instruments import BUILT_IN
from market.units import SECOND_NS
from tests.execution.tape import play

BTC = BUILT_IN["BTCUSDT"]
#: A touch of half a million USDT at 60,000.
TOUCH_LOTS = 8_000


def view(now_ns: int = 0, **more: Any) -> View:
    given: dict[str, Any] = {
        "symbol": "BTCUSDT",
        "now_ns": now_ns,
        "bids": tuple((600_000 - n, TOUCH_LOTS) for n in range(5)),
        "asks": tuple((600_001 + n, TOUCH_LOTS) for n in range(5)),
        "stale": False,
        "instrument": BTC,
        # Two thousand lots a second from either side.
        "bought_lots": 2 * (now_ns // 1_000_000),
        "sold_lots": 2 * (now_ns // 1_000_000),
    }
    return View(**(given | more))


def busy(seconds: int = 60, **more: Any) -> Monitor:
    """What a minute of that market looks like; its mid goes up and down by a tick."""
    monitor = Monitor()
    for n in range(-10 * seconds, 1):
        tick = n % 2
        seen = view(n * SECOND_NS // 10, **more)
        monitor.see(
            msgspec.structs.replace(
                seen,
                bids=tuple((ticks + tick, lots) for ticks, lots in seen.bids),
                asks=tuple((ticks + tick, lots) for ticks, lots in seen.asks),
            )
        )
    return monitor


def parent(lots: int = 170, span_s: float = 60.0, side: int = 1) -> Parent:
    return Parent(
        id="p",
        symbol="BTCUSDT",
        side=side,
        qty_lots=lots,
        decision_ns=0,
        deadline_ns=round(span_s * SECOND_NS),
        decision_mid_ticks=600_000.5,
    )


def router(asked: Parent, **more: Any) -> Router:
    made = start("router", asked, **more)
    assert isinstance(made, Router)
    made.inform(busy())
    return made


@pytest.mark.parametrize("side", [1, -1])
def test_a_small_parent_with_time_waits_in_the_queue(side: int) -> None:
    working = router(parent(side=side))
    (order,) = play(working, 0, view(), [])
    assert isinstance(order, Submit)
    assert working.picked == "passive"
    assert order.time_in_force is TimeInForce.POST_ONLY
    assert order.price_ticks == view().touch(side)


@pytest.mark.parametrize("side", [1, -1])
def test_with_minutes_it_is_patient_behind_the_touch(side: int) -> None:
    working = router(parent(span_s=300, side=side))
    (order,) = play(working, 0, view(), [])
    assert isinstance(order, Submit)
    assert working.picked == "patient"
    assert side * (view().touch(side) - order.price_ticks) > 0


def test_without_time_it_takes_at_once() -> None:
    working = router(parent(span_s=0.0))
    (order,) = play(working, 0, view(), [])
    assert isinstance(order, Submit)
    assert working.picked == "market"
    assert order.time_in_force is TimeInForce.IOC


def test_where_makers_pay_more_than_takers_it_takes_at_once() -> None:
    working = router(parent(), costs=Costs(taker_bps=1.0, maker_bps=2.0))
    play(working, 0, view(), [])
    assert working.picked == "market"


def test_high_adverse_selection_makes_it_take() -> None:
    working = router(parent(), policy=Policy(adverse_bps=9.0))
    play(working, 0, view(), [])
    assert working.picked == "market"


def test_a_picked_parent_crosses_when_it_becomes_urgent() -> None:
    working = router(parent())
    (order,) = play(working, 0, view(urgency=0.0), [])
    assert working.picked == "passive"
    play(working, 1, view(1), [Accepted(client_id=order.client_id, time_ns=1, venue_ns=1)])
    assert isinstance(play(working, 2, view(2, urgency=1.0), [])[0], Cancel)


@pytest.mark.parametrize(
    ("urgency", "picks"),
    [(0.0, {"passive", "patient", "twap"}), (0.5, {"passive"}), (1.0, {"market"})],
)
def test_urgency_leaves_less_time_and_at_one_only_the_market(
    urgency: float, picks: set[str]
) -> None:
    """Seven thousand lots, and five minutes: half of them are still enough for patience."""
    seen = view(urgency=urgency)
    options = router(parent(7_000, span_s=300)).options(0, seen)
    assert {each.name for each in options} >= picks - {"twap"}
    assert ("market" in {each.name for each in options}) == (urgency == 1)


def test_nothing_is_picked_before_a_sound_view() -> None:
    working = router(parent())
    assert working.estimate(view(stale=True)) is None
    assert play(working, 0, view(stale=True), []) == []
    assert working.picked == ""
    assert not working.done
    assert play(working, 1, view(1), [])
    assert working.picked


def test_the_estimate_is_that_of_the_picked_option() -> None:
    working = router(parent())
    cheapest = min(working.options(0, view()), key=lambda each: each.estimate.total_bps)
    assert working.estimate(view()) == (cheapest.name, cheapest.estimate)


def test_the_router_shares_the_book_keeping_of_its_pick() -> None:
    working = router(parent())
    (order,) = play(working, 0, view(), [])
    play(working, 1, view(1), [Accepted(client_id=order.client_id, time_ns=1, venue_ns=1)])
    assert list(working.children) == [order.client_id]
    assert working.open_lots == 170
    assert working.arrival_ns == 0
    working.abandon()
    (cancel,) = play(working, 2, view(2), [])
    assert cancel.client_id == order.client_id
