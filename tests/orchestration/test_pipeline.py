"""A real recording down the whole path, as a user runs it: `l2 pipeline --frames FILE --json`."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from market.lake import Lake
from orchestration.pipeline import outcomes

COUNTS = {
    "orderbook.200.BTCUSDT": 8_989,
    "orderbook.200.ETHUSDT": 8_682,
    "publicTrade.BTCUSDT": 10_701,
    "publicTrade.ETHUSDT": 13_655,
}


def l2(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestration.cli", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


@pytest.fixture(scope="module")
def run(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("pipeline")
    frames = str(data_dir / "usdm-20240718.frames.zst")
    done = l2("pipeline", "--frames", frames, "--root", str(folder / "lake"), "--json", cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "lake", json.loads(done.stdout.splitlines()[-1])


def test_every_frame_is_counted_and_none_quarantined(run: tuple[Path, dict[str, Any]]) -> None:
    _, report = run
    assert {topic: report["frames"][topic] for topic in COUNTS} == COUNTS
    assert report["quarantined"] == 0
    assert report["events"] > 300_000


def test_every_bar_has_its_row_of_features(run: tuple[Path, dict[str, Any]]) -> None:
    _, report = run
    assert report["bars"] == report["feature_rows"]
    assert all(450 < rows < 520 for rows in report["bars"].values())


def test_minutes_of_data_certify_nothing_and_promote_nothing(
    run: tuple[Path, dict[str, Any]],
) -> None:
    _, report = run
    assert report["verdict"] == "not_enough_data"
    assert report["reasons"]
    assert report["champion"] == "none yet"
    assert not report["failed"]


def test_data_quality_is_judged_by_dbt_and_great_expectations(
    run: tuple[Path, dict[str, Any]],
) -> None:
    _, report = run
    checks = {f"{check['asset']}.{check['check']}": check for check in report["checks"]}
    assert checks["bars.bars_quality"]["passed"]
    # the recorder's clock ran behind the exchange's, which warns and does not block
    lag = checks["events.events_quality"]
    assert (lag["passed"], lag["severity"]) == (False, "WARN")
    assert any("lag_min_s" in breach for breach in lag["breaches"])
    assert any(name.startswith("features.") for name in checks)
    unasked = "cost_findings, fill_markouts, order_outcomes, parent_costs: no records"
    assert outcomes(report["checks"]).endswith(f" not run ({unasked})")


def test_the_cost_of_orders_is_reported_for_both_algorithms(
    run: tuple[Path, dict[str, Any]],
) -> None:
    _, report = run
    costs = {row["algorithm"]: row for row in report["execution"]}
    assert set(costs) == {"market", "passive"}


def test_the_recording_crosses_midnight_into_two_partitions(
    run: tuple[Path, dict[str, Any]],
) -> None:
    root, _ = run
    assert Lake(root).partitions("bars") == [
        ("BTCUSDT", "2024-07-18"),
        ("BTCUSDT", "2024-07-19"),
        ("ETHUSDT", "2024-07-18"),
        ("ETHUSDT", "2024-07-19"),
    ]


def test_an_interrupted_run_ends_as_such_and_leaves_no_trace(
    run: tuple[Path, dict[str, Any]], data_dir: Path
) -> None:
    """Interrupted while bars are made by worker processes; the next test runs the range again."""
    root, _ = run
    frames = str(data_dir / "usdm-20240718.frames.zst")
    command = [sys.executable, "-m", "orchestration.cli", "pipeline"]
    process = subprocess.Popen(
        [*command, "--frames", frames, "--root", str(root)],
        cwd=root.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "bars: started" in line:
            process.send_signal(signal.SIGINT)
            break
    printed, said = process.communicate(timeout=60)
    assert process.returncode == 130, said[-3000:]
    assert said.splitlines()[-1] == "l2 pipeline: interrupted"
    assert "FAILED" not in said + printed
    with sqlite3.connect(root / "dagster" / "history" / "runs.db") as database:
        states = database.execute("select status from runs order by id").fetchall()
    assert [state for (state,) in states] == ["SUCCESS", "CANCELED"]


def test_running_again_leaves_the_same_bytes(
    run: tuple[Path, dict[str, Any]], data_dir: Path
) -> None:
    root, first = run
    tables = ("events", "ingests", "bars", "features", "labels", "training_set")
    before = {
        path: path.read_bytes() for name in tables for path in (root / name).rglob("*.parquet")
    }
    frames = str(data_dir / "usdm-20240718.frames.zst")
    done = l2("pipeline", "--frames", frames, "--root", str(root), "--json", cwd=root.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(before) >= 20
    for path, content in before.items():
        assert path.read_bytes() == content, path
    # what the interrupted run had begun is gone
    assert not [*root.rglob(".*.tmp"), *root.glob("staging/*")]
    again = json.loads(done.stdout.splitlines()[-1])
    for key in ("frames", "events", "bars", "feature_rows", "verdict"):
        assert again[key] == first[key]
