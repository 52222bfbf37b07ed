"""Decisions reach the lake once, whole hours at a time, through crashes and repetitions."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from live.decisions import BATCH_ROWS, Decision, DecisionLog, collect_decisions
from market.lake import Lake
from market.units import HOUR_NS, day_start_ns

S = 1_000_000_000
#: A minute before midnight, so that hours and dates change.
T = day_start_ns("2026-03-02") - 60 * S
HORIZONS = (10, 60)
FEATURES = ("alpha", "beta")


def decision(t_ns: int, symbol: str = "BTCUSDT", **changes: object) -> Decision:
    fields: dict[str, object] = {
        "symbol": symbol,
        "t_ns": t_ns,
        "model_version": "3",
        "bundle_sha": "ab",
        "expected_bps": 1.5,
        "raw_bps": 1.75,
        "by_horizon": (0.5, 1.5),
        "regime": "calm",
        "warm": True,
        "target": 1,
        "position_lots": -5,
        "cost_bps": 11.0,
        "mid": 60_000.5,
        "spread_bps": 0.01,
        "vector": np.array([t_ns % 7, math.nan]),
    }
    return Decision(**(fields | changes))  # type: ignore[arg-type]


def write(folder: Path, run: str, times: range) -> None:
    log = DecisionLog(folder, run, FEATURES)
    for t_ns in times:
        for symbol in ("BTCUSDT", "ETHUSDT"):
            log.add(decision(t_ns, symbol), HORIZONS)
    log.close()


def test_an_hour_is_one_file_and_bars_belong_to_the_hour_they_cover(tmp_path: Path) -> None:
    write(tmp_path, "r1", range(T, T + 121 * S, S))
    files = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert files == [
        "date=2026-03-01/hour=23/r1-1.parquet",
        "date=2026-03-02/hour=00/r1-2.parquet",
    ]
    rows = pq.read_table(tmp_path / files[0], partitioning=None)
    # The bar labelled midnight covers the second before it.
    assert max(rows.column("t_ns").to_pylist()) == T + 60 * S
    row = rows.to_pylist()[0]
    assert row["expected_10_bps"] == 0.5
    assert row["alpha"] == T % 7
    assert row["beta"] is None, "NaN is NULL"


def test_a_change_of_horizons_begins_a_new_file(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path, "r1", FEATURES)
    log.add(decision(T), HORIZONS)
    log.add(decision(T + S, by_horizon=(2.0,)), (60,))
    log.close()
    assert len(list(tmp_path.rglob("*.parquet"))) == 2


def test_after_a_crash_whole_batches_are_recovered_and_a_torn_one_is_reported(
    tmp_path: Path,
) -> None:
    crashed = DecisionLog(tmp_path, "r1", FEATURES)
    for n in range(2 * BATCH_ROWS):
        crashed.add(decision(T + n * S // BATCH_ROWS), HORIZONS)
    [stream] = tmp_path.rglob("*.arrows")
    torn = stream.read_bytes()[:-100]
    crashed.close()
    for path in tmp_path.rglob("*.parquet"):
        path.unlink()
    stream.write_bytes(torn)

    log = DecisionLog(tmp_path, "r2", FEATURES)
    [found] = log.recovered
    assert (found.rows, found.torn) == (BATCH_ROWS, True)
    assert pq.read_metadata(found.path).num_rows == BATCH_ROWS
    assert not list(tmp_path.rglob("*.arrows"))
    log.close()


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake", "synthetic")


def test_collecting_decisions_is_idempotent(tmp_path: Path, lake: Lake) -> None:
    folder = tmp_path / "decisions"
    write(folder, "r1", range(T, T + 90 * S, S))
    kept = {path: path.read_bytes() for path in folder.rglob("*.parquet")}
    moved = collect_decisions(lake, folder)
    assert moved == {
        (symbol, day): rows
        for symbol in ("BTCUSDT", "ETHUSDT")
        for day, rows in (("2026-03-01", 61), ("2026-03-02", 29))
    }
    assert not list(folder.rglob("*.parquet"))
    path = Path(lake.path("decisions", "BTCUSDT", "2026-03-01"))
    first = path.read_bytes()
    assert collect_decisions(lake, folder) == {}
    # As after a crash between the write and the removal.
    for file, data in kept.items():
        file.write_bytes(data)
    collect_decisions(lake, folder)
    assert path.read_bytes() == first


def test_runs_and_models_with_other_features_share_a_partition(tmp_path: Path, lake: Lake) -> None:
    folder = tmp_path / "decisions"
    write(folder, "r1", range(T, T + 5 * S, S))
    collect_decisions(lake, folder)
    log = DecisionLog(folder, "r2", ("alpha", "gamma"))
    log.add(decision(T + S), HORIZONS)
    log.close()
    collect_decisions(lake, folder)
    rows = lake.read("decisions", "BTCUSDT", "2026-03-01")
    assert rows.column("run").to_pylist() == ["r1"] * 5 + ["r2"]
    assert rows.column("gamma").null_count == 6
    assert {"alpha", "beta", "gamma"} < set(rows.column_names)


def test_files_are_by_hour_of_utc(tmp_path: Path) -> None:
    write(tmp_path, "r1", range(HOUR_NS * 5 + S, HOUR_NS * 5 + 2 * S, S))
    [path] = tmp_path.rglob("*.parquet")
    assert path.parent.name == "hour=05"
    assert isinstance(pq.read_table(path, partitioning=None), pa.Table)
