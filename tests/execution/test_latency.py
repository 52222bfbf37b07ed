"""Latency models by themselves, and what they do to requests and answers on their way."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execution.orders import Amend, Cancel, CancelRejected, Rejected
from execution.simulation.latency import (
    WINDOW_NS,
    activity,
    constant,
    entry_ns,
    recorded,
    response_ns,
)
from execution.simulation.simulator import Simulator
from execution.simulation.state import Reason
from market.events import Events, Flag
from tests.execution.judged import events_of, random_case
from tests.execution.tape import INSTRUMENT, SYMBOL, Tape, frame, kinds, limit, snapshot

#: Sent, at the exchange, answered. The third never arrived.
RECORDS = np.array(
    [(1_000, 1_100, 1_160), (2_000, 2_300, 2_500), (3_000, 0, 3_700), (4_000, 4_050, 4_080)]
)


def test_constant_latencies_are_constant() -> None:
    latency = constant(7, 3)
    assert [entry_ns(latency, t, 9.0, 0) for t in (0, 10**18)] == [7, 7]
    assert [response_ns(latency, t, 9.0, 0) for t in (0, 10**18)] == [3, 3]


@pytest.mark.parametrize(
    ("time", "way"),
    [
        (0, 100),
        (1_000, 100),
        (1_500, 200),
        (1_003, 100),  # 100.6, cut
        (1_999, 299),
        # Next to a request that was lost, requests are lost, and rejected after its round trip.
        (2_500, -600),
        (3_500, -390),
        (4_000, 50),
        (10**18, 50),
    ],
)
def test_recorded_entry_latencies_are_interpolated_over_send_times(time: int, way: int) -> None:
    assert entry_ns(recorded(RECORDS), time, 0.0, 0) == way


@pytest.mark.parametrize(
    ("time", "way"), [(0, 60), (1_100, 60), (1_700, 130), (2_300, 200), (3_175, 115), (9_999, 30)]
)
def test_recorded_response_latencies_are_interpolated_over_venue_times(time: int, way: int) -> None:
    assert response_ns(recorded(RECORDS), time, 0.0, 0) == way


def test_a_shrinking_latency_is_cut_towards_the_earlier_one() -> None:
    latency = recorded(np.array([(0, 10, 20), (3, 11, 31)]))
    # From 10 down to 8 within three: 9.33 and 8.67 are cut towards zero from 10, to 10 and 9.
    assert [entry_ns(latency, t, 0.0, 0) for t in range(4)] == [10, 10, 9, 8]


@pytest.mark.parametrize(
    ("records", "complaint"),
    [
        ([(1, 2)], r"latency records of shape \(1, 2\): expected \(n, 3\)"),
        ([(1, 0, 5)], "no request ever reached the exchange"),
        ([(5, 6, 7), (5, 8, 9)], "time of sending does not grow after row 0"),
        ([(5, 9, 10), (6, 8, 9)], "time of the exchange does not grow after row 0"),
        ([(5, 6, 5)], "row 0 was answered before its cause"),
    ],
)
def test_inconsistent_latency_records_are_refused(records: list[object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        recorded(np.array(records))


def test_negative_latencies_are_refused() -> None:
    for make in (lambda: constant(-1, 0), lambda: activity(0, 0, -1)):
        with pytest.raises(ValueError, match="latencies of the simulator are negative"):
            make()


def test_a_lost_request_is_rejected_after_its_round_trip() -> None:
    simulator = Simulator({SYMBOL: INSTRUMENT}, latency=recorded(RECORDS))
    simulator.on_events(SYMBOL, snapshot(500))
    simulator.on_events(SYMBOL, frame(50_000))
    simulator.advance(1_000)
    simulator.send([limit("a", 1, 100, 1)])
    simulator.advance(3_000)
    assert kinds(simulator.poll()) == ["Accepted"]
    simulator.send([limit("b", 1, 100, 1), Cancel(client_id="a"), Amend(client_id="a", qty_lots=2)])
    simulator.advance(3_699)
    assert simulator.poll() == []
    simulator.advance(3_700)
    lost, *others = simulator.poll()
    assert isinstance(lost, Rejected)
    assert all(isinstance(other, CancelRejected) for other in others)
    assert {event.reason for event in (lost, *others)} == {Reason.NOT_DELIVERED}
    simulator.advance(5_000)
    # The order that never arrived is unknown there; the one that rests is as it was.
    simulator.send([Cancel(client_id="b"), Cancel(client_id="a")])
    simulator.advance(6_000)
    unknown, cancelled = simulator.poll()
    assert isinstance(unknown, CancelRejected)
    assert unknown.reason == Reason.NO_ORDER
    assert kinds([cancelled]) == ["Cancelled"]


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    records=st.lists(
        st.tuples(st.integers(1, 300), st.integers(-50, 400), st.integers(0, 400)),
        min_size=1,
        max_size=12,
    ),
    gaps=st.lists(st.integers(0, 120), min_size=1, max_size=20),
)
def test_requests_and_responses_are_first_in_first_out(
    records: list[tuple[int, int, int]], gaps: list[int]
) -> None:
    """Whatever the latencies: requests are met in the order of sending, responses are received in the
    order of the exchange, none before it happened, and every request is answered once."""
    sent = at_exchange = 1_000
    rows = []
    for pause, way, back in records:
        sent += pause
        at_exchange = max(at_exchange + 1, sent + way)
        rows.append((sent, at_exchange, max(sent, at_exchange) + back))
    simulator = Simulator({SYMBOL: INSTRUMENT}, latency=recorded(np.array(rows)))
    simulator.on_events(SYMBOL, snapshot(500))
    simulator.on_events(SYMBOL, frame(100_000))
    simulator.advance(1_000)
    for n, gap in enumerate(gaps):
        simulator.advance(simulator.now_ns + gap)
        simulator.send([limit(f"o{n}", 1, 99, 1)])
    simulator.advance(50_000)
    heard = simulator.poll()
    arrived = [event for event in heard if not isinstance(event, Rejected)]
    assert sorted(event.client_id for event in heard) == sorted(f"o{n}" for n in range(len(gaps)))
    assert [int(event.client_id[1:]) for event in arrived] == sorted(
        int(event.client_id[1:]) for event in arrived
    )
    for one, next_one in pairwise(heard):
        assert one.time_ns <= next_one.time_ns
    for one, next_one in pairwise(arrived):
        assert one.venue_ns <= next_one.venue_ns
    assert all(event.venue_ns <= event.time_ns for event in heard)


# -- activity ----------------------------------------------------------------------------------------


def busy(rows: int, first_ns: int, step_ns: int) -> Events:
    return np.concatenate(
        [snapshot(first_ns)]
        + [frame(first_ns + n * step_ns, bids=[(90, n % 7 + 1)]) for n in range(1, rows)]
    )


def arrival(rows: Events, pushes: int = 1) -> tuple[int, int]:
    """When an order sent after the rows was accepted, and when we received that, from the sending."""
    latency = activity(1_000, 500, 1_000_000)
    simulator = Simulator({SYMBOL: INSTRUMENT}, latency=latency)
    for part in np.array_split(rows, pushes):
        simulator.on_events(SYMBOL, part)
    now = int(rows["receive_ns"][-1])
    simulator.on_events(SYMBOL, frame(now + 100 * WINDOW_NS))
    simulator.advance(now)
    simulator.send([limit("a", 1, 99, 1)])
    simulator.advance(now + 99 * WINDOW_NS)
    (accepted,) = simulator.poll()
    return accepted.venue_ns - now, accepted.time_ns - accepted.venue_ns


def test_a_busy_market_is_slow_in_proportion_to_its_rows() -> None:
    quiet, back = arrival(snapshot(10**9))
    # Six rows within the last second: 0.006 thousand, a millisecond each.
    assert quiet == 1_000 + 6_000
    assert back == pytest.approx(500 + 6_000, abs=2)
    steady = busy(20_000, 10**9, WINDOW_NS // 2_000)
    there, _ = arrival(steady)
    # Two thousand a second for ten windows: the exponential mean is there.
    assert there == pytest.approx(1_000 + 2_000_000, rel=1e-3)
    assert arrival(steady, pushes=7) == arrival(steady)


def test_latency_does_not_look_ahead() -> None:
    rows = busy(3_000, 10**9, WINDOW_NS // 2_000)
    now = int(rows["receive_ns"][999])
    waits = []
    for known in (rows, rows[:1_000]):
        simulator = Simulator({SYMBOL: INSTRUMENT}, latency=activity(1_000, 500, 1_000_000))
        simulator.on_events(SYMBOL, known)
        simulator.on_events(SYMBOL, frame(now + 10 * WINDOW_NS))
        simulator.advance(now)
        simulator.send([limit("a", 1, 99, 1)])
        simulator.advance(now + 5 * WINDOW_NS)
        waits.append(simulator.poll()[0].venue_ns)
    assert waits[0] == waits[1]


# -- driven at news only --------------------------------------------------------------------------------


def two_symbols() -> dict[str, object]:
    return {
        SYMBOL: INSTRUMENT,
        "OTHER": INSTRUMENT.__class__(
            symbol="OTHER", tick="1", lot="1", min_qty="1", min_notional="0"
        ),
    }


@pytest.mark.parametrize("every_ns", [0, 50])
@pytest.mark.parametrize("symbols", [1, 2])
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("number", [3, 7])
def test_news_are_outcomes_and_touches_and_nothing_else(
    every_ns: int, symbols: int, cut: bool, number: int
) -> None:
    """Stopped at each instant (or each multiple of 50), the simulator says the same news at the same
    times as when it is driven for news only; with one symbol and with two, and wherever the rows that
    were pushed are cut."""
    rows = events_of(random_case(number).rows)
    ends = np.flatnonzero(rows["flags"] & Flag.LAST) + 1
    end = int(rows["receive_ns"][-1])

    def market() -> Simulator:
        instruments = dict(list(two_symbols().items())[:symbols])
        simulator = Simulator(instruments, entry_latency_ns=30, response_latency_ns=20)
        for part in np.split(rows, ends[:-1]) if cut else [rows]:
            simulator.on_events(SYMBOL, part)
        simulator.on_events(SYMBOL, frame(end + 1_000))
        return simulator

    def orders(simulator: Simulator, number: int) -> None:
        bid, _ = simulator.touch(SYMBOL)
        if number % 3 == 0 and bid:
            simulator.send([limit(f"o{number}", 1, bid + number % 2, 5)])

    driven, stepped = market(), market()
    news: list[object] = []
    while driven.now_ns < end:
        driven.advance_to_news(end, every_ns)
        heard = driven.poll()
        news.append((driven.now_ns, driven.touch(SYMBOL), heard))
        orders(driven, len(news))
    expected: list[object] = []
    touch = (None, None)
    step = every_ns or 1
    while stepped.now_ns < end:
        stepped.advance(min(end, (stepped.now_ns // step + 1) * step))
        heard = stepped.poll()
        if heard or stepped.touch(SYMBOL) != touch or stepped.now_ns == end:
            touch = stepped.touch(SYMBOL)
            expected.append((stepped.now_ns, touch, heard))
            orders(stepped, len(expected))
    assert news == expected
    assert len(news) > 10


def test_an_answer_to_a_stray_request_is_news() -> None:
    tape = Tape().opens()
    simulator = tape.simulator
    simulator.on_events(SYMBOL, frame(tape.now_ns + 500))
    simulator.advance_to_news(tape.now_ns + 1)
    simulator.send([Cancel(client_id="never sent")])
    simulator.advance_to_news(tape.now_ns + 400)
    assert kinds(simulator.poll()) == ["CancelRejected"]
