"""The synthetic market as a venue: branches are the same market, and our orders are in its book."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from execution.account import fee_e8, unit_e8
from execution.orders import (
    Amend,
    Amended,
    Cancel,
    Cancelled,
    CancelRejected,
    Event,
    Filled,
    Liquidity,
    OrderType,
    Rejected,
    Submit,
    TimeInForce,
)
from execution.venue import View
from proving.study.venue import EngineVenue
from proving.synthetic import generate
from proving.synthetic.profiles import profile
from tests.execution.tape import fills, kinds

S = 1_000_000_000
MS = 1_000_000
SYMBOL, DAY, SEED = "BTCUSDT", "2026-03-01", 410
BEGIN_S = 20


def venue(**more: Any) -> EngineVenue:
    given: dict[str, Any] = {
        "entry_ns": 10 * MS,
        "response_ns": 10 * MS,
        "taker_fee": "0.00055",
        "maker_fee": "0.0002",
    }
    return EngineVenue(profile("default"), SEED, SYMBOL, DAY, **(given | more))


@pytest.fixture(scope="module")
def control() -> EngineVenue:
    """A market of twenty seconds, without us."""
    made = venue()
    made.advance(made.market.midnight_ns + BEGIN_S * S)
    return made


@pytest.fixture(scope="module")
def scratch() -> EngineVenue:
    return venue()


@pytest.fixture
def branch(control: EngineVenue, scratch: EngineVenue) -> EngineVenue:
    """The same market from there on, ours to trade in."""
    scratch.take_over(control)
    return scratch


def order(name: str, side: int, lots: Any, ticks: Any = 0, **more: Any) -> Submit:
    given: dict[str, Any] = (
        {"time_in_force": TimeInForce.POST_ONLY} if ticks else {"order_type": OrderType.MARKET}
    )
    return Submit(
        client_id=name, symbol=SYMBOL, side=side, qty_lots=lots, price_ticks=ticks, **(given | more)
    )


def wait(branch: EngineVenue, seconds: float = 0.021) -> list[Event]:
    branch.advance(branch.now_ns + round(seconds * S))
    return list(branch.poll())


def send(branch: EngineVenue, *actions: Any) -> list[Event]:
    branch.send(actions)
    return wait(branch)


def pictures(branch: EngineVenue, seconds: int) -> list[View]:
    begin_ns, seen = branch.now_ns, []
    while branch.advance_to_news(begin_ns + seconds * S) < begin_ns + seconds * S:
        seen.append(msgspec.structs.replace(branch.view(SYMBOL), book=None))
    return seen


def test_the_local_picture_equals_the_published_market(control: EngineVenue) -> None:
    """Levels and tape at an instant are those of the rows that had been received by then."""
    from market.book import Book
    from market.events import Kind

    rows = np.concatenate(list(generate(profile("default"), SEED, SYMBOL, DAY, 0, BEGIN_S + 1)))
    seen = rows[rows["receive_ns"] <= control.now_ns]
    book = Book()
    book.apply(seen)
    view = control.view(SYMBOL)
    assert (list(view.bids), list(view.asks)) == (book.bids(5), book.asks(5))
    trades = seen[(seen["kind"] == Kind.TRADE) & (seen["flags"] < 4)]
    bought = int(trades["qty_lots"][trades["side"] > 0].sum())
    assert 0 < view.bought_lots <= bought


def test_a_branch_without_orders_equals_its_market(control: EngineVenue) -> None:
    ours, other = venue(), venue()
    ours.take_over(control)
    alone = pictures(ours, 10)
    other.take_over(control)
    again = pictures(other, 10)
    assert len(alone) > 2
    assert alone == again
    whole = venue()
    whole.advance(control.now_ns)
    assert pictures(whole, 10) == alone


def test_a_branch_does_not_change_its_market(control: EngineVenue, branch: EngineVenue) -> None:
    before = control.view(SYMBOL), control.market.counts
    send(branch, order("a", 1, 50_000))
    wait(branch, 2)
    assert (control.view(SYMBOL), control.market.counts) == before


def test_a_market_order_walks_the_book_and_has_impact(
    control: EngineVenue, branch: EngineVenue
) -> None:
    asks = control.market.levels(-1)
    lots = asks[0][1] + asks[1][1]
    events = send(branch, order("a", 1, lots))
    taken = [event for event in events if isinstance(event, Filled)]
    assert sum(event.qty_lots for event in taken) == lots == branch.position_lots(SYMBOL)
    assert {event.liquidity for event in taken} == {Liquidity.TAKER}
    unit = unit_e8(branch.instrument)
    for event in taken:
        assert event.fee_e8 == fee_e8(unit * event.price_ticks * event.qty_lots, "0.00055")
    wait(branch, 5)
    with_us, without = pictures(branch, 1), venue()
    without.take_over(control)
    without.advance(branch.now_ns - S)
    assert with_us[0].mid_ticks != without.view(SYMBOL).mid_ticks


@pytest.mark.parametrize("side", [1, -1])
def test_a_resting_order_queues_behind_others_and_fills_as_maker(
    control: EngineVenue, branch: EngineVenue, side: int
) -> None:
    ticks = control.market.best(side)
    assert ticks is not None
    ahead = dict(control.market.levels(side))[ticks]
    (accepted,) = send(branch, order("a", side, 5, ticks))
    heard: list[Event] = []
    for _ in range(1_200):
        heard += wait(branch, 0.5)
        if heard:
            break
    filled = [event for event in heard if isinstance(event, Filled)]
    assert filled
    assert kinds([accepted]) == ["Accepted"]
    assert {(event.liquidity, event.price_ticks) for event in filled} == {(Liquidity.MAKER, ticks)}
    assert filled[0].queue_ahead_lots <= ahead + 5_000
    assert branch.position_lots(SYMBOL) == side * sum(event.qty_lots for event in filled)


def test_post_only_never_takes(control: EngineVenue, branch: EngineVenue) -> None:
    ticks = control.market.best(-1)
    assert ticks is not None
    events = send(branch, order("a", 1, 5, ticks + 1_000))
    assert kinds(events) == ["Accepted", "Cancelled"]
    assert branch.position_lots(SYMBOL) == 0


def test_an_amendment_accounts_for_fills_in_between(
    control: EngineVenue, branch: EngineVenue
) -> None:
    """An order whose price is amended all the time never fills more than it was for."""
    send(branch, order("a", 1, 2_000, (control.market.best(1) or 0) - 300))
    heard: list[Event] = []
    for _ in range(1_500):
        bid = branch.touch(SYMBOL)[0]
        assert bid is not None
        branch.send([Amend(client_id="a", price_ticks=bid)])
        heard += wait(branch, 0.04)
    filled = sum(event.qty_lots for event in heard if isinstance(event, Filled))
    assert any(isinstance(event, Amended) for event in heard)
    assert 0 < filled <= 2_000
    assert branch.position_lots(SYMBOL) == filled
    assert branch.idle


def test_a_cancel_releases_the_rest_once(control: EngineVenue, branch: EngineVenue) -> None:
    send(branch, order("a", 1, 7, (control.market.best(1) or 0) - 2_000))
    (cancelled,) = send(branch, Cancel(client_id="a"))
    assert isinstance(cancelled, Cancelled)
    assert cancelled.leaves_lots == 7
    late = send(branch, Cancel(client_id="a"), Cancel(client_id="b"), Amend(client_id="a"))
    assert kinds(late) == ["CancelRejected"] * 3
    assert all(isinstance(event, CancelRejected) and event.reason for event in late)


def test_invalid_orders_are_rejected_with_a_reason(branch: EngineVenue) -> None:
    wrong = [
        order("zero", 1, 0, 600_000),
        order("negative", 1, -3, 600_000),
        order("half a lot", 1, 0.5, 600_000),
        order("half a tick", 1, 1, 600_000.5),
        order("no price", -1, 1, -5),
        order("no side", 0, 1, 600_000),
        order("tiny", 1, 1, 10),
        order("nothing to reduce", 1, 1, 600_000, reduce_only=True),
        Submit(client_id="elsewhere", symbol="NONE", side=1, qty_lots=1, price_ticks=1),
    ]
    events = send(branch, *wrong)
    assert [event.client_id for event in events] == [each.client_id for each in wrong]
    assert all(isinstance(event, Rejected) and event.reason for event in events)
    again = send(branch, order("a", 1, 1, 100_000), order("a", 1, 1, 100_000))
    assert kinds(again) == ["Accepted", "Rejected"]


def test_requests_and_events_take_entry_and_response_latency(
    control: EngineVenue, scratch: EngineVenue
) -> None:
    sent_ns = control.now_ns
    for response_ms in (0, 35):
        slow = venue(entry_ns=25 * MS, response_ns=response_ms * MS)
        slow.take_over(control)
        (event, *_) = _until_heard(slow, order("a", 1, 1))
        assert event.venue_ns == sent_ns + 25 * MS
        assert event.time_ns == slow.now_ns == sent_ns + (25 + response_ms) * MS


def _until_heard(branch: EngineVenue, action: Submit) -> Sequence[Event]:
    branch.send([action])
    until_ns = branch.now_ns + S
    while branch.now_ns < until_ns:
        branch.advance_to_news(until_ns)
        if heard := branch.poll():
            return heard
    return []


def test_latencies_below_the_minimum_are_rejected() -> None:
    with pytest.raises(ValueError, match="entry latency of 1 ms or more"):
        venue(entry_ns=0)


def test_nothing_fills_without_an_order(branch: EngineVenue) -> None:
    assert not fills(wait(branch, 5))
    assert branch.idle
