"""dbt runs over small lakes: what is published, when nothing is, and the same through Dagster."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assets.dbt import PROJECT, BuildReport, WarehouseError, dbt_vars
from assets.dbt_assets import (
    _describe_features,
    table_assets,
    warehouse,
)
from assets.platform import PARTITIONS, Platform, Span, partition_key, spans
from assets.staleness import require_current
from assets.warehouse import TABLES, build_range
from market.bars import COLUMNS
from market.features import feature_names
from market.lake import Lake
from market.provenance import code_hash
from market.settings import Settings, load
from market.units import day_start_ns
from models_registry.dataset import DatasetError
from orchestration.automation import range_tags

SECOND = 1_000_000_000
SATURDAY, SUNDAY = "2026-01-31", "2026-02-01"
SETTINGS = Settings()


def write_bars(
    lake: Lake, symbol: str, day: str, first: int, last: int, *, gaps: tuple[int, ...] = ()
) -> None:
    """Random bars of the seconds ``first`` to ``last`` of a date; every 20,000th is missing."""
    key = [int.from_bytes(symbol.encode()[:4], "big"), day_start_ns(day)]
    rng = np.random.Generator(np.random.Philox(key=key))
    second = np.arange(first, last + 1)
    columns = {name: rng.uniform(0.5, 1.5, second.size) for name in COLUMNS}
    columns["mid_close"] = 60_000 * np.exp(np.cumsum(rng.normal(0, 1e-5, second.size)))
    columns["gap"] = np.isin(second, gaps).astype(float)
    kept = np.flatnonzero(second % 20_000 != 0)
    bars = pa.table({"t_ns": day_start_ns(day) + second * SECOND} | columns)
    lake.write("bars", symbol, day, bars.take(kept), inputs=f"random {first} {last}")


def content(lake: Lake) -> dict[tuple[str, str, str], str]:
    """Hash of every published partition."""
    return {
        (table, symbol, day): hashlib.sha256(
            Path(lake.path(table, symbol, day)).read_bytes()
        ).hexdigest()
        for table in TABLES
        for symbol, day in lake.partitions(table)
    }


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, BuildReport, dict[Any, str]]:
    """BTC around a midnight, ETH on the second date only, and a file nobody should open."""
    lake = Lake(tmp_path_factory.mktemp("warehouse") / "lake")
    write_bars(lake, "BTCUSDT", SATURDAY, 79_990, 86_400, gaps=(81_000, 81_001))
    write_bars(lake, "BTCUSDT", SUNDAY, 1, 5_000)
    write_bars(lake, "ETHUSDT", SUNDAY, 1, 600)
    foreign = Path(lake.path("bars", "BTCUSDT", "2026-01-01"))
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"not Parquet: no read of another date may open this")
    report = build_range(lake, SETTINGS, ("ETHUSDT", "BTCUSDT"), SATURDAY, SUNDAY)
    return lake, report, content(lake)


def test_a_range_reports_rows_missing_partitions_and_tests_by_name(built: Any) -> None:
    lake, report, _ = built
    bars = lake.load("bars", ["BTCUSDT"], SATURDAY, SUNDAY).num_rows
    assert report.rows["features"] == {"BTCUSDT": bars, "ETHUSDT": 600}
    assert report.rows["labels"] == report.rows["features"]
    assert report.missing == (("ETHUSDT", SATURDAY),)
    assert len(report.keys) == 3
    assert all(test.passed for test in report.tests)
    assert {"labels_stop_at_gaps", "one_row_per_bar_features_"} <= {t.name for t in report.tests}
    assert not any(lake.scratch().glob("warehouse-*"))


@pytest.mark.parametrize(
    ("symbol", "day"), [("BTCUSDT", SATURDAY), ("BTCUSDT", SUNDAY), ("ETHUSDT", SUNDAY)]
)
def test_labels_are_log_returns_from_one_second_later_and_end_with_the_date(
    built: Any, symbol: str, day: str
) -> None:
    lake, _, _ = built
    bars, labels = lake.read("bars", symbol, day), lake.read("labels", symbol, day)
    second = (bars["t_ns"].to_numpy() - day_start_ns(day)) // SECOND
    log_mid = np.full(86_401 + 901, np.nan)
    sound = bars["gap"].to_numpy() == 0
    log_mid[second[sound]] = np.log(bars["mid_close"].to_numpy()[sound])
    broken = np.concatenate([[0], np.cumsum(np.isnan(log_mid))])
    assert labels["t_ns"].equals(bars["t_ns"])
    for horizon in SETTINGS.model.horizons_s:
        start, end = second + 1, second + 1 + horizon
        inside = np.minimum(end, log_mid.size - 1)
        whole = broken[inside + 1] - broken[start] == 0
        expected = np.where(whole, log_mid[inside] - log_mid[np.minimum(start, inside)], np.nan)
        found = labels[f"y_{horizon}"].to_numpy(zero_copy_only=False)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert labels["y_10"].null_count < labels.num_rows


def test_the_training_set_is_the_warm_rows_with_a_label(built: Any) -> None:
    lake, report, _ = built
    for day in (SATURDAY, SUNDAY):
        parts = {table: lake.read(table, "BTCUSDT", day) for table in TABLES}
        labels = [name for name in parts["labels"].column_names if name.startswith("y_")]
        names = [n for n in parts["features"].column_names if n not in ("t_ns", "warm")]
        assert parts["training_set"].column_names == [
            "t_ns",
            "mid_close",
            "spread_bps",
            *names,
            *labels,
        ]
        some = np.any([~np.isnan(_floats(parts["labels"], name)) for name in labels], axis=0)
        kept = np.flatnonzero(parts["features"]["warm"].to_numpy(zero_copy_only=False) & some)
        assert kept.size > 100
        for table, columns in (("features", ["t_ns", *names]), ("labels", labels)):
            expected = parts[table].select(columns).take(kept)
            assert parts["training_set"].select(columns).equals(expected)
    # the hour before midnight warms the next date up: its first second can be a training row
    assert parts["training_set"]["t_ns"][0].as_py() == day_start_ns(SUNDAY) + SECOND
    # ten minutes are never warm: the partition says that it was built, and is empty
    assert lake.read("training_set", "ETHUSDT", SUNDAY).num_rows == 0
    assert report.rows["training_set"]["ETHUSDT"] == 0


def _floats(table: pa.Table, name: str) -> Any:
    return table[name].to_numpy(zero_copy_only=False)


def test_features_are_stored_rounded_and_all_else_as_computed(built: Any) -> None:
    lake, _, _ = built
    for table in ("features", "training_set"):
        schema = lake.open(table, "BTCUSDT", SUNDAY).schema_arrow
        kinds = {str(schema.field(name).type) for name in feature_names()}
        others = {f.name: str(f.type) for f in schema if f.name not in feature_names()}
        assert kinds == {"float"}
        assert set(others.values()) <= {"int64", "bool", "double"}
        assert others.get("mid_close", "double") == "double"
    file = Path(lake.path("features", "BTCUSDT", SUNDAY))
    assert file.stat().st_size < 1.1 * 5_000 * len(feature_names()) * 4


def test_batches_show_as_they_end_and_a_failure_keeps_those_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second date's bars fail a test of dbt: the first is published and shows as such at once; the
    run goes on with it, and names the second."""
    lake = Lake(tmp_path / "lake")
    monkeypatch.setenv("L2_ROOT", lake.base)
    write_bars(lake, "BTCUSDT", SATURDAY, 1, 100)
    write_bars(lake, "BTCUSDT", SUNDAY, 1, 100)
    wrong = lake.read("bars", "BTCUSDT", SUNDAY)
    gap = wrong.schema.get_field_index("gap")
    wrong = wrong.set_column(gap, "gap", pa.array([2.0] * len(wrong)))
    lake.write("bars", "BTCUSDT", SUNDAY, wrong, inputs="wrong")
    one_by_one = table_assets("warehouse", TABLES, build_range, _describe_features, batch=1)
    instance = dg.DagsterInstance.ephemeral()
    result = dg.materialize(
        [one_by_one],
        tags=range_tags(SATURDAY, SUNDAY, ("BTCUSDT",)),
        resources={"platform": Platform()},
        instance=instance,
        raise_on_error=False,
    )
    assert {table: lake.partitions(table) for table in TABLES} == {
        table: [("BTCUSDT", SATURDAY)] for table in TABLES
    }
    published = [
        event
        for event in result.get_asset_materialization_events()
        if "published" in event.materialization.metadata
    ]
    assert {event.materialization.partition for event in published} == {
        partition_key("BTCUSDT", SATURDAY)
    }
    assert len(published) == len(TABLES)
    assert result.success
    (told,) = {
        str(event.materialization.metadata["failed partitions"].value)
        for event in result.get_asset_materialization_events()
        if "failed partitions" in event.materialization.metadata
    }
    assert told.startswith(f"{{'{SUNDAY} BTCUSDT': 'dbt test bars_can_be_used")
    failing = [c for c in result.get_asset_check_evaluations() if not c.passed]
    assert {check.severity for check in failing} == {dg.AssetCheckSeverity.WARN}
    assert not any((Path(lake.base) / "staging").iterdir())


@given(
    st.lists(st.sampled_from(["A", "B", "C", "D", "E", "F", "G"]), min_size=1, unique=True),
    st.integers(0, 40),
    st.integers(1, 9),
)
def test_batches_hold_every_partition_once_and_no_more_than_they_may(
    symbols: list[str], days: int, size: int
) -> None:
    last = str(np.datetime64(SATURDAY) + days)
    span = Span(tuple(symbols), SATURDAY, last)
    batches = span.batches(size)
    keys = [key for batch in batches for key in batch.keys]
    assert sorted(keys) == sorted(span.keys)
    assert all(len(batch.keys) <= size for batch in batches)
    starts = [batch.from_date for batch in batches]
    assert starts == sorted(starts)  # a failure keeps what is earlier
    if len(symbols) <= size:
        fewest = -(-len(span.dates) // (size // len(symbols)))
        assert len(batches) == fewest


def test_a_partition_records_its_code_and_its_inputs(built: Any) -> None:
    lake, _, _ = built
    found = {table: lake.metadata(table, "BTCUSDT", SUNDAY) for table in TABLES}
    for table in TABLES:
        assert found[table]["code"] == code_hash(table)
        assert found[table]["source"] == "recorded"
    assert len({found[table]["inputs"] for table in TABLES}) == 3


def test_one_date_alone_through_dagster_gives_the_bytes_of_the_range(
    built: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, _, before = built
    monkeypatch.setenv("L2_ROOT", lake.base)
    result = dg.materialize(
        [warehouse],
        partition_key=partition_key("BTCUSDT", SUNDAY),
        resources={"platform": Platform()},
        instance=dg.DagsterInstance.ephemeral(),
    )
    assert content(lake) == before
    rows = {
        event.asset_key.to_user_string(): event.materialization.metadata["rows"].value
        for event in result.get_asset_materialization_events()
    }
    assert rows == {t: lake.read(t, "BTCUSDT", SUNDAY).num_rows for t in TABLES}
    checks = result.get_asset_check_evaluations()
    assert {check.check_name for check in checks} == {key.name for key in warehouse.check_keys}
    assert all(check.passed for check in checks)


def test_the_assets_are_downstream_of_bars_and_have_descriptions() -> None:
    assert {key.to_user_string() for key in warehouse.keys} == set(TABLES)
    assert warehouse.partitions_def == PARTITIONS
    upstream = {d.asset_key.to_user_string() for spec in warehouse.specs for d in spec.deps}
    assert upstream == {"bars", "features", "labels"}
    for spec in warehouse.specs:
        assert spec.owners
        assert spec.group_name == "warehouse"
        assert {"dbt", "duckdb"} <= spec.kinds
        assert len(spec.description or "") > 40


def test_a_failing_test_publishes_nothing_and_is_named(built: Any, tmp_path: Path) -> None:
    lake, _, before = built
    project = tmp_path / "project"
    shutil.copytree(PROJECT, project, ignore=shutil.ignore_patterns("target", "logs"))
    (project / "tests" / "nobody_moves.sql").write_text(
        "select * from {{ ref('labels') }} where y_10 != 0\n"
    )
    with pytest.raises(WarehouseError, match=r"^dbt test nobody_moves failed in \d+ row") as caught:
        build_range(
            lake, SETTINGS, ("BTCUSDT",), SUNDAY, SUNDAY, tables=("labels",), project=project
        )
    assert "\n" not in str(caught.value)
    assert {test.name for test in caught.value.tests if not test.passed} == {"nobody_moves"}
    assert content(lake) == before
    assert not any(lake.scratch().glob("warehouse-*"))


def of_other_code(path: str) -> None:
    bars = pq.ParquetFile(path).read()
    notes = bars.schema.metadata | {b"l2.code": b"0123456789abcdef"}
    pq.write_table(bars.replace_schema_metadata(notes), path)


def test_without_usable_bars_nothing_is_built_and_the_reason_is_told(tmp_path: Path) -> None:
    lake, key = Lake(tmp_path / "lake"), ("BTCUSDT", SUNDAY)
    report = build_range(lake, SETTINGS, ("BTCUSDT",), SUNDAY, SUNDAY)
    assert (report.keys, report.missing, report.failed) == ((), (key,), {})
    write_bars(lake, *key, 1, 10)
    of_other_code(lake.path("bars", *key))
    report = build_range(lake, SETTINGS, ("BTCUSDT",), SUNDAY, SUNDAY)
    assert (report.keys, report.missing) == ((), ())
    assert "made by other code" in report.failed[key]
    assert content(lake) == {}


@pytest.mark.parametrize("fault", ["absent", "judged", "unreadable", "of other code"])
def test_a_date_beside_a_bad_one_is_built_as_if_that_were_absent(
    tmp_path: Path, fault: str
) -> None:
    """Bars that failed a critical expectation fill no window of the next date; bars that can be made
    again, of other code or damaged, keep who needs them waiting, and nobody else."""
    lake, bad = Lake(tmp_path / "lake"), ("BTCUSDT", SATURDAY)
    write_bars(lake, "BTCUSDT", SUNDAY, 1, 200)
    write_bars(lake, "SOLUSDT", SUNDAY, 1, 50)
    if fault != "absent":
        write_bars(lake, *bad, 86_000, 86_400)
    if fault == "judged":
        verdict = {"judged": "bars", "figure": "gap_share", "severity": "critical", "passed": False}
        lake.write("quality", *bad, pa.Table.from_pylist([verdict]))
    elif fault == "unreadable":
        Path(lake.path("bars", *bad)).write_bytes(b"not Parquet")
    elif fault == "of other code":
        of_other_code(lake.path("bars", *bad))
    report = build_range(lake, SETTINGS, ("BTCUSDT",), SATURDAY, SUNDAY)
    if fault in ("absent", "judged"):
        assert report.keys == (("BTCUSDT", SUNDAY),)
        assert list(report.failed) == ([bad] if fault == "judged" else [])
        alone = Lake(tmp_path / "alone")
        write_bars(alone, "BTCUSDT", SUNDAY, 1, 200)
        build_range(alone, SETTINGS, ("BTCUSDT",), SUNDAY, SUNDAY)
        assert content(lake) == content(alone)
    else:
        assert set(report.failed) == {bad, ("BTCUSDT", SUNDAY)}
        report = build_range(lake, SETTINGS, ("BTCUSDT",), SUNDAY, "2026-02-02")
        assert report.keys == ()


def test_dbt_build_by_hand_passes_the_unit_tests_and_leaves_the_lake_alone(
    built: Any, tmp_path: Path
) -> None:
    lake, _, before = built
    done = subprocess.run(
        [
            *(sys.executable, "-m", "dbt.cli.main", "--no-use-colors", "build"),
            *("--select", "stg_bars", "labels", "--indirect-selection", "cautious"),
            *("--target-path", str(tmp_path), "--log-path", str(tmp_path)),
            *("--vars", f"{{from_date: '{SUNDAY}', to_date: '{SUNDAY}', out: '{tmp_path}'}}"),
        ],
        cwd=PROJECT,
        env={"PATH": "", "L2_ROOT": lake.base, "DO_NOT_TRACK": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    for name in (
        "a_label_starts_one_second_after_its_bar",
        "a_label_ends_before_a_gap",
        "a_label_does_not_cross_midnight",
    ):
        assert f"PASS labels::{name}" in done.stdout
    assert (tmp_path / "labels" / "symbol=BTCUSDT" / f"date={SUNDAY}").is_dir()
    assert content(lake) == before


def test_other_horizons_have_their_contract_in_a_lake_of_any_name(tmp_path: Path) -> None:
    write_bars(Lake(tmp_path / "1"), "ETHUSDT", SUNDAY, 1, 600)
    lake = Lake(tmp_path / "it's {a,b} *[1]")
    write_bars(lake, "BTCUSDT", SUNDAY, 1, 3_700)
    settings = load(environ={}, overrides=["model.horizons_s=7,60,120"])
    report = build_range(lake, settings, ("BTCUSDT",), SUNDAY, SUNDAY)
    assert all(test.passed for test in report.tests)
    for table in ("labels", "training_set"):
        names = lake.read(table, "BTCUSDT", SUNDAY).column_names
        assert [name for name in names if name.startswith("y_")] == ["y_7", "y_60", "y_120"]
    assert report.rows["training_set"]["BTCUSDT"] == 3_700 - 720 - 1 - 7 + 1
    assert lake.tables() == ["bars", *sorted(TABLES)]
    assert not any(lake.scratch().glob("warehouse-*"))


def test_keys_become_the_fewest_ranges_that_contain_exactly_them() -> None:
    def keys(*pairs: tuple[str, str]) -> list[str]:
        return [partition_key(symbol, day) for symbol, day in pairs]

    both = [(s, d) for s in ("ETHUSDT", "BTCUSDT") for d in (SUNDAY, SATURDAY)]
    assert spans(keys(*both)) == (Span(("BTCUSDT", "ETHUSDT"), SATURDAY, SUNDAY),)
    picked = spans(keys(("BTCUSDT", SATURDAY), ("ETHUSDT", SUNDAY), ("BTCUSDT", "2026-02-05")))
    assert picked == (
        Span(("BTCUSDT",), SATURDAY, SATURDAY),
        Span(("ETHUSDT",), SUNDAY, SUNDAY),
        Span(("BTCUSDT",), "2026-02-05", "2026-02-05"),
    )
    assert picked[0].keys == [("BTCUSDT", SATURDAY)]
    assert set(keys(*both)) <= set(PARTITIONS.get_partition_keys())


def test_vars_have_the_leaders_of_the_symbols_and_the_settings_horizons(
    tmp_path: Path,
) -> None:
    settings = load(environ={}, overrides=["model.horizons_s=5,10"])
    out = str(tmp_path / "out")
    found = dbt_vars(
        Lake(tmp_path), settings, ["SOLUSDT", "BTCUSDT"], SATURDAY, SUNDAY, out, ["bars"]
    )
    assert found == {
        "root": f"{out}/lake",
        "out": out,
        "symbols": ["BTCUSDT", "SOLUSDT"],
        "leaders": ["BTCUSDT", "ETHUSDT"],
        "from_date": SATURDAY,
        "to_date": SUNDAY,
        "horizons_s": [5, 10],
    }


def test_training_refuses_partitions_of_other_inputs_by_name_and_says_the_command(
    tmp_path: Path,
) -> None:
    """Its own bars, those of the day before and the leader's count; a rebuild mends it."""
    lake = Lake(tmp_path / "lake")
    write_bars(lake, "BTCUSDT", SATURDAY, 85_000, 86_400)
    for symbol in ("BTCUSDT", "ETHUSDT"):
        write_bars(lake, symbol, SUNDAY, 1, 1_000)
    build_range(lake, SETTINGS, ("BTCUSDT", "ETHUSDT"), SATURDAY, SUNDAY)
    require_current(lake, SETTINGS)
    whole, part = "features, labels, training_set", "features, training_set"
    btc, eth = f"{SUNDAY} BTCUSDT", f"{SUNDAY} ETHUSDT"
    for symbol, day, last, named in (
        ("BTCUSDT", SUNDAY, 900, f"{btc}: {whole}; {eth}: {part}"),
        ("BTCUSDT", SATURDAY, 86_300, f"{SATURDAY} BTCUSDT: {whole}; {btc}, {eth}: {part}"),
        ("ETHUSDT", SUNDAY, 900, f"{btc}: {part}; {eth}: {whole}"),
    ):
        kept = lake.read("bars", symbol, day), lake.metadata("bars", symbol, day)["inputs"]
        write_bars(lake, symbol, day, 85_000 if day == SATURDAY else 1, last)
        with pytest.raises(DatasetError, match=named) as refused:
            require_current(lake, SETTINGS)
        assert f"--to {SUNDAY}" in str(refused.value)
        lake.write("bars", symbol, day, kept[0], inputs=kept[1])
        require_current(lake, SETTINGS)
