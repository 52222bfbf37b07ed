"""One training of a planted market serves every test that needs a version."""

from __future__ import annotations

from pathlib import Path

import msgspec
import planted
import pytest

from market.lake import Lake
from market.settings import Settings
from models_registry import promotion, registry, store, training
from models_registry.evaluation import Evaluation
from models_registry.training import TrainedModel


@pytest.fixture(scope="session")
def planted_lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return planted.lake(tmp_path_factory.mktemp("planted") / "lake", 5, 0.25)


@pytest.fixture(scope="session")
def planted_settings(planted_lake: Lake) -> Settings:
    return planted.settings(Path(planted_lake.uri))


def train(lake: Lake, settings: Settings) -> tuple[Evaluation, TrainedModel]:
    source = planted.source(lake)
    study = training.evaluate(source, settings, planted.FEATURES)
    model = training.finish(
        study, source, settings, planted.FEATURES, data_fingerprint="data", git_sha="code"
    )
    return study, model


@pytest.fixture(scope="session")
def trained(planted_lake: Lake, planted_settings: Settings) -> tuple[Evaluation, TrainedModel]:
    return train(planted_lake, planted_settings)


@pytest.fixture(scope="session")
def bundle_folder(
    trained: tuple[Evaluation, TrainedModel], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    for name, data in trained[1].files.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow folder, migrated once: a new database takes seconds."""
    root = tmp_path_factory.mktemp("template")
    # The other model's name: an experiment keeps the folder it was made with.
    recorded = msgspec.structs.replace(planted.settings(root), source="recorded")
    assert store.champion_version(recorded) is None
    return root / "mlflow"


@pytest.fixture(scope="session")
def registered(planted_lake: Lake, planted_settings: Settings) -> tuple[Lake, Settings]:
    """The planted lake with one registered and promoted version."""
    outcome = registry.train_and_register(
        planted_lake,
        planted_settings,
        "code",
        {"dagster.run_id": "run"},
        features=planted.FEATURES,
    )
    assert outcome.verdict == "promote"
    assert promotion.promote_latest(planted_settings, planted.FEATURES) == (True, "1")
    return planted_lake, planted_settings
