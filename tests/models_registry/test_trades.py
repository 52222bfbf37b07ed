"""Round trips of the target rule: worked by hand, and against a plain reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execution.sizing import next_target
from models_registry.trades import Trades, fee_result, simulate

SECOND = 1_000_000_000


def run(
    mid: list[float],
    expected: list[float],
    *,
    seconds: list[int] | None = None,
    spread: float = 0.0,
    fee: float = 0.0,
    horizon: int = 60,
    after: bool = False,
) -> Trades:
    times = np.array(seconds or range(1, len(mid) + 1), np.int64) * SECOND
    return simulate(
        t_ns=times,
        symbol=np.zeros(len(mid), np.int8),
        mid=np.array(mid),
        spread_bps=np.full(len(mid), spread),
        expected_bps=np.array(expected),
        fee_bps=fee,
        horizon_s=horizon,
        after=after,
    )


def test_a_trade_is_entered_and_left_one_second_after_its_decisions() -> None:
    nan = float("nan")
    # Decided at 1 s, bought at 101; the horizon of 2 s has passed at 3 s, sold at 4 s at 103.
    trades = run([100.0, 101.0, 102.0, 102.5, 103.0], [5.0, nan, nan, nan, nan], horizon=3)
    assert (trades.entry_ns // SECOND).tolist() == [2]
    assert (trades.exit_ns // SECOND).tolist() == [5]
    assert trades.gross_bps[0] == pytest.approx((103.0 - 101.0) / 101.0 * 1e4)
    assert not trades.cut[0]


def test_half_the_spread_is_paid_on_both_legs_and_fees_on_what_was_traded() -> None:
    trades = run([100.0] * 4, [50.0, 0.0, 0.0, 0.0], spread=10.0, fee=2.0, horizon=1)
    assert trades.gross_bps[0] == 0.0
    assert trades.spread_bps[0] == pytest.approx(10.0)
    bought, sold = 100.05, 99.95
    assert trades.net_bps(2.0)[0] == pytest.approx(-10.0 - 2.0 * (bought + sold) / 100.0)


def test_an_expectation_below_the_cost_trades_nothing() -> None:
    assert len(run([100.0] * 5, [3.9] * 5, spread=2.0, fee=1.0)) == 0
    assert len(run([100.0] * 5, [4.1] * 5, spread=2.0, fee=1.0)) == 1


def test_an_opposite_signal_turns_the_position_at_one_price() -> None:
    trades = run([100.0, 100.0, 101.0, 99.0], [5.0, -5.0, 0.0, 0.0])
    assert trades.side.tolist() == [1, -1]
    assert trades.exit_ns[0] == trades.entry_ns[1] == 3 * SECOND
    assert trades.gross_bps[1] == pytest.approx(-(99.0 - 101.0) / 101.0 * 1e4)


def test_a_repeated_signal_resets_the_age_of_the_position() -> None:
    quiet = run([100.0] * 9, [5.0, 0, 0, 0, 0, 0, 0, 0, 0], horizon=3)
    confirmed = run([100.0] * 9, [5.0, 0, 5.0, 0, 0, 0, 0, 0, 0], horizon=3)
    held = [(t.exit_ns - t.entry_ns)[0] // SECOND for t in (quiet, confirmed)]
    assert held == [3, 5]


def test_a_break_closes_at_the_last_row_before_it_and_is_counted() -> None:
    trades = run([100.0, 101.0, 102.0, 200.0], [5.0] * 4, seconds=[1, 2, 3, 100])
    assert trades.cut.tolist() == [True]
    assert trades.exit_ns[0] == 3 * SECOND
    assert trades.gross_bps[0] == pytest.approx((102.0 - 101.0) / 101.0 * 1e4)


def test_a_position_held_through_a_gap_counts_what_the_gap_did() -> None:
    # Long into a fall of 300 bps that no row shows: settled after it, it is in the gate's bound.
    count = 400
    mid, seconds, expected = [100.0] * count, list(range(1, count + 1)), [5.0] * count
    mid[-1], seconds[-1] = 97.0, count + 100
    before, after = (run(mid, expected, seconds=seconds, after=late) for late in (False, True))
    assert before.gross_bps.tolist() == [0.0]
    assert after.gross_bps == pytest.approx([-300.0])
    assert after.cut.tolist() == [True]
    assert after.exit_ns[0] == seconds[-1] * SECOND
    times = np.array(seconds) * SECOND
    found = fee_result(before, after, "zero", times, block_s=600, samples=20, seed=1)
    assert (found.net_bps, found.net_after_bps) == (0.0, pytest.approx(-300.0))
    assert found.net_lower_bps <= -300.0


def reference(
    t: list[int], mid: list[float], spread: list[float], expected: list[float], fees: float, h: int
) -> list[tuple[int, int, int, float]]:
    """The rule in plain Python: (entry second, exit second, side, mid-to-mid bps)."""
    done, position, age, entry = [], 0, 0, 0
    for i in range(len(t)):
        joined = i + 1 < len(t) and t[i + 1] == t[i] + 1
        cost = fees + spread[i]
        wanted = next_target(position, age, expected[i], cost, h) if joined else 0
        age = 1 if wanted != position or abs(expected[i]) > cost else age + 1
        if wanted == position:
            continue
        at = i + 1 if joined else i
        if position:
            gain = position * (mid[at] - mid[entry]) / mid[entry] * 1e4
            done.append((t[entry], t[at], position, gain))
        position, entry = wanted, at
    return done


@settings(derandomize=True, max_examples=60, deadline=None)
@given(data=st.data(), count=st.integers(2, 60), horizon=st.integers(1, 8))
def test_the_kernel_is_the_rule_in_plain_python(data, count, horizon) -> None:
    # Invariant: whatever the rows, their breaks and expectations (NaN included), the compiled
    # trades are those of the plain loop; they never overlap, and end flat.
    draw = data.draw
    steps = draw(st.lists(st.sampled_from([1, 1, 1, 5]), min_size=count, max_size=count))
    t = np.cumsum(steps).tolist()
    mid = draw(st.lists(st.floats(90, 110), min_size=count, max_size=count))
    spread = draw(st.lists(st.floats(0, 3), min_size=count, max_size=count))
    level = st.one_of(st.floats(-8, 8), st.just(float("nan")))
    expected = draw(st.lists(level, min_size=count, max_size=count))
    trades = simulate(
        t_ns=np.array(t, np.int64) * SECOND,
        symbol=np.zeros(count, np.int8),
        mid=np.array(mid),
        spread_bps=np.array(spread),
        expected_bps=np.array(expected),
        fee_bps=0.5,
        horizon_s=horizon,
    )
    ours = list(
        zip(
            (trades.entry_ns // SECOND).tolist(),
            (trades.exit_ns // SECOND).tolist(),
            trades.side.tolist(),
            trades.gross_bps.tolist(),
            strict=True,
        )
    )
    assert ours == [pytest.approx(row) for row in reference(t, mid, spread, expected, 1.0, horizon)]
    assert (trades.entry_ns[1:] >= trades.exit_ns[:-1]).all()


def test_symbols_do_not_touch_each_other() -> None:
    mid = np.array([100.0, 10.0, 101.0, 20.0, 102.0, 30.0])
    both = simulate(
        t_ns=np.repeat(np.arange(1, 4), 2) * SECOND,
        symbol=np.array([0, 1] * 3, np.int8),
        mid=mid,
        spread_bps=np.zeros(6),
        expected_bps=np.array([5.0, -5.0] * 3),
        fee_bps=0.0,
        horizon_s=60,
    )
    alone = run([100.0, 101.0, 102.0], [5.0] * 3)
    assert both.gross_bps[both.symbol == 0] == pytest.approx(alone.gross_bps)
    assert both.side.tolist() == [1, -1]


def test_at_the_break_even_fee_the_trades_earn_nothing() -> None:
    generator = np.random.default_rng(3)
    count = 3000
    mid = 100.0 * np.exp(np.cumsum(generator.normal(scale=1e-4, size=count)))
    expected = 5.0 * generator.normal(size=count)
    trades = run(mid.tolist(), expected.tolist(), spread=0.2)
    times = np.arange(1, count + 1) * SECOND
    found = fee_result(trades, trades, "zero", times, block_s=300, samples=50, seed=1)
    assert trades.net_bps(found.break_even_bps).sum() == pytest.approx(0.0, abs=1e-6)
    assert found.net_bps == pytest.approx(found.gross_bps - found.spread_bps)
    assert found.net_lower_bps <= found.net_bps
    assert found.hit_rate + found.false_net == pytest.approx(1.0)


def test_without_trades_there_is_no_lower_bound() -> None:
    trades = run([100.0] * 5, [0.0] * 5)
    found = fee_result(
        trades, trades, "vip0", np.arange(1, 6) * SECOND, block_s=300, samples=10, seed=1
    )
    assert found.trades == 0
    assert found.net_lower_bps == -np.inf
    assert np.isnan(found.net_bps)
    assert found.false_net_upper == 1.0


def test_trades_of_two_symbols_at_one_time_bound_false_signals_as_one() -> None:
    generator = np.random.default_rng(4)
    count = 4000
    mid = 100.0 * np.exp(np.cumsum(generator.normal(scale=1e-4, size=count)))
    expected = 5.0 * generator.normal(size=count)
    times = np.arange(1, count + 1) * SECOND
    bounds = []
    for copies in (1, 2):
        trades = simulate(
            t_ns=np.repeat(times, copies),
            symbol=np.tile(np.arange(copies), count).astype(np.int8),
            mid=np.repeat(mid, copies),
            spread_bps=np.zeros(copies * count),
            expected_bps=np.repeat(expected, copies),
            fee_bps=0.0,
            horizon_s=60,
        )
        found = fee_result(trades, trades, "zero", times, block_s=300, samples=10, seed=1)
        bounds.append((found.n_eff, found.false_net_upper))
    assert bounds[0] == pytest.approx(bounds[1])
