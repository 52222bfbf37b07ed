"""What Dagster loads: every asset explained, one run for a range, decay that asks for a retrain."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from subprocess import run

import dagster as dg
import pytest

from assets.platform import Platform
from market.lake import Lake
from market.settings import load
from orchestration.automation import RANGE_END, RANGE_START, daily, new_captures, pipeline_job
from orchestration.definitions import defs

ASSETS = {
    "events",
    "bars",
    "features",
    "labels",
    "training_set",
    "performance",
    "model",
    "champion",
    "execution_study",
}


@pytest.fixture(scope="module")
def specs() -> dict[str, dg.AssetSpec]:
    return {spec.key.to_user_string(): spec for spec in defs.resolve_all_asset_specs()}


def test_definitions_load_and_hold_the_whole_path(specs: dict[str, dg.AssetSpec]) -> None:
    dg.Definitions.validate_loadable(defs)
    assert set(specs) >= ASSETS


def test_every_asset_has_owner_group_kinds_and_description(
    specs: dict[str, dg.AssetSpec],
) -> None:
    poor = [
        name
        for name in ASSETS
        if not (
            specs[name].owners
            and specs[name].group_name not in (None, "default")
            and specs[name].kinds
            and specs[name].description
        )
    ]
    assert not poor


def test_a_range_of_dates_is_one_run_and_so_one_dbt_call() -> None:
    graph = defs.resolve_asset_graph()
    for name in ("events", "bars", "features", "labels", "training_set", "execution_study"):
        policy = graph.get(dg.AssetKey(name)).backfill_policy
        assert policy == dg.BackfillPolicy.single_run(), name


def test_quality_checks_block_and_the_gate_does_not() -> None:
    graph = defs.resolve_asset_graph()
    blocking = {key.name: graph.get(key).blocking for key in graph.asset_check_keys}
    assert blocking["events_quality"]
    assert blocking["bars_quality"]
    assert blocking["features_quality"]
    assert blocking["sound_dates"], "training waits for it"
    assert not blocking["live_batch_skew"], "nothing is made of the decisions"
    assert not blocking["gate"]
    assert not blocking["decay"]


def test_the_daily_run_asks_for_yesterday_of_every_symbol() -> None:
    context = dg.build_schedule_context(
        scheduled_execution_time=datetime(2026, 3, 10, 0, 20, tzinfo=UTC)
    )
    asked = daily(context)
    assert isinstance(asked, dg.RunRequest)
    symbols = load().market.symbols
    assert asked.tags[RANGE_START] == f"2026-03-09|{symbols[0]}"
    assert asked.tags[RANGE_END] == f"2026-03-09|{symbols[-1]}"
    assert daily.cron_schedule == "20 0 * * *"
    assert daily.execution_timezone == "UTC"
    assert daily.job_name == pipeline_job.name


def test_a_failed_decay_check_asks_for_one_retrain() -> None:
    """The condition of the real asset `model`, over stand-ins that let the check be failed."""
    condition = defs.resolve_asset_graph().get(dg.AssetKey("model")).automation_condition

    @dg.asset
    def performance() -> None: ...

    @dg.asset_check(asset=performance)
    def decay() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=False)

    @dg.asset(deps=[performance], automation_condition=condition)
    def model() -> None: ...

    definitions = dg.Definitions(assets=[performance, model], asset_checks=[decay])
    with dg.DagsterInstance.ephemeral() as instance:
        before = dg.evaluate_automation_conditions(definitions, instance)
        assert before.total_requested == 0
        dg.materialize([performance, decay], instance=instance)
        failed = dg.evaluate_automation_conditions(definitions, instance, cursor=before.cursor)
        assert failed.get_requested_partitions(dg.AssetKey("model")) == {None}
        again = dg.evaluate_automation_conditions(definitions, instance, cursor=failed.cursor)
        assert again.total_requested == 0


def test_loading_the_definitions_imports_no_heavy_library() -> None:
    heavy = ("mlflow", "great_expectations", "lightgbm", "optuna", "matplotlib")
    code = (
        "import sys, orchestration.definitions; "
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_closed_date_of_captures_without_events_asks_for_one_run(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    for day in ("2026-03-02", "2026-03-03"):
        lake.put(f"{lake.frames_dir(day)}/a.frames.zst", b"frames")
    platform = Platform(overrides=[f"root={tmp_path}"])
    with dg.build_sensor_context(resources={"platform": platform}) as context:
        asked = [item for item in new_captures(context) if isinstance(item, dg.RunRequest)]
        cursor = context.cursor
    # the newest date may still be written
    assert [item.tags[RANGE_START].split("|")[0] for item in asked] == ["2026-03-02"]
    with dg.build_sensor_context(resources={"platform": platform}, cursor=cursor) as later:
        assert not [item for item in new_captures(later) if isinstance(item, dg.RunRequest)]
