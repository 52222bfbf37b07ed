"""Two symbol-days through ingest, bars and features: every figure is there."""

from __future__ import annotations

from proving.bench import growth


def test_a_quick_run_has_the_cost_of_each_step_memory_and_bytes() -> None:
    rows = {row.name: row.ours for row in growth.measure(quick=True, say=lambda _: None)}
    told = {name.removeprefix("2 symbol-days: "): value for name, value in rows.items()}
    assert all(value > 0 for value in told.values())
    steps = sum(told[f"{step}, a symbol-day"] for step in growth.STEPS)
    assert told["all steps, a symbol-day"] == steps
    assert {"peak memory", "peak staging", "stored, a symbol-day"} < told.keys()
