"""Bad input to every algorithm: denied or absorbed with a named reason, accounting exact.

The table below names what comes, what it must come to, and is run over all algorithms, the router
included. `ScriptedVenue` plays the venue by hand: what was filled, and what may still fill, is known exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from execution.account import Account
from execution.algorithms import ALGORITHMS, start
from execution.algorithms.working import Parent, Working
from execution.orders import (
    Accepted,
    Action,
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
)
from execution.risk import Denial, Guard
from execution.venue import View
from market.settings import Risk
from market.units import SECOND_NS
from tests.execution.tape import INSTRUMENT, SYMBOL, play

DEADLINE = 30 * SECOND_NS
LOTS = 40


def parent(**more: Any) -> Parent:
    given: dict[str, Any] = {
        "id": "p",
        "symbol": SYMBOL,
        "side": 1,
        "qty_lots": LOTS,
        "decision_ns": 0,
        "deadline_ns": DEADLINE,
        "decision_mid_ticks": 10_000.5,
    }
    return Parent(**(given | more))


def view(now_ns: int = 0, **more: Any) -> View:
    given: dict[str, Any] = {
        "symbol": SYMBOL,
        "now_ns": now_ns,
        "bids": ((10_000, 50), (9_999, 80)),
        "asks": ((10_001, 50), (10_002, 80)),
        "stale": False,
        "instrument": INSTRUMENT,
        "bought_lots": now_ns // (SECOND_NS // 10),
        "sold_lots": now_ns // (SECOND_NS // 10),
    }
    return View(**(given | more))


class ScriptedVenue:
    """A scripted venue: accepts and cancels at once, and fills what crosses at the touch."""

    def __init__(self, working: Working) -> None:
        self.working = working
        self.orders: dict[str, Submit] = {}
        self.left: dict[str, int] = {}
        self.executed = 0
        self.news: list[Event] = []
        self._fills = 0

    def step(self, now_ns: int, seen: View, extra: Sequence[Event] = ()) -> list[Action]:
        news, self.news = [*self.news, *extra], []
        actions = play(self.working, now_ns, seen, news)
        for action in actions:
            self._answer(action, now_ns)
        return actions

    def fill(self, name: str, lots: int, now_ns: int) -> Filled:
        """An execution of an order, received at the next step."""
        self.left[name] -= lots
        self.executed += lots
        self._fills += 1
        fill = Filled(
            client_id=name,
            time_ns=now_ns,
            venue_ns=now_ns,
            exec_id=f"x{self._fills}",
            symbol=SYMBOL,
            side=1,
            qty_lots=lots,
            price_ticks=10_001,
            liquidity=Liquidity.TAKER,
            fee_e8=0,
            leaves_lots=self.left[name],
        )
        self.news.append(fill)
        return fill

    def _answer(self, action: Action, now_ns: int) -> None:
        name = action.client_id
        times: dict[str, Any] = {"time_ns": now_ns, "venue_ns": now_ns}
        if isinstance(action, Submit):
            assert name not in self.orders
            assert action.qty_lots > 0
            self.orders[name], self.left[name] = action, action.qty_lots
            self.news.append(Accepted(client_id=name, **times))
            if action.time_in_force == "IOC":
                self.fill(name, action.qty_lots, now_ns)
        elif self.left.get(name, 0) == 0:
            self.news.append(CancelRejected(client_id=name, reason="finished", **times))
        elif isinstance(action, Cancel):
            left, self.left[name] = self.left[name], 0
            self.news.append(
                Cancelled(client_id=name, reason="requested", leaves_lots=left, **times)
            )
        else:
            assert action.price_ticks is not None
            total = self.orders[name].qty_lots
            self.news.append(
                Amended(client_id=name, price_ticks=action.price_ticks, qty_lots=total, **times)
            )

    def run(self, until_ns: int, seen: Callable[[int], View], begin_ns: int = 0) -> None:
        now_ns = begin_ns
        while now_ns <= until_ns and not self.working.done:
            self.step(now_ns, seen(now_ns))
            self.check()
            now_ns += SECOND_NS // 5

    def check(self) -> None:
        """What is filled, and what may still fill, is never more than the parent."""
        assert self.executed + sum(self.left.values()) <= self.working.parent.qty_lots
        received = self.executed - sum(e.qty_lots for e in self.news if isinstance(e, Filled))
        assert self.working.filled_lots == received


LATE = DEADLINE + 15 * SECOND_NS


@pytest.fixture(params=list(ALGORITHMS))
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


# -- parents ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lots", [0, -1, -LOTS])
def test_a_parent_without_quantity_is_refused_before_any_algorithm(lots: int) -> None:
    with pytest.raises(ValueError, match=rf"parent p: quantity {lots} lots; expected at least 1"):
        parent(qty_lots=lots)


@pytest.mark.parametrize("lots", [0.5, 1.5, math.nan])
def test_a_parent_off_the_lot_is_refused_before_any_algorithm(lots: float) -> None:
    with pytest.raises(ValueError, match=r"parent p: quantity .* lots; expected a whole number"):
        parent(qty_lots=lots)


@pytest.mark.parametrize("side", [0, 2, -3])
def test_a_parent_without_side_is_refused_before_any_algorithm(side: int) -> None:
    with pytest.raises(ValueError, match=rf"parent p: side {side}; expected \+1 or -1"):
        parent(side=side)


def test_an_oversize_parent_is_denied_order_by_order_with_a_named_reason(name: str) -> None:
    """Whatever an algorithm asks for, the guard lets pass no order, and no sum of them, above limits."""
    limits = Risk(order_usdt=100_000.0, position_usdt=300_000.0)
    working = start(name, parent(qty_lots=10**9))
    account = Account({SYMBOL: INSTRUMENT}, 10**17)
    guard = Guard({SYMBOL: INSTRUMENT}, limits, working.orders, account, [SYMBOL])
    asked: list[int] = []
    passed: dict[str, int] = {}
    for n in range(int(LATE // SECOND_NS)):
        now_ns = n * SECOND_NS
        seen = view(now_ns)
        for action in working.step(now_ns, seen, []):
            if isinstance(action, Submit):
                asked.append(action.qty_lots)
            if guard.allow(now_ns, action, seen) is not None:
                continue
            if isinstance(action, Submit):
                passed[action.client_id] = action.qty_lots
                working.orders.sent(action, "p", now_ns)
            else:
                working.orders.requested(action, now_ns)
    worth = INSTRUMENT.tick_size * INSTRUMENT.lot_size * 10_001
    assert all(lots * worth <= 100_000 for lots in passed.values())
    assert sum(passed.values()) * worth <= 300_000
    # One that follows a thin tape asks for little, and is not denied.
    oversize = max(asked, default=0) * worth > 100_000
    assert oversize == (Denial.ORDER_LIMIT in guard.denials)
    assert oversize or name == "pov"
    assert working.filled_lots == 0


def test_a_deadline_in_the_past_crosses_at_once_or_ends_within_the_grace(name: str) -> None:
    begin_ns = DEADLINE + SECOND_NS
    fill = ScriptedVenue(start(name, parent()))
    fill.run(LATE, view, begin_ns)
    assert fill.working.done
    assert fill.executed == fill.working.filled_lots == LOTS
    assert {order.time_in_force for order in fill.orders.values()} == {"IOC"}


def test_a_deadline_long_past_sends_nothing_and_is_done(name: str) -> None:
    fill = ScriptedVenue(start(name, parent()))
    assert fill.step(LATE, view(LATE)) == []
    assert fill.working.done
    assert fill.executed == 0


# -- books -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "broken",
    [
        {"stale": True},
        {"stale": True, "bids": ()},
        {"stale": True, "asks": ()},
        {"stale": True, "bids": (), "asks": ()},
    ],
    ids=["stale", "no bids", "no asks", "empty"],
)
def test_nothing_new_is_sent_into_an_invalid_or_stale_book(
    name: str, broken: dict[str, Any]
) -> None:
    fill = ScriptedVenue(start(name, parent()))
    for n in range(20):
        assert fill.step(n * SECOND_NS, view(n * SECOND_NS, **broken)) == []
    assert not fill.working.done
    fill.run(LATE, view, 20 * SECOND_NS)
    assert fill.executed == LOTS


def test_a_book_that_stays_stale_ends_the_parent_after_the_grace(name: str) -> None:
    fill = ScriptedVenue(start(name, parent()))
    fill.run(LATE, lambda now_ns: view(now_ns, stale=True))
    assert fill.working.done
    assert fill.executed == 0


# -- events ----------------------------------------------------------------------------------------


def strange(kind: str, now_ns: int) -> list[Event]:
    times: dict[str, Any] = {"time_ns": now_ns, "venue_ns": now_ns}
    fill = Filled(
        client_id="nobody-1",
        exec_id="stranger",
        symbol=SYMBOL,
        side=1,
        qty_lots=7,
        price_ticks=10_001,
        liquidity=Liquidity.MAKER,
        fee_e8=1,
        leaves_lots=0,
        **times,
    )
    found: dict[str, list[Event]] = {
        "fill of an unknown order": [fill],
        "cancel of an unknown order": [
            Cancelled(client_id="nobody-1", reason="?", leaves_lots=3, **times)
        ],
        "refusal of an unknown order": [Rejected(client_id="nobody-1", reason="?", **times)],
        "loss of an unknown order": [Lost(client_id="nobody-1", reason="?", **times)],
        "amendment of an unknown order": [
            Amended(client_id="nobody-1", price_ticks=1, qty_lots=99, **times)
        ],
        "the same, twice": [fill, fill],
    }
    return found[kind]


STRANGE = [
    "fill of an unknown order",
    "cancel of an unknown order",
    "refusal of an unknown order",
    "loss of an unknown order",
    "amendment of an unknown order",
    "the same, twice",
]


@pytest.mark.parametrize("kind", STRANGE)
def test_events_of_orders_that_are_not_ours_change_nothing(name: str, kind: str) -> None:
    plain, disturbed = ScriptedVenue(start(name, parent())), ScriptedVenue(start(name, parent()))
    for n in range(225):
        now_ns = n * SECOND_NS // 5
        assert plain.step(now_ns, view(now_ns)) == disturbed.step(
            now_ns, view(now_ns), strange(kind, now_ns)
        )
        disturbed.check()
    assert plain.executed == disturbed.executed == LOTS


def test_duplicate_events_count_once(name: str) -> None:
    fill = ScriptedVenue(start(name, parent()))
    for n in range(225):
        now_ns = n * SECOND_NS // 5
        fill.step(now_ns, view(now_ns), list(fill.news))
        fill.check()
        for client_id, left in list(fill.left.items()):
            if left and n % 7 == 3:
                fill.fill(client_id, 1, now_ns)
    assert fill.working.done
    assert fill.working.filled_lots == fill.executed == LOTS


def test_a_step_asks_one_thing_of_an_order(name: str) -> None:
    """In a market that runs away an overdue order is cancelled to cross, and not moved as well."""
    fill = ScriptedVenue(start(name, parent()))
    for n in range(225):
        now_ns, up = n * SECOND_NS // 5, n // 10
        seen = view(now_ns, bids=((10_000 + up, 50),), asks=((10_001 + up, 50),))
        actions = fill.step(now_ns, seen)
        assert len({action.client_id for action in actions}) == len(actions)
    assert fill.executed == LOTS


def test_late_events_count_when_they_arrive(name: str) -> None:
    """Every outcome three seconds late: never too much sent, and all of it counted at the end."""
    fill = ScriptedVenue(start(name, parent()))
    waiting: list[tuple[int, Event]] = []
    for n in range(300):
        now_ns = n * SECOND_NS // 5
        due = [event for at, event in waiting if at <= n]
        waiting = [(at, event) for at, event in waiting if at > n]
        fill.step(now_ns, view(now_ns), due)
        waiting += [(n + 15, event) for event in fill.news]
        fill.news = []
        assert fill.executed + sum(fill.left.values()) <= LOTS
    assert fill.working.filled_lots == fill.executed
    assert fill.working.done


# -- the signal ------------------------------------------------------------------------------------


@pytest.mark.parametrize("signal", [None, 0.0, -500.0, 500.0])
def test_a_signal_that_is_null_or_absurd_leaves_the_parent_done_in_time(
    name: str, signal: float | None
) -> None:
    fill = ScriptedVenue(start(name, parent()))
    fill.run(LATE, lambda now_ns: msgspec.structs.replace(view(now_ns), signal_bps=signal))
    assert fill.working.done
    assert fill.executed == LOTS
