"""The order machine: every transition, and what holds whatever the venue says, in whatever order.

Properties, in words:

- *final states absorb*: no evidence leads out of FILLED, CANCELLED or REJECTED;
- *executions count once, however late*: the filled quantity is the sum over distinct execution ids of all
  that were received, in every state;
- *order, repetition and loss*: the same set of evidence of one history of the venue gives the same order,
  in whatever order it comes and however often, and losing what is said twice changes nothing;
- *never backwards*: filled and reported quantity only grow;
- *bounds*: 0 ≤ open ≤ exposed, and exposed covers what may still fill and what filled unreceived;
- *a refusal of what is there is a duplicate's*: it never ends an acknowledged order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execution.account import Account
from execution.algorithms.placement import PassivePeg
from execution.order_machine import Order, Orders
from execution.orders import (
    Accepted,
    Amend,
    Amended,
    Cancel,
    Cancelled,
    CancelRejected,
    Event,
    Filled,
    Liquidity,
    Lost,
    OrderReport,
    OrderState,
    OrderType,
    Rejected,
    Submit,
    TimeInForce,
)
from execution.risk import Denial, Guard
from market.settings import Risk
from tests.execution.tape import INSTRUMENT, SYMBOL, play
from tests.execution.test_algorithms import parent, view

LOTS, PRICE = 10, 100


def said(kind: type[Event], venue_ns: int = 0, **more: Any) -> Any:
    return kind(**({"client_id": "a", "time_ns": venue_ns + 5, "venue_ns": venue_ns} | more))


def fill(name: str, lots: int, venue_ns: int = 0, **more: Any) -> Filled:
    given: dict[str, Any] = {
        "exec_id": name,
        "symbol": SYMBOL,
        "side": 1,
        "qty_lots": lots,
        "price_ticks": PRICE,
        "liquidity": Liquidity.MAKER,
        "fee_e8": 0,
        "leaves_lots": 0,
    }
    found: Filled = said(Filled, venue_ns, **(given | more))
    return found


def report(
    state: OrderState, filled: int = 0, venue_ns: int = 0, lots: int = LOTS, price: int = PRICE
) -> OrderReport:
    found: OrderReport = said(
        OrderReport,
        venue_ns,
        venue_order_id="v1",
        symbol=SYMBOL,
        side=1,
        state=state,
        price_ticks=price,
        qty_lots=lots,
        filled_lots=filled,
    )
    return found


def submit(**more: Any) -> Submit:
    given = {"client_id": "a", "symbol": SYMBOL, "side": 1, "qty_lots": LOTS, "price_ticks": PRICE}
    return Submit(**(given | more))


def machine(*steps: Event | Cancel | Amend, **more: Any) -> tuple[Orders, Order]:
    """A machine with one order, after these requests and evidence."""
    orders = Orders()
    order = orders.sent(submit(**more), "p", 0)
    for step in steps:
        if isinstance(step, Cancel | Amend):
            orders.requested(step, 0)
        else:
            orders.apply(step)
    return orders, order


# -- every transition ------------------------------------------------------------------------------

S = OrderState
REACHED: dict[OrderState, tuple[Event | Cancel | Amend, ...]] = {
    S.PENDING_NEW: (),
    S.NEW: (said(Accepted),),
    S.PARTIALLY_FILLED: (said(Accepted), fill("x0", 2)),
    S.PENDING_CANCEL: (said(Accepted), Cancel(client_id="a")),
    S.UNKNOWN: (said(Lost, reason="no answer"),),
    S.FILLED: (fill("x0", LOTS),),
    S.CANCELLED: (said(Cancelled, reason="asked", leaves_lots=LOTS),),
    S.REJECTED: (said(Rejected, reason="no margin"),),
}
EVIDENCE: dict[str, Event | Cancel | Amend] = {
    "cancel": Cancel(client_id="a"),
    "amend": Amend(client_id="a", qty_lots=12),
    "accepted": said(Accepted),
    "rejected": said(Rejected, reason="no"),
    "duplicate": said(Rejected, reason="id was used", duplicate=True),
    "amended": said(Amended, price_ticks=99, qty_lots=LOTS),
    "part": fill("x1", 3),
    "rest": fill("x1", LOTS),
    "cancelled": said(Cancelled, reason="asked"),
    "refused": said(CancelRejected, reason="no"),
    "gone": said(CancelRejected, reason="no such order", gone=True),
    "lost": said(Lost, reason="no answer"),
    "says new": report(S.NEW, 2),
    "says filled": report(S.FILLED, LOTS),
    "says cancelled": report(S.CANCELLED, 2),
    "says rejected": report(S.REJECTED),
}
#: What each evidence makes of each state that is not final; "." leaves it as it is.
MATRIX = """
                PENDING_NEW       NEW               PARTIALLY_FILLED  PENDING_CANCEL    UNKNOWN
cancel          .                 PENDING_CANCEL    PENDING_CANCEL    .                 .
amend           .                 .                 .                 .                 .
accepted        NEW               .                 .                 .                 NEW
rejected        REJECTED          .                 .                 .                 REJECTED
duplicate       UNKNOWN           .                 .                 .                 .
amended         NEW               .                 .                 .                 NEW
part            PARTIALLY_FILLED  PARTIALLY_FILLED  .                 .                 PARTIALLY_FILLED
rest            FILLED            FILLED            FILLED            FILLED            FILLED
cancelled       CANCELLED         CANCELLED         CANCELLED         CANCELLED         CANCELLED
refused         .                 .                 .                 NEW               .
gone            UNKNOWN           UNKNOWN           UNKNOWN           UNKNOWN           .
lost            UNKNOWN           UNKNOWN           UNKNOWN           UNKNOWN           .
says new        NEW               .                 .                 .                 NEW
says filled     FILLED            FILLED            FILLED            FILLED            FILLED
says cancelled  CANCELLED         CANCELLED         CANCELLED         CANCELLED         CANCELLED
says rejected   REJECTED          REJECTED          CANCELLED         REJECTED          REJECTED
"""
HEADER, *ROWS = [line for line in MATRIX.splitlines() if line]
CELLS = [
    (state, row[:16].strip(), new)
    for row in ROWS
    for state, new in zip(HEADER.split(), row[16:].split(), strict=True)
]


@pytest.mark.parametrize(("state", "evidence", "new"), CELLS)
def test_transition(state: str, evidence: str, new: str) -> None:
    orders, order = machine(*REACHED[S(state)])
    assert order.state == state
    step = EVIDENCE[evidence]
    if isinstance(step, Cancel | Amend):
        orders.requested(step, 1)
    else:
        orders.apply(step)
    assert order.state == (state if new == "." else new)


def test_the_matrix_names_every_state_and_evidence() -> None:
    assert {name for _, name, _ in CELLS} == set(EVIDENCE)
    assert {S(state) for state, _, _ in CELLS} == {state for state in S if not state.is_final}


@pytest.mark.parametrize("evidence", EVIDENCE)
@pytest.mark.parametrize("state", [state for state in S if state.is_final])
def test_final_states_absorb(state: OrderState, evidence: str) -> None:
    orders, order = machine(*REACHED[state])
    step = EVIDENCE[evidence]
    before, reason, open_lots = order.filled_lots, order.reason, order.open_lots
    if isinstance(step, Cancel | Amend):
        orders.requested(step, 1)
    else:
        orders.apply(step)
    assert (order.state, order.reason) == (state, reason)
    if not isinstance(step, OrderReport):
        assert order.open_lots == open_lots
    assert order.filled_lots == before + (step.qty_lots if isinstance(step, Filled) else 0)


# -- whatever comes --------------------------------------------------------------------------------

STEPS = st.lists(st.sampled_from(list(EVIDENCE.values())), max_size=25)
FILLS = st.lists(
    st.tuples(st.sampled_from(["x1", "x2", "x3", "x4"]), st.integers(0, 25)), max_size=8
)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(steps=STEPS, fills=FILLS)
def test_bounds_and_monotony_under_any_evidence(
    steps: list[Event | Cancel | Amend], fills: list[tuple[str, int]]
) -> None:
    """Even of evidence that no venue would give together."""
    for name, place in fills:
        steps.insert(place, fill(name, int(name[1:])))
    orders, order = machine()
    seen: dict[str, int] = {}
    for step in steps:
        before = msgspec.structs.replace(order)
        if isinstance(step, Cancel | Amend):
            orders.requested(step, 1)
        else:
            changed = orders.apply(step)
            if isinstance(step, Filled):
                assert (changed is None) == (step.exec_id in seen)
                seen.setdefault(step.exec_id, step.qty_lots)
        assert not before.state.is_final or order.state is before.state
        if isinstance(step, Rejected) and before.acknowledged and not before.state.is_final:
            assert order.state is not S.REJECTED
        assert order.filled_lots == sum(seen.values())
        assert order.reported_lots >= before.reported_lots
        assert order.amends >= before.amends
        assert 0 <= order.open_lots <= order.exposed_lots
        assert (order in orders.open()) == (not order.state.is_final or order.open_lots > 0)


class History(NamedTuple):
    """What happened to an order at the venue: the requests, all the evidence of it, and how it stands."""

    requests: list[Cancel | Amend]
    evidence: list[Event]
    open_lots: int
    filled_lots: int
    essential: int  #: so many of the last pieces of evidence say the end


@st.composite
def histories(draw: st.DrawFn) -> History:
    """One order at a venue that says only what is so: accepted, amended, filled in parts, ended or not."""
    now, lots, price, filled = 100, LOTS, PRICE, 0
    requests: list[Cancel | Amend] = []
    evidence: list[Event] = [said(Accepted, now)]
    if draw(st.booleans()):
        evidence.append(said(Rejected, now, reason="id was used", duplicate=True))
    amends = draw(st.sampled_from([None, 6, 10, 15]))
    end = draw(st.sampled_from(["rests", "fills", "cancelled", "rejected"]))
    if end == "rejected":
        return History([], [*evidence, report(S.REJECTED, 0, now + 1)], 0, 0, 1)
    for number in range(draw(st.integers(0, 4))):
        now += 10
        if number == 1 and amends is not None and amends > filled and end != "cancelled":
            lots, price = amends, 99
            requests.append(Amend(client_id="a", price_ticks=99, qty_lots=amends))
            evidence.append(said(Amended, now, price_ticks=99, qty_lots=amends))
        elif filled + 2 < lots:
            filled += 2
            evidence.append(fill(f"x{number}", 2, now))
        state = S.PARTIALLY_FILLED if filled else S.NEW
        evidence.append(report(state, filled, now, lots, price))
    now += 10
    if end == "fills":
        evidence.append(fill("last", lots - filled, now))
        evidence.append(report(S.FILLED, lots, now, lots, price))
        return History(requests, evidence, 0, lots, 1)
    if end == "cancelled":
        requests.append(Cancel(client_id="a"))
        evidence += [
            said(Lost, now, reason="no answer"),
            said(CancelRejected, now, reason="no such order", gone=True),
            said(Cancelled, now, reason="asked", leaves_lots=lots - filled),
            report(S.CANCELLED, filled, now, lots, price),
        ]
        return History(requests, evidence, 0, filled, 2)
    return History(requests, evidence, lots - filled, filled, 1)


def told(requests: Sequence[Cancel | Amend], evidence: Sequence[Event]) -> tuple[Orders, Order]:
    return machine(*requests, *evidence)


def outcome(order: Order) -> tuple[object, ...]:
    return (
        *(order.state, order.filled_lots, order.open_lots, order.exposed_lots),
        *(order.price_ticks, order.qty_lots, order.amending),
    )


@settings(derandomize=True, max_examples=300, deadline=None)
@given(history=histories(), data=st.data())
def test_order_and_repetition_of_evidence_change_nothing(history: History, data: Any) -> None:
    _, order = told(history.requests, history.evidence)
    assert (order.open_lots, order.filled_lots) == (history.open_lots, history.filled_lots)
    again = data.draw(st.lists(st.sampled_from(history.evidence), max_size=6))
    shuffled = data.draw(st.permutations([*history.evidence, *again]))
    _, other = told(history.requests, shuffled)
    assert outcome(other) == outcome(order)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(history=histories(), data=st.data())
def test_loss_of_what_is_said_twice_changes_nothing(history: History, data: Any) -> None:
    """Of the evidence only the executions and one word of the end have to arrive."""
    _, order = told(history.requests, history.evidence)
    spoken = history.evidence[-history.essential :]
    word = data.draw(st.sampled_from(spoken))
    kept = [
        event
        for event in history.evidence
        if isinstance(event, Filled) or event is word or data.draw(st.booleans())
    ]
    _, other = told(history.requests, data.draw(st.permutations(kept)))
    if order.state.is_final:
        assert (other.state, other.filled_lots) == (order.state, order.filled_lots)
        assert other.open_lots == 0
    else:
        assert other.filled_lots == order.filled_lots


@settings(derandomize=True, max_examples=300, deadline=None)
@given(history=histories(), data=st.data())
def test_exposure_covers_what_may_still_come(history: History, data: Any) -> None:
    """At every moment, whatever has been heard so far: lots that may still fill at the venue, and lots
    that filled there without our knowing."""
    orders, order = machine(*history.requests)
    for event in data.draw(st.permutations(history.evidence)):
        orders.apply(event)
        assert order.exposed_lots >= history.open_lots + history.filled_lots - order.filled_lots


# -- executions and reports ------------------------------------------------------------------------


def test_executions_after_the_report_of_a_partial_cancel_are_waited_for() -> None:
    orders, order = machine(said(Accepted), report(S.CANCELLED, 6))
    assert (order.state, order.missing_lots, order.open_lots) == (S.CANCELLED, 6, 6)
    orders.apply(fill("x1", 4))
    assert list(orders.open()) == [order]
    orders.apply(fill("x2", 2))
    assert (order.state, order.filled_lots, order.open_lots) == (S.CANCELLED, 6, 0)
    assert list(orders.open()) == []


def test_a_report_after_the_end_brings_back_an_order_with_executions_missing() -> None:
    """The cancel did not say what was left: nothing seemed to be missing."""
    orders, order = machine(said(Cancelled, reason="asked"))
    assert (order.open_lots, list(orders.open())) == (0, [])
    orders.apply(report(S.CANCELLED, 3))
    assert (order.open_lots, list(orders.open())) == (3, [order])


def test_what_an_immediate_order_did_not_take_is_cancelled() -> None:
    immediate = {"time_in_force": TimeInForce.IOC, "price_ticks": 101}
    orders, order = machine(said(Accepted), fill("x1", 4), **immediate)
    orders.apply(said(Cancelled, reason="not filled at once", leaves_lots=6))
    assert (order.crosses, order.state, order.filled_lots) == (True, S.CANCELLED, 4)
    assert (order.open_lots, order.exposed_lots) == (0, 0)


@pytest.mark.parametrize(
    ("amended", "leaves", "missing"), [(None, 4, 6), (20, 14, 6), (20, 4, 6), (5, 1, 4)]
)
def test_what_a_cancel_leaves_tells_what_filled(
    amended: int | None, leaves: int, missing: int
) -> None:
    """With an amend under way the quantity is not known: the least that fits what has filled."""
    requests = [] if amended is None else [Amend(client_id="a", qty_lots=amended)]
    gone = said(Cancelled, reason="asked", leaves_lots=leaves)
    _, order = machine(said(Accepted), *requests, gone)
    assert order.missing_lots == missing


def test_an_older_report_does_not_take_terms_or_quantity_back() -> None:
    orders, order = machine(
        said(Accepted, 1), said(Amended, 5, price_ticks=97, qty_lots=12), fill("x1", 3, 7)
    )
    orders.apply(report(S.NEW, 0, venue_ns=2))
    assert (order.state, order.price_ticks, order.qty_lots) == (S.PARTIALLY_FILLED, 97, 12)
    orders.apply(report(S.PARTIALLY_FILLED, 3, venue_ns=6, price=96, lots=12))
    assert (order.price_ticks, order.filled_lots) == (96, 3)


def test_an_order_is_not_filled_while_an_amend_may_enlarge_it() -> None:
    orders, order = machine(said(Accepted), Amend(client_id="a", qty_lots=20), fill("x1", 10))
    assert (order.state, order.open_lots, order.exposed_lots) == (S.PARTIALLY_FILLED, 0, 10)
    orders.apply(said(Amended, price_ticks=PRICE, qty_lots=20))
    assert (order.state, order.open_lots) == (S.PARTIALLY_FILLED, 10)
    refused, other = machine(said(Accepted), Amend(client_id="a", qty_lots=20), fill("x1", 10))
    refused.apply(said(CancelRejected, reason="finished"))
    assert (other.state, other.exposed_lots) == (S.FILLED, 0)


def test_neither_a_late_fill_nor_an_older_report_reopens_an_order_that_is_gone() -> None:
    orders, order = machine(said(Accepted), said(CancelRejected, reason="no such order", gone=True))
    orders.apply(fill("x1", 4))
    assert (order.state, order.filled_lots) == (S.UNKNOWN, 4)
    orders.apply(report(S.PARTIALLY_FILLED, 2))  # of before the fill
    assert order.state is S.UNKNOWN
    orders.apply(report(S.PARTIALLY_FILLED, 4))
    assert order.state is S.PARTIALLY_FILLED


# -- identity and memory ---------------------------------------------------------------------------


def test_evidence_finds_an_order_by_the_venues_id() -> None:
    orders, order = machine(said(Accepted, venue_order_id="v7"))
    assert orders.apply(fill("x1", 2, client_id="", venue_order_id="v7")) is order
    assert orders.apply(fill("x2", 2, client_id="", venue_order_id="other")) is None
    assert orders.apply(fill("x3", 2, client_id="")) is None
    assert order.filled_lots == 2


def test_an_id_is_used_once_and_sent_again_only_while_nothing_is_known_of_it() -> None:
    orders, order = machine()
    with pytest.raises(ValueError, match="client order id a was used before"):
        orders.sent(submit(), "p", 1)
    orders.apply(said(Lost, reason="no answer"))
    with pytest.raises(ValueError, match="used before"):
        orders.sent(submit(qty_lots=11), "p", 1)
    assert orders.sent(submit(), "p", 2) is order
    assert (order.state, order.sent_ns) == (S.PENDING_NEW, 2)
    orders.apply(said(Accepted))
    orders.apply(said(Lost, reason="no answer"))
    with pytest.raises(ValueError, match="used before"):
        orders.sent(submit(), "p", 3)


def test_late_fills_of_forgotten_orders_are_nobodys() -> None:
    orders, order = machine(said(Accepted, venue_order_id="v1"), fill("x1", LOTS, 10))
    orders.forget(order.changed_ns)
    assert orders.get("a") is order
    orders.forget(order.changed_ns + 1)
    assert orders.apply(fill("x2", 1, venue_order_id="v1")) is None
    assert list(orders.executions()) == []


def test_orders_with_executions_missing_are_not_forgotten() -> None:
    orders, order = machine(report(S.FILLED, LOTS))
    orders.forget(1 << 62)
    assert orders.apply(fill("x1", LOTS)) is order
    orders.forget(1 << 62)
    assert orders.by_id == {}


@settings(derandomize=True, max_examples=100, deadline=None)
@given(history=histories(), cut=st.integers(0, 12))
def test_a_restored_machine_goes_on_as_the_old_one(history: History, cut: int) -> None:
    old, order = told(history.requests, history.evidence[:cut])
    state = msgspec.json.encode((list(old.by_id.values()), list(old.executions())))
    orders, executions = msgspec.json.decode(state, type=tuple[list[Order], list[tuple[str, str]]])
    new = Orders()
    new.restore(orders, executions)
    assert [each.client_id for each in new.open()] == [each.client_id for each in old.open()]
    for event in history.evidence:  # what was counted before is counted once
        old.apply(event)
        new.apply(event)
    assert new.by_id["a"] == order


# -- guard and algorithm read the same order -------------------------------------------------------

LIMITS = Risk(position_usdt=2_100, order_usdt=1e9, gross_usdt=1e9, leverage=1e6)


def guarded(orders: Orders) -> tuple[Guard, Account]:
    account = Account({SYMBOL: INSTRUMENT}, 10**14)
    return Guard({SYMBOL: INSTRUMENT}, LIMITS, orders, account, [SYMBOL]), account


def test_a_refused_duplicate_of_a_resting_order_leaves_it_to_all_who_read_it() -> None:
    """Machine, algorithm and guard see ten lots open, and the fill that follows belongs to the order."""
    peg = PassivePeg(parent(lots=10))
    guard, account = guarded(peg.orders)
    play(peg, 0, view(), [])
    refusal = said(Rejected, client_id="p-1", reason="id was used", duplicate=True)
    play(peg, 1, view(1), [said(Accepted, client_id="p-1"), refusal])
    order = peg.orders.by_id["p-1"]
    assert (order.state, order.open_lots, peg.open_lots) == (S.NEW, 10, 10)
    more = submit(client_id="b", qty_lots=11)
    assert guard.allow(2, more, view(2)) is Denial.POSITION_LIMIT
    late = fill("x1", 10, client_id="p-1")
    assert account.apply(late)
    play(peg, 3, view(3), [late])
    assert (order.state, peg.filled_lots, peg.done) == (S.FILLED, 10, True)
    assert account.position_lots(SYMBOL) == 10
    assert guard.allow(4, more, view(4)) is Denial.POSITION_LIMIT
    assert guard.allow(4, submit(client_id="b", qty_lots=10), view(4)) is None


def test_an_amended_quantity_counts_after_a_restart() -> None:
    """Sent for ten, amended to twenty: twenty may still fill, and one more is over the limit."""
    old, _ = machine(
        said(Accepted),
        Amend(client_id="a", qty_lots=20),
        said(Amended, price_ticks=PRICE, qty_lots=20),
    )
    new = Orders()
    new.restore(old.by_id.values(), old.executions())
    guard, _ = guarded(new)
    assert guard.allow(0, submit(client_id="b", qty_lots=1), view()) is Denial.POSITION_LIMIT
    enlarged = Amend(client_id="a", qty_lots=21)
    assert guard.allow(0, enlarged, view()) is Denial.POSITION_LIMIT
    assert guard.allow(0, Amend(client_id="a", qty_lots=20), view()) is None


def test_a_market_order_crosses_and_a_resting_one_does_not() -> None:
    assert machine(order_type=OrderType.MARKET)[1].crosses
    assert not machine(time_in_force=TimeInForce.POST_ONLY)[1].crosses
