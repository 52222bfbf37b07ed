"""Runs, versions, aliases and the resolver on a temporary SQLite registry."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import planted
import pytest

from market.lake import Lake
from market.settings import Settings
from models_registry import card, promotion, registry, resolver, store
from models_registry.manifest import (
    MANIFEST_FILE,
    POINTER_FILE,
    BundleError,
    bundles_folder,
    load_champion,
    read_pointer,
    sha256,
)
from models_registry.registry import Outcome
from models_registry.store import RegistryError
from orchestration.backtest.run import load_model
from tests.live.live_market import live_settings, promote


def attempt(lake: Lake, settings: Settings, sha: str) -> Outcome:
    return registry.train_and_register(
        lake, settings, sha, {"dagster.run_id": "run"}, features=planted.FEATURES
    )


def client_of(settings: Settings):
    import mlflow

    uri = store.tracking_uri(settings)
    return mlflow.MlflowClient(uri, uri)


def test_a_version_describes_itself_to_a_reviewer(registered: tuple[Lake, Settings]) -> None:
    lake, settings = registered
    client = client_of(settings)
    version = client.get_model_version(settings.model_name, "1")
    assert version.tags["gate.verdict"] == "promote"
    assert version.tags["git_sha"] == "code"
    assert version.tags["feature_hash"] == planted.FEATURES.hash
    assert version.tags["horizons"] == "10,60,300"
    assert version.tags["dagster.run_id"] == "run"
    assert float(version.tags["ic_worst_fold"]) <= float(version.tags["ic_mean"])
    assert "Verdict: promote" in version.description
    run = client.get_run(version.run_id)
    assert run.data.params["fee_row"] == "zero"
    assert run.data.metrics["ic_lower"] > 0
    names = {file.path for file in client.list_artifacts(version.run_id)}
    assert {"card.md", "blocks.csv", "pictures"} <= names
    pictures = {file.path for file in client.list_artifacts(version.run_id, "pictures")}
    for name in ("net", "folds", "calibration", "reliability", "importance", "decay"):
        assert f"pictures/{name}.png" in pictures
        assert (
            f"get-artifact?path=pictures/{name}.png&run_uuid={run.info.run_id}"
            in version.description
        )
    assert len(version.description) <= card.DESCRIPTION_LIMIT
    assert "|" not in version.description, "MLflow's page runs the columns of a table together"
    fixed = "".join(version.description.split("```")[1::2]).splitlines()
    assert max(map(len, fixed)) <= card.PAGE_COLUMNS, "and cuts what is wider"
    model = client.get_logged_model(run.outputs.model_outputs[0].model_id)
    assert {metric.key for metric in model.metrics} >= {"ic_mean", "ic_lower"}
    assert [data.dataset.digest for data in run.inputs.dataset_inputs] == [
        version.tags["data_fingerprint"]
    ]
    nested = client.search_runs(
        [run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{version.run_id}'"
    )
    blocks, trials = ([n for n in nested if n.info.run_name.startswith(k)] for k in ("b", "trial"))
    assert len(blocks) == int(run.data.metrics["blocks"])
    assert len(trials) >= settings.model.trials * 2, "of 300 s there are too few labels to judge by"
    assert all({"trees", "leaves"} <= set(trial.data.params) for trial in trials)
    assert all("ic" in trial.data.metrics for trial in trials)
    assert lake.source == "synthetic"


def test_no_pickle_is_stored(registered: tuple[Lake, Settings]) -> None:
    _, settings = registered
    files = [path.name for path in (Path(settings.root) / "mlflow").rglob("*") if path.is_file()]
    assert {"manifest.json", "booster_60s.txt", "served.py"} <= set(files)
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".joblib"))]


#: Loads a version with nothing but installed packages, of which the project is none.
_ELSEWHERE = """
import sys
sys.path.append(sys.argv[1])
import mlflow, numpy, pandas
model = mlflow.pyfunc.load_model(sys.argv[2])
rows = numpy.load(sys.argv[3])
names = model.metadata.get_input_schema().input_names()
made = model.predict(pandas.DataFrame(rows, columns=names)[names[::-1]])
numpy.save(sys.argv[4], made["raw_bps"].to_numpy())
assert not {"market", "models_registry"} & set(sys.modules)
"""


def test_a_version_predicts_as_its_bundle_where_the_project_is_not_installed(
    registered: tuple[Lake, Settings], tmp_path: Path
) -> None:
    import mlflow
    import numpy as np

    _, settings = registered
    champion = load_champion(settings.root, settings.model_name)
    assert champion is not None
    rows = np.random.default_rng(1).normal(size=(20, len(planted.FEATURES.names))) + 15.0
    np.save(tmp_path / "rows.npy", rows)
    logged = client_of(settings).get_model_version_download_uri(settings.model_name, "1")
    packages = str(Path(mlflow.__file__).parents[1])
    names = (packages, logged, tmp_path / "rows.npy", tmp_path / "made.npy")
    command = [sys.executable, "-I", "-S", "-c", _ELSEWHERE, *map(str, names)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = champion[1].predict_many(rows).raw_bps
    assert np.array_equal(np.load(tmp_path / "made.npy"), expected)
    wanted = Path(logged.removeprefix("file://"), "requirements.txt").read_text().split()
    required = {line.partition("==")[0] for line in wanted}
    assert {"lightgbm", "mlflow", "msgspec", "numpy", "pandas"} <= required


def test_registering_the_same_attempt_again_reuses_its_version(
    registered: tuple[Lake, Settings],
) -> None:
    lake, settings = registered
    again = attempt(lake, settings, "code")
    assert again.reused
    assert again.version == "1"
    assert again.verdict == "promote"
    assert "Verdict: promote" in again.card
    assert len(client_of(settings).search_model_versions(f"name='{settings.model_name}'")) == 1
    assert promotion.latest_verdict(settings)[0] == "promote"


def test_too_little_data_leaves_a_run_and_no_version(tmp_path: Path, template: Path) -> None:
    root = tmp_path / "lake"
    lake = Lake(root, "synthetic")
    shutil.copytree(template, root / "mlflow")
    settings = planted.settings(root)
    outcome = attempt(lake, settings, "code")
    assert outcome.verdict == "not_enough_data"
    assert outcome.version is None
    assert "not enough data" in outcome.card
    verdict, reasons = promotion.latest_verdict(settings)
    assert verdict == "not_enough_data"
    assert reasons == outcome.reasons
    assert promotion.promote_latest(settings, planted.FEATURES) == (False, None)
    assert resolver.resolve(settings) is None
    run = client_of(settings).get_run(outcome.run_id)
    assert run.data.tags["gate.verdict"] == "not_enough_data"
    assert run.data.tags["dagster.run_id"] == "run"


def test_promotion_and_rollback_move_aliases_and_pointer(
    registered: tuple[Lake, Settings], tmp_path: Path
) -> None:
    lake, source = registered
    settings = msgspec.structs.replace(source, root=str(tmp_path / "lake"))
    Lake(settings.root, "synthetic")
    # Another code makes a second version of the same data; the lake is copied so that other tests
    # keep theirs.
    shutil.copytree(Path(lake.uri) / "training_set", Path(settings.root) / "training_set")
    here = Lake(settings.root)
    assert attempt(here, settings, "one").version == "1"
    name = settings.model_name
    assert store.champion_version(settings) is None
    with pytest.raises(RegistryError, match="no earlier champion"):
        promotion.rollback(settings, planted.FEATURES)

    promotion.promote(settings, "1", features=planted.FEATURES)
    pointer = read_pointer(settings.root, name)
    assert pointer is not None
    assert pointer.version == "1"
    assert attempt(here, settings, "two").version == "2"
    # No test second is later than the champion's training: the gate keeps it.
    assert promotion.promote_latest(settings, planted.FEATURES) == (False, "1")
    promotion.promote(settings, "2", in_spite_of_gate=True, features=planted.FEATURES)
    aliases = client_of(settings).get_registered_model(name).aliases
    assert {k: str(v) for k, v in aliases.items()} == {
        "champion": "2",
        "previous": "1",
        "challenger": "2",
    }
    assert promotion.rollback(settings, planted.FEATURES) == "1"
    champion = load_champion(settings.root, name)
    assert champion is not None
    assert champion[0].version == "1"
    assert champion[1].manifest.git_sha == "one"
    assert promotion.rollback(settings, planted.FEATURES) == "2"

    # Two versions of the same boosters: their manifests differ by the code.
    folders = sorted(p.name for p in bundles_folder(settings.root, name).iterdir() if p.is_dir())
    assert [folder.split("-")[0] for folder in folders] == ["1", "2"]

    with pytest.raises(RegistryError, match="has no version 9"):
        promotion.promote(settings, "9", features=planted.FEATURES)
    client_of(settings).set_model_version_tag(name, "1", "gate.verdict", "abstain")
    with pytest.raises(RegistryError, match="the gate says abstain"):
        promotion.promote(settings, "1", features=planted.FEATURES)
    promotion.promote(settings, "1", in_spite_of_gate=True, features=planted.FEATURES)
    assert store.champion_version(settings) == "1"


def test_a_damaged_bundle_is_downloaded_again(registered: tuple[Lake, Settings]) -> None:
    _, settings = registered
    home = bundles_folder(settings.root, settings.model_name)
    pointer = resolver.resolve(settings)
    assert pointer is not None
    booster = home / pointer.folder / "booster_60s.txt"
    booster.write_bytes(b"damaged")
    with pytest.raises(BundleError):
        load_champion(settings.root, settings.model_name)
    assert resolver.resolve(settings) == pointer
    assert load_champion(settings.root, settings.model_name) is not None
    (home / POINTER_FILE).write_text("{")
    assert resolver.resolve(settings) == pointer
    manifest = (home / pointer.folder / MANIFEST_FILE).read_bytes()
    assert pointer.manifest_sha256 == sha256(manifest)
    assert pointer.folder == f"1-{pointer.manifest_sha256[:8]}"
    assert not list(home.glob(".*"))


def test_the_resolver_prints_one_line(
    registered: tuple[Lake, Settings],
) -> None:
    _, settings = registered
    command = [sys.executable, "-m", "models_registry.resolver", "--name", "synthetic-l2"]
    done = subprocess.run(
        [*command, "--root", settings.root], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "champion of synthetic-l2: version 1\n"


def test_the_resolver_says_in_one_line_that_there_is_no_champion(
    tmp_path: Path, template: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "lake"
    shutil.copytree(template, root / "mlflow")
    assert resolver.main(["--root", str(root), "--name", "synthetic-l2"]) == 3
    *moved, said = capsys.readouterr().err.splitlines()
    assert all("registry: moved here" in line for line in moved)
    assert "no champion of synthetic-l2" in said


def test_the_registry_of_a_lake_in_a_bucket_is_in_this_machine_s_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("L2_HOME", "/data/l2")
    settings = planted.settings(Path("x")).__class__(root="s3://bucket/lake")
    assert store.tracking_uri(settings) == "sqlite:////data/l2/bucket/lake/mlflow/mlflow.db"


def test_a_backtest_takes_versions_by_their_numbers(template: Path, tmp_path: Path) -> None:
    """Whatever is promoted; the bundle is the version's own, and one that is not there is named."""
    settings = live_settings(tmp_path)
    shutil.copytree(template, tmp_path / "mlflow")
    client = client_of(settings)
    client.create_registered_model(settings.model_name)
    shas = {}
    for version, sign in (("1", 1.0), ("2", -1.0)):
        promote(tmp_path, version=version, sign=sign)
        made = bundles_folder(tmp_path, settings.model_name) / f"{version}-test"
        logged = tmp_path / "logged" / version
        shutil.copytree(made, logged / "artifacts" / "bundle")
        shas[version] = sha256((made / MANIFEST_FILE).read_bytes())
        tags = {"manifest_sha256": shas[version]}
        registered = client.create_model_version(
            settings.model_name, logged.as_uri(), tags=tags, await_creation_for=0
        )
        assert str(registered.version) == version
    for version, sha in shas.items():
        found = load_model(settings, version, settings.market.symbols)
        assert found.name == f"{settings.model_name} {version}"
        assert found.bundle.manifest_sha256 == sha
    assert shas["1"] != shas["2"]
    with pytest.raises(RegistryError, match="has no version 3"):
        load_model(settings, "3", settings.market.symbols)
