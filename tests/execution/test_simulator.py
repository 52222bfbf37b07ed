"""Fill rules and clocks of the simulator, case by case, and what holds in every case."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execution.orders import (
    Action,
    Amend,
    Cancel,
    Cancelled,
    CancelRejected,
    Event,
    Filled,
    Liquidity,
    OrderType,
    Rejected,
    TimeInForce,
)
from execution.simulation.queue import MODELS
from execution.simulation.simulator import Simulator, clock_shift_ns
from execution.simulation.state import Reason
from market.events import Events, Flag, Kind
from market.instruments import BUILT_IN
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


@pytest.fixture
def tape() -> Tape:
    return Tape().opens()


def reasons(events: list[Event]) -> list[str]:
    return [e.reason for e in events if isinstance(e, Rejected | Cancelled | CancelRejected)]


def test_a_view_counts_taker_volume_of_the_visible_book(tape: Tape) -> None:
    tape.prints(1, 101, 3)
    tape.prints(-1, 100, 5)
    tape.prints(-1, 100, 7, flags=int(Flag.RPI))
    tape.prints(1, 101, 9, flags=int(Flag.BLOCK))
    view = tape.simulator.view(SYMBOL)
    assert (view.bought_lots, view.sold_lots) == (3, 5)


@pytest.mark.parametrize("lots", [1, 899, 900, 901, 1000, 93_000, 10**6, 10**9])
def test_the_least_notional_is_judged_beyond_int64(lots: int) -> None:
    """A lot at a tick is worth 1e16 units of 1e-8, so that 923 lots do not fit into 64 bits."""
    coarse = msgspec.structs.replace(
        INSTRUMENT, tick="100", lot="1000000", min_qty="1000000", min_notional="90000000000"
    )
    simulator = Simulator({SYMBOL: coarse}, entry_latency_ns=0, response_latency_ns=0)
    tape = Tape(simulator).opens(bids=(), asks=((1, 10**9),))
    events = tape.send(limit("a", 1, 1, lots))
    assert fills(events) == ([(1, lots)] if lots >= 900 else [])
    assert bool(reasons(events)) == (lots < 900)


# -- takers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "expected"),
    [(1, [(101, 10), (102, 20), (103, 5)]), (-1, [(100, 10), (99, 20), (98, 5)])],
)
def test_a_taker_walks_the_book(tape: Tape, side: int, expected: list[tuple[int, int]]) -> None:
    assert fills(tape.send(market("a", side, 35))) == expected
    assert tape.position == side * 35


def test_liquidity_we_took_is_gone_until_the_feed_shows_more(tape: Tape) -> None:
    assert fills(tape.send(market("a", 1, 8))) == [(101, 8)]
    assert fills(tape.send(market("b", 1, 5))) == [(101, 2), (102, 3)]
    tape.shows(asks=[(101, 14)])
    assert fills(tape.send(market("c", 1, 5))) == [(101, 4), (102, 1)]


def test_a_level_that_shrank_below_what_we_took_offers_only_what_it_gains(tape: Tape) -> None:
    tape.send(market("a", 1, 8))
    tape.shows(asks=[(101, 3)])
    tape.shows(asks=[(101, 5)])
    assert fills(tape.send(market("b", 1, 4))) == [(101, 2), (102, 2)]


def test_a_level_that_vanished_and_came_back_is_new(tape: Tape) -> None:
    tape.send(market("a", 1, 10))
    tape.shows(asks=[(101, 0)])
    tape.shows(asks=[(101, 6)])
    assert fills(tape.send(market("b", 1, 9))) == [(101, 6), (102, 3)]


def test_a_snapshot_restores_no_liquidity_that_we_took(tape: Tape) -> None:
    tape.send(market("a", 1, 10))
    tape.shows([(100, 10)], [(101, 10), (102, 20)], kind=Kind.SNAPSHOT)
    assert fills(tape.send(market("b", 1, 1))) == [(102, 1)]


def test_a_crossing_gtc_takes_and_rests_the_remainder(tape: Tape) -> None:
    events = tape.send(limit("a", 1, 101, 25))
    assert fills(events) == [(101, 10)]
    assert kinds(events) == ["Accepted", "Filled"]
    assert fills(tape.prints(-1, 101, 4)) == [(101, 4)]
    (cancelled,) = tape.send(Cancel(client_id="a"))
    assert isinstance(cancelled, Cancelled)
    assert cancelled.leaves_lots == 11


def test_a_remainder_is_not_filled_by_the_level_it_has_emptied(tape: Tape) -> None:
    tape.send(limit("a", 1, 101, 25))
    assert tape.shows(asks=[(101, 10)]) == []
    assert fills(tape.shows(asks=[(101, 13)])) == [(101, 3)]


def test_ioc_takes_and_cancels_the_remainder(tape: Tape) -> None:
    events = tape.send(limit("a", 1, 101, 25, TimeInForce.IOC))
    assert kinds(events) == ["Accepted", "Filled", "Cancelled"]
    assert isinstance(events[-1], Cancelled)
    assert events[-1].leaves_lots == 15


@pytest.mark.parametrize(("lots", "whole"), [(30, True), (31, False)])
def test_fok_is_all_or_nothing(tape: Tape, lots: int, whole: bool) -> None:
    events = tape.send(limit("a", 1, 102, lots, TimeInForce.FOK))
    assert sum(q for _, q in fills(events)) == (30 if whole else 0)
    assert kinds(events)[-1] == ("Filled" if whole else "Cancelled")


@pytest.mark.parametrize("policy", [TimeInForce.IOC, TimeInForce.FOK])
def test_an_order_that_may_not_rest_and_does_not_cross_is_cancelled(
    tape: Tape, policy: TimeInForce
) -> None:
    assert reasons(tape.send(limit("a", 1, 100, 5, policy))) == [Reason.NOT_FILLED]


def test_a_market_order_larger_than_the_book_leaves_nothing_open(tape: Tape) -> None:
    events = tape.send(market("a", -1, 100))
    assert tape.position == -60
    assert isinstance(events[-1], Cancelled)
    assert events[-1].leaves_lots == 40
    assert tape.simulator.idle


def test_taker_and_maker_pay_their_own_fee(tape: Tape) -> None:
    tape.send(market("a", 1, 10), limit("b", -1, 101, 10))
    tape.prints(1, 101, 30)
    paid = {e.liquidity: e.fee_e8 for e in tape.events if isinstance(e, Filled)}
    assert paid == {Liquidity.TAKER: 55_550_000, Liquidity.MAKER: 20_200_000}


# -- makers ----------------------------------------------------------------------------------------


def test_a_resting_order_waits_for_the_queue_ahead(tape: Tape) -> None:
    tape.send(limit("a", 1, 100, 5))
    assert fills(tape.prints(-1, 100, 10)) == []
    assert fills(tape.prints(-1, 100, 3)) == [(100, 3)]
    (filled,) = tape.prints(-1, 100, 9)
    assert isinstance(filled, Filled)
    assert (filled.qty_lots, filled.leaves_lots, filled.queue_ahead_lots) == (2, 0, 10)
    assert filled.liquidity is Liquidity.MAKER


def test_a_print_through_the_price_fills_as_much_as_it_printed(tape: Tape) -> None:
    tape.send(limit("a", 1, 100, 5))
    assert fills(tape.prints(-1, 99, 2)) == [(100, 2)]
    assert fills(tape.prints(-1, 99, 9)) == [(100, 3)]


def test_the_opposite_side_at_our_price_fills_what_it_displays(tape: Tape) -> None:
    tape.send(limit("a", 1, 100, 25))
    assert fills(tape.shows(bids=[(100, 0)], asks=[(100, 4), (99, 3)])) == []
    # The book was crossed by its own bid at 99; now it is not.
    assert fills(tape.shows(bids=[(99, 0)])) == [(100, 7)]
    assert fills(tape.shows(asks=[(100, 6)])) == [(100, 2)]


def test_our_orders_queue_behind_each_other(tape: Tape) -> None:
    tape.send(limit("first", 1, 100, 3), limit("second", 1, 100, 3))
    events = tape.prints(-1, 100, 14)
    assert fills(events, "first") == [(100, 3)]
    assert fills(events, "second") == [(100, 1)]


def test_a_print_is_consumed_once_across_our_prices(tape: Tape) -> None:
    tape.send(limit("worse", 1, 99, 5), limit("better", 1, 100, 5))
    events = tape.prints(-1, 98, 7)
    assert fills(events, "better") == [(100, 5)]
    assert fills(events, "worse") == [(99, 2)]


def test_vanishing_depth_shortens_the_queue_and_fills_nothing(tape: Tape) -> None:
    tape.send(limit("a", 1, 100, 5))
    assert tape.shows(bids=[(100, 2)]) == []
    assert fills(tape.prints(-1, 100, 4)) == [(100, 2)]


def test_an_amend_to_less_keeps_queue_position_and_to_more_loses_it() -> None:
    for lots, filled in ((4, [(100, 4)]), (6, [])):
        tape = Tape().opens()
        tape.send(limit("a", 1, 100, 5))
        tape.prints(-1, 100, 9)
        tape.send(Amend(client_id="a", qty_lots=lots))
        tape.shows(bids=[(100, 30)])
        assert fills(tape.prints(-1, 100, 6)) == filled


def test_an_amend_of_the_price_joins_the_end_of_the_queue(tape: Tape) -> None:
    tape.send(limit("a", 1, 99, 5))
    tape.send(Amend(client_id="a", price_ticks=100))
    assert fills(tape.prints(-1, 100, 10)) == []
    assert fills(tape.prints(-1, 100, 1)) == [(100, 1)]


def test_an_amended_post_only_order_that_would_cross_is_cancelled(tape: Tape) -> None:
    tape.send(limit("a", 1, 99, 5, TimeInForce.POST_ONLY))
    events = tape.send(Amend(client_id="a", price_ticks=101))
    assert kinds(events) == ["Amended", "Cancelled"]
    assert reasons(events) == [Reason.POST_ONLY]


def test_an_amend_below_the_filled_quantity_is_rejected(tape: Tape) -> None:
    tape.send(limit("a", 1, 101, 15))
    assert reasons(tape.send(Amend(client_id="a", qty_lots=10))) == [Reason.BELOW_FILLED]


def test_reduce_only_never_reverses_the_position(tape: Tape) -> None:
    assert reasons(tape.send(market("none", -1, 5, reduce_only=True))) == [Reason.NOT_REDUCING]
    tape.send(market("open", 1, 4))
    events = tape.send(market("close", -1, 9, reduce_only=True))
    assert fills(events) == [(100, 4)]
    assert reasons(events) == [Reason.NOT_REDUCING]
    assert tape.position == 0


def test_a_resting_reduce_only_order_ends_with_the_position(tape: Tape) -> None:
    tape.send(market("open", 1, 4), limit("close", -1, 102, 4, reduce_only=True))
    tape.send(market("other", -1, 3))
    events = tape.prints(1, 103, 50)
    assert fills(events) == [(102, 1)]
    assert reasons(events) == [Reason.NOT_REDUCING]


def test_positions_held_at_the_start_count() -> None:
    tape = Tape(positions={SYMBOL: -3}).opens()
    tape.send(market("close", 1, 3, reduce_only=True))
    assert tape.position == 0


# -- refusals --------------------------------------------------------------------------------------


def test_rejections_are_named() -> None:
    small = INSTRUMENT.__class__(symbol=SYMBOL, tick="1", lot="1", min_qty="2", min_notional="500")
    simulator = Simulator({SYMBOL: small}, entry_latency_ns=0, response_latency_ns=0)
    tape = Tape(simulator).opens()
    wrong: dict[Reason, Any] = {
        Reason.SIDE: limit("side", 0, 100, 10),
        Reason.QUANTITY: limit("quantity", 1, 100, 0),
        Reason.MIN_QUANTITY: limit("small", 1, 100, 1),
        Reason.PRICE: limit("price", 1, -1, 10),
        Reason.MIN_NOTIONAL: limit("cheap", 1, 100, 4),
    }
    assert reasons(tape.send(*wrong.values())) == list(wrong)


def test_an_unknown_symbol_is_rejected(tape: Tape) -> None:
    stray = limit("a", 1, 100, 1)
    tape.simulator.send([type(stray)(client_id="a", symbol="NONE", side=1, qty_lots=1)])
    assert reasons(tape.wait()) == [Reason.UNKNOWN_SYMBOL]
    with pytest.raises(ValueError, match="NONE: the simulator has no such instrument"):
        tape.simulator.on_events("NONE", snapshot(1))


def test_nothing_is_matched_against_an_unknown_book() -> None:
    tape = Tape()
    assert reasons(tape.send(limit("early", 1, 100, 1))) == [Reason.NO_BOOK]
    tape.opens()
    tape.shows(bids=[(100, 11)], flags=Flag.GAP)
    assert reasons(tape.send(market("gap", 1, 1))) == [Reason.NO_BOOK]
    tape.opens()
    assert fills(tape.send(market("again", 1, 1))) == [(101, 1)]


def test_a_market_order_needs_two_sides_and_a_recent_frame() -> None:
    tape = Tape().opens(asks=[])
    assert reasons(tape.send(market("one-sided", 1, 1))) == [Reason.NO_MARKET]
    tape.opens()
    tape.simulator.advance(tape.now_ns + 10_000_000_000)
    tape.simulator.send([market("stale", 1, 1)])
    tape.simulator.advance(tape.now_ns + 20_000_000_000)
    assert reasons(list(tape.simulator.poll())) == [Reason.NO_MARKET]


def test_bad_parameters_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="queue 'fifo': expected one of risk_averse, power1"):
        Simulator(BUILT_IN, entry_latency_ns=0, response_latency_ns=0, queue="fifo")
    with pytest.raises(ValueError, match="latencies of the simulator are negative"):
        Simulator(BUILT_IN, entry_latency_ns=-1, response_latency_ns=0)


# -- clocks ----------------------------------------------------------------------------------------


def later(entry: int = 100, response: int = 30, **more: Any) -> Simulator:
    return Simulator(
        {SYMBOL: INSTRUMENT}, entry_latency_ns=entry, response_latency_ns=response, **more
    )


def test_an_order_meets_the_market_at_its_arrival_time() -> None:
    simulator = later()
    simulator.on_events(SYMBOL, snapshot(1_000))
    simulator.on_events(SYMBOL, frame(1_100, asks=[(101, 0)]))
    simulator.on_events(SYMBOL, frame(1_101, asks=[(102, 0)]))
    simulator.on_events(SYMBOL, frame(5_000))
    simulator.advance(1_000)
    simulator.send([market("a", 1, 1)])
    assert simulator.advance(2_000, stop_at_outcome=True) == 1_130
    accepted, filled = simulator.poll()
    # Data come before orders at the same instant: 101 is gone, 102 is not yet.
    assert fills([filled]) == [(102, 1)]
    assert (filled.venue_ns, filled.time_ns, accepted.time_ns) == (1_100, 1_130, 1_130)
    assert simulator.advance(2_000, stop_at_outcome=True) == 2_000


def test_the_view_is_delayed_and_the_exchange_is_not() -> None:
    simulator = later(entry=0, response=0)
    simulator.on_events(SYMBOL, snapshot(1_000, exchange_ns=900))
    simulator.on_events(SYMBOL, frame(1_300, asks=[(101, 0)], exchange_ns=1_150))
    simulator.on_events(SYMBOL, frame(9_000))
    simulator.advance(1_200)
    assert simulator.touch(SYMBOL) == (100, 101)
    assert simulator.view(SYMBOL).asks[0] == (101, 10)
    simulator.send([market("a", 1, 1)])
    simulator.advance(1_201)
    assert fills(simulator.poll()) == [(102, 1)]
    simulator.advance(1_300)
    assert simulator.touch(SYMBOL) == (100, 102)


def test_live_an_order_waits_for_the_rows_up_to_its_arrival() -> None:
    """Rows arrive 500 ns after they happened. The order is at the exchange at 1,600, which the feed
    tells of at 2,200 only; the fill is that of the market at 1,600, and not received before."""
    simulator = later(entry=100, response=0)
    simulator.on_events(SYMBOL, snapshot(1_500, exchange_ns=1_000))
    simulator.advance(1_500)
    simulator.send([market("a", 1, 1)])
    simulator.advance(1_900)
    assert simulator.poll() == []
    simulator.on_events(SYMBOL, frame(2_050, asks=[(101, 0)], exchange_ns=1_550))
    simulator.advance(2_050)
    assert simulator.poll() == []
    simulator.on_events(SYMBOL, frame(2_200, asks=[(102, 0)], exchange_ns=1_700))
    simulator.advance(2_200)
    accepted, filled = simulator.poll()
    assert fills([filled]) == [(102, 1)]
    assert filled.venue_ns == 1_600
    assert 2_050 <= accepted.time_ns <= 2_200


def test_a_silent_feed_delays_an_order_by_the_patience_at_most() -> None:
    simulator = later(entry=100, response=0, patience_ns=1_000)
    simulator.on_events(SYMBOL, snapshot(1_000))
    simulator.advance(1_000)
    simulator.send([limit("a", 1, 100, 1)])
    simulator.advance(2_099)
    assert simulator.poll() == []
    simulator.advance(2_100)
    assert kinds(simulator.poll()) == ["Accepted"]


def test_a_local_clock_that_runs_behind_is_shifted() -> None:
    events = np.concatenate(
        [snapshot(1_000, exchange_ns=2_500), trade(1_400, -1, 100, 1, 0, 2_600)]
    )
    assert clock_shift_ns(events) == -1_500
    assert clock_shift_ns(snapshot(1_000, exchange_ns=900)) == 0
    simulator = later(entry=0, response=0, clock_shift_ns=clock_shift_ns(events))
    simulator.on_events(SYMBOL, events)
    assert simulator.horizon_ns(SYMBOL) == 1_099


def test_no_row_is_seen_before_it_was_received() -> None:
    simulator = later()
    simulator.on_events(SYMBOL, snapshot(1_000))
    assert simulator.advance(999) == 999
    assert simulator.view(SYMBOL).bids == ()
    assert simulator.view(SYMBOL).stale
    assert simulator.next_frame_ns() == 1_000
    simulator.advance(1_000)
    assert not simulator.view(SYMBOL).stale
    assert simulator.view(SYMBOL).mid_ticks == 100.5


# -- what always holds -----------------------------------------------------------------------------

PRICE = st.integers(95, 106)
ROWS = st.one_of(
    st.tuples(st.just("book"), st.sampled_from([1, -1]), PRICE, st.integers(0, 15)),
    st.tuples(st.just("trade"), st.sampled_from([1, -1]), PRICE, st.integers(1, 15)),
)
ORDERS = st.one_of(
    st.tuples(
        st.just("submit"),
        st.sampled_from([1, -1]),
        PRICE,
        st.integers(1, 20),
        st.sampled_from([*TimeInForce, "market"]),
    ),
    st.tuples(st.just("cancel"), st.integers(0, 20)),
    st.tuples(st.just("amend"), st.integers(0, 20), PRICE, st.integers(1, 25)),
)
SCRIPT = st.lists(st.one_of(ROWS, ORDERS), min_size=1, max_size=50)


def written(script: list[tuple[Any, ...]]) -> tuple[list[Events], list[tuple[int, Action]]]:
    """A script as market rows and as actions at their times, 1 µs a line."""
    rows, actions = [snapshot(1_000)], []
    submitted = 0
    for n, line in enumerate(script):
        now = 2_000 + 1_000 * n
        if line[0] == "book":
            _, side, price, lots = line
            levels = [(price, lots)]
            rows.append(frame(now, levels if side > 0 else [], levels if side < 0 else []))
        elif line[0] == "trade":
            rows.append(trade(now, *line[1:]))
        elif line[0] == "submit":
            _, side, price, lots, policy = line
            submitted += 1
            name = f"o{submitted}"
            order = (
                market(name, side, lots)
                if policy == "market"
                else limit(name, side, price, lots, policy)
            )
            actions.append((now, order))
        elif line[0] == "cancel":
            actions.append((now, Cancel(client_id=f"o{line[1]}")))
        else:
            actions.append(
                (now, Amend(client_id=f"o{line[1]}", price_ticks=line[2], qty_lots=line[3]))
            )
    rows.append(frame(3_000 + 1_000 * len(script)))
    return rows, actions


def played(
    script: list[tuple[Any, ...]], cuts: list[int], live: bool = False, **more: Any
) -> tuple[list[Event], int]:
    """Outcomes and final position; ``cuts`` divide the rows into pushes, ``live`` pushes each row at
    its time instead of ahead of it."""
    rows, actions = written(script)
    simulator = Simulator(
        {SYMBOL: INSTRUMENT}, entry_latency_ns=250, response_latency_ns=130, **more
    )
    end = int(rows[-1]["receive_ns"][-1])
    bounds = sorted({0, len(rows), *(c for c in cuts if c < len(rows))})
    chunks = [np.concatenate(rows[a:b]) for a, b in pairwise(bounds)]
    if not live:
        for chunk in chunks:
            simulator.on_events(SYMBOL, chunk)
    heard: list[Event] = []
    times = sorted({t for t, _ in actions} | {int(r["receive_ns"][0]) for r in rows} | {end})
    for now in times:
        for row in rows:
            if live and row["receive_ns"][0] == now:
                simulator.on_events(SYMBOL, row)
        while simulator.advance(now, stop_at_outcome=True) < now:
            heard += simulator.poll()
        heard += simulator.poll()
        simulator.send([action for t, action in actions if t == now])
    simulator.advance(end + 10_000_000_000)
    heard += simulator.poll()
    return heard, simulator.position_lots(SYMBOL)


@settings(derandomize=True, max_examples=120, deadline=None)
@given(script=SCRIPT, model=st.sampled_from(list(MODELS)))
def test_quantity_is_conserved(script: list[tuple[Any, ...]], model: str) -> None:
    """Position is the signed sum of executions; an order's fills and what it gave up never exceed
    its quantity; nobody fills beyond their limit price; a finished order stays finished; makers fill
    no more at or through a price than traded there or was shown by the other side."""
    heard, position = played(script, [], queue=model)
    rows, actions = written(script)
    asked = {a.client_id: a for _, a in actions if hasattr(a, "order_type")}
    amends = [a for _, a in actions if isinstance(a, Amend)]
    filled: dict[str, int] = defaultdict(int)
    finished: set[str] = set()
    made = signed = 0
    for event in heard:
        if isinstance(event, Filled):
            order = asked[event.client_id]
            assert event.client_id not in finished
            assert event.qty_lots > 0
            filled[event.client_id] += event.qty_lots
            signed += event.side * event.qty_lots
            made += event.qty_lots * (event.liquidity is Liquidity.MAKER)
            best = [order.price_ticks] + [
                a.price_ticks for a in amends if a.client_id == event.client_id and a.price_ticks
            ]
            if order.order_type is OrderType.LIMIT:
                limit_price = max(p * order.side for p in best)
                assert event.price_ticks * order.side <= limit_price
            if event.leaves_lots == 0:
                finished.add(event.client_id)
        elif isinstance(event, Cancelled | Rejected):
            finished.add(event.client_id)
    assert signed == position
    for name, lots in filled.items():
        allowed = [asked[name].qty_lots] + [
            a.qty_lots for a in amends if a.client_id == name and a.qty_lots
        ]
        assert lots <= max(allowed)
    events = np.concatenate(rows)
    prints = events["qty_lots"][events["kind"] == Kind.TRADE].sum()
    shown = events["qty_lots"][events["kind"] != Kind.TRADE].sum()
    assert made <= prints + shown


@settings(derandomize=True, max_examples=60, deadline=None)
@given(script=SCRIPT, model=st.sampled_from(list(MODELS)))
def test_a_maker_fills_at_most_what_traded_at_or_through_its_price(
    script: list[tuple[Any, ...]], model: str
) -> None:
    """Without the other side reaching the price (bids end at 99, asks begin at 110)."""
    quiet = [
        line
        for line in script
        if line[0] == "trade"
        or (line[0] == "book" and line[1] > 0 and line[2] < 100)
        or (line[0] == "submit" and line[1] > 0)
    ]
    rows, actions = written(quiet)
    rows[0] = snapshot(1_000, [(99, 10), (98, 10)], [(110, 500)])
    simulator = Simulator(
        {SYMBOL: INSTRUMENT}, entry_latency_ns=0, response_latency_ns=0, queue=model
    )
    simulator.on_events(SYMBOL, np.concatenate(rows))
    for now, action in actions:
        simulator.advance(now)
        simulator.send([action])
    simulator.advance(10_000_000_000)
    made: dict[int, int] = defaultdict(int)
    for event in simulator.poll():
        if isinstance(event, Filled) and event.liquidity is Liquidity.MAKER:
            made[event.price_ticks] += event.qty_lots
    events = np.concatenate(rows)
    sells = events[(events["kind"] == Kind.TRADE) & (events["side"] == -1)]
    for price in made:
        above = sum(lots for p, lots in made.items() if p >= price)
        assert above <= sells["qty_lots"][sells["price_ticks"] <= max(made)].sum()
        assert made[price] <= sells["qty_lots"][sells["price_ticks"] <= price].sum()


@settings(derandomize=True, max_examples=60, deadline=None)
@given(script=SCRIPT, cuts=st.lists(st.integers(1, 50), max_size=6))
def test_how_rows_are_chunked_changes_nothing(
    script: list[tuple[Any, ...]], cuts: list[int]
) -> None:
    assert played(script, cuts) == played(script, [])


@settings(derandomize=True, max_examples=60, deadline=None)
@given(script=SCRIPT)
def test_live_fills_are_those_of_the_replay(script: list[tuple[Any, ...]]) -> None:
    """Pushed as they are received, rows give each order the same outcome at the same venue times; only
    the news of it may come later."""

    def by_order(events: list[Event]) -> dict[str, list[Event]]:
        fates: dict[str, list[Event]] = defaultdict(list)
        for event in events:
            fates[event.client_id].append(msgspec.structs.replace(event, time_ns=0))
        return fates

    ahead, position = played(script, [])
    live, live_position = played(script, [], live=True)
    assert by_order(live) == by_order(ahead)
    assert live_position == position
    for early, late in zip(*(sorted(e.time_ns for e in x) for x in (ahead, live)), strict=True):
        assert early <= late
