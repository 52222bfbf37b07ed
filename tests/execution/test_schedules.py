"""What the schedules want done by when."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from execution.algorithms.schedules import (
    AlmgrenChriss,
    Pov,
    Scheduled,
    Twap,
    Vwap,
    trajectory,
)
from execution.orders import Submit, TimeInForce
from market.units import SECOND_NS
from tests.execution.tape import play
from tests.execution.test_algorithms import DEADLINE, fill, parent, view


def shares(algorithm: Scheduled, traded: int = 0) -> list[float]:
    """What should be done at each second of the parent's time."""
    return [
        algorithm._share(
            k * SECOND_NS, msgspec.structs.replace(view(k * SECOND_NS), bought_lots=k * traded)
        )
        for k in range(DEADLINE // SECOND_NS + 1)
    ]


@pytest.mark.parametrize(
    "algorithm",
    [
        Twap(parent()),
        Vwap(parent()),
        AlmgrenChriss(parent(), front_load=3.0),
        AlmgrenChriss(parent(), front_load=0.0),
    ],
)
def test_a_schedule_rises_from_its_start_to_all_of_it(algorithm: Scheduled) -> None:
    curve = shares(algorithm)
    assert all(a <= b for a, b in pairwise(curve))
    assert 0 <= curve[0] < 0.2
    assert curve[-1] == pytest.approx(1.0)


def test_twap_s_slices_are_uneven_and_the_same_for_the_same_parent() -> None:
    ours = Twap(parent())._steps
    assert ours == Twap(parent())._steps
    sizes = np.diff([0.0, *(done for _, done in ours)])
    assert len(set(sizes)) == 10
    assert np.all(np.abs(sizes * 10 - 1) < 0.45)


def test_pov_takes_its_share_of_what_trades() -> None:
    """At a participation of a fifth, 40 lots of others call for 10 of ours."""
    algorithm = Pov(parent(lots=100), participation=0.2)
    assert shares(algorithm, traded=40)[1] == pytest.approx(0.1)
    assert shares(Pov(parent()), traded=0)[-1] == 0.0


def test_pov_counts_what_others_trade_where_the_tape_has_our_fills_too() -> None:
    """Of 40 lots 10 were ours: a fifth of all of them, so that there is nothing more to do; without our fills in
    the tape the 40 are the others'."""
    for ours, share in ((True, 0.075), (False, 0.1)):
        algorithm = Pov(parent(lots=100), participation=0.2)
        algorithm.own_in_tape, algorithm.filled_lots = ours, 10
        assert shares(algorithm, traded=40)[1] == pytest.approx(share)


def test_the_almgren_chriss_curve_has_the_least_cost() -> None:
    """Against a numerical minimum of risk plus impact over all schedules of twenty steps, in the
    discrete form, whose κ is arccosh(κ̃²τ²/2 + 1)/τ."""
    steps, span, aversion, sigma, temporary = 20, 1.0, 4.0, 1.0, 1.0
    step = span / steps
    kappa = math.acosh(aversion * sigma**2 / temporary * step**2 / 2 + 1) / step

    def cost(inside: Any) -> float:
        left = np.concatenate([[1.0], inside, [0.0]])
        sold = -np.diff(left)
        risk = aversion * sigma**2 * step * np.sum(left[1:] ** 2)
        return float(risk + temporary / step * np.sum(sold**2))

    found = minimize(cost, np.linspace(1, 0, steps + 1)[1:-1], method="BFGS").x
    ours = [1 - trajectory(kappa * span, k / steps) for k in range(1, steps)]
    assert np.allclose(found, ours, atol=1e-4)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.floats(0, 2000), st.floats(0, 1))
def test_a_trajectory_stays_between_even_and_all_at_once(kappa_t: float, elapsed: float) -> None:
    """However averse, the curve is between a straight line and 1, and finite."""
    assert elapsed - 1e-9 <= trajectory(kappa_t, elapsed) <= 1 + 1e-9


def test_overdue_quantity_is_taken() -> None:
    """After ten seconds of patience what was due by then crosses, one order at a time."""
    algorithm = AlmgrenChriss(parent(lots=30), front_load=0.0)
    taken: list[Submit] = []
    for k in range(15):
        now = k * SECOND_NS
        sent = play(algorithm, now, view(now), [])
        taken += [a for a in sent if isinstance(a, Submit) and a.time_in_force is TimeInForce.IOC]
        assert sum(order.qty_lots for order in taken) <= max(0, k - 10)
    assert [order.qty_lots for order in taken] == [1]
    # Answered, it takes the rest of what was due four seconds after the start.
    done = fill(1, 0, "x1", taken[0].client_id)
    sent = play(algorithm, 14 * SECOND_NS + 1, view(14 * SECOND_NS + 1), [done])
    crosses = [a for a in sent if isinstance(a, Submit) and a.time_in_force is TimeInForce.IOC]
    assert [order.qty_lots for order in crosses] == [3]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Pov(parent(), participation=1.0), "participation 1"),
        (lambda: AlmgrenChriss(parent(), front_load=-1.0), "front load -1"),
    ],
)
def test_parameters_out_of_range_are_refused(make: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()
