"""What finished long ago is forgotten, so that memory is bounded; nothing else changes by it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execution.orders import Cancel, CancelRejected, Rejected, Submit
from execution.simulation.queue import MODELS
from execution.simulation.simulator import Simulator
from execution.simulation.state import MODES, Reason
from tests.execution.judged import joined, outcome_lines, outcomes, random_case
from tests.execution.tape import INSTRUMENT, SYMBOL, Tape, fills, kinds, limit, market


def remembering(orders: int) -> Tape:
    return Tape(Simulator({SYMBOL: INSTRUMENT}, remembers=orders)).opens()


@settings(derandomize=True, max_examples=40, deadline=None)
@given(
    number=st.integers(0, 2**30),
    mode=st.sampled_from(MODES),
    model=st.sampled_from(list(MODELS)),
    remembers=st.sampled_from([0, 1, 40]),
)
def test_forgetting_finished_orders_changes_no_outcome(
    number: int, mode: str, model: str, remembers: int
) -> None:
    """Same outcomes at the same times, whatever of the past is forgotten; only the refusal of a
    request for what is forgotten names the order as unknown instead of finished, and is not queued
    among the other outcomes of its instant."""
    case = joined([random_case(number + n) for n in range(8)])
    case.setting["model"] = MODELS[model]
    sent = [True] * len(case.actions)
    assert len(case.actions) > 100, "more orders than a table holds at first"
    forgetful = outcomes(case, sent, mode=mode, remembers=remembers)
    assert sorted(outcome_lines(forgetful)) == sorted(
        outcome_lines(outcomes(case, sent, mode=mode))
    )


def test_tables_do_not_grow_with_the_number_of_orders() -> None:
    tape = remembering(100)
    tape.send(limit("first", 1, 99, 7))
    replayed = tape.simulator._replay(SYMBOL)
    for n in range(2_000):
        tape.send(limit(f"o{n}", 1, 98, 1))
        tape.send(Cancel(client_id=f"o{n}"))
    assert len(replayed.state.orders) <= 256
    assert max(len(replayed.orders), len(tape.simulator._numbers)) <= 256
    assert fills(tape.prints(-1, 99, 27), "first") == [(99, 7)]
    assert tape.position == 7
    assert tape.simulator.idle


@pytest.mark.parametrize("known", [True, False])
def test_a_forgotten_id_is_free_again(
    known: bool,
) -> None:
    tape = remembering(100)
    tape.send(market("old", 1, 1), limit("rests", 1, 99, 1))
    for n in range(20 if known else 400):
        tape.send(limit(f"o{n}", 1, 98, 1))
        tape.send(Cancel(client_id=f"o{n}"))
    (late,) = tape.send(Cancel(client_id="old"))
    assert isinstance(late, CancelRejected)
    assert late.reason == (Reason.FINISHED if known else Reason.NO_ORDER)
    assert kinds(tape.send(limit("old", 1, 98, 1))) == ["Rejected" if known else "Accepted"]
    # An order that is open is never forgotten.
    (refused,) = tape.send(limit("rests", 1, 99, 1))
    assert isinstance(refused, Rejected)
    assert refused.reason == Reason.DUPLICATE
    assert kinds(tape.send(Cancel(client_id="rests"))) == ["Cancelled"]


def test_an_id_used_in_another_symbol_is_a_duplicate() -> None:
    """Symbols forget apart; an id that one of them refused stays with the symbol that has it."""
    other = INSTRUMENT.__class__(symbol="MUTE", tick="1", lot="1", min_qty="1", min_notional="0")
    simulator = Simulator({SYMBOL: INSTRUMENT, "MUTE": other}, remembers=10, patience_ns=0)
    tape = Tape(simulator).opens()
    tape.send(limit("shared", 1, 99, 5))

    def elsewhere(name: str) -> Submit:
        return Submit(client_id=name, symbol="MUTE", side=1, qty_lots=1, price_ticks=99)

    assert kinds(tape.send(elsewhere("shared"))) == ["Rejected"]
    for n in range(200):
        tape.send(elsewhere(f"m{n}"))
    (refused,) = tape.send(elsewhere("shared"))
    assert isinstance(refused, Rejected)
    assert refused.reason == Reason.DUPLICATE
    assert kinds(tape.send(Cancel(client_id="shared"))) == ["Cancelled"]
