"""Baselines on the folds of training, and `legacy`, which stays what it was."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import planted
import pytest

from market.features import feature_hash
from market.lake import Lake
from market.settings import Settings
from models_registry import baselines, dataset
from models_registry.baselines import BaselineResult
from models_registry.dataset import Features, MemorySource
from models_registry.manifest import legacy_folder
from orchestration.backtest.run import load_model

#: The planted columns under names that the baselines know: the signal is the queue's.
FEATURES = Features(
    names=(
        "queue_now", "return_60", "realised_vol_60", "realised_vol_900", "noise", "realised_vol_300",
    ),
    hash=feature_hash(),
)  # fmt: skip


@pytest.fixture(scope="module")
def rows(planted_lake: Lake) -> dataset.Rows:
    days = dataset.dates(planted_lake, planted.SYMBOLS)
    return dataset.load(
        planted_lake, planted.SYMBOLS, days, planted.FEATURES.names, planted.HORIZONS
    )


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return planted.settings(tmp_path_factory.mktemp("legacy"), bootstrap_samples=50)


@pytest.fixture(scope="module")
def judged(rows: dataset.Rows, settings: Settings) -> dict[str, BaselineResult]:
    source = MemorySource(rows, FEATURES.names)
    return {b.name: b for b in baselines.judge(source, settings, FEATURES, "code")}


def test_each_baseline_knows_what_its_columns_say(judged: dict[str, BaselineResult]) -> None:
    assert set(judged) == {"majority", "persistence", "queue imbalance", "volatility", "legacy"}
    assert judged["majority"].ic == 0.0
    assert judged["queue imbalance"].ic > judged["queue imbalance"].ic_lower > 0.1
    assert abs(judged["volatility"].ic) < 0.1
    assert judged["legacy"].ic > judged["queue imbalance"].ic / 2
    assert judged["queue imbalance"].result.net_lower_bps > 0
    assert judged["legacy"].result.coverage == pytest.approx(0.1, abs=0.05)


def test_baselines_without_their_columns_are_left_out(rows, settings: Settings) -> None:
    source = MemorySource(rows, planted.FEATURES.names)
    other = msgspec.structs.replace(settings, root=f"{settings.root}-other")
    assert [b.name for b in baselines.judge(source, other, planted.FEATURES, "code")] == [
        "majority",
        "legacy",
    ]
    few = MemorySource(rows.where(rows.t_ns < rows.t_ns[0] + 10**12), planted.FEATURES.names)
    assert baselines.judge(few, other, planted.FEATURES, "code") == ()


def test_legacy_is_made_once_of_the_first_days_and_runs_in_a_backtest(
    rows: dataset.Rows, settings: Settings, judged: dict[str, BaselineResult]
) -> None:
    folder = legacy_folder(settings)
    before = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    # Other data later on, and the same bundle; other definitions, and another.
    shuffled = np.random.default_rng(1).permutation(rows.labels_bps)
    source = MemorySource(msgspec.structs.replace(rows, labels_bps=shuffled), FEATURES.names)
    baselines.judge(source, settings, FEATURES, "later code")
    assert {path.name: path.read_bytes() for path in Path(folder).iterdir()} == before
    found = load_model(settings, "legacy", settings.market.symbols)
    recipe = found.bundle.manifest.recipe
    assert (found.pointer.version, len(recipe.members)) == ("legacy", 1)
    made = found.bundle.predict_many(rows.features)
    acted = made.expected_bps != 0
    assert np.abs(made.raw_bps / made.scale_bps)[acted].min() >= recipe.regimes[0].least_score
    assert found.bundle.manifest.window.last_date == "2026-01-02"
    baselines.judge(source, settings, msgspec.structs.replace(FEATURES, hash="other"), "code")
    assert {path.name: path.read_bytes() for path in Path(folder).iterdir()} != before
