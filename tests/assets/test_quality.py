"""Data quality: figures of a partition, the suites over them, and what blocks."""

# No postponed annotations here: Dagster compares the type of `context` as it stands.

from pathlib import Path
from urllib.parse import quote, unquote

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from assets.expectations import BARS, EVENTS, SUITES, Bound
from assets.platform import PARTITIONS, Platform, partition_key
from assets.quality import Verdict, features_quality, record, validate, withhold
from assets.quality_batches import BATCHES, STEADY
from market.bars import COLUMNS, make_bars
from market.events import Events, Flag, Kind, to_arrow
from market.lake import Lake
from market.settings import Settings
from proving.synthetic import generate, profile
from tests.orchestration.parsed_page import ParsedPage

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
    make_bars(lake, *KEY, Settings())


def breaches(lake: Lake, table: str, folder: Path) -> list[Verdict]:
    batch = BATCHES[table](lake, *KEY)
    return [v for v in validate({NAME: batch}, table, SUITES[table], folder)[0] if not v.passed]


def warned(found: list[Verdict]) -> set[str]:
    return {verdict.bound.figure for verdict in found if verdict.bound.severity == "warning"}


def critical(found: list[Verdict]) -> set[str]:
    return {verdict.bound.figure for verdict in found if verdict.bound.severity == "critical"}


def lake_of(events: Events, folder: Path) -> Lake:
    lake = Lake(folder / "lake", "synthetic")
    store(lake, events)
    return lake


def test_a_sound_market_breaches_nothing_critical(minute: Events, tmp_path: Path) -> None:
    lake = lake_of(minute, tmp_path)
    for table in ("events", "bars"):
        assert not critical(breaches(lake, table, tmp_path / "quality"))


def test_each_defect_is_named_with_its_partition_and_seconds(
    minute: Events, tmp_path: Path
) -> None:
    """Two of three seconds missing, gaps, a price of zero, trades far off the market and of nothing."""
    broken = minute.copy()
    second = broken["receive_ns"] // 1_000_000_000
    books = (broken["kind"] == Kind.DELTA) | (broken["kind"] == Kind.SNAPSHOT)
    broken = broken[~(books & (second % 3 > 0))]
    books = np.flatnonzero(broken["kind"] == Kind.DELTA)
    broken["flags"][books[::5]] |= np.uint8(Flag.GAP)
    trades = np.flatnonzero(broken["kind"] == Kind.TRADE)
    broken["price_ticks"][trades[0]] = 0
    broken["price_ticks"][trades[1:9]] *= 2
    broken["qty_lots"][trades[9]] = 0
    broken["receive_ns"][books[-1]] -= 1
    lake = Lake(tmp_path / "lake", "synthetic")
    lake.write("events", *KEY, to_arrow(broken))
    batch = BATCHES["events"](lake, *KEY)
    verdicts, pages = validate({NAME: batch}, "events", EVENTS, tmp_path / "quality")
    assert {
        v.bound.figure for v in verdicts if v.bound.severity == "critical" and not v.passed
    } == {*("frames", "gaps", "priceless", "empty_trades", "off_market", "steps_back")}
    (silent, _) = (verdict for verdict in verdicts if verdict.bound.figure == "frames")
    assert silent.value == pytest.approx(2 / 3, abs=0.02)
    assert silent.rows[:3] == ("00:00:01", "00:00:02", "00:00:04")
    assert f"in {NAME}" in str(silent)
    page = Path(unquote(pages[NAME].removeprefix("file://")))
    assert NAME in page.parts, "the partition's own page"
    assert "gaps" in page.read_text()
    assert f"validations/events/{quote(NAME)}" in (page.parents[4] / "index.html").read_text()
    assert "a trade moves a quantity" in (page.parents[4] / "expectations/events.html").read_text()
    for shown in (
        page,
        page.parents[4] / "index.html",
        page.parents[4] / "expectations/events.html",
    ):
        text = shown.read_text()
        assert "://" not in text, "nothing leaves the machine"
        parsed = ParsedPage(text)
        assert parsed.fetched == []
        for address in parsed.links:
            assert (shown.parent / unquote(address.partition("#")[0])).is_file(), address


def test_a_clock_behind_the_exchange_warns_and_does_not_block(
    minute: Events, tmp_path: Path
) -> None:
    late = minute.copy()
    late["exchange_ns"] += 2_000_000_000
    found = breaches(lake_of(late, tmp_path), "events", tmp_path / "quality")
    assert (warned(found), critical(found)) == ({"lag_min_s"}, set())


def test_a_clock_step_is_distinguished_from_a_clock_that_is_behind(
    minute: Events, tmp_path: Path
) -> None:
    stepped = minute.copy()
    later = stepped["receive_ns"] >= stepped["receive_ns"][0] + 30 * 10**9
    stepped["exchange_ns"][later] -= 400_000_000
    found = breaches(lake_of(stepped, tmp_path), "events", tmp_path / "quality")
    assert warned(found) == {"clock_step_s"}


def test_a_crossed_book_blocks_what_is_made_of_its_bars(minute: Events, tmp_path: Path) -> None:
    """Every bid level is moved above the asks."""
    crossed = minute.copy()
    bids = ((crossed["kind"] == Kind.DELTA) | (crossed["kind"] == Kind.SNAPSHOT)) & (
        crossed["side"] == 1
    )
    crossed["price_ticks"][bids] += 10_000
    found = breaches(lake_of(crossed, tmp_path), "bars", tmp_path / "quality")
    assert "crossed_frames" in critical(found)


@pytest.mark.parametrize(
    ("counted", "errors", "warnings"),
    [
        ({"rejected": 10}, {"rejected_share"}, {"rejected_share", "steps_back_share"}),
        ({"rejected": 0, "left_out": 9}, set(), {"left_out", "steps_back_share"}),
    ],
)
def test_rejected_lines_and_steps_back_come_from_the_ingest_counts(
    counted: dict[str, int], errors: set[str], warnings: set[str], minute: Events, tmp_path: Path
) -> None:
    """A partition of an earlier ingest does not say what was left out."""
    lake = lake_of(minute, tmp_path)
    lake.write("ingests", *KEY, pa.table({n: [v] for n, v in counted.items()} | INGESTED))
    found = breaches(lake, "events", tmp_path / "quality")
    assert (critical(found), warned(found)) == (errors, warnings)


INGESTED = {"topic": ["t"], "frames": [90], "events": [1], "steps_back": [9]}


def rows_of(bounds: tuple[Bound, ...], bad: Bound | None = None, side: str = "") -> pd.DataFrame:
    """A thousand rows within every limit, but one bound's, which is broken as little as can be."""
    batch = pd.DataFrame({"time": map(str, range(1000))})
    for figure in dict.fromkeys(bound.figure for bound in bounds):
        mine = [bound for bound in bounds if bound.figure == figure]
        low = max((b.low for b in mine if b.low is not None), default=None)
        high = min((b.high for b in mine if b.high is not None), default=None)
        inside = 0.0 if low is None and high is None else low if high is None else high
        batch[figure] = inside / 1000 if mine[0].metric == "sum" else float(inside)
    if bad is not None:
        number = int(bad.outside * 1000) + 1 if bad.metric in ("values", "present") else 1000
        limit = float(getattr(bad, side))
        beyond = limit + (1e-6 if side == "high" else -1e-6)
        batch.loc[: number - 1, bad.figure] = beyond / (
            1000 if bad.metric == "sum" and limit else 1
        )
    return batch


@pytest.mark.parametrize("table", SUITES)
def test_every_expectation_holds_at_its_limit_and_not_beyond(table: str, tmp_path: Path) -> None:
    bounds = SUITES[table]
    cases = {
        f"2026-01-01 {n}{side}": (bound, side)
        for n, bound in enumerate(bounds)
        for side in ("low", "high")
        if getattr(bound, side) is not None
    }
    absent = rows_of(bounds).assign(**dict.fromkeys((b.figure for b in bounds), np.nan))
    batches = {"2026-01-01 good": rows_of(bounds), "2026-01-01 absent": absent}
    batches |= {name: rows_of(bounds, *case) for name, case in cases.items()}
    verdicts, _ = validate(batches, table, bounds, tmp_path)
    broken = {(v.partition, v.bound) for v in verdicts if not v.passed}
    assert broken >= {(name, bound) for name, (bound, _) in cases.items()}
    present = [bound for bound in bounds if bound.metric == "present"]
    assert {b for at, b in broken if at.endswith(("good", "absent"))} == set(present)


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
    found = BATCHES["bars"](lake, *KEY)["volume_to_turnover"][0]
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


def test_features_are_counted_in_warm_rows(tmp_path: Path) -> None:
    lake = Lake(tmp_path, "synthetic")
    feature_day(lake, DAY)
    batch = BATCHES["features"](lake, *KEY).set_index("feature")
    assert batch.index[batch["absent"] == 1].tolist() == ["gone"]
    assert batch.index[batch["constant"] == 1].tolist() == ["still"]
    assert batch["null_share"].mean() == pytest.approx(1 / (len(STEADY) + 2))
    assert (batch["warm_share"] == 1).all()
    feature_day(lake, DAY, warm=False)
    batch = BATCHES["features"](lake, *KEY)
    assert (batch["warm_share"] == 0).all()
    assert batch["null_share"].isna().all()


def test_drift_is_measured_once_the_week_before_has_three_dates(tmp_path: Path) -> None:
    lake = Lake(tmp_path, "synthetic")
    week = [f"2026-03-{n:02d}" for n in (2, 3, 4, 5)]
    for day in week[:3]:
        feature_day(lake, day)

    def drift(day: str) -> float:
        return float(BATCHES["features"](lake, "BTCUSDT", day)["drift"].max())

    assert np.isnan(drift(week[2]))
    feature_day(lake, week[3])
    assert drift(week[3]) < 0.3
    feature_day(lake, week[3], shift=3.0)
    # A standard normal's quartiles are 1.349 apart.
    assert drift(week[3]) == pytest.approx(3 / 1.349, rel=0.15)


# -- what fails does not train -----------------------------------------------------------------


def test_a_failing_date_is_recorded_and_withheld_until_it_passes(
    minute: Events, tmp_path: Path
) -> None:
    lake, other = lake_of(minute, tmp_path), ("ETHUSDT", DAY)
    for key in (KEY, other):
        lake.write("training_set", *key, pa.table({"t_ns": [1]}))
    batch = BATCHES["bars"](lake, *KEY)

    def verdict(figure: str, value: float) -> dict[tuple[str, str], str]:
        altered = {NAME: batch.assign(**{figure: value})}
        verdicts, _ = validate(altered, "bars", BARS, tmp_path / "quality")
        failed = record(lake, "bars", KEY, verdicts)
        withheld = withhold(lake, [KEY, other])
        assert failed == (KEY in withheld)
        return withheld

    assert verdict("frames", 0.0) == {}
    assert lake.exists("training_set", *KEY)
    assert verdict("jump_pct", 9.0) == {KEY: "bars.jump_pct"}
    assert not lake.exists("training_set", *KEY)
    assert lake.exists("training_set", *other)
    told = lake.connect(["quality"]).sql(
        "select symbol, date, judged, figure, value, high from quality"
        " where not passed and severity = 'critical'"
    )
    assert told.fetchall() == [(*KEY, "bars", "jump_pct", 9.0, 5.0)]
    # Built again while the verdict stands, it is taken away again; once it passes it stays.
    lake.write("training_set", *KEY, pa.table({"t_ns": [1]}))
    assert withhold(lake, [KEY]) == {KEY: "bars.jump_pct"}
    assert not lake.exists("training_set", *KEY)
    lake.write("training_set", *KEY, pa.table({"t_ns": [1]}))
    assert verdict("jump_pct", 0.1) == {}
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


def test_a_batch_is_of_the_partition_alone_whatever_its_lake_is_named(tmp_path: Path) -> None:
    for name, rows in (("a*", 2), ("ab", 3), ("[1]", 4), ("1", 5)):
        columns = dict.fromkeys(COLUMNS, np.zeros(rows))
        Lake(tmp_path / name).write("bars", *KEY, pa.table({"t_ns": np.arange(rows), **columns}))
    for name, rows in (("a*", 2), ("[1]", 4)):
        assert len(BATCHES["bars"](Lake(tmp_path / name), *KEY)) == rows
