"""What Dagster loads: every asset explained, one run for a range, decay that asks for a retrain."""

from __future__ import annotations

import sys
from subprocess import run

import dagster as dg
import pytest

from assets.dbt_assets import BARS_OF_FEATURES
from assets.platform import PARTITIONS, keys_of, partition_key
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


def test_every_asset_leads_to_reports_data_docs_mlflow_and_the_worker(
    specs: dict[str, dg.AssetSpec],
) -> None:
    for name in ASSETS:
        shown = str(specs[name].metadata["pages"].value)
        for link in (
            "[reports](http://127.0.0.1:8300/files/reports/index.html)",
            "[Data Docs](http://127.0.0.1:8300/files/quality/gx/uncommitted/data_docs/local_site/index.html)",
            "[MLflow](http://127.0.0.1:5000/#/models/", "[worker](http://127.0.0.1:8300)",
        ):  # fmt: skip
            assert link in shown, name


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
    assert blocking["decay"], "promotion waits for it; as a warning it stops nothing"


def test_a_failed_decay_check_asks_for_one_retrain_and_its_promotion() -> None:
    """The conditions of the real assets, over stand-ins that let the check be failed."""
    graph = defs.resolve_asset_graph()
    names = ("model", "champion")
    assert dg.AssetKey("performance") in graph.get(dg.AssetKey("champion")).parent_keys
    conditions = [graph.get(dg.AssetKey(name)).automation_condition for name in names]

    @dg.asset
    def performance() -> None: ...

    @dg.asset_check(asset=performance)
    def decay() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=False)

    @dg.asset(deps=[performance], automation_condition=conditions[0])
    def model() -> None: ...

    @dg.asset(deps=[performance, model], automation_condition=conditions[1])
    def champion() -> None: ...

    definitions = dg.Definitions(assets=[performance, model, champion], asset_checks=[decay])
    with dg.DagsterInstance.ephemeral() as instance:
        before = dg.evaluate_automation_conditions(definitions, instance)
        assert before.total_requested == 0
        dg.materialize([performance, decay], instance=instance)
        failed = dg.evaluate_automation_conditions(definitions, instance, cursor=before.cursor)
        for name in names:
            assert failed.get_requested_partitions(dg.AssetKey(name)) == {None}
        again = dg.evaluate_automation_conditions(definitions, instance, cursor=failed.cursor)
        assert again.total_requested == 0
        dg.materialize([model], instance=instance)  # a training of its own promotes nothing
        later = dg.evaluate_automation_conditions(definitions, instance, cursor=again.cursor)
        assert later.total_requested == 0


def test_features_depend_on_the_day_before_and_on_the_leader() -> None:
    wanted = PARTITIONS.subset_with_partition_keys([partition_key("BTCUSDT", "2026-01-02")])
    found = BARS_OF_FEATURES.get_upstream_mapped_partitions_result_for_partitions(
        wanted, PARTITIONS, PARTITIONS
    )
    keys = set(keys_of(found.partitions_subset.get_partition_keys()))
    days = ("2026-01-01", "2026-01-02")
    assert keys == {(symbol, day) for symbol in ("BTCUSDT", "ETHUSDT") for day in days}
    specs = {spec.key.to_user_string(): spec for spec in defs.resolve_all_asset_specs()}
    mapped = {
        dep.asset_key.to_user_string(): dep.partition_mapping for dep in specs["features"].deps
    }
    assert mapped["bars"] == BARS_OF_FEATURES


def test_loading_the_definitions_imports_no_heavy_library() -> None:
    heavy = ("mlflow", "great_expectations", "lightgbm", "optuna", "matplotlib")
    code = (
        "import sys, orchestration.definitions; "
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
