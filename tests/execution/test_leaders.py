"""Beta and correlation against their sums written out, gaps, shocks, groups; what a delay earns."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execution.leaders import HALF_LIFE_S, LEAST_S, SHOCK, SILENT_S, Leaders, LeadersState
from market.units import SECOND_NS
from proving.leaders import gains, markets

T0 = 1_800_000_000
A, B, C = "AUSDT", "BUSDT", "CUSDT"


def paths(seed: int, seconds: int, beta: float = 0.8, lag: int = 0) -> dict[str, list[float]]:
    """Mids by second: B moves by ``beta`` times A's return ``lag`` seconds before and its own noise; C alone."""
    dice = np.random.default_rng(seed)
    a, noise, c = dice.normal(0, 1e-4, (3, seconds))
    b = beta * np.concatenate([np.zeros(lag), a[: seconds - lag]]) + 0.5 * noise
    return {name: (100 * np.exp(np.cumsum(r))).tolist() for name, r in ((A, a), (B, b), (C, c))}


def fed(mids: dict[str, list[float]], gaps: dict[str, set[int]] | None = None) -> Leaders:
    leaders, gaps = Leaders(mids), gaps or {}
    for n in range(len(next(iter(mids.values())))):
        known = {s: path[n] for s, path in mids.items() if n not in gaps.get(s, set())}
        leaders.second((T0 + n) * SECOND_NS, known)
    return leaders


@settings(derandomize=True, max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    lag=st.integers(0, 1),
    gaps=st.tuples(*[st.sets(st.integers(0, 699), max_size=60)] * 2),
)
def test_beta_and_correlation_are_their_sums_over_seconds_without_a_gap(
    seed: int, lag: int, gaps: tuple[set[int], set[int]]
) -> None:
    """A second counts when both symbols have a mid at it and at the one before; nothing spans a gap."""
    mids, n = paths(seed, 700, lag=lag), 700
    leaders = fed(mids, {A: gaps[0], B: gaps[1]})
    returns = {}
    for symbol, gone in ((A, gaps[0]), (B, gaps[1])):
        path = np.array([math.nan if k in gone else mid for k, mid in enumerate(mids[symbol])])
        returns[symbol] = np.concatenate([[math.nan], np.diff(np.log(path)) * 1e4])
    x, y = returns[A], returns[B]
    weight = np.where(np.isnan(x) | np.isnan(y), 0.0, 0.5 ** ((n - 1 - np.arange(n)) / HALF_LIFE_S))
    x, y = np.nan_to_num(x), np.nan_to_num(y)
    before = {s: np.concatenate([[0.0], r[:-1]]) for s, r in ((A, x), (B, y))}
    cross = float(np.sum(weight * (x * y + x * before[B] + before[A] * y)))
    if weight.sum() < LEAST_S:
        assert math.isnan(leaders.beta(B, A))
        return
    assert leaders.beta(B, A) == pytest.approx(cross / np.sum(weight * x * x))
    assert leaders.beta(A, B) == pytest.approx(cross / np.sum(weight * y * y))
    root = math.sqrt(float(np.sum(weight * x * x) * np.sum(weight * y * y)))
    assert leaders.correlation(A, B) == pytest.approx(max(-1.0, min(1.0, cross / root)))


@pytest.mark.parametrize("lag", [0, 1])
def test_a_planted_beta_is_found_with_and_without_a_lag(lag: int) -> None:
    leaders = fed(paths(3, 4_000, lag=lag))
    assert leaders.beta(B, A) == pytest.approx(0.8, abs=0.1)
    assert leaders.correlation(C, A) == pytest.approx(0.0, abs=0.15)


def test_no_beta_before_enough_seconds_nor_after_a_long_gap() -> None:
    mids = paths(1, 6_000)
    assert math.isnan(fed({s: path[:300] for s, path in mids.items()}).beta(B, A))
    assert not math.isnan(fed({s: path[:400] for s, path in mids.items()}).beta(B, A))
    gone = set(range(3_000, 6_000))
    leaders = fed(mids, {A: gone})
    assert math.isnan(leaders.beta(B, A))
    assert not math.isnan(leaders.beta(B, C))


@settings(derandomize=True, max_examples=20, deadline=None)
@given(cut=st.integers(1, 449), gone=st.sets(st.integers(0, 449), max_size=30))
def test_a_checkpoint_at_any_second_repeats_the_rest(cut: int, gone: set[int]) -> None:
    mids = paths(2, 450)
    whole, begun = fed(mids, {A: gone}), fed({s: p[:cut] for s, p in mids.items()}, {A: gone})
    state = msgspec.msgpack.decode(msgspec.msgpack.encode(begun.state), type=LeadersState)
    after = Leaders(mids, state=state)
    for n in range(450):  # history that is told again changes nothing
        known = {s: path[n] for s, path in mids.items() if not (s == A and n in gone)}
        after.second((T0 + n) * SECOND_NS, known)
    assert after.state == whole.state


@pytest.mark.parametrize("beta", [0.8, -0.8])
def test_a_leaders_shock_delays_what_it_is_against_for_a_second(beta: float) -> None:
    mids = paths(4, 900, beta=beta)
    leaders, last = fed(mids), {s: path[-1] for s, path in mids.items()}
    sign = 1 if beta > 0 else -1
    fallen = last | {A: last[A] * (1 - 2 * SHOCK * 1.5e-4)}
    leaders.second((T0 + 900) * SECOND_NS, fallen)
    assert leaders.delays(B, sign)
    assert not leaders.delays(B, -sign)
    assert not leaders.delays(C, 1)
    leaders.second((T0 + 901) * SECOND_NS, fallen)
    assert not leaders.delays(B, sign)
    leaders.second((T0 + 903) * SECOND_NS, last)  # a jump over a gap is no shock
    assert not leaders.delays(B, -sign)


def test_a_group_counts_by_beta_and_what_is_not_known_as_the_worst() -> None:
    leaders = fed(paths(5, 2_000))
    values = {A: 1_000.0, B: -500.0, C: 700.0, "NEWUSDT": -300.0}
    counted = leaders.exposures(A, 1, values)
    assert counted == {B: pytest.approx(-500.0 * leaders.beta(B, A)), "NEWUSDT": 300.0}
    assert leaders.exposures(A, -1, values)["NEWUSDT"] == -300.0
    assert Leaders([A, B]).exposures(A, 1, {B: -500.0}) == {B: 500.0}


def test_a_symbol_without_data_is_told_once_and_guards_nothing() -> None:
    mids, leaders, told = paths(6, 800), Leaders([A, B]), []
    for n in range(800):
        told.append(leaders.second((T0 + n) * SECOND_NS, {B: mids[B][n]}))
        assert not leaders.delays(B, 1)
    assert told == [[A] if n == SILENT_S else [] for n in range(800)]


def test_a_delay_earns_on_planted_lead_lag_and_costs_nothing_on_null_data() -> None:
    found = {
        name: [gains(market, seed, 1.0) for seed in (1, 2, 3)] for name, market in markets().items()
    }
    assert all(gain > 0 and share > 0 for gain, share in found["follows by 0.9 s"])
    assert [share for _, share in found["null"]] == [0.0] * 3
