"""The matching engine: rules worked by hand, and any stream of requests against the plain reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market import book as bk
from proving.synthetic.engine import MatchingEngine, MatchResult
from proving.synthetic.matching import (
    MAX_LOTS,
    MAX_TICKS,
    Status,
    TimeInForce,
    grown,
    new_engine,
)
from tests.proving.reference_engine import ReferenceEngine

GTC = TimeInForce.GOOD_TILL_CANCELLED
IOC = TimeInForce.IMMEDIATE_OR_CANCEL
FOK = TimeInForce.FILL_OR_KILL
POST = TimeInForce.POST_ONLY


def traded(outcome: MatchResult) -> list[tuple[int, int, int]]:
    """(maker, ticks, lots) of a request's executions."""
    return [(fill.maker, fill.ticks, fill.lots) for fill in outcome.executions]


# -- rules, by hand --------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [1, -1])
def test_the_best_price_executes_first_and_at_a_price_the_oldest(side: int) -> None:
    engine = MatchingEngine()
    late_best = engine.limit(-side, 1000, 5, owner=7).reference
    worse = engine.limit(-side, 1000 + side, 5).reference
    last = engine.limit(-side, 1000, 4).reference
    found = engine.limit(side, 1000 + side, 12, owner=9)
    assert traded(found) == [(late_best, 1000, 5), (last, 1000, 4), (worse, 1000 + side, 3)]
    assert found.status is Status.FILLED
    assert (found.taken, found.left) == (12, 0)
    first = found.executions[0]
    assert (first.maker_owner, first.taker_owner, first.side, first.maker_left) == (7, 9, side, 0)
    assert found.executions[2].maker_left == 2
    assert engine.levels(-side) == [(1000 + side, 2)]


def test_unexecuted_quantity_rests_or_expires_by_time_in_force() -> None:
    engine = MatchingEngine()
    engine.limit(-1, 100, 3)
    assert engine.limit(1, 100, 4, force=FOK).status is Status.CANNOT_FILL
    assert engine.limit(1, 100, 1, force=POST).status is Status.WOULD_TAKE
    assert engine.levels(-1) == [(100, 3)]
    part = engine.limit(1, 100, 5, force=IOC)
    assert (part.status, part.taken, part.left) == (Status.EXPIRED, 3, 0)
    engine.limit(-1, 100, 3)
    rest = engine.limit(1, 100, 5)
    assert (rest.status, rest.taken, rest.left) == (Status.RESTING, 3, 2)
    assert engine.best(1) == 100
    assert engine.best(-1) is None
    assert engine.limit(-1, 100, 2, force=FOK).status is Status.FILLED


def test_a_market_order_stops_at_its_bound() -> None:
    engine = MatchingEngine()
    for ticks in (100, 101, 105):
        engine.limit(-1, ticks, 2)
    found = engine.market(1, 10, bound=102)
    assert (found.status, found.taken) == (Status.EXPIRED, 4)
    assert engine.levels(-1) == [(105, 2)]
    assert engine.market(1, 1).executions[0].ticks == 105
    assert engine.market(-1, 1).status is Status.EXPIRED


def test_only_a_smaller_quantity_keeps_the_queue_position() -> None:
    engine = MatchingEngine()
    a, b, c = (engine.limit(1, 100, 5).reference for _ in range(3))
    assert engine.amend(a, 100, 3).status is Status.RESTING
    assert engine.lots_ahead(b) == 3
    engine.amend(b, 100, 6)
    assert [order.reference for order in engine.queue(1, 100)] == [a, c, b]
    assert engine.lots_ahead(b) == 8
    engine.amend(a, 101, 3)
    engine.amend(a, 100, 3)
    assert [order.reference for order in engine.queue(1, 100)] == [c, b, a]
    assert engine.levels(1) == [(100, 14)]


def test_an_amended_price_may_execute_unless_post_only() -> None:
    engine = MatchingEngine()
    ask = engine.limit(-1, 105, 4).reference
    bid = engine.limit(1, 100, 6).reference
    assert engine.amend(bid, 105, 6, POST).status is Status.WOULD_TAKE
    assert engine.levels(1) == [(100, 6)]
    found = engine.amend(bid, 105, 6)
    assert (found.status, found.reference, found.left) == (Status.RESTING, bid, 2)
    assert traded(found) == [(ask, 105, 4)]
    with pytest.raises(ValueError, match="amended to rest"):
        engine.amend(bid, 105, 1, IOC)


def test_a_reference_is_void_once_its_order_is_gone() -> None:
    engine = MatchingEngine(capacity=1)
    first = engine.limit(1, 100, 5, owner=3, tag=17)
    order = engine.order(first.reference)
    assert order is not None
    assert (order.owner, order.tag, order.side, order.ticks, order.lots) == (3, 17, 1, 100, 5)
    assert engine.cancel(first.reference).left == 5
    second = engine.limit(1, 100, 5).reference
    assert second != first.reference
    for stale in (first.reference, -1, 1 << 40, 99):
        assert engine.cancel(stale).status is Status.UNKNOWN_ORDER
        assert engine.amend(stale, 100, 1).status is Status.UNKNOWN_ORDER
        assert engine.order(stale) is None
        assert engine.lots_ahead(stale) is None
    assert engine.levels(1) == [(100, 5)]


@pytest.mark.parametrize(
    ("side", "ticks", "lots", "status"),
    [
        (0, 100, 1, Status.BAD_SIDE),
        (2, 100, 1, Status.BAD_SIDE),
        (1, 0, 1, Status.BAD_PRICE),
        (1, -5, 1, Status.BAD_PRICE),
        (1, MAX_TICKS + 1, 1, Status.BAD_PRICE),
        (1, 100, 0, Status.BAD_QUANTITY),
        (-1, 100, -3, Status.BAD_QUANTITY),
        (-1, 100, MAX_LOTS + 1, Status.BAD_QUANTITY),
        (1, 100 + bk.WIDTH, 1, Status.OUT_OF_REACH),
    ],
)
def test_rejected_requests_change_nothing(side: int, ticks: int, lots: int, status: Status) -> None:
    engine = MatchingEngine()
    resting = engine.limit(1, 100, 5).reference
    before = engine.counts
    assert engine.limit(side, ticks, lots).status is status
    if status in (Status.BAD_PRICE, Status.BAD_QUANTITY):
        assert engine.amend(resting, ticks, lots).status is status
    assert engine.market(1, 1, bound=0).status is Status.BAD_PRICE
    assert engine.counts == before
    assert engine.levels(1) == [(100, 5)]
    assert engine.levels(-1) == []


def test_the_pool_grows_and_keeps_references_and_queues() -> None:
    engine = MatchingEngine(capacity=2)
    references = [engine.limit(1, 100 - n % 3, 1 + n).reference for n in range(100)]
    assert engine.counts["orders"] == 100
    assert [engine.order(r).lots for r in references] == list(range(1, 101))  # type: ignore[union-attr]
    found = engine.market(-1, 10_000)
    assert found.taken == sum(range(1, 101))
    assert len(found.executions) == 100
    assert engine.counts["orders"] == 0


def test_a_full_pool_rejects_inside_a_kernel() -> None:
    from proving.synthetic.matching import enter

    state = new_engine(1)
    assert enter(state, 1, 100, 1, 0, 0, 0) == Status.RESTING
    assert enter(state, 1, 100, 1, 0, 0, 0) == Status.POOL_FULL
    larger = grown(state, 2)
    assert enter(larger, 1, 100, 1, 0, 0, 0) == Status.RESTING
    with pytest.raises(ValueError, match="already has 2"):
        grown(larger, 2)


# -- any stream of requests ------------------------------------------------------------------------
#
# Held after every request, whatever came before:
#   the status, the executions and every queue are those of the plain reference;
#   the book is not crossed, and a level's lots are the sum of its queue's;
#   lots added = 2 x lots executed + lots cancelled + lots resting.

REQUESTS = st.one_of(
    st.tuples(
        st.just("limit"),
        st.sampled_from([1, -1]),
        st.integers(95, 105),
        st.integers(0, 12),
        st.sampled_from(list(TimeInForce)),
    ),
    st.tuples(
        st.just("market"), st.sampled_from([1, -1]), st.integers(1, 20), st.integers(95, 105)
    ),
    st.tuples(st.just("cancel"), st.integers(0, 60)),
    st.tuples(
        st.just("amend"),
        st.integers(0, 60),
        st.integers(95, 105),
        st.integers(0, 12),
        st.sampled_from([GTC, POST]),
    ),
)


class Pair:
    """The engine and the reference side by side, asked the same."""

    def __init__(self) -> None:
        self.engine, self.reference = MatchingEngine(capacity=1), ReferenceEngine()
        self.names: list[tuple[int, int]] = []  # (engine's reference, reference's name) by arrival

    def ask(self, request: tuple) -> None:  # type: ignore[type-arg]
        verb, *fields = request
        before = len(self.reference.trades)
        if verb == "limit":
            side, ticks, lots, force = fields
            owner = len(self.names)
            found = self.engine.limit(side, ticks, lots, owner, force)
            expected, name = self.reference.limit(side, ticks, lots, owner, force)
        elif verb == "market":
            side, lots, bound = fields
            found = self.engine.market(side, lots, 0, bound)
            expected, name = self.reference.limit(side, bound, lots, 0, IOC)
        else:
            mine, name = self.names[fields[0] % len(self.names)] if self.names else (12345, 0)
            if verb == "cancel":
                found = self.engine.cancel(mine)
                expected = self.reference.cancel(name)
            else:
                found = self.engine.amend(mine, *fields[1:])
                expected = self.reference.amend(name, *fields[1:])
        if name and verb in ("limit", "market"):
            self.names.append((found.reference, name))
        assert found.status is expected
        known = dict(self.names)
        mine_did = [
            (known[f.maker], known[f.taker], f.side, f.ticks, f.lots, f.maker_left)
            for f in found.executions
        ]
        assert mine_did == [
            (t.maker, t.taker, t.side, t.ticks, t.lots, t.maker_left)
            for t in self.reference.trades[before:]
        ]

    def agree(self) -> None:
        for side in (1, -1):
            queues = {t: q for (own, t), q in self.reference.queues.items() if own == side}
            best_first = sorted(queues, key=lambda ticks: -side * ticks)
            assert self.engine.levels(side) == [
                (ticks, sum(order.lots for order in queues[ticks])) for ticks in best_first
            ]
            for ticks, queue in queues.items():
                held = self.engine.queue(side, ticks)
                assert [(o.owner, o.lots) for o in held] == [(o.owner, o.lots) for o in queue]
                ahead = 0
                for order in held:
                    assert self.engine.lots_ahead(order.reference) == ahead
                    ahead += order.lots
        bid, ask = self.engine.best(1), self.engine.best(-1)
        assert bid is None or ask is None or bid < ask
        counts = self.engine.counts
        resting = [order for queue in self.reference.queues.values() for order in queue]
        lots = sum(order.lots for order in resting)
        assert counts["added"] == 2 * counts["executed"] + counts["cancelled"] + lots
        assert counts["orders"] == len(resting)


@given(st.lists(REQUESTS, max_size=80))
@settings(max_examples=150, deadline=None)
def test_any_stream_of_requests_matches_the_reference(requests: list) -> None:  # type: ignore[type-arg]
    pair = Pair()
    for request in requests:
        pair.ask(request)
        pair.agree()


@pytest.mark.parametrize("seed", range(3))
def test_long_streams_of_requests_match_the_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pair = Pair()
    forces = list(TimeInForce)
    for n in range(4000):
        side, ticks = int(rng.choice([1, -1])), int(rng.integers(960, 1041))
        draw = rng.random()
        if draw < 0.55:
            ticks -= 12 * side
            force = forces[int(rng.integers(4))]
            pair.ask(("limit", side, ticks, int(rng.integers(1, 50)), force))
        elif draw < 0.65:
            pair.ask(("market", side, int(rng.integers(1, 200)), ticks + 10 * side))
        elif draw < 0.85:
            pair.ask(("cancel", int(rng.integers(1 << 30))))
        else:
            pair.ask(("amend", int(rng.integers(1 << 30)), ticks, int(rng.integers(1, 50)), GTC))
        if n % 50 == 0:
            pair.agree()
    pair.agree()
    assert pair.engine.counts["executed"] > 1000
