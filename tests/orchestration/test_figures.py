"""Figures claim no more than the data: intervals only with enough of them, no NaN for machines."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from orchestration.backtest.figures import MIN_BLOCKS, interval, plain
from orchestration.backtest.span import Span, SpanError, _instant

S = 1_000_000_000


def test_an_interval_covers_the_mean_and_is_left_out_when_the_span_is_too_short() -> None:
    generator = np.random.Generator(np.random.Philox(key=3))
    block_s, count = 600, 60 * 24
    times = np.arange(count, dtype=np.int64) * 60 * S
    values = generator.normal(0.5, 1.0, count)
    found = interval(times, values, np.ones(count), block_s, 500, 7)
    assert found is not None
    low, high = found
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 / math.sqrt(count), rel=0.4)
    short = MIN_BLOCKS * block_s // 60
    assert interval(times[:short], values[:short], np.ones(short), block_s, 500, 7) is None


def test_figures_are_json_without_numbers_that_are_none() -> None:
    data = plain({"a": math.nan, "b": [1.0, math.inf], 3: {"c": "x"}})
    assert json.loads(json.dumps(data, allow_nan=False)) == {
        "a": None,
        "b": [1.0, None],
        "3": {"c": "x"},
    }


def test_a_span_is_of_dates_or_instants_of_utc() -> None:
    day = 86_400 * S
    first, until = _instant("1970-01-03")
    assert (first, until) == (2 * day, 3 * day)
    assert _instant("1970-01-03T06:00") == (2 * day + day // 4,) * 2
    assert _instant("1970-01-03T06:00+02:00") == (2 * day + day // 6,) * 2
    assert Span(2 * day, 3 * day).dates == ["1970-01-03"]
    assert Span(2 * day + 1, 3 * day + 1).dates == ["1970-01-03", "1970-01-04"]
    with pytest.raises(SpanError, match="expected a UTC date"):
        _instant("yesterday")
