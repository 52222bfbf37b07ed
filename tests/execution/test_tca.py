"""Shortfall parts by hand and by invariant, and the statistics of many parents."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execution.algorithms.working import Parent
from execution.liquidity import Propagator
from execution.orders import Filled, Liquidity, OrderType, Submit
from execution.tca import (
    TABLES,
    MidRecorder,
    Mids,
    OrderRow,
    Shortfall,
    TradedVolume,
    difference,
    displayed_ahead,
    fitted,
    grouped,
    interval,
    markout_rows,
    parent_row,
    shortfall,
    summarise,
    third,
    thirds,
    to_table,
)
from execution.tca.figures import carry
from execution.venue import View
from market.events import Flag
from market.units import SECOND_NS as S
from tests.execution.tape import (
    ASKS,
    BIDS,
    INSTRUMENT,
    SYMBOL,
    frame,
    residual_bps,
    snapshot,
    trade,
)


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
def test_the_parts_of_a_shortfall_by_hand(side: int) -> None:
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


def test_a_parent_that_never_traded_costs_its_opportunity() -> None:
    mids = Mids([0, 10], [1_000.0, 1_002.0], until_ns=2 * S)
    row = cost(parent(), [], mids, arrival_ns=None)
    assert row.opportunity_bps == row.total_bps == pytest.approx(20)
    assert math.isnan(row.maker_share)
    assert math.isnan(row.time_to_fill_s)


def test_a_markout_past_the_record_is_nan() -> None:
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
    assert abs(residual_bps(row)) <= 1e-9
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


def test_tables_have_one_schema_and_null_for_nan() -> None:
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


# -- own impact, benchmarks, markouts --------------------------------------------------------------


@pytest.mark.parametrize("side", [1, -1])
def test_impact_is_the_difference_from_the_control_market(side: int) -> None:
    """With us the mid moved 4 against us, without us 1: 3 are impact, 1 is drift."""
    mids = Mids([0, 10], [1_000.0, 1_000 + side * 4], until_ns=200 * S)
    control = Mids([0, 10], [1_000.0, 1_000 + side], until_ns=200 * S)
    row = cost(parent(side), [fill(20, side, 10, 1_000 + side * 5)], mids, control=control)
    assert row.impact_by == "control"
    assert row.impact_bps == pytest.approx(30)
    assert row.timing_bps == pytest.approx(10)
    assert row.total_bps == pytest.approx(50)


def test_a_market_that_is_its_own_control_has_no_impact() -> None:
    mids = Mids([0, 10], [1_000.0, 1_004.0], until_ns=200 * S)
    row = cost(parent(), [fill(20, 1, 10, 1_005)], mids, control=mids)
    assert (row.impact_by, row.impact_bps) == ("control", 0.0)
    assert row.timing_bps == pytest.approx(40)


def test_the_propagator_charges_fills_for_earlier_taker_fills() -> None:
    """Y σ √(q/V) = 0.75·2·√(5/20) = 0.75 bps, decayed over a second by 2^-0.25; maker fills and the
    first fill find nothing of ours in the mid."""
    model = Propagator(sigma_bps=2.0, volume_s=20.0)
    mids = Mids([0], [1_000.0], until_ns=200 * S)
    both = [fill(0, 1, 5, 1_001), fill(S, 1, 5, 1_001)]
    row = cost(parent(), both, mids, end_ns=2 * S, propagator=model)
    assert row.impact_by == "propagator"
    assert row.impact_bps == pytest.approx(0.75 * 2**-0.25 / 2)
    assert row.impact_bps + row.timing_bps == pytest.approx(0)
    made = [fill(0, 1, 5, 1_001, maker=True), fill(S, 1, 5, 1_001)]
    assert cost(parent(), made, mids, end_ns=2 * S, propagator=model).impact_bps == 0.0


def test_without_a_control_or_a_model_impact_stays_in_timing() -> None:
    row = cost(parent(), [fill(20, 1, 10, 1_005)], Mids([0, 10], [1_000.0, 1_004.0], 200 * S))
    assert (row.impact_by, row.impact_bps, row.timing_bps) == ("none", 0.0, pytest.approx(40))


PATH = st.lists(st.integers(1_800, 2_200), min_size=1, max_size=8)


@settings(derandomize=True, max_examples=200)
@given(
    side=st.sampled_from([1, -1]),
    lots=st.integers(1, 40),
    fills=FILLS,
    duplicates=st.integers(0, 6),
    path=PATH,
    other=PATH,
    arrival=st.one_of(st.none(), st.integers(0, S)),
    mid=st.integers(1_900, 2_100),
    sigma=st.floats(0.0, 50.0),
    how=st.sampled_from(["control", "propagator", "none"]),
)
def test_the_parts_sum_to_the_total_however_impact_is_measured(
    side: int,
    lots: int,
    fills: list[tuple[int, int, int, bool, int]],
    duplicates: int,
    path: list[int],
    other: list[int],
    arrival: int | None,
    mid: int,
    sigma: float,
    how: str,
) -> None:
    """Whatever fills come (too many, in any order, some duplicated) and however our impact is measured
    from drift: six parts make the total, and the total and the sum of impact and timing do not
    depend on how. A duplicate execution changes nothing."""
    made = [fill(t, side, *rest, number=n) for n, (t, *rest) in enumerate(fills)]
    mids, control = (
        Mids([n * S // 8 for n in range(len(p))], [m / 2 for m in p], until_ns=S)
        for p in (path, other)
    )
    ways: dict[str, dict[str, Any]] = {
        "control": {"control": control},
        "propagator": {"propagator": Propagator(sigma_bps=sigma, volume_s=7.0)},
        "none": {},
    }
    order = parent(side, lots, mid=mid / 2)
    row = cost(order, [*made, *made[:duplicates]], mids, arrival_ns=arrival, **ways[how])
    plain = cost(order, made, mids, arrival_ns=arrival)
    assert row.impact_by == how
    assert abs(residual_bps(row)) <= 1e-9
    assert abs(residual_bps(plain)) <= 1e-9
    assert row.total_bps == plain.total_bps
    assert row.filled_lots == sum(f.qty_lots for f in made)
    assert row.impact_bps + row.timing_bps == pytest.approx(plain.timing_bps, abs=1e-9)


@pytest.mark.parametrize("side", [1, -1])
def test_benchmarks_by_hand(side: int) -> None:
    """First order at 1,001; the mid is there for a quarter of the interval and at 1,005 for the rest,
    and at 1,009 at the deadline. Others traded 10 at 1,002; we 10 at 1,006, received on the same feed."""

    def at(distance: float) -> float:
        return 1_000 + side * distance

    mids = Mids([0, 10, 20, S], [at(d) for d in (0, 1, 5, 9)], until_ns=200 * S)
    traded = TradedVolume()
    traded.append(np.concatenate([trade(5, side, int(at(90)), 3), trade(15, side, int(at(2)), 10)]))
    traded.append(
        np.concatenate([trade(22, side, int(at(6)), 10), trade(30, -side, int(at(2)), 1)])
    )
    traded.append(trade(60, side, int(at(90)), 3))
    made = [fill(21, side, 10, int(at(6)))]
    known: dict[str, Any] = {"arrival_ns": 10, "end_ns": 50, "traded": traded}
    row = cost(parent(side), made, mids, own_in_traded=True, **known)
    assert row.vs_arrival_bps == pytest.approx(50)
    assert row.vs_twap_bps == pytest.approx(20)
    assert row.vs_vwap_bps == pytest.approx(40)
    assert row.vs_close_bps == pytest.approx(-30)
    apart = cost(parent(side), made, mids, **known)
    assert apart.vs_vwap_bps == pytest.approx(60 - (10 * 20 + 10 * 60 + 20) / 21)
    nobody = cost(parent(side), made, mids, **(known | {"traded": TradedVolume()}))
    assert math.isnan(nobody.vs_vwap_bps)
    assert math.isnan(cost(parent(side), [], mids, **known).vs_arrival_bps)


def test_the_predicted_drift_grows_up_to_the_signals_horizon() -> None:
    mids = Mids([0], [1_000.0], until_ns=200 * S)
    soon, late = fill(15 * S, -1, 5, 1_000), fill(120 * S, -1, 5, 1_000)
    signal: dict[str, Any] = {"signal_bps": -8.0, "signal_s": 60.0, "end_ns": 130 * S}
    assert cost(parent(-1), [soon], mids, **signal).foretold_bps == pytest.approx(8 / 4 / 2)
    assert cost(parent(-1), [soon, late], mids, **signal).foretold_bps == pytest.approx(1 + 4)
    assert math.isnan(cost(parent(-1), [soon], mids).foretold_bps)


def order(client_id: str = "c", **more: Any) -> OrderRow:
    given_ = {
        "client_id": client_id, "parent_id": "p", "symbol": SYMBOL, "side": 1, "venue": "test",
        "order_type": "Limit", "time_in_force": "PostOnly", "qty_lots": 10, "price_ticks": 1_000,
        "filled_lots": 0, "state": "CANCELLED", "reason": "", "sent_ns": 0, "changed_ns": 2 * S,
        "amends": 0,
    }  # fmt: skip
    return OrderRow(**(given_ | more))


def test_an_unfilled_quantity_has_a_markout_from_its_end() -> None:
    mids = Mids([0, 3 * S, 40 * S], [1_001.0, 1_003.0, 999.0], until_ns=50 * S)
    made = fill(S, 1, 4, 1_000, maker=True)
    found = markout_rows(
        "p",
        "test",
        [order(filled_lots=4), order("m", time_in_force="IOC", price_ticks=1_010)],
        [made, made],
        mids,
        {"c": 7.0},
    )
    filled, rest = found
    assert (filled.outcome, filled.liquidity, filled.qty_lots, filled.rested_s) == (
        "filled", "maker", 4, 1.0,
    )  # fmt: skip
    assert (filled.markout_1s_bps, filled.markout_5s_bps) == pytest.approx((10, 30))
    assert (rest.outcome, rest.liquidity, rest.exec_id, rest.qty_lots) == (
        "cancelled", "none", "", 6,
    )  # fmt: skip
    assert (rest.queue_ahead_lots, rest.rested_s, rest.mid_ticks) == (7.0, 2.0, 1_001.0)
    assert rest.markout_1s_bps == pytest.approx(30)
    assert math.isnan(rest.markout_60s_bps)


def test_the_displayed_queue_ahead_is_the_own_side_up_to_the_price() -> None:
    view = View(symbol=SYMBOL, now_ns=0, bids=BIDS, asks=ASKS, stale=False, instrument=INSTRUMENT)

    def ahead(side: int, ticks: int, seen: View = view, **more: Any) -> float:
        sent = Submit(
            client_id="c", symbol=SYMBOL, side=side, qty_lots=1, price_ticks=ticks, **more
        )
        return displayed_ahead(seen, sent)

    assert [ahead(1, ticks) for ticks in (101, 100, 99, 98)] == [0, 10, 30, 60]
    assert [ahead(-1, ticks) for ticks in (100, 101, 103)] == [0, 10, 60]
    assert math.isnan(ahead(1, 97)), "beyond the last level nothing is known"
    assert math.isnan(ahead(1, 0, order_type=OrderType.MARKET))
    assert math.isnan(ahead(1, 100, msgspec.structs.replace(view, stale=True)))


# -- the record ------------------------------------------------------------------------------------


@settings(derandomize=True, max_examples=150)
@given(
    steps=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9)), min_size=1, max_size=8),
    span=st.tuples(st.integers(0, 40), st.integers(0, 40)),
)
def test_the_mean_mid_is_the_mean_over_its_instants(
    steps: list[tuple[int, int]], span: tuple[int, int]
) -> None:
    mids, now = Mids(), 0
    for wait, mid in steps:
        now += wait
        mids.append(now, float(mid))
    first, last = sorted(span)
    found = mids.mean(first, last)
    if last > now:
        assert math.isnan(found)
    else:
        instants = [mids.at(t) for t in range(first, last)] or [mids.at(last)]
        assert found == pytest.approx(sum(instants) / len(instants))


def test_an_invalid_book_carries_its_last_mid_forward() -> None:
    """One-sided from 10 to 20: the mid is carried forward, and an arrival in between is marked."""
    recorder = MidRecorder()
    recorder.push(snapshot(S, [(100, 5)], [(102, 5)]))
    recorder.push(frame(S + 10, [], [(102, 0)]))
    recorder.push(frame(S + 20, [], [(104, 5)]))
    mids = recorder.mids
    assert [mids.at(S + t) for t in (0, 10, 19, 20)] == [101.0, 101.0, 101.0, 102.0]
    assert [mids.sound(S + t) for t in (-1, 0, 10, 19, 20)] == [False, True, False, False, True]
    mids.until_ns = 9 * S
    row = cost(parent(decision_ns=S, mid=101.0), [], mids, arrival_ns=S + 15, end_ns=S + 30)
    assert not row.arrival_sound
    assert row.total_bps == pytest.approx(1 / 101 * 1e4)


@settings(derandomize=True, max_examples=100)
@given(
    trades=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9), st.booleans()), max_size=12),
    cut=st.integers(0, 12),
    forgotten=st.integers(0, 10),
    span=st.tuples(st.integers(10, 32), st.integers(10, 32)),
)
def test_traded_volume_sums_trades_between_two_instants(
    trades: list[tuple[int, int, bool]], cut: int, forgotten: int, span: tuple[int, int]
) -> None:
    """Block trades aside, and however much of an earlier time was forgotten."""
    trades = sorted(trades)
    rows = [trade(t, 1, 100 + q, q, flags=Flag.BLOCK if block else 0) for t, q, block in trades]
    traded = TradedVolume()
    for part in (rows[:cut], rows[cut:]):
        if part:
            traded.append(np.concatenate(part))
    traded.forget(forgotten)
    first, last = sorted(span)
    inside = [(q, q * (100 + q)) for t, q, block in trades if first < t <= last and not block]
    assert traded.between(first, last) == (sum(q for q, _ in inside), sum(v for _, v in inside))


def test_rows_of_an_older_schema_take_the_defaults() -> None:
    now = to_table([cost(parent(), [], Mids([0], [1_000.0], until_ns=2 * S))], Shortfall)
    older = now.drop(["impact_bps", "impact_by", "arrival_sound", "vs_twap_bps"])
    older = older.append_column("forgotten", [[1]])
    found = fitted(older, Shortfall)
    assert found.schema == Shortfall.schema()
    (row,) = found.to_pylist()
    assert (row["impact_bps"], row["impact_by"], row["vs_twap_bps"]) == (0.0, "none", None)
    with pytest.raises(ValueError, match="rows without total_bps"):
        fitted(now.drop(["total_bps"]), Shortfall)


# -- groups ----------------------------------------------------------------------------------------


def test_members_of_one_instant_are_one_observation() -> None:
    rows = [(1, "a", 1.0, 3.0), (1, "a", 5.0, 1.0), (2, "a", 4.0, 1.0), (3, "b", math.nan, 1.0)]
    found = grouped(rows, lambda r: r[1], lambda r: r[0], lambda r: r[2], lambda r: r[3])
    assert set(found) == {"a"}
    assert (found["a"].mean, found["a"].n) == (3.0, 2)


def test_thirds_have_equal_counts() -> None:
    values = [float(v) for v in range(9)] + [math.nan]
    bounds = thirds(values)
    counted = [third(value, bounds) for value in values]
    assert [counted.count(name) for name in ("lower third", "middle", "upper third")] == [3, 3, 3]
    assert third(math.nan, bounds) == "unknown"
    assert third(1.0, thirds([1.0, 1.0, 2.0])) == "unknown"


def test_carry_is_that_of_the_parent_that_last_traded_on_the_positions_side() -> None:
    """2 USDT paid and 1 received on 40,000 traded are 0.25 bps; the second buyer's 2 are 2 bps of his."""

    def parent(name: str, side: int, decision_ns: int) -> dict[str, object]:
        known = {"symbol": "A", "venue": "paper", "size_usdt": 10_000.0, "fill_rate": 1.0}
        return known | {"parent_id": name, "side": side, "decision_ns": decision_ns}

    parents = [parent("a", 1, 1), parent("b", 1, 2), parent("c", -1, 5), parent("d", -1, 9)]
    paid = [
        {"symbol": "A", "venue": "paper", "time_ns": 4, "position_lots": 7, "paid_e8": 2 * 10**8},
        {"symbol": "A", "venue": "paper", "time_ns": 8, "position_lots": -7, "paid_e8": -(10**8)},
    ]
    (line,) = carry(parents, paid)
    assert (line["settlements"], line["parents"], line["paid_usdt"]) == (2, 2, 1.0)
    assert (line["carry_bps"], line["most_bps"]) == (pytest.approx(0.25), pytest.approx(2.0))
    assert carry(parents, []) == []
