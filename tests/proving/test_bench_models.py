"""The models' benchmark: its rows are complete, and each goal names one. Speed is not tested."""

from __future__ import annotations

import math

import numpy as np

from proving.bench import models as bench
from tests.proving.bench_goals import check_goals


def test_a_quick_run_has_a_row_for_every_goal() -> None:
    rows = {row.name: row for row in bench.measure(quick=True, say=lambda _: None)}
    check_goals("models", {name: row.unit for name, row in rows.items()})
    assert all(math.isfinite(row.ours) and row.how for row in rows.values())


def test_generated_rows_are_the_same_whatever_is_read_with_them() -> None:
    source = bench.GeneratedSource(2, 3000)
    day, names = source.dates()[1], bench.feature_names()
    every = source.read(source.dates(), names[:8], 5)
    one = source.read([day], names[3:5], 5)
    later = every.t_ns > every.t_ns[len(every) // 2 - 1]
    assert np.array_equal(every.features[later][:, 3:5], one.features)
    assert np.array_equal(every.labels_bps[later], one.labels_bps, equal_nan=True)
