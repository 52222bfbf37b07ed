"""What holds of the simulator in every market: races, bounds, money; and what bad input comes to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execution.account import Account, fee_e8, value_e8
from execution.orders import (
    Amend,
    Cancel,
    Cancelled,
    CancelRejected,
    Event,
    Filled,
    Liquidity,
    Rejected,
    Submit,
    TimeInForce,
)
from execution.simulation.queue import BOUNDS, MODELS
from execution.simulation.simulator import Simulator
from execution.simulation.state import Reason
from market.events import Flag, Kind
from tests.execution.judged import POLICIES, PUBLISHED, events_of, joined, outcomes, random_case
from tests.execution.tape import (
    INSTRUMENT,
    SYMBOL,
    Tape,
    fills,
    frame,
    kinds,
    limit,
    market,
    snapshot,
    trade,
)

MARK = 100

# -- races -----------------------------------------------------------------------------------------


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    number=st.integers(0, 2**30),
    price=st.integers(97, 103),
    side=st.sampled_from([1, -1]),
    model=st.sampled_from(list(MODELS)),
    latencies=st.lists(st.integers(0, 400), min_size=2, max_size=2).map(sorted),
    at=st.integers(200, 1_500),
)
def test_a_lower_latency_never_loses_a_cancel_race_it_had_won(
    number: int, price: int, side: int, model: str, latencies: list[int], at: int
) -> None:
    """The same order from the same instant, cancelled by a request sent at the same time: what the
    slower request still saves, the quicker one saves too."""
    rows = events_of(random_case(number).rows)
    saved = []
    for latency in latencies:
        simulator = Simulator({SYMBOL: INSTRUMENT}, entry_latency_ns=latency, queue=model)
        simulator.on_events(SYMBOL, rows)
        simulator.on_events(SYMBOL, frame(int(rows["receive_ns"][-1]) + 10_000))
        simulator.advance(1_500 - latency)
        simulator.send([limit("a", side, price, 20)])
        simulator.advance(1_500 + at)
        simulator.send([Cancel(client_id="a")])
        simulator.advance(1_500 + at + 1_000)
        ends = [event for event in simulator.poll() if isinstance(event, Cancelled)]
        saved.append(sum(event.leaves_lots for event in ends))
    quick, slow = saved
    assert quick >= slow


# -- bounds ----------------------------------------------------------------------------------------


@settings(derandomize=True, max_examples=60, deadline=None)
@given(number=st.integers(0, 2**30), model=st.sampled_from(PUBLISHED))
def test_fills_lie_between_the_bounds_whatever_is_sent(number: int, model: str) -> None:
    """Several bids that stand behind each other, moved and cancelled while they rest: at every moment
    they have filled, together, pessimistic ≤ model ≤ optimistic. (One by one they need not: a place
    that an order gave up unfilled is the next one's.) The asks never reach them: who is filled by being
    reached leaves less there for the next."""
    case = joined([random_case(number + n) for n in range(3)])
    rows, bids = case.rows.copy(), case.actions.copy()
    book = rows["kind"] != Kind.TRADE
    for side, edge in ((1, np.minimum), (-1, np.maximum)):
        own = book & (rows["side"] == side)
        rows["price_ticks"][own] = edge(rows["price_ticks"][own], 100 if side > 0 else 101)
    bids[:, 3], bids[:, 4] = 1, np.minimum(bids[:, 4], 100)
    bids[:, 6], bids[:, 7] = POLICIES.index(TimeInForce.GTC), 0
    submits = bids[bids[:, 1] == 0]
    sizes = np.zeros(int(bids[:, 2].max()) + 1, np.int64)
    sizes[submits[:, 2]] = submits[:, 5]
    bids[:, 5] = sizes[bids[:, 2]]
    pessimistic, optimistic = BOUNDS
    times, totals = [], []
    for name in (pessimistic, model, optimistic):
        setting = case.setting.copy()
        setting["model"] = MODELS[name]
        asked = case._replace(rows=rows, actions=bids, setting=setting)
        filled = [
            (event.venue_ns, event.qty_lots)
            for event in outcomes(asked, [True] * len(bids), mode="partial")
            if isinstance(event, Filled)
        ]
        times.append(np.array([at_ns for at_ns, _ in filled], np.int64))
        totals.append(np.cumsum([0] + [lots for _, lots in filled]))
    for moment in np.concatenate(times):
        low, between, high = (
            total[np.searchsorted(at_ns, moment, "right")]
            for at_ns, total in zip(times, totals, strict=True)
        )
        assert low <= between <= high


# -- money -----------------------------------------------------------------------------------------


@settings(derandomize=True, max_examples=60, deadline=None)
@given(number=st.integers(0, 2**30), model=st.sampled_from(PUBLISHED), rate=st.integers(-5, 5))
def test_profit_is_cash_plus_the_marked_position(number: int, model: str, rate: int) -> None:
    """Equity at the mark is, to the last unit and after every fill, the value of the position less
    what was paid for it, fees by each fill's liquidity, and funding."""
    case = random_case(number)
    case.setting["model"] = MODELS[model]
    account, cash, position = Account({SYMBOL: INSTRUMENT}), 0, 0
    for event in outcomes(case, [True] * len(case.actions), mode="partial"):
        if not isinstance(event, Filled):
            continue
        maker = event.liquidity is Liquidity.MAKER
        value = value_e8(INSTRUMENT, event.price_ticks, event.qty_lots)
        assert event.fee_e8 == fee_e8(
            value, INSTRUMENT.maker_fee if maker else INSTRUMENT.taker_fee
        )
        account.apply(event)
        position += event.side * event.qty_lots
        cash -= event.side * value + event.fee_e8
        cash -= account.settle(SYMBOL, MARK * 10**8, rate * 10_000)
        worth = value_e8(INSTRUMENT, MARK, position)
        assert account.equity_e8({SYMBOL: MARK}) == cash + worth
        assert account.holdings[SYMBOL].position_lots == position


# -- bad input -------------------------------------------------------------------------------------


def exact(tape: Tape) -> None:
    """The venue's position is the sum of executions received, and an account agrees to the last unit."""
    account, cash, position = Account({SYMBOL: INSTRUMENT}), 0, 0
    for event in tape.events:
        if isinstance(event, Filled):
            account.apply(event)
            position += event.side * event.qty_lots
            cash -= event.side * value_e8(INSTRUMENT, event.price_ticks, event.qty_lots)
            cash -= event.fee_e8
    assert tape.position == position
    assert account.equity_e8({SYMBOL: MARK}) == cash + value_e8(INSTRUMENT, MARK, position)


def reasons(events: list[Event]) -> list[str]:
    return [e.reason for e in events if isinstance(e, Rejected | Cancelled | CancelRejected)]


@pytest.fixture
def tape() -> Tape:
    """Five lots were bought, and an order rests that has filled in part."""
    tape = Tape().opens()
    tape.send(market("held", 1, 5), limit("rests", 1, 100, 8))
    tape.prints(-1, 100, 13)
    assert tape.position == 8
    return tape


WRONG: dict[str, tuple[Any, Reason]] = {
    "half a tick": (limit("a", 1, 100.5, 1), Reason.OFF_TICK),
    "half a lot": (limit("a", 1, 100, 1.5), Reason.OFF_LOT),
    "a price in words": (limit("a", 1, "100", 1), Reason.OFF_TICK),
    "price zero": (limit("a", 1, 0, 1), Reason.PRICE),
    "a negative price": (limit("a", -1, -100, 1), Reason.PRICE),
    "a price beyond all prices": (limit("a", 1, 10**30, 1), Reason.PRICE),
    "quantity zero": (limit("a", 1, 100, 0), Reason.QUANTITY),
    "a negative quantity": (market("a", 1, -3), Reason.QUANTITY),
    "a quantity beyond all quantities": (market("a", -1, 10**30), Reason.QUANTITY),
    "no side": (limit("a", 0, 100, 1), Reason.SIDE),
    "two sides": (limit("a", 2, 100, 1), Reason.SIDE),
    "a side beyond all numbers": (limit("a", 10**30, 100, 1), Reason.SIDE),
    "an id that rests": (limit("rests", -1, 105, 1), Reason.DUPLICATE),
    "an id that is finished": (market("held", -1, 1), Reason.DUPLICATE),
    "a symbol that is not traded": (
        Submit(client_id="a", symbol="NONE", side=1, qty_lots=1, price_ticks=100),
        Reason.UNKNOWN_SYMBOL,
    ),
    "an amend of a finished order": (Amend(client_id="held", qty_lots=9), Reason.FINISHED),
    "a cancel of a finished order": (Cancel(client_id="held"), Reason.FINISHED),
    "an amend of no order": (Amend(client_id="a", price_ticks=99), Reason.NO_ORDER),
    "a cancel of no order": (Cancel(client_id="a"), Reason.NO_ORDER),
    "an amend to half a tick": (
        Amend(client_id="rests", price_ticks=99.5),
        Reason.OFF_TICK,
    ),
    "an amend to price zero": (Amend(client_id="rests", price_ticks=0), Reason.PRICE),
    "an amend below what is filled": (Amend(client_id="rests", qty_lots=3), Reason.BELOW_FILLED),
    "an amend to a negative quantity": (
        Amend(client_id="rests", qty_lots=-1),
        Reason.BELOW_FILLED,
    ),
    "an amend beyond all quantities": (
        Amend(client_id="rests", qty_lots=10**30),
        Reason.QUANTITY,
    ),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_an_impossible_request_is_rejected_by_name_and_changes_nothing(
    tape: Tape, case: str
) -> None:
    wrong, reason = WRONG[case]
    assert reasons(tape.send(wrong)) == [reason]
    exact(tape)
    # The order that rests is as it was: the next print at its price is for what it has left.
    assert fills(tape.prints(-1, 100, 50), "rests") == [(100, 5)]
    exact(tape)


def test_whole_numbers_of_any_kind_are_whole_numbers(tape: Tape) -> None:
    order = limit("a", 1, np.int32(99), np.int64(2))
    assert kinds(tape.send(order)) == ["Accepted"]
    exact(tape)


SPOILED: dict[str, Callable[[Tape], list[Event]]] = {
    "a gap": lambda tape: tape.shows(bids=[(100, 9)], flags=Flag.GAP),
    "a crossed book": lambda tape: tape.shows(bids=[(105, 9)]),
}


@pytest.mark.parametrize("case", list(SPOILED))
def test_nothing_is_matched_in_an_unknown_book(tape: Tape, case: str) -> None:
    SPOILED[case](tape)
    late = Amend(client_id="rests", price_ticks=101)
    events = tape.send(limit("a", 1, 101, 1), market("b", -1, 1), late)
    assert reasons(events) == [Reason.NO_BOOK] * 3
    exact(tape)
    # A cancel needs no book, and a snapshot makes it known again.
    assert kinds(tape.send(Cancel(client_id="rests"))) == ["Cancelled"]
    tape.opens()
    assert fills(tape.send(market("c", -1, 1))) == [(100, 1)]
    exact(tape)


def test_into_an_empty_side_a_market_order_is_rejected_and_a_limit_rests(tape: Tape) -> None:
    tape.shows(asks=[(101, 0), (102, 0), (103, 0)])
    assert reasons(tape.send(market("a", 1, 1))) == [Reason.NO_MARKET]
    assert kinds(tape.send(limit("b", 1, 101, 1))) == ["Accepted"]
    exact(tape)


def test_rows_that_no_book_can_hold_are_ignored(tape: Tape) -> None:
    impossible = frame(tape.now_ns + 2, bids=[(100, -5)])
    strange = frame(tape.now_ns + 3, asks=[(101, 4)])
    strange["side"] = 7
    tape.simulator.on_events(SYMBOL, np.concatenate([impossible, strange]))
    tape.now_ns += 4
    assert tape.wait() == []
    assert fills(tape.send(market("a", 1, 5))) == [(101, 5)]
    exact(tape)


def test_rows_out_of_order_are_refused_whole(tape: Tape) -> None:
    now = tape.now_ns
    early = np.concatenate([trade(now + 20, -1, 100, 50), trade(now + 10, -1, 90, 50)])
    with pytest.raises(ValueError, match=r"TEST: row 1 was received at .*; sort the events"):
        tape.simulator.on_events(SYMBOL, early)
    with pytest.raises(ValueError, match="TEST: row 0 was received at 5, before"):
        tape.simulator.on_events(SYMBOL, snapshot(5))
    with pytest.raises(ValueError, match=r"expected market\.events\.EVENT"):
        tape.simulator.on_events(SYMBOL, np.zeros(1, np.int64))
    assert tape.wait(100) == []
    assert fills(tape.prints(-1, 100, 50), "rests") == [(100, 5)]
    exact(tape)


def test_exchange_times_out_of_order_do_not_turn_the_clock_back() -> None:
    tape = Tape().opens()
    tape.send(limit("a", 1, 100, 5))
    late = trade(tape.now_ns + 50, -1, 100, 12, exchange_ns=tape.now_ns - 900_000)
    tape.simulator.on_events(SYMBOL, late)
    (filled,) = tape.wait(100)
    assert isinstance(filled, Filled)
    assert filled.venue_ns >= tape.now_ns - 1_100
    exact(tape)


def test_a_symbol_without_data_rejects_after_the_patience() -> None:
    other = INSTRUMENT.__class__(symbol="MUTE", tick="1", lot="1", min_qty="1", min_notional="0")
    simulator = Simulator({SYMBOL: INSTRUMENT, "MUTE": other}, patience_ns=1_000)
    tape = Tape(simulator).opens()
    simulator.send([Submit(client_id="a", symbol="MUTE", side=1, qty_lots=1, price_ticks=100)])
    assert reasons(tape.wait(5_000)) == [Reason.NO_BOOK]
    assert simulator.touch("MUTE") == (None, None)
    assert simulator.view("MUTE").stale
    assert fills(tape.send(market("b", 1, 1))) == [(101, 1)]
    assert simulator.position_lots("MUTE") == 0


def test_a_rejected_id_is_free_again_and_an_accepted_one_is_not() -> None:
    tape = Tape().opens()
    assert reasons(tape.send(limit("a", 1, 100, 0))) == [Reason.QUANTITY]
    assert reasons(tape.send(Cancel(client_id="a"))) == [Reason.NO_ORDER]
    assert kinds(tape.send(limit("a", 1, 99, 3))) == ["Accepted"]
    assert reasons(tape.send(limit("a", 1, 98, 3))) == [Reason.DUPLICATE]
    # The cancel is for the order that bears the id, not for the one that was refused it.
    (cancelled,) = tape.send(Cancel(client_id="a"))
    assert isinstance(cancelled, Cancelled)
    assert cancelled.leaves_lots == 3


def test_many_orders_find_room() -> None:
    tape = Tape().opens()
    names = [f"o{n}" for n in range(1_000)]
    events = tape.send(*(limit(name, 1, 99, 1) for name in names))
    assert [e.client_id for e in events] == names
    made = tape.prints(-1, 98, 700)
    assert [e.client_id for e in made] == names[:700]
    assert tape.position == 700
    gone = tape.send(*(Cancel(client_id=name) for name in names))
    assert sum(isinstance(e, Cancelled) for e in gone) == 300
    assert tape.simulator.idle
    exact(tape)


def test_rows_that_are_neither_book_nor_trades_change_nothing(tape: Tape) -> None:
    rows = np.concatenate([trade(tape.now_ns + n, -1, 50, 50) for n in (1, 2)])
    rows["kind"] = [Kind.LIQUIDATION, Kind.TICKER]
    tape.simulator.on_events(SYMBOL, rows)
    tape.now_ns += 3
    assert tape.wait() == []
    exact(tape)
