"""Urgency: how it follows from the market and the signal, what algorithms make of it, and funding.

In words: more urgency never waits longer; at 0 nothing crosses before the deadline; at 1 everything
crosses at once. A stronger signal, one that fades sooner, or more left to fill is never less urgent.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execution.algorithms import ALGORITHMS, start
from execution.estimates import POLICY, Decay, Learnt, Prospect
from execution.liquidity import Costs, Estimate
from execution.orders import Accepted, Cancel, Cancelled, Event, Filled, Liquidity, Submit
from execution.orders import TimeInForce as Tif
from execution.urgency import Funding, entry_bps, half_life_s, leaves_for_funding, urgency
from market.units import SECOND_NS
from tests.execution.tape import play
from tests.execution.test_router import busy, parent, view

SPAN_S = 60.0
MINUTE = Decay(half_life_s=60.0, horizon_s=60.0)
EVENLY = Decay(half_life_s=math.inf, horizon_s=60.0)
MONITOR = busy()
COSTS = Costs()


def urgent(
    signal_bps: float | None,
    *,
    side: int = 1,
    lots: int = 170,
    left_s: float = SPAN_S,
    decay: Decay = MINUTE,
    costs: Costs = COSTS,
    funding: Funding | None = None,
    reduces: bool = False,
    **more: Any,
) -> float:
    seen = view(signal_bps=signal_bps, **more)
    return urgency(MONITOR, seen, side, lots, left_s, costs, decay, funding, reduces)


# -- the scale -------------------------------------------------------------------------------------


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    st.floats(-100, 100),
    st.floats(0, 100),
    st.sampled_from([1, -1]),
    st.floats(0.1, 300),
    st.floats(1, 600),
    st.integers(1, 5_000),
)
def test_it_is_within_0_and_1_and_rises_with_the_signal_and_with_its_haste(
    signal: float, more: float, side: int, left_s: float, life_s: float, lots: int
) -> None:
    given: Any = {"side": side, "lots": lots, "left_s": left_s}
    slow = Decay(half_life_s=life_s, horizon_s=60.0)
    fast = Decay(half_life_s=life_s / 2, horizon_s=60.0)
    found = urgent(signal, decay=slow, **given)
    assert 0 <= found <= 1
    assert found <= urgent(signal + side * more, decay=slow, **given)
    assert found <= urgent(signal, decay=fast, **given) + 1e-12


def test_waiting_is_cheap_without_a_signal_or_when_it_favours_the_other_side() -> None:
    assert urgent(None) == urgent(0.0) == urgent(-50.0) == urgent(50.0, side=-1) == 0.0


def test_crossing_is_at_once_where_it_saves_nothing_to_wait_or_there_is_no_time() -> None:
    """Without fees a spread of a tick is less than adverse selection."""
    assert urgent(None, costs=Costs(taker_bps=0, maker_bps=0)) == 1.0
    assert urgent(None, left_s=0.0) == 1.0


def test_more_left_or_a_narrower_spread_is_more_urgent() -> None:
    assert 0 < urgent(1.0, lots=10) < urgent(1.0, lots=5_000) < 1
    wide = tuple((600_201 + n, 8_000) for n in range(5))
    assert urgent(1.0, asks=wide) < urgent(1.0)


def test_the_formula_by_hand() -> None:
    """The fill model says 11.6 s, and a fill saves 3.5 bps less 0.3 and 0.28 σ."""
    fill_s = 11.609066177201273 / 1.75
    adverse = 0.30 + 0.28 * MONITOR.sigma_bps
    saved = 5.5 - 2.0 + 2 * view().half_spread_bps - adverse
    lost = 4.0 * (1 - 2 ** (-fill_s / 60)) / 0.5
    wanted = lost / saved / (1 - math.exp(-SPAN_S / fill_s))
    assert urgent(4.0) == pytest.approx(wanted, rel=1e-6)


# -- the half-life ---------------------------------------------------------------------------------


@pytest.mark.parametrize("life_s", [5.0, 60.0, 600.0])
def test_a_half_life_is_found_again_from_the_shares_of_its_horizons(life_s: float) -> None:
    curve = Decay(half_life_s=life_s, horizon_s=60.0)
    shares = [(at, curve.ratio(at), 1.0) for at in (10.0, 300.0, 900.0)]
    assert half_life_s(shares, 60.0) == pytest.approx(life_s, rel=0.03)


def test_without_other_horizons_a_return_comes_evenly_and_no_more_than_is_foreseen() -> None:
    assert half_life_s([], 60.0) == math.inf
    assert [EVENLY.share(at) for at in (0, 15, 60, 900)] == [0, 0.25, 1, 1]
    assert [MINUTE.share(at) for at in (0, 60, 900)] == [0, 1, 1]
    assert Decay().share(1e-9) == 1


# -- what algorithms make of it --------------------------------------------------------------------


def taken_s(algorithm: str, level: float | None, lots: int = 170) -> list[float]:
    """Seconds at which it takes, in a market where nothing that rests fills."""
    working, found = start(algorithm, parent(lots)), []
    working.inform(busy())
    evidence: list[Event] = []
    for tenth in range(round(10 * SPAN_S) + 20):
        now_ns = tenth * SECOND_NS // 10
        actions = play(working, now_ns, view(now_ns, urgency=level), evidence)
        evidence = []
        for action in actions:
            told: Any = {"client_id": action.client_id, "time_ns": now_ns, "venue_ns": now_ns}
            if isinstance(action, Cancel):
                order = working.orders.by_id[action.client_id]
                evidence.append(Cancelled(**told, reason="requested", leaves_lots=order.open_lots))
            elif isinstance(action, Submit):
                evidence.append(Accepted(**told))
                if action.time_in_force is Tif.IOC:
                    found.append(now_ns / SECOND_NS)
                    evidence.append(
                        Filled(
                            **told, exec_id=f"x{action.client_id}", symbol="BTCUSDT", side=1,
                            qty_lots=action.qty_lots, price_ticks=600_001, fee_e8=0,
                            liquidity=Liquidity.TAKER, leaves_lots=0,
                        )
                    )  # fmt: skip
    assert working.done
    return found


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_more_urgency_never_waits_longer(algorithm: str) -> None:
    last = [max(taken_s(algorithm, level)) for level in (0.0, 0.3, 0.6, 0.9, 1.0)]
    assert last == sorted(last, reverse=True)
    assert last[-1] == 0.0
    assert max(taken_s(algorithm, None)) >= last[0]


@pytest.mark.parametrize("algorithm", ["passive", "iceberg", "adaptive", "router"])
def test_without_urgency_nothing_crosses_before_the_deadline(algorithm: str) -> None:
    assert min(taken_s(algorithm, 0.0)) >= SPAN_S
    assert min(taken_s(algorithm, 0.5)) == pytest.approx(SPAN_S / 2, abs=0.11)


def test_what_it_should_cost_goes_from_a_makers_to_a_takers_price() -> None:
    def cost(level: float, algorithm: str = "passive") -> float:
        seen = view(urgency=level)
        prospect = Prospect(MONITOR, seen, 1, 170, COSTS, MINUTE)
        return prospect.estimate(algorithm, SPAN_S).total_bps

    costs = [cost(level) for level in (0.0, 0.5, 0.9, 1.0)]
    assert costs == sorted(costs)
    assert costs[-1] == cost(1.0, "twap") == cost(0.0, "market")


def test_a_hurried_twaps_slice_rests_as_long_as_one_that_is_not() -> None:
    """At an urgency of 0.9 slices come due ten times as fast, and cross no sooner but at the end."""
    seen = Prospect(MONITOR, view(), 1, 170, COSTS, MINUTE)
    calm, hurried = seen.sliced(60.0, 6.0), seen.sliced(6.0, 6.0)
    assert calm.total_bps < hurried.total_bps < seen.sliced(6.0, 0.6).total_bps
    hasty = Prospect(MONITOR, view(urgency=0.9), 1, 170, COSTS, MINUTE)
    assert hasty.estimate("twap", 60.0) == hasty.sliced(60.0 * (1 - 0.9), 6.0)


def test_what_parents_cost_beyond_their_estimates_is_learnt_and_shrunken() -> None:
    learnt, prior = Learnt(), Estimate(
        spread_bps=0.0, impact_bps=0.0, timing_bps=0.5, fees_bps=2.0, risk_bps=1.0, bias_bps=0.3
    )  # fmt: skip
    assert learnt.corrected("a", prior) == prior
    for _ in range(
        POLICY.bias_parents
    ):  # each costs 3.5: half a posterior's weight is of the prior
        learnt.learn("a", 3.5 - learnt.corrected("a", prior).total_bps)
        learnt.learn("b", math.nan)
    found = learnt.corrected("a", prior)
    assert found.total_bps == pytest.approx(3.0)
    assert found.bias_bps == pytest.approx(0.3 / math.sqrt(2))
    assert learnt.corrected("b", prior) == prior
    learnt.learn("c", 1e6)
    assert learnt.corrected("c", prior).total_bps < 2.8, (
        "one parent beyond all others teaches little"
    )


# -- funding ---------------------------------------------------------------------------------------


def test_an_entry_before_paying_earns_more_than_the_payment_until_then() -> None:
    """A bp is due in 2 s, of a minute's even return: 30 bps or wait; in 30 s a round trip and a bp."""
    assert entry_bps(5.0, 1, Funding(2, 1.0), EVENLY, 90) == pytest.approx(30.0)
    assert entry_bps(5.0, 1, Funding(30, 1.0), EVENLY, 90) == pytest.approx(6.0)


@pytest.mark.parametrize(
    ("side", "funding"),
    [(-1, Funding(2, 1.0)), (1, Funding(91, 1.0)), (1, None), (-1, Funding(2, 0))],
)
def test_what_is_received_or_due_after_the_exit_or_not_known_changes_no_entry(
    side: int, funding: Funding | None
) -> None:
    assert entry_bps(5.0, side, funding, EVENLY, 90) == 5.0


def test_a_position_is_closed_before_paying_only_for_more_than_the_round_trip() -> None:
    def leaves(rate: float, expected: float = math.nan, stamp_s: float = 20, side: int = 1) -> bool:
        return leaves_for_funding(5.0, side, expected, Funding(stamp_s, rate), EVENLY, 30)

    assert not leaves(5.0)
    assert leaves(5.1)
    # It gives up a third of the 3 bps that it expects.
    assert not leaves(5.9, expected=3.0)
    assert leaves(6.1, expected=3.0)
    assert not leaves(6.1, stamp_s=31)
    assert not leaves(6.1, side=-1)
    assert not leaves_for_funding(5.0, 1, 0.0, None, EVENLY, 30)


def test_an_exit_hurries_before_paying_more_than_crossing_costs_and_an_entry_never() -> None:
    assert urgent(None, side=-1, funding=Funding(1, 30.0), reduces=True) == 1.0
    assert 0 < urgent(None, side=-1, funding=Funding(1, 1.0), reduces=True) < 1
    assert urgent(None, side=1, funding=Funding(1, 30.0)) == 0.0
    assert urgent(4.0, side=1, funding=Funding(5, 1.0)) < urgent(4.0)
    assert urgent(None, side=-1, funding=Funding(SPAN_S + 1, 30.0), reduces=True) == 0.0


@pytest.mark.parametrize(("side", "rate"), [(1, 30.0), (-1, -30.0)])
def test_funding_to_be_received_hurries_no_entry_and_delays_no_exit(side: int, rate: float) -> None:
    """At a positive rate a short receives: neither selling into it nor buying it back is judged by that."""
    funding = Funding(1, rate)
    assert urgent(None, side=-side, funding=funding) == 0.0
    for signal in (None, side * 3.0):
        given: Any = {"side": side, "reduces": True}
        assert urgent(signal, funding=funding, **given) == urgent(signal, **given)
