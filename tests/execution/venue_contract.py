"""What every venue owes an algorithm, whatever drives it.

Derive a test class from `VenueContract` and give it a fixture ``tape``: a harness with the methods
of `tests.execution.tape.Tape` around the venue, its book open as `Tape.opens` shows it.
"""

from __future__ import annotations

from execution.orders import (
    Accepted,
    Amend,
    Cancel,
    Cancelled,
    CancelRejected,
    Filled,
    Liquidity,
    Rejected,
    Submit,
    TimeInForce,
)
from tests.execution.tape import SYMBOL, Tape, fills, kinds, limit, market


class VenueContract:
    def test_send_returns_no_outcome(self, tape: Tape) -> None:
        tape.simulator.send([limit("a", 1, 100, 1)])
        assert tape.simulator.position_lots(SYMBOL) == 0
        assert kinds(tape.wait()) == ["Accepted"]

    def test_a_resting_order_is_accepted_once(self, tape: Tape) -> None:
        assert kinds(tape.send(limit("a", 1, 100, 1))) == ["Accepted"]
        assert tape.wait() == []

    def test_a_market_order_is_accepted_and_filled_as_taker(self, tape: Tape) -> None:
        accepted, filled = tape.send(market("a", 1, 4))
        assert isinstance(accepted, Accepted)
        assert isinstance(filled, Filled)
        assert (filled.qty_lots, filled.leaves_lots, filled.side) == (4, 0, 1)
        assert filled.liquidity is Liquidity.TAKER
        assert filled.symbol == SYMBOL

    def test_position_is_the_signed_sum_of_executions(self, tape: Tape) -> None:
        tape.send(market("a", 1, 4))
        tape.send(market("b", -1, 6))
        signed = sum(e.side * e.qty_lots for e in tape.events if isinstance(e, Filled))
        assert tape.position == signed == -2

    def test_a_cancel_reports_the_unfilled_quantity(self, tape: Tape) -> None:
        tape.send(limit("a", 1, 99, 5))
        (cancelled,) = tape.send(Cancel(client_id="a"))
        assert isinstance(cancelled, Cancelled)
        assert cancelled.leaves_lots == 5

    def test_a_cancel_of_an_unknown_or_finished_order_is_rejected(self, tape: Tape) -> None:
        (unknown,) = tape.send(Cancel(client_id="never sent"))
        assert isinstance(unknown, CancelRejected)
        tape.send(market("a", 1, 1))
        (late,) = tape.send(Cancel(client_id="a"))
        assert isinstance(late, CancelRejected)
        assert late.client_id == "a"

    def test_an_amend_of_an_unknown_order_is_rejected(self, tape: Tape) -> None:
        (refused,) = tape.send(Amend(client_id="never sent", price_ticks=99))
        assert isinstance(refused, CancelRejected)

    def test_an_amended_order_rests_at_its_new_price(self, tape: Tape) -> None:
        tape.send(limit("a", 1, 99, 5))
        assert kinds(tape.send(Amend(client_id="a", price_ticks=100))) == ["Amended"]
        assert fills(tape.prints(-1, 99, 5), "a") == [(100, 5)]

    def test_a_client_id_is_used_once(self, tape: Tape) -> None:
        tape.send(limit("a", 1, 99, 1))
        (refused,) = tape.send(limit("a", 1, 99, 1))
        assert isinstance(refused, Rejected)
        assert kinds(tape.send(Cancel(client_id="a"))) == ["Cancelled"]

    def test_post_only_never_takes(self, tape: Tape) -> None:
        events = tape.send(limit("a", 1, 101, 5, TimeInForce.POST_ONLY))
        assert not fills(events)
        assert isinstance(events[-1], Cancelled)
        assert tape.position == 0

    def test_an_invalid_order_is_rejected_with_a_reason(self, tape: Tape) -> None:
        wrong = [
            limit("zero quantity", 1, 100, 0),
            limit("negative quantity", 1, 100, -3),
            limit("zero price", 1, 0, 1),
            limit("negative price", -1, -5, 1),
        ]
        events = tape.send(*wrong)
        assert [e.client_id for e in events] == [w.client_id for w in wrong]
        assert all(isinstance(e, Rejected) and e.reason for e in events)
        assert tape.position == 0

    def test_an_id_is_never_used_again_after_its_order_has_ended(self, tape: Tape) -> None:
        tape.send(market("filled", 1, 1), limit("cancelled", 1, 99, 1))
        tape.send(Cancel(client_id="cancelled"))
        events = tape.send(limit("filled", 1, 99, 1), limit("cancelled", 1, 99, 1))
        assert kinds(events) == ["Rejected", "Rejected"]
        assert tape.position == 1

    def test_an_amend_of_a_finished_order_is_rejected(self, tape: Tape) -> None:
        tape.send(market("a", 1, 2), limit("b", 1, 99, 1))
        tape.send(Cancel(client_id="b"))
        events = tape.send(Amend(client_id="a", qty_lots=9), Amend(client_id="b", price_ticks=100))
        assert kinds(events) == ["CancelRejected", "CancelRejected"]
        assert tape.position == 2
        assert fills(tape.prints(-1, 99, 50)) == []

    def test_an_amend_below_the_filled_quantity_is_rejected(self, tape: Tape) -> None:
        tape.send(limit("a", 1, 101, 15))
        (refused,) = tape.send(Amend(client_id="a", qty_lots=10))
        assert isinstance(refused, CancelRejected)
        (cancelled,) = tape.send(Cancel(client_id="a"))
        assert isinstance(cancelled, Cancelled)
        assert cancelled.leaves_lots == 5

    def test_prices_off_the_grid_and_beyond_64_bits_are_rejected(self, tape: Tape) -> None:
        wrong = [
            limit("half a tick", 1, 100.5, 1),
            limit("half a lot", 1, 100, 0.5),
            limit("beyond all prices", 1, 10**30, 1),
            limit("beyond all quantities", 1, 100, 10**30),
            limit("no side", 0, 100, 1),
        ]
        events = tape.send(*wrong)
        assert [e.client_id for e in events] == [w.client_id for w in wrong]
        assert all(isinstance(e, Rejected) and e.reason for e in events)

    def test_a_symbol_that_is_not_traded_is_rejected(self, tape: Tape) -> None:
        stray = Submit(client_id="a", symbol="NONE", side=1, qty_lots=1, price_ticks=100)
        (refused,) = tape.send(stray)
        assert isinstance(refused, Rejected)
        (unknown,) = tape.send(Cancel(client_id="a"))
        assert isinstance(unknown, CancelRejected)

    def test_fill_or_kill_fills_whole_or_leaves_nothing(self, tape: Tape) -> None:
        events = tape.send(limit("a", 1, 102, 31, TimeInForce.FOK))
        assert kinds(events) == ["Accepted", "Cancelled"]
        whole = tape.send(limit("b", 1, 102, 30, TimeInForce.FOK))
        assert sum(lots for _, lots in fills(whole)) == 30
        assert tape.position == 30

    def test_immediate_or_cancel_fills_and_reports_the_remainder(self, tape: Tape) -> None:
        events = tape.send(limit("a", -1, 99, 50, TimeInForce.IOC))
        assert fills(events) == [(100, 10), (99, 20)]
        assert isinstance(events[-1], Cancelled)
        assert events[-1].leaves_lots == 20
        assert tape.position == -30

    def test_reduce_only_never_reverses_the_position(self, tape: Tape) -> None:
        (refused,) = tape.send(market("none", -1, 5, reduce_only=True))
        assert isinstance(refused, Rejected)
        tape.send(market("open", 1, 4))
        tape.send(market("close", -1, 9, reduce_only=True))
        assert tape.position == 0

    def test_outcomes_come_in_order_of_time_and_once(self, tape: Tape) -> None:
        tape.send(limit("a", 1, 101, 4), market("b", -1, 3))
        tape.send(limit("c", -1, 102, 4), Cancel(client_id="c"))
        times = [event.time_ns for event in tape.events]
        assert times == sorted(times)
        executions = [e.exec_id for e in tape.events if isinstance(e, Filled)]
        assert len(executions) == len(set(executions))
        assert all(event.venue_ns <= event.time_ns for event in tape.events)
