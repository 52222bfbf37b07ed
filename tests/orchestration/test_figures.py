"""Intervals only with enough data, JSON without NaN, and the spans that people type."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from market.errors import UsageError
from orchestration.backtest.figures import MIN_BLOCKS, bootstrap_interval, plain
from orchestration.backtest.span import Span, _parse

S = 1_000_000_000


def test_an_interval_covers_the_mean_and_is_none_for_a_short_span() -> None:
    generator = np.random.Generator(np.random.Philox(key=3))
    block_s, count = 600, 60 * 24
    times = np.arange(count, dtype=np.int64) * 60 * S
    values = generator.normal(0.5, 1.0, count)
    interval = bootstrap_interval(times, values, np.ones(count), block_s, 500, 7)
    assert interval is not None
    low, high = interval
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 / math.sqrt(count), rel=0.4)
    short = MIN_BLOCKS * block_s // 60
    assert (
        bootstrap_interval(times[:short], values[:short], np.ones(short), block_s, 500, 7) is None
    )


def test_nan_and_infinity_are_null_in_json() -> None:
    data = plain({"a": math.nan, "b": [1.0, math.inf], 3: {"c": "x"}})
    assert json.loads(json.dumps(data, allow_nan=False)) == {
        "a": None,
        "b": [1.0, None],
        "3": {"c": "x"},
    }


def test_a_span_is_of_utc_dates_or_instants() -> None:
    day = 86_400 * S
    first, until = _parse("1970-01-03")
    assert (first, until) == (2 * day, 3 * day)
    assert _parse("1970-01-03T06:00") == (2 * day + day // 4,) * 2
    assert _parse("1970-01-03T06:00+02:00") == (2 * day + day // 6,) * 2
    assert Span(2 * day, 3 * day).dates == ["1970-01-03"]
    assert Span(2 * day + 1, 3 * day + 1).dates == ["1970-01-03", "1970-01-04"]
    with pytest.raises(UsageError, match="expected a UTC date"):
        _parse("yesterday")
