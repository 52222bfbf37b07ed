"""A/B of execution: dealt evenly in every stratum and alike in a replay, and a test that holds at every look."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from execution.algorithms.working import Parent
from live.arms import Arms, base_of
from live.core import CoreState
from live.journal import parent_of
from live.messages import Append
from live.restoration import Restoration
from live.safety import Mode
from market.errors import UsageError
from market.instruments import BUILT_IN
from market.settings import Execution
from orchestration.tca import arms as comparison
from tests.live.test_desk import BTC, START, Refusing

ARMS = ("market", "passive behind_bps=1 patience=0.5")
DRAWN = st.lists(st.tuples(st.sampled_from([1, 80, 4000]), st.floats(0.0, 20.0)), max_size=60)


def dealt(arms: Arms, drawn: list[tuple[int, float]]) -> list[tuple[str, str]]:
    """(arm, stratum) of parents of these sizes and volatilities."""
    found = []
    for lots, sigma_bps in drawn:
        parent = Parent(
            id="", symbol=BTC, side=1, qty_lots=lots, decision_ns=0, deadline_ns=1, decision_mid_ticks=6e5
        )  # fmt: skip
        arm = arms.of(parent, "", BUILT_IN[BTC], sigma_bps)
        found.append((arm.name, arm.stratum))
    return found


@given(DRAWN, st.integers(0, 99), st.integers(0, 60))
def test_every_pair_of_a_stratum_has_both_arms_and_a_restart_changes_nothing(
    drawn: list[tuple[int, float]], seed: int, cut: int
) -> None:
    settings = Execution(arms=ARMS, arms_seed=seed)
    first, second = Arms(settings), Arms(settings)
    whole = dealt(first, drawn)
    before, second.counts = dealt(before_cut := Arms(settings), drawn[:cut]), before_cut.counts
    assert before + dealt(second, drawn[cut:]) == whole
    assert max(Counter(whole).values(), default=1) == 1, "no pair has one arm twice"
    for stratum, count in first.counts.items():
        own = Counter(arm for arm, of in whole if base_of(of) == stratum)
        assert max(own[ARMS[0]], own[ARMS[1]]) == math.ceil(count / 2)


def test_which_arm_is_first_is_a_fair_coin_of_the_seed() -> None:
    firsts = Counter(
        dealt(Arms(Execution(arms=ARMS, arms_seed=seed)), [(1, 1.0)])[0][0] for seed in range(400)
    )
    assert all(160 < firsts[arm] < 240 for arm in ARMS)


def opened(venue: Refusing) -> list[Append]:
    """Open and close ten parents; their records."""
    found: list[Append] = []
    venue.fills, emit = True, venue.effects.append
    venue.desk._emitter._emit = lambda x: (emit(x), found.append(x) if isinstance(x, Append) else 0)
    for n in range(10):
        venue.run(3, 10 * (n % 2 == 0))
    return [record for record in found if record.kind == "parent"]


def test_the_desk_works_parents_by_their_arm_and_a_log_counts_on() -> None:
    venue = Refusing("passive", 0, arms=["market", "market deadline_s=9"])
    records = opened(venue)
    rows = [parent_of(record) for record in records]
    assert len(rows) == 10
    assert {row.algorithm for row in rows} == {"market"}
    counts = venue.desk.snapshot().arms
    assert counts == Counter(base_of(row.stratum) for row in rows)
    assert max(Counter((row.arm, row.stratum) for row in rows).values()) == 1
    restoration = Restoration(CoreState(), {BTC: BUILT_IN[BTC]}, 0)
    for record in records:
        restoration.take(record)
    assert restoration.state().desk.arms == counts


def test_a_flattening_belongs_to_no_arm_and_without_arms_nothing_changes() -> None:
    venue = Refusing("market", 10, arms=["passive", "passive behind_bps=1 patience=0.5"])
    venue.fills = True
    venue.desk.govern(lambda symbol: Mode.FLATTEN)
    venue.run(3, 10)
    assert venue.desk.position_lots(BTC) == 0
    assert venue.desk.snapshot().arms == {}
    plain = [msgspec.json.decode(r.body) for r in opened(Refusing("market", 0))]
    assert {(row["arm"], row["stratum"], row["algorithm"]) for row in plain} == {("", "", "market")}


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        (["market"], "expected two different ones, or none"),
        (["market", "market"], "expected two different ones"),
        (["market", "passiv"], "algorithm 'passiv': expected one of"),
        (["market", "passive patience=2"], "expected no negative distance, a share of 0 to 1"),
        (["market", "passive patience=0.5"], "none \\(patience\\) without a distance"),
        (["market", "passive patience=x"], "expected NAME=NUMBER"),
        (["market", "twap patients=2"], "patients"),
    ],
)
def test_arms_that_cannot_be_are_refused_before_anything_trades(arms: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Refusing("market", 0, arms=arms)


def test_a_deadline_of_an_arm_is_its_parents() -> None:
    rows = [
        parent_of(r) for r in opened(Refusing("market", 0, arms=["market", "market deadline_s=5"]))
    ]
    spans = {row.arm: (row.deadline_ns - row.decision_ns) // 10**9 for row in rows}
    assert spans == {"market": 60, "market deadline_s=5": 5}


# -- the comparison --------------------------------------------------------------------------------


def records(differences: list[float]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    parents, costs = [], []
    for n, difference in enumerate(differences):
        for arm, total in (("a", 3.0), ("b", 3.0 + difference)):
            name = {"venue": "paper", "parent_id": f"{n}{arm}"}
            parents.append({**name, "arm": arm, "stratum": f"s #{n}", "decision_ns": START + n})
            costs.append({**name, "total_bps": total, "impact_by": "control"})
    return parents, costs


def test_pairs_tell_arms_apart_and_what_is_cut_or_half_is_left_out() -> None:
    parents, costs = records([2.0 + (-1) ** n for n in range(60)])
    (found,) = comparison.compared(parents, costs)
    assert (found["pairs"], found["cheaper"]) == (60, "a")
    assert 0 < found["lower_bps"] < found["difference_bps"] == 2.0 < found["upper_bps"]
    costs[0]["impact_by"] = "cut"
    costs[3]["total_bps"] = None
    (found,) = comparison.compared(parents[:-1], costs)
    assert (found["pairs"], found["left_out"]) == (57, 2)
    (found,) = comparison.compared(*records([(-1.0) ** n for n in range(60)]))
    assert found["cheaper"] == "open"
    assert comparison.compared(*records([])) == []


def test_equal_arms_are_told_apart_no_oftener_than_stated_and_unequal_ones_soon() -> None:
    """At one look a day for sixty days; the whole table is that of python -m orchestration.tca.arms."""
    assert sum(comparison.simulate(seed, 0.0) > 0 for seed in range(200)) <= 0.05 * 200
    found = [comparison.simulate(seed, 4.0) for seed in range(40)]
    assert 0 < min(found) <= max(found) <= 600
