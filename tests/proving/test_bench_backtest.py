"""`l2 bench backtest`: the stages of a short span, and its goals."""

from __future__ import annotations

import pytest

from proving.bench import backtest
from tests.proving.bench_goals import check_goals


def test_every_stage_of_a_backtest_is_a_row_and_the_total_is_their_sum() -> None:
    rows = {row.name: row for row in backtest.measure(quick=True, say=lambda _: None)}
    check_goals("backtest", {name: row.unit for name, row in rows.items()})
    ours = {name.removeprefix("backtest: "): row.ours for name, row in rows.items()}
    assert set(ours) == {
        *("features", "predictions", "run", "report", "run, its simulator", "run, its accounting"),
        "total, with both bounds",
    }
    once = ours["features"] + ours["predictions"] + ours["report"]
    assert ours["total, with both bounds"] == pytest.approx(once + 3 * ours["run"])
    assert all(value > 0 for name, value in ours.items() if "," not in name or "its" in name)
    assert "0 round trips" not in rows["backtest: run"].how
