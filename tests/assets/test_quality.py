"""Data quality: figures of a partition, the suites over them, and what blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from assets.quality import (
    BAR_BOUNDS,
    BAR_FIGURES,
    EVENT_BOUNDS,
    EVENT_FIGURES,
    Breach,
    summarise,
    validate,
)
from market.bars import bars_from_chunks
from market.events import Events, Flag, Kind, to_arrow
from market.instruments import BUILT_IN
from market.lake import Lake
from market.settings import Settings
from market.synthetic import generate, profile

#: Great Expectations still imports and calls what Python and its own libraries are giving up.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

DAY = "2026-03-02"
KEY = ("BTCUSDT", DAY)
NAME = f"{DAY} BTCUSDT"


@pytest.fixture(scope="module")
def minute() -> Events:
    """Two minutes of a market in order."""
    return np.concatenate(list(generate(profile("demo"), 7, "BTCUSDT", DAY, 0, 120)))


def store(lake: Lake, events: Events) -> None:
    """The events, and the bars made of them, as partitions."""
    lake.write("events", *KEY, to_arrow(events))
    bars = bars_from_chunks([events], BUILT_IN["BTCUSDT"], Settings())
    lake.write("bars", *KEY, bars.to_arrow())


def judged(lake: Lake, folder: Path) -> dict[str, list[Breach]]:
    found = {}
    for table, figures, bounds in (
        ("events", EVENT_FIGURES, EVENT_BOUNDS),
        ("bars", BAR_FIGURES, BAR_BOUNDS),
    ):
        frame = summarise(lake, table, [KEY], figures)
        found[table] = validate(frame, table, bounds, folder)[0]
    return found


def critical(breaches: list[Breach]) -> set[str]:
    return {breach.figure for breach in breaches if breach.severity == "critical"}


def test_a_market_in_order_breaks_nothing_critical(minute: Events, tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake", "synthetic")
    store(lake, minute)
    found = judged(lake, tmp_path / "quality")
    assert not critical(found["events"])
    assert not critical(found["bars"])


def test_each_defect_is_named_with_its_partition(minute: Events, tmp_path: Path) -> None:
    """Two of three seconds missing, gaps, a price of zero, a trade far off the market."""
    broken = minute.copy()
    second = broken["receive_ns"] // 1_000_000_000
    books = (broken["kind"] == Kind.DELTA) | (broken["kind"] == Kind.SNAPSHOT)
    broken = broken[~(books & (second % 3 > 0))]
    books = np.flatnonzero(broken["kind"] == Kind.DELTA)
    broken["flags"][books[::5]] |= np.uint8(Flag.GAP)
    trades = np.flatnonzero(broken["kind"] == Kind.TRADE)
    broken["price_ticks"][trades[0]] = 0
    broken["price_ticks"][trades[1:9]] *= 2
    lake = Lake(tmp_path / "lake", "synthetic")
    lake.write("events", *KEY, to_arrow(broken))
    frame = summarise(lake, "events", [KEY], EVENT_FIGURES)
    breaches, docs = validate(frame, "events", EVENT_BOUNDS, tmp_path / "quality")
    assert critical(breaches) >= {
        "completeness",
        "gap_share",
        "nonpositive_price",
        "trades_off_market",
    }
    assert all(breach.partitions == (NAME,) for breach in breaches)
    assert Path(docs.removeprefix("file://")).exists()


def test_a_clock_behind_the_exchange_warns_and_does_not_block(
    minute: Events, tmp_path: Path
) -> None:
    late = minute.copy()
    late["exchange_ns"] += 2_000_000_000
    lake = Lake(tmp_path / "lake", "synthetic")
    lake.write("events", *KEY, to_arrow(late))
    frame = summarise(lake, "events", [KEY], EVENT_FIGURES)
    breaches, _ = validate(frame, "events", EVENT_BOUNDS, tmp_path / "quality")
    assert "lag_min_s" in {breach.figure for breach in breaches}
    assert not critical(breaches)


@pytest.mark.parametrize(
    ("figure", "value"),
    [
        ("gap_share", 0.5),
        ("mid_null_share", 0.5),
        ("largest_jump_pct", 9.0),
        ("spread_median_bps", 12.0),
        ("one_sided_share", 0.1),
        ("volume_without_trades", 1.0),
    ],
)
def test_each_figure_of_bars_can_block(figure: str, value: float, tmp_path: Path) -> None:
    good = {
        "gap_share": 0.0,
        "mid_null_share": 0.0,
        "largest_jump_pct": 0.1,
        "spread_median_bps": 0.01,
        "one_sided_share": 0.0,
        "volume_without_trades": 0.0,
        "truncated_share": 0.0,
        "silent_share": 0.0,
    }
    rows = [{"partition": "good", **good}, {"partition": "bad", **good, figure: value}]
    breaches, _ = validate(pd.DataFrame(rows), "bars", BAR_BOUNDS, tmp_path)
    assert critical(breaches) == {figure}
    assert {place for breach in breaches for place in breach.partitions} == {"bad"}
