"""What the algorithms do in plain cases, and what they keep whatever the venue answers."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any, get_args, get_type_hints

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execution.algorithms import ALGORITHMS, start
from execution.algorithms.placement import MarketOrder, PassivePeg
from execution.algorithms.working import Parent
from execution.orders import (
    Accepted,
    Action,
    Amend,
    Amended,
    Cancel,
    Cancelled,
    CancelRejected,
    Event,
    Filled,
    Liquidity,
    Lost,
    Rejected,
    Submit,
    TimeInForce,
)
from execution.venue import View
from market.settings import Execution
from market.units import SECOND_NS
from tests.execution.tape import INSTRUMENT, SYMBOL, play

DEADLINE = 30 * SECOND_NS


def parent(side: int = 1, lots: int = 10, **more: Any) -> Parent:
    return Parent(
        id="p",
        symbol=SYMBOL,
        side=side,
        qty_lots=lots,
        decision_ns=0,
        deadline_ns=DEADLINE,
        decision_mid_ticks=100.5,
        **more,
    )


def view(now_ns: int = 0, bid: int = 100, ask: int = 101, stale: bool = False) -> View:
    return View(
        symbol=SYMBOL,
        now_ns=now_ns,
        bids=((bid, 10),),
        asks=((ask, 10),),
        stale=stale,
        instrument=INSTRUMENT,
    )


def event_of(kind: Any, client_id: str = "p-1", **more: Any) -> Any:
    return kind(client_id=client_id, time_ns=0, venue_ns=0, **more)


def fill(
    lots: int, leaves: int, exec_id: str = "x1", client_id: str = "p-1", side: int = 1
) -> Filled:
    return Filled(
        client_id=client_id,
        time_ns=0,
        venue_ns=0,
        exec_id=exec_id,
        symbol=SYMBOL,
        side=side,
        qty_lots=lots,
        price_ticks=100,
        liquidity=Liquidity.MAKER,
        fee_e8=0,
        leaves_lots=leaves,
    )


# -- market ----------------------------------------------------------------------------------------


def test_market_sends_everything_at_once_and_is_done_when_filled() -> None:
    algorithm = MarketOrder(parent(side=-1))
    (order,) = play(algorithm, 0, view(), [])
    assert isinstance(order, Submit)
    assert (order.client_id, order.side, order.qty_lots) == ("p-1", -1, 10)
    assert (order.time_in_force, order.price_ticks) == (TimeInForce.IOC, 100)
    assert play(algorithm, 1, view(1), [event_of(Accepted)]) == []
    assert not algorithm.done
    assert play(algorithm, 2, view(2), [fill(10, 0)]) == []
    assert algorithm.done


def test_market_sends_the_remainder_of_a_partial_fill_again() -> None:
    algorithm = MarketOrder(parent())
    play(algorithm, 0, view(), [])
    (again,) = play(
        algorithm,
        1,
        view(1),
        [event_of(Accepted), fill(6, 4), event_of(Cancelled, reason="thin", leaves_lots=4)],
    )
    assert (again.client_id, again.qty_lots) == ("p-2", 4)


@pytest.mark.parametrize(("side", "bid", "ask"), [(1, 9_000, 12_000), (-1, 8_000, 11_000)])
def test_crossing_goes_no_further_than_the_price_band(side: int, bid: int, ask: int) -> None:
    """The other side is 14 % away: the bound is 1 % from the mid, and what is beyond it is not taken."""
    algorithm = MarketOrder(parent(side))
    algorithm.band_bps = 100.0
    (order,) = play(algorithm, 0, view(bid=bid, ask=ask), [])
    mid = (bid + ask) / 2
    assert order.time_in_force is TimeInForce.IOC
    assert 0.009 < side * (order.price_ticks - mid) / mid <= 0.01
    unfilled = event_of(Cancelled, reason="not filled at once", leaves_lots=10)
    assert play(algorithm, 1, view(1, bid, ask), [event_of(Accepted), unfilled]) == []
    (again,) = play(algorithm, SECOND_NS + 1, view(SECOND_NS + 1), [])
    assert (again.client_id, again.qty_lots) == ("p-2", 10)


def test_market_waits_for_a_market_and_gives_up_after_the_deadline() -> None:
    algorithm = MarketOrder(parent())
    assert play(algorithm, 0, view(stale=True), []) == []
    assert not algorithm.done
    late = DEADLINE + algorithm.grace_ns
    assert play(algorithm, late, view(late), []) == []
    assert algorithm.done
    assert algorithm.arrival_ns is None


def test_rejections_are_retried_after_a_pause_and_not_for_ever() -> None:
    algorithm = MarketOrder(parent())
    sent = 0
    for n in range(200):
        now = n * SECOND_NS // 10
        events = [event_of(Rejected, f"p-{sent}", reason="no")] if sent else []
        sent += len(play(algorithm, now, view(now), events))
    assert sent == algorithm.max_failures
    assert algorithm.done


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_exit_that_is_refused_is_tried_again_and_again(name: str) -> None:
    """Refused from its deadline on: after one, two, three, four and then every five seconds, also long
    after the grace, until it is taken. An entry gives up."""
    for reduces in (True, False):
        algorithm = start(name, parent(reduce_only=reduces))
        sent: list[int] = []
        news: list[Event] = []
        for tenth in range(10, 1_200):
            now = DEADLINE + tenth * SECOND_NS // 10
            seen = msgspec.structs.replace(view(now), bought_lots=tenth, sold_lots=tenth)
            actions, news = play(algorithm, now, seen, news), []
            for action in actions:
                sent.append(tenth)
                news.append(event_of(Rejected, action.client_id, reason="no"))
        if not reduces:
            assert (len(sent), algorithm.done) == (5, True)
            continue
        waits = [round((b - a) / 10) for a, b in itertools.pairwise(sent)]
        assert waits == [1, 2, 3, 4, *[5] * (len(waits) - 4)]
        assert len(waits) > 20
        assert not algorithm.done
        late = DEADLINE + 130 * SECOND_NS
        (order,) = play(algorithm, late, view(late), news)
        play(algorithm, late + 1, view(late + 1), [fill(10, 0, "x1", order.client_id)])
        assert algorithm.done


def test_an_exit_waits_for_a_market_as_long_as_it_takes() -> None:
    algorithm = MarketOrder(parent(reduce_only=True))
    late = DEADLINE + 100 * SECOND_NS
    assert play(algorithm, late, view(late, stale=True), []) == []
    assert not algorithm.done
    assert [order.qty_lots for order in play(algorithm, late + 1, view(late + 1), [])] == [10]
    assert not algorithm.done


def test_what_is_asked_for_is_open_until_it_is_denied() -> None:
    """A denial is a failure like the venue's: tried again after a second, and given up after five."""
    algorithm = MarketOrder(parent())
    asked = []
    for n in range(100):
        now = n * SECOND_NS // 10
        asked += [n for _ in algorithm.step(now, view(now), [])]
        if asked[-1] == n:
            assert (algorithm.open_lots, algorithm.remaining_lots) == (10, 0)
    # It is seen at the next step, a tenth of a second later.
    assert asked == [0, 11, 22, 33, 44]
    assert algorithm.done


# -- passive ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "touch"), [(1, 100), (-1, 101)])
def test_passive_joins_its_own_side_post_only(side: int, touch: int) -> None:
    (order,) = play(PassivePeg(parent(side)), 0, view(), [])
    assert (order.price_ticks, order.qty_lots) == (touch, 10)
    assert order.time_in_force is TimeInForce.POST_ONLY
    assert order.time_in_force is TimeInForce.POST_ONLY


@pytest.mark.parametrize(("side", "moved"), [(1, (102, 103)), (-1, (98, 99))])
def test_passive_follows_a_touch_that_moves_away(side: int, moved: tuple[int, int]) -> None:
    algorithm = PassivePeg(parent(side), chase_bps=500.0)
    play(algorithm, 0, view(), [])
    play(algorithm, 1, view(1), [event_of(Accepted)])
    later = SECOND_NS
    (amend,) = play(algorithm, later, view(later, *moved), [])
    assert amend == Amend(client_id="p-1", price_ticks=moved[0] if side > 0 else moved[1])
    # Nothing more while the answer is out.
    assert play(algorithm, 3 * later, view(3 * later, *moved), []) == []


def test_passive_stays_when_the_touch_comes_nearer_or_the_pause_lasts() -> None:
    algorithm = PassivePeg(parent())
    play(algorithm, 0, view(), [])
    play(algorithm, 1, view(1), [event_of(Accepted)])
    assert play(algorithm, 2, view(2, 102, 103), []) == []
    assert play(algorithm, SECOND_NS, view(SECOND_NS, 99, 100), []) == []


def test_passive_follows_only_so_often_and_so_far() -> None:
    for limits, moves in (({"max_moves": 2, "chase_bps": 1e4}, 2), ({"chase_bps": 100.0}, 1)):
        algorithm = PassivePeg(parent(), **limits)
        play(algorithm, 0, view(), [])
        play(algorithm, 1, view(1), [event_of(Accepted)])
        count = 0
        for n in range(1, 10):
            now = n * SECOND_NS
            actions = play(algorithm, now, view(now, 100 + n, 101 + n), [])
            count += len(actions)
            for action in actions:
                play(
                    algorithm,
                    now + 1,
                    view(now + 1, 100 + n, 101 + n),
                    [event_of(Amended, price_ticks=action.price_ticks, qty_lots=10)],
                )
        assert count == moves


def test_passive_posts_again_after_a_post_only_cancel() -> None:
    algorithm = PassivePeg(parent())
    play(algorithm, 0, view(), [])
    events = [event_of(Accepted), event_of(Cancelled, reason="would cross", leaves_lots=10)]
    assert play(algorithm, 1, view(1), events) == []
    (again,) = play(algorithm, SECOND_NS, view(SECOND_NS, 101, 102), [])
    assert (again.client_id, again.price_ticks) == ("p-2", 101)


def test_passive_crosses_the_remainder_at_the_deadline() -> None:
    algorithm = PassivePeg(parent())
    play(algorithm, 0, view(), [])
    play(algorithm, 1, view(1), [event_of(Accepted), fill(3, 7)])
    assert play(algorithm, DEADLINE, view(DEADLINE), []) == [Cancel(client_id="p-1")]
    (cross,) = play(
        algorithm,
        DEADLINE + 1,
        view(DEADLINE + 1),
        [event_of(Cancelled, reason="asked", leaves_lots=7)],
    )
    assert (cross.time_in_force, cross.price_ticks, cross.qty_lots) == (TimeInForce.IOC, 101, 7)
    play(algorithm, DEADLINE + 2, view(DEADLINE + 2), [fill(7, 0, "x2", "p-2")])
    assert algorithm.done


def test_a_fill_that_races_our_cancel_is_not_bought_twice() -> None:
    """The cancel gave up 4 of 10 while we knew of no fill: 6 are coming and must not be sent again."""
    algorithm = PassivePeg(parent())
    play(algorithm, 0, view(), [])
    play(algorithm, 1, view(1), [event_of(Accepted)])
    play(algorithm, DEADLINE, view(DEADLINE), [])
    now = DEADLINE + 1
    (cross,) = play(algorithm, now, view(now), [event_of(Cancelled, reason="asked", leaves_lots=4)])
    assert cross.qty_lots == 4
    play(algorithm, now, view(now), [fill(4, 0, "x2", "p-2")])
    assert not algorithm.done
    play(algorithm, now, view(now), [fill(6, 4, "x1", "p-1")])
    assert algorithm.done
    assert algorithm.filled_lots == 10


def test_an_order_of_unknown_state_counts_as_open() -> None:
    algorithm = MarketOrder(parent())
    play(algorithm, 0, view(), [])
    assert play(algorithm, 1, view(1), [event_of(Lost, reason="no answer")]) == []
    late = DEADLINE + 2 * algorithm.grace_ns
    assert play(algorithm, late, view(late), []) == []
    assert not algorithm.done
    play(algorithm, late, view(late), [event_of(Rejected, reason="never seen")])
    assert algorithm.done


def test_abandoning_cancels_and_sends_nothing_new() -> None:
    algorithm = PassivePeg(parent())
    play(algorithm, 0, view(), [])
    play(algorithm, 1, view(1), [event_of(Accepted)])
    algorithm.abandon()
    assert play(algorithm, 2, view(2), []) == [Cancel(client_id="p-1")]
    assert play(algorithm, 3, view(3), [event_of(Cancelled, reason="asked", leaves_lots=10)]) == []
    assert algorithm.done


def test_rejecting_a_duplicate_does_not_end_the_resting_order() -> None:
    algorithm = PassivePeg(parent())
    play(algorithm, 0, view(), [])
    play(algorithm, 1, view(1), [event_of(Accepted), event_of(Rejected, reason="duplicate")])
    assert algorithm.open_lots == 10


@pytest.mark.parametrize("wrong", [{"side": 0}, {"lots": 0}, {"lots": -1}])
def test_a_parent_of_bad_side_or_quantity_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="parent p: "):
        parent(**wrong)


def test_an_unknown_algorithm_is_named() -> None:
    with pytest.raises(ValueError, match="algorithm 'sniper': expected one of market, passive"):
        start("sniper", parent())


def test_settings_may_name_every_algorithm() -> None:
    assert get_args(get_type_hints(Execution)["algorithm"]) == tuple(ALGORITHMS)


# -- whatever the venue answers --------------------------------------------------------------------


class ChaoticVenue:
    """A venue that keeps the books right and everything else wrong: answers are late, doubled, out
    of order between orders, requests are refused, cancelled or lost at random."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.open: dict[str, Submit] = {}
        self.leaves: dict[str, int] = {}
        self.queue: list[Event] = []
        self.filled = 0
        self.position = 0
        self.executions = 0

    def send(self, actions: Sequence[Action]) -> None:
        for action in actions:
            name = action.client_id
            if isinstance(action, Submit):
                assert action.qty_lots > 0
                assert name not in self.leaves
                self.leaves[name] = action.qty_lots
                if self.random.random() < 0.2:
                    self.leaves[name] = 0
                    self.queue.append(event_of(Rejected, name, reason="chaos"))
                    continue
                self.open[name] = action
                if self.random.random() < 0.1:
                    self.queue.append(event_of(Lost, name, reason="chaos"))
                self.queue.append(event_of(Accepted, name))
            elif name not in self.open or self.random.random() < 0.3:
                self.queue.append(event_of(CancelRejected, name, reason="chaos"))
            elif isinstance(action, Cancel):
                self._cancel(name)
            else:
                self.queue.append(
                    event_of(
                        Amended,
                        name,
                        price_ticks=action.price_ticks,
                        qty_lots=self.open[name].qty_lots,
                    )
                )

    def _cancel(self, name: str) -> None:
        del self.open[name]
        leaves, self.leaves[name] = self.leaves[name], 0
        self.queue.append(event_of(Cancelled, name, reason="chaos", leaves_lots=leaves))

    def live(self) -> None:
        """Something happens to each open order, or nothing."""
        for name in list(self.open):
            dice = self.random.random()
            crosses = self.open[name].time_in_force is TimeInForce.IOC
            if dice < (0.7 if crosses else 0.2):
                lots = self.random.randint(1, self.leaves[name])
                self.executions += 1
                self.filled += lots
                self.leaves[name] -= lots
                side = self.open[name].side
                news = fill(lots, self.leaves[name], f"x{self.executions}", name, side)
                self.queue.append(news)
                self.position += side * lots
                if self.leaves[name] == 0:
                    del self.open[name]
            elif dice > (0.8 if crosses else 0.97):
                self._cancel(name)

    def news(self) -> list[Event]:
        """Some of the answers, some twice; a fill may come after the end of its order."""
        if self.random.random() < 0.3:
            self.random.shuffle(self.queue)
        cut = self.random.randint(0, len(self.queue))
        events, self.queue = self.queue[:cut], self.queue[cut:]
        return [e for event in events for e in [event] * self.random.choice([1, 1, 2])]


@settings(derandomize=True, max_examples=150, deadline=None)
@given(
    name=st.sampled_from(list(ALGORITHMS)),
    seed=st.integers(0, 10**6),
    side=st.sampled_from([1, -1]),
    lots=st.integers(1, 50),
    stop=st.one_of(st.none(), st.integers(0, 300)),
)
def test_the_invariants_hold_whatever_the_venue_answers(
    name: str, seed: int, side: int, lots: int, stop: int | None
) -> None:
    """Filled at the venue plus open at the venue never exceeds the parent's quantity. `done` means
    that nothing is open and stays true. In the end it is done."""
    venue, algorithm = ChaoticVenue(seed), start(name, parent(side, lots))
    bid, now = 100, 0
    for n in range(900):
        now = n * SECOND_NS // 10
        if n == stop:
            algorithm.abandon()
        bid += venue.random.choice([-1, 0, 0, 0, 1])
        stale = venue.random.random() < 0.05
        picture = msgspec.structs.replace(
            view(now, bid, bid + 1, stale),
            signal_bps=venue.random.choice([None, -5.0, 0.0, 5.0]),
            bought_lots=n,
            sold_lots=2 * n,
            bids=((bid, venue.random.randint(1, 20)),),
        )
        actions = play(algorithm, now, picture, venue.news())
        if stop is not None and n >= stop:
            assert not any(isinstance(action, Submit) for action in actions)
        assert all(action.client_id.startswith("p-") for action in actions)
        venue.send(actions)
        assert venue.filled + sum(venue.leaves[name] for name in venue.open) <= lots
        if algorithm.done:
            assert not venue.open
            assert not actions
        venue.live()
    play(algorithm, now, view(now), venue.queue)
    assert algorithm.done
    assert algorithm.filled_lots == venue.filled


def test_the_same_history_gives_the_same_actions() -> None:
    def history() -> list[bytes]:
        venue, algorithm = ChaoticVenue(7), start("passive", parent(lots=40))
        sent = []
        for n in range(500):
            now = n * SECOND_NS // 10
            actions = play(algorithm, now, view(now, 100 + n // 40, 101 + n // 40), venue.news())
            sent += [msgspec.json.encode(action) for action in actions]
            venue.send(actions)
            venue.live()
        return sent

    assert history() == history()
