"""Where the placing algorithms put their orders; what they share is under `test_algorithms`."""

from __future__ import annotations

import math

import msgspec
import pytest

from execution.algorithms.placement import Adaptive, ContKukanov, Iceberg
from execution.orders import Accepted, Cancel, Cancelled, Submit, TimeInForce
from execution.venue import View
from market.units import SECOND_NS
from tests.execution.tape import play
from tests.execution.test_algorithms import DEADLINE, event_of, fill, parent, view


def book(now_ns: int = 0, bid_lots: int = 10, ask_lots: int = 10, **more: object) -> View:
    picture = view(now_ns)
    return msgspec.structs.replace(
        picture, bids=((100, bid_lots),), asks=((101, ask_lots),), **more
    )


# -- iceberg ---------------------------------------------------------------------------------------


def test_an_iceberg_shows_a_tip_at_a_time() -> None:
    algorithm = Iceberg(parent(lots=100), tip_share=0.1)
    (tip,) = play(algorithm, 0, book(bid_lots=1_000), [])
    assert isinstance(tip, Submit)
    assert (tip.qty_lots, tip.price_ticks, tip.time_in_force) == (10, 100, TimeInForce.POST_ONLY)
    now = SECOND_NS
    assert play(algorithm, now, book(now, 1_000), [event_of(Accepted), fill(4, 6)]) == []
    (following,) = play(algorithm, 2 * now, book(2 * now, 1_000), [fill(6, 0, "x2")])
    assert isinstance(following, Submit)
    assert following.qty_lots == 10


def test_a_tip_is_at_most_a_share_of_the_touch() -> None:
    (tip,) = play(Iceberg(parent(lots=100), touch_share=0.2), 0, book(bid_lots=15), [])
    assert isinstance(tip, Submit)
    assert tip.qty_lots == 3


# -- Cont and Kukanov ------------------------------------------------------------------------------


def test_the_split_follows_cont_and_kukanov() -> None:
    """With an outflow of mean μ the resting quantity is -μ ln(1 - level) - Q, worked out by hand:
    half-spread 49.75 bps, level (99.5 + 5.5 - 2) / (300 + 49.75 - 2), a queue of 10 that turns over
    in ten seconds by the prior, 30 s to the deadline."""
    algorithm = ContKukanov(parent(lots=1_000), penalty_bps=300.0)
    picture = book()
    half = 0.5 / 100.5 * 1e4
    level = (2 * half + 5.5 - 2.0) / (300.0 + half - 2.0)
    expected = -30.0 * math.log(1 - level) - 10
    assert algorithm.resting_lots(0, picture) == max(0, round(expected))


def test_the_part_that_should_not_rest_is_taken_at_once() -> None:
    algorithm = ContKukanov(parent(lots=1_000), penalty_bps=150.0)
    wanted = algorithm.resting_lots(0, book(bid_lots=10))
    taken, posted = play(ContKukanov(parent(lots=1_000), penalty_bps=150.0), 0, book(), [])
    assert 0 < wanted < 1_000
    assert isinstance(taken, Submit)
    assert isinstance(posted, Submit)
    assert (taken.time_in_force, taken.qty_lots) == (TimeInForce.IOC, 1_000 - wanted)
    assert (posted.time_in_force, posted.qty_lots) == (TimeInForce.POST_ONLY, wanted)


def test_a_longer_queue_leaves_less_to_rest_and_a_busier_tape_more() -> None:
    def resting(queue: int, sold: int) -> int:
        algorithm = ContKukanov(parent(lots=10_000), penalty_bps=300.0)
        play(algorithm, 0, book(bid_lots=queue), [])
        later = book(SECOND_NS, bid_lots=queue, sold_lots=sold)
        play(algorithm, SECOND_NS, later, [])
        return algorithm.resting_lots(SECOND_NS, later)

    assert resting(10, 500) > resting(10, 50)
    assert resting(10, 500) > resting(400, 500)


def test_a_penalty_below_the_maker_fee_is_refused() -> None:
    with pytest.raises(ValueError, match=r"penalty of 1 bps: expected more than"):
        ContKukanov(parent(), penalty_bps=1.0)


# -- adaptive --------------------------------------------------------------------------------------


def test_adaptive_steps_aside_before_a_sweep_and_comes_back() -> None:
    algorithm = Adaptive(parent())
    play(algorithm, 0, book(), [])
    play(algorithm, 1, book(1), [event_of(Accepted)])
    now = SECOND_NS
    assert play(algorithm, now, book(now, bid_lots=1, ask_lots=99), []) == [Cancel(client_id="p-1")]
    gone = event_of(Cancelled, reason="requested", leaves_lots=10)
    assert play(algorithm, 2 * now, book(2 * now, 1, 99), [gone]) == []
    (again,) = play(algorithm, 3 * now, book(3 * now), [])
    assert isinstance(again, Submit)
    assert again.qty_lots == 10


def test_adaptive_does_not_follow_a_market_expected_to_return() -> None:
    for expected, moves in ((-3.0, 0), (0.0, 1)):
        algorithm = Adaptive(parent())
        play(algorithm, 0, book(), [])
        play(algorithm, 1, book(1), [event_of(Accepted)])
        away = msgspec.structs.replace(
            book(SECOND_NS), bids=((100, 0), (99, 5)), asks=((102, 10),), signal_bps=expected
        )
        away = msgspec.structs.replace(away, bids=((101, 10),))
        slack = algorithm.parent.decision_mid_ticks
        algorithm._furthest_ticks = slack * 2
        assert len(play(algorithm, SECOND_NS, away, [])) == moves


def test_passive_algorithms_cancel_in_a_stale_book_past_the_deadline() -> None:
    for kind in (Adaptive, ContKukanov, Iceberg):
        algorithm = kind(parent(lots=2_000))
        sent = [a for a in play(algorithm, 0, book(), []) if isinstance(a, Submit)]
        rests = [s.client_id for s in sent if s.time_in_force is TimeInForce.POST_ONLY]
        play(algorithm, 1, book(1), [event_of(Accepted, name) for name in rests])
        late = msgspec.structs.replace(book(DEADLINE), stale=True)
        cancels = play(algorithm, DEADLINE, late, [])
        assert [a.client_id for a in cancels] == rests
        assert all(isinstance(a, Cancel) for a in cancels)
