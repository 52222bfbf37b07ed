"""The sandbox's benchmark: its rows are complete, and each goal names one. Speed is not tested."""

from __future__ import annotations

import math

from proving.bench import sandbox as bench
from tests.proving.bench_goals import check_goals


def test_a_quick_run_has_a_row_for_every_goal() -> None:
    rows = {row.name: row for row in bench.measure(quick=True, say=lambda _: None)}
    check_goals("sandbox", {name: row.unit for name, row in rows.items()})
    assert all(math.isfinite(row.ours) and row.how for row in rows.values())
    orders = rows["order over REST to answer: p50"].how
    assert " 0 orders of all were refused" in orders
