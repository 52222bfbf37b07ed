"""The sandbox's benchmark: its rows are whole and goals name rows that exist. It judges speed, not tests."""

from __future__ import annotations

import math

from proving.bench import sandbox as bench
from proving.bench.command import GOALS


def test_a_quick_run_has_every_row_that_a_goal_is_set_for() -> None:
    rows = {row.name: row for row in bench.measure(quick=True, say=lambda _: None)}
    assert set(GOALS["sandbox"]) <= set(rows)
    assert all(math.isfinite(row.ours) and row.how for row in rows.values())
    orders = rows["order over REST to answer: p50"].how
    assert " 0 orders of all were refused" in orders
