"""Order fate: each row of docs/live.md, evidence by evidence; and that log and venue agree whatever is lost."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from execution.orders import (
    Accepted,
    Amend,
    Cancel,
    OrderState,
    Rejected,
    Submit,
    TimeInForce,
)
from live.messages import Query, Send
from live.reconciliation import Phase
from market.units import SECOND_NS
from tests.live.fate import Desk, S, Venue


@pytest.fixture
def desk() -> Desk:
    """A started worker, in agreement with an empty venue."""
    desk = Desk(Venue())
    desk.start()
    assert desk.fate.phase is Phase.TRADING
    return desk


def lose(desk: Desk, kind: type, arrives: bool, times: int = 1) -> None:
    """Requests of a kind lose their answer; those that do not arrive are not carried out either."""
    left = [times]

    def reaches(send: Send) -> tuple[bool, bool]:
        if isinstance(send.body, kind) and left[0]:
            left[0] -= 1
            return arrives, False
        return True, True

    desk.reaches = reaches


# -- no answer ---------------------------------------------------------------------------------------


def test_an_order_that_arrived_without_an_answer_is_found(desk: Desk) -> None:
    lose(desk, Submit, arrives=True)
    desk.hears = False
    order = desk.submit("a-1")
    assert order.state is OrderState.PENDING_NEW
    desk.run(2.1)
    assert order.state is OrderState.NEW
    assert order.acknowledged
    assert desk.fate.may_open(S)


def test_its_executions_are_found_with_it(desk: Desk) -> None:
    lose(desk, Submit, arrives=True)
    desk.hears = False
    desk.submit("a-1")
    desk.venue.fill("a-1", 4)
    desk.run(2.1)
    assert desk.lots == 4
    assert desk.orders.by_id["a-1"].state is OrderState.PARTIALLY_FILLED


def test_an_order_that_never_arrived_counts_as_refused_only_after_its_window(desk: Desk) -> None:
    lose(desk, Submit, arrives=False)
    order = desk.submit("a-1")
    sent_ns = desk.now_ns
    desk.run(8.9)
    assert order.state is OrderState.UNKNOWN
    assert not desk.fate.may_open(S)
    assert desk.fate.phase is Phase.RECONCILING
    desk.run(0.2)  # 2 s for the answer, 5 s window, 2 s more
    assert order.state is OrderState.REJECTED
    assert "never arrived" in order.reason
    assert desk.now_ns >= sent_ns + 9 * SECOND_NS
    assert desk.fate.phase is Phase.TRADING
    assert len(desk.bodies(Submit)) == 1, "and is never sent again"


def test_questions_are_asked_at_once_then_with_growing_patience(desk: Desk) -> None:
    before = len(desk.sent)
    desk.reaches = lambda send: (False, False)
    desk.submit("a-1")
    desk.run(59)
    asked = [ns for ns, send in desk.sent[before:] if isinstance(send.body, Query)]
    waits = [b - a for a, b in itertools.pairwise(asked)]
    assert asked[0] - desk.sent[before][0] == 2 * SECOND_NS
    assert waits == sorted(waits)
    assert 3 <= len(waits) <= 8


def test_questions_are_never_more_than_ten_a_second(desk: Desk) -> None:
    desk.reaches = lambda send: (False, False)
    before = len(desk.sent)
    for n in range(50):
        desk.submit(f"a-{n}")
    desk.run(30)
    asked = [ns for ns, send in desk.sent[before:] if isinstance(send.body, Query)]
    assert len(asked) > 50
    for n, ns in enumerate(asked):
        assert sum(ns <= other < ns + SECOND_NS for other in asked[n:]) <= 10


def test_an_incomplete_answer_proves_nothing(desk: Desk) -> None:
    lose(desk, Submit, arrives=False)
    order = desk.submit("a-1")
    answer = desk.venue._query
    desk.venue._query = lambda query: answer(query).__class__(  # type: ignore[method-assign]
        query=query, complete=False, venue_ns=desk.now_ns, reason="page 2 failed"
    )
    desk.run(60)
    assert order.state is OrderState.UNKNOWN
    desk.venue._query = answer  # type: ignore[method-assign]
    desk.run(31)
    assert order.state is OrderState.REJECTED


def test_a_venue_clock_that_lags_delays_the_proof(desk: Desk) -> None:
    """The proof is in the venue's time, in which it judges the receive window."""
    lose(desk, Submit, arrives=False)
    answer = desk.venue._query
    desk.venue._query = lambda query: msgspec.structs.replace(  # type: ignore[method-assign]
        answer(query), venue_ns=desk.now_ns - 3 * SECOND_NS
    )
    order = desk.submit("a-1")
    desk.run(11.9)
    assert order.state is OrderState.UNKNOWN
    desk.run(4)
    assert order.state is OrderState.REJECTED


def test_a_duplicate_id_is_evidence_of_presence(desk: Desk) -> None:
    order = desk.submit("a-1")
    desk.hears = False
    desk.tell(
        Rejected(
            client_id="a-1",
            time_ns=desk.now_ns,
            venue_ns=desk.now_ns,
            reason="110072",
            duplicate=True,
        )
    )
    desk.run(0.2)
    assert order.state is OrderState.NEW
    assert order.exposed_lots == 10
    desk.hears = True
    desk.venue.fill("a-1", 10)
    desk.run(0.1)
    assert order.state is OrderState.FILLED
    assert desk.lots == 10


def test_a_late_answer_after_the_deadline_is_read(desk: Desk) -> None:
    lose(desk, Submit, arrives=True)
    desk.hears = False
    desk.submit("a-1")
    (_, send) = desk.sent[-1]
    desk.reaches = lambda send: (False, False)
    desk.run(2.5)
    assert desk.orders.by_id["a-1"].state is OrderState.UNKNOWN
    desk.answer(send, [Accepted(client_id="a-1", time_ns=desk.now_ns, venue_ns=desk.now_ns)])
    assert desk.orders.by_id["a-1"].state is OrderState.NEW


# -- cancel and amend --------------------------------------------------------------------------------


def test_a_cancel_that_never_arrived_is_sent_again(desk: Desk) -> None:
    order = desk.submit("a-1")
    lose(desk, Cancel, arrives=False)
    desk.request(Cancel(client_id="a-1"))
    desk.run(3)
    assert order.state is OrderState.CANCELLED
    assert desk.agrees()


def test_a_cancel_whose_answer_is_lost_is_found_done(desk: Desk) -> None:
    order = desk.submit("a-1")
    lose(desk, Cancel, arrives=True)
    desk.hears = False
    desk.request(Cancel(client_id="a-1"))
    desk.run(2.2)
    assert order.state is OrderState.CANCELLED
    assert len(desk.bodies(Cancel)) == 1


def test_an_acknowledged_cancel_whose_report_is_lost_is_asked_for(desk: Desk) -> None:
    """The answer to a cancel says nothing but that it was taken."""
    order = desk.submit("a-1")
    desk.hears = False
    desk.request(Cancel(client_id="a-1"))
    assert order.state is OrderState.PENDING_CANCEL
    desk.run(4)
    assert order.state is OrderState.CANCELLED


def test_a_cancel_that_lost_the_race_to_a_fill_leaves_the_fill(desk: Desk) -> None:
    order = desk.submit("a-1")
    desk.hears = False
    desk.venue.fill("a-1", 10)
    desk.request(Cancel(client_id="a-1"))  # refused: gone
    desk.run(1)
    assert order.state is OrderState.FILLED
    assert desk.lots == 10


def test_a_partial_fill_then_a_cancel_keeps_what_filled(desk: Desk) -> None:
    order = desk.submit("a-1")
    desk.hears = False
    desk.venue.fill("a-1", 3)
    desk.request(Cancel(client_id="a-1"))
    desk.run(4)
    assert order.state is OrderState.CANCELLED
    assert desk.lots == 3
    assert order.open_lots == 0


def test_a_fill_after_the_cancel_was_reported_still_counts(desk: Desk) -> None:
    order = desk.submit("a-1")
    desk.venue.fill("a-1", 3)
    fill, *rest = desk.venue.outbox
    desk.venue.outbox = rest  # the execution is late, the reports are not
    desk.request(Cancel(client_id="a-1"))
    assert order.state is OrderState.CANCELLED
    assert order.missing_lots == 3
    assert not desk.fate.may_open(S), "the position is not known yet"
    desk.run(3)
    assert desk.lots == 3
    assert order.missing_lots == 0
    assert desk.fate.may_open(S)
    desk.tell(fill)
    assert desk.lots == 3, "and counts once"


@pytest.mark.parametrize("arrives", [True, False])
def test_an_amend_without_an_answer_is_settled_by_what_the_venue_shows(
    desk: Desk, arrives: bool
) -> None:
    order = desk.submit("a-1")
    lose(desk, Amend, arrives=arrives)
    desk.hears = False
    desk.request(Amend(client_id="a-1", qty_lots=20))
    desk.run(2.5)
    assert order.exposed_lots == 20, "it may come true until the window has passed"
    desk.run(10)
    assert order.exposed_lots == order.qty_lots == (20 if arrives else 10)
    assert order.state is OrderState.NEW
    assert desk.fate.phase is Phase.TRADING


def test_an_amend_that_met_a_fill_counts_both(desk: Desk) -> None:
    order = desk.submit("a-1")
    lose(desk, Amend, arrives=True)
    desk.request(Amend(client_id="a-1", qty_lots=20))
    desk.venue.fill("a-1", 15)
    desk.run(3)
    assert desk.lots == 15
    assert order.state is OrderState.PARTIALLY_FILLED
    assert order.exposed_lots == 5


def test_a_replaced_entry_that_filled_meanwhile_is_no_second_position(desk: Desk) -> None:
    """While the first is not known nothing new may be opened; then its fill is the position."""
    lose(desk, Submit, arrives=True)
    desk.hears = False
    desk.submit("a-1")
    desk.venue.fill("a-1", 10)
    desk.reaches = lambda send: (False, False)
    desk.run(2.2)
    assert not desk.fate.may_open(S)
    desk.reaches = lambda send: (True, True)
    desk.run(3)
    assert desk.fate.may_open(S)
    assert desk.lots == 10


def test_an_immediate_order_whose_end_is_lost_is_asked_for(desk: Desk) -> None:
    desk.hears = False
    order = desk.submit("a-1", time_in_force=TimeInForce.IOC)
    assert order.state is OrderState.NEW
    desk.run(4)
    assert order.state is OrderState.FILLED
    assert desk.lots == 10
