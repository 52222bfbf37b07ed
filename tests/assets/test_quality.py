"""Data quality: figures of a partition, the suites over them, and what blocks."""

# No postponed annotations here: Dagster compares the type of `context` as it stands.

import math
from pathlib import Path

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from assets.platform import PARTITIONS, Platform, partition_key
from assets.quality import (
    BARS,
    EVENTS,
    FEATURES,
    SUITES,
    Bound,
    Breach,
    features_quality,
    record,
    validate,
    withhold,
)
from assets.quality_figures import STEADY, _query, summarise
from market.bars import COLUMNS, bars_from_chunks
from market.events import Events, Flag, Kind, to_arrow
from market.instruments import BUILT_IN
from market.lake import Lake
from market.settings import Settings
from proving.synthetic import generate, profile

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
    for table in ("events", "bars"):
        frame = summarise(lake, table, [KEY])
        found[table] = validate(frame, table, SUITES[table], folder)[0]
    return found


def warned(breaches: list[Breach]) -> set[str]:
    return {breach.figure for breach in breaches if breach.severity == "warning"}


def critical(breaches: list[Breach]) -> set[str]:
    return {breach.figure for breach in breaches if breach.severity == "critical"}


def test_a_sound_market_breaches_nothing_critical(minute: Events, tmp_path: Path) -> None:
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
    frame = summarise(lake, "events", [KEY])
    breaches, docs = validate(frame, "events", EVENTS, tmp_path / "quality")
    assert critical(breaches) >= {
        "completeness",
        "gap_share",
        "nonpositive_price",
        "trades_off_market",
    }
    assert all(breach.partitions == (NAME,) for breach in breaches)
    page = Path(docs.removeprefix("file://"))
    assert page.parent.parent.parent.name == "events", "the result's own page"
    assert "completeness" in page.read_text()


def test_a_clock_behind_the_exchange_warns_and_does_not_block(
    minute: Events, tmp_path: Path
) -> None:
    late = minute.copy()
    late["exchange_ns"] += 2_000_000_000
    found = judged(lake_of(late, tmp_path), tmp_path / "quality")["events"]
    assert warned(found) == {"lag_min_s"}
    assert not critical(found)


def lake_of(events: Events, folder: Path) -> Lake:
    lake = Lake(folder / "lake", "synthetic")
    store(lake, events)
    return lake


def test_a_clock_step_is_distinguished_from_a_clock_that_is_behind(
    minute: Events, tmp_path: Path
) -> None:
    stepped = minute.copy()
    later = stepped["receive_ns"] >= stepped["receive_ns"][0] + 30 * 10**9
    stepped["exchange_ns"][later] -= 400_000_000
    assert warned(judged(lake_of(stepped, tmp_path), tmp_path / "quality")["events"]) == {
        "clock_step_s"
    }


def test_a_crossed_book_blocks(minute: Events, tmp_path: Path) -> None:
    """Every bid level is moved above the asks."""
    crossed = minute.copy()
    bids = ((crossed["kind"] == Kind.DELTA) | (crossed["kind"] == Kind.SNAPSHOT)) & (
        crossed["side"] == 1
    )
    crossed["price_ticks"][bids] += 10_000
    assert "crossed_share" in critical(
        judged(lake_of(crossed, tmp_path), tmp_path / "quality")["events"]
    )


def test_rejected_lines_and_steps_back_come_from_the_ingest_counts(
    minute: Events, tmp_path: Path
) -> None:
    lake = lake_of(minute, tmp_path)
    row = {"topic": "t", "converted": True, "frames": 90, "events": 1, "rejected": 10}
    row |= {"duplicates": 0, "gaps": 0, "steps_back": 9, "torn": 0}
    lake.write("ingests", *KEY, pa.Table.from_pylist([row]))
    figures = summarise(lake, "events", [KEY]).iloc[0]
    assert (figures["rejected_share"], figures["steps_back_share"]) == (0.1, 0.1)
    found = judged(lake, tmp_path / "quality")["events"]
    assert critical(found) == {"rejected_share"}
    assert warned(found) == {"rejected_share", "steps_back_share"}


def test_frames_without_a_time_are_a_warning(minute: Events, tmp_path: Path) -> None:
    lake = lake_of(minute, tmp_path)
    row = {"topic": "t", "converted": True, "frames": 90, "events": 1, "rejected": 0}
    row |= {"duplicates": 0, "gaps": 0, "steps_back": 9, "left_out": 9, "torn": 0}
    lake.write("ingests", *KEY, pa.Table.from_pylist([row]))
    assert summarise(lake, "events", [KEY]).iloc[0]["left_out"] == 9
    found = judged(lake, tmp_path / "quality")["events"]
    assert critical(found) == set()
    assert "left_out" in warned(found)


def good(bounds: tuple[Bound, ...]) -> dict[str, float]:
    """A figure within all its bounds, for every figure of a suite."""
    figures: dict[str, float] = {}
    for figure in dict.fromkeys(bound.figure for bound in bounds):
        mine = [bound for bound in bounds if bound.figure == figure]
        low = max([bound.low for bound in mine if bound.low is not None], default=None)
        high = min([bound.high for bound in mine if bound.high is not None], default=None)
        figures[figure] = float(low if high is None else high if low is None else (low + high) / 2)
    return figures


@pytest.mark.parametrize("table", SUITES)
def test_every_expectation_names_the_partition_that_breaches_it(table: str, tmp_path: Path) -> None:
    """One partition breaks each bound alone, as far beyond it as it takes; the good one never."""
    bounds = SUITES[table]
    cases = [
        (bound, side, {"partition": f"bad{n}{side}", **good(bounds), bound.figure: value})
        for n, bound in enumerate(bounds)
        for side, value in (
            ("low", None if bound.low is None else bound.low - 1e-6),
            ("high", None if bound.high is None else bound.high + 1e-6),
        )
        if value is not None
    ]
    absent = dict.fromkeys(good(bounds), math.nan)
    rows = [{"partition": "good", **good(bounds)}, {"partition": "absent", **absent}]
    frame = pd.DataFrame([*rows, *(row for _, _, row in cases)])
    breaches, _ = validate(frame, table, bounds, tmp_path)
    found = {(b.severity, b.figure, place) for b in breaches for place in b.partitions}
    assert {(bound.severity, bound.figure, row["partition"]) for bound, _, row in cases} <= found
    assert not {"good", "absent"} & {place for _, _, place in found}


def test_no_suite_repeats_a_dbt_test() -> None:
    """dbt tests keys, rows per bar, whole seconds, finite values and the sign of a price."""
    said = {bound.figure for suite in SUITES.values() for bound in suite}
    assert len(EVENTS) >= 12
    assert len(BARS) >= 8
    assert len(FEATURES) >= 6
    assert not said & {"duplicates", "not_null", "finite", "mid_close", "t_ns"}


@pytest.mark.parametrize(
    ("source", "rows", "share"),
    [
        ("recorded", 86_400, 1.0),
        ("recorded", 80_000, None),
        ("synthetic", 86_400, None),
    ],
)
def test_trades_are_compared_with_the_tickers_turnover_over_a_whole_date(
    source: str, rows: int, share: float | None, tmp_path: Path
) -> None:
    columns = dict.fromkeys(COLUMNS, np.zeros(rows))
    columns |= {"buy_notional": np.full(rows, 3.0), "sell_notional": np.full(rows, 1.0)}
    columns |= {"turnover_24h": np.linspace(1, 4.0 * rows, rows), "mid_close": np.ones(rows)}
    lake = Lake(tmp_path, source)
    lake.write("bars", *KEY, pa.table({"t_ns": np.arange(rows), **columns}))
    found = summarise(lake, "bars", [KEY]).iloc[0]["volume_to_turnover"]
    assert np.isnan(found) if share is None else found == share


# -- features ----------------------------------------------------------------------------------


def feature_day(lake: Lake, day: str, shift: float = 0.0, warm: bool = True) -> None:
    """A date of random features; one of them has no value, one never changes."""
    rng = np.random.default_rng(int(day[-2:]))
    n = 500
    columns = {name: rng.normal(shift, 1, n) for name in STEADY}
    rows = pa.table({"t_ns": np.arange(n), "warm": np.full(n, warm), **columns})
    rows = rows.append_column("still", pa.array(np.ones(n)))
    lake.write("features", "BTCUSDT", day, rows.append_column("gone", pa.nulls(n, pa.float64())))


def figures_of_features(lake: Lake, day: str) -> dict[str, float]:
    return dict(summarise(lake, "features", [("BTCUSDT", day)]).iloc[0])


def test_features_are_counted_in_warm_rows(tmp_path: Path) -> None:
    lake = Lake(tmp_path, "synthetic")
    feature_day(lake, DAY)
    figures = figures_of_features(lake, DAY)
    assert (figures["absent"], figures["constant"], figures["warm_share"]) == (1, 1, 1)
    assert figures["null_share"] == pytest.approx(1 / (len(STEADY) + 2))
    feature_day(lake, DAY, warm=False)
    figures = figures_of_features(lake, DAY)
    assert figures["warm_share"] == 0
    assert np.isnan(figures["null_share"])


def test_drift_is_measured_once_the_week_before_has_three_dates(tmp_path: Path) -> None:
    lake = Lake(tmp_path, "synthetic")
    week = [f"2026-03-{n:02d}" for n in (2, 3, 4, 5)]
    for day in week[:3]:
        feature_day(lake, day)
    assert np.isnan(figures_of_features(lake, week[2])["drift"])
    feature_day(lake, week[3])
    assert figures_of_features(lake, week[3])["drift"] < 0.3
    feature_day(lake, week[3], shift=3.0)
    # A standard normal's quartiles are 1.349 apart.
    assert figures_of_features(lake, week[3])["drift"] == pytest.approx(3 / 1.349, rel=0.15)


# -- what fails does not train -----------------------------------------------------------------


def test_a_failing_date_is_recorded_and_withheld_until_it_passes(
    minute: Events, tmp_path: Path
) -> None:
    lake, other = lake_of(minute, tmp_path), ("ETHUSDT", DAY)
    for key in (KEY, other):
        lake.write("training_set", *key, pa.table({"t_ns": [1]}))
    frame = summarise(lake, "bars", [KEY])

    def verdict(figure: str, value: float) -> dict[tuple[str, str], str]:
        altered = frame.assign(**{figure: value})
        breaches, _ = validate(altered, "bars", BARS, tmp_path / "quality")
        failed = record(lake, "bars", altered, breaches)
        assert failed == ([KEY] if critical(breaches) else [])
        return withhold(lake, [KEY, other])

    assert verdict("silent_share", 0.5) == {}
    assert lake.exists("training_set", *KEY)
    assert verdict("largest_jump_pct", 9.0) == {KEY: "bars.largest_jump_pct"}
    assert not lake.exists("training_set", *KEY)
    assert lake.exists("training_set", *other)
    told = lake.connect(["quality"]).sql(
        "select symbol, date, judged, figure, value, high from quality"
        " where not passed and severity = 'critical'"
    )
    assert told.fetchall() == [(*KEY, "bars", "largest_jump_pct", 9.0, 5.0)]
    # Built again while the verdict stands, it is taken away again; once it passes it stays.
    lake.write("training_set", *KEY, pa.table({"t_ns": [1]}))
    assert withhold(lake, [KEY]) == {KEY: "bars.largest_jump_pct"}
    assert not lake.exists("training_set", *KEY)
    lake.write("training_set", *KEY, pa.table({"t_ns": [1]}))
    assert verdict("largest_jump_pct", 0.1) == {}
    assert lake.exists("training_set", *KEY)


def test_training_waits_for_the_features_suite_and_does_not_get_a_failed_date(
    tmp_path: Path,
) -> None:
    """In Dagster: features far from their week fail, and what trains downstream does not run."""
    lake = Lake(tmp_path, "synthetic")
    for n in range(2, 6):
        feature_day(lake, f"2026-03-{n:02d}", shift=100.0 if n == 5 else 0.0)
        lake.write("training_set", "BTCUSDT", f"2026-03-{n:02d}", pa.table({"t_ns": [1]}))

    names = ("features", "training_set")

    @dg.multi_asset(specs=[dg.AssetSpec(name, partitions_def=PARTITIONS) for name in names])
    def warehouse():  # Dagster would read a return type
        for name in names:
            yield dg.MaterializeResult(asset_key=name)

    trained: list[str] = []

    @dg.asset(deps=["training_set"], partitions_def=PARTITIONS)
    def trains(context: dg.AssetExecutionContext) -> None:
        trained.append(context.partition_key)

    def ran(day: str) -> dict[str, bool]:
        result = dg.materialize(
            [warehouse, features_quality, trains],
            partition_key=partition_key("BTCUSDT", day),
            resources={"platform": Platform(overrides=[f"root={tmp_path}", "source=synthetic"])},
            raise_on_error=False,
        )
        return {c.check_name: c.passed for c in result.get_asset_check_evaluations()}

    assert ran("2026-03-04")["sound_dates"]
    assert len(trained) == 1
    assert ran("2026-03-05") == {"features_quality": False, "sound_dates": False}
    assert len(trained) == 1
    assert not lake.exists("training_set", "BTCUSDT", "2026-03-05")
    assert lake.exists("training_set", "BTCUSDT", "2026-03-04")


def test_figures_are_of_the_partition_alone_whatever_its_lake_is_named(tmp_path: Path) -> None:
    key = ("bars", "BTCUSDT", "2026-03-02")
    for name, rows in (("a*", 2), ("ab", 3), ("[1]", 4), ("1", 5)):
        Lake(tmp_path / name).write(*key, pa.table({"t_ns": range(rows)}))
    for name, rows in (("a*", 2), ("[1]", 4)):
        path = Lake(tmp_path / name).path(*key)
        assert _query("select count(*) from read_parquet($path)", path) == (rows,)
