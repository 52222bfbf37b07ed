"""Shortfall parts by hand, their sum always, and what is said of many parents."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execution.algorithms.working import Parent
from execution.orders import Filled, Liquidity
from execution.tca import (
    TABLES,
    Mids,
    Shortfall,
    difference,
    interval,
    parent_row,
    shortfall,
    summarise,
    to_table,
)
from tests.execution.tape import INSTRUMENT, SYMBOL

S = 1_000_000_000


def parent(side: int = 1, lots: int = 10, decision_ns: int = 0, mid: float = 1_000.0) -> Parent:
    return Parent(
        id=f"p{side}{decision_ns}",
        symbol=SYMBOL,
        side=side,
        qty_lots=lots,
        decision_ns=decision_ns,
        deadline_ns=decision_ns + 30 * S,
        decision_mid_ticks=mid,
    )


def fill(
    time_ns: int,
    side: int,
    lots: int,
    ticks: int,
    maker: bool = False,
    fee: int = 0,
    number: int = 0,
) -> Filled:
    return Filled(
        client_id="c",
        time_ns=time_ns,
        venue_ns=time_ns,
        exec_id=f"{time_ns}-{ticks}-{lots}-{number}",
        symbol=SYMBOL,
        side=side,
        qty_lots=lots,
        price_ticks=ticks,
        liquidity=Liquidity.MAKER if maker else Liquidity.TAKER,
        fee_e8=fee,
        leaves_lots=0,
    )


def cost(order: Parent, fills: list[Filled], mids: Mids, **more: Any) -> Shortfall:
    given_ = {"algorithm": "market", "venue": "test", "arrival_ns": order.decision_ns, "end_ns": S}
    return shortfall(order, fills, mids, INSTRUMENT, **(given_ | more))


@pytest.mark.parametrize("side", [1, -1])
def test_parts_by_hand(side: int) -> None:
    """Decided at 1,000; first order at 1,001 (delay 1); 6 of 10 cross at 1 over the mid of 1,003
    (spread 1, timing 2); the rest is left at 1,005 (opportunity 4). A seller mirrors it."""
    mids = Mids([0, 10, 20, 30], [1_000 + side * d for d in (0, 1, 3, 5)], until_ns=200 * S)
    fills = [fill(25, side, 6, 1_000 + side * 4, fee=3 * 10**8)]
    row = cost(parent(side), fills, mids, arrival_ns=10)
    assert row.delay_bps == pytest.approx(10)
    assert row.spread_bps == pytest.approx(6)
    assert row.timing_bps == pytest.approx(12)
    assert row.opportunity_bps == pytest.approx(16)
    assert row.fees_bps == pytest.approx(3)
    assert row.total_bps == pytest.approx(47)
    assert (row.fill_rate, row.maker_share) == (0.6, 0.0)
    assert row.fill_ticks == 1_000 + side * 4
    assert row.markout_5s_bps == pytest.approx(1 / (1_000 + side * 4) * 1e4)


def test_a_maker_at_the_touch_earns_the_half_spread() -> None:
    row = cost(parent(), [fill(5, 1, 10, 999, maker=True)], Mids([0], [1_000.0], until_ns=100 * S))
    assert row.spread_bps == pytest.approx(-10)
    assert row.total_bps == pytest.approx(-10)
    assert row.maker_share == 1.0


def test_a_parent_that_never_traded_costs_what_it_missed() -> None:
    mids = Mids([0, 10], [1_000.0, 1_002.0], until_ns=2 * S)
    row = cost(parent(), [], mids, arrival_ns=None)
    assert row.opportunity_bps == row.total_bps == pytest.approx(20)
    assert math.isnan(row.maker_share)
    assert math.isnan(row.time_to_fill_s)


def test_a_markout_past_the_record_is_not_known() -> None:
    row = cost(parent(), [fill(5, 1, 10, 1_000)], Mids([0], [1_000.0], until_ns=10 * S))
    assert row.markout_5s_bps == 0.0
    assert math.isnan(row.markout_30s_bps)


def test_mids_that_end_before_the_parent_are_refused() -> None:
    with pytest.raises(ValueError, match="the mids end before the parent does"):
        cost(parent(), [], Mids([0], [1_000.0], until_ns=S - 1))


def test_mids_are_a_step_function() -> None:
    mids = Mids()
    for time_ns, mid in ((10, 5.0), (20, 5.0), (30, 6.0)):
        mids.append(time_ns, mid)
    assert [mids.at(t) for t in (0, 10, 29, 30)] == [5.0, 5.0, 5.0, 6.0]
    assert math.isnan(mids.at(31))
    mids.forget(25)
    assert [mids.at(t) for t in (25, 30)] == [5.0, 6.0]


FILLS = st.lists(
    st.tuples(
        st.integers(0, S),
        st.integers(1, 5),
        st.integers(900, 1_100),
        st.booleans(),
        st.integers(-(10**8), 10**9),
    ),
    max_size=6,
)


@settings(derandomize=True, max_examples=150)
@given(
    side=st.sampled_from([1, -1]),
    lots=st.integers(30, 40),
    fills=FILLS,
    path=st.lists(st.integers(1_800, 2_200), min_size=1, max_size=8),
    arrival=st.one_of(st.none(), st.integers(0, S)),
    mid=st.integers(1_900, 2_100),
)
def test_parts_sum_to_the_total(
    side: int,
    lots: int,
    fills: list[tuple[int, int, int, bool, int]],
    path: list[int],
    arrival: int | None,
    mid: int,
) -> None:
    mids = Mids([n * S // 8 for n in range(len(path))], [m / 2 for m in path], until_ns=S)
    made = [fill(t, side, *rest, number=n) for n, (t, *rest) in enumerate(fills)]
    row = cost(parent(side, lots, mid=mid / 2), made, mids, arrival_ns=arrival)
    assert abs(row.residual_bps) <= 1e-9
    cash = sum(side * f.qty_lots * f.price_ticks for f in made) + sum(f.fee_e8 for f in made) / 1e8
    left = lots - row.filled_lots
    paper = side * (lots * mid / 2 - left * mids.at(S))
    assert row.total_bps == pytest.approx((cash - paper) / (lots * mid / 2) * 1e4, abs=1e-9)


# -- many parents ----------------------------------------------------------------------------------


def rows(algorithm: str, costs: dict[tuple[int, int], float]) -> list[Shortfall]:
    """One row per (instant, side) with that total, all of it drift."""
    return [
        cost(
            parent(side, decision_ns=instant),
            [fill(instant + 1, side, 10, 1_000)],
            Mids([0], [1_000.0 - side * total / 10], until_ns=200 * S),
            algorithm=algorithm,
            arrival_ns=None,
            end_ns=instant + 2,
        )
        for (instant, side), total in costs.items()
    ]


def test_the_pair_of_an_instant_is_one_observation() -> None:
    """The market rises by 50 bps and falls by 30: each side alone looks expensive or cheap."""
    moves = [50.0, -30.0] * 10
    found = []
    for n, move in enumerate(moves):
        for side in (1, -1):
            mids = Mids([0, n * S + 1], [1_000.0, 1_000 + move / 10], until_ns=200 * S)
            order = parent(side, decision_ns=n * S)
            found.append(
                cost(
                    order,
                    [fill(n * S + 2, side, 10, round(1_000 + move / 10) + side)],
                    mids,
                    arrival_ns=n * S,
                    end_ns=n * S + 3,
                )
            )
    both, buys, sells = summarise(found)
    assert (both.side, both.parents, both.instants) == (0, 40, 20)
    assert both.total_bps == pytest.approx(10)
    assert (both.low_bps, both.high_bps) == (pytest.approx(10), pytest.approx(10))
    assert buys.total_bps == pytest.approx(20)
    assert sells.total_bps == pytest.approx(0)
    assert buys.low_bps < buys.total_bps < buys.high_bps


def test_differences_are_between_the_same_parents() -> None:
    base = rows("market", {(n * S, side): 0.0 for n in range(6) for side in (1, -1)})
    better = rows("passive", {(n * S, side): 0.0 for n in range(3, 9) for side in (1, -1)})
    found = difference(better, base)
    assert (found.mean, found.n) == (0.0, 3)


def test_an_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.Generator(np.random.Philox(key=5))
    covered = 0
    for _ in range(300):
        found = interval(rng.normal(3.0, 2.0, 60).tolist(), samples=400)
        covered += found.low <= 3.0 <= found.high
    # 95 % less what blocks of four cost at n = 60; binomial noise is 1.3 points.
    assert 0.88 <= covered / 300 <= 0.98


def test_an_interval_needs_two_values_and_repeats_itself() -> None:
    assert math.isnan(interval([1.0]).low)
    assert math.isnan(interval([]).mean)
    assert interval([1.0, 2.0, 4.0]) == interval([1.0, 2.0, 4.0])


def test_tables_have_one_schema_and_hold_null_for_nothing() -> None:
    for kind in TABLES.values():
        assert to_table([], kind).schema == kind.schema()
    row = cost(parent(), [], Mids([0], [1_000.0], until_ns=2 * S))
    table = to_table([row], Shortfall)
    assert table.column("maker_share").null_count == 1
    assert table.column("total_bps").to_pylist() == [0.0]
    (made,) = to_table(
        [parent_row(parent(), "market", "paper", INSTRUMENT)], TABLES["parents"]
    ).to_pylist()
    assert made["size_usdt"] == 10_000.0
