"""Sizes of what has no evidence yet: how they grow, what takes them back, what outlives a restart."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from live.ramp import FIRST_DAY, Ramp, RampState
from live.safety import CUTS, LIMITS
from market.settings import Desk
from market.units import DAY_NS

LATER = 2 * DAY_NS


def ramp(parents: int = 0, missed: float = 0.0, **desk: object) -> Ramp:
    """A ramp of model "a", begun at the epoch's first second, after parents that missed by so much."""
    made = Ramp(msgspec.convert(desk, Desk))
    made.load("a")
    made.begin(1)
    for noise in np.random.Generator(np.random.Philox(key=1)).normal(size=parents):
        made.measured(missed + noise)
    return made


@pytest.mark.parametrize(
    ("parents", "now_ns", "share"),
    [(0, 2, 0.25), (0, LATER, 0.25), (20, 2, 0.4), (100, 2, FIRST_DAY), (100, DAY_NS + 1, 1.0),
     (1000, LATER, 1.0)],
)  # fmt: skip
def test_a_share_grows_with_parents_and_stays_below_half_on_the_first_day(
    parents: int, now_ns: int, share: float
) -> None:
    assert ramp(parents).share(now_ns) == pytest.approx(share)


def test_costs_above_expectation_beyond_chance_keep_the_size_where_it_began() -> None:
    assert not ramp(3, 5.0).is_dear or ramp(3, 5.0).missed[1] < 2
    assert ramp(100, 1.5).share(LATER) == 0.25
    assert ramp(100, 0.9).share(LATER) == 1.0, "within the tolerance"
    one = ramp(100)
    one.measured(math.nan)
    assert one.state.parents == 100, "a parent without a cost is no evidence"


def test_a_breach_and_another_model_take_the_evidence_and_the_first_day_stays_over() -> None:
    one = ramp(100)
    assert one.breached(LATER, 0) == 1.0
    assert one.breached(LATER, 1) == pytest.approx(0.25)
    assert (one.share(LATER), one.state.cut_ns) == (0.25, LATER)
    assert one.breached(LATER, 1) == 1.0, "once"
    for _ in range(100):
        one.measured(0.0)
    one.load("a")
    assert one.share(LATER) == 1.0
    one.load("b")
    assert one.share(LATER) == 0.25
    assert {limit.name for limit in LIMITS} >= CUTS


def test_a_restart_goes_on_with_the_same_model_and_begins_again_with_another() -> None:
    kept = msgspec.json.decode(msgspec.json.encode(ramp(50).state), type=RampState)
    for model, share in (("a", 0.625), ("b", 0.25)):
        again = Ramp(Desk())
        again.load(model)
        again.restore(kept)
        again.begin(LATER)
        assert again.state.since_ns == 1
        assert again.share(LATER) == pytest.approx(share)


def test_without_the_part_every_size_is_whole_and_nothing_is_counted() -> None:
    off = ramp(5, ramp=False)
    assert (off.share(2), off.breached(2, 3), off.state.parents) == (1.0, 1.0, 0)
