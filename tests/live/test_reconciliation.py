"""Order fate: each row of docs/live.md, evidence by evidence; and that log and venue agree whatever is lost."""

from __future__ import annotations

import itertools
from pathlib import Path

import msgspec
import pytest

from execution.orders import (
    Accepted,
    Amend,
    Cancel,
    Cancelled,
    ExecutionType,
    Filled,
    OrderState,
    Rejected,
    Submit,
    TimeInForce,
)
from live.messages import Command, Query, QueryKind, QueryResult, Refused, Send, SetStop
from live.reconciliation import Phase, Reconciliation
from live.safety import Mode
from market.instruments import BUILT_IN
from market.settings import Market
from market.units import DAY_NS, SECOND_NS
from tests.live.fate import MID, Desk, S, Venue, settings


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
    desk.venue._query = lambda query: answer(query).__class__(
        query=query, complete=False, venue_ns=desk.now_ns, reason="page 2 failed"
    )
    desk.run(60)
    assert order.state is OrderState.UNKNOWN
    desk.venue._query = answer
    desk.run(31)
    assert order.state is OrderState.REJECTED


def test_a_venue_clock_that_lags_delays_the_proof(desk: Desk) -> None:
    """The proof is in the venue's time, in which it judges the receive window."""
    lose(desk, Submit, arrives=False)
    answer = desk.venue._query
    desk.venue._query = lambda query: msgspec.structs.replace(
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


def test_an_order_that_the_venue_had_and_lists_no_more_has_ended(desk: Desk) -> None:
    order = desk.submit("a-1")
    lose(desk, Cancel, arrives=True)
    desk.hears = False
    desk.request(Cancel(client_id="a-1"))
    del desk.venue.orders["a-1"]
    asked = len(desk.venue.asked)
    desk.run(20)
    assert order.state is OrderState.CANCELLED
    assert "it ended" in order.reason
    assert len(desk.venue.asked) - asked >= 3


def test_answers_that_say_nothing_count_for_no_absence(desk: Desk) -> None:
    """The venue's list is short by what stands there, once: that is no proof."""
    order, answer, answered = desk.submit("a-1"), desk.venue._query, list[bool]()

    def query(asked: Query) -> QueryResult:
        result = answer(asked)
        if len(answered) < 3 and asked.kind in (QueryKind.ORDER, QueryKind.OPEN_ORDERS):
            result = msgspec.structs.replace(result, orders=())
            if asked.kind is QueryKind.ORDER:
                answered.append(complete := len(answered) == 2)
                result = msgspec.structs.replace(result, complete=complete, reason="10016")
        return result

    desk.venue._query = query  # type: ignore[method-assign]
    desk.run(120, step_ms=200)
    assert answered == [False, False, True]
    assert order.state is OrderState.NEW
    assert desk.agrees()


def test_a_request_of_a_step_behind_the_clock_is_not_absent_before_its_deadline(desk: Desk) -> None:
    lose(desk, Submit, arrives=False)
    desk.requests.lag_ns = 3 * SECOND_NS
    order = desk.submit("a-1")
    desk.run(11.9)
    assert order.state in (OrderState.UNKNOWN, OrderState.PENDING_NEW)
    desk.run(0.2)
    assert order.state is OrderState.REJECTED


def test_an_order_too_old_to_be_listed_ends_once_it_is_not_open() -> None:
    """A worker that was away for two days: the history has only what filled."""
    desk = started("halt")
    order = desk.submit("a-1")
    desk.crash()
    del desk.venue.orders["a-1"]
    query = desk.venue._query
    desk.venue._query = lambda q: msgspec.structs.replace(
        query(q), complete=q.kind is not QueryKind.ORDER
    )
    desk.now_ns += 2 * DAY_NS
    desk.venue.now_ns = desk.now_ns
    desk.start()
    desk.run(3)
    assert order.state is OrderState.CANCELLED
    assert desk.fate.phase is Phase.TRADING


def test_a_refused_closing_order_asks_for_the_position() -> None:
    """The stop has fired and nothing told us: what reduces is refused, for there is nothing to reduce."""
    desk = started("halt")
    desk.submit("a-1", time_in_force=TimeInForce.IOC)
    desk.hears = False
    desk.venue.fill("", 10, side=-1, price=970_000)
    desk.run(0.1)
    order = desk.submit("a-2", side=-1, reduce_only=True, time_in_force=TimeInForce.IOC)
    desk.tell(Rejected(client_id="a-2", time_ns=desk.now_ns, venue_ns=desk.now_ns, reason="110017"))
    desk.run(1)
    assert order.state.is_final
    assert desk.lots == 0


def test_an_execution_that_lags_its_order_is_asked_for(desk: Desk) -> None:
    order = desk.submit("a-1")
    desk.venue.fill("a-1", 4)
    _, report, _ = desk.venue.outbox
    desk.venue.outbox = []
    desk.tell(report)
    assert order.missing_lots == 4
    desk.run(3.2)
    assert desk.lots == 4


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
    assert desk.fate.may_open(S), "evidence comes in any order"
    desk.reaches = lambda send: (False, False)
    desk.run(2.5)
    assert not desk.fate.may_open(S), "and now it is overdue"
    desk.reaches = lambda send: (True, True)
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


# -- what is not ours --------------------------------------------------------------------------------


def started(policy: str, **given: object) -> Desk:
    desk = Desk(Venue(), settings(differences=policy, **given))
    desk.start()
    return desk


@pytest.mark.parametrize(
    ("policy", "mode", "lots"),
    [("adopt", Mode.NORMAL, 7), ("halt", Mode.HALT, 7), ("cancel", 0, 0)],
)
def test_an_execution_without_our_id_is_booked_and_meets_the_policy(
    policy: str, mode: Mode, lots: int
) -> None:
    """A human's order: journal and guard held 0 and the account 7 before."""
    desk = started(policy)
    desk.venue.fill("", 7)
    desk.settle()
    assert desk.lots == 7
    desk.run(3)
    assert desk.lots == desk.venue.lots == lots
    assert desk.safety.mode(S) == mode
    assert len(desk.lines("unexplained")) == 1


@pytest.mark.parametrize("kind", [ExecutionType.LIQUIDATION, ExecutionType.UNKNOWN])
def test_a_liquidation_or_an_unknown_execution_halts_whatever_the_policy(
    kind: ExecutionType,
) -> None:
    desk = started("adopt")
    desk.submit("a-1", time_in_force=TimeInForce.IOC)
    desk.venue.fill("", 4, side=-1, kind=kind)
    desk.run(1)
    assert desk.lots == desk.venue.lots == 6
    assert desk.safety.mode(S) == Mode.HALT
    desk.safety.command(desk.now_ns, resume())
    desk.tell(desk.venue.fills[-1])
    assert desk.safety.mode(S) == Mode.NORMAL, "the same execution halts once"


def test_deleveraging_moves_the_position_and_halts_nothing() -> None:
    desk = started("halt")
    desk.submit("a-1", time_in_force=TimeInForce.IOC)
    desk.venue.fill("", 4, side=-1, kind=ExecutionType.DELEVERAGING)
    desk.run(1)
    assert desk.lots == 6
    assert desk.safety.mode(S) == Mode.NORMAL


def test_an_unknown_execution_of_our_own_order_halts() -> None:
    desk = started("adopt")
    desk.submit("a-1")
    desk.venue.fill("a-1", 4, kind=ExecutionType.UNKNOWN)
    desk.run(1)
    assert desk.safety.mode(S) == Mode.HALT


@pytest.mark.parametrize(("policy", "left"), [("adopt", 1), ("halt", 1), ("cancel", 0)])
def test_an_open_order_that_is_not_ours_meets_the_policy(policy: str, left: int) -> None:
    venue = Venue()
    venue.take(Send(number=0, deadline_ns=0, body=human_order()))
    desk = Desk(venue, settings(differences=policy))
    desk.start()
    desk.run(3)
    assert sum(not o.state.is_final for o in venue.orders.values()) == left
    assert desk.safety.mode(S) == (Mode.HALT if policy == "halt" else Mode.NORMAL)
    assert len(desk.lines("unexplained")) == 1


def human_order() -> Submit:
    return Submit(client_id="", symbol=S, side=1, qty_lots=3, price_ticks=MID - 1000)


def resume() -> Command:
    return Command(command="resume", who="ann", reason="looked at it")


def test_an_order_that_the_log_believes_ended_is_cancelled(desk: Desk) -> None:
    order = desk.submit("a-1")
    desk.tell(
        Cancelled(
            client_id="a-1", time_ns=desk.now_ns, venue_ns=desk.now_ns, reason="", leaves_lots=10
        )
    )
    assert order.state is OrderState.CANCELLED
    desk.run(61)
    assert desk.venue.orders["a-1"].state is OrderState.CANCELLED
    assert desk.lines("an ended order is open at the venue")


def test_a_list_of_open_orders_from_before_an_orders_end_says_nothing_of_it(desk: Desk) -> None:
    """The fill arrives before the answer to a question that was asked while the order was open."""
    held: list[tuple[Send, QueryResult]] = []

    def reaches(send: Send) -> tuple[bool, bool]:
        if isinstance(send.body, Query) and send.body.kind is QueryKind.OPEN_ORDERS and not held:
            held.append((send, desk.venue._query(send.body)))
            return False, False
        return True, True

    desk.submit("a-1")
    desk.reaches = reaches
    while not held:
        desk.run(1)
    desk.venue.fill("a-1", 10)
    desk.settle()
    assert desk.orders.by_id["a-1"].state is OrderState.FILLED
    send, result = held[0]
    desk.answer(send, [result])
    desk.settle()
    assert not desk.lines("an ended order is open at the venue")


# -- positions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.1, 0.4, 0.7])
def test_a_position_report_that_overtakes_its_fill_is_the_same_fact(
    desk: Desk, offset: float
) -> None:
    desk.submit("a-1")
    desk.venue.fill("a-1", 10)
    fill, report, position = desk.venue.outbox
    desk.venue.outbox = []
    before = len(desk.sent)
    desk.run(offset)
    desk.tell(position)
    desk.run(0.5)
    desk.tell(fill, report)
    desk.run(3)
    assert desk.fate.may_open(S)
    assert not [s for _, s in desk.sent[before:] if isinstance(s.body, Query)]


def test_a_position_report_from_before_the_fill_is_no_difference(desk: Desk) -> None:
    before = desk.venue.position()
    desk.run(1)
    desk.submit("a-1", time_in_force=TimeInForce.IOC)
    sent = len(desk.sent)
    desk.tell(before)
    desk.run(3)
    assert desk.lots == 10
    assert len(desk.sent) == sent
    assert desk.fate.phase is Phase.TRADING
    assert not desk.lines("unexplained")


def test_executions_that_the_venue_lists_late_are_waited_for(desk: Desk) -> None:
    """Order and position are ahead of the list of executions: nothing is adopted, and nothing lost."""
    desk.submit("a-1")
    query, fills = desk.venue._query, desk.venue.fills
    desk.venue._query = lambda q: msgspec.structs.replace(
        query(q), orders=tuple(e for e in query(q).orders if e not in told(desk, fills))
    )
    desk.venue.fill("a-1", 10)
    desk.venue.outbox = desk.venue.outbox[1:]
    desk.run(10)
    assert desk.lots == 0
    assert not desk.fate.may_open(S)
    desk.venue._query = query
    desk.run(31)
    assert desk.lots == 10
    assert desk.fate.may_open(S)
    assert not desk.lines("unexplained")


def told(desk: Desk, fills: list[Filled]) -> list[Filled]:
    return [msgspec.structs.replace(fill, time_ns=desk.now_ns) for fill in fills]


def test_an_answer_from_before_a_gap_proves_nothing() -> None:
    """Somebody bought and sold meanwhile: the position tells nothing."""
    desk = started("adopt")
    held: list[tuple[Send, QueryResult]] = []

    def reaches(send: Send) -> tuple[bool, bool]:
        if isinstance(send.body, Query) and send.body.kind is QueryKind.EXECUTIONS:
            held.append((send, desk.venue._query(send.body)))
            return False, False
        return True, True

    desk.reaches = reaches
    desk.link(up=True)
    desk.link(up=False)
    desk.venue.fill("", 10, side=1)
    desk.venue.fill("", 10, side=-1, price=MID - 100)
    desk.venue.outbox.clear()
    desk.link(up=True)
    send, result = held[0]
    desk.answer(send, [result])
    desk.settle()
    assert not desk.fate.may_open(S)
    desk.reaches = lambda send: (True, True)
    desk.run(3)
    assert desk.account.holdings[S].sold_lots == 10
    assert desk.fate.may_open(S)


def test_a_fill_that_the_private_stream_lost_is_found_by_the_position(desk: Desk) -> None:
    desk.submit("a-1")
    desk.venue.fill("a-1", 10)
    *_, position = desk.venue.outbox
    desk.venue.outbox = []
    desk.tell(position)
    desk.run(3)
    assert desk.lots == 10
    assert desk.orders.by_id["a-1"].state is OrderState.FILLED
    assert not desk.lines("unexplained")


@pytest.mark.parametrize(
    ("policy", "mode", "lots"),
    [("adopt", Mode.NORMAL, 7), ("halt", Mode.HALT, 7), ("cancel", 0, 0)],
)
def test_a_position_that_no_execution_explains_is_taken_and_meets_the_policy(
    policy: str, mode: Mode, lots: int
) -> None:
    venue = Venue()
    venue.fill("", 7)
    venue.fills.clear()
    venue.outbox.clear()
    desk = Desk(venue, settings(differences=policy))
    desk.start()
    assert desk.fate.phase is Phase.STARTING
    desk.run(6)
    assert desk.fate.phase is Phase.TRADING
    assert desk.lots == venue.lots == lots
    assert desk.safety.mode(S) == mode
    if lots:
        assert desk.account.holdings[S].entry_ticks == MID
        assert venue.stop == 970_000, "and has its stop"


def test_a_gap_in_the_private_stream_is_asked_for_when_it_is_back(desk: Desk) -> None:
    desk.submit("a-1")
    desk.submit("a-2")
    desk.link(up=False)
    assert not desk.fate.may_open(S)
    desk.venue.fill("a-1", 10)
    desk.venue.take(Send(number=0, deadline_ns=0, body=Cancel(client_id="a-2")))
    desk.run(5)
    assert desk.lots == 0
    desk.link(up=True)
    desk.run(0.2)
    assert desk.lots == 10
    assert desk.agrees()
    assert desk.fate.may_open(S)


def test_an_unreadable_frame_is_a_gap_in_the_evidence(desk: Desk) -> None:
    desk.submit("a-1")
    desk.hears = False
    desk.venue.fill("a-1", 10)
    desk.run(0.2)
    desk.tell(Refused(reason="private stream: not JSON"))
    desk.run(2)
    assert desk.lots == 10


def test_a_flood_of_unreadable_frames_is_no_flood_of_questions(desk: Desk) -> None:
    before = len(desk.sent)
    for _ in range(50):
        desk.tell(Refused(reason="private stream: a symbol without an instrument"))
        desk.run(0.2)
    assert len(desk.sent) - before <= 4 * 6
    assert desk.fate.may_open(S)


def test_what_nobody_noticed_is_found_within_a_minute(desk: Desk) -> None:
    desk.submit("a-1")
    desk.hears = False
    desk.venue.fill("a-1", 10)
    desk.run(61)
    assert desk.lots == 10
    assert desk.agrees()


# -- stops -------------------------------------------------------------------------------------------


def test_an_entry_carries_its_stop(desk: Desk) -> None:
    desk.submit("a-1", time_in_force=TimeInForce.IOC)
    assert desk.venue.stop == 970_000  # 300 bps below
    desk.run(3)
    assert not desk.bodies(SetStop)


def test_an_entry_at_a_bound_has_its_stop_from_the_mid(desk: Desk) -> None:
    assert desk.fate.protection.entry_stop(S, 1, 1.01 * MID) == 970_000


def test_a_short_has_its_stop_above(desk: Desk) -> None:
    desk.submit("a-1", side=-1, time_in_force=TimeInForce.IOC)
    assert desk.venue.stop == 1_030_000


def test_an_attached_stop_is_believed_before_the_position_is_reported(desk: Desk) -> None:
    desk.submit("a-1")
    desk.venue.fill("a-1", 10)
    fill, *_ = desk.venue.outbox
    desk.venue.outbox = []
    desk.tell(fill)
    desk.run(3)
    assert not desk.bodies(SetStop)


def test_a_stop_is_not_moved_while_executions_may_be_missing(desk: Desk) -> None:
    desk.submit("a-1", 20)
    desk.venue.fill("a-1", 10)
    desk.venue.fill("a-1", 1)
    first, _, _, second, *_ = desk.venue.outbox
    desk.venue.outbox = []
    desk.tell(first)
    desk.fate.protection.mark(S, 1.01 * MID)
    desk.reaches = lambda send: (False, False)
    desk.link(up=True)
    desk.tell(second)
    assert desk.lots == 11
    assert not desk.bodies(SetStop)


def test_a_stop_is_not_moved_by_an_entry_price_in_question(desk: Desk) -> None:
    """A short's end arrives before its beginning: for a moment the log holds a long from too high."""
    desk.link(up=False)
    desk.venue.fill("", 10, side=-1, price=MID)
    desk.venue.fill("", 10, side=1, price=1_030_000)
    end = desk.venue.fills[-1]
    desk.venue.outbox.clear()
    desk.reaches = lambda send: (False, False)
    desk.tell(end)
    assert desk.lots == 10
    assert {body.stop_ticks for body in desk.bodies(SetStop)} <= {970_000}


def test_a_position_found_without_its_stop_gets_one_at_once(desk: Desk) -> None:
    desk.submit("a-1", time_in_force=TimeInForce.IOC)
    desk.venue.stop = 0
    desk.tell(desk.venue.position())
    assert desk.venue.stop == 970_000


def test_a_stop_follows_the_entry_price_when_it_moved_materially(desk: Desk) -> None:
    desk.submit("a-1", time_in_force=TimeInForce.IOC)
    for price, stop in ((1_001_000, 970_000), (900_000, 937_990)):
        desk.submit(f"b-{price}", stop_ticks=0)
        desk.venue.fill(f"b-{price}", 10, price=price)
        desk.run(0.1)
        assert desk.venue.stop == stop


def test_a_stop_that_is_refused_closes_the_position_in_time(desk: Desk) -> None:
    desk.venue.takes_stops = False
    desk.submit("a-1", time_in_force=TimeInForce.IOC, stop_ticks=0)
    desk.run(9)
    assert desk.venue.lots == 10
    desk.run(3)
    assert desk.venue.lots == desk.lots == 0
    assert len(desk.bodies(SetStop)) > 2


def test_a_stop_that_fired_while_away_belongs_to_the_position_it_closed() -> None:
    desk = started("halt")
    desk.submit("a-1", time_in_force=TimeInForce.IOC)
    desk.crash()
    desk.venue.fill("", 10, side=-1, price=969_000)
    desk.venue.outbox.clear()
    desk.start()
    desk.run(1)
    assert desk.lots == 0
    assert desk.fate.phase is Phase.TRADING
    assert desk.safety.mode(S) == Mode.NORMAL
    assert desk.lines("stop filled")
    assert desk.account.holdings[S].realised_e8 == -10 * 31_000 * 10_000


def test_a_human_who_closes_elsewhere_is_no_stop() -> None:
    desk = started("halt")
    desk.submit("a-1", time_in_force=TimeInForce.IOC)
    desk.venue.fill("", 10, side=-1, price=MID)
    desk.run(1)
    assert desk.safety.mode(S) == Mode.HALT


# -- phases ------------------------------------------------------------------------------------------


def test_nothing_trades_before_log_and_venue_agree() -> None:
    desk = Desk(Venue())
    desk.reaches = lambda send: (False, False)
    desk.start()
    desk.run(30)
    assert desk.fate.phase is Phase.STARTING
    assert not desk.fate.may_open(S)
    desk.reaches = lambda send: (True, True)
    desk.run(31)
    assert desk.fate.phase is Phase.TRADING
    asked = {query.kind for _, query in desk.venue.asked}
    known = {QueryKind.ORDER, QueryKind.RISK_LIMITS, QueryKind.TRANSACTIONS}
    assert asked >= set(QueryKind) - known


def test_what_contradicts_the_settings_is_a_line_each_and_nothing_is_sent() -> None:
    """Not even what would protect: the account may be somebody else's."""
    venue = Venue()
    venue.fill("", 7)
    venue.take(Send(number=0, deadline_ns=0, body=human_order()))
    venue.outbox.clear()
    desk = Desk(venue, settings(differences="cancel"))
    lines = ["leverage 5, 10 is set", "the key may withdraw"]
    desk.fate = Reconciliation(
        desk.orders,
        desk.account,
        desk.requests,
        desk.safety,
        {S: BUILT_IN[S]},
        desk.settings,
        desk._emit,
        check=lambda reports: lines,
    )
    desk.start()
    desk.run(20)
    assert desk.fate.problems == lines
    assert [line.fields["why"] for line in desk.lines("not started")] == lines
    assert desk.fate.phase is Phase.STARTING
    assert all(isinstance(send.body, Query) for _, send in desk.sent)


def test_orders_of_an_earlier_process_are_ours_still_or_gone() -> None:
    desk = started("halt")
    for name in ("stays", "fills", "cancelled", "lost"):
        desk.reaches = (lambda send: (False, False)) if name == "lost" else desk.reaches
        desk.submit(name)
    desk.crash()
    desk.reaches = lambda send: (True, True)
    desk.venue.fill("fills", 10)
    desk.venue.take(Send(number=0, deadline_ns=0, body=Cancel(client_id="cancelled")))
    desk.venue.outbox.clear()
    desk.start()
    assert desk.fate.phase is Phase.STARTING
    desk.run(10)
    assert desk.fate.phase is Phase.TRADING
    states = {name: order.state.value for name, order in desk.orders.by_id.items()}
    assert states == {
        "stays": "NEW",
        "fills": "FILLED",
        "cancelled": "CANCELLED",
        "lost": "REJECTED",
    }
    assert desk.lots == 10
    assert not desk.lines("unexplained")


def test_a_position_that_was_being_closed_is_closed_by_the_next_process() -> None:
    desk = started("cancel")
    desk.venue.fill("", 7)
    desk.reaches = lambda send: (not isinstance(send.body, Submit), True)
    desk.run(2)
    assert desk.venue.lots == 7
    desk.crash()
    desk.reaches = lambda send: (True, True)
    desk.start()
    desk.run(12)
    assert desk.venue.lots == 0
    assert desk.fate.may_open(S)


def test_positions_of_symbols_no_longer_traded_are_closed() -> None:
    desk = started("adopt")
    desk.submit("a-1", time_in_force=TimeInForce.IOC)
    desk.submit("a-2")
    desk.settings = msgspec.structs.replace(desk.settings, market=Market(symbols=("ETHUSDT",)))
    desk.crash()
    desk.start()
    desk.run(5)
    assert desk.venue.lots == desk.lots == 0
    assert desk.agrees()


def test_a_transfer_while_away_is_said_and_no_loss() -> None:
    desk = started("adopt")
    desk.crash()
    desk.start()
    assert not desk.lines("the balance moved by what the log lacks")
    desk.crash()
    desk.venue.balance_e8 = -5 * 10**8
    desk.start()
    (line,) = desk.lines("the balance moved by what the log lacks")
    assert line.fields == {"usdt": -5.0}
    assert desk.fate.phase is Phase.TRADING


def test_on_paper_all_of_it_costs_nothing() -> None:
    desk = Desk(Venue(), settings("paper"))
    desk.start()
    assert desk.fate.phase is Phase.TRADING
    assert not desk.sent
    assert desk.fate.next_ns == 0, "no timer while nothing is open"
    desk.submit("a-1", time_in_force=TimeInForce.IOC)
    assert desk.bodies(Submit)[0].stop_ticks == 0
    desk.run(1)
    assert len(desk.sent) == 1
    assert desk.fate.next_ns == 0


def test_a_paper_order_ends_with_its_process() -> None:
    desk = Desk(Venue(), settings("paper"))
    desk.start()
    order = desk.submit("a-1")
    desk.crash()
    desk.venue.orders["a-1"].state = OrderState.CANCELLED
    desk.start()
    desk.run(0.1)
    assert order.state is OrderState.CANCELLED
    assert desk.fate.phase is Phase.TRADING


def test_shut_down_cancels_closes_and_proves_it(desk: Desk) -> None:
    desk.submit("a-1", time_in_force=TimeInForce.IOC)
    desk.submit("a-2")
    desk.fate.stop(desk.now_ns, desk.now_ns + 15 * SECOND_NS, flatten=True)
    assert desk.fate.phase is Phase.STOPPING
    assert not desk.fate.may_open(S)
    desk.run(5)
    assert desk.fate.phase is Phase.ENDED
    assert desk.venue.lots == 0
    assert desk.agrees()
    assert desk.lines("shut down")[0].fields == {"proven": True, "left": 0}


def test_a_closing_order_is_not_repeated_while_the_first_is_unknown(desk: Desk) -> None:
    desk.submit("a-1", time_in_force=TimeInForce.IOC)
    sent = len(desk.bodies(Submit))
    desk.reaches = lambda send: (False, False)
    desk.fate.stop(desk.now_ns, desk.now_ns + 15 * SECOND_NS, flatten=True)
    desk.run(6)
    assert len(desk.bodies(Submit)) == sent + 1
    desk.reaches = lambda send: (True, True)
    desk.run(8.5)
    assert desk.fate.phase is Phase.ENDED
    assert desk.venue.lots == 0


def test_a_kept_position_keeps_its_stop(desk: Desk) -> None:
    desk.submit("a-1", time_in_force=TimeInForce.IOC)
    desk.submit("a-2")
    desk.fate.stop(desk.now_ns, desk.now_ns + 15 * SECOND_NS, flatten=False)
    desk.run(5)
    assert desk.fate.phase is Phase.ENDED
    assert desk.venue.lots == 10
    assert desk.venue.stop
    assert desk.agrees()


def test_shut_down_says_what_is_left_when_the_venue_does_not_answer(desk: Desk) -> None:
    desk.submit("a-1", time_in_force=TimeInForce.IOC)
    desk.submit("a-2")
    desk.reaches = lambda send: (False, False)
    desk.hears = False
    desk.fate.stop(desk.now_ns, desk.now_ns + 15 * SECOND_NS, flatten=True)
    desk.run(14.9)
    assert desk.fate.phase is Phase.STOPPING
    desk.run(0.2)
    assert desk.fate.phase is Phase.ENDED
    left = [line.fields["what"] for line in desk.lines("left behind")]
    assert any("a-2" in str(line) for line in left)
    assert any("position of 10 lots" in str(line) for line in left)


def test_a_long_gap_closes_by_a_bounded_order_without_a_book(desk: Desk) -> None:
    desk.submit("a-1", time_in_force=TimeInForce.IOC)
    for second in range(1, 70):
        desk.safety.see(desk.now_ns, "gap_s", float(second), S)
        desk.run(1, step_ms=500)
        if second in (59, 63):
            assert desk.venue.lots == 10, "its stop protects it, and the desk goes first"
    assert desk.venue.lots == 0
    closing = desk.bodies(Submit)[-1]
    assert isinstance(closing, Submit)
    assert closing.reduce_only
    assert closing.price_ticks == 990_000  # 100 bps below the last known mid


def test_a_margin_rate_that_the_stream_is_silent_about_is_asked_for(desk: Desk) -> None:
    desk.venue.margin_rate = 0.6
    desk.run(61)
    assert desk.safety.mode(S) == Mode.REDUCE


def test_a_halt_cancels_what_rests_and_keeps_the_stop(desk: Desk) -> None:
    desk.submit("a-1", time_in_force=TimeInForce.IOC)
    desk.submit("a-2")
    desk.safety.command(desk.now_ns, Command(command="halt", who="ann", reason="no"))
    desk.run(1.2)
    assert desk.orders.by_id["a-2"].state is OrderState.CANCELLED
    assert desk.venue.lots == 10
    assert desk.venue.stop


def test_the_documented_fates_name_their_tests() -> None:
    table = (
        Path("docs/live.md").read_text().partition("## Order fate")[2].partition("Start-up asks")[0]
    )
    rows = [
        line.split(" | ")[-1].strip(" |") for line in table.splitlines() if line.startswith("| ")
    ]
    named = [row for row in rows[2:] if row != "the same" and not row.startswith("(")]
    assert len(named) > 25
    missing = [row for row in named if "test_" + row.replace(" ", "_") not in globals()]
    assert missing == []
