"""The figures of the synthetic market are whole and of the unit they say; how fast, no test asks."""

from __future__ import annotations

from proving.bench.synthetic import measure, run
from tests.proving.bench_goals import check_goals


def test_every_goal_has_its_figure() -> None:
    said: list[str] = []
    rows = {row.name: row for row in measure(True, said.append)}
    check_goals("synth", {name: row.unit for name, row in rows.items()})
    assert all(row.ours > 0 for row in rows.values())
    assert rows["peak memory of a day"].unit == "MB"
    assert len(said) == 4


def test_l3_events_are_counted_between_stops() -> None:
    took, events = run("BTCUSDT", "2026-03-01", [0, 30, 60])
    again = run("BTCUSDT", "2026-03-01", [0, 60])[1]
    assert len(took) == 3
    assert sum(events) == again[0]
    assert min(events) > 100
