"""The label model, as dbt renders it, against a loop over seconds."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import duckdb
import jinja2
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.contracts import FILES, fill
from assets.dbt import PROJECT

DAY_NS = 86_400_000_000_000
MIDNIGHT = 20_484 * DAY_NS  # 2026-01-31
HORIZONS = (2, 5)

Second = tuple[bool, bool, float]  # the bar exists, it has a gap, its mid


def rendered(horizons: tuple[int, ...]) -> str:
    text = (PROJECT / "models/marts/labels.sql").read_text()
    template = jinja2.Environment().from_string(text)
    return template.render(ref=lambda name: name, var={"horizons_s": horizons}.__getitem__)


@cache
def database() -> duckdb.DuckDBPyConnection:
    return duckdb.connect(config={"threads": 1})


def by_sql(seconds: list[Second]) -> dict[int, tuple[float | None, ...]]:
    """Labels by t_ns; the seconds straddle midnight, four of them in the first date."""
    rows = []
    for n, (exists, gap, mid) in enumerate(seconds):
        if exists:
            date = "2026-01-30" if n < 4 else "2026-01-31"
            t_ns = MIDNIGHT + (n - 3) * 1_000_000_000
            rows.append(("BTCUSDT", date, t_ns, True, float(gap), mid))
            # a neighbour that nobody asked for, at other prices
            rows.append(("ETHUSDT", date, t_ns, False, 0.0, 7.0 + n))
    names = ["symbol", "date", "t_ns", "wanted", "gap", "mid_close"]
    stg_bars = pa.table([list(column) for column in zip(*rows, strict=True)] or [[]] * 6, names)
    connection = database()
    connection.register("stg_bars", stg_bars)
    return {row[2]: row[3:] for row in connection.execute(rendered(HORIZONS)).fetchall()}


def by_loop(seconds: list[Second]) -> dict[int, tuple[float | None, ...]]:
    expected = {}
    for n, (exists, _, _) in enumerate(seconds):
        last = min(3, len(seconds) - 1) if n < 4 else len(seconds) - 1
        if exists:
            labels: list[float | None] = []
            for horizon in HORIZONS:
                end = n + 1 + horizon
                whole = end <= last and all(
                    exists_ and not gap for exists_, gap, _ in seconds[n + 1 : end + 1]
                )
                labels.append(
                    math.log(seconds[end][2]) - math.log(seconds[n + 1][2]) if whole else None
                )
            expected[MIDNIGHT + (n - 3) * 1_000_000_000] = tuple(labels)
    return expected


second = st.tuples(
    st.integers(0, 9).map(bool),
    st.integers(0, 9).map(lambda n: n == 0),
    st.floats(1e-3, 1e6, allow_subnormal=False),
)


@given(st.lists(second, min_size=1, max_size=30))
@settings(derandomize=True, max_examples=60, deadline=None)
def test_a_label_needs_every_second_up_to_its_end_and_starts_one_second_late(
    seconds: list[Second],
) -> None:
    """For every bar and horizon: ln mid(t+1+h) - ln mid(t+1) if all seconds of (t, t+1+h] are bars
    of the same date without a gap, else NULL; one row per wanted bar, none for others."""
    if not any(exists for exists, _, _ in seconds):
        seconds = [(True, False, 1.0), *seconds]
    found, expected = by_sql(seconds), by_loop(seconds)
    assert found.keys() == expected.keys()
    for t_ns, labels in expected.items():
        for got, want in zip(found[t_ns], labels, strict=True):
            assert (got is None) == (want is None)
            assert want is None or abs(got - want) <= 1e-12


def test_the_columns_of_the_contracts_are_the_columns_that_are_defined() -> None:
    for name in FILES:
        text = Path(PROJECT / name).read_text()
        assert "# -- columns: " in text
        assert fill(text) == text, f"{name} is stale: run python -m assets.contracts"
