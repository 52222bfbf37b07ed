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
from models_registry import baselines, card, dataset
from models_registry.baselines import BaselineResult
from models_registry.dataset import Features, MemorySource
from models_registry.evaluation import ChampionComparison, Evaluation
from models_registry.manifest import legacy_folder
from models_registry.training import TrainedModel
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


def test_a_card_tells_daily_results_apart_in_pairs(
    trained: tuple[Evaluation, TrainedModel], judged: dict[str, BaselineResult]
) -> None:
    evaluation, model = trained
    days = sorted(evaluation.daily)
    assert set(judged["legacy"].daily) == set(days)
    total = judged["legacy"].result
    assert sum(judged["legacy"].daily.values()) == pytest.approx(total.net_bps * total.trades)
    # Sharpe ratios by hand: mean 2, deviation 1, and the mean 1 of the same days.
    mine, theirs = dict(zip(days, (1.0, 2.0, 3.0), strict=True)), {}
    theirs = {day: value - 1.0 for day, value in mine.items()}
    found = msgspec.structs.replace(
        evaluation,
        daily=mine,
        baselines=(
            msgspec.structs.replace(judged["legacy"], daily=theirs),
            msgspec.structs.replace(judged["majority"], daily=dict.fromkeys(days, 0.0)),
        ),
        versus=ChampionComparison(
            champion="4", candidate=evaluation.results, incumbent=evaluation.results,
            gain_lower=0.0123, daily=(mine, theirs),
        ),
    )  # fmt: skip
    about = card.About(
        name="m", source="synthetic", git_sha="c", fingerprint="f", fee_row="zero", block_s=600
    )
    text = card.text(found, model, about)
    # Jobson–Korkie–Memmel at a correlation of one: variance (4 + 1 - 4) / 2 over three days, and
    # 0.5 · (1.645 + 0.842)² days to resolve.
    apart = "+1.00 ≥ +0.33, 3 days"
    (line,) = [line for line in text.splitlines() if line.startswith("| legacy |")]
    assert line.endswith(f"| {apart} |")
    (none,) = [line for line in text.splitlines() if line.startswith("| majority |")]
    assert none.endswith("| – |"), "it never trades"
    assert f"larger by 0.0123 at least, by whole days. Sharpe ratio of daily results less the champion's: {apart}." in text  # fmt: skip
