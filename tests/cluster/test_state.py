"""State in PostgreSQL: by settings alone, moved over from SQLite by one command, refused in one line."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import dagster as dg
import msgspec
import optuna
import pytest

from assets.platform import Platform
from market.postgres import StateError
from market.settings import Settings
from models_registry import state, trials
from models_registry.state import database
from models_registry.store import aliases_of, champion_version, registry_client
from orchestration import pipeline
from orchestration.cli import main
from orchestration.dashboard.machine import pipeline_runs
from orchestration.state_migration import migrate_state
from orchestration.ui import dagster_home, dagster_instance
from tests.cluster.conftest import Postgres, until
from tests.orchestration.test_isolation import capture, lines

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    # MLflow leaves engines to the collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@dg.asset
def planted_asset() -> dg.MaterializeResult[None]:
    return dg.MaterializeResult(metadata={"rows": 7})


@dg.asset_check(asset=planted_asset)
def planted_check() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=True)


def materialise(settings: Settings) -> None:
    defs = dg.Definitions(
        assets=[planted_asset],
        asset_checks=[planted_check],
        jobs=[dg.define_asset_job("planted", dg.AssetSelection.all())],
    )
    with dagster_instance(settings) as instance:
        for number in range(2):
            tags = {"turn": str(number)}
            assert (
                defs.resolve_job_def("planted")
                .execute_in_process(instance=instance, tags=tags)
                .success
            )


def dagster_held(settings: Settings) -> dict[str, Any]:
    """Runs with all their events, and what the asset's page shows."""
    key = dg.AssetKey("planted_asset")
    with dagster_instance(settings) as instance:
        records = instance.get_run_records()
        latest = instance.get_latest_materialization_event(key)
        assert latest is not None
        return {
            "runs": [
                (r.dagster_run, r.create_timestamp, r.start_time, r.end_time) for r in records
            ],
            "events": [
                [entry.to_json() for entry in instance.all_logs(r.dagster_run.run_id)]
                for r in records
            ],
            "materialised": (latest.run_id, latest.timestamp),
            "checked": [
                (each.run_id, each.status)
                for each in instance.event_log_storage.get_asset_check_execution_history(
                    dg.AssetCheckKey(key, "planted_check"), limit=9
                )
            ],
        }


def mlflow_held(settings: Settings) -> dict[str, Any]:
    """Experiments, runs with parameters, metrics and tags, versions and aliases."""
    with registry_client(settings) as client:
        experiments = sorted(client.search_experiments(), key=lambda each: each.experiment_id)
        runs = client.search_runs(
            [each.experiment_id for each in experiments], order_by=["start_time"]
        )
        return {
            "experiments": [dict(each) | {"tags": each.tags} for each in experiments],
            "runs": sorted(
                (
                    run.info.run_id,
                    run.info.status,
                    run.info.artifact_uri,
                    json.dumps(run.data.to_dictionary(), sort_keys=True),
                )
                for run in runs
            ),
            "versions": sorted(
                (each.version, each.run_id, each.source, sorted(each.tags.items()))
                for each in client.search_model_versions(f"name='{settings.model_name}'")
            ),
            "aliases": aliases_of(client, settings.model_name),
        }


def studies_held(settings: Settings) -> dict[str, list[Any]]:
    storage = optuna.storages.RDBStorage(database(settings, "optuna"))
    try:
        names = optuna.get_all_study_names(storage)
        return {n: optuna.load_study(study_name=n, storage=storage).trials for n in names}
    finally:
        storage.engine.dispose()


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A lake that began on SQLite: a champion, MLflow's and Dagster's runs, studies and looks."""
    settings = Settings(root=str(tmp_path_factory.mktemp("state") / "lake"), source="synthetic")
    name = settings.model_name
    with registry_client(settings) as client:
        client.create_registered_model(name)
        for turn in range(2):
            run = client.create_run(client.get_experiment_by_name(name).experiment_id)
            client.log_param(run.info.run_id, "turn", turn)
            for step in range(3):
                client.log_metric(run.info.run_id, "ic", 0.1 * step, step=step)
            client.set_tag(run.info.run_id, "gate.verdict", "promote")
            client.set_terminated(run.info.run_id)
            source = f"{run.info.artifact_uri}/model"
            tags = {"manifest_sha256": "0" * 64}
            made = client.create_model_version(name, source, run.info.run_id, tags=tags)
        client.set_registered_model_alias(name, "champion", made.version)
    storage = optuna.storages.RDBStorage(database(settings, "optuna"))
    study = optuna.create_study(study_name="data 60 s", storage=storage, direction="maximize")
    study.optimize(lambda trial: trial.suggest_float("x", 0.01, 1, log=True), n_trials=3)
    storage.engine.dispose()
    trials.record(database(settings, "looks"), "training", "a", "x", 9, {1: 0.5})
    materialise(settings)
    return settings


def test_a_lake_begun_on_sqlite_moves_over_whole_and_goes_on(
    lake: Settings, postgres: Postgres
) -> None:
    there = msgspec.structs.replace(lake, state=postgres.uri)
    before = dagster_held(lake), mlflow_held(lake), studies_held(lake)
    looks = trials.context(database(lake, "looks"), "one more")
    assert champion_version(lake) == "2"
    assert len(before[2]["data 60 s"]) == 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("L2_STATE", postgres.uri)
        patch.setenv("L2_SOURCE", "synthetic")
        assert main(["migrate", "--state", "--root", lake.root]) == 0
    assert (dagster_held(there), mlflow_held(there), studies_held(there)) == before
    assert trials.context(database(there, "looks"), "one more") == looks
    assert migrate_state(there, lambda _: None) == {}  # what is there is left as it is
    other = msgspec.structs.replace(
        there, root=f"{lake.root}/other"
    )  # another lake that began on SQLite
    with registry_client(msgspec.structs.replace(other, state="sqlite")) as client:
        name = lake.model_name
        client.create_run(client.get_experiment_by_name(name).experiment_id)
    with pytest.raises(
        StateError, match=r"mlflow is in use there already, and what \S+ holds was not moved"
    ):
        migrate_state(other, lambda _: None)
    # New rows number on behind those that came over.
    materialise(there)
    assert len(dagster_held(there)["runs"]) == 4
    shown = pipeline_runs(there)
    assert [(run.job, run.status) for run in shown] == [("planted", "SUCCESS")] * 4
    with pytest.raises(StateError, match="state = "):
        pipeline_runs(msgspec.structs.replace(there, state=f"{there.state}_none"))
    trials.record(database(there, "looks"), "research", "a", "b", 1, {})
    with registry_client(there, "another") as client:
        assert client.get_experiment_by_name("another").artifact_location.startswith("file://")
        made = client.create_model_version(there.model_name, "file:///x")
        assert str(made.version) == "3"
    assert champion_version(there) == "2"


def test_the_settings_alone_say_where_dagster_keeps_its_state(
    lake: Settings, postgres: Postgres
) -> None:
    file = dagster_home(msgspec.structs.replace(lake, state=postgres.uri)) / "dagster.yaml"
    assert postgres.uri.partition("//")[2] in file.read_text()
    assert postgres.PASSWORD not in file.read_text()
    dagster_home(lake)
    assert "postgres" not in file.read_text()
    own = "storage: {sqlite: {base_dir: here}}\n"
    file.write_text(own)
    dagster_home(msgspec.structs.replace(lake, state=postgres.uri))
    assert file.read_text() == own
    file.unlink()


def test_a_database_that_refuses_is_told_in_a_line(
    lake: Settings, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(uri: str) -> str:
        with pytest.raises(StateError) as refused:
            state.check(msgspec.structs.replace(lake, state=uri))
        assert "\n" not in str(refused.value)
        return str(refused.value)

    assert "Connection refused" in refusal("postgresql://desk@127.0.0.1:9/l2")
    assert 'database "absent" does not exist' in refusal(postgres.uri.replace("/l2", "/absent"))
    postgres.run("create role reader login password 'not a secret'")
    assert "permission denied" in refusal(
        postgres.uri.replace("desk@", "reader@").replace("/l2", "/postgres")
    )
    monkeypatch.setenv("PGPASSWORD", "wrong")
    assert "password authentication failed" in refusal(postgres.uri)
    monkeypatch.delenv("PGPASSWORD")
    assert refusal(postgres.uri).endswith("set PGPASSWORD (or PGPASSFILE) in the environment")
    with pytest.raises(StateError, match="name the database that the state moves to"):
        migrate_state(lake, lambda _: None)


def test_a_run_asks_the_database_before_it_takes_anything_in(tmp_path: Path) -> None:
    file = capture(tmp_path / "a.frames.zst", lines("BTCUSDT", "2026-01-01"))
    away = Settings(root=str(tmp_path / "lake"), state="postgresql://desk@127.0.0.1:9/l2")
    with pytest.raises(StateError, match="Connection refused"):
        pipeline.run(away, [file])
    platform = Platform(overrides=[f"root={away.root}", f"state={away.state}"])
    with (
        pytest.raises(StateError, match="Connection refused"),
        platform.yield_for_execution(dg.build_init_resource_context()),
    ):
        pass
    assert not (tmp_path / "lake" / "frames").exists()


@pytest.mark.parametrize("part", ["dagster", "mlflow", "optuna"])
def test_a_schema_of_another_version_is_refused(
    part: str, lake: Settings, postgres: Postgres
) -> None:
    there = msgspec.structs.replace(lake, state=postgres.uri)
    state.check(there)
    (version,) = postgres.run(f"select version_num from {part}.alembic_version", "l2")
    postgres.run(f"update {part}.alembic_version set version_num = 'other'", "l2")
    with pytest.raises(StateError, match=f"the schema {part} is of version other and the library"):
        state.check(there)
    postgres.run(f"update {part}.alembic_version set version_num = '{version[0]}'", "l2")


def test_one_process_at_a_time_holds_a_lock_of_the_registry_on_any_machine(
    lake: Settings, postgres: Postgres, capsys: pytest.CaptureFixture[str]
) -> None:
    there, order = msgspec.structs.replace(lake, state=postgres.uri), list[str]()
    again = msgspec.structs.replace(there, root=f"{lake.root}/")  # the same lake

    def second() -> None:
        with state.one_at_a_time(again, "training", "a training"):
            order.append("second")

    thread = threading.Thread(target=second)
    with state.one_at_a_time(there, "training", "a training"):
        thread.start()
        until(lambda: "waiting for another process" in capsys.readouterr().err)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
