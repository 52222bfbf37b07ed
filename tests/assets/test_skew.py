"""The daily skew check: an honest worker passes; one altered value or frame is named with both values."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import msgspec
import numpy as np
import pyarrow as pa
import pytest

from assets.platform import Platform, partition_key
from assets.skew import compare
from live.worker import run
from market.bars import bars_from_chunks, make_bars
from market.features import feature_names
from market.ingest import ingest
from market.instruments import BUILT_IN
from market.lake import Lake
from market.settings import Settings
from market.units import day_start_ns
from market.wire.capture import CaptureWriter, read_lines
from orchestration.live_assets import decisions, live_batch_skew
from proving.synthetic import generate, profile, write_frames
from tests.live.live_market import live_settings, promote

S = 1_000_000_000
EVE, DAY = "2026-03-03", "2026-03-04"
MIDNIGHT = day_start_ns(DAY)
SYMBOLS = ("BTCUSDT", "ETHUSDT")
KEYS = [(symbol, day) for day in (EVE, DAY) for symbol in SYMBOLS]
#: The features of the model: half of all, with those that it follows and scales by.
TAKEN = tuple(
    n
    for i, n in enumerate(feature_names())
    if i % 2 or n in {"tfi_60", "realised_vol_300", "ofi_now", "lead_ofi_15"}
)
#: Seconds of a market that begins an hour before midnight: the lake knows the first of them, the worker goes
#: on and past midnight.
KNOWN_S, MIDNIGHT_S, END_S = 3_620, 3_720, 3_760
BEGINS_NS = MIDNIGHT - MIDNIGHT_S * S


def without_bitcoin_at_midnight(source: str, path: Path) -> str:
    """The same capture, in which bitcoin says nothing for the last four seconds before midnight."""
    with CaptureWriter(path) as writer:
        for receive_ns, frame in read_lines(source):
            silent = MIDNIGHT - 4 * S <= receive_ns < MIDNIGHT + S // 2
            if not (silent and b"BTCUSDT" in frame):
                writer.append(receive_ns, frame)
    return str(path)


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake in which a warm worker traded across midnight, and bitcoin was silent there."""
    root = tmp_path_factory.mktemp("skew") / "lake"
    lake, settings = Lake(root, "synthetic"), live_settings(root)
    law = profile("demo")

    def frames(name: str, start_s: int, stop_s: int) -> str:
        path = root / f"{name}.frames.zst"
        return write_frames(path, law, 7, SYMBOLS, EVE, start_s, stop_s, begins_ns=BEGINS_NS)

    # Of the events the worker needs the last book only.
    known = frames("known", KNOWN_S - 10, KNOWN_S)
    ingest(lake, [known], [(symbol, EVE) for symbol in SYMBOLS], settings)
    for symbol in SYMBOLS:
        events = generate(law, 7, symbol, EVE, 0, KNOWN_S, begins_ns=BEGINS_NS)
        bars = bars_from_chunks(events, BUILT_IN[symbol], settings).to_arrow()
        lake.write("bars", symbol, EVE, bars)
    end = frames("end", KNOWN_S, MIDNIGHT_S)
    next_day = frames("next", MIDNIGHT_S, END_S)
    promote(root, features=TAKEN)
    heard = [without_bitcoin_at_midnight(end, root / "quiet.frames.zst"), next_day]
    summary = run(settings, frames=heard, speed=0)
    assert summary["warm_decisions"] > 1.5 * (MIDNIGHT_S - KNOWN_S)
    assert summary["collected"]["decisions"] == summary["decisions"]
    return root


@pytest.fixture
def root(worked: Path, tmp_path: Path) -> Path:
    shutil.copytree(worked, tmp_path / "lake")
    return tmp_path / "lake"


def test_an_unaltered_run_has_no_skew_on_both_sides_of_midnight(worked: Path) -> None:
    report = compare(Lake(worked), live_settings(worked), KEYS)
    assert report.passed, report.summary
    assert report.decisions == sum(Lake(worked).rows("decisions", *key) for key in KEYS)
    # The features taken, warm, mid, spread, and the expectation twice.
    assert report.values == (len(TAKEN) + 5) * report.decisions
    assert report.summary.endswith("0 differ")
    rows = Lake(worked).read("decisions", *KEYS[0])
    assert {n for n in feature_names() if rows[n].null_count < len(rows)} == {*TAKEN}


def test_the_batch_makes_the_same_bars_up_to_midnight(worked: Path, root: Path) -> None:
    """Ingest and bars of the worker's capture, one date alone: the seconds of a silent symbol stand."""
    lake = Lake(root)
    settings = live_settings(root)
    (capture,) = (root / "live" / "frames" / f"date={EVE}").iterdir()
    ingest(lake, [str(capture)], [(symbol, EVE) for symbol in SYMBOLS], settings)
    for symbol in SYMBOLS:
        make_bars(lake, symbol, EVE, settings)
        times = lake.read("bars", symbol, EVE)["t_ns"].to_numpy()
        assert np.array_equal(times, MIDNIGHT + np.arange(KNOWN_S + 1 - MIDNIGHT_S, 1) * S)
        logged = Lake(worked).read("decisions", symbol, EVE)
        mids = lake.read("bars", symbol, EVE)["mid_close"].to_pylist()
        found = dict(zip(times.tolist(), mids, strict=True))
        for row in logged.select(["t_ns", "mid"]).to_pylist():
            assert found[row["t_ns"]] == row["mid"]


def test_one_altered_value_fails_and_is_reported(root: Path) -> None:
    lake, key = Lake(root), ("ETHUSDT", DAY)
    rows = lake.read("decisions", *key)
    place = rows.column_names.index("tfi_60")
    values = rows["tfi_60"].to_numpy().copy()
    before, values[7], values[9] = values[7], values[7] + 1e-6, np.nan
    altered = rows.set_column(place, "tfi_60", pa.array(values, from_pandas=True))
    lake.write("decisions", *key, altered.replace_schema_metadata())
    report = compare(lake, live_settings(root), KEYS)
    assert report.by_name["tfi_60"] == 2
    told, missing = (one for one in report.examples if one.name == "tfi_60")
    assert missing.live is None
    assert (told.symbol, told.t_ns, told.name) == ("ETHUSDT", MIDNIGHT + 8 * S, "tfi_60")
    assert told.live == values[7]
    assert told.batch == pytest.approx(before, abs=1e-12)
    assert "tfi_60: live" in report.summary


def test_a_prediction_that_does_not_follow_from_its_vector_fails(root: Path) -> None:
    lake, key = Lake(root), ("BTCUSDT", DAY)
    rows = lake.read("decisions", *key)
    values = rows["expected_bps"].to_numpy().copy()
    values[3] += 1e-3
    altered = rows.set_column(
        rows.column_names.index("expected_bps"), "expected_bps", pa.array(values, from_pandas=True)
    )
    lake.write("decisions", *key, altered.replace_schema_metadata())
    report = compare(lake, live_settings(root), [key])
    assert report.by_name == {"expected_bps": 1}
    assert report.examples[0].batch == pytest.approx(values[3] - 1e-3)
    shutil.rmtree(root / "bundles")
    assert "the bundle" in compare(lake, live_settings(root), [key]).summary


def alter_one_quantity(root: Path, after_ns: int) -> int:
    """Change one level's quantity in the own capture of ``DAY``; the time of its frame."""
    (capture,) = (root / "live" / "frames" / f"date={DAY}").iterdir()
    lines = list(read_lines(capture))
    capture.unlink()
    changed = 0
    with CaptureWriter(capture) as writer:
        for receive_ns, frame in lines:
            if not changed and receive_ns > after_ns and b'"orderbook.200.BTCUSDT"' in frame:
                content: dict[str, Any] = msgspec.json.decode(frame)
                content["data"]["b"][0][1] = "77.777"
                frame, changed = msgspec.json.encode(content), receive_ns
            writer.append(receive_ns, frame)
    return changed


def test_one_altered_frame_fails_from_its_second_on(root: Path) -> None:
    changed = alter_one_quantity(root, MIDNIGHT + 20 * S)
    report = compare(Lake(root), live_settings(root), KEYS)
    assert not report.passed
    first = report.examples[0]
    assert first.symbol == "BTCUSDT"
    assert first.t_ns == (changed // S + 1) * S
    assert first.live != first.batch
    assert {"ofi_now", "lead_ofi_15"} <= set(report.by_name)


def test_a_missing_capture_fails(root: Path) -> None:
    shutil.rmtree(root / "live" / "frames" / f"date={DAY}")
    report = compare(Lake(root), live_settings(root), KEYS)
    assert not report.passed
    assert "has no capture of it" in report.summary


@pytest.mark.parametrize("honest", [True, False])
def test_the_dagster_check_reports_the_differences(root: Path, honest: bool) -> None:
    if not honest:
        alter_one_quantity(root, MIDNIGHT + 20 * S)
    overrides = [f"root={root}", "source=synthetic"]
    result = dg.materialize(
        [decisions, live_batch_skew],
        partition_key=partition_key("BTCUSDT", DAY),
        resources={"platform": Platform(overrides=overrides)},
    )
    (check,) = result.get_asset_check_evaluations()
    assert check.passed == honest
    told = check.metadata["first differences"].value
    assert (told == []) == honest
    (made,) = result.get_asset_materialization_events()
    rows = Lake(root).rows("decisions", "BTCUSDT", DAY)
    assert made.materialization.metadata["rows"].value == rows


def test_dates_without_a_worker_pass_and_say_so(tmp_path: Path) -> None:
    report = compare(Lake(tmp_path), Settings(), KEYS)
    assert report.passed
    assert report.summary == "no decisions of the live worker on these dates"
