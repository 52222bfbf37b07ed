"""What the tests of every benchmark area ask of its goals."""

from __future__ import annotations

from collections.abc import Mapping

from proving.bench.calibration import REFERENCE_MS
from proving.bench.goals import GOALS


def check_goals(area: str, units: Mapping[str, str]) -> None:
    """Each goal names a measured row, and a kind of calibration exactly where it is in absolute time."""
    assert set(GOALS[area]) <= set(units)
    for name, goals in GOALS[area].items():
        in_time = units[name] in ("s", "ms", "µs") or "/s" in units[name]
        for goal in goals:
            if in_time and goal.of == "ours":
                assert goal.kind in REFERENCE_MS, name
            else:
                assert goal.kind is None, name
