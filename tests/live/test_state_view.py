"""What the worker shows of an order at work: its place in the queue, its chance, what it cost so far."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from execution.hazard import FillModel, Queued
from live.state_view import cost_bps, queue_of
from market.settings import Settings
from market.units import SECOND_NS
from tests.execution.tape import snapshot, trade
from tests.live.test_desk import BTC, START, Refusing


def shown(venue: Refusing, order: Any, work: Any) -> dict[str, Any]:
    trader = SimpleNamespace(symbols={BTC: venue.market})
    core = SimpleNamespace(desk=venue.desk, trader=trader, now_ns=venue.now_ns)
    return queue_of(SimpleNamespace(core=core, settings=Settings()), order, work)


def test_an_order_moves_up_by_trades_at_its_price_and_costs_what_it_paid() -> None:
    venue = Refusing("passive", 0)
    venue.fills = True
    venue.run(2, 10)
    [work], [order] = venue.desk.parents_at_work, list(venue.desk.orders.open())
    assert shown(venue, order, None) == {}, "an order without a parent at work"
    first = shown(venue, order, work)
    assert first["ahead_lots"] == 9_000
    assert cost_bps(venue.desk, work) is None

    at = START + 1  # of a second that no bar has closed
    venue.market.take(trade(at, -1, 600_000, 4_000))
    venue.market.take(snapshot(at, [(600_000, 7_000)], [(600_001, 9_000)]))
    assert venue.market.last_trades() == [[at, -1, 600_000, 4_000]]
    second = shown(venue, order, work)
    assert second["ahead_lots"] == 5_000, "more is displayed than is ahead of it"
    left_s = (work.parent.deadline_ns - venue.now_ns) / SECOND_NS
    queued = Queued.of(
        venue.desk.monitors[BTC], venue.market.view(venue.now_ns), 1, 10, ahead_lots=5_000
    )
    chance = FillModel.load().fill_probability(queued, left_s)
    assert second["fill_chance"] == pytest.approx(chance, abs=1e-4)
    assert second["fill_chance"] > first["fill_chance"]

    # Four lots at the bid, half a tick below the decision's mid, for a fee of 2 bps.
    fee_e8 = 4 * 60_000 * 0.001 * 2e-4 * 1e8
    venue.desk.take(venue.execution(order.client_id, 4, 1, "x", fee_e8=round(fee_e8)))
    assert cost_bps(venue.desk, work) == pytest.approx(2.0 - 0.5 / 600_000.5 * 1e4, abs=1e-3)
