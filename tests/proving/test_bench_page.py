"""A quick run of `l2 bench page` has every row, and its worker decides alike whoever reads."""

from __future__ import annotations

import pytest

from proving.bench import page
from proving.bench.command import BenchError, measures
from proving.bench.goals import GOALS


def test_a_quick_run_has_a_row_for_every_goal_and_the_same_decisions() -> None:
    rows = {row.name: row for row in page.measure(quick=True, say=lambda _: None)}
    assert set(GOALS["page"]) <= rows.keys()
    assert rows["worker, runs whose orders or records differ"].ours == 0
    runs = rows["worker, an event without a reader"].parts
    assert all(run["requests"] >= 10 for arm in runs.values() for run in arm)
    assert rows["page, most memory"].ours > 50


def test_seconds_are_of_the_page_alone() -> None:
    with pytest.raises(BenchError, match="--seconds is of page alone"):
        next(measures("market", True, lambda _: None, 5.0))
